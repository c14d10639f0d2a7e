import pytest
import torch
from sentence_transformers import SentenceTransformer
from tiny_models import assemble

from codiemb import backbones
from codiemb.fingerprint import fingerprint
from codiemb.prompts import TEMPLATES


def test_one_model_has_one_fingerprint(tiny_model, tiny_model_directory, tmp_path):
    first = fingerprint(tiny_model)
    assert len(first) == 32
    assert set(first) <= set("0123456789abcdef")
    tiny_model.encode(["a text", "a longer text"])  # sets the tokenizer's padding and truncation
    assert fingerprint(tiny_model) == first
    again = SentenceTransformer(str(tiny_model_directory), device="cpu", model_kwargs={"dtype": torch.bfloat16})
    assert fingerprint(again) == first
    backbones.save(tiny_model, tmp_path, backbones.template_of(tiny_model))
    assert fingerprint(backbones.load(tmp_path, device="cpu", dropout=0.3)) == first


def nudge(model):
    with torch.no_grad():
        next(model[0].parameters())[3, 3] += 1e-2


def set_epsilon(model):
    model[0].model.config.layer_norm_eps = 1e-6


@pytest.mark.parametrize(
    "change",
    [
        nudge,
        set_epsilon,
        lambda model: model.set_pooling_include_prompt(False),
        lambda model: model.prompts.update(query="question: "),
        lambda model: setattr(model, "template", TEMPLATES["qwen3"]),
        lambda model: model.tokenizer.add_tokens(["sourdough starter"]),
        lambda model: model.pop(2),
    ],
    ids=["weight", "configuration", "pooling", "prompt", "template", "tokenizer", "module"],
)
def test_what_changes_vectors_changes_the_fingerprint(tiny_model, change):
    before = fingerprint(tiny_model)
    change(tiny_model)
    assert fingerprint(tiny_model) != before


def test_a_directory_assembled_anew_is_the_same_model(tiny_model, encoder_directory):
    prompts = {"query": "query: ", "document": "passage: "}
    assert fingerprint(assemble(encoder_directory, prompts=prompts)) == fingerprint(tiny_model)


def test_compiled_weights_keep_their_names(tiny_model):
    before = fingerprint(tiny_model)
    tiny_model[0].model = torch.compile(tiny_model[0].model)
    assert any("_orig_mod" in name for name in tiny_model.state_dict())
    assert fingerprint(tiny_model) == before


def test_a_model_without_torch_weights_is_an_error(tiny_model, monkeypatch):
    monkeypatch.setattr(tiny_model, "state_dict", dict)  # as with an ONNX model
    with pytest.raises(ValueError, match="torch backend"):
        fingerprint(tiny_model)
