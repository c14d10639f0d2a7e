"""Leaderboards: from mteb results to the means by task and by type, beside published scores.

A score is what mteb makes of a result: the mean of `main_score` over the splits and subsets that the benchmark names.
A mean is complete when all its tasks have a score; any other is shown with its n of m, and never ranked or called best.
All scores are in 0..100.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from codiemb.evaluation.published import PUBLISHED, TYPES
from codiemb.evaluation.runs import Run
from codiemb.extras import require

if TYPE_CHECKING:
    from mteb import AbsTask
    from mteb.results import TaskResult

DEFAULT_BENCHMARK = "MTEB(cmn, v1)"
ALL_FOUND = "all tasks found"
MEAN_TASK, MEAN_TYPE = "Mean(Task)", "Mean(Type)"

_UNKNOWN_TYPE = "Other"
_NO_REVISION = "no_revision_available"
_SHOWN_REVISION = len("local-") + 12  # characters, of a commit or of what `codiemb evaluate` calls local data


@dataclass(frozen=True)
class Mean:
    """The mean of the scores there are, None if there are none.

    Attributes:
        n: tasks that have a score.
        of: tasks that should have one.
    """

    value: float | None
    n: int
    of: int

    @property
    def complete(self) -> bool:
        """Whether no task is missing."""
        return self.value is not None and self.n == self.of


@dataclass(frozen=True)
class Row:
    """One model.

    Attributes:
        parameters: as people write it, such as 2B; empty if not known.
        means: by column of the leaderboard.
        scores: by task; a task without a score is not in it. Published rows have none.
        source: the folder of the results, or where they are published.
    """

    model: str
    parameters: str
    means: Mapping[str, Mean]
    scores: Mapping[str, float]
    source: str
    published: bool = False


@dataclass(frozen=True)
class Leaderboard:
    """Rows from best to worst by Mean(Task); incomplete ones follow.

    Attributes:
        tasks: mteb's type of each task.
        notes: what a reader must know: what is missing and why, what was left out, where published rows are from.
    """

    benchmark: str
    tasks: Mapping[str, str]
    rows: Sequence[Row]
    notes: Sequence[str]

    @property
    def types(self) -> list[str]:
        """Types of the tasks, in the order of the columns."""
        return list(dict.fromkeys(self.tasks.values()))

    @property
    def columns(self) -> list[str]:
        """The two means, then the types."""
        return [MEAN_TASK, MEAN_TYPE, *self.types]

    def best(self, column: str) -> float | None:
        """The highest complete mean of `column`, rounded as shown; None if there are not two to compare."""
        means = [mean for row in self.rows if (mean := row.means[column]).complete]
        return max(round(mean.value, 2) for mean in means if mean.value is not None) if len(means) > 1 else None

    def best_score(self, task: str) -> float | None:
        """The highest score on `task`, rounded as shown; None if there are not two to compare."""
        scores = [row.scores[task] for row in self.rows if task in row.scores]
        return round(max(scores), 2) if len(scores) > 1 else None

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "benchmark": self.benchmark,
            "tasks": dict(self.tasks),
            "rows": [asdict(row) for row in self.rows],
            "notes": list(self.notes),
        }


def build(runs: Sequence[Run], benchmark: str | None = None, *, published: bool = True) -> Leaderboard:
    """Put runs, and published scores of the benchmark, into one leaderboard.

    Args:
        benchmark: a name that mteb knows, or `ALL_FOUND` for the tasks that were run, on whatever splits; None:
            MTEB(cmn, v1) if there is a result of one of its tasks, else `ALL_FOUND`.
    Raises:
        ValueError: mteb has no such benchmark, or no run has a result of one of its tasks.
    """
    if benchmark is None:
        _, known = _benchmark(DEFAULT_BENCHMARK)
        benchmark = DEFAULT_BENCHMARK if any(known.keys() & run.results.keys() for run in runs) else ALL_FOUND
    notes: list[str] = []
    instances: dict[str, AbsTask] = {}
    if benchmark == ALL_FOUND:
        types = {name: _type_of(name, runs) for run in runs for name in (*run.results, *run.failures)}
        notes += _unlike(runs)
    else:
        benchmark, instances = _benchmark(benchmark)
        types = {name: task.metadata.type for name, task in instances.items()}
        if not any(types.keys() & run.results.keys() for run in runs):
            found = sorted({name for run in runs for name in run.results})
            raise ValueError(
                f"No results of {benchmark}; there are results of {', '.join(found[:8])}"
                f"{', ...' if len(found) > 8 else ''}. Choose another benchmark, or '{ALL_FOUND}'."
            )
    order = [*TYPES, *sorted(set(types.values()) - set(TYPES))]
    tasks = {name: type_ for wanted in order for name, type_ in types.items() if type_ == wanted}
    notes += _other_data(runs, tasks)

    rows = []
    for run, label in zip(runs, _labels(runs), strict=True):
        scores = _scores(run, label, instances, tasks, notes)
        rows.append(Row(label, _short_count(run.parameters), means_of(scores, tasks), scores, str(run.folder)))
    if published and benchmark in PUBLISHED:
        table = PUBLISHED[benchmark]
        rows += _published_rows(benchmark, tasks)
        notes.append(f"Published rows: {table.source}, recorded on {table.date}.")
    rows.sort(key=_rank)
    return Leaderboard(benchmark, tasks, rows, notes)


def means_of(scores: Mapping[str, float], tasks: Mapping[str, str]) -> dict[str, Mean]:
    """The mean over tasks, the mean over the means of the types, and the mean of each type, of the scores there are."""
    there = [name for name in tasks if name in scores]
    counts = Counter(tasks.values())
    types = {type_: _mean([scores[name] for name in there if tasks[name] == type_], of) for type_, of in counts.items()}
    overall = _mean([scores[name] for name in there], len(tasks))
    type_means = [mean.value for mean in types.values() if mean.value is not None]
    return {MEAN_TASK: overall, MEAN_TYPE: Mean(_mean(type_means, len(types)).value, overall.n, overall.of), **types}


def _mean(values: Sequence[float], of: int) -> Mean:
    return Mean(sum(values) / len(values) if values else None, len(values), of)


def _scores(
    run: Run, label: str, instances: Mapping[str, AbsTask], tasks: Mapping[str, str], notes: list[str]
) -> dict[str, float]:
    """Scores of the run on the leaderboard's tasks; says in `notes` what it lacks."""
    scores = {}
    for name in filter(run.results.__contains__, tasks):
        value, lacking = _score(run.results[name], instances.get(name))
        if value is None:
            notes.append(f"{label}: {name} counts as missing: {lacking}.")
        else:
            scores[name] = 100 * value
    missing = [name for name in tasks if name not in run.results]
    if missing:
        notes.append(f"{label}: no result of {len(missing)} of {len(tasks)} tasks: {_by_type(missing, tasks)}.")
    outside = [name for name in run.results if name not in tasks]
    if outside:
        notes.append(f"{label}: left out, not in the benchmark: {', '.join(outside)}.")
    notes += [f"{label}: {name} failed: {error}" for name, error in run.failures.items() if name not in run.results]
    notes += run.problems
    return scores


