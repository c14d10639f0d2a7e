"""Who says how near a text is to a query: the first model's cosine, or a cross-encoder that reads both."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import torch

from codiemb.curation.mining.dense import DenseMiner
from codiemb.curation.mining.pool import TextPool
from codiemb.curation.mining.queries import Queries

_CHANCE_PAIRS = {"cosine": 4096, "cross-encoder": 256}


class Judge(Protocol):
    """Scores pairs of a query and a text of the pool."""

    @property
    def kind(self) -> str:
        """`cosine` or `cross-encoder`."""

    @property
    def identity(self) -> str:
        """Equal for two judges only if both give the same scores."""

    def scores(self, query_numbers: np.ndarray, numbers: np.ndarray) -> np.ndarray:
        """(pairs,) float64, higher where the text answers the query better."""


class CosineJudge:
    """A model that is a miner too."""

    kind = "cosine"

    def __init__(self, miner: DenseMiner) -> None:
        self._miner = miner
        self.identity = miner.identity

    def scores(self, query_numbers: np.ndarray, numbers: np.ndarray) -> np.ndarray:
        """As `Judge` has it."""
        return self._miner.scores(query_numbers, numbers)


class CrossEncoderJudge:
    """A sentence-transformers `CrossEncoder` with one score for a pair; by its default, between 0 and 1.

    Raises:
        ValueError: it has several scores for a pair.
    """

    kind = "cross-encoder"

    def __init__(self, model: Any, pool: TextPool, queries: Queries, *, batch_size: int = 32) -> None:
        if model.num_labels != 1:
            raise ValueError(
                f"The cross-encoder gives {model.num_labels} scores for a pair, expected one: the relevance of a text."
            )
        self._model = model
        self._pool = pool
        self._queries = queries
        self._batch_size = batch_size
        self.identity = _weights(model)

    def scores(self, query_numbers: np.ndarray, numbers: np.ndarray) -> np.ndarray:
        """As `Judge` has it; each distinct pair is read once."""
        pairs, inverse = np.unique(np.stack([query_numbers, numbers], axis=1), axis=0, return_inverse=True)
        texts = [(self._queries.texts[query], self._pool.text(number).full) for query, number in pairs.tolist()]
        found = self._model.predict(texts, batch_size=self._batch_size, show_progress_bar=False)
        return np.asarray(found, dtype=np.float64)[inverse.reshape(-1)]


def chance_level(judge: Judge, queries: int, candidates: int, seed: int) -> float:
    """The mean score of random pairs."""
    rng = np.random.default_rng(seed)
    count = _CHANCE_PAIRS[judge.kind]
    return float(judge.scores(rng.integers(queries, size=count), rng.integers(candidates, size=count)).mean())


def cross_encoder(name: str, device: str | None, max_length: int | None = None) -> Any:
    """Load one by its directory or hub id.

    Raises:
        ValueError: it cannot be loaded.
    """
    from sentence_transformers import CrossEncoder  # slow to import

    try:
        return CrossEncoder(name, device=device, max_length=max_length)
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise ValueError(f"--cross-encoder {name}: cannot be loaded as a cross-encoder ({reason}).") from None


def _weights(model: Any) -> str:
    digest = hashlib.blake2b(digest_size=8)
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    digest.update(str((model.max_length, model.activation_fn)).encode())
    return digest.hexdigest()


def flattened(
    groups: Sequence[tuple[int, Sequence[int]]],
) -> tuple[np.ndarray, np.ndarray, Callable[[np.ndarray], Any]]:
    """Pairs of (query, its texts) as two arrays, and what takes their scores apart again."""
    lengths = [len(numbers) for _, numbers in groups]
    asked = np.repeat(np.array([query for query, _ in groups], dtype=np.int64), lengths)
    numbers = np.array([number for _, numbers in groups for number in numbers], dtype=np.int64)
    return asked, numbers, lambda scores: np.split(scores, np.cumsum(lengths)[:-1])
