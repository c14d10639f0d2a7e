"""Results as a summary, as files, and as tables for people."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from codiemb.evaluation.changes import Changes
from codiemb.evaluation.evaluator import GROUPS, MAIN_METRICS, Result
from codiemb.evaluation.significance import Differences, Interval, Intervals
from codiemb.json_files import write_json

_LONG_NAME = 24  # characters
# The title of each group's table.
_TITLES = {"ir": "Retrieval", "sts": "Similarity", "reranking": "Reranking"}
_MEANS = {**{group: f"mean {title.lower()}" for group, title in _TITLES.items()}, "mean": "mean"}
_METRIC_NAMES = {
    "ndcg_at_10": "nDCG@10",
    "map": "MAP",
    "mrr_at_10": "MRR@10",
    "recall_at_100": "Recall@100",
    "cosine_spearman": "Spearman",
    "cosine_pearson": "Pearson",
}


def summarise(results: Sequence[Result]) -> dict[str, float]:
    """Main scores on one level: `ir`, `sts` and `reranking` (means over the tasks there are), `mean` of these, tasks.

    A task named like one of the first four is only part of that mean.

    Raises:
        ValueError: two tasks have one name.
    """
    if not results:
        return {}
    names = [result.task for result in results]
    if twice := {name for name in names if names.count(name) > 1}:
        raise ValueError(
            f"Several tasks are named {', '.join(sorted(twice))}. Give all paths to one call of discover()."
        )
    groups = {name: _mean(group) for name, group in _grouped(results).items()}
    summary = {**groups, "mean": sum(groups.values()) / len(groups)}
    for result in results:
        summary.setdefault(result.task, result.main_score)
    return summary


def compare(
    results: Sequence[Result],
    others: Sequence[Result],
    names: tuple[str, str],
    *,
    differences: Differences | None = None,
    other_intervals: Intervals | None = None,
    changes: Mapping[str, Changes] | None = None,
) -> dict[str, Any]:
    """Two models on the same tasks; `difference` is the first minus the second.

    Args:
        differences: adds `significance` to each task and mean: interval of the difference, p, and a verdict.
        other_intervals: of the second model's scores, added to its results.
        changes: by task, adds `changes` to it: the items that gained and lost most.
    Returns: `model`, `other`, `summary` and for each task all metrics, each as model, other and difference; the
    second model's full results are in `other_results`.
    """
    summary: dict[str, dict[str, Any]] = _side_by_side(summarise(results), summarise(others))
    tasks: list[dict[str, Any]] = [
        {
            "task": mine.task,
            "type": mine.type,
            "n": mine.n,
            "main_metric": MAIN_METRICS[mine.type],
            "main_score": _both(mine.main_score, theirs.main_score),
            "metrics": _side_by_side(mine.metrics, theirs.metrics),
        }
        for mine, theirs in zip(results, others, strict=True)
    ]
    if differences is not None:
        for name, mean in differences.means.items():
            summary[name]["significance"] = mean and mean.to_dict()
        for entry in tasks:
            found = differences.tasks[entry["task"]]
            entry["significance"] = found and found.to_dict()
    if changes is not None:
        for entry in tasks:
            entry["changes"] = changes[entry["task"]].to_dict()
    return {
        "model": names[0],
        "other": names[1],
        "summary": summary,
        "tasks": tasks,
        "other_results": results_json(others, other_intervals),
    }


def write_results(path: Path, results: Sequence[Result], intervals: Intervals | None = None) -> None:
    """Write `results.json`: a list of task, type, main_score, metrics, n and settings; `interval` if given."""
    write_json(path, results_json(results, intervals))


def results_json(results: Sequence[Result], intervals: Intervals | None = None) -> list[dict[str, Any]]:
    """The content of `results.json`."""
    entries = [result.to_dict() for result in results]
    if intervals is not None:
        for entry in entries:
            found = intervals.tasks[entry["task"]]
            entry["interval"] = found and found.to_dict()
    return entries


def results_table(results: Sequence[Result], title: str, intervals: Intervals | None = None) -> Group:
    """One table for each group of tasks, scores times 100, the main metric first, its confidence interval beside it."""
    tables: list[Table | str | Text] = []
    summary = summarise(results)
    for group, members in _grouped(results).items():
        metrics = [MAIN_METRICS[members[0].type], *members[0].metrics]
        metrics = list(dict.fromkeys(metrics))
        headings = [_METRIC_NAMES[name] for name in metrics]
        if intervals is not None:
            headings.insert(1, _interval_heading(one.level for one in intervals.tasks.values() if one))
        table = _table(f"{_TITLES[group]}: {title}", "n", *headings)
        for result in members:
            cells: list[str | Text] = [_percent(result.metrics[name]) for name in metrics]
            if intervals is not None:
                cells.insert(1, _range(intervals.tasks[result.task]))
            table.add_row(Text(result.task), str(result.n), *cells)
        if len(members) > 1:
            cells = [_percent(sum(result.metrics[name] for result in members) / len(members)) for name in metrics]
            if intervals is not None:
                cells.insert(1, _range(intervals.means[group]))
            table.add_section()
            table.add_row("mean", "", *cells)
        tables.append(table)
    if len(tables) > 1:
        mean = f"mean over the {len(tables)} kinds of task: {_percent(summary['mean'])}"
        tables.append(mean if intervals is None else Text(f"{mean} ").append_text(_range(intervals.means["mean"])))
    return Group(*tables)


def comparison_table(comparison: Mapping[str, Any], *, arrows: bool, means: Mapping[str, str] = _MEANS) -> Table:
    """Main scores of two models side by side, times 100; `arrows` marks better and worse.

    Where the comparison has significances: the interval of each difference, its p (a task's corrected for their
    number), and below the table in words which differences are larger than chance.

    Args:
        means: of the summary, those to show and their labels, the mean of all last.
    """
    names = str(comparison["model"]), str(comparison["other"])
    tasks, summary = comparison["tasks"], comparison["summary"]
    entries = [*tasks, *(summary[name] for name in means if name in summary)]
    tested = any("significance" in entry for entry in entries)
    levels = (found["level"] for entry in entries if (found := entry.get("significance")))
    more = (f"difference\n{_interval_heading(levels)}", "p") if tested else ("difference",)
    table = _table(f"{names[0]} against {names[1]}", "metric", "n", *short_names(names), *more)
    table.columns[1].justify = "left"
    table.columns[5].no_wrap = tested
    for task in tasks:
        metric = _METRIC_NAMES.get(task["main_metric"], task["main_metric"])
        cells = _cells(task["main_score"], arrows)
        n = str(task["n"] or "")
        table.add_row(Text(task["task"]), metric, n, *(_with_chance(cells, task) if tested else cells))
    table.add_section()
    for name, label in means.items():
        if name in summary:
            cells = _cells(summary[name], arrows)
            table.add_row(label, "", "", *(_with_chance(cells, summary[name]) if tested else cells))
    if tested:
        table.caption, table.caption_justify = Text(verdicts(comparison, list(means)[-1])), "left"
    return table


def short_names(models: Sequence[str]) -> list[str]:
    """Names for the columns of a table: of long paths the end, if that tells the models apart."""
    short = ["/".join(Path(name).parts[-2:]) if len(name) > _LONG_NAME else name for name in models]
    return short if len(set(short)) == len(set(models)) else list(models)


def verdicts(comparison: Mapping[str, Any], overall: str = "mean") -> str:
    """Which tasks' differences are larger than chance, in words, and whether that of the mean `overall` is."""
    tested = [task for task in comparison["tasks"] if task["significance"]]
    if not tested:
        return "Too few queries or pairs to tell a difference from chance."
    by_verdict: dict[str, list[str]] = {}
    for task in tested:
        by_verdict.setdefault(task["significance"]["verdict"], []).append(task["task"])
    corrected = f" after Holm's correction for {len(tested)} tasks" if len(tested) > 1 else ""
    alpha = 1 - tested[0]["significance"]["level"]
    parts = [
        f"{verdict} in {', '.join(by_verdict[verdict])}" for verdict in ("better", "worse") if verdict in by_verdict
    ]
    words = f"Larger than chance (p < {alpha:.2g}{corrected}): {'; '.join(parts) or 'none'}."
    if within := by_verdict.get("within chance"):
        words += f" Within chance: {', '.join(within)}."
    mean = comparison["summary"].get(overall, {}).get("significance")
    return words + (f" The mean: {mean['verdict']}." if mean and len(tested) > 1 else "")