def _by_type(missing: Sequence[str], tasks: Mapping[str, str]) -> str:
    """The missing tasks by name, or as all of their type."""
    sizes = Counter(tasks.values())
    parts = []
    for type_, count in Counter(tasks[name] for name in missing).items():
        whole = count == sizes[type_] > 1
        parts += [f"all of {type_}"] if whole else [name for name in missing if tasks[name] == type_]
    return ", ".join(parts)


def _score(result: TaskResult, task: AbsTask | None) -> tuple[float | None, str]:
    """The mean main score (0..1) over the splits and subsets that count, or None and which of them lack one."""
    found = {
        (split, entry["hf_subset"]): entry["main_score"]
        for split, entries in result.scores.items()
        for entry in entries
    }
    if task is None:
        wanted = list(found)
    else:
        subsets = ["default"] if task.is_aggregate else task.hf_subsets
        wanted = [(split, subset) for split in task.eval_splits for subset in subsets]
    scores: list[float] = []
    lacking = []
    for split, subset in wanted:
        score = found.get((split, subset))
        if isinstance(score, (int, float)) and math.isfinite(score):
            scores.append(score)
        else:
            lacking.append(f"{split}/{subset}")
    if lacking or not scores:
        return None, f"no score of {', '.join(lacking) or 'any split'}"
    return sum(scores) / len(scores), ""


