"""Two processes on gloo train as one process does on twice the batch."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
import yaml

from codiemb.training.run import run

from .conftest import weights

CHANGES = {
    "epochs": 2,
    "dropout": 0.0,
    "checkpoints": {"every": 4},
    "sampling": {"task_shares": {"ir": 0.5, "sts": 0.5}},
}


def launch(recipe_file, environment, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += ["-m", "codiemb", "train", str(recipe_file), *options]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120)


@pytest.mark.parametrize("token_embeddings", ["used", "all"])
def test_two_processes_end_with_the_weights_of_one(token_embeddings, make_recipe, content, data, environment, tmp_path):
    changes = {
        **CHANGES,
        "token_embeddings": token_embeddings,
        "evaluation": {"data": [str(data / "test")], "every": 4, "keep_best": False},
    }
    single = run(make_recipe(**changes, output=str(tmp_path / "single")))

    half = {"ir": {"batch_size": 8, "negatives": 2, "positives": 2}, "sts": {"batch_size": 8}}
    two = {**content, **changes, "tasks": half}
    recipe_file = tmp_path / "recipe.yaml"
    recipe_file.write_text(yaml.safe_dump(two))
    # A cache of its own: both ranks read the data at once.
    done = launch(recipe_file, {**environment, "CODIEMB_CACHE": str(tmp_path / "cache")})
    assert done.returncode == 0, done.stderr

    expected, actual = weights(single.model), weights(content["output"])
    for name, tensor in expected.items():
        if name.endswith("key.bias"):  # softmax ignores it: its gradient is rounding noise, which Adam scales up
            continue
        torch.testing.assert_close(actual[name], tensor, rtol=0, atol=1e-6, msg=lambda m, name=name: f"{name}: {m}")

    # Only one rank speaks and writes.
    steps = [line for line in done.stderr.splitlines() if line.startswith("step 1/")]
    assert len(steps) == 1
    assert done.stdout.count(content["output"]) == 1
    report = json.loads((make_recipe().output / "training_report.json").read_text())
    assert report["settings"]["processes"] == 2
    assert report["after"] == pytest.approx(single.after, abs=1e-5)
    assert report["before"] == pytest.approx(single.before, abs=1e-6)
    logged = [{e["step"]: e for e in history if "loss" in e} for history in (report["history"], single.history)]
    for step, entry in logged[1].items():
        assert logged[0][step] == pytest.approx(entry, abs=1e-4), step
    events = list((make_recipe().output / "training" / "logs").iterdir())
    assert len(events) == 1
    assert list(tmp_path.glob("cache/data/.*")) == []

    if token_embeddings == "all":
        refused = launch(recipe_file, environment)
        assert refused.returncode != 0
        assert "holds another run" in refused.stderr
