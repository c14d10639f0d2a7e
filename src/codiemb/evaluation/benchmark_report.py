"""A benchmark run, and two of them side by side, as summaries and as tables for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from mteb.models import ModelMeta
from rich.table import Table
from rich.text import Text

from codiemb.evaluation.benchmark import Outcome
from codiemb.evaluation.benchmark_items import TaskScore
from codiemb.evaluation.leaderboard import MEAN_TASK, MEAN_TYPE, means_of
from codiemb.evaluation.report import comparison_table
from codiemb.evaluation.significance import Interval, Intervals


def summary(
    meta: ModelMeta, outcomes: Sequence[Outcome], scores: Mapping[str, TaskScore], intervals: Intervals
) -> dict[str, Any]:
    """Tasks as they ended, and the means over all tasks, over types and of each type, each with its `n` of `of`.

    Scores and their intervals are in 0..1, means and theirs in 0..100, as a leaderboard has them. A task without a
    score is in no mean and is counted in `of`. `items` is what an interval is over, and how many; `no_interval` says
    why there is none.
    """
    found = {outcome.task: 100 * outcome.score for outcome in outcomes if outcome.score is not None}
    means = means_of(found, {outcome.task: outcome.type for outcome in outcomes})
    return {
        "model": meta.name,
        "revision": meta.revision,
        "tasks": [{**asdict(outcome), **_sureness(scores.get(outcome.task), intervals)} for outcome in outcomes],
        "means": {
            name: {**asdict(mean), "interval": _percent(intervals.means.get(name))} for name, mean in means.items()
        },
        "missing": [outcome.task for outcome in outcomes if outcome.score is None],
    }


def _sureness(score: TaskScore | None, intervals: Intervals) -> dict[str, Any]:
    if score is None:
        return {"interval": None, "items": None, "no_interval": ""}
    interval = intervals.tasks.get(score.task)
    reason = score.reason or ("" if interval else "a part of it has a single item")
    items = {"kind": score.kind, "n": score.n} if score.parts else None
    return {"interval": interval and interval.to_dict(), "items": items, "no_interval": reason}


def _percent(interval: Interval | None) -> dict[str, Any] | None:
    return {**interval.to_dict(), "low": 100 * interval.low, "high": 100 * interval.high} if interval else None


def summary_table(content: Mapping[str, Any]) -> Table:
    """Scores times 100 with their intervals and what these are over; a mean over fewer tasks than there are says so."""
    title = f"{content['model']} ({content['revision']})"
    table = Table(title=Text(title), title_justify="left", caption_justify="left")
    for heading in ("task", "metric"):
        table.add_column(heading, overflow="fold")
    levels = [found["level"] for task in content["tasks"] if (found := task["interval"])]
    for heading in ("score", f"{100 * levels[0]:g} % interval" if levels else "interval", "over"):
        table.add_column(heading, justify="right", no_wrap=True)
    for task in content["tasks"]:
        score = "failed" if task["score"] is None else f"{100 * task['score']:.2f}"
        over = f"{items['n']:,} {items['kind']}" if (items := task["items"]) else ""
        interval = _range(task["interval"], 100)
        table.add_row(Text(task["task"]), task["main_metric"], score, interval, over)
    table.add_section()
    for name, mean in content["means"].items():
        value = "-" if mean["value"] is None else f"{mean['value']:.2f}"
        table.add_row(name, f"{mean['n']} of {mean['of']} tasks", value, _range(mean["interval"], 1), "")
    notes = [f"no score: {', '.join(content['missing'])}"] if content["missing"] else []
    notes += [f"no interval: {task['task']}: {task['no_interval']}" for task in content["tasks"] if task["no_interval"]]
    if notes:
        table.caption = Text("\n".join(notes))
    return table


def comparison_report(comparison: Mapping[str, Any], *, arrows: bool) -> Table:
    """As `report.comparison_table`, with mteb's means, and why tasks are not tested or not compared."""
    types = [name for name in comparison["summary"] if name not in (MEAN_TASK, MEAN_TYPE)]
    means = {name: name for name in (*types, MEAN_TYPE, MEAN_TASK)}
    table = comparison_table(comparison, arrows=arrows, means=means)
    notes = [f"no test: {task['task']}: {task['no_test']}" for task in comparison["tasks"] if task["no_test"]]
    notes += [f"not compared: {task}: {reason}" for task, reason in comparison["left_out"].items()]
    table.caption = Text("\n".join([str(table.caption or ""), *notes]))
    return table


def _range(interval: Mapping[str, Any] | None, scale: float) -> Text:
    return Text(f"[{scale * interval['low']:.1f}, {scale * interval['high']:.1f}]" if interval else "-")
