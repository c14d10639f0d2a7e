import json

import pytest
from tiny_models import TEXTS


@pytest.fixture(scope="module")
def recipe(tiny_model_directory, tmp_path_factory):
    """A recipe of two tasks with four batches each."""
    folder = tmp_path_factory.mktemp("diagnose")
    pairs = [(TEXTS[i], TEXTS[j]) for i in range(10) for j in range(10) if i != j]
    rows = {
        "ir": [{"task_type": "ir", "query": a, "positives": [b]} for a, b in pairs[:32]],
        "sts": [
            {"task_type": "sts", "query": a, "positives": [b], "positive_scores": [float(i % 2)]}
            for i, (a, b) in enumerate(pairs[:32])
        ],
    }
    for name, content in rows.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in content))
    recipe = folder / "recipe.yaml"
    recipe.write_text(
        f"model: {tiny_model_directory}\noutput: {folder / 'run'}\n"
        f"train: [{{path: {folder / 'ir.jsonl'}}}, {{path: {folder / 'sts.jsonl'}}}]\n"
        "tasks: {ir: {batch_size: 8}, sts: {batch_size: 8}}\n"
    )
    return recipe


def test_the_tables_and_the_files(recipe, tmp_path, run_codiemb, monkeypatch):
    pytest.importorskip("matplotlib")
    monkeypatch.setenv("COLUMNS", "200")
    status, shown, log = run_codiemb("diagnose", recipe, "--batches", 4, "--mixed", "--output", tmp_path / "out")
    assert status == 0, log
    for text in ("ir · sts", "corrected", "encoder.layer.1", "token table", "network", "mixed batch", "• "):
        assert text in shown
    assert (tmp_path / "out" / "diagnosis-layers.png").read_bytes().startswith(b"\x89PNG")
    content = json.loads((tmp_path / "out" / "diagnosis.json").read_text())
    assert [(group["name"], group["batches"]) for group in content["groups"]][:2] == [("ir", 4), ("sts", 4)]
    assert not (recipe.parent / "run").exists()  # nothing is trained


def test_options_reach_the_diagnosis(recipe, tmp_path, run_codiemb, tiny_model_directory):
    options = ["--json", "--by", "dataset", "--batches", 4, "--max-length", 16, "--model", tiny_model_directory]
    status, shown, log = run_codiemb("diagnose", recipe, "model=/nowhere", "tasks.sts.batch_size=4", *options)
    assert status == 0, log
    settings = json.loads(shown)["settings"]
    assert settings["model"] == str(tiny_model_directory)
    assert settings["max_length"] == 16
    assert settings["batch_sizes"] == {"ir": 8, "sts": 4}
    assert len(json.loads(shown)["verdict"]) >= 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["tasks.sts.batch_size=32"], "sts: an epoch has 1 batch(es) of it, expected at least 4"),
        (["sampling.task_shares={ir: 1, sts: 0}"], "only ir is trained on, so there is nothing to compare"),
        (["--model", "/nowhere"], "no such directory"),
        (["--stage", "finetune"], "is the recipe of a single training. Leave --stage out."),
    ],
)
def test_what_cannot_be_compared(recipe, arguments, message, run_codiemb):
    status, _, log = run_codiemb("diagnose", recipe, *arguments)
    assert status == 2
    assert message in log


@pytest.fixture
def staged(recipe, tmp_path):
    """A recipe of three stages, of which none has run."""
    train = f"train: [{{path: {recipe.parent / 'ir.jsonl'}}}, {{path: {recipe.parent / 'sts.jsonl'}}}]"
    tasks = "tasks: {ir: {batch_size: 8}, sts: {batch_size: 8}}"
    path = tmp_path / "staged.yaml"
    path.write_text(
        f"output: {tmp_path / 'run'}\nstages:\n- {{stage: pretrain, config: {{model_type: llama}}, "
        f"new_tokenizer: {{vocab_size: 300}}, corpus: [{{path: {recipe}}}]}}\n"
        f"- {{stage: align, {train}, {tasks}}}\n- {{stage: finetune, {train}, {tasks}, seed: 7}}\n"
    )
    return path


@pytest.mark.parametrize(
    ("which", "message"),
    [
        ([], "stage 3-finetune starts from"),
        (["--stage", "align"], "stage 2-align starts from"),
        (["--stage", "pretrain"], "--stage pretrain: expected one of 2-align, 3-finetune, or its number."),
    ],
)
def test_a_stage_whose_start_is_not_there(staged, which, message, run_codiemb):
    status, _, log = run_codiemb("diagnose", staged, *which)
    assert status == 2
    assert message in log
    assert not (staged.parent / "run").exists()


@pytest.mark.parametrize(("which", "seed"), [(["--stage", "2"], 42), ([], 7)])
def test_one_stage_is_looked_at(staged, which, seed, run_codiemb, tiny_model_directory):
    status, shown, log = run_codiemb(
        "diagnose", staged, "--batches", 4, "--json", "--model", tiny_model_directory, *which
    )
    assert status == 0, log
    assert json.loads(shown)["settings"]["seed"] == seed
