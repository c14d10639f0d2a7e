"""From inner products of gradients to how much tasks agree, with the noise of single batches taken out.

A batch's gradient g counts by its direction g/‖g‖. Let m_a be the mean direction over all batches of task a. On average
the cosine of two independent batches is m_a · m_b if they are of tasks a and b, and ‖m_a‖² if both are of a: below 1,
the more so the noisier the batches are. So the noise can be divided out, which is Spearman's correction for attenuation
(1904). The cosine of m_a and m_b is estimated by

    corrected(a, b) = mean cos(g_ai, g_bj) / sqrt(mean cos(g_ai, g_aj) · mean cos(g_bi, g_bj))

over pairs of batches i, j that share no row. Intervals are the bootstrap over batches, with percentiles that are
expanded for few batches (Hesterberg, 2015, arXiv:1411.5279); two copies of one batch in a resample are no pair. Where a
within-task cosine cannot be told from 0, there is nothing to divide by, and the corrected cosine is left open.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any

import numpy as np
from scipy.special import ndtr, stdtrit

from codiemb.training.diagnosis.batches import Drawn, part_name
from codiemb.training.diagnosis.gradients import TOKEN_TABLE, GradientProducts

LEVEL = 0.95
RESAMPLES = 2000
MIXED = "mixed batch"
MODEL = "model"
NETWORK = "network"
"""All layers but the token table, whose gradients are sparse, so that they agree less whatever the tasks."""

_DEFINED = 0.95  # share of the resamples in which a corrected cosine must exist to have an interval


@dataclass(frozen=True)
class Estimate:
    """A cosine, and where it lies in `LEVEL` of the resamples.

    `sign` is that of an interval that excludes 0, and 0 if it holds 0. For one layer of many, the level is corrected
    for their number (Bonferroni).
    """

    value: float
    low: float
    high: float
    sign: int


@dataclass(frozen=True)
class GroupInLayer:
    """One task (or data set) in one layer.

    Attributes:
        within: cosine of two of its batches.
        norm: of a batch's gradient, the root of the mean square.
        signal: norm of the mean gradient, estimated without noise.
    """

    within: Estimate
    norm: float
    signal: float


@dataclass(frozen=True)
class PairInLayer:
    """Two groups in one layer: `cosine` of single batches, and `corrected`, None where the batches are too noisy."""

    cosine: Estimate
    corrected: Estimate | None


@dataclass(frozen=True)
class Diagnosis:
    """What was measured.

    Attributes:
        layers: in order; `network` is all but the token table, `model` is all.
        parameters: trained ones of each layer.
        groups: by name and layer. With mixed batches, each task's part of them and the whole too.
        pairs: by names and layer.
        counts: batches of each group; losses: the mean of each.
        settings: what the gradients depend on.
    """

    layers: tuple[str, ...]
    parameters: tuple[int, ...]
    groups: Mapping[str, tuple[GroupInLayer, ...]]
    pairs: Mapping[tuple[str, str], tuple[PairInLayer, ...]]
    counts: Mapping[str, int]
    losses: Mapping[str, float]
    settings: Mapping[str, Any]

    @property
    def single(self) -> list[tuple[str, str]]:
        """The pairs of tasks or data sets, each in batches of its own."""
        return [pair for pair in self.pairs if MIXED not in pair and not any(self.is_part(name) for name in pair)]

    @property
    def parts(self) -> list[tuple[str, str]]:
        """The pairs of tasks within mixed batches."""
        return [pair for pair in self.pairs if all(self.is_part(name) for name in pair)]

    @property
    def whole(self) -> int:
        """The place in `layers` of the one that stands for all: `network`, or `model` where there is no such line."""
        return self.layers.index(NETWORK if NETWORK in self.layers else MODEL)

    def is_part(self, group: str) -> bool:
        """Whether it is a task's part of mixed batches."""
        return any(group == part_name(name) for name in self.groups)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "groups": [
                {
                    "name": name,
                    "batches": self.counts[name],
                    "loss": self.losses[name],
                    "layers": [{"layer": layer, **asdict(one)} for layer, one in zip(self.layers, found, strict=True)],
                }
                for name, found in self.groups.items()
            ],
            "pairs": [
                {
                    "pair": list(names),
                    "layers": [{"layer": layer, **asdict(one)} for layer, one in zip(self.layers, found, strict=True)],
                }
                for names, found in self.pairs.items()
            ],
            "layers": [{"name": name, "parameters": n} for name, n in zip(self.layers, self.parameters, strict=True)],
            "level": LEVEL,
            "resamples": RESAMPLES,
            "settings": dict(self.settings),
        }


