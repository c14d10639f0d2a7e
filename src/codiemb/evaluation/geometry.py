"""The geometry of an embedding space: how close positives are, how evenly the rest fills the sphere.

Pure functions of arrays. `unit` arguments are (texts, dim) with rows of norm 1; sums run in float64, in blocks, so that
memory follows the block and not the number of pairs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from codiemb.evaluation.metrics import correlations
from codiemb.evaluation.metrics import unit as unit_or_zero

NEIGHBOURS = 10
BINS = 100  # of the cosine histograms, over -1..1
SMALLEST_DIM = 32
_BLOCK = 512
_QUERIES = 1000  # texts whose neighbours are compared under truncation
_PAIRS = 100_000  # pairs whose cosines are compared under truncation


class GeometryError(ValueError):
    """Embeddings whose geometry is not defined; the message says why and what to do."""


@dataclass(frozen=True)
class Spectrum:
    """What the singular values s_1 >= s_2 >= ... of the unit embeddings say; the matrix is not centred.

    A direction that all texts share is thus the first one, and lowers all of these.

    Attributes:
        values: the singular values divided by their sum, descending.
        rank: singular values above s_1 x max(texts, dim) x the float32 epsilon.
        entropy: of `values` as probabilities, in nats.
        effective_rank: exp(entropy), in 1..dim (Roy and Vetterli, 2007, "The effective rank").
        condition_number: s_1 / s_rank. Final layer norms alone leave one direction (nearly) without variance, so the
            rank is rarely full and the smallest singular value is rounding.
    """

    values: list[float]
    rank: int
    entropy: float
    effective_rank: float
    condition_number: float


@dataclass(frozen=True)
class Cosines:
    """Cosines of positive and of random pairs.

    Attributes:
        positive_histogram: share of the positive pairs in each of the equal bins over -1..1.
        overlap: the area that the two histograms share, sum over bins of min(p, q), in 0..1 (Weitzman, 1970): 0 where
            no bin has pairs of both kinds, 1 where both are spread alike.
        auc: probability that a positive pair has a higher cosine than a random one; ties count half.
    """

    positive_mean: float
    random_mean: float
    positive_histogram: list[float]
    random_histogram: list[float]
    overlap: float
    auc: float


@dataclass(frozen=True)
class Truncation:
    """What the first `dim` dimensions, normalised again, keep of the full embeddings.

    Attributes:
        spearman: of the cosines of pairs of texts, truncated against full.
        neighbours: share of a text's 10 nearest neighbours that stay among its 10 nearest.
    """

    dim: int
    spearman: float
    neighbours: float


@dataclass(frozen=True)
class Norms:
    """Lengths of the embeddings as the model gives them."""

    mean: float
    std: float
    min: float
    max: float


@dataclass(frozen=True)
class Geometry:
    """One model on one data set; what each number means is said where it is computed."""

    texts: int
    dim: int
    positive_pairs: int
    random_pairs: int
    alignment: float
    uniformity: float
    isoscore: float
    hubness: float
    norms: Norms
    cosines: Cosines
    spectrum: Spectrum
    truncation: list[Truncation]

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def measure(embeddings: np.ndarray, positives: np.ndarray, random_pairs: np.ndarray, *, seed: int = 0) -> Geometry:
    """All measures of one embedding space.

    Args:
        embeddings: (texts, dim), of distinct texts, in any length.
        positives: (pairs, 2), rows of `embeddings` that mean the same or answer each other.
        random_pairs: (pairs, 2), rows that do not, drawn from the same texts.
        seed: chooses the pairs and texts that truncation is measured on.
    Raises:
        GeometryError: too few texts or pairs, an embedding that is zero or not finite, or all embeddings equal.
    """
    texts, dim = embeddings.shape
    if texts <= NEIGHBOURS + 1:
        raise GeometryError(
            f"There are {texts} distinct texts; {NEIGHBOURS} neighbours of each need at least {NEIGHBOURS + 2}. "
            "Give more data."
        )
    for name, pairs in (("positive", positives), ("random", random_pairs)):
        if not len(pairs):
            raise GeometryError(f"There are no {name} pairs. Give more data, or count lower scores as positive.")
    unit = unit_rows(embeddings)
    norms = np.linalg.norm(embeddings.astype(np.float64), axis=1)
    return Geometry(
        texts=texts,
        dim=dim,
        positive_pairs=len(positives),
        random_pairs=len(random_pairs),
        alignment=alignment(unit[positives[:, 0]], unit[positives[:, 1]]),
        uniformity=uniformity(unit),
        isoscore=isoscore(unit),
        hubness=hubness(unit),
        norms=Norms(*(float(value) for value in (norms.mean(), norms.std(), norms.min(), norms.max()))),
        cosines=cosines(_pair_cosines(unit, positives), _pair_cosines(unit, random_pairs)),
        spectrum=spectrum(unit),
        truncation=truncation(embeddings, seed=seed),
    )


def unit_rows(embeddings: np.ndarray) -> np.ndarray:
    """Rows divided by their norms, float64.

    Raises:
        GeometryError: a row that is zero or not finite, which has no direction.
    """
    rows = embeddings.astype(np.float64)
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    bad = np.flatnonzero(~(np.isfinite(norms[:, 0]) & (norms[:, 0] > 0)))
    if len(bad):
        raise GeometryError(
            f"{len(bad)} of {len(rows)} embeddings are zero or not finite, the first is row {bad[0]}; a direction is "
            "not defined for them. Remove empty texts; if there are none, try --compute fp32."
        )
    return np.asarray(rows / norms)


def alignment(first: np.ndarray, second: np.ndarray) -> float:
    """Mean squared distance of positive pairs, in 0..4, lower is closer (Wang and Isola, 2020, arXiv:2005.10242).

    Args:
        first, second: unit embeddings of the two texts of each pair, (pairs, dim).
    """
    return float(np.square(first - second).sum(axis=1).mean())


def uniformity(unit: np.ndarray) -> float:
    """Log of the mean of exp(-2 d^2) over all pairs of different rows (Wang and Isola, 2020, arXiv:2005.10242).

    0 where all embeddings are equal; about -4 + 8/dim, and -4 at the lowest in high dimensions, where they fill the
    sphere evenly.
    """
    total = 0.0
    for start, block in _blocks(unit):
        kernel = np.exp(4.0 * (block @ unit.T) - 4.0)  # d^2 = 2 - 2 cos
        kernel[np.arange(len(block)), start + np.arange(len(block))] = 0.0
        total += kernel.sum()
    return float(np.log(total / (len(unit) * (len(unit) - 1))))


def isoscore(points: np.ndarray) -> float:
    """How evenly variance is spread over the dimensions, in 0..1 (IsoScore: Rudman et al., 2022, arXiv:2108.07344).

    The paper measures how far the variances along the principal components, scaled to length sqrt(n), are from all
    ones, and turns this distance into a share of the n dimensions. Written out, that is (k - 1) / (n - 1) with
    k = (sum v)^2 / sum v^2 of the variances v. 1: as in all directions; 0: one direction has it all. Even an isotropic
    cloud of N points reaches only about N / (N + n), so compare models of one width on the same texts.

    Args:
        points: (texts, dim), dim at least 2.
    Raises:
        GeometryError: fewer than two dimensions, or all points equal.
    """
    n = points.shape[1]
    if n < 2:
        raise GeometryError(f"IsoScore compares dimensions, and the embeddings have {n}.")
    centred = points - points.mean(axis=0)
    # The sums of v and of v^2 are the trace of the covariance matrix and its squared Frobenius norm.
    scatter = centred.T @ centred
    trace = np.trace(scatter)
    if trace <= np.square(points).sum() * n * np.finfo(np.float32).eps ** 2:
        raise GeometryError("All embeddings are equal, so they have no variance. Give other texts or another model.")
    return float((trace**2 / np.square(scatter).sum() - 1) / (n - 1))


def spectrum(unit: np.ndarray) -> Spectrum:
    """Singular values of the embeddings, by way of the smaller Gram matrix."""
    gram = unit.T @ unit if unit.shape[1] <= len(unit) else unit @ unit.T
    values = np.sqrt(np.maximum(np.linalg.eigvalsh(gram)[::-1], 0.0))
    rank = int((values > values[0] * max(unit.shape) * np.finfo(np.float32).eps).sum())
    shares = values / values.sum()
    positive = shares[shares > 0]
    entropy = float(-(positive * np.log(positive)).sum())
    condition = float(values[0] / values[rank - 1])
    return Spectrum(shares.tolist(), rank, entropy, float(np.exp(entropy)), condition)


def cosines(positive: np.ndarray, random: np.ndarray) -> Cosines:
    """Histograms of the cosines of positive pairs (pairs,) and random pairs (pairs,), and how far they overlap."""
    histograms = []
    for values in (positive, random):
        # Rounding can put a cosine a little above 1.
        counts, _ = np.histogram(np.clip(values, -1.0, 1.0), bins=BINS, range=(-1.0, 1.0))
        histograms.append(counts / len(values))
    below = np.searchsorted(np.sort(random), positive, side="left")
    not_above = np.searchsorted(np.sort(random), positive, side="right")
    return Cosines(
        positive_mean=float(positive.mean()),
        random_mean=float(random.mean()),
        positive_histogram=histograms[0].tolist(),
        random_histogram=histograms[1].tolist(),
        overlap=float(np.minimum(*histograms).sum()),
        auc=float((below + not_above).mean() / (2 * len(random))),
    )


def hubness(unit: np.ndarray, k: int = NEIGHBOURS) -> float:
    """Skewness of how often a text is among the k nearest of another (Radovanovic et al., 2010, JMLR 11).

    0: all alike; well above 1: a few hubs are near to everything, and turn up in many searches.

    Raises:
        GeometryError: not more than k + 1 texts.
    """
    if len(unit) <= k + 1:
        raise GeometryError(f"There are {len(unit)} texts; {k} neighbours of each need at least {k + 2}.")
    occurrences = np.bincount(nearest(unit, k).ravel(), minlength=len(unit)).astype(np.float64)
    centred = occurrences - k  # their mean is k
    deviation = np.sqrt(np.square(centred).mean())
    return float((centred**3).mean() / deviation**3) if deviation > 0 else 0.0


def truncation(embeddings: np.ndarray, *, dims: Sequence[int] | None = None, seed: int = 0) -> list[Truncation]:
    """What is left when only the first dimensions are kept, as Matryoshka models (arXiv:2205.13147) promise.

    Args:
        embeddings: (texts, dim).
        dims: each within dim; the powers of two from 32 and dim itself if None.
        seed: chooses at most 100,000 pairs and 1000 texts with their neighbours among all texts.
    Raises:
        GeometryError: all pairs have one cosine, so there is no order to keep.
    """
    full = embeddings.shape[1]
    if dims is None:
        dims = [2**power for power in range(full.bit_length()) if SMALLEST_DIM <= 2**power < full] + [full]
    rng = np.random.default_rng(seed)
    texts = len(embeddings)
    pairs = _some_pairs(texts, rng)
    queries = np.sort(rng.permutation(texts)[:_QUERIES])
    unit = unit_rows(embeddings)
    exact, near = _pair_cosines(unit, pairs), nearest(unit, NEIGHBOURS, queries)
    if np.ptp(exact) == 0:
        raise GeometryError(f"All pairs of the {texts} embeddings have the cosine {exact[0]:g}. Give other texts.")
    kept = []
    for dim in dims:
        cut = unit_or_zero(embeddings[:, :dim].astype(np.float64))
        common = [len(np.intersect1d(a, b)) for a, b in zip(nearest(cut, NEIGHBOURS, queries), near, strict=True)]
        correlation = correlations(_pair_cosines(cut, pairs), exact, f"{dim} dimensions")["cosine_spearman"]
        kept.append(Truncation(dim, correlation, float(np.mean(common)) / NEIGHBOURS))
    return kept


def nearest(unit: np.ndarray, k: int, queries: np.ndarray | None = None) -> np.ndarray:
    """The k rows with the highest cosine to each of the rows `queries` (all if None), itself left out, (queries, k)."""
    queries = np.arange(len(unit)) if queries is None else queries
    parts = []
    for start in range(0, len(queries), _BLOCK):
        chosen = queries[start : start + _BLOCK]
        scores = unit[chosen] @ unit.T
        scores[np.arange(len(chosen)), chosen] = -np.inf
        parts.append(np.argpartition(-scores, k - 1, axis=1)[:, :k])
    return np.concatenate(parts)


def _blocks(rows: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    for start in range(0, len(rows), _BLOCK):
        yield start, rows[start : start + _BLOCK]


def _pair_cosines(unit: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    return np.einsum("pd,pd->p", unit[pairs[:, 0]], unit[pairs[:, 1]])


def _some_pairs(texts: int, rng: np.random.Generator) -> np.ndarray:
    """All pairs of different rows, or `_PAIRS` of them drawn with replacement."""
    if texts * (texts - 1) // 2 <= _PAIRS:
        return np.stack(np.triu_indices(texts, 1), axis=1)
    first = rng.integers(texts, size=_PAIRS)
    return np.stack([first, (first + rng.integers(1, texts, size=_PAIRS)) % texts], axis=1)
