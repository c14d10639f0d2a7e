import copy
import math

import pytest
import torch
from torch import nn
from transformers import BertModel, Qwen3Model

from codiemb.training import cpu
from codiemb.training.cpu import FastDropout, attention, keep_bits, use_fast_attention, use_fast_dropout
from tests.tiny_models import save_decoder, save_encoder

# -- dropout


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("dropout", [0.02, 0.1, 0.5, 0.9])
def test_dropout_keeps_the_mean_and_drops_the_share(dtype, dropout):
    torch.manual_seed(0)
    count = 1_000_001  # not a multiple of the elements that one draw serves
    out = FastDropout(dropout).train()(torch.ones(count, dtype=dtype))
    sigma = math.sqrt(dropout * (1 - dropout) / count)
    assert abs((out == 0).double().mean().item() - dropout) < 5 * sigma
    assert out[out != 0].unique().tolist() == [torch.tensor(1 / (1 - dropout), dtype=dtype).item()]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_lane_of_a_draw_is_random_and_independent_of_its_neighbours(dtype):
    torch.manual_seed(1)
    lanes = 2 if dtype == torch.float32 else 4
    kept = (keep_bits(torch.Size([400_000]), dtype, 0.3) != 0).double().view(-1, lanes)
    assert (kept.mean(0) - 0.7).abs().max() < 0.005
    correlations = torch.corrcoef(kept.T) - torch.eye(lanes)
    assert correlations.abs().max() < 0.02


def test_dropout_gradient_is_the_mask_it_drew():
    values = torch.randn(64, 33, requires_grad=True)
    out = FastDropout(0.25).train()(values)
    out.sum().backward()
    assert torch.equal(values.grad == 0, out == 0)
    torch.testing.assert_close(out, values * values.grad)


def test_dropout_is_a_function_of_the_generator_state_and_off_in_evaluation():
    module, values = FastDropout(0.5).train(), torch.randn(100, 7)
    state = torch.get_rng_state()
    first = module(values)
    assert not torch.equal(module(values), first)
    torch.set_rng_state(state)
    assert torch.equal(module(values), first)
    assert module.eval()(values) is values


@pytest.mark.parametrize("dropout", [0.0, 1.0])
def test_dropout_at_its_limits_is_torchs(dropout):
    values = torch.randn(5, 5)
    assert torch.equal(FastDropout(dropout).train()(values), nn.functional.dropout(values, dropout))


def test_dropout_clears_what_is_not_finite_and_takes_any_memory_layout():
    values = torch.full((8, 6), float("nan")).T
    out = FastDropout(0.5).train()(values)
    assert set(out.flatten().nan_to_num(7.0).tolist()) == {0.0, 7.0}


# -- attention


