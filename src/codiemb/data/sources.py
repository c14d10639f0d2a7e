"""Raw rows out of data files, block by block and with the line they start at: JSON lines, JSON lists, parquet, gzip."""

from __future__ import annotations

import gzip
import io
import json
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, Protocol

import orjson
import pyarrow as pa
import pyarrow.json
import pyarrow.parquet as pq

from codiemb.data.examples import DataError, RowError

#: File names that a directory is searched for.
DATA_SUFFIXES = (".jsonl", ".json", ".jsonl.gz", ".json.gz", ".parquet")
#: Ending of the side files with rejected rows: never data.
REJECTED_SUFFIX = ".rejected.jsonl"

_BLOCK = 4 << 20  # bytes of a file held at a time
_PARQUET_ROWS = 512  # a batch of long texts has to fit into memory
_BOM = b"\xef\xbb\xbf"
# A string, whole or (the lone quote) cut off by the end of the block, or a bracket.
_JSON_TOKEN = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"|["\[\]{}]', re.DOTALL)
_ONE_LIST = re.compile(rb'\s*\[\s*[^\s"]')  # but lines that are lists of strings, as triplets may be, begin with ["
_JSON_SPACE = b" \t\r\n,"
_LIST_KEYS = ("positives", "negatives", "positive_scores", "negative_scores")


class RawRow(NamedTuple):
    """A row not yet decoded: `raw` is JSON, or already an object where the file is parquet."""

    line: int
    raw: bytes | dict[str, Any]

    def decode(self) -> object:
        """The row as Python objects.

        Raises:
            RowError: broken JSON, or not UTF-8.
        """
        if isinstance(self.raw, dict):
            return self.raw
        try:
            return orjson.loads(self.raw)
        except orjson.JSONDecodeError:
            return _decode_leniently(self.raw)


class Block(Protocol):
    """Some consecutive rows of a file, to be had in two ways."""

    def rows(self) -> Iterator[RawRow]:
        """One by one."""

    def table(self) -> pa.Table | None:
        """All at once and many times faster, neither checked nor in one spelling; None where that fails."""


def blocks(path: Path) -> Iterator[Block]:
    """All rows of one data file, in order.

    Raises:
        DataError: the file's kind is unknown, or it cannot be decompressed.
    """
    if path.name.endswith(".parquet"):
        return _parquet_blocks(path)
    if path.name.endswith(DATA_SUFFIXES):
        return _json_blocks(path)
    raise DataError(f"{path}: not a data file; expected a name that ends in one of {', '.join(DATA_SUFFIXES)}.")


def raw_rows(path: Path) -> Iterator[RawRow]:
    """The rows of `blocks`."""
    for block in blocks(path):
        yield from block.rows()


@contextmanager
def open_bytes(path: Path) -> Iterator[io.BufferedReader[Any]]:
    """A buffered binary stream, past a byte order mark, decompressed where the name ends in `.gz`.

    Raises:
        DataError: the compressed data is broken or cut off.
    """
    file = gzip.GzipFile(path) if path.name.endswith(".gz") else io.FileIO(path)
    try:
        with io.BufferedReader(file, _BLOCK) as stream:
            if stream.peek(len(_BOM)).startswith(_BOM):
                stream.read(len(_BOM))
            yield stream
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path}: cannot be decompressed ({error}). Fetch or compress the file again.") from None


@dataclass(frozen=True)
class _Lines:
    """Whole lines of a file of JSON lines; `first` is the number of the first."""

    first: int
    data: bytes

    def rows(self) -> Iterator[RawRow]:
        for line, raw in enumerate(self.data.split(b"\n"), self.first):
            if raw.strip():
                yield RawRow(line, raw)

    def table(self) -> pa.Table | None:
        table = _json_table(self.data)
        if table is None or len(table) == self.data.count(b"\n") + (not self.data.endswith(b"\n")):
            return table
        # Blank lines are fine. Two objects on one line, or one over two, Arrow takes too: for the slow way to judge.
        return table if len(table) == sum(1 for _ in self.rows()) else None


@dataclass(frozen=True)
class _Items:
    """Items of a JSON list."""

    items: list[RawRow]

    def rows(self) -> Iterator[RawRow]:
        return iter(self.items)

    def table(self) -> pa.Table | None:
        # A line end in JSON is white space: within a string it would be escaped.
        lines = [item.raw.replace(b"\n", b" ") for item in self.items if isinstance(item.raw, bytes)]
        table = _json_table(b"\n".join(lines))
        return table if table is not None and len(table) == len(self.items) else None


@dataclass(frozen=True)
class _ParquetRows:
    """A batch of a parquet file; the columns in `encoded` hold JSON."""

    first: int
    batch: pa.RecordBatch
    encoded: list[str]

    def rows(self) -> Iterator[RawRow]:
        for number, row in enumerate(self.batch.to_pylist(), self.first):
            row.update((key, _from_json(row[key])) for key in self.encoded)
            yield RawRow(number, row)

    def table(self) -> pa.Table | None:
        return None if self.encoded else pa.Table.from_batches([self.batch])


def _json_blocks(path: Path) -> Iterator[Block]:
    with open_bytes(path) as stream:
        if _ONE_LIST.match(stream.peek(_BLOCK)):
            yield from _item_blocks(stream)
            return
        line = 1
        while data := stream.read(_BLOCK):
            data += stream.readline()
            yield _Lines(line, data)
            line += data.count(b"\n")


def _item_blocks(stream: BinaryIO) -> Iterator[Block]:
    items: list[RawRow] = []
    size = 0
    for item in _list_items(stream):
        items.append(item)
        size += len(item.raw)
        if size >= _BLOCK:
            yield _Items(items)
            items, size = [], 0
    yield _Items(items)


