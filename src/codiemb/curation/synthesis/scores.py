"""Scores of written pairs against an embedding model: which contradict it, and how far apart degrees really are.

A language model's degrees are an order, not a scale: what it calls 4 and 5 may be nearly the same, 1 and 2 far apart.
Calibration keeps their order and takes their distances from the mean cosine of each degree (isotonic regression,
stretched back to the range of the degrees). Single cosines do not enter a score, so the data do not just repeat the
judging model.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from codiemb.curation.synthesis.gates import Findings
from codiemb.curation.synthesis.model_gates import unit
from codiemb.curation.synthesis.rows import Row
from codiemb.interface import Embedder

_LEAST_PAIRS = 20  # below, ranks say little
_LEAST_CORRELATION = 0.3  # Spearman; below, the degrees' mean cosines are noise


class Calibration(NamedTuple):
    """How scores were changed, or why they were not.

    Attributes:
        spearman: of scores and cosines, None with too few pairs or constant ones.
        degrees: for each score its pairs, and the mean and standard deviation of their cosines.
        scale: new score of each score that was given; empty if all stay.
    """

    pairs: int
    spearman: float | None
    degrees: dict[str, dict[str, float]]
    scale: dict[str, float]
    verdict: str

    def to_dict(self) -> dict[str, Any]:
        """As in the report."""
        return self._asdict()


def cosines(rows: Sequence[Row], model: Embedder) -> np.ndarray:
    """Of the two sentences of each pair, (rows,); both are embedded as texts of a symmetric task."""
    if not rows:
        return np.zeros(0, np.float32)
    (instruction,) = {row.instruction for row in rows}
    first = unit(model.encode_queries([row.source for row in rows], instruction=instruction))
    second = unit(model.encode_queries([row.written for row in rows], instruction=instruction))
    return np.asarray((first * second).sum(axis=1))


def contradictions(rows: Sequence[Row], similarities: np.ndarray, most: float) -> Findings:
    """Pairs whose places in the order of scores and in that of cosines are more than `most` of all places apart."""
    if len(rows) < _LEAST_PAIRS:
        return
    by_score, by_cosine = _places([row.score for row in rows]), _places(similarities)
    for number, (one, other) in enumerate(zip(by_score, by_cosine, strict=True)):
        if abs(one - other) > most:
            detail = f"place {one:.2f} by its score {rows[number].score:g}, {other:.2f} by its cosine"
            yield (
                number,
                "contradicts the model",
                f"{detail} {similarities[number]:.3f}; 0 is the lowest, 1 the highest",
            )


def calibrate(rows: Sequence[Row], similarities: np.ndarray) -> Calibration:
    """Find the scale of the scores; `rows` stay as they are."""
    given = np.array([row.score for row in rows])
    degrees = {
        f"{score:g}": {
            "pairs": int((given == score).sum()),
            "mean": round(float(similarities[given == score].mean()), 4),
            "deviation": round(float(similarities[given == score].std()), 4),
        }
        for score in np.unique(given)
    }
    spearman = None
    if len(rows) >= _LEAST_PAIRS and np.ptp(given) > 0 and np.ptp(similarities) > 0:
        spearman = round(float(np.corrcoef(_places(given), _places(similarities))[0, 1]), 4)
    if spearman is None:
        verdict = f"not calibrated: {len(rows)} pairs with {len(degrees)} scores, expected {_LEAST_PAIRS} and 2 or more"
        return Calibration(len(rows), None, degrees, {}, verdict)
    if spearman < _LEAST_CORRELATION:
        verdict = f"not calibrated: scores and cosines hardly agree (Spearman {spearman:.2f}); do not train on them"
        return Calibration(len(rows), spearman, degrees, {}, verdict)
    from sklearn.isotonic import IsotonicRegression

    fitted = IsotonicRegression().fit(given, similarities)
    levels = np.unique(given)
    means = fitted.predict(levels)
    if means[0] == means[-1]:
        verdict = "not calibrated: the mean cosine does not rise with the score; do not train on them"
        return Calibration(len(rows), spearman, degrees, {}, verdict)
    stretched = levels[0] + (means - means[0]) / (means[-1] - means[0]) * (levels[-1] - levels[0])
    scale = {f"{level:g}": round(float(score), 4) for level, score in zip(levels, stretched, strict=True)}
    return Calibration(len(rows), spearman, degrees, scale, "calibrated")


def _places(values: Sequence[float] | np.ndarray) -> np.ndarray:
    """Place of each value in their order, 0 for the lowest, 1 for the highest; equal ones share their mean place."""
    from scipy.stats import rankdata

    return np.asarray((rankdata(values) - 1) / max(len(values) - 1, 1))
