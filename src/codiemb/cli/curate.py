"""`codiemb curate`: from raw documents and labelled files to a training set, by one recipe."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console


def curate_command(
    recipe: Annotated[Path, typer.Argument(help="YAML: output, sources, steps, card.")],
    changes: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Change keys, such as seed=1.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON on stdout.")] = False,
) -> None:
    """Make a training set by a recipe: synthesize, filter, dedupe, mine, decontaminate, split, in the order it lists.

    Every step is kept with a hash of its inputs, options and code: a second run does nothing, a changed step runs
    again with those after it, and a stopped run goes on at the step it was in.

    \b
    codiemb curate recipes/curate-example.yaml
    codiemb curate my.yaml output=data/v2 seed=1

    OUTPUT gets data/ (a file for each split), README.md (the data card, as the hub reads it), curation.json and
    rejected/ (what each step left out and why). OUTPUT.steps holds what the steps wrote; it may be deleted.
    """
    from codiemb.curation.curating import CurationRecipe, curate
    from codiemb.training.sections import load_section

    console = Console(stderr=True, highlight=False)
    loaded = load_section(CurationRecipe, recipe, changes or [])
    states = {"cached": "there already", "running": "...", "done": "done"}
    report = curate(
        loaded, console=console, on_step=lambda step, state: console.print(f"{step}: {states[state]}", markup=False)
    )
    if as_json:
        print(json.dumps(report.content, ensure_ascii=False))
        return
    shown = Console(highlight=False, soft_wrap=True)
    for step in report.content["steps"]:
        written, left_out = sum(step["written"].values()), sum(step["rejected"].values())
        shown.print(
            f"{step['step']:20} {step['read']:>9,} read {written:>9,} written {left_out:>9,} left out", markup=False
        )
    for split in report.content["splits"]:
        shown.print(f"{split['rows']:>9,} rows {report.output / split['file']}", markup=False)
    shown.print(f"Data card: {report.output / 'README.md'}", markup=False)
