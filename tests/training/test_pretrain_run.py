from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from codiemb import backbones
from codiemb.data.examples import DataError
from codiemb.model_source import ModelError
from codiemb.training.output import OutputError
from codiemb.training.pretraining.recipe import parse_pretrain_recipe
from codiemb.training.pretraining.run import PretrainReport, pretrain
from codiemb.training.pretraining.trainer import PretrainTrainer
from codiemb.training.resumable import checkpoint_step, last_checkpoint

from .conftest import assert_same_weights, files_under, weights
from .pretraining_world import YOUTU, content, sentences, write_corpus
from .processes import killed_at_step, on_two_ranks

TEXTS = sentences(0, 60)
UNFIT = {
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 3,
    "max_position_embeddings": 64,
}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("corpus") / "corpus.jsonl", TEXTS)


@pytest.fixture
def make(corpus, tmp_path):
    return lambda **changes: parse_pretrain_recipe(content(tmp_path, corpus, **changes))


@pytest.fixture(scope="module")
def trained(corpus, tmp_path_factory):
    """A run of four epochs, and its report."""
    folder = tmp_path_factory.mktemp("trained")
    settings = {"epochs": 4, "held_out": {"share": 0.2, "every": 30}, "checkpoints": {"every": 30}}
    recipe = parse_pretrain_recipe(content(folder, corpus, **settings))
    return recipe, pretrain(recipe)


def test_perplexity_falls(trained):
    recipe, report = trained
    assert report.before["perplexity"] > 100
    assert report.after["perplexity"] < 0.2 * report.before["perplexity"]
    during = [entry["eval_perplexity"] for entry in report.history if "eval_perplexity" in entry]
    assert report.before["perplexity"] > during[0] > during[1] == report.after["perplexity"]
    assert vars(report) == json.loads((recipe.output / "training_report.json").read_text())
    assert report == PretrainReport(**json.loads((recipe.output / "training_report.json").read_text()))
    assert "perplexity" in (recipe.output / "README.md").read_text()
    assert list((recipe.output / "training" / "logs").iterdir())


def test_nothing_of_the_corpus_is_lost(trained):
    recipe, report = trained
    train, held_out = report.data["train"], report.data["held_out"]
    assert train["documents"] + held_out["documents"] == len(TEXTS)
    assert train["characters"] + held_out["characters"] == sum(map(len, TEXTS))
    assert train["bytes"] + held_out["bytes"] == sum(len(text.encode()) for text in TEXTS)
    assert report.tokens == 4 * train["predictions"]
    assert report.steps == 4 * math.ceil(train["windows"] / recipe.batch_size)
    tokenizer = AutoTokenizer.from_pretrained(recipe.output)
    assert train["tokens"] + held_out["tokens"] == sum(len(tokenizer(text)["input_ids"]) for text in TEXTS)


def held_out_texts(recipe):
    from codiemb.training.pretraining.data import held_out_test
    from codiemb.training.pretraining.tokens import text_hash

    mask = held_out_test(recipe.held_out)(np.array([text_hash(text) for text in TEXTS], np.uint64))
    return [text for text, held_out in zip(TEXTS, mask, strict=True) if held_out]


def test_the_scores_are_those_of_documents_read_one_by_one(trained):
    """By plain transformers, in windows only as long as a document, where no document is cut."""
    recipe, report = trained
    network = AutoModelForCausalLM.from_pretrained(recipe.output)
    tokenizer = AutoTokenizer.from_pretrained(recipe.output)
    texts = held_out_texts(recipe)
    nats = predictions = 0
    for text in texts:
        ids = tokenizer(text, return_tensors="pt")["input_ids"]
        for start in range(0, ids.shape[1] - 1, 64):  # its positions
            piece = ids[:, start : start + 65]
            with torch.no_grad():
                nats += float(network(piece, labels=piece).loss) * (piece.shape[1] - 1)
            predictions += piece.shape[1] - 1
    assert predictions == report.data["held_out"]["predictions"]
    # Windows of 32 places cut some of them: what is after a cut lacks what is before it.
    assert report.after["loss"] == pytest.approx(nats / predictions, rel=0.15)
    total = report.after["loss"] * predictions / math.log(2)
    assert report.after["bits_per_character"] == pytest.approx(total / sum(map(len, texts)))
    assert report.after["bits_per_byte"] == pytest.approx(total / sum(len(text.encode()) for text in texts))


