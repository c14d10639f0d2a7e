"""Results as a summary, as files, and as tables for people."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from codiemb.evaluation.evaluator import MAIN_METRICS, Result

# Group of each task type, as in the summary, and the title of its table.
_GROUPS = {"ir": "ir", "sts": "sts", "pair_classification": "sts", "reranking": "reranking"}
_TITLES = {"ir": "Retrieval", "sts": "Similarity", "reranking": "Reranking"}
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


def compare(results: Sequence[Result], others: Sequence[Result], names: tuple[str, str]) -> dict[str, Any]:
    """Two models on the same tasks; `difference` is the first minus the second.

    Returns: `model`, `other`, `summary` and for each task all metrics, each as model, other and difference; the
    second model's full results are in `other_results`.
    """
    return {
        "model": names[0],
        "other": names[1],
        "summary": _side_by_side(summarise(results), summarise(others)),
        "tasks": [
            {
                "task": mine.task,
                "type": mine.type,
                "n": mine.n,
                "main_metric": MAIN_METRICS[mine.type],
                "main_score": _both(mine.main_score, theirs.main_score),
                "metrics": _side_by_side(mine.metrics, theirs.metrics),
            }
            for mine, theirs in zip(results, others, strict=True)
        ],
        "other_results": [result.to_dict() for result in others],
    }


def write_results(path: Path, results: Sequence[Result]) -> None:
    """Write `results.json`: a list of task, type, main_score, metrics, n and settings."""
    write_json(path, [result.to_dict() for result in results])


def write_json(path: Path, content: object) -> None:
    """Write `content` so that `path` holds the old file or the whole new one at every moment."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, partial = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(to_json(content))
        Path(partial).chmod(0o644)  # mkstemp makes it 0600
        os.replace(partial, path)
    except BaseException:
        Path(partial).unlink(missing_ok=True)
        raise


def to_json(content: object) -> str:
    """JSON as all other programs read it: UTF-8, and no NaN."""
    return json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def results_table(results: Sequence[Result], title: str) -> Group:
    """One table for each group of tasks, scores times 100, the main metric first."""
    tables: list[Table | str] = []
    for group, members in _grouped(results).items():
        metrics = [MAIN_METRICS[members[0].type], *members[0].metrics]
        metrics = list(dict.fromkeys(metrics))
        table = _table(f"{_TITLES[group]}: {title}", "n", *(_METRIC_NAMES[name] for name in metrics))
        for result in members:
            table.add_row(Text(result.task), str(result.n), *(_percent(result.metrics[name]) for name in metrics))
        if len(members) > 1:
            means = [sum(result.metrics[name] for result in members) / len(members) for name in metrics]
            table.add_section()
            table.add_row("mean", "", *map(_percent, means))
        tables.append(table)
    summary = summarise(results)
    if len(tables) > 1:
        tables.append(f"mean over the {len(tables)} kinds of task: {_percent(summary['mean'])}")
    return Group(*tables)


def comparison_table(comparison: Mapping[str, Any], *, arrows: bool) -> Table:
    """Main scores of two models side by side, times 100; `arrows` marks better and worse."""
    names = str(comparison["model"]), str(comparison["other"])
    table = _table(f"{names[0]} against {names[1]}", "metric", "n", *map(_short, names), "difference")
    table.columns[1].justify = "left"
    for task in comparison["tasks"]:
        metric = _METRIC_NAMES[task["main_metric"]]
        table.add_row(Text(task["task"]), metric, str(task["n"]), *_cells(task["main_score"], arrows))
    table.add_section()
    for group in (*_TITLES, "mean"):
        if group in comparison["summary"]:
            label = "mean" if group == "mean" else f"mean {_TITLES[group].lower()}"
            table.add_row(label, "", "", *_cells(comparison["summary"][group], arrows))
    return table


def _grouped(results: Iterable[Result]) -> dict[str, list[Result]]:
    groups: dict[str, list[Result]] = {name: [] for name in _TITLES}
    for result in results:
        groups[_GROUPS[result.type]].append(result)
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


def _short(name: str) -> str:
    """The end of a model's path, which tells models apart."""
    return "/".join(Path(name).parts[-2:]) if len(name) > 24 else name


def _cells(scores: Mapping[str, float], arrows: bool) -> list[str | Text]:
    difference = 100 * scores["difference"]
    shown = f"{difference:+.2f}"
    if arrows and shown.strip("+-0."):
        sign, style = ("▲", "green") if difference > 0 else ("▼", "red")
        return [_percent(scores["model"]), _percent(scores["other"]), Text(f"{sign} {shown}", style=style)]
    return [_percent(scores["model"]), _percent(scores["other"]), shown]
