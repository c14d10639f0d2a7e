import json
import subprocess
import sys

import datasets
import hub_layout
import mteb
import pytest
import torch
import typer
from sentence_transformers import SentenceTransformer
from sklearn.exceptions import UndefinedMetricWarning
from typer.testing import CliRunner

from codiemb.cli.evaluate import evaluate_command

CMTEB = ["--benchmark", "MTEB(cmn, v1)"]


@pytest.fixture(autouse=True)
def _own_datasets_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")


@pytest.fixture
def hub(tmp_path):
    hub_layout.write(tmp_path / "hub")
    return tmp_path / "hub"


@pytest.fixture
def evaluate(tiny_model_directory):
    def run(*arguments, model=tiny_model_directory):
        app = typer.Typer()
        app.command()(evaluate_command)
        words = [*([model, "--device", "cpu", "--compute", "fp32"] if model else []), *arguments]
        return CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=False)

    return run


def results(output):
    return sorted((output / "results").glob("*/*/*.json"))


def test_a_benchmark_is_measured_shown_and_kept(evaluate, hub, tmp_path):
    arguments = [*CMTEB, "--tasks", "STSB,AFQMC", "--dataset-root", hub, "--output", tmp_path / "out"]
    outcome = evaluate(*arguments, "--name", "me/mine")
    assert outcome.exit_code == 0
    assert {path.name for path in results(tmp_path / "out")} == {"STSB.json", "AFQMC.json", "model_meta.json"}
    meta = json.loads(results(tmp_path / "out")[-1].read_text())
    assert meta["name"] == "me/mine"
    assert meta["loader_kwargs"]["precision"] == "float32"
    for name in ("STSB", "AFQMC"):
        (path,) = (path for path in results(tmp_path / "out") if path.name == f"{name}.json")
        score = mteb.results.TaskResult.from_disk(path).get_score()
        assert f"{name}: {100 * score:.2f} (STS, cosine_spearman; " in outcome.stderr
        assert f"{100 * score:.2f}" in outcome.stdout
    assert "2 tasks, " in outcome.stderr
    assert "the time left is estimated by characters" in outcome.stderr
    assert " left\n" in outcome.stderr  # after the first of two tasks
    assert "2 of 2 tasks" in outcome.stdout
    again = evaluate(*arguments, "--name", "me/mine")
    assert "STSB: " in again.stderr
    assert again.stderr.count("there already, kept") == 2


def test_a_failed_task_ends_with_status_1_and_is_in_no_mean(evaluate, hub, tmp_path):
    (hub / "mteb/STSB/test.jsonl").write_text('{"sentence1": "a", "sentence2": "b"}\n' * 3)
    names = "STSB,AFQMC,LCQMC"
    outcome = evaluate(*CMTEB, "--tasks", names, "--dataset-root", hub, "--output", tmp_path / "out", "--json")
    assert outcome.exit_code == 1
    assert "data missing for 1 of 3 tasks: LCQMC" in outcome.stderr
    assert "1/3 STSB: failed: ValueError: Column 'score' doesn't exist" in outcome.stderr
    assert "C-MTEB/LCQMC/ with test.{parquet,jsonl,csv}" in outcome.stderr
    content = json.loads(outcome.stdout)
    assert content["missing"] == ["STSB", "LCQMC"]
    assert [task["state"] for task in content["tasks"]] == ["failed", "measured", "failed"]
    mean = content["means"]["Mean(Task)"]
    assert (mean["n"], mean["of"]) == (1, 3)
    assert mean["value"] == pytest.approx(100 * content["tasks"][1]["score"])


def test_the_table_names_what_has_no_score(evaluate, hub, tmp_path):
    arguments = ["--tasks", "AFQMC,LCQMC", "--dataset-root", hub, "--output", tmp_path / "out"]
    outcome = evaluate(*CMTEB, *arguments)
    assert "no score: LCQMC" in outcome.stdout
    assert "1 of 2 tasks" in outcome.stdout


