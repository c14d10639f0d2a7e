"""Texts and metadata of an index: an Arrow file that is mapped into memory, so that only what is shown is read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import orjson
import pyarrow as pa

from codiemb.data.documents import Document
from codiemb.search.finders import SearchIndexError

TEXTS_FILE = "documents.arrow"

# Documents that are embedded and stored together: few at first, to show progress, then many, to keep a GPU busy.
_FIRST_WINDOW, _LAST_WINDOW = 512, 8192
_WINDOW_CHARACTERS = 1 << 24

_SCHEMA = pa.schema([("id", pa.string()), ("text", pa.large_string()), ("metadata", pa.large_string())])


def windows(documents: Iterable[Document]) -> Iterator[list[Document]]:
    """Cut a stream into lists of bounded size."""
    window: list[Document] = []
    size, characters = _FIRST_WINDOW, 0
    for document in documents:
        window.append(document)
        characters += len(document.text)
        if len(window) == size or characters >= _WINDOW_CHARACTERS:
            yield window
            window, characters = [], 0
            size = min(2 * size, _LAST_WINDOW)
    if window:
        yield window


class TextWriter:
    """Writes documents, block by block."""

    def __init__(self, path: Path) -> None:
        self._writer = pa.ipc.new_file(str(path), _SCHEMA)

    def __enter__(self) -> TextWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._writer.close()

    def write(self, documents: Sequence[Document]) -> None:
        """Append some documents; metadata becomes JSON, and what JSON has no form for, text."""
        ids, texts, metadata = zip(*documents, strict=True)
        encoded = [orjson.dumps(value, default=str, option=orjson.OPT_NON_STR_KEYS).decode() for value in metadata]
        arrays = [pa.array(ids, pa.string()), pa.array(texts, pa.large_string()), pa.array(encoded, pa.large_string())]
        self._writer.write_batch(pa.RecordBatch.from_arrays(arrays, schema=_SCHEMA))


class TextStore:
    """Reads documents by number.

    Raises:
        SearchIndexError: the file is missing or damaged.
    """

    def __init__(self, path: Path) -> None:
        try:
            self._reader: Any = pa.ipc.open_file(pa.memory_map(str(path)))
            if self._reader.schema != _SCHEMA:
                raise pa.ArrowInvalid(f"it has the columns {', '.join(self._reader.schema.names)}")
            counts = [self._reader.get_batch(index).num_rows for index in range(self._reader.num_record_batches)]
        except (pa.ArrowException, OSError) as error:
            raise SearchIndexError(f"{path}: missing or damaged ({error}). Build the index again.") from None
        self._ends = np.cumsum(counts, dtype=np.int64)

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def take(self, numbers: Iterable[int]) -> list[Document]:
        """The documents with these numbers, 0 first."""
        found = []
        for number in numbers:
            index = int(np.searchsorted(self._ends, number, side="right"))
            batch = self._reader.get_batch(index)
            row = int(number) - int(self._ends[index]) + batch.num_rows
            found += _documents(batch.slice(row, 1))
        return found

    def blocks(self) -> Iterator[list[Document]]:
        """All documents, in the blocks in which they were written."""
        for index in range(self._reader.num_record_batches):
            yield _documents(self._reader.get_batch(index))


def _documents(batch: pa.RecordBatch) -> list[Document]:
    columns = (batch.column(name).to_pylist() for name in _SCHEMA.names)
    return [Document(id_, text, orjson.loads(metadata)) for id_, text, metadata in zip(*columns, strict=True)]