def plain_attention(query, key, value, mask, scale):
    """One product after the other, in loops over the batch and the heads."""
    out = torch.zeros(query.shape[0], query.shape[2], query.shape[1], value.shape[3], dtype=query.dtype)
    groups = query.shape[1] // key.shape[1]
    for row in range(query.shape[0]):
        for head in range(query.shape[1]):
            scores = query[row, head] @ key[row, head // groups].T * scale
            if mask is not None:
                scores = scores.masked_fill(~mask[row, 0], -math.inf)
            out[row, :, head] = scores.softmax(-1) @ value[row, head // groups]
    return out


@pytest.mark.parametrize("key_heads", [1, 2, 4])
@pytest.mark.parametrize("masked", [False, True])
def test_attention_and_gradients_equal_loops(key_heads, masked):
    torch.manual_seed(2)
    parts = [torch.randn(3, heads, 6, 5, dtype=torch.float64) for heads in (4, key_heads, key_heads)]
    mask = torch.rand(3, 1, 6, 6) < 0.6
    mask[..., 0] = True  # each query sees something
    mask = mask if masked else None
    weights = torch.randn(3, 6, 4, 5, dtype=torch.float64)
    ours, theirs = ([part.clone().requires_grad_() for part in parts] for _ in range(2))
    out, _ = attention(nn.Module(), *ours, mask)
    expected = plain_attention(*theirs, mask, 5**-0.5)
    torch.testing.assert_close(out, expected)
    (out * weights).sum().backward()
    (expected * weights).sum().backward()
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a.grad, b.grad)


def test_attention_with_dropout_has_the_gradient_of_what_it_computed(monkeypatch):
    """Finite differences, with the random mask held still."""
    torch.manual_seed(3)
    keep = torch.where(torch.rand(2, 2, 4, 4) < 0.3, 0, -1)
    monkeypatch.setattr(cpu, "keep_bits", lambda shape, dtype, dropout: keep)
    parts = [torch.randn(2, 2, 4, 3, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    assert torch.autograd.gradcheck(lambda *p: attention(nn.Module(), *p, None, dropout=0.3)[0], parts)


def test_attention_dropout_keeps_the_expectation():
    torch.manual_seed(4)
    query, key, value = (torch.randn(1, 2, 5, 4) for _ in range(3))
    expected, _ = attention(nn.Module(), query, key, value, None)
    many = [part.expand(4000, -1, -1, -1) for part in (query, key, value)]
    sampled, _ = attention(nn.Module(), *many, None, dropout=0.2)
    torch.testing.assert_close(sampled.mean(0, keepdim=True), expected, atol=0.05, rtol=0)


def test_a_variant_it_does_not_compute_is_an_error():
    query = torch.randn(1, 1, 2, 4)
    with pytest.raises(ValueError, match=r"softcap.*attention: eager"):
        attention(nn.Module(), query, query, query, None, softcap=30.0)


# -- whole networks


@pytest.fixture(params=["encoder", "decoder", "decoder, bidirectional"])
def networks(request, tmp_path):
    """The same network with plain and with fast attention."""
    if request.param == "encoder":
        plain = BertModel.from_pretrained(save_encoder(tmp_path), attn_implementation="eager")
    else:
        plain = Qwen3Model.from_pretrained(save_decoder(tmp_path), attn_implementation="eager")
        plain.config.is_causal = request.param == "decoder"
    plain.eval()  # no dropout
    fast = copy.deepcopy(plain)
    assert use_fast_attention(fast)
    return plain, fast


@pytest.mark.parametrize("padding", ["none", "left", "right"])
def test_states_and_gradients_are_those_of_plain_attention(networks, padding):
    torch.manual_seed(5)
    ids = torch.randint(5, 60, (4, 9))
    mask = torch.ones_like(ids)
    if padding != "none":
        mask[1, slice(0, 3) if padding == "left" else slice(6, 9)] = 0
    losses = []
    for network in networks:
        states = network(input_ids=ids, attention_mask=mask).last_hidden_state
        loss = (states * mask[..., None]).square().mean()
        loss.backward()
        losses.append((states[mask.bool()], loss))
    torch.testing.assert_close(losses[1], losses[0])
    gradients = ({name: p.grad for name, p in network.named_parameters()} for network in networks)
    plain, fast = gradients
    for name in plain:
        torch.testing.assert_close(fast[name], plain[name], msg=lambda text, name=name: f"{name}: {text}")


def test_under_autocast_it_is_no_further_from_float32_than_plain_attention(networks):
    torch.manual_seed(6)
    ids = torch.randint(5, 60, (8, 17))
    exact = networks[0](input_ids=ids).last_hidden_state
    errors = []
    for network in networks:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            states = network(input_ids=ids).last_hidden_state
        errors.append((states.float() - exact).square().mean().sqrt().item())
    assert errors[1] < 1.5 * errors[0]


def test_nothing_of_it_is_saved(networks, tmp_path):
    fast = networks[1]
    use_fast_dropout(fast)
    fast.save_pretrained(tmp_path / "saved")
    assert cpu.ATTENTION not in (tmp_path / "saved" / "config.json").read_text()
    again = type(fast).from_pretrained(tmp_path / "saved")
    assert again.config._attn_implementation == "sdpa"
    assert again.state_dict().keys() == fast.state_dict().keys()


def test_fast_dropout_takes_the_place_of_all_plain_ones(tmp_path):
    network = BertModel.from_pretrained(save_encoder(tmp_path))
    use_fast_dropout(network)
    assert {type(module) for module in network.modules() if isinstance(module, nn.Dropout)} == {FastDropout}
