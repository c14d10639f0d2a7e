from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from rich.console import Console

from codiemb.cli.app import main
from codiemb.cli.train import scores_table


def codiemb(capsys, monkeypatch, *arguments: str) -> tuple[int, str, str]:
    """Exit status, stdout and stderr of the command."""
    monkeypatch.setattr(sys, "argv", ["codiemb", *arguments])
    with pytest.raises(SystemExit) as left:
        main()
    out, err = capsys.readouterr()
    return left.value.code or 0, out, err


@pytest.fixture
def recipe_file(tmp_path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(
        yaml.safe_dump({"model": "/no/model", "output": str(tmp_path / "run"), "train": [{"path": "none"}]})
    )
    return path


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "none.yaml"], "codiemb: none.yaml: there is no such recipe"),
        (["train", "RECIPE", "optimizer.learning_rat=1"], "did you mean learning_rate?"),
        (["train", "RECIPE", "seed=-1", "epochs=0"], "seed: got -1"),
        (["train", "RECIPE"], "codiemb: none: no such file or directory"),
        (["train", "RECIPE", "--resume", "--overwrite"], "contradict each other"),
        (["train", "RECIPE", "--frobnicate"], "No such option"),
    ],
)
def test_mistakes_end_with_a_message_and_status_2(arguments, message, recipe_file, capsys, monkeypatch):
    monkeypatch.chdir(recipe_file.parent)
    status, out, err = codiemb(capsys, monkeypatch, *(str(recipe_file) if a == "RECIPE" else a for a in arguments))
    assert status == 2
    assert message in err
    assert out == ""
    assert "Traceback" not in err


def test_verbose_shows_where_an_error_came_from(recipe_file, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["codiemb", "--verbose", "train", "none.yaml"])
    with pytest.raises(ValueError, match="no such recipe"):
        main()


def test_help_says_how_to_start(capsys, monkeypatch):
    status, out, _ = codiemb(capsys, monkeypatch, "train", "--help")
    assert status == 0
    for words in ("--resume", "--overwrite", "codiemb train recipes/joint-zh.yaml", "torchrun"):
        assert words in out


def test_help_is_fast():
    """Help and mistakes on the command line must not wait for torch."""
    code = "import sys; sys.argv = ['codiemb', 'train', '--help']\nfrom codiemb.cli.app import main\n"
    code += "try:\n    main()\nexcept SystemExit:\n    pass\nassert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL, env=dict(os.environ))


def test_scores_are_shown_with_their_change():
    console = Console(width=100, record=True, quiet=False, file=open(os.devnull, "w"))  # noqa: SIM115
    console.print(scores_table({"ir": 0.5, "sts [zh]": 0.75}, {"ir": 0.625, "sts [zh]": 0.7}))
    text = console.export_text()
    assert "50.00" in text
    assert "+12.50" in text
    assert "sts [zh]" in text
    assert "-5.00" in text


def test_a_run_prints_its_scores_and_its_directory(capsys, monkeypatch, recipe_file, tiny_model_directory):
    data = recipe_file.parent / "ir.jsonl"
    rows = [{"task_type": "ir", "query": f"q {i}", "positives": [f"p {i}"], "negatives": ["n"]} for i in range(16)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    content = {
        "model": str(tiny_model_directory),
        "output": str(recipe_file.parent / "run"),
        "train": [{"path": str(data)}],
        "evaluation": {"data": [str(data)]},
        "tasks": {"ir": {"batch_size": 16}},
    }
    recipe_file.write_text(yaml.safe_dump(content))
    status, out, err = codiemb(capsys, monkeypatch, "train", str(recipe_file), "max_steps=1")
    assert status == 0
    assert out.splitlines()[-1] == content["output"]
    assert "change" in out
    assert f"tensorboard --logdir {content['output']}/training/logs" in err.replace("\n", "")
    assert json.loads((Path(content["output"]) / "training_report.json").read_text())["steps"] == 1
