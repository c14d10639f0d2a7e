"""Query, document and relevance, one judgement a line."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Literal

from codiemb.data.cache import Progress
from codiemb.data.converters.common import Columns, Conversion, Dropped, check_paths, write
from codiemb.data.delimited import read_columns
from codiemb.data.examples import DataError, Example, RowError, parse_text


def relevance_list(
    source: Path,
    output: Path,
    *,
    task: Literal["ir", "reranking"] = "ir",
    columns: Columns = ("query", "document", "relevance"),
    header: bool | None = None,
    threshold: float = 1.0,
    instruction: str = "",
    progress: Progress | None = None,
) -> Conversion:
    """Rows of `ir` or `reranking` from a TSV or CSV file in any order: one for each query, with relevance as scores.

    A document of relevance `threshold` or more is a positive, of 0 or less a negative; between, it is left out. If it
    stands under its query twice, its highest relevance counts. Judgements are grouped in a temporary database on disk;
    only the queries are held in memory.

    Args:
        columns: query, document and relevance.
        header: whether the first line is one; None: yes where `columns` are names.
        threshold: > 0.

    Raises:
        DataError: a missing file or column, a threshold of 0 or less, or no good row.
    """
    check_paths(source, output)
    if not threshold > 0:
        raise DataError(f"threshold={threshold}; expected more than 0, since relevance 0 makes a negative.")
    dropped = Dropped()
    numbers: dict[str, int] = {}  # of the queries, in order of appearance

    def judgements() -> Iterator[tuple[int, str, float]]:
        lines = read_columns(source, columns, header=header)
        for place, (query, document, relevance_text) in dropped.fields(lines, source):
            if (relevance := dropped.number(relevance_text, "relevance", place)) is None:
                continue
            try:
                parse_text(query, "query")
                parse_text(document, "document")
            except RowError as error:
                dropped.add(error.reason, place)
                continue
            if relevance >= threshold or relevance <= 0:
                yield numbers.setdefault(query, len(numbers)), document, relevance
            else:
                dropped.add("relevance between 0 and the threshold", place)

    def examples() -> Iterator[Example]:
        with closing(sqlite3.connect("")) as store:  # "" is a private file that is gone afterwards
            store.execute("CREATE TABLE judgement (query INTEGER, document TEXT, relevance REAL)")
            store.executemany("INSERT INTO judgement VALUES (?, ?, ?)", judgements())
            queries = list(numbers)
            rows = store.execute("SELECT query, document, relevance FROM judgement ORDER BY query, rowid")
            for number, group in groupby(rows, key=itemgetter(0)):
                place = f"{source}: {queries[number]!r}"
                best: dict[str, float] = {}
                for _, document, relevance in group:
                    if document in best:
                        dropped.add("document repeated under its query", place)
                    best[document] = max(relevance, best.get(document, relevance))
                positives = {document: grade for document, grade in best.items() if grade > 0}
                negatives = {document: grade for document, grade in best.items() if grade <= 0}
                if not positives:
                    dropped.add("query: no positive document", place)
                    continue
                example = {
                    "task_type": task,
                    "query": [instruction, "", queries[number]],
                    "positives": list(positives),
                    "negatives": list(negatives),
                    "positive_scores": list(positives.values()),
                    "negative_scores": list(negatives.values()),
                }
                yield from dropped.checked(example, place)

    return write(examples(), output, dropped, progress)
