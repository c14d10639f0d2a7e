"""What search, evaluation, integrations and the server ask of a model, whether it runs here or behind an API."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np


@runtime_checkable
class Embedder(Protocol):
    """Anything that turns texts into vectors.

    A single text gives one vector (dim,), several give (texts, dim), none gives (0, dim). `instruction` is a text that
    says what the task is, or the name of a task in `codiemb.instructions`; the model's template says how each side
    reads it.
    """

    def encode_queries(self, queries: str | Sequence[str], *, instruction: str | None = None) -> np.ndarray:
        """Embed what is searched with, or the texts of a symmetric task."""
        ...

    def encode_passages(self, passages: str | Sequence[str], *, instruction: str | None = None) -> np.ndarray:
        """Embed what is searched in."""
        ...

    def compute_similarity(
        self, queries: str | Sequence[str], passages: str | Sequence[str], *, instruction: str | None = None
    ) -> np.ndarray:
        """Similarity of each query with each passage, (queries, passages)."""
        ...
