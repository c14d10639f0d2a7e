"""Nearest vectors by inner product: exact, or through a FAISS index that finds candidates.

The float32 vectors are the index: one `.npy` file that is mapped into memory, so that memory does not grow with the
corpus. The approximate kinds add a FAISS index of the vectors in 8-bit codes (one byte a dimension) that proposes
candidates. All scores are then computed from the float32 vectors in float64, so that a score depends on its two vectors
alone and not on the kind, the batch, the number of threads or the device, and equal scores rank by id.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from codiemb.extras import require
from codiemb.search.finders import Finder, Kind, SearchIndexError, choose_kind

VECTORS_FILE = "vectors.npy"

_BLOCK_VALUES = 1 << 26  # float32 values held at a time: 256 MB
_FEW_QUERIES = 16  # below, FAISS is faster than a matrix product, and a GPU not worth the transfer
_SLACK = 16  # candidates beyond k, so that ties at the end rarely need a second search


class VectorIndex:
    """Vectors by number, 0 first, and the nearest ones to others.

    Attributes:
        vectors: (n, dim) float32, memory-mapped if they come from a directory.
        kind: `flat` is exact; `hnsw` and `ivf` may miss neighbours, but never give a wrong score.
        device: where exact search over many queries runs; the first CUDA device if there is one.
    """

    def __init__(self, vectors: np.ndarray, finder: Finder | None = None) -> None:
        self.vectors = vectors
        self.kind: Kind = finder.kind if finder else "flat"
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._finder = finder

    def __len__(self) -> int:
        return len(self.vectors)

    @property
    def dimension(self) -> int:
        """Of each vector."""
        return int(self.vectors.shape[1])

    # -- making ---------------------------------------------------------------------------------------------------

    @classmethod
    def build(
        cls,
        blocks: np.ndarray | Iterable[np.ndarray],
        *,
        kind: Kind | Literal["auto"] = "auto",
        directory: Path | None = None,
    ) -> VectorIndex:
        """Index vectors that come in blocks.

        Args:
            blocks: each (any, dim), finite; they are stored as float32.
            kind: `auto` chooses by the number of vectors, see `choose_kind`.
            directory: an existing one that takes the files, so that `load` finds them; in memory if None.
        Raises:
            SearchIndexError: no vectors, blocks that do not fit together, or values that are not finite.
        """
        checked = _checked([blocks] if isinstance(blocks, np.ndarray) else blocks)
        if directory is None:
            vectors = np.concatenate(list(checked) or [np.zeros((0, 0), np.float32)])
        else:
            vectors = _stored(checked, directory / VECTORS_FILE)
        if not len(vectors):
            raise SearchIndexError("There are no vectors to index.")
        chosen = choose_kind(len(vectors)) if kind == "auto" else kind
        finder = None if chosen == "flat" else Finder.build(vectors, chosen)
        if directory is not None and finder:
            finder.write(directory)
        return cls(vectors, finder)

    def save(self, directory: Path) -> None:
        """Write `vectors.npy`, and `hnsw.faiss` or `ivf.faiss`, into an existing directory."""
        np.save(directory / VECTORS_FILE, self.vectors)
        if self._finder:
            self._finder.write(directory)

    @classmethod
    def load(cls, directory: Path) -> VectorIndex:
        """Open what `build` or `save` wrote.

        Raises:
            SearchIndexError: a file is missing or damaged.
        """
        require("faiss", "search")
        path = directory / VECTORS_FILE
        try:
            vectors = np.load(path, mmap_mode="r").view(np.ndarray)
        except (OSError, ValueError, EOFError) as error:
            raise SearchIndexError(f"{path}: missing or damaged ({error}). Build the index again.") from None
        if vectors.ndim != 2 or vectors.dtype != np.float32:
            raise SearchIndexError(f"{path}: got {vectors.dtype} of shape {vectors.shape}, expected float32 (n, dim).")
        return cls(vectors, Finder.read(directory, vectors.shape))

    # -- searching ------------------------------------------------------------------------------------------------

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The `k` nearest vectors of each query, best first, of equal ones the lower id first.

        Args:
            queries: (queries, dim); give many at once where there are many.
            k: at least 1; with more than there are vectors, all of them are returned.
        Returns: scores float32 and ids int64, both (queries, min(k, n)).
        Raises:
            SearchIndexError: queries of another dimension, or values that are not finite.
        """
        queries = _finite(np.asarray(queries))
        if queries.ndim != 2 or queries.shape[1] != self.dimension:
            raise SearchIndexError(f"Queries have shape {queries.shape}, expected (any, {self.dimension}).")
        if k < 1:
            raise ValueError(f"k={k}, expected at least 1.")
        k = min(k, len(self))
        scores = np.empty((len(queries), k), dtype=np.float32)
        ids = np.empty((len(queries), k), dtype=np.int64)
        rows = np.arange(len(queries))
        if self._finder and len(queries):
            rows = self._search_approximately(self._finder, queries, scores, ids)
        self._search_exactly(queries, rows, scores, ids)
        return scores, ids

    def _search_approximately(
        self, finder: Finder, queries: np.ndarray, scores: np.ndarray, ids: np.ndarray
    ) -> np.ndarray:
        """Fill the rows of `scores` and `ids`, and return those for which fewer than k candidates were found."""
        k = ids.shape[1]
        short = []
        for row, numbers in enumerate(finder.find(queries, min(2 * k + 2 * _SLACK, len(self)))):
            candidates = numbers[numbers >= 0]
            if len(candidates) < k:
                short.append(row)
            else:
                scores[row], ids[row], _ = self._rank(queries[row], candidates, k)
        return np.array(short, dtype=np.int64)

    def _search_exactly(self, queries: np.ndarray, rows: np.ndarray, scores: np.ndarray, ids: np.ndarray) -> None:
        """Fill these rows of `scores` and `ids`.

        Float32 finds the candidates. A row is done when no vector beyond them can belong to the first k; with many
        equal vectors that takes more candidates.
        """
        k = ids.shape[1]
        count = k + _SLACK
        while len(rows):
            count = min(count, len(self))
            found_scores, found = self._candidates(queries[rows], count)
            open_rows = []
            for row, approximate, candidates in zip(rows, found_scores, found, strict=True):
                scores[row], ids[row], exact = self._rank(queries[row], candidates, k)
                error = float(np.abs(exact - approximate).max())  # of float32, or of what a GPU makes of it
                last = float(np.partition(exact, count - k)[count - k])  # the k-th best
                if count < len(self) and last <= approximate.min() + 4 * error:
                    open_rows.append(row)
            rows = np.array(open_rows, dtype=np.int64)
            count *= 4

    def _candidates(self, queries: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
        """The `count` best of all vectors by float32 scores, in no order: scores and ids (queries, count)."""
        rows = max(_BLOCK_VALUES // self.dimension, 1)
        best_scores = np.empty((len(queries), 0), dtype=np.float32)
        best = np.empty((len(queries), 0), dtype=np.int64)
        for start in range(0, len(self), rows):
            block = self.vectors[start : start + rows]
            scores, ids = _nearest(queries, block, min(count, len(block)), self.device)
            best_scores = np.concatenate([best_scores, scores], axis=1)
            best = np.concatenate([best, ids + start], axis=1)
            if best.shape[1] > count:
                kept = np.argpartition(best_scores, -count, axis=1)[:, -count:]
                best_scores = np.take_along_axis(best_scores, kept, axis=1)
                best = np.take_along_axis(best, kept, axis=1)
        return best_scores, best

    def _rank(self, query: np.ndarray, candidates: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The k best candidates, their scores first, and the float64 scores of all candidates in their order."""
        wide = query.astype(np.float64)
        step = max(_BLOCK_VALUES // (2 * self.dimension), 1)
        # einsum, not BLAS: each row is summed in the same way wherever it stands, so equal vectors have equal scores.
        exact = np.concatenate(
            [
                np.einsum("nd,d->n", self.vectors[candidates[start : start + step]].astype(np.float64), wide)
                for start in range(0, len(candidates), step)
            ]
        )
        order = np.lexsort((candidates, -exact))[:k]
        return exact[order].astype(np.float32), candidates[order], exact


def _nearest(queries: np.ndarray, block: np.ndarray, count: int, device: torch.device) -> tuple[np.ndarray, np.ndarray]:
    """Scores and row numbers of the `count` rows of `block` with the largest inner products, float32."""
    if len(queries) < _FEW_QUERIES:
        faiss = require("faiss", "search")
        scores, ids = faiss.knn(queries, block, count, metric=faiss.METRIC_INNER_PRODUCT)
        return scores, ids
    with warnings.catch_warnings():  # that a mapped file cannot be written to: nobody will
        warnings.simplefilter("ignore", UserWarning)
        columns = torch.from_numpy(block).to(device).T
    rows = max(_BLOCK_VALUES // len(block), 1)
    parts = [
        (torch.from_numpy(queries[start : start + rows]).to(device) @ columns).topk(count, sorted=False)
        for start in range(0, len(queries), rows)
    ]
    return (
        torch.cat([part.values for part in parts]).cpu().numpy(),
        torch.cat([part.indices for part in parts]).cpu().numpy(),
    )


def _finite(block: np.ndarray) -> np.ndarray:
    block = np.ascontiguousarray(block, dtype=np.float32)
    if not np.isfinite(block).all():
        raise SearchIndexError("A vector has values that are not finite. Embed in float32 (compute='fp32').")
    return block


def _checked(blocks: Iterable[np.ndarray]) -> Iterable[np.ndarray]:
    dimension = None
    for block in blocks:
        if block.ndim != 2 or block.shape[1] != (dimension or block.shape[1]) or not block.shape[1]:
            raise SearchIndexError(f"A block of vectors has shape {block.shape}, expected (any, {dimension or 'dim'}).")
        dimension = block.shape[1]
        yield _finite(block)


def _stored(blocks: Iterable[np.ndarray], path: Path) -> np.ndarray:
    """Write blocks of rows as one `.npy` file and map it into memory."""
    header: dict[str, Any] = {"descr": "<f4", "fortran_order": False}
    shape = (0, 0)
    with path.open("w+b") as file:
        for block in blocks:
            if not shape[1]:
                np.lib.format.write_array_header_1_0(file, {**header, "shape": (0, block.shape[1])})
            file.write(block.astype("<f4", copy=False).data)
            shape = shape[0] + len(block), block.shape[1]
        if not shape[0]:
            return np.zeros(shape, dtype=np.float32)
        file.seek(0)
        # As long as before: numpy leaves room for the number of rows to grow.
        np.lib.format.write_array_header_1_0(file, {**header, "shape": shape})
    return np.load(path, mmap_mode="r").view(np.ndarray)
