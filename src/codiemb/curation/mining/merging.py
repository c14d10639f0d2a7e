"""One ranking out of several miners' rankings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from codiemb.curation.mining.options import Merging

_RRF = 60  # of reciprocal rank fusion (Cormack et al., 2009)


class Place(NamedTuple):
    """Where a miner ranked a candidate, from 1, and its own score."""

    rank: int
    score: float


@dataclass
class Candidate:
    """A text of the pool that miners found for a query; `score` is the judge's."""

    number: int
    places: dict[str, Place] = field(default_factory=dict)
    score: float = float("nan")


def merged(rankings: Mapping[str, Sequence[tuple[int, Place]]], how: Merging) -> list[Candidate]:
    """All candidates, each once, best first.

    Args:
        rankings: of each miner, numbers of texts and their places, best first.
        how: `rrf` sums 1 / (60 + rank) over the miners; `round-robin` takes each miner's first, then each one's second.
    """
    candidates: dict[int, Candidate] = {}
    for name, ranking in rankings.items():
        for number, place in ranking:
            candidates.setdefault(number, Candidate(number)).places[name] = place
    if how == "rrf":
        worth = {
            number: sum(1 / (_RRF + place.rank) for place in candidate.places.values())
            for number, candidate in candidates.items()
        }
        return sorted(candidates.values(), key=lambda candidate: (-worth[candidate.number], candidate.number))
    turns = {name: turn for turn, name in enumerate(rankings)}
    first = {
        number: min((place.rank, turns[name]) for name, place in candidate.places.items())
        for number, candidate in candidates.items()
    }
    return sorted(candidates.values(), key=lambda candidate: first[candidate.number])
