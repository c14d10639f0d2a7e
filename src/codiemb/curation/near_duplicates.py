"""Near duplicates among many texts: MinHash and locality-sensitive hashing propose, exact Jaccard decides.

Signatures are computed for thousands of texts at a time, with datasketch's permutations and its choice of bands, and
kept as one hash a band (about 200 bytes a text). Texts that share no band with any other, nearly all of them, are done
with then. The rest are gone through in order: a text is a near duplicate if it is one of a text that was kept.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from codiemb.curation.shingles import Hashes, Offsets, ShingleBatch, jaccard, normalise, shingle_batch
from codiemb.extras import require

Bands: TypeAlias = "np.ndarray[tuple[int, int], np.dtype[np.uint64]]"
Mask: TypeAlias = "np.ndarray[tuple[int], np.dtype[np.bool_]]"

NEAR = 0.8  # Jaccard similarity from which texts are near, unless said otherwise

_BATCH = 4096  # texts
_SLICE = 1 << 16  # shingles hashed at a time: they stay in the processor's cache
_WEIGHTS = (0.1, 0.9)  # of false and missed candidates: a false one costs a comparison, a missed one is lost


class NearDuplicate(NamedTuple):
    """Text `row` is a near duplicate of the earlier text `of`, which is none itself; `similarity` is Jaccard's."""

    row: int
    of: int
    similarity: float


def near_duplicates(
    texts: Iterable[str | tuple[str, ...]], *, threshold: float = NEAR, permutations: int = 128, simplify: bool = False
) -> list[NearDuplicate]:
    """Texts whose shingles have a Jaccard similarity of `threshold` or more with those of an earlier, kept text.

    A text may come in parts, such as a query and its document, all texts in as many: then each part has to be so
    similar to the same part of the other, and the least similar one decides. Compared as a whole, all queries of one
    long document would be near duplicates.

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
        hashed.append(hasher(batch.whole))
        filled.append(np.diff(batch.whole.offsets) > 0)
    bands = np.concatenate(hashed)
    candidates = _shared(bands) & np.concatenate(filled)  # texts without shingles are like no other
    return list(_greedy(texts, bands, candidates, threshold, simplify))


class _Batch(NamedTuple):
    """Shingles of the parts of several texts; those of text i are parts `first[i]` to before `first[i + 1]`."""

    parts: ShingleBatch
    first: Offsets

    @property
    def whole(self) -> ShingleBatch:
        """The shingles of each text with all its parts."""
        return ShingleBatch(self.parts.hashes, self.parts.offsets[self.first])

    def of(self, index: int) -> list[Hashes]:
        """The distinct shingles of each part of one text."""
        return [self.parts.of(part) for part in range(self.first[index], self.first[index + 1])]


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


def _batches(texts: Iterable[str | tuple[str, ...]], simplify: bool) -> Iterator[_Batch]:
    remaining = iter(texts)
    while taken := list(islice(remaining, _BATCH)):
        parts = [(text,) if isinstance(text, str) else text for text in taken]
        batch = shingle_batch([normalise(part, simplify=simplify) for text in parts for part in text])
        yield _Batch(batch, np.concatenate([[0], np.cumsum([len(text) for text in parts])]))


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
    texts: Iterable[str | tuple[str, ...]], bands: Bands, candidates: Mask, threshold: float, simplify: bool
) -> Iterator[NearDuplicate]:
    buckets: list[dict[int, list[int]]] = [{} for _ in range(bands.shape[1])]
    kept: dict[int, list[Hashes]] = {}  # arrays: sets of them would take ten times the memory
    start = 0
    for batch in _batches((text if candidates[i] else "" for i, text in enumerate(texts)), simplify):
        end = start + len(batch.first) - 1
        for index in (np.flatnonzero(candidates[start:end]) + start).tolist():
            hashes = batch.of(index - start)
            own = [frozenset(part.tolist()) for part in hashes]
            keys = bands[index].tolist()
            seen = {other for bucket, key in zip(buckets, keys, strict=True) for other in bucket.get(key, ())}
            best, other = max(((_similarity(own, kept[other]), -other) for other in seen), default=(0.0, 0))
            if best >= threshold:
                yield NearDuplicate(index, -other, best)
                continue
            kept[index] = hashes
            for bucket, key in zip(buckets, keys, strict=True):
                bucket.setdefault(key, []).append(index)
        start = end


def _similarity(own: Sequence[frozenset[int]], other: Sequence[Hashes]) -> float:
    """Of the part that is least similar."""
    return min(jaccard(a, frozenset(b.tolist())) for a, b in zip(own, other, strict=True))
