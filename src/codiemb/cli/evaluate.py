"""`codiemb evaluate`."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console
from rich.progress import Progress, TaskID

from codiemb.cli._models import Compute, Device, MaxLength, Template, check_template, load_model, text_progress
from codiemb.cli.evaluate_benchmark import Selection, choose_tasks, evaluate_tasks, list_tasks

if TYPE_CHECKING:
    from codiemb.embedder import LLMEmbeddingModel
    from codiemb.evaluation import EvalTask, Result


_BENCHMARKS = "Benchmarks, scored by mteb"


def evaluate_command(
    model: str = typer.Argument(None, help="A model directory, a hub id, or 'bundled'. Not needed with --list."),
    more_data: list[Path] = typer.Argument(None, metavar="[DATA]...", help="More data, as with --data."),
    data: list[Path] = typer.Option(
        None, "--data", help="BEIR folder, scored pairs (.tsv, .csv), unified file, or a folder of these; repeatable."
    ),
    output: Path = typer.Option(None, "--output", "-o", help="Directory for results.json, or for mteb's results."),
    compare: str = typer.Option(
        None,
        "--compare",
        metavar="OTHER",
        help="Another model, to show side by side; for benchmarks also a folder of results.",
    ),
    changes: int = typer.Option(
        5, "--changes", metavar="N", min=0, help="With --compare: show the N items that changed most."
    ),
    device: Device = None,
    compute: Compute = "auto",
    max_length: MaxLength = None,
    template: Template = None,
    sample: int = typer.Option(None, "--sample", min=1, help="Use this many queries or pairs of each data set."),
    seed: int = typer.Option(0, "--seed", min=0, help="Chooses the sample, and resamples for the intervals."),
    ignore_identical_ids: bool = typer.Option(
        False, "--ignore-identical-ids", help="Do not rank a document that has its query's id (ArguAna, Quora)."
    ),
    as_json: bool = typer.Option(False, "--json", help="Print JSON instead of tables."),
    benchmark: str = typer.Option(
        None, "--benchmark", metavar="NAME", help="All tasks of it: 'MTEB(cmn, v1)', ...", rich_help_panel=_BENCHMARKS
    ),
    task_names: list[str] = typer.Option(
        None, "--tasks", metavar="NAMES", help="Only these tasks: LCQMC,STSB; repeatable.", rich_help_panel=_BENCHMARKS
    ),
    types: list[str] = typer.Option(
        None, "--types", metavar="TYPES", help="Only tasks of these types: STS,Retrieval.", rich_help_panel=_BENCHMARKS
    ),
    languages: list[str] = typer.Option(
        None, "--languages", metavar="CODES", help="Only tasks in these: cmn,eng.", rich_help_panel=_BENCHMARKS
    ),
    as_mteb: bool = typer.Option(
        False,
        "--as-mteb",
        help="Score --data as mteb tasks, labelled texts too (as with any of the four above).",
        rich_help_panel=_BENCHMARKS,
    ),
    instructions: Path = typer.Option(
        None, "--instructions", help="JSON or YAML: task name to instruction.", rich_help_panel=_BENCHMARKS
    ),
    dataset_root: Path = typer.Option(
        None,
        "--dataset-root",
        exists=True,
        file_okay=False,
        help="Data sets in DIR/<org>/<name>, no hub.",
        rich_help_panel=_BENCHMARKS,
    ),
    name: str = typer.Option(
        None, "--name", help="What results call the model (default: its path or id).", rich_help_panel=_BENCHMARKS
    ),
    list_only: bool = typer.Option(
        False, "--list", help="Print the chosen tasks and whether their data is there.", rich_help_panel=_BENCHMARKS
    ),
) -> None:
    """Measure MODEL on local data (nDCG@10, MAP, MRR@10 and Recall@100, or Spearman and Pearson) or on benchmarks.

    \b
    codiemb evaluate bundled --data nfcorpus/ --data sts.tsv --output runs/base
    codiemb evaluate runs/mine --data held-out/*.jsonl --output runs/mine-scores --compare bundled
    codiemb evaluate runs/mine --benchmark 'MTEB(cmn, v1)' --output benchmark
    """
    paths = [*(data or []), *(more_data or [])]
    selection = Selection(benchmark, _split(task_names), _split(types), _split(languages), paths)
    by_mteb = as_mteb or selection.of_mteb
    _check(by_mteb, model=model, output=output, paths=paths, template=template, list_only=list_only)
    if by_mteb:
        chosen_tasks = choose_tasks(selection, sample=sample, seed=seed, ignore_identical_ids=ignore_identical_ids)
        if list_only:
            list_tasks(chosen_tasks, dataset_root, as_json)
            return
        evaluate_tasks(
            model,
            chosen_tasks,
            output,
            name=name,
            instructions=instructions,
            dataset_root=dataset_root,
            as_json=as_json,
            seed=seed,
            compare=compare,
            changes=changes,
            device=device,
            compute=compute,
            max_length=max_length,
            template=template,
        )
        return
    if instructions or dataset_root or name:
        raise ValueError(
            "--instructions, --dataset-root and --name are for benchmarks. Choose tasks with --benchmark, --tasks, "
            "--types or --languages, or score --data with --as-mteb."
        )
    from codiemb.evaluation import discover, write_results
    from codiemb.evaluation.changes import changes as changes_of
    from codiemb.evaluation.changes_table import changes_report
    from codiemb.evaluation.report import compare as compare_results
    from codiemb.evaluation.report import comparison_table, results_json, results_table
    from codiemb.evaluation.significance import differences, intervals
    from codiemb.json_files import to_json, write_json

    tasks = discover(paths)
    output.mkdir(parents=True, exist_ok=True)

    def measure(name: str) -> list[Result]:
        loaded = load_model(name, device=device, compute=compute, max_length=max_length, template=template)
        return _evaluate_all(name, loaded, tasks, sample=sample, seed=seed, ignore_identical_ids=ignore_identical_ids)

    results = measure(model)
    ranges = intervals(results, seed=seed)
    write_results(output / "results.json", results, ranges)
    console = Console()
    if compare is None:
        if as_json:
            print(to_json(results_json(results, ranges)), end="")
        else:
            console.print(results_table(results, model, ranges))
    else:
        others = measure(compare)
        changed = {
            task.name: changes_of(task, mine, theirs, most=changes)
            for task, mine, theirs in zip(tasks, results, others, strict=True)
        }
        comparison = compare_results(
            results,
            others,
            (model, compare),
            differences=differences(results, others, seed=seed),
            other_intervals=intervals(others, seed=seed),
            changes=changed,
        )
        write_json(output / "compare.json", comparison)
        if as_json:
            print(to_json(comparison), end="")
        else:
            console.print(results_table(results, model, ranges))
            console.print(comparison_table(comparison, arrows=console.is_terminal))
            console.print(changes_report(changed, (model, compare)))
    Console(stderr=True).print(f"written to {output}", highlight=False, soft_wrap=True)


def _check(
    by_mteb: bool,
    *,
    model: str | None,
    output: Path | None,
    paths: Sequence[Path],
    template: str | None,
    list_only: bool,
) -> None:
    if not by_mteb and (list_only or not paths):
        raise ValueError("Nothing to measure on. Give --data, or choose tasks with --benchmark, --tasks or --types.")
    if not list_only and (model is None or output is None):
        raise ValueError(f"{'MODEL' if model is None else '--output'} is missing.")
    check_template(template)


def _split(values: list[str] | None) -> list[str]:
    """Values that were given one by one or with commas."""
    return [part.strip() for value in values or () for part in value.split(",") if part.strip()]


def _evaluate_all(name: str, model: LLMEmbeddingModel, tasks: Sequence[EvalTask], **options: Any) -> list[Result]:
    from codiemb.evaluation import evaluate

    results = []
    console = Console(stderr=True)
    with text_progress(console) as progress:
        for task in tasks:
            bar = progress.add_task(task.name, total=None)
            result = evaluate(
                model.embedding_pass,
                model.template,
                task,
                model_name=name,
                on_progress=partial(_advance, progress, bar),
                **options,
            )
            results.append(result)
            if not console.is_terminal:  # where no bar is drawn
                shown = f"{name}: {task.name}: {100 * result.main_score:.2f} (n={result.n})"
                console.print(shown, highlight=False, markup=False, soft_wrap=True)
    return results


def _advance(progress: Progress, bar: TaskID, done: int, total: int) -> None:
    progress.update(bar, completed=done, total=total)
