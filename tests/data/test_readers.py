import gzip
import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from codiemb.data import DataError, read

IR = {"task_type": "ir", "query": ["find", "", "q"], "positives": [["", "", "p"]], "negatives": [["", "", "n"]]}
STS = {"task_type": "sts", "query": "a", "positives": ["b", "c"], "positive_scores": [5, 1.5]}
BAD = {"task_type": "ir", "query": " ", "positives": ["p"]}


@pytest.fixture(autouse=True)
def _private_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CODIEMB_CACHE", str(tmp_path / "cache"))


def lines(*rows):
    return b"".join(row if isinstance(row, bytes) else json.dumps(row).encode() + b"\n" for row in rows)


def write(path: Path, *rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    data = lines(*rows)
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def texts(table):
    return [row["query"]["text"] for row in table.rows]


def numbered(*numbers):
    return [{"task_type": "ir", "query": f"q{i}", "positives": ["p"]} for i in numbers]


def test_one_table_for_each_task_of_a_file(tmp_path):
    ir, sts = read(write(tmp_path / "mixed.jsonl", IR, STS, IR))
    assert (ir.name, ir.task_type, len(ir.rows), ir.score_range) == ("mixed:ir", "ir", 2, None)
    assert ir.rows[0] == {
        "query": {"instruction": "find", "prefix": "", "text": "q"},
        "positives": [{"instruction": "", "prefix": "", "text": "p"}],
        "negatives": [{"instruction": "", "prefix": "", "text": "n"}],
        "positive_scores": [],
        "negative_scores": [],
    }
    assert (sts.name, len(sts.rows), sts.score_range) == ("mixed:sts", 2, (1.5, 5.0))
    assert [row["positives"][0]["text"] for row in sts.rows] == ["b", "c"]
    assert [row["positive_scores"] for row in sts.rows] == [[5.0], [1.5]]


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.jsonl.gz", "a.json.gz"])
@pytest.mark.parametrize("indent", [None, 1])
def test_json_lines_and_lists_plain_and_zipped(tmp_path, name, indent):
    rows = numbered(*range(5))
    as_list = json.dumps(rows, indent=indent).encode()
    (table,) = read(write(tmp_path / name, as_list if indent else lines(*rows)))
    assert (table.name, texts(table)) == ("a", [f"q{i}" for i in range(5)])


def test_byte_order_mark_windows_line_ends_and_blank_lines(tmp_path):
    data = b"\xef\xbb\xbf\r\n" + lines(*numbered(1)).replace(b"\n", b"\r\n") + b"  \r\n\n" + lines(*numbered(2)).strip()
    (table,) = read(write(tmp_path / "a.jsonl", data))
    assert texts(table) == ["q1", "q2"]


def test_order_is_kept_across_blocks_fast_and_slow(tmp_path, monkeypatch):
    monkeypatch.setattr("codiemb.data.sources._BLOCK", 300)
    rows = numbered(*range(40))
    for i in (7, 8, 30):  # not spelled like the others of their block
        rows[i]["query"] = ["", "", f"q{i}"]
    expected = [f"q{i}" for i in range(40)]
    assert texts(read(write(tmp_path / "a.jsonl", *rows))[0]) == expected
    assert texts(read(write(tmp_path / "b.json", json.dumps(rows, indent=2).encode()))[0]) == expected


def test_a_text_of_200000_characters(tmp_path):
    (table,) = read(write(tmp_path / "a.jsonl", {**IR, "query": "长" * 200_000}, IR))
    assert [len(text) for text in texts(table)] == [200_000, 1]


def test_a_row_of_json_that_spans_many_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr("codiemb.data.sources._BLOCK", 64)
    rows = [{**IR, "query": 'a "quoted" \\ [ { text' * 20}, IR]
    (table,) = read(write(tmp_path / "a.json", json.dumps(rows).encode()))
    assert texts(table) == [rows[0]["query"], "q"]


@pytest.mark.parametrize("encode", [None, json.dumps])
def test_parquet_nested_or_as_json_strings(tmp_path, encode):
    columns = {key: [IR[key], IR[key]] for key in ("query", "positives", "negatives")}
    if encode:
        columns = {key: [encode(value) for value in values] for key, values in columns.items()}
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"task_type": ["ir", "ir"], **columns}), path)
    (table,) = read(path)
    assert table.rows[1] == read(write(tmp_path / "b.jsonl", IR))[0].rows[0]


def test_a_plain_query_that_looks_like_json_stays_as_it_is(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"query": ['["", "", "x"]'], "positives": [["p"]]}), path)
    assert texts(read(path)[0]) == ['["", "", "x"]']


