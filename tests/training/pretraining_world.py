"""A tiny corpus that can be learnt, and recipes for it."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

YOUTU = {
    "model_type": "youtu",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "q_lora_rank": 24,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "max_position_embeddings": 64,
    "initializer_range": 0.1,
    "embedding_initializer_range": 0.1,
    "attention_dropout": 0.1,
}
CHINESE = ["今天", "天气", "很好", "我们", "去", "公园", "散步", "火车", "九点", "开"]
WORDS = [*CHINESE, "the", "train", "leaves", "at", "nine"]


def sentences(seed: int, count: int) -> list[str]:
    """Each word mostly decides the next one: something to learn."""
    rng = random.Random(seed)
    texts = []
    for _ in range(count):
        at = rng.randrange(len(WORDS))
        words = []
        for _ in range(rng.randrange(4, 30)):
            words.append(WORDS[at])
            at = (at * 7 + 3 + (rng.random() < 0.1)) % len(WORDS)
        texts.append(" ".join(words))
    return texts


def write_corpus(path: Path, texts: list[str]) -> Path:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return path


def content(folder: Path, path: Path, **changes: Any) -> dict[str, Any]:
    """A recipe of a few steps."""
    return {
        "config": YOUTU,
        "new_tokenizer": {"algorithm": "bpe", "vocab_size": 310},
        "output": str(folder / "run"),
        "corpus": [{"path": str(path)}],
        "held_out": {"share": 0.2},
        "window": 32,
        "batch_size": 4,
        "precision": "fp32",
        "optimizer": {"learning_rate": 1e-2},
        "log_every": 1,
        **changes,
    }
