"""Which texts are evaluation texts: exact, normalised, in other characters, or with most of their shingles in common.

The evaluation side is the small one, so it is indexed, and no match is missed. A text that matches an evaluation text
E has at least θ|E| of its |E| shingles, θ being the lowest threshold: for a Jaccard similarity, since E and the text
together have no fewer shingles than E alone; for containment by definition. So it has at least one of any
|E| - ⌈θ|E|⌉ + 1 shingles of E (prefix filtering; Chaudhuri et al., 2006). Only these, the rarest ones, are indexed;
whatever they find is then compared exactly.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias

import numpy as np

from codiemb.curation.shingles import Hashes, normalise, shingle_batch
from codiemb.data.examples import DataError

Side = Literal["query", "document"]
Kind = Literal["exact", "normalised", "characters", "near", "contained"]

Integers: TypeAlias = "np.ndarray[tuple[int], np.dtype[np.int64]]"
Counts: TypeAlias = "np.ndarray[tuple[int], np.dtype[np.int64]]"

_BUILD_BATCH = 4096  # texts
_LEAST_JACCARD = 0.5  # from which on characters are compared
_EXPANDED = 1 << 22  # shingles of candidates compared at a time


class EvaluationText(NamedTuple):
    """A text that a model is measured with: of which set, on which side, and its id there."""

    text: str
    side: Side
    source: str
    id: str


class Leak(NamedTuple):
    """A match: `kind` in the order of `Kind` is the closest that applies; `similarity` is 1 for equal texts.

    For a near match it is Jaccard's or the overlap, for a contained one the part of the evaluation text's shingles that
    were found.
    """

    evaluation: EvaluationText
    kind: Kind
    similarity: float


@dataclass(frozen=True)
class NearOptions:
    """When texts that are not equal match all the same; a threshold above 1 turns its rule off.

    Attributes:
        jaccard: from this similarity of their shingles on.
        overlap: or from this part of the longer text's characters on that both have in the same order, where their
            shingles have a Jaccard similarity of 0.5 or more. Texts in which one character in ten differs have 0.5 to
            0.8, since each difference changes all shingles around it, and so have short questions on other things that
            are put alike, which only the characters tell from them.
        containment: from this part of the evaluation text's shingles on, within a text of any length.
        least_shingles: evaluation texts with fewer match by equality only: of a text of four characters, three are
            found in any number of others.
        least_contained: evaluation texts with fewer are not looked for within longer texts.
    """

    jaccard: float = 0.7
    overlap: float = 0.85
    containment: float = 0.8
    least_shingles: int = 6
    least_contained: int = 20

    def __post_init__(self) -> None:
        for name in ("jaccard", "overlap", "containment"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name}={getattr(self, name)}: expected more than 0; above 1 turns it off.")

    @property
    def least_jaccard(self) -> float:
        """Below this similarity no rule but containment applies."""
        return min(self.jaccard, _LEAST_JACCARD) if self.overlap <= 1 else self.jaccard

    @property
    def least_share(self) -> float:
        """The part of an evaluation text's shingles that every match has."""
        return min(self.least_jaccard, self.containment)


