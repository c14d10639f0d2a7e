import json
import shutil
import sys

import numpy as np
import pytest
import typer
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from codiemb.cli import app as codiemb_app
from codiemb.cli.fuse import fuse_command
from codiemb.fusion import compare_deltas
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


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "Give --output DIR for the fused model, or --report"),
        (["-o", "out", "--plot", "deltas.txt"], "--plot deltas.txt: expected a file that ends in .png"),
        (["-o", "out", "--weights", "0.5;0.5"], "--weights 0.5;0.5: expected numbers with commas"),
        (["-o", "out", "--method", "weights"], "got none, expected 2"),
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
