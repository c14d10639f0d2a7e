from __future__ import annotations

import copy

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
from transformers import TrainerCallback

from codiemb.tasks import TASKS
from codiemb.training.run import (
    _training_arguments,
    load_model,
    make_collator,
    make_pass,
    make_sampler,
    read_tables,
    run,
    used_token_ids,
)
from codiemb.training.trainer import CoDiEmbTrainer, DivergedError, TrainingRows

from .conftest import weights, write_lines


@pytest.fixture
def make_trainer(make_recipe, tmp_path):
    """A trainer of a recipe, without the run around it."""

    def make(evaluate=None, **changes) -> CoDiEmbTrainer:
        recipe = make_recipe(**changes)
        arguments = _training_arguments(recipe, tmp_path / "state")
        arguments.save_steps = 1000
        tables = read_tables(recipe)
        options = {name: getattr(recipe.tasks, name) for name in TASKS}
        sampler = make_sampler(recipe, tables, options, arguments)
        model, template = load_model(recipe, arguments.device)
        embedding_pass = make_pass(recipe, model, options, {table.task_type for table in tables})
        used = used_token_ids(embedding_pass, tables, template) if recipe.token_embeddings == "used" else None
        rows = TrainingRows(tables, make_collator(recipe, tables, template, options), sampler)
        return CoDiEmbTrainer(
            embedding_pass,
            arguments,
            rows=rows,
            options=options,
            template=template,
            evaluate=evaluate,
            used_tokens=used,
        )

    return make


def test_the_losses_fall(make_recipe):
    report = run(make_recipe(epochs=8))
    for task in ("ir", "sts"):
        losses = [entry[f"{task}/loss"] for entry in report.history if f"{task}/loss" in entry]
        assert len(losses) == 32
        assert sum(losses[-8:]) < 0.9 * sum(losses[:8]), task


def test_a_batch_has_one_task_and_all_rows_are_seen_once_an_epoch(make_trainer, monkeypatch):
    trainer = make_trainer(epochs=2)
    seen = []
    monkeypatch.setattr(trainer, "compute_loss", _spy(trainer.compute_loss, seen))
    collated = []
    collate = trainer._rows.collator
    trainer._rows.collator = lambda name, task, rows, *, epoch: (
        collated.append((epoch, task, [row["index"] for row in rows])) or collate(name, task, rows, epoch=epoch)
    )
    trainer.train()
    assert [batch.task for batch in seen] == [task for _, task, _ in collated]
    for epoch in (0, 1):
        indices = {"ir": [], "sts": []}
        for _, task, rows in (entry for entry in collated if entry[0] == epoch):
            indices[task] += rows
        assert sorted(indices["ir"]) == list(range(64))
        assert sorted(indices["sts"]) == list(range(64, 128))
    assert collated[:8] != [(0, task, rows) for _, task, rows in collated[8:]]  # another order


def _spy(compute_loss, seen):
    def compute(model, inputs, *args, **kwargs):
        seen.append(inputs["batch"])
        return compute_loss(model, inputs, *args, **kwargs)

    return compute


def test_accumulation_is_the_mean_of_the_micro_batches_gradients(make_trainer):
    trainer = make_trainer(accumulation=3, max_steps=1, dropout=0.0, optimizer={"max_grad_norm": 1e9})
    reference = make_trainer(accumulation=3, max_steps=1, dropout=0.0)
    reference.model.train()
    expected: dict[str, torch.Tensor] = {}
    batches = iter(reference.get_train_dataloader())
    for _ in range(3):
        reference.model.zero_grad()
        reference.compute_loss(reference.model, next(batches)).backward()
        for name, parameter in reference.model.named_parameters():
            if parameter.grad is not None:
                expected[name] = expected.get(name, 0) + parameter.grad / 3

    actual: dict[str, torch.Tensor] = {}

    class Keep(TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, model=None, **_):
            actual.update({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})

    trainer.add_callback(Keep())
    trainer.train()
    assert actual.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(
            actual[name], gradient, rtol=1e-4, atol=1e-6, msg=lambda m, name=name: f"{name}: {m}"
        )


@pytest.mark.parametrize("token_embeddings", ["used", "all"])
def test_weight_decay_spares_embeddings_norms_and_biases(token_embeddings, make_trainer):
    trainer = make_trainer(token_embeddings=token_embeddings)
    decayed = set(trainer.get_decay_parameter_names(trainer.model))
    trained = {name for name, parameter in trainer.model.named_parameters() if parameter.requires_grad}
    dense = {f"{name}.weight" for name, module in trainer.model.named_modules() if isinstance(module, nn.Linear)}
    assert decayed & trained == dense & trained
    assert not any("pooler" in name for name in trained)  # not read by the embeddings


def test_training_the_used_rows_gives_what_training_all_rows_gives(make_recipe, tmp_path):
    changes = {"epochs": 2, "optimizer": {"learning_rate": 1e-3, "weight_decay": 0.1}}
    used = run(make_recipe(**changes, output=str(tmp_path / "used")))
    whole = run(make_recipe(**changes, token_embeddings="all", output=str(tmp_path / "all")))
    first, second = weights(used.model), weights(whole.model)
    for name, tensor in first.items():
        torch.testing.assert_close(tensor, second[name], rtol=0, atol=1e-5, msg=lambda m, name=name: f"{name}: {m}")