def _grouped(results: Iterable[Result]) -> dict[str, list[Result]]:
    groups: dict[str, list[Result]] = {name: [] for name in _TITLES}
    for result in results:
        groups[GROUPS[result.type]].append(result)
    return {name: members for name, members in groups.items() if members}


def _mean(results: Sequence[Result]) -> float:
    return sum(result.main_score for result in results) / len(results)


def _both(model: float, other: float) -> dict[str, float]:
    return {"model": model, "other": other, "difference": model - other}


def _side_by_side(model: Mapping[str, float], other: Mapping[str, float]) -> dict[str, dict[str, float]]:
    return {name: _both(model[name], other[name]) for name in model}


def _table(title: str, *headings: str) -> Table:
    table = Table(title=Text(title), title_justify="left")
    table.add_column("task", overflow="fold")
    for heading in headings:
        table.add_column(Text(heading), justify="right", overflow="fold")
    return table


def _percent(score: float) -> str:
    return f"{100 * score:.2f}"


def _interval_heading(levels: Iterable[float]) -> str:
    return next((f"{100 * level:g} % interval" for level in levels), "interval")


def _range(interval: Interval | None) -> Text:
    return Text(_bounds(interval.low, interval.high, ".1f") if interval else "-")


def _bounds(low: float, high: float, style: str) -> str:
    return f"[{100 * low:{style}}, {100 * high:{style}}]"


def _with_chance(cells: Sequence[str | Text], entry: Mapping[str, Any]) -> list[str | Text]:
    """The difference gets its interval below it, and p beside it."""
    *scores, difference = cells
    found = entry["significance"]
    if not found:
        return [*scores, difference, "-"]
    bounds = Text(f"\n{_bounds(found['low'], found['high'], '+.1f')}", style="default")
    shown = difference if isinstance(difference, Text) else Text(difference)
    p = found["p_corrected"]
    return [*scores, shown.append_text(bounds), "<0.001" if p < 0.001 else f"{p:.3f}"]


def _cells(scores: Mapping[str, float], arrows: bool) -> list[str | Text]:
    difference = 100 * scores["difference"]
    shown = f"{difference:+.2f}"
    if arrows and shown.strip("+-0."):
        sign, style = ("▲", "green") if difference > 0 else ("▼", "red")
        return [_percent(scores["model"]), _percent(scores["other"]), Text(f"{sign} {shown}", style=style)]
    return [_percent(scores["model"]), _percent(scores["other"]), shown]
