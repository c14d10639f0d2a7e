"""`codiemb data dedupe|filter|decontaminate|split|mix` and `codiemb curate`."""

import json
from functools import partial

import pytest
import yaml


def row(query, *positives, **more):
    return {"task_type": "ir", "query": query, "positives": list(positives), **more}


ROWS = [
    row("花呗怎么还款", "打开应用，点我的账单"),
    row("花呗 怎么还款？", "打开应用，点我的账单"),
    row("借呗额度怎么提升", "按时还款，保持信用"),
    row("短", "按时还款，保持信用"),
]


@pytest.fixture
def codiemb(tmp_path, monkeypatch, run_codiemb):
    """Runs a command in a directory with `rows.jsonl`."""
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "rows.jsonl", *ROWS)
    return partial(run_codiemb, "data")


def write(path, *rows):
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_dedupe_says_what_was_left_out(codiemb, tmp_path):
    status, out, _ = codiemb("dedupe", "rows.jsonl", "-o", "clean.jsonl")
    assert status == 0
    assert "3 of 4 rows written" in out
    assert "1 left out: normalised duplicate" in out
    assert "clean.rejected.jsonl" in out
    assert lines(tmp_path / "clean.rejected.jsonl")[0]["of"] == "rows.jsonl:1"
    status, out, _ = codiemb("dedupe", "rows.jsonl", "-o", "clean.jsonl", "--match", "exact", "--json")
    assert json.loads(out)["rejected"] == {}


def test_dedupe_near_merge(codiemb, tmp_path):
    options = ("--match", "near", "--threshold", "0.7", "--on", "query", "--keep", "merge")
    status, out, _ = codiemb("dedupe", "rows.jsonl", "-o", "clean/", *options, "--json")
    assert (status, json.loads(out)["written"]) == (0, {"clean/rows.jsonl": 3})


def test_filter(codiemb, tmp_path):
    options = ("--query-length", "2:64", "--script", "han", "--scores", "0:1")
    status, out, _ = codiemb("filter", "rows.jsonl", "-o", "clean.jsonl", *options)
    assert status == 0
    assert "1 left out: query: too short" in out
    status, _, err = codiemb("filter", "rows.jsonl", "-o", "clean.jsonl", "--script", "klingon")
    assert (status, "expected one of han" in err) == (2, True)
    status, _, err = codiemb("filter", "rows.jsonl", "-o", "clean.jsonl", "--query-length", "2")
    assert (status, "expected two numbers" in err) == (2, True)


def test_decontaminate_lists_every_match(codiemb, tmp_path):
    (tmp_path / "test.tsv").write_text(
        "sentence1\tsentence2\tscore\n花唄怎麼還款\t按时还款保持信用\t3\n", encoding="utf-8"
    )
    command = ("decontaminate", "rows.jsonl", "-o", "clean.jsonl", "--against", "test.tsv")
    status, out, _ = codiemb(*command)
    assert status == 0
    assert "0 of 4 rows written" in out
    assert "test.tsv (query): 2" in out
    status, out, _ = codiemb(*command, "--side", "query", "--no-near", "--json")
    report = json.loads(out)
    assert report["details"]["matches_by_kind"] == {"characters": 2}
    assert len(lines(tmp_path / "clean.jsonl")) == 2
    match = lines(tmp_path / "clean.rejected.jsonl")[0]["matches"][0]
    assert match["evaluation"] == {"set": "test.tsv", "side": "query", "id": "2", "text": "花唄怎麼還款"}
    status, out, _ = codiemb(*command, "--side", "query", "--no-near", "--no-simplify", "--json")
    assert json.loads(out)["details"]["matches_by_kind"] == {}


def test_split(codiemb, tmp_path):
    options = ("--size", "train=rest", "--size", "dev=1", "--by", "query", "--kind", ".jsonl.gz")
    status, _, _ = codiemb("split", "rows.jsonl", "-o", "splits", *options)
    assert status == 0
    assert sorted(path.name for path in (tmp_path / "splits").iterdir()) == ["dev.jsonl.gz", "train.jsonl.gz"]
    status, _, err = codiemb("split", "rows.jsonl", "-o", "splits", "--size", "train=all", "--size", "dev=1")
    assert (status, "expected NAME=SIZE" in err) == (2, True)


def test_mix(codiemb, tmp_path):
    write(tmp_path / "more.jsonl", *(row(f"问题{i}", "答案") for i in range(20)))
    options = ("--weight", "1", "--weight", "1", "--total", "6")
    status, out, _ = codiemb("mix", "rows.jsonl", "more.jsonl", "-o", "mixed.jsonl", *options)
    assert status == 0
    assert "rows.jsonl: read 4, written 3" in out
    assert len(lines(tmp_path / "mixed.jsonl")) == 6


@pytest.mark.parametrize("command", ["dedupe", "filter", "decontaminate", "split", "mix"])
def test_bad_rows_are_located(codiemb, tmp_path, command):
    write(tmp_path / "bad.jsonl", ROWS[0], {"query": "x"})
    more = {"decontaminate": ["--against", "rows.jsonl"], "split": ["--size", "a=0.5", "--size", "b=0.5"]}
    arguments = [command, "bad.jsonl", "-o", "out.jsonl" if command != "split" else "out", *more.get(command, [])]
    status, out, err = codiemb(*arguments, "--on-error", "raise")
    assert (status, out) == (2, "")
    assert "bad.jsonl:2: positives: none in a row of ir" in err


def test_curate(codiemb, tmp_path, run_codiemb):
    recipe = {
        "output": "set",
        "sources": [{"path": "rows.jsonl"}],
        "steps": ["filter", {"dedupe": {"match": "normalised"}}],
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    status, out, err = run_codiemb("curate", "recipe.yaml")
    assert status == 0
    assert "02-dedupe" in err
    assert "2 rows set/data/train.parquet" in out
    status, out, err = run_codiemb("curate", "recipe.yaml", "--json")
    assert err.count("there already") == 2
    assert json.loads(out)["splits"][0]["rows"] == 2
    status, _, err = run_codiemb("curate", "recipe.yaml", "format=csv")
    assert (status, "format" in err) == (2, True)
