"""One shuffled file of rows drawn from several, by weights."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TypeAlias

import numpy as np
import orjson

from codiemb.curation.cleaning.outputs import RejectedFile, RowFile, as_line, rejected_path
from codiemb.curation.cleaning.report import CleaningReport
from codiemb.curation.cleaning.rows import Row, RowStream
from codiemb.data.cache import OnError, Progress
from codiemb.data.examples import DataError, parse_example
from codiemb.data.writers import check_output

Integers: TypeAlias = "np.ndarray[tuple[int], np.dtype[np.int64]]"
Floats: TypeAlias = "np.ndarray[tuple[int], np.dtype[np.float64]]"

_BUCKET_ROWS = 50_000  # rows put in order in memory


def mix(
    files: Sequence[Path],
    output: Path,
    *,
    weights: Sequence[float] | None = None,
    temperature: float = 1.0,
    total: int | None = None,
    upsample: bool = False,
    seed: int = 0,
    on_error: OnError = "raise",
    progress: Progress | None = None,
) -> CleaningReport:
    """Draw rows from files and write them in one random order.

    Rows are drawn without replacement. A file that has fewer rows than its part gives all of them, and the others
    share what is missing; with `upsample` its rows come several times instead, each equally often up to one.

    Args:
        weights: one for each file, in any unit; None: their rows, so that every row is equally likely.
        temperature: weights are raised to the power of 1 / temperature: 1 leaves them, more brings them closer.
        total: rows to write; None: as many as the weights allow without leaving a file with more than its part, and
            without weights all.
        seed: of the choice and of the order.
    Raises:
        DataError: bad rows, or more rows wanted than there are.
    """
    check_output(output)
    for path in files:
        if path.resolve() == output.resolve():
            raise DataError(f"{output}: is an input. Choose another output.")
    if weights is not None and (
        len(weights) != len(files) or any(weight < 0 for weight in weights) or not any(weights)
    ):
        raise DataError(f"weights {list(weights)}: expected one for each of {len(files)} files, none below 0.")
    if temperature <= 0:
        raise DataError(f"temperature {temperature:g}: expected more than 0.")
    stream = RowStream(files, on_error=on_error, progress=progress)
    sources = np.fromiter((row.file for row in stream), np.int64)
    counts = np.bincount(sources, minlength=len(files)).astype(np.int64)
    shares = np.array(weights if weights is not None else counts, np.float64) ** (1 / temperature)
    parts = _parts(counts, shares, total, upsample)
    times = _times(sources, counts, parts, seed)
    positions = np.random.default_rng((seed, 1)).permutation(int(times.sum()))
    with RowFile(output) as file, RejectedFile(rejected_path(output), stream) as rejected:
        rejected.add_bad_rows()
        _write_shuffled(stream, file, times, positions)
    details = {
        "rows_by_file": {
            str(path): {"read": int(count), "written": int(part)}
            for path, count, part in zip(files, counts, parts, strict=True)
        }
    }
    bad = dict(rejected.counts)
    read = stream.rows + len(stream.rejected)
    return CleaningReport(read, {str(output): file.rows}, bad, rejected.path if bad else None, 0, details)


def _parts(counts: Integers, weights: Floats, total: int | None, upsample: bool) -> Integers:
    """Rows to write of each file."""
    if (empty := (counts == 0) & (weights > 0)).any():
        raise DataError(f"file {int(np.argmax(empty)) + 1} has no good rows to draw from.")
    used = weights > 0
    available = int(counts[used].sum())
    if total is None:
        total = available if upsample else int(np.min(counts[used] / weights[used]) * weights.sum() + 1e-6)
    if total > available and not upsample:
        raise DataError(
            f"total {total:,}: more than the {available:,} rows that there are. Ask for fewer, or allow rows to come "
            "several times (--upsample)."
        )
    exact = np.zeros(len(counts), np.float64)
    open_ = used.copy()
    while (rest := total - exact.sum()) > 1e-6 and open_.any():
        exact[open_] += rest * weights[open_] / weights[open_].sum()
        if upsample:
            break
        full = open_ & (exact >= counts - 1e-9)
        exact[full] = counts[full]
        if not full.any():
            break
        open_ &= ~full
    parts = np.floor(exact + 1e-9).astype(np.int64)
    for i in np.argsort(parts - exact, kind="stable")[: total - int(parts.sum())]:
        parts[i] += 1
    return parts


def _times(sources: Integers, counts: Integers, parts: Integers, seed: int) -> Integers:
    """How often each row is written."""
    times = np.zeros(len(sources), np.int64)
    for index, (count, part) in enumerate(zip(counts.tolist(), parts.tolist(), strict=True)):
        if count:
            own = np.flatnonzero(sources == index)
            times[own] = part // count
            times[np.random.default_rng((seed, 0, index)).permutation(own)[: part % count]] += 1
    return times


def _write_shuffled(stream: RowStream, file: RowFile, times: Integers, positions: Integers) -> None:
    """Write rows in the order of `positions`: dealt into files of neighbouring positions, then these one by one."""
    following = 0
    buckets = len(positions) // _BUCKET_ROWS + 1
    with tempfile.TemporaryDirectory(prefix="codiemb-") as directory, ExitStack() as stack:
        paths = [Path(directory) / str(i) for i in range(buckets)]
        sinks = [stack.enter_context(path.open("wb")) for path in paths]
        for row in stream:
            line = as_line(row.raw)
            for _ in range(times[row.number]):
                bucket, place = divmod(int(positions[following]), _BUCKET_ROWS)
                sinks[bucket].write(b"%d\t%d\t%d\t" % (place, row.file, row.line) + line)
                following += 1
        for path, sink in zip(paths, sinks, strict=True):
            sink.close()
            lines = (line.split(b"\t", 3) for line in path.read_bytes().split(b"\n")[:-1])
            for number, (_, source, at, raw) in enumerate(sorted(lines, key=lambda parts: int(parts[0]))):
                file.write(Row(number, int(source), int(at), raw, parse_example(orjson.loads(raw))))
            path.unlink()
