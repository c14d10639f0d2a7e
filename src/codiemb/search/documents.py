"""Documents with their vectors in one directory that describes itself and is there whole or not at all."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from time import perf_counter
from typing import Any, Literal, NamedTuple

import numpy as np

from codiemb.data.documents import Document
from codiemb.extras import require
from codiemb.interface import Embedder
from codiemb.search.finders import Kind, SearchIndexError
from codiemb.search.manifest import MANIFEST_FILE, Manifest, Metric, new_directory, read_manifest
from codiemb.search.store import TEXTS_FILE, TextStore, TextWriter, windows
from codiemb.search.vectors import VectorIndex

logger = logging.getLogger(__name__)

_PACKAGES = ("codiemb", "sentence-transformers", "transformers", "torch", "numpy")


class Hit(NamedTuple):
    """A document that was found; `score` is the metric's."""

    id: str
    score: float
    text: str
    metadata: dict[str, Any]


class Answers(NamedTuple):
    """Hits of each query, best first, and how long it took in all: seconds to embed the queries and to search."""

    hits: list[list[Hit]]
    embed_seconds: float
    search_seconds: float


class DocumentIndex:
    """Documents to search by meaning. Make one with `build`, open it with `load`."""

    def __init__(self, directory: Path, manifest: Manifest, vectors: VectorIndex, texts: TextStore) -> None:
        self.directory = directory
        self.manifest = manifest
        self.vectors = vectors
        self.texts = texts

    def __len__(self) -> int:
        return self.manifest.documents

    # -- making ---------------------------------------------------------------------------------------------------

    @classmethod
    def build(
        cls,
        documents: Iterable[Document],
        embedder: Embedder,
        directory: Path,
        *,
        model: str,
        fingerprint: str,
        kind: Kind | Literal["auto"] = "auto",
        metric: Metric = "cosine",
        template: str | None = None,
        instruction: str | None = None,
        max_length: int | None = None,
        overwrite: bool = False,
        on_progress: Callable[[int], None] | None = None,
    ) -> DocumentIndex:
        """Embed documents as they come and write their index, which is there under its name only when it is whole.

        Args:
            documents: read once; memory grows with their number only by their ids, about 100 bytes each.
            directory: of the index; may not exist, unless `overwrite` and it is an index.
            model, fingerprint: the embedder's name, and what tells its vectors from others.
            template: that the embedder was loaded with instead of its own, by name; noted.
            instruction: of the task, a text or a task's name, noted for the queries too; None takes the model's own
                prompt.
            max_length: tokens that the embedder cuts documents to; noted, for those that are added later.
            on_progress: called with the number of documents just embedded.
        Raises:
            SearchIndexError: no documents, an id that is there twice, or a directory that is in the way.
            OSError: it cannot be written, as on a full disk; nothing is left then.
        """
        embedded = _embedded(documents, embedder, metric, instruction, on_progress)
        about = {
            "model": model,
            "fingerprint": fingerprint,
            "metric": metric,
            "template": template,
            "instruction": instruction,
            "max_length": max_length,
        }
        return cls._write(embedded, directory, about, kind, overwrite)

    def add(
        self,
        documents: Iterable[Document],
        embedder: Embedder,
        *,
        fingerprint: str,
        kind: Kind | Literal["auto"] | None = None,
        on_progress: Callable[[int], None] | None = None,
    ) -> DocumentIndex:
        """A new index of these documents behind the present ones, in the place of this one.

        Only the new documents are embedded; vectors and texts of the others are copied, and a graph or lists are
        built anew. `kind` None keeps the present one, though an `auto` choice would change it.

        Raises:
            SearchIndexError: as `build`, or the index was made by another model.
        """
        self.check(fingerprint)
        kept = {"model", "fingerprint", "metric", "template", "instruction", "max_length"}
        about = self.manifest.model_dump(include=kept)
        embedded = _embedded(documents, embedder, self.manifest.metric, self.manifest.instruction, on_progress)
        return self._write(chain(self._stored(), embedded), self.directory, about, kind or self.manifest.kind, True)

    @classmethod
    def _write(
        cls,
        embedded: Iterable[tuple[Sequence[Document], np.ndarray]],
        directory: Path,
        about: dict[str, Any],
        kind: Kind | Literal["auto"],
        overwrite: bool,
    ) -> DocumentIndex:
        faiss = require("faiss", "search")  # rather now than after hours of embedding
        with new_directory(directory, overwrite) as partial:
            with TextWriter(partial / TEXTS_FILE) as writer:
                vectors = VectorIndex.build(_written(embedded, writer), kind=kind, directory=partial)
            files = {path.name: path.stat().st_size for path in sorted(partial.iterdir())}
            manifest = Manifest(
                **about,
                documents=len(vectors),
                dimension=vectors.dimension,
                kind=vectors.kind,
                files=files,
                versions={**{name: version(name) for name in _PACKAGES}, "faiss": faiss.__version__},
            )
            manifest.write(partial)
        return cls.load(directory)

    def _stored(self) -> Iterator[tuple[Sequence[Document], np.ndarray]]:
        start = 0
        for block in self.texts.blocks():
            yield block, self.vectors.vectors[start : start + len(block)]
            start += len(block)

    # -- using ----------------------------------------------------------------------------------------------------

    @classmethod
    def load(cls, directory: Path) -> DocumentIndex:
        """Open an index; vectors and texts stay on disk until they are needed.

        Raises:
            SearchIndexError: not an index, or one that is damaged or of a later version.
        """
        manifest = read_manifest(directory)
        for name, size in manifest.files.items():
            path = directory / name
            found = path.stat().st_size if path.is_file() else None
            if found != size:
                state = "is missing" if found is None else f"has {found} bytes, expected {size}"
                raise SearchIndexError(f"{path}: {state}. The index is damaged; build it again.")
        vectors = VectorIndex.load(directory)
        texts = TextStore(directory / TEXTS_FILE)
        expected = (manifest.documents, manifest.dimension, manifest.kind)
        if (len(vectors), vectors.dimension, vectors.kind) != expected or len(texts) != len(vectors):
            raise SearchIndexError(
                f"{directory}: {len(vectors)} vectors of dimension {vectors.dimension} ({vectors.kind}) and "
                f"{len(texts)} texts, but {MANIFEST_FILE} says {expected}. The index is damaged; build it again."
            )
        return cls(directory, manifest, vectors, texts)

    def check(self, fingerprint: str, model: str = "this model") -> None:
        """Refuse a model whose vectors do not belong here.

        Raises:
            SearchIndexError: naming both models.
        """
        if fingerprint != self.manifest.fingerprint:
            raise SearchIndexError(
                f"{self.directory}: was made with {self.manifest.model} (fingerprint {self.manifest.fingerprint}), "
                f"but {model} has fingerprint {fingerprint}: weights, tokenizer, pooling or prompts differ. "
                "Search with the model that made the index, or build it again."
            )

    def search(
        self, queries: str | Sequence[str], embedder: Embedder, k: int = 10, *, instruction: str | None = None
    ) -> Answers:
        """The `k` nearest documents of each query, or all if there are fewer; of equal scores the earlier first.

        A single text is one query, whose hits are `hits[0]`.

        The caller sees to it (`check`) that the embedder is the one of the index.

        Args:
            instruction: None takes that of the index.

        Raises:
            SearchIndexError: a blank query, or vectors of another dimension than the index has.
        """
        queries = [queries] if isinstance(queries, str) else list(queries)
        for number, query in enumerate(queries, 1):
            if not query.strip():
                raise SearchIndexError(f"Query {number} of {len(queries)} is blank, expected a text to search for.")
        task = instruction or self.manifest.instruction
        start = perf_counter()
        vectors = _comparable(embedder.encode_queries(queries, instruction=task), self.manifest.metric)
        if vectors.shape[1] != self.vectors.dimension:
            raise SearchIndexError(
                f"{self.directory}: holds vectors of dimension {self.vectors.dimension}, but the model gives "
                f"{vectors.shape[1]}. Load it with the dimension of the index (truncate_dim), or build it again."
            )
        embedded = perf_counter()
        scores, ids = self.vectors.search(vectors, k)
        hits = [
            [
                Hit(document.id, float(score), document.text, document.metadata)
                for document, score in zip(self.texts.take(row), row_scores, strict=True)
            ]
            for row, row_scores in zip(ids, scores, strict=True)
        ]
        return Answers(hits, embedded - start, perf_counter() - embedded)


