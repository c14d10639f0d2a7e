"""`codiemb fuse`."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table

if TYPE_CHECKING:
    from codiemb.fusion import LayerDelta

_PLOTS = (".png", ".svg", ".pdf")


def fuse_command(
    base: str = typer.Argument(help="The model that all were fine-tuned from: a directory or 'bundled'."),
    checkpoints: list[str] = typer.Argument(metavar="CKPT...", help="Fine-tuned model directories."),
    output: Path = typer.Option(None, "--output", "-o", help="New directory for the fused model."),
    method: Literal["uniform", "delta", "weights"] = typer.Option(
        "uniform", "--method", help="uniform: a plain mean; delta: by how far each moved; weights: as given."
    ),
    granularity: Literal["tensor", "layer", "model"] = typer.Option(
        "tensor", "--granularity", help="What has one set of weights with --method delta."
    ),
    weights: str = typer.Option(
        None, "--weights", metavar="W,W,...", help="One a checkpoint, summing to 1, with --method weights."
    ),
    scale: float = typer.Option(1.0, "--scale", help="Below 1 pulls the result back towards the base; 0 is the base."),
    report: bool = typer.Option(
        False, "--report", help="Show how far each checkpoint moved each layer, and in which direction."
    ),
    plot: Path = typer.Option(None, "--plot", metavar="FILE", help="The same as a heat map: .png, .svg or .pdf."),
) -> None:
    """Make one model of several that were fine-tuned from BASE: BASE + scale x mean of what each changed.

    \b
    codiemb fuse bundled runs/ir runs/sts -o runs/fused
    codiemb fuse bundled runs/ir runs/sts --method weights --weights 0.3,0.7 -o runs/fused
    codiemb fuse bundled runs/mine --scale 0.7 -o runs/mine-0.7
    codiemb fuse bundled runs/ir runs/sts --report --plot deltas.png
    """
    from codiemb.extras import require
    from codiemb.fusion import compare_deltas, fuse
    from codiemb.fusion.plot import save_heat_map

    if output is None and not report and plot is None:
        raise ValueError("Give --output DIR for the fused model, or --report or --plot to look at the deltas alone.")
    if plot is not None:
        if plot.suffix not in _PLOTS:
            raise ValueError(f"--plot {plot}: expected a file that ends in {', '.join(_PLOTS)}.")
        require("matplotlib", "plots")
    given = None if weights is None else _parse_weights(weights)
    with _progress() as progress:
        on_progress = partial(_advance, progress, progress.add_task("fuse" if output else "measure", total=None))
        if output is None:
            layers = compare_deltas(base, checkpoints, on_progress=on_progress)
        else:
            layers = fuse(
                base,
                checkpoints,
                output,
                method=method,
                granularity=granularity,
                weights=given,
                scale=scale,
                on_progress=on_progress,
            ).layers
    if report:
        Console().print(delta_table(layers, checkpoints))
    if plot is not None:
        save_heat_map(plot, layers, checkpoints)
    if output is not None:
        print(output)


def delta_table(layers: Sequence[LayerDelta], checkpoints: Sequence[str]) -> Table:
    """Norms of each checkpoint's deltas over the base's norm, in percent, and the cosines between each two."""
    legend = "\n".join(f"{k}: {name}" for k, name in enumerate(checkpoints, 1))
    pairs = list(combinations(range(len(checkpoints)), 2))
    title = "Change from the base, in % of its norm" + ("; cosines between changes" if pairs else "")
    table = Table(title=title, title_justify="left", caption=legend, caption_justify="left")
    table.add_column("layer")
    fused = bool(layers[0].weights)
    headings = [f"change {k + 1}" for k in range(len(checkpoints))] + [f"cos {j + 1},{k + 1}" for j, k in pairs]
    headings += [f"weight {k + 1}" for k in range(len(checkpoints))] if fused else []
    for heading in headings:
        table.add_column(heading, justify="right")
    for layer in layers:
        if layer.name == "model":
            table.add_section()
        table.add_row(
            layer.name,
            *(f"{100 * norm:.3f}" for norm in layer.relative_norms),
            *(f"{layer.cosines[j][k]:+.3f}" for j, k in pairs),
            *(f"{weight:.4f}" for weight in layer.weights),
        )
    return table


def _parse_weights(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError as error:
        raise ValueError(f"--weights {text}: expected numbers with commas between them, such as 0.7,0.3.") from error


def _progress() -> Progress:
    console = Console(stderr=True)
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        TaskProgressColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    )


def _advance(progress: Progress, bar: TaskID, done: int, total: int) -> None:
    progress.update(bar, completed=done, total=total)
