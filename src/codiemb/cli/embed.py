"""`codiemb embed`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import Console
from rich.progress import TextColumn

from codiemb.cli._models import (
    Compute,
    Device,
    Instruction,
    MaxLength,
    ModelName,
    Template,
    TextField,
    TruncateDim,
    check_template,
    load_model,
)
from codiemb.progress_bars import counting_bars

if TYPE_CHECKING:
    from codiemb.bulk import BulkResult


def embed_command(
    model: ModelName,
    source: Annotated[str, typer.Argument(metavar="INPUT", help="Text, .jsonl or .parquet; .gz too; - for stdin.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="OUT", help=".npy, .parquet or .jsonl.")],
    side: Annotated[Literal["document", "query"], typer.Option("--side", help="Whose prompt the texts get.")] = (
        "document"
    ),
    instruction: Instruction = None,
    template: Template = None,
    text_field: TextField = "text",
    input_format: Annotated[
        Literal["auto", "text", "jsonl", "parquet"],
        typer.Option("--input-format", help="auto: by the name, text for stdin."),
    ] = "auto",
    keep_text: Annotated[bool, typer.Option("--keep-text", help="Write the texts beside their vectors.")] = False,
    truncate_dim: TruncateDim = None,
    precision: Annotated[
        Literal["float32", "int8", "uint8", "binary", "ubinary"],
        typer.Option("--precision", help="Of the vectors, as sentence-transformers quantises them."),
    ] = "float32",
    device: Device = None,
    compute: Compute = "auto",
    max_length: MaxLength = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace OUT, and drop what a run with other settings left.")
    ] = False,
) -> None:
    """Embed every row of INPUT, in constant memory. Stopped, the same command goes on where it was.

    \b
    codiemb embed bundled corpus.jsonl -o corpus.parquet --keep-text
    zcat questions.txt.gz | codiemb embed runs/mine - -o questions.npy --side query
    """
    from codiemb.bulk import embed_rows
    from codiemb.bulk_output import check_output
    from codiemb.data.text_rows import count_rows, input_kind, text_rows

    check_template(template)
    check_output(output, keep_text)
    kind = input_kind(source) if input_format == "auto" else input_format
    rows = text_rows(source, kind, text_field)
    total = count_rows(source, kind)
    encoder = load_model(
        model,
        device=device,
        compute=compute,
        max_length=max_length,
        template=template,
        truncate_dim=truncate_dim,
    )
    console = Console(stderr=True)
    with _Bar(console, total) as bar:
        try:
            result = embed_rows(
                encoder,
                rows,
                output,
                side=side,
                instruction=instruction,
                precision=precision,
                keep_text=keep_text,
                overwrite=overwrite,
                on_progress=bar.advance,
            )
        except (KeyboardInterrupt, OSError):
            if bar.rows:
                note = f"stopped: {bar.rows:,} rows are kept in {output}.parts; the same command goes on from there"
                console.print(note, highlight=False, markup=False, soft_wrap=True)
            raise
    console.print(_summary(result, output, bar), highlight=False, markup=False, soft_wrap=True)


def _summary(result: BulkResult, output: Path, bar: _Bar) -> str:
    lines = [f"{result.rows:,} vectors of {result.dimension} dimensions in {output}"]
    if result.resumed:
        lines.append(f"{result.resumed:,} of them were there from a stopped run")
    if result.truncated:
        lines.append(f"{result.truncated:,} distinct texts were cut to the maximum length")
    return f"{'; '.join(lines)} ({bar.speed()})"


class _Bar:
    """Rows, texts/s, tokens/s and the time left; nothing where stderr is no terminal."""

    def __init__(self, console: Console, total: int | None) -> None:
        self.rows = 0
        self._done = self._tokens = 0
        self._bar = counting_bars(console, TextColumn("{task.fields[speed]}"))
        self._task = self._bar.add_task("embed", total=total, speed="")

    def __enter__(self) -> _Bar:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def advance(self, rows: int, tokens: int) -> None:
        """Rows and tokens just done; rows without tokens were done by an earlier run."""
        self.rows += rows
        self._done += rows if tokens else 0
        self._tokens += tokens
        self._bar.update(self._task, advance=rows, speed=self.speed())

    def speed(self) -> str:
        """Of this run, from its beginning."""
        seconds = max(self._bar.tasks[0].elapsed or 0.0, 1e-9)
        return f"{self._done / seconds:,.0f} texts/s, {self._tokens / seconds:,.0f} tokens/s"
