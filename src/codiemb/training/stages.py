"""Several stages of training in order: pre-training, alignment on weak pairs, fine-tuning."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from rich.console import Console

from codiemb.losses.distributed import rank
from codiemb.training.output import RunDirectory
from codiemb.training.pretraining.documents import corpus_files
from codiemb.training.pretraining.run import PretrainReport, pretrain
from codiemb.training.recipe import Recipe
from codiemb.training.resumable import wait_for_all_ranks
from codiemb.training.run import TrainingReport, check, run
from codiemb.training.staged_recipe import Stage, StagedRecipe

START = "start"
"""The column of the model that the first stage started from."""


class StageError(ValueError):
    """What stopped a stage; the message begins with the stage's name."""


@dataclass
class StagedReport:
    """What a run of several stages did.

    Attributes:
        model: directory of the last stage's model.
        stages: of each its name, which is that of its directory in the model's, optimizer steps, tokens and seconds
            of training, and for pretrain its objective and the held-out measures before and after. The stages' own
            reports lie in their directories.
        scores: held-out scores (0 to 1) by name, of the model that the first stage started from (`start`) and after
            each stage. What pretrain made is scored as the next stage loads it; without one to score it, it is absent.
        seconds: wall time of this process.
    """

    model: str
    stages: list[dict[str, Any]]
    scores: dict[str, dict[str, float]]
    seconds: float = 0.0


def run_stages(
    recipe: StagedRecipe, *, resume: bool = False, overwrite: bool = False, console: Console | None = None
) -> StagedReport:
    """Run all stages, and make the last one's model that of the output directory.

    Args:
        recipe: checked by `load_any_recipe`.
        resume: pass over finished stages, and go on with the one that was interrupted from its last checkpoint.
        overwrite: delete what an earlier run left in the output directory.
        console: for progress; stderr if None.
    Raises:
        OutputError: the output directory holds something else, or another recipe's run.
        StageError: a stage cannot be run, or stopped, and why.
    """
    started = time.monotonic()
    directory = RunDirectory(recipe)
    stages = recipe.resolved()
    directory.check(resume=resume, overwrite=overwrite)
    finished = directory.finished() if resume else None
    for stage in [] if finished else stages:
        with _named(stage):
            _check(stage, overwrite)
    console = (console or Console(stderr=True)) if rank() == 0 else Console(quiet=True)
    say = partial(console.print, markup=False, highlight=False, soft_wrap=True)
    if finished:
        say(f"{directory.path} holds the finished run: nothing to do.")
        return StagedReport(**finished)
    wait_for_all_ranks()
    if rank() == 0:
        directory.prepare(overwrite=overwrite)
    wait_for_all_ranks()
    reports: dict[str, TrainingReport | PretrainReport] = {}
    for stage in stages:
        say(f"stage {stage.name}")
        with _named(stage):
            if isinstance(stage.recipe, Recipe):
                reports[stage.name] = run(stage.recipe, resume=True, console=console)
            else:
                reports[stage.name] = pretrain(stage.recipe, resume=True, console=console)
    report = StagedReport(
        model=str(recipe.output),
        stages=[_summary(name, of_stage) for name, of_stage in reports.items()],
        scores=_scores(reports),
        seconds=round(time.monotonic() - started, 1),
    )
    if rank() == 0:
        last = stages[-1].recipe.output
        directory.publish(_copier(last), _card(last, recipe.output, report), asdict(report))
    wait_for_all_ranks()
    return report


def _check(stage: Stage, overwrite: bool) -> None:
    """Find what would stop a stage, as far as that is known before the stages before it have run."""
    if not overwrite:
        RunDirectory(stage.recipe).check(resume=True, overwrite=False)
    if isinstance(stage.recipe, Recipe):
        check(stage.recipe)
    else:
        corpus_files([*stage.recipe.corpus, *stage.recipe.held_out.data])


@contextmanager
def _named(stage: Stage) -> Iterator[None]:
    try:
        yield
    except (ValueError, OSError) as error:
        raise StageError(f"stage {stage.name}: {error}") from error


def _summary(name: str, report: TrainingReport | PretrainReport) -> dict[str, Any]:
    measured: dict[str, Any] = {}
    if isinstance(report, PretrainReport):
        measured = {"objective": report.objective, "before": report.before, "after": report.after}
    return {
        "name": name,
        "steps": report.steps,
        "tokens": report.tokens,
        "training_seconds": report.settings["training_seconds"],
        **measured,
    }


def _scores(reports: Mapping[str, TrainingReport | PretrainReport]) -> dict[str, dict[str, float]]:
    """A stage's `before` are the scores of the one before it, where that was not scored itself."""
    scores: dict[str, dict[str, float]] = {}
    earlier = START
    for name, report in reports.items():
        if isinstance(report, TrainingReport) and report.after:
            scores.setdefault(earlier, report.before)
            scores[name] = report.after
        earlier = name
    return scores


def scores_rows(report: StagedReport) -> tuple[list[str], list[tuple[str, list[str]]]]:
    """The columns, and by row its name and cells: scores times 100, and for each objective of pretrain perplexities."""
    perplexities: dict[str, dict[str, float]] = {}
    earlier = START
    for stage in report.stages:
        if "perplexity" in stage.get("after", {}):
            of_objective = perplexities.setdefault(f"perplexity ({stage['objective']})", {})
            of_objective.setdefault(earlier, stage["before"]["perplexity"])
            of_objective[stage["name"]] = stage["after"]["perplexity"]
        earlier = stage["name"]
    measured = {*report.scores, *chain(*perplexities.values())}
    columns = [name for name in (START, *(stage["name"] for stage in report.stages)) if name in measured]
    names = dict.fromkeys(name for scores in report.scores.values() for name in scores)
    rows = [(name, [_cell(report.scores.get(column, {}).get(name), 100) for column in columns]) for name in names]
    for name, of_objective in perplexities.items():
        rows.append((name, [_cell(of_objective.get(column)) for column in columns]))
    return columns, rows


def _cell(value: float | None, times: int = 1) -> str:
    return "–" if value is None else f"{times * value:.2f}"


def _copier(last: Path) -> Callable[[Path], None]:
    """Copies a model without what belongs to its own run."""

    def copy(target: Path) -> None:
        shutil.copytree(last, target, ignore=shutil.ignore_patterns("training"), dirs_exist_ok=True)

    return copy


def _card(last: Path, output: Path, report: StagedReport) -> str:
    """The last stage's, with all stages' figures in it."""
    card = (last / "README.md").read_text(encoding="utf-8")
    card = card.replace(f"\n# {last.name}\n", f"\n# {output.resolve().name}\n", 1)
    stages = [
        f"| {stage['name']} | {stage['steps']} | {stage['tokens']:,} | {stage['training_seconds']:.0f} |"
        for stage in report.stages
    ]
    table = "| stage | steps | tokens | seconds |\n|---|---:|---:|---:|\n" + "\n".join(stages)
    columns, rows = scores_rows(report)
    if columns:
        lines = [f"| {name} | {' | '.join(cells)} |" for name, cells in rows]
        head = f"| | {' | '.join(columns)} |\n|---|{'---:|' * len(columns)}\n"
        table += "\n\nHeld-out scores, times 100, and perplexities after each stage:\n\n" + head + "\n".join(lines)
    section = f"## Stages\n\nEach stage started from the model of the one before it.\n\n{table}\n\n"
    return card.replace("## Recipe\n", f"{section}## Recipe of the last stage\n", 1)
