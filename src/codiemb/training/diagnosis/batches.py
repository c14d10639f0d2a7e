"""The batches that a diagnosis looks at: the first of an epoch, by task or data set, and mixed ones of all tasks."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from codiemb.data.collator import TaskBatch
from codiemb.data.sampler import SingleTaskBatchSampler
from codiemb.tasks import TASKS, StsOptions
from codiemb.training.trainer import TrainingRows

By = Literal["task", "dataset"]

POSITIVE_FROM = 0.8
"""In a mixed batch, scored pairs count as query and positive from here on in 0..1; the others are left out."""

LEAST = 4
"""Batches of each task: of fewer, too many resamples are copies of one batch, which have no pair of two."""


@dataclass(frozen=True)
class Drawn:
    """One batch.

    Attributes:
        group: the task or data set that it stands for.
        batch: what the objective is computed on; in a mixed batch, the part of one task.
        options_of: the task whose options hold.
        draws: the drawn batches its rows are from; batches that have none in common are independent.
        share: the part's share in the mixed batch's objective; 1 for a batch of one task.
    """

    group: str
    batch: TaskBatch
    options_of: str
    draws: frozenset[tuple[str, int]]
    share: float = 1.0


def draw(sampler: SingleTaskBatchSampler, rows: TrainingRows, count: int, by: By) -> list[Drawn]:
    """The first `count` batches of each task or data set in the sampler's epoch; no two share a row.

    Where an epoch has fewer batches of one, those there are.

    Raises:
        ValueError: only one task or data set, or fewer than `LEAST` batches.
    """
    if count < LEAST:
        raise ValueError(
            f"batches={count}, expected at least {LEAST}: of fewer, there is no telling noise from signal."
        )
    chosen: dict[str, list[list[int]]] = {}
    for source in sampler.datasets:
        if sampler.steps[source.name]:
            chosen.setdefault(_group(source.name, source.task, by), [])
    if len(chosen) < 2:
        remedy = "a second task, or compare its data sets (--by dataset)" if by == "task" else "a second data set"
        raise ValueError(
            f"In an epoch of the recipe only {', '.join(chosen)} is trained on, so there is nothing to compare. Add "
            f"{remedy}."
        )
    for indices in sampler:
        source = sampler.datasets[sampler.source_of(indices[0])]
        group = chosen[_group(source.name, source.task, by)]
        if len(group) < count:
            group.append(indices)
        if all(len(found) == count for found in chosen.values()):
            break
    for name, found in chosen.items():
        if len(found) < LEAST:
            task = next(source.task for source in sampler.datasets if _group(source.name, source.task, by) == name)
            raise ValueError(
                f"{name}: an epoch has {len(found)} batch(es) of it, expected at least {LEAST}. Give it more rows, a "
                f"larger share, or a smaller tasks.{task}.batch_size."
            )
    drawn = []
    for name, found in chosen.items():
        for number, indices in enumerate(found):
            batch = rows.__getitems__(indices)
            drawn.append(Drawn(name, batch, batch.task, frozenset({(name, number)})))
    return drawn


def _group(name: str, task: str, by: By) -> str:
    return task if by == "task" else name


def part_name(group: str) -> str:
    """What the part of a task in mixed batches is called."""
    return f"{group} in mixed"


def mix(drawn: Sequence[Drawn]) -> list[Drawn]:
    """Mixed batches: the first half of the rows of one batch of each group, as one InfoNCE would see them.

    Each is given in parts, one a group: the loss of the group's rows among the candidates of all rows. The whole
    batch's loss is the sum of its parts' by `share`.
    """
    by_group: dict[str, list[Drawn]] = defaultdict(list)
    for one in drawn:
        by_group[one.group].append(one)
    mixed = []
    for number, members in enumerate(zip(*by_group.values(), strict=False)):
        halves = {one.group: _positives_of_first_half(one.batch) for one in members}
        whole, owner = _merge(list(halves.values()))
        draws = frozenset(draw for one in members for draw in one.draws)
        for place, (group, half) in enumerate(halves.items()):
            if not len(half.query):
                raise ValueError(
                    f"Mixed batch {number + 1} has no pair of {group} with a score of at least {POSITIVE_FROM:g} of "
                    f"the highest, so no positive of it. Raise tasks.{half.task}.batch_size."
                )
            own = owner == place
            mixed.append(Drawn(part_name(group), _part(whole, own), "ir", draws, float(own.float().mean())))
    return mixed


def _positives_of_first_half(batch: TaskBatch) -> TaskBatch:
    """Some of the rows, and of scored pairs those that are positive."""
    rows = torch.arange(len(batch.query)) < -(-len(batch.query) // 2)
    positive = batch.positive_mask
    if issubclass(TASKS[batch.task].options, StsOptions):  # type: ignore[index]
        positive = positive & (batch.scores >= POSITIVE_FROM)
    rows &= positive.any(dim=1)
    return replace(
        batch,
        query=batch.query[rows],
        query_documents=batch.query_documents[rows],
        positives=batch.positives[rows],
        positive_mask=positive[rows],
        negatives=batch.negatives[rows],
        negative_mask=batch.negative_mask[rows],
        scores=batch.scores[rows],
        known_positives=batch.known_positives[rows],
    )


def _merge(batches: Sequence[TaskBatch]) -> tuple[TaskBatch, Tensor]:
    """One batch of all rows, and the place of the batch that each row is from, (rows,)."""
    starts = torch.tensor([0, *(len(batch.texts) for batch in batches)]).cumsum(0).tolist()

    def indices(name: str) -> list[Tensor]:
        return [getattr(batch, name) + start for batch, start in zip(batches, starts, strict=False)]

    def joined(parts: Iterable[Tensor], padding: int = 0) -> Tensor:
        parts = list(parts)
        width = max(part.shape[1] for part in parts)
        return torch.cat([F.pad(part, (0, width - part.shape[1]), value=padding) for part in parts])

    whole = TaskBatch(
        source="mixed",
        task="ir",
        texts=[text for batch in batches for text in batch.texts],
        query=torch.cat(indices("query")),
        query_documents=torch.cat(indices("query_documents")),
        positives=joined(indices("positives")),
        positive_mask=joined(batch.positive_mask for batch in batches),
        negatives=joined(indices("negatives")),
        negative_mask=joined(batch.negative_mask for batch in batches),
        scores=joined(batch.scores for batch in batches),
        text_ids=torch.cat([batch.text_ids for batch in batches]),
        known_positives=joined((batch.known_positives for batch in batches), padding=-1),
    )
    owner = torch.cat([torch.full((len(batch.query),), place) for place, batch in enumerate(batches)])
    return whole, owner


def _part(whole: TaskBatch, own: Tensor) -> TaskBatch:
    """The batch whose loss is that of its `own` rows: the others' first positives become negatives for all."""
    return replace(
        whole,
        positive_mask=whole.positive_mask & own[:, None],
        negatives=torch.cat([whole.positives[:, :1], whole.negatives], dim=1),
        negative_mask=torch.cat([~own[:, None], whole.negative_mask], dim=1),
    )
