"""Intervals of a benchmark's scores, and two models side by side with the test of their differences.

Means are over the tasks that were scored. A mean has an interval and a test where all its tasks have them over items of
their data; clustering has them over mteb's draws only, which says nothing about other texts.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from codiemb.evaluation.benchmark_items import TaskScore
from codiemb.evaluation.changes import Changes
from codiemb.evaluation.leaderboard import MEAN_TASK, MEAN_TYPE
from codiemb.evaluation.significance import Intervals, Parts, differences_of, intervals_of

Scores = Mapping[str, TaskScore]


def score_intervals(scores: Scores, *, seed: int = 0) -> Intervals:
    """Of tasks that have items, and of means over such tasks alone."""
    tasks = {name: _parts(score) for name, score in scores.items() if score.parts}
    return intervals_of(tasks, _Means(scores), seed=seed)


def compare_scores(
    scores: Scores,
    others: Scores,
    names: tuple[str, str],
    *,
    seed: int = 0,
    changes: Mapping[str, Changes] | None = None,
) -> dict[str, Any]:
    """Two models on the tasks that both were scored on, on the same data; `difference` is the first minus the second.

    Args:
        changes: by task, adds `changes` to it: the items that gained and lost most.
    Returns: as `report.compare` has it, with means by mteb's names; `no_test` of a task says why it has no
        `significance`, `left_out` why tasks are not compared. Scores are in -1..1.
    """
    left_out = {
        **{name: f"{names[1]} has no score" for name in scores if name not in others},
        **{name: f"{names[0]} has no score" for name in others if name not in scores},
    }
    shared = [name for name in scores if name in others]
    for name in shared:
        if other_data := _other_data(scores[name], others[name]):
            left_out[name] = other_data
    shared = [name for name in shared if name not in left_out]
    untested = {name: reason for name in shared if (reason := _why_not_tested(scores[name], others[name]))}
    mine, theirs = ({name: one[name] for name in shared} for one in (scores, others))
    tasks, other_tasks = (
        {name: _parts(score) for name, score in one.items() if name not in untested} for one in (mine, theirs)
    )
    found = differences_of(tasks, other_tasks, _Means(mine), seed=seed)
    entries = [
        {
            "task": name,
            "type": score.type,
            "n": score.n,
            "items": score.kind if score.parts else None,
            "main_metric": score.main_metric,
            "main_score": _both(score.score, theirs[name].score),
            "significance": (one := found.tasks.get(name)) and one.to_dict(),
            "no_test": untested.get(name, ""),
            **({"changes": changes[name].to_dict()} if changes and name in changes else {}),
        }
        for name, score in mine.items()
    ]
    sides = [_Means(mine).all({name: np.array(one.score) for name, one in side.items()}) for side in (mine, theirs)]
    summary = {
        name: {
            **_both(float(value), float(sides[1][name])),
            "significance": (one := found.means.get(name)) and one.to_dict(),
        }
        for name, value in sides[0].items()
    }
    return {"model": names[0], "other": names[1], "summary": summary, "tasks": entries, "left_out": left_out}


def comparable(score: TaskScore, other: TaskScore) -> bool:
    """Whether two scores of a task are of the same items, and these are known."""
    return not _other_data(score, other) and not _why_not_tested(score, other)


def _other_data(score: TaskScore, other: TaskScore) -> str:
    revisions = score.data_revision, other.data_revision
    return "" if revisions[0] == revisions[1] else f"measured on other data: {revisions[0]} and {revisions[1]}"


def _why_not_tested(score: TaskScore, other: TaskScore) -> str:
    """Why the difference of two scores cannot be tested; empty if it can."""
    if score.reason or other.reason:
        return score.reason or other.reason
    for name, part in score.parts.items():
        there = other.parts.get(name)
        if there is None or len(part.items) != len(there.items) or list(part.ids) != list(there.ids):
            return "the two results are not of the same items"
        if part.items.statistic != there.items.statistic or not np.array_equal(part.items.gold, there.items.gold):
            return "the two results have other gold scores"
    return ""


def _parts(score: TaskScore) -> Parts:
    return {name: part.items for name, part in score.parts.items()}


class _Means:
    """Means over tasks, over types and of each type."""

    def __init__(self, scores: Scores) -> None:
        self._types: dict[str, list[str]] = {}
        for name, score in scores.items():
            self._types.setdefault(score.type, []).append(name)
        self._draws = {name for name, score in scores.items() if score.kind == "draws"}

    def __call__(self, scores: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Of these scores, the means that no other task is part of, and no clustering."""
        return self.all({name: score for name, score in scores.items() if name not in self._draws})

    def all(self, scores: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The means whose tasks all have a score."""
        types = {
            type_: np.mean([scores[name] for name in names], axis=0)
            for type_, names in self._types.items()
            if all(name in scores for name in names)
        }
        if len(types) < len(self._types) or not types:
            return types
        means = {MEAN_TASK: np.mean(list(scores.values()), axis=0), MEAN_TYPE: np.mean(list(types.values()), axis=0)}
        return {**means, **types}


def _both(model: float, other: float) -> dict[str, float]:
    return {"model": model, "other": other, "difference": model - other}
