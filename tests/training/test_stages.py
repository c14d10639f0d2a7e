from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from sentence_transformers import SentenceTransformer

from codiemb.training.output import OutputError
from codiemb.training.recipe import RecipeError, parse_recipe
from codiemb.training.run import run
from codiemb.training.sections import parse_section
from codiemb.training.staged_recipe import StagedRecipe, load_any_recipe
from codiemb.training.stages import StageError, run_stages, scores_rows

from .conftest import WORDS, assert_same_weights, files_under

SCORES = {"ir", "sts", "mean"}


@pytest.fixture
def staged(content, data) -> dict:
    """Alignment, then fine-tuning, on the tiny world."""
    align = {
        "stage": "align",
        "train": [{"path": str(data / "ir.jsonl")}],
        "tasks": {"ir": {"batch_size": 32}},
        "max_steps": 3,
    }
    finetune = {key: content[key] for key in ("train", "tasks", "optimizer")}
    return {
        "model": content["model"],
        "output": content["output"],
        "prompts": {"template": "e5"},
        "evaluation": {"data": [str(data / "test")]},
        "precision": "fp32",
        "log_every": 1,
        "stages": [align, {"stage": "finetune", **finetune, "max_steps": 6, "checkpoints": {"every": 2}}],
    }


def parsed(content: dict, **changes) -> StagedRecipe:
    return parse_section(StagedRecipe, {**content, **changes}, "recipe")


def test_each_stage_starts_from_the_model_of_the_one_before(staged, tmp_path):
    recipe = parsed(staged)
    report = run_stages(recipe)
    output = recipe.output
    assert [stage["name"] for stage in report.stages] == ["1-align", "2-finetune"]
    assert [stage["steps"] for stage in report.stages] == [3, 6]

    # The same by hand.
    shared = {key: value for key, value in staged.items() if key not in ("stages", "model", "output")}
    first = run(
        parse_recipe({**shared, **staged["stages"][0], "model": staged["model"], "output": str(tmp_path / "1")})
    )
    second = run(parse_recipe({**shared, **staged["stages"][1], "model": first.model, "output": str(tmp_path / "2")}))
    assert_same_weights(second.model, output)
    assert_same_weights(output, output / "2-finetune")
    assert report.scores == {"start": first.before, "1-align": first.after, "2-finetune": second.after}

    assert SentenceTransformer(str(output), device="cpu").prompts["query"] == "query: "
    assert json.loads((output / "training_report.json").read_text())["scores"] == report.scores
    card = (output / "README.md").read_text()
    assert f"# {output.name}\n" in card
    columns, rows = scores_rows(report)
    assert columns == ["start", "1-align", "2-finetune"]
    for name, cells in rows:
        assert f"| {name} | {' | '.join(cells)} |" in card
        assert cells[-1] == f"{100 * second.after[name]:.2f}"

    before = files_under(output)
    assert run_stages(recipe, resume=True) == report
    assert files_under(output) == before
    with pytest.raises(OutputError, match="holds another run"):
        run_stages(recipe)
    changed = json.loads(json.dumps(staged))
    changed["stages"][1]["optimizer"]["learning_rate"] = 0.5
    with pytest.raises(OutputError, match=r"stages\.2\.optimizer\.learning_rate: 0\.001 then, 0\.5 now"):
        run_stages(parsed(changed), resume=True)


def test_a_run_killed_in_its_second_stage_goes_on_there_and_ends_with_the_same_bits(staged, environment, tmp_path):
    staged["stages"][0]["max_steps"] = 2
    reference = run_stages(parsed(staged, output=str(tmp_path / "uninterrupted")))
    recipe_file = tmp_path / "recipe.yaml"
    recipe_file.write_text(yaml.safe_dump(staged))
    command = [sys.executable, "-m", "codiemb", "train", str(recipe_file)]
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
        for line in process.stderr:
            if line.startswith("step 5/6"):
                process.send_signal(signal.SIGKILL)
                break
        assert process.wait() == -signal.SIGKILL
    output = Path(staged["output"])
    assert not (output / "model.safetensors").exists()
    finished = files_under(output / "1-align")

    resumed = subprocess.run([*command, "--resume"], env=environment, capture_output=True, text=True, check=True)
    assert f"{output / '1-align'} holds the finished run: nothing to do." in resumed.stderr.replace("\n", "")
    assert "checkpoint-4" in resumed.stderr
    assert resumed.stdout.splitlines()[-1] == str(output)
    assert "2-finetune" in resumed.stdout
    assert files_under(output / "1-align") == finished
    assert_same_weights(output, tmp_path / "uninterrupted")
    assert json.loads((output / "training_report.json").read_text())["scores"] == reference.scores


@pytest.fixture
def with_pretraining(staged, tmp_path) -> dict:
    """A new network learns to continue rows of words before it is aligned."""
    corpus = tmp_path / "corpus.txt"
    rows = [" ".join(WORDS[(start + i) % len(WORDS)] for i in range(12)) for start in range(len(WORDS))]
    corpus.write_text("\n".join(rows * 4))
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    pretrain = {
        "stage": "pretrain",
        "config": {"model_type": "llama", "num_key_value_heads": 2, "head_dim": 16, **sizes},
        "new_tokenizer": {"vocab_size": 400},
        "corpus": [{"path": str(corpus), "documents": "lines"}],
        "held_out": {"share": 0.1},
        "window": 32,
        "max_steps": 10,
    }
    content = {**staged, "stages": [pretrain, {**staged["stages"][0], "max_steps": 2}]}
    del content["model"]
    return content


