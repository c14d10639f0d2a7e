"""A recipe from raw rows to a data set: cached by content, restarted where it stopped."""

import json
import shutil
from pathlib import Path

import pytest
import yaml
from cleaning_rows import ir, read, write

from codiemb.curation.curating import CurationRecipe, curate, run
from codiemb.data import DataError
from codiemb.data import read as read_tables
from codiemb.training.sections import RecipeError, load_section, parse_section

STEPS = [
    {"filter": {"query_length": [3, 100]}},
    {"dedupe": {"match": "near"}},
    {"decontaminate": {"against": ["test.txt"]}},
    {"split": {"sizes": {"train": "rest", "dev": 0.2}}},
]


@pytest.fixture
def content(tmp_path, monkeypatch):
    """A recipe over a small file, in its directory."""
    monkeypatch.chdir(tmp_path)
    rows = [ir(f"第{chr(0x4E00 + i) * 3}个问题是什么", f"{chr(0x4E00 + i) * 5}是它的答案") for i in range(40)]
    write(tmp_path / "rows.jsonl", *rows, rows[0], ir("短", "太短的问题"), ir("绝密的测试题目是什么", "不能说"))
    (tmp_path / "test.txt").write_text("绝密的测试题目是什么？\n", encoding="utf-8")
    return {"output": "set", "sources": [{"path": "rows.jsonl", "license": "cc0-1.0"}], "steps": STEPS}


def make(content):
    return curate(parse_section(CurationRecipe, content))


def files(folder="set"):
    """Every file of an output with its bytes."""
    root = Path(folder)
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def test_steps_counts_and_files(content):
    report = make(content)
    assert report.ran == ["01-filter", "02-dedupe", "03-decontaminate", "04-split"]
    rejected = [step["rejected"] for step in report.content["steps"]]
    assert rejected == [
        {"query: too short": 1},
        {"exact duplicate": 1},
        {"query: normalised match of an evaluation query": 1},
        {},
    ]
    tables = {table.name: len(table.rows) for table in read_tables(["set/data"])}
    assert sum(tables.values()) == 40
    assert 4 <= tables["dev"] <= 12
    assert {path.name for path in Path("set/rejected").iterdir()} == {
        f"{step}.rejected.jsonl" for step in ("01-filter", "02-dedupe", "03-decontaminate")
    }
    assert read("set/rejected/03-decontaminate.rejected.jsonl")[0]["matches"][0]["kind"] == "normalised"


def test_the_card_is_read_by_the_hub(content):
    make({**content, "card": {"title": "A set", "license": "cc0-1.0", "languages": ["zh"]}})
    text = Path("set/README.md").read_text(encoding="utf-8")
    metadata = yaml.safe_load(text.split("---")[1])
    assert metadata["license"] == "cc0-1.0"
    assert metadata["configs"][0]["data_files"][1] == {"split": "dev", "path": "data/dev.parquet"}
    assert "| rows.jsonl | rows | cc0-1.0 |" in text
    assert "| 01-filter | 43 | 42 | 1 | query: too short |" in text
    datasets = pytest.importorskip("datasets")
    loaded = datasets.load_dataset("set", cache_dir="hf")
    assert set(loaded) == {"train", "dev"}
    assert loaded["train"][0]["query"]["text"].startswith("第")


def test_a_second_run_does_nothing(content):
    make(content)
    before = {name: (Path("set") / name).stat().st_mtime_ns for name in files()}
    assert make(content).ran == []
    assert {name: (Path("set") / name).stat().st_mtime_ns for name in files()} == before


def test_what_changes_runs_again_and_all_after_it(content):
    make(content)
    (Path("test.txt")).write_text("别的测试题目\n", encoding="utf-8")
    assert make(content).ran == ["03-decontaminate", "04-split"]
    assert make({**content, "card": {"title": "New"}}).ran == []
    assert "# New" in Path("set/README.md").read_text(encoding="utf-8")
    write(Path("rows.jsonl"), *(ir(f"新的问题{i}号", f"答案{i}") for i in range(10)))
    assert len(make(content).ran) == 4