class LeakFinder:
    """An index of evaluation texts.

    Args:
        texts: those of all sets; equal ones of one set and side count once.
        near: None: only equal texts match.
        simplify: find texts in traditional characters by simplified ones and the other way round.
    Raises:
        DataError: no texts.
    """

    def __init__(
        self, texts: Sequence[EvaluationText], *, near: NearOptions | None = None, simplify: bool = True
    ) -> None:
        if not texts:
            raise DataError("There are no evaluation texts to compare with.")
        self.texts = list({(one.text, one.side, one.source): one for one in reversed(texts)}.values())[::-1]
        self.simplify = simplify
        self._exact: dict[str, list[int]] = {}
        self._normalised: dict[str, list[int]] = {}
        self._simplified: dict[str, list[int]] = {}
        for i, one in enumerate(self.texts):
            self._exact.setdefault(one.text, []).append(i)
            self._normalised.setdefault(normalise(one.text), []).append(i)
            if simplify:
                self._simplified.setdefault(normalise(one.text, simplify=True), []).append(i)
        self._near = _NearIndex([self._plain(one.text) for one in self.texts], near) if near else None

    def _plain(self, text: str) -> str:
        return normalise(text, simplify=self.simplify)

    def find(self, texts: Sequence[str]) -> list[list[Leak]]:
        """For each text its leaks, closest first: at most one for each set and side."""
        plain = [self._plain(text) for text in texts]
        near = self._near.find(plain) if self._near else [[]] * len(texts)
        return [
            self._closest(text, plain_text, found) for text, plain_text, found in zip(texts, plain, near, strict=True)
        ]

    def _closest(self, text: str, plain: str, near: list[tuple[int, Kind, float]]) -> list[Leak]:
        leaks: dict[tuple[str, Side], Leak] = {}

        def add(index: int, kind: Kind, similarity: float) -> None:
            one = self.texts[index]
            leaks.setdefault((one.source, one.side), Leak(one, kind, similarity))

        for index in self._exact.get(text, ()):
            add(index, "exact", 1.0)
        equal = self._simplified if self.simplify else self._normalised
        if plain in equal:  # normalised equality implies this one
            for index in self._normalised.get(normalise(text), ()):
                add(index, "normalised", 1.0)
            for index in self._simplified.get(plain, ()):
                add(index, "characters", 1.0)
        for index, kind, similarity in near:
            add(index, kind, similarity)
        return list(leaks.values())


