from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from sentence_transformers import SentenceTransformer

from codiemb.cli.train import train_command
from codiemb.training.output import OutputError
from codiemb.training.recipe import RecipeError, parse_recipe
from codiemb.training.run import run
from codiemb.training.sections import parse_section
from codiemb.training.staged_recipe import StagedRecipe, load_any_recipe
from codiemb.training.stages import StagedReport, StageError, run_stages, scores_rows

from .conftest import WORDS, assert_same_weights, files_under, tiny_content, weights
from .processes import killed_at_step, on_two_ranks

SCORES = {"ir", "sts", "mean"}


def stages_of(content: dict, data: Path) -> dict:
    """Alignment, then fine-tuning, on the tiny world."""
    align = {
        "stage": "align",
        "train": [{"path": str(data / "ir.jsonl")}],
        "tasks": {"ir": {"batch_size": 32}},
        "max_steps": 2,
    }
    finetune = {key: content[key] for key in ("train", "tasks", "optimizer")}
    return {
        "model": content["model"],
        "output": content["output"],
        "prompts": {"template": "e5"},
        "evaluation": {"data": [str(data / "test")]},
        "precision": "fp32",
        "log_every": 1,
        "stages": [align, {"stage": "finetune", **finetune, "max_steps": 4, "checkpoints": {"every": 2}}],
    }


@pytest.fixture
def staged(content, data) -> dict:
    return stages_of(content, data)


@pytest.fixture(scope="module")
def finished(model_directory, data, tmp_path_factory):
    """The recipe of a run of two stages that is done, and its report."""
    recipe = parsed(stages_of(tiny_content(model_directory, data, tmp_path_factory.mktemp("finished") / "run"), data))
    return recipe, run_stages(recipe)


def parsed(content: dict, **changes) -> StagedRecipe:
    return parse_section(StagedRecipe, {**content, **changes}, "recipe")


def test_each_stage_starts_from_the_model_of_the_one_before(finished, staged, tmp_path):
    recipe, report = finished
    output = recipe.output
    assert [stage["name"] for stage in report.stages] == ["1-align", "2-finetune"]
    assert [stage["steps"] for stage in report.stages] == [2, 4]

    # The same by hand.
    shared = {key: value for key, value in staged.items() if key not in ("stages", "model", "output")}
    first = run(
        parse_recipe({**shared, **staged["stages"][0], "model": staged["model"], "output": str(tmp_path / "1")})
    )
    second = run(parse_recipe({**shared, **staged["stages"][1], "model": first.model, "output": str(tmp_path / "2")}))
    assert_same_weights(second.model, output)
    assert_same_weights(output, output / "2-finetune")
    assert report.scores == {"start": first.before, "1-align": first.after, "2-finetune": second.after}


def test_the_output_is_the_last_model_with_the_scores_of_all_stages(finished, tmp_path, capsys):
    recipe, report = finished
    output = recipe.output
    assert SentenceTransformer(str(output), device="cpu").prompts["query"] == "query: "
    assert json.loads((output / "training_report.json").read_text())["scores"] == report.scores
    recipe_file = tmp_path / "recipe.yaml"
    recipe_file.write_text(yaml.safe_dump(recipe.model_dump(mode="json")))
    train_command(recipe_file, [], resume=True, overwrite=False)
    printed = capsys.readouterr().out
    assert printed.splitlines()[-1] == str(output)
    card = (output / "README.md").read_text()
    assert f"# {output.name}\n" in card
    columns, rows = scores_rows(report)
    assert columns == ["start", "1-align", "2-finetune"]
    assert all(column in printed for column in columns)
    assert {name for name, _ in rows} >= SCORES
    for name, cells in rows:
        assert f"| {name} | {' | '.join(cells)} |" in card
        assert cells == [f"{100 * report.scores[column][name]:.2f}" for column in columns]
        assert cells[-1] in printed


def test_a_finished_run_is_not_repeated_nor_replaced_unasked(finished, staged):
    recipe, report = finished
    before = files_under(recipe.output)
    assert run_stages(recipe, resume=True) == report
    with pytest.raises(OutputError, match="holds another run"):
        run_stages(recipe)
    staged["stages"][1]["optimizer"] = {"learning_rate": 0.5}
    with pytest.raises(OutputError, match=r"stages\.2\.optimizer\.learning_rate: 0\.001 then, 0\.5 now"):
        run_stages(parsed(staged, output=str(recipe.output)), resume=True)
    assert files_under(recipe.output) == before


