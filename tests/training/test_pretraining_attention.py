"""No document of a window sees another one, whatever the architecture, the objective and the attention."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM, BloomConfig, Gemma3TextConfig, LlamaConfig, Qwen3Config, YoutuConfig

from codiemb.model_source import ModelError
from codiemb.training.pretraining import attention
from codiemb.training.pretraining.attention import check_attention, network_inputs, set_direction

from .pretraining_world import YOUTU

SMALL = {
    "vocab_size": 50,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
OWN = {key: value for key, value in YOUTU.items() if key not in ("model_type", "attention_dropout")}
CONFIGS = {
    "youtu": YoutuConfig(**SMALL | OWN),
    "qwen3": Qwen3Config(**SMALL, head_dim=8),
    "llama": LlamaConfig(**SMALL),
    # Windows of 4 tokens in two layers of three, so that they are shorter than the documents below.
    "gemma3": Gemma3TextConfig(
        **SMALL,
        head_dim=8,
        sliding_window=4,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
    ),
}
LENGTHS = [9, 1, 12, 7]


def network(name: str, implementation: str, both_ways: bool):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIGS[name], attn_implementation=implementation).eval()
    set_direction(model, both_ways)
    return model


def window(seed: int):
    """Documents of `LENGTHS` and two places that are left, (1, size)."""
    ids = torch.randint(3, 50, (1, sum(LENGTHS) + 2), generator=torch.Generator().manual_seed(seed))
    positions = [torch.arange(length) for length in LENGTHS]
    return ids, torch.cat([*positions, torch.zeros(2, dtype=torch.int64)])[None]


def logits(model, ids, positions):
    with torch.no_grad():
        return model(**network_inputs(model, ids, positions)).logits


@pytest.mark.parametrize("both_ways", [False, True], ids=["clm", "mntp"])
@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("name", CONFIGS)
def test_a_document_changes_no_logit_of_another(name, implementation, both_ways):
    model = network(name, implementation, both_ways)
    ids, positions = window(0)
    before = logits(model, ids, positions)
    start = 0
    for length in LENGTHS:
        inside = torch.zeros(ids.shape[1], dtype=torch.bool)
        inside[start : start + length] = True
        changed = torch.where(inside, (ids + 1) % 50, ids)
        after = logits(model, changed, positions)
        assert torch.equal(after[:, ~inside], before[:, ~inside])
        assert not torch.isclose(after[:, inside], before[:, inside]).all(-1).any()

        # Nor does it matter that there are others.
        alone = logits(model, ids[:, inside], torch.arange(length)[None])
        torch.testing.assert_close(before[:, inside], alone, rtol=0, atol=2e-5 * float(alone.abs().max()))
        start += length


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("name", CONFIGS)
def test_a_later_token_counts_with_mntp_alone(name, implementation):
    for both_ways in (False, True):
        model = network(name, implementation, both_ways)
        ids, positions = window(0)
        last = sum(LENGTHS[:3]) - 1
        changed = ids.clone()
        changed[0, last] = (ids[0, last] + 1) % 50
        before, after = logits(model, ids, positions), logits(model, changed, positions)
        earlier = slice(last - LENGTHS[2] + 1, last)
        differ = ~torch.isclose(before[0, earlier], after[0, earlier], rtol=0, atol=1e-6).all(-1)
        assert differ.all() if both_ways and name != "gemma3" else differ.any() == both_ways
        check_attention(model, both_ways)


@pytest.mark.parametrize("both_ways", [False, True], ids=["clm", "mntp"])
@pytest.mark.parametrize("name", CONFIGS)
def test_windows_of_a_batch_have_documents_of_their_own(name, both_ways):
    model = network(name, "sdpa", both_ways)
    ids, positions = window(0)
    other = torch.cat([positions[:, 9:], positions[:, :9]], 1)  # the same lengths in another order
    together = logits(model, torch.cat([ids, ids]), torch.cat([positions, other]))
    for row, layout in enumerate((positions, other)):
        alone = logits(model, ids, layout)
        torch.testing.assert_close(together[row], alone[0], rtol=0, atol=2e-5 * float(alone.abs().max()))
    assert not torch.isclose(together[0], together[1]).all()


def test_without_positions_that_begin_anew_documents_do_see_each_other():
    model = network("llama", "sdpa", False)
    ids, _ = window(0)
    positions = torch.arange(ids.shape[1])[None]
    changed = ids.clone()
    changed[0, 0] += 1
    assert not torch.equal(logits(model, ids, positions)[0, -5:], logits(model, changed, positions)[0, -5:])


def test_a_network_that_mixes_documents_is_refused():
    """Bloom's positions follow from the attention mask alone."""
    torch.manual_seed(0)
    config = BloomConfig(vocab_size=50, hidden_size=32, n_layer=2, n_head=4, initializer_range=0.2)
    model = AutoModelForCausalLM.from_config(config)
    with pytest.raises(ModelError, match="BloomForCausalLM lets the documents of a window see each other"):
        check_attention(model, both_ways=False)
    assert model.training


def test_a_network_that_reads_the_wrong_way_is_refused():
    model = network("llama", "sdpa", False)
    with pytest.raises(ModelError, match="cannot be made to read both ways, as objective mntp needs"):
        check_attention(model, both_ways=True)
    set_direction(model, both_ways=True)
    with pytest.raises(ModelError, match="from left to right, as objective clm needs"):
        check_attention(model, both_ways=False)


def test_the_check_looks_at_documents_side_by_side(monkeypatch):
    """With the masks taken away, a network that reads both ways mixes them."""
    model = network("llama", "sdpa", True)
    plain = attention.network_inputs
    monkeypatch.setattr(attention, "network_inputs", lambda *arguments: {**plain(*arguments), "attention_mask": None})
    with pytest.raises(ModelError, match="see each other"):
        check_attention(model, both_ways=True)
