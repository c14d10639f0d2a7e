"""Windows of rows through search, judge and selection."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from codiemb.curation.mining.dense import DenseMiner, OnProgress
from codiemb.curation.mining.judges import CosineJudge, CrossEncoderJudge, Judge, chance_level, flattened
from codiemb.curation.mining.keys import key
from codiemb.curation.mining.merging import Candidate, Place, merged
from codiemb.curation.mining.options import MiningOptions, Words
from codiemb.curation.mining.parts import Parts
from codiemb.curation.mining.pool import TextPool
from codiemb.curation.mining.queries import MINED_TASKS, Queries
from codiemb.curation.mining.rows import Row, read_rows
from codiemb.curation.mining.selection import KNOWN, QUERY, WINDOW, Rejected, Selection, Selector
from codiemb.curation.mining.words import WordMiner
from codiemb.embedder import LLMEmbeddingModel
from codiemb.search.finders import Kind

WINDOW_ROWS = 512  # that are searched for together: what a stop can cost


class Miner(NamedTuple):
    """Who looks for candidates: a model, or BM25 where there is none."""

    name: str
    model: LLMEmbeddingModel | None


class WindowMiner:
    """Everything that is made once, and the windows of rows that go through it."""

    def __init__(
        self,
        model: LLMEmbeddingModel,
        model_name: str,
        miners: Sequence[Miner],
        cross_encoder: Any,
        pool: TextPool,
        queries: Queries,
        options: MiningOptions,
        words: Words,
        kind: Kind | Literal["auto"],
        root: Path,
        on_progress: OnProgress | None,
    ) -> None:
        self._pool = pool
        self._queries = queries
        self._options = options
        self._on_progress = on_progress
        self._kind = kind

        def dense(name: str, encoder: LLMEmbeddingModel) -> DenseMiner:
            return DenseMiner(name, encoder, pool, queries, root, kind=kind, on_progress=on_progress)

        self._miners: dict[str, DenseMiner | WordMiner] = {
            miner.name: dense(miner.name, miner.model)
            if miner.model is not None
            else WordMiner(miner.name, pool, queries, words, on_progress)
            for miner in miners
        }
        self._judge: Judge
        if cross_encoder is not None:
            self._judge = CrossEncoderJudge(cross_encoder, pool, queries)
        else:
            own = next((miner.name for miner in miners if miner.model is model), None)
            found = self._miners[own] if own is not None else dense(model_name, model)
            assert isinstance(found, DenseMiner)
            self._judge = CosineJudge(found)
        measured = options.share is not None and options.chance == "measured"
        self.chance = chance_level(self._judge, len(queries), pool.counts.candidates, options.seed) if measured else 0.0
        self._selector = Selector(options, pool, self.chance, by_score=self._judge.kind == "cross-encoder")

    def settings(self) -> dict[str, Any]:
        """All that the output depends on."""
        return {
            "data": self._queries.data_digest,
            "pool": self._pool.directory.name,
            "asked": self._queries.digest(),
            "miners": [[name, miner.identity] for name, miner in self._miners.items()],  # their order breaks ties
            "judge": {"kind": self._judge.kind, "identity": self._judge.identity},
            "index": self._kind,
            "options": self._options.model_dump(),
        }

    def fill(self, parts: Parts, files: Sequence[Path]) -> int:
        """Mine window by window, and say for how many rows a stopped run had done so."""
        rows = read_rows(files, self._options.answer_field)
        resumed = 0
        for _ in range(parts.count):
            resumed += len(list(islice(rows, WINDOW_ROWS)))
        self._advance(resumed)
        number = resumed
        while window := list(islice(rows, WINDOW_ROWS)):
            lines, records = self._mined(window, number)
            parts.add(lines, records)
            number += len(window)
            self._advance(len(window))
        return resumed

    def _advance(self, rows: int) -> None:
        if self._on_progress and rows:
            self._on_progress("mining: rows", rows, self._queries.rows)

    def _mined(self, window: Sequence[Row], first: int) -> tuple[list[bytes], list[dict[str, Any]]]:
        asked = {
            place: self._queries.number(row.example.query)
            for place, row in enumerate(window)
            if row.example.task_type in MINED_TASKS
        }
        found = self._found(sorted(set(asked.values())))
        positives = {place: self._positives(window[place]) for place in asked}
        judged = self._judged(asked, found, positives)
        lines, records = [], []
        for place, row in enumerate(window):
            if place in asked:
                ranked = found[asked[place]]
                kept = row.example.negatives if self._options.existing == "keep" else []
                selection = self._selector.select(
                    ranked.candidates,
                    float(judged[place].min()),
                    self._pool.index.find(self._queries.known(asked[place])).tolist(),
                    [text.full for text in kept],
                    row.answers(self._options.answer_field),
                    np.random.default_rng([self._options.seed, first + place]),
                )
                row = self._completed(row, selection)
                records.append(
                    self._record(first + place, asked[place], positives[place], judged[place], ranked, selection)
                )
            lines.append(row.encoded())
        return lines, records

    def _found(self, numbers: Sequence[int]) -> dict[int, _Ranked]:
        """What the miners find for these queries, merged, without what is known to answer."""
        known = {number: self._queries.known(number) for number in numbers}
        # Known positives and the query itself take no rank, so that many more are looked for.
        k = self._options.depth + 1 + max((len(keys) for keys in known.values()), default=0)
        results = {name: miner.find(np.array(numbers), k) for name, miner in self._miners.items()} if numbers else {}
        ranked = {}
        for place, number in enumerate(numbers):
            rejected: dict[str, Rejected] = {}
            rankings = {
                name: self._in_window(scores[place], ids[place], number, known[number], rejected)
                for name, (scores, ids) in results.items()
            }
            ranked[number] = _Ranked(rejected, merged(rankings, self._options.merging))
        return ranked

    def _in_window(
        self, scores: np.ndarray, numbers: np.ndarray, query: int, known: np.ndarray, rejected: dict[str, Rejected]
    ) -> list[tuple[int, Place]]:
        keys = self._pool.keys[numbers]
        rank = 0
        found = []
        for number, score, own, is_known in zip(numbers, scores, keys, np.isin(keys, known), strict=True):
            if number < 0:
                break
            place = Place(rank + 1, float(score))
            reason = KNOWN if is_known else QUERY if own == self._queries.keys[query] else None
            if reason is None:
                rank += 1
                if rank > self._options.depth:
                    break
                if rank > self._options.skip:
                    found.append((int(number), place))
                    continue
                reason = WINDOW
            rejected.setdefault(reason, Rejected(0, Candidate(int(number)))).count += 1
        return found

    def _positives(self, row: Row) -> list[int]:
        keys = np.array([key(text.full) for text in row.example.positives], dtype=np.uint64)
        return sorted(set(self._pool.index.find(keys).tolist()))

    def _judged(
        self, asked: dict[int, int], found: dict[int, _Ranked], positives: dict[int, list[int]]
    ) -> dict[int, np.ndarray]:
        """Score all candidates; the scores of the rows' positives are returned."""
        if not asked:
            return {}
        groups = [(query, [candidate.number for candidate in ranked.candidates]) for query, ranked in found.items()]
        groups += [(query, positives[place]) for place, query in asked.items()]
        queries, numbers, taken_apart = flattened(groups)
        scores = taken_apart(self._judge.scores(queries, numbers))
        for ranked, own in zip(found.values(), scores, strict=False):
            for candidate, score in zip(ranked.candidates, own, strict=True):
                candidate.score = float(score)
        return dict(zip(asked, scores[len(found) :], strict=True))

    def _completed(self, row: Row, selection: Selection) -> Row:
        """The row with its new texts; lists of scores stay as long as their candidates."""
        example = row.example
        kept = self._options.existing == "keep"
        old = (example.negatives, example.negative_scores) if kept else ([], [])
        new = [self._pool.text(candidate.number) for candidate in selection.negatives]
        gained = [self._pool.text(candidate.number) for candidate in selection.relabelled]
        example = example._replace(
            positives=[*example.positives, *gained],
            negatives=[*old[0], *new],
            # A text that was found is as relevant as the least relevant of its side.
            positive_scores=_longer(example.positive_scores, len(gained)),
            negative_scores=_longer(old[1], len(new)),
        )
        return row._replace(example=example)

    def _record(
        self,
        number: int,
        query: int,
        positives: Sequence[int],
        positive_scores: np.ndarray,
        ranked: _Ranked,
        selection: Selection,
    ) -> dict[str, Any]:
        """What is known of a row, for the provenance and the report."""
        rejected = {**ranked.rejected, **selection.rejected}
        return {
            "row": number,
            "query": query,
            "positives": [
                {"document": document, "score": score}
                for document, score in zip(positives, positive_scores.tolist(), strict=True)
            ],
            "negatives": list(map(self._described, selection.negatives)),
            "relabelled": list(map(self._described, selection.relabelled)),
            "looked_at": selection.looked_at,
            "rejected": {
                reason: {"count": found.count, "first": self._described(found.first)}
                for reason, found in rejected.items()
            },
        }

    def _described(self, candidate: Candidate) -> dict[str, Any]:
        return {
            "document": candidate.number,
            "id": self._pool.document(candidate.number).id,
            "score": None if np.isnan(candidate.score) else candidate.score,
            "found_by": {name: place._asdict() for name, place in candidate.places.items()},
        }


class _Ranked(NamedTuple):
    """Of a query: what was left out before ranking, and the candidates in their merged order."""

    rejected: dict[str, Rejected]
    candidates: list[Candidate]


def _longer(scores: Sequence[float], count: int) -> list[float]:
    return [*scores, *([min(scores)] * count if scores else ())]
