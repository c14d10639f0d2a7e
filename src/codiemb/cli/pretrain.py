"""`codiemb pretrain`."""

from __future__ import annotations

import os
from pathlib import Path

import typer
from rich.console import Console
from rich.table import Table


def pretrain_command(
    recipe: Path = typer.Argument(help="YAML recipe; see recipes/pretrain-*.yaml for ready ones."),
    overrides: list[str] = typer.Argument(
        None, metavar="[KEY.SUB=VALUE]...", help="Change single keys, such as optimizer.learning_rate=3e-4."
    ),
    resume: bool = typer.Option(
        False, "--resume", help="Go on from the last checkpoint in the output directory, or start if there is none."
    ),
    overwrite: bool = typer.Option(False, "--overwrite", help="Delete an earlier run in the output directory."),
) -> None:
    """Train a language model on plain text as RECIPE says: the first of three stages to an embedding model.

    The output directory becomes a plain transformers model with its tokenizer, which `codiemb train` takes as `model`.

    \b
    codiemb pretrain recipes/pretrain-youtu-small.yaml
    codiemb pretrain recipes/pretrain-youtu-small.yaml output=runs/mine window=1024
    torchrun --nproc-per-node 4 -m codiemb pretrain recipes/pretrain-youtu-small.yaml
    """
    from codiemb.training.pretraining.recipe import load_pretrain_recipe
    from codiemb.training.pretraining.run import pretrain

    report = pretrain(load_pretrain_recipe(recipe, overrides or []), resume=resume, overwrite=overwrite)
    if os.environ.get("RANK", "0") != "0":
        return
    if report.after:
        Console().print(perplexity_table(report.before, report.after))
    print(report.model)


def perplexity_table(before: dict[str, float], after: dict[str, float]) -> Table:
    """What held-out documents say before and after; lower is better."""
    table = Table(title="Held-out documents (lower is better)")
    table.add_column("")
    for heading in ("before", "after"):
        table.add_column(heading, justify="right")
    for name, value in after.items():
        table.add_row(name.replace("_", " "), f"{before[name]:,.3f}", f"{value:,.3f}")
    return table
