"""Texts as sets of character n-grams: what two texts that differ in a few places still have in common.

Every character of a normalised text begins one shingle: of 2 characters where it is Chinese, Japanese or Korean, whose
characters carry as much as half a word, and of 4 elsewhere. The last ones are cut short by the end of the text, so that
a text of one character has a shingle too. The rule looks at nothing but the characters themselves: an edit changes the
shingles that contain it and no others.
"""

from __future__ import annotations

import re
import sys
import unicodedata
from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from codiemb.extras import require

Hashes: TypeAlias = "np.ndarray[tuple[int], np.dtype[np.uint64]]"
Offsets: TypeAlias = "np.ndarray[tuple[int], np.dtype[np.int64]]"

#: Characters of a shingle that begins with a Chinese, Japanese or Korean character, and with any other.
DENSE_SIZE, SIZE = 2, 4

_DENSE = ((0x3040, 0x30FF), (0x3400, 0x9FFF), (0xAC00, 0xD7AF), (0xF900, 0xFAFF), (0x20000, 0x3FFFF))
_IGNORED_CATEGORIES = ("P", "Z", "C", "Sk")  # punctuation, separators, control and format characters, lone accents
_BASIC_END = 0x10000  # of the characters that Unicode began with
_FACTOR = np.uint64(0x9E3779B97F4A7C15)


def normalise(text: str, *, simplify: bool = False) -> str:
    """A text without what does not change its meaning: width, case, punctuation and white space.

    That is Unicode's NFKC, case folded, without punctuation, separators, control and format characters; letters,
    digits, marks and symbols (`+`, `€`) stay. A text of punctuation alone keeps it.

    Args:
        simplify: also turn traditional Chinese characters into simplified ones, with OpenCC.
    Raises:
        ModuleNotFoundError: `simplify` without OpenCC.
    """
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text)
    text = text.casefold()
    text = _without_ignored(text) or "".join(text.split())
    if simplify and not text.isascii():  # last, so that texts that are equal without it are equal with it
        text = _simplifier().convert(text.encode(errors="replace").decode())  # OpenCC reads no lone surrogates
    return text


class ShingleBatch(NamedTuple):
    """The shingles of several texts, one after the other, not made distinct.

    Attributes:
        hashes: (shingles,) uint64; those of text i are `hashes[offsets[i]:offsets[i + 1]]`.
        offsets: (texts + 1,) int64.
    """

    hashes: Hashes
    offsets: Offsets

    def of(self, index: int) -> Hashes:
        """The distinct shingles of one text, in order."""
        return np.unique(self.hashes[self.offsets[index] : self.offsets[index + 1]])


def shingle_batch(normalised: Sequence[str]) -> ShingleBatch:
    """Shingles of texts that `normalise` has been through; all texts at once, 10 million characters a second."""
    lengths = np.fromiter(map(len, normalised), np.int64, len(normalised))
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    codes = np.frombuffer("".join(normalised).encode("utf-32-le", "surrogatepass"), np.uint32).astype(np.uint64)
    left = np.repeat(offsets[1:], lengths) - np.arange(len(codes))  # characters up to the end of the text
    dense = np.zeros(len(codes), bool)
    for first, last in _DENSE:
        dense |= (codes >= first) & (codes <= last)
    hashes = _mixed(codes + np.uint64(1))
    for place in range(1, SIZE):
        following = np.zeros_like(codes)
        following[:-place] = codes[place:] + np.uint64(1)
        inside = left > place
        if place >= DENSE_SIZE:
            inside &= ~dense
        hashes = np.where(inside, _mixed(hashes * _FACTOR + following), hashes)
    return ShingleBatch(hashes, offsets)


def shingles(text: str, *, simplify: bool = False) -> frozenset[int]:
    """The distinct shingles of one text, normalised first, as hashes of 64 bits that are the same in every process."""
    return frozenset(shingle_batch([normalise(text, simplify=simplify)]).hashes.tolist())


def jaccard(a: frozenset[int], b: frozenset[int]) -> float:
    """Shared shingles as a part of all of both, 0 to 1; 0 where both are empty."""
    shared = len(a & b)
    return shared / (len(a) + len(b) - shared) if shared else 0.0


def containment(part: frozenset[int], whole: frozenset[int]) -> float:
    """How much of `part` is in `whole`, 0 to 1; 0 where `part` is empty."""
    return len(part & whole) / len(part) if part else 0.0


def _mixed(values: Hashes) -> Hashes:
    """The finalizer of MurmurHash3: every bit of the input changes half of the bits."""
    values = (values ^ (values >> np.uint64(33))) * np.uint64(0xFF51AFD7ED558CCD)
    values = (values ^ (values >> np.uint64(33))) * np.uint64(0xC4CEB9FE1A85EC53)
    return values ^ (values >> np.uint64(33))


def _without_ignored(text: str) -> str:
    text = _ignored(0, _BASIC_END).sub("", text)
    # Apart, since one set of both would be searched range by range instead of looked up.
    return _ignored(_BASIC_END, sys.maxunicode + 1).sub("", text) if max(text, default="") > "\uffff" else text


@cache
def _ignored(start: int, end: int) -> re.Pattern[str]:
    """The characters from `start` to before `end` that `normalise` leaves out."""
    ranges: list[list[int]] = []
    for code in range(start, end):
        if chr(code) == "~" or unicodedata.category(chr(code)).startswith(_IGNORED_CATEGORIES):
            if ranges and ranges[-1][1] == code - 1:
                ranges[-1][1] = code
            else:
                ranges.append([code, code])
    return re.compile("[" + "".join(f"\\U{first:08x}-\\U{last:08x}" for first, last in ranges) + "]+")


@cache
def _simplifier() -> Any:
    return require("opencc", "curation").OpenCC("t2s")
