"""`codiemb evaluate --benchmark`, `--tasks`, `--as-mteb`: scored by mteb, in mteb's result folders."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import typer
from rich.console import Console
from rich.progress import BarColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars
from rich.table import Table
from rich.text import Text

from codiemb.cli._models import load_model
from codiemb.extras import require

if TYPE_CHECKING:
    from mteb.abstasks import AbsTask
    from mteb.models import ModelMeta

    from codiemb.evaluation.benchmark import Outcome
    from codiemb.evaluation.benchmark_items import TaskScore
    from codiemb.evaluation.benchmark_progress import Progress
    from codiemb.evaluation.changes import Changes
    from codiemb.evaluation.mteb_model import InstructedEncoder

_PIPED_WIDTH = 110  # characters, where no terminal sets a limit
_MODEL_FILES = ("modules.json", "config.json")


class Selection(NamedTuple):
    """Which tasks: mteb's by any of the first four, and local data."""

    benchmark: str | None
    tasks: Sequence[str]
    types: Sequence[str]
    languages: Sequence[str]
    data: Sequence[Path]

    @property
    def of_mteb(self) -> bool:
        """Whether there are tasks of mteb's own."""
        return bool(self.benchmark or self.tasks or self.types or self.languages)


def choose_tasks(selection: Selection, *, sample: int | None, seed: int, ignore_identical_ids: bool) -> list[AbsTask]:
    """mteb's tasks, then the local ones."""
    require("mteb", "benchmark")
    from codiemb.evaluation import benchmark
    from codiemb.evaluation.discovery import discover_all
    from codiemb.evaluation.local_tasks import mteb_tasks

    if sample is not None and selection.of_mteb:
        raise ValueError("--sample is for local data; mteb's tasks are measured whole.")
    benchmark_name, tasks, types, languages, data = selection
    chosen = []
    if selection.of_mteb:
        chosen = benchmark.select(benchmark_name, tasks=tasks, types=types, languages=languages)
    if data:
        local = discover_all(data)
        if sample is not None:
            local = [task.sampled(sample, seed) for task in local]
        chosen += mteb_tasks(local, taken=benchmark.task_names(), same_ids=not ignore_identical_ids)
    return chosen


def list_tasks(tasks: Sequence[AbsTask], dataset_root: Path | None, as_json: bool) -> None:
    """Print which tasks are chosen, and where their data is or would have to be."""
    from codiemb.evaluation.offline import missing_files
    from codiemb.json_files import to_json

    rows = []
    for task in tasks:
        missing: list[str] = []
        if task.data_loaded:
            place = "local"
        elif dataset_root is None:
            place = "hub"
        else:
            missing = missing_files(task, dataset_root)
            place = "missing" if missing else "found"
        name, type_ = task.metadata.name, task.metadata.type
        data = task.metadata.dataset["path"]
        rows.append({"task": name, "type": type_, "data": data, "place": place, "expected": missing})
    if as_json:
        print(to_json(rows), end="")
        return
    table = Table()
    for heading in ("task", "type", "data set", "data"):
        table.add_column(heading, overflow="fold")
    for row in rows:
        table.add_row(*(Text(str(row[key])) for key in ("task", "type", "data", "place")))
    console = Console()
    console.print(table)
    for row in rows:
        for expected in row["expected"]:
            console.print(f"{row['task']}: expected {expected}", highlight=False, markup=False, soft_wrap=True)
    counts = {place: sum(row["place"] == place for row in rows) for place in ("found", "missing", "hub", "local")}
    console.print(", ".join(f"{count} {place}" for place, count in counts.items() if count), highlight=False)


class Other(NamedTuple):
    """What a model is compared with: another model, or results that are there.

    Attributes:
        name: as it was given.
        called: in results and tables.
        results: the one folder with results under that path; None: it is a model.
    """

    name: str
    called: str
    results: Path | None

    @classmethod
    def of(cls, name: str) -> Other:
        """A directory that holds no model is one of results.

        Raises:
            ValueError: there are no results in it, or those of several models.
        """
        folder = Path(name)
        if not folder.is_dir() or any((folder / file).is_file() for file in _MODEL_FILES):
            return cls(name, _result_name(name, None), None)
        from codiemb.evaluation.runs import read_runs

        found = [run for run in read_runs([folder]) if run.results]
        if len(found) > 1:
            listed = ", ".join(str(run.folder) for run in found)
            raise ValueError(
                f"--compare {name}: holds results of {len(found)} models or settings; give one of {listed}."
            )
        return cls(name, found[0].model, found[0].folder)


