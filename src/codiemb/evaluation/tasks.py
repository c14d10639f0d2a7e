"""What can be evaluated: retrieval, scored pairs and reranking, each as plain texts with what is known about them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple, get_args

import numpy as np

from codiemb.data.examples import DataError, Text

EvalType = Literal["ir", "sts", "pair_classification", "reranking"]
LabelledType = Literal["classification", "clustering"]
LABELLED_TYPES: tuple[LabelledType, ...] = get_args(LabelledType)


@dataclass(frozen=True, eq=False)
class RetrievalTask:
    """Queries to be answered from a corpus.

    Attributes:
        name: unique among the tasks of one call of `discover`.
        source: the file or folder it was read from.
        queries: by id; each has a document of relevance 1 or more.
        corpus: by id.
        qrels: query id to document id to relevance, a whole number.
        counts: what was left out or is unusual, for the report.
    """

    name: str
    source: str
    queries: Mapping[str, Text]
    corpus: Mapping[str, Text]
    qrels: Mapping[str, Mapping[str, int]]
    counts: Mapping[str, int] = field(default_factory=dict)
    type: EvalType = "ir"

    def __post_init__(self) -> None:
        if not self.queries:
            raise DataError(
                f"{self.source}: no query has a relevant document (relevance 1 or more); nothing to measure."
            )

    def __len__(self) -> int:
        return len(self.queries)

    def sampled(self, n: int, seed: int) -> RetrievalTask:
        """The same corpus with at most `n` of the queries."""
        ids = list(self.queries)
        return replace(self, queries={ids[i]: self.queries[ids[i]] for i in _sample(len(ids), n, seed)})


@dataclass(frozen=True, eq=False)
class PairTask:
    """Pairs of texts with gold scores, in any range: only their order and their linear relation count."""

    name: str
    source: str
    pairs: Sequence[tuple[Text, Text]]
    scores: np.ndarray
    counts: Mapping[str, int] = field(default_factory=dict)
    type: EvalType = "sts"

    def __post_init__(self) -> None:
        if len(np.unique(self.scores)) < 2:
            values = f"all scores are {self.scores[0]:g}" if len(self.scores) else "there are no pairs"
            raise DataError(
                f"{self.source}: no correlation can be measured on {len(self.scores)} pairs: {values}. "
                "Expected at least two pairs with different scores."
            )

    def __len__(self) -> int:
        return len(self.pairs)

    def sampled(self, n: int, seed: int) -> PairTask:
        """At most `n` of the pairs."""
        chosen = _sample(len(self.pairs), n, seed)
        return replace(self, pairs=[self.pairs[i] for i in chosen], scores=self.scores[chosen])


class RerankingRow(NamedTuple):
    """A query with its own short list; `relevance` (candidates,) is 0 or 1."""

    query: Text
    candidates: list[Text]
    relevance: list[int]


@dataclass(frozen=True, eq=False)
class RerankingTask:
    """Lists to be put in order; each has relevant and irrelevant candidates."""

    name: str
    source: str
    rows: Sequence[RerankingRow]
    counts: Mapping[str, int] = field(default_factory=dict)
    type: EvalType = "reranking"

    def __post_init__(self) -> None:
        if not self.rows:
            raise DataError(f"{self.source}: no row has both positives and negatives; nothing to put in order.")

    def __len__(self) -> int:
        return len(self.rows)

    def sampled(self, n: int, seed: int) -> RerankingTask:
        """At most `n` of the rows."""
        return replace(self, rows=[self.rows[i] for i in _sample(len(self.rows), n, seed)])


@dataclass(frozen=True, eq=False)
class LabelledTask:
    """Texts with one label each. mteb scores these; `codiemb.evaluation.evaluate` does not."""

    name: str
    source: str
    texts: Sequence[Text]
    labels: Sequence[str]
    type: LabelledType
    counts: Mapping[str, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.texts)

    def sampled(self, n: int, seed: int) -> LabelledTask:
        """At most `n` of the texts."""
        chosen = _sample(len(self.texts), n, seed)
        return replace(self, texts=[self.texts[i] for i in chosen], labels=[self.labels[i] for i in chosen])


EvalTask = RetrievalTask | PairTask | RerankingTask
AnyTask = EvalTask | LabelledTask


def _sample(size: int, n: int, seed: int) -> np.ndarray:
    """`min(n, size)` of the indices below `size`, ascending."""
    chosen = np.random.default_rng(seed).permutation(size)[:n]
    chosen.sort()
    return chosen
