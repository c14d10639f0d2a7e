"""Properties of SingleTaskBatchSampler over ranks, accumulation, epochs and resumed runs."""

from __future__ import annotations

import json
import logging
import random
import tracemalloc
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from codiemb.data.sampler import SingleTaskBatchSampler, SourceSpec

# Odd sizes; the global batches differ, and most leave a remainder.
SOURCES = [
    SourceSpec("dureader", "ir", 301, 3),
    SourceSpec("t2", "ir", 157, 2),
    SourceSpec("stsb", "sts", 211, 5),
]
TOTAL = sum(d.size for d in SOURCES)
layouts = pytest.mark.parametrize(("world_size", "accumulation"), [(w, a) for w in (1, 2, 4) for a in (1, 3)])
DIVISIONS: dict[str, dict[str, Any]] = {
    "proportional": {},
    "temperature": {"temperature": 2.0},
    "weights": {"weights": {"dureader": 1, "t2": 2, "stsb": 0.5}},
    "shares": {"task_shares": {"ir": 0.5, "sts": 0.5}},
    "both": {"task_shares": {"ir": 3, "sts": 1}, "weights": {"dureader": 1, "t2": 1, "stsb": 1}},
}
divisions = pytest.mark.parametrize("division", DIVISIONS.values(), ids=DIVISIONS.keys())


def ranks(
    world_size: int,
    accumulation: int,
    sources: Sequence[SourceSpec] = SOURCES,
    kind: type[SingleTaskBatchSampler] = SingleTaskBatchSampler,
    **options: Any,
) -> list[SingleTaskBatchSampler]:
    return [
        kind(sources, rank=rank, world_size=world_size, accumulation=accumulation, **options)
        for rank in range(world_size)
    ]


def steps_of(samplers: Sequence[SingleTaskBatchSampler]) -> list[list[int]]:
    """The rows of each optimizer step of the next epoch, over all ranks and micro-steps."""
    streams = [list(sampler) for sampler in samplers]
    accumulation = samplers[0].accumulation
    assert {len(stream) for stream in streams} == {len(samplers[0])}
    return [
        [row for micro in range(first, first + accumulation) for stream in streams for row in stream[micro]]
        for first in range(0, len(streams[0]), accumulation)
    ]


def check_epoch(samplers: Sequence[SingleTaskBatchSampler]) -> None:
    """Full steps of one data set, no row twice, every row accounted for."""
    sampler = samplers[0]
    steps: Counter[str] = Counter()
    seen: set[int] = set()
    for rows in steps_of(samplers):
        sources = {sampler.source_of(row) for row in rows}
        assert len(sources) == 1, "a step mixes data sets"
        source = sampler.datasets[sources.pop()]
        assert len(rows) == source.batch_size * sampler.world_size * sampler.accumulation
        drawn_before = len(seen)
        seen.update(rows)
        assert len(seen) == drawn_before + len(rows), "a row is drawn twice"
        steps[source.name] += 1
    assert steps == Counter(sampler.steps)
    drawn = Counter(sampler.datasets[sampler.source_of(row)].name for row in seen)
    assert {d.name: drawn[d.name] + sampler.leftover[d.name] for d in sampler.datasets} == {
        d.name: d.size for d in sampler.datasets
    }


@layouts
@divisions
def test_steps_are_single_source_and_disjoint(world_size: int, accumulation: int, division: dict[str, Any]) -> None:
    samplers = ranks(world_size, accumulation, **division)
    check_epoch(samplers)
    check_epoch(samplers)  # the next epoch


class RankShuffled(SingleTaskBatchSampler):
    """A defect: each rank shuffles the rows for itself, then slices."""

    def _permutation(self, epoch: int, source: int) -> Any:
        return np.random.default_rng([epoch, source, self.rank]).permutation(self.datasets[source].size)


class RankScheduled(SingleTaskBatchSampler):
    """A defect: the ranks are on different data sets in one step."""

    def schedule(self, epoch: int) -> Any:
        return np.random.default_rng([epoch, self.rank]).permutation(super().schedule(epoch))


@pytest.mark.parametrize(("defect", "found"), [(RankShuffled, "drawn twice"), (RankScheduled, "mixes")])
def test_check_notices_rank_dependent_order(defect: type[SingleTaskBatchSampler], found: str) -> None:
    check_epoch(ranks(1, 3, kind=defect))
    with pytest.raises(AssertionError, match=found):
        check_epoch(ranks(2, 3, kind=defect))