def test_the_result_is_a_plain_language_model_that_becomes_an_embedding_model(trained):
    recipe, _ = trained
    network, found = AutoModelForCausalLM.from_pretrained(recipe.output, output_loading_info=True)
    assert type(network).__name__ == "YoutuForCausalLM"
    assert not any(found.values())
    assert network.config.use_cache
    settings = json.loads((recipe.output / "tokenizer_config.json").read_text())
    assert settings["tokenizer_class"] == "PreTrainedTokenizerFast"
    model = backbones.load(recipe.output, device="cpu")
    assert model[0].model.config.is_causal is False
    assert np.allclose(np.linalg.norm(model.encode(["今天", "the train"]), axis=1), 1)


# -- exactness ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("objective", ["clm", "mntp"])
def test_a_killed_and_resumed_run_ends_with_the_same_weights(objective, make, tmp_path):
    changes = {
        "objective": objective,
        "max_steps": 14,  # two epochs and part of a third
        "accumulation": 2,
        "checkpoints": {"every": 4},
        "held_out": {"share": 0.2, "every": 4},
    }
    reference = pretrain(make(**changes, output=str(tmp_path / "uninterrupted")))
    assert 2 < reference.history[-1]["epoch"] < 3

    interrupted = make(**changes)
    killed_at_step(10, pretrain, interrupted)  # in the middle of the second
    assert checkpoint_step(last_checkpoint(interrupted.output / "training")) == 8
    assert not (interrupted.output / "model.safetensors").exists()

    report = pretrain(interrupted, resume=True)
    assert_same_weights(reference.model, report.model)
    assert (report.steps, report.tokens) == (reference.steps, reference.tokens)
    assert (report.before, report.after) == (reference.before, reference.after)
    name = f"{objective}/loss"
    logged = [[entry[name] for entry in r.history if name in entry] for r in (report, reference)]
    assert logged[0] == logged[1]


def test_a_finished_run_is_not_repeated_and_a_lost_model_written_again(make, monkeypatch):
    recipe = make(max_steps=3)
    first = pretrain(recipe)
    before = files_under(recipe.output)
    monkeypatch.setattr(PretrainTrainer, "train", None)
    assert pretrain(recipe, resume=True) == first
    assert files_under(recipe.output) == before
    for path in recipe.output.iterdir():
        if path.is_file():
            path.unlink()
    assert pretrain(recipe, resume=True).after == first.after
    assert (recipe.output / "model.safetensors").read_bytes() == before["model.safetensors"]


def test_steps_do_not_depend_on_how_they_are_divided(make, tmp_path):
    """By accumulation, by checkpointed activations, or not at all, the unequal last step of an epoch included."""
    changes = {"epochs": 2, "config": {**YOUTU, "attention_dropout": 0.0}}
    ways = {
        "whole": {"batch_size": 8},
        "accumulated": {"batch_size": 2, "accumulation": 4},
        "checkpointed": {"batch_size": 8, "gradient_checkpointing": True},
    }
    reports = {name: pretrain(make(**changes, **way, output=str(tmp_path / name))) for name, way in ways.items()}
    expected = weights(tmp_path / "whole")
    for name in ways:
        assert reports[name].tokens == reports["whole"].tokens
        assert reports[name].steps == reports["whole"].steps
        actual = weights(tmp_path / name)
        assert actual.keys() == expected.keys()
        for key, tensor in expected.items():
            torch.testing.assert_close(actual[key], tensor, rtol=0, atol=2e-4)


