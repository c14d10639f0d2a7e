"""The copy of a network for inference: the network's vectors, and never those of weights of before."""

import logging

import numpy as np
import pytest
import torch
from tiny_models import TEXTS, assemble
from torch import nn

from codiemb import inference
from codiemb.encoding import EmbeddingPass
from codiemb.inference import InferenceCopy, PackedLinear
from codiemb.prompts import PromptedText

MIXED = [PromptedText(["", "query: "][i % 2], text) for i, text in enumerate(TEXTS)]
NEEDS_ONEDNN = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch is built without oneDNN")

pytestmark = NEEDS_ONEDNN


@pytest.fixture(autouse=True)
def _everywhere(monkeypatch):
    """Fast paths are taken whatever this processor gains from them."""
    monkeypatch.setattr(inference, "_packing_pays", lambda precision: True)
    monkeypatch.setattr(inference, "_own_attention_pays", lambda: True)


@pytest.fixture(scope="module")
def networks(encoder_directory, decoder_directory):
    def build(kind, pooling="mean"):
        return assemble(encoder_directory if kind == "encoder" else decoder_directory, pooling)

    return build


def plain(model, texts, precision=torch.float32) -> np.ndarray:
    embedding_pass = EmbeddingPass(model, precision=precision)
    with torch.no_grad():
        return embedding_pass.eval()(embedding_pass.tokenize(texts)).final.numpy()


@pytest.mark.parametrize("pooling", ["mean", "lasttoken"])
@pytest.mark.parametrize("kind", ["encoder", "decoder"])
def test_packed_float32_equals_the_plain_path(networks, kind, pooling):
    model = networks(kind, pooling)
    model.eval()
    embedding_pass = EmbeddingPass(model, precision=torch.float32, token_budget=60)
    np.testing.assert_allclose(embedding_pass.encode(MIXED), plain(model, MIXED), atol=2e-6)
    assert embedding_pass._copy.transformer is not model[0]


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("pooling", ["mean", "lasttoken"])
@pytest.mark.parametrize("kind", ["encoder", "decoder"])
def test_bfloat16_is_as_close_as_autocast(networks, kind, pooling, threads):
    model = networks(kind, pooling)
    torch.set_num_threads(threads)
    full = plain(model, MIXED)
    fast = EmbeddingPass(model, precision=torch.bfloat16, token_budget=60).encode(MIXED)
    autocast = plain(model, MIXED, torch.bfloat16)
    assert (full * fast).sum(axis=1).min() > 0.999
    assert np.abs(full - fast).mean() < 2 * np.abs(full - autocast).mean()


def test_bidirectional_decoder(networks):
    """Grouped heads and left padding, with no causal mask."""
    model = networks("decoder")
    causal = plain(model, MIXED)
    model[0].model.config.is_causal = False
    for layer in model[0].model.layers:
        layer.self_attn.is_causal = False
    full = plain(model, MIXED)
    assert np.abs(full - causal).max() > 1e-2
    fast = EmbeddingPass(model, precision=torch.bfloat16).encode(MIXED)
    assert (full * fast).sum(axis=1).min() > 0.999


@pytest.mark.parametrize("padding", ["none", "right", "left"])
def test_attention_equals_torchs(padding):
    query, key, value = (torch.randn(3, 4, 50, 16).bfloat16() for _ in range(3))
    lengths = torch.tensor([50, 20, 1] if padding != "none" else [50, 50, 50])
    mask = torch.arange(50)[None] < lengths[:, None]
    mask = mask.flip(1) if padding == "left" else mask
    hidden = None if padding == "none" else mask[:, None, None, :].expand(-1, -1, 50, -1)
    expected = nn.functional.scaled_dot_product_attention(query.float(), key.float(), value.float(), attn_mask=hidden)
    with torch.inference_mode():
        actual, _ = inference._attention(nn.Module(), query, key, value, hidden, is_causal=False)
    torch.testing.assert_close(actual.float(), expected.transpose(1, 2), rtol=0.05, atol=0.03)


def test_attention_whose_exponentials_overflow_is_computed_by_torch(monkeypatch):
    query = torch.randn(1, 2, 8, 16).bfloat16() * 40
    calls = []
    own = inference.sdpa_attention_forward
    monkeypatch.setattr(inference, "sdpa_attention_forward", lambda *a, **k: calls.append(1) or own(*a, **k))
    with torch.inference_mode():
        actual, _ = inference._attention(nn.Module(), query, query, query, None, is_causal=False)
    assert calls == [1]
    expected = nn.functional.scaled_dot_product_attention(query, query, query)
    torch.testing.assert_close(actual, expected.transpose(1, 2))


def test_causal_attention_is_torchs(networks, monkeypatch):
    calls = []
    own = inference.sdpa_attention_forward
    monkeypatch.setattr(inference, "sdpa_attention_forward", lambda *a, **k: calls.append(1) or own(*a, **k))
    EmbeddingPass(networks("decoder"), precision=torch.bfloat16).encode(MIXED)
    assert calls


