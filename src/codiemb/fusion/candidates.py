"""Which weights and scales are tried: a pattern search on the weights' simplex and the scale, in exact fractions."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from fractions import Fraction
from itertools import permutations
from typing import NamedTuple

_FIRST_STEP, _LAST_STEP = Fraction(1, 4), Fraction(1, 16)
_LARGEST_SCALE = Fraction(3, 2)


class Candidate(NamedTuple):
    """Weights of the checkpoints, which sum to 1, and the scale of their mean change; scale 0 is the base."""

    weights: tuple[Fraction, ...]
    scale: Fraction

    @property
    def is_base(self) -> bool:
        """Whether it is the base, whatever its weights."""
        return not self.scale

    @property
    def simplicity(self) -> int:
        """0: a plain mean; 1: a part of it, or more than it; 2: weights of their own."""
        if len(set(self.weights)) > 1:
            return 2
        return int(self.scale != 1)

    def __str__(self) -> str:
        if self.is_base:
            return "the base"
        weights = ", ".join(f"{float(weight):.4g}" for weight in self.weights)
        return f"weights {weights}, scale {float(self.scale):.4g}"


def first_candidates(checkpoints: int) -> list[Candidate]:
    """A plain mean, the base, and each checkpoint alone."""
    mean = (Fraction(1, checkpoints),) * checkpoints
    alone = [tuple(Fraction(int(k == j)) for k in range(checkpoints)) for j in range(checkpoints)]
    found = [Candidate(mean, Fraction(1)), Candidate(mean, Fraction(0))]
    return found + [Candidate(weights, Fraction(1)) for weights in alone if weights != mean]


def neighbours(centre: Candidate, step: Fraction) -> Iterator[Candidate]:
    """The scale a step down and up, then a step of weight from each checkpoint to each other one."""
    for scale in (centre.scale - step, centre.scale + step):
        if 0 < scale <= _LARGEST_SCALE:
            yield centre._replace(scale=scale)
    if centre.is_base:  # weights of nothing
        return
    for giver, taker in permutations(range(len(centre.weights)), 2):
        moved = min(step, centre.weights[giver])
        if moved:
            weights = list(centre.weights)
            weights[giver] -= moved
            weights[taker] += moved
            yield centre._replace(weights=tuple(weights))


def pattern_search(score: Callable[[Candidate], float], checkpoints: int, budget: int) -> dict[Candidate, float]:
    """Try the first candidates, then again and again the neighbours of the best; where none is better, halve the step.

    Deterministic: of equal scores the one that was tried first is the best.

    Args:
        score: the higher the better.
        budget: candidates to try at most.
    Returns: the scores, in the order of the tries.
    """
    scores: dict[Candidate, float] = {}

    def try_all(candidates: Iterator[Candidate] | list[Candidate]) -> None:
        for candidate in candidates:
            if candidate not in scores and len(scores) < budget:
                scores[candidate] = score(candidate)

    try_all(first_candidates(checkpoints))
    step = _FIRST_STEP
    while step >= _LAST_STEP and len(scores) < budget:
        best = max(scores, key=scores.__getitem__)
        try_all(neighbours(best, step))
        if max(scores, key=scores.__getitem__) == best:
            step /= 2
    return scores
