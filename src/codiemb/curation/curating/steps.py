"""The steps of a curation: from files of rows to files of rows, each with a report."""

from __future__ import annotations

import shutil
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
from codiemb.curation.curating.published import published
from codiemb.curation.curating.recipe import Step, StepKind
from codiemb.curation.synthesis import synthesize
from codiemb.curation.synthesis.run import JOURNAL_FILE, REJECTED_FILE
from codiemb.data.cache import OnError
from codiemb.data.writers import replacing


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
    """What a step is given: its name, files with rows, a directory of its own, and how to run."""

    name: str
    files: Sequence[Path]
    directory: Path
    on_error: OnError
    seed: int
    console: Console | None


def run_step(step: Step, given: StepInput) -> StepResult:
    """Run one step; what it writes lies in its directory."""
    return _STEPS[step.kind](step, given)


def _synthesize(step: Step, given: StepInput) -> StepResult:
    recipe = step.synthesis(given.directory / "synthesis")
    _take_journal(recipe.output, given)
    report = synthesize(recipe, console=given.console)
    data = given.directory / "data"
    data.mkdir(exist_ok=True)
    files = {}
    for path, rows in report.files.items():  # named by the step, since a source may be called ir.jsonl too
        files[data / f"{given.name}-{path.name}"] = rows
        shutil.copyfile(path, data / f"{given.name}-{path.name}")
    summary = {
        "read": 0,
        "written": {path.name: rows for path, rows in files.items()},
        "rejected": {
            f"{kind}: {reason}": count
            for kind, counts in report.content["kinds"].items()
            for reason, count in counts["reasons"].items()
        },
        # Model and gates are among the options.
        "synthesis": {key: value for key, value in report.content.items() if key not in ("model", "gates")},
    }
    left_out = report.output / REJECTED_FILE
    return StepResult([*given.files, *files], summary, left_out if summary["rejected"] else None)


def _take_journal(output: Path, given: StepInput) -> None:
    """Begin with the newest journal of the same step, whose answers serve where requests are as they were."""
    if (output / JOURNAL_FILE).exists():
        return
    earlier = given.directory.parent.glob(f"{given.name}-*/{output.name}/{JOURNAL_FILE}")
    newest = max(earlier, key=lambda path: path.stat().st_mtime_ns, default=None)
    if newest:
        output.mkdir(exist_ok=True)
        with replacing(output / JOURNAL_FILE) as partial:
            shutil.copyfile(newest, partial)


def _filter(step: Step, given: StepInput) -> StepResult:
    assert step.filter
    return _cleaned(given, filter_rows(_stream(given), given.directory / "data", step.filter))


def _dedupe(step: Step, given: StepInput) -> StepResult:
    assert step.dedupe
    return _cleaned(given, deduplicate(_stream(given), given.directory / "data", **dict(step.dedupe)))


def _mine(step: Step, given: StepInput) -> StepResult:
    from codiemb.curation.mining import Miner, mine
    from codiemb.embedder import LLMEmbeddingModel

    options = step.mine
    assert options
    model = LLMEmbeddingModel(options.model, max_length=options.max_length)
    own = {"dense": Miner("dense", model), "bm25": Miner("bm25", None)}
    result = mine(
        model,
        list(given.files),
        given.directory / "data" / "mined.jsonl",
        model_name="dense",
        corpus=options.corpus,
        text_field=options.text_field,
        miners=[own[name] for name in options.miners],
        options=options.options,
        instruction=options.instruction,
        words=options.words,
        overwrite=True,  # it is this step's own
    )
    report = result.report.to_dict()
    rows = report["about"]["rows"]
    rejected = {f"candidates: {reason}": count for reason, count in report["rejected"].items()}
    summary = {"read": rows, "written": {result.output.name: rows}, "rejected": rejected, "mining": report}
    return StepResult([result.output], summary, None)


def _decontaminate(step: Step, given: StepInput) -> StepResult:
    options = step.decontaminate
    assert options
    texts = evaluation_texts(options.against, dataset_root=options.dataset_root)
    wanted = [one._replace(source=published(one.source)) for one in texts if options.side in ("both", one.side)]
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
    return RowStream(given.files, names=[file.name for file in given.files], on_error=given.on_error)


def _cleaned(given: StepInput, report: CleaningReport) -> StepResult:
    content = report.to_dict()
    content["written"] = {Path(path).name: rows for path, rows in report.written.items()}
    del content["rejected_file"]
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
