"""Gates that ask an embedding model: repeated meanings, the way back to the document, negatives that are positives."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from codiemb.curation.synthesis.gates import Findings
from codiemb.curation.synthesis.plan import Corpus
from codiemb.curation.synthesis.rows import Row
from codiemb.interface import Embedder
from codiemb.search import VectorIndex

_NEIGHBOURS = 32  # earlier queries that are looked at


class Judge:
    """An embedding model's view of the rows of `ir`, and of the corpus their documents are from."""

    def __init__(self, model: Embedder, corpus: Corpus) -> None:
        self._model = model
        texts = list(dict.fromkeys(document.text for document in corpus.documents))
        number_of = {text: number for number, text in enumerate(texts)}
        self._number = [number_of[document.text] for document in corpus.documents]
        self.documents = VectorIndex.build(unit(model.encode_passages(texts)))

    def queries(self, rows: Sequence[Row]) -> np.ndarray:
        """Unit vectors of the rows' queries, (rows, dim), each with the row's instruction."""
        vectors = np.zeros((len(rows), self.documents.dimension), np.float32)
        for instruction in dict.fromkeys(row.instruction for row in rows):
            places = [place for place, row in enumerate(rows) if row.instruction == instruction]
            texts = [rows[place].written for place in places]
            vectors[places] = unit(self._model.encode_queries(texts, instruction=instruction))
        return vectors

    def repeated(self, rows: Sequence[Row], queries: np.ndarray, threshold: float) -> Findings:
        """Rows whose query is nearly that of an earlier one that is not such a row itself."""
        if len(rows) < 2:
            return
        scores, neighbours = VectorIndex.build(queries).search(queries, _NEIGHBOURS)
        out: set[int] = set()
        for number in range(len(rows)):
            for score, other in zip(scores[number], neighbours[number].tolist(), strict=True):
                if score >= threshold and other < number and other not in out:
                    out.add(number)
                    yield number, "same meaning", f"cosine {score:.3f} to {rows[other].written!r}"
                    break

    def lost(self, rows: Sequence[Row], queries: np.ndarray, k: int) -> Findings:
        """Rows whose query does not find its document among the `k` best of the corpus."""
        if not rows:
            return
        found = self.documents.search(queries, k)[1]
        for number, row in enumerate(rows):
            own = self._number[row.document]
            if own not in found[number]:
                nearer = int((self.documents.vectors @ queries[number] > self._cosine(row, queries[number])).sum())
                yield number, "not found", f"rank {nearer + 1} of {len(self.documents)}, expected at most {k}"

    def false_negatives(self, rows: Sequence[Row], queries: np.ndarray, margin: float) -> dict[tuple[str, str], str]:
        """Written negatives, by query and text, that are not `margin` less similar to the query than its document."""
        pairs = [(number, text) for number, row in enumerate(rows) for text in row.negatives]
        if not pairs:
            return {}
        vectors = unit(self._model.encode_passages([text for _, text in pairs]))
        false: dict[tuple[str, str], str] = {}
        for (number, text), vector in zip(pairs, vectors, strict=True):
            own, other = self._cosine(rows[number], queries[number]), float(vector @ queries[number])
            if other > own - margin:
                false[rows[number].written, text] = f"cosine {other:.3f}, the document's is {own:.3f}"
        return false

    def _cosine(self, row: Row, query: np.ndarray) -> float:
        return float(self.documents.vectors[self._number[row.document]] @ query)


def unit(vectors: np.ndarray) -> np.ndarray:
    """Rows divided by their norm; a zero row stays zero."""
    norms = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return np.asarray(vectors / np.maximum(norms, np.finfo(np.float32).tiny), dtype=np.float32)
