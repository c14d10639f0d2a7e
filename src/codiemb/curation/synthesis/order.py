"""Chance that is a pure function of its names: the same draw in every process, on every machine, in any order."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import lru_cache
from typing import TypeVar

T = TypeVar("T")


def ticket(*names: object) -> int:
    """A number that looks random, below 2^64; equal names give equal numbers."""
    digest = hashlib.blake2b("\x1f".join(map(str, names)).encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big")


def shuffled(items: Sequence[T], *names: object) -> list[T]:
    """The items in an order that depends on the names and on how many there are."""
    return [items[place] for place in _deck(len(items), *names)]


def dealt(items: Sequence[T], number: int, *names: object) -> T:
    """Item `number`, from 0, of an endless row of shuffled decks, each of which has every item once."""
    deck, place = divmod(number, len(items))
    return items[_deck(len(items), *names, deck)[place]]


@lru_cache(maxsize=256)
def _deck(size: int, *names: object) -> tuple[int, ...]:
    return tuple(sorted(range(size), key=lambda place: ticket(*names, place)))
