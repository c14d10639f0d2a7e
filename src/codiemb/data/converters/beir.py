"""BEIR folders (Thakur et al., 2021, arXiv:2104.08663)."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from codiemb.data.cache import Progress
from codiemb.data.converters.common import Conversion, Dropped, check_paths, write
from codiemb.data.delimited import read_columns
from codiemb.data.examples import DataError, Example, RowError, parse_text

Judgements = dict[str, dict[str, float]]


def beir(
    folder: Path,
    output: Path,
    *,
    split: str | None = None,
    title: bool = True,
    instruction: str = "",
    progress: Progress | None = None,
) -> Conversion:
    """Rows of `ir` from `corpus.jsonl`, `queries.jsonl` and `qrels/SPLIT.tsv`: one for each judged query.

    All documents judged above 0 are positives, their grades the positive scores. Texts of the corpus wait in a
    temporary database on disk; only ids are held in memory.

    Args:
        split: which file of `qrels`; None where there is only one.
        title: put a document's title before its text.

    Raises:
        DataError: another layout, several splits and no choice, or no good row.
    """
    qrels = _qrels(folder, split)
    check_paths(qrels, output)
    corpus, queries = _part(folder, "corpus"), _part(folder, "queries")
    dropped = Dropped()

    def examples() -> Iterator[Example]:
        judged = _judgements(qrels, dropped)
        needed = {document for documents in judged.values() for document in documents}
        with closing(sqlite3.connect("")) as store:  # "" is a private file that is gone afterwards
            store.execute("CREATE TABLE document (id TEXT PRIMARY KEY, text TEXT) WITHOUT ROWID")
            documents = _documents(corpus, needed, title, dropped)
            store.executemany("INSERT OR REPLACE INTO document VALUES (?, ?)", documents)
            for place, query_id, query in _objects(queries, dropped):
                grades = judged.pop(query_id, None)
                if grades is None:
                    dropped.add("query: not judged in this split", place)
                    continue
                positives = {}
                for document, grade in grades.items():
                    if row := store.execute("SELECT text FROM document WHERE id = ?", (document,)).fetchone():
                        positives[row[0]] = grade
                    else:
                        dropped.add("judgement: no good document of this id in the corpus", f"{qrels}: {document}")
                if not positives:
                    dropped.add("query: no positive document", place)
                    continue
                example = {
                    "task_type": "ir",
                    "query": [instruction, "", query.get("text")],
                    "positives": list(positives),
                    "positive_scores": list(positives.values()),
                }
                yield from dropped.checked(example, place)
        for query_id in judged:
            dropped.add("judgement: no query of this id", f"{qrels}: {query_id}")

    return write(examples(), output, dropped, progress)


def _part(folder: Path, name: str) -> Path:
    for path in (folder / f"{name}.jsonl", folder / f"{name}.jsonl.gz"):
        if path.is_file():
            return path
    raise DataError(f"{folder}: no {name}.jsonl; expected corpus.jsonl, queries.jsonl and qrels/SPLIT.tsv.")


def _qrels(folder: Path, split: str | None) -> Path:
    splits = {path.stem: path for path in sorted((folder / "qrels").glob("*.tsv"))}
    if not splits:
        raise DataError(f"{folder}: no qrels/*.tsv; expected corpus.jsonl, queries.jsonl and qrels/SPLIT.tsv.")
    if split is None and len(splits) == 1:
        return next(iter(splits.values()))
    if split not in splits:
        given = "several splits" if split is None else f"no split {split!r}"
        raise DataError(f"{folder}: {given} in qrels; choose one with split (--split): {', '.join(splits)}.")
    return splits[split]


def _judgements(qrels: Path, dropped: Dropped) -> Judgements:
    judged: Judgements = {}
    lines = read_columns(qrels, ("query-id", "corpus-id", "score"))
    for place, (query, document, grade_text) in dropped.fields(lines, qrels):
        if (grade := dropped.number(grade_text, "judgement: score", place)) is None:
            continue
        if grade > 0:
            judged.setdefault(query, {})[document] = grade
        else:
            dropped.add("judgement: not relevant (0 or less)", place)
    return judged


def _documents(corpus: Path, needed: set[str], title: bool, dropped: Dropped) -> Iterator[tuple[str, str]]:
    for place, document_id, document in _objects(corpus, dropped):
        if document_id not in needed:
            continue
        parts = [document.get("title") if title else None, document.get("text")]
        try:
            text = parse_text(" ".join(str(part) for part in parts if part), "document").text
        except RowError as error:
            dropped.add(error.reason, place)
        else:
            yield document_id, text


def _objects(path: Path, dropped: Dropped) -> Iterator[tuple[str, str, dict[str, object]]]:
    for place, value in dropped.rows(path):
        if isinstance(value, dict) and "_id" in value:
            yield place, str(value["_id"]), value
        else:
            dropped.add("not an object with _id", place)