def test_frozen_token_embeddings_stay(make_recipe, model_directory):
    report = run(make_recipe(token_embeddings="frozen"))
    table = "embeddings.word_embeddings.weight"
    before, after = weights(model_directory), weights(report.model)
    assert torch.equal(before[table], after[table])
    dense = "encoder.layer.0.output.dense.weight"
    assert not torch.equal(before[dense], after[dense])


def test_losses_of_each_task_are_logged_and_reach_tensorboard(make_recipe, data):
    recipe = make_recipe(log_every=3, evaluation={"data": [str(data / "test")], "every": 4})
    report = run(recipe)
    logged = [entry for entry in report.history if "loss" in entry]
    assert [entry["step"] for entry in logged] == [3, 6, 8]  # the last step too
    for entry in logged:
        tasks = [name for name in ("ir", "sts") if f"{name}/loss" in entry]
        assert tasks
        assert (
            min(entry[f"{n}/loss"] for n in tasks)
            <= entry["loss"] + 1e-6
            <= max(entry[f"{n}/loss"] for n in tasks) + 2e-6
        )
    events = EventAccumulator(str(recipe.output / "training" / "logs"))
    events.Reload()
    scalars = set(events.Tags()["scalars"])
    assert {
        "train/ir/loss",
        "train/sts/loss",
        "train/ir/info_nce",
        "train/sts/pearson",
        "train/learning_rate",
    } <= scalars
    assert {"eval/ir", "eval/sts", "eval/mean"} <= scalars
    assert [event.step for event in events.Scalars("train/loss")] == [3, 6, 8]


def test_two_runs_of_one_process_log_to_their_own_directories(make_recipe, tmp_path):
    for name in ("one", "two"):
        run(make_recipe(max_steps=1, output=str(tmp_path / name)))
    for name in ("one", "two"):
        assert len(list((tmp_path / name / "training" / "logs").iterdir())) == 1


def test_evaluating_in_mid_training_changes_no_weight(make_recipe, data, tmp_path):
    plain = run(make_recipe(epochs=2, output=str(tmp_path / "plain")))
    evaluation = {"data": [str(data / "test")], "every": 2, "keep_best": False}
    evaluated = run(make_recipe(epochs=2, evaluation=evaluation, output=str(tmp_path / "evaluated")))
    assert sum("eval_mean" in entry for entry in evaluated.history) == 8
    first, second = weights(plain.model), weights(evaluated.model)
    assert [name for name in first if not torch.equal(first[name], second[name])] == []


def test_an_evaluation_that_draws_random_numbers_does_not_disturb_dropout(make_trainer):
    def noisy(embedding_pass):
        torch.rand(7)
        return {"mean": 0.5}

    states = []
    for evaluate in (None, noisy):
        changes = {"evaluation": {"data": ["x"], "every": 1, "keep_best": False}} if evaluate else {}
        trainer = make_trainer(evaluate=evaluate, max_steps=4, **changes)
        trainer.train()
        states.append(copy.deepcopy(trainer.model.state_dict()))
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_rows_with_more_and_fewer_candidates_than_asked_train(make_recipe, tmp_path):
    rows = [
        {"task_type": "ir", "query": f"ba be {word}", "positives": ["ba"] * positives, "negatives": ["fu"] * negatives}
        for word, positives, negatives in [("bi", 1, 0), ("bo", 5, 7), ("bu", 2, 1), ("da", 1, 3)] * 4
    ]
    path = write_lines(tmp_path / "uneven.jsonl", rows)
    options = {"batch_size": 4, "positives": 3, "negatives": 4}
    report = run(make_recipe(train=[{"path": str(path)}], tasks={"ir": options}))
    assert report.steps == 4
    assert all(entry["ir/loss"] >= 0 for entry in report.history if "ir/loss" in entry)


def test_a_loss_that_is_no_number_ends_the_run(make_recipe, monkeypatch):
    compute_loss = CoDiEmbTrainer.compute_loss

    def exploding(self, *args, **kwargs):
        loss = compute_loss(self, *args, **kwargs)
        return loss * float("nan") if self.state.global_step == 4 else loss

    monkeypatch.setattr(CoDiEmbTrainer, "compute_loss", exploding)
    recipe = make_recipe(checkpoints={"every": 2})
    with pytest.raises(
        DivergedError, match=r"loss became nan at step 5 .*learning_rate.*checkpoint-4 was saved before"
    ):
        run(recipe)
    assert not (recipe.output / "model.safetensors").exists()
    assert sorted(path.name for path in (recipe.output / "training").glob("checkpoint-*")) == [
        "checkpoint-2",
        "checkpoint-4",
    ]


def test_truncated_texts_are_counted(make_recipe):
    report = run(make_recipe(max_steps=2, max_length=6))
    assert report.truncated_texts > 0
    assert run(make_recipe(max_steps=2, output=report.model + "-whole")).truncated_texts == 0
