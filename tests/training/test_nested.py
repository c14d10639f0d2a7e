"""Matryoshka in a training run."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from sentence_transformers import SentenceTransformer

from codiemb import backbones, evaluation
from codiemb.encoding import EmbeddingPass, Embeddings
from codiemb.tasks import Objective
from codiemb.training.nested import on_parts, scores_by_width, width_weights
from codiemb.training.recipe import Matryoshka, RecipeError, parse_recipe
from codiemb.training.run import run

DIMS = {"dims": [8, 16], "weights": [0.5, 1.0]}


@pytest.fixture(scope="module")
def trained(model_directory, data, tmp_path_factory):
    """A report of three steps with widths 8, 16 and 32."""
    content = {
        "model": str(model_directory),
        "output": str(tmp_path_factory.mktemp("nested") / "run"),
        "train": [{"path": str(data / "sts.jsonl")}],
        "tasks": {"sts": {"batch_size": 16, "loss": {"pearson": 1, "mid_nce": 0.5}}},
        "evaluation": {"data": [str(data / "test")]},
        "matryoshka": DIMS,
        "max_steps": 3,
        "precision": "fp32",
        "log_every": 1,
    }
    return run(parse_recipe(content))


def test_held_out_scores_of_each_width_are_those_of_the_cut_model(trained, data):
    assert list(trained.by_width) == ["8", "16", "32"]
    assert trained.by_width["32"] == trained.after
    assert trained.by_width["8"] != trained.after
    model = backbones.load(trained.model, device="cpu")
    template = backbones.template_of(model, trained.model)
    tasks = evaluation.discover([data / "test"])
    for width in (8, 16):
        model.truncate_dim = width
        cut = EmbeddingPass(model, precision=torch.float32)
        expected = evaluation.summarise([evaluation.evaluate(cut, template, task) for task in tasks])
        assert trained.by_width[str(width)] == pytest.approx(expected)


def test_the_texts_of_a_task_are_embedded_once(tiny_model, data, monkeypatch):
    embedding_pass = EmbeddingPass(tiny_model, precision=torch.float32)
    calls = []
    original = EmbeddingPass.encode

    def counted(self, texts, **options):
        calls.append(1)
        return original(self, texts, **options)

    monkeypatch.setattr(EmbeddingPass, "encode", counted)
    tasks = evaluation.discover([data / "test"])
    found = scores_by_width(embedding_pass, backbones.template_of(tiny_model), tasks, [4, 8, 32])
    assert len(calls) == len(tasks)
    assert [len(results) for results in found.values()] == [len(tasks)] * 3


def test_the_widths_are_part_of_the_model_and_its_card(trained):
    config = SentenceTransformer(trained.model, device="cpu")[0].model.config
    assert config.matryoshka_dimensions == [8, 16, 32]
    card = (Path(trained.model) / "README.md").read_text(encoding="utf-8")
    assert "truncate_dim=8" in card
    row = " | ".join(f"{100 * trained.by_width[width]['sts']:.2f}" for width in ("8", "16", "32"))
    assert f"| sts | {row} |" in card


def test_the_loss_of_each_part_is_logged(trained):
    logged = [entry for entry in trained.history if "sts/loss" in entry]
    assert len(logged) == 3
    for entry in logged:
        whole = entry["sts/pearson"] + 0.5 * entry["sts/mid_nce"]
        parts = 0.5 * entry["sts/dim_8"] + entry["sts/dim_16"]
        assert entry["sts/loss"] == pytest.approx(whole + parts, rel=1e-4)


def test_the_middle_layer_gets_its_gradient_once():
    def objective(embeddings, batch, options, *, gather):
        return Objective(embeddings.final.sum() + 3 * embeddings.middle.sum(), {})

    final = torch.nn.functional.normalize(torch.randn(4, 8), dim=-1).requires_grad_()
    middle = torch.randn(4, 6, requires_grad=True)
    on_parts(objective, {8: 1.0, 2: 1.0})(Embeddings(final, middle), None, None, gather=False).total.backward()
    torch.testing.assert_close(middle.grad, torch.full_like(middle, 3.0))
    assert final.grad.all()


def test_widths_that_make_no_sense_are_refused(content):
    assert width_weights(Matryoshka(dims=[4, 8]), 8) == {8: 1.0, 4: 1.0}
    assert width_weights(Matryoshka(dims=[4, 8], weights=[1, 3]), 8) == {8: 3.0, 4: 1.0}
    with pytest.raises(RecipeError, match="got 64, but the model's embeddings have 32 dimensions"):
        width_weights(Matryoshka(dims=[64]), 32)
    for section, message in (
        ({"dims": [4, 4]}, "a width twice"),
        ({"dims": [4, 8], "weights": [1]}, "got 1 for 2 dims"),
        ({"dims": []}, r"matryoshka\.dims"),
    ):
        with pytest.raises(RecipeError, match=message):
            parse_recipe({**content, "matryoshka": section})
