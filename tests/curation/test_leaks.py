"""Evaluation texts in training rows: what is planted is found, what is clean is not reported."""

import random

import pytest
from cleaning_rows import ir, queries, read, write

from codiemb.curation.cleaning.decontaminating import decontaminate
from codiemb.curation.cleaning.leaks import EvaluationText, LeakFinder, NearOptions, overlap
from codiemb.curation.cleaning.rows import RowStream
from codiemb.curation.shingles import jaccard, shingles
from codiemb.data.examples import DataError

CHARACTERS = [chr(code) for code in range(0x4E00, 0x4E00 + 400)]


def chinese(rng, length):
    return "".join(rng.choices(CHARACTERS, k=length))


def english(rng, words):
    return " ".join("".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(2, 9))) for _ in range(words))


def evaluation(texts, side="query"):
    return [EvaluationText(text, side, "set", str(i)) for i, text in enumerate(texts)]


def edited(text, rng):
    """Nine tenths of a text, in one of four ways."""
    size = len(text) // 10
    start = rng.randrange(len(text) - size)
    strange = "囧" * size
    return rng.choice(
        [text[:start] + strange + text[start + size :], text[: len(text) - size], text[:start] + strange + text[start:]]
    )


def test_every_planted_leak_is_found_and_nothing_else(tmp_path):
    rng = random.Random(0)
    texts = [chinese(rng, rng.randint(10, 60)) for _ in range(300)] + [english(rng, 12) for _ in range(100)]
    rows = [ir(chinese(rng, 30), chinese(rng, 80), negatives=[english(rng, 20)]) for _ in range(1500)]
    planted = {}
    for place in rng.sample(range(1500), 200):
        text = rng.choice(texts)
        kind = rng.choice(["exact", "normalised", "near"])
        changed = {"exact": text, "normalised": f"「{text.upper()}」！", "near": edited(text, rng)}[kind]
        side = rng.choice(["query", "positives"])
        rows[place][side] = changed if side == "query" else [changed]
        planted[place + 1] = (side, kind)
    source = write(tmp_path / "a.jsonl", *rows)
    report = decontaminate(
        RowStream([source]), tmp_path / "out.jsonl", LeakFinder(evaluation(texts), near=NearOptions())
    )
    records = {record["line"]: record["matches"] for record in read(report.rejected_file)}
    assert records.keys() == planted.keys()
    for line, (side, kind) in planted.items():
        (match,) = records[line]
        assert match["field"].startswith(side)
        assert match["kind"] == kind
    assert report.rows == 1300
    assert report.details["rows_with_matches"] == 200


def test_near_matches_equal_the_comparison_of_all_pairs():
    rng = random.Random(1)
    texts = [chinese(rng, rng.randint(6, 25)) for _ in range(60)]
    probes = [edited(text * 2, rng)[: rng.randint(5, 40)] for text in texts for _ in range(5)] + texts[:20]
    text_sets, probe_sets = list(map(shingles, texts)), list(map(shingles, probes))
    for threshold in (0.3, 0.5, 0.8):
        options = NearOptions(jaccard=threshold, overlap=1.1, containment=1.1, least_shingles=1)
        found = LeakFinder(evaluation(texts), near=options).find(probes)
        for probe, leaks in zip(probe_sets, found, strict=True):
            best = max(jaccard(probe, text) for text in text_sets)
            assert bool(leaks) == (best >= threshold)
            if leaks:
                assert leaks[0].similarity == pytest.approx(best)


def test_short_questions_that_are_put_alike_do_not_match():
    finder = LeakFinder(evaluation(["人行是是什么意思", "花呗怎么还款比较方便"]), near=NearOptions())
    other, edited_ = finder.find(["呷仔是什么意思", "花呗怎么还款比较省事"])
    assert other == []
    assert edited_ == []  # two of ten characters
    (leaks,) = finder.find(["花呗怎样还款比较方便"])
    assert [(leak.kind, leak.similarity) for leak in leaks] == [("near", 0.9)]


