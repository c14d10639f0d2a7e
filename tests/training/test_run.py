from __future__ import annotations

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
import yaml
from sentence_transformers import SentenceTransformer

from codiemb import backbones
from codiemb.backbones import ModelError
from codiemb.data.examples import DataError
from codiemb.encoding import EmbeddingPass
from codiemb.prompts import PromptedText
from codiemb.training.output import OutputError
from codiemb.training.recipe import RecipeError
from codiemb.training.run import run

from .conftest import assert_same_weights, files_under, write_lines

LOAD_WITHOUT_CODIEMB = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "codiemb":
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Blocked())
import numpy as np
from sentence_transformers import SentenceTransformer

model = SentenceTransformer(sys.argv[1], device="cpu")
texts = ["ba be bi", "fo fu", "ga"]
np.savez(sys.argv[2], query=model.encode_query(texts), document=model.encode_document(texts))
assert not any(name.partition(".")[0] == "codiemb" for name in sys.modules)
"""


@pytest.fixture
def evaluated(data):
    return {"data": [str(data / "test")], "every": 2}


def test_the_model_loads_where_codiemb_is_not_installed(make_recipe, environment, tmp_path):
    report = run(make_recipe(max_steps=2))
    vectors = tmp_path / "vectors.npz"
    command = [sys.executable, "-c", LOAD_WITHOUT_CODIEMB, report.model, str(vectors)]
    subprocess.run(command, env=environment, check=True)
    theirs = np.load(vectors)
    model = backbones.load(report.model, device="cpu")
    template = backbones.template_of(model, report.model)
    ours = EmbeddingPass(model, precision=torch.float32)
    texts = ["ba be bi", "fo fu", "ga"]
    for side in ("query", "document"):
        expected = ours.encode(PromptedText(template.prompt(side), text) for text in texts)
        np.testing.assert_allclose(theirs[side], expected, atol=1e-6)
    assert np.abs(theirs["query"] - theirs["document"]).max() > 1e-3  # the prompts differ, and count


def test_what_a_run_leaves(make_recipe, evaluated, model_directory):
    recipe = make_recipe(evaluation=evaluated)
    report = run(recipe)
    names = {path.name for path in recipe.output.iterdir()}
    extra = {"README.md", "training_report.json", "training", "codiemb.json"}
    assert names == {path.name for path in model_directory.iterdir()} | extra
    state = {path.name for path in (recipe.output / "training").iterdir()}
    assert {name for name in state if not name.startswith("checkpoint-")} == {
        "logs",
        "plan.json",
        "recipe.yaml",
        "scores_before.json",
    }
    assert vars(report) == json.loads((recipe.output / "training_report.json").read_text())
    assert set(report.before) == set(report.after) == {"ir", "sts", "mean"}
    assert report.steps == 8
    assert report.tokens > 0
    assert report.settings["training_seconds"] <= report.seconds
    assert [(entry["name"], entry["rows"], entry["steps_per_epoch"]) for entry in report.data] == [
        ("ir", 64, 4),
        ("sts", 64, 4),
    ]


def test_the_model_card(make_recipe, evaluated):
    recipe = make_recipe(evaluation=evaluated)
    report = run(recipe)
    card = (recipe.output / "README.md").read_text()
    _, metadata, text = card.split("---\n", 2)
    assert yaml.safe_load(metadata)["library_name"] == "sentence-transformers"
    assert "base_model" not in yaml.safe_load(metadata)  # a directory is no id of the hub
    assert "| ir | ir | 64 | 0 | 4 |" in text
    for name, after in report.after.items():
        assert f"| {name} | {100 * report.before[name]:.2f} | {100 * after:.2f} |" in text
    recipe_in_card = yaml.safe_load(text.split("```yaml\n")[1].split("```")[0])
    assert recipe_in_card == recipe.model_dump(mode="json")


def test_the_best_checkpoint_becomes_the_model(make_recipe, evaluated):
    recipe = make_recipe(epochs=2, evaluation={**evaluated, "metric": "sts"})
    report = run(recipe)
    scores = {entry["step"]: entry["eval_sts"] for entry in report.history if "eval_sts" in entry}
    assert list(scores) == [2, 4, 6, 8, 10, 12, 14, 16]
    best = max(scores, key=scores.__getitem__)
    assert best != 16  # else this would show nothing
    assert report.best_step == best
    assert report.after["sts"] == pytest.approx(scores[best])
    checkpoints = {path.name for path in (recipe.output / "training").glob("checkpoint-*")}
    assert checkpoints == {f"checkpoint-{best}", "checkpoint-16"}
    assert_same_weights(recipe.output, recipe.output / "training" / f"checkpoint-{best}")


def test_the_same_seed_gives_the_same_weights(make_recipe, tmp_path):
    first, second, other = (
        run(make_recipe(seed=seed, output=str(tmp_path / name))) for seed, name in ((1, "a"), (1, "b"), (2, "c"))
    )
    assert_same_weights(first.model, second.model)
    with pytest.raises(AssertionError):
        assert_same_weights(first.model, other.model)


# -- what cannot be run: said before anything is written -------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"tasks": {"ir": {"batch_size": 65}}}, ValueError, "'ir' has 64 examples.*takes 65.*batch_size to at most 64"),
        ({"accumulation": 9}, ValueError, "batch_size to at most 7"),
        (
            {"sampling": {"task_shares": {"ir": 1, "sts": 1, "reranking": 1}}},
            ValueError,
            "'reranking', but there is no",
        ),
        ({"sampling": {"task_shares": {"ir": 1}}}, ValueError, "no entry for task 'sts'"),
        ({"model": "/no/such/model"}, ModelError, "no such directory"),
        ({"train": [{"path": "/no/such/data.jsonl"}]}, DataError, "no such file"),
        ({"evaluation": {"data": ["/no/such/data"]}}, DataError, "no such file"),
        ({"max_length": 1000}, ValueError, "max_length=1000, but the model reads at most 64"),
    ],
)
def test_a_run_that_cannot_be_fails_before_it_writes(changes, error, message, make_recipe):
    recipe = make_recipe(**changes)
    with pytest.raises(error, match=message):
        run(recipe)
    assert not recipe.output.exists()


def test_a_metric_that_is_not_measured_fails_before_training(make_recipe, evaluated):
    recipe = make_recipe(evaluation={**evaluated, "metric": "stsb"})
    with pytest.raises(RecipeError, match=r"evaluation\.metric: got 'stsb', expected .*: ir, sts, mean"):
        run(recipe)
    assert not recipe.output.exists()


def test_a_model_directory_with_missing_files(make_recipe, model_directory, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(model_directory, broken)
    (broken / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="no weights"):
        run(make_recipe(model=str(broken)))


# -- the output directory --------------------------------------------------------------------------------------------


def test_an_output_that_cannot_be_written(make_recipe, tmp_path):
    (tmp_path / "file").write_text("mine")
    for output in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(OutputError, match="is a file, expected a directory"):
            run(make_recipe(output=str(output)))
    with pytest.raises(OutputError, match=r"(cannot be written|may not be written to)"):
        run(make_recipe(output="/proc/codiemb", max_steps=1))


@pytest.mark.parametrize("options", [{}, {"resume": True}, {"overwrite": True}])
def test_a_foreign_directory_is_not_touched(options, make_recipe, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").write_text("years of work")
    with pytest.raises(OutputError, match="holds files that no training run wrote"):
        run(make_recipe(), **options)
    assert files_under(tmp_path / "run") == {"thesis.tex": b"years of work"}


def test_another_run_is_replaced_only_on_demand(make_recipe):
    first = make_recipe(max_steps=2)
    run(first)
    (first.output / "training" / "note").touch()
    before = files_under(first.output)
    with pytest.raises(OutputError, match=r"holds another run.*--resume.*--overwrite.*output=DIR"):
        run(make_recipe(max_steps=3))
    with pytest.raises(DataError):  # what fails before training must not cost the old run
        run(make_recipe(train=[{"path": "/no/such/file.jsonl"}]), overwrite=True)
    with pytest.raises(OutputError, match="contradict"):
        run(first, resume=True, overwrite=True)
    assert files_under(first.output) == before
    assert run(make_recipe(max_steps=3), overwrite=True).steps == 3
    assert not (first.output / "training" / "note").exists()


def test_overwrite_does_not_delete_its_own_input(make_recipe, tmp_path):
    first = run(make_recipe(max_steps=1))
    with pytest.raises(OutputError, match="which --overwrite deletes"):
        run(make_recipe(model=first.model), overwrite=True)
    data = write_lines(tmp_path / "run" / "more.jsonl", [{"task_type": "ir", "query": "a", "positives": ["b"]}])
    with pytest.raises(OutputError, match="which --overwrite deletes"):
        run(make_recipe(train=[{"path": str(data)}]), overwrite=True)


def test_a_start_that_failed_does_not_bar_the_next(make_recipe):
    with pytest.raises(DataError):
        run(make_recipe(train=[{"path": "/no/such/file.jsonl"}]))
    assert run(make_recipe(max_steps=1)).steps == 1


def test_resume_starts_where_there_is_nothing(make_recipe):
    assert run(make_recipe(max_steps=1), resume=True).steps == 1


def test_a_recipe_chooses_pooling_and_direction(make_recipe, decoder_directory):
    recipe = make_recipe(model=str(decoder_directory), max_steps=1, causal=True, pooling="mean")
    run(recipe)
    model = SentenceTransformer(str(recipe.output), device="cpu")
    assert model[1].pooling_mode == "mean"
    states = [
        model[0].model(input_ids=torch.tensor([ids])).last_hidden_state[0, 0] for ids in ([5, 6, 7, 8], [5, 6, 7, 99])
    ]
    torch.testing.assert_close(states[0], states[1])
