"""One model on one task: embed its texts with the training's own text path, and score."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from importlib.metadata import version
from typing import Any

import numpy as np

import codiemb
from codiemb.data.documents import DOCUMENT_TEXT
from codiemb.data.examples import Text
from codiemb.encoding import EmbeddingPass, TokenBatch
from codiemb.evaluation.items import Items
from codiemb.evaluation.metrics import RANKING_DEPTH, TIES, Ranking, correlations, rank_documents, ranking_metrics, unit
from codiemb.evaluation.tasks import EvalTask, EvalType, PairTask, RerankingTask, RetrievalTask
from codiemb.prompts import InstructionTemplate, PromptedText, Side

logger = logging.getLogger(__name__)

MAIN_METRICS: Mapping[EvalType, str] = {
    "ir": "ndcg_at_10",
    "sts": "cosine_spearman",
    "pair_classification": "cosine_spearman",
    "reranking": "map",
}

GROUPS: Mapping[EvalType, str] = {"ir": "ir", "sts": "sts", "pair_classification": "sts", "reranking": "reranking"}
"""Kinds of task that a summary averages together."""

OnProgress = Callable[[int, int], None]
_SHOWN_PROMPTS = 5
_WINDOW = 1024  # texts between two reports of progress


@dataclass(frozen=True, eq=False)
class Result:
    """Scores of one model on one task, in -1..1 (correlations) or 0..1.

    Attributes:
        n: queries, pairs or rows that were scored.
        settings: everything the scores depend on, and what was counted on the way.
        values: for each metric of a ranking its value for each query or row, (n,); for pairs `cosine` and `score`.
        ranks: for each query or row, the ids of the relevant documents that were ranked and their ranks, from 1; none
            for pairs. A candidate of a row has its place as id, six digits.
    """

    task: str
    type: EvalType
    main_score: float
    metrics: dict[str, float]
    n: int
    settings: dict[str, Any]
    values: dict[str, np.ndarray] = field(repr=False)
    ranks: Sequence[Mapping[str, int]] = field(default=(), repr=False)

    @property
    def items(self) -> Items:
        """What the main score was computed from."""
        if "cosine" in self.values:
            return Items("spearman", self.values["cosine"], self.values["score"])
        return Items("mean", self.values[MAIN_METRICS[self.type]])

    def to_dict(self) -> dict[str, Any]:
        """As written to `results.json`."""
        names = ("task", "type", "main_score", "metrics", "n", "settings")
        return {name: getattr(self, name) for name in names}


def evaluate(
    embedding_pass: EmbeddingPass,
    template: InstructionTemplate,
    task: EvalTask,
    *,
    sample: int | None = None,
    seed: int = 0,
    ignore_identical_ids: bool = False,
    model_name: str | None = None,
    on_progress: OnProgress | None = None,
) -> Result:
    """Score a model on one task.

    Queries take the template's query side and documents its document side; both texts of a pair take the query side,
    as in training.

    Args:
        sample: use at most this many queries, pairs or rows, chosen by `seed`; a corpus stays whole.
        ignore_identical_ids: a document with the id of the query is not ranked (ArguAna, Quora).
        model_name: for the settings; None: the name or path that the network was loaded from.
        on_progress: called with (distinct texts embedded, all of them).
    Raises:
        ValueError: embeddings that are not finite.
    """
    original_size = len(task)
    if sample is not None and sample < original_size:
        task = task.sampled(sample, seed)
    embedder = _Embedder(embedding_pass, template, on_progress)
    details: dict[str, Any]
    if isinstance(task, PairTask):
        metrics, values, ranks, details = _score_pairs(embedder, task)
    elif isinstance(task, RetrievalTask):
        metrics, values, ranks, details = _score_retrieval(embedder, task, ignore_identical_ids)
    else:
        metrics, values, ranks, details = _score_reranking(embedder, task)
    settings = {
        "model": model_name or embedding_pass.transformer.model.name_or_path,
        "data": task.source,
        "main_metric": MAIN_METRICS[task.type],
        "similarity": "cosine",
        "template": template.to_dict(),
        **embedder.settings(),
        **details,
        "counts": dict(task.counts),
        "sample": {"of": original_size, "seed": seed} if len(task) < original_size else None,
        "versions": _versions(),
    }
    main_score = metrics[MAIN_METRICS[task.type]]
    return Result(task.name, task.type, main_score, metrics, len(task), settings, values, ranks)


Ranks = list[dict[str, int]]
Scored = tuple[dict[str, float], dict[str, np.ndarray], Ranks, dict[str, Any]]


def _score_pairs(embedder: _Embedder, task: PairTask) -> Scored:
    vectors = embedder.embed([("query", text) for pair in task.pairs for text in pair], task.name)
    cosines = np.einsum("pd,pd->p", vectors[0::2], vectors[1::2], dtype=np.float64)
    return correlations(cosines, task.scores, task.name), {"cosine": cosines, "score": task.scores}, [], {}


def _score_retrieval(embedder: _Embedder, task: RetrievalTask, ignore_identical_ids: bool) -> Scored:
    query_ids, document_ids = list(task.queries), list(task.corpus)
    texts: list[tuple[Side, Text]] = [("query", text) for text in task.queries.values()]
    texts += [("document", text) for text in task.corpus.values()]
    vectors = embedder.embed(texts, task.name)
    rankings = rank_documents(
        vectors[: len(query_ids)],
        vectors[len(query_ids) :],
        query_ids,
        document_ids,
        ignore_identical_ids=ignore_identical_ids,
    )
    values = ranking_metrics(task.qrels, query_ids, rankings)
    details = {
        "documents": len(document_ids),
        "document_text": DOCUMENT_TEXT,
        "ranking_depth": RANKING_DEPTH,
        "ties": TIES,
        "ignore_identical_ids": ignore_identical_ids,
    }
    return _means(values), values, _relevant_ranks(task.qrels, query_ids, rankings), details


def _score_reranking(embedder: _Embedder, task: RerankingTask) -> Scored:
    texts: list[tuple[Side, Text]] = []
    for row in task.rows:
        texts += [("query", row.query), *(("document", text) for text in row.candidates)]
    vectors = embedder.embed(texts, task.name)
    qrels, rankings = {}, []
    start = 0
    for number, row in enumerate(task.rows):
        stop = start + 1 + len(row.candidates)
        # Positives stand first in a row and have the smaller ids, so a tie never favours them.
        ids = [f"{i:06d}" for i in range(len(row.candidates))]
        qrels[str(number)] = dict(zip(ids, row.relevance, strict=True))
        rankings += rank_documents(vectors[start : start + 1], vectors[start + 1 : stop], [str(number)], ids)
        start = stop
    values = ranking_metrics(qrels, list(qrels), rankings)
    values = {name: values[name] for name in ("map", "mrr_at_10", "ndcg_at_10")}
    ranks = _relevant_ranks(qrels, list(qrels), rankings)
    return _means(values), values, ranks, {"ties": "positives rank last among equal scores"}


def _relevant_ranks(
    qrels: Mapping[str, Mapping[str, int]], query_ids: Sequence[str], rankings: Sequence[Ranking]
) -> Ranks:
    return [
        {id_: rank for rank, id_ in enumerate(ranking, 1) if qrels[query_id].get(id_, 0) > 0}
        for query_id, ranking in zip(query_ids, rankings, strict=True)
    ]


def _means(values: Mapping[str, np.ndarray]) -> dict[str, float]:
    return {name: float(column.mean()) for name, column in values.items()}


class _Embedder:
    """Embeds the texts of one task, each distinct one once, and keeps count."""

    def __init__(
        self, embedding_pass: EmbeddingPass, template: InstructionTemplate, on_progress: OnProgress | None
    ) -> None:
        self._pass = embedding_pass
        self._template = template
        self._on_progress = on_progress
        self._prompts: dict[Side, dict[str, None]] = {"query": {}, "document": {}}
        self._texts = self._tokens = self._truncated = 0

    def embed(self, texts: Sequence[tuple[Side, Text]], name: str) -> np.ndarray:
        """Unit embeddings, (texts, dim) float32."""
        prompt = lru_cache(maxsize=4096)(self._template.prompt)
        places: dict[PromptedText, int] = {}
        rows = []
        for side, text in texts:
            prompted = PromptedText(prompt(side, text.instruction), text.full)
            self._prompts[side][prompted.prompt] = None
            rows.append(places.setdefault(prompted, len(places)))
        instructed = self._template.default or any(text.instruction for _, text in texts)
        if self._template.reads_instruction and not instructed:
            logger.warning(
                "%s: the model's template reads an instruction and the data has none, so texts get no prompt.", name
            )
        self._texts = len(places)
        vectors = self._encode(list(places))
        if not np.isfinite(vectors).all():
            bad = list(places)[int(np.argmin(np.isfinite(vectors).all(axis=1)))]
            raise ValueError(
                f"{name}: the model's embedding of {bad.text[:60]!r} is not finite. Try --compute fp32; if it stays, "
                "the model's weights are broken."
            )
        vectors = unit(vectors)
        return vectors if len(places) == len(rows) else vectors[rows]

    def _encode(self, texts: Sequence[PromptedText]) -> np.ndarray:
        """Embed in windows, counting tokens and reporting after each."""
        done = 0

        def count(batch: TokenBatch) -> None:
            self._tokens += batch.num_tokens
            self._truncated += batch.truncated

        def report(embedded: int) -> None:
            nonlocal done
            done += embedded
            if self._on_progress:
                self._on_progress(done, len(texts))

        return self._pass.encode(texts, window=_WINDOW, on_progress=report, on_tokens=count)

    def settings(self) -> dict[str, Any]:
        """How texts were read, and how many."""
        return {
            "prompts": {
                side: {"distinct": len(prompts), "first": list(prompts)[:_SHOWN_PROMPTS]}
                for side, prompts in self._prompts.items()
                if prompts
            },
            "max_length": self._pass.max_length,
            "precision": str(self._pass.precision).removeprefix("torch."),
            "device": str(self._pass.model.device),
            "distinct_texts": self._texts,
            "tokens": self._tokens,
            "truncated_texts": self._truncated,
        }


def _versions() -> dict[str, str]:
    libraries = ("sentence-transformers", "transformers", "torch", "pytrec-eval-terrier", "scipy")
    return {"codiemb": codiemb.__version__, **{name: version(name) for name in libraries}}
