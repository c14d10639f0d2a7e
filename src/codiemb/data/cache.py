"""Checked tables on disk: a data file is parsed once, streamed into Arrow files, and found again by its identity."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import pyarrow as pa
import pyarrow.compute as pc

from codiemb.data.columns import Batches, checked_batches
from codiemb.data.examples import PAIR_TASKS, DataError, Example, Problem, RowError, TaskType, parse_example
from codiemb.data.sources import Block, RawRow, blocks
from codiemb.data.tables import TABLE_SCHEMA, table_batch

OnError = Literal["raise", "skip"]
Progress = Callable[[int], None]  # rows done since the last call

#: Rejected rows of an entry, one object a line: line, field, reason, row.
REJECTED_FILE = "rejected.jsonl"

_FORMAT = 1  # bump when the check or the tables change, so that tables of before are not used
_SHOWN = 20  # bad rows reported for each file
_THREADS = min(4, os.cpu_count() or 1)  # each holds a block: more would cost memory


@dataclass(frozen=True)
class StoredTable:
    """The table of one task: an Arrow stream beside the entry's `meta.json`."""

    task_type: TaskType
    file: str
    score_range: tuple[float, float] | None


@dataclass(frozen=True)
class Stored:
    """A cache entry, one for each data file: a directory that is complete as soon as it exists."""

    directory: Path
    tables: list[StoredTable]
    rows: int
    rejected: int

    @classmethod
    def load(cls, directory: Path) -> Stored:
        """The entry in `directory`."""
        meta = json.loads((directory / "meta.json").read_text())
        tables = [StoredTable(**{**table, "score_range": _pair(table["score_range"])}) for table in meta["tables"]]
        return cls(directory, tables, meta["rows"], meta["rejected"])

    def save(self) -> None:
        """Write what `load` reads."""
        meta = {
            "rows": self.rows,
            "rejected": self.rejected,
            "tables": [asdict(table) for table in self.tables],
        }
        (self.directory / "meta.json").write_text(json.dumps(meta))


def stored_tables(file: Path, cache_dir: Path, on_error: OnError, progress: Progress | None = None) -> Stored:
    """The entry of `file`, built unless it is there already.

    The key is the file's path, size and time of change. An entry is built in a private directory and renamed: a
    process that is killed leaves no half entry, and of two that build the same one the first wins.

    Raises:
        DataError: an empty file, bad rows, or a file that changes while it is read.
    """
    key = _identity(file)
    directory = cache_dir / key
    if directory.is_dir():
        stored = Stored.load(directory)
        # An entry with rejected rows was made by "skip"; "raise" parses again to report them.
        if not stored.rejected or on_error == "skip":
            if progress:
                progress(stored.rows)
            return stored
    private = cache_dir / f".{key}-{os.getpid()}-{secrets.token_hex(4)}"
    private.mkdir(parents=True)
    try:
        _build(file, private, on_error, progress).save()
        if _identity(file) != key:
            raise DataError(f"{file}: changed while it was read. Read it again once it is complete.")
        try:
            private.rename(directory)
        except OSError:
            if not directory.is_dir():  # not the other process's entry: a real failure
                raise
    finally:
        shutil.rmtree(private, ignore_errors=True)
    return Stored.load(directory)


def _identity(file: Path) -> str:
    stat = file.stat()
    key = json.dumps([str(file.resolve()), stat.st_size, stat.st_mtime_ns, _FORMAT])
    return f"{file.name.split('.')[0][:40]}-{hashlib.sha256(key.encode()).hexdigest()[:16]}"


