"""LoRA and QLoRA in a training run."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer

from codiemb import backbones
from codiemb.encoding import EmbeddingPass
from codiemb.prompts import PromptedText
from codiemb.training.adapters import LowRankAdapter, linear_layers, quantize
from codiemb.training.parameters import count_parameters
from codiemb.training.recipe import Adapter, RecipeError, parse_recipe
from codiemb.training.run import run
from codiemb.training.trainer import CoDiEmbTrainer, last_checkpoint

from .conftest import assert_same_weights, weights

peft = pytest.importorskip("peft")
TEXTS = ["ba be bi", "fo fu", "ga ge gi go gu"]


def embed(model: SentenceTransformer) -> np.ndarray:
    return EmbeddingPass(model, precision=torch.float32).encode(PromptedText("query: ", text) for text in TEXTS)


@pytest.fixture
def lora(make_recipe):
    return lambda **changes: make_recipe(**{"adapter": {"rank": 4, "alpha": 8}, "max_steps": 4, **changes})


def changed_at_random(adapter: LowRankAdapter, network: torch.nn.Module) -> None:
    """Give a new adapter, whose change is zero, some change."""
    for parameter in network.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.2)


@pytest.mark.parametrize(
    "options", [{}, {"rslora": True}, {"dora": True}, {"bias": "all"}, {"target_modules": ["query", "value"]}], ids=str
)
def test_a_merged_adapter_gives_the_vectors_of_the_unmerged_one(options, model_directory):
    model = backbones.load(model_directory, device="cpu")
    base = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    before = embed(model)
    adapter = LowRankAdapter(model, Adapter(rank=4, **options), "base")
    np.testing.assert_allclose(embed(model), before, atol=1e-6)
    changed_at_random(adapter, model)
    unmerged = embed(model)
    assert np.abs(unmerged - before).max() > 0.01
    with adapter.merged():
        assert model.state_dict().keys() == base.keys()
        np.testing.assert_allclose(embed(model), unmerged, atol=2e-6)
    np.testing.assert_array_equal(embed(model), unmerged)
    after = {name.replace("base_layer.", ""): tensor for name, tensor in model.state_dict().items()}
    changed = {name for name, tensor in base.items() if not torch.equal(tensor, after[name])}
    assert all(name.endswith("bias") for name in changed)
    assert bool(changed) == (options.get("bias") == "all")


def test_what_a_run_with_an_adapter_leaves(lora, model_directory):
    recipe = lora()
    report = run(recipe)
    before, after = weights(model_directory), weights(report.model)
    assert before.keys() == after.keys()
    moved = {re.sub(r"layer\.\d+\.", "", name) for name in before if not torch.equal(before[name], after[name])}
    linear = ("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense")
    assert moved == {f"encoder.{name}.weight" for name in (*linear, "intermediate.dense", "output.dense")}

    # 4 (32 + 32) for each of four matrices, 4 (32 + 64) for each of two, in two layers.
    total = sum(tensor.numel() for tensor in before.values()) + 2 * (4 * 256 + 2 * 384)
    assert report.settings["parameters"] == {"trained": 2 * (4 * 256 + 2 * 384), "total": total}
    assert "LoRA of rank 4: 3,584 of" in (recipe.output / "README.md").read_text()

    checkpoint = last_checkpoint(recipe.output / "training")
    assert [path.name for path in checkpoint.glob("*.safetensors")] == ["adapter_model.safetensors"]
    assert (checkpoint / "adapter_model.safetensors").stat().st_size < 4 * 3584 + 10_000

    trained = embed(backbones.load(report.model, device="cpu"))
    plain = SentenceTransformer(str(model_directory), device="cpu")
    plain.load_adapter(str(recipe.output / "adapter"))
    expected = plain.encode(TEXTS, prompt="query: ")
    np.testing.assert_allclose(trained, expected, atol=1e-6)
    network = transformers.AutoModel.from_pretrained(model_directory)
    loaded = peft.PeftModel.from_pretrained(network, recipe.output / "adapter")
    plain = SentenceTransformer(str(model_directory), device="cpu")
    plain[0].model = loaded
    np.testing.assert_allclose(plain.encode(TEXTS, prompt="query: "), expected, atol=1e-6)

    extra = {"README.md", "training_report.json", "training", "codiemb.json", "adapter"}
    assert {path.name for path in recipe.output.iterdir()} == {path.name for path in model_directory.iterdir()} | extra
    np.testing.assert_allclose(
        SentenceTransformer(report.model, device="cpu").encode(TEXTS, prompt="query: "), expected, atol=1e-6
    )


def test_a_resumed_run_with_an_adapter_ends_with_the_same_weights(lora, data, monkeypatch, tmp_path):
    changes = {"max_steps": 6, "checkpoints": {"every": 2}, "adapter": {"rank": 4, "dropout": 0.1, "bias": "all"}}
    changes["evaluation"] = {"data": [str(data / "test")]}
    reference = run(lora(**changes, output=str(tmp_path / "reference")))
    compute_loss = CoDiEmbTrainer.compute_loss

    def failing(self, *args, **kwargs):
        if self.state.global_step == 5:
            raise KeyboardInterrupt
        return compute_loss(self, *args, **kwargs)

    recipe = lora(**changes)
    with monkeypatch.context() as patch:
        patch.setattr(CoDiEmbTrainer, "compute_loss", failing)
        with pytest.raises(KeyboardInterrupt):
            run(recipe)
    report = run(recipe, resume=True)
    assert_same_weights(reference.model, report.model)
    adapters = [
        load_file(path / "adapter" / "adapter_model.safetensors") for path in (tmp_path / "reference", recipe.output)
    ]
    assert all(torch.equal(adapters[0][name], adapters[1][name]) for name in adapters[0])
    assert any("bias" in name for name in adapters[0])
    assert report.before == reference.before
    assert report.after == reference.after


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_quantized_weights_are_trained_beside_and_merged(kind, lora, model_directory):
    pytest.importorskip("bitsandbytes")
    report = run(lora(adapter={"rank": 4, "quantize": kind}))
    base = backbones.load(model_directory, device="cpu")
    quantize(base[0].model, kind, torch.device("cpu"), torch.float32)
    assert count_parameters(base).total == sum(tensor.numel() for tensor in weights(model_directory).values())
    held = base[0].model.encoder.layer[0].output.dense.weight
    assert held.dtype == {"nf4": torch.uint8, "int8": torch.int8}[kind]
    packed = held.detach().clone()
    base.load_adapter(str(f"{report.model}/adapter"))
    trained = embed(backbones.load(report.model, device="cpu"))
    np.testing.assert_allclose(trained, embed(base), atol=2e-3 if kind == "nf4" else 2e-2)
    assert torch.equal(held, packed)  # embedding lays nothing out anew


def test_all_linear_layers_but_the_pooler_are_adapted(model_directory):
    names = linear_layers(backbones.load(model_directory, device="cpu")[0].model)
    assert len(names) == 2 * 6
    assert not any("pooler" in name for name in names)


def test_an_unknown_target_is_named_with_the_known_ones(lora):
    with pytest.raises(RecipeError, match=r"'q_proj'; the network has dense, key, query, value"):
        run(lora(adapter={"target_modules": ["q_proj"]}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"adapter": {}, "token_embeddings": "used"}, "with adapter the token table stays"),
        ({"frozen_layers": 1, "token_embeddings": "all"}, "with frozen_layers the token table stays"),
        ({"adapter": {"dora": True, "quantize": "nf4"}}, "set adapter.quantize to null"),
        ({"adapter": {"rank": 0}}, r"adapter\.rank: got 0"),
    ],
)
def test_contradictions_are_refused(changes, message, content):
    with pytest.raises(RecipeError, match=message):
        parse_recipe({**content, **changes})
    assert parse_recipe({**content, "adapter": {}}).token_embeddings == "frozen"
    assert parse_recipe({**content, "stage": "align", "frozen_layers": 1}).token_embeddings == "frozen"
