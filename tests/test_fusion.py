"""Fusion of fine-tuned models, against the formula written out on whole state dicts."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, Pooling, Transformer
from tiny_models import assemble, byte_bpe_tokenizer, save_decoder, save_encoder, wordpiece_tokenizer
from transformers import AutoModel, AutoTokenizer, BertConfig, BertModel, Qwen3ForCausalLM

from codiemb import backbones
from codiemb.fusion import compare_deltas, fuse, tensors
from codiemb.fusion.deltas import layer_of
from codiemb.prompts import InstructionTemplate

E5 = InstructionTemplate("query: ", "passage: ")
WEIGHTS = "model.safetensors"


@pytest.fixture(scope="module")
def base(encoder_directory, tmp_path_factory) -> Path:
    """A model with a Dense module, as codiemb saves it."""
    directory = tmp_path_factory.mktemp("fusion") / "base"
    modules = [Transformer(str(encoder_directory)), Pooling(32, "mean"), Dense(32, 16)]
    model = SentenceTransformer(modules=modules, device="cpu")
    backbones.set_prompts(model, E5, False)
    backbones.save(model, directory, E5)
    return directory


@pytest.fixture(scope="module")
def tuned(base) -> list[Path]:
    """Three models at different distances from the base."""
    return [moved(base, base.parent / f"tuned-{seed}", seed, step=0.01 * seed) for seed in (1, 2, 3)]


def moved(source: Path, target: Path, seed: int, step: float) -> Path:
    """A copy whose every floating tensor has taken a random step."""
    shutil.copytree(source, target)
    generator = torch.Generator().manual_seed(seed)
    for file in weight_files(target):
        edit(
            file,
            lambda name, t: t + step * torch.randn(t.shape, generator=generator) if t.is_floating_point() else t,
        )
    return target


def weight_files(directory):
    return sorted(directory.rglob("*.safetensors"))


def edit(file, change):
    state = {name: change(name, tensor).contiguous() for name, tensor in load_file(file).items()}
    save_file(state, file, metadata={"format": "pt"})


def state(directory):
    return {
        (str(file.relative_to(directory).parent), name): tensor
        for file in weight_files(directory)
        for name, tensor in load_file(file).items()
    }


def assert_same(actual, expected, **tolerance):
    assert actual.keys() == expected.keys()
    for key, tensor in expected.items():
        assert actual[key].dtype == tensor.dtype
        torch.testing.assert_close(actual[key], tensor, **{"rtol": 0, "atol": 0, **tolerance}, msg=str(key))


def by_formula(base, checkpoints, weigh):
    """Base + sum of weight times delta; `weigh(deltas, key)` gives a tensor's weights."""
    start = state(base)
    deltas = [{key: tensor.double() - start[key] for key, tensor in state(path).items()} for path in checkpoints]
    fused = {}
    for key, tensor in start.items():
        weights = weigh(deltas, key)
        fused[key] = (tensor + sum(w * delta[key] for w, delta in zip(weights, deltas, strict=True))).to(tensor.dtype)
    return fused


def shares(deltas, keys):
    norms = [torch.cat([delta[key].flatten() for key in keys]).norm().item() for delta in deltas]
    return [norm / sum(norms) for norm in norms]


def same_layer(key, other):
    return key[0] == other[0] and (key[0] != "." or layer_of(key[1]) == layer_of(other[1]))


RULES = {
    ("uniform", "tensor", None): lambda deltas, key: [1 / 3] * 3,
    ("weights", "tensor", (0.5, 0.2, 0.3)): lambda deltas, key: (0.5, 0.2, 0.3),
    ("delta", "tensor", None): lambda deltas, key: shares(deltas, [key]),
    ("delta", "layer", None): lambda deltas, key: shares(deltas, [k for k in deltas[0] if same_layer(k, key)]),
    ("delta", "model", None): lambda deltas, key: shares(deltas, list(deltas[0])),
}


@pytest.mark.parametrize(("options", "weigh"), RULES.items(), ids=["-".join(rule[:2]) for rule in RULES])
def test_values_are_those_of_the_formula(base, tuned, tmp_path, options, weigh):
    method, granularity, weights = options
    report = fuse(base, tuned, tmp_path / "out", method=method, granularity=granularity, weights=weights)
    assert_same(state(tmp_path / "out"), by_formula(base, tuned, weigh), rtol=1e-6, atol=1e-7)
    for row in (*report.tensors.values(), *(layer.weights for layer in report.layers)):
        assert sum(row) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("block", [7, 1 << 20])
