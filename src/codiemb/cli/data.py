"""`codiemb data`: check, convert and measure data files."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

if TYPE_CHECKING:
    from codiemb.data.cache import Progress as RowProgress
    from codiemb.data.converters import Conversion
    from codiemb.data.converters.common import Columns
    from codiemb.data.stats import Lengths, Measure, Spread, TableStats

_BARS = " ▁▂▃▄▅▆▇█"  # blank for 0 only
_TOKENIZED = 1000  # texts tokenized at a time

data_app = typer.Typer(
    no_args_is_help=True, help="Check data files, convert other formats into the unified one, and see what is in them."
)
convert_app = typer.Typer(
    no_args_is_help=True,
    help="Convert other formats into a file of the unified format (.jsonl, .jsonl.gz or .parquet).\n\n"
    "Rows that cannot be used are left out, counted by reason, and the first ones are named.",
)
data_app.add_typer(convert_app, name="convert")


class OnError(str, Enum):
    """What to do about bad rows."""

    report = "raise"
    skip = "skip"


class PairTask(str, Enum):
    """Tasks of scored pairs."""

    sts = "sts"
    pair_classification = "pair_classification"


class RankingTask(str, Enum):
    """Tasks of relevance lists."""

    ir = "ir"
    reranking = "reranking"


Paths = Annotated[list[Path], typer.Argument(help="Data files, or directories: all data files right in them.")]
Skip = Annotated[
    OnError, typer.Option("--on-error", help="raise: report bad rows and stop; skip: leave them out and count them.")
]
RejectedTo = Annotated[
    Path | None,
    typer.Option(
        help="With skip: directory for NAME.rejected.jsonl, the bad rows with their reasons (default: beside the data)."
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
OutputFile = Annotated[Path, typer.Option("--output", "-o", help="File to write: .jsonl, .jsonl.gz or .parquet.")]
Instruction = Annotated[str, typer.Option(help="The task in words; conditions the encoder and is not pooled.")]
ColumnList = Annotated[
    str, typer.Option("--columns", help="The three columns by name, or by number from 1 where there is no header.")
]
HasHeader = Annotated[
    bool | None,
    typer.Option(
        "--header/--no-header", help="Whether the first line names the columns (default: yes if --columns are names)."
    ),
]


@data_app.command()
def validate(
    paths: Paths, on_error: Skip = OnError.report, rejected_to: RejectedTo = None, as_json: AsJson = False
) -> None:
    """Check every row of data files; a bad one is reported as FILE:LINE: FIELD: what is wrong, what was expected.

    Exit status 2 if there are bad rows. The checked tables stay in the cache, so training starts at once.

    \b
    codiemb data validate train.jsonl data/
    codiemb data validate crawl.jsonl.gz --on-error skip --rejected-to rejected/
    """
    from codiemb.data.examples import DataError
    from codiemb.data.readers import read

    try:
        with row_progress("checking") as advance:
            tables = read(paths, on_error=on_error.value, rejected_to=rejected_to, progress=advance)
    except DataError as error:
        if not as_json:
            raise
        problems = [problem._asdict() for problem in error.problems]
        _print_json({"ok": False, "error": str(error), "bad_rows": error.total, "problems": problems})
        raise typer.Exit(2) from None
    if as_json:
        rows = [
            {
                "name": table.name,
                "task_type": table.task_type,
                "source": str(table.source),
                "rows": len(table.rows),
                "rejected": table.rejected,
                "score_range": table.score_range,
            }
            for table in tables
        ]
        _print_json({"ok": True, "tables": rows})
        return
    view = Table("data set", "task", "rows", "left out", "scores")
    for table in tables:
        scores = "" if table.score_range is None else f"{table.score_range[0]:g} to {table.score_range[1]:g}"
        view.add_row(table.name, table.task_type, f"{len(table.rows):,}", f"{table.rejected:,}", scores)
    Console().print(view)


@data_app.command()
def stats(
    paths: Paths,
    tokenizer: Annotated[
        str | None,
        typer.Option(help="Measure lengths in its tokens: 'bundled', a directory or a hub id (default: characters)."),
    ] = None,
    max_length: Annotated[int, typer.Option(min=1, help="Count texts longer than this, which training cuts.")] = 512,
    on_error: Skip = OnError.report,
    rejected_to: RejectedTo = None,
    as_json: AsJson = False,
) -> None:
    """Show rows, candidates per row, text lengths, scores and duplicates of data files.

    Lengths are measured on at most 20,000 texts of each side, drawn evenly, and include the instruction.

    \b
    codiemb data stats data/ --tokenizer bundled --max-length 256
    """
    from codiemb.data.readers import read
    from codiemb.data.stats import characters, describe

    measure = token_counter(tokenizer) if tokenizer else characters
    with row_progress("reading") as advance:
        tables = read(paths, on_error=on_error.value, rejected_to=rejected_to, progress=advance)
    found = [describe(table, measure=measure, max_length=max_length) for table in tables]
    unit = f"tokens of {tokenizer}" if tokenizer else "characters"
    if as_json:
        _print_json({"unit": unit, "max_length": max_length, "tables": [asdict(one) for one in found]})
    else:
        _print_stats(found, unit, max_length)


@convert_app.command("scored-pairs")
def convert_scored_pairs(
    source: Annotated[Path, typer.Argument(help="A .tsv or .txt (quotes are literal) or .csv file, also .gz.")],
    output: OutputFile,
    task: Annotated[PairTask, typer.Option(help="pair_classification: the scores are 0 or 1.")] = PairTask.sts,
    columns: ColumnList = "sentence1,sentence2,score",
    header: HasHeader = None,
    instruction: Instruction = "",
    as_json: AsJson = False,
) -> None:
    """Pairs of sentences with a score.

    \b
    codiemb data convert scored-pairs stsb.tsv -o stsb.jsonl --instruction "Retrieve semantically similar text"
    codiemb data convert scored-pairs pairs.csv -o pairs.jsonl --task pair_classification --columns 1,2,4
    """
    from codiemb.data.converters import scored_pairs

    chosen = _columns(columns)
    with row_progress("converting") as advance:
        conversion = scored_pairs(
            source,
            output,
            task=task.value,
            columns=chosen,
            header=header,
            instruction=instruction,
            progress=advance,
        )
    _print_conversion(conversion, as_json)


@convert_app.command("beir")
def convert_beir(
    folder: Annotated[Path, typer.Argument(help="Holds corpus.jsonl, queries.jsonl and qrels/SPLIT.tsv.")],
    output: OutputFile,
    split: Annotated[str | None, typer.Option(help="Which qrels; needed where there are several.")] = None,
    title: Annotated[bool, typer.Option("--title/--no-title", help="Put a document's title before its text.")] = True,
    instruction: Instruction = "",
    as_json: AsJson = False,
) -> None:
    """A retrieval data set in BEIR's layout: a row for each query, with all its relevant documents.

    \b
    codiemb data convert beir scifact/ -o scifact.jsonl --split train --instruction "Retrieve supporting abstracts"
    """
    from codiemb.data.converters import beir

    with row_progress("converting") as advance:
        conversion = beir(folder, output, split=split, title=title, instruction=instruction, progress=advance)
    _print_conversion(conversion, as_json)


@convert_app.command("triplets")
def convert_triplets(
    source: Annotated[Path, typer.Argument(help=".tsv, .txt, .csv, .jsonl, .json (all also .gz) or .parquet.")],
    output: OutputFile,
    header: Annotated[
        bool, typer.Option("--header/--no-header", help="Whether a TSV or CSV file's first line names the columns.")
    ] = True,
    instruction: Instruction = "",
    as_json: AsJson = False,
) -> None:
    """Anchor, positive, negatives: columns in this order, or objects with these keys.

    \b
    codiemb data convert triplets nli.tsv -o nli.jsonl --no-header
    codiemb data convert triplets mined.jsonl -o mined.parquet --instruction "Retrieve answers"
    """
    from codiemb.data.converters import triplets

    with row_progress("converting") as advance:
        conversion = triplets(source, output, header=header, instruction=instruction, progress=advance)
    _print_conversion(conversion, as_json)


@convert_app.command("squad")
def convert_squad(
    source: Annotated[Path, typer.Argument(help="A JSON file in SQuAD's structure.")],
    output: OutputFile,
    chunk_size: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Cut paragraphs at sentence ends into chunks of about so many characters: the one with the answer is "
            "the positive, the others are hard negatives (default: whole paragraphs).",
        ),
    ] = None,
    instruction: Instruction = "",
    as_json: AsJson = False,
) -> None:
    """Questions with the paragraph that answers them.

    \b
    codiemb data convert squad train-v2.0.json -o squad.jsonl --chunk-size 300
    """
    from codiemb.data.converters import squad

    with row_progress("converting") as advance:
        conversion = squad(source, output, chunk_size=chunk_size, instruction=instruction, progress=advance)
    _print_conversion(conversion, as_json)


@convert_app.command("relevance-list")
def convert_relevance_list(
    source: Annotated[Path, typer.Argument(help="A .tsv or .txt (quotes are literal) or .csv file, also .gz.")],
    output: OutputFile,
    task: Annotated[RankingTask, typer.Option(help="reranking ranks a row's own documents only.")] = RankingTask.ir,
    columns: ColumnList = "query,document,relevance",
    header: HasHeader = None,
    threshold: Annotated[float, typer.Option(help="From this relevance on, a document is a positive.")] = 1.0,
    instruction: Instruction = "",
    as_json: AsJson = False,
) -> None:
    """Queries, documents and their relevance, one a line: a row for each query; relevance 0 makes a negative.

    \b
    codiemb data convert relevance-list clicks.tsv -o clicks.jsonl --columns query,title,relevance --threshold 2
    """
    from codiemb.data.converters import relevance_list

    chosen = _columns(columns)
    with row_progress("converting") as advance:
        conversion = relevance_list(
            source,
            output,
            task=task.value,
            columns=chosen,
            header=header,
            threshold=threshold,
            instruction=instruction,
            progress=advance,
        )
    _print_conversion(conversion, as_json)


def _columns(text: str) -> Columns:
    parts = [part.strip() for part in text.split(",")]
    if len(parts) != 3 or not all(parts):
        raise ValueError(
            f"--columns {text}: expected three, separated by commas: names in the header or numbers from 1."
        )
    return [int(part) for part in parts] if all(part.isdecimal() for part in parts) else parts


def token_counter(name: str) -> Measure:
    """Counts the tokens of texts with the tokenizer of the model `name`."""
    from transformers import AutoTokenizer

    if name == "bundled":
        from codiemb.bundled import bundled_model

        name = str(bundled_model())
    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"--tokenizer {name}: {reason} Give 'bundled', a model directory or a hub id.") from None

    def count(texts: Sequence[str]) -> list[int]:
        lengths: list[int] = []
        for start in range(0, len(texts), _TOKENIZED):
            encoded = tokenizer(list(texts[start : start + _TOKENIZED]), verbose=False)  # longer than the model is fine
            lengths += map(len, encoded["input_ids"])
        return lengths

    return count


@contextmanager
def row_progress(verb: str) -> Iterator[RowProgress]:
    """A line on stderr with rows and rows/s; gone when done."""
    bar = Progress(
        SpinnerColumn(),
        TextColumn(f"{verb} {{task.completed:,}} rows, {{task.fields[rate]}} rows/s"),
        TimeElapsedColumn(),
        console=Console(stderr=True),
        transient=True,
    )
    with bar:
        task = bar.add_task(verb, total=None, rate="-")

        def advance(rows: int) -> None:
            bar.advance(task, rows)
            elapsed = bar.tasks[0].elapsed
            bar.update(task, rate=f"{bar.tasks[0].completed / elapsed:,.0f}" if elapsed else "-")

        yield advance


def _print_json(value: dict[str, Any]) -> None:
    print(json.dumps(value, ensure_ascii=False))


def _print_conversion(conversion: Conversion, as_json: bool) -> None:
    if as_json:
        _print_json(asdict(conversion) | {"output": str(conversion.output)})
        return
    console = Console(highlight=False, soft_wrap=True)
    console.print(f"{conversion.rows:,} rows written to {conversion.output}", markup=False)
    for reason, count in sorted(conversion.dropped.items(), key=lambda item: -item[1]):
        console.print(f"{count:>9,} left out: {reason}", markup=False)


def _print_stats(tables: Sequence[TableStats], unit: str, max_length: int) -> None:
    console = Console(highlight=False)
    view = Table("data set", "task", "rows", "left out", "positives", "negatives", "repeated queries", "repeated pairs")
    lengths = Table(
        "data set", "side", "texts", "p50", "p90", "p99", "max", f"over {max_length}", title=f"lengths, {unit}"
    )
    for table in tables:
        repeated = (f"{table.duplicate_queries:,}", f"{table.duplicate_pairs:,}")
        spreads = (_spread_text(table.positives), _spread_text(table.negatives))
        view.add_row(table.name, table.task_type, f"{table.rows:,}", f"{table.rejected:,}", *spreads, *repeated)
        lengths.add_row(table.name, "queries", *_length_cells(table.queries))
        lengths.add_row("", "documents", *_length_cells(table.documents))
    console.print(view)
    console.print(lengths)
    if any(side.measured < side.texts for table in tables for side in (table.queries, table.documents)):
        console.print("Lengths of a side with more texts than measured are of an even sample (measured / all).")
    if any(table.scores for table in tables):
        scores = Table("data set", "lowest", "", "highest", "scores in ten equal bins", title="scores")
        for table in tables:
            if table.scores:
                low, high = table.scores.edges[0], table.scores.edges[-1]
                counts = " ".join(f"{count:,}" for count in table.scores.counts)
                scores.add_row(table.name, f"{low:g}", _sparkline(table.scores.counts), f"{high:g}", counts)
        console.print(scores)


def _sparkline(counts: Sequence[int]) -> str:
    top = max(counts)
    return "".join(_BARS[-(-count * (len(_BARS) - 1) // top)] for count in counts)


def _spread_text(spread: Spread) -> str:
    return str(spread.min) if spread.min == spread.max else f"{spread.min} to {spread.max}, mean {spread.mean:.2f}"


def _length_cells(lengths: Lengths) -> list[str]:
    texts = f"{lengths.texts:,}" if lengths.measured == lengths.texts else f"{lengths.measured:,} / {lengths.texts:,}"
    numbers = (lengths.p50, lengths.p90, lengths.p99, lengths.max, lengths.truncated)
    return [texts, *(f"{number:,}" for number in numbers)]
