"""Sentence pairs with scores."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from codiemb.data.cache import Progress
from codiemb.data.converters.common import Columns, Conversion, Dropped, check_paths, write
from codiemb.data.delimited import read_columns
from codiemb.data.examples import Example


def scored_pairs(
    source: Path,
    output: Path,
    *,
    task: Literal["sts", "pair_classification"] = "sts",
    columns: Columns = ("sentence1", "sentence2", "score"),
    header: bool | None = None,
    instruction: str = "",
    progress: Progress | None = None,
) -> Conversion:
    """Rows of `sts` or `pair_classification` from a TSV or CSV file. Scores stay as they are.

    Args:
        columns: the two sentences and the score.
        header: whether the first line is one; None: yes where `columns` are names.

    Raises:
        DataError: a missing file or column, or no good row.
    """
    check_paths(source, output)
    dropped = Dropped()

    def examples() -> Iterator[Example]:
        lines = read_columns(source, columns, header=header)
        for place, (first, second, score_text) in dropped.fields(lines, source):
            if (score := dropped.number(score_text, "score", place)) is not None:
                row = {
                    "task_type": task,
                    "query": [instruction, "", first],
                    "positives": [[instruction, "", second]],
                    "positive_scores": [score],
                }
                yield from dropped.checked(row, place)

    return write(examples(), output, dropped, progress)