@pytest.mark.parametrize(("method", "granularity"), [("uniform", "tensor"), ("delta", "layer"), ("delta", "tensor")])
def test_one_checkpoint_or_equal_ones_give_themselves_bit_for_bit(
    base, tuned, tmp_path, monkeypatch, method, granularity, block
):
    monkeypatch.setattr(tensors, "BLOCK", block)
    for count in (1, 3):
        out = tmp_path / f"{count}"
        fuse(base, [tuned[1]] * count, out, method=method, granularity=granularity)
        assert_same(state(out), state(tuned[1]))


def test_order_changes_nothing(base, tuned, tmp_path):
    fuse(base, tuned, tmp_path / "a", method="delta")
    fuse(base, [tuned[2], tuned[0], tuned[1]], tmp_path / "b", method="delta")
    assert_same(state(tmp_path / "a"), state(tmp_path / "b"), rtol=1.2e-7)  # one float32 rounding


def test_scale_goes_from_the_base_to_the_checkpoint_and_beyond(base, tuned, tmp_path):
    start, end = state(base), state(tuned[0])
    for scale in (0.0, 0.3, 1.0, 1.5):
        fuse(base, tuned[:1], tmp_path / f"{scale}", scale=scale)
        expected = {key: start[key] + scale * (end[key] - start[key]) for key in start}
        assert_same(state(tmp_path / f"{scale}"), expected, rtol=1e-6, atol=1e-7)
    assert_same(state(tmp_path / "0.0"), start)


def test_checkpoints_that_did_not_move(base, tuned, tmp_path):
    report = fuse(base, [base, base], tmp_path / "still", method="delta")
    assert_same(state(tmp_path / "still"), state(base))
    assert set(report.tensors.values()) == {(0.5, 0.5)}
    assert {cosine for layer in report.layers for row in layer.cosines for cosine in row} == {0.0}
    fuse(base, [base, tuned[0]], tmp_path / "one", method="delta")
    assert_same(state(tmp_path / "one"), state(tuned[0]))


def test_the_result_is_a_model_with_the_settings_of_the_first(base, tuned, tmp_path):
    (tuned[0] / "training").mkdir(exist_ok=True)
    (tuned[0] / "training" / "optimizer.pt").write_bytes(b"state")
    out = tmp_path / "deep" / "out"
    fuse(base, tuned, out)
    model = backbones.load(out, device="cpu")
    assert backbones.template_of(model, out) == E5
    assert not backbones.pools_prompt(model)
    assert model.prompts["query"] == "query: "
    networks = [backbones.load(path, device="cpu") for path in tuned]
    mean = torch.stack([network[2].linear.weight for network in networks]).mean(0)
    torch.testing.assert_close(model[2].linear.weight, mean)
    assert not (out / "training").exists()
    assert [path.name for path in out.parent.iterdir()] == ["out"]
    assert oct(out.stat().st_mode)[-3:] == "755"


def test_card_and_file_list_method_checkpoints_and_weights(base, tuned, tmp_path):
    report = fuse(base, tuned[:2], tmp_path / "out", method="weights", weights=[0.25, 0.75], scale=0.5)
    card = (tmp_path / "out" / "README.md").read_text()
    for shown in ("# out", "`weights`", "scale: 0.5", f"`{tuned[0]}`", f"`{tuned[1]}`", f"`{base}`"):
        assert shown in card
    for layer in ("embeddings", "encoder.layer.0", "encoder.layer.1", "pooler", "2_Dense", "model"):
        assert f"| {layer} | " in card
    assert card.count("| 0.2500 | 0.7500 |") == len(report.layers)
    content = json.loads((tmp_path / "out" / "fusion.json").read_text())
    assert content == json.loads(json.dumps(report.to_dict()))
    assert content["tensors"]["2_Dense.linear.weight"] == [0.25, 0.75]


def test_each_tensor_keeps_the_dtype_of_the_base(base, tuned, tmp_path):
    half = shutil.copytree(base, tmp_path / "half")
    for file in weight_files(half):
        edit(file, lambda name, t: t.bfloat16() if "LayerNorm" not in name else t)
    fuse(half, tuned[:2], tmp_path / "out")
    fused = state(tmp_path / "out")
    assert_same(fused, by_formula(half, tuned[:2], lambda deltas, key: [0.5, 0.5]), rtol=1e-2, atol=1e-3)
    assert {tensor.dtype for tensor in fused.values()} == {torch.bfloat16, torch.float32}
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "bfloat16"
    assert AutoModel.from_pretrained(tmp_path / "out").dtype == torch.bfloat16


