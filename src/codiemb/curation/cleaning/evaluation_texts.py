"""The texts of evaluation sets: mteb's tasks and benchmarks, BEIR folders, unified files, tables, and plain text."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from codiemb.curation.cleaning.leaks import EvaluationText, Side
from codiemb.curation.cleaning.rows import RowStream
from codiemb.data.delimited import read_lines
from codiemb.data.documents import read_documents
from codiemb.data.examples import DataError, RowError
from codiemb.data.sources import DATA_SUFFIXES, REJECTED_SUFFIX, raw_rows
from codiemb.extras import require

_TABLES = (".tsv", ".csv", ".tsv.gz", ".csv.gz")
_PLAIN = (".txt", ".txt.gz")
_HEADER = re.compile(r"(?i)(sentence|text|query|question|document|passage|positive|negative|anchor|sent)_?[0-9a]?")
_NUMBER = re.compile(r"\s*[-+]?[0-9]+([.,][0-9]+)?\s*")


def evaluation_texts(sources: Sequence[str], *, dataset_root: Path | None = None) -> Iterator[EvaluationText]:
    """All texts of evaluation sets, each with its set, side and id.

    A source is, in this order:
    - a BEIR folder: its queries and its corpus; any other folder: everything in it that is named here;
    - a file of the unified format: its queries, and as documents its positives and negatives; a file of documents;
    - a `.tsv` or `.csv`: the first column of texts is the query, the others are documents; numbers are
      left out, and so is a first line that names columns, as `sentence1`;
    - a `.txt` file: each line is a query;
    - the name of a task or benchmark of mteb, its test splits, from `dataset_root` (`ROOT/<org>/<name>`) or the hub.

    Raises:
        DataError: a missing or bad file.
        ValueError: neither a file nor a name that mteb knows.
    """
    for source in sources:
        path = Path(source)
        texts = _from_path(path) if path.exists() else _from_mteb(source, dataset_root)
        yield from (one for one in texts if one.text.strip())


def _from_path(path: Path) -> Iterator[EvaluationText]:
    if path.is_dir():
        if any((path / f"corpus.jsonl{suffix}").is_file() for suffix in ("", ".gz")):
            yield from _beir(path)
            return
        children = [
            child
            for child in sorted(path.iterdir())
            if child.is_dir() or child.name.endswith((*DATA_SUFFIXES, *_TABLES, *_PLAIN))
        ]
        children = [child for child in children if child.name[0] != "." and not child.name.endswith(REJECTED_SUFFIX)]
        if not children:
            raise DataError(f"{path}: nothing to read in this folder.")
        yield from chain.from_iterable(map(_from_path, children))
    elif path.name.endswith(_TABLES):
        yield from _table(path)
    elif path.name.endswith(_PLAIN):
        yield from (EvaluationText(one.text, "query", str(path), one.id) for one in read_documents(path))
    elif path.name.endswith(DATA_SUFFIXES):
        yield from _unified(path) if _is_unified(path) else _documents(path, str(path))
    else:
        known = ", ".join((*DATA_SUFFIXES, *_TABLES, *_PLAIN))
        raise DataError(f"{path}: not a kind that is read here; expected a folder or a name that ends in {known}.")


def _beir(folder: Path) -> Iterator[EvaluationText]:
    for name in ("queries.jsonl", "queries.jsonl.gz"):
        if (folder / name).is_file():
            for one in read_documents(folder / name):
                yield EvaluationText(one.text, "query", str(folder), one.id)
    yield from _documents(folder, str(folder))


def _documents(path: Path, source: str) -> Iterator[EvaluationText]:
    for one in read_documents(path):
        yield EvaluationText(one.text, "document", source, one.id)


def _is_unified(path: Path) -> bool:
    row = next(raw_rows(path), None)
    try:
        first = row and row.decode()
    except RowError:
        return True  # whose check says what is wrong
    return isinstance(first, Mapping) and "query" in first


def _unified(path: Path) -> Iterator[EvaluationText]:
    for row in RowStream([path]):
        yield EvaluationText(row.example.query.full, "query", str(path), str(row.line))
        for side, index, text in row.candidates():
            yield EvaluationText(text.full, "document", str(path), f"{row.line}:{side}[{index}]")


def _table(path: Path) -> Iterator[EvaluationText]:
    for place, line in enumerate(read_lines(path)):
        if line.problem:
            raise DataError(f"{path}:{line.number}: row: {line.problem}.")
        if place == 0 and any(_HEADER.fullmatch(field.strip()) for field in line.fields):
            continue
        side: Side = "query"
        for text in line.fields:
            if not _NUMBER.fullmatch(text):
                yield EvaluationText(text, side, str(path), str(line.number))
                side = "document"


def _from_mteb(name: str, dataset_root: Path | None) -> Iterator[EvaluationText]:
    mteb = require("mteb", "benchmark")
    from codiemb.evaluation import benchmark, offline

    if "/" in name or name.endswith((*DATA_SUFFIXES, *_TABLES, *_PLAIN)):
        raise DataError(f"{name}: no such file or folder.")
    is_benchmark = name not in benchmark.task_names() and any(
        name in (one.name, *(one.aliases or ())) for one in mteb.get_benchmarks()
    )
    for task in benchmark.select(name) if is_benchmark else benchmark.select(tasks=[name]):
        for part in getattr(task.metadata, "tasks", None) or [task]:
            loaded = offline.attach(part, dataset_root) if dataset_root else part
            loaded.load_data()
            yield from _task_texts(loaded)


def _task_texts(task: Any) -> Iterator[EvaluationText]:
    name = f"mteb:{task.metadata.name}"
    subsets = task.dataset if _nested(task) else {"default": task.dataset}
    for splits in subsets.values():
        for split in task.eval_splits:
            content = splits.get(split)
            if content is None:
                continue
            if isinstance(content, Mapping) and "corpus" in content:
                for part, side in (("queries", "query"), ("corpus", "document")):
                    for row in content[part]:
                        text = "\n".join(filter(None, (row.get("title"), row["text"])))
                        yield EvaluationText(text, side, name, str(row["id"]))  # type: ignore[arg-type]
            else:
                yield from _split_texts(task, content, name, split)


def _nested(task: Any) -> bool:
    """Whether there are splits of subsets, as in retrieval and in tasks of several languages."""
    first = next(iter(task.dataset.values()))
    return isinstance(first, Mapping) and "corpus" not in first


def _split_texts(task: Any, rows: Any, name: str, split: str) -> Iterator[EvaluationText]:
    labels = {getattr(task, "label_column_name", "label"), "labels", "id", "idx"}
    columns = [column for column in rows.column_names if column not in labels]
    for number, row in enumerate(rows):
        side: Side = "query"
        for column in columns:
            values = row[column] if isinstance(row[column], list) else [row[column]]
            texts = [value for value in values if isinstance(value, str)]
            for text in texts:
                yield EvaluationText(text, side, name, f"{split}:{number}")
            if texts and len(columns) > 1:
                side = "document"
