from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from codiemb.training.pretraining.recipe import PretrainRecipe, load_pretrain_recipe, parse_pretrain_recipe
from codiemb.training.reference import keys_of
from codiemb.training.sections import RecipeError

RECIPES = sorted((Path(__file__).parents[2] / "recipes").rglob("pretrain-*.yaml"))
NEW = {
    "config": {"model_type": "llama", "hidden_size": 32},
    "tokenizer": "some/tokenizer",
    "output": "runs/one",
    "corpus": [{"path": "text.txt"}],
}


def fault(**changes) -> str:
    content = {key: value for key, value in {**NEW, **changes}.items() if value is not None}
    with pytest.raises(RecipeError) as error:
        parse_pretrain_recipe(content)
    return str(error.value)


def test_there_are_ready_recipes():
    assert RECIPES


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_shipped_recipes_are_valid_and_survive_being_written(path):
    recipe = load_pretrain_recipe(path, ["window=128"])
    assert recipe.window == 128
    assert parse_pretrain_recipe(yaml.safe_load(yaml.safe_dump(recipe.model_dump(mode="json")))) == recipe


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"windw": 3}, "recipe: windw: unknown key (got 3); did you mean window?"),
        ({"held_out": {"shar": 0.1}}, "held_out.shar: unknown key (got 0.1); did you mean share? allowed: data, share"),
        ({"corpus": [{"path": "a", "documents": "words"}]}, "corpus.0.documents: got 'words', expected 'paragraphs'"),
        ({"window": 1}, "window: got 1, expected greater than or equal to 2"),
        ({"config": None, "tokenizer": None}, "model and config: got neither, expected one of them"),
        ({"model": "some/model"}, "model and config: got both, expected one of them"),
        ({"config": None, "model": "some/model"}, "tokenizer: some/model has a tokenizer"),
        ({"tokenizer": None}, "tokenizer and new_tokenizer: got neither, expected one of them"),
        ({"new_tokenizer": {"vocab_size": 500}}, "tokenizer and new_tokenizer: got both"),
        ({"tokenizer": None, "new_tokenizer": {"vocab_size": 100}}, "new_tokenizer.vocab_size: got 100, expected at"),
        ({"config": {"model_type": "yotu"}}, "config.model_type: got 'yotu'; did you mean youtu?"),
        ({"config": {"hidden_size": 8}}, "config.model_type: got None; expected a causal language model"),
        (
            {"config": {"model_type": "llama", "hiden_size": 8}},
            "config.hiden_size: unknown key of llama; did you mean hidden_size? allowed: attention_bias",
        ),
        ({"config": {"model_type": "llama", "vocab_size": 8}}, "config.vocab_size: follows from the tokenizer"),
        ({"config": {"model_type": "llama", "hidden_size": "wide"}}, "config: llama does not take these values"),
        ({"held_out": {"every": 5}}, "held_out.every is set, but neither held_out.data nor held_out.share"),
        ({"held_out": {"share": 0.1, "data": [{"path": "x"}]}}, "held_out.data and held_out.share: got both"),
        ({"masking": {"rate": 0.3}}, "masking is set, but objective is clm, which hides nothing"),
        ({"objective": "mntp", "masking": {"rate": 0.0}}, "masking.rate: got 0.0, expected greater than 0"),
        ({"objective": "mlm"}, "objective: got 'mlm', expected 'clm' or 'mntp'"),
    ],
)
def test_faults_name_the_key_what_was_given_and_what_is_allowed(changes, message):
    assert message in fault(**changes)


def test_all_faults_are_named_at_once():
    message = fault(windw=3, objective="mlm")
    assert "windw" in message
    assert "objective" in message


def test_the_page_names_every_key():
    page = (Path(__file__).parents[2] / "docs" / "pretraining.md").read_text(encoding="utf-8")
    missing = [row for row in keys_of(PretrainRecipe) if row not in page]
    assert not missing, "\n".join(missing)
