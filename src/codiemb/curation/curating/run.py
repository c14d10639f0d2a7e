"""A recipe run step by step: what is there already is taken, what was stopped goes on, what is done is published."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from rich.console import Console

from codiemb.curation.cleaning.outputs import RowFile, output_name
from codiemb.curation.cleaning.rows import RowStream
from codiemb.curation.curating.card import data_card, describe_split
from codiemb.curation.curating.keys import content_hash, digest, step_key
from codiemb.curation.curating.recipe import CurationRecipe, Source, Step
from codiemb.curation.curating.steps import RESUMED, StepInput, run_step
from codiemb.data.examples import DataError
from codiemb.data.readers import data_files
from codiemb.data.writers import replacing

REPORT_FILE = "curation.json"

OnStep = Callable[[str, str], None]  # step, and what becomes of it: "cached", "running" or "done"


@dataclass(frozen=True)
class CurationReport:
    """What a run did.

    Attributes:
        ran: steps that were not there already.
        content: as `curation.json` has it.
    """

    output: Path
    ran: list[str]
    content: dict[str, Any]


def curate(
    recipe: CurationRecipe, *, console: Console | None = None, on_step: OnStep = lambda step, state: None
) -> CurationReport:
    """Run a recipe; steps whose inputs, options and code are as before are not run again.

    `recipe.output` gets `data/NAME.parquet` for each split, `README.md` with the hub's metadata, `curation.json`, and
    `rejected/` with what each step left out. What the steps wrote stays in `OUTPUT.steps`, a directory for each,
    complete as soon as it has its final name. A stopped run goes on at the step that it was in.

    Args:
        console: for the progress of steps that show it.
        on_step: told as each step begins and ends.
    Raises:
        RecipeError, DataError, ValueError: of a step, or another run at work on the same output.
    """
    work = recipe.output.with_name(f"{recipe.output.name}.steps")
    work.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(work / ".lock", timeout=0):
            return _run(recipe, work, console, on_step)
    except Timeout:
        raise DataError(f"{work}: another run is at work there. Wait for its end, or choose another output.") from None


def _run(recipe: CurationRecipe, work: Path, console: Console | None, on_step: OnStep) -> CurationReport:
    before = _published(recipe.output)
    sources = [data_files([source.path]) for source in recipe.sources]
    files = [file for found in sources for file in found]
    repeated = [name for name, times in Counter(map(output_name, files)).items() if times > 1]
    if repeated:
        raise DataError(f"sources: two files would be {repeated[0]} after a step; rename one, since steps keep names.")
    key = digest([[file.name, content_hash(file)] for file in files] + [recipe.on_error])
    steps: list[dict[str, Any]] = []
    rejected: list[tuple[str, Path]] = []
    ran: list[str] = []
    for number, step in enumerate(recipe.steps, 1):
        name = _name(number, step)
        key = step_key(step, key, recipe.seed)
        directory = work / f"{name}-{key}"
        if directory.is_dir():
            on_step(name, "cached")
        else:
            on_step(name, "running")
            _make(name, step, directory, files, recipe, console)
            ran.append(name)
            on_step(name, "done")
        state = json.loads((directory / "step.json").read_text(encoding="utf-8"))
        files = [work / file if file_is_ours else Path(file) for file, file_is_ours in state["files"]]
        steps.append({"step": name, "key": key, "options": step.published_options(), **state["report"]})
        if state["rejected"]:
            rejected.append((name, directory / state["rejected"]))
    key = digest([key, recipe.model_dump(mode="json", include={"card", "format", "sources", "documents"})])
    if before and before["key"] == key and all((recipe.output / one["file"]).is_file() for one in before["splits"]):
        return CurationReport(recipe.output, ran, before)
    content = _publish(recipe, key, sources, files, steps, rejected)
    return CurationReport(recipe.output, ran, content)


def _make(
    name: str, step: Step, directory: Path, files: list[Path], recipe: CurationRecipe, console: Console | None
) -> None:
    """Run a step in a directory that gets its name when all is there."""
    partial = directory.with_name(f"{directory.name}.partial")
    if step.kind not in RESUMED:
        shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(exist_ok=True)
    result = run_step(step, StepInput(name, files, partial, recipe.on_error, recipe.seed, console))
    if not result.files:
        shown = f"; {result.rejected} says why" if result.rejected else ""
        raise DataError(f"{name}: no row is left{shown}. Change the options of the step, or take it out.")
    work = directory.parent

    def place(path: Path) -> tuple[str, bool]:
        if partial in path.parents:
            return str(directory.relative_to(work) / path.relative_to(partial)), True
        return (str(path.relative_to(work)), True) if work in path.parents else (str(path), False)

    state = {
        "files": [place(path) for path in result.files],
        "rejected": str(result.rejected.relative_to(partial)) if result.rejected else None,
        "report": result.report,
    }
    (partial / "step.json").write_text(json.dumps(state, ensure_ascii=False, indent=1), encoding="utf-8")
    partial.rename(directory)


def _published(output: Path) -> dict[str, Any] | None:
    """What lies there of an earlier run.

    Raises:
        DataError: something else lies there, whose `data` would be replaced.
    """
    path = output / REPORT_FILE
    if path.is_file():
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return content
    if output.is_file() or (output.is_dir() and any(output.iterdir())):
        raise DataError(f"{output}: is no data set of an earlier run. Choose another output, or move it away.")
    return None


def _publish(
    recipe: CurationRecipe,
    key: str,
    sources: list[list[Path]],
    files: list[Path],
    steps: list[dict[str, Any]],
    rejected: list[tuple[str, Path]],
) -> dict[str, Any]:
    output = recipe.output
    output.mkdir(parents=True, exist_ok=True)
    _write(output / REPORT_FILE, json.dumps({"key": None}))  # until all of the new data is there
    is_split = recipe.steps[-1].kind == "split"
    parts = {file.name.removesuffix(".jsonl"): [file] for file in files} if is_split else {"train": files}
    for folder in ("data", "rejected"):
        shutil.rmtree(output / folder, ignore_errors=True)
    splits = []
    for name, of_split in parts.items():
        target = output / "data" / f"{name}.{recipe.format}"
        with RowFile(target) as sink:
            for row in RowStream(of_split, on_error=recipe.on_error):
                sink.write(row)
        splits.append({"split": name, "file": f"data/{target.name}", **describe_split(target)})
    for step, path in rejected:
        (output / "rejected").mkdir(exist_ok=True)
        shutil.copyfile(path, output / "rejected" / f"{step}.rejected.jsonl")
    origins = [
        {**source.model_dump(mode="json", exclude={"path"}), "files": [file.name for file in found]}
        for source, found in zip(recipe.sources, sources, strict=True)
    ]
    content: dict[str, Any] = {
        "key": key,
        "card": recipe.card.model_dump(mode="json"),
        "sources": origins,
        "documents": _documents(recipe),
        "steps": steps,
        "splits": splits,
    }
    for name, text in (
        ("README.md", data_card(output.resolve().name, content)),
        (REPORT_FILE, json.dumps(content, ensure_ascii=False, indent=1) + "\n"),
    ):
        _write(output / name, text)
    return content


def _documents(recipe: CurationRecipe) -> list[dict[str, Any]]:
    """Each file of documents with the steps that read it, and what the recipe says of it."""
    described = {one.path: one for one in recipe.documents}
    readers: dict[Path, list[str]] = {}
    for number, step in enumerate(recipe.steps, 1):
        for path in step.documents:
            readers.setdefault(path, []).append(_name(number, step))
    return [
        {
            **described.get(path, Source(path=path)).model_dump(mode="json", exclude={"path"}),
            "files": [path.name],
            "read_by": steps,
        }
        for path, steps in readers.items()
    ]


def _name(number: int, step: Step) -> str:
    return f"{number:02d}-{step.kind}"


def _write(path: Path, text: str) -> None:
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")
