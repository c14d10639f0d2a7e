"""From an evaluation task to the texts and pairs whose geometry is measured, and to their embeddings."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from codiemb.data.examples import Text
from codiemb.encoding import EmbeddingPass
from codiemb.evaluation.geometry import GeometryError
from codiemb.evaluation.tasks import EvalTask, PairTask, RetrievalTask
from codiemb.prompts import InstructionTemplate, PromptedText, Side

POSITIVE_FROM = 0.8  # of the score range: 4 on the scale 0 to 5
MAX_TEXTS, MAX_PAIRS = 5000, 10_000
_TOKEN_TEXTS = 1000

SidedText = tuple[Side, Text]


@dataclass(frozen=True, eq=False)
class TextCloud:
    """Distinct texts of one data set, and which of them belong together.

    Attributes:
        positives: (pairs, 2) int64, rows of `texts`.
        random_pairs: (pairs, 2) int64: the first text of one pair and the second of another, never a labelled pair.
        counts: what the data set has before sampling, and pairs of a text with itself that were left out.
    """

    name: str
    texts: list[SidedText]
    positives: np.ndarray
    random_pairs: np.ndarray
    counts: Mapping[str, int]


def sample_cloud(
    task: EvalTask,
    *,
    max_texts: int = MAX_TEXTS,
    max_pairs: int = MAX_PAIRS,
    positive_from: float = POSITIVE_FROM,
    seed: int = 0,
) -> TextCloud:
    """Draw texts and pairs from a task.

    A pair is positive if its score is at least `positive_from` of the way from the data set's lowest to its highest;
    a document or candidate is one of its query if its relevance is 1 or more.

    Args:
        max_texts: texts of positive pairs are taken first, then others.
        max_pairs: positive pairs, and random pairs, at most.
        seed: chooses both.
    Raises:
        GeometryError: no positive pairs, or no two texts that are not labelled as a pair.
    """
    if max_texts < 2 or max_pairs < 1:
        raise ValueError(f"max_texts={max_texts}, max_pairs={max_pairs}, expected at least 2 and 1.")
    rows: dict[SidedText, int] = {}
    labelled: set[tuple[int, int]] = set()
    positives: dict[tuple[int, int], None] = {}
    identical = 0
    for first, second, positive in _labelled_pairs(task, positive_from):
        pair = rows.setdefault(first, len(rows)), rows.setdefault(second, len(rows))
        if pair[0] == pair[1]:
            identical += positive
            continue
        labelled.add(pair)
        if positive:
            positives[pair] = None
    if isinstance(task, RetrievalTask):
        for text in task.corpus.values():
            rows.setdefault(("document", text), len(rows))
    if not positives:
        raise GeometryError(
            f"{task.name}: no pair of different texts counts as positive. Lower the score from which pairs do "
            f"({positive_from:g} of the range), or give other data."
        )
    rng = np.random.default_rng(seed)
    chosen, kept = _choose(list(positives), len(rows), max_texts, max_pairs, rng)
    texts = list(rows)
    place = {row: position for position, row in enumerate(chosen)}
    pairs = np.array([(place[first], place[second]) for first, second in kept], dtype=np.int64)
    seconds = [place[row] for row in chosen if isinstance(task, PairTask) or texts[row][0] == "document"]
    known = {(place[a], place[b]) for a, b in labelled if a in place and b in place}
    counts = {"texts": len(rows), "positive_pairs": len(positives), "identical_pairs": identical}
    random_pairs = _random_pairs(np.unique(pairs[:, 0]), np.array(seconds), known, max_pairs, rng)
    if not len(random_pairs):
        raise GeometryError(f"{task.name}: no two texts that are not labelled as a pair. Give more data.")
    return TextCloud(task.name, [texts[row] for row in chosen], pairs, random_pairs, counts)


def _labelled_pairs(task: EvalTask, positive_from: float) -> Iterator[tuple[SidedText, SidedText, bool]]:
    if isinstance(task, PairTask):
        low, high = float(task.scores.min()), float(task.scores.max())
        threshold = low + positive_from * (high - low)
        for (first, second), score in zip(task.pairs, task.scores, strict=True):
            yield ("query", first), ("query", second), bool(score >= threshold)
    elif isinstance(task, RetrievalTask):
        for id_, query in task.queries.items():
            for document, relevance in task.qrels[id_].items():
                yield ("query", query), ("document", task.corpus[document]), relevance >= 1
    else:
        for row in task.rows:
            for text, relevance in zip(row.candidates, row.relevance, strict=True):
                yield ("query", row.query), ("document", text), relevance >= 1


def _choose(
    positives: list[tuple[int, int]], texts: int, max_texts: int, max_pairs: int, rng: np.random.Generator
) -> tuple[list[int], list[tuple[int, int]]]:
    """Rows of the texts that are taken, ascending, and the positive pairs among them."""
    chosen: set[int] = set()
    kept: list[tuple[int, int]] = []
    for index in rng.permutation(len(positives)):
        pair = positives[index]
        if len(kept) == max_pairs:
            break
        if len(chosen) + sum(row not in chosen for row in pair) <= max_texts:
            chosen.update(pair)
            kept.append(pair)
    others = np.setdiff1d(np.arange(texts), np.fromiter(chosen, dtype=np.int64))
    chosen.update(rng.permutation(others)[: max_texts - len(chosen)].tolist())
    return sorted(chosen), sorted(kept)


def _random_pairs(
    firsts: np.ndarray, seconds: np.ndarray, known: set[tuple[int, int]], wanted: int, rng: np.random.Generator
) -> np.ndarray:
    """At most `wanted` different pairs that are not in `known` in either order, (pairs, 2)."""
    if len(firsts) * len(seconds) <= 4 * wanted:  # few enough to go through all
        grid = np.stack(np.meshgrid(firsts, seconds, indexing="ij"), axis=-1).reshape(-1, 2)
        candidates = rng.permutation(grid)
    else:
        drawn = np.stack([rng.choice(firsts, 2 * wanted), rng.choice(seconds, 2 * wanted)], axis=1)
        candidates = rng.permutation(np.unique(drawn, axis=0))
    taken: dict[tuple[int, int], None] = {}
    for first, second in candidates.tolist():
        pair = first, second
        if first != second and not known & {pair, pair[::-1]} and pair[::-1] not in taken:
            taken[pair] = None
            if len(taken) == wanted:
                break
    return np.array(list(taken), dtype=np.int64).reshape(-1, 2)


@dataclass(frozen=True, eq=False)
class EmbeddedCloud:
    """Embeddings (texts, dim) as the model gives them, and their `token_similarity`."""

    embeddings: np.ndarray
    token_similarity: float | None


def embed_cloud(
    embedding_pass: EmbeddingPass,
    template: InstructionTemplate,
    cloud: TextCloud,
    *,
    seed: int = 0,
    on_progress: Callable[[int], None] | None = None,
) -> EmbeddedCloud:
    """Embed the texts, each on its side of the template.

    Args:
        seed: chooses the 1000 texts whose tokens are compared.
        on_progress: called with the number of texts just embedded.
    """
    prompted = [PromptedText(template.prompt(side, text.instruction), text.full) for side, text in cloud.texts]
    chosen = np.random.default_rng(seed).permutation(len(prompted))[:_TOKEN_TEXTS]
    embeddings = embedding_pass.encode(prompted, on_progress=on_progress)
    return EmbeddedCloud(embeddings, token_similarity(embedding_pass, [prompted[row] for row in chosen]))


def token_similarity(embedding_pass: EmbeddingPass, texts: Sequence[PromptedText]) -> float | None:
    """Mean cosine between two different tokens of a text in the last layer, averaged over texts.

    All tokens that the network reads count, those of the prompt too. Near 1 the tokens of a text say the same, as in
    an encoder that smooths too much.

    Returns: None if no text has two tokens.
    """
    means: list[Tensor] = []

    def see(_: nn.Module, inputs: tuple[Mapping[str, Any]], output: Mapping[str, Tensor]) -> None:
        mask = inputs[0]["attention_mask"].bool()
        states = nn.functional.normalize(output["token_embeddings"].float(), dim=-1) * mask.unsqueeze(-1)
        lengths = mask.sum(dim=1)
        # The squared length of the sum of n unit vectors is n plus their n (n - 1) cosines.
        cosines = states.sum(dim=1).square().sum(dim=-1) - lengths
        means.append((cosines / (lengths * (lengths - 1)))[lengths > 1].cpu())

    in_training = [module for module in embedding_pass.modules() if module.training]
    embedding_pass.eval()
    try:
        with torch.inference_mode(), embedding_pass.transformer.register_forward_hook(see):
            embedding_pass(embedding_pass.tokenize(texts))
    finally:
        for module in in_training:
            module.training = True
    found = torch.cat(means)
    return float(found.mean()) if len(found) else None