@pytest.mark.parametrize("stopped_in", ["02-dedupe", "03-decontaminate", "04-split"])
def test_stopped_and_restarted_gives_the_same(content, monkeypatch, stopped_in):
    make({**content, "output": "whole"})
    run_step = run.run_step

    def stopping(step, given):
        result = run_step(step, given)
        if given.directory.name.startswith(stopped_in):
            raise KeyboardInterrupt  # after its files were written, before the step counts as done
        return result

    with monkeypatch.context() as patch:
        patch.setattr(run, "run_step", stopping)
        with pytest.raises(KeyboardInterrupt):
            make(content)
    assert not Path("set").exists()
    restarted = make(content)
    assert restarted.ran[0] == stopped_in
    whole, again = files("whole"), files("set")
    assert again.keys() == whole.keys()
    for name in whole.keys() - {"README.md"}:  # whose title is the name of the directory
        assert again[name] == whole[name], name


def test_an_output_that_is_something_else_stays(content):
    for name in ("set/data/raw.jsonl", "set"):
        write(Path(name), ir("问题", "答案"))
        with pytest.raises(DataError, match="set: is no data set of an earlier run"):
            make(content)
        assert Path(name).is_file()
        shutil.rmtree("set", ignore_errors=True)
    Path("set").unlink()
    Path("set").mkdir()  # an empty directory will do
    assert make(content).ran


def test_a_publication_that_was_stopped_is_made_again(content, monkeypatch):
    make(content)
    whole = files()

    def stopping(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(run, "data_card", stopping)
        with pytest.raises(KeyboardInterrupt):
            make({**content, "card": {"title": "New"}})
    assert make(content).ran == []
    assert files() == whole


def test_no_row_left(content):
    with pytest.raises(DataError, match=r"01-filter: no row is left; .*rejected\.jsonl says why"):
        make({**content, "steps": [{"filter": {"query_length": [500, 512]}}]})


def test_files_that_would_have_one_name(content):
    Path("rows.json").write_text(json.dumps([ir("问题", "答案")]), encoding="utf-8")
    with pytest.raises(DataError, match=r"two files would be rows\.jsonl"):
        make({**content, "sources": [{"path": "rows.jsonl"}, {"path": "rows.json"}]})


def test_no_split_is_one_file(content):
    report = make({**content, "steps": ["filter"], "format": "jsonl"})
    assert [split["file"] for split in report.content["splits"]] == ["data/train.jsonl"]
    assert read("set/data/train.jsonl")[0] == read("rows.jsonl")[0]


def test_faults_of_a_recipe(content):
    for change, message in (
        ({"steps": [*STEPS[::-1]]}, "split has to be the last one"),
        ({"sources": []}, "expected rows to begin with"),
        ({"steps": [{"filter": {}, "dedupe": {}}]}, "expected one step"),
        ({"steps": [{"filter": {"query_lenght": [1, 2]}}]}, "query_lenght"),
        ({"steps": [{"filter": {"max_digits": 2}}]}, "max_digits=2"),
        ({"steps": [{"dedupe": {"match": "exact", "threshold": 0.7}}]}, "threshold=0.7 has no meaning"),
        ({"steps": [{"dedupe": {"on": "positive", "keep": "merge"}}]}, "same query"),
        ({"steps": [{"synthesize": {"documents": ["x"]}}]}, "api"),
        ({"on_error": "skip", "steps": [{"mine": {}}]}, "in the first cleaning step"),
        ({"documents": [{"path": "x.jsonl"}]}, "x.jsonl is read by no step"),
        ({"steps": [{"split": {"sizes": {"train": "rest", "dev": 0}}}]}, "sizes"),
    ):
        with pytest.raises(RecipeError, match=message):
            parse_section(CurationRecipe, {**content, **change})


def test_the_example_recipe():
    recipe = load_section(CurationRecipe, Path(__file__).parents[2] / "recipes" / "curate-example.yaml")
    assert [step.kind for step in recipe.steps] == ["synthesize", "filter", "dedupe", "mine", "decontaminate", "split"]
    assert recipe.steps[2].dedupe.on == "query"
