import json

import pytest
import torch
import typer
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast
from typer.testing import CliRunner

from codiemb.cli.evaluate import evaluate_command


def save_model(scratch, directory, seed):
    """A random BERT of one layer that knows 50 words, with E5's prompts."""
    vocabulary = {word: i for i, word in enumerate(["[PAD]", "[UNK]", *(f"w{i}" for i in range(50))])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    torch.manual_seed(seed)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    BertModel(BertConfig(vocab_size=52, max_position_embeddings=32, **sizes)).save_pretrained(scratch)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_max_length=32, pad_token="[PAD]", unk_token="[UNK]"
    ).save_pretrained(scratch)
    modules = [Transformer(str(scratch)), Pooling(16, "mean")]
    prompts = {"query": "query: ", "document": "passage: "}
    SentenceTransformer(modules=modules, prompts=prompts, device="cpu").save_pretrained(
        str(directory), create_model_card=False
    )
    return str(directory)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("network"), tmp_path_factory.mktemp("models") / "mine", 0)


@pytest.fixture(scope="module")
def other_model(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("network"), tmp_path_factory.mktemp("models") / "base", 1)


@pytest.fixture
def data(tmp_path, monkeypatch):
    """A folder of an IR file, and a TSV of pairs."""
    monkeypatch.setenv("CODIEMB_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "data"
    folder.mkdir()
    rows = [{"query": f"w{i} w{i + 1}", "positives": [f"w{i} w{i + 2}"], "negatives": [f"w{i + 3}"]} for i in range(9)]
    (folder / "search.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pairs = "".join(f"w{i} w{i + 1}\tw{i} w{i + i % 4}\t{i * 7 % 12}\n" for i in range(12))
    (tmp_path / "pairs.tsv").write_text("sentence1\tsentence2\tscore\n" + pairs)
    return folder, tmp_path / "pairs.tsv"


def evaluate(*arguments):
    app = typer.Typer()
    app.command()(evaluate_command)
    return CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)


def read(path):
    return json.loads(path.read_text(encoding="utf-8"))


def test_tables_on_stdout_and_results_in_the_file(model, data, tmp_path):
    # Paths after the first --data path, as a shell's wildcard gives them, are data too.
    out = tmp_path / "new" / "out"
    outcome = evaluate(model, "--data", *data, "--output", out, "--device", "cpu", "--compute", "fp32")
    assert outcome.exit_code == 0
    results = read(out / "results.json")
    assert [(entry["task"], entry["type"], entry["n"]) for entry in results] == [
        ("search", "ir", 9),
        ("pairs", "sts", 12),
    ]
    for entry in results:
        assert set(entry) == {"task", "type", "main_score", "metrics", "n", "settings", "interval"}
        assert entry["interval"]["low"] <= entry["main_score"] <= entry["interval"]["high"]
        assert f"{100 * entry['main_score']:.2f}" in outcome.stdout
        assert entry["settings"]["model"] == model
        assert entry["settings"]["precision"] == "float32"
        assert entry["settings"]["max_length"] == 32
    assert results[0]["settings"]["prompts"] == {
        "query": {"distinct": 1, "first": ["query: "]},
        "document": {"distinct": 1, "first": ["passage: "]},
    }
    assert "written to" in outcome.stderr
    assert "texts/s" not in outcome.stdout


def test_json_is_all_that_stdout_has(model, data, tmp_path):
    arguments = ["--data", data[0], "--data", data[1], "--output", tmp_path / "out", "--device", "cpu", "--json"]
    outcome = evaluate(model, *arguments)
    assert json.loads(outcome.stdout) == read(tmp_path / "out" / "results.json")


def test_options_reach_the_evaluation(model, data, tmp_path):
    options = ["--max-length", 4, "--template", "none", "--sample", 5, "--seed", 2, "--compute", "bf16"]
    evaluate(model, "--data", data[0], "--output", tmp_path, "--device", "cpu", "--ignore-identical-ids", *options)
    (entry,) = read(tmp_path / "results.json")
    settings = entry["settings"]
    assert entry["n"] == 5
    assert (settings["max_length"], settings["precision"]) == (4, "bfloat16")
    assert settings["template"] == {"query": "", "document": "", "default": ""}
    assert settings["sample"] == {"of": 9, "seed": 2}
    assert settings["ignore_identical_ids"]


def test_two_models_side_by_side(model, other_model, data, tmp_path):
    arguments = ["--data", data[1], "--output", tmp_path, "--device", "cpu", "--compute", "fp32"]
    outcome = evaluate(model, *arguments, "--compare", other_model)
    (mine,) = read(tmp_path / "results.json")
    comparison = read(tmp_path / "compare.json")
    (task,) = comparison["tasks"]
    (theirs,) = comparison["other_results"]
    assert (comparison["model"], comparison["other"]) == (model, other_model)
    assert theirs["settings"]["model"] == other_model
    assert mine["main_score"] != theirs["main_score"]
    assert task["main_score"]["difference"] == pytest.approx(mine["main_score"] - theirs["main_score"])
    assert f"{100 * task['main_score']['difference']:+.2f}" in outcome.stdout
    assert not set("▲▼\x1b") & set(outcome.stdout)
    assert task["significance"]["verdict"] in ("better", "worse", "within chance")
    assert theirs["interval"]["low"] <= theirs["main_score"] <= theirs["interval"]["high"]
    gains = task["changes"]["gains"]
    assert 0 < len(gains) <= 5
    assert "pairs: what gained most" in outcome.stdout
    assert gains[0]["texts"][1] in outcome.stdout
    outcome = evaluate(model, *arguments, "--compare", other_model, "--json")
    assert json.loads(outcome.stdout) == read(tmp_path / "compare.json")
    evaluate(model, *arguments, "--compare", other_model, "--changes", 1)
    assert read(tmp_path / "compare.json")["tasks"][0]["changes"]["gains"] == gains[:1]


def bad_line(folder):
    path = folder / "bad.tsv"
    path.write_text("sentence1\tsentence2\tscore\n" + "a\tb\t1\n" * 15 + "a\tb\n")
    return path


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (lambda model, data: ["nowhere/at/all", "--data", data[1]], "nowhere/at/all: there is no such directory"),
        (lambda model, data: [model, "--data", "nowhere.tsv"], "nowhere.tsv: no such file or directory"),
        (lambda model, data: [model, "--data", bad_line(data[0])], "bad.tsv:17: row: another number of fields"),
        (lambda model, data: [model, "--data", data[1], "--template", "e6"], "--template e6: no such template"),
        (lambda model, data: [model, "--data", data[1], "--max-length", 99], "max_length=99, but the network reads"),
        (lambda model, data: [model, "--data", data[1], "--device", "tpu9x"], "device 'tpu9x'"),
    ],
    ids=["model", "data", "line", "template", "length", "device"],
)
def test_errors_are_one_message_and_exit_2(model, data, tmp_path, run_codiemb, arguments, expected):
    output = tmp_path / "out"
    status, _, shown = run_codiemb("evaluate", *arguments(model, data), "--output", output)
    assert status == 2
    assert expected in shown
    assert "Traceback" not in shown
    assert not (output / "results.json").exists()


def test_an_output_that_is_a_file(model, data, tmp_path):
    (tmp_path / "out").write_text("mine")
    with pytest.raises(FileExistsError):
        evaluate(model, "--data", data[1], "--output", tmp_path / "out")
    assert (tmp_path / "out").read_text() == "mine"
