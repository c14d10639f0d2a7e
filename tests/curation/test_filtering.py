"""Rules for texts and rows."""

import pytest
from cleaning_rows import ir, read, sts, write

from codiemb.curation.cleaning.filtering import FilterRules, filter_rows, repetition, text_failure
from codiemb.curation.cleaning.rows import RowStream


def reason(text, limits=(2, 512), **rules):
    failure = text_failure(text, FilterRules(**rules), limits)
    return failure and failure[0]


@pytest.mark.parametrize(
    ("text", "rules", "expected"),
    [
        ("花呗怎么还款", {}, None),
        ("How do I cook rice in 20 minutes?", {}, None),
        ("字", {}, "too short"),
        ("长" * 600, {}, "too long"),
        ("？？！！", {}, "too much punctuation"),
        ("13800138000", {}, "too many digits"),
        ("13800138000", {"max_digits": None}, None),
        ("花呗\ufffd还款", {}, "broken characters"),
        ("cafÃ© au lait", {}, "broken characters"),
        ("哈哈哈哈" * 10, {}, "repetitive"),
        ("花呗 怎么 还款", {"scripts": ("latin",)}, "another script"),
        ("花呗 app 怎么还款", {"scripts": ("han",)}, None),
        ("ひらがなとカタカナ", {"scripts": ("kana",)}, None),
        ("Привет, как дела", {"scripts": ("latin", "cyrillic")}, None),
    ],
)
def test_texts(text, rules, expected):
    assert reason(text, **rules) == expected


def test_repetition_counts_runs_that_were_there_before():
    assert repetition("短") == 0
    assert repetition("abcdefghijklmnopqrstuvwxyz") == 0
    assert repetition("abcd" * 10) == pytest.approx(1 - 4 / 37)


def test_a_query_takes_its_row_and_a_candidate_only_itself(tmp_path):
    rows = [
        ir("问", "好的答案"),
        ir("好的问题", "好的答案", "答", negatives=["不好的答案", "错"], negative_scores=[0.1, 0.2]),
        ir("别的问题", "答", meta_data={"id": 3}),
        ir("都好的问题", "都好的答案"),
    ]
    source = write(tmp_path / "a.jsonl", *rows)
    report = filter_rows(RowStream([source]), tmp_path / "out.jsonl", FilterRules())
    kept, whole = read(tmp_path / "out.jsonl")
    assert kept["positives"] == [["", "", "好的答案"]]
    assert kept["negatives"] == [["", "", "不好的答案"]]
    assert kept["negative_scores"] == [0.1]
    assert whole == rows[3]
    assert report.rejected == {
        "query: too short": 1,
        "positives: too short, candidates only": 1,
        "negatives: too short, candidates only": 1,
        "positives: too short": 1,
    }
    assert report.changed == 1
    records = read(report.rejected_file)
    assert [record["dropped"] for record in records] == ["row", "positives[1]", "negatives[1]", "row"]
    assert records[0]["detail"] == "1, least 2"


def test_copies(tmp_path):
    rows = [
        ir("花呗怎么还款", "花呗，怎么还款？", "真的答案"),
        ir("花呗怎么还款", "真的答案", negatives=["真的答案。", "假的答案", "花呗怎么还款"]),
        sts("一样的句子", "一样的句子", 5),
    ]
    source = write(tmp_path / "a.jsonl", *rows)
    report = filter_rows(RowStream([source]), tmp_path / "out.jsonl", FilterRules())
    first, second, third = read(tmp_path / "out.jsonl")
    assert [text[2] for text in first["positives"]] == ["真的答案"]
    assert [text[2] for text in second["negatives"]] == ["假的答案"]
    assert third == rows[2]  # a score says what equal texts are
    assert report.rejected == {
        "positives: is the query, candidates only": 1,
        "negatives: is a positive, candidates only": 1,
        "negatives: is the query, candidates only": 1,
    }


def test_scores_and_labels(tmp_path):
    label = {"task_type": "classification", "query": "很好的商品", "positives": ["好"]}
    source = write(tmp_path / "a.jsonl", sts("第一句", "第二句", 7), sts("第三句", "第四句", 5), label)
    report = filter_rows(RowStream([source]), tmp_path / "out.jsonl", FilterRules(scores=(0, 5)))
    assert report.rejected == {"positives: score out of range": 1}
    assert report.rows == 2  # a label may be short


def test_bad_rows_are_rejected_with_their_reason(tmp_path):
    source = write(tmp_path / "a.jsonl", ir("问题是\u0008什么", "答案"), ir("好的问题", "好的答案"))
    report = filter_rows(RowStream([source], on_error="skip"), tmp_path / "out.jsonl", FilterRules())
    assert report.rejected == {"bad row: query.text: control character": 1}


def test_length_in_other_units(tmp_path):
    source = write(tmp_path / "a.jsonl", ir("one two three", "four five"), ir("one", "two three"))
    rules = FilterRules(query_length=(2, 3), document_length=None)
    report = filter_rows(RowStream([source]), tmp_path / "out.jsonl", rules, measure=lambda text: len(text.split()))
    assert report.rejected == {"query: too short": 1}


def test_misuse():
    with pytest.raises(ValueError, match=r"query_length=\(5, 2\)"):
        FilterRules(query_length=(5, 2))
    with pytest.raises(ValueError, match=r"max_digits=1\.5"):
        FilterRules(max_digits=1.5)
