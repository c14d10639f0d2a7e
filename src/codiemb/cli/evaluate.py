"""`codiemb evaluate`."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

if TYPE_CHECKING:
    from codiemb.encoding import EmbeddingPass
    from codiemb.evaluation import EvalTask, Result
    from codiemb.prompts import InstructionTemplate


def evaluate_command(
    model: str = typer.Argument(help="A model directory, a hub id, or 'bundled'."),
    more_data: list[Path] = typer.Argument(None, metavar="[DATA]...", help="More data, as with --data."),
    data: list[Path] = typer.Option(
        ..., "--data", help="BEIR folder, scored pairs (.tsv, .csv), unified file, or a folder of these; repeatable."
    ),
    output: Path = typer.Option(..., "--output", "-o", help="Directory for results.json."),
    compare: str = typer.Option(None, "--compare", metavar="MODEL", help="Another model, to show side by side."),
    device: str = typer.Option(None, "--device", help="cpu, cuda, cuda:1, ...; the best there is by default."),
    precision: Literal["auto", "bf16", "fp32"] = typer.Option("auto", "--precision", help="auto: the faster one."),
    max_length: int = typer.Option(None, "--max-length", min=1, help="Tokens a text is cut to; the model's limit."),
    template: str = typer.Option(None, "--template", metavar="NAME", help="Prompts to use instead of the model's own."),
    sample: int = typer.Option(None, "--sample", min=1, help="Use this many queries or pairs of each data set."),
    seed: int = typer.Option(0, "--seed", min=0, help="Chooses the sample."),
    ignore_identical_ids: bool = typer.Option(
        False, "--ignore-identical-ids", help="Do not rank a document that has its query's id (ArguAna, Quora)."
    ),
    as_json: bool = typer.Option(False, "--json", help="Print JSON instead of tables."),
) -> None:
    """Measure MODEL on local data: nDCG@10, MAP, MRR@10 and Recall@100, or Spearman and Pearson.

    \b
    codiemb evaluate bundled --data nfcorpus/ --data sts.tsv --output runs/base
    codiemb evaluate runs/mine --data held-out/*.jsonl --output runs/mine-scores --compare bundled
    """
    from codiemb.evaluation import discover, write_results
    from codiemb.evaluation.report import compare as compare_results
    from codiemb.evaluation.report import comparison_table, results_table, to_json, write_json
    from codiemb.prompts import TEMPLATES

    if template is not None and template not in TEMPLATES:
        raise ValueError(f"--template {template}: no such template; expected one of {', '.join(TEMPLATES)}.")
    tasks = discover([*data, *(more_data or [])])
    output.mkdir(parents=True, exist_ok=True)

    def measure(name: str) -> list[Result]:
        embedding_pass, own = _load(name, device, precision, max_length)
        chosen = own if template is None else TEMPLATES[template]
        return _evaluate_all(
            name, embedding_pass, chosen, tasks, sample=sample, seed=seed, ignore_identical_ids=ignore_identical_ids
        )

    results = measure(model)
    write_results(output / "results.json", results)
    console = Console()
    if compare is None:
        if as_json:
            print(to_json([result.to_dict() for result in results]), end="")
        else:
            console.print(results_table(results, model))
    else:
        comparison = compare_results(results, measure(compare), (model, compare))
        write_json(output / "compare.json", comparison)
        if as_json:
            print(to_json(comparison), end="")
        else:
            console.print(results_table(results, model))
            console.print(comparison_table(comparison, arrows=console.is_terminal))
    Console(stderr=True).print(f"written to {output}", highlight=False, soft_wrap=True)


def _load(
    name: str, device: str | None, precision: str, max_length: int | None
) -> tuple[EmbeddingPass, InstructionTemplate]:
    import torch
    from transformers.utils import logging as transformers_logging

    from codiemb import backbones
    from codiemb.encoding import EmbeddingPass

    transformers_logging.disable_progress_bar()
    model = backbones.load(name, device=device)
    template = backbones.template_of(model, None if name == "bundled" else name)
    dtype = {"bf16": torch.bfloat16, "fp32": torch.float32}.get(precision)
    return EmbeddingPass(model, max_length=max_length, precision=dtype), template


def _evaluate_all(
    name: str, embedding_pass: EmbeddingPass, template: InstructionTemplate, tasks: Sequence[EvalTask], **options: Any
) -> list[Result]:
    from codiemb.evaluation import evaluate

    results = []
    console = Console(stderr=True)
    with _progress(console) as progress:
        for task in tasks:
            bar = progress.add_task(task.name, total=None, rate="")
            result = evaluate(
                embedding_pass,
                template,
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


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TextColumn("texts  {task.fields[rate]}"),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    )


def _advance(progress: Progress, bar: TaskID, done: int, total: int) -> None:
    speed = progress.tasks[bar].speed
    progress.update(bar, completed=done, total=total, rate=f"{speed:,.0f} texts/s" if speed else "")
