"""The documents of a corpus, one after the other: files of text, jsonl and parquet, whatever their size."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

from codiemb.data.documents import Line
from codiemb.data.examples import DataError, Problem, RowError
from codiemb.data.sources import open_bytes
from codiemb.data.text_rows import input_kind, text_rows
from codiemb.training.pretraining.recipe import Corpus

Division = Literal["paragraphs", "lines", "file"]

#: File names that a directory is searched for.
SUFFIXES = (".txt", ".txt.gz", ".md", ".md.gz", ".jsonl", ".jsonl.gz", ".ndjson", ".ndjson.gz", ".parquet")

_TABLES = (".json", ".csv", ".tsv")


def corpus_files(corpora: Sequence[Corpus]) -> list[tuple[Path, Corpus]]:
    """The files of all corpora, in the order given and by name within a directory.

    Raises:
        DataError: a path that is not there, a directory without such files, or a file that is given twice.
    """
    files: list[tuple[Path, Corpus]] = []
    for corpus in corpora:
        if corpus.path.is_dir():
            inside = sorted(path for path in corpus.path.iterdir() if path.name.endswith(SUFFIXES) and path.is_file())
            if not inside:
                raise DataError(f"{corpus.path}: no text in this directory; expected {', '.join(SUFFIXES)}.")
            files += [(path, corpus) for path in inside]
        elif corpus.path.is_file():
            files.append((corpus.path, corpus))
        else:
            raise DataError(f"{corpus.path}: no such file or directory.")
    seen: set[Path] = set()
    for path, _ in files:
        if path.name.removesuffix(".gz").endswith(_TABLES):
            raise DataError(f"{path}: not a kind that is read here; expected text, .jsonl or .parquet. Convert it.")
        if path.resolve() in seen:
            raise DataError(f"{path}: given twice, so that its documents would count twice. Give it once.")
        seen.add(path.resolve())
    return files


def documents(path: Path, corpus: Corpus) -> Iterator[str]:
    """The documents of one file that are not blank; only one is held at a time.

    Raises:
        DataError: a bad row, with its line.
    """
    kind = input_kind(str(path))
    texts = _divided(path, corpus.documents) if kind == "text" else _fields(path, kind, corpus.text_field)
    for text in texts:
        if text.strip():
            yield text


def _fields(path: Path, kind: Literal["jsonl", "parquet"], field: str) -> Iterator[str]:
    for row in text_rows(str(path), kind, field):
        yield row.text


def _divided(path: Path, division: Division) -> Iterator[str]:
    """A text file as documents, without the line ends around them."""
    lines = _lines(path)
    if division == "lines":
        yield from (line.rstrip("\r\n") for line in lines)
        return
    held: list[str] = []
    for line in lines:
        if division == "paragraphs" and not line.strip():
            yield "".join(held).strip("\r\n")
            held = []
        else:
            held.append(line)
    yield "".join(held).strip("\r\n")


def _lines(path: Path) -> Iterator[str]:
    with open_bytes(path) as stream:
        for number, raw in enumerate(stream, 1):
            try:
                yield Line(number, raw).decode()
            except RowError as error:
                problem = Problem(str(path), number, error.field, error.detail)
                raise DataError(str(problem), [problem], 1) from None