@st.composite
def problems(draw: st.DrawFn) -> tuple[int, int, list[SourceSpec], dict[str, float]]:
    world_size, accumulation = draw(st.integers(1, 4)), draw(st.integers(1, 3))
    sources = []
    for index in range(draw(st.integers(1, 5))):
        batch_size = draw(st.integers(1, 5))
        least = batch_size * world_size * accumulation
        task = draw(st.sampled_from(["ir", "sts", "clustering"]))
        sources.append(SourceSpec(f"s{index}", task, draw(st.integers(least, 9 * least)), batch_size))
    tasks = sorted({d.task for d in sources})
    return world_size, accumulation, sources, {task: draw(st.floats(0.05, 1)) for task in tasks}


@settings(max_examples=40, deadline=None)
@given(problems(), st.sampled_from([None, 1.0, 3.0, float("inf")]), st.booleans())
def test_any_sizes(problem: Any, temperature: float | None, use_shares: bool) -> None:
    world_size, accumulation, sources, shares = problem
    check_epoch(
        ranks(
            world_size,
            accumulation,
            sources,
            temperature=temperature,
            task_shares=shares if use_shares else None,
        )
    )


@settings(max_examples=100, deadline=None)
@given(problems())
def test_shares_hold_within_a_step_and_the_scarcest_task_ends_the_epoch(problem: Any) -> None:
    world_size, accumulation, sources, shares = problem
    sampler = SingleTaskBatchSampler(sources, world_size=world_size, accumulation=accumulation, task_shares=shares)
    steps: Counter[str] = Counter()
    capacity: Counter[str] = Counter()
    for d in sources:
        steps[d.task] += sampler.steps[d.name]
        capacity[d.task] += d.size // (d.batch_size * world_size * accumulation)
    total = sum(steps.values())
    whole = sum(shares.values())
    for task, share in shares.items():
        assert abs(steps[task] - total * share / whole) < 1
    assert any((total + 1) * shares[task] / whole > capacity[task] - 1e-9 for task in shares)
    for d in sources:  # proportional within the task
        full = d.size // (d.batch_size * world_size * accumulation)
        assert abs(sampler.steps[d.name] - steps[d.task] * full / capacity[d.task]) < 1


def test_division_of_the_steps() -> None:
    sources = [SourceSpec("a", "ir", 409, 4), SourceSpec("b", "ir", 25, 1), SourceSpec("c", "sts", 91, 10)]

    def steps(**options: Any) -> list[int]:
        return list(SingleTaskBatchSampler(sources, **options).steps.values())

    assert steps() == [102, 25, 9]
    assert steps(temperature=1) == steps()
    assert steps(temperature=float("inf")) == [9, 9, 9]
    a, b, c = steps(temperature=2)
    assert c == 9
    assert abs(a - 9 * (102 / 9) ** 0.5) < 1
    assert abs(b - 9 * (25 / 9) ** 0.5) < 1
    assert steps(weights={"a": 0.1, "b": 0.2, "c": 0}) == [12, 25, 0]  # 12.5 steps are not to be had
    assert steps(task_shares={"ir": 0.9, "sts": 0.1}) == [65, 16, 9]  # decimal shares divide exactly
    assert steps(task_shares={"ir": 0, "sts": 1}) == [0, 0, 9]
    assert steps(task_shares={"ir": 1, "sts": 1}, weights={"a": 1, "b": 2, "c": 1}) == [3, 6, 9]


def test_leftover_and_describe() -> None:
    sampler = SingleTaskBatchSampler(SOURCES, world_size=2, task_shares={"ir": 0.5, "sts": 0.5})
    assert sampler.steps == {"dureader": 12, "t2": 9, "stsb": 21}
    assert sampler.leftover == {"dureader": 301 - 72, "t2": 157 - 36, "stsb": 1}
    assert sampler.describe().splitlines() == [
        "42 optimizer steps per epoch",
        "dureader (ir): 301 examples, 12 steps of 6, 229 left over",
        "t2 (ir): 157 examples, 9 steps of 4, 121 left over",
        "stsb (sts): 211 examples, 21 steps of 10, 1 left over",
    ]


