"""From paths to evaluation tasks: BEIR folders, scored pairs, unified files, and folders of these."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from codiemb.data.examples import DataError, Text
from codiemb.data.readers import TaskTable, read
from codiemb.data.sources import DATA_SUFFIXES, REJECTED_SUFFIX
from codiemb.evaluation.beir import is_beir, read_beir
from codiemb.evaluation.tables import TABLE_SUFFIXES, read_table
from codiemb.evaluation.tasks import (
    AnyTask,
    EvalTask,
    EvalType,
    LabelledTask,
    LabelledType,
    PairTask,
    RerankingRow,
    RerankingTask,
    RetrievalTask,
)

_SUPPORTED = (
    "a BEIR folder (corpus.jsonl, queries.jsonl, qrels/*.tsv), scored pairs with a header (.tsv, .csv), or a file of "
    f"the unified format ({', '.join(DATA_SUFFIXES)})"
)


def discover(paths: str | Path | Sequence[str | Path], *, task_type: EvalType | None = None) -> list[EvalTask]:
    """Read everything that can be evaluated under `paths`.

    Args:
        paths: each a BEIR folder (split `test`, else `dev`, else the only one; the path of one qrels file chooses
            another split), a `.tsv` or `.csv` of scored pairs, a unified file, or a folder of any of these. Give all
            paths in one call: names are unique within it.
        task_type: only tasks of this type.
    Raises:
        DataError: a missing path, nothing to evaluate, or bad data, by file and line.
    """
    tasks: list[EvalTask] = []
    for task in discover_all(paths, task_type=task_type):
        if isinstance(task, LabelledTask):
            raise DataError(
                f"{task.source}: has rows of {task.type}, which this command does not evaluate. It evaluates ir, sts, "
                "pair_classification and reranking; give a file of these, or with --as-mteb labelled texts too."
            )
        tasks.append(task)
    return tasks


def discover_all(paths: str | Path | Sequence[str | Path], *, task_type: EvalType | None = None) -> list[AnyTask]:
    """As `discover`, and labelled texts: rows of classification and clustering, and tables of text and label."""
    found: list[tuple[Path, AnyTask]] = []
    for path in [Path(paths)] if isinstance(paths, (str, Path)) else map(Path, paths):
        if not path.exists():
            raise DataError(f"{path}: no such file or directory; expected {_SUPPORTED}.")
        tasks = list(_tasks_under(path, task_type))
        if not tasks:
            wanted = f"no {task_type} task" if task_type else "nothing to evaluate"
            raise DataError(f"{path}: {wanted} found; expected {_SUPPORTED}.")
        found += tasks
    return _with_unique_names(found)


def _tasks_under(path: Path, task_type: EvalType | None) -> Iterator[tuple[Path, AnyTask]]:
    if is_beir(path) or path.parent.name == "qrels":
        if task_type in (None, "ir"):
            yield path, read_beir(path)
    elif path.is_dir():
        for child in sorted(path.iterdir()):
            if not child.name.startswith(".") and (child.is_dir() or _is_data(child)):
                yield from _tasks_under(child, task_type)
    elif path.name.endswith(TABLE_SUFFIXES):
        yield from ((path, task) for task in read_table(path) if task_type in (None, task.type))
    elif _is_data(path):
        for table in read(path):
            if task_type in (None, table.task_type):
                yield path, _from_table(table)
    else:
        raise DataError(f"{path}: not a file that can be evaluated; expected {_SUPPORTED}.")


def _is_data(path: Path) -> bool:
    return path.name.endswith((*DATA_SUFFIXES, *TABLE_SUFFIXES)) and not path.name.endswith(REJECTED_SUFFIX)


def _with_unique_names(found: list[tuple[Path, AnyTask]]) -> list[AnyTask]:
    """Names that several tasks have get their folder's name, and if that is not enough their whole path."""
    names = [task.name for _, task in found]
    for longer in (
        [f"{path.resolve().parent.name}/{task.name}" for path, task in found],
        [f"{path.as_posix()} ({task.type})" for path, task in found],
    ):
        times = Counter(names)
        names = [name if times[name] == 1 else long for name, long in zip(names, longer, strict=True)]
    for name, count in Counter(names).items():
        if count > 1:
            raise DataError(f"{name}: given {count} times. Give it once.")
    return [replace(task, name=name) for name, (_, task) in zip(names, found, strict=True)]


# -- the unified format ----------------------------------------------------------------------------------------------


def _from_table(table: TaskTable) -> AnyTask:
    if table.task_type == "ir":
        return _retrieval(table)
    if table.task_type == "reranking":
        return _reranking(table)
    if table.task_type == "classification" or table.task_type == "clustering":
        return _labelled(table, table.task_type)
    rows = list(_rows(table))
    return PairTask(
        table.name,
        str(table.source),
        [(query, positives[0]) for query, positives, _, _ in rows],
        np.array([scores[0] for *_, scores in rows], dtype=np.float64),
        {"rejected_rows": table.rejected},
        type=table.task_type,
    )


def _rows(table: TaskTable) -> Iterator[tuple[Text, list[Text], list[Text], list[float]]]:
    """Query, positives, negatives and the positives' scores of each row."""
    for batch in table.rows.iter(batch_size=1000):
        for query, positives, negatives, scores in zip(
            batch["query"], batch["positives"], batch["negatives"], batch["positive_scores"], strict=True
        ):
            yield Text(**query), [Text(**text) for text in positives], [Text(**text) for text in negatives], scores


def _retrieval(table: TaskTable) -> RetrievalTask:
    """All rows as one task: every text of the file, a positive or a negative of any query, is in the corpus."""
    queries: dict[Text, str] = {}
    corpus: dict[Text, str] = {}
    qrels: dict[str, dict[str, int]] = {}
    for query, positives, negatives, _ in _rows(table):
        query_id = queries.setdefault(query, f"q{len(queries)}")
        for text in positives:
            qrels.setdefault(query_id, {})[corpus.setdefault(text, f"d{len(corpus)}")] = 1
        for text in negatives:
            corpus.setdefault(text, f"d{len(corpus)}")
    return RetrievalTask(
        table.name,
        str(table.source),
        {id_: text for text, id_ in queries.items()},
        {id_: text for text, id_ in corpus.items()},
        qrels,
        {"rejected_rows": table.rejected},
    )


def _reranking(table: TaskTable) -> RerankingTask:
    rows: list[RerankingRow] = []
    one_sided = 0
    for query, positives, negatives, _ in _rows(table):
        if positives and negatives:
            relevance = [1] * len(positives) + [0] * len(negatives)
            rows.append(RerankingRow(query, positives + negatives, relevance))
        else:
            one_sided += 1
    counts = {"rejected_rows": table.rejected, "rows_without_negatives": one_sided}
    return RerankingTask(table.name, str(table.source), rows, counts)


def _labelled(table: TaskTable, type_: LabelledType) -> LabelledTask:
    """Each row's query with its label, which is its only positive."""
    texts: list[Text] = []
    labels: list[str] = []
    several = 0
    for query, positives, _, _ in _rows(table):
        several += len(positives) > 1
        texts.append(query)
        labels.append(positives[0].full)
    if several:
        raise DataError(
            f"{table.source}: {several} rows of {table.task_type} have several positives; expected one, the label."
        )
    counts = {"rejected_rows": table.rejected}
    return LabelledTask(table.name, str(table.source), texts, labels, type_, counts)
