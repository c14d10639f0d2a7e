"""What changed between two models on a task of mteb's, with the texts of its data."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from datasets import ClassLabel
from mteb.abstasks import AbsTask, AbsTaskClassification, AbsTaskRetrieval

from codiemb.evaluation.benchmark_items import TaskScore
from codiemb.evaluation.changes import (
    Change,
    Changes,
    QueryChange,
    RelevantDocument,
    TextChange,
    largest,
    pair_change,
    rank_errors,
)
from codiemb.evaluation.predictions import PartItems, part_data

Describe = Callable[[int], Change]


def benchmark_changes(task: AbsTask, score: TaskScore, other: TaskScore, *, most: int = 5) -> Changes:
    """The items with the largest differences between two scores of `task` on the same items, over all its parts.

    Args:
        task: with its data loaded.
        most: gains, and losses, at most.
    Returns: none for clustering, whose items are draws of many texts.
    """
    if score.kind == "draws" or not score.parts or not other.parts:
        return Changes([], [])
    differences, describers = [], []
    for name, part in score.parts.items():
        split, _, subset = name.partition("/")
        changed, describe = _part_changes(task, split, subset, part, other.parts[name])
        describers += [(describe, i) for i in range(len(changed))]
        differences.append(changed)

    def describe_any(i: int) -> Change:
        describe, place = describers[i]
        return describe(place)

    return largest(np.concatenate(differences), describe_any, most)


def _part_changes(
    task: Any, split: str, subset: str, mine: PartItems, theirs: PartItems
) -> tuple[np.ndarray, Describe]:
    data = part_data(task, split, subset)
    ours, other = mine.items.values, theirs.items.values
    if isinstance(task, AbsTaskRetrieval):
        return ours - other, _query_describer(data, mine, theirs)
    if isinstance(task, AbsTaskClassification):
        rows = data[split]
        feature = rows.features[task.label_column_name]
        # In cross-validation each text is classified once; its share of the score has the size of its fold in it.
        shares = [(one > 0).astype(np.float64) if task.is_cross_validation else one for one in (ours, other)]

        def describe_text(i: int) -> Change:
            label = rows[i][task.label_column_name]
            named = feature.int2str(label) if isinstance(feature, ClassLabel) else str(label)
            first, second = float(shares[0][i]), float(shares[1][i])
            return TextChange(first - second, str(rows[i][task.input_column_name]), named, first, second)

        return shares[0] - shares[1], describe_text
    columns = _pair_columns(task)
    gold = mine.items.gold
    errors = [np.abs(rank_errors(values, gold)) for values in (ours, other)]

    def describe_pair(i: int) -> Change:
        first, second = (str(data[i][column]) for column in columns)
        return pair_change(i, (first, second), gold, (ours, other))

    return errors[1] - errors[0], describe_pair


def _pair_columns(task: Any) -> tuple[str, str]:
    return tuple(getattr(task, "column_names", None) or (task.input1_column_name, task.input2_column_name))


def _query_describer(data: Any, mine: PartItems, theirs: PartItems) -> Describe:
    queries = dict(zip(data["queries"]["id"], data["queries"]["text"], strict=True))
    places = {id_: place for place, id_ in enumerate(data["corpus"]["id"])}

    def relevant(i: int, query: str) -> Iterator[RelevantDocument]:
        for id_, grade in data["relevant_docs"][query].items():
            if grade > 0 and id_ in places:
                row = data["corpus"][places[id_]]
                text = " ".join(filter(None, (row.get("title"), row["text"])))
                yield RelevantDocument(id_, text, grade, mine.ranks[i].get(id_), theirs.ranks[i].get(id_))

    def describe(i: int) -> Change:
        query = mine.ids[i]
        documents = sorted(relevant(i, query), key=_best_rank)
        ours, other = float(mine.items.values[i]), float(theirs.items.values[i])
        return QueryChange(ours - other, query, str(queries[query]), ours, other, tuple(documents))

    return describe


def _best_rank(document: RelevantDocument) -> int:
    return min(rank or sys.maxsize for rank in (document.model_rank, document.other_rank))
