"""BEIR folders (Thakur et al., 2021, arXiv:2104.08663): corpus.jsonl, queries.jsonl and qrels/<split>.tsv."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from codiemb.data.delimited import read_lines
from codiemb.data.documents import document_text, plain_string
from codiemb.data.examples import DataError, Problem, RowError, Text
from codiemb.data.sources import raw_rows
from codiemb.evaluation.tasks import RetrievalTask

_SPLITS = ("test", "dev")  # the first of them that is there is taken

Qrels = dict[str, dict[str, int]]


def is_beir(path: Path) -> bool:
    """Whether `path` is meant as a BEIR folder; it may still be incomplete."""
    return path.is_dir() and ((path / "qrels").is_dir() or _json_file(path, "corpus").is_file())


def read_beir(path: Path) -> RetrievalTask:
    """Read a BEIR folder, or the split of it whose qrels file `path` is.

    Queries without a relevant document in the split are left out and counted.

    Raises:
        DataError: a missing file, a bad row, an id that is there twice or in the qrels only.
    """
    folder, qrels_file = (path, _choose_split(path)) if path.is_dir() else (path.parent.parent, path)
    queries = _read_texts(_json_file(folder, "queries"))
    corpus = _read_texts(_json_file(folder, "corpus"))
    qrels = _read_qrels(qrels_file, queries, corpus)
    relevant = {id_: queries[id_] for id_, documents in qrels.items() if max(documents.values()) > 0}
    counts = {
        "queries_without_judgements": len(queries) - len(qrels),
        "queries_without_relevant_documents": len(qrels) - len(relevant),
        "empty_documents": sum(not text.text.strip() for text in corpus.values()),
    }
    name = folder.resolve().name if path.is_dir() else f"{folder.resolve().name}:{path.stem}"
    return RetrievalTask(name, str(path), relevant, corpus, qrels, counts)


def plain_text(value: object, field: str) -> Text:
    """A string without instruction. Empty ones and control characters pass: an evaluation takes data as published.

    Raises:
        RowError: not a string, or not UTF-8.
    """
    return Text("", "", plain_string(value, field))


def _json_file(folder: Path, name: str) -> Path:
    compressed = folder / f"{name}.jsonl.gz"
    return compressed if compressed.is_file() else folder / f"{name}.jsonl"


def _choose_split(folder: Path) -> Path:
    files = {path.stem: path for path in sorted((folder / "qrels").glob("*.tsv"))}
    for split in _SPLITS:
        if split in files:
            return files[split]
    if len(files) == 1:
        return next(iter(files.values()))
    have = f"has {', '.join(path.name for path in files.values())}" if files else "has none"
    raise DataError(
        f"{folder}/qrels: {have}; expected test.tsv, dev.tsv or one other .tsv. "
        "Give the path of one qrels file to choose it."
    )


def _read_texts(path: Path) -> dict[str, Text]:
    """Texts by id, of `{"_id", "text"}` rows with or without a title."""
    if not path.is_file():
        raise DataError(f"{path}: no such file; a BEIR folder has corpus.jsonl, queries.jsonl and qrels/*.tsv.")
    texts: dict[str, Text] = {}
    for row in raw_rows(path):
        try:
            id_, text = _id_and_text(row.decode())
            if id_ in texts:
                raise RowError("_id", "there twice", "an id of its own for each row", id_)
        except RowError as error:
            raise _located(path, row.line, error) from None
        texts[id_] = text
    if not texts:
        raise DataError(f'{path}: empty; expected rows such as {{"_id": "1", "text": "..."}}.')
    return texts


def _id_and_text(row: object) -> tuple[str, Text]:
    if not isinstance(row, dict):
        raise RowError("row", "not an object", 'an object such as {"_id": "1", "text": "..."}', row)
    id_ = row.get("_id")
    if type(id_) not in (str, int):
        raise RowError("_id", "missing" if id_ is None else "not an id", "a string", *([] if id_ is None else [id_]))
    text = plain_string(row.get("text"), "text")
    title = plain_string(row.get("title") or "", "title")
    return str(id_), Text("", "", document_text(title, text))


def _read_qrels(path: Path, queries: Mapping[str, Text], corpus: Mapping[str, Text]) -> Qrels:
    qrels: Qrels = {}
    unknown: list[str] = []
    for line, query_id, document_id, relevance in _qrels_rows(path, queries):
        if query_id not in queries:
            unknown.append(f"query {query_id!r} in line {line}")
        elif document_id not in corpus:
            unknown.append(f"document {document_id!r} in line {line}")
        elif qrels.setdefault(query_id, {}).setdefault(document_id, relevance) != relevance:
            error = RowError("score", "two values for one pair", f"{qrels[query_id][document_id]} as before", relevance)
            raise _located(path, line, error)
    if unknown:
        raise DataError(
            f"{path}: {len(unknown)} rows name ids that queries.jsonl and corpus.jsonl do not have: "
            f"{', '.join(unknown[:5])}{', ...' if len(unknown) > 5 else ''}. Fetch the data set again or remove them."
        )
    return qrels


def _qrels_rows(path: Path, queries: Mapping[str, Text]) -> Iterator[tuple[int, str, str, int]]:
    """Line, query id, document id and relevance of each row; a first line that is a header is passed over."""
    first = True
    for line in read_lines(path):
        is_first, first = first, False
        try:
            if line.problem or len(line.fields) != 3:
                problem = line.problem or f"{len(line.fields)} fields"
                raise RowError("row", problem, "query id, corpus id and score, separated by tabs")
            query_id, document_id, score = line.fields
            try:
                relevance = float(score)
            except ValueError:
                relevance = float("nan")
            if not relevance.is_integer():
                if is_first and query_id not in queries:
                    continue
                raise RowError("score", "not a relevance", "a whole number", score)
            yield line.number, query_id, document_id, int(relevance)
        except RowError as error:
            raise _located(path, line.number, error) from None


def _located(path: Path, line: int, error: RowError) -> DataError:
    problem = Problem(str(path), line, error.field, error.detail)
    return DataError(str(problem), [problem], 1)
