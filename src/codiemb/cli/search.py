"""`codiemb search`: index documents and find them by meaning."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from codiemb.cli._bars import print_ranking
from codiemb.cli._models import durable_name, load_model, passage_instruction

if TYPE_CHECKING:
    from codiemb.embedder import LLMEmbeddingModel
    from codiemb.search import Answers, DocumentIndex

_BATCH = 1024  # queries of a file that are searched together

search_app = typer.Typer(
    no_args_is_help=True,
    help="Index documents and find them by meaning.\n\n"
    "An index is one directory with vectors, texts and the name and fingerprint of the model that made it.",
)

IndexPath = Annotated[Path, typer.Argument(metavar="INDEX", help="Directory of the index.")]
Documents = Annotated[
    list[Path], typer.Argument(metavar="DOCS...", help=".jsonl, .json, .parquet or .txt files, .gz too; BEIR folders.")
]
TextField = Annotated[str, typer.Option("--text-field", help="The field with a document's text.")]
Device = Annotated[str | None, typer.Option("--device", help="cpu, cuda, cuda:1, ...; the best there is by default.")]
MaxLength = Annotated[
    int | None, typer.Option("--max-length", min=1, help="Tokens a text is cut to; the model's limit by default.")
]
Model = Annotated[
    str | None, typer.Option("--model", help="Where the model of the index is now; the name it had by default.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
KindChoice = Literal["auto", "flat", "hnsw", "ivf"]


@search_app.command("build")
def build_command(
    model: Annotated[str, typer.Argument(help="A model directory, a hub id, or 'bundled'.")],
    documents: Documents,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="INDEX", help="Directory to make.")],
    kind: Annotated[
        KindChoice, typer.Option("--kind", help="flat (exact) to 100,000 documents, hnsw to a million, then ivf.")
    ] = "auto",
    instruction: Annotated[
        str | None, typer.Option("--instruction", help="For the documents: a text or a task's name (T2Retrieval).")
    ] = None,
    text_field: TextField = "text",
    truncate_dim: Annotated[
        int | None, typer.Option("--truncate-dim", min=1, help="Keep this many leading dimensions.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an index of that name.")] = False,
    device: Device = None,
    max_length: MaxLength = None,
    as_json: AsJson = False,
) -> None:
    """Embed documents and write their index.

    \b
    codiemb search build bundled corpus.jsonl -o my.index
    codiemb search build runs/mine notes.txt more.parquet -o my.index --kind hnsw --overwrite
    """
    from codiemb.data.documents import read_documents
    from codiemb.fingerprint import fingerprint
    from codiemb.search import DocumentIndex
    from codiemb.search.manifest import check_vacant

    check_vacant(output, overwrite)
    source = read_documents(documents, text_field=text_field)
    encoder = load_model(model, device=device, max_length=max_length, truncate_dim=truncate_dim)
    with _progress() as on_progress:
        index = DocumentIndex.build(
            source,
            encoder,
            output,
            model=durable_name(model),
            fingerprint=fingerprint(encoder),
            kind=kind,
            metric=_metric(encoder),
            instruction=instruction,
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
    max_length: MaxLength = None,
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
    encoder, own = _model_of(old, model, device, max_length)
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
    output_format: Annotated[
        Literal["jsonl", "trec"], typer.Option("--format", help="Of --queries: JSON lines or a TREC run.")
    ] = "jsonl",
    top: Annotated[int, typer.Option("--top", "-k", min=1, help="Documents for each query.")] = 10,
    instruction: Annotated[
        str | None,
        typer.Option(
            "--instruction", help="For the queries: a text or a task's name; that of the index if it is a name."
        ),
    ] = None,
    model: Model = None,
    device: Device = None,
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
    encoder, own = _model_of(opened, model, device, max_length)
    opened.check(own, model or opened.manifest.model)
    instruction = instruction or passage_instruction(opened.manifest.instruction)

    def search(texts: Sequence[str]) -> Answers:
        return opened.search(texts, encoder, top, instruction=instruction)

    if file is not None:
        _search_file(search, file, output, output_format)
    elif queries:
        _print_answers(queries, search(queries), as_json)
    else:
        for query in _asked():
            _print_answers([query], search([query]), as_json)


def _model_of(
    index: DocumentIndex, name: str | None, device: str | None, max_length: int | None
) -> tuple[LLMEmbeddingModel, str]:
    """The model that an index was made with, or its copy `name`, and the fingerprint of what was loaded."""
    from codiemb.fingerprint import fingerprint

    encoder = load_model(
        name or index.manifest.model, device=device, max_length=max_length, truncate_dim=index.manifest.dimension
    )
    return encoder, fingerprint(encoder)


def _metric(encoder: LLMEmbeddingModel) -> Literal["cosine", "dot"]:
    name = str(encoder.similarity_fn_name or "cosine")
    if name not in ("cosine", "dot"):
        raise ValueError(f"The model compares vectors by {name}; an index can do so by cosine or dot.")
    return "cosine" if name == "cosine" else "dot"


def _asked() -> Iterator[str]:
    """Queries from the terminal, until its end (Ctrl-D), or lines of stdin."""
    if not sys.stdin.isatty():
        yield from (line for line in map(str.strip, sys.stdin) if line)
        return
    console = Console(stderr=True)
    console.print("Type a query; Ctrl-D ends.", style="dim")
    while True:
        try:
            query = input("query> ").strip()
        except (EOFError, KeyboardInterrupt):
            console.print()
            return
        if query:
            yield query


def _search_file(
    search: Callable[[Sequence[str]], Answers], file: Path, output: Path | None, output_format: str
) -> None:
    from itertools import islice

    from codiemb.data.documents import read_documents
    from codiemb.data.writers import replacing

    form = _trec_lines if output_format == "trec" else _json_lines
    source = read_documents(file)
    embed = find = 0.0
    count = 0

    def lines() -> Iterator[str]:
        nonlocal embed, find, count
        while batch := list(islice(source, _BATCH)):
            answers = search([query.text for query in batch])
            embed += answers.embed_seconds
            find += answers.search_seconds
            count += len(batch)
            for query, hits in zip(batch, answers.hits, strict=True):
                yield from form(query.id, query.text, hits)

    if output is None:
        sys.stdout.writelines(lines())
    else:
        with replacing(output) as partial, partial.open("w", encoding="utf-8") as stream:
            stream.writelines(lines())
    shown = f"{count} queries: embedding {1000 * embed / count:.2f} ms, search {1000 * find / count:.2f} ms a query"
    Console(stderr=True).print(shown, highlight=False)


def _json_lines(id_: str, query: str, hits: Sequence[Any]) -> Iterator[str]:
    found = [{"rank": rank, **hit._asdict()} for rank, hit in enumerate(hits, 1)]
    yield json.dumps({"query_id": id_, "query": query, "hits": found}, ensure_ascii=False) + "\n"


def _trec_lines(id_: str, _: str, hits: Sequence[Any]) -> Iterator[str]:
    for rank, hit in enumerate(hits, 1):
        for name in (id_, hit.id):
            if len(name.split()) != 1:
                raise ValueError(f"The id {name!r} has white space, which a TREC run cannot hold. Use --format jsonl.")
        yield f"{id_} Q0 {hit.id} {rank} {hit.score:.6f} codiemb\n"


def _print_answers(queries: Sequence[str], answers: Answers, as_json: bool) -> None:
    milliseconds = {
        "embedding_ms": round(1000 * answers.embed_seconds, 3),
        "search_ms": round(1000 * answers.search_seconds, 3),
    }
    if as_json:
        found = [
            {"query": query, "hits": [{"rank": rank, **hit._asdict()} for rank, hit in enumerate(hits, 1)]}
            for query, hits in zip(queries, answers.hits, strict=True)
        ]
        print(json.dumps({"queries": found, **milliseconds}, ensure_ascii=False))
        return
    console = Console()
    for query, hits in zip(queries, answers.hits, strict=True):
        if len(queries) > 1:
            console.print(query, style="bold", highlight=False, markup=False, soft_wrap=True)
        print_ranking(console, ((hit.score, f"{hit.id}  {hit.text}") for hit in hits))
    shown = "embedding {embedding_ms:.1f} ms, search {search_ms:.1f} ms".format(**milliseconds)
    Console(stderr=True).print(shown, style="dim", highlight=False)


def _print_about(index: DocumentIndex, as_json: bool) -> None:
    about = index.manifest
    if as_json:
        print(json.dumps({"index": str(index.directory), **about.model_dump()}, indent=2, ensure_ascii=False))
        return
    print(
        f"{index.directory}: {about.documents} documents, {about.dimension} dimensions, {about.kind}, {about.metric}\n"
        f"model {about.model}, fingerprint {about.fingerprint}"
        + (f"\ninstruction of the documents: {about.instruction}" if about.instruction else "")
    )


@contextmanager
def _progress() -> Iterator[Callable[[int], None]]:
    console = Console(stderr=True)
    columns = SpinnerColumn(), TextColumn("embedding"), MofNCompleteColumn(), TextColumn("{task.fields[rate]}")
    with Progress(*columns, TimeElapsedColumn(), console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("", total=None, rate="")

        def advance(count: int) -> None:
            progress.advance(task, count)
            speed = progress.tasks[task].speed
            progress.update(task, rate=f"{speed:,.0f} texts/s" if speed else "")

        yield advance
