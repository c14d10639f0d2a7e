import json
import os
import shutil
import signal
import sys
import tempfile

import numpy as np
import pytest
import torch
import typer
from safetensors.torch import load_file, save_file
from tiny_models import TEXTS
from typer.testing import CliRunner

from codiemb.cli import app as codiemb_app
from codiemb.cli.fuse import fuse_command
from codiemb.fusion import compare_deltas
from codiemb.fusion import search as search_module
from codiemb.fusion.plot import delta_heat_map


@pytest.fixture
def models(tiny_model_directory, tmp_path):
    """The base, and two models that moved 0.1 and 0.3 up in every number."""
    paths = [str(tiny_model_directory)]
    for name, step in (("near", 0.1), ("far", 0.3)):
        copy = shutil.copytree(tiny_model_directory, tmp_path / name)
        weights = {key: tensor + step for key, tensor in load_file(copy / "model.safetensors").items()}
        save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
        paths.append(str(copy))
    return paths


def run(*arguments):
    app = typer.Typer()
    app.command()(fuse_command)
    return CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)


def step(base, output):
    """How far every number went; the same for all."""
    start, end = (load_file(f"{path}/model.safetensors") for path in (base, output))
    steps = [(end[key] - start[key]).mean().item() for key in start]
    assert max(steps) - min(steps) < 1e-5
    return steps[0]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ([], 0.2),
        (["--method", "delta"], 0.25),
        (["--method", "delta", "--granularity", "model"], 0.25),
        (["--method", "weights", "--weights", "0.75,0.25"], 0.15),
        (["--scale", "0.5"], 0.1),
    ],
)
def test_options_reach_the_result(models, tmp_path, options, expected):
    out = tmp_path / "out"
    outcome = run(*models, "-o", out, *options)
    assert (outcome.exit_code, outcome.stdout) == (0, f"{out}\n")
    assert step(models[0], out) == pytest.approx(expected, abs=1e-5)
    settings = json.loads((out / "fusion.json").read_text())
    assert settings["checkpoints"] == models[1:]


def test_report_shows_changes_and_writes_nothing_unless_asked(models, tmp_path):
    shown = run(*models, "--report").stdout
    for text in ("encoder.layer.1", "cos 1,2", "+1.000", "change 2", "model"):
        assert text in shown
    assert "weight 1" not in shown
    assert sorted(path.name for path in tmp_path.iterdir()) == ["far", "near"]
    shown = run(*models, "--method", "delta", "--report", "-o", tmp_path / "out").stdout
    assert "weight 1" in shown
    assert "0.2500" in shown
    assert (tmp_path / "out" / "model.safetensors").is_file()


def test_heat_map_of_the_deltas(models, tmp_path):
    pytest.importorskip("matplotlib")
    for count, name in ((3, "three.png"), (2, "new/two.png")):
        assert run(*models[:count], "--plot", tmp_path / name).exit_code == 0
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    layers = compare_deltas(models[0], models[1:])
    change, cosine = delta_heat_map(layers, models[1:]).axes
    assert [label.get_text() for label in change.get_yticklabels()] == [layer.name for layer in layers]
    shown = np.array(change.images[0].get_array()), np.array(cosine.images[0].get_array())
    np.testing.assert_allclose(shown[0][:, 1], 3 * shown[0][:, 0], rtol=1e-4)
    np.testing.assert_allclose(shown[1], 1, atol=1e-5)