@pytest.mark.parametrize("change", ["step", "data", "load", "replace"])
def test_changed_weights_are_noticed(tiny_model, change):
    embedding_pass = EmbeddingPass(tiny_model.eval(), precision=torch.bfloat16)
    before = embedding_pass.encode(MIXED)
    copied = embedding_pass._copy
    assert np.array_equal(embedding_pass.encode(MIXED), before)
    assert embedding_pass._copy is copied  # made once while nothing changes
    weight = tiny_model[0].model.encoder.layer[1].output.dense.weight
    if change == "step":
        weight.grad = -weight.detach()  # an equal step of all weights would vanish in the layer norm that follows
        torch.optim.SGD([weight], lr=0.5).step()
    elif change == "data":
        weight.data.mul_(1.5)
    elif change == "load":
        state = {name: 1.5 * value for name, value in tiny_model.state_dict().items()}
        tiny_model.load_state_dict(state)
    else:
        weight.data = 1.5 * weight.data
    after = embedding_pass.encode(MIXED)
    assert np.abs(after - before).max() > 1e-3
    assert (plain(tiny_model, MIXED) * after).sum(axis=1).min() > 0.99  # bfloat16 against float32, on large weights


def test_the_copy_shares_all_but_the_linear_weights_and_is_no_part_of_the_model(tiny_model):
    embedding_pass = EmbeddingPass(tiny_model.eval(), precision=torch.bfloat16)
    names = list(embedding_pass.state_dict())
    embedding_pass.encode(MIXED)
    network = embedding_pass._copy.transformer.model
    assert list(embedding_pass.state_dict()) == names
    assert network.embeddings.word_embeddings.weight is tiny_model[0].model.embeddings.word_embeddings.weight
    assert isinstance(network.encoder.layer[0].output.dense, PackedLinear)
    assert type(tiny_model[0].model.encoder.layer[0].output.dense) is nn.Linear
    assert tiny_model[0].model.config._attn_implementation != inference.ATTENTION


def test_after_training_mode_the_copy_is_gone(tiny_model):
    embedding_pass = EmbeddingPass(tiny_model, precision=torch.bfloat16).train()
    embedding_pass.encode(MIXED)
    assert embedding_pass._copy is None


def test_a_network_with_hooks_is_used_itself(tiny_model):
    tiny_model[0].model.pooler.register_forward_hook(lambda *_: None)
    assert InferenceCopy(tiny_model[0], torch.bfloat16).transformer is tiny_model[0]


def test_a_copy_that_computes_something_else_is_not_used(tiny_model, monkeypatch, caplog):
    monkeypatch.setattr(PackedLinear, "forward", lambda self, x: x.new_zeros(*x.shape[:-1], self.out_features))
    assert InferenceCopy(tiny_model[0], torch.bfloat16).transformer is tiny_model[0]
    assert "the states of its copy differ by" in caplog.text


def test_a_network_that_cannot_be_copied_is_used_itself(tiny_model, caplog):
    tiny_model[0].model.handle = (number for number in range(3))  # no generator can be copied
    assert InferenceCopy(tiny_model[0], torch.bfloat16).transformer is tiny_model[0]
    assert "is used as it is, without fast inference" in caplog.text


def test_little_memory_means_no_copy(tiny_model, monkeypatch, caplog):
    monkeypatch.setattr(inference, "_free_memory", lambda: 1000)
    with caplog.at_level(logging.INFO):
        assert InferenceCopy(tiny_model[0], torch.bfloat16).transformer is tiny_model[0]
    assert "there is no memory for" in caplog.text


def test_workers_leave_torchs_threads_as_they_were(tiny_model):
    torch.set_num_threads(2)
    embedding_pass = EmbeddingPass(tiny_model.eval(), precision=torch.bfloat16, token_budget=40)
    several = embedding_pass.encode(MIXED)
    assert torch.get_num_threads() == 2
    torch.set_num_threads(1)
    np.testing.assert_allclose(several, embedding_pass.encode(MIXED), atol=0.02)


def test_a_failing_worker_fails_the_call(tiny_model, monkeypatch):
    torch.set_num_threads(2)
    embedding_pass = EmbeddingPass(tiny_model.eval(), precision=torch.bfloat16, token_budget=40)

    def fail(*_):
        raise RuntimeError("broken")

    monkeypatch.setattr(embedding_pass, "_token_states", fail)
    with pytest.raises(RuntimeError, match="broken"):
        embedding_pass.encode([PromptedText("", text * 9) for text in TEXTS])


def test_a_text_without_any_token_embeds_as_zeros_here_too(networks):
    torch.set_num_threads(2)
    embedding_pass = EmbeddingPass(networks("decoder"), precision=torch.bfloat16)
    assert (embedding_pass.encode([PromptedText("", "")]) == 0).all()
    assert embedding_pass._copy.transformer is not embedding_pass.transformer