def test_list_says_what_is_there_and_what_is_expected(evaluate, hub):
    outcome = evaluate(*CMTEB, "--types", "STS", "--list", "--dataset-root", hub, "--json", model=None)
    listed = {entry["task"]: entry for entry in json.loads(outcome.stdout)}
    assert len(listed) == 7
    assert {name for name, entry in listed.items() if entry["place"] == "found"} == {"STSB", "AFQMC"}
    assert listed["BQ"]["expected"] == [f"{hub}/C-MTEB/BQ/ with test.{{parquet,jsonl,csv}}"]
    outcome = evaluate(*CMTEB, "--types", "STS", "--list", "--dataset-root", hub, model=None)
    assert f"BQ: expected {hub}/C-MTEB/BQ/ with test." in outcome.stdout
    assert "2 found, 5 missing" in outcome.stdout
    outcome = evaluate(*CMTEB, "--tasks", "BQ", "--list", "--data", hub_layout.SAMPLES / "sts.tsv", model=None)
    assert "1 hub, 1 local" in outcome.stdout


def test_local_data_beside_a_benchmark_and_alone(evaluate, hub, tmp_path):
    (tmp_path / "topics.tsv").write_text("text\tlabel\n" + "eat bread\tfood\ntrain at nine\ttravel\n" * 6)
    data = [hub_layout.SAMPLES / "sts.tsv", tmp_path / "topics.tsv"]
    outcome = evaluate(*CMTEB, "--tasks", "STSB", "--dataset-root", hub, "--data", *data, "--output", tmp_path / "a")
    assert outcome.exit_code == 0
    names = {path.stem for path in results(tmp_path / "a")} - {"model_meta"}
    assert names == {"STSB", "sts", "topics-classification", "topics-clustering"}
    options = ["--as-mteb", "--sample", "6", "--seed", "1", "--output", tmp_path / "b"]
    outcome = evaluate("--data", *data, *options)
    assert {path.stem for path in results(tmp_path / "b")} == names - {"STSB"} | {"model_meta"}
    assert not (tmp_path / "b" / "results.json").exists()


@pytest.fixture
def near_model(tiny_model_directory, tmp_path):
    """The tiny model with a little noise."""
    model = SentenceTransformer(str(tiny_model_directory), device="cpu")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    model.save_pretrained(str(tmp_path / "near"), create_model_card=False)
    return tmp_path / "near"


def test_two_models_and_kept_results_side_by_side(evaluate, hub, near_model, tmp_path):
    (tmp_path / "topics.tsv").write_text("text\tlabel\n" + "eat bread\tfood\ntrain at nine\ttravel\n" * 6)
    tasks = [*CMTEB, "--tasks", "AFQMC", "--dataset-root", hub, "--data", tmp_path / "topics.tsv"]
    arguments = [*tasks, "--output", tmp_path / "out", "--name", "me/mine", "--seed", "1"]
    outcome = evaluate(*arguments, "--compare", near_model, "--changes", "1")
    assert outcome.exit_code == 0
    assert "95 % interval" in outcome.stdout
    assert " 16 pairs " in outcome.stdout
    assert " 10 draws " in outcome.stdout
    assert "me/mine against " in outcome.stdout
    assert "Larger than chance (p < 0.05 after Holm's correction for 3 tasks): " in outcome.stdout
    assert "AFQMC: what gained most" in outcome.stdout
    comparison = json.loads((tmp_path / "out" / "compare.json").read_text())
    assert [entry["task"] for entry in comparison["tasks"]] == ["AFQMC", "topics-classification", "topics-clustering"]
    first = comparison["tasks"][0]
    assert first["significance"]["seed"] == 1
    assert len(first["changes"]["gains"]) == 1
    other = f"{tmp_path.name}/near"
    assert (comparison["model"], comparison["other"]) == ("me/mine", other)

    (folder,) = (tmp_path / "out" / "results").glob("*__near/*")
    again = evaluate(*arguments, "--compare", folder, "--changes", "0", "--json")
    assert again.stderr.count("there already, kept") == 3  # of the one model; the other is not even loaded
    content = json.loads(again.stdout)
    kept = content["comparison"]
    assert kept["other"] == other
    assert [entry["significance"] for entry in kept["tasks"]] == [e["significance"] for e in comparison["tasks"]]
    assert not any("changes" in entry for entry in kept["tasks"])
    assert content["tasks"][0]["items"] == {"kind": "pairs", "n": 16}
    assert (
        content["tasks"][0]["interval"]["low"] < content["tasks"][0]["score"] < content["tasks"][0]["interval"]["high"]
    )
    with pytest.raises(ValueError, match=r"holds results of 2 models or settings; give one of .*near"):
        evaluate(*arguments, "--compare", tmp_path / "out")


