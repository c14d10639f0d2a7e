"""A corpus as token ids on disk: each file is tokenised once, and found again by its content and the tokenizer."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from codiemb.bundled import cache_root
from codiemb.data.examples import DataError
from codiemb.training.pretraining.documents import corpus_files, documents
from codiemb.training.pretraining.recipe import Corpus

_FORMAT = 1  # bump when the files change, so that those of before are not used
_BATCH = 256  # documents tokenised at a time
_HASH_BYTES = 8

DOCUMENT = np.dtype([("tokens", "<i8"), ("characters", "<i8"), ("bytes", "<i8"), ("hash", "<u8")])
"""What is kept of a document: its tokens with those around it, the size of its text, and the text's hash."""

Progress = Callable[[str], None]


@dataclass(frozen=True)
class TokenFile:
    """One tokenised file.

    Attributes:
        source: the file that was read.
        key: hash of its content, of how documents are cut out of it, and of the tokenizer.
        tokens: all documents' token ids, one document after the other.
        documents: (documents,) of `DOCUMENT`.
    """

    source: Path
    key: str
    tokens: np.ndarray
    documents: np.ndarray


def framing(tokenizer: PreTrainedTokenizerBase) -> tuple[int, int]:
    """The ids before and after each document: begin and end of a text as the tokenizer has them.

    A tokenizer without a token for the beginning has that for the end on both sides, as its own models do.

    Raises:
        ValueError: it has neither.
    """
    end = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else tokenizer.sep_token_id
    begin = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.cls_token_id
    if begin is None:
        begin = end
    if begin is None or end is None:
        raise ValueError(
            "The tokenizer has neither an end-of-text (eos) nor a separator token, so documents could not be told "
            "apart. Set its eos_token and save it again."
        )
    return begin, end


def text_hash(text: str) -> int:
    """64 bits that depend on the text alone."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=_HASH_BYTES).digest(), "little")


def tokenised(
    corpora: Sequence[Corpus],
    tokenizer: PreTrainedTokenizerBase,
    *,
    cache_dir: Path | None = None,
    progress: Progress | None = None,
) -> list[TokenFile]:
    """The files of `corpora` as memory-mapped token ids.

    Args:
        cache_dir: None: `tokens` in codiemb's cache directory (`$CODIEMB_CACHE`).
        progress: told of each file that has to be tokenised.
    Raises:
        DataError: a file that is not there, cannot be read or holds no document.
    """
    cache_dir = cache_dir or cache_root() / "tokens"
    cache_dir.mkdir(parents=True, exist_ok=True)
    identity = tokenizer_identity(tokenizer)
    files = []
    for path, corpus in corpus_files(corpora):
        key = content_key(path, corpus, identity)
        directory = cache_dir / f"{path.name.split('.')[0][:40]}-{key}"
        if not directory.is_dir():
            if progress:
                progress(f"tokenising {path}")
            _build(path, corpus, tokenizer, directory)
        dtype = _dtype(tokenizer)
        files.append(
            TokenFile(
                path,
                key,
                np.memmap(directory / "tokens.bin", dtype=dtype, mode="r"),
                np.memmap(directory / "documents.bin", dtype=DOCUMENT, mode="r"),
            )
        )
    return files


def tokenizer_identity(tokenizer: PreTrainedTokenizerBase) -> str:
    """A hash of what decides about ids."""
    fast = getattr(tokenizer, "backend_tokenizer", None)
    content = fast.to_str() if fast is not None else json.dumps(sorted(tokenizer.get_vocab().items()))
    described = [type(tokenizer).__name__ if fast is None else "", content, *framing(tokenizer)]
    return hashlib.blake2b(json.dumps(described).encode(), digest_size=16).hexdigest()


def content_key(path: Path, corpus: Corpus, use: str) -> str:
    """A hash of a file's content, of how documents are cut out of it, and of what they are used for."""
    kind = "".join(path.suffixes[-2:])  # says how it is read
    digest = hashlib.blake2b(json.dumps([_FORMAT, use, kind, corpus.text_field, corpus.documents]).encode())
    with path.open("rb") as stream:
        while block := stream.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()[:32]


def _dtype(tokenizer: PreTrainedTokenizerBase) -> np.dtype[Any]:
    return np.dtype("<u2" if len(tokenizer) <= 1 << 16 else "<u4")


def _build(path: Path, corpus: Corpus, tokenizer: PreTrainedTokenizerBase, directory: Path) -> None:
    """Write an entry in a private directory and rename it: a killed process leaves no half entry."""
    private = private_directory(directory)
    begin, end = framing(tokenizer)
    dtype, count = _dtype(tokenizer), 0
    try:
        with (private / "tokens.bin").open("wb") as tokens, (private / "documents.bin").open("wb") as table:
            for texts in _batches(documents(path, corpus)):
                rows = np.zeros(len(texts), DOCUMENT)
                encoded = tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)
                for row, text, ids in zip(rows, texts, encoded["input_ids"], strict=True):
                    np.array([begin, *ids, end], dtype).tofile(tokens)
                    row["tokens"], row["characters"] = len(ids) + 2, len(text)
                    row["bytes"], row["hash"] = len(text.encode()), text_hash(text)
                rows.tofile(table)
                count += len(texts)
        if not count:
            raise DataError(f"{path}: holds no document, only blank text.")
    except BaseException:
        shutil.rmtree(private, ignore_errors=True)
        raise
    publish(private, directory)


def private_directory(directory: Path) -> Path:
    """An empty directory beside `directory` that no other process uses."""
    private = directory.with_name(f".{directory.name}-{os.getpid()}-{secrets.token_hex(4)}")
    private.mkdir(parents=True)
    return private


def publish(private: Path, directory: Path) -> None:
    """Make `private` the entry `directory`, unless another process was first."""
    try:
        private.rename(directory)
    except OSError:
        shutil.rmtree(private, ignore_errors=True)
        if not directory.is_dir():  # not the other process's entry: a real failure
            raise


def _batches(texts: Iterator[str]) -> Iterator[list[str]]:
    while batch := list(islice(texts, _BATCH)):
        yield batch