def test_two_processes_end_with_the_weights_of_one(make, tmp_path):
    changes = {"epochs": 1, "config": {**YOUTU, "attention_dropout": 0.0}, "held_out": {"share": 0.2, "every": 6}}
    single = pretrain(make(**changes, batch_size=6, output=str(tmp_path / "single")))
    two = make(**changes, batch_size=3)
    # A cache of its own: both ranks tokenise at once, one trains the tokenizer.
    printed = on_two_ranks(tmp_path, pretrain, two, CODIEMB_CACHE=str(tmp_path / "cache"))
    assert ["watch it" in text for text in printed] == [True, False]
    expected = weights(single.model)
    for name, tensor in weights(two.output).items():
        torch.testing.assert_close(tensor, expected[name], rtol=0, atol=2e-4, msg=lambda m, name=name: f"{name}: {m}")
    report = json.loads((two.output / "training_report.json").read_text())
    assert report["settings"]["processes"] == 2
    assert report["tokens"] == single.tokens
    assert report["data"] == single.data
    assert report["after"] == pytest.approx(single.after, rel=1e-4)
    losses = [[e["clm/loss"] for e in history if "clm/loss" in e] for history in (report["history"], single.history)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    assert not list((tmp_path / "cache").rglob(".*"))


# -- where it begins ---------------------------------------------------------------------------------------------------


def test_a_checkpoint_goes_on_where_it_was_and_turns_both_ways(trained, corpus, tmp_path):
    recipe, report = trained
    keys = {"config": None, "new_tokenizer": None, "model": str(recipe.output), "output": str(tmp_path / "on")}
    changes = {**keys, "objective": "mntp", "max_steps": 30, "optimizer": {"learning_rate": 3e-3}}
    onward = pretrain(parse_pretrain_recipe(content(tmp_path, corpus, **changes)))
    assert onward.after["perplexity"] < 0.9 * onward.before["perplexity"]
    assert set(onward.after) == {"loss", "perplexity"}  # hidden tokens alone say nothing about a whole text
    assert json.loads((tmp_path / "on" / "config.json").read_text())["is_causal"] is False

    changes = {**keys, "max_steps": 1, "optimizer": {"learning_rate": 1e-9}, "output": str(tmp_path / "same")}
    same = pretrain(parse_pretrain_recipe(content(tmp_path, corpus, **changes)))
    assert same.before == pytest.approx(report.after, rel=1e-5)


def test_held_out_files_are_kept_out_of_the_corpus(make, tmp_path):
    held_out = write_corpus(tmp_path / "held.jsonl", [*TEXTS[:5], "a text of its own"])
    report = pretrain(make(held_out={"data": [{"path": str(held_out)}]}, max_steps=1))
    assert report.data["train"]["documents"] == sum(text not in TEXTS[:5] for text in TEXTS)
    assert report.data["held_out"]["documents"] == 6


def test_compiled_is_not_something_else(make, monkeypatch, tmp_path):
    compiled_networks = []

    def trace_only(self):  # torch's own backend takes half a minute
        compiled_networks.append(self)
        return compile_module(self, backend="eager")

    compile_module = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", trace_only)
    changes = {"config": {**YOUTU, "attention_dropout": 0.0, "num_hidden_layers": 1}, "max_steps": 2}
    plain = pretrain(make(**changes, output=str(tmp_path / "plain")))
    assert not compiled_networks
    compiled = pretrain(make(**changes, compile=True))
    assert len(compiled_networks) == 1
    assert compiled.after["loss"] == pytest.approx(plain.after["loss"], abs=1e-4)
    assert weights(compiled.model).keys() == weights(plain.model).keys()


# -- what cannot be ----------------------------------------------------------------------------------------------------


def test_changed_text_is_refused(make, tmp_path):
    path = write_corpus(tmp_path / "own.jsonl", TEXTS)
    recipe = make(corpus=[{"path": str(path)}], max_steps=1)
    pretrain(recipe)
    (recipe.output / "training_report.json").unlink()
    write_corpus(path, [*TEXTS[:-1], "changed"])
    with pytest.raises(DataError, match=r"own\.jsonl: changed since the run began"):
        pretrain(recipe, resume=True)
    with pytest.raises(OutputError, match=r"window: 32 then, 16 now"):
        pretrain(make(corpus=[{"path": str(path)}], max_steps=1, window=16), resume=True)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"corpus": [{"path": "none.txt"}]}, DataError, "none.txt: no such file"),
        ({"held_out": {"share": 1e-9}}, DataError, "held_out: none of 60 documents"),
        ({"window": 65}, ModelError, r"window is 65, but the network has 64 positions"),
        ({"config": {**YOUTU, "kv_lora_rank": -1}}, ModelError, "config: a youtu network of these values"),
        ({"config": UNFIT}, ModelError, "LlamaForCausalLM cannot be run: "),
        ({"new_tokenizer": None, "tokenizer": "/none"}, ModelError, "/none: there is no such directory"),
        (
            {"config": None, "new_tokenizer": None, "model": "ENCODER"},
            ModelError,
            r"is not a whole language model: .* would be random",
        ),
    ],
)
def test_what_cannot_be_used_leaves_nothing_behind(changes, error, message, make, model_directory, tmp_path):
    if changes.get("model") == "ENCODER":
        changes = {**changes, "model": str(model_directory)}
    with pytest.raises(error, match=message):
        pretrain(make(**changes))
    assert not (tmp_path / "run").exists()
