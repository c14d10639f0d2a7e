"""Documents to search in, or queries, from files: a stream of texts with their ids and other fields."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from codiemb.data.examples import DataError, Problem, RowError
from codiemb.data.sources import DATA_SUFFIXES, RawRow, open_bytes, raw_rows

DOCUMENT_TEXT = "title and text on two lines, unless the text starts with the title"

#: File names that `read_documents` knows.
DOCUMENT_SUFFIXES = (*DATA_SUFFIXES, ".txt", ".txt.gz")

_CORPUS_FILES = ("corpus.jsonl", "corpus.jsonl.gz")  # of a BEIR folder
ID_FIELDS = ("_id", "id")


class Document(NamedTuple):
    """A text with its id; `metadata` holds the row's fields other than id, title and text."""

    id: str
    text: str
    metadata: dict[str, Any]


def read_documents(
    paths: str | Path | Sequence[str | Path], *, text_field: str = "text", first_number: int = 1
) -> Iterator[Document]:
    """Read `.jsonl`, `.json`, `.parquet` and `.txt` files, all but parquet also `.gz`, and BEIR folders (their corpus).

    A row is an object with `text`, and `title`, `_id` or `id`, and more where it has these, or a string. In `.txt`
    files each line is a document; blank lines are none. Where the first document has no id, documents are numbered
    over all files and none may have one.

    Args:
        text_field: the field to take for `text`.
        first_number: where the numbering begins.
    Raises:
        DataError: a missing or unknown file, no documents at all, or a bad row with its file and line.
    """
    files = [_document_file(Path(path)) for path in ([paths] if isinstance(paths, (str, Path)) else paths)]
    number = first_number
    numbered: bool | None = None
    for path in files:
        for row in _text_rows(path) if _is_text(path) else raw_rows(path):
            try:
                id_, text, metadata = parse_document(row.decode(), text_field)
                if numbered is None:
                    numbered = id_ is None
                elif numbered != (id_ is None):
                    expected = "none, as in the first document" if numbered else "one, as in the first document"
                    raise RowError("id", "missing" if id_ is None else "there", expected)
            except RowError as error:
                problem = Problem(str(path), row.line, error.field, error.detail)
                raise DataError(str(problem), [problem], 1) from None
            yield Document(str(number) if id_ is None else id_, text, metadata)
            number += 1
    if number == first_number:
        names = ", ".join(map(str, files))
        raise DataError(f'{names}: no documents; expected lines of text or rows such as {{"_id": "1", "text": "..."}}.')


def parse_document(row: object, text_field: str = "text") -> tuple[str | None, str, dict[str, Any]]:
    """Id (None if there is none), text with title, and all other fields of one row.

    Raises:
        RowError: the first field that is wrong, what is wrong with it and what was expected.
    """
    if isinstance(row, str):
        return None, plain_string(row, "row"), {}
    if not isinstance(row, dict):
        raise RowError("row", "not an object", 'a string or an object such as {"_id": "1", "text": "..."}', row)
    metadata = dict(row)
    id_ = take_id(metadata)
    if text_field not in metadata:
        raise RowError(text_field, "missing", f"a text; the row has {', '.join(row) or 'no fields'}")
    title = plain_string(metadata.pop("title", None) or "", "title") if text_field != "title" else ""
    text = plain_string(metadata.pop(text_field), text_field)
    return id_, document_text(title, text), metadata


def take_id(fields: dict[str, Any]) -> str | None:
    """Take the id out of a row's fields; None if there is none.

    Raises:
        RowError: neither a string nor a whole number.
    """
    id_ = next((fields.pop(field) for field in ID_FIELDS if fields.get(field) is not None), None)
    if id_ is not None and type(id_) not in (str, int):
        raise RowError("id", "not an id", "a string or a whole number", id_)
    return None if id_ is None else plain_string(str(id_), "id")


def document_text(title: str, text: str) -> str:
    """What a document's embedding is made of: `DOCUMENT_TEXT`."""
    if not title or text.startswith(title):
        return text
    return f"{title}\n{text}" if text else title


def plain_string(value: object, field: str) -> str:
    """A string; empty ones and control characters pass, as data sets are published with them.

    Raises:
        RowError: not a string, or not UTF-8.
    """
    if not isinstance(value, str):
        raise RowError(field, "not a text", "a string", value)
    try:
        value.encode()
    except UnicodeEncodeError:
        raise RowError(field, "not valid UTF-8", "a text without lone surrogates", value) from None
    return value


class Line(NamedTuple):
    """A line of a text file, as `RawRow` for JSON."""

    line: int
    raw: bytes

    def decode(self) -> str:
        """The line as text.

        Raises:
            RowError: it is not UTF-8.
        """
        try:
            return self.raw.decode()
        except UnicodeDecodeError as error:
            problem = f"not UTF-8: byte 0x{self.raw[error.start]:02x} at byte {error.start + 1} of the line"
            raise RowError("line", problem, "a text in UTF-8") from None


def _text_rows(path: Path) -> Iterator[Line | RawRow]:
    with open_bytes(path) as stream:
        for number, line in enumerate(stream, 1):
            if text := line.strip():
                yield Line(number, text)


def _is_text(path: Path) -> bool:
    return path.name.endswith((".txt", ".txt.gz"))


def _document_file(path: Path) -> Path:
    if path.is_dir():
        for name in _CORPUS_FILES:
            if (path / name).is_file():
                return path / name
        raise DataError(f"{path}: a folder without {' or '.join(_CORPUS_FILES)}; give the files themselves.")
    if not path.is_file():
        raise DataError(f"{path}: no such file.")
    if not path.name.endswith(DOCUMENT_SUFFIXES):
        raise DataError(f"{path}: not a kind that is read here; expected {', '.join(DOCUMENT_SUFFIXES)}.")
    return path
