import csv
import json

import mteb
import pytest
import typer
from typer.testing import CliRunner

from codiemb.cli.leaderboard import leaderboard_command


@pytest.fixture
def results(tmp_path):
    folder = tmp_path / "results" / "org__mine" / "r1"
    folder.mkdir(parents=True)
    for name, split, score in (("LCQMC", "test", 0.7125), ("T2Retrieval", "dev", 0.5)):
        scores = {split: [{"main_score": score, "hf_subset": "default", "languages": ["cmn-Hans"]}]}
        content = {"task_name": name, "dataset_revision": "1", "mteb_version": mteb.__version__, "scores": scores}
        (folder / f"{name}.json").write_text(json.dumps({**content, "evaluation_time": 1.0}))
    return tmp_path / "results"


def leaderboard(*arguments):
    app = typer.Typer()
    app.command()(leaderboard_command)
    return CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)


def test_table_and_notes_on_stdout(results):
    outcome = leaderboard(results)
    assert outcome.exit_code == 0
    lines = outcome.stdout.splitlines()
    assert any("org/mine" in line and "2/31" in line for line in lines)
    assert any("Youtu-Embedding-V1" in line and "77.58" in line and "published" in line for line in lines)
    assert "no result of 29 of 31 tasks" in outcome.stdout
    assert "T2Retrieval" not in outcome.stdout
    assert "50.00" in leaderboard(results, "--tasks").stdout
    assert "\x1b" not in outcome.stdout


def test_json_is_all_that_stdout_has(results):
    board = json.loads(leaderboard(results, "--json", "--no-published").stdout)
    assert [row["model"] for row in board["rows"]] == ["org/mine"]
    assert board["rows"][0]["scores"] == {"LCQMC": 71.25, "T2Retrieval": 50}


def test_a_file_of_each_format(results, tmp_path):
    files = [tmp_path / "new" / f"board{suffix}" for suffix in (".md", ".csv", ".html", ".png", ".json")]
    outcome = leaderboard(results, *(word for file in files for word in ("-o", file)))
    assert "written:" in outcome.stderr
    assert "| org/mine |" in files[0].read_text()
    lines = list(csv.DictReader(files[1].open()))
    assert [line["LCQMC"] for line in lines if line["model"] == "org/mine"] == ["71.2500"]
    assert files[2].read_text().startswith("<!doctype html>")
    assert files[3].read_bytes().startswith(b"\x89PNG")
    assert json.loads(files[4].read_text()) == json.loads(leaderboard(results, "--json").stdout)


def test_the_chart_can_be_a_radar(results, tmp_path):
    leaderboard(results, "-o", tmp_path / "bars.png")
    leaderboard(results, "-o", tmp_path / "radar.png", "--chart", "radar")
    assert (tmp_path / "radar.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "radar.png").read_bytes() != (tmp_path / "bars.png").read_bytes()


def test_another_benchmark_and_all_tasks_found(results):
    board = json.loads(leaderboard(results, "--json", "--benchmark", "all tasks found").stdout)
    assert board["tasks"] == {"T2Retrieval": "Retrieval", "LCQMC": "STS"}
    assert board["rows"][0]["means"]["Mean(Task)"] == {"value": 60.625, "n": 2, "of": 2}


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (lambda folder: ["nowhere"], "nowhere: no such file or folder"),
        (lambda folder: [folder, "--benchmark", "MTEB(xyz)"], "mteb has no benchmark named 'MTEB(xyz)'"),
        (lambda folder: [folder, "-o", "board.doc"], "--output board.doc: unknown format '.doc'; expected .md, .csv"),
    ],
    ids=["path", "benchmark", "format"],
)
def test_errors_are_one_message_and_exit_2(results, run_codiemb, arguments, expected):
    status, _, shown = run_codiemb("leaderboard", *arguments(results))
    assert status == 2
    assert expected in shown
    assert "Traceback" not in shown
