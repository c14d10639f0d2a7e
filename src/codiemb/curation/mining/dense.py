"""Miners by meaning: a model's embeddings of all texts, computed once, and the nearest ones to each query."""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Callable, Iterable
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np

from codiemb.bulk import embed_rows
from codiemb.curation.mining.pool import TextPool
from codiemb.curation.mining.queries import Queries
from codiemb.data.text_rows import TextRow
from codiemb.embedder import LLMEmbeddingModel
from codiemb.fingerprint import fingerprint
from codiemb.prompts import Side
from codiemb.search.finders import Finder, Kind, choose_kind
from codiemb.search.vectors import VectorIndex

#: (what is being done, how many are done since the last call, of how many).
OnProgress = Callable[[str, int, int], None]

_BLOCK = 65536  # vectors at a time
_PAIRS = 8192  # of a query and a text that are scored at a time
_VECTORS_FILE = "vectors.npy"


class DenseMiner:
    """Finds the nearest candidates of a pool, and scores any of its texts.

    Vectors and index are kept in the pool's directory, and found there again by the model's fingerprint and all that
    changes its vectors. A stopped run goes on where it was.

    Args:
        name: for the report and the bar.
        root: where vectors of queries are kept.
        kind: of the index; `auto` chooses by the number of candidates.
    """

    def __init__(
        self,
        name: str,
        model: LLMEmbeddingModel,
        pool: TextPool,
        queries: Queries,
        root: Path,
        *,
        kind: Kind | Literal["auto"] = "auto",
        on_progress: OnProgress | None = None,
    ) -> None:
        self.name = name
        known = fingerprint(model)
        self.identity = _identity(model, known)

        def documents() -> Iterable[tuple[str, str]]:
            return ((text.instruction, text.full) for text in pool.texts())

        def asked() -> Iterable[tuple[str, str]]:
            return zip(queries.instructions, queries.texts, strict=True)

        embedding = _Embedding(model, known, f"{name}: documents", len(pool), "document", on_progress)
        self.vectors = embedding.vectors(documents, pool.directory / self.identity)
        embedding = _Embedding(model, known, f"{name}: queries", len(queries), "query", on_progress)
        self.queries = embedding.vectors(asked, root / f"queries-{queries.digest()}" / self.identity)
        candidates = self.vectors[: pool.counts.candidates]
        chosen = choose_kind(len(candidates)) if kind == "auto" else kind
        self.index = VectorIndex(candidates, _finder(candidates, chosen, pool.directory / self.identity / chosen))

    def find(self, numbers: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The `k` nearest candidates of these queries, best first: cosines and numbers, each (queries, k)."""
        return self.index.search(np.asarray(self.queries[numbers]), k)

    def scores(self, query_numbers: np.ndarray, numbers: np.ndarray) -> np.ndarray:
        """Cosines of pairs, (pairs,) float64."""
        order = np.argsort(numbers, kind="stable")  # a mapped file is read in its order
        found = np.empty(len(numbers), dtype=np.float64)
        for start in range(0, len(order), _PAIRS):
            block = order[start : start + _PAIRS]
            documents, queries = self.vectors[numbers[block]], self.queries[query_numbers[block]]
            found[block] = np.einsum("nd,nd->n", documents, queries, dtype=np.float64)
        return found


class _Embedding:
    """Embeds texts of one side, and keeps the vectors."""

    def __init__(
        self,
        model: LLMEmbeddingModel,
        known_fingerprint: str,
        stage: str,
        count: int,
        side: Side,
        on_progress: OnProgress | None,
    ) -> None:
        self._model = model
        self._fingerprint = known_fingerprint
        self._stage = stage
        self._count = count
        self._side: Side = side
        self._on_progress = on_progress

    def vectors(self, texts: Callable[[], Iterable[tuple[str, str]]], directory: Path) -> np.ndarray:
        """Unit vectors of (instruction, text), (texts, dim) float32, mapped into memory from `directory`."""
        path = directory / _VECTORS_FILE
        if not path.is_file():
            directory.mkdir(parents=True, exist_ok=True)
            self._write(texts, path)
        elif self._on_progress:
            self._on_progress(self._stage, self._count, self._count)
        return np.load(path, mmap_mode="r").view(np.ndarray)

    def _write(self, texts: Callable[[], Iterable[tuple[str, str]]], path: Path) -> None:
        groups: dict[str, tuple[str, array[int]]] = {}  # by prompt: an instruction that leads to it, and its texts
        prompt = lru_cache(maxsize=4096)(self._model.prompt_for)
        for number, (instruction, _) in enumerate(texts()):
            groups.setdefault(prompt(self._side, instruction), (instruction, array("q")))[1].append(number)
        parts: list[Path] = []
        partial = path.with_name(f".{path.name}")
        whole: np.memmap | None = None
        for instruction, numbers in groups.values():
            part = path.with_name(f"prompt-{len(parts)}.npy")
            parts.append(part)
            if not part.is_file():
                wanted = np.zeros(self._count, dtype=bool)
                wanted[numbers] = True
                rows = (TextRow(None, text) for (_, text), take in zip(texts(), wanted, strict=True) if take)
                embed_rows(
                    self._model,
                    rows,
                    part,
                    side=self._side,
                    instruction=instruction,
                    known_fingerprint=self._fingerprint,
                    on_progress=self._advance,
                )
            elif self._on_progress:
                self._on_progress(self._stage, len(numbers), self._count)
            raw = np.load(part, mmap_mode="r")
            if whole is None:
                shape = (self._count, raw.shape[1])
                whole = np.lib.format.open_memmap(partial, mode="w+", dtype=np.float32, shape=shape)
            for start in range(0, len(numbers), _BLOCK):
                block = np.asarray(raw[start : start + _BLOCK], dtype=np.float32)
                lengths = np.linalg.norm(block, axis=1, keepdims=True)
                whole[numbers[start : start + _BLOCK]] = block / np.maximum(lengths, np.finfo(np.float32).tiny)
        assert whole is not None  # there is a text: readers refuse empty files
        whole.flush()
        partial.replace(path)
        for part in parts:
            part.unlink()

    def _advance(self, rows: int, tokens: int) -> None:
        if self._on_progress:
            self._on_progress(self._stage, rows, self._count)


def _identity(model: LLMEmbeddingModel, known_fingerprint: str) -> str:
    """16 hex digits of all that a model's vectors depend on."""
    settings = {
        "fingerprint": known_fingerprint,
        "max_length": model.embedding_pass.max_length,
        "compute": str(model.embedding_pass.precision),
        "dimension": min(model.truncate_dim or 2**31, model.embedding_pass.dimension),
    }
    return hashlib.blake2b(json.dumps(settings, sort_keys=True).encode(), digest_size=8).hexdigest()


def _finder(vectors: np.ndarray, kind: Kind, directory: Path) -> Finder | None:
    if kind == "flat":
        return None
    known = Finder.read(directory, vectors.shape) if directory.is_dir() else None
    if known is None:
        known = Finder.build(vectors, kind)
        partial = directory.with_name(f".{directory.name}")  # a kill leaves no half of an index under its name
        partial.mkdir(exist_ok=True)
        known.write(partial)
        partial.rename(directory)
    return known
