"""Rows to embed: every line of a text file, fields of JSON lines and parquet, standard input, and what is refused."""

import gzip
import io
import json
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from codiemb.data.examples import DataError
from codiemb.data.text_rows import TextRow, count_rows, input_kind, text_rows


def read(path, **options):
    source = str(path)
    return list(text_rows(source, input_kind(source), **options))


def test_kinds():
    names = {"a.parquet": "parquet", "a.jsonl": "jsonl", "a.jsonl.gz": "jsonl", "a.txt.gz": "text", "-": "text"}
    assert {name: input_kind(name) for name in names} == names


def test_every_line_of_text_is_a_row(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes("\ufeff一\r\n\n  b \nlast".encode())
    assert [row.text for row in read(path)] == ["一", "", "  b ", "last"]


def test_gzip(tmp_path):
    path = tmp_path / "a.txt.gz"
    path.write_bytes(gzip.compress("一\n二\n".encode()))
    assert read(path) == [TextRow(None, "一"), TextRow(None, "二")]


def test_json_lines(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"_id": 7, "text": "a"}\n\n{"id": "x", "text": ""}\n')
    assert read(path) == [TextRow("7", "a"), TextRow("x", "")]
    path.write_text('"plain"\n{"body": "a"}\n')
    assert read(path, field="body") == [TextRow(None, "plain"), TextRow(None, "a")]


def test_parquet(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"id": [1, 2], "text": ["a", "b"], "other": [0, 0]}), path)
    assert read(path) == [TextRow("1", "a"), TextRow("2", "b")]
    assert count_rows(str(path), "parquet") == 2
    with pytest.raises(DataError, match="no column 'body'; it has id, text, other"):
        read(path, field="body")


@pytest.mark.parametrize(("kind", "data"), [("text", b"a\nb\n"), ("jsonl", b'"a"\n{"text": "b"}\n')])
def test_standard_input(monkeypatch, kind, data):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
    assert [row.text for row in text_rows("-", kind)] == ["a", "b"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"fine\nbad \xff\n", r"a.txt:2: line: not UTF-8: byte 0xff at byte 5 of the line"),
        ("a.jsonl", b'{"text": "a"}\n{"text": "\xff"}', r"a.jsonl:2: row: not UTF-8: byte 0xff"),
        ("a.jsonl", b'{"text": "a"}\n{"text": ', r"a.jsonl:2: row: broken JSON"),
        ("a.jsonl", b'{"text": 3}', r"a.jsonl:1: text: not a text, got 3"),
        ("a.jsonl", b'{"body": "a"}', r"a.jsonl:1: text: missing; expected a text; the row has body"),
        ("a.jsonl", b"[1]", r"a.jsonl:1: row: not an object"),
        ("a.jsonl", b'{"id": [1], "text": "a"}', r"a.jsonl:1: id: not an id"),
        ("a.jsonl", b'{"id": 1, "text": "a"}\n{"text": "b"}', r"a.jsonl:2: id: the row has none; expected one"),
        ("a.parquet", b"no parquet", "not a readable parquet file"),
    ],
)
def test_refused(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        read(path)


def test_null_in_parquet_is_named_by_row(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": ["a", None]}), path)
    with pytest.raises(DataError, match=r"a.parquet:2: text: missing"):
        read(path)


def test_missing_file_and_parquet_from_standard_input(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        read(tmp_path / "none.txt")
    with pytest.raises(DataError, match="cannot be read from standard input"):
        list(text_rows("-", "parquet"))


@pytest.mark.parametrize("name", ["a.json", "a.csv", "a.tsv.gz"])
def test_a_table_is_not_taken_for_lines(name):
    with pytest.raises(DataError, match=rf"{name}: not a kind.*\.jsonl or \.parquet.*--input-format"):
        input_kind(name)


def test_rows_are_read_one_by_one(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"text": str(number)}) + "\n" for number in range(5)) + "broken")
    rows = text_rows(str(path), "jsonl")
    assert [next(rows).text for _ in range(5)] == ["0", "1", "2", "3", "4"]
    with pytest.raises(DataError, match=":6:"):
        next(rows)
