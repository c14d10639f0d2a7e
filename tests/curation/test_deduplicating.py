"""Duplicates within and across files."""

import gzip
import json

import pyarrow.parquet as pq
import pytest
from cleaning_rows import ir, queries, read, sts, write

from codiemb.curation.cleaning.deduplicating import deduplicate
from codiemb.curation.cleaning.rows import RowStream
from codiemb.data.examples import DataError

LONG = "为了恢复账户的花呗服务需要先还清所有逾期账单再联系客服"


def run(tmp_path, *files, output="out.jsonl", on_error="raise", **options):
    return deduplicate(RowStream(list(files), on_error=on_error), tmp_path / output, **options)


def test_each_match_includes_the_closer_ones(tmp_path):
    rows = [
        ir("花呗怎么还款？", LONG),
        ir("花呗怎么还款？", LONG),
        ir("花呗 怎么还款", LONG + "。"),
        ir("花呗怎么还款", LONG + "吧"),
    ]
    source = write(tmp_path / "a.jsonl", *rows, ir("别的问题", "别的答案"))
    for match, left in (("exact", 4), ("normalised", 3), ("near", 2)):
        report = run(tmp_path, source, match=match)
        assert report.rows == left
        assert sum(report.rejected.values()) == 5 - left
    assert report.rejected == {"exact duplicate": 1, "normalised duplicate": 1, "near duplicate": 1}
    records = read(report.rejected_file)
    assert [record["of"] for record in records] == [f"{source}:1"] * 3
    assert [record["line"] for record in records] == [2, 3, 4]
    assert records[0]["row"] == rows[1]
    assert 0.8 <= records[2]["similarity"] < 1


def test_across_files_the_first_file_has_priority(tmp_path):
    a = write(tmp_path / "a.jsonl", ir("问题一", "答案一"))
    b = write(tmp_path / "b.jsonl", ir("问题二", "答案二"), ir("问题一！", "答案一"))
    report = run(tmp_path, b, a, output="clean")
    assert queries(tmp_path / "clean/b.jsonl") == ["问题二", "问题一！"]
    assert report.written == {str(tmp_path / "clean/b.jsonl"): 2}  # nothing is left of a
    assert read(report.rejected_file)[0]["of"] == f"{b}:2"


@pytest.mark.parametrize(("on", "left"), [("query", 3), ("positive", 3), ("pair", 4)])
def test_on_which_texts(tmp_path, on, left):
    rows = [ir("甲问", "一答"), ir("甲问", "二答"), ir("乙问", "一答"), sts("甲问", "一答", 1)]
    assert run(tmp_path, write(tmp_path / "a.jsonl", *rows), on=on).rows == left  # tasks are kept apart


def test_queries_of_one_document_are_no_near_duplicates(tmp_path):
    document = LONG * 2 + "否则不能恢复"
    rows = [ir("花呗怎么恢复", document), ir("要先还什么", document + "。"), ir("花呗怎么恢复？", document + "吧")]
    source = write(tmp_path / "a.jsonl", *rows)
    assert run(tmp_path, source, match="near").rows == 2
    assert run(tmp_path, source, match="near", on="positive").rows == 1


def test_a_threshold_of_matches_that_are_not_near_is_refused(tmp_path):
    source = write(tmp_path / "a.jsonl", ir("甲", "一"))
    with pytest.raises(ValueError, match=r"threshold=0.7 has no meaning with match='normalised'"):
        run(tmp_path, source, match="normalised", threshold=0.7)
    assert not (tmp_path / "out.jsonl").exists()
    with pytest.raises(ValueError, match="threshold=0"):
        run(tmp_path, source, match="near", threshold=0.0)


def test_most_negatives(tmp_path):
    rows = [ir("甲", "一"), ir("甲", "一", negatives=["二", "三"]), ir("甲", "一", negatives=["四"]), ir("乙", "一")]
    report = run(tmp_path, write(tmp_path / "a.jsonl", *rows), keep="most-negatives")
    assert [row["negatives"] for row in read(tmp_path / "out.jsonl")] == [["二", "三"], []]
    assert {record["of"].rpartition(":")[2] for record in read(report.rejected_file)} == {"2"}


