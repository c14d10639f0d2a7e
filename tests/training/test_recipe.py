from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from codiemb.training.recipe import RecipeError, load_recipe, parse_recipe

OTHER_KINDS = ("curate-", "pretrain-", "three-stages-")  # which have tests of their own
RECIPES = [
    path
    for path in sorted((Path(__file__).parents[2] / "recipes").rglob("*.yaml"))
    if not path.name.startswith(OTHER_KINDS)
]
MINIMAL = {"model": "bundled", "output": "runs/one", "train": [{"path": "data.jsonl"}]}


def fault(**changes) -> str:
    with pytest.raises(RecipeError) as error:
        parse_recipe({**MINIMAL, **changes})
    return str(error.value)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_shipped_recipes_are_valid(path):
    recipe = load_recipe(path)
    assert parse_recipe(recipe.model_dump(mode="json")) == recipe


def test_a_recipe_survives_being_written_and_read():
    recipe = parse_recipe(
        {
            **MINIMAL,
            "prompts": {"template": {"query": "Q {instruction}: ", "document": ""}},
            "tasks": {"sts": {"loss": {"preset": "codiemb-release", "pro": 0}}},
        }
    )
    assert parse_recipe(yaml.safe_load(yaml.safe_dump(recipe.model_dump(mode="json")))) == recipe


@pytest.mark.parametrize(
    ("changes", "key", "given", "nearest", "allowed"),
    [
        ({"modle": "x"}, "modle", "'x'", "model", "output, train"),
        ({"optimizer": {"lerning_rate": 7}}, "optimizer.lerning_rate", "7", "learning_rate", "schedule, warmup"),
        (
            {"train": [{"path": "a"}, {"path": "b", "wieght": 2}]},
            "train.1.wieght",
            "2",
            "weight",
            "path, weight",
        ),
        ({"tasks": {"irr": {"batch_size": 3}}}, "tasks.irr", "{'batch_size': 3}", "ir", "reranking, sts"),
        ({"tasks": {"ir": {"batchsize": 3}}}, "tasks.ir.batchsize", "3", "batch_size", "temperature, positives"),
        ({"tasks": {"sts": {"loss": {"perason": 3}}}}, "tasks.sts.loss", "{'perason': 3}", "pearson", "rank_kl, pro"),
        ({"prompts": {"template": {"qurey": "x"}}}, "prompts.template", "{'qurey': 'x'}", "query", "document"),
        ({"prompts": {"template": "qwen"}}, "prompts.template", "'qwen'", "qwen3", "none, youtu, e5"),
        ({"sampling": {"task_shares": {"stss": 1}}}, "sampling.task_shares.stss", "stss", "sts", "ir, reranking"),
    ],
)
def test_unknown_names(changes, key, given, nearest, allowed):
    message = fault(**changes)
    assert message.startswith(f"recipe: {key}: ")
    assert given in message
    assert f"did you mean {nearest}?" in message
    assert allowed in message


def test_an_unknown_key_like_no_other_shows_the_allowed_ones():
    message = fault(evaluation={"zzz": 1})
    assert "did you mean" not in message
    assert "allowed: data, every, metric, keep_best" in message


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train": "data.jsonl"}, "train: got 'data.jsonl', expected a valid list"),
        ({"train": ["data.jsonl"]}, "train.0: got 'data.jsonl', expected the keys path, weight"),
        ({"train": []}, "train: got [], List should have at least 1 item"),
        ({"optimizer": None}, "optimizer: got None, expected the keys learning_rate, schedule"),
        ({"optimizer": {"learning_rate": "fast"}}, "optimizer.learning_rate: got 'fast', expected a valid number"),
        ({"optimizer": {"learning_rate": float("inf")}}, "optimizer.learning_rate: got inf, expected a finite number"),
        ({"optimizer": {"learning_rate": float("nan")}}, "optimizer.learning_rate: got nan, expected"),
        ({"precision": "fp16"}, "precision: got 'fp16', expected 'auto', 'bf16' or 'fp32'"),
        ({"prompts": {"template": 3}}, "prompts.template: got 3, expected one of none, youtu"),
        ({"tasks": {"sts": {"loss": "best"}}}, "tasks.sts.loss: got 'best', there is no STS preset 'best'"),
        ({"tasks": {"sts": {"loss": {"pro": "x"}}}}, "tasks.sts.loss.pro: got 'x', expected a valid number"),
        ({"tasks": {"sts": {"loss": {"pro": -1}}}}, "pro=-1.0, expected a finite weight of at least 0"),
        ({"sampling": {"task_shares": {"ir": 0}}}, "sampling.task_shares: all shares are 0"),
        ({"sampling": {"task_shares": {"ir": -1}}}, "sampling.task_shares.ir: got -1"),
        ({"sampling": {"temperature": 0.5}}, "sampling.temperature: got 0.5, expected greater than or equal to 1"),
        ({"train": [{"path": "a", "weight": 1}, {"path": "b"}]}, "b has no weight and others have one"),
        (
            {"train": [{"path": "a", "weight": 1}], "sampling": {"temperature": 2}},
            "sampling.temperature and the weights under train set the same thing",
        ),
        ({"evaluation": {"every": 5}}, "evaluation.every is set and evaluation.data is empty"),
        (
            {"evaluation": {"every": 5, "data": ["d"]}, "checkpoints": {"every": 7}},
            "checkpoints.every is 7, expected a multiple of evaluation.every (5)",
        ),
    ],
)
def test_values_that_cannot_be(changes, message):
    assert message in fault(**changes)


