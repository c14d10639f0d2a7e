"""A benchmark run as a summary and as a table for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from mteb.models import ModelMeta
from rich.table import Table
from rich.text import Text

from codiemb.evaluation.benchmark import Outcome
from codiemb.evaluation.leaderboard import means_of


def summary(meta: ModelMeta, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Tasks as they ended, and the means over all tasks, over types and of each type, each with its `n` of `of`.

    Scores are in 0..1, means in 0..100, as a leaderboard has them. A task without a score is in no mean and is counted
    in `of`.
    """
    scores = {outcome.task: 100 * outcome.score for outcome in outcomes if outcome.score is not None}
    means = means_of(scores, {outcome.task: outcome.type for outcome in outcomes})
    return {
        "model": meta.name,
        "revision": meta.revision,
        "tasks": [asdict(outcome) for outcome in outcomes],
        "means": {name: asdict(mean) for name, mean in means.items()},
        "missing": [outcome.task for outcome in outcomes if outcome.score is None],
    }


def summary_table(content: Mapping[str, Any]) -> Table:
    """Scores times 100; a mean over fewer tasks than there are says so."""
    title = f"{content['model']} ({content['revision']})"
    table = Table(title=Text(title), title_justify="left", caption_justify="left")
    for heading in ("task", "type", "metric"):
        table.add_column(heading, overflow="fold")
    table.add_column("score", justify="right")
    for task in content["tasks"]:
        score = "failed" if task["score"] is None else f"{100 * task['score']:.2f}"
        table.add_row(Text(task["task"]), task["type"], task["main_metric"], score)
    table.add_section()
    for name, mean in content["means"].items():
        value = "-" if mean["value"] is None else f"{mean['value']:.2f}"
        table.add_row(name, "", f"{mean['n']} of {mean['of']} tasks", value)
    if content["missing"]:
        table.caption = Text(f"no score: {', '.join(content['missing'])}")
    return table