class _NearIndex:
    """Evaluation texts by the rarest of their shingles."""

    def __init__(self, plain: Sequence[str], options: NearOptions) -> None:
        self._options = options
        self._plain = plain
        sets: list[Hashes] = []
        for start in range(0, len(plain), _BUILD_BATCH):
            batch = shingle_batch(plain[start : start + _BUILD_BATCH])
            sets += [batch.of(i) for i in range(len(batch.offsets) - 1)]
        self._sizes: Counts = np.array([len(one) for one in sets], np.int64)
        self._offsets: Integers = np.concatenate([[0], np.cumsum(self._sizes)])
        # From here on, a shingle is its place among all shingles of evaluation texts.
        self._known, shingles, frequency = np.unique(np.concatenate(sets), return_inverse=True, return_counts=True)
        self._shingles: Integers = shingles.astype(np.int64)
        share = options.least_share
        prefixes: list[Integers] = []
        owners: list[int] = []
        for i, size in enumerate(self._sizes):
            if size >= options.least_shingles and share <= 1:
                own = self._shingles[self._offsets[i] : self._offsets[i + 1]]
                rarest = own[np.argsort(frequency[own], kind="stable")]
                prefixes.append(rarest[: size - math.ceil(share * size - 1e-9) + 1])
                owners.append(i)
        entries = np.concatenate(prefixes) if prefixes else np.zeros(0, np.int64)
        owner = np.repeat(np.array(owners, np.int64), [len(one) for one in prefixes])
        order = np.argsort(entries, kind="stable")
        self._postings: Integers = owner[order]
        self._starts: Integers = np.searchsorted(entries[order], np.arange(len(self._known) + 1))

    def find(self, plain: Sequence[str]) -> list[list[tuple[int, Kind, float]]]:
        """For each normalised text the evaluation texts that are near or contained, most similar first."""
        batch = shingle_batch(plain)
        found: list[list[tuple[int, Kind, float]]] = [[] for _ in plain]
        if not len(self._postings):
            return found
        texts = np.repeat(np.arange(len(plain)), np.diff(batch.offsets))
        place = np.minimum(np.searchsorted(self._known, batch.hashes), len(self._known) - 1)
        is_known = self._known[place] == batch.hashes
        # One number for each text and shingle that it shares with any evaluation text, sorted.
        shared = np.unique(texts[is_known] * len(self._known) + place[is_known])
        pairs = self._candidates(shared, len(plain))
        sizes: dict[int, int] = {}
        for text, index, overlap in self._overlaps(pairs, shared):
            if text not in sizes:
                sizes[text] = len(batch.of(text))
            if match := self._judged(overlap, index, plain[text], sizes[text]):
                found[text].append((index, *match))
        for matches in found:
            matches.sort(key=lambda match: (match[1] != "near", -match[2], match[0]))
        return found

    def _candidates(self, shared: Integers, texts: int) -> tuple[Integers, Integers]:
        """Pairs of a text and an evaluation text that share a shingle of the latter's prefix."""
        text, shingle = np.divmod(shared, len(self._known))
        counts = self._starts[shingle + 1] - self._starts[shingle]
        entries = _ranges(self._starts[shingle], counts)
        pairs = np.unique(np.repeat(text, counts) * len(self._sizes) + self._postings[entries])
        text, index = np.divmod(pairs, len(self._sizes))
        # A text has to have enough shingles, and for Jaccard not too many.
        known, size = np.bincount(shared // len(self._known), minlength=texts)[text], self._sizes[index]
        possible = known >= self._options.least_share * size - 1e-9
        possible &= (size >= self._options.least_contained) | (known * self._options.least_jaccard <= size + 1e-9)
        return text[possible], index[possible]

    def _overlaps(self, pairs: tuple[Integers, Integers], shared: Integers) -> list[tuple[int, int, int]]:
        """The pairs with enough shingles in common, and how many."""
        share = self._options.least_share
        enough: list[tuple[int, int, int]] = []
        texts, indices = pairs
        ends = np.cumsum(self._sizes[indices])
        start = 0
        while start < len(texts):
            before = ends[start - 1] if start else 0
            end = max(int(np.searchsorted(ends, before + _EXPANDED, "right")), start + 1)
            text, index = texts[start:end], indices[start:end]
            sizes = self._sizes[index]
            keys = np.repeat(text * len(self._known), sizes) + self._shingles[_ranges(self._offsets[index], sizes)]
            place = np.minimum(np.searchsorted(shared, keys), len(shared) - 1)
            overlap = np.add.reduceat((shared[place] == keys).astype(np.int64), np.cumsum(sizes) - sizes)
            good = overlap >= share * sizes - 1e-9
            enough += zip(text[good].tolist(), index[good].tolist(), overlap[good].tolist(), strict=True)
            start = end
        return enough

    def _judged(self, shared: int, index: int, text: str, text_size: int) -> tuple[Kind, float] | None:
        options, size = self._options, int(self._sizes[index])
        jaccard = shared / (size + text_size - shared)
        if jaccard >= options.jaccard - 1e-9:
            return "near", jaccard
        if jaccard >= options.least_jaccard - 1e-9 and (same := overlap(self._plain[index], text)) >= options.overlap:
            return "near", same
        contained = shared / size
        if size >= options.least_contained and contained >= options.containment - 1e-9:
            return "contained", contained
        return None


def overlap(a: str, b: str) -> float:
    """Length of the longest common subsequence of characters as a part of the longer text, 0 to 1.

    Bit-parallel (Hyyrö, 2004): a row of the table is one integer, so a text of 1,000 characters takes 1,000 additions.
    """
    places: dict[str, int] = {}
    for i, character in enumerate(a):
        places[character] = places.get(character, 0) | 1 << i
    everything = row = (1 << len(a)) - 1
    for character in b:
        matches = row & places.get(character, 0)
        row = ((row + matches) | (row - matches)) & everything
    return (len(a) - row.bit_count()) / max(len(a), len(b), 1)


def _ranges(starts: Integers, counts: Counts) -> Integers:
    """`starts[i]`, `starts[i] + 1`, ... `counts[i]` of each, one after the other."""
    total = int(counts.sum())
    firsts = np.cumsum(counts) - counts
    return np.arange(total) - np.repeat(firsts - starts, counts)
