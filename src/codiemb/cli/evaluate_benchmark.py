"""`codiemb evaluate --benchmark`, `--tasks`, `--as-mteb`: scored by mteb, in mteb's result folders."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import typer
from rich.console import Console
from rich.progress import BarColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars
from rich.table import Table
from rich.text import Text

from codiemb.extras import require

if TYPE_CHECKING:
    from mteb.abstasks import AbsTask

    from codiemb.evaluation.benchmark import Outcome
    from codiemb.evaluation.benchmark_progress import Progress
    from codiemb.evaluation.mteb_model import InstructedEncoder


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
    from codiemb.evaluation.report import to_json

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


def evaluate_tasks(
    model: str,
    tasks: Sequence[AbsTask],
    output: Path,
    *,
    name: str | None,
    instructions: Path | None,
    dataset_root: Path | None,
    as_json: bool,
    **load_options: Any,
) -> None:
    """Score a model on tasks, show progress and a summary; exit status 1 if a task failed."""
    from codiemb.embedder import LLMEmbeddingModel
    from codiemb.evaluation import benchmark
    from codiemb.evaluation.benchmark_progress import Progress
    from codiemb.evaluation.benchmark_report import summary, summary_table
    from codiemb.evaluation.mteb_model import InstructedEncoder, read_instructions
    from codiemb.evaluation.report import to_json

    names = benchmark.task_names() | {task.metadata.name for task in tasks}
    own = read_instructions(instructions, names) if instructions else {}
    output.mkdir(parents=True, exist_ok=True)
    _quiet()
    encoder = InstructedEncoder(LLMEmbeddingModel(model, **load_options), _result_name(model, name), own)
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
    content = summary(encoder.mteb_model_meta, outcomes)
    if as_json:
        print(to_json(content), end="")
    else:
        Console().print(summary_table(content))
    folder = benchmark.result_folder(output, encoder)
    console.print(f"written to {folder}", highlight=False, soft_wrap=True)
    if any(outcome.state == "failed" for outcome in outcomes):
        raise typer.Exit(1)


def _quiet() -> None:
    """No bars of the libraries; and without --verbose none of mteb's remarks on tasks that were chosen by name.

    Nor sklearn's on side metrics of classification: precision of a label that no text was given.
    """
    import datasets
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
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
