"""Frozen layers, learning rates by layer, and gradient checkpointing."""

from __future__ import annotations

import pytest
import torch
from sentence_transformers import SentenceTransformer

from codiemb import backbones
from codiemb.encoding import EmbeddingPass, hidden_layers
from codiemb.prompts import PromptedText
from codiemb.training.parameters import count_parameters, decay_by_layer, freeze_layers
from codiemb.training.recipe import RecipeError
from codiemb.training.run import run
from codiemb.training.token_rows import install

from .conftest import weights

TEXTS = [PromptedText("", text) for text in ("ba be bi bo bu", "fo fu", "ga ge gi go")]


@pytest.fixture
def embedding_pass(model_directory):
    return EmbeddingPass(backbones.load(model_directory, device="cpu"), precision=torch.float32)


def kept_for_backward(embedding_pass: EmbeddingPass) -> int:
    """Numbers that autograd keeps of one forward pass, parameters left out."""
    own = {parameter.untyped_storage().data_ptr() for parameter in embedding_pass.parameters()}
    kept: dict[int, int] = {}

    def see(tensor: torch.Tensor) -> torch.Tensor:
        if (storage := tensor.untyped_storage().data_ptr()) not in own:
            kept[storage] = tensor.numel()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(see, lambda tensor: tensor):
        states = embedding_pass(embedding_pass.tokenize(TEXTS)).final
    total = sum(kept.values())
    del states
    return total


def gradients(embedding_pass: EmbeddingPass) -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    final = embedding_pass(embedding_pass.tokenize(TEXTS)).final
    (final * torch.arange(final.shape[1])).sum().backward()
    return {name: p.grad for name, p in embedding_pass.named_parameters() if p.grad is not None}


def test_frozen_layers_and_the_embeddings_below_stay(make_recipe, model_directory):
    report = run(make_recipe(frozen_layers=1, max_steps=3))
    before, after = weights(model_directory), weights(report.model)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved
    assert {name.rpartition(".layer.1.")[0] for name in moved} == {"encoder"}


def test_frozen_layers_keep_nothing_for_the_backward_pass(embedding_pass):
    whole = kept_for_backward(embedding_pass)
    expected = gradients(embedding_pass)
    embedding_pass.zero_grad()
    freeze_layers(embedding_pass, 1)
    assert kept_for_backward(embedding_pass) < 0.6 * whole
    found = gradients(embedding_pass)
    assert 0 < len(found) < len(expected)
    assert all(".layer.1." in name for name in found)
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name])


def test_the_last_layer_cannot_be_frozen(embedding_pass):
    with pytest.raises(RecipeError, match="got 2, expected fewer than the network's 2 layers"):
        freeze_layers(embedding_pass, 2)


def test_gradient_checkpointing_changes_memory_and_no_gradient(model_directory):
    found = []
    for checkpointing in (False, True):
        model = SentenceTransformer(str(model_directory), device="cpu").train()
        if checkpointing:
            model[0].model.gradient_checkpointing_enable({"use_reentrant": False})
        embedding_pass = EmbeddingPass(model, precision=torch.float32, token_budget=16)  # in two chunks
        found.append((kept_for_backward(embedding_pass), gradients(embedding_pass)))
    (kept, expected), (kept_fewer, actual) = found
    assert kept_fewer < 0.7 * kept
    assert actual.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(actual[name], expected[name])


def test_a_recipe_turns_gradient_checkpointing_on(make_recipe, tmp_path):
    plain = run(make_recipe(max_steps=3))
    again = run(make_recipe(max_steps=3, gradient_checkpointing=True, output=str(tmp_path / "again")))
    first, second = weights(plain.model), weights(again.model)
    for name in first:
        torch.testing.assert_close(first[name], second[name], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("used_rows", [False, True])
def test_each_layer_learns_more_slowly_than_the_one_above_it(used_rows, embedding_pass):
    network = embedding_pass.transformer.model
    table = network.get_input_embeddings().weight
    if used_rows:
        table = install(network, range(10)).rows
    network.pooler.requires_grad_(False)
    trained = [parameter for parameter in embedding_pass.parameters() if parameter.requires_grad]
    groups = [{"params": trained[::2], "weight_decay": 0.1}, {"params": trained[1::2], "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1.0)
    decay_by_layer(optimizer, embedding_pass, 0.5)
    rates = {id(parameter): group["lr"] for group in optimizer.param_groups for parameter in group["params"]}
    assert len(rates) == len(trained)
    assert rates[id(table)] == 0.25
    for layer, rate in zip(hidden_layers(embedding_pass.transformer), (0.5, 1.0), strict=True):
        assert {rates[id(parameter)] for parameter in layer.parameters()} == {rate}
    decays = {id(parameter): group["weight_decay"] for group in optimizer.param_groups for parameter in group["params"]}
    assert [decays[id(parameter)] for parameter in trained[:2]] == [0.1, 0.0]


def test_a_recipe_sets_the_rates_of_layers(make_recipe, tmp_path):
    reports = [
        run(
            make_recipe(
                max_steps=3, optimizer={"learning_rate": 1e-3, "layer_decay": decay}, output=str(tmp_path / name)
            )
        )
        for name, decay in (("plain", 1.0), ("decayed", 0.01))
    ]
    moved = [weights(report.model) for report in reports]
    start = weights(make_recipe().model)
    names = [f"encoder.layer.{i}.attention.self.query.weight" for i in (0, 1)]
    changes = [[float((after[name] - start[name]).norm()) for name in names] for after in moved]
    assert changes[1][0] < 0.05 * changes[0][0]
    assert changes[1][1] > 0.5 * changes[0][1]


def test_rows_in_the_place_of_a_table_are_counted_once(embedding_pass):
    network = embedding_pass.transformer.model
    total = count_parameters(embedding_pass).total
    assert total == sum(parameter.numel() for parameter in embedding_pass.parameters())
    install(network, range(10))
    table = network.get_input_embeddings().original.weight
    counted = count_parameters(embedding_pass)
    assert counted.total == total
    assert counted.trained == total - table.numel() + 10 * table.shape[1]
    assert str(counted).endswith(f"({counted.trained / total:.2%})")