def test_epochs_use_other_rows_in_another_order() -> None:
    sampler = SingleTaskBatchSampler(SOURCES, task_shares={"ir": 0.2, "sts": 0.8})
    first, second = list(sampler), list(sampler)
    assert len(first) == len(second) == len(sampler)
    assert {row for batch in first for row in batch} != {row for batch in second for row in batch}
    assert sampler.schedule(0).tolist() != sampler.schedule(1).tolist()
    assert list(SingleTaskBatchSampler(SOURCES, seed=1)) != list(SingleTaskBatchSampler(SOURCES, seed=0))


def test_order_depends_on_seed_and_epoch_alone() -> None:
    runs = []
    for noise in (1, 2):
        random.seed(noise)
        np.random.seed(noise)
        torch.manual_seed(noise)
        before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
        sampler = SingleTaskBatchSampler(SOURCES, seed=5)
        runs.append((list(sampler), list(sampler)))
        after = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
        assert before == after
    assert runs[0] == runs[1]
    straight_to_1 = SingleTaskBatchSampler(SOURCES, seed=5)
    straight_to_1.set_epoch(1)
    assert list(straight_to_1) == runs[0][1]


def test_order_is_the_same_on_every_platform() -> None:
    """Recorded once: fails if NumPy's streams change, which would break resuming across versions."""
    sampler = SingleTaskBatchSampler([SourceSpec("a", "ir", 7, 2), SourceSpec("b", "sts", 8, 3)], seed=3)
    assert list(sampler) == [[6, 2], [7, 13, 10], [0, 1], [14, 9, 11], [5, 4]]
    assert list(sampler) == [[5, 1], [9, 12, 10], [14, 11, 8], [3, 6], [4, 0]]


@layouts
def test_fewer_ranks_with_more_accumulation_see_the_same_steps(world_size: int, accumulation: int) -> None:
    assert steps_of(ranks(world_size, accumulation)) == steps_of(ranks(1, world_size * accumulation))


def prefix_deviation(schedule: np.ndarray, part: int) -> float:
    """How far the steps of `part` in any prefix are from its even share, in steps."""
    here = np.cumsum(schedule == part)
    return float(np.abs(here - here[-1] * np.arange(1, len(schedule) + 1) / len(schedule)).max())


def test_tasks_and_data_sets_are_spread_evenly() -> None:
    sources = [SourceSpec(f"ir{i}", "ir", 700 + 90 * i, 2) for i in range(8)]
    sources += [SourceSpec("sts0", "sts", 400, 2), SourceSpec("sts1", "sts", 37, 2)]
    sampler = SingleTaskBatchSampler(sources)
    for epoch in range(5):
        schedule = sampler.schedule(epoch)
        tasks = (schedule >= 8).astype(int)
        for task in (0, 1):
            # k parts, each within 1 of its share of any time span: within 1 + k n/N of its share of a prefix.
            assert prefix_deviation(tasks, task) <= 1 + 2 * (tasks == task).mean()
        of_ir = schedule[tasks == 0]
        for source in range(8):
            assert prefix_deviation(of_ir, source) <= 1 + 8 * (of_ir == source).mean()
        shuffled = np.random.default_rng(epoch).permutation(tasks)  # control: a plain shuffle clumps
        assert prefix_deviation(shuffled, 1) > 1 + 2 * (tasks == 1).mean()


