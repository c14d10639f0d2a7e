"""What a pre-training reads: which documents are held out, the tokenizer trained on the others, both packed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from codiemb.bundled import cache_root
from codiemb.data.examples import DataError
from codiemb.training.pretraining.documents import corpus_files, documents
from codiemb.training.pretraining.masking import MaskedWindows, mask_token_id
from codiemb.training.pretraining.recipe import HeldOut, PretrainRecipe
from codiemb.training.pretraining.tokenizer import train_tokenizer
from codiemb.training.pretraining.tokens import (
    Progress,
    content_key,
    private_directory,
    publish,
    text_hash,
    tokenised,
)
from codiemb.training.pretraining.windows import Windows

HashTest = Callable[[np.ndarray], np.ndarray]


def held_out_test(held_out: HeldOut) -> HashTest:
    """Whether documents with given hashes (uint64) are held out: those of its files and its share, wherever they lie.

    Raises:
        DataError: its files cannot be read.
    """
    files = corpus_files(held_out.data)
    hashes = {text_hash(text) for path, corpus in files for text in documents(path, corpus)}
    known = np.fromiter(hashes, np.uint64, len(hashes))
    below = np.uint64(held_out.share * 2.0**64)
    return lambda given: (given < below) | np.isin(given, known)


def new_tokenizer(recipe: PretrainRecipe, *, is_main: bool, wait: Callable[[], None], progress: Progress) -> Path:
    """Directory of the tokenizer trained on what is trained on, in codiemb's cache under the texts and settings.

    Args:
        is_main: of several processes, the one that trains it; `wait` returns once all have called it.
    Raises:
        DataError, RecipeError: texts that cannot be read, or do not fit the vocabulary.
    """
    settings, held_out = recipe.new_tokenizer, recipe.held_out
    assert settings is not None  # the caller looked
    use = json.dumps([settings.model_dump(), held_out.model_dump(mode="json")])
    keys = [content_key(path, corpus, use) for path, corpus in corpus_files([*recipe.corpus, *held_out.data])]
    directory = cache_root() / "tokenizers" / hashlib.blake2b("".join(keys).encode(), digest_size=16).hexdigest()
    if is_main and not directory.is_dir():
        progress(f"training a tokenizer: {settings.algorithm}, {settings.vocab_size:,} tokens")
        tokenizer = train_tokenizer(_training_texts(recipe), settings)
        save_whole(tokenizer, directory)
    wait()
    return directory


def save_whole(tokenizer: PreTrainedTokenizerBase, directory: Path) -> None:
    """Save a tokenizer so that the directory holds all of it or is not there."""
    private = private_directory(directory)
    tokenizer.save_pretrained(private)
    publish(private, directory)


def _training_texts(recipe: PretrainRecipe) -> Iterator[str]:
    is_held_out = held_out_test(recipe.held_out)
    for path, corpus in corpus_files(recipe.corpus):
        for text in documents(path, corpus):
            if not is_held_out(np.array([text_hash(text)], np.uint64))[0]:
                yield text


class PretrainData:
    """Packed documents.

    Args:
        progress: told of what takes time.
    Attributes:
        train: what is trained on.
        held_out: what is not; None where nothing is.
    Raises:
        DataError: files that cannot be read, or nothing left on one side.
    """

    def __init__(self, recipe: PretrainRecipe, tokenizer: PreTrainedTokenizerBase, progress: Progress) -> None:
        padding = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
        size, held_out = recipe.window, recipe.held_out
        is_held_out = held_out_test(held_out)
        self._files = tokenised(recipe.corpus, tokenizer, progress=progress)
        self.train = Windows(self._files, size, padding=padding, keep=lambda hashes: ~is_held_out(hashes))
        self.held_out: Windows | None = None
        if held_out.data:
            others = tokenised(held_out.data, tokenizer, progress=progress)
            self.held_out = Windows(others, size, padding=padding)
            self._files = [*self._files, *others]
        elif held_out.share:
            self.held_out = Windows(self._files, size, padding=padding, keep=is_held_out)
        for name, windows in self.parts().items():
            if not len(windows):
                total = sum(len(file.documents) for file in self._files)
                raise DataError(f"{name}: none of {total} documents. Choose another held_out.share, or other files.")

    def parts(self) -> dict[str, Windows]:
        """What there is, by name."""
        return {"train": self.train, **({} if self.held_out is None else {"held_out": self.held_out})}

    def counts(self) -> dict[str, dict[str, int]]:
        """For the report."""
        return {name: asdict(windows.counts) for name, windows in self.parts().items()}

    def state(self) -> dict[str, Any]:
        """What a resumed run must find again."""
        return {"files": {str(file.source): file.key for file in self._files}, "counts": self.counts()}

    def check(self, state: dict[str, Any]) -> None:
        """Raise a `DataError` if this is not the data of `state`."""
        now = self.state()
        if now == state:
            return
        changed = [name for name, key in state["files"].items() if now["files"].get(name) != key]
        raise DataError(
            f"{', '.join(changed) or 'the corpus'}: changed since the run began, so it cannot go on. Bring the old "
            "content back, or start anew with --overwrite."
        )


def as_objective(
    recipe: PretrainRecipe, tokenizer: PreTrainedTokenizerBase, windows: Windows
) -> Windows | MaskedWindows:
    """The windows as the recipe's objective reads them."""
    if recipe.objective == "clm":
        return windows
    mask_id = mask_token_id(recipe.masking, tokenizer)
    return MaskedWindows(windows, recipe.masking.rate, mask_id, len(tokenizer), recipe.seed)