def test_a_run_killed_in_its_second_stage_goes_on_there_and_ends_with_the_same_bits(finished, staged, tmp_path, capsys):
    killed_at_step(3, run_stages, parsed(staged))
    killed = Path(staged["output"])
    assert not (killed / "model.safetensors").exists()
    assert (killed / "2-finetune" / "training" / "checkpoint-2").is_dir()

    # Somebody else's disk is as good.
    output = tmp_path / "elsewhere" / "moved"
    output.parent.mkdir()
    killed.rename(output)
    before = files_under(output / "1-align")
    report = run_stages(parsed(staged, output=str(output)), resume=True)
    told = capsys.readouterr().err.replace("\n", "")
    assert f"{output / '1-align'} holds the finished run: nothing to do." in told
    assert f"going on from {output / '2-finetune' / 'training' / 'checkpoint-2'}" in told
    assert files_under(output / "1-align") == before
    assert not killed.exists()

    recipe, reference = finished
    assert_same_weights(output, recipe.output)
    assert report.scores == reference.scores
    assert report.model == str(output)

    again = tmp_path / "again"
    output.rename(again)
    assert run_stages(parsed(staged, output=str(again)), resume=True).model == str(again)


def test_two_processes_end_with_the_weights_of_one(staged, tmp_path):
    staged["stages"][1] |= {"max_steps": 2, "dropout": 0.0}
    staged["stages"][0]["dropout"] = 0.0
    single = run_stages(parsed(staged, output=str(tmp_path / "single")))
    for stage in staged["stages"]:
        stage["tasks"] = {
            name: {**options, "batch_size": options["batch_size"] // 2} for name, options in stage["tasks"].items()
        }
    printed = on_two_ranks(tmp_path, run_stages, parsed(staged), CODIEMB_CACHE=str(tmp_path / "cache"))
    assert [text.count("stage 2-finetune") for text in printed] == [1, 0]
    expected = weights(single.model)
    for name, tensor in weights(staged["output"]).items():
        if not name.endswith("key.bias"):  # softmax ignores it: its gradient is rounding noise, which Adam scales up
            assert (tensor - expected[name]).abs().max() < 1e-6, name
    report = json.loads((Path(staged["output"]) / "training_report.json").read_text())
    assert report["scores"]["2-finetune"] == pytest.approx(single.scores["2-finetune"], abs=1e-5)


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
    start, trained, later = dict(rows)["perplexity (clm)"]
    assert float(trained) < float(start)
    assert later == "–"
    assert dict(rows)["mean"][0] == "–"
    for stage in report.stages:
        assert (
            yaml.safe_load((Path(report.model) / stage["name"] / "training" / "recipe.yaml").read_text())["seed"] == 7
        )
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
        ({"consistency": {"model": "/none"}}, "stage 2-finetune: /none: there is no such directory"),
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


def test_each_objective_of_pretraining_has_perplexities_of_its_own():
    """Those of hidden tokens are no sequel to those of next ones."""
    trained = {"name": "1-pretrain", "objective": "clm", "before": {"perplexity": 90}, "after": {"perplexity": 20}}
    both_ways = {"name": "2-pretrain", "objective": "mntp", "before": {"perplexity": 80}, "after": {"perplexity": 30}}
    further = {"name": "3-pretrain", "objective": "mntp", "before": {"perplexity": 30}, "after": {"perplexity": 25}}
    columns, rows = scores_rows(StagedReport("run", [trained, both_ways, further], scores={}))
    assert columns == ["start", "1-pretrain", "2-pretrain", "3-pretrain"]
    assert rows == [
        ("perplexity (clm)", ["90.00", "20.00", "–", "–"]),
        ("perplexity (mntp)", ["–", "80.00", "30.00", "25.00"]),
    ]


def test_two_stages_of_a_kind_without_held_out_data_and_another_run_in_their_place(staged, tmp_path, capsys):
    staged["stages"] = [{**staged["stages"][0], "max_steps": 1}] * 2
    del staged["evaluation"]
    recipe_file = tmp_path / "recipe.yaml"
    recipe_file.write_text(yaml.safe_dump(staged))
    train_command(recipe_file, [], resume=False, overwrite=False)
    output = Path(staged["output"])
    assert capsys.readouterr().out.splitlines() == [str(output)]  # no table without scores
    assert (output / "2-align" / "model.safetensors").exists()
    again = run_stages(parsed(staged, stages=staged["stages"][:1]), overwrite=True)
    assert [(stage["name"], stage["steps"]) for stage in again.stages] == [("1-align", 1)]
    assert scores_rows(again) == ([], [])
    assert not (output / "2-align").exists()