def test_a_layer_whose_base_is_zero_shows_how_far_it_went(models, tmp_path):
    """A part of nothing is no percentage: the table gives the norm itself, the heat map says why there is no number."""
    base = shutil.copytree(models[0], tmp_path / "zero")
    weights = load_file(base / "model.safetensors")
    zero = {key: torch.zeros_like(value) if key.startswith("pooler") else value for key, value in weights.items()}
    save_file(zero, base / "model.safetensors", metadata={"format": "pt"})
    moved = shutil.copytree(base, tmp_path / "moved")
    step = {key: value + 0.5 if key == "pooler.dense.bias" else value for key, value in zero.items()}
    save_file(step, moved / "model.safetensors", metadata={"format": "pt"})
    layers = compare_deltas(base, [moved, base])
    pooler = next(layer for layer in layers if layer.name == "pooler")
    assert pooler.relative_norms == (None, 0.0)
    shown = run(base, moved, base, "--report", "-o", tmp_path / "out").stdout
    assert "2.83 from 0" in shown  # half of the root of 32
    assert "| 2.83 from 0 | 0.00000 |" in (tmp_path / "out" / "README.md").read_text()
    cells = {text.get_text() for text in delta_heat_map(layers, ["moved", "base"]).axes[0].texts}
    assert "base 0" in cells


def test_a_search_shows_every_try_and_writes_the_chosen_fusion(models, tmp_path, monkeypatch):
    data = tmp_path / "dev.tsv"
    rows = [f"{TEXTS[i]}\t{TEXTS[j]}\t{(i * j) % 7}\n" for i in range(10) for j in range(i)]
    data.write_text("sentence1\tsentence2\tscore\n" + "".join(rows))
    monkeypatch.setenv("COLUMNS", "200")
    out = tmp_path / "out"
    outcome = run(*models[:2], "--search", data, "--budget", 3, "--sample", 40, "--seed", 1, "-o", out)
    search = json.loads((out / "fusion.json").read_text())["search"]
    assert [one["scale"] for one in search["tries"]] == [1.0, 0.0, 0.75 if search["best"] == 0 else 0.25]
    assert search["data"] == [{"name": "dev", "type": "sts", "source": str(data), "n": 40}]
    assert outcome.stdout.count("chosen") == 2  # its line, and what that means
    for one in search["tries"]:
        assert f"{100 * one['score']:.2f} ± {100 * one['standard_error']:.2f}" in outcome.stdout
    chosen = search["tries"][search["chosen"]]
    assert step(models[0], out) == pytest.approx(0.1 * chosen["scale"], abs=1e-5)
    assert f"found by `--search`: `mean` on `{data}`, 3 fusions tried" in (out / "README.md").read_text()
    with monkeypatch.context() as patch:
        (tmp_path / "scratch").mkdir()
        patch.setattr(tempfile, "tempdir", str(tmp_path / "scratch"))
        patch.setattr(search_module, "_evaluated", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
        stopped = run(*models[:2], "--search", data, "--budget", 1, "-o", tmp_path / "stop")
    assert stopped.exit_code == 128 + signal.SIGTERM
    assert not list((tmp_path / "scratch").iterdir())
    again = run(*models[:2], "--search", data, "--budget", 3, "--sample", 40, "--seed", 1, "-o", tmp_path / "again")
    assert again.stderr.count("from an earlier search") == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "Give --output DIR for the fused model, or --report"),
        (["-o", "out", "--plot", "deltas.txt"], "--plot deltas.txt: expected a file that ends in .png"),
        (["-o", "out", "--weights", "0.5;0.5"], "--weights 0.5;0.5: expected numbers with commas"),
        (["-o", "out", "--method", "weights"], "got none, expected 2"),
        (["--report", "--search", "dev.tsv"], "it needs --output, and goes without --method, --granularity,"),
        (["-o", "out", "--search", "dev.tsv", "--scale", "1"], "--granularity, --weights and --scale"),
        (["-o", "near", "--search", "dev.tsv"], "near: exists and is not an empty directory"),
        (["-o", "out", "--budget", "3"], "--budget is for --search DATA, which was not given"),
        (["-o", "out", "--granularity", "layer"], "--granularity layer is for --method delta, got --method uniform"),
    ],
)
def test_errors_end_with_a_message_and_status_2(models, options, message, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["codiemb", "fuse", *models, *options])
    with pytest.raises(SystemExit) as stopped:
        codiemb_app.main()
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
