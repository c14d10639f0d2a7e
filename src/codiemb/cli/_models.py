"""What commands that embed have in common."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

if TYPE_CHECKING:
    from codiemb.embedder import LLMEmbeddingModel

# Arguments and options that have one spelling and one meaning in all commands.
ModelName = Annotated[
    str, typer.Argument(metavar="MODEL", help="A model directory, a GGUF file, a hub id, or 'bundled'.")
]
Device = Annotated[str | None, typer.Option("--device", help="cpu, cuda, cuda:1, ...; the best there is by default.")]
Compute = Annotated[
    Literal["auto", "bf16", "fp32"], typer.Option("--compute", help="Arithmetic; auto: the faster on the device.")
]
MaxLength = Annotated[
    int | None, typer.Option("--max-length", min=1, help="Tokens a text is cut to; the model's limit by default.")
]
Template = Annotated[
    str | None, typer.Option("--template", metavar="NAME", help="Prompts of this family, not the model's own: e5, ...")
]
Instruction = Annotated[
    str | None, typer.Option("--instruction", help="The task in words, or a task's name (T2Retrieval, STSB).")
]
TruncateDim = Annotated[int | None, typer.Option("--truncate-dim", min=1, help="Keep this many leading dimensions.")]
TextField = Annotated[str, typer.Option("--text-field", help="The field or column with the text.")]


def load_model(name: str, **options: Any) -> LLMEmbeddingModel:
    """Load a model without the progress bars of its libraries."""
    from transformers.utils import logging as transformers_logging

    from codiemb.embedder import LLMEmbeddingModel

    transformers_logging.disable_progress_bar()
    return LLMEmbeddingModel(name, **options)


def check_template(name: str | None) -> None:
    """See that there is a template of this name, before anything is read.

    Raises:
        ValueError: there is none.
    """
    from codiemb.prompts import TEMPLATES

    if name is not None and name not in TEMPLATES:
        raise ValueError(f"--template {name}: no such template; expected one of {', '.join(TEMPLATES)}.")


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:,.0f} texts/s" if task.speed else "")


def text_progress(console: Console) -> Progress:
    """Bars that count texts, with their rate and the time left; nothing where `console` is no terminal."""
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        _Rate(),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    )


def durable_name(name: str) -> str:
    """The name that loads the model from any directory."""
    return str(Path(name).resolve()) if Path(name).is_dir() else name
