"""Where rows go: files of the unified format, and beside them the rows that were left out with their reasons."""

from __future__ import annotations

import gzip
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO, cast

import orjson
import pyarrow.parquet as pq

from codiemb.curation.cleaning.rows import Row, RowStream
from codiemb.data.examples import NOTES_KEY, DataError, Example
from codiemb.data.readers import stem
from codiemb.data.sources import REJECTED_SUFFIX
from codiemb.data.tables import FILE_SCHEMA, file_batch
from codiemb.data.writers import OUTPUT_SUFFIXES, replacing

_ROW_GROUP = 2048


class RowFile:
    """A file of rows that is complete at the end of the `with` block, or as it was before.

    Rows go into `.jsonl` and `.jsonl.gz` as they were written, notes included; `.parquet` has no column for notes.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows = 0
        self._stack = ExitStack()
        self._examples: list[Example] = []

    def __enter__(self) -> RowFile:
        partial = self._stack.enter_context(replacing(self.path))
        if self.path.name.endswith(".parquet"):
            self._parquet = self._stack.enter_context(pq.ParquetWriter(partial, FILE_SCHEMA, compression="zstd"))
        else:
            file = self._stack.enter_context(partial.open("wb"))
            zipped = self.path.name.endswith(".gz")
            # No name and no time in the header: the same rows give the same bytes.
            sink = self._stack.enter_context(gzip.GzipFile("", "wb", 6, file, mtime=0)) if zipped else file
            self._lines = cast(BinaryIO, sink)
        return self

    def __exit__(self, *error: Any) -> None:
        if error[0] is None and self._examples:
            self._write_group()
        self._stack.__exit__(*error)

    def write(self, row: Row) -> None:
        """Append a row."""
        self.rows += 1
        if self.path.name.endswith(".parquet"):
            self._examples.append(row.example)
            if len(self._examples) == _ROW_GROUP:
                self._write_group()
        else:
            self._lines.write(as_line(row.raw))

    def _write_group(self) -> None:
        self._parquet.write_batch(file_batch(self._examples))
        self._examples = []


class RejectedFile:
    """Rows and candidates that were left out: one object a line with file, line, reason and the row.

    There is no file if nothing was left out. `counts` has the reasons.
    """

    def __init__(self, path: Path, stream: RowStream) -> None:
        self.path = path
        self.counts: Counter[str] = Counter()
        self._stream = stream
        self._stack = ExitStack()

    def __enter__(self) -> RejectedFile:
        self._lines = self._stack.enter_context(self._stack.enter_context(replacing(self.path)).open("wb"))
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.__exit__(*error)
        if error[0] is None and not self.counts:
            self.path.unlink(missing_ok=True)

    def add(self, row: Row, reason: str, **details: object) -> None:
        """One row, or one candidate of it where `details` say which."""
        self._write(row.file, row.line, reason, row.raw, details)

    def add_bad_rows(self) -> None:
        """The rows that the stream could not read; once, after its first pass."""
        for file, raw, error in self._stream.rejected:
            shown = raw.raw if isinstance(raw.raw, dict) else raw.raw.decode(errors="backslashreplace").rstrip()
            self._write(file, raw.line, f"bad row: {error.reason}", shown, {"detail": str(error)})

    def _write(
        self, file: int, line: int, reason: str, raw: bytes | str | dict[str, Any], details: Mapping[str, object]
    ) -> None:
        self.counts[reason] += 1
        row = orjson.Fragment(raw.strip()) if isinstance(raw, bytes) else raw
        record = {"file": self._stream.names[file], "line": line, "reason": reason, **details, "row": row}
        self._lines.write(orjson.dumps(record, default=str).replace(b"\n", b" ") + b"\n")


class Outputs:
    """One file for all rows, or a directory with a file for each input.

    Args:
        output: a name with a data suffix is one file, any other a directory.
        files: the inputs.
    Raises:
        DataError: an output is one of the inputs.
    """

    def __init__(self, output: Path, files: Sequence[Path]) -> None:
        self.single = output.name.endswith(OUTPUT_SUFFIXES)
        if self.single:
            self._paths = [output] * len(files)
        else:
            if output.is_file():
                raise DataError(f"{output}: a file; expected a directory or a name that ends in {_suffixes()}.")
            self._paths = [output / output_name(file) for file in files]
            repeated = [path for path, times in Counter(self._paths).items() if times > 1]
            if repeated:
                raise DataError(f"{repeated[0]}: two inputs would go there. Give one output file instead.")
        inputs = {file.resolve() for file in files}
        for path in self._paths:
            if path.resolve() in inputs:
                raise DataError(f"{path}: is an input. Choose another output.")
        self.rejected = rejected_path(output)
        self._stack = ExitStack()
        self._open: dict[Path, RowFile] = {}

    def __enter__(self) -> Outputs:
        self._stack.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.__exit__(*error)

    def write(self, row: Row) -> None:
        """Append a row to its file."""
        path = self._paths[row.file]
        if path not in self._open:
            self._open[path] = self._stack.enter_context(RowFile(path))
        self._open[path].write(row)

    @property
    def rows(self) -> dict[str, int]:
        """Rows written so far, by file."""
        return {str(path): file.rows for path, file in self._open.items()}


def rejected_path(output: Path) -> Path:
    """Where the rows left out of `output` go: beside the file, or in the directory."""
    single = output.name.endswith(OUTPUT_SUFFIXES)
    return output.with_name(stem(output.name) + REJECTED_SUFFIX) if single else output / f"rows{REJECTED_SUFFIX}"


def as_line(raw: bytes | dict[str, Any]) -> bytes:
    """A row as one line of JSON."""
    if isinstance(raw, dict):
        known = {key: value for key, value in raw.items() if value is not None or key == NOTES_KEY}
        return orjson.dumps(known, default=str, option=orjson.OPT_APPEND_NEWLINE)
    return raw.replace(b"\n", b" ").strip() + b"\n"  # a line end in JSON is white space


def output_name(file: Path) -> str:
    """The name in an output directory of the rows of an input."""
    return file.name if file.name.endswith(OUTPUT_SUFFIXES) else f"{stem(file.name)}.jsonl"


def _suffixes() -> str:
    return ", ".join(OUTPUT_SUFFIXES)
