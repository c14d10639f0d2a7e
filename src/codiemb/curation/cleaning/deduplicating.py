"""Duplicate rows within and across files: equal texts, texts that are equal once normalised, and near ones.

The first pass keeps a hash of each row's text; for near duplicates the texts themselves wait in a temporary file on
disk. The last pass writes.
"""

from __future__ import annotations

import tempfile
from array import array
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import blake2b
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

import numpy as np

from codiemb.curation.cleaning.outputs import Outputs, RejectedFile
from codiemb.curation.cleaning.report import CleaningReport
from codiemb.curation.cleaning.rows import RowStream
from codiemb.curation.near_duplicates import NEAR, near_duplicates
from codiemb.curation.shingles import normalise
from codiemb.data.examples import PAIR_TASKS, Example, Text

On = Literal["query", "positive", "pair"]
Match = Literal["exact", "normalised", "near"]
Keep = Literal["first", "most-negatives", "merge"]
ON: tuple[On, ...] = get_args(On)
MATCHES: tuple[Match, ...] = get_args(Match)
KEEPS: tuple[Keep, ...] = get_args(Keep)

Numbers: TypeAlias = "np.ndarray[tuple[int], np.dtype[np.int64]]"


class Duplicate(NamedTuple):
    """A row that duplicates row `of`; `similarity` is Jaccard's, 1 unless the match is a near one."""

    of: int
    match: Match
    similarity: float


def deduplicate(
    stream: RowStream,
    output: Path,
    *,
    on: On = "pair",
    match: Match = "normalised",
    keep: Keep = "first",
    threshold: float | None = None,
    simplify: bool = False,
) -> CleaningReport:
    """Write the rows without duplicates; those left out go beside them, each with the row it duplicates.

    Rows of different tasks are never duplicates of each other, and instructions do not count.

    Args:
        stream: its files in the order of their priority.
        output: a file, or a directory with a file for each input.
        on: which texts have to match: the query, the positives (the scored candidates of a row of pairs), or both.
        match: "normalised" includes "exact", "near" both.
        keep: of duplicates, "first" keeps the first one, "most-negatives" the one with the most negatives (of equals
            the first), "merge" the first with the candidates of the others added that it does not have, compared
            normalised unless the match is exact.
        threshold: of near duplicates, a Jaccard similarity; None is `NEAR`.
        simplify: traditional and simplified Chinese characters count as equal, unless the match is exact.
    Raises:
        DataError: bad rows that are not skipped, or an output that is an input.
        ValueError: `keep="merge"` where the queries need not match, or a threshold without near matches.
    """
    check_options(on=on, match=match, keep=keep, threshold=threshold)
    outputs = Outputs(output, stream.files)
    threshold = NEAR if threshold is None else threshold
    duplicates, negatives = find_duplicates(stream, on=on, match=match, threshold=threshold, simplify=simplify)
    if keep == "most-negatives":
        duplicates = _rooted_at_most(duplicates, negatives)
    groups: dict[int, list[Example]] = {one.of: [] for one in duplicates.values()}
    places: dict[int, str] = dict.fromkeys(groups, "")
    for row in stream:
        if row.number in places:
            places[row.number] = stream.place(row)
        if keep == "merge" and row.number in duplicates:
            groups[duplicates[row.number].of].append(row.example)
    changed = 0

    def form(text: Text) -> str:
        return text.full if match == "exact" else normalise(text.full, simplify=simplify)

    with outputs, RejectedFile(outputs.rejected, stream) as rejected:
        rejected.add_bad_rows()
        for row in stream:
            if duplicate := duplicates.get(row.number):
                reason = f"{duplicate.match} duplicate" + (", merged" if keep == "merge" else "")
                rejected.add(row, reason, of=places[duplicate.of], similarity=round(duplicate.similarity, 4))
                continue
            if keep == "merge" and row.number in groups:
                merged = _merged(row.example, groups[row.number], form)
                if merged != row.example:
                    row = row.changed(merged)
                    changed += 1
            outputs.write(row)
    counts = dict(rejected.counts)
    read = stream.rows + len(stream.rejected)
    return CleaningReport(read, outputs.rows, counts, outputs.rejected if counts else None, changed)


def check_options(*, on: On, match: Match, keep: Keep, threshold: float | None) -> None:
    """Raise the ValueError of options of `deduplicate` that do not go together."""
    if threshold is not None and match != "near":
        raise ValueError(
            f"threshold={threshold} has no meaning with match={match!r}: choose match='near' or leave it out."
        )
    if keep == "merge" and on == "positive":
        raise ValueError("keep='merge' adds candidates to a row of the same query: choose on='query' or on='pair'.")


