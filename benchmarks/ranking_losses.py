"""Time our ranking losses, forward and backward, against loops written from the formulas.

    python benchmarks/ranking_losses.py [--sizes 64 256 1024] [--device cpu] [--repeats 30] [--loop-repeats 5]

The loops go over the pairs k and compute each term with tensor operations on the scores below k, as one writes the
formulas down first. The table gives medians in milliseconds with their quartiles; the last line on stdout is a JSON
object of loop/ours ratios, milliseconds and settings. One CPU thread unless --threads says otherwise: tensors this
small gain little from more, and where other processes run, waiting for a thread takes longer than the work.
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from codiemb.losses import cosent_loss, pro_loss, rank_kl_loss

TAU = 0.05
Loss = Callable[[Tensor, Tensor], Tensor]


def rank_kl_loop(x: Tensor, y: Tensor) -> Tensor:
    n = len(y)
    ranks = [(y > y[k]).sum() + ((y == y[k]).sum() - 1) / 2 for k in range(n)]
    p = torch.stack([(n - 1 - rank) / (n - 1) / TAU for rank in ranks]).softmax(0)
    q = (x / TAU).softmax(0)
    return sum((p[k] * (p[k] / q[k]).log() for k in range(n)), start=x.new_zeros(()))


def pro_loop(x: Tensor, y: Tensor) -> Tensor:
    terms = []
    for k in range(len(y)):
        below = y < y[k]
        if below.any():
            gaps = y[k] - y[below]
            logits = torch.cat([(x[k] / TAU * gaps.max()).view(1), x[below] / TAU * gaps])
            terms.append(-logits.log_softmax(0)[0])
    return torch.stack(terms).mean()


def cosent_loop(x: Tensor, y: Tensor) -> Tensor:
    inversions = [(x[y < y[k]] - x[k]) / TAU for k in range(len(y))]
    return torch.cat([x.new_zeros(1), *inversions]).logsumexp(0)


LOSSES: dict[str, tuple[Loss, Loss]] = {
    "rank_kl": (rank_kl_loss, rank_kl_loop),
    "pro": (pro_loss, pro_loop),
    "cosent": (cosent_loss, cosent_loop),
}


def step(loss: Loss, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    leaf = x.clone().requires_grad_()
    value = loss(leaf, y)
    (gradient,) = torch.autograd.grad(value, leaf)
    return value.detach(), gradient


def quartiles(loss: Loss, x: Tensor, y: Tensor, repeats: int) -> tuple[float, float, float]:
    """Milliseconds of a step: first quartile, median, third quartile, after a warm-up."""
    synchronize = torch.cuda.synchronize if x.is_cuda else lambda: None
    step(loss, x, y)
    times = []
    for _ in range(repeats):
        synchronize()
        start = time.perf_counter()
        step(loss, x, y)
        synchronize()
        times.append(1000 * (time.perf_counter() - start))
    first, median, third = statistics.quantiles(times, n=4)
    return first, median, third


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 256, 1024], help="pairs in a batch")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1, help="of the CPU")
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--loop-repeats", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    table = Table("loss", "pairs", "ours, ms", "loop, ms", "loop / ours", title="forward + backward")
    milliseconds: dict[str, dict[str, float]] = {}
    ratios: dict[str, float] = {}
    for n in options.sizes:
        generator = torch.Generator().manual_seed(n)
        x = (torch.rand(n, generator=generator) * 2 - 1).to(options.device)
        y = (torch.randint(0, 26, (n,), generator=generator) / 25).to(
            options.device
        )  # scores with ties, as people give
        for name, (ours, loop) in LOSSES.items():
            torch.testing.assert_close(step(ours, x, y), step(loop, x, y), rtol=1e-3, atol=1e-5)
            fast = quartiles(ours, x, y, options.repeats)
            slow = quartiles(loop, x, y, options.loop_repeats)
            key = f"{name}_{n}"
            milliseconds[key] = {"ours": round(fast[1], 3), "loop": round(slow[1], 3)}
            ratios[key] = round(slow[1] / fast[1], 1)
            times = (f"{median:.2f} ({first:.2f}-{third:.2f})" for first, median, third in (fast, slow))
            table.add_row(name, str(n), *times, f"{ratios[key]:.1f}")

    Console().print(table)
    settings = {
        "device": torch.cuda.get_device_name() if options.device.startswith("cuda") else platform.machine(),
        "threads": options.threads,
        "torch": torch.__version__,
    }
    print(json.dumps({"ratios": ratios, "milliseconds": milliseconds, "settings": settings}))


if __name__ == "__main__":
    main()
