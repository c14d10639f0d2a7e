"""The preparation of the real recipe, on small files of the same layout."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest

from codiemb.data.examples import DataError
from codiemb.data.readers import read
from codiemb.evaluation import discover

SCRIPT = Path(__file__).parents[2] / "recipes" / "prepare_joint_zh.py"
TOPICS = [f"{a}{b}" for a in "大小新旧" for b in ("苹果", "火车", "医院", "音乐", "手机")]


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("prepare_joint_zh", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def write_pairs(path: Path, pairs: list[tuple[str, str, object]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = ["sentence1\tsentence2\tscore", *("\t".join(map(str, pair)) for pair in pairs)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("public")
    sts = folder / "sts_zh"
    for name, verb in (("afqmc_train", "买"), ("lcqmc_dev", "看"), ("bq_dev", "借"), ("pawsx_dev", "说")):
        write_pairs(sts / f"{name}.tsv", [(f"怎么{verb}{t}？", f"如何{verb}{t}", i % 2) for i, t in enumerate(TOPICS)])
    write_pairs(sts / "stsb_train.tsv", [(f"一个人喜欢{t}", f"有人爱{t}", i % 6) for i, t in enumerate(TOPICS)])
    # One training sentence is a test sentence in another spelling.
    write_pairs(sts / "stsb_dev.tsv", [("一只鸟在飞", "鸟飞了", 4), ("一个人在跑步", "他在做饭", 0)])
    write_pairs(sts / "stsb_test.tsv", [("一个人喜欢 大苹果。", "他在吃饭", 1)])
    web = folder / "ir" / "qbqtc_dev.tsv"
    web.parent.mkdir()
    rows = [f"{t}价格\t{t}多少钱一斤_百科\t2\n{t}价格\t{t}的图片大全\t0" for t in TOPICS]
    # Web queries that are sentences of the pair sets too, some of which are held out there.
    rows += [f"如何买{t}？\t{t}怎么买最划算\t2" for t in TOPICS]
    web.write_text("query\ttitle\trelevance\n" + "\n".join(rows) + "\n", encoding="utf-8")
    for name in ("drcd_dev", "cmrc_trial"):
        beir = folder / "ir" / name
        (beir / "qrels").mkdir(parents=True)
        ids = range(len(TOPICS))
        documents = [{"_id": f"d{i}", "title": "", "text": f"{TOPICS[i]}由{name}发明。" * 3} for i in ids]
        questions = [{"_id": f"q{i}", "text": f"{name}发明了什么{TOPICS[i]}？" if i else ""} for i in ids]
        (beir / "corpus.jsonl").write_text("".join(json.dumps(item) + "\n" for item in documents))
        (beir / "queries.jsonl").write_text("".join(json.dumps(item) + "\n" for item in questions))
        (beir / "qrels" / "test.tsv").write_text(
            "query-id\tcorpus-id\tscore\n" + "".join(f"q{i}\td{i}\t1\n" for i in ids)
        )
    return folder


@pytest.fixture(scope="module")
def wanted(script):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(script, "HELD_OUT_PAIRS", dict.fromkeys(script.HELD_OUT_PAIRS, 8))
        patch.setattr(script, "HELD_OUT_WEB_PAIRS", 6)
        yield


@pytest.fixture(scope="module")
def prepared(script, data, wanted, tmp_path_factory):
    output = tmp_path_factory.mktemp("prepared") / "out"
    return output, script.prepare(data, output, seed=1)


def texts_of(table) -> set[str]:
    return {text["text"] for row in table.rows for text in [row["query"], *row["positives"], *row["negatives"]]}


def test_files_load_and_counts_add_up(prepared):
    output, counts = prepared
    tables = {table.name: table for table in read(output / "train")}
    assert set(tables) == set(counts)
    for name, table in tables.items():
        assert len(table.rows) == counts[name].train > 0
        assert table.task_type == ("ir" if name in ("drcd", "cmrc", "qbqtc") else "sts")
    for count in counts.values():
        if count is counts["stsb"]:  # what is held out of it is a file of its own
            continue
        assert count.read == count.train + count.held_out + count.dropped.total()
    assert {task.name for task in discover(output / "dev")} >= {"afqmc", "drcd_cmrc", "qbqtc", "stsb"}


def test_no_held_out_sentence_or_question_is_trained_on(script, prepared):
    output, _ = prepared
    tables = {table.name: table for table in read(output / "train")}
    trained = {name: {script.normalised(text) for text in texts_of(table)} for name, table in tables.items()}
    for task in discover(output / "dev"):
        if task.type == "sts":
            held_out = {script.normalised(text.text) for pair in task.pairs for text in pair}
        else:
            held_out = {script.normalised(text.text) for text in task.queries.values()}
        assert not held_out & set.union(*trained.values())


def test_a_web_query_that_a_pair_set_holds_out_is_dropped(script, prepared):
    _, counts = prepared
    assert counts["qbqtc"].dropped["sentence or question held out in another set"] > 0


def test_web_queries_are_scored_pairs_too_and_their_titles_are_kept_apart(prepared):
    output, counts = prepared
    tables = {table.name: table for table in read(output / "train")}
    held_out = (output / "dev" / "qbqtc_pairs.tsv").read_text(encoding="utf-8").splitlines()[1:]
    assert 6 <= counts["qbqtc_pairs"].held_out == len(held_out) <= 7
    assert {row["positive_scores"][0] for row in tables["qbqtc_pairs"].rows} == {0, 2}
    titles = {line.split("\t")[1] for line in held_out}
    assert not titles & (texts_of(tables["qbqtc"]) | texts_of(tables["qbqtc_pairs"]))


def test_a_sentence_of_the_test_set_is_dropped_in_any_spelling(prepared):
    output, counts = prepared
    assert counts["stsb"].dropped["sentence of a dev or test set"] == 1
    assert "一个人喜欢大苹果" not in (output / "train" / "stsb.jsonl").read_text(encoding="utf-8")


def test_negatives_are_never_positives(prepared):
    output, _ = prepared
    for table in read([output / "train" / f"{name}.jsonl" for name in ("drcd", "cmrc", "qbqtc")]):
        for row in table.rows:
            positives = {text["text"] for text in row["positives"]}
            assert row["negatives"]
            assert not positives & {text["text"] for text in row["negatives"]}


def test_same_seed_same_files_and_done_is_done(script, data, prepared, tmp_path):
    output, _ = prepared
    again = tmp_path / "again"
    script.prepare(data, again, seed=1)
    files = sorted(path.relative_to(output) for path in output.rglob("*") if path.is_file())
    assert all((output / file).read_bytes() == (again / file).read_bytes() for file in files)
    times = {file: (again / file).stat().st_mtime_ns for file in files}
    script.prepare(data, again, seed=1)
    assert times == {file: (again / file).stat().st_mtime_ns for file in files}


def test_long_paragraphs_are_cut_at_sentence_ends(script):
    paragraph = "".join(f"第{i}句话讲了一件很长的事情，细节很多很多。" for i in range(40))
    chunks = script.cut(paragraph)
    assert "".join(chunks) == paragraph
    assert all(chunk.endswith("。") and len(chunk) <= 1.5 * script.CHUNK_CHARACTERS for chunk in chunks)
    assert script.cut("没有句号的文字") == ["没有句号的文字"]


def test_a_question_without_text_is_dropped(prepared):
    _, counts = prepared
    assert counts["drcd"].dropped["no text"] == counts["cmrc"].dropped["no text"] == 1


def test_a_stray_mark_is_no_chunk(script):
    quoted = "他说：「" + "这件事情说来话长" * 20 + "。」。"
    assert script.cut(quoted * 3 + "」。")[-1] != "」。"
    assert all(len(script.normalised(chunk)) > 20 for chunk in script.cut(quoted * 3))


def test_a_question_has_its_paragraph_and_no_negative_from_it(script, prepared):
    output, _ = prepared
    rows = [json.loads(line) for line in (output / "train" / "drcd.jsonl").read_text(encoding="utf-8").splitlines()]
    for row in rows:
        topic = next(topic for topic in TOPICS if topic in row["query"])
        own = f"{topic}由drcd_dev发明"
        assert all(own in text for text in row["positives"])
        assert not any(own in text for text in row["negatives"])


def test_rows_that_are_there_twice_are_counted_once(script, tmp_path):
    write_pairs(tmp_path / "pairs.tsv", [("甲", "乙", 1), ("甲", "乙", 1), ("甲", "乙", 0)])
    counts = script.Counts()
    assert len(script.read_pairs(tmp_path / "pairs.tsv", counts)) == 2
    assert counts.dropped == {"there twice": 1}


def test_refuses_a_foreign_directory_and_missing_inputs(script, data, tmp_path):
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(DataError, match="did not write"):
        script.prepare(data, tmp_path, seed=1)
    assert (tmp_path / "mine.txt").read_text() == "keep"
    with pytest.raises(DataError, match=r"lacks sts_zh/stsb_train\.tsv"):
        script.prepare(tmp_path, tmp_path / "out", seed=1)
