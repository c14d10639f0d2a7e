"""Miners by words: BM25 over words of spaced scripts, and over character pairs or words of Chinese, by `bm25s`."""

from __future__ import annotations

import logging
import re
import unicodedata
from array import array
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from codiemb.curation.mining.dense import OnProgress
from codiemb.curation.mining.options import Words
from codiemb.curation.mining.pool import TextPool
from codiemb.curation.mining.queries import Queries
from codiemb.extras import require

#: Han, kana and Hangul, for a regular expression: no spaces between words, or words that take many endings.
DENSE = "\u3005\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff\U00020000-\U0003ffff"
_RUN = re.compile(f"[{DENSE}]+|[^\\W_{DENSE}]+")
_IS_DENSE = re.compile(f"[{DENSE}]")
_REPORTED = 4096  # documents between two reports of progress


def segment(text: str, cut: Callable[[str], list[str]]) -> list[str]:
    """The words of a text, whatever scripts it mixes, width and case folded.

    Args:
        cut: takes a run of Chinese, Japanese or Korean characters apart.
    """
    words: list[str] = []
    for run in _RUN.findall(unicodedata.normalize("NFKC", text).casefold()):
        words += cut(run) if _IS_DENSE.match(run) else [run]
    return words


def character_pairs(run: str) -> list[str]:
    """Every two neighbouring characters; a lone character is itself."""
    return [run[start : start + 2] for start in range(len(run) - 1)] or [run]


def cutter(words: Words) -> Callable[[str], list[str]]:
    """How runs of Chinese are cut.

    Raises:
        ModuleNotFoundError: jieba is not installed.
    """
    if words == "characters":
        return character_pairs
    jieba: Any = require("jieba", "curation")
    jieba.setLogLevel(logging.WARNING)
    return lambda run: list(jieba.cut(run))


class WordMiner:
    """Finds candidates that share rare words with a query (Lucene's BM25, k1 1.5, b 0.75).

    The index is built in memory, kept in the pool's directory, and mapped from there.
    """

    def __init__(
        self, name: str, pool: TextPool, queries: Queries, words: Words, on_progress: OnProgress | None = None
    ) -> None:
        bm25s = require("bm25s", "curation")
        logging.getLogger("bm25s").setLevel(logging.WARNING)  # it sets itself to DEBUG
        self.name = name
        self.identity = f"bm25-{words}"
        self._queries = queries
        self._cut = cutter(words)
        self._candidates = pool.counts.candidates
        directory = pool.directory / self.identity
        if not directory.is_dir():
            ids, vocabulary = self._read(pool, on_progress)
            built = bm25s.BM25(backend="numpy")
            built.index(bm25s.tokenization.Tokenized(ids=ids, vocab=vocabulary), show_progress=False)
            partial = directory.with_name(f".{directory.name}")
            built.save(partial, show_progress=False)
            partial.rename(directory)
        self._index: Any = bm25s.BM25.load(directory, mmap=True, show_progress=False, verbosity=0)

    def _read(self, pool: TextPool, on_progress: OnProgress | None) -> tuple[_WordLists, dict[str, int]]:
        vocabulary: dict[str, int] = {}
        flat, ends = array("i"), array("q", [0])
        for number, text in enumerate(pool.texts()):
            if number == self._candidates:
                break
            flat.extend(vocabulary.setdefault(word, len(vocabulary)) for word in segment(text.full, self._cut))
            ends.append(len(flat))
            done = number + 1
            if on_progress and (done % _REPORTED == 0 or done == self._candidates):
                on_progress(f"{self.name}: words", (done - 1) % _REPORTED + 1, self._candidates)
        vocabulary.setdefault("", len(vocabulary))  # the word of a text without words
        return _WordLists(flat, ends), vocabulary

    def find(self, numbers: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The `k` best candidates of these queries: scores and numbers, (queries, min(k, candidates)).

        Candidates that share no word have the number -1; of equal scores the lower number comes first.
        """
        known = self._index.vocab_dict
        asked = [
            [word for word in segment(self._queries.texts[number], self._cut) if word in known] or [""]
            for number in numbers
        ]
        k = min(k, self._candidates)
        found, scores = self._index.retrieve(asked, k=k, show_progress=False, backend_selection="numpy")
        order = np.lexsort((found, -scores), axis=1)
        scores, found = np.take_along_axis(scores, order, 1), np.take_along_axis(found, order, 1)
        return scores.astype(np.float32), np.where(scores > 0, found, -1).astype(np.int64)


class _WordLists(Sequence[list[int]]):
    """Word numbers of each text, in two arrays instead of a list for each."""

    def __init__(self, flat: array[int], ends: array[int]) -> None:
        self._flat = flat
        self._ends = ends

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, index: Any) -> Any:
        return self._flat[self._ends[index] : self._ends[index + 1]].tolist()

    def __iter__(self) -> Iterator[list[int]]:
        return (self[index] for index in range(len(self)))
