from __future__ import annotations

import errno
import json
import shutil
import subprocess
import sys

import pytest
import torch
import yaml

from codiemb.training.output import OutputError
from codiemb.training.run import run
from codiemb.training.trainer import CoDiEmbTrainer, checkpoint_step, last_checkpoint

from .conftest import assert_same_weights, files_under
from .processes import killed_at_step


@pytest.mark.parametrize(
    ("changes", "killed_at"),
    [
        ({"epochs": 2, "checkpoints": {"every": 3}}, 5),
        ({"epochs": 4, "checkpoints": {"every": 3}, "accumulation": 2}, 5),
        ({"epochs": 3, "checkpoints": {"every": 6}, "token_embeddings": "all"}, 14),
    ],
    ids=["mid-epoch", "accumulation", "second epoch"],
)
def test_a_killed_and_resumed_run_ends_with_the_same_weights(changes, killed_at, make_recipe, data, tmp_path):
    every = changes["checkpoints"]["every"]
    changes = {**changes, "evaluation": {"data": [str(data / "test")], "every": every}}
    uninterrupted = make_recipe(**changes, output=str(tmp_path / "uninterrupted"))
    reference = run(uninterrupted)

    interrupted = make_recipe(**changes)
    killed_at_step(killed_at, run, interrupted)
    checkpoint = last_checkpoint(interrupted.output / "training")
    assert checkpoint is not None
    done = checkpoint_step(checkpoint)
    assert killed_at - every <= done < reference.steps
    assert not (interrupted.output / "model.safetensors").exists()

    report = run(interrupted, resume=True)
    assert_same_weights(reference.model, report.model)
    assert report.steps == reference.steps
    assert report.tokens == reference.tokens
    assert report.before == reference.before
    assert report.after == reference.after
    logged = [[entry for entry in r.history if "ir/loss" in entry or "sts/loss" in entry] for r in (report, reference)]
    assert logged[0] == logged[1]