def test_shards_stay_shards(base, tmp_path):
    def sharded(seed):
        model = backbones.load(base, device="cpu")
        torch.manual_seed(seed)
        for parameter in model.parameters():
            parameter.data += 0.01 * torch.randn_like(parameter)
        path = tmp_path / f"sharded-{seed}"
        model.save_pretrained(str(path), create_model_card=False)
        (path / WEIGHTS).unlink()
        model[0].model.save_pretrained(path, max_shard_size="30KB")
        return path

    one, two = sharded(1), sharded(2)
    assert len(weight_files(one)) > 3
    fuse(base, [one, two], tmp_path / "out")
    assert [f.name for f in weight_files(tmp_path / "out")] == [f.name for f in weight_files(one)]
    fused = backbones.load(tmp_path / "out", device="cpu").state_dict()
    ours, theirs = (backbones.load(path, device="cpu").state_dict() for path in (one, two))
    for name, tensor in fused.items():
        torch.testing.assert_close(tensor, (ours[name] + theirs[name]) / 2)
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    network = [file for file in weight_files(tmp_path / "out") if file.parent == tmp_path / "out"]
    size = sum(t.numel() * t.itemsize for file in network for t in load_file(file).values())
    assert index["metadata"]["total_size"] == size
    network[0].rename(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match=r"model-00001-of.*there is no such file"):
        fuse(base, [tmp_path / "out"], tmp_path / "again")


def test_a_tied_weight_that_is_stored_twice_counts_once(base, tmp_path):
    def with_copy(source, name):
        path = shutil.copytree(source, tmp_path / name)
        weights = load_file(path / WEIGHTS)
        weights["decoder.weight"] = weights["embeddings.word_embeddings.weight"].clone()
        save_file(weights, path / WEIGHTS, metadata={"format": "pt"})
        return path

    def tuned(seed, step):
        path = moved(start, tmp_path / f"tied-{seed}", seed, 0.01)
        weights = load_file(path / WEIGHTS)
        weights["embeddings.word_embeddings.weight"] += step
        weights["decoder.weight"] = weights["embeddings.word_embeddings.weight"].clone()
        save_file(weights, path / WEIGHTS, metadata={"format": "pt"})
        return path

    start = with_copy(base, "tied")
    report = fuse(start, [tuned(1, 0.5), tuned(2, 0.01)], tmp_path / "out", method="delta", granularity="layer")
    fused = load_file(tmp_path / "out" / WEIGHTS)
    assert torch.equal(fused["decoder.weight"], fused["embeddings.word_embeddings.weight"])
    total = sum(t.numel() for t in state(base).values())
    assert report.layers[-1].parameters == total  # without the copy


def test_the_base_may_be_a_bare_causal_language_model(tmp_path):
    directory = save_decoder(tmp_path / "network")
    network = AutoModel.from_pretrained(directory)
    language_model = Qwen3ForCausalLM(network.config)
    language_model.model.load_state_dict(network.state_dict())
    language_model.save_pretrained(tmp_path / "base")
    byte_bpe_tokenizer().save_pretrained(tmp_path / "base")
    assert "model.norm.weight" in load_file(tmp_path / "base" / WEIGHTS)
    checkpoints = []
    for seed in (1, 2):
        model = assemble(directory)
        model[0].model.config.is_causal = False
        backbones.save(model, tmp_path / f"plain-{seed}", E5)
        checkpoints.append(moved(tmp_path / f"plain-{seed}", tmp_path / f"tuned-{seed}", seed, 0.1))
    fuse(tmp_path / "base", checkpoints, tmp_path / "out")
    mean = by_formula(tmp_path / "plain-1", checkpoints, lambda deltas, key: [0.5, 0.5])
    assert_same(state(tmp_path / "out"), mean, rtol=1e-6, atol=1e-7)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["is_causal"] is False


