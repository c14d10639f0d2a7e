"""The registry of tasks: everything that differs between them hangs on one entry here.

To add a task: write its options and its objective, and enter both in `TASKS`.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Annotated, Any, NamedTuple

import torch
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PositiveFloat,
    PositiveInt,
    model_validator,
)
from torch import Tensor

from codiemb import losses
from codiemb.data.collator import CandidateCount, TaskBatch
from codiemb.data.examples import TaskType
from codiemb.encoding import Embeddings


class Objective(NamedTuple):
    """Loss of a batch: `total` with its graph, and the detached `components` for the log."""

    total: Tensor
    components: dict[str, Tensor]


class TaskOptions(BaseModel):
    """What every task has."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    batch_size: PositiveInt = Field(default=32, description="rows of a batch, on each device and accumulation step")

    @property
    def candidates(self) -> CandidateCount:
        """Candidates of a row that are used."""
        return CandidateCount()


class ContrastiveOptions(TaskOptions):
    """InfoNCE: `classification`, `clustering`."""

    temperature: PositiveFloat = Field(0.02, description="divides the cosines")
    positives: PositiveInt = Field(1, description="positives of a row that are used; more are sampled")
    negatives: int = Field(4, ge=0, description="hard negatives of a row that are used; more are sampled")
    false_negative_margin: float | None = Field(
        0.1, description="mask a negative whose cosine exceeds the positive's by more than this; null: never"
    )
    in_batch: bool = Field(True, description="the other rows' candidates are negatives too")
    query_negatives: bool = Field(False, description="the other rows' queries, as documents, are negatives too")

    @model_validator(mode="after")
    def _of_the_batch(self) -> ContrastiveOptions:
        if self.query_negatives and not self.in_batch:
            raise ValueError("query_negatives needs in_batch, which is false; set one of them otherwise")
        return self

    @property
    def candidates(self) -> CandidateCount:
        """Candidates of a row that are used."""
        return CandidateCount(self.positives, self.negatives, queries=self.query_negatives)


class RetrievalOptions(ContrastiveOptions):
    """InfoNCE of queries and documents: `ir`."""

    query_negatives: bool = Field(
        True,
        description="other rows' queries, as documents, are negatives too: what resembles a query does not answer it. "
        "false where documents are questions themselves",
    )

    @model_validator(mode="before")
    @classmethod
    def _only_in_batch(cls, given: Any) -> Any:
        if isinstance(given, dict) and given.get("in_batch") is False:
            return {"query_negatives": False} | given
        return given


class RerankingOptions(TaskOptions):
    """Softmax within each row's list: `reranking`."""

    temperature: PositiveFloat = 0.05
    positives: PositiveInt = 4
    negatives: int = Field(12, ge=1)

    @property
    def candidates(self) -> CandidateCount:
        """Candidates of a row that are used."""
        return CandidateCount(self.positives, self.negatives)


_COMPONENTS = ("pearson", "rank_kl", "pro", "cosent", "mid_nce")
_NO_WEIGHTS = losses.StsWeights(pearson=0, rank_kl=0, pro=0, cosent=0, mid_nce=0)


