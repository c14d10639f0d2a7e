"""Matryoshka in a training run: the objective of a task on parts of the embeddings, and scores by width."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, cast

import numpy as np

from codiemb import evaluation
from codiemb.data.collator import TaskBatch
from codiemb.encoding import EmbeddingPass, Embeddings
from codiemb.losses import matryoshka
from codiemb.prompts import InstructionTemplate, PromptedText
from codiemb.tasks import Objective
from codiemb.training.recipe import Matryoshka
from codiemb.training.sections import RecipeError


def width_weights(section: Matryoshka, width: int) -> dict[int, float]:
    """Weight of the objective by width, the whole width first.

    Raises:
        RecipeError: a width that the embeddings do not have.
    """
    given = section.weight_of
    if (largest := max(given)) > width:
        raise RecipeError(f"matryoshka.dims: got {largest}, but the model's embeddings have {width} dimensions")
    return {width: given.pop(width, 1.0), **given}


def on_parts(objective: Callable[..., Objective], weights: Mapping[int, float]) -> Callable[..., Objective]:
    """The objective of a task, summed over leading parts of the embeddings.

    What it computes of the middle layer has the same value for every part, and a gradient once.

    Args:
        weights: by width, the whole one first.
    Returns: an objective whose components are those of the whole width, and each part's loss as `dim_<width>`.
    """

    def summed(embeddings: Embeddings, batch: TaskBatch, options: Any, *, gather: bool) -> Objective:
        middle = embeddings.middle
        whole, *_ = weights
        components = {}

        def of_part(final: Any) -> Any:
            dim = final.shape[-1]
            seen = middle if dim == whole or middle is None else middle.detach()
            found = objective(Embeddings(final, seen), batch, options, gather=gather)
            components.update(found.components if dim == whole else {f"dim_{dim}": found.total.detach()})
            return found.total

        return Objective(matryoshka(of_part, embeddings.final, weights), components)

    return summed


def scores_by_width(
    embedding_pass: EmbeddingPass,
    template: InstructionTemplate,
    tasks: Sequence[evaluation.EvalTask],
    widths: Iterable[int],
) -> dict[int, list[evaluation.Result]]:
    """Results of the model cut to each width, in the order of the tasks; each task's texts are embedded once."""
    results: dict[int, list[evaluation.Result]] = {width: [] for width in widths}
    for task in tasks:
        once = _EmbeddedOnce(embedding_pass)
        for width, found in results.items():
            once.dimension = width
            found.append(evaluation.evaluate(cast(EmbeddingPass, once), template, task))
    return results


class _EmbeddedOnce:
    """An embedding pass that remembers the vectors of the only texts it is given, and cuts them to `dimension`."""

    def __init__(self, original: EmbeddingPass) -> None:
        self._original = original
        self._vectors: np.ndarray | None = None
        self.dimension = original.dimension

    def __getattr__(self, name: str) -> Any:
        return getattr(self._original, name)

    def encode(self, texts: Iterable[PromptedText], **options: Any) -> np.ndarray:
        """As `EmbeddingPass.encode`."""
        if self._vectors is None:
            self._vectors = self._original.encode(texts, **options)
        return self._vectors[:, : self.dimension]