def test_all_faults_are_reported_at_once():
    lines = fault(model=3, seed=-1, tasks={"ir": {"negatives": -1, "x": 1}}, epoch=2).splitlines()
    assert {line.split(": ")[1] for line in lines} == {"model", "seed", "tasks.ir.negatives", "tasks.ir.x", "epoch"}
    lines = fault(sampling={"task_shares": {"irr": 1}}, evaluation={"every": 1}).splitlines()
    assert len(lines) == 2
    with pytest.raises(RecipeError) as error:
        parse_recipe({})
    assert [line.split(": ")[1] for line in str(error.value).splitlines()] == ["model", "output", "train"]


# -- files and overrides ---------------------------------------------------------------------------------------------


@pytest.fixture
def recipe_file(tmp_path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump({**MINIMAL, "optimizer": {"warmup": 0.2}}))
    return path


def test_overrides(recipe_file):
    recipe = load_recipe(
        recipe_file,
        [
            "optimizer.learning_rate=3e-5",
            "tasks.sts.loss.pro=1e-1",
            "evaluation.data=[a, b]",
            "sampling.task_shares.ir=0.3",
            "prompts.template=e5",
            "output=runs/a=b",
            "max_length=null",
            "evaluation.keep_best=false",
        ],
    )
    assert recipe.optimizer.learning_rate == 3e-5
    assert recipe.optimizer.warmup == 0.2  # its neighbour stays
    assert recipe.tasks.sts.loss.pro == 0.1
    assert recipe.evaluation.data == [Path("a"), Path("b")]
    assert recipe.sampling.task_shares == {"ir": 0.3}
    assert recipe.prompts.template == "e5"
    assert recipe.output == Path("runs/a=b")
    assert recipe.max_length is None
    assert recipe.evaluation.keep_best is False


def test_an_override_can_set_a_key_to_nothing(recipe_file):
    recipe_file.write_text(yaml.safe_dump({**MINIMAL, "max_length": 128}))
    assert load_recipe(recipe_file).max_length == 128
    assert load_recipe(recipe_file, ["max_length=null"]).max_length is None


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("epochs", "expected key.sub=value"),
        ("=3", "expected key.sub=value"),
        ("model.name=3", "model is no section of keys but 'bundled'"),
        ("train.0.path=x", "train is no section of keys"),
        ("epochs=[1", "the value is not YAML"),
        ("optimizer.learning_rat=1", "did you mean learning_rate?"),
    ],
)
def test_bad_overrides(recipe_file, override, message):
    with pytest.raises(RecipeError) as error:
        load_recipe(recipe_file, [override])
    assert message in str(error.value)


def test_numbers_with_an_exponent_need_no_point(recipe_file):
    recipe_file.write_text(recipe_file.read_text() + "tasks: {sts: {loss: {pro: 5e-1}}}\n")
    assert load_recipe(recipe_file).tasks.sts.loss.pro == 0.5


def test_relative_paths_are_of_the_working_directory(recipe_file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert load_recipe(recipe_file).train[0].path.resolve() == tmp_path / "data.jsonl"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model: a\ntrain: [\n", "line 3"),
        ("model: a\noutput: b\nmodel: c\n", "the key 'model' is given twice\n.*line 3"),
        ("- model\n", "got list, expected keys such as model"),
        ("", "got NoneType, expected keys"),
    ],
)
def test_files_that_are_no_recipe(recipe_file, text, message):
    recipe_file.write_text(text)
    with pytest.raises(RecipeError, match=f"(?s)^{recipe_file}: .*{message}"):
        load_recipe(recipe_file)


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(RecipeError, match="there is no such recipe"):
        load_recipe(tmp_path / "none.yaml")
    with pytest.raises(RecipeError, match="cannot be read"):
        load_recipe(tmp_path)
    (tmp_path / "latin.yaml").write_bytes(b"model: \xe9\n")
    with pytest.raises(RecipeError, match="cannot be read"):
        load_recipe(tmp_path / "latin.yaml")


def test_the_page_of_keys_is_up_to_date():
    from codiemb.training.reference import recipe_reference

    page = Path(__file__).parents[2] / "docs" / "recipe.md"
    assert page.read_text(encoding="utf-8") == recipe_reference(), "write recipe_reference() to docs/recipe.md"


def test_align_has_defaults_of_its_own_which_the_recipe_overrides(make_recipe):
    aligned = make_recipe(stage="align", tasks={"ir": {"negatives": 1}}, optimizer={"warmup": 0.2})
    ordinary = make_recipe(tasks={}, optimizer={})
    assert (ordinary.tasks.ir.batch_size, ordinary.tasks.ir.negatives, ordinary.token_embeddings) == (32, 4, "used")
    assert (aligned.tasks.ir.batch_size, aligned.tasks.ir.negatives) == (4096, 1)
    assert aligned.tasks.ir.temperature > ordinary.tasks.ir.temperature
    assert (aligned.optimizer.learning_rate, aligned.optimizer.warmup) == (2e-4, 0.2)
    assert aligned.token_embeddings == "all"
    assert aligned.tasks.sts == ordinary.tasks.sts
    # What is written down is what was trained with, however the defaults change.
    assert parse_recipe(aligned.model_dump(mode="json")) == aligned
