"""How long a benchmark takes: characters that its tasks embed, and the time left at the rate so far."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from datasets import Dataset
from mteb.abstasks import AbsTask
from mteb.abstasks.aggregated_task import AbsTaskAggregate


class Progress:
    """Share of all characters embedded, and the time that the rest takes at the rate so far.

    Sizes are mteb's statistics of its data sets, counted for local data; a task of unknown size counts as the mean of
    the known ones. Longer texts than the model reads make the estimate too high, classifiers and clustering too low.
    """

    def __init__(self, tasks: Iterable[AbsTask]) -> None:
        sizes = {task.metadata.name: characters(task) for task in tasks}
        known = [size for size in sizes.values() if size]
        mean = sum(known) / len(known) if known else 1.0
        self._left = {name: float(size or mean) for name, size in sizes.items()}
        self.total = sum(self._left.values())
        self._read = 0.0
        self._seconds = 0.0
        self._current: tuple[str, float] | None = None

    def start(self, task: str) -> None:
        """A task begins to run."""
        self._current = task, time.monotonic()

    def advance(self, count: int) -> None:
        """So many characters of the current task were embedded."""
        self._read += count
        if self._current and (left := self._left.get(self._current[0])):
            self._left[self._current[0]] = max(left - count, 0)

    def end(self, task: str) -> None:
        """A task has ended, run or not."""
        self._left.pop(task, None)
        if self._current:
            self._seconds += time.monotonic() - self._current[1]
            self._current = None

    @property
    def done(self) -> float:
        """Characters that are no longer to be read, up to `total`."""
        return self.total - sum(self._left.values())

    @property
    def seconds_left(self) -> float | None:
        """None until something was embedded."""
        seconds = self._seconds + (time.monotonic() - self._current[1] if self._current else 0)
        return sum(self._left.values()) * seconds / self._read if self._read else None


def characters(task: AbsTask) -> int | None:
    """Characters of the texts that a task embeds, None if not known."""
    if isinstance(task, AbsTaskAggregate):
        parts = [characters(part) for part in task.metadata.tasks]
        return None if None in parts else sum(part for part in parts if part)
    if task.data_loaded:
        return sum(_text_lengths(task.dataset))
    stats: Any = task.metadata.descriptive_stats
    if stats is None or not set(task.eval_splits) <= stats.keys():
        return None
    total = 0
    for split in task.eval_splits:
        of_subsets = stats[split].get("hf_subset_descriptive_stats", {})
        chosen = [of_subsets[subset] for subset in task.hf_subsets if subset in of_subsets] or [stats[split]]
        total += sum(
            value["total_text_length"]
            for part in chosen
            for key, value in part.items()
            if key.endswith("_statistics") and value and "total_text_length" in value
        )
    return total or None


def _text_lengths(data: Any) -> Iterator[int]:
    if isinstance(data, Dataset):
        for column in data.column_names:
            if column != "id" and data.features[column].dtype == "string":
                yield from map(len, data[column])
    elif isinstance(data, Mapping):
        for part in data.values():
            if isinstance(part, (Dataset, Mapping)):
                yield from _text_lengths(part)