def test_integer_buffers_are_kept_where_equal_and_refused_where_not(base, tuned, tmp_path):
    def with_buffer(source, name, values):
        path = shutil.copytree(source, tmp_path / name)
        weights = {
            **load_file(path / WEIGHTS),
            "embeddings.position_ids": torch.tensor([values]),
            "on": torch.tensor(True),
        }
        save_file(weights, path / WEIGHTS, metadata={"format": "pt"})
        return path

    one, two = with_buffer(tuned[0], "one", [0, 1, 2]), with_buffer(tuned[1], "two", [0, 1, 2])
    fuse(base, [one, two], tmp_path / "out")
    fused = load_file(tmp_path / "out" / WEIGHTS)
    assert fused["embeddings.position_ids"].tolist() == [[0, 1, 2]]
    assert fused["on"].item() is True
    other = with_buffer(base, "other", [0, 1, 3])
    for models in ([other, one], [base, one, other]):
        with pytest.raises(ValueError, match=r"other: embeddings\.position_ids \(I64 \[1, 3\]\) differs"):
            fuse(models[0], models[1:], tmp_path / "refused")


def test_memory_follows_the_block_and_not_the_tensor(tmp_path, monkeypatch):
    monkeypatch.setattr(tensors, "BLOCK", 1 << 16)
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    BertModel(BertConfig(vocab_size=400, max_position_embeddings=500_000, **sizes)).save_pretrained(tmp_path / "net")
    wordpiece_tokenizer().save_pretrained(tmp_path / "net")
    assemble(tmp_path / "net").save_pretrained(str(tmp_path / "base"), create_model_card=False)
    checkpoints = [moved(tmp_path / "base", tmp_path / f"{seed}", seed, 0.01) for seed in (1, 2, 3)]
    process = psutil.Process(os.getpid())
    resident = []
    fuse(
        tmp_path / "base",
        checkpoints,
        tmp_path / "out",
        on_progress=lambda *_: resident.append(process.memory_info().rss),
    )
    tensor = 500_000 * 32 * 4
    assert max(resident) - resident[0] < tensor // 4  # one tensor of one model alone would be 64 MB
    expected = sum(load_file(path / WEIGHTS)["embeddings.position_embeddings.weight"] for path in checkpoints) / 3
    actual = load_file(tmp_path / "out" / WEIGHTS)["embeddings.position_embeddings.weight"]
    torch.testing.assert_close(actual, expected)


