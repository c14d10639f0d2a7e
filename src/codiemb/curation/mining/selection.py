"""Which of the candidates become a row's negatives, and why the others do not."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Final

import numpy as np

from codiemb.curation.mining.merging import Candidate
from codiemb.curation.mining.options import MiningOptions
from codiemb.curation.mining.pool import TextPool
from codiemb.curation.mining.words import DENSE
from codiemb.curation.shingles import containment, jaccard, shingles

KNOWN: Final = "a known positive of the query"
QUERY: Final = "the query itself"
WINDOW: Final = "before the rank window"
ABOVE_MAX: Final = "score above max_score"
BELOW_MIN: Final = "score below min_score"
MARGIN: Final = "score within the margin of the positive's"
SHARE: Final = "score above the share of the positive's"
ANSWER: Final = "contains the answer"
NEAR_POSITIVE: Final = "nearly the text of a positive, or part of one"
NEAR_NEGATIVE: Final = "nearly the text of another negative"

#: In the order in which they are asked; each candidate is counted under the first that holds.
REASONS = (KNOWN, QUERY, WINDOW, ABOVE_MAX, BELOW_MIN, MARGIN, SHARE, ANSWER, NEAR_POSITIVE, NEAR_NEGATIVE)

_SPACED = f"[^\\W_{DENSE}]"  # a letter or digit of a script that puts spaces between words
_CACHED_SHINGLES = 4096  # texts; a paragraph of 300 characters takes about 30 KB


@dataclass
class Rejected:
    """How many candidates one reason kept out of a row, and the first of them."""

    count: int
    first: Candidate


@dataclass
class Selection:
    """What a row gets: candidates in the order in which they are to be negatives, and ones that are positives."""

    negatives: list[Candidate] = field(default_factory=list)
    relabelled: list[Candidate] = field(default_factory=list)
    rejected: dict[str, Rejected] = field(default_factory=dict)
    looked_at: int = 0

    def reject(self, reason: str, candidate: Candidate) -> None:
        """Count a candidate."""
        self.rejected.setdefault(reason, Rejected(0, candidate)).count += 1


class Selector:
    """Selects with the same options for all rows.

    Args:
        chance: the score that shares are counted from.
        by_score: candidates are taken by the judge's score, not in their merged order.
    """

    def __init__(self, options: MiningOptions, pool: TextPool, chance: float, *, by_score: bool) -> None:
        self._options = options
        self._pool = pool
        self._chance = chance
        self._by_score = by_score
        self._shingles_of = lru_cache(maxsize=_CACHED_SHINGLES)(self._shingles)

    def select(
        self,
        candidates: Sequence[Candidate],
        positive_score: float,
        positives: Sequence[int],
        negatives: Sequence[str],
        answers: Sequence[str],
        rng: np.random.Generator,
    ) -> Selection:
        """Go through the candidates until there are enough.

        Args:
            candidates: within the rank window, best first, with their scores.
            positive_score: the lowest of the row's positives.
            positives: of all rows with the query, numbers of texts.
            negatives: texts that the row has and keeps.
            answers: to the query; may be none.
        """
        selection = Selection()
        near = _Near(self._options.near_duplicate)
        for number in positives:
            near.add_positive(self._shingles_of(number))
        for text in negatives:
            near.add_negative(shingles(text))
        candidates = self._relabel(candidates, near, selection)
        contains_answer = answer_finder(answers)
        for candidate in self._ordered(candidates, rng):
            if len(selection.negatives) == self._options.negatives:
                break
            selection.looked_at += 1
            reason = self._by_numbers(candidate.score, positive_score)
            if reason is None and answers and contains_answer(self._pool.text(candidate.number).full):
                reason = ANSWER
            if reason is None:
                reason = near.reason(self._shingles_of, candidate.number)
            if reason is None:
                near.add_negative(self._shingles_of(candidate.number))
                selection.negatives.append(candidate)
            else:
                selection.reject(reason, candidate)
        return selection

    def _relabel(self, candidates: Sequence[Candidate], near: _Near, selection: Selection) -> list[Candidate]:
        """Move the candidates that the judge takes for positives to the positives, each text once."""
        least = self._options.relabel_above
        if least is None:
            return list(candidates)
        kept = []
        for candidate in sorted(candidates, key=lambda candidate: -candidate.score):
            if candidate.score < least:
                kept.append(candidate)
                continue
            selection.looked_at += 1
            if reason := near.reason(self._shingles_of, candidate.number):
                selection.reject(reason, candidate)
            else:
                near.add_positive(self._shingles_of(candidate.number))
                selection.relabelled.append(candidate)
        places = {candidate.number: place for place, candidate in enumerate(candidates)}
        return sorted(kept, key=lambda candidate: places[candidate.number])

    def _ordered(self, candidates: list[Candidate], rng: np.random.Generator) -> Sequence[Candidate]:
        scores = np.array([candidate.score for candidate in candidates])
        if self._options.sampling == "random":
            order = rng.permutation(len(candidates))
        elif self._options.sampling == "weighted":
            # The order of perturbed scores is a sample without replacement (Gumbel-top-k, arXiv:1903.06059).
            order = np.argsort(-(scores / self._options.temperature + rng.gumbel(size=len(scores))), kind="stable")
        elif self._by_score:
            order = np.argsort(-scores, kind="stable")
        else:
            return candidates
        return [candidates[place] for place in order]

    def _by_numbers(self, score: float, positive: float) -> str | None:
        options = self._options
        if options.max_score is not None and score > options.max_score:
            return ABOVE_MAX
        if options.min_score is not None and score < options.min_score:
            return BELOW_MIN
        if options.margin is not None and score > positive - options.margin:
            return MARGIN
        if options.share is not None and score > share_limit(positive, options.share, self._chance):
            return SHARE
        return None

    def _shingles(self, number: int) -> frozenset[int]:
        return shingles(self._pool.text(number).full)


def share_limit(positive: float, share: float, chance: float) -> float:
    """The highest score that a negative may have; a positive below chance is the limit itself."""
    return chance + share * (positive - chance) if positive > chance else positive


class _Near:
    """Compares with what a row has so far."""

    def __init__(self, least: float) -> None:
        self._least = least
        self._positives: list[frozenset[int]] = []
        self._negatives: list[frozenset[int]] = []

    def add_positive(self, own: frozenset[int]) -> None:
        self._positives.append(own)

    def add_negative(self, own: frozenset[int]) -> None:
        self._negatives.append(own)

    def reason(self, shingles_of: Callable[[int], frozenset[int]], number: int) -> str | None:
        own = shingles_of(number)
        for other in self._positives:
            if max(containment(own, other), containment(other, own)) >= self._least:
                return NEAR_POSITIVE
        if any(jaccard(own, other) >= self._least for other in self._negatives):
            return NEAR_NEGATIVE
        return None


def answer_finder(answers: Sequence[str]) -> Callable[[str], bool]:
    """Says whether a text contains one of the answers, width and case folded, runs of spaces as one.

    Where an answer begins or ends with a letter or digit of a spaced script, so does a word: `5` is not in `1995`, but
    in `5月`.
    """
    patterns = []
    for answer in map(_folded, answers):
        before = f"(?<!{_SPACED})" if re.match(_SPACED, answer[0]) else ""
        after = f"(?!{_SPACED})" if re.match(_SPACED, answer[-1]) else ""
        patterns.append(before + re.escape(answer) + after)
    if not patterns:
        return lambda text: False
    pattern = re.compile("|".join(patterns))
    return lambda text: pattern.search(_folded(text)) is not None


def _folded(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())