def _list_items(stream: BinaryIO) -> Iterator[RawRow]:
    """The items of one long JSON list, cut out by matching brackets so that only one is held at a time.

    What stands between items or after the list comes out as a row too, so that its error is reported.
    """
    buffer = stream.read(_BLOCK)
    mark = position = buffer.index(b"[") + 1  # mark: what is before it has been handed out
    line, depth = 1 + buffer.count(b"\n", 0, mark), 1
    while depth:
        for token in _JSON_TOKEN.finditer(buffer, position):
            kind = token[0]
            if kind == b'"':  # a string that goes on in the next block
                position = token.start()
                break
            position = token.end()
            cut = -1
            if kind in (b"[", b"{"):
                depth += 1
                if depth == 2:
                    cut = token.start()
            elif kind in (b"]", b"}"):
                depth -= 1
                if depth < 2:
                    cut = position if depth else token.start()
            if cut >= 0:
                piece, mark = buffer[mark:cut], cut
                if row := _stripped_row(line, piece):
                    yield row
                line += piece.count(b"\n")
            if not depth:
                break
        else:
            position = len(buffer)
        if depth:
            block = stream.read(_BLOCK)
            if not block:  # a list without an end: whatever is left, or the open bracket, is the broken row
                yield _stripped_row(line, buffer[mark:]) or RawRow(line, b"[")
                return
            buffer, position, mark = buffer[mark:] + block, position - mark, 0
    if row := _stripped_row(line, buffer[position:] + stream.read()):
        yield row


def _stripped_row(line: int, piece: bytes) -> RawRow | None:
    raw = piece.lstrip(_JSON_SPACE)
    line += piece.count(b"\n", 0, len(piece) - len(raw))
    raw = raw.rstrip(_JSON_SPACE)
    return RawRow(line, raw) if raw else None


def _decode_leniently(raw: bytes) -> object:
    """What orjson refuses: NaN, infinity and lone surrogates, whose field the row check names, or broken JSON."""
    try:
        return json.loads(raw.decode())
    except UnicodeDecodeError as error:
        problem = f"not UTF-8: byte 0x{raw[error.start]:02x} at byte {error.start + 1} of the row"
    except json.JSONDecodeError as error:
        problem = f"broken JSON: {error.msg} at character {error.pos + 1} of the row"
    except (ValueError, RecursionError) as error:  # an integer of thousands of digits; thousands of brackets
        problem = f"broken JSON: {error}"
    raise RowError("row", problem, "one JSON object, in UTF-8")


def _json_table(data: bytes) -> pa.Table | None:
    """Rows of JSON lines that are all spelled like the first; None where they are not."""
    schema = _spelling(data[: data.find(b"\n") if b"\n" in data else len(data)])
    if schema is None:
        return None
    try:
        return pyarrow.json.read_json(
            pa.BufferReader(data),
            read_options=pyarrow.json.ReadOptions(use_threads=False, block_size=len(data) + 1),
            parse_options=pyarrow.json.ParseOptions(explicit_schema=schema, unexpected_field_behavior="error"),
        )
    except pa.ArrowInvalid:
        return None


def _spelling(row: bytes) -> pa.Schema | None:
    """The Arrow types of a row's fields. Left to itself Arrow would take a text such as 2024-01-01 for a date."""
    try:
        values = orjson.loads(row)
        scores = pa.list_(pa.float64())
        fields = {"task_type": pa.string(), "positive_scores": scores, "negative_scores": scores}
        fields["query"] = query = _text_type(values["query"])
        for key in ("positives", "negatives"):
            texts = values.get(key) or values.get("positives") or values.get("negatives")
            fields[key] = pa.list_(_text_type(texts[0]) if texts else query)
    except (orjson.JSONDecodeError, TypeError, KeyError, IndexError, AttributeError):
        return None
    return pa.schema(fields)


def _text_type(text: object) -> pa.DataType:
    if isinstance(text, str):
        return pa.string()
    if isinstance(text, list):
        return pa.list_(pa.string())
    if isinstance(text, dict):
        return pa.struct([(str(key), pa.string()) for key in text])
    raise TypeError(f"{type(text)} is not a text")


def _parquet_blocks(path: Path) -> Iterator[Block]:
    """Rows of a file whose columns are the keys of the format, nested or as strings of JSON."""
    try:
        with pq.ParquetFile(path) as file:
            encoded = _json_columns(file)
            first = 1
            for batch in file.iter_batches(batch_size=_PARQUET_ROWS):
                yield _ParquetRows(first, batch, encoded)
                first += len(batch)
    except pa.ArrowInvalid as error:
        raise DataError(f"{path}: not a readable parquet file ({error}).") from None


def _json_columns(file: pq.ParquetFile) -> list[str]:
    """The columns that hold JSON.

    A list cannot be a plain string, so a column of lists that is one holds JSON. A query can: it is JSON only
    where the lists are and where all queries of the first rows are JSON lists or objects.
    """
    strings = {
        field.name
        for field in file.schema_arrow
        if pa.types.is_string(field.type) or pa.types.is_large_string(field.type)
    }
    encoded = [key for key in _LIST_KEYS if key in strings]
    if encoded and "query" in strings:
        first = next(file.iter_batches(batch_size=_PARQUET_ROWS, columns=["query"]), None)
        if first is not None and all(
            isinstance(_from_json(query), (list, dict)) for query in first["query"].to_pylist()
        ):
            encoded.append("query")
    return encoded


def _from_json(value: object) -> object:
    if not isinstance(value, str):
        return value
    try:
        return orjson.loads(value)
    except orjson.JSONDecodeError:
        return value  # the row check says what was expected instead