def test_deltas_between_checkpoints(base, tmp_path):
    ahead = moved(base, tmp_path / "ahead", 1, 0.1)
    back = shutil.copytree(base, tmp_path / "back")
    start, end = state(base), state(ahead)
    for file in weight_files(back):
        folder = str(file.relative_to(back).parent)
        edit(file, lambda name, t, folder=folder: 3 * t - 2 * end[folder, name])  # -2 times the step ahead
    layers = compare_deltas(base, [ahead, back])
    assert [layer.name for layer in layers] == [
        "embeddings",
        "encoder.layer.0",
        "encoder.layer.1",
        "2_Dense",
        "pooler",
        "model",
    ]
    for layer in layers:
        np.testing.assert_allclose(layer.cosines, [[1, -1], [-1, 1]], atol=1e-6)
        assert layer.norms[1] == pytest.approx(2 * layer.norms[0], rel=1e-5)
        assert layer.weights == ()
    whole = torch.cat([(end[key].double() - start[key]).flatten() for key in start]).norm().item()
    size = torch.cat([tensor.double().flatten() for tensor in start.values()]).norm().item()
    assert layers[-1].norms[0] == pytest.approx(whole)
    assert layers[-1].relative_norms[0] == pytest.approx(whole / size)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "weights"}, "one weight a checkpoint: got none, expected 2"),
        ({"method": "weights", "weights": [1.0]}, "got 1, expected 2"),
        ({"method": "weights", "weights": [0.5, 0.6]}, r"sum to 1\.1, expected"),
        ({"method": "weights", "weights": [1.5, -0.5]}, "at least 0"),
        ({"method": "weights", "weights": [float("nan"), 1.0]}, "sum to nan"),
        ({"weights": [0.5, 0.5]}, "got the method 'uniform'"),
        ({"scale": -1.0}, r"scale=-1\.0"),
        ({"scale": float("inf")}, "scale=inf"),
    ],
)
def test_options_out_of_range(base, tuned, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        fuse(base, tuned[:2], tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def change_json(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def other_tokenizer(path):
    tokenizer = AutoTokenizer.from_pretrained(path)
    tokenizer.add_tokens(["sourdough-bread"])
    tokenizer.save_pretrained(path)


def pool_first_token(path):
    change_json(path / "1_Pooling" / "config.json", pooling_mode_cls_token=True, pooling_mode_mean_tokens=False)


def set_tensor(path, name, value):
    weights = load_file(path / WEIGHTS)
    weights.pop(name) if value is None else weights.update({name: value})
    save_file(weights, path / WEIGHTS, metadata={"format": "pt"})


BROKEN = {
    "config": (
        lambda path: change_json(path / "config.json", layer_norm_eps=0.5),
        r"broken: config\.json: layer_norm_eps is 0\.5, expected 1e-12",
    ),
    "tokenizer": (
        other_tokenizer,
        r"vocabulary has \d+ pieces, expected \d+; 'sourdough-bread' has the id \d+, expected None",
    ),
    "template": (
        lambda path: change_json(path / "codiemb.json", template={"query": "q: ", "document": "passage: "}),
        r"template\.query is 'q: ', expected 'query: '",
    ),
    "prompts": (
        lambda path: change_json(path / "config_sentence_transformers.json", prompts={"query": "query: "}),
        r"prompts\.document is None, expected 'passage: '",
    ),
    "pooling": (pool_first_token, "1_Pooling is .*'cls'.*expected .*'mean'"),
    "missing tensor": (
        lambda path: set_tensor(path, "pooler.dense.bias", None),
        r"lacks the tensor pooler\.dense\.bias",
    ),
    "extra tensor": (lambda path: set_tensor(path, "more", torch.ones(1)), "has the tensor more"),
    "shape": (
        lambda path: set_tensor(path, "pooler.dense.bias", torch.ones(3)),
        r"pooler\.dense\.bias has the shape \[3\], expected \[32\]",
    ),
    "kind": (
        lambda path: set_tensor(path, "pooler.dense.bias", torch.ones(32, dtype=torch.int64)),
        r"pooler\.dense\.bias is I64, but F32",
    ),
    "diverged": (
        lambda path: set_tensor(path, "pooler.dense.bias", torch.full((32,), torch.nan)),
        r"pooler\.dense\.bias holds values that are not finite",
    ),
    "no weights": (lambda path: (path / WEIGHTS).unlink(), "there is no such file. Fusion reads safetensors"),
    "cut": (lambda path: (path / WEIGHTS).write_bytes((path / WEIGHTS).read_bytes()[:-9]), "is damaged"),
    "adapter": (lambda path: (path / "adapter_config.json").write_text("{}"), "is an adapter"),
    "no JSON": (lambda path: (path / "modules.json").write_text("{"), r"modules\.json: cannot be read"),
    "no tokenizer": (lambda path: (path / "tokenizer.json").unlink(), "tokenizer cannot be read"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_models_that_do_not_belong_together(base, tuned, tmp_path, case):
    damage, message = BROKEN[case]
    broken = shutil.copytree(tuned[1], tmp_path / "broken")
    damage(broken)
    with pytest.raises(ValueError, match=message) as error:
        fuse(base, [tuned[0], broken], tmp_path / "out")
    assert str(broken) in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["broken"]


def test_a_base_that_is_another_model(base, tuned, tmp_path, encoder_directory):
    with pytest.raises(ValueError, match=r"no tensor 2_Dense\.linear\.\w+, which .*tuned-1 has"):
        fuse(encoder_directory, tuned, tmp_path / "out")  # bare: no start for the Dense module
    other = save_encoder(tmp_path / "other", tokenizer=wordpiece_tokenizer())
    change_json(other / "config.json", num_attention_heads=2)
    with pytest.raises(ValueError, match=r"num_attention_heads is 2, expected 4"):
        fuse(other, tuned, tmp_path / "out")


def test_names_that_are_no_models(base, tuned, tmp_path):
    (tmp_path / "empty").mkdir()
    for name, message in ((tmp_path / "none", "no such directory"), (tmp_path / "empty", "not a model directory")):
        with pytest.raises(ValueError, match=message):
            fuse(base, [name], tmp_path / "out")
    with pytest.raises(ValueError, match="No checkpoint was given"):
        fuse(base, [], tmp_path / "out")
    (tmp_path / "out").mkdir()
    fuse(base, tuned, tmp_path / "out")  # an empty directory will do
    with pytest.raises(ValueError, match="exists and is not an empty directory"):
        fuse(base, tuned, tmp_path / "out")


def test_values_that_do_not_fit_leave_no_half_written_model(base, tmp_path):
    half, far = shutil.copytree(base, tmp_path / "half"), shutil.copytree(base, tmp_path / "far")
    edit(half / WEIGHTS, lambda name, t: t.half())
    edit(far / WEIGHTS, lambda name, t: t + 1e6 if name == "pooler.dense.bias" else t)
    with pytest.raises(ValueError, match=r"pooler\.dense\.bias: fused values do not fit F16"):
        fuse(half, [far], tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["far", "half"]
