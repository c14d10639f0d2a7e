"""How sure a score is, and whether a difference between two models is larger than chance.

Both questions are answered by resampling what was scored: queries of retrieval, rows of reranking, pairs of similarity,
classified texts. Nothing is assumed about how scores are distributed.

- *Intervals*: the percentile bootstrap (Efron, 1979). Spearman's correlation and scores by threshold are recomputed on
  each resample, ranks within it. Two models are resampled together, so what makes an item hard for both cancels in
  their difference.
- *p*: approximate randomisation (Noreen, 1989). If the models are equally good, it makes no difference which of them
  gave which of an item's two outcomes; p is the share of random swaps whose difference is at least as large. Cosines of
  different models lie in different ranges, so a pair's ranks are swapped, not its cosines.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, Literal
from zlib import crc32

import numpy as np
from scipy.stats import rankdata

from codiemb.evaluation.evaluator import GROUPS, Result
from codiemb.evaluation.items import BY_THRESHOLD, Items

RESAMPLES = 2000
LEVEL = 0.95

Verdict = Literal["better", "worse", "within chance"]

_BLOCK = 1 << 16  # numbers that are worked on at once: they stay in a core's cache


@dataclass(frozen=True)
class Interval:
    """In `level` of the resamples the score lies in `low`..`high`."""

    low: float
    high: float
    level: float
    resamples: int
    seed: int

    def to_dict(self) -> dict[str, Any]:
        """As written to `results.json`."""
        return asdict(self)


@dataclass(frozen=True)
class Difference(Interval):
    """The first model's score minus the second's.

    Attributes:
        p: of a difference this large between equally good models, two-sided.
        p_corrected: for all tasks that were compared (Holm, 1979); `p` for means.
    """

    p: float
    p_corrected: float
    verdict: Verdict

    @property
    def significant(self) -> bool:
        """Whether it is larger than chance."""
        return self.verdict != "within chance"


@dataclass(frozen=True)
class Intervals:
    """By task, and by mean (`ir`, `sts`, `reranking` and `mean`, or the caller's); None where one item was scored."""

    tasks: Mapping[str, Interval | None]
    means: Mapping[str, Interval | None]


@dataclass(frozen=True)
class Differences:
    """As `Intervals`."""

    tasks: Mapping[str, Difference | None]
    means: Mapping[str, Difference | None]


Parts = Mapping[str, Items]
"""The items of each part of a task, by the part's name; a task's score is the mean of its parts'."""

Means = Callable[[Mapping[str, np.ndarray]], Mapping[str, np.ndarray]]
"""Means by name from the scores of tasks, one number a resample."""


def intervals(
    results: Sequence[Result], *, resamples: int = RESAMPLES, seed: int = 0, level: float = LEVEL
) -> Intervals:
    """Confidence intervals of the main scores; a task's is the same whatever the other tasks are."""
    means = partial(_group_means, {result.task: result for result in results})
    return intervals_of(_parts(results), means, resamples=resamples, seed=seed, level=level)


def differences(
    results: Sequence[Result],
    others: Sequence[Result],
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
    level: float = LEVEL,
) -> Differences:
    """Compare two models on the same items; swapping them changes signs and nothing else.

    Args:
        results, others: of the same tasks, in one order.
        level: of the intervals; a difference is larger than chance where its corrected p is below 1 - level.
    Raises:
        ValueError: the models were not scored on the same items.
    """
    for mine, theirs in zip(results, others, strict=True):
        if (mine.task, mine.n) != (theirs.task, theirs.n):
            raise ValueError(
                f"{mine.task} with {mine.n} items cannot be compared with {theirs.task} with {theirs.n}: expected the "
                "same tasks and samples."
            )
        if not np.array_equal(mine.items.gold, theirs.items.gold):
            raise ValueError(f"{mine.task}: the two results have other gold scores, so they are not of the same pairs.")
    means = partial(_group_means, {result.task: result for result in results})
    return differences_of(_parts(results), _parts(others), means, resamples=resamples, seed=seed, level=level)


def intervals_of(
    tasks: Mapping[str, Parts], means: Means, *, resamples: int = RESAMPLES, seed: int = 0, level: float = LEVEL
) -> Intervals:
    """Confidence intervals of any scores made of items, and of means of them."""
    drawn = {
        task: np.mean(
            [_bootstrap([items], f"{task}{name}", resamples, seed)[0] for name, items in parts.items()], axis=0
        )
        for task, parts in tasks.items()
    }
    several = {task: _several(parts) for task, parts in tasks.items()}

    def interval(scores: np.ndarray, enough: bool) -> Interval | None:
        if not enough or not np.isfinite(scores).any():
            return None
        return Interval(*_range(scores, level), level, resamples, seed)

    return Intervals(
        {name: interval(scores, several[name]) for name, scores in drawn.items()},
        {name: interval(scores, any(several.values())) for name, scores in means(drawn).items()},
    )


def differences_of(
    tasks: Mapping[str, Parts],
    others: Mapping[str, Parts],
    means: Means,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
    level: float = LEVEL,
) -> Differences:
    """As `differences`, of any scores made of items; both models' parts hold the same items in the same order."""
    scored, swapped, observed = {}, {}, {}
    for task, parts in tasks.items():
        both = [(f"{task}{name}", items, others[task][name]) for name, items in parts.items()]
        drawn = [_bootstrap([mine, theirs], key, resamples, seed) for key, mine, theirs in both]
        scored[task] = np.mean([ours - other for ours, other in drawn], axis=0)
        swapped[task] = np.mean([_randomised(mine, theirs, key, resamples, seed) for key, mine, theirs in both], axis=0)
        observed[task] = np.mean([[mine.score() - theirs.score()] for _, mine, theirs in both], axis=0)
    enough = {task: _several(parts) for task, parts in tasks.items()}

    def difference(scores: np.ndarray, chance: np.ndarray, value: np.ndarray) -> Difference | None:
        if not np.isfinite(scores).any():
            return None
        low, high = _range(scores, level)
        p = _two_sided(chance, float(value[0]))
        verdict = _verdict(float(value[0]), p, level)
        return Difference(low, high, level, resamples, seed, p=p, p_corrected=p, verdict=verdict)

    found = {name: difference(scored[name], swapped[name], observed[name]) if enough[name] else None for name in scored}
    tested = {name: one for name, one in found.items() if one is not None}
    for (name, one), p in zip(tested.items(), holm([one.p for one in tested.values()]), strict=True):
        found[name] = replace(one, p_corrected=p, verdict=_verdict(float(observed[name][0]), p, level))
    tables = [means(table) for table in (scored, swapped, observed)]
    of_means = {name: difference(*(t[name] for t in tables)) if any(enough.values()) else None for name in tables[0]}
    return Differences(found, of_means)


def _parts(results: Sequence[Result]) -> dict[str, Parts]:
    return {result.task: {"": result.items} for result in results}


def _several(parts: Parts) -> bool:
    return all(len(items) > 1 for items in parts.values())


def holm(p: Sequence[float]) -> list[float]:
    """p corrected for the number of tests (Holm, 1979): the chance of one false alarm among them all."""
    corrected = np.zeros(len(p))
    largest = 0.0
    for place, index in enumerate(np.argsort(p, kind="stable")):
        largest = max(largest, min(1.0, (len(p) - place) * p[index]))
        corrected[index] = largest
    return corrected.tolist()


# -- resampling ------------------------------------------------------------------------------------------------------


def _bootstrap(models: Sequence[Items], key: str, resamples: int, seed: int) -> np.ndarray:
    """Scores on random samples with replacement, (models, resamples), of models that were scored on the same items.

    A sample whose pairs all have one gold score or one cosine has no correlation, one without positive pairs no average
    precision: nan.
    """
    statistics = [_statistic(items) for items in models]
    n = len(models[0])
    scores = []
    for rng, rows in _blocks(n, key, resamples, seed):
        drawn = rng.integers(n, size=(rows, n)) + n * np.arange(rows)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=rows * n).reshape(rows, n)
        scores.append([statistic(counts) for statistic in statistics])
    return np.concatenate(scores, axis=1)


