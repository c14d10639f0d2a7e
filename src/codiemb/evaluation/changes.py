"""What changed between two models: the pairs and queries behind a difference, with their texts."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy.stats import rankdata

from codiemb.evaluation.evaluator import MAIN_METRICS, Result
from codiemb.evaluation.tasks import EvalTask, PairTask, RetrievalTask


@dataclass(frozen=True)
class PairChange:
    """A pair that one model places better than the other.

    Attributes:
        change: the other model's rank error less the first's, so that a gain is positive.
        model_cosine, other_cosine: or another similarity, where the score is of that.
        model_error, other_error: as `rank_errors` has them; above 0 the pair is ranked too high.
    """

    change: float
    texts: tuple[str, str]
    score: float
    model_cosine: float
    other_cosine: float
    model_error: float
    other_error: float


@dataclass(frozen=True)
class RelevantDocument:
    """A document that answers a query, and its rank (from 1) by each model; None: not among the documents ranked."""

    id: str
    text: str
    relevance: int
    model_rank: int | None
    other_rank: int | None


@dataclass(frozen=True)
class QueryChange:
    """A query that one model answers better than the other, by the task's main metric (nDCG@10, MAP in reranking).

    `relevant`: all documents that answer it, those that a model ranks high first.
    """

    change: float
    id: str
    query: str
    model_score: float
    other_score: float
    relevant: tuple[RelevantDocument, ...]


@dataclass(frozen=True)
class TextChange:
    """A text that one model's classifiers label right more often than the other's: shares of them, in 0..1."""

    change: float
    text: str
    label: str
    model_score: float
    other_score: float


Change = PairChange | QueryChange | TextChange


@dataclass(frozen=True)
class Changes:
    """The largest gains and the largest losses of the first model, largest first; fewer where fewer changed."""

    gains: Sequence[Change]
    losses: Sequence[Change]

    def to_dict(self) -> dict[str, Any]:
        """As written to `compare.json`, texts whole."""
        return {"gains": [asdict(one) for one in self.gains], "losses": [asdict(one) for one in self.losses]}


def changes(task: EvalTask, result: Result, other: Result, *, most: int = 5) -> Changes:
    """The items of `task` with the largest differences between two results on it.

    Args:
        task: as given to `evaluate`; the sample of it that was scored is drawn again.
        most: gains, and losses, at most.
    """
    if drawn := result.settings.get("sample"):
        task = task.sampled(result.n, drawn["seed"])
    if isinstance(task, PairTask):
        errors = [rank_errors(one.values["cosine"], task.scores) for one in (result, other)]
        difference = np.abs(errors[1]) - np.abs(errors[0])
    else:
        metric = MAIN_METRICS[task.type]
        difference = result.values[metric] - other.values[metric]

    def describe(i: int) -> Change:
        if isinstance(task, PairTask):
            first, second = task.pairs[i]
            cosines = result.values["cosine"], other.values["cosine"]
            return pair_change(i, (first.full, second.full), task.scores, cosines)
        return _query_change(task, i, float(difference[i]), result, other)

    return largest(difference, describe, most)


def largest(difference: np.ndarray, describe: Callable[[int], Change], most: int) -> Changes:
    """The items (n,) with the largest differences on both sides; equal ones keep the order of the data."""
    order = np.argsort(-difference, kind="stable")
    gains = [describe(int(i)) for i in order[:most] if difference[i] > 0]
    losses = [describe(int(i)) for i in np.argsort(difference, kind="stable")[:most] if difference[i] < 0]
    return Changes(gains, losses)


def pair_change(
    i: int, texts: tuple[str, str], gold: np.ndarray, similarities: tuple[np.ndarray, np.ndarray]
) -> PairChange:
    """What changed for pair `i`, of the gold scores (n,) and both models' similarities (n,) of all pairs."""
    ours, theirs = (float(rank_errors(one, gold)[i]) for one in similarities)
    first, second = (float(one[i]) for one in similarities)
    return PairChange(abs(theirs) - abs(ours), texts, float(gold[i]), first, second, ours, theirs)


def rank_errors(cosines: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """How far each pair's rank lies outside the ranks that belong to its gold score, (pairs,) in -1..1.

    Pairs of one gold score may stand in any order among themselves: they own the ranks that they take together when
    all pairs are sorted by gold score. The error is 0 within these, else the number of places to the nearest of them
    over the number of pairs; above 0 the cosine is too high.
    """
    lowest, highest = rankdata(scores, method="min"), rankdata(scores, method="max")
    ranks = rankdata(cosines)
    return np.asarray((np.maximum(ranks - highest, 0) + np.minimum(ranks - lowest, 0)) / len(scores))


def _query_change(task: EvalTask, i: int, change: float, result: Result, other: Result) -> QueryChange:
    ours, theirs = (float(one.values[MAIN_METRICS[task.type]][i]) for one in (result, other))
    if isinstance(task, RetrievalTask):
        name = list(task.queries)[i]
        query = task.queries[name]
        judged = [(id_, task.corpus[id_], grade) for id_, grade in task.qrels[name].items() if id_ in task.corpus]
    else:
        assert not isinstance(task, PairTask)
        row = task.rows[i]
        name, query = str(i), row.query
        judged = [
            (f"{j:06d}", text, grade) for j, (text, grade) in enumerate(zip(row.candidates, row.relevance, strict=True))
        ]
    relevant = [
        RelevantDocument(id_, text.full, grade, result.ranks[i].get(id_), other.ranks[i].get(id_))
        for id_, text, grade in judged
        if grade > 0
    ]
    relevant.sort(key=lambda document: min(rank or sys.maxsize for rank in (document.model_rank, document.other_rank)))
    return QueryChange(change, name, query.full, ours, theirs, tuple(relevant))
