"""A recipe with every step: a language model that writes, a model that mines, and a kill in the middle."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import cleaning_rows
import pytest
import yaml
from chat_server import Reply, chat_server
from cleaning_rows import ir, write

from codiemb.curation.curating import CurationRecipe, curate
from codiemb.curation.mining import windows
from codiemb.data import read
from codiemb.training.sections import parse_section

PLACES = ["北京", "上海", "广州", "成都", "西安", "南京"]
STEPS = ["01-synthesize", "02-filter", "03-dedupe", "04-mine", "05-decontaminate", "06-split"]
LEAK = "第丁丁丁个问题是什么"


@pytest.fixture
def server(monkeypatch):
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    with chat_server() as running:
        yield running


@pytest.fixture
def content(tmp_path, monkeypatch, server, tiny_model_directory):
    """A recipe whose paths are all absolute; a source is called as a file of the synthesis is."""
    monkeypatch.chdir(tmp_path)
    documents = [
        {"_id": f"d{i}", "text": f"{place}位于中国，是一座有{i + 3}座桥的老城。{place}的居民喜欢在河边散步！"}
        for i, place in enumerate(PLACES)
    ]
    rows = [ir(f"第{chr(0x4E00 + i) * 3}个问题是什么", f"{chr(0x4E00 + i) * 5}是它的答案") for i in range(12)]
    write(tmp_path / "in" / "ir.jsonl", *rows)
    corpus = str(write(tmp_path / "in" / "documents.jsonl", *documents))
    (tmp_path / "in" / "test.txt").write_text(f"{LEAK}？\n", encoding="utf-8")
    synthesis = {
        "documents": [corpus],
        "api": {"base_url": server.base_url, "model": "m", "backoff": 0.01},
        "gates": {"model": None, "passage_length": [30, 4000]},
    }
    mining = {
        "model": str(tiny_model_directory),
        "corpus": [corpus],
        "miners": ["dense", "bm25"],
        "options": {"negatives": 2, "share": None},
    }
    steps = [
        {"synthesize": synthesis},
        "filter",
        {"dedupe": {"on": "query", "keep": "merge"}},
        {"mine": mining},
        {"decontaminate": {"against": [str(tmp_path / "in" / "test.txt")]}},
        {"split": {"sizes": {"train": "rest", "dev": 0.2}}},
    ]
    return {
        "output": str(tmp_path / "set"),
        "sources": [{"path": str(tmp_path / "in" / "ir.jsonl"), "license": "cc0-1.0"}],
        "documents": [{"path": corpus, "license": "cc-by-sa-4.0", "note": "towns"}],
        "steps": steps,
        "format": "jsonl",
    }


def make(content):
    return curate(parse_section(CurationRecipe, content))


def files(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_from_documents_to_a_set_with_its_card(content, server, tmp_path):
    report = make(content)
    assert report.ran == STEPS
    steps = {step["step"]: step for step in report.content["steps"]}

    written = steps["01-synthesize"]
    assert set(written["rejected"]) >= {"task: near duplicate", "cross_lingual: language"}, written["rejected"]
    lines = (tmp_path / "set/rejected/01-synthesize.rejected.jsonl").read_text(encoding="utf-8").splitlines()
    assert sum(written["rejected"].values()) == len(lines)
    assert written["synthesis"]["tokens"]["input_tokens"] == 100 * len(server.bodies)
    assert steps["02-filter"]["read"] == 12 + sum(written["written"].values())

    mined = steps["04-mine"]
    assert mined["rejected"]["candidates: a known positive of the query"] > 0
    assert mined["mining"]["negatives"] > 12
    assert set(mined["mining"]["found_by"]) == {"dense", "bm25"}
    assert mined["read"] == sum(mined["written"].values()) == steps["05-decontaminate"]["read"]
    assert steps["05-decontaminate"]["rejected"] == {"query: normalised match of an evaluation query": 1}

    card = (tmp_path / "set/README.md").read_text(encoding="utf-8")
    assert "| ir.jsonl | rows | cc0-1.0 |  |  |" in card
    assert "| documents.jsonl | documents of 01-synthesize, 04-mine | cc-by-sa-4.0 |  | towns |" in card
    assert "Synthetic rows were written by m." in card
    for name in ("01-synthesize", "04-mine"):
        for reason, count in steps[name]["rejected"].items():
            assert f"| {count} | {reason} |" in card
    for split in report.content["splits"]:
        assert (
            len(cleaning_rows.read(tmp_path / "set" / split["file"]))
            == steps["06-split"]["written"][Path(split["file"]).name]
        )
    rows = [row for table in read([tmp_path / "set/data"]) for row in table.rows]
    assert any(row["negatives"] for row in rows if row["query"]["text"].startswith("第"))
    assert LEAK not in {row["query"]["text"] for row in rows}


def test_what_is_published_names_no_path_and_no_server(content, server, tmp_path, tiny_model_directory):
    make(content)
    everything = b"".join(files(tmp_path / "set").values()).decode()
    for secret in (tmp_path, tiny_model_directory, tiny_model_directory.parent, "127.0.0.1", "OPENAI_API_KEY"):
        assert str(secret) not in everything
    options = [step["options"] for step in json.loads((tmp_path / "set/curation.json").read_text())["steps"]]
    assert options[0]["documents"] == options[3]["corpus"] == ["in/documents.jsonl"]
    assert options[0]["api"]["model"] == "m"
    assert options[3]["model"] == tiny_model_directory.name  # outside of the working directory


def test_killed_and_run_again_gives_the_same_and_pays_once(content, server, tmp_path, monkeypatch):
    make(content)
    whole = files(tmp_path / "set")
    (tmp_path / "set").rename(tmp_path / "whole")
    (tmp_path / "set.steps").rename(tmp_path / "whole.steps")
    wanted = len(server.bodies)
    server.bodies.clear()
    server.answered.clear()
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")

    server.reply = lambda number, body: Reply(delay=0 if number < 10 else 600)  # gets stuck in the synthesis
    killed("recipe.yaml", lambda: len(server.bodies) == 14)  # all of four at once are stuck
    assert [path.suffix for path in (tmp_path / "set.steps").glob("0*")] == [".partial"]

    server.reply = lambda number, body: None
    content["steps"][0]["synthesize"]["api"]["concurrency"] = 2  # as one does after a stop
    with monkeypatch.context() as patch:
        patch.setattr(windows.Parts, "remove", stop)  # all rows are mined and written, the step is not done
        with pytest.raises(KeyboardInterrupt):
            make(content)
    assert len(server.answered) == wanted
    assert set(server.answered.values()) == {1}
    assert not (tmp_path / "set").exists()

    assert make(content).ran == STEPS[3:]
    again = files(tmp_path / "set")
    assert again.keys() == whole.keys()
    for name in whole.keys() - {"curation.json"}:  # which has the steps' keys
        assert again[name] == whole[name], name


def test_other_options_take_the_answers_that_are_there(content, server, tmp_path):
    content["steps"] = content["steps"][:1]
    make(content)
    asked = len(server.bodies)
    content["steps"][0]["synthesize"]["gates"]["passage_length"] = [20, 4000]
    assert make(content).ran == STEPS[:1]
    assert len(server.bodies) == asked


def stop(_):
    raise KeyboardInterrupt


def killed(recipe, when):
    """Run a recipe in a process of its own until something is so."""
    command = [sys.executable, "-m", "codiemb", "curate", recipe]
    with subprocess.Popen(command, stderr=subprocess.PIPE, env={**os.environ, "OMP_NUM_THREADS": "1"}) as process:
        until = time.monotonic() + 120
        while not when():
            assert process.poll() is None, process.stderr.read().decode()
            assert time.monotonic() < until
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    assert not Path("set").exists()
