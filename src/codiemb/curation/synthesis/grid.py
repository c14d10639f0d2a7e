"""The grid that queries are drawn from: kind x length x difficulty x persona, every cell equally often."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from typing import NamedTuple

from codiemb.curation.synthesis.order import dealt
from codiemb.curation.synthesis.recipe import Difficulty, Length, QueryKind

#: Lengths that make sense for each kind.
LENGTHS: Mapping[QueryKind, tuple[Length, ...]] = {
    "keyword": ("short",),
    "question": ("short", "medium"),
    "long": ("long",),
    "colloquial": ("short", "medium"),
    "cross_lingual": ("short", "medium"),
}


class Cell(NamedTuple):
    """What a query is to be like."""

    kind: QueryKind
    length: Length
    difficulty: Difficulty
    persona: str


def cell(
    number: int, kinds: Sequence[QueryKind], difficulties: Sequence[Difficulty], personas: Sequence[str], seed: int
) -> Cell:
    """The cell of query `number` of a run, from 0.

    Kinds are dealt like cards, so that any run of len(kinds) queries from a multiple of it on has each kind once; so
    are, within a kind, its other properties.
    """
    kind = dealt(kinds, number, seed, "kind")
    cells = list(product(LENGTHS[kind], difficulties, personas))
    return Cell(kind, *dealt(cells, number // len(kinds), seed, "cell", kind))