def test_parquet_problems_are_named_by_row(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"query": ["q"] * 599 + [" "], "positives": [["p"]] * 600}), path)
    with pytest.raises(DataError, match=r"a.parquet:600: query.text: empty"):
        read(path)


def test_directories_and_names(tmp_path):
    for name in ("b/x.jsonl", "a/x.jsonl", "a/y.jsonl", "a/y.json", "a/z.parquet.txt", "a/old.rejected.jsonl"):
        write(tmp_path / name, IR)
    tables = read([tmp_path / "b", tmp_path / "a"])
    assert [table.name for table in tables] == ["b/x", "a/x", "a/y.json", "a/y.jsonl"]
    assert [table.source for table in tables] == [
        tmp_path / name for name in ("b/x.jsonl", "a/x.jsonl", "a/y.json", "a/y.jsonl")
    ]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.jsonl", b"", "empty.jsonl: empty"),
        ("blank.jsonl", b"\n \n", "blank.jsonl: empty"),
        ("list.json", b"[]", "list.json: empty"),
        ("rows.xml", b"<x/>", "rows.xml: not a data file; expected"),
        ("rows.parquet", b"not parquet", "rows.parquet: not a readable parquet file"),
        ("rows.jsonl.gz", gzip.compress(lines(IR) * 999, mtime=0)[:-20], "rows.jsonl.gz: cannot be decompressed"),
        ("plain.jsonl.gz", b"{}", "plain.jsonl.gz: cannot be decompressed"),
    ],
)
def test_files_that_cannot_be_used(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content)
    for on_error in ("raise", "skip"):
        with pytest.raises(DataError, match=message):
            read(path, on_error=on_error)


def test_paths_that_cannot_be_used(tmp_path):
    path = write(tmp_path / "a.jsonl", IR)
    (tmp_path / "nothing").mkdir()
    with pytest.raises(DataError, match=r"x.jsonl: no such file or directory.\n.*y.jsonl: no such file"):
        read([tmp_path / "x.jsonl", path, tmp_path / "y.jsonl"])
    with pytest.raises(DataError, match="nothing: no data files in this directory"):
        read(tmp_path / "nothing")
    with pytest.raises(DataError, match="given 2 times"):
        read([path, tmp_path])
    with pytest.raises(DataError, match="No data files were given"):
        read([])


def test_the_broken_line_is_named(tmp_path):
    rows = [
        *[lines(IR)] * 16,
        b'{"task_type": "ir", "query": \n',
        b'{"query": NaN}\n',
        lines(IR),
        b'{"query": "\xff"}\n',
    ]
    rows += [b'{"query": "\\ud800", "positives": ["p"]}\n']
    path = write(tmp_path / "a.jsonl", *rows)
    with pytest.raises(DataError) as caught:
        read(path)
    assert [(problem.line, problem.field) for problem in caught.value.problems] == [
        (17, "row"),
        (18, "query"),
        (20, "row"),
        (21, "query.text"),
    ]
    message = str(caught.value)
    assert f"{path}:17: row: broken JSON" in message
    assert f"{path}:18: query: not a text, got nan" in message
    assert f"{path}:20: row: not UTF-8: byte 0xff" in message
    assert f"{path}:21: query.text: lone surrogate" in message
    assert "4 of 21 rows are bad. Correct them, or leave them out with --on-error skip." in message


def test_problems_in_a_json_list_are_named_by_line(tmp_path):
    content = b'[\n  {"query": "q",\n   "positives": ["p"]},\n\n  {"query": ""},\n  7, {"query": }\n]\n trailing'
    with pytest.raises(DataError) as caught:
        read(write(tmp_path / "a.json", content))
    assert [(problem.line, problem.field) for problem in caught.value.problems] == [
        (5, "query.text"),
        (6, "row"),
        (6, "row"),
        (8, "row"),
    ]


@pytest.mark.parametrize("end", [b"", b",", b', {"query": "x', b', {"query": ["x"'])
def test_a_json_list_that_is_cut_off(tmp_path, end):
    with pytest.raises(DataError, match=r"a.json:2: row: broken JSON"):
        read(write(tmp_path / "a.json", b"[\n" + json.dumps(IR).encode() + end))


