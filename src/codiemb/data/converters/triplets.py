"""Anchor, positive, negatives."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from codiemb.data.cache import Progress
from codiemb.data.converters.common import Conversion, Dropped, check_paths, write
from codiemb.data.delimited import read_lines
from codiemb.data.examples import DataError, Example
from codiemb.data.sources import DATA_SUFFIXES

_ANCHOR = ("anchor", "query")
_POSITIVE = ("positive", "pos")
_NEGATIVE = re.compile(r"(negative|neg)(_?\d+)?")


class _Triplet(NamedTuple):
    place: str
    anchor: object
    positives: list[object]
    negatives: list[object]


def triplets(
    source: Path,
    output: Path,
    *,
    header: bool = True,
    instruction: str = "",
    progress: Progress | None = None,
) -> Conversion:
    """Rows of `ir` from TSV or CSV (anchor, positive, negatives...) or from JSON lines, a JSON list or parquet.

    In TSV and CSV empty negatives are passed over. JSON rows are lists in the same order, or objects with `anchor` or
    `query`, `positive` or `pos`, and `negative`, `neg`, `negative_1`..., each one text or a list; other keys are not
    read.

    Args:
        header: whether the first line of a TSV or CSV names the columns, `anchor` or `query` first and then `positive`.

    Raises:
        DataError: a missing file, an unknown header, or no good row.
    """
    check_paths(source, output)
    dropped = Dropped()

    def examples() -> Iterator[Example]:
        is_json = source.name.endswith(DATA_SUFFIXES)
        for triplet in _from_json(source, dropped) if is_json else _from_lines(source, header, dropped):
            row = {
                "task_type": "ir",
                "query": [instruction, "", triplet.anchor],
                "positives": [["", "", text] for text in triplet.positives],
                "negatives": [["", "", text] for text in triplet.negatives],
            }
            yield from dropped.checked(row, triplet.place)

    return write(examples(), output, dropped, progress)


def _from_lines(source: Path, header: bool, dropped: Dropped) -> Iterator[_Triplet]:
    for place, fields in dropped.fields(read_lines(source), source):
        if header:
            if fields[0] not in _ANCHOR or fields[1:2] not in ([name] for name in _POSITIVE):
                raise DataError(
                    f"{source}: the first line is {fields}; expected a header such as anchor, positive, negative. "
                    "Rename the columns, or say that there is none with header=False (--no-header)."
                )
            header = False
            continue
        anchor, *rest = fields
        yield _Triplet(place, anchor, list(rest[:1]), [text for text in rest[1:] if text])


def _from_json(source: Path, dropped: Dropped) -> Iterator[_Triplet]:
    for place, value in dropped.rows(source):
        if isinstance(value, list) and value:
            yield _Triplet(place, value[0], value[1:2], value[2:])
        elif isinstance(value, dict):
            anchor = next((value[key] for key in _ANCHOR if key in value), None)
            positives = [text for key in _POSITIVE for text in _texts(value.get(key))]
            negatives = [text for key in value if _NEGATIVE.fullmatch(key) for text in _texts(value[key])]
            yield _Triplet(place, anchor, positives, negatives)
        else:
            dropped.add("neither an object nor a list", place)


def _texts(value: object) -> list[object]:
    if value is None:
        return []
    return value if isinstance(value, list) else [value]
