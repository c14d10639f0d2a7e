"""FAISS indexes that propose candidates: an 8-bit code of every vector, in a graph (HNSW) or in lists (IVF)."""

from __future__ import annotations

import errno
import math
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from codiemb.extras import require

Kind = Literal["flat", "hnsw", "ivf"]
KINDS: tuple[Kind, ...] = get_args(Kind)

FLAT_LIMIT = 100_000
"""Vectors up to which exact search is chosen: about 5 ms a query with 384 dimensions."""
HNSW_LIMIT = 1_000_000
"""Vectors up to which HNSW is chosen: its links take 270 bytes a vector, and lists are built faster."""

_HNSW_LINKS = 32
_HNSW_BUILD_WIDTH = 80
_HNSW_SEARCH_WIDTH = 128
_IVF_LISTS_PER_ROOT = 4  # lists: 4 times the square root of the number of vectors
_IVF_PROBED = 1 / 16  # share of the lists that is searched
_IVF_MIN_PROBED = 16
_IVF_TRAINING = 64  # vectors for each list
_CODE_TRAINING = 65536  # vectors that the range of the codes is taken from
_ADDED = 65536  # vectors at a time


class SearchIndexError(ValueError):
    """An index that cannot be used or made; the message says what to do."""


def choose_kind(count: int) -> Kind:
    """The kind for `count` vectors where none is asked for."""
    return "flat" if count <= FLAT_LIMIT else "hnsw" if count <= HNSW_LIMIT else "ivf"


class Finder:
    """Numbers of vectors that are probably near to others, by inner product."""

    def __init__(self, kind: Kind, index: Any) -> None:
        self.kind = kind
        self.index = index

    @classmethod
    def build(cls, vectors: np.ndarray, kind: Literal["hnsw", "ivf"]) -> Finder:
        """Index vectors (n, dim) float32; they may be memory-mapped."""
        faiss = require("faiss", "search")
        count, dimension = vectors.shape
        if kind == "hnsw":
            index = faiss.index_factory(dimension, f"HNSW{_HNSW_LINKS}_SQ8", faiss.METRIC_INNER_PRODUCT)
            index.hnsw.efConstruction = _HNSW_BUILD_WIDTH
            sample = min(count, _CODE_TRAINING)
        else:
            lists = min(int(_IVF_LISTS_PER_ROOT * math.sqrt(count)), max(count // 39, 1))  # 39 as FAISS advises
            index = faiss.index_factory(dimension, f"IVF{lists},SQ8", faiss.METRIC_INNER_PRODUCT)
            index.nprobe = min(max(_IVF_MIN_PROBED, int(lists * _IVF_PROBED)), lists)
            sample = min(count, max(_IVF_TRAINING * lists, _CODE_TRAINING))
        index.train(vectors[np.sort(np.random.default_rng(0).choice(count, sample, replace=False))])
        for start in range(0, count, _ADDED):
            index.add(vectors[start : start + _ADDED])
        return cls(kind, index)

    def find(self, queries: np.ndarray, count: int) -> np.ndarray:
        """Up to `count` numbers for each query, (queries, count); -1 where fewer were found."""
        if self.kind == "hnsw":
            self.index.hnsw.efSearch = max(_HNSW_SEARCH_WIDTH, count)
        _, numbers = self.index.search(queries, count)
        return numbers

    def write(self, directory: Path) -> None:
        """As `hnsw.faiss` or `ivf.faiss`.

        Raises:
            OSError: it cannot be written.
        """
        path = directory / f"{self.kind}.faiss"
        try:
            require("faiss", "search").write_index(self.index, str(path))
        except RuntimeError as error:
            raise OSError(errno.EIO, f"cannot be written ({_first_line(error)})", str(path)) from None

    @classmethod
    def read(cls, directory: Path, shape: tuple[int, int]) -> Finder | None:
        """What `write` wrote for vectors of this shape, or None if there is nothing.

        Raises:
            SearchIndexError: it is damaged, or belongs to other vectors.
        """
        found = [kind for kind in KINDS if (directory / f"{kind}.faiss").is_file()]
        if not found:
            return None
        path = directory / f"{found[0]}.faiss"
        try:
            index = require("faiss", "search").read_index(str(path))
        except RuntimeError as error:
            raise SearchIndexError(f"{path}: damaged ({_first_line(error)}). Build the index again.") from None
        if (index.ntotal, index.d) != shape:
            raise SearchIndexError(
                f"{path}: holds {index.ntotal} vectors of dimension {index.d}, but there are vectors of shape {shape}. "
                "Build the index again."
            )
        return cls(found[0], index)


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
