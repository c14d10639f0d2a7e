"""A tiny world for training: a model of two layers, a vocabulary of invented words, and data that can be learnt."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from codiemb.training.recipe import Recipe, parse_recipe

WORDS = [a + b for a in "bdfgklmnprst" for b in ("a", "e", "i", "o", "u")]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]

MakeRecipe = Callable[..., Recipe]


@pytest.fixture(scope="session")
def model_directory(tmp_path_factory) -> Path:
    """Directory of a random BERT of 2 layers, hidden 32, dropout on, that leaves prompts out of its mean."""
    directory = tmp_path_factory.mktemp("model")
    vocabulary = {word: i for i, word in enumerate([*SPECIAL, "query", "passage", ":", *WORDS])}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
        initializer_range=0.2,
    )
    BertModel(config).save_pretrained(directory / "bert")
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=64, **names).save_pretrained(
        directory / "bert"
    )
    transformer = Transformer(str(directory / "bert"))
    pooling = Pooling(transformer.get_embedding_dimension(), "mean", include_prompt=False)
    SentenceTransformer(modules=[transformer, pooling, Normalize()], device="cpu").save(str(directory / "st"))
    return directory / "st"


def sentence(rng: random.Random, length: int = 6) -> str:
    return " ".join(rng.choices(WORDS, k=length))


def shuffled(rng: random.Random, text: str, kept: int) -> str:
    """A text that has `kept` words of `text`."""
    words = text.split()
    return " ".join(rng.sample(words[:kept] + rng.choices(WORDS, k=len(words) - kept), len(words)))


def write_lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="session")
def data(tmp_path_factory) -> Path:
    """ir.jsonl (rows with 1 to 3 positives and 0 to 3 negatives), sts.jsonl, and the like in test/."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "test").mkdir()
    rng = random.Random(0)
    for part, size in ((folder, 64), (folder / "test", 24)):
        ir, sts = [], []
        for i in range(size):
            query = sentence(rng)
            ir.append(
                {
                    "task_type": "ir",
                    "query": ["find it", "", query],
                    "positives": [shuffled(rng, query, 4) for _ in range(1 + i % 3)],
                    "negatives": [sentence(rng) for _ in range(i % 4)],
                }
            )
            kept = i % 6
            pair = {"query": query, "positives": [shuffled(rng, query, kept)], "positive_scores": [float(kept)]}
            sts.append({"task_type": "sts", **pair})
        write_lines(part / "ir.jsonl", ir)
        write_lines(part / "sts.jsonl", sts)
    return folder


def tiny_content(model_directory: Path, data: Path, output: Path) -> dict[str, Any]:
    """A recipe of 8 steps an epoch."""
    return {
        "model": str(model_directory),
        "output": str(output),
        "train": [{"path": str(data / "ir.jsonl")}, {"path": str(data / "sts.jsonl")}],
        "tasks": {"ir": {"batch_size": 16, "negatives": 2, "positives": 2}, "sts": {"batch_size": 16}},
        "prompts": {"template": "e5"},
        "optimizer": {"learning_rate": 1e-3},
        "precision": "fp32",
        "log_every": 1,
    }


@pytest.fixture
def content(model_directory: Path, data: Path, tmp_path: Path) -> dict[str, Any]:
    return tiny_content(model_directory, data, tmp_path / "run")


@pytest.fixture
def make_recipe(content: dict[str, Any]) -> MakeRecipe:
    return lambda **changes: parse_recipe({**content, **changes})


@pytest.fixture
def environment() -> dict[str, str]:
    """For processes of their own, so that they add numbers in the same order as this one."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}


def weights(directory: Path | str) -> dict[str, torch.Tensor]:
    return load_file(Path(directory) / "model.safetensors")


def assert_same_weights(one: Path | str, other: Path | str) -> None:
    first, second = weights(one), weights(other)
    assert first.keys() == second.keys()
    different = [name for name in first if not torch.equal(first[name], second[name])]
    assert not different


def files_under(directory: Path) -> dict[str, bytes]:
    return {str(p.relative_to(directory)): p.read_bytes() for p in directory.rglob("*") if p.is_file()}