def _embedded(
    documents: Iterable[Document],
    embedder: Embedder,
    metric: Metric,
    instruction: str | None,
    on_progress: Callable[[int], None] | None,
) -> Iterator[tuple[Sequence[Document], np.ndarray]]:
    blank = 0
    for window in windows(documents):
        texts = [document.text for document in window]
        blank += sum(not text.strip() for text in texts)
        vectors = _comparable(embedder.encode_passages(texts, instruction=instruction), metric)
        if on_progress:
            on_progress(len(window))
        yield window, vectors
    if blank:
        logger.warning("%d documents are blank; they are in the index, and can be found.", blank)


def _comparable(vectors: np.ndarray, metric: Metric) -> np.ndarray:
    """Vectors whose inner product is the metric."""
    vectors = np.asarray(vectors, dtype=np.float32)
    if metric == "dot":
        return vectors
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), np.finfo(np.float32).tiny)


def _written(embedded: Iterable[tuple[Sequence[Document], np.ndarray]], writer: TextWriter) -> Iterator[np.ndarray]:
    """Pass vectors on after their texts are written."""
    seen: set[str] = set()
    count = 0
    for documents, vectors in embedded:
        for document in documents:
            count += 1
            if document.id in seen:
                raise SearchIndexError(
                    f"Document {count} has the id {document.id!r}, which an earlier one has. Ids must differ."
                )
            seen.add(document.id)
        writer.write(documents)
        yield vectors