def find_duplicates(
    stream: RowStream, *, on: On, match: Match, threshold: float, simplify: bool
) -> tuple[dict[int, Duplicate], Numbers]:
    """Rows that duplicate an earlier, kept row, by number, and how many negatives each row has."""
    exact, normalised, negatives = array("Q"), array("Q"), array("q")
    with _spool() as spool:
        for row in stream:
            task = row.example.task_type
            texts = [text.full for text in _texts(row.example, on)]
            exact.append(_hash([task, *texts]))
            negatives.append(0 if task in PAIR_TASKS else len(row.example.negatives))
            if match != "exact":
                plain = [normalise(text, simplify=simplify) for text in texts]
                normalised.append(_hash([task, *plain]))
                if match == "near":
                    parts = [plain[0], " ".join(plain[1:])] if on == "pair" else [" ".join(plain)]
                    spool.write(parts, task)
        duplicates = {number: Duplicate(of, "exact", 1.0) for number, of in _repeats(exact)}
        if match != "exact":
            for number, of in _repeats(normalised):
                duplicates.setdefault(number, Duplicate(of, "normalised", 1.0))
        if match == "near":
            for name in sorted(set(spool.tasks)):
                kept = _Texts(spool, name, duplicates)
                for number, of, similarity in near_duplicates(kept, threshold=threshold, simplify=simplify):
                    duplicates[number] = Duplicate(of, "near", similarity)
    return {number: _settled(one, duplicates) for number, one in duplicates.items()}, np.array(negatives, np.int64)


class _Spool:
    """The normalised texts of rows in a temporary file, and the rows' tasks."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.tasks: list[str] = []
        self._file = path.open("wb")

    def write(self, parts: list[str], task: str) -> None:
        """Append the texts of a row; they have neither tabs nor line ends."""
        self._file.write("\t".join(parts).encode(errors="replace") + b"\n")
        self.tasks.append(task)

    def rows(self) -> Iterator[tuple[str, ...]]:
        """The texts of each row."""
        self._file.flush()
        with self.path.open(encoding="utf-8", newline="\n") as file:
            for line in file:
                yield tuple(line[:-1].split("\t"))


class _Texts:
    """The texts of all rows in order; of rows of other tasks and of those that are duplicates already, empty ones."""

    def __init__(self, spool: _Spool, task: str, duplicates: dict[int, Duplicate]) -> None:
        self._spool, self._task, self._left_out = spool, task, frozenset(duplicates)

    def __iter__(self) -> Iterator[tuple[str, ...]]:
        for number, parts in enumerate(self._spool.rows()):
            yield parts if self._spool.tasks[number] == self._task and number not in self._left_out else ()


@contextmanager
def _spool() -> Iterator[_Spool]:
    with tempfile.TemporaryDirectory(prefix="codiemb-") as directory:
        yield _Spool(Path(directory) / "texts")


def _texts(example: Example, on: On) -> list[Text]:
    candidates = example.positives + (example.negatives if example.task_type in PAIR_TASKS else [])
    return {"query": [example.query], "positive": candidates, "pair": [example.query, *candidates]}[on]


def _hash(parts: list[str]) -> int:
    key = "\0".join(parts).encode(errors="surrogatepass")
    return int.from_bytes(blake2b(key, digest_size=8).digest(), "little")


def _repeats(hashes: array[int]) -> Iterator[tuple[int, int]]:
    """Rows whose hash was there before, with the first row that has it."""
    _, first, inverse = np.unique(np.frombuffer(hashes, np.uint64), return_index=True, return_inverse=True)
    of = first[inverse]
    repeated = np.flatnonzero(of != np.arange(len(of)))
    return zip(repeated.tolist(), of[repeated].tolist(), strict=True)


def _settled(one: Duplicate, duplicates: dict[int, Duplicate]) -> Duplicate:
    """What an equal text duplicates may be a duplicate itself, by a wider match: then so is this one."""
    while target := duplicates.get(one.of):
        one = target
    return one


def _rooted_at_most(duplicates: dict[int, Duplicate], negatives: Numbers) -> dict[int, Duplicate]:
    """The same groups, but of each the row with the most negatives is the one that is kept."""
    groups: dict[int, list[int]] = {}
    for number, one in duplicates.items():
        groups.setdefault(one.of, [one.of]).append(number)
    rooted: dict[int, Duplicate] = {}
    for first, members in groups.items():
        kept = max(members, key=lambda number: (negatives[number], -number))
        for number in members:
            if number != kept:
                known = duplicates[kept if number == first else number]
                rooted[number] = known._replace(of=kept)
    return rooted


def _merged(example: Example, others: list[Example], form: Callable[[Text], str]) -> Example:
    """A row with the candidates of others that it does not have; no positive stays a negative.

    Args:
        form: equal for texts that count as one.
    """
    # Both sides of a row of pairs are candidates with scores; of other rows a positive of one rules out a negative.
    seen = {form(text) for text in example.positives + (example.negatives if example.task_type in PAIR_TASKS else [])}
    merged: dict[str, Any] = {}
    for side, side_scores in (("positives", "positive_scores"), ("negatives", "negative_scores")):
        candidates = list(_scored(example, side, side_scores))
        if side == "negatives" and example.task_type not in PAIR_TASKS:
            candidates = [(text, score) for text, score in candidates if form(text) not in seen]
            seen.update(form(text) for text, _ in candidates)
        for other in others:
            for text, score in _scored(other, side, side_scores):
                if form(text) not in seen:
                    seen.add(form(text))
                    candidates.append((text, score))
        merged[side] = [text for text, _ in candidates]
        scores = [score for _, score in candidates]
        merged[side_scores] = [] if None in scores else scores
    return example._replace(**merged)


def _scored(example: Example, side: str, scores: str) -> Iterator[tuple[Text, float | None]]:
    """Candidates of one side, each with its score."""
    texts: list[Text] = getattr(example, side)
    return zip(texts, getattr(example, scores) or [None] * len(texts), strict=True)
