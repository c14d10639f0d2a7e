"""Rows of text to embed, from files of any length or standard input, each with its line and its id."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from codiemb.data.documents import ID_FIELDS, Line, plain_string, take_id
from codiemb.data.examples import DataError, Problem, RowError
from codiemb.data.sources import RawRow, open_bytes

InputKind = Literal["text", "jsonl", "parquet"]

STANDARD_INPUT = "-"

_NOT_LINES = (".json", ".csv", ".tsv")  # tables whose lines are no texts
_PARQUET_ROWS = 512


class TextRow(NamedTuple):
    """A text; `id` is None where its file has no ids."""

    id: str | None
    text: str


def input_kind(source: str) -> InputKind:
    """What a name says a file holds: `.parquet`, `.jsonl` and `.jsonl.gz`, else lines of text.

    Raises:
        DataError: a name that says it holds something else.
    """
    name = source.removesuffix(".gz")
    if name.endswith(_NOT_LINES):
        raise DataError(
            f"{source}: not a kind that is read here; expected lines of text, .jsonl or .parquet. "
            "Convert it, or say what its lines are with --input-format."
        )
    return "parquet" if name.endswith(".parquet") else "jsonl" if name.endswith((".jsonl", ".ndjson")) else "text"


def count_rows(source: str, kind: InputKind) -> int | None:
    """How many rows there are, where that is known without reading them."""
    if kind != "parquet" or source == STANDARD_INPUT:
        return None
    with _parquet_file(source) as file:
        return int(file.metadata.num_rows)


def text_rows(source: str, kind: InputKind, field: str = "text") -> Iterator[TextRow]:
    """Read rows one by one.

    - `text`: every line is a row, an empty one too, so that row n belongs to line n.
    - `jsonl`: every line is an object with `field`, and `_id` or `id` where the rows have ids, or a string; blank
      lines are skipped.
    - `parquet`: the columns `field`, and `_id` or `id` where there is one.

    Args:
        source: a path, `.gz` decompressed unless it is parquet, or `-` for standard input.
    Raises:
        DataError: no such file, or a bad row, with its line.
    """
    if source != STANDARD_INPUT and not Path(source).is_file():
        raise DataError(f"{source}: no such file.")
    if kind == "parquet":
        if source == STANDARD_INPUT:
            raise DataError("Parquet cannot be read from standard input: give the file's name.")
        rows = _parquet_rows(source, field)
    else:
        rows = _line_rows(source, kind, field)
    first: bool | None = None
    for line, row in rows:
        if isinstance(row, RowError):
            problem = Problem(source, line, row.field, row.detail)
            raise DataError(str(problem), [problem], 1)
        if first is None:
            first = row.id is None
        elif first != (row.id is None):
            what, expected = ("none", "one") if row.id is None else ("one", "none")
            raise DataError(f"{source}:{line}: id: the row has {what}; expected {expected}, as in the first row.")
        yield row


def _line_rows(source: str, kind: InputKind, field: str) -> Iterator[tuple[int, TextRow | RowError]]:
    with _open(source) as stream:
        for number, line in enumerate(stream, 1):
            try:
                if kind == "text":
                    yield number, TextRow(None, Line(number, line.rstrip(b"\r\n")).decode())
                elif line.strip():
                    yield number, _row(RawRow(number, line).decode(), field)
            except RowError as error:
                yield number, error


@contextmanager
def _open(source: str) -> Iterator[BinaryIO | io.BufferedReader[Any]]:
    if source == STANDARD_INPUT:
        yield sys.stdin.buffer
    else:
        with open_bytes(Path(source)) as stream:
            yield stream


def _row(row: object, field: str) -> TextRow:
    if isinstance(row, str):
        return TextRow(None, plain_string(row, "row"))
    if not isinstance(row, dict):
        raise RowError("row", "not an object", f'an object such as {{"id": "1", "{field}": "..."}}', row)
    if row.get(field) is None:
        raise RowError(field, "missing", f"a text; the row has {', '.join(map(str, row)) or 'no fields'}")
    text = plain_string(row[field], field)
    return TextRow(take_id(row), text)


def _parquet_rows(source: str, field: str) -> Iterator[tuple[int, TextRow | RowError]]:
    with _parquet_file(source) as file:
        names = file.schema_arrow.names
        if field not in names:
            raise DataError(
                f"{source}: no column {field!r}; it has {', '.join(names)}. Name one of these as the text field "
                "(--text-field)."
            )
        columns = [field, *[name for name in ID_FIELDS if name in names and name != field][:1]]
        batches = file.iter_batches(batch_size=_PARQUET_ROWS, columns=columns)
        for number, row in enumerate(chain.from_iterable(batch.to_pylist() for batch in batches), 1):
            try:
                yield number, _row(row, field)
            except RowError as error:
                yield number, error


@contextmanager
def _parquet_file(source: str) -> Iterator[pq.ParquetFile]:
    try:
        with pq.ParquetFile(source) as file:
            yield file
    except pa.ArrowInvalid as error:
        raise DataError(f"{source}: not a readable parquet file ({error}).") from None
