"""Data files into tables on disk: every row checked, memory bounded, the result cached and memory-mapped."""

from __future__ import annotations

import logging
import os
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from codiemb.bundled import cache_root
from codiemb.data.cache import REJECTED_FILE, OnError, Progress, Stored, stored_tables
from codiemb.data.examples import DataError, Problem, TaskType
from codiemb.data.sources import DATA_SUFFIXES, REJECTED_SUFFIX

if TYPE_CHECKING:
    import datasets

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TaskTable:
    """The rows of one task in one file, memory-mapped.

    Attributes:
        name: the file's name without its suffix, longer where two files share it, `:task` added where a file has
            several tasks. Unique in one call of `read`.
        rows: columns query, positives, negatives, positive_scores, negative_scores. A table of `sts` or
            `pair_classification` has one scored pair a row: its candidate is the only positive.
        rejected: bad rows of the file that were skipped; counted at the file's first table only.
        score_range: lowest and highest score as given in the file, None without scores.
    """

    name: str
    task_type: TaskType
    rows: datasets.Dataset
    source: Path
    rejected: int
    score_range: tuple[float, float] | None


def read(
    paths: str | Path | Sequence[str | Path],
    *,
    on_error: OnError = "raise",
    rejected_to: Path | None = None,
    cache_dir: Path | None = None,
    progress: Progress | None = None,
) -> list[TaskTable]:
    """Read files of the unified format (`.jsonl`, `.json`, `.parquet`, the first two also `.gz`).

    A file is parsed once: its tables are kept in `cache_dir` under its path, size and time of change, and reading it
    again maps them into memory. Two processes may read the same file at once.

    Args:
        paths: files, or directories: all data files right in them, by name.
        on_error: "raise" reports the first 20 bad rows of each file and how many there are; "skip" leaves bad rows out,
            counts them, and writes them with line and reason to `<name>.rejected.jsonl`.
        rejected_to: directory of those side files; None: beside the data.
        cache_dir: None: `data` in codiemb's cache directory (`$CODIEMB_CACHE`).
        progress: called now and then with the number of rows read since the last call.

    Returns:
        One table for each file and task, files in the order given.

    Raises:
        DataError: a missing or empty file, or bad rows.
    """
    files = data_files([paths] if isinstance(paths, (str, Path)) else paths)
    cache_dir = cache_dir or cache_root() / "data"
    cache_dir.mkdir(parents=True, exist_ok=True)
    tables: list[TaskTable] = []
    errors: list[DataError] = []
    for name, file in zip(_unique_names(files), files, strict=True):
        try:
            stored = stored_tables(file, cache_dir, on_error, progress)
        except DataError as error:
            errors.append(error)  # the other files are checked too: one run shows all that is wrong
            continue
        if stored.rejected:
            side_file = _copy_rejected(stored, rejected_to or file.parent, name)
            logger.warning("%s: %d of %d rows left out, see %s", file, stored.rejected, stored.rows, side_file)
        tables += _open_tables(name, file, stored)
    if errors:
        problems: list[Problem] = [problem for error in errors for problem in error.problems]
        raise DataError("\n".join(map(str, errors)), problems, sum(error.total for error in errors))
    return tables


def _open_tables(name: str, file: Path, stored: Stored) -> list[TaskTable]:
    from datasets import Dataset  # slow to import

    tables: list[TaskTable] = []
    for table in stored.tables:
        rows = Dataset.from_file(str(stored.directory / table.file))
        full_name = name if len(stored.tables) == 1 else f"{name}:{table.task_type}"
        rejected = 0 if tables else stored.rejected
        tables.append(TaskTable(full_name, table.task_type, rows, file, rejected, table.score_range))
    return tables


def _copy_rejected(stored: Stored, directory: Path, name: str) -> Path:
    target = directory / f"{name.replace('/', '-')}{REJECTED_SUFFIX}"
    partial = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        directory.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(stored.directory / REJECTED_FILE, partial)
        partial.replace(target)
    except OSError as error:
        raise DataError(
            f"{target}: the rejected rows cannot be written ({error.strerror}). "
            "Choose another directory with rejected_to (--rejected-to)."
        ) from None
    return target


def data_files(paths: Sequence[str | Path]) -> list[Path]:
    """The files themselves, and all data files right in a directory, by name.

    Raises:
        DataError: nothing given, nothing there, or a file given twice.
    """
    files: list[Path] = []
    missing = []
    for path in map(Path, paths):
        if path.is_dir():
            found = sorted(child for child in path.iterdir() if _is_data(child))
            if not found:
                raise DataError(f"{path}: no data files in this directory; expected {', '.join(DATA_SUFFIXES)}.")
            files += found
        elif path.is_file():
            files.append(path)
        else:
            missing.append(f"{path}: no such file or directory.")
    if missing:
        raise DataError("\n".join(missing))
    if not files:
        raise DataError("No data files were given; expected at least one path.")
    for path, times in Counter(path.resolve() for path in files).items():
        if times > 1:
            raise DataError(f"{path}: given {times} times, so that its rows would count {times} times. Give it once.")
    return files


def _is_data(path: Path) -> bool:
    name = path.name
    return name.endswith(DATA_SUFFIXES) and not name.endswith(REJECTED_SUFFIX) and name[0] != "." and path.is_file()


def _unique_names(files: Sequence[Path]) -> list[str]:
    """File names without suffix; where two are equal, with their directories, and if need be with the suffix."""
    common = Path(os.path.commonpath([path.resolve().parent for path in files]))
    relative = [path.resolve().relative_to(common) for path in files]
    names = [stem(path.name) for path in files]
    for longer in ([stem(path.as_posix()) for path in relative], [path.as_posix() for path in relative]):
        times = Counter(names)
        names = [name if times[name] == 1 else long for name, long in zip(names, longer, strict=True)]
    return names


def stem(name: str) -> str:
    """A data file's name without its suffix."""
    return next((name.removesuffix(suffix) for suffix in DATA_SUFFIXES if name.endswith(suffix)), name)