@pytest.fixture
def interrupted(make_recipe, monkeypatch):
    """A run that stopped with an exception after step 5, with checkpoints of steps 2 and 4."""
    recipe = make_recipe(checkpoints={"every": 2})
    compute_loss = CoDiEmbTrainer.compute_loss

    def failing(self, *args, **kwargs):
        if self.state.global_step == 5:
            raise KeyboardInterrupt
        return compute_loss(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(CoDiEmbTrainer, "compute_loss", failing)
        with pytest.raises(KeyboardInterrupt):
            run(recipe)
    return recipe


def test_an_interrupted_run_can_be_resumed(interrupted, make_recipe, tmp_path):
    state = interrupted.output / "training"
    assert checkpoint_step(last_checkpoint(state)) == 4
    resumed = run(interrupted, resume=True)
    reference = run(make_recipe(checkpoints={"every": 2}, output=str(tmp_path / "reference")))
    assert_same_weights(resumed.model, reference.model)


def test_the_interruption_names_the_checkpoint(make_recipe, monkeypatch, capsys):
    def interrupted(self, *args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(CoDiEmbTrainer, "compute_loss", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(make_recipe())
    assert "interrupted at step 0; there is no checkpoint yet" in capsys.readouterr().err


def test_a_changed_recipe_is_refused_and_the_change_named(interrupted, make_recipe):
    before = files_under(interrupted.output)
    with pytest.raises(OutputError, match=r"optimizer\.learning_rate: 0\.001 then, 0\.002 now"):
        run(make_recipe(checkpoints={"every": 2}, optimizer={"learning_rate": 2e-3}), resume=True)
    assert files_under(interrupted.output) == before


def test_changed_data_are_refused(interrupted, make_recipe, data, tmp_path):
    copies = [tmp_path / "ir.jsonl", tmp_path / "sts.jsonl"]
    for copy in copies:
        shutil.copy(data / copy.name, copy)
    train = [{"path": str(copy)} for copy in copies]
    run(recipe := make_recipe(train=train, max_steps=1, output=str(tmp_path / "other")))
    (recipe.output / "training_report.json").unlink()
    lines = copies[1].read_text().splitlines(keepends=True)
    copies[1].write_text("".join(lines[:40]))
    with pytest.raises(ValueError, match=r"sts \(sts\): 64 examples.* is now .*40 examples"):
        run(recipe, resume=True)


def test_a_half_written_checkpoint_is_ignored(interrupted, make_recipe, tmp_path):
    state = interrupted.output / "training"
    for step, broken in ((6, None), (7, '{"global_step": 7, "epo')):
        half = state / f"checkpoint-{step}"
        shutil.copytree(state / "checkpoint-4", half)
        (half / "trainer_state.json").unlink()
        if broken:
            (half / "trainer_state.json").write_text(broken)
    assert last_checkpoint(state) == state / "checkpoint-4"
    report = run(interrupted, resume=True)
    reference = run(make_recipe(checkpoints={"every": 2}, output=str(tmp_path / "reference")))
    assert_same_weights(report.model, reference.model)


def test_resuming_a_finished_run_does_not_train_again(make_recipe, monkeypatch, capsys):
    recipe = make_recipe(max_steps=3)
    first = run(recipe)
    before = files_under(recipe.output)
    monkeypatch.setattr(CoDiEmbTrainer, "train", None)
    again = run(recipe, resume=True)
    assert again == first
    assert files_under(recipe.output) == before
    assert "holds the finished run" in capsys.readouterr().err


def test_a_run_killed_before_it_wrote_the_model_trains_no_further_step(make_recipe, data, tmp_path):
    """In mid-epoch the library would train on, past the last step."""
    changes = {"max_steps": 3, "evaluation": {"data": [str(data / "test")], "every": 1}}
    recipe = make_recipe(**changes)
    first = run(recipe)
    first_weights = {path.name: path.read_bytes() for path in recipe.output.glob("*.safetensors")}
    for path in recipe.output.iterdir():
        if path.is_file():
            path.unlink()
    report = run(recipe, resume=True)
    assert {path.name: path.read_bytes() for path in recipe.output.glob("*.safetensors")} == first_weights
    assert (report.steps, report.tokens, report.best_step) == (first.steps, first.tokens, first.best_step)
    assert report.after == first.after


@pytest.mark.parametrize("failing", ["weights", "optimizer"])
def test_a_full_disk_leaves_the_last_checkpoint(failing, make_recipe, monkeypatch, tmp_path):
    recipe = make_recipe(checkpoints={"every": 2})
    state = recipe.output / "training"
    full = OSError(errno.ENOSPC, "No space left on device")

    def write_half(self, directory):
        directory.mkdir(parents=True)
        (directory / "model.safetensors").write_bytes(b"half")
        raise full

    def fail(self, directory):
        raise RuntimeError("PytorchStreamWriter failed writing file data/3: file write failed")

    name, replacement = ("save_to", write_half) if failing == "weights" else ("_save_optimizer_and_scheduler", fail)
    original = getattr(CoDiEmbTrainer, name)

    def save(self, directory):
        if self.state.global_step == 4:
            replacement(self, directory)
        original(self, directory)

    with monkeypatch.context() as patch:
        patch.setattr(CoDiEmbTrainer, name, save)
        with pytest.raises(OSError, match=r"checkpoint-4 could not be written .*checkpoint-2 is whole: .* --resume"):
            run(recipe)
    assert [path.name for path in state.glob("checkpoint-*")] == ["checkpoint-2"]
    resumed = run(recipe, resume=True)
    reference = run(make_recipe(checkpoints={"every": 2}, output=str(tmp_path / "reference")))
    assert_same_weights(resumed.model, reference.model)


def test_a_real_write_limit_ends_with_status_2(make_recipe, content, environment, tmp_path):
    """Files may grow to 60 kB: enough for the tokenizer, not for the model's weights."""
    recipe_file = tmp_path / "recipe.yaml"
    recipe_file.write_text(yaml.safe_dump({**content, "checkpoints": {"every": 2}}))
    limit = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000));"
        f"sys.argv = ['codiemb', 'train', {str(recipe_file)!r}];"
        "from codiemb.cli.app import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", limit], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert "checkpoint-2 could not be written" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list((make_recipe().output / "training").glob("checkpoint-*"))


def test_a_full_disk_while_the_model_is_written_loses_nothing(make_recipe, monkeypatch):
    recipe = make_recipe(max_steps=2)
    save_to = CoDiEmbTrainer.save_to

    def full(self, directory):
        if directory.name.startswith("final-"):
            raise OSError(errno.ENOSPC, "No space left on device")
        save_to(self, directory)

    with monkeypatch.context() as patch:
        patch.setattr(CoDiEmbTrainer, "save_to", full)
        with pytest.raises(OSError, match=r"Nothing is lost: .*--resume"):
            run(recipe)
    assert [path.name for path in recipe.output.iterdir()] == ["training"]
    report = run(recipe, resume=True)
    assert_same_weights(report.model, recipe.output / "training" / "checkpoint-2")


def test_the_random_state_is_part_of_a_checkpoint(interrupted):
    saved = torch.load(interrupted.output / "training" / "checkpoint-4" / "rng_state.pth", weights_only=False)
    assert saved["cpu"].numel() > 1
    state = json.loads((interrupted.output / "training" / "checkpoint-4" / "trainer_state.json").read_text())
    assert state["stateful_callbacks"]["Totals"]["attributes"]["tokens"] > 0
