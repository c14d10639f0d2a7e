import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from codiemb.data.documents import Document, document_text, read_documents
from codiemb.data.examples import DataError

ROWS = [
    {"_id": "a", "title": "Bread", "text": "Feed the starter.", "lang": "en"},
    {"_id": 7, "text": "去上海的火车九点开。", "title": None},
]
DOCUMENTS = [
    Document("a", "Bread\nFeed the starter.", {"lang": "en"}),
    Document("7", "去上海的火车九点开。", {}),
]


def lines(rows):
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def write(path, content):
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "folder/corpus.jsonl", "folder/corpus.jsonl.gz"])
def test_objects_a_line(tmp_path, name):
    path = write(tmp_path / name, b"\xef\xbb\xbf" + lines(ROWS))
    assert list(read_documents(path.parent if "/" in name else path)) == DOCUMENTS


def test_other_files(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps(ROWS))
    assert list(read_documents(tmp_path / "a.json")) == DOCUMENTS
    table = pa.table({"id": ["a", "b"], "body": ["x", "y"], "year": [1, None]})
    pq.write_table(table, tmp_path / "a.parquet")
    assert list(read_documents(tmp_path / "a.parquet", text_field="body")) == [
        Document("a", "x", {"year": 1}),
        Document("b", "y", {"year": None}),
    ]


def test_lines_of_text_are_numbered_over_all_files(tmp_path):
    first = write(tmp_path / "a.txt", "水管\r\n\n  two words \n".encode())
    second = write(tmp_path / "b.txt.gz", b"last, no line end")
    third = write(tmp_path / "c.jsonl", lines(["a string", {"text": "no id", "n": 1}]))
    found = list(read_documents([first, second, third], first_number=5))
    assert found == [
        Document("5", "水管", {}),
        Document("6", "two words", {}),
        Document("7", "last, no line end", {}),
        Document("8", "a string", {}),
        Document("9", "no id", {"n": 1}),
    ]


def test_title_and_text():
    assert document_text("", "x") == "x"
    assert document_text("T", "") == "T"
    assert document_text("T", "T and more") == "T and more"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", lines([ROWS[0], {"text": "x"}]), "a.jsonl:2: id: missing; expected one, as in the first"),
        ("a.jsonl", lines([{"text": "x"}, ROWS[0]]), "a.jsonl:2: id: there; expected none, as in the first"),
        (
            "a.jsonl",
            lines([{"_id": "a", "body": "x"}]),
            "a.jsonl:1: text: missing; expected a text; the row has _id, b",
        ),
        ("a.jsonl", lines([{"_id": "a", "text": 5}]), "a.jsonl:1: text: not a text, got 5; expected a string"),
        ("a.jsonl", lines([{"_id": [1], "text": "x"}]), r"a.jsonl:1: id: not an id, got \[1\]"),
        ("a.jsonl", lines([[1]]), "a.jsonl:1: row: not an object"),
        ("a.jsonl", b'{"_id": "a", "text": "\\ud800"}', "a.jsonl:1: text: not valid UTF-8"),
        ("a.jsonl", b'{"_id": "a", "text"', "a.jsonl:1: row: broken JSON"),
        ("a.txt", b"fine\n\xff\xfe bad\n", "a.txt:2: line: not UTF-8: byte 0xff at byte 1"),
        ("a.txt", b"\n \n", "a.txt: no documents"),
        ("a.jsonl", b"", "a.jsonl: no documents"),
        ("a.docx", b"x", "a.docx: not a kind that is read here; expected .jsonl"),
        ("a.txt.gz", gzip.compress(b"x" * 1000, mtime=0)[:20], "a.txt.gz: cannot be decompressed"),
        ("a.parquet", b"PAR1", "a.parquet: not a readable parquet file"),
    ],
)
def test_bad_files(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        list(read_documents(tmp_path / name))


def test_missing_files(tmp_path):
    with pytest.raises(DataError, match="gone: no such file"):
        list(read_documents(tmp_path / "gone"))
    with pytest.raises(DataError, match=r"a folder without corpus\.jsonl or corpus\.jsonl\.gz"):
        list(read_documents(tmp_path))
