"""What a job of many requests brought, and the error that carries it where something is missing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np

Outcome = np.ndarray | str
"""Of one text: its vector (dim,) float32, or why it has none."""

_SHOWN = 5  # groups of failed texts in a message


@dataclass(frozen=True)
class PartialEmbeddings:
    """The vectors that came, and the texts that have none.

    Attributes:
        vectors: (texts, dim) float32, in the order of the texts; NaN where there is none. dim is 0 if no vector came.
        failures: index of each text without a vector -> why.
    """

    vectors: np.ndarray
    failures: Mapping[int, str]

    @classmethod
    def of(cls, outcomes: Sequence[Outcome], dimension: int) -> PartialEmbeddings:
        """Collect the outcomes of the texts; `dimension` counts where no vector came."""
        came = [(index, outcome) for index, outcome in enumerate(outcomes) if not isinstance(outcome, str)]
        vectors = np.full((len(outcomes), dimension), np.nan, dtype=np.float32)
        for index, vector in came:
            vectors[index] = vector
        return cls(vectors, {index: outcome for index, outcome in enumerate(outcomes) if isinstance(outcome, str)})

    @property
    def received(self) -> np.ndarray:
        """(texts,) bool: which texts have a vector."""
        received = np.ones(len(self.vectors), dtype=bool)
        received[list(self.failures)] = False
        return received

    def describe_failures(self) -> str:
        """One sentence: how many texts failed, which, and why."""
        # Neighbours that failed for the same reason, usually one request, are named as a range.
        grouped = groupby(enumerate(sorted(self.failures)), key=lambda at: (at[1] - at[0], self.failures[at[1]]))
        groups = [(reason, [index for _, index in members]) for (_, reason), members in grouped]
        parts = [
            f"{at[0]}-{at[-1]}: {reason}" if len(at) > 1 else f"{at[0]}: {reason}" for reason, at in groups[:_SHOWN]
        ]
        if len(groups) > _SHOWN:
            parts.append(f"and {sum(len(at) for _, at in groups[_SHOWN:])} more")
        return f"{len(self.failures)} of {len(self.vectors)} texts have no vector. {'; '.join(parts)}"


class EmbeddingRequestError(OSError):
    """Some texts got no vector; `partial` has the vectors of the others, which were paid for."""

    def __init__(self, partial: PartialEmbeddings) -> None:
        super().__init__(
            f"{partial.describe_failures()}. The vectors that came are in this error's partial.vectors; "
            "partial.failures lists the texts to send again."
        )
        self.partial = partial

    def __reduce__(self) -> tuple[type[EmbeddingRequestError], tuple[PartialEmbeddings]]:
        return type(self), (self.partial,)
