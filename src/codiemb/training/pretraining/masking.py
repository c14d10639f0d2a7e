"""Masked next-token prediction (BehnamGhader et al., 2024, arXiv:2404.05961): a decoder learns to read both ways.

Tokens are hidden and predicted from both sides, each at the place before it, which is where a language model's head has
learnt to say what comes next.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase

from codiemb.training.pretraining.recipe import Masking
from codiemb.training.pretraining.windows import IGNORED, Windows, stacked
from codiemb.training.sections import RecipeError

_HIDDEN, _RANDOM = 0.8, 0.1  # of the chosen tokens; the others stay, as an embedding model meets no mask tokens


def mask_token_id(masking: Masking, tokenizer: PreTrainedTokenizerBase) -> int:
    """The id that stands for what is hidden.

    Raises:
        RecipeError: the tokenizer has no such token.
    """
    if masking.token is None:
        if tokenizer.mask_token_id is None:
            raise RecipeError(
                "masking.token: got null, but the tokenizer has no mask token; name a token of its vocabulary that "
                "texts seldom hold, such as '_'"
            )
        return int(tokenizer.mask_token_id)
    ids = tokenizer(masking.token, add_special_tokens=False)["input_ids"]
    if len(ids) != 1:
        raise RecipeError(f"masking.token: got {masking.token!r}, which is {len(ids)} tokens here, expected one token")
    return int(ids[0])


def mask(window: dict[str, Tensor], rate: float, mask_id: int, vocabulary: int, seed: list[int]) -> dict[str, Tensor]:
    """Hide some tokens of a window and make them what is predicted.

    Args:
        window: of `Windows`.
        rate: probability that a token is chosen; the first of each document is not, as no place is before it.
        vocabulary: how many ids there are to draw random ones from.
        seed: what the choice depends on.
    Returns:
        the window with other `input_ids` and `labels`: place i - 1 has the label of the token that is chosen at i.
    """
    draws = np.random.default_rng(seed)
    chosen = torch.from_numpy(draws.random(len(window["input_ids"]))) < rate
    chosen &= window["position_ids"] > 0
    fate = torch.from_numpy(draws.random(len(chosen)))
    others = torch.from_numpy(draws.integers(0, vocabulary, len(chosen)))
    original = window["input_ids"]
    inputs = torch.where(chosen & (fate < _HIDDEN), mask_id, original)
    inputs = torch.where(chosen & (fate >= _HIDDEN) & (fate < _HIDDEN + _RANDOM), others, inputs)
    labels = torch.full_like(original, IGNORED)
    labels[:-1] = torch.where(chosen[1:], original[1:], IGNORED)
    return {**window, "input_ids": inputs, "labels": labels}


class MaskedWindows(Dataset[dict[str, Tensor]]):
    """Windows with hidden tokens, other ones in each epoch.

    Attributes:
        epoch: with the seed and a window's index, all that decides what is hidden.
    """

    def __init__(self, windows: Windows, rate: float, mask_id: int, vocabulary: int, seed: int) -> None:
        self.windows = windows
        self.epoch = 0
        self._settings = (rate, mask_id, vocabulary)
        self._seed = seed

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return mask(self.windows[index], *self._settings, [self._seed, self.epoch, index + 1])

    def __getitems__(self, indices: list[int]) -> dict[str, Tensor]:
        """Several windows as a batch."""
        return stacked([self[index] for index in indices])
