"""Examples into files of the unified format: streamed, and complete or not there at all."""

from __future__ import annotations

import gzip
import os
import secrets
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, NamedTuple, cast

import orjson
import pyarrow.parquet as pq

from codiemb.data.examples import NOTES_KEY, DataError, Example
from codiemb.data.tables import FILE_SCHEMA, file_batch

#: File names that `write_examples` knows.
OUTPUT_SUFFIXES = (".jsonl", ".jsonl.gz", ".parquet")

_ROW_GROUP = 2048


class Noted(NamedTuple):
    """An example and its notes, which `.parquet` has no column for."""

    example: Example
    notes: Mapping[str, object]


def write_examples(examples: Iterable[Example | Noted], path: Path) -> int:
    """Write examples to `.jsonl`, `.jsonl.gz` or `.parquet` and return how many.

    They go to a temporary file in the same directory that is renamed at the end, so an error leaves no part of a
    file, and a file of before as it was.

    Raises:
        DataError: the name has another suffix, or there is no example.
    """
    check_output(path)
    with replacing(path) as partial:
        count = (_write_parquet if path.name.endswith(".parquet") else _write_jsonl)(examples, partial, path)
        if not count:
            raise DataError(f"{path}: not written, since there are no rows to write.")
    return count


def check_output(path: Path) -> None:
    """Refuse a name that `write_examples` does not know.

    Raises:
        DataError: naming the known suffixes.
    """
    if not path.name.endswith(OUTPUT_SUFFIXES):
        raise DataError(f"{path}: cannot write this kind; expected a name that ends in {', '.join(OUTPUT_SUFFIXES)}.")


def _write_jsonl(examples: Iterable[Example | Noted], partial: Path, path: Path) -> int:
    count = 0
    with partial.open("wb") as file:
        # No name and no time in the header: the same rows give the same bytes.
        zipped = gzip.GzipFile("", "wb", 6, file, mtime=0) if path.name.endswith(".gz") else None
        sink = cast(BinaryIO, zipped or file)
        for example in examples:
            sink.write(orjson.dumps(example_row(example), option=orjson.OPT_APPEND_NEWLINE))
            count += 1
        if zipped:
            zipped.close()
    return count


def _write_parquet(examples: Iterable[Example | Noted], partial: Path, _: Path) -> int:
    count = 0
    with pq.ParquetWriter(partial, FILE_SCHEMA, compression="zstd") as writer:
        for batch in _batches(examples):
            writer.write_batch(file_batch(batch))
            count += len(batch)
    return count


def example_row(example: Example | Noted) -> dict[str, object]:
    """An example as an object that can be written as JSON."""
    if isinstance(example, Noted):
        return {**example_row(example.example), NOTES_KEY: example.notes}
    row: dict[str, object] = example._asdict()
    row["query"] = list(example.query)  # orjson does not write named tuples
    row["positives"] = [list(text) for text in example.positives]
    row["negatives"] = [list(text) for text in example.negatives]
    return row


def _batches(examples: Iterable[Example | Noted]) -> Iterator[list[Example]]:
    batch: list[Example] = []
    for example in examples:
        batch.append(example.example if isinstance(example, Noted) else example)
        if len(batch) == _ROW_GROUP:
            yield batch
            batch = []
    if batch:
        yield batch


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A name in the same directory to write to; it becomes `path` at the end, or is removed after an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}")
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
