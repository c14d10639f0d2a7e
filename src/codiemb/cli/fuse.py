"""`codiemb fuse`."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from codiemb.cli._signals import errors_on_sigterm

if TYPE_CHECKING:
    from codiemb.fusion import LayerDelta
    from codiemb.fusion.candidates import Candidate
    from codiemb.fusion.search import Search

_PLOTS = (".png", ".svg", ".pdf")


def fuse_command(
    base: str = typer.Argument(help="The model that all were fine-tuned from: a directory or 'bundled'."),
    checkpoints: list[str] = typer.Argument(metavar="CKPT...", help="Fine-tuned model directories."),
    output: Path = typer.Option(None, "--output", "-o", help="New directory for the fused model."),
    method: Literal["uniform", "delta", "weights"] = typer.Option(
        None, "--method", help="uniform: a plain mean (the default); delta: by how far each moved; weights: as given."
    ),
    granularity: Literal["tensor", "layer", "model"] = typer.Option(
        None, "--granularity", help="What has one set of weights with --method delta.", show_default="tensor"
    ),
    weights: str = typer.Option(
        None, "--weights", metavar="W,W,...", help="One a checkpoint, summing to 1, with --method weights."
    ),
    scale: float = typer.Option(None, "--scale", help="Below 1 pulls the result back to the base, 0; 1 by default."),
    search_data: list[Path] = typer.Option(
        None,
        "--search",
        metavar="DATA",
        help="Find weights and scale on this validation data: BEIR folder, scored pairs, unified file; repeatable.",
    ),
    metric: str = typer.Option(
        None, "--metric", help="What --search looks for: mean, ir, sts, reranking, or a data set.", show_default="mean"
    ),
    budget: int = typer.Option(
        None, "--budget", min=1, help="Fusions that --search evaluates at most.", show_default="20"
    ),
    sample: int = typer.Option(
        None, "--sample", min=1, help="Queries or pairs of each data set that --search uses.", show_default="all"
    ),
    seed: int = typer.Option(
        None, "--seed", min=0, help="Chooses --sample, and resamples for the standard errors.", show_default="0"
    ),
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
    codiemb fuse bundled runs/ir runs/sts --search data/dev -o runs/fused
    codiemb fuse bundled runs/ir runs/sts --report --plot deltas.png
    """
    from codiemb.extras import require
    from codiemb.fusion import compare_deltas, fuse
    from codiemb.fusion.fusing import require_new
    from codiemb.fusion.plot import save_heat_map

    if output is None and not report and plot is None:
        raise ValueError("Give --output DIR for the fused model, or --report or --plot to look at the deltas alone.")
    if plot is not None:
        if plot.suffix not in _PLOTS:
            raise ValueError(f"--plot {plot}: expected a file that ends in {', '.join(_PLOTS)}.")
        require("matplotlib", "plots")
    given = None if weights is None else _parse_weights(weights)
    settings = {"metric": metric, "budget": budget, "sample": sample, "seed": seed}
    of_search = {name: value for name, value in settings.items() if value is not None}
    found: Search | None = None
    if search_data:
        if output is None or method or granularity or weights or scale is not None:
            raise ValueError(
                "--search finds weights and scale of a model that is written: it needs --output, and goes without "
                "--method, --granularity, --weights and --scale."
            )
        require_new(output)  # now, not after the search
        with errors_on_sigterm():
            found = _search(base, checkpoints, search_data, of_search)
        method, given = "weights", [float(weight) for weight in found.chosen.candidate.weights]
        scale = float(found.chosen.candidate.scale)
    elif of_search:
        raise ValueError(f"--{next(iter(of_search))} is for --search DATA, which was not given.")
    elif granularity and method != "delta":
        raise ValueError(f"--granularity {granularity} is for --method delta, got --method {method or 'uniform'}.")
    with _progress() as progress, errors_on_sigterm():
        on_progress = partial(_advance, progress, progress.add_task("fuse" if output else "measure", total=None))
        if output is None:
            layers = compare_deltas(base, checkpoints, on_progress=on_progress)
        else:
            layers = fuse(
                base,
                checkpoints,
                output,
                method=method or "uniform",
                granularity=granularity or "tensor",
                weights=given,
                scale=1.0 if scale is None else scale,
                search=None if found is None else found.to_dict(),
                on_progress=on_progress,
            ).layers
    if found:
        Console().print(search_table(found, checkpoints))
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
            *(
                f"{norm:.3g} from 0" if relative is None else f"{100 * relative:.3f}"
                for relative, norm in zip(layer.relative_norms, layer.norms, strict=True)
            ),
            *(f"{layer.cosines[j][k]:+.3f}" for j, k in pairs),
            *(f"{weight:.4f}" for weight in layer.weights),
        )
    return table


def search_table(found: Search, checkpoints: Sequence[str]) -> Table:
    """All tries in order, times 100; the chosen one is marked."""
    table = Table(title=f"{found.metric} on {', '.join(entry['name'] for entry in found.data)}, x100")
    table.title_justify = table.caption_justify = "left"
    for heading in (
        *(f"weight {k + 1}" for k in range(len(checkpoints))),
        "scale",
        "score ± SE",
        "behind the best ± SE",
    ):
        table.add_column(heading, justify="right")
    for name in (name for name in found.best.scores if name != found.metric):
        table.add_column(Text(name), justify="right", overflow="fold")
    table.add_column("")
    for one in found.tries:
        weights = ["-" if one.candidate.is_base else f"{float(weight):.4g}" for weight in one.candidate.weights]
        table.add_row(
            *weights,
            f"{float(one.candidate.scale):.4g}",
            _with_error(one.score, one.error),
            "" if one is found.best else _with_error(one.behind, one.behind_error),
            *(f"{100 * score:.2f}" for name, score in one.scores.items() if name != found.metric),
            "chosen" if one is found.chosen else "best" if one is found.best else "",
            style="bold" if one is found.chosen else "",
        )
    legend = "\n".join(f"{k}: {name}" for k, name in enumerate(checkpoints, 1))
    table.caption = Text(
        f"{legend}\nchosen: the simplest within one standard error (SE) of the best; measure it on other data"
    )
    return table


def _with_error(value: float, error: float | None) -> str:
    return f"{100 * value:.2f}" + ("" if error is None else f" ± {100 * error:.2f}")


def _search(base: str, checkpoints: Sequence[str], data: Sequence[Path], options: dict[str, Any]) -> Search:
    from transformers.utils import logging as transformers_logging

    from codiemb.fusion.search import search

    transformers_logging.disable_progress_bar()
    console = Console(stderr=True)

    def show(candidate: Candidate, score: float, known: bool) -> None:
        remark = ", from an earlier search" if known else ""
        console.print(f"{candidate}: {100 * score:.2f}{remark}", highlight=False, markup=False, soft_wrap=True)

    found = search(base, checkpoints, data, on_try=show, **options)
    if found.chosen.candidate.is_base:
        console.print("No fusion scores above the base: the result is the base itself.")
    return found


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
