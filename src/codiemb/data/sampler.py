"""Batches of one data set each, alike on all ranks, in an order that depends on (seed, epoch) alone."""

from __future__ import annotations

import difflib
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import zip_longest
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Sampler

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SourceSpec:
    """One data set as the sampler sees it.

    Args:
        name: unique among the data sets of a sampler.
        task: the task type of all its rows.
        size: number of examples.
        batch_size: examples per rank and micro-batch.
    """

    name: str
    task: str
    size: int
    batch_size: int


class SingleTaskBatchSampler(Sampler[list[int]]):
    """Yields this rank's micro-batches: lists of indices into the concatenation of the data sets.

    One optimizer step takes `batch_size * world_size * accumulation` consecutive rows (its global batch) of
    one data set's permutation. Micro-step m of rank r gets slice m * world_size + r of them, so all ranks and
    micro-steps hold disjoint shards of the same data set, and a run on fewer ranks with more accumulation
    sees the same rows in each step. Only full global batches are formed; what remains of a data set is in
    `leftover`, and is other rows in every epoch.

    How many steps of an epoch go to each data set:

    - by default all its full global batches (proportional sampling);
    - `temperature` T: (its full global batches)^(1/T), so 1 is proportional and infinity means equally many;
    - `weights`: explicit, per data set; 0 leaves it out;
    - `task_shares`: each task gets its share of the steps, divided within the task by the rules above.

    Given shares or weights, the epoch is as long as the scarcest part allows with no example used twice. The
    steps of a task, and of a data set within it, are spread evenly over the epoch with random jitter.

    Iterating yields one epoch and moves on to the next, so a plain loop over a `DataLoader` never repeats an
    order; `set_epoch` chooses one. Leaving an epoch early and iterating again starts that epoch anew.

    With accelerate (and so transformers and sentence-transformers trainers), which by default deals the
    batches of a sampler out to its ranks, do one of these:

    - build it with `world_size=1` and `accumulation` = ranks x accumulation steps, and let accelerate deal
      (`split_batches=False`): each rank gets what it would get from a sampler made with its rank. When
      skipping to mid-epoch on several ranks, call `set_epoch` yourself: nobody else reaches the sampler.
    - build it with the rank and world size, and prepare the loader with
      `accelerate.data_loader.prepare_data_loader(loader, num_processes=1, process_index=0, ...)`. That loader
      counts epochs itself: tell it, too, the epoch to resume in (its own `set_epoch`).

    A sentence-transformers trainer on a `DatasetDict` in the order of `datasets` takes it from the function
    in its argument `multi_dataset_batch_sampler` (one of a module, as the arguments get pickled). A trainer
    that skips the batches it has seen must not be combined with `start_at`: that would skip twice.

    Args:
        datasets: in the order of their concatenation.
        rank: of this process, 0 <= rank < world_size.
        world_size: number of ranks.
        accumulation: micro-batches per rank and optimizer step.
        seed: >= 0.
        task_shares: share of the optimizer steps per task, any scale; an entry for each task.
        weights: steps per data set, relative to the others (of its task, given `task_shares`); an entry for
            each data set.
        temperature: >= 1; instead of `weights`.

    Attributes:
        epoch: the epoch that the next iteration yields.
        steps: optimizer steps per epoch of each data set, by name.
        leftover: examples per epoch that no batch holds, by name.

    Raises:
        ValueError: bad arguments, or a data set smaller than one global batch.
    """

    def __init__(
        self,
        datasets: Sequence[SourceSpec],
        *,
        rank: int = 0,
        world_size: int = 1,
        accumulation: int = 1,
        seed: int = 0,
        task_shares: Mapping[str, float] | None = None,
        weights: Mapping[str, float] | None = None,
        temperature: float | None = None,
    ) -> None:
        if not 0 <= rank < world_size:
            raise ValueError(f"rank={rank} with world_size={world_size}; expected 0 <= rank < world_size.")
        if accumulation < 1:
            raise ValueError(f"accumulation={accumulation}; expected at least 1 micro-batch per step.")
        if seed < 0:
            raise ValueError(f"seed={seed}; expected 0 or more.")
        if temperature is not None and not temperature >= 1:
            raise ValueError(f"temperature={temperature}; expected 1 (proportional) or more (more even).")
        if temperature is not None and weights is not None:
            raise ValueError("Got both weights and temperature, which set the same thing. Pass one of them.")
        _check_specs(datasets)

        self.datasets = tuple(datasets)
        self.rank, self.world_size, self.accumulation, self.seed = rank, world_size, accumulation, seed
        self._global_batch = np.array([d.batch_size * world_size * accumulation for d in self.datasets])
        self._ends = np.cumsum([d.size for d in self.datasets])
        self._tasks: dict[str, list[int]] = {}
        for index, source in enumerate(self.datasets):
            self._tasks.setdefault(source.task, []).append(index)
        self._steps = np.array(self._plan(task_shares, weights, temperature))

        self.steps = {d.name: int(n) for d, n in zip(self.datasets, self._steps, strict=True)}
        used = self._steps * self._global_batch
        self.leftover = {d.name: d.size - int(n) for d, n in zip(self.datasets, used, strict=True)}
        self.epoch = 0
        self._start = 0  # the micro-step at which the next iteration begins
        self._next = (0, 0)  # (epoch, micro-step) after the last batch handed out

    def __len__(self) -> int:
        """Micro-batches of this rank in a whole epoch, wherever the next iteration starts."""
        return int(self._steps.sum()) * self.accumulation

    def __iter__(self) -> Iterator[list[int]]:
        """The rest of the epoch from the stored position; a whole epoch if none was set."""
        # Being a generator, this takes the position when the first batch is asked for: a DataLoader with
        # workers calls iter() twice and uses the second.
        epoch, start = self.epoch, self._start
        self._start, self._next = 0, (epoch, start)
        schedule = self.schedule(epoch)
        by_source = np.argsort(schedule, kind="stable")
        ordinal = np.empty_like(schedule)  # how many earlier steps of the epoch had the same source
        ordinal[by_source] = _counting(self._steps)
        rows = {source: self._permutation(epoch, source) for source in np.flatnonzero(self._steps).tolist()}

        for position in range(start, len(self)):
            step, micro_step = divmod(position, self.accumulation)
            source = int(schedule[step])
            size = self.datasets[source].batch_size
            shard = micro_step * self.world_size + self.rank
            first = int(ordinal[step] * self._global_batch[source]) + shard * size
            offset = self._ends[source] - self.datasets[source].size
            if position + 1 < len(self):
                self._next = (epoch, position + 1)
            else:
                self.epoch = epoch + 1
                self._next = (self.epoch, 0)
            yield (rows[source][first : first + size].astype(np.int64) + offset).tolist()

    def schedule(self, epoch: int) -> NDArray[np.int64]:
        """The source (its place in `datasets`) of each optimizer step of an epoch, (steps,)."""
        rng = self._rng(epoch, 0)
        groups = [np.array(members) for members in self._tasks.values()]
        # Tasks first, so that a task of many data sets is spread as evenly as one of a single data set.
        task_of_step = _spread(np.array([self._steps[members].sum() for members in groups]), rng)
        schedule = np.empty_like(task_of_step)
        for task, members in enumerate(groups):
            schedule[task_of_step == task] = members[_spread(self._steps[members], rng)]
        return schedule

    def source_of(self, index: int) -> int:
        """The place in `datasets` of the data set that holds row `index` of the concatenation.

        Raises:
            IndexError: no such row.
        """
        if not 0 <= index < self._ends[-1]:
            raise IndexError(f"index={index}, but the data sets hold {self._ends[-1]} examples.")
        return int(np.searchsorted(self._ends, index, side="right"))

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch to yield next. For the current one, a position set before is kept."""
        self.start_at(epoch, self._start if epoch == self.epoch else 0)

    def start_at(self, epoch: int, micro_step: int) -> None:
        """Let the next iteration begin at micro-batch `micro_step` of `epoch`.

        A trainer behind a prefetching `DataLoader` states with it what it has consumed, as the sampler only
        knows what it has handed out.

        Raises:
            ValueError: there is no such position.
        """
        if epoch < 0 or not 0 <= micro_step < len(self):
            raise ValueError(
                f"No micro-batch {micro_step} in epoch {epoch}: epochs count from 0 and have {len(self)} "
                f"micro-batches each. Count on into the next epoch: divmod(micro_batches_seen, {len(self)})."
            )
        self.epoch, self._start, self._next = epoch, micro_step, (epoch, micro_step)

    def state_dict(self) -> dict[str, Any]:
        """Position after the last batch handed out, and the plan it belongs to; JSON-serialisable.

        It counts in optimizer steps, so that another number of ranks with the same global batch can go on.
        With a prefetching `DataLoader` the position runs ahead of the training: see `start_at`.
        """
        epoch, position = self._next
        step, micro_step = divmod(position, self.accumulation)
        return {"epoch": epoch, "step": step, "micro_step": micro_step, "fingerprint": self._fingerprint()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Let the next iteration begin where the state was taken.

        Raises:
            ValueError: the state belongs to another plan (data, batch sizes, shares, seed).
        """
        pairs = zip_longest(state["fingerprint"], self._fingerprint(), fillvalue="nothing")
        changes = [f"{then!r} is now {now!r}" for then, now in pairs if then != now]
        if changes:
            raise ValueError(
                f"The sampler's state belongs to another plan: {'; '.join(changes[:3])}"
                f"{f'; and {len(changes) - 3} more' if len(changes) > 3 else ''}. "
                "Resume with the data, batch sizes, shares and seed of that run, or start a new run."
            )
        if state["micro_step"] >= self.accumulation:
            raise ValueError(
                f"The sampler's state is at micro-batch {state['micro_step']} of a step, which now has "
                f"{self.accumulation}. Take the state between two steps to change the accumulation."
            )
        self.start_at(state["epoch"], state["step"] * self.accumulation + state["micro_step"])

    def describe(self) -> str:
        """The plan of an epoch, a line per data set, for logs."""
        lines = [f"{self._steps.sum()} optimizer steps per epoch"]
        for plan, rest in zip(self._fingerprint()[1:], self.leftover.values(), strict=True):
            lines.append(f"{plan}, {rest} left over")
        return "\n".join(lines)

    def _fingerprint(self) -> list[str]:
        """All that decides which rows a step holds, in words, so that a mismatch can be shown."""
        return [f"seed {self.seed}"] + [
            f"{d.name} ({d.task}): {d.size} examples, {steps} steps of {batch}"
            for d, steps, batch in zip(self.datasets, self._steps, self._global_batch, strict=True)
        ]

    def _rng(self, epoch: int, stream: int) -> np.random.Generator:
        sequence = np.random.SeedSequence(self.seed, spawn_key=(epoch, stream))
        return np.random.Generator(np.random.Philox(sequence))

    def _permutation(self, epoch: int, source: int) -> NDArray[np.uint32 | np.int64]:
        size = self.datasets[source].size
        # Half the memory of int64, which matters as those of all data sets are alive during an epoch.
        rows: NDArray[np.uint32 | np.int64] = np.arange(size, dtype=np.uint32 if size <= 2**32 else np.int64)
        self._rng(epoch, source + 1).shuffle(rows)
        return rows

    def _plan(
        self,
        task_shares: Mapping[str, float] | None,
        weights: Mapping[str, float] | None,
        temperature: float | None,
    ) -> list[int]:
        """Optimizer steps per epoch of each data set."""
        capacity = [d.size // int(batch) for d, batch in zip(self.datasets, self._global_batch, strict=True)]
        if weights is not None:
            weight = _fractions("weights", weights, "data set", [d.name for d in self.datasets])
        else:
            weight = [_exact(c ** (1 / temperature)) if temperature else Fraction(c) for c in capacity]
        if task_shares is None:
            groups, shares = [list(range(len(capacity)))], [Fraction(1)]
        else:
            groups = list(self._tasks.values())
            shares = _fractions("task_shares", task_shares, "task", list(self._tasks))

        # A part of weight 0 is left out on purpose, so its size does not matter.
        kept = [(group, share) for group, share in zip(groups, shares, strict=True) if share]
        wanted = [i for group, _ in kept for i in group if weights is None or weight[i]]
        self._check_capacity([i for i in wanted if capacity[i] == 0])
        for group, _ in kept:
            if not any(weight[i] for i in group):
                task = self.datasets[group[0]].task
                raise ValueError(
                    f"Task {task!r} has a share, but all its data sets have weight 0. "
                    "Give one of them a weight, or the task the share 0."
                )

        limits = [_longest([weight[i] for i in group], [capacity[i] for i in group]) for group, _ in kept]
        kept_shares = [share for _, share in kept]
        totals = _apportion(_longest(kept_shares, limits), kept_shares)
        steps = [0] * len(capacity)
        for (group, _), total in zip(kept, totals, strict=True):
            for i, n in zip(group, _apportion(total, [weight[i] for i in group]), strict=True):
                steps[i] = n
        unused = [self.datasets[i].name for i in wanted if steps[i] == 0]
        if unused and self.rank == 0:
            logger.warning(
                "No step of an epoch goes to %s: the share is below one step. Raise it, or give it 0.",
                ", ".join(map(repr, unused)),
            )
        return steps

    def _check_capacity(self, too_small: list[int]) -> None:
        shards = self.world_size * self.accumulation
        problems = []
        for source in (self.datasets[i] for i in too_small):
            most = source.size // shards
            remedy = (
                f"Lower its batch_size to at most {most}"
                if most
                else f"It needs {shards} rows or more at any batch_size: add rows"
            )
            problems.append(
                f"Data set {source.name!r} has {source.size} examples, but one optimizer step takes "
                f"{source.batch_size * shards} (batch_size {source.batch_size} x world_size "
                f"{self.world_size} x accumulation {self.accumulation}). {remedy}, or drop the data set."
            )
        if problems:
            raise ValueError("\n".join(problems))


def _longest(weights: Sequence[Fraction], capacity: Sequence[int]) -> int:
    """Most steps that can be divided by `weights` with no part above its capacity, in steps."""
    whole = sum(weights, Fraction())
    return min(math.floor(c * whole / w) for c, w in zip(capacity, weights, strict=True) if w)


def _apportion(total: int, weights: Sequence[Fraction]) -> list[int]:
    """Divide `total` steps by `weights`, each part within one step of its quota (largest remainders)."""
    whole = sum(weights, Fraction())
    quotas = [total * w / whole for w in weights]
    counts = [math.floor(quota) for quota in quotas]
    by_remainder = sorted(range(len(quotas)), key=lambda i: counts[i] - quotas[i])
    for i in by_remainder[: total - sum(counts)]:
        counts[i] += 1
    return counts


def _counting(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """0 .. n-1 for each n of `counts`, one after the other."""
    return np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)


def _spread(counts: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.int64]:
    """`counts[i]` times i, evenly spread: occurrence j of n falls at random into [j/n, (j+1)/n)."""
    parts = np.repeat(np.arange(len(counts)), counts)
    at = (_counting(counts) + rng.random(len(parts))) / counts[parts]
    return parts[np.argsort(at, kind="stable")]


def _exact(value: float) -> Fraction:
    """The decimal number as written (0.1 is 1/10), so that shares such as 0.1 and 0.9 divide exactly."""
    return Fraction(repr(float(value)))


def _fractions(argument: str, given: Mapping[str, float], kind: str, names: Sequence[str]) -> list[Fraction]:
    """The values of `given` in the order of `names`, checked."""
    for name, value in given.items():
        if name not in names:
            nearest = difflib.get_close_matches(name, names, n=1, cutoff=0.0)[0]
            raise ValueError(
                f"{argument} names {name!r}, but there is no such {kind}. Did you mean {nearest!r}? "
                f"There are: {', '.join(names)}."
            )
        if not (math.isfinite(value) and value >= 0):
            raise ValueError(f"{argument}[{name!r}] is {value}; expected a number of 0 or more.")
    for name in names:
        if name not in given:
            raise ValueError(f"{argument} has no entry for {kind} {name!r}. Give it one; 0 leaves that {kind} out.")
    if not any(given.values()):
        raise ValueError(f"{argument} are all 0: {dict(given)}. Give at least one {kind} more than 0.")
    return [_exact(given[name]) for name in names]


def _check_specs(datasets: Sequence[SourceSpec]) -> None:
    if not datasets:
        raise ValueError("Got no data sets; expected at least one SourceSpec.")
    names = [source.name for source in datasets]
    for source in datasets:
        if names.count(source.name) > 1:
            raise ValueError(f"Two data sets are named {source.name!r}; expected unique names. Rename one.")
        if source.batch_size < 1:
            raise ValueError(f"Data set {source.name!r}: batch_size={source.batch_size}; expected at least 1.")
        if source.size < 1:
            raise ValueError(f"Data set {source.name!r} is empty. Drop it, or check the file it came from.")
