"""Splits without a text on two sides."""

import random

import pytest
from cleaning_rows import ir, read, sts, write

from codiemb.curation.cleaning.rows import RowStream
from codiemb.curation.cleaning.splitting import split
from codiemb.curation.shingles import normalise
from codiemb.data.examples import DataError

SIZES = {"train": 0.0, "dev": 0.2, "test": 0.1}


@pytest.fixture
def source(tmp_path):
    rng = random.Random(0)
    rows = []
    for i in range(400):
        document = rng.randrange(150)
        rows.append(ir(f"问题{i // 2}号" + "？" * (i % 2), f"文档{document}号", meta_data={"group": f"g{i % 37}"}))
    rows += [sts(f"句子{i}甲", f"句子{i}乙", i % 5) for i in range(200)]
    return write(tmp_path / "all.jsonl", *rows)


def run(source, tmp_path, sizes=SIZES, **options):
    outputs = {name: tmp_path / "splits" / f"{name}.jsonl" for name in sizes}
    report = split(RowStream([source]), outputs, sizes, **options)
    return report, {name: read(path) for name, path in outputs.items()}


def texts(rows, *fields):
    return {
        normalise(text)
        for row in rows
        for field in fields
        for text in ([row[field]] if field == "query" else row[field])
    }


@pytest.mark.parametrize(("by", "fields"), [("query", ["query"]), ("document", ["positives"])])
def test_no_text_is_on_two_sides(source, tmp_path, by, fields):
    report, parts = run(source, tmp_path, by=by)
    names = list(parts)
    for i, one in enumerate(names):
        for other in names[i + 1 :]:
            assert not texts(parts[one], *fields) & texts(parts[other], *fields)
    assert sum(map(len, parts.values())) == 600
    for task, rows in (("ir", 400), ("sts", 200)):  # every data set in the same proportions
        counts = report.details["rows_by_data_set"][f"{source}:{task}"]
        assert sum(counts.values()) == rows
        assert counts["dev"] == pytest.approx(0.2 * rows, abs=0.03 * rows)
        assert counts["test"] == pytest.approx(0.1 * rows, abs=0.03 * rows)


def test_rows_that_are_linked_through_others_stay_together(tmp_path):
    chain = [ir(f"问{i}", f"答{i}", negatives=[f"答{i + 1}"]) for i in range(10)]
    source = write(tmp_path / "all.jsonl", *chain, *(ir(f"别的{i}", f"另外{i}") for i in range(30)))
    report, parts = run(source, tmp_path, {"train": 0.0, "dev": 0.25})
    assert report.details["largest_group"] == 10
    assert report.details["groups"] == 31
    assert len({name for name, rows in parts.items() for row in rows if row["query"].startswith("问")}) == 1


def test_by_pair_negatives_link_nothing(tmp_path):
    chain = [ir(f"问{i}", f"答{i}", negatives=[f"答{i + 1}"]) for i in range(9)]
    linked = [*chain, ir("问9", "答0。"), ir("问0？", "答9")]
    source = write(tmp_path / "all.jsonl", *linked)
    report, parts = run(source, tmp_path, {"train": 0.0, "dev": 0.3}, by="pair")
    assert report.details == {
        "groups": 9,
        "largest_group": 3,
        "rows_by_data_set": {f"{source}:ir": {"train": 8, "dev": 3}},
    }
    assert not texts(parts["train"], "query", "positives") & texts(parts["dev"], "query", "positives")


def test_candidates_of_pairs_are_no_negatives(tmp_path):
    low = {"task_type": "sts", "query": "句0", "positives": [], "negatives": ["句1"], "negative_scores": [0.5]}
    source = write(tmp_path / "all.jsonl", low, sts("句1", "句2", 1), *(sts(f"甲{i}", f"乙{i}", 1) for i in range(6)))
    assert run(source, tmp_path, {"train": 0.0, "dev": 0.3}, by="pair")[0].details["largest_group"] == 2


def test_a_prefix_hides_nothing(tmp_path):
    rows = [ir(["", "标题：", "同一个"], "一"), ir("同一个", "二"), ir("另一个", "三")]
    report, _ = run(write(tmp_path / "all.jsonl", *rows), tmp_path, {"train": 0.0, "dev": 1})
    assert report.details["groups"] == 2


def test_a_large_group_goes_where_it_fits(tmp_path):
    rows = [ir(f"问{i}", "同一个答案" if i < 28 else f"答{i}") for i in range(40)]
    for seed in range(5):
        _, parts = run(write(tmp_path / "all.jsonl", *rows), tmp_path, {"dev": 0.2, "train": 0.0}, seed=seed)
        assert {name: len(part) for name, part in parts.items()} == {"train": 32, "dev": 8}


def test_by_group_and_seed(source, tmp_path):
    rows = [row for row in read(source) if row["task_type"] == "ir"]
    only_ir = write(tmp_path / "ir.jsonl", *rows)
    _, first = run(only_ir, tmp_path, by="group")
    groups = {name: {row["meta_data"]["group"] for row in part} for name, part in first.items()}
    assert not groups["train"] & groups["dev"] and not groups["train"] & groups["test"]  # noqa: PT018
    assert run(only_ir, tmp_path, by="group")[1] == first
    assert run(only_ir, tmp_path, by="group", seed=1)[1] != first
    with pytest.raises(DataError, match=r"all.jsonl:401: meta_data.group: missing"):
        run(source, tmp_path, by="group")


def test_numbers_of_rows(source, tmp_path):
    _, parts = run(source, tmp_path, {"train": 0.0, "dev": 60}, by="query")
    assert len(parts["dev"]) == pytest.approx(60, abs=4)


def test_labels_are_on_all_sides(tmp_path):
    rows = [
        {"task_type": "classification", "query": f"商品{i}", "positives": ["好" if i % 2 else "坏"]} for i in range(50)
    ]
    report, parts = run(write(tmp_path / "all.jsonl", *rows), tmp_path, {"train": 0.0, "dev": 0.2})
    assert report.details["groups"] == 50
    assert len(parts["dev"]) == 10


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"train": 0.5}, "two or more"),
        ({"train": 0.5, "dev": 0.2}, "add up to 1"),
        ({"train": 0.9, "dev": 0.2}, "add up to 1.1"),
        ({"train": 0.0, "dev": 0.0}, "at most one"),
        ({"train": 0.0, "dev": 2.5}, "whole numbers"),
        ({"train": 0.0, "dev": 5000}, "more rows than"),
    ],
)
def test_sizes_that_do_not_fit(source, tmp_path, sizes, message):
    with pytest.raises(DataError, match=message):
        run(source, tmp_path, sizes)


def test_a_side_that_stays_empty(tmp_path):
    source = write(tmp_path / "all.jsonl", *(ir(f"问{i}", "同一个答案") for i in range(10)))
    with pytest.raises(DataError, match="1 groups by text, the largest of 10 rows"):
        run(source, tmp_path, {"train": 0.0, "dev": 0.5})
    assert not (tmp_path / "splits/train.jsonl").exists()
