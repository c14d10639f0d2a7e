"""`codiemb diagnose`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

if TYPE_CHECKING:
    from codiemb.training.recipe import Recipe


def diagnose_command(
    recipe: Path = typer.Argument(help="YAML recipe, the one that `codiemb train` takes."),
    overrides: list[str] = typer.Argument(
        None, metavar="[KEY.SUB=VALUE]...", help="Change single keys, such as tasks.sts.batch_size=32."
    ),
    batches: int = typer.Option(8, "--batches", min=4, help="Batches of each task; more make the intervals narrower."),
    max_length: int = typer.Option(
        128, "--max-length", min=8, help="Tokens that texts are cut to here, to save time; at most what training reads."
    ),
    by: Literal["task", "dataset"] = typer.Option("task", "--by", help="Compare tasks, or all data sets."),
    mixed: bool = typer.Option(
        False, "--mixed", help="Also mixed batches: rows of all tasks under one InfoNCE, as naive joint training has."
    ),
    model: str = typer.Option(
        None, "--model", metavar="MODEL", help="Measure here, for example at the trained model, not at the recipe's."
    ),
    stage: str = typer.Option(
        None,
        "--stage",
        help="Of a recipe with several stages, the one whose training is looked at.",
        show_default="last",
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
    codiemb diagnose recipes/three-stages-zh.yaml --stage finetune
    """
    from transformers.utils import logging as transformers_logging

    from codiemb.extras import require
    from codiemb.json_files import to_json
    from codiemb.training.diagnosis.conflict import diagnose
    from codiemb.training.diagnosis.gradients import measure
    from codiemb.training.diagnosis.report import diagnosis_tables, write_report
    from codiemb.training.diagnosis.verdict import verdict

    if output is not None:
        require("matplotlib", "plots")  # now, not after the work
    transformers_logging.disable_progress_bar()
    console = Console(stderr=True)
    checked = _one_training(recipe, overrides or [], stage, model)
    with _progress(console) as progress:
        bar = progress.add_task("gradients", total=None)
        measured = measure(
            checked,
            batches=batches,
            by=by,
            mixed=mixed,
            max_length=max_length,
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


def _one_training(path: Path, overrides: list[str], which: str | None, model: str | None) -> Recipe:
    """The recipe, or that of one of its stages, with the model to measure at."""
    from codiemb.training.recipe import Recipe, RecipeError
    from codiemb.training.staged_recipe import load_any_recipe

    loaded = load_any_recipe(path, overrides)
    if isinstance(loaded, Recipe):
        if which is not None:
            raise RecipeError(f"--stage {which}: {path} is the recipe of a single training. Leave --stage out.")
        return loaded.model_copy(update={"model": model}) if model else loaded
    stages = {stage.name: stage.recipe for stage in loaded.resolved() if isinstance(stage.recipe, Recipe)}
    wanted = [name for name in stages if which in (name, *name.split("-"))] if which else [*stages][-1:]
    if len(wanted) != 1:
        raise RecipeError(f"--stage {which}: expected one of {', '.join(stages)}, or its number.")
    found = stages[wanted[0]]
    if model:
        return found.model_copy(update={"model": model})
    if Path(found.model).parent == loaded.output and not Path(found.model).is_dir():
        raise RecipeError(
            f"{path}: stage {wanted[0]} starts from {found.model}, which is not there yet. Run `codiemb train {path}` "
            "first, or say where to measure with --model."
        )
    return found


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    )
