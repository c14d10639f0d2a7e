"""What the preparation of the three stages keeps apart, on small files of the real layout."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest

from codiemb.data.readers import read

RECIPES = Path(__file__).parents[2] / "recipes"
HELD_OUT = ["车票很贵", "火车几点", "火车时刻表", "火车去哪里", "去哪里？", "怎么借钱", "dev句子", "test句子"]
NAMES = ("stsb", "afqmc", "lcqmc", "bq", "pawsx")


@pytest.fixture(scope="module")
def script():
    sys.path.insert(0, str(RECIPES))  # as where a script is run from its folder
    try:
        spec = importlib.util.spec_from_file_location("three_stages", RECIPES / "prepare_three_stages_zh.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        yield module
    finally:
        sys.path.remove(str(RECIPES))


def write(path: Path, rows: list[dict] | str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = rows if isinstance(rows, str) else "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_text(text, encoding="utf-8")


@pytest.fixture(scope="module")
def prepared(script, tmp_path_factory):
    folder = tmp_path_factory.mktemp("three-stages")
    data, joint = folder / "data", folder / "joint"
    kept, held = "苹果树在春天开花很好看。它们在秋天结果。", "火车从北京开往上海需要时间。车票很贵。"
    for place in ("drcd_dev", "cmrc_trial"):
        documents = [{"_id": "d0", "title": "苹果", "text": kept}, {"_id": "d1", "title": "火车", "text": held}]
        write(data / "ir" / place / "corpus.jsonl", documents)
    web = "苹果价格\t苹果多少钱\t2\n苹果树\t果树图片\t1\n苹果汁\t火车票\t0\n火车几点\t火车时刻表\t2\n"
    write(data / "ir" / "qbqtc_dev.tsv", f"query\ttitle\trelevance\n{web}")
    for part in ("dev", "test"):
        write(data / "sts_zh" / f"stsb_{part}.tsv", f"sentence1\tsentence2\tscore\n{part}句子\t别的{part}\t1\n")
    write(joint / "dev" / "bq.tsv", "sentence1\tsentence2\tscore\n怎么借钱\t借钱的方法\t1\n")
    for name, query, document in (("drcd_cmrc", "火车去哪里", held), ("qbqtc", "火车几点", "火车时刻表")):
        write(joint / "dev" / name / "queries.jsonl", [{"_id": "q", "text": query}])
        write(joint / "dev" / name / "corpus.jsonl", [{"_id": "a", "text": document}, {"_id": "b", "text": kept}])
        write(joint / "dev" / name / "qrels" / "test.tsv", "query-id\tcorpus-id\tscore\nq\ta\t1\n")
    for name in ("drcd", "cmrc"):
        question = {"task_type": "ir", "query": "苹果树何时开花", "positives": [kept, kept[:12]], "negatives": [held]}
        write(joint / "train" / f"{name}.jsonl", [question, {**question, "query": "火车 去哪里？"}])
    for name in NAMES:
        rows = [("怎样还钱", "还钱的办法"), ("怎么借钱？", "dev句子")]
        write(joint / "train" / f"{name}.jsonl", [{"query": one, "positives": [other]} for one, other in rows])
    counts = script.prepare(data, joint, folder / "out")
    return folder / "out", counts


def test_no_held_out_text_is_left_in_any_spelling(prepared):
    output, _ = prepared
    for path in output.rglob("*.jsonl"):
        content = path.read_text(encoding="utf-8")
        for text in (
            "车票很贵",
            "火车几点",
            "火车时刻表",
            "火车去哪里",
            "火车 去哪里",
            "怎么借钱",
            "dev句子",
            "test句子",
        ):
            assert text not in content, (path.name, text)


def test_pairs_are_rows_of_the_unified_format_and_texts_are_there_once(prepared):
    output, counts = prepared
    tables = {table.name: table.rows for table in read(output / "pairs")}
    assert set(tables) == {f"{n}-{kind}" for n in ("drcd", "cmrc") for kind in ("titles", "sentences", "questions")} | {
        "web"
    }
    assert {name: len(rows) for name, rows in tables.items()} == {
        name.removeprefix("pairs/"): count for name, count in counts.items() if name.startswith("pairs/")
    }
    assert [row["query"]["text"] for row in tables["drcd-titles"]] == ["苹果"]
    assert len(tables["cmrc-questions"]) == 2
    sentence = tables["drcd-sentences"][0]
    assert sentence["query"]["text"] == "苹果树在春天开花很好看"
    assert sentence["query"]["text"] not in sentence["positives"][0]["text"]
    # What judges called unrelated is no pair.
    assert {(row["query"]["text"], row["positives"][0]["text"]) for row in tables["web"]} == {
        ("苹果价格", "苹果多少钱"),
        ("苹果树", "果树图片"),
    }
    for path in (output / "corpus").iterdir():
        lines = path.read_text(encoding="utf-8").splitlines()
        assert len(lines) == len(set(lines)) == counts[f"corpus/{path.stem}"]