def evaluate_tasks(
    model: str,
    tasks: Sequence[AbsTask],
    output: Path,
    *,
    name: str | None,
    instructions: Path | None,
    dataset_root: Path | None,
    as_json: bool,
    seed: int,
    compare: str | None,
    changes: int,
    **load_options: Any,
) -> None:
    """Score a model on tasks, show progress and a summary; exit status 1 if a task failed.

    Args:
        compare: another model, scored likewise, or a folder of results: `output`/compare.json, and shown side by side.
        changes: items that gained and lost most to show then.
    """
    from codiemb.evaluation import benchmark
    from codiemb.evaluation.benchmark_compare import compare_scores, score_intervals
    from codiemb.evaluation.benchmark_items import read_scores
    from codiemb.evaluation.benchmark_report import comparison_report, summary, summary_table
    from codiemb.evaluation.changes_table import changes_report
    from codiemb.evaluation.mteb_model import InstructedEncoder, read_instructions
    from codiemb.json_files import to_json, write_json

    other = Other.of(compare) if compare else None
    known = benchmark.task_names() | {task.metadata.name for task in tasks}
    own = read_instructions(instructions, known) if instructions else {}
    output.mkdir(parents=True, exist_ok=True)
    _quiet()

    def measure(model: str, name: str) -> _Measured:
        loaded = load_model(model, **load_options)
        return _measure(InstructedEncoder(loaded, name, own), tasks, output, dataset_root)

    measured = measure(model, _result_name(model, name))
    scores = _scores_of(measured, tasks)
    content = summary(measured.meta, measured.outcomes, scores, score_intervals(scores, seed=seed))
    console = Console()
    if not console.is_terminal:
        console.width = _PIPED_WIDTH
    if not as_json:
        console.print(summary_table(content))
    outcomes = [*measured.outcomes]
    if other is not None:
        if other.results is None:
            theirs = measure(other.name, other.called)
            other_scores = _scores_of(theirs, tasks)
            outcomes += theirs.outcomes
        else:
            other_scores = read_scores(other.results, tasks)
        names = str(measured.meta.name), other.called
        changed = _changes(tasks, dataset_root, scores, other_scores, changes) if changes else {}
        comparison = compare_scores(scores, other_scores, names, seed=seed, changes=changed)
        write_json(output / "compare.json", comparison)
        content["comparison"] = comparison
        if not as_json:
            console.print(comparison_report(comparison, arrows=console.is_terminal))
            console.print(changes_report(changed, names))
    if as_json:
        print(to_json(content), end="")
    Console(stderr=True).print(f"written to {measured.folder}", highlight=False, soft_wrap=True)
    if any(outcome.state == "failed" for outcome in outcomes):
        raise typer.Exit(1)


class _Measured(NamedTuple):
    """One model's run."""

    meta: ModelMeta
    folder: Path
    outcomes: Sequence[Outcome]


def _measure(
    encoder: InstructedEncoder, tasks: Sequence[AbsTask], output: Path, dataset_root: Path | None
) -> _Measured:
    from codiemb.evaluation import benchmark
    from codiemb.evaluation.benchmark_progress import Progress

    console = Console(stderr=True)
    missing = _missing(tasks, dataset_root)
    if missing:
        console.print(f"data missing for {len(missing)} of {len(tasks)} tasks: {', '.join(missing)}", soft_wrap=True)
    progress = Progress(task for task in tasks if task.metadata.name not in missing)
    outcomes: list[Outcome] = []
    with _shown(console, encoder, progress, len(tasks)) as bar:

        def on_start(task: AbsTask) -> None:
            progress.start(task.metadata.name)
            bar.describe(f"{len(outcomes) + 1}/{len(tasks)} {task.metadata.name}")

        for outcome in benchmark.run(encoder, tasks, output, dataset_root=dataset_root, on_start=on_start):
            outcomes.append(outcome)
            progress.end(outcome.task)
            bar.refresh()
            line = f"{len(outcomes)}/{len(tasks)} {_line(outcome)}"
            if left := progress.seconds_left:
                line += f"; about {_duration(left)} left"
            console.print(line, highlight=False, markup=False, soft_wrap=True)
    return _Measured(encoder.mteb_model_meta, benchmark.result_folder(output, encoder), outcomes)


