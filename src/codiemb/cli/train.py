"""`codiemb train`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from codiemb.training.stages import StagedReport


def train_command(
    recipe: Path = typer.Argument(help="YAML recipe; see recipes/ for ready ones."),
    overrides: list[str] = typer.Argument(
        None, metavar="[KEY.SUB=VALUE]...", help="Change single keys, such as optimizer.learning_rate=3e-5."
    ),
    resume: bool = typer.Option(
        False, "--resume", help="Go on from the last checkpoint in the output directory, or start if there is none."
    ),
    overwrite: bool = typer.Option(False, "--overwrite", help="Delete an earlier run in the output directory."),
) -> None:
    """Train a model as RECIPE says, in one stage or several, and measure it before and after each.

    The output directory becomes a plain sentence-transformers model; checkpoints and TensorBoard logs lie in its
    training/ folder.

    \b
    codiemb train recipes/joint-zh.yaml
    codiemb train recipes/joint-zh.yaml output=runs/mine sampling.task_shares.ir=0.3
    codiemb train recipes/three-stages-zh.yaml stages.align.optimizer.learning_rate=1e-4
    torchrun --nproc-per-node 4 -m codiemb train recipes/joint-zh.yaml
    """
    from codiemb.training.recipe import Recipe
    from codiemb.training.run import run
    from codiemb.training.staged_recipe import load_any_recipe
    from codiemb.training.stages import run_stages

    loaded = load_any_recipe(recipe, overrides or [])
    if not isinstance(loaded, Recipe):
        staged = run_stages(loaded, resume=resume, overwrite=overwrite)
        if os.environ.get("RANK", "0") == "0":
            if table := stages_table(staged):
                Console().print(table)
            print(staged.model)
        return
    report = run(loaded, resume=resume, overwrite=overwrite)
    if os.environ.get("RANK", "0") != "0":
        return
    if report.after:
        Console().print(scores_table(report.before, report.after))
    print(report.model)


def stages_table(report: StagedReport) -> Table | None:
    """Held-out scores after each stage, times 100, and the perplexity of language models; None where none is known."""
    from codiemb.training.stages import scores_rows

    columns, rows = scores_rows(report)
    if not columns:
        return None
    table = Table(title="After each stage, on held-out data: nDCG@10 (retrieval) and Spearman (similarity), x100")
    table.add_column("")
    for heading in columns:
        table.add_column(heading, justify="right")
    for name, cells in rows:
        table.add_row(Text(name), *cells)
    return table


def scores_table(before: dict[str, float], after: dict[str, float]) -> Table:
    """Held-out scores before and after, times 100."""
    table = Table(title="nDCG@10 (retrieval) and Spearman (similarity) on held-out data, x100")
    table.add_column("")
    for heading in ("before", "after", "change"):
        table.add_column(heading, justify="right")
    for name, score in after.items():
        change = 100 * (score - before[name])
        style = "green" if change > 0 else "red" if change < 0 else ""
        table.add_row(
            Text(name), f"{100 * before[name]:.2f}", f"{100 * score:.2f}", f"[{style or 'default'}]{change:+.2f}[/]"
        )
    return table
