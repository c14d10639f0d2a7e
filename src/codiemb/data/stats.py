"""What is in a table: rows, candidates, lengths, scores, duplicates. One pass over the batches, little in memory."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from itertools import accumulate, pairwise

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from codiemb.data.examples import TaskType
from codiemb.data.readers import TaskTable

#: From texts to their lengths: a tokenizer's, or `characters`.
Measure = Callable[[Sequence[str]], Sequence[int]]

SAMPLE = 20_000  # texts measured for each side; tokenizing all of a large file would take minutes

_BATCH_ROWS = 2048
_BINS = 10


@dataclass(frozen=True)
class Spread:
    """Candidates per row."""

    min: int
    mean: float
    max: int


@dataclass(frozen=True)
class Lengths:
    """Lengths of instruction, prefix and text together, without a template.

    `truncated` of the `measured` texts are longer than the maximum length; `texts` is how many there are in all.
    """

    texts: int
    measured: int
    p50: int
    p90: int
    p99: int
    max: int
    truncated: int


@dataclass(frozen=True)
class Histogram:
    """How many scores lie in each bin between `edges`: ten of equal width, or one where all scores are equal."""

    edges: list[float]
    counts: list[int]


@dataclass(frozen=True)
class TableStats:
    """One table in numbers.

    `documents` are positives and negatives together. A duplicate is a query, or a query with a positive, that stood in
    an earlier row word for word, its instruction included.
    """

    name: str
    task_type: TaskType
    source: str
    rows: int
    rejected: int
    positives: Spread
    negatives: Spread
    queries: Lengths
    documents: Lengths
    scores: Histogram | None
    duplicate_queries: int
    duplicate_pairs: int


def characters(texts: Sequence[str]) -> list[int]:
    """The measure without a tokenizer."""
    return [len(text) for text in texts]


def describe(
    table: TaskTable, *, measure: Measure = characters, max_length: int = 512, sample: int = SAMPLE
) -> TableStats:
    """Count and measure a table.

    Args:
        measure: lengths in the unit wanted.
        max_length: in the same unit; longer texts count as truncated.
        sample: texts measured for each side, drawn evenly; the counts cover all rows.
    """
    positives, negatives = (_list_lengths(table, column) for column in ("positives", "negatives"))
    queries = _Sample(len(table.rows), sample)
    documents = _Sample(int(positives.sum() + negatives.sum()), sample)
    query_hashes, pair_hashes = array("Q"), array("Q")
    scores: list[np.ndarray] = []
    for batch in _batches(table):
        query_texts = _texts(batch["query"])
        positive_texts = _texts(batch["positives"].flatten())
        queries.add(query_texts)
        documents.add(positive_texts)
        documents.add(_texts(batch["negatives"].flatten()))
        offsets = accumulate(batch["positives"].value_lengths().to_pylist(), initial=0)
        for query, (start, end) in zip(query_texts, pairwise(offsets), strict=True):
            key = repr(query).encode()
            query_hashes.append(_hash(key))
            pair_hashes.extend(_hash(key + repr(text).encode()) for text in positive_texts[start:end])
        scores += [batch[column].flatten().to_numpy() for column in ("positive_scores", "negative_scores")]
    return TableStats(
        name=table.name,
        task_type=table.task_type,
        source=str(table.source),
        rows=len(table.rows),
        rejected=table.rejected,
        positives=_spread(positives),
        negatives=_spread(negatives),
        queries=_lengths(queries, measure, max_length),
        documents=_lengths(documents, measure, max_length),
        scores=_histogram(np.concatenate(scores)),
        duplicate_queries=_duplicates(query_hashes),
        duplicate_pairs=_duplicates(pair_hashes),
    )


class _Sample:
    """An even sample of a known number of texts that come in batches."""

    def __init__(self, total: int, size: int) -> None:
        self.total = total
        self.texts: list[str] = []
        self._chosen = np.sort(np.random.default_rng(0).choice(total, min(size, total), replace=False))
        self._seen = 0

    def add(self, texts: list[tuple[str, str, str]]) -> None:
        start, end = np.searchsorted(self._chosen, (self._seen, self._seen + len(texts)))
        self.texts += ["".join(texts[i - self._seen]) for i in self._chosen[start:end]]
        self._seen += len(texts)


def _batches(table: TaskTable) -> Iterator[pa.RecordBatch]:
    for rows in table.rows.with_format("arrow").iter(batch_size=_BATCH_ROWS):
        yield from rows.combine_chunks().to_batches()


def _list_lengths(table: TaskTable, column: str) -> np.ndarray:
    return np.concatenate([pc.list_value_length(batch[column]).to_numpy() for batch in _batches(table)])


def _texts(column: pa.StructArray) -> list[tuple[str, str, str]]:
    return list(zip(*(part.to_pylist() for part in column.flatten()), strict=True))


def _hash(key: bytes) -> int:
    return int.from_bytes(blake2b(key, digest_size=8).digest(), "little")


def _duplicates(hashes: array[int]) -> int:
    return len(hashes) - len(np.unique(np.frombuffer(hashes, np.uint64)))


def _spread(counts: np.ndarray) -> Spread:
    return Spread(int(counts.min()), float(counts.mean()), int(counts.max()))


def _lengths(sample: _Sample, measure: Measure, max_length: int) -> Lengths:
    lengths = np.asarray(measure(sample.texts))
    p50, p90, p99 = (int(value) for value in np.percentile(lengths, (50, 90, 99), method="higher"))
    return Lengths(sample.total, len(lengths), p50, p90, p99, int(lengths.max()), int((lengths > max_length).sum()))


def _histogram(scores: np.ndarray) -> Histogram | None:
    if not len(scores):
        return None
    low, high = float(scores.min()), float(scores.max())
    if low == high:
        return Histogram([low, high], [len(scores)])
    counts, edges = np.histogram(scores, bins=_BINS)
    return Histogram([float(edge) for edge in edges], [int(count) for count in counts])
