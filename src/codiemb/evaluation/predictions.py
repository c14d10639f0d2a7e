"""What mteb's tasks predict for each item of their data, as the items of their scores.

mteb writes a task's predictions to a file if it is told where: similarities of pairs, scored documents of queries,
predicted labels. From these and from the data the main score can be computed again, item by item. Kinds of task that
are not here, and main scores that are no statistic of items, have none.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytrec_eval
from datasets import Dataset
from mteb.abstasks import (
    AbsTask,
    AbsTaskClassification,
    AbsTaskMultilabelClassification,
    AbsTaskPairClassification,
    AbsTaskRegression,
    AbsTaskRetrieval,
    AbsTaskSTS,
)
from sklearn.model_selection import KFold

from codiemb.evaluation.items import Items, Statistic

# trec_eval's names of the measures that mteb takes from it.
_TREC = {"ndcg": "ndcg_cut", "map": "map_cut", "recall": "recall", "precision": "P", "hit_rate": "success"}
_RANKING_METRIC = re.compile(r"(ndcg|map|recall|precision|hit_rate|mrr)_at_(\d+)")
# mteb's similarities of a pair and their sign; of equally good ones the first is taken.
_SIMILARITIES: Mapping[str, tuple[str, int]] = {
    "cosine": ("cosine_scores", 1),
    "similarity": ("similarity_scores", 1),
    "dot": ("dot_scores", 1),
    "euclidean": ("euclidean_distances", -1),
    "manhattan": ("manhattan_distances", -1),
}
_PAIR_METRIC = re.compile(f"({'|'.join(('max', *_SIMILARITIES))})_(ap|accuracy)")
_AS_GOOD = 1e-6  # rounding of the similarities moves the average precision by less


@dataclass(frozen=True, eq=False)
class PartItems:
    """The items of one split and subset of a task.

    Attributes:
        ids: of queries; empty for other items, which stand in the order of the data.
        ranks: for each query, the ids of the relevant documents that were ranked and their ranks, from 1.
        similarity: of pairs, the one that `items` has.
    """

    items: Items
    ids: Sequence[str] = ()
    ranks: Sequence[Mapping[str, int]] = field(default=(), repr=False)
    similarity: str = ""


def predicts_items(task: AbsTask) -> bool:
    """Whether the task's main score follows from predictions for single items."""
    metric = task.metadata.main_score
    if isinstance(task, AbsTaskRetrieval):
        return _RANKING_METRIC.fullmatch(metric) is not None
    if isinstance(task, AbsTaskSTS):
        return metric in ("cosine_spearman", "spearman")
    if isinstance(task, AbsTaskPairClassification):
        return _PAIR_METRIC.fullmatch(metric) is not None
    other = (AbsTaskMultilabelClassification, AbsTaskRegression)
    return isinstance(task, AbsTaskClassification) and not isinstance(task, other) and metric == "accuracy"


def part_items(task: AbsTask, split: str, subset: str, predictions: Any) -> PartItems:
    """Items from what a task predicted for one split of one subset; the task's data is loaded."""
    metric = task.metadata.main_score
    data = part_data(task, split, subset)
    if isinstance(task, AbsTaskRetrieval):
        return _query_items(task, data["relevant_docs"], predictions, metric)
    if isinstance(task, AbsTaskSTS):
        name = "cosine" if metric.startswith("cosine") else "similarity"
        values = np.array(predictions[_SIMILARITIES[name][0]], dtype=np.float64)
        return PartItems(Items("spearman", values, np.array(data["score"], dtype=np.float64)), similarity=name)
    if isinstance(task, AbsTaskPairClassification):
        return _classified_pairs(np.array(data[task.label_column_name], dtype=np.float64), predictions, metric)
    assert isinstance(task, AbsTaskClassification)
    return PartItems(_correct(task, data[split][task.label_column_name], predictions))


def part_data(task: AbsTask, split: str, subset: str) -> Any:
    """The data of one split of one subset, as mteb scores it; of classification all splits."""
    whole: Any = task.dataset
    part = whole if subset == "default" and "default" not in whole else whole[subset]
    if isinstance(task, AbsTaskClassification):
        return part
    rows = part[split]
    if isinstance(task, AbsTaskPairClassification) and len(rows) == 1:  # mteb's older layout: all pairs in one row
        return Dataset.from_dict(rows[0])
    return rows


def _query_items(
    task: Any, relevant: Mapping[str, Mapping[str, int]], predictions: Mapping[str, dict[str, float]], metric: str
) -> PartItems:
    match = _RANKING_METRIC.fullmatch(metric)
    assert match
    kind, depth = match[1], int(match[2])
    rankings = {}
    for query, scored in predictions.items():
        found = {id_: score for id_, score in scored.items() if not (task.ignore_identical_ids and id_ == query)}
        order = sorted(found, key=lambda id_: (found[id_], id_), reverse=True)
        if task.skip_first_result:
            found.pop(order.pop(0))
        rankings[query] = found, order
    ranks = [
        {id_: rank for rank, id_ in enumerate(order, 1) if relevant[query].get(id_, 0) > 0}
        for query, (_, order) in rankings.items()
    ]
    if kind == "mrr":
        first = [min(found.values(), default=depth + 1) for found in ranks]
        values = [1 / rank if rank <= depth else 0.0 for rank in first]
    else:
        evaluator = pytrec_eval.RelevanceEvaluator(relevant, {f"{_TREC[kind]}.{depth}"})
        scores = evaluator.evaluate({query: found for query, (found, _) in rankings.items()})
        values = [scores[query][f"{_TREC[kind]}_{depth}"] if query in scores else 0.0 for query in rankings]
    return PartItems(Items("mean", np.array(values, dtype=np.float64)), list(rankings), ranks)


def _classified_pairs(labels: np.ndarray, predictions: Mapping[str, Sequence[float]], metric: str) -> PartItems:
    """By the similarity that the metric names, `max` being the best of all."""
    match = _PAIR_METRIC.fullmatch(metric)
    assert match
    statistic: Statistic = "average_precision" if match[2] == "ap" else "best_accuracy"
    best: PartItems | None = None
    for name in _SIMILARITIES if match[1] == "max" else (match[1],):
        column, sign = _SIMILARITIES[name]
        items = Items(statistic, sign * np.array(predictions[column], dtype=np.float64), labels)
        if best is None or items.score() > best.items.score() + _AS_GOOD:
            best = PartItems(items, similarity=name)
    assert best
    return best


def _correct(task: Any, labels: Sequence[Any], predictions: Sequence[Sequence[Any]]) -> Items:
    """How often each text got its label, as its share of the accuracy over all experiments or folds."""
    gold = np.asarray(labels)
    if not task.is_cross_validation:
        return Items("mean", np.mean([np.asarray(labels) == gold for labels in predictions], axis=0))
    values = np.zeros(len(gold))
    folds = KFold(n_splits=task.n_splits, shuffle=True, random_state=task.seed).split(range(len(gold)))
    for (_, fold), predicted in zip(folds, predictions, strict=True):
        # mteb's accuracy is the mean over folds, which may differ by one text.
        values[fold] = (np.asarray(predicted) == gold[fold]) * len(gold) / (len(fold) * len(predictions))
    return Items("mean", values)
