"""The steps of a curation: from files of rows to files of rows, each with a report."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console

from codiemb.curation.cleaning.decontaminating import decontaminate
from codiemb.curation.cleaning.deduplicating import deduplicate
from codiemb.curation.cleaning.evaluation_texts import evaluation_texts
from codiemb.curation.cleaning.filtering import filter_rows
from codiemb.curation.cleaning.leaks import LeakFinder
from codiemb.curation.cleaning.report import CleaningReport
from codiemb.curation.cleaning.rows import RowStream
from codiemb.curation.cleaning.splitting import split
from codiemb.curation.curating.recipe import Step, StepKind
from codiemb.data.cache import OnError


class StepResult(NamedTuple):
    """Files with rows after a step, and what it did.

    Attributes:
        report: `read`, `written` and `rejected` (by reason), and what is particular to the step.
        rejected: the file with the rows that were left out.
    """

    files: list[Path]
    report: dict[str, Any]
    rejected: Path | None


class StepInput(NamedTuple):
    """What a step is given: files with rows, a directory of its own, and how to run."""

    files: Sequence[Path]
    directory: Path
    on_error: OnError
    seed: int
    console: Console | None


def run_step(step: Step, given: StepInput) -> StepResult:
    """Run one step; what it writes lies in its directory."""
    return _STEPS[step.kind](step, given)


def _synthesize(step: Step, given: StepInput) -> StepResult:
    from codiemb.curation.synthesis import synthesize

    report = synthesize(step.synthesis(given.directory / "synthesis"), console=given.console)
    rejected: dict[str, int] = {}
    for kind, counts in report.content.get("kinds", {}).items():
        for reason, count in counts.get("rejected", {}).items():
            rejected[f"{kind}: {reason}"] = count
    summary = {
        "read": 0,
        "written": {path.name: rows for path, rows in report.files.items()},
        "rejected": rejected,
        "synthesis": report.content,
    }
    left_out = report.output / "rejected.jsonl"
    return StepResult([*given.files, *report.files], summary, left_out if left_out.is_file() else None)


def _filter(step: Step, given: StepInput) -> StepResult:
    assert step.filter
    return _cleaned(given, filter_rows(_stream(given), given.directory / "data", step.filter.rules()))


def _dedupe(step: Step, given: StepInput) -> StepResult:
    assert step.dedupe
    return _cleaned(given, deduplicate(_stream(given), given.directory / "data", **dict(step.dedupe)))


def _mine(step: Step, given: StepInput) -> StepResult:
    from codiemb.curation.mining import Miner, mine
    from codiemb.embedder import LLMEmbeddingModel

    options = step.mine
    assert options
    model = LLMEmbeddingModel(options.model, max_length=options.max_length)
    own = {"dense": Miner(options.model, model), "bm25": Miner("bm25", None)}
    result = mine(
        model,
        list(given.files),
        given.directory / "data" / "mined.jsonl",
        model_name=options.model,
        corpus=options.corpus,
        text_field=options.text_field,
        miners=[own[name] for name in options.miners],
        options=options.options,
        instruction=options.instruction,
        words=options.words,
        overwrite=True,  # it is this step's own
    )
    report = result.report.to_dict()
    rows = sum(1 for _ in RowStream([result.output]))
    summary = {"read": rows, "written": {result.output.name: rows}, "rejected": {}, "mining": report}
    return StepResult([result.output], summary, None)


def _decontaminate(step: Step, given: StepInput) -> StepResult:
    options = step.decontaminate
    assert options
    texts = evaluation_texts(options.against, dataset_root=options.dataset_root)
    wanted = [one for one in texts if options.side in ("both", one.side)]
    finder = LeakFinder(wanted, near=options.near_options(), simplify=options.simplify)
    return _cleaned(given, decontaminate(_stream(given), given.directory / "data", finder, drop=options.drop))


def _split(step: Step, given: StepInput) -> StepResult:
    options = step.split
    assert options
    report = split(
        _stream(given),
        {name: given.directory / "data" / f"{name}.jsonl" for name in options.sizes},
        {name: 0.0 if size == "rest" else size for name, size in options.sizes.items()},
        by=options.by,
        group_field=options.group_field,
        simplify=options.simplify,
        seed=given.seed,
    )
    return _cleaned(given, report)


def _stream(given: StepInput) -> RowStream:
    return RowStream(given.files, on_error=given.on_error)


def _cleaned(given: StepInput, report: CleaningReport) -> StepResult:
    content = report.to_dict()
    content["written"] = {Path(path).name: rows for path, rows in report.written.items()}
    del content["rejected_file"]
    if "rows_by_data_set" in content["details"]:  # whose names hold the paths of a run
        by_set = content["details"]["rows_by_data_set"]
        content["details"]["rows_by_data_set"] = {Path(name).name: counts for name, counts in by_set.items()}
    return StepResult([Path(path) for path in report.written], content, report.rejected_file)


_STEPS: dict[StepKind, Callable[[Step, StepInput], StepResult]] = {
    "synthesize": _synthesize,
    "filter": _filter,
    "dedupe": _dedupe,
    "mine": _mine,
    "decontaminate": _decontaminate,
    "split": _split,
}

#: Steps that go on where a stopped run was, from what they left in their directory.
RESUMED: frozenset[StepKind] = frozenset({"synthesize", "mine"})
