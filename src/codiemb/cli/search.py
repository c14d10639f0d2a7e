"""`codiemb search`: index documents and find them by meaning."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from codiemb.cli._answers import Form, asked, print_answers, search_file
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
    durable_name,
    load_model,
)
from codiemb.cli._signals import errors_on_sigterm

if TYPE_CHECKING:
    from codiemb.embedder import LLMEmbeddingModel
    from codiemb.search import Answers, DocumentIndex

search_app = typer.Typer(
    no_args_is_help=True,
    help="Index documents and find them by meaning.\n\n"
    "An index is one directory with vectors, texts and the name and fingerprint of the model that made it.",
)

IndexPath = Annotated[Path, typer.Argument(metavar="INDEX", help="Directory of the index.")]
Documents = Annotated[
    list[Path], typer.Argument(metavar="DOCS...", help=".jsonl, .json, .parquet or .txt files, .gz too; BEIR folders.")
]
Model = Annotated[
    str | None, typer.Option("--model", help="Where the model of the index is now; the name it had by default.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
KindChoice = Literal["auto", "flat", "hnsw", "ivf"]


@search_app.command("build")
def build_command(
    model: ModelName,
    documents: Documents,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="INDEX", help="Directory to make.")],
    kind: Annotated[
        KindChoice, typer.Option("--kind", help="flat (exact) to 100,000 documents, hnsw to a million, then ivf.")
    ] = "auto",
    instruction: Instruction = None,
    template: Template = None,
    text_field: TextField = "text",
    truncate_dim: TruncateDim = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an index of that name.")] = False,
    device: Device = None,
    compute: Compute = "auto",
    max_length: MaxLength = None,
    as_json: AsJson = False,
) -> None:
    """Embed documents and write their index. Template, instruction and lengths are kept for what is added and asked.

    \b
    codiemb search build bundled corpus.jsonl -o my.index
    codiemb search build runs/mine notes.txt more.parquet -o my.index --kind hnsw --overwrite
    """
    from codiemb.data.documents import read_documents
    from codiemb.fingerprint import fingerprint
    from codiemb.search import DocumentIndex
    from codiemb.search.manifest import check_vacant

    check_template(template)
    check_vacant(output, overwrite)
    source = read_documents(documents, text_field=text_field)
    encoder = load_model(
        model,
        device=device,
        compute=compute,
        max_length=max_length,
        template=template,
        truncate_dim=truncate_dim,
    )
    with _progress() as on_progress:
        index = DocumentIndex.build(
            source,
            encoder,
            output,
            model=durable_name(model),
            fingerprint=fingerprint(encoder),
            kind=kind,
            metric=_metric(encoder),
            template=template,
            instruction=instruction,
            max_length=encoder.max_seq_length,
            overwrite=overwrite,
            on_progress=on_progress,
        )
    _print_about(index, as_json)


@search_app.command("add")
def add_command(
    index: IndexPath,
    documents: Documents,
    text_field: TextField = "text",
    kind: Annotated[
        KindChoice | None, typer.Option("--kind", help="Change the kind; the present one by default.")
    ] = None,
    model: Model = None,
    device: Device = None,
    compute: Compute = "auto",
    as_json: AsJson = False,
) -> None:
    """Add documents to an index; only these are embedded. Until it is done, the index is as it was.

    \b
    codiemb search add my.index new.jsonl
    """
    from codiemb.data.documents import read_documents
    from codiemb.search import DocumentIndex

    old = DocumentIndex.load(index)
    source = read_documents(documents, text_field=text_field, first_number=len(old) + 1)
    encoder, own = _model_of(old, model, device, compute)
    with _progress() as on_progress:
        new = old.add(source, encoder, fingerprint=own, kind=kind, on_progress=on_progress)
    _print_about(new, as_json)


@search_app.command("info")
def info_command(index: IndexPath, as_json: AsJson = False) -> None:
    """Say what an index holds and which model made it."""
    from codiemb.search import DocumentIndex

    _print_about(DocumentIndex.load(index), as_json)


@search_app.command("query")
def query_command(
    index: IndexPath,
    queries: Annotated[list[str] | None, typer.Argument(metavar="[QUERY]...")] = None,
    file: Annotated[
        Path | None, typer.Option("--queries", "-f", help="Queries from a file of any kind that documents come in.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Of --queries: a file, as --format; stdout by default.")
    ] = None,
    output_format: Annotated[Form, typer.Option("--format", help="Of --queries: JSON lines or a TREC run.")] = "jsonl",
    top: Annotated[int, typer.Option("--top", "-k", min=1, help="Documents for each query.")] = 10,
    instruction: Annotated[
        str | None,
        typer.Option("--instruction", help="The task in words, or a task's name; that of the index by default."),
    ] = None,
    model: Model = None,
    device: Device = None,
    compute: Compute = "auto",
    max_length: MaxLength = None,
    as_json: AsJson = False,
) -> None:
    """Find documents. Without a query, asks for queries in a terminal, or reads one a line from stdin.

    \b
    codiemb search query my.index "how do I reset my password?"
    codiemb search query my.index --queries queries.jsonl --format trec -o run.trec -k 100
    """
    from codiemb.search import DocumentIndex

    if file is not None and queries:
        raise ValueError("Give queries either as arguments or with --queries, not both.")
    if file is None and (output is not None or output_format != "jsonl"):
        raise ValueError("--output and --format are for --queries FILE; use --json or a pipe for single queries.")
    opened = DocumentIndex.load(index)
    encoder, own = _model_of(opened, model, device, compute, max_length)
    opened.check(own, model or opened.manifest.model)

    def search(texts: Sequence[str]) -> Answers:
        return opened.search(texts, encoder, top, instruction=instruction)

    if file is not None:
        search_file(search, file, output, output_format)
    elif queries:
        print_answers(queries, search(queries), as_json)
    else:
        for query in asked():
            print_answers([query], search([query]), as_json)


def _model_of(
    index: DocumentIndex, name: str | None, device: str | None, compute: Compute, max_length: int | None = None
) -> tuple[LLMEmbeddingModel, str]:
    """The model that an index was made with, or its copy `name`, and the fingerprint of what was loaded."""
    from codiemb.fingerprint import fingerprint

    about = index.manifest
    encoder = load_model(
        name or about.model,
        device=device,
        compute=compute,
        max_length=max_length or about.max_length,
        template=about.template,
        truncate_dim=about.dimension,
    )
    return encoder, fingerprint(encoder)


def _metric(encoder: LLMEmbeddingModel) -> Literal["cosine", "dot"]:
    name = str(encoder.similarity_fn_name or "cosine")
    if name not in ("cosine", "dot"):
        raise ValueError(f"The model compares vectors by {name}; an index can do so by cosine or dot.")
    return "cosine" if name == "cosine" else "dot"


def _print_about(index: DocumentIndex, as_json: bool) -> None:
    about = index.manifest
    if as_json:
        print(json.dumps({"index": str(index.directory), **about.model_dump()}, indent=2, ensure_ascii=False))
        return
    print(
        f"{index.directory}: {about.documents} documents, {about.dimension} dimensions, {about.kind}, {about.metric}\n"
        f"model {about.model}, fingerprint {about.fingerprint}"
        + (f"\ninstruction: {about.instruction}" if about.instruction else "")
    )


@contextmanager
def _progress() -> Iterator[Callable[[int], None]]:
    """A line that counts documents. A polite kill ends like an error meanwhile, so that nothing is left."""

    def advance(count: int) -> None:
        check()
        progress.advance(task, count)
        speed = progress.tasks[task].speed
        progress.update(task, rate=f"{speed:,.0f} texts/s" if speed else "")

    console = Console(stderr=True)
    columns = SpinnerColumn(), TextColumn("embedding"), MofNCompleteColumn(), TextColumn("{task.fields[rate]}")
    shown = Progress(*columns, TimeElapsedColumn(), console=console, disable=not console.is_terminal)
    with errors_on_sigterm() as check, shown as progress:
        task = progress.add_task("", total=None, rate="")
        yield advance
