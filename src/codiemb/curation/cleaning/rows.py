"""Rows of data files as a stream: each checked, and kept as it was written until something in it changes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import orjson

from codiemb.data.cache import OnError, Progress
from codiemb.data.examples import NOTES_KEY, PAIR_TASKS, DataError, Example, Problem, RowError, Text, parse_example
from codiemb.data.sources import RawRow, raw_rows
from codiemb.data.writers import example_row

_SHOWN = 20  # bad rows reported
_PROGRESS_ROWS = 2000


class Row(NamedTuple):
    """A checked row.

    Attributes:
        number: its place among all good rows of all files, from 0.
        file: index of its file.
        line: where it starts there, from 1; in a parquet file the row's number.
        raw: JSON, or an object where the file is parquet.
    """

    number: int
    file: int
    line: int
    raw: bytes | dict[str, Any]
    example: Example

    def changed(self, example: Example) -> Row:
        """The same row, its notes kept, with what `example` has."""
        value: dict[str, object] = example_row(example)
        before = self.raw if isinstance(self.raw, dict) else orjson.loads(self.raw)
        if before.get(NOTES_KEY) is not None:
            value[NOTES_KEY] = before[NOTES_KEY]
        return self._replace(raw=orjson.dumps(value), example=example)

    def candidates(self) -> Iterator[tuple[str, int, Text]]:
        """Side (`positives` or `negatives`), index and text of each candidate."""
        for side, texts in (("positives", self.example.positives), ("negatives", self.example.negatives)):
            for index, text in enumerate(texts):
                yield side, index, text

    def without(self, dropped: set[tuple[str, int]]) -> Row | None:
        """The row without some candidates and their scores, or None if nothing is left to train on."""
        example = self.example
        kept: dict[str, Any] = {}
        for side, scores in (("positives", "positive_scores"), ("negatives", "negative_scores")):
            places = [i for i in range(len(getattr(example, side))) if (side, i) not in dropped]
            kept[side] = [getattr(example, side)[i] for i in places]
            kept[scores] = [getattr(example, scores)[i] for i in places] if getattr(example, scores) else []
        left = kept["positives"] or (example.task_type in PAIR_TASKS and kept["negatives"])
        return self.changed(example._replace(**kept)) if left else None


class RowStream:
    """Reads the rows of files, as often as needed; the first time, bad rows are reported.

    Args:
        names: of the files, in what is written about their rows; their paths if None. Errors name paths.
        on_error: "raise": an error after the last row that names the first 20 bad rows; "skip": they go to `rejected`.
        progress: called now and then with the number of rows read since the last call.
    """

    def __init__(
        self,
        files: Sequence[Path],
        *,
        names: Sequence[str] | None = None,
        on_error: OnError = "raise",
        progress: Progress | None = None,
    ) -> None:
        self.files = files
        self.names = [str(file) for file in files] if names is None else names
        self.rejected: list[tuple[int, RawRow, RowError]] = []
        self.rows = 0
        self._on_error = on_error
        self._progress = progress or (lambda rows: None)
        self._checked = False

    def place(self, row: Row) -> str:
        """`name:line`."""
        return f"{self.names[row.file]}:{row.line}"

    def __iter__(self) -> Iterator[Row]:
        first, self._checked = not self._checked, True
        number = unreported = 0
        for index, file in enumerate(self.files):
            empty = True
            for raw in raw_rows(file):
                empty = False
                unreported += 1
                if unreported == _PROGRESS_ROWS:
                    self._progress(unreported)
                    unreported = 0
                try:
                    example = parse_example(raw.decode())
                except RowError as error:
                    if first:
                        self.rejected.append((index, raw, error))
                    continue
                yield Row(number, index, raw.line, raw.raw, example)
                number += 1
            if empty:
                raise DataError(f"{file}: empty; expected one JSON object a line, a JSON list or a parquet table.")
        self._progress(unreported)
        self.rows = number
        if first and self.rejected and self._on_error == "raise":
            raise self._error()

    def _error(self) -> DataError:
        problems = [
            Problem(str(self.files[file]), raw.line, error.field, error.detail)
            for file, raw, error in self.rejected[:_SHOWN]
        ]
        total = len(self.rejected)
        shown = f", the first {_SHOWN} of them above" if total > _SHOWN else ""
        summary = f"{total} rows are bad{shown}. Correct them, or leave them out with --on-error skip."
        return DataError("\n".join([*map(str, problems), summary]), problems, total)
