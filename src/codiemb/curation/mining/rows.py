"""Rows of the unified format with their notes (`meta_data`), in and out, one at a time."""

from __future__ import annotations

import gzip
import logging
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

import orjson

from codiemb.data.examples import NOTES_KEY, DataError, Example, Problem, RowError, parse_example
from codiemb.data.sources import raw_rows
from codiemb.data.writers import replacing, write_examples

logger = logging.getLogger(__name__)


class Row(NamedTuple):
    """A checked row and what its notes say."""

    example: Example
    notes: object

    def answers(self, field: str) -> list[str]:
        """The texts under `field` of the notes: one, or a list of them.

        Raises:
            RowError: something else stands there.
        """
        found = self.notes.get(field) if isinstance(self.notes, dict) else None
        answers = [found] if isinstance(found, str) else found or []
        if not isinstance(answers, list) or not all(isinstance(answer, str) for answer in answers):
            raise RowError(f"{NOTES_KEY}.{field}", "not answers", "a text or a list of texts", found)
        return [answer for answer in answers if answer.strip()]

    def encoded(self) -> bytes:
        """The row as a line of JSON."""
        row: dict[str, Any] = self.example._asdict()
        row["query"] = list(self.example.query)
        row["positives"] = [list(text) for text in self.example.positives]
        row["negatives"] = [list(text) for text in self.example.negatives]
        if self.notes is not None:
            row[NOTES_KEY] = self.notes
        return orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE)


def read_rows(files: Sequence[Path], answer_field: str) -> Iterator[Row]:
    """All rows of some files.

    Raises:
        DataError: the first bad row, with its file and line, or no rows at all.
    """
    empty = True
    for path in files:
        for raw in raw_rows(path):
            try:
                content = raw.decode()
                row = Row(parse_example(content), content.get(NOTES_KEY) if isinstance(content, dict) else None)
                row.answers(answer_field)
            except RowError as error:
                problem = Problem(str(path), raw.line, error.field, error.detail)
                raise DataError(str(problem), [problem], 1) from None
            empty = False
            yield row
    if empty:
        raise DataError(f"{', '.join(map(str, files))}: no rows; expected one JSON object a line.")


def write_lines(lines: Iterable[bytes], path: Path) -> None:
    """Write encoded rows to `.jsonl`, `.jsonl.gz` or `.parquet`; the file is there whole or not at all.

    The unified format has no column for notes in parquet: they are left out there, and the log says so.
    """
    if path.name.endswith(".parquet"):
        logger.warning("%s: %s of the rows is left out: parquet files have no place for it.", path, NOTES_KEY)
        write_examples((parse_example(orjson.loads(line)) for line in lines), path)
        return
    with replacing(path) as partial, partial.open("wb") as file:
        if path.name.endswith(".gz"):
            with gzip.GzipFile("", "wb", 6, file, mtime=0) as zipped:  # the same rows give the same bytes
                cast(BinaryIO, zipped).writelines(lines)
        else:
            file.writelines(lines)