@layouts
@divisions
def test_resumed_run_equals_the_uninterrupted_one(world_size: int, accumulation: int, division: dict[str, Any]) -> None:
    options = {"world_size": world_size, "rank": world_size - 1, "accumulation": accumulation, **division}
    whole = SingleTaskBatchSampler(SOURCES, **options)
    batches = [*whole, *whole, *whole]
    length = len(whole)
    for seen in [0, 1, accumulation, length - 1, length, length + 1, length + length // 2, 2 * length]:
        interrupted = SingleTaskBatchSampler(SOURCES, **options)
        consumed = 0
        while consumed < seen:
            for _ in interrupted:
                consumed += 1
                if consumed == seen:
                    break
        state = json.loads(json.dumps(interrupted.state_dict()))
        by_state = SingleTaskBatchSampler(SOURCES, **options)
        by_state.load_state_dict(state)
        by_position = SingleTaskBatchSampler(SOURCES, **options)
        by_position.start_at(*divmod(seen, length))
        for resumed in (by_state, by_position):
            rest = list(resumed)
            end = (seen // length + 1) * length
            assert rest == batches[seen:end]
            if end < len(batches):
                assert list(resumed) == batches[end : end + length]


def test_positions() -> None:
    sampler = SingleTaskBatchSampler(SOURCES)
    whole = list(sampler)
    sampler.start_at(0, 7)
    sampler.set_epoch(0)  # what trainers call before each epoch
    assert list(sampler) == whole[7:]
    sampler.start_at(3, 7)
    sampler.set_epoch(0)
    assert list(sampler) == whole
    sampler.set_epoch(0)
    iterator = iter(sampler)
    assert [next(iterator), next(iterator)] == whole[:2]
    sampler.set_epoch(0)
    assert sampler.state_dict()["step"] == 0
    assert list(sampler) == whole  # leaving early starts the epoch anew
    for epoch, micro_step in [(0, -1), (0, len(sampler)), (-1, 0)]:
        with pytest.raises(ValueError, match=r"divmod\(micro_batches_seen"):
            sampler.start_at(epoch, micro_step)


def test_resume_on_another_number_of_ranks() -> None:
    interrupted = SingleTaskBatchSampler(SOURCES, world_size=4, accumulation=1)
    iterator = iter(interrupted)
    for _ in range(5):
        next(iterator)
    expected = steps_of(ranks(4, 1))[5:]
    streams = []
    for sampler in ranks(2, 2):
        sampler.load_state_dict(interrupted.state_dict())
        streams.append(list(sampler))
    actual = [
        sorted(row for stream in streams for row in stream[i] + stream[i + 1]) for i in range(0, len(streams[0]), 2)
    ]
    assert actual == [sorted(rows) for rows in expected]

    between = SingleTaskBatchSampler(SOURCES, accumulation=12)
    iterator = iter(between)
    for _ in range(17):
        next(iterator)
    with pytest.raises(ValueError, match="micro-batch 5 of a step, which now has 3"):
        SingleTaskBatchSampler(SOURCES, world_size=4, accumulation=3).load_state_dict(between.state_dict())


@pytest.mark.parametrize(
    ("sources", "options", "message"),
    [
        (SOURCES, {"seed": 1}, "'seed 0' is now 'seed 1'"),
        (
            [SourceSpec("dureader", "ir", 302, 3), *SOURCES[1:]],
            {},
            r"301 examples, 100 .* now .*302 examples",
        ),
        ([SourceSpec("dureader", "ir", 301, 4), *SOURCES[1:]], {}, "100 steps of 3' is now .*75 steps of 4"),
        (
            [SourceSpec("dureader", "sts", 301, 3), *SOURCES[1:]],
            {},
            r"dureader \(ir\).* now 'dureader \(sts\)",
        ),
        (
            SOURCES,
            {"task_shares": {"ir": 1, "sts": 1}},
            "100 steps of 3' is now .*24 steps of 3'; 't2",
        ),
        (SOURCES, {"world_size": 2}, "of 3' is now .* of 6"),
        (SOURCES, {"accumulation": 2, "seed": 1}, "'seed 0' is now .* and 1 more"),
        (SOURCES[:2], {}, "'stsb.*' is now 'nothing'"),
        (SOURCES[::-1], {}, "'dureader.*' is now 'stsb"),
    ],
)
def test_state_of_another_plan_is_refused(sources: Any, options: dict[str, Any], message: str) -> None:
    state = SingleTaskBatchSampler(SOURCES).state_dict()
    with pytest.raises(ValueError, match=message):
        SingleTaskBatchSampler(sources, **options).load_state_dict(state)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 2, "world_size": 2}, "rank=2 with world_size=2"),
        ({"accumulation": 0}, "accumulation=0"),
        ({"seed": -1}, "seed=-1"),
        ({"temperature": 0.5}, "temperature=0.5"),
        ({"temperature": float("nan")}, "temperature=nan"),
        ({"temperature": 2, "weights": {"dureader": 1, "t2": 1, "stsb": 1}}, "both weights and temperature"),
        ({"weights": {"dureader": 1, "t3": 1, "stsb": 1}}, "names 't3', .* Did you mean 't2'"),
        ({"weights": {"dureader": 1, "stsb": 1}}, "no entry for data set 't2'. Give it one; 0 leaves"),
        ({"weights": {"dureader": 1, "t2": -1, "stsb": 1}}, r"weights\['t2'\] is -1"),
        ({"weights": {"dureader": 0, "t2": 0, "stsb": 0}}, "weights are all 0"),
        ({"task_shares": {"ir": 1, "stss": 1}}, "task_shares names 'stss', .* Did you mean 'sts'"),
        ({"task_shares": {"ir": 1}}, "no entry for task 'sts'. Give it one; 0 leaves"),
        ({"task_shares": {"ir": float("inf"), "sts": 1}}, r"task_shares\['ir'\] is inf"),
        ({"task_shares": {"ir": 0, "sts": 0}}, "task_shares are all 0"),
        (
            {"task_shares": {"ir": 1, "sts": 1}, "weights": {"dureader": 1, "t2": 1, "stsb": 0}},
            "Task 'sts' has a share, but all its data sets have weight 0",
        ),
    ],
)
def test_bad_arguments(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SingleTaskBatchSampler(SOURCES, **options)


@pytest.mark.parametrize(
    ("sources", "message"),
    [
        ([], "Got no data sets"),
        ([SOURCES[0], SOURCES[0]], "Two data sets are named 'dureader'"),
        ([SourceSpec("a", "ir", 5, 0)], "'a': batch_size=0"),
        ([SourceSpec("a", "ir", 0, 5)], "'a' is empty"),
    ],
)
def test_bad_data_sets(sources: list[SourceSpec], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SingleTaskBatchSampler(sources)


def test_too_small_data_sets_are_all_named_with_the_batch_size_that_fits() -> None:
    sources = [*SOURCES, SourceSpec("small", "sts", 31, 8), SourceSpec("tiny", "sts", 3, 8)]
    with pytest.raises(ValueError, match="one optimizer step takes") as caught:
        SingleTaskBatchSampler(sources, world_size=2, accumulation=2)
    small, tiny = str(caught.value).splitlines()
    assert small == (
        "Data set 'small' has 31 examples, but one optimizer step takes 32 (batch_size 8 x world_size 2 x "
        "accumulation 2). Lower its batch_size to at most 7, or drop the data set."
    )
    assert "'tiny' has 3 examples" in tiny
    assert "It needs 4 rows or more at any batch_size: add rows, or drop" in tiny

    remedied = [*SOURCES, SourceSpec("small", "sts", 31, 7)]
    assert SingleTaskBatchSampler(remedied, world_size=2, accumulation=2).steps["small"] == 1
    left_out = SingleTaskBatchSampler(
        [*SOURCES, SourceSpec("tiny", "clustering", 3, 8)], task_shares={"ir": 1, "sts": 1, "clustering": 0}
    )
    assert (left_out.steps["tiny"], left_out.leftover["tiny"]) == (0, 3)


def test_a_share_below_one_step_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        sampler = SingleTaskBatchSampler(SOURCES, task_shares={"ir": 0.001, "sts": 0.999})
        # No warning for what is left out on purpose, and none from other ranks.
        SingleTaskBatchSampler(SOURCES, task_shares={"ir": 0, "sts": 1})
        SingleTaskBatchSampler(SOURCES, rank=1, world_size=2, task_shares={"ir": 0.001, "sts": 0.999})
    assert sampler.steps == {"dureader": 0, "t2": 0, "stsb": 42}
    assert [record.getMessage() for record in caplog.records] == [
        "No step of an epoch goes to 'dureader', 't2': the share is below one step. Raise it, or give it 0."
    ]


def test_source_of() -> None:
    sampler = SingleTaskBatchSampler(SOURCES)
    expected = [index for index, d in enumerate(SOURCES) for _ in range(d.size)]
    assert [sampler.source_of(row) for row in range(TOTAL)] == expected
    for row in (-1, TOTAL):
        with pytest.raises(IndexError, match=f"index={row}, .* {TOTAL} examples"):
            sampler.source_of(row)


def test_memory_is_a_few_bytes_per_row() -> None:
    size = 2_000_000
    sampler = SingleTaskBatchSampler([SourceSpec("a", "ir", size, 1024), SourceSpec("b", "sts", 5000, 64)])
    tracemalloc.start()
    next(iter(sampler))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 5 * size
    assert len(SingleTaskBatchSampler([SourceSpec("a", "ir", 10**10, 1000)])) == 10**7
