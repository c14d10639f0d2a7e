"""Two processes on gloo against one process on the union of their batches."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, multiprocessing

from codiemb.losses import gather, info_nce

RANKS, ROWS, DIM = 2, 3, 6
ROLES = ("query", "positives", "negatives")


def union() -> tuple[list[Tensor], dict[str, Tensor]]:
    """The batch of all ranks: embeddings in the order of ROLES, then masks and ids."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(RANKS * ROWS, DIM), (RANKS * ROWS, 2, DIM), (RANKS * ROWS, 2, DIM)]
    embeddings = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    positive_mask = torch.ones(RANKS * ROWS, 2, dtype=torch.bool)
    positive_mask[1, 0] = False
    positive_mask[4] = False  # a query that counts on no rank: rank 1 has fewer of them than rank 0
    ids = torch.arange(RANKS * ROWS * 5).view(RANKS * ROWS, 5)
    ids[5, 0] = ids[0, 0]  # the same query on both ranks
    ids[3, 3] = ids[2, 1]  # a hard negative on rank 1 is a positive on rank 0
    return [F.normalize(t, dim=-1) for t in embeddings], {
        "positive_mask": positive_mask,
        "query_ids": ids[:, 0],
        "positive_ids": ids[:, 1:3],
        "negative_ids": ids[:, 3:],
    }


def run_rank(rank: int, directory: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{directory}/store", rank=rank, world_size=RANKS)
    own = slice(rank * ROWS, (rank + 1) * ROWS)
    results: dict[str, object] = {}
    embeddings, options = union()
    for in_batch in (True, False):
        leaves = [t[own].clone().requires_grad_() for t in embeddings]
        own_options = {name: t[own] for name, t in options.items()}
        loss = info_nce(*leaves, **own_options, temperature=0.1, in_batch=in_batch, gather=True)
        loss.backward()
        results[f"info_nce in_batch={in_batch}"] = loss.detach(), [t.grad for t in leaves]

    leaf = torch.full((2, 2), float(rank), requires_grad=True)
    gathered = gather(leaf)
    (gathered * torch.arange(8.0).view(4, 2) * (rank + 1)).sum().backward()
    results["gather"] = gathered.detach(), leaf.grad
    try:
        gather(torch.zeros(2, 1 + rank))
    except ValueError as error:
        results["unequal shapes"] = str(error)
    torch.save(results, directory / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def by_rank(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, object]]:
    directory = tmp_path_factory.mktemp("gather")
    multiprocessing.spawn(run_rank, (directory,), nprocs=RANKS)
    return [torch.load(directory / f"{rank}.pt") for rank in range(RANKS)]


def test_gather_concatenates_and_returns_summed_gradients(by_rank: list[dict[str, object]]) -> None:
    for rank, results in enumerate(by_rank):
        gathered, gradient = results["gather"]
        assert gathered.tolist() == [[0, 0], [0, 0], [1, 1], [1, 1]]
        # Rank r weighs element e of the gathered tensor by e (r + 1), and an owner gets the sum over both.
        torch.testing.assert_close(gradient, torch.arange(8.0).view(2, 2, 2)[rank] * 3)


@pytest.mark.parametrize("in_batch", [True, False])
def test_mean_over_ranks_is_the_loss_of_the_union(by_rank: list[dict[str, object]], in_batch: bool) -> None:
    embeddings, options = union()
    leaves = [t.requires_grad_() for t in embeddings]
    loss = info_nce(*leaves, **options, temperature=0.1, in_batch=in_batch)
    loss.backward()
    losses, gradients = zip(*(results[f"info_nce in_batch={in_batch}"] for results in by_rank), strict=True)
    torch.testing.assert_close(torch.stack(losses).mean(), loss.detach())
    for role, leaf, shards in zip(ROLES, leaves, zip(*gradients, strict=True), strict=True):
        # DistributedDataParallel would average the gradients of the ranks.
        torch.testing.assert_close(torch.cat(shards) / RANKS, leaf.grad, msg=lambda text, role=role: f"{role}: {text}")


def test_ranks_do_need_each_other(by_rank: list[dict[str, object]]) -> None:
    embeddings, options = union()
    alone = info_nce(*(t[:ROWS] for t in embeddings), **{k: t[:ROWS] for k, t in options.items()}, temperature=0.1)
    assert not torch.isclose(alone, by_rank[0]["info_nce in_batch=True"][0])


def test_unequal_shapes_are_an_error_on_every_rank(by_rank: list[dict[str, object]]) -> None:
    for results in by_rank:
        assert "shapes [(2, 1), (2, 2)], expected equal shapes" in str(results["unequal shapes"])


def test_gather_alone_is_the_identity() -> None:
    tensor = torch.ones(2, 3)
    assert gather(tensor) is tensor
    embeddings, options = union()
    torch.testing.assert_close(info_nce(*embeddings, **options, gather=True), info_nce(*embeddings, **options))