def test_a_language_model_is_trained_first_and_scored_as_the_next_stage_reads_it(with_pretraining):
    report = run_stages(parsed(with_pretraining, seed=7))
    assert set(report.scores) == {"1-pretrain", "2-align"}
    assert set(report.scores["1-pretrain"]) >= SCORES
    columns, rows = scores_rows(report)
    assert columns == ["start", "1-pretrain", "2-align"]
    start, trained, later = dict(rows)["perplexity"]
    assert float(trained) < float(start)
    assert later == "–"
    assert dict(rows)["mean"][0] == "–"
    for stage in report.stages:
        assert yaml.safe_load((Path(stage["directory"]) / "training" / "recipe.yaml").read_text())["seed"] == 7
    assert SentenceTransformer(report.model, device="cpu").encode("ba be").shape == (32,)


@pytest.mark.parametrize(
    ("stage", "changes", "message"),
    [
        (1, {"optimizer": {"learning_rat": 1}}, r"recipe: stages.2 \(finetune\): optimizer.learning_rat: unknown key"),
        (0, {"stage": "algin"}, r"stages.1: stage: got 'algin'; did you mean align\? expected one of pretrain, align"),
        (0, {"model": "x"}, r"stages.1 \(align\): model: give it beside `stages`"),
        (1, {"stage": "pretrain"}, r"stages.2 \(pretrain\): is the last one, expected align or finetune"),
        (0, {"train": []}, r"stages.1 \(align\): train: got \[\]"),
    ],
)
def test_mistakes_name_the_stage_and_the_key(stage, changes, message, staged):
    staged["stages"][stage] |= changes
    with pytest.raises(RecipeError, match=message):
        parsed(staged)


def test_faults_of_all_stages_are_shown_at_once(staged, with_pretraining):
    stages = [{**stage, "log_every": 0} for stage in (with_pretraining["stages"][0], *staged["stages"])]
    with pytest.raises(RecipeError) as caught:
        parsed(with_pretraining, stages=stages)
    assert [line.split(":")[1].strip() for line in str(caught.value).splitlines()] == [
        "stages.1 (pretrain)",
        "stages.2 (align)",
        "stages.3 (finetune)",
    ]
    with pytest.raises(RecipeError, match=r"stages.3 \(pretrain\): comes after finetune"):
        parsed(staged, stages=[*staged["stages"], with_pretraining["stages"][0], staged["stages"][0]])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train": [{"path": "nothing.jsonl"}]}, "stage 2-finetune: nothing.jsonl: no such file"),
        ({"tasks": {"ir": {"batch_size": 65}}}, "stage 2-finetune: Data set 'ir' has 64 examples"),
        ({"evaluation": {"metric": "reranking"}}, "stage 2-finetune: evaluation.metric: got 'reranking'"),
    ],
)
def test_what_would_stop_a_later_stage_is_found_before_the_first_one_runs(changes, message, staged):
    staged["stages"][1] |= changes
    recipe = parsed(staged)
    with pytest.raises(StageError, match=message):
        run_stages(recipe)
    assert not recipe.output.exists()


def test_the_shipped_recipe_is_valid_and_survives_being_written_and_read():
    recipe = load_any_recipe(Path(__file__).parents[2] / "recipes" / "three-stages-zh.yaml")
    assert [stage.name for stage in recipe.resolved()] == ["1-pretrain", "2-align", "3-finetune"]
    again = parsed(recipe.model_dump(mode="json"))
    assert again.resolved() == recipe.resolved()


def test_an_override_names_its_stage_by_kind_or_number(staged, tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(staged))
    overrides = ["stages.align.optimizer.learning_rate=0.5", "stages.2.max_steps=9", "seed=5", "output=elsewhere"]
    align, finetune = (stage.recipe for stage in load_any_recipe(path, overrides).resolved())
    assert (align.optimizer.learning_rate, finetune.max_steps) == (0.5, 9)
    assert align.seed == finetune.seed == 5
    assert (align.output, finetune.model) == (Path("elsewhere/1-align"), "elsewhere/1-align")
    for override in ("stages.pretrain.seed=1", "stages.3.seed=1", "stages=1", "stages.align=1"):
        with pytest.raises(RecipeError, match="stages"):
            load_any_recipe(path, [override])
    staged["stages"][0]["stage"] = "finetune"
    path.write_text(yaml.safe_dump(staged))
    with pytest.raises(
        RecipeError, match=r"several stages are meant by 'finetune'; .* of 1 \(finetune\), 2 \(finetune\)"
    ):
        load_any_recipe(path, ["stages.finetune.seed=1"])


def test_two_stages_of_a_kind_and_none_with_held_out_data(staged):
    staged["stages"] = [{**staged["stages"][0], "max_steps": 1}] * 2
    staged["evaluation"] = None
    report = run_stages(parsed(staged))
    assert [stage["name"] for stage in report.stages] == ["1-align", "2-align"]
    assert scores_rows(report) == ([], [])
    again = run_stages(parsed(staged, seed=3), overwrite=True)
    assert [stage["steps"] for stage in again.stages] == [1, 1]
