"""What a score is computed from: queries, pairs or texts, and how the score follows from them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from scipy.stats import spearmanr

Statistic = Literal["mean", "spearman", "average_precision", "best_accuracy"]


@dataclass(frozen=True, eq=False)
class Items:
    """The items of one score, in the order of the data.

    Attributes:
        statistic: what the score is of `values`: their mean, or how well they order pairs.
        values: (n,) float64: each item's share of a mean, else the similarity of each pair, higher for more similar.
        gold: (n,) the pairs' gold scores, 0 and 1 but for `spearman`; empty for a mean.
    """

    statistic: Statistic
    values: np.ndarray
    gold: np.ndarray = field(default_factory=lambda: np.empty(0))

    def __len__(self) -> int:
        return len(self.values)

    def score(self) -> float:
        """The statistic of all items; a correlation with constant values is 0."""
        if self.statistic == "mean":
            return float(self.values.mean())
        if self.statistic == "spearman":
            return float(spearmanr(self.values, self.gold).statistic) if np.ptp(self.values) else 0.0
        thresholds, group = np.unique(-self.values, return_inverse=True)
        sizes = np.bincount(group, minlength=len(thresholds))
        positives = np.bincount(group, weights=self.gold, minlength=len(thresholds))
        return float(BY_THRESHOLD[self.statistic](sizes[None], positives[None])[0])


def average_precision(sizes: np.ndarray, positives: np.ndarray) -> np.ndarray:
    """Precision at each threshold, weighted by the recall gained there, as scikit-learn's; nan without positives."""
    passed, found = sizes.cumsum(axis=1), positives.cumsum(axis=1)
    precision = found / np.maximum(passed, 1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray((positives * precision).sum(axis=1) / found[:, -1])


def best_accuracy(sizes: np.ndarray, positives: np.ndarray) -> np.ndarray:
    """The accuracy at the best threshold that some pairs pass and others do not, as mteb's; 0 where there is none."""
    passed, found = sizes.cumsum(axis=1), positives.cumsum(axis=1)
    total, all_found = passed[:, -1:], found[:, -1:]
    right = found + (total - all_found) - (passed - found)
    return np.asarray(np.where((passed > 0) & (passed < total), right, 0).max(axis=1) / total[:, 0])


BY_THRESHOLD: Mapping[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "average_precision": average_precision,
    "best_accuracy": best_accuracy,
}
"""Statistics of pairs that are classified by a threshold on their similarity.

They take samples of pairs in groups of equal similarity, from the highest to the lowest, some of them empty: (samples,
groups) pairs in each group, and of these the pairs whose gold score is 1. They return (samples,) scores.
"""
