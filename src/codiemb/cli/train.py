"""`codiemb train`."""

from __future__ import annotations

import os
from pathlib import Path

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text


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
    """Train a model as RECIPE says and measure it before and after.

    The output directory becomes a plain sentence-transformers model; checkpoints and TensorBoard logs lie in its
    training/ folder.

    \b
    codiemb train recipes/joint-zh.yaml
    codiemb train recipes/joint-zh.yaml output=runs/mine sampling.task_shares.ir=0.3
    torchrun --nproc-per-node 4 -m codiemb train recipes/joint-zh.yaml
    """
    from codiemb.training.recipe import load_recipe
    from codiemb.training.run import run

    report = run(load_recipe(recipe, overrides or []), resume=resume, overwrite=overwrite)
    if os.environ.get("RANK", "0") != "0":
        return
    if report.after:
        Console().print(scores_table(report.before, report.after))
    print(report.model)


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