def diagnose(measured: GradientProducts, *, seed: int = 0) -> Diagnosis:
    """Cosines within and between the groups, layer by layer, with intervals."""
    products, layers, parameters = _with_totals(measured)
    products, batches, losses = _with_mixed(products, measured.batches, measured.losses)
    names = list(dict.fromkeys(one.group for one in batches))
    places = {name: np.array([i for i, one in enumerate(batches) if one.group == name]) for name in names}
    independent = np.array([[not one.draws & other.draws for other in batches] for one in batches])
    norms = np.sqrt(products.diagonal(axis1=1, axis2=2))
    scale = norms[:, :, None] * norms[:, None, :]
    cosines = np.divide(products, scale, out=np.zeros_like(products), where=scale > 0)
    weights = {name: _weights(name, len(places[name]), batches, seed) for name in names}
    layer_count = len(measured.layers)
    tests = [layer_count] * layer_count + [1] * (len(layers) - layer_count)

    def mean_cosines(a: str, b: str) -> np.ndarray:
        """(1 + resamples, layers): observed first."""
        rows, columns = places[a][:, None], places[b]
        allowed = independent[rows, columns]
        total = np.einsum("ri,lij,rj->rl", weights[a], cosines[:, rows, columns] * allowed, weights[b], optimize=True)
        pairs = np.einsum("ri,ij,rj->r", weights[a], allowed, weights[b], optimize=True)
        return np.divide(total, pairs[:, None], out=np.full_like(total, np.nan), where=pairs[:, None] > 0)

    within = {name: mean_cosines(name, name) for name in names}
    groups = {}
    for name in names:
        block = products[:, places[name][:, None], places[name]]
        apart = ~np.eye(len(places[name]), dtype=bool)
        signal = np.sqrt(np.maximum(block[:, apart].mean(axis=1), 0))
        norm = np.sqrt(block.diagonal(axis1=1, axis2=2).mean(axis=1))
        groups[name] = tuple(
            GroupInLayer(
                _estimate(within[name][:, layer], of, len(places[name])), float(norm[layer]), float(signal[layer])
            )
            for layer, of in enumerate(tests)
        )
    pairs = {}
    for a, b in _compared(names):
        between = mean_cosines(a, b)
        product = within[a] * within[b]
        usable = (within[a] > 0) & (within[b] > 0)
        corrected = np.divide(between, np.sqrt(np.abs(product)), out=np.full_like(between, np.nan), where=usable)
        corrected = corrected.clip(-1, 1)
        fewest = min(len(places[a]), len(places[b]))
        pairs[a, b] = tuple(
            PairInLayer(
                _estimate(between[:, layer], of, fewest),
                _estimate(corrected[:, layer], of, fewest) if _is_defined(corrected[:, layer]) else None,
            )
            for layer, of in enumerate(tests)
        )
    return Diagnosis(
        layers,
        parameters,
        groups,
        pairs,
        {name: len(places[name]) for name in names},
        {name: float(losses[places[name]].mean()) for name in names},
        measured.settings,
    )


def _with_totals(measured: GradientProducts) -> tuple[np.ndarray, tuple[str, ...], tuple[int, ...]]:
    """The layers, then all but the token table, then all."""
    totals = {MODEL: list(range(len(measured.layers)))}
    if TOKEN_TABLE in measured.layers:
        totals = {NETWORK: [i for i, name in enumerate(measured.layers) if name != TOKEN_TABLE], **totals}
    products = [measured.products, *(measured.products[rows].sum(axis=0, keepdims=True) for rows in totals.values())]
    parameters = [sum(measured.parameters[row] for row in rows) for rows in totals.values()]
    return np.concatenate(products), (*measured.layers, *totals), (*measured.parameters, *parameters)


def _with_mixed(
    products: np.ndarray, batches: Sequence[Drawn], losses: np.ndarray
) -> tuple[np.ndarray, list[Drawn], np.ndarray]:
    """Add the whole mixed batches: each one's gradient is the sum of its parts'."""
    parts: dict[frozenset[tuple[str, int]], list[int]] = {}
    for place, one in enumerate(batches):
        if len(one.draws) > 1:
            parts.setdefault(one.draws, []).append(place)
    sums = np.zeros((len(parts), len(batches)))
    for row, members in enumerate(parts.values()):
        sums[row, members] = [batches[place].share for place in members]
    all_rows = np.concatenate([np.eye(len(batches)), sums])
    wholes = [Drawn(MIXED, batches[members[0]].batch, "ir", draws) for draws, members in parts.items()]
    return all_rows @ products @ all_rows.T, [*batches, *wholes], all_rows @ losses


def _weights(name: str, count: int, batches: Sequence[Drawn], seed: int) -> np.ndarray:
    """How often each batch is in a resample, (1 + resamples, batches); the first is the sample itself.

    Mixed batches are resampled as wholes, so their parts are drawn alike.
    """
    mixed = any(one.group == name and (len(one.draws) > 1) for one in batches)
    singles = [one.group for one in batches if len(one.draws) == 1]
    stream = 0 if mixed else 1 + list(dict.fromkeys(singles)).index(name)
    rng = np.random.default_rng([seed, stream])
    drawn = rng.multinomial(count, np.full(count, 1 / count), size=RESAMPLES)
    return np.concatenate([np.ones((1, count)), drawn])


def _compared(names: Sequence[str]) -> list[tuple[str, str]]:
    """Each with each of its kind; and the whole mixed batch with each task's own."""
    parts = {part_name(name) for name in names} & set(names)
    single = [name for name in names if name not in parts and name != MIXED]
    pairs = [*combinations(single, 2), *combinations([name for name in names if name in parts], 2)]
    return pairs + [(MIXED, name) for name in single if MIXED in names]


def _is_defined(values: np.ndarray) -> bool:
    """Whether a value (first) exists, and exists in nearly all of its resamples."""
    return bool(np.isfinite(values[0])) and float(np.isfinite(values[1:]).mean()) >= _DEFINED


def _estimate(values: np.ndarray, tests: int, batches: int) -> Estimate:
    """From a value (first) and its resamples; `tests` is the number of layers that it is one of."""
    tail = (1 - LEVEL) / 2
    wide, strict = _expanded(tail, batches), _expanded(tail / tests, batches)
    low, high, strict_low, strict_high = np.nanquantile(values[1:], [wide, 1 - wide, strict, 1 - strict]).tolist()
    return Estimate(float(values[0]), low, high, int(strict_low > 0) - int(strict_high < 0))


def _expanded(tail: float, batches: int) -> float:
    """The percentile that makes a bootstrap interval of a mean as wide as Student's."""
    student = stdtrit(batches - 1, tail)  # lighter to import than scipy.stats
    return float(ndtr(student * np.sqrt(batches / (batches - 1))))
