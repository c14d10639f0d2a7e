"""Near duplicates among many texts: MinHash and locality-sensitive hashing propose, exact Jaccard decides.

Signatures are computed for thousands of texts at a time, with datasketch's permutations and its choice of bands, and
kept as one hash a band (about 200 bytes a text). Texts that share no band with any other, nearly all of them, are done
with then. The rest are gone through in order: a text is a near duplicate if it is one of a text that was kept.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from codiemb.curation.shingles import Hashes, ShingleBatch, jaccard, normalise, shingle_batch
from codiemb.extras import require

Bands: TypeAlias = "np.ndarray[tuple[int, int], np.dtype[np.uint64]]"
Mask: TypeAlias = "np.ndarray[tuple[int], np.dtype[np.bool_]]"

_BATCH = 4096  # texts
_SLICE = 1 << 16  # shingles hashed at a time: they stay in the processor's cache
_WEIGHTS = (0.1, 0.9)  # of false and missed candidates: a false one costs a comparison, a missed one is lost


class NearDuplicate(NamedTuple):
    """Text `row` is a near duplicate of the earlier text `of`, which is none itself; `similarity` is Jaccard's."""

    row: int
    of: int
    similarity: float


def near_duplicates(
    texts: Iterable[str], *, threshold: float = 0.8, permutations: int = 128, simplify: bool = False
) -> list[NearDuplicate]:
    """Texts whose shingles have a Jaccard similarity of `threshold` or more with those of an earlier, kept text.

    All that are returned are verified. With 128 permutations a pair right at the threshold 0.8 is found with
    probability 0.87, one of 0.88 with 0.99, equal texts always.

    Args:
        texts: iterated twice, so no generator.
        threshold: 0 to 1, both excluded.
        simplify: as in `normalise`.
    Raises:
        ModuleNotFoundError: datasketch is not installed.
        ValueError: `texts` is an iterator, or the threshold is out of range.
    """
    if isinstance(texts, Iterator):
        raise ValueError("texts is an iterator, which can be read once only; give a list or another iterable.")
    if not 0 < threshold < 1:
        raise ValueError(f"threshold={threshold}: expected more than 0 and less than 1.")
    hasher = _BandHasher(threshold, permutations)
    hashed, filled = [hasher(shingle_batch([]))], [np.zeros(0, bool)]
    for batch in _batches(texts, simplify):
        hashed.append(hasher(batch))
        filled.append(np.diff(batch.offsets) > 0)
    bands = np.concatenate(hashed)
    candidates = _shared(bands) & np.concatenate(filled)  # texts without shingles are like no other
    return list(_greedy(texts, bands, candidates, threshold, simplify))


class _BandHasher:
    """Shingles to one hash for each band of their MinHash signature."""

    def __init__(self, threshold: float, permutations: int) -> None:
        datasketch: Any = require("datasketch", "curation")
        lsh = datasketch.MinHashLSH(threshold=threshold, num_perm=permutations, weights=_WEIGHTS)
        self._bands, self._rows = lsh.b, lsh.r
        a, b = datasketch.MinHash(num_perm=permutations, scheme="affine32").permutations
        used = self._bands * self._rows
        self._a, self._b = a[:used], b[:used]
        self._factors = np.random.default_rng(0).integers(1 << 63, size=self._rows, dtype=np.uint64) * 2 + 1

    def __call__(self, batch: ShingleBatch) -> Bands:
        """(texts, bands) uint64; a text without shingles has bands of its own kind."""
        texts = len(batch.offsets) - 1
        signatures = np.full((texts, len(self._a)), np.iinfo(np.uint32).max, np.uint32)
        lengths = np.diff(batch.offsets)
        start = 0
        while start < texts:
            end = int(np.searchsorted(batch.offsets, batch.offsets[start] + _SLICE, "right")) - 1
            end = min(max(end, start + 1), texts)
            filled = np.flatnonzero(lengths[start:end]) + start
            if len(filled):
                low = batch.offsets[start]
                values = batch.hashes[low : batch.offsets[end]].astype(np.uint32)  # mixed already: its low half
                starts = batch.offsets[filled] - low
                for k, (a, b) in enumerate(zip(self._a, self._b, strict=True)):
                    signatures[filled, k] = np.minimum.reduceat(values * a + b, starts)
            start = end
        grouped = signatures.reshape(texts, self._bands, self._rows).astype(np.uint64)
        return (grouped * self._factors).sum(axis=2, dtype=np.uint64)


def _batches(texts: Iterable[str], simplify: bool) -> Iterator[ShingleBatch]:
    remaining = iter(texts)
    while batch := list(islice(remaining, _BATCH)):
        yield shingle_batch([normalise(text, simplify=simplify) for text in batch])


def _shared(bands: Bands) -> Mask:
    """Which texts have a band in common with another."""
    found = np.zeros(len(bands), bool)
    for column in bands.T:
        order = np.argsort(column, kind="stable")
        equal = column[order[1:]] == column[order[:-1]]
        found[order[1:][equal]] = True
        found[order[:-1][equal]] = True
    return found


def _greedy(
    texts: Iterable[str], bands: Bands, candidates: Mask, threshold: float, simplify: bool
) -> Iterator[NearDuplicate]:
    buckets: list[dict[int, list[int]]] = [{} for _ in range(bands.shape[1])]
    kept: dict[int, Hashes] = {}  # arrays: sets of them would take ten times the memory
    start = 0
    for batch in _batches((text if candidates[i] else "" for i, text in enumerate(texts)), simplify):
        for index in np.flatnonzero(candidates[start : start + len(batch.offsets) - 1]) + start:
            hashes = batch.of(int(index) - start)
            own = frozenset(hashes.tolist())
            keys = bands[index].tolist()
            seen = {other for bucket, key in zip(buckets, keys, strict=True) for other in bucket.get(key, ())}
            best, other = max(
                ((jaccard(own, frozenset(kept[other].tolist())), -other) for other in seen), default=(0.0, 0)
            )
            if best >= threshold:
                yield NearDuplicate(int(index), -other, best)
                continue
            kept[int(index)] = hashes
            for bucket, key in zip(buckets, keys, strict=True):
                bucket.setdefault(key, []).append(int(index))
        start += len(batch.offsets) - 1
