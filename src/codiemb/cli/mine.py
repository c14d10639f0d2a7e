"""`codiemb mine`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console
from rich.table import Table

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
from codiemb.cli._options import checked
from codiemb.progress_bars import counting_bars

if TYPE_CHECKING:
    from codiemb.curation.mining import Miner, MiningResult
    from codiemb.embedder import LLMEmbeddingModel

_FIND, _PASS, _TAKE, _RUN = "Who finds candidates", "Which candidates pass", "What a row gets", "The run"
_OWN, _BM25 = "dense", "bm25"


def mine_command(
    model: ModelName,
    data: Annotated[list[Path], typer.Option("--data", metavar="PATH", help="Unified files or directories of them.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="OUT", help=".jsonl, .jsonl.gz or .parquet.")],
    corpus: Annotated[
        list[Path] | None,
        typer.Option("--corpus", metavar="DOCS", help="Documents to mine; the data's own candidates by default."),
    ] = None,
    text_field: TextField = "text",
    miners: Annotated[
        list[str] | None,
        typer.Option(
            "--miner", help="dense (MODEL), bm25, or another model; several are merged.", rich_help_panel=_FIND
        ),
    ] = None,
    merging: Annotated[
        Literal["rrf", "round-robin"], typer.Option("--merge", help="How rankings become one.", rich_help_panel=_FIND)
    ] = "rrf",
    words: Annotated[
        Literal["characters", "jieba"],
        typer.Option("--words", help="What BM25 takes for words of Chinese: pairs, or jieba's.", rich_help_panel=_FIND),
    ] = "characters",
    kind: Annotated[
        Literal["auto", "flat", "hnsw", "ivf"],
        typer.Option(
            "--index", help="flat (exact) to 100,000 documents, hnsw to a million, then ivf.", rich_help_panel=_FIND
        ),
    ] = "auto",
    depth: Annotated[
        int, typer.Option("--depth", min=1, help="Last rank of each miner that counts.", rich_help_panel=_FIND)
    ] = 100,
    skip: Annotated[int, typer.Option("--skip", min=0, help="First ranks to leave out.", rich_help_panel=_FIND)] = 0,
    cross_encoder: Annotated[
        str | None,
        typer.Option(
            "--cross-encoder", metavar="MODEL", help="Judges candidates instead of MODEL.", rich_help_panel=_PASS
        ),
    ] = None,
    share: Annotated[
        float, typer.Option("--share", help="Most of the positive's score that may remain.", rich_help_panel=_PASS)
    ] = 0.95,
    no_share: Annotated[bool, typer.Option("--no-share", help="No such filter.", rich_help_panel=_PASS)] = False,
    chance: Annotated[
        Literal["chance", "zero"],
        typer.Option("--share-from", help="Count scores from random pairs' mean, or from 0.", rich_help_panel=_PASS),
    ] = "chance",
    margin: Annotated[
        float | None, typer.Option("--margin", min=0, help="Least distance below the positive.", rich_help_panel=_PASS)
    ] = None,
    min_score: Annotated[
        float | None, typer.Option("--min-score", help="Least score, whatever the positive's.", rich_help_panel=_PASS)
    ] = None,
    max_score: Annotated[
        float | None, typer.Option("--max-score", help="Highest score, likewise.", rich_help_panel=_PASS)
    ] = None,
    near_duplicate: Annotated[
        float,
        typer.Option(
            "--near-duplicate", help="Overlap from which two texts count as one, 0 to 1.", rich_help_panel=_PASS
        ),
    ] = 0.8,
    answer_field: Annotated[
        str,
        typer.Option(
            "--answer-field", help="Key of meta_data with answers, which no negative holds.", rich_help_panel=_PASS
        ),
    ] = "answers",
    negatives: Annotated[
        int, typer.Option("--negatives", "-n", min=1, help="Negatives to find for a row.", rich_help_panel=_TAKE)
    ] = 7,
    sampling: Annotated[
        Literal["top", "random", "weighted"],
        typer.Option("--sampling", help="weighted: by softmax of the score.", rich_help_panel=_TAKE),
    ] = "top",
    temperature: Annotated[
        float, typer.Option("--temperature", help="Of --sampling weighted.", rich_help_panel=_TAKE)
    ] = 0.02,
    existing: Annotated[
        Literal["keep", "replace"], typer.Option("--existing", help="A row's own negatives.", rich_help_panel=_TAKE)
    ] = "keep",
    relabel_above: Annotated[
        float | None,
        typer.Option("--relabel-above", help="Cross-encoder score that makes a positive.", rich_help_panel=_TAKE),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of sampling.", rich_help_panel=_TAKE)] = 0,
    instruction: Instruction = None,
    template: Template = None,
    truncate_dim: TruncateDim = None,
    device: Device = None,
    compute: Compute = "auto",
    max_length: MaxLength = None,
    cache: Annotated[
        Path | None,
        typer.Option(
            "--cache", metavar="DIR", help="Where vectors are kept; $CODIEMB_CACHE by default.", rich_help_panel=_RUN
        ),
    ] = None,
    overwrite: Annotated[
        bool,
        typer.Option("--overwrite", help="Replace OUT, and what a run with other settings left.", rich_help_panel=_RUN),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.", rich_help_panel=_RUN)] = False,
) -> None:
    """Find hard negatives: texts that MODEL takes for answers to a row's query and that are not.

    Rows of ir and reranking get them; others go through. Known positives, their near-duplicates and texts with the
    answer never become negatives. Stopped, the same command goes on where it was; vectors are computed once.

    \b
    codiemb mine bundled --data train.jsonl -o mined.jsonl
    codiemb mine bundled --data train.jsonl --corpus corpus.jsonl -o mined.jsonl --miner dense --miner bm25
    codiemb mine runs/mine --data train/ -o mined.jsonl --skip 5 --depth 50 --sampling random --existing replace
    codiemb mine bundled --data train.jsonl -o mined.jsonl --cross-encoder my-reranker --relabel-above 0.9

    Beside OUT comes a directory OUT.mining with report.md (counts, examples), scores.png (are negatives below their
    positives?), report.json and provenance.jsonl (who found each negative, at which rank). If rows lack negatives,
    the report says what kept candidates out; if negatives look like answers, lower --share or raise --skip.
    """
    from codiemb.curation.mining import MiningOptions, mine

    check_template(template)
    options = checked(
        MiningOptions,
        negatives=negatives,
        skip=skip,
        depth=depth,
        share=None if no_share else share,
        chance="measured" if chance == "chance" else "zero",
        margin=margin,
        min_score=min_score,
        max_score=max_score,
        near_duplicate=near_duplicate,
        sampling=sampling,
        temperature=temperature,
        merging=merging,
        relabel_above=relabel_above,
        existing=existing,
        answer_field=answer_field,
        seed=seed,
    )
    loading = {"device": device, "compute": compute, "max_length": max_length}
    encoder = load_model(model, template=template, truncate_dim=truncate_dim, **loading)
    console = Console(stderr=True)
    with _Bars(console) as bars:
        try:
            result = mine(
                encoder,
                data,
                output,
                model_name=model,
                corpus=corpus or (),
                text_field=text_field,
                miners=_miners(miners or [_OWN], model, encoder, loading),
                cross_encoder=_cross_encoder(cross_encoder, device, max_length),
                options=options,
                instruction=instruction or "",
                words=words,
                kind=kind,
                cache=cache,
                overwrite=overwrite,
                on_progress=bars.advance,
            )
        except (KeyboardInterrupt, OSError):
            note = "stopped: what is done is kept; the same command goes on from there"
            console.print(note, highlight=False, markup=False, soft_wrap=True)
            raise
    if as_json:
        print(json.dumps(result.report.to_dict(), indent=2, ensure_ascii=False))
    else:
        _print_summary(result)


def _miners(names: list[str], model: str, encoder: LLMEmbeddingModel, loading: dict[str, Any]) -> list[Miner]:
    from codiemb.curation.mining import Miner

    return [
        Miner(model, encoder)
        if name in (_OWN, model)
        else Miner(name, None if name == _BM25 else load_model(name, **loading))
        for name in names
    ]


def _cross_encoder(name: str | None, device: str | None, max_length: int | None) -> Any:
    if name is None:
        return None
    from transformers.utils import logging as transformers_logging

    from codiemb.curation.mining.judges import cross_encoder

    transformers_logging.disable_progress_bar()
    return cross_encoder(name, device, max_length)


def _print_summary(result: MiningResult) -> None:
    from codiemb.curation.mining.page import shortfall

    report = result.report
    console = Console()
    table = Table("score", "texts", "mean", "5 %", "50 %", "95 %")
    for column in table.columns[1:]:
        column.justify = "right"
    for name, scores in report.scores.items():
        shown = [f"{scores.percentiles[percentile]:.3f}" for percentile in ("5", "50", "95")]
        table.add_row(name, f"{scores.count:,}", f"{scores.mean:.3f}", *shown)
    console.print(table)
    lines = [f"{count:>9,}  {reason}" for reason, count in report.rejected.items()]
    if lines:
        lines.insert(0, "rejected candidates:")
    if result.resumed:
        lines.append(f"{result.resumed:,} rows were there from a stopped run")
    if report.relabelled:
        lines.append(f"{report.relabelled:,} candidates became positives")
    lines += shortfall(report.to_dict())
    mined = report.about["mined_rows"]
    lines.append(f"{report.negatives:,} negatives for {mined:,} rows in {result.output}")
    lines.append(f"report: {result.directory / 'report.md'}")
    for line in lines:
        console.print(line, highlight=False, markup=False, soft_wrap=True)


class _Bars:
    """A bar for each stage, with the time left; nothing where stderr is no terminal."""

    def __init__(self, console: Console) -> None:
        self._tasks: dict[str, Any] = {}
        self._progress = counting_bars(console)

    def __enter__(self) -> _Bars:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def advance(self, stage: str, done: int, total: int) -> None:
        """Count what is done of a stage."""
        if stage not in self._tasks:
            self._tasks[stage] = self._progress.add_task(stage, total=total)
        self._progress.advance(self._tasks[stage], done)
