"""`codiemb data dedupe|filter|decontaminate|split|mix`: rows out of data files, each left-out row with its reason."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from codiemb.cli._options import checked
from codiemb.cli.data import AsJson, OnError, OutputFile, row_progress, token_counter

if TYPE_CHECKING:
    from codiemb.curation.cleaning.report import CleaningReport
    from codiemb.curation.cleaning.rows import RowStream


class On(str, Enum):
    """Texts that make two rows duplicates."""

    query = "query"
    positive = "positive"
    pair = "pair"


class Match(str, Enum):
    """How alike they have to be."""

    exact = "exact"
    normalised = "normalised"
    near = "near"


class Keep(str, Enum):
    """What becomes of duplicates."""

    first = "first"
    most_negatives = "most-negatives"
    merge = "merge"


class Drop(str, Enum):
    """What a leak takes with it."""

    row = "row"
    text = "text"
    any = "any"


class By(str, Enum):
    """What must not be in two splits."""

    text = "text"
    pair = "pair"
    query = "query"
    document = "document"
    group = "group"


class EvaluationSide(str, Enum):
    """Evaluation texts to look for."""

    both = "both"
    query = "query"
    document = "document"


Paths = Annotated[
    list[Path], typer.Argument(help="Files of the unified format, or directories: all data files right in them.")
]
Output = Annotated[
    Path,
    typer.Option(
        "--output",
        "-o",
        help="One file for all rows (.jsonl, .jsonl.gz or .parquet), or a directory: a file for each input.",
    ),
]
BadRows = Annotated[
    OnError,
    typer.Option("--on-error", help="raise: report bad rows and stop; skip: to the rejected rows with their reason."),
]
Simplify = Annotated[
    bool, typer.Option("--simplify/--no-simplify", help="Traditional Chinese characters count as the simplified ones.")
]
Seed = Annotated[int, typer.Option(help="The same seed gives the same files.")]


def dedupe_command(
    paths: Paths,
    output: Output,
    on: Annotated[
        On, typer.Option(help="Texts that have to match: the query, the positives, or pair: both.")
    ] = On.pair,
    match: Annotated[
        Match,
        typer.Option(help="exact; normalised: but for case, width, punctuation and spaces; near: nearly all the same."),
    ] = Match.normalised,
    keep: Annotated[
        Keep,
        typer.Option(help="first, the files in the order given; most-negatives; merge: first, with the others' texts."),
    ] = Keep.first,
    threshold: Annotated[
        float | None,
        typer.Option(help="With --match near, the Jaccard similarity from which texts are near.", show_default="0.8"),
    ] = None,
    simplify: Simplify = False,
    on_error: BadRows = OnError.report,
    as_json: AsJson = False,
) -> None:
    """Leave out rows that are there already, within and across files.

    Give the files in the order of their priority. Rows of different tasks are no duplicates, and instructions do not
    count. What is left out goes to NAME.rejected.jsonl, each row with the one it duplicates. Needs the extra
    'curation' for near matches (MinHash) and for --simplify.

    \b
    codiemb data dedupe gold.jsonl crawl.jsonl -o train.jsonl
    codiemb data dedupe logs/ -o clean/ --match near --threshold 0.7 --simplify
    codiemb data dedupe a.jsonl b.jsonl -o merged.jsonl --on query --keep merge
    """
    from codiemb.curation.cleaning.deduplicating import deduplicate

    with _stream(paths, on_error, "deduplicating") as stream:
        report = deduplicate(
            stream,
            output,
            on=on.value,
            match=match.value,
            keep=keep.value,
            threshold=threshold,
            simplify=simplify,
        )
    _print_report(report, as_json)


def filter_command(
    paths: Paths,
    output: Output,
    query_length: Annotated[str, typer.Option(help="Fewest and most characters of a query; '' for any.")] = "2:512",
    document_length: Annotated[
        str, typer.Option(help="Fewest and most characters of a positive or negative; '' for any.")
    ] = "2:20000",
    tokenizer: Annotated[
        str | None, typer.Option(help="Measure lengths in its tokens: 'bundled', a directory or a hub id.")
    ] = None,
    script: Annotated[
        list[str] | None,
        typer.Option(help="Keep texts in it only, may be repeated: han, latin, kana, hangul, cyrillic, arabic, ..."),
    ] = None,
    script_share: Annotated[float, typer.Option(help="Part of a text's letters that has to be in --script.")] = 0.5,
    max_repetition: Annotated[
        float, typer.Option(help="Most of a text's runs of four characters that came before, 0 to 1.")
    ] = 0.6,
    max_punctuation: Annotated[float, typer.Option(help="Most punctuation and symbols, 0 to 1.")] = 0.5,
    max_digits: Annotated[float, typer.Option(help="Most digits, 0 to 1.")] = 0.8,
    broken: Annotated[
        bool, typer.Option("--broken/--no-broken", help="Refuse U+FFFD, private characters and mojibake.")
    ] = True,
    copies: Annotated[
        bool, typer.Option("--copies/--no-copies", help="Refuse a positive that is the query, a negative that is one.")
    ] = True,
    scores: Annotated[str, typer.Option(help="Lowest and highest score, as in 0:5; '' for any.")] = "",
    on_error: BadRows = OnError.skip,
    as_json: AsJson = False,
) -> None:
    """Leave out texts that are no good: too short or long, another script, repetitive, broken, or copies.

    A query that fails takes its row; a positive or negative only itself, unless no positive is left. All that is left
    out goes to NAME.rejected.jsonl with its reason, rows that break the format too.

    \b
    codiemb data filter crawl.jsonl -o clean.jsonl --script han --query-length 4:64
    codiemb data filter data/ -o clean/ --tokenizer bundled --document-length 8:512 --scores 0:5
    """
    from codiemb.curation.cleaning.filtering import SCRIPTS, FilterRules, filter_rows

    for name in script or ():
        if name not in SCRIPTS:
            raise ValueError(f"--script {name}: expected one of {', '.join(SCRIPTS)}.")
    rules = checked(
        FilterRules,
        query_length=_range("--query-length", query_length, int),
        document_length=_range("--document-length", document_length, int),
        scripts=script or None,
        script_share=script_share,
        max_repetition=max_repetition,
        max_punctuation=max_punctuation,
        max_digits=max_digits,
        broken=broken,
        copies=copies,
        scores=_range("--scores", scores, float),
    )
    count = token_counter(tokenizer) if tokenizer else None
    measure = (lambda text: count([text])[0]) if count else len
    with _stream(paths, on_error, "filtering") as stream:
        report = filter_rows(stream, output, rules, measure=measure)
    _print_report(report, as_json)


def decontaminate_command(
    paths: Paths,
    output: Output,
    against: Annotated[
        list[str],
        typer.Option(
            help="Evaluation texts, may be repeated: a task or benchmark of mteb, a BEIR folder, a unified file, "
            "documents, .tsv or .csv of pairs, .txt, or a folder of these."
        ),
    ],
    dataset_root: Annotated[
        Path | None, typer.Option(help="Local copies of mteb's data sets, ROOT/<org>/<name>; else from the hub.")
    ] = None,
    side: Annotated[EvaluationSide, typer.Option(help="Look for evaluation queries, documents, or both.")] = (
        EvaluationSide.both
    ),
    drop: Annotated[
        Drop,
        typer.Option(
            help="row: a leak in query or positive takes the row, one in a negative only the negative; text: one in a "
            "positive takes only that where there are others; any: every leak takes the row."
        ),
    ] = Drop.row,
    near: Annotated[bool, typer.Option("--near/--no-near", help="Whether texts that are nearly equal match.")] = True,
    jaccard: Annotated[
        float, typer.Option(help="Similarity of shingles from which texts are near; above 1: never.")
    ] = (0.7),
    overlap: Annotated[
        float, typer.Option(help="Or the part of their characters that both have in the same order; above 1: never.")
    ] = 0.85,
    containment: Annotated[
        float, typer.Option(help="Part of an evaluation text that is in a longer text; above 1: never.")
    ] = 0.8,
    simplify: Simplify = True,
    on_error: BadRows = OnError.report,
    as_json: AsJson = False,
) -> None:
    """Leave out what a model is to be measured with: equal, normalised, simplified or traditional, and near texts.

    Every text of a row is compared with every evaluation text, and no match above the thresholds is missed. What is
    left out goes to NAME.rejected.jsonl with all matches: where, of which set and text, of what kind, how similar.
    Needs the extra 'curation', and 'benchmark' for mteb's tasks.

    \b
    codiemb data decontaminate train.jsonl -o clean.jsonl --against 'MTEB(cmn, v1)' --dataset-root hub/
    codiemb data decontaminate data/ -o clean/ --against beir/scifact --against stsb_test.tsv --side query
    """
    from codiemb.curation.cleaning.decontaminating import decontaminate
    from codiemb.curation.cleaning.evaluation_texts import evaluation_texts
    from codiemb.curation.cleaning.leaks import LeakFinder, NearOptions

    texts = evaluation_texts(against, dataset_root=dataset_root)
    wanted = [one for one in texts if side.value in ("both", one.side)]
    finder = LeakFinder(wanted, near=NearOptions(jaccard, overlap, containment) if near else None, simplify=simplify)
    with _stream(paths, on_error, "comparing") as stream:
        report = decontaminate(stream, output, finder, drop=drop.value)
    _print_report(report, as_json)


def split_command(
    paths: Paths,
    output: Annotated[Path, typer.Option("--output", "-o", help="Directory for NAME.jsonl of each split.")],
    size: Annotated[
        list[str],
        typer.Option(help="NAME=SIZE, repeated: a share below 1, a number of rows, or 'rest'."),
    ],
    by: Annotated[
        By,
        typer.Option(
            help="What stays together: rows with any text in common, also through other rows (text); with a query or "
            "positive in common (pair); with the same query; with a positive in common (document); with the same "
            "--group-field (group)."
        ),
    ] = By.text,
    group_field: Annotated[str, typer.Option(help="With --by group: the field of meta_data.")] = "group",
    kind: Annotated[str, typer.Option(help="Suffix of the files: .jsonl, .jsonl.gz or .parquet.")] = ".jsonl",
    simplify: Simplify = False,
    seed: Seed = 0,
    on_error: BadRows = OnError.report,
    as_json: AsJson = False,
) -> None:
    """Divide rows into train, dev, test ... so that no text is in two of them.

    Every data set (the rows of one task in one file) is divided in the same proportions. Texts are compared
    normalised. Groups are never divided, so a group larger than a split makes the sizes differ from what is asked.

    \b
    codiemb data split all.jsonl -o splits/ --size train=rest --size dev=1000 --size test=1000
    codiemb data split a.jsonl b.parquet -o splits/ --size train=0.9 --size dev=0.1 --by query
    """
    from codiemb.curation.cleaning.splitting import split

    sizes = dict(_size(text) for text in size)
    if len(sizes) < len(size):
        raise ValueError(f"--size: a name is there twice in {', '.join(size)}.")
    outputs = {name: output / f"{name}{kind}" for name in sizes}
    with _stream(paths, on_error, "splitting") as stream:
        report = split(stream, outputs, sizes, by=by.value, group_field=group_field, simplify=simplify, seed=seed)
    _print_report(report, as_json)


def mix_command(
    paths: Paths,
    output: OutputFile,
    weight: Annotated[
        list[float] | None,
        typer.Option(help="Of each file, repeated in their order (default: its rows, so that all rows are alike)."),
    ] = None,
    temperature: Annotated[
        float, typer.Option(help="Weights to the power of 1/T: above 1 brings large and small files closer.")
    ] = 1.0,
    total: Annotated[
        int | None, typer.Option(min=1, help="Rows to write (default: as many as keep the weights exact).")
    ] = None,
    upsample: Annotated[bool, typer.Option("--upsample", help="Let rows come several times.")] = False,
    seed: Seed = 0,
    on_error: BadRows = OnError.report,
    as_json: AsJson = False,
) -> None:
    """Draw rows from several files by weights into one shuffled file.

    Rows are drawn without replacement: a file with fewer rows than its part gives all, and the others fill up.

    \b
    codiemb data mix ir.jsonl sts.jsonl -o train.jsonl --weight 3 --weight 1 --total 100000
    codiemb data mix data/ -o train.jsonl.gz --temperature 2
    """
    from codiemb.curation.cleaning.mixing import mix
    from codiemb.data.readers import data_files

    with row_progress("mixing") as advance:
        report = mix(
            data_files(paths),
            output,
            weights=weight,
            temperature=temperature,
            total=total,
            upsample=upsample,
            seed=seed,
            on_error=on_error.value,
            progress=advance,
        )
    _print_report(report, as_json)


def _range(option: str, text: str, kind: type[Any]) -> tuple[Any, Any] | None:
    if not text:
        return None
    try:
        low, high = map(kind, text.split(":"))
    except ValueError:
        raise ValueError(f"{option} {text}: expected two numbers as in 2:512, or '' for any.") from None
    return low, high


def _size(text: str) -> tuple[str, float]:
    name, _, size = text.partition("=")
    try:
        number = 0.0 if size == "rest" else float(size)
    except ValueError:
        number = -1.0
    if not name or number < 0 or (number == 0 and size != "rest"):
        raise ValueError(f"--size {text}: expected NAME=SIZE: a share below 1, a number of rows, or 'rest'.")
    return name, number


@contextmanager
def _stream(paths: Sequence[Path], on_error: OnError, verb: str) -> Iterator[RowStream]:
    from codiemb.curation.cleaning.rows import RowStream
    from codiemb.data.readers import data_files

    with row_progress(verb) as advance:
        yield RowStream(data_files(paths), on_error=on_error.value, progress=advance)


def _print_report(report: CleaningReport, as_json: bool) -> None:
    if as_json:
        print(json.dumps(report.to_dict(), ensure_ascii=False))
        return
    console = Console(highlight=False, soft_wrap=True)
    console.print(f"{report.rows:,} of {report.read:,} rows written", markup=False)
    for path, rows in report.written.items():
        console.print(f"{rows:>9,} {path}", markup=False)
    if report.changed:
        console.print(f"{report.changed:>9,} of them changed", markup=False)
    for reason, count in sorted(report.rejected.items(), key=lambda item: -item[1]):
        console.print(f"{count:>9,} left out: {reason}", markup=False)
    for name, value in report.details.items():
        _print_detail(console, name.replace("_", " "), value)
    if report.rejected_file:
        console.print(f"Left out: {report.rejected_file}", markup=False)


def _print_detail(console: Console, name: str, value: object) -> None:
    if not isinstance(value, dict):
        console.print(f"{name}: {value:,}" if isinstance(value, int) else f"{name}: {value}", markup=False)
        return
    console.print(f"{name}:", markup=False)
    for key, entry in value.items():
        shown = ", ".join(f"{k} {v:,}" for k, v in entry.items()) if isinstance(entry, dict) else f"{entry:,}"
        console.print(f"  {key}: {shown}", markup=False)


#: Under `codiemb data`.
CLEANING_COMMANDS: dict[str, Callable[..., None]] = {
    "dedupe": dedupe_command,
    "filter": filter_command,
    "decontaminate": decontaminate_command,
    "split": split_command,
    "mix": mix_command,
}