def _weights(value: Any) -> Any:
    """A preset's name, its weights overridden as in `{preset: default, pro: 0}`, or weights by name (others 0).

    Returns weights, or fields that pydantic has yet to check.
    """
    if isinstance(value, (str, losses.StsWeights)):
        return losses.sts_weights(value)
    if not isinstance(value, dict):
        raise ValueError(f"got {value!r}, expected a preset ({', '.join(losses.PRESETS)}) or weights by name")
    names = [field.name for field in fields(losses.StsWeights)]
    if unknown := sorted(set(value) - {*names, "preset"}):
        near = difflib.get_close_matches(unknown[0], names, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise ValueError(f"unknown {', '.join(unknown)}; {hint}allowed: preset, {', '.join(names)}")
    base = losses.sts_weights(str(value["preset"])) if "preset" in value else _NO_WEIGHTS
    return {name: value.get(name, getattr(base, name)) for name in names}


def _some_weight(value: losses.StsWeights) -> losses.StsWeights:
    if not any(getattr(value, name) for name in _COMPONENTS):
        raise ValueError(f"all weights are 0, so there is no loss; give a weight to any of {', '.join(_COMPONENTS)}")
    return value


class StsOptions(TaskOptions):
    """Order-aware losses on scored pairs: `sts`, `pair_classification`."""

    batch_size: PositiveInt = 64
    loss: Annotated[losses.StsWeights, BeforeValidator(_weights), AfterValidator(_some_weight)] = Field(
        losses.PRESETS["default"], description="a preset's name, or weights by name"
    )


def contrastive(embeddings: Embeddings, batch: TaskBatch, options: Any, *, gather: bool) -> Objective:
    """InfoNCE over the rows, their hard negatives and each other."""
    final = embeddings.final
    loss = losses.info_nce(
        final[batch.query],
        final[batch.positives],
        final[batch.negatives],
        temperature=options.temperature,
        positive_mask=batch.positive_mask,
        negative_mask=batch.negative_mask,
        query_ids=batch.text_ids[batch.query],
        positive_ids=batch.text_ids[batch.positives],
        negative_ids=batch.text_ids[batch.negatives],
        known_positive_ids=batch.known_positives,
        false_negative_margin=options.false_negative_margin,
        in_batch=options.in_batch,
        query_negatives=final[batch.query_documents] if options.query_negatives else None,
        gather=gather,
    )
    return Objective(loss, {"info_nce": loss.detach()})


def listwise(embeddings: Embeddings, batch: TaskBatch, options: Any, *, gather: bool) -> Objective:
    """Softmax within each row; ranks have nothing to share."""
    final = embeddings.final
    loss = losses.listwise_softmax(
        final[batch.query],
        final[batch.positives],
        final[batch.negatives],
        temperature=options.temperature,
        positive_mask=batch.positive_mask,
        negative_mask=batch.negative_mask,
        positive_scores=batch.scores,
    )
    return Objective(loss, {"listwise": loss.detach()})


def scored_pairs(embeddings: Embeddings, batch: TaskBatch, options: Any, *, gather: bool) -> Objective:
    """Order-aware losses over the pairs of all ranks, and InfoNCE on the middle layer where it has a weight."""

    def from_all_ranks(tensor: Tensor) -> Tensor:
        return losses.gather(tensor) if gather else tensor

    weights = options.loss
    final = embeddings.final
    cosines = (final[batch.query] * final[batch.positives[:, 0]]).sum(dim=-1)
    scores = batch.scores[:, 0]
    total, components = losses.sts_objective(from_all_ranks(cosines), from_all_ranks(scores), weights)
    if weights.mid_nce:
        assert embeddings.middle is not None  # the trainer asks for it where mid_nce has a weight
        mid_nce = losses.info_nce(
            embeddings.middle[batch.query],
            embeddings.middle[batch.positives],
            temperature=weights.temperature,
            positive_mask=(scores >= weights.mid_nce_threshold)[:, None],
            query_ids=batch.text_ids[batch.query],
            positive_ids=batch.text_ids[batch.positives],
            gather=gather,
        )
        total = total + weights.mid_nce * mid_nce
        components = {**components, "mid_nce": mid_nce.detach()}
    return Objective(total, components)


@dataclass(frozen=True)
class Task:
    """One task type.

    Attributes:
        options: what a recipe may set under `tasks.<name>`.
        objective: (embeddings, batch, options, gather=) -> `Objective`.
        symmetric: all texts take the query side of the template.
        rescale_scores: gold scores are mapped to [0, 1] per data set.
    """

    options: type[TaskOptions]
    objective: Callable[..., Objective]
    symmetric: bool
    rescale_scores: bool = False


TASKS: Mapping[TaskType, Task] = {
    "ir": Task(RetrievalOptions, contrastive, symmetric=False),
    "reranking": Task(RerankingOptions, listwise, symmetric=False),
    "sts": Task(StsOptions, scored_pairs, symmetric=True, rescale_scores=True),
    "pair_classification": Task(StsOptions, scored_pairs, symmetric=True),
    # Rows with the same label have equal positives, which InfoNCE masks out of each other's negatives.
    "classification": Task(ContrastiveOptions, contrastive, symmetric=True),
    "clustering": Task(ContrastiveOptions, contrastive, symmetric=True),
}

SYMMETRIC = frozenset(name for name, task in TASKS.items() if task.symmetric)


def detached(components: Mapping[str, Tensor]) -> dict[str, float]:
    """Components as numbers, read from the device once."""
    if not components:
        return {}
    values = torch.stack([value.float() for value in components.values()]).tolist()
    return dict(zip(components, values, strict=True))