def _scores_of(measured: _Measured, tasks: Sequence[AbsTask]) -> dict[str, TaskScore]:
    """Of the tasks that did not fail."""
    from codiemb.evaluation.benchmark_items import read_scores

    failed = {outcome.task for outcome in measured.outcomes if outcome.state == "failed"}
    return read_scores(measured.folder, [task for task in tasks if task.metadata.name not in failed])


def _changes(
    tasks: Sequence[AbsTask],
    dataset_root: Path | None,
    scores: Mapping[str, TaskScore],
    others: Mapping[str, TaskScore],
    most: int,
) -> dict[str, Changes]:
    """What changed in each task that both models were scored on item by item; its data is loaded for that."""
    from codiemb.evaluation.benchmark import with_data
    from codiemb.evaluation.benchmark_changes import benchmark_changes
    from codiemb.evaluation.benchmark_compare import comparable

    found = {}
    for task in tasks:
        name = task.metadata.name
        if (
            name in scores
            and name in others
            and scores[name].kind != "draws"
            and comparable(scores[name], others[name])
        ):
            found[name] = benchmark_changes(with_data(task, dataset_root), scores[name], others[name], most=most)
    return found


def _quiet() -> None:
    """No bars of the libraries; and without --verbose none of mteb's remarks on tasks that were chosen by name.

    Nor sklearn's on side metrics of classification: precision of a label that no text was given.
    """
    import datasets

    datasets.disable_progress_bars()
    if not logging.getLogger().isEnabledFor(logging.INFO):
        logging.getLogger("mteb").setLevel(logging.ERROR)
        warnings.filterwarnings("ignore", module=r"mteb\.")
        warnings.filterwarnings("ignore", module=r"sklearn\.metrics")


def _missing(tasks: Sequence[AbsTask], dataset_root: Path | None) -> list[str]:
    from codiemb.evaluation.offline import missing_files

    if dataset_root is None:
        return []
    return [task.metadata.name for task in tasks if not task.data_loaded and missing_files(task, dataset_root)]


class _Bar:
    """All tasks as one bar, by characters; nothing where no bar can be drawn."""

    def __init__(self, bars: Bars, bar: TaskID, progress: Progress) -> None:
        self._bars, self._bar, self._progress = bars, bar, progress

    def describe(self, text: str) -> None:
        self._bars.update(self._bar, description=text)

    def refresh(self) -> None:
        left = self._progress.seconds_left
        shown = "" if left is None else f"about {_duration(left)} left"
        self._bars.update(self._bar, completed=self._progress.done, left=shown)

    def advance(self, characters: int) -> None:
        self._progress.advance(characters)
        self.refresh()


@contextmanager
def _shown(console: Console, encoder: InstructedEncoder, progress: Progress, tasks: int) -> Iterator[_Bar]:
    total = f"{tasks} task{'s' if tasks != 1 else ''}, {progress.total:,.0f} characters"
    console.print(f"{total}; the time left is estimated by characters", highlight=False)
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TimeElapsedColumn())
    with Bars(*columns, TextColumn("{task.fields[left]}"), console=console, disable=not console.is_terminal) as bars:
        bar = _Bar(bars, bars.add_task("", total=progress.total, left=""), progress)
        encoder.on_progress = bar.advance
        yield bar


def _line(outcome: Outcome) -> str:
    if outcome.score is None:
        return f"{outcome.task}: failed: {outcome.error}"
    how = "there already, kept" if outcome.state == "kept" else _duration(outcome.seconds)
    return f"{outcome.task}: {100 * outcome.score:.2f} ({outcome.type}, {outcome.main_metric}; {how})"


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min"


def _result_name(model: str, name: str | None) -> str:
    """`organisation/model`, as mteb wants it: a directory's last two parts, a hub id, or codiemb/NAME."""
    if name is None:
        name = "/".join(Path(model).resolve().parts[-2:]) if Path(model).is_dir() else model
    return name if "/" in name else f"codiemb/{name}"
