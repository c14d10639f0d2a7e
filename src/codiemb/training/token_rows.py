"""Train only the rows of the token table that the data uses.

A multilingual table has 250,000 rows of which a training set touches a tenth. AdamW leaves a row without gradient and
without weight decay where it is, so training the used rows alone gives the weights that training the whole table
gives, without the gradient and optimizer state of the rest.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class UsedRowsEmbedding(nn.Module):
    """Stands in for an `nn.Embedding`, with `used` rows trainable and the others frozen.

    In training mode ids outside `used` are an error of the caller; in evaluation mode the whole table is read.

    Args:
        original: the table; its weight stays the owner of all rows and is brought up to date on leaving training mode.
        used: distinct token ids.
    """

    used: Tensor
    row_of: Tensor

    def __init__(self, original: nn.Embedding, used: Iterable[int]) -> None:
        super().__init__()
        if type(original) is not nn.Embedding:  # a subclass does more than look up, which this class does not know
            raise ValueError(
                f"The token table is a {type(original).__name__}, and single rows can be trained of a plain Embedding "
                "only. Train all rows (token_embeddings: all) or none (token_embeddings: frozen)."
            )
        ids = torch.tensor(sorted(set(used)), dtype=torch.int64)
        if len(ids) == 0 or int(ids[0]) < 0 or int(ids[-1]) >= original.num_embeddings:
            last = original.num_embeddings - 1
            raise ValueError(f"used: got {len(ids)} token ids, {ids[:3].tolist()}..., expected some of 0 to {last}.")
        self.original = original
        self.num_embeddings = original.num_embeddings
        original.weight.requires_grad_(False)
        device = original.weight.device
        self.rows = nn.Parameter(original.weight.detach()[ids.to(device)].clone())
        row_of = torch.full((original.num_embeddings,), -1, dtype=torch.int64)
        row_of[ids] = torch.arange(len(ids))
        # As in the table itself, the padding row gets no gradient.
        padding = -1 if original.padding_idx is None else int(row_of[original.padding_idx])
        self.padding_row = None if padding == -1 else padding
        self.register_buffer("used", ids.to(device), persistent=False)
        self.register_buffer("row_of", row_of.to(device), persistent=False)

    def forward(self, input_ids: Tensor) -> Tensor:
        """(batch, tokens) int64 -> (batch, tokens, hidden)."""
        if not self.training:
            return cast(Tensor, self.original(input_ids))
        return F.embedding(self.row_of[input_ids], self.rows, self.padding_row)

    def train(self, mode: bool = True) -> UsedRowsEmbedding:
        """Switch mode; leaving training copies the trained rows into the table."""
        if self.training and not mode:
            self.write_back()
        return super().train(mode)

    @torch.no_grad()
    def write_back(self) -> None:
        """Copy the trained rows into the table."""
        self.original.weight[self.used] = self.rows

    @torch.no_grad()
    def read_again(self) -> None:
        """Copy the table's rows back, after other weights were loaded into it."""
        self.rows.copy_(self.original.weight[self.used])


def install(network: nn.Module, used: Iterable[int]) -> UsedRowsEmbedding:
    """Put a `UsedRowsEmbedding` in the place of the network's input embeddings."""
    embedding = UsedRowsEmbedding(network.get_input_embeddings(), used)  # type: ignore[operator]
    network.set_input_embeddings(embedding)  # type: ignore[operator]
    return embedding


def remove(network: nn.Module, embedding: UsedRowsEmbedding) -> None:
    """Give the network its own table back, with the trained rows in it."""
    embedding.write_back()
    network.set_input_embeddings(embedding.original)  # type: ignore[operator]
