"""Compiled layers; the backend that generates no code is enough to see what is captured."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch._dynamo.utils import counters

from codiemb import backbones
from codiemb.encoding import EmbeddingPass, hidden_layers
from codiemb.prompts import PromptedText
from codiemb.training import cpu, run
from codiemb.training.compilation import compile_layers


def embedding_pass(directory, **options) -> EmbeddingPass:
    model = backbones.load(directory, device="cpu", attention="eager")
    cpu.use_fast_dropout(model[0].model)
    cpu.use_fast_attention(model[0].model)
    return EmbeddingPass(model, precision=torch.float32, token_budget=32, **options)


def gradients(embedder: EmbeddingPass, count: int) -> list[torch.Tensor]:
    texts = [PromptedText("", "ba be bi " * size) for size in range(1, count)]
    final = embedder(embedder.tokenize(texts)).final
    (final * torch.arange(final.shape[1])).sum().backward()
    found = [parameter.grad for parameter in embedder.parameters() if parameter.grad is not None]
    embedder.zero_grad()
    return found


def test_compiled_layers_give_the_same_gradients_and_vectors_at_any_size(model_directory):
    torch._dynamo.reset()
    counters.clear()
    plain, compiled = embedding_pass(model_directory).eval(), embedding_pass(model_directory).eval()
    compile_layers(compiled, "aot_eager")
    for count in (3, 5, 8):
        torch.testing.assert_close(gradients(compiled, count), gradients(plain, count))
    graphs = counters["stats"]["unique_graphs"]
    assert 0 < graphs <= 4
    for count in (6, 9, 12):
        gradients(compiled, count)
    assert counters["stats"]["unique_graphs"] == graphs
    texts = [PromptedText("", "ba be"), PromptedText("", "bi")]
    np.testing.assert_allclose(compiled.encode(texts), plain.encode(texts), atol=1e-6)
    assert compiled.state_dict().keys() == plain.state_dict().keys()


def test_a_watched_layer_is_left_as_it_is(model_directory):
    embedder = embedding_pass(model_directory, middle_layer=1)
    compile_layers(embedder)
    assert [layer._compiled_call_impl is None for layer in hidden_layers(embedder.transformer)] == [True, False]


def test_a_recipe_asks_for_it(make_recipe, monkeypatch):
    asked = []
    monkeypatch.setattr(run, "compile_layers", asked.append)
    run.run(make_recipe(max_steps=1))
    assert not asked
    run.run(make_recipe(max_steps=1, compile=True, output=str(make_recipe().output) + "-compiled"))
    assert [type(embedder) for embedder in asked] == [EmbeddingPass]


@pytest.fixture(autouse=True)
def _forget_compiled_code():
    yield
    torch._dynamo.reset()