def test_side_metrics_that_are_not_defined_are_no_news(evaluate, tmp_path, recwarn):
    # Folds of one or two texts: a label is missing in most of them.
    (tmp_path / "few.tsv").write_text("text\tlabel\n" + "eat bread\tfood\ntrain at nine\ttravel\nrain\tweather\n" * 2)
    evaluate("--data", tmp_path / "few.tsv", "--as-mteb", "--output", tmp_path / "out")
    assert [path.stem for path in results(tmp_path / "out")] == ["few-classification", "few-clustering", "model_meta"]
    assert not [one for one in recwarn if issubclass(one.category, UndefinedMetricWarning)]


def test_options_reach_the_run(evaluate, hub, tmp_path):
    own = tmp_path / "own.yaml"
    own.write_text("STSB: x\n")
    arguments = [*CMTEB, "--tasks", "STSB", "--dataset-root", hub, "--output", tmp_path / "out", "--max-length", 32]
    evaluate(*arguments, "--template", "e5-instruct", "--instructions", own)
    (log,) = (tmp_path / "out").glob("results/*/*/tasks.jsonl")
    (line,) = hub_layout.json_lines(log)
    assert line["prompts"] == {"query": "Instruct: x\nQuery: "}
    meta = json.loads((log.parent / "model_meta.json").read_text())
    assert meta["loader_kwargs"]["max_length"] == 32
    assert meta["loader_kwargs"]["instructions"]["STSB"]["query"] == "x"


def bad_instructions(folder):
    (folder / "own.yaml").write_text("STBS: x\n")
    return folder / "own.yaml"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (lambda _: ["m", "--benchmark", "MTEB(cmn)", "-o", "out"], "MTEB(cmn): no such benchmark; the nearest are"),
        (lambda _: ["m", "--tasks", "LCQCM", "-o", "out"], "LCQCM: no such task; the nearest are LCQMC"),
        (
            lambda _: ["m", "--types", "Stss", "-o", "out"],
            "Stss: no such type of the chosen tasks; the nearest are STS",
        ),
        (lambda _: ["m", "-o", "out"], "Nothing to measure on. Give --data, or choose tasks with --benchmark"),
        (lambda _: ["m", "--list"], "Nothing to measure on."),
        (lambda _: [*CMTEB, "-o", "out"], "MODEL is missing."),
        (lambda _: ["m", *CMTEB], "--output is missing."),
        (
            lambda folder: ["m", *CMTEB, "-o", "out", "--compare", folder],
            "expected mteb's layout MODEL/REVISION/TASK.json",
        ),
        (lambda _: ["m", *CMTEB, "-o", "out", "--sample", "3"], "--sample is for local data"),
        (lambda _: ["m", "--data", hub_layout.SAMPLES, "-o", "out", "--name", "x"], "--name are for benchmarks."),
        (lambda _: [*CMTEB, "--dataset-root", "no/dir", "--list"], "dir 'no/dir' does not exist"),
        (lambda _: ["m", *CMTEB, "-o", "out", "--template", "e6"], "--template e6: no such template"),
        (
            lambda folder: ["m", *CMTEB, "-o", "out", "--instructions", bad_instructions(folder)],
            "STBS: no such task. The",
        ),
        (lambda folder: [folder / "no" / "model", *CMTEB, "-o", "out"], "no/model: there is no such directory"),
    ],
)
def test_errors_are_one_message_and_exit_2(tmp_path, monkeypatch, run_codiemb, arguments, expected):
    monkeypatch.chdir(tmp_path)
    status, _, shown = run_codiemb("evaluate", *arguments(tmp_path))
    assert status == 2
    assert expected in shown
    assert "Traceback" not in shown


def test_help_does_not_wait_for_mteb():
    code = (
        "import sys\nfrom codiemb.cli import app\napp._register()\n"
        "heavy = {'mteb', 'torch', 'datasets', 'transformers'} & sys.modules.keys()\nassert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
