"""What all converters share: counting what is left out, and writing."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from codiemb.data.cache import Progress
from codiemb.data.delimited import Line
from codiemb.data.examples import DataError, Example, RowError, parse_example
from codiemb.data.sources import raw_rows
from codiemb.data.writers import Noted, check_output, write_examples

logger = logging.getLogger(__name__)

#: Names in the header, or numbers from 1.
Columns = Sequence[str] | Sequence[int]

_PROGRESS_ROWS = 1000
_LOGGED = 5  # places named in the log, for each reason


@dataclass(frozen=True)
class Conversion:
    """What became of a source: rows written, and how many items of it were left out, by reason."""

    output: Path
    rows: int
    dropped: dict[str, int]


class Dropped:
    """Counts what a conversion leaves out, and names the first places in the log."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()

    def add(self, reason: str, place: str) -> None:
        """Count one item."""
        self.counts[reason] += 1
        if self.counts[reason] <= _LOGGED:
            logger.warning("%s: left out: %s", place, reason)

    def checked(self, row: Mapping[str, object], place: str) -> Iterator[Example]:
        """The row as an example, or nothing and a count."""
        try:
            yield parse_example(row)
        except RowError as error:
            self.add(error.reason, place)

    def fields(self, lines: Iterable[Line], source: Path) -> Iterator[tuple[str, list[str]]]:
        """Place and fields of the lines that could be taken apart."""
        for line in lines:
            place = f"{source}:{line.number}"
            if line.problem:
                self.add(line.problem, place)
            else:
                yield place, line.fields

    def number(self, text: str, name: str, place: str) -> float | None:
        """The text as a number, or None and a count."""
        try:
            return float(text)
        except ValueError:
            self.add(f"{name} is not a number", place)
            return None

    def rows(self, source: Path) -> Iterator[tuple[str, object]]:
        """Place and value of the rows of a JSON or parquet file that could be decoded."""
        for row in raw_rows(source):
            place = f"{source}:{row.line}"
            try:
                value = row.decode()
            except RowError as error:
                self.add("broken JSON", f"{place}: {error.detail}")
            else:
                yield place, value


def check_paths(source: Path, output: Path) -> None:
    """Refuse a source that is not there, an output of unknown kind, and one that is the source itself.

    Raises:
        DataError: saying which.
    """
    if not source.is_file():
        raise DataError(f"{source}: no such file.")
    check_output(output)
    if output.resolve() == source.resolve():
        raise DataError(f"{output}: is the source itself. Choose another output.")


def write(examples: Iterable[Example | Noted], output: Path, dropped: Dropped, progress: Progress | None) -> Conversion:
    """Write the examples and say what became of the source.

    Raises:
        DataError: there is no example.
    """
    rows = write_examples(_counted(examples, progress) if progress else examples, output)
    return Conversion(output, rows, dict(dropped.counts))


def _counted(examples: Iterable[Example | Noted], progress: Progress) -> Iterator[Example | Noted]:
    count = 0
    for count, example in enumerate(examples, 1):
        yield example
        if count % _PROGRESS_ROWS == 0:
            progress(_PROGRESS_ROWS)
    progress(count % _PROGRESS_ROWS)
