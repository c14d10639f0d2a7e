"""From paths to evaluation tasks: BEIR folders, scored pairs, unified files, and folders of these."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from codiemb.data.delimited import read_lines
from codiemb.data.examples import DataError, Problem, RowError, Text
from codiemb.data.readers import TaskTable, read
from codiemb.data.sources import DATA_SUFFIXES, REJECTED_SUFFIX
from codiemb.evaluation.beir import is_beir, plain_text, read_beir
from codiemb.evaluation.tasks import EvalTask, EvalType, PairTask, RerankingRow, RerankingTask, RetrievalTask

_PAIR_SUFFIXES = (".tsv", ".tsv.gz", ".csv", ".csv.gz")
_SUPPORTED = (
    "a BEIR folder (corpus.jsonl, queries.jsonl, qrels/*.tsv), scored pairs with a header (.tsv, .csv), or a file of "
    f"the unified format ({', '.join(DATA_SUFFIXES)})"
)
# Column names of scored pairs that are known wherever they stand; three columns of other names are taken in order.
_FIRST = ("sentence1", "text1", "query", "question1")
_SECOND = ("sentence2", "text2", "title", "passage", "document", "question2")
_SCORE = ("score", "label", "relevance", "similarity")


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
    found: list[tuple[Path, EvalTask]] = []
    for path in [Path(paths)] if isinstance(paths, (str, Path)) else map(Path, paths):
        if not path.exists():
            raise DataError(f"{path}: no such file or directory; expected {_SUPPORTED}.")
        tasks = list(_tasks_under(path, task_type))
        if not tasks:
            wanted = f"no {task_type} task" if task_type else "nothing to evaluate"
            raise DataError(f"{path}: {wanted} found; expected {_SUPPORTED}.")
        found += tasks
    return _with_unique_names(found)


def _tasks_under(path: Path, task_type: EvalType | None) -> Iterator[tuple[Path, EvalTask]]:
    if is_beir(path) or path.parent.name == "qrels":
        if task_type in (None, "ir"):
            yield path, read_beir(path)
    elif path.is_dir():
        for child in sorted(path.iterdir()):
            if not child.name.startswith(".") and (child.is_dir() or _is_data(child)):
                yield from _tasks_under(child, task_type)
    elif path.name.endswith(_PAIR_SUFFIXES):
        if task_type in (None, "sts"):
            yield path, _read_pairs(path)
    elif _is_data(path):
        for table in read(path):
            if task_type in (None, table.task_type):
                yield path, _from_table(table)
    else:
        raise DataError(f"{path}: not a file that can be evaluated; expected {_SUPPORTED}.")


def _is_data(path: Path) -> bool:
    return path.name.endswith((*DATA_SUFFIXES, *_PAIR_SUFFIXES)) and not path.name.endswith(REJECTED_SUFFIX)


def _with_unique_names(found: list[tuple[Path, EvalTask]]) -> list[EvalTask]:
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


# -- scored pairs ----------------------------------------------------------------------------------------------------


def _read_pairs(path: Path) -> PairTask:
    pairs: list[tuple[Text, Text]] = []
    scores: list[float] = []
    columns: tuple[int, int, int] | None = None
    for line in read_lines(path):
        try:
            if line.problem:
                raise RowError("row", line.problem, "as many as in the header, separated by " + _separator(path))
            if columns is None:
                columns = _columns(path, line.fields)
                continue
            first, second, score = (line.fields[column] for column in columns)
            scores.append(_number(score))
            pairs.append((plain_text(first, "text 1"), plain_text(second, "text 2")))
        except RowError as error:
            problem = Problem(str(path), line.number, error.field, error.detail)
            raise DataError(str(problem), [problem], 1) from None
    empty = sum(not text.text.strip() for pair in pairs for text in pair)
    name = next(path.name.removesuffix(suffix) for suffix in _PAIR_SUFFIXES if path.name.endswith(suffix))
    return PairTask(name, str(path), pairs, np.array(scores, dtype=np.float64), {"empty_texts": empty})


def _separator(path: Path) -> str:
    return "commas" if ".csv" in path.suffixes else "tabs"


def _columns(path: Path, header: list[str]) -> tuple[int, int, int]:
    """The places of the two texts and the score: by name, else the only three columns in order."""
    names = [name.strip().lower() for name in header]
    chosen = [[i for i, name in enumerate(names) if name in known] for known in (_FIRST, _SECOND, _SCORE)]
    if all(len(places) == 1 for places in chosen):
        return chosen[0][0], chosen[1][0], chosen[2][0]
    if len(names) != 3:
        raise DataError(
            f"{path}: {len(names)} columns by the first line, {header[:6]}. Expected a header and three columns "
            f"(text, text, score), separated by {_separator(path)}, or columns named sentence1, sentence2 and score."
        )
    try:
        float(header[2])
    except ValueError:
        return 0, 1, 2
    raise DataError(
        f"{path}: the first line has the score {header[2]!r}, expected a header: sentence1, sentence2, score."
    )


def _number(value: str) -> float:
    try:
        number = float(value)
    except ValueError:
        number = np.nan
    if not np.isfinite(number):
        raise RowError("score", "not a score", "a finite number", value)
    return number


# -- the unified format ----------------------------------------------------------------------------------------------


def _from_table(table: TaskTable) -> EvalTask:
    if table.task_type == "ir":
        return _retrieval(table)
    if table.task_type == "reranking":
        return _reranking(table)
    if table.task_type not in ("sts", "pair_classification"):
        raise DataError(
            f"{table.source}: has rows of {table.task_type}, which this command does not evaluate. It evaluates ir, "
            "sts, pair_classification and reranking; give a file of these."
        )
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
