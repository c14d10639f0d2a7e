"""TSV and CSV files as rows of strings: tabs split literally, commas with quoting, nothing lost without a count."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from codiemb.data.examples import DataError
from codiemb.data.sources import open_bytes

_TSV_SUFFIXES = (".tsv", ".txt", ".tab", ".tsv.gz", ".txt.gz", ".tab.gz")
_CSV_SUFFIXES = (".csv", ".csv.gz")
_CSV_FIELD_LIMIT = 1 << 30  # the csv module stops at 131,072 characters by itself


class Line(NamedTuple):
    """Fields of one row and the line it ends at; `problem` instead of fields where it cannot be taken apart."""

    number: int
    fields: list[str]
    problem: str = ""


def read_lines(path: Path) -> Iterator[Line]:
    """The rows of a `.tsv` or `.txt` (tabs; a quote is an ordinary character) or `.csv` (commas, quotes), also `.gz`.

    A byte that is not UTF-8 becomes a lone surrogate, which the check of every example refuses. Blank lines are
    passed over. A row with another number of fields than the first has a `problem`.

    Raises:
        DataError: another suffix, or no rows at all.
    """
    if path.name.endswith(_TSV_SUFFIXES):
        rows = _tsv_lines(path)
    elif path.name.endswith(_CSV_SUFFIXES):
        rows = _csv_lines(path)
    else:
        known = ", ".join(_TSV_SUFFIXES + _CSV_SUFFIXES)
        raise DataError(f"{path}: neither a TSV nor a CSV file by its name; expected one of {known}.")
    width = 0
    for line in rows:
        if not line.problem:
            width = width or len(line.fields)
            if len(line.fields) != width:
                line = line._replace(problem="another number of fields than the first line")
        yield line
    if not width:
        raise DataError(f"{path}: empty; expected lines of fields.")


def read_columns(path: Path, columns: Sequence[str] | Sequence[int], *, header: bool | None = None) -> Iterator[Line]:
    """The rows cut down to the chosen columns, in the order chosen.

    Args:
        columns: names in the header, or numbers from 1.
        header: whether the first line is one; None: yes for names, no for numbers.

    Raises:
        DataError: columns that the file does not have.
    """
    named = isinstance(columns[0], str)
    indices: list[int] | None = None
    for line in read_lines(path):
        if indices is None and not line.problem:
            indices = _indices(path, columns, line.fields)
            if header or (header is None and named):
                continue
        if indices is None or line.problem:
            yield line
        else:
            yield Line(line.number, [line.fields[i] for i in indices])


def _indices(path: Path, columns: Sequence[str] | Sequence[int], first: list[str]) -> list[int]:
    missing = [
        column
        for column in columns
        if (column not in first if isinstance(column, str) else not 1 <= column <= len(first))
    ]
    if missing:
        raise DataError(
            f"{path}: no column {missing[0]!r}; the first line has {len(first)}: {first}. Choose the columns by these "
            "names, or by numbers from 1."
        )
    repeated = [name for name, times in Counter(first).items() if times > 1 and name in columns]
    if repeated:
        raise DataError(f"{path}: several columns are named {repeated[0]!r}. Choose the columns by numbers from 1.")
    return [first.index(column) if isinstance(column, str) else column - 1 for column in columns]


def _tsv_lines(path: Path) -> Iterator[Line]:
    with open_bytes(path) as stream:
        for number, raw in enumerate(stream, 1):
            text = raw.decode("utf-8", "surrogateescape").rstrip("\r\n")
            if text:
                yield Line(number, text.split("\t"))


def _csv_lines(path: Path) -> Iterator[Line]:
    csv.field_size_limit(_CSV_FIELD_LIMIT)
    with open_bytes(path) as stream:
        reader = csv.reader((raw.decode("utf-8", "surrogateescape") for raw in stream), strict=True)
        while True:
            try:
                fields = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                yield Line(reader.line_num, [], f"broken CSV: {error}")
                continue
            if fields:
                yield Line(reader.line_num, fields)
