"""Rows of one task become a batch of distinct texts and the indices that say which text plays which part."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from codiemb.prompts import InstructionTemplate, PromptedText, Side

Row = Mapping[str, Any]
"""A normalised row: `query`, `positives`, `negatives`, `positive_scores`, and `index`, its place in all data."""


@dataclass(frozen=True)
class CandidateCount:
    """How many candidates of each row of a task are used; the objective reads the mask for rows with fewer.

    Attributes:
        queries: whether the rows' queries, embedded as documents, are candidates too.
    """

    positives: int = 1
    negatives: int = 0
    queries: bool = False


@dataclass(frozen=True)
class TaskBatch:
    """One batch of one task.

    Attributes:
        source: name of the data set.
        task: task type.
        texts: the distinct texts; the indices below point into it.
        query: (batch,) int64.
        query_documents: (batch,) int64: the queries on the document side where they are candidates, else `query`.
        positives: (batch, positives) int64; `positive_mask` (bool) is False on padding.
        negatives: (batch, negatives) int64; `negative_mask` likewise.
        scores: (batch, positives) float32 gold scores, 1 where the row gives none.
        text_ids: (texts,) int64 hash of each text without its prompt: equal ids are equal texts, on all ranks.
        known_positives: (batch, known) int64 hashes of all positives of a row, used or not; -1 is padding.
    """

    source: str
    task: str
    texts: list[PromptedText]
    query: Tensor
    query_documents: Tensor
    positives: Tensor
    positive_mask: Tensor
    negatives: Tensor
    negative_mask: Tensor
    scores: Tensor
    text_ids: Tensor
    known_positives: Tensor

    def to(self, device: torch.device) -> TaskBatch:
        """The same batch with its tensors on `device`."""
        moved = {
            field.name: getattr(self, field.name).to(device)
            for field in fields(self)
            if isinstance(getattr(self, field.name), Tensor)
        }
        return replace(self, **moved)


class TaskCollator:
    """Turns rows of one data set into a `TaskBatch`.

    Which positives and negatives of a row are used is a function of (seed, epoch, row), so a resumed epoch repeats.

    Args:
        template: how instructions become prompts.
        candidates: per task type, how many candidates to use.
        symmetric: task types whose texts all take the query side of the template.
        seed: of the sampling of candidates.
        score_range: per data set, the (lowest, highest) gold score, rescaled to [0, 1]; others stay as they are.
    """

    def __init__(
        self,
        template: InstructionTemplate,
        candidates: Mapping[str, CandidateCount],
        *,
        symmetric: frozenset[str],
        seed: int = 0,
        score_range: Mapping[str, tuple[float, float]] | None = None,
    ) -> None:
        self.candidates = candidates
        self.symmetric = symmetric
        self.seed = seed
        self.score_range = score_range or {}
        # The same few instructions recur in every row.
        self._prompt: Callable[[Side, str], str] = lru_cache(maxsize=4096)(template.prompt)

    def __call__(self, source: str, task: str, rows: Sequence[Row], *, epoch: int = 0) -> TaskBatch:
        """Collate `rows`, all of the data set `source` of type `task`."""
        places: dict[PromptedText, int] = {}

        def place(text: Mapping[str, str], side: Side) -> int:
            prompted = PromptedText(self._prompt(side, text["instruction"]), text["prefix"] + text["text"])
            return places.setdefault(prompted, len(places))

        document_side: Side = "query" if task in self.symmetric else "document"
        count = self.candidates[task]
        shape = (len(rows), max(count.positives, 1))
        query, query_documents = np.zeros((2, len(rows)), dtype=np.int64)
        positives, positive_mask = np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=bool)
        negatives = np.zeros((len(rows), count.negatives), dtype=np.int64)
        negative_mask = np.zeros(negatives.shape, dtype=bool)
        scores = np.ones(shape, dtype=np.float32)
        known: list[list[int]] = []
        for i, row in enumerate(rows):
            random = np.random.default_rng((self.seed, epoch, row["index"]))
            query[i] = place(row["query"], "query")
            query_documents[i] = place(row["query"], document_side) if count.queries else query[i]
            picked = _pick(random, len(row["positives"]), shape[1])
            for j, k in enumerate(picked):
                positives[i, j], positive_mask[i, j] = place(row["positives"][k], document_side), True
                if len(row["positive_scores"]):
                    scores[i, j] = row["positive_scores"][k]
            for j, k in enumerate(_pick(random, len(row["negatives"]), count.negatives)):
                negatives[i, j], negative_mask[i, j] = place(row["negatives"][k], document_side), True
            known.append([text_id(text["prefix"] + text["text"]) for text in row["positives"]])
        if source in self.score_range:
            low, high = map(np.float32, self.score_range[source])  # as the scores are, so that the highest gives 1
            scores = (scores - low) / max(high - low, np.finfo(np.float32).tiny)
        width = max(map(len, known), default=0)
        texts = list(places)
        return TaskBatch(
            source=source,
            task=task,
            texts=texts,
            query=torch.from_numpy(query),
            query_documents=torch.from_numpy(query_documents),
            positives=torch.from_numpy(positives),
            positive_mask=torch.from_numpy(positive_mask),
            negatives=torch.from_numpy(negatives),
            negative_mask=torch.from_numpy(negative_mask),
            scores=torch.from_numpy(scores),
            text_ids=torch.tensor([text_id(text.text) for text in texts], dtype=torch.int64),
            known_positives=torch.tensor([ids + [-1] * (width - len(ids)) for ids in known], dtype=torch.int64),
        )


def text_id(text: str) -> int:
    """A hash of the text in [0, 2^63), equal in every process."""
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8"), digest_size=8).digest(), "big") >> 1


def _pick(random: np.random.Generator, available: int, wanted: int) -> list[int]:
    """Up to `wanted` of `available` candidates, in random order."""
    return [int(index) for index in random.permutation(available)[:wanted]]
