"""`codiemb diagnose`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


def diagnose_command(
    recipe: Path = typer.Argument(help="YAML recipe, the one that `codiemb train` takes."),
    overrides: list[str] = typer.Argument(
        None, metavar="[KEY.SUB=VALUE]...", help="Change single keys, such as tasks.sts.batch_size=32."
    ),
    batches: int = typer.Option(8, "--batches", min=2, help="Batches of each task; more make the intervals narrower."),
    by: Literal["task", "dataset"] = typer.Option("task", "--by", help="Compare tasks, or all data sets."),
    mixed: bool = typer.Option(
        False, "--mixed", help="Also mixed batches: rows of all tasks under one InfoNCE, as naive joint training has."
    ),
    model: str = typer.Option(
        None, "--model", metavar="MODEL", help="Measure here, for example at the trained model, not at the recipe's."
    ),
    output: Path = typer.Option(
        None, "--output", "-o", help="Directory for diagnosis.json, diagnosis.html and the heat maps as PNG."
    ),
    as_json: bool = typer.Option(False, "--json", help="Print JSON instead of tables."),
) -> None:
    """Measure, before a training or after it, in how far the tasks of RECIPE pull the model in different directions.

    \b
    codiemb diagnose recipes/joint-zh.yaml
    codiemb diagnose recipes/joint-zh.yaml --model runs/joint-zh --mixed --output runs/diagnosis
    codiemb diagnose recipes/joint-zh.yaml --by dataset --batches 4
    """
    from transformers.utils import logging as transformers_logging

    from codiemb.extras import require
    from codiemb.json_files import to_json
    from codiemb.training.diagnosis.conflict import diagnose
    from codiemb.training.diagnosis.gradients import measure
    from codiemb.training.diagnosis.report import diagnosis_tables, write_report
    from codiemb.training.diagnosis.verdict import verdict
    from codiemb.training.recipe import load_recipe

    if output is not None:
        require("matplotlib", "plots")  # now, not after the work
    changes = [*(overrides or []), *([f"model={model}"] if model else [])]
    transformers_logging.disable_progress_bar()
    console = Console(stderr=True)
    with _progress(console) as progress:
        bar = progress.add_task("gradients", total=None)
        measured = measure(
            load_recipe(recipe, changes),
            batches=batches,
            by=by,
            mixed=mixed,
            on_progress=lambda done, total: progress.update(bar, completed=done, total=total),
        )
    diagnosis = diagnose(measured)
    if as_json:
        print(to_json({"verdict": verdict(diagnosis), **diagnosis.to_dict()}), end="")
    else:
        Console().print(diagnosis_tables(diagnosis))
    if output is not None:
        write_report(output, diagnosis, f"Do the tasks of {recipe.name} conflict at {diagnosis.settings['model']}?")
        console.print(f"written to {output}", highlight=False, soft_wrap=True)


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    )