def _build(file: Path, directory: Path, on_error: OnError, progress: Progress | None) -> Stored:
    writers: dict[TaskType, _TableWriter] = {}
    problems: list[Problem] = []
    rows = rejected = 0
    with ExitStack() as stack:
        side_file = stack.enter_context((directory / REJECTED_FILE).open("wb"))
        for block, batches in _checked_ahead(blocks(file)):
            before = rows
            if batches is not None:
                rows += sum(map(len, batches.values()))
            else:  # row by row: slower, but it knows which row is bad and why
                examples: dict[TaskType, list[Example]] = {}
                for row in block.rows():
                    rows += 1
                    try:
                        example = parse_example(row.decode())
                    except RowError as error:
                        rejected += 1
                        if len(problems) < _SHOWN:
                            problems.append(Problem(str(file), row.line, error.field, error.detail))
                        if on_error == "skip":
                            side_file.write(_rejected_line(row, error))
                    else:
                        paired = example.pairs() if example.task_type in PAIR_TASKS else (example,)
                        examples.setdefault(example.task_type, []).extend(paired)
                batches = {task_type: table_batch(of_task) for task_type, of_task in examples.items()}
            if progress:
                progress(rows - before)
            if rejected and on_error == "raise":
                continue  # no table will come of it: only count
            for task_type, batch in batches.items():
                if task_type not in writers:
                    writers[task_type] = stack.enter_context(_TableWriter(task_type, directory))
                writers[task_type].write(batch)
    if not rows:
        raise DataError(f"{file}: empty; expected one JSON object a line, a JSON list or a parquet table.")
    if rejected and (on_error == "raise" or not writers):
        raise DataError(_report(file, problems, rejected, rows), problems, rejected)
    return Stored(directory, [writer.stored() for writer in writers.values()], rows, rejected)


def _checked_ahead(unchecked: Iterable[Block]) -> Iterator[tuple[Block, Batches | None]]:
    """Blocks in order, each with its checked batches, or None where it has to be gone through row by row.

    Threads work a few blocks ahead: Arrow and NumPy do nearly all of it without Python's lock.
    """

    def check(block: Block) -> Batches | None:
        table = block.table()
        return None if table is None else checked_batches(table)

    with ThreadPoolExecutor(_THREADS) as pool:
        ahead: deque[tuple[Block, Future[Batches | None]]] = deque()
        for block in unchecked:
            ahead.append((block, pool.submit(check, block)))
            if len(ahead) > _THREADS:
                block, batches = ahead.popleft()
                yield block, batches.result()
        for block, batches in ahead:
            yield block, batches.result()


class _TableWriter:
    """Streams batches of one task into an Arrow file."""

    def __init__(self, task_type: TaskType, directory: Path) -> None:
        self._task_type = task_type
        self._file = f"{task_type}.arrow"
        self._sink = pa.ipc.new_stream(str(directory / self._file), TABLE_SCHEMA)
        self._extremes: list[float] = []  # lowest and highest score so far

    def __enter__(self) -> _TableWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self._sink.close()

    def write(self, batch: pa.RecordBatch) -> None:
        """Append a batch."""
        self._sink.write_batch(batch)
        for column in ("positive_scores", "negative_scores"):
            extremes = pc.min_max(batch[column].flatten()).as_py()
            if extremes["min"] is not None:
                self._extremes += extremes.values()
        self._extremes = [min(self._extremes), max(self._extremes)] if self._extremes else []

    def stored(self) -> StoredTable:
        """What was written."""
        return StoredTable(self._task_type, self._file, _pair(self._extremes))


def _rejected_line(row: RawRow, error: RowError) -> bytes:
    raw = json.dumps(row.raw, default=str) if isinstance(row.raw, dict) else row.raw.decode(errors="backslashreplace")
    record = {"line": row.line, "field": error.field, "reason": error.detail, "row": raw.rstrip("\r\n")}
    return json.dumps(record).encode() + b"\n"  # ASCII: a lone surrogate stays as it was spelled


def _report(file: Path, problems: list[Problem], rejected: int, rows: int) -> str:
    shown = f", the first {len(problems)} of them above" if rejected > len(problems) else ""
    summary = f"{file}: {rejected} of {rows} rows are bad{shown}. Correct them, or leave them out with --on-error skip."
    return "\n".join([*map(str, problems), summary])


def _pair(values: list[float] | None) -> tuple[float, float] | None:
    return (values[0], values[1]) if values else None