def test_merge_adds_candidates_and_keeps_notes(tmp_path):
    rows = [
        ir("甲", "一", negatives=["三"], meta_data={"id": 7}),
        ir("甲", "二", "一", negatives=["四"]),
        ir("甲", "三"),
        ir("乙", "五"),
    ]
    report = run(tmp_path, write(tmp_path / "a.jsonl", *rows), on="query", keep="merge")
    merged, other = read(tmp_path / "out.jsonl")
    assert [text[2] for text in merged["positives"]] == ["一", "二", "三"]
    assert [text[2] for text in merged["negatives"]] == ["四"]  # the third is a positive of the same query
    assert merged["meta_data"] == {"id": 7}
    assert other == rows[3]  # as it was written
    assert report.changed == 1
    with pytest.raises(ValueError, match="on='query'"):
        run(tmp_path, tmp_path / "a.jsonl", on="positive", keep="merge")


def test_merge_compares_candidates_as_the_match_does(tmp_path):
    rows = [ir("甲", "第一", negatives=["第 二", "第三"]), ir("甲！", "第一。", "第二", negatives=["第三。", "第四"])]
    source = write(tmp_path / "a.jsonl", *rows)
    run(tmp_path, source, on="query", keep="merge")
    (merged,) = read(tmp_path / "out.jsonl")
    assert [text[2] for text in merged["positives"]] == ["第一", "第二"]
    assert [text[2] for text in merged["negatives"]] == ["第三", "第四"]
    write(source, rows[0], {**rows[1], "query": "甲"})
    run(tmp_path, source, on="query", match="exact", keep="merge")
    (merged,) = read(tmp_path / "out.jsonl")
    assert [text[2] for text in merged["positives"]] == ["第一", "第一。", "第二"]


def test_merge_of_pairs_keeps_the_first_score(tmp_path):
    rows = [sts("甲", "一", 5), sts("甲", "一", 0), sts("甲", "二", 3)]
    run(tmp_path, write(tmp_path / "a.jsonl", *rows), on="query", keep="merge")
    (merged,) = read(tmp_path / "out.jsonl")
    assert [text[2] for text in merged["positives"]] == ["一", "二"]
    assert merged["positive_scores"] == [5, 3]


def test_a_chain_of_matches_leads_to_a_kept_row(tmp_path):
    rows = [ir("问", LONG), ir("问", LONG + "吧"), ir("问", LONG + "吧！"), ir("问", LONG + "吧！")]
    report = run(tmp_path, write(tmp_path / "a.jsonl", *rows), match="near")
    assert report.rows == 1
    assert {record["of"] for record in read(report.rejected_file)} == {f"{tmp_path / 'a.jsonl'}:1"}


def test_traditional_characters(tmp_path):
    source = write(tmp_path / "a.jsonl", ir("臺灣大學在哪裡", "臺北"), ir("台湾大学在哪里", "台北"))
    assert run(tmp_path, source).rows == 2
    assert run(tmp_path, source, simplify=True).rows == 1


def test_kinds_of_files_in_and_out(tmp_path):
    source = write(tmp_path / "a.jsonl", ir("甲", "一", meta_data={"id": 1}), ir("甲", "一"))
    run(tmp_path, source, output="out.jsonl.gz")
    first = (tmp_path / "out.jsonl.gz").read_bytes()
    assert json.loads(gzip.decompress(first)) == ir("甲", "一", meta_data={"id": 1})
    run(tmp_path, source, output="out.jsonl.gz")
    assert (tmp_path / "out.jsonl.gz").read_bytes() == first
    run(tmp_path, source, output="out.parquet")
    assert pq.read_table(tmp_path / "out.parquet").num_rows == 1
    report = run(tmp_path, tmp_path / "out.parquet", source)
    assert queries(tmp_path / "out.jsonl") == ["甲"]
    assert report.rejected == {"exact duplicate": 2}


def test_bad_rows(tmp_path):
    source = write(tmp_path / "a.jsonl", ir("甲", "一"), {"query": "x"}, ir("乙", "二"))
    with pytest.raises(DataError, match=r"a.jsonl:2: positives: none in a row of ir"):
        run(tmp_path, source)
    assert not (tmp_path / "out.jsonl").exists()
    report = run(tmp_path, source, on_error="skip")
    assert (report.read, report.rows) == (3, 2)
    assert read(report.rejected_file)[0]["line"] == 2
    with pytest.raises(DataError, match="is an input"):
        run(tmp_path, source, output="a.jsonl")


def test_a_file_of_rejected_rows_of_before_goes_away(tmp_path):
    source = write(tmp_path / "a.jsonl", ir("甲", "一"), ir("甲", "一"))
    path = run(tmp_path, source).rejected_file
    assert path.exists()
    assert run(tmp_path, write(source, ir("甲", "一"))).rejected_file is None
    assert not path.exists()
