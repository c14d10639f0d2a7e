"""Folders of mteb results, as `codiemb evaluate` and mteb itself write them, read back."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from codiemb.extras import require

if TYPE_CHECKING:
    from mteb.results import TaskResult

logger = logging.getLogger(__name__)

LOG_FILE = "tasks.jsonl"
"""Beside the results of `codiemb evaluate`, a line for each time a task ended."""


@dataclass(frozen=True, eq=False)
class Run:
    """The results in one folder: of one model at one revision.

    Attributes:
        results: by task.
        types: of tasks that `codiemb evaluate` ran, which mteb does not know for local data.
        failures: the error of each task that failed there, and has no result.
        problems: files that look like results and cannot be read.
    """

    model: str
    revision: str
    parameters: int | None
    folder: Path
    results: dict[str, TaskResult] = field(default_factory=dict)
    types: dict[str, str] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


def read_runs(paths: Iterable[str | Path]) -> list[Run]:
    """Read all results under `paths`, by folder.

    Args:
        paths: folders at any level of mteb's layout MODEL/REVISION/TASK.json, or single results. A model's name is
            the one in model_meta.json, else its folder's. JSON files that are not results are passed over.
    Raises:
        FileNotFoundError: a path that is not there.
        ValueError: no results at all, or two results of one task in one folder.
    """
    runs: dict[Path, Run] = {}
    seen: set[Path] = set()
    roots = [Path(path) for path in paths]
    for root in roots:
        if not root.exists():
            raise FileNotFoundError(f"{root}: no such file or folder; expected a folder of mteb results.")
        files = [*root.rglob("*.json"), *root.rglob(LOG_FILE)] if root.is_dir() else [root]
        for file in sorted(files):
            hidden = any(part.startswith(".") for part in file.relative_to(root).parts)
            if file.resolve() not in seen and not hidden and file.name != "model_meta.json":
                seen.add(file.resolve())
                _read_file(file, root, runs)
    found = [run for run in runs.values() if run.results or run.failures]
    if not any(run.results for run in found):
        failures = [f"{name} failed: {error}" for run in found for name, error in run.failures.items()]
        problems = "".join(f"\n{text}" for text in [*failures, *(p for run in runs.values() for p in run.problems)])
        raise ValueError(
            f"No results under {', '.join(map(str, roots))}; expected mteb's layout MODEL/REVISION/TASK.json, as "
            f"`codiemb evaluate` writes it with --benchmark, --tasks or --as-mteb.{problems}"
        )
    for run in runs.values():
        if run not in found:  # in no row, and its problems in no note
            for problem in run.problems:
                logger.warning("%s", problem)
    return found


def _read_file(file: Path, root: Path, runs: dict[Path, Run]) -> None:
    if file.name == LOG_FILE:
        _read_log(file, _run_of(file, root, runs))
        return
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        _run_of(file, root, runs).problems.append(f"{file}: not JSON: {error}")
        return
    if not isinstance(content, dict) or not (
        {"task_name", "scores"} <= content.keys() or "mteb_dataset_name" in content
    ):
        return
    run = _run_of(file, root, runs)
    try:
        result: TaskResult = require("mteb.results", "benchmark").TaskResult.from_disk(file)
    except (ValueError, KeyError) as error:
        run.problems.append(f"{file}: mteb cannot read this result: {error}")
        return
    if result.task_name in run.results:
        raise ValueError(f"{file.parent}: holds two results of {result.task_name}. Move one away.")
    run.results[result.task_name] = result


def _read_log(file: Path, run: Run) -> None:
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        try:
            entry = json.loads(line)
            task, type_, state, error = (str(entry[key]) for key in ("task", "type", "state", "error"))
        except ValueError as problem:  # the last line of a run that was killed
            run.problems.append(f"{file}:{number}: not JSON: {problem}")
            continue
        except (KeyError, TypeError):  # a file of that name from elsewhere
            run.problems.append(
                f"{file}:{number}: not a line of `codiemb evaluate`, which has task, type, state, error"
            )
            continue
        run.types[task] = type_
        run.failures.pop(task, None)  # the last run of a task counts
        if state == "failed":
            run.failures[task] = error


def _run_of(file: Path, root: Path, runs: dict[Path, Run]) -> Run:
    """The run that the folder of `file` stands for."""
    folder = file.parent.resolve()
    if folder not in runs:
        meta_file = folder / "model_meta.json"
        meta = json.loads(meta_file.read_text(encoding="utf-8")) if meta_file.is_file() else {}
        above = folder.parent.name
        in_layout = (file.parent != root and file != root) or "__" in above
        model = meta.get("name") or (above.replace("__", "/") if in_layout else folder.name)
        if above == "experiments":  # one model with other settings, named by its folder
            model += f" ({folder.name})"
        revision = meta.get("revision") or (folder.name if in_layout else "")
        runs[folder] = Run(model, revision, meta.get("n_parameters"), file.parent)
    return runs[folder]