def _benchmark(name: str) -> tuple[str, dict[str, AbsTask]]:
    """mteb's own name of a benchmark, which `name` may be another one of, and its tasks by name."""
    try:
        benchmark = require("mteb", "benchmark").get_benchmark(name)
    except KeyError as error:
        raise ValueError(f"mteb has no benchmark named {name!r}: {error.args[0]}") from None
    return benchmark.name, {task.metadata.name: task for task in benchmark.tasks}


def _type_of(name: str, runs: Sequence[Run]) -> str:
    """As mteb has it, else as an evaluation logged it."""
    try:
        return str(require("mteb", "benchmark").get_task(name).metadata.type)
    except KeyError:
        return next((run.types[name] for run in runs if name in run.types), _UNKNOWN_TYPE)


def _unlike(runs: Sequence[Run]) -> list[str]:
    """Tasks that models have been scored on in different parts, where no benchmark says which count."""
    parts: dict[str, set[frozenset[tuple[str, str]]]] = {}
    for run in runs:
        for name, result in run.results.items():
            found = ((split, entry["hf_subset"]) for split, entries in result.scores.items() for entry in entries)
            parts.setdefault(name, set()).add(frozenset(found))
    return [
        f"{name}: the models were scored on different splits or subsets, so their scores do not compare."
        for name, different in parts.items()
        if len(different) > 1
    ]


def _other_data(runs: Sequence[Run], tasks: Iterable[str]) -> list[str]:
    """Tasks that models have been scored on with data of several revisions."""
    notes = []
    for name in tasks:
        revisions = sorted({run.results[name].dataset_revision for run in runs if name in run.results})
        if len(revisions) > 1:
            shown = ", ".join(revision[:_SHOWN_REVISION] for revision in revisions)
            notes.append(
                f"{name}: the data was of several revisions ({shown}); where texts differ, scores do not compare."
            )
    return notes


def _published_rows(benchmark: str, tasks: Mapping[str, str]) -> list[Row]:
    counts = Counter(tasks.values())
    rows = []
    for model, parameters, mean_task, mean_type, by_type in PUBLISHED[benchmark].rows:
        values = {MEAN_TASK: mean_task, MEAN_TYPE: mean_type, **dict(zip(TYPES, by_type, strict=True))}
        sizes = {name: counts.get(name, len(tasks)) for name in values}
        means = {name: Mean(value, sizes[name], sizes[name]) for name, value in values.items()}
        rows.append(Row(model, parameters, means, {}, PUBLISHED[benchmark].source, published=True))
    return rows


def _labels(runs: Sequence[Run]) -> list[str]:
    """The model's name; with its revision, and then its folder, where that is needed to tell runs apart."""
    labels = [run.model for run in runs]
    for longer in (
        [f"{run.model}@{run.revision[:8]}" if run.revision != _NO_REVISION else run.model for run in runs],
        [f"{run.model} ({run.folder})" for run in runs],
    ):
        times = Counter(labels)
        labels = [label if times[label] == 1 else long for label, long in zip(labels, longer, strict=True)]
    return labels


def _rank(row: Row) -> tuple[bool, float, float]:
    mean = row.means[MEAN_TASK]
    return not mean.complete, 0 if mean.complete else -mean.n, -(mean.value or 0.0)


def _short_count(count: int | None) -> str:
    if not count:
        return ""
    return f"{count / 1e9:.3g}B" if count >= 1e9 else f"{count / 1e6:.0f}M"
