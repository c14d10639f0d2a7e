"""What all rows ask, and which texts are known to answer: read once, kept as numbers."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterable, Iterator

import numpy as np

from codiemb.curation.mining.keys import KeyIndex, key
from codiemb.curation.mining.pool import as_document
from codiemb.curation.mining.rows import Row
from codiemb.data.documents import Document
from codiemb.data.examples import TaskType, Text

#: Rows of other tasks go through as they are.
MINED_TASKS: tuple[TaskType, ...] = ("ir", "reranking")


class Queries:
    """The distinct queries of the rows that are mined, by number, 0 first.

    Args:
        instruction: of queries that have none.
    """

    def __init__(self, instruction: str) -> None:
        self.rows = self.mined_rows = 0
        self.texts: list[str] = []  # prefix and text
        self.instructions: list[str] = []
        self.keys: list[int] = []
        self._instruction = instruction
        self._numbers: dict[tuple[str, str], int] = {}
        self._digest = hashlib.blake2b(digest_size=16)
        self._asking, self._answering = array("Q"), array("Q")

    def __len__(self) -> int:
        return len(self.texts)

    def scan(self, rows: Iterable[Row], with_negatives: bool) -> Iterator[Document]:
        """Go through all rows once.

        Yields: their positives, and their negatives too if wanted, as documents to mine.
        """
        count = 0
        for row in rows:
            self.rows += 1
            self._digest.update(row.encoded())
            if row.example.task_type not in MINED_TASKS:
                continue
            self.mined_rows += 1
            number = self._add(row.example.query)
            for text in row.example.positives:
                self._asking.append(self.keys[number])
                self._answering.append(key(text.full))
            for text in (*row.example.positives, *(row.example.negatives if with_negatives else ())):
                count += 1
                yield as_document(text, str(count))
        self._index = KeyIndex(np.frombuffer(self._asking, dtype=np.uint64))
        self._known = np.frombuffer(self._answering, dtype=np.uint64)

    def _add(self, query: Text) -> int:
        place = (query.instruction or self._instruction, query.full)
        number = self._numbers.setdefault(place, len(self._numbers))
        if number == len(self.texts):
            self.instructions.append(place[0])
            self.texts.append(place[1])
            self.keys.append(key(place[1]))
        return number

    def number(self, query: Text) -> int:
        """Of a query that has been seen."""
        return self._numbers[(query.instruction or self._instruction, query.full)]

    def known(self, number: int) -> np.ndarray:
        """Keys of all positives of all rows with this query's text, distinct."""
        return np.unique(self._known[self._index.all(self.keys[number])])

    @property
    def data_digest(self) -> str:
        """Of all rows, in their order."""
        return self._digest.hexdigest()

    def digest(self) -> str:
        """Of the queries, in their order."""
        digest = hashlib.blake2b(digest_size=16)
        for pair in self._numbers:
            for part in pair:
                data = part.encode("utf-8", "surrogatepass")
                digest.update(len(data).to_bytes(8, "little") + data)
        return digest.hexdigest()