def test_overlap_is_the_longest_common_subsequence():
    rng = random.Random(3)
    for _ in range(200):
        a, b = ("".join(rng.choices("甲乙丙丁", k=rng.randint(0, 30))) for _ in range(2))
        table = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
        for i, x in enumerate(a):
            for j, y in enumerate(b):
                table[i + 1][j + 1] = table[i][j] + 1 if x == y else max(table[i][j + 1], table[i + 1][j])
        assert overlap(a, b) == pytest.approx(table[-1][-1] / max(len(a), len(b), 1))


def test_a_text_within_a_longer_one():
    rng = random.Random(2)
    text, short = chinese(rng, 60), chinese(rng, 10)
    finder = LeakFinder(evaluation([text, short], "document"), near=NearOptions())
    (leaks, none) = finder.find([chinese(rng, 300) + text[:55] + chinese(rng, 300), chinese(rng, 300) + short])
    assert [(leak.kind, leak.evaluation.text) for leak in leaks] == [("contained", text)]
    assert leaks[0].similarity == pytest.approx(55 / 60, abs=0.02)
    assert none == []  # a short query is in many a document


def test_traditional_and_simplified_characters():
    finder = LeakFinder(evaluation(["臺灣大學在哪裡？", "花呗怎么还款"]))
    found = finder.find(["台湾大学在哪里", "花唄怎麼還款？", "臺灣大學在哪裡"])
    assert [leaks[0].kind for leaks in found] == ["characters", "characters", "normalised"]
    assert LeakFinder(evaluation(["臺灣大學在哪裡？"]), simplify=False).find(["台湾大学在哪里"]) == [[]]


def test_each_set_and_side_reports_its_closest_match():
    texts = [
        EvaluationText("花呗怎么还款呢", "query", "a", "1"),
        EvaluationText("花呗怎么还款呢？", "query", "a", "2"),
        EvaluationText("花呗怎么还款呢", "document", "b", "1"),
    ]
    (leaks,) = LeakFinder(texts, near=NearOptions()).find(["花呗怎么还款呢？"])
    assert [(leak.evaluation.source, leak.evaluation.id, leak.kind) for leak in leaks] == [
        ("a", "2", "exact"),
        ("b", "1", "normalised"),
    ]


@pytest.mark.parametrize(("drop", "left"), [("row", ["丙", "丁"]), ("text", ["乙", "丙", "丁"]), ("any", ["丁"])])
def test_what_a_leak_takes(tmp_path, drop, left):
    rows = [
        ir("泄漏", "好"),
        ir("乙", "好", "泄漏"),
        ir("丙", "好", negatives=["泄漏", "也好"], negative_scores=[0.1, 0.2]),
        ir("丁", "好", negatives=["也好"]),
        ir("戊", "泄漏"),
    ]
    source = write(tmp_path / "a.jsonl", *rows)
    report = decontaminate(RowStream([source]), tmp_path / "out.jsonl", LeakFinder(evaluation(["泄漏"])), drop=drop)
    assert queries(tmp_path / "out.jsonl") == left
    kept = {row["query"][2]: row for row in read(tmp_path / "out.jsonl") if isinstance(row["query"], list)}
    if "丙" in left:
        assert kept["丙"]["negatives"] == [["", "", "也好"]]
        assert kept["丙"]["negative_scores"] == [0.2]
    if drop == "text":
        assert kept["乙"]["positives"] == [["", "", "好"]]
    records = {record["line"]: record for record in read(report.rejected_file)}
    assert records[1]["dropped"] == "row"
    assert (records[3]["dropped"] == "row") == (drop == "any")
    assert sum(report.rejected.values()) == 4


def test_a_prefix_hides_nothing(tmp_path):
    row = {"task_type": "ir", "query": ["指令", "标题：", "泄漏的问题"], "positives": ["好"]}
    report = decontaminate(
        RowStream([write(tmp_path / "a.jsonl", row, ir("好", "好"))]),
        tmp_path / "out.jsonl",
        LeakFinder(evaluation(["泄漏的问题"])),
    )
    assert report.details["matches_by_kind"] == {"exact": 1}


def test_misuse():
    with pytest.raises(DataError, match="no evaluation texts"):
        LeakFinder([])
    with pytest.raises(ValueError, match="jaccard=0"):
        NearOptions(jaccard=0)
