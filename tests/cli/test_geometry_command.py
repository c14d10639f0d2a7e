import json
import sys

import pytest
import typer
from typer.testing import CliRunner

from codiemb.cli.geometry import geometry_command


@pytest.fixture
def data(tmp_path):
    """A file of scored pairs: 40 texts, every second pair positive."""
    file = tmp_path / "pairs.tsv"
    words = [f"text {'abcdefghijklmnopqrstuvwxyz'[i % 26]} number {i}" for i in range(40)]
    lines = "".join(f"{words[i]}\t{words[i + 1]}\t{i % 4}\n" for i in range(0, 39))
    file.write_text("sentence1\tsentence2\tscore\n" + lines)
    return file


def geometry(*arguments):
    app = typer.Typer()
    app.command()(geometry_command)
    return CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)


def test_table_json_page_and_plots(tiny_model_directory, data, tmp_path):
    out = tmp_path / "new" / "out"
    outcome = geometry(tiny_model_directory, "--data", data, "--output", out, "--device", "cpu")
    assert outcome.exit_code == 0
    (found,) = json.loads((out / "geometry.json").read_text())
    (model,) = found["models"]
    assert found["data"] == "pairs"
    assert model["model"] == str(tiny_model_directory)
    assert (model["texts"], model["dim"], model["positive_pairs"]) == (40, 32, 9)
    assert model["settings"]["precision"] == "float32"
    for shown in (model["uniformity"], model["isoscore"], model["token_similarity"]):
        assert f"{shown:.4f}" in outcome.stdout
    assert {file.name for file in out.iterdir()} == {
        "geometry.json",
        "geometry.html",
        "pairs-cosines.png",
        "pairs-spectrum.png",
        "pairs-truncation.png",
    }
    assert (out / "pairs-cosines.png").read_bytes().startswith(b"\x89PNG")
    assert "written to" in outcome.stderr


def test_options_reach_the_measurement(tiny_model_directory, data):
    options = ["--max-texts", 20, "--max-pairs", 3, "--seed", 5, "--max-length", 40, "--template", "none"]
    outcome = geometry(tiny_model_directory, "--data", data, "--json", "--device", "cpu", "--compute", "bf16", *options)
    (found,) = json.loads(outcome.stdout)
    (model,) = found["models"]
    assert found["counts"] == {"texts": 40, "positive_pairs": 9, "identical_pairs": 0}
    assert (model["texts"], model["positive_pairs"], model["random_pairs"]) == (20, 3, 3)
    settings = model["settings"]
    assert (settings["max_length"], settings["precision"], settings["seed"]) == (40, "bfloat16", 5)
    assert (settings["template"]["query"], settings["template"]["document"]) == ("", "")
    lower = geometry(tiny_model_directory, "--data", data, "--json", "--device", "cpu", "--positive-from", 0.5)
    assert json.loads(lower.stdout)[0]["models"][0]["positive_pairs"] == 19


def test_models_side_by_side_on_the_same_texts(tiny_model_directory, data, tmp_path):
    outcome = geometry(tiny_model_directory, tiny_model_directory, "--data", data, "--json", "--device", "cpu")
    first, second = json.loads(outcome.stdout)[0]["models"]
    assert first == second


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (lambda model, data: [model, "--data", "nowhere.tsv"], "nowhere.tsv: no such file or directory"),
        (lambda model, data: ["nowhere/at/all", "--data", data], "nowhere/at/all: there is no such directory"),
        (lambda model, data: [model, "--data", data, "--template", "e6"], "--template e6: no such template"),
        (lambda model, data: [model, "--data", few(data)], "on few: There are 4 distinct texts; 10 neighbours of each"),
    ],
    ids=["data", "model", "template", "texts"],
)
def test_errors_are_one_message_and_exit_2(tiny_model_directory, data, run_codiemb, arguments, expected):
    status, _, shown = run_codiemb("geometry", *arguments(tiny_model_directory, data))
    assert status == 2
    assert expected in shown
    assert "Traceback" not in shown


def few(data):
    file = data.with_name("few.tsv")
    file.write_text("sentence1\tsentence2\tscore\na\tb\t1\nc\td\t0\n")
    return file


def test_without_matplotlib_output_is_refused_before_the_work(tiny_model_directory, data, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ModuleNotFoundError, match=r"codiemb\[plots\]"):
        geometry(tiny_model_directory, "--data", data, "--output", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert geometry(tiny_model_directory, "--data", data, "--device", "cpu").exit_code == 0
