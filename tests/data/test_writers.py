import pyarrow.parquet as pq
import pytest

from codiemb.data import DataError, parse_example, read, write_examples
from codiemb.data.tables import FILE_SCHEMA

ROWS = [
    {"task_type": "ir", "query": ["do", "p ", "q"], "positives": ["a", "b"], "negatives": ["n"]},
    {"task_type": "sts", "query": "q2", "positives": ["c"], "positive_scores": [0.5]},
]
EXAMPLES = [parse_example(row) for row in ROWS]


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.parquet"])
def test_what_is_written_is_read_back(tmp_path, name):
    assert write_examples(iter(EXAMPLES), tmp_path / "new" / name) == 2
    ir, sts = read(tmp_path / "new" / name)
    assert ir.rows[0]["query"] == {"instruction": "do", "prefix": "p ", "text": "q"}
    assert [text["text"] for text in ir.rows[0]["positives"]] == ["a", "b"]
    assert [text["text"] for text in ir.rows[0]["negatives"]] == ["n"]
    assert sts.rows[0]["positive_scores"] == [0.5]


def test_parquet_has_the_schema_of_the_format(tmp_path):
    write_examples(EXAMPLES * 2000, tmp_path / "a.parquet")
    assert pq.read_schema(tmp_path / "a.parquet") == FILE_SCHEMA
    assert pq.read_metadata(tmp_path / "a.parquet").num_rows == 4000


def test_zipped_files_of_the_same_rows_have_the_same_bytes(tmp_path):
    for name in ("a.jsonl.gz", "b.jsonl.gz"):
        write_examples(EXAMPLES, tmp_path / name)
    assert (tmp_path / "a.jsonl.gz").read_bytes() == (tmp_path / "b.jsonl.gz").read_bytes()


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.parquet"])
def test_an_error_leaves_the_file_of_before_and_no_part(tmp_path, name):
    def broken():
        yield EXAMPLES[0]
        raise DataError("broken source")

    path = tmp_path / name
    path.write_text("before")
    with pytest.raises(DataError, match="broken source"):
        write_examples(broken(), path)
    with pytest.raises(DataError, match="no rows to write"):
        write_examples([], path)
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


def test_unknown_suffixes_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"a.csv: cannot write this kind; expected a name that ends in .jsonl"):
        write_examples(EXAMPLES, tmp_path / "a.csv")