def _randomised(mine: Items, theirs: Items, key: str, resamples: int, seed: int) -> np.ndarray:
    """Differences of the scores after random swaps of items between the models, (resamples,)."""
    if mine.statistic == "mean":
        gain = mine.values - theirs.values

        def difference(swap: np.ndarray) -> np.ndarray:
            return np.where(swap, -gain, gain).mean(axis=1)
    else:
        # Twice the average rank is a whole number, so that ranks after swapping are a matter of counting.
        ours, other = (np.rint(2 * rankdata(items.values)).astype(np.int64) for items in (mine, theirs))
        if mine.statistic == "spearman":
            score = partial(_spearman, gold=rankdata(mine.gold))
        else:
            score = partial(_by_threshold, BY_THRESHOLD[mine.statistic], gold=mine.gold)

        def difference(swap: np.ndarray) -> np.ndarray:
            return score(np.where(swap, other, ours)) - score(np.where(swap, ours, other))

    draws = _blocks(len(mine), key, resamples, seed)
    return np.concatenate([difference(rng.integers(2, size=(rows, len(mine))) == 1) for rng, rows in draws])


def _blocks(n: int, key: str, resamples: int, seed: int) -> Iterator[tuple[np.random.Generator, int]]:
    """A generator of the task's own, and how many resamples of `n` items to draw at once."""
    rng = np.random.default_rng([seed, crc32(key.encode())])
    rows = max(1, _BLOCK // max(n, 1))
    for start in range(0, resamples, rows):
        yield rng, min(rows, resamples - start)


def _statistic(items: Items) -> Callable[[np.ndarray], np.ndarray]:
    """The score of samples that hold each item so many times: (samples, n) counts to (samples,) scores."""
    if items.statistic == "mean":
        return lambda counts: counts @ items.values / len(items)
    if items.statistic in BY_THRESHOLD:
        of_groups = BY_THRESHOLD[items.statistic]
        distinct, group = np.unique(-items.values, return_inverse=True)
        order = np.argsort(group, kind="stable")
        starts = np.searchsorted(group[order], np.arange(len(distinct)))
        gold = items.gold[order]

        def at_thresholds(counts: np.ndarray) -> np.ndarray:
            ordered = counts[:, order]
            return of_groups(*(np.add.reduceat(table, starts, axis=1) for table in (ordered, ordered * gold)))

        return at_thresholds
    if np.ptp(items.values) == 0:
        return lambda counts: np.zeros(len(counts))  # as `correlations` has it
    cosine, score = _Ranks(items.values), _Ranks(items.gold)

    def spearman(counts: np.ndarray) -> np.ndarray:
        x, x_square = cosine(counts)
        y, y_square = score(counts)
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.asarray((counts * x * y).sum(axis=1) / np.sqrt(x_square * y_square))

    return spearman


class _Ranks:
    """Ranks of values (n,) within samples of them: sorted once, so that ranks in a sample are a matter of counting."""

    def __init__(self, values: np.ndarray) -> None:
        distinct, self.group = np.unique(values, return_inverse=True)
        self.order = np.argsort(self.group, kind="stable")
        self.starts = np.searchsorted(self.group[self.order], np.arange(len(distinct)))

    def __call__(self, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Average ranks less their mean, (samples, n), and the sum of their squares, (samples,)."""
        sizes = np.add.reduceat(counts[:, self.order], self.starts, axis=1)
        ranks = _group_ranks(sizes)
        return ranks[:, self.group], (sizes * ranks**2).sum(axis=1)


def _group_ranks(sizes: np.ndarray) -> np.ndarray:
    """Average rank of each group of equal values, less the mean rank; (samples, groups) sizes, lowest first."""
    total = sizes[0].sum()
    return sizes.cumsum(axis=1) - (sizes - 1) / 2 - (total + 1) / 2


def _spearman(codes: np.ndarray, gold: np.ndarray) -> np.ndarray:
    """Spearman's correlation of each row of `codes` (rows, n), whole numbers up to 2n, with the ranks `gold` (n,)."""
    rows, n = codes.shape
    width = 2 * n + 1
    flat = codes + width * np.arange(rows)[:, None]
    sizes = np.bincount(flat.ravel(), minlength=rows * width).reshape(rows, width)
    ranks = _group_ranks(sizes)
    centred = gold - gold.mean()
    square = (sizes * ranks**2).sum(axis=1) * (centred @ centred)
    products = np.take_along_axis(ranks, codes, axis=1) @ centred
    return np.divide(products, np.sqrt(square), out=np.zeros(rows), where=square > 0)


def _by_threshold(
    statistic: Callable[[np.ndarray, np.ndarray], np.ndarray], codes: np.ndarray, gold: np.ndarray
) -> np.ndarray:
    """A statistic of pairs ordered by each row of `codes` (rows, n), whole numbers up to 2n, higher first."""
    rows, n = codes.shape
    width = 2 * n + 1
    flat = (width - 1 - codes + width * np.arange(rows)[:, None]).ravel()
    sizes = np.bincount(flat, minlength=rows * width).reshape(rows, width)
    positives = np.bincount(flat, weights=np.tile(gold, rows), minlength=rows * width).reshape(rows, width)
    return statistic(sizes, positives)


# -- means, intervals, verdicts --------------------------------------------------------------------------------------


def _group_means(results: Mapping[str, Result], scores: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """As the summary has them: means of the tasks of each group, and `mean`, the mean of these."""
    groups: dict[str, list[np.ndarray]] = {}
    for task, result in results.items():
        groups.setdefault(GROUPS[result.type], []).append(scores[task])
    means = {name: np.mean(members, axis=0) for name, members in groups.items()}
    return {**means, "mean": np.mean(list(means.values()), axis=0)} if means else {}


def _range(scores: np.ndarray, level: float) -> tuple[float, float]:
    tail = (1 - level) / 2
    low, high = np.nanquantile(scores, [tail, 1 - tail])
    return float(low), float(high)


def _two_sided(chance: np.ndarray, observed: float) -> float:
    """The observed arrangement is one of those that chance can give, so p is never 0."""
    as_large = np.abs(chance) >= abs(observed) - 1e-12
    return float((1 + as_large.sum()) / (1 + len(chance)))


def _verdict(difference: float, p: float, level: float) -> Verdict:
    if p >= 1 - level:
        return "within chance"
    return "better" if difference > 0 else "worse"
