"""The preparation of the recipe that starts from a language model, on small files of the same layout."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import transformers
from tiny_gguf import write_gguf
from tiny_models import byte_bpe_tokenizer

from codiemb.data.readers import read
from codiemb.evaluation import discover

SCRIPT = Path(__file__).parents[2] / "recipes" / "prepare_smollm2_en.py"
THINGS = [
    f"{a} {b}" for a in ("small", "large", "new", "old") for b in ("wing", "plate", "shock", "flow", "jet", "nose")
]


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("prepare_smollm2_en", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def write(path: Path, lines: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


@pytest.fixture
def data(tmp_path):
    head = "sentence1\tsentence2\tscore"
    train = [f"A {thing}.\tThe {thing}.\t{i % 6}" for i, thing in enumerate(THINGS)]
    write(tmp_path / "sts_en" / "stsb_train.tsv", [head, *train, "A bell \x12.\tNo bell.\t1"])
    write(tmp_path / "sts_en" / "stsb_dev.tsv", [head, "the small WING\tA bird.\t1", "One.\tTwo.\t3"])
    write(tmp_path / "sts_en" / "stsb_test.tsv", [head, "A fish.\tA large  plate!\t2"])
    titles = [f"on the {thing} ." for thing in THINGS]
    corpus = [{"_id": str(i), "title": title, "text": f"{title} it is about {title}"} for i, title in enumerate(titles)]
    corpus.append({"_id": "99", "title": "", "text": ""})
    folder = tmp_path / "ir" / "cranfield"
    write(folder / "corpus.jsonl", [json.dumps(item) for item in corpus])
    write(folder / "queries.jsonl", [json.dumps({"_id": "1", "text": "On the old nose"})])
    return tmp_path


def test_nothing_of_the_tests_is_trained_on(script, data, tmp_path, monkeypatch):
    monkeypatch.setattr(script, "HELD_OUT", 4)
    output = tmp_path / "output"
    script.prepare_data(data, output)
    ir, sts = sorted(read([output / "train"]), key=lambda table: table.task_type)
    pairs = {row["query"]["text"] for row in sts.rows}
    assert pairs == {f"A {thing}." for thing in THINGS} - {"A small wing.", "A large plate."}

    titles = {row["query"]["text"] for row in ir.rows}
    retrieval, similarity = sorted(discover([output / "dev"]), key=lambda task: task.type)
    held_out = {text.text for text in retrieval.queries.values()}
    assert titles | held_out == {f"on the {thing} ." for thing in THINGS} - {"on the old nose ."}
    assert titles
    assert held_out
    assert not titles & held_out
    assert all(row["positives"][0]["text"] == f"it is about {row['query']['text']}" for row in ir.rows)
    assert all(qrels == {query: 1} for query, qrels in retrieval.qrels.items())
    assert retrieval.qrels.keys() <= retrieval.corpus.keys()
    assert len(similarity) == 2


def test_the_decoder_is_unpacked_once_and_reads_both_ways(script, tmp_path, monkeypatch):
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 64}
    tokens = byte_bpe_tokenizer()
    config = transformers.Qwen3Config(**sizes, vocab_size=len(tokens), num_key_value_heads=2, head_dim=128)
    transformers.Qwen3Model(config).save_pretrained(tmp_path / "bare")
    tokens.save_pretrained(tmp_path / "bare")
    file = write_gguf(tmp_path / "bare", tmp_path / "tiny.gguf")
    script.prepare_model(file, tmp_path / "base")
    assert json.loads((tmp_path / "base" / "config.json").read_text())["is_causal"] is False
    monkeypatch.setattr(script.backbones, "load", None)
    script.prepare_model(file, tmp_path / "base")
