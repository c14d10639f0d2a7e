"""Documents packed into full windows: every token is read once an epoch, and none sees another document.

A document of n tokens holds n - 1 predictions, of each token but the first from those before it. All predictions of
all documents, in order, make one line, and a window is `size` of them in a row: its inputs are the tokens predicted
from, its labels the tokens that come next. So windows are full whatever the documents' lengths, a document that goes on
in the next window loses no prediction at the cut, and only the last window of the corpus has room left.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from codiemb.training.pretraining.tokens import TokenFile

IGNORED = -100
"""A label that is not predicted."""

NO_WINDOW = -1
"""Index of a window that holds nothing: for ranks that have no more."""


@dataclass(frozen=True)
class Counts:
    """What a corpus holds.

    Attributes:
        documents, characters, bytes: of the texts that are not blank.
        tokens: of all documents, with one before and one after each.
        predictions: tokens that are predicted, all but the first of each document.
        windows: all of them full but the last.
        unused: places that are left in the last one.
    """

    documents: int
    characters: int
    bytes: int
    tokens: int
    predictions: int
    windows: int
    unused: int


class Windows(Dataset[dict[str, Tensor]]):
    """Packed documents.

    Args:
        files: tokenised.
        size: places of a window.
        padding: id in the places that are left.
        keep: which documents are packed, by their hashes; None: all.
    Attributes:
        counts: of what is packed.
    """

    def __init__(
        self,
        files: Sequence[TokenFile],
        size: int,
        *,
        padding: int,
        keep: Callable[[np.ndarray], np.ndarray] | None = None,
    ) -> None:
        self.size = size
        self._padding = padding
        self._files = [file.tokens for file in files]
        of_file: list[np.ndarray] = []
        starts: list[np.ndarray] = []
        lengths: list[np.ndarray] = []
        totals = np.zeros(3, dtype=np.int64)
        for number, file in enumerate(files):
            rows = file.documents
            first = np.cumsum(rows["tokens"]) - rows["tokens"]
            kept = np.ones(len(rows), bool) if keep is None else keep(rows["hash"])
            starts.append(first[kept])
            lengths.append(rows["tokens"][kept])
            of_file.append(np.full(kept.sum(), number, dtype=np.int32))
            totals += [rows["characters"][kept].sum(), rows["bytes"][kept].sum(), rows["tokens"][kept].sum()]
        # 20 bytes a document are all that is held in memory.
        self._of_file = np.concatenate(of_file)
        self._token_starts = np.concatenate(starts)
        self._ends = np.cumsum(np.concatenate(lengths) - 1)  # in predictions
        documents = len(self._ends)
        predictions = int(self._ends[-1]) if documents else 0
        windows = -(-predictions // size)
        characters, size_in_bytes, tokens = map(int, totals)
        self.counts = Counts(
            documents, characters, size_in_bytes, tokens, predictions, windows, windows * size - predictions
        )

    def __len__(self) -> int:
        return self.counts.windows

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """One window, each value (size,) int64.

        Returns:
            `input_ids`; `position_ids`, which begin at 0 where a document or the rest of one does; `labels`, the token
            that follows each input, `IGNORED` in places that are left.
        """
        inputs = np.full(self.size, self._padding, dtype=np.int64)
        labels = np.full(self.size, IGNORED, dtype=np.int64)
        positions = np.zeros(self.size, dtype=np.int64)  # of places that are left, each is a document of its own
        if index != NO_WINDOW:
            first = index * self.size
            last = min(first + self.size, self.counts.predictions)
            document = int(np.searchsorted(self._ends, first, side="right"))
            at = first
            while at < last:
                begin = int(self._ends[document - 1]) if document else 0
                end = min(int(self._ends[document]), last)
                tokens = self._files[self._of_file[document]]
                offset = int(self._token_starts[document]) + at - begin
                piece = tokens[offset : offset + end - at + 1].astype(np.int64)
                place = slice(at - first, end - first)
                inputs[place], labels[place] = piece[:-1], piece[1:]
                positions[place] = np.arange(end - at)
                at, document = end, document + 1
        return {
            "input_ids": torch.from_numpy(inputs),
            "position_ids": torch.from_numpy(positions),
            "labels": torch.from_numpy(labels),
        }

    def __getitems__(self, indices: list[int]) -> dict[str, Tensor]:
        """Several windows, each value (windows, size); DataLoader asks for a whole batch at once."""
        return stacked([self[index] for index in indices])


def stacked(windows: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Windows as one batch."""
    return {name: torch.stack([window[name] for window in windows]) for name in windows[0]}


def document_numbers(position_ids: Tensor) -> Tensor:
    """Which piece of the window each place belongs to, (windows, size): a new one begins at each position 0."""
    return (position_ids == 0).cumsum(-1)