def test_the_first_20_bad_rows_of_every_file_are_reported(tmp_path):
    first = write(tmp_path / "a.jsonl", *[BAD] * 30, IR)
    second = write(tmp_path / "b.jsonl", IR, BAD)
    with pytest.raises(DataError) as caught:
        read([first, second])
    assert caught.value.total == 31
    assert [problem.line for problem in caught.value.problems] == [*range(1, 21), 2]
    assert "30 of 31 rows are bad, the first 20 of them above" in str(caught.value)


def test_skipping_counts_bad_rows_and_keeps_them(tmp_path, caplog):
    path = write(tmp_path / "in" / "a.jsonl", IR, BAD, STS, b'{"query": "\xff\n', IR)
    ir, sts = read(path, on_error="skip", rejected_to=tmp_path / "out")
    assert (len(ir.rows), ir.rejected, len(sts.rows), sts.rejected) == (2, 2, 2, 0)
    side_file = tmp_path / "out" / "a.rejected.jsonl"
    rejected = [json.loads(line) for line in side_file.read_text().splitlines()]
    assert [(row["line"], row["field"]) for row in rejected] == [(2, "query.text"), (4, "row")]
    assert json.loads(rejected[0]["row"]) == BAD
    assert rejected[1]["row"] == '{"query": "\\xff'
    assert "2 of 5 rows left out" in caplog.text

    # From the cache it is the same, and the side file comes again; without skip the rows are still errors.
    side_file.unlink()
    assert [table.rejected for table in read(path, on_error="skip", rejected_to=tmp_path / "out")] == [2, 0]
    assert side_file.is_file()
    with pytest.raises(DataError, match="2 of 5 rows are bad"):
        read(path)


def test_side_files_lie_beside_the_data_and_are_never_read_as_data(tmp_path):
    write(tmp_path / "in" / "a.jsonl", IR, BAD)
    for _ in range(2):
        assert [table.name for table in read(tmp_path / "in", on_error="skip")] == ["a"]
    assert sorted(path.name for path in (tmp_path / "in").iterdir()) == ["a.jsonl", "a.rejected.jsonl"]


def test_skipping_every_row_is_an_error(tmp_path):
    with pytest.raises(DataError, match="2 of 2 rows are bad"):
        read(write(tmp_path / "a.jsonl", BAD, BAD), on_error="skip")


def test_a_second_reading_does_not_parse_and_a_changed_file_does(tmp_path, monkeypatch):
    path = write(tmp_path / "a.jsonl", IR)
    read(path)
    entries = list((tmp_path / "cache" / "data").iterdir())
    with monkeypatch.context() as patch:
        patch.delattr("codiemb.data.cache._build")
        assert texts(read(path)[0]) == ["q"]
    write(path, *numbered(1, 2))
    assert texts(read(path)[0]) == ["q1", "q2"]
    assert len(list((tmp_path / "cache" / "data").iterdir())) == len(entries) + 1


def test_a_failed_reading_leaves_nothing_in_the_cache(tmp_path):
    with pytest.raises(DataError):
        read(write(tmp_path / "a.jsonl", IR, BAD))
    assert list((tmp_path / "cache" / "data").iterdir()) == []


def test_two_processes_may_read_the_same_file_at_once(tmp_path):
    path = write(tmp_path / "a.jsonl", *numbered(*range(3000)))
    code = "import sys; from codiemb.data import read; print(len(read(sys.argv[1])[0].rows))"
    command = [sys.executable, "-c", code, str(path)]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ) for _ in range(2)]
    assert [process.communicate()[0].strip() for process in processes] == ["3000", "3000"]
    (entry,) = (tmp_path / "cache" / "data").iterdir()
    assert not entry.name.startswith(".")


def test_progress_counts_every_row_from_file_and_cache(tmp_path):
    path = write(tmp_path / "a.jsonl", *numbered(*range(10)), BAD)
    for _ in range(2):
        counts = []
        read(path, on_error="skip", progress=counts.append)
        assert sum(counts) == 11


def test_memory_stays_bounded(tmp_path):
    """A file of 120 MB is read with far less: in a process of its own, whose peak is measured."""
    row = lines({**IR, "query": "q " * 20_000})  # 40 kB
    path = tmp_path / "a.jsonl"
    with path.open("wb") as file:
        for _ in range(3000):
            file.write(row)
    code = (
        "import resource, sys, datasets; from codiemb.data import read; peak = lambda: "
        "resource.getrusage(resource.RUSAGE_SELF).ru_maxrss; before = peak(); read(sys.argv[1]); print(peak() - before)"
    )
    output = subprocess.run([sys.executable, "-c", code, str(path)], check=True, capture_output=True, text=True).stdout
    assert int(output) * (1 if sys.platform == "darwin" else 1024) < 80e6
