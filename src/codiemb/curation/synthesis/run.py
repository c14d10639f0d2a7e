"""A synthesis run: documents, tasks, requests, gates, files."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from rich.console import Console

from codiemb.curation.synthesis.asking import Asker, SynthesisError
from codiemb.curation.synthesis.chat import ChatClient
from codiemb.curation.synthesis.gates import (
    duplicate_findings,
    screen,
    screen_passages,
    sieve,
    text_fault,
    text_findings,
)
from codiemb.curation.synthesis.journal import Journal
from codiemb.curation.synthesis.model_gates import Judge
from codiemb.curation.synthesis.plan import Corpus, Request, choose, plan_rows, plan_tasks
from codiemb.curation.synthesis.progress import RequestBar
from codiemb.curation.synthesis.recipe import SynthesisRecipe
from codiemb.curation.synthesis.report import SynthesisReport, Tally, markdown, report_content
from codiemb.curation.synthesis.rows import TASK_TYPES, Rejection, Row, encoded, written_rows
from codiemb.curation.synthesis.scores import Calibration, calibrate, contradictions, cosines
from codiemb.curation.synthesis.templates import Templates
from codiemb.data.documents import read_documents
from codiemb.data.writers import replacing
from codiemb.interface import Embedder
from codiemb.training.sections import RecipeError

logger = logging.getLogger(__name__)

JOURNAL_FILE, REJECTED_FILE = "journal.jsonl", "rejected.jsonl"
_TASK_LENGTH = (4, 300)  # characters


def synthesize(recipe: SynthesisRecipe, *, console: Console | None = None) -> SynthesisReport:
    """Write training data for the documents of a recipe, and keep what passes its gates.

    The output directory gets `ir.jsonl`, `sts.jsonl` and `paraphrases.jsonl` (those that have rows), `rejected.jsonl`,
    `report.json`, `report.md` and `journal.jsonl`. With the journal of a stopped run there, answers are taken from it
    and the files become those of a run that was not stopped.

    Args:
        console: shows progress and cost; None shows nothing.
    Raises:
        RecipeError: templates that do not fit.
        DataError: documents that cannot be read.
        JournalError: a journal that is damaged, or in use.
        SynthesisError: the server answers nothing, or no row passed.
    """
    templates, corpus = prepare(recipe)
    model = _embedder(recipe)  # before anything is paid for
    rejections: list[Rejection] = []
    tally = Tally()
    with ExitStack() as stack:
        journal = stack.enter_context(Journal(recipe.output / JOURNAL_FILE))
        client = stack.enter_context(ChatClient(recipe.api))
        bar = stack.enter_context(RequestBar(console, recipe, corpus, tally))
        asker = Asker(client, journal, templates, recipe.seed)
        tasks = _tasks(recipe, corpus, templates, asker, bar, rejections)
        rows = list(_rows(recipe, corpus, templates, tasks, asker, bar, rejections))
        bar.finish()
    rows, calibration, skipped = _sifted(recipe, corpus, rows, model, rejections)
    content = report_content(recipe, corpus, tally, tasks, rows, rejections, calibration, skipped)
    files = _write(recipe.output, corpus, rows, rejections, content)
    if not files:
        raise SynthesisError(
            f"{recipe.output}: no row passed the gates; report.md there says why. A better model, or gates that "
            "reject less, use the answers of the journal where requests stay the same."
        )
    return SynthesisReport(recipe.output, files, tally.asked, content["cost"], content)


def prepare(recipe: SynthesisRecipe) -> tuple[Templates, Corpus]:
    """Templates and documents of a recipe, checked against it.

    Raises:
        RecipeError: a degree or language that the templates do not describe, or no document that is long enough.
        DataError: documents that cannot be read.
    """
    templates = Templates(recipe.language, recipe.templates)
    words = templates.words
    if recipe.pairs:
        for score in recipe.pairs.scores:
            if score not in words.degrees:
                known = ", ".join(f"{one:g}" for one in words.degrees)
                raise RecipeError(f"pairs.scores: {score:g} has no meaning in words.yaml, which describes {known}")
    if recipe.queries and recipe.cross_language not in words.languages:
        known = ", ".join(words.languages)
        raise RecipeError(f"queries.query_language: words.yaml does not know {recipe.cross_language}, but {known}")
    corpus = choose(list(read_documents(recipe.documents, text_field=recipe.text_field)), recipe)
    if not corpus.chosen:
        raise RecipeError(f"min_characters: none of {corpus.short:,} documents has {recipe.min_characters}; lower it")
    return templates, corpus


def _embedder(recipe: SynthesisRecipe) -> Embedder | None:
    if recipe.gates.model is None:
        return None
    from codiemb.embedder import LLMEmbeddingModel

    return LLMEmbeddingModel(recipe.gates.model)


def _tasks(
    recipe: SynthesisRecipe,
    corpus: Corpus,
    templates: Templates,
    asker: Asker,
    bar: RequestBar,
    rejections: list[Rejection],
) -> list[str]:
    """The recipe's tasks and those that the model proposes, each once."""
    tasks = list(recipe.tasks)
    for request, outcome in asker.ask(plan_tasks(recipe, corpus, templates), bar.add):
        answer: Any = outcome.answered.answer
        if answer is None:
            if outcome.answered.reason == "request failed":  # a later run may have it, and then other tasks
                raise SynthesisError(
                    f"A request for tasks failed: {outcome.answered.detail}. Run the same command again, or set "
                    "brainstorm to null."
                )
            rejections.append(_unanswered(request, "task", outcome.answered.reason, outcome.answered.detail))
            continue
        for text in map(str.strip, answer.tasks):
            language = recipe.language if recipe.gates.language else None
            fault = text_fault(text, _TASK_LENGTH, language)
            if fault is None and text in tasks:
                fault = "near duplicate", "equal to another task"
            if fault is None:
                tasks.append(text)
            else:
                rejections.append(Rejection("task", *fault, request.name, {"text": text}))
    return tasks


def _rows(
    recipe: SynthesisRecipe,
    corpus: Corpus,
    templates: Templates,
    tasks: Sequence[str],
    asker: Asker,
    bar: RequestBar,
    rejections: list[Rejection],
) -> Iterator[Row]:
    instruction = templates.words.pairs_instruction
    for request, outcome in asker.ask(plan_rows(recipe, corpus, templates, tasks), bar.add):
        answered = outcome.answered
        if answered.answer is not None:
            yield from written_rows(request, answered.answer, recipe, corpus, instruction)
            continue
        for kind in _kinds(recipe, request):
            rejections.append(_unanswered(request, kind, answered.reason, answered.detail))


def _kinds(recipe: SynthesisRecipe, request: Request) -> list[str]:
    """The kinds of the rows that a request should have brought."""
    if request.kind == "queries":
        return [cell.kind for cell in request.cells]
    if request.kind == "pairs":
        return ["pair"] * len(request.scores)
    return ["paraphrase"] * (recipe.paraphrases.count if recipe.paraphrases else 0)


def _unanswered(request: Request, kind: str, reason: str, detail: str) -> Rejection:
    gate = reason if reason == "request failed" else f"answer {reason}"
    return Rejection(kind, gate, detail, request.name, {"source": request.sentence} if request.sentence else {})


def _sifted(
    recipe: SynthesisRecipe, corpus: Corpus, rows: list[Row], model: Embedder | None, bin_: list[Rejection]
) -> tuple[list[Row], Calibration | None, list[str]]:
    """The rows that pass, the calibration of their scores, and the gates that were not used."""
    gates = recipe.gates
    score_range = (recipe.pairs.scores[0], recipe.pairs.scores[-1]) if recipe.pairs else (0.0, 0.0)
    rows = sieve(rows, text_findings(rows, gates, score_range), bin_)
    if gates.near_duplicate is not None:
        rows = sieve(rows, duplicate_findings(rows, gates.near_duplicate), bin_)
    screen_passages(rows, recipe, bin_)
    names = ("copied", "near_duplicate", "similar", "top_k", "negative_margin", "disagreement")
    skipped = [name for name in names if getattr(gates, name) is None]
    if model is None:
        return rows, None, [*skipped, "all that ask an embedding model, since gates.model is null"]
    retrieval = _retrievable(recipe, corpus, [row for row in rows if row.file == "ir"], model, bin_)
    pairs = [row for row in rows if row.file == "sts"]
    similarities = cosines(pairs, model)
    if gates.disagreement is not None:
        kept = sieve(pairs, contradictions(pairs, similarities, gates.disagreement), bin_)
        staying = {id(row) for row in kept}
        similarities = similarities[[id(row) in staying for row in pairs]]
        pairs = kept
    calibration = calibrate(pairs, similarities) if pairs and gates.calibrate else None
    if calibration and calibration.scale:
        for row in pairs:
            row.score = calibration.scale[f"{row.score:g}"]
    paraphrases = [row for row in rows if row.file == "paraphrases"]
    return [*retrieval, *pairs, *paraphrases], calibration, skipped


def _retrievable(
    recipe: SynthesisRecipe, corpus: Corpus, rows: list[Row], model: Embedder, bin_: list[Rejection]
) -> list[Row]:
    """Rows of `ir` that pass the gates of the model."""
    gates = recipe.gates
    if not rows:
        return rows
    judge = Judge(model, corpus)
    vectors = dict(zip(map(id, rows), judge.queries(rows), strict=True))

    def queries(rows: Sequence[Row]) -> np.ndarray:
        return np.array([vectors[id(row)] for row in rows])

    if gates.similar is not None:
        rows = sieve(rows, judge.repeated(rows, queries(rows), gates.similar), bin_)
    if gates.top_k is not None:
        rows = sieve(rows, judge.lost(rows, queries(rows), gates.top_k), bin_)
    if gates.negative_margin is not None:
        false = judge.false_negatives(rows, queries(rows), gates.negative_margin)

        def fault(text: str, row: Row) -> tuple[str, str] | None:
            detail = false.get((row.written, text))
            return ("too near the query", detail) if detail else None

        screen(rows, "negatives", fault, bin_)
    return rows


def _write(
    output: Path, corpus: Corpus, rows: Sequence[Row], rejections: Sequence[Rejection], content: dict[str, Any]
) -> dict[Path, int]:
    files: dict[Path, int] = {}
    for name in TASK_TYPES:
        path = output / f"{name}.jsonl"
        own = [row for row in rows if row.file == name]
        if own:
            _write_lines(path, (encoded(row, corpus) for row in own))
            files[path] = len(own)
        else:
            path.unlink(missing_ok=True)  # of an earlier run with other gates
    _write_lines(output / REJECTED_FILE, (one.to_dict() for one in rejections))
    with replacing(output / "report.json") as partial:
        partial.write_bytes(orjson.dumps(content, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))
    with replacing(output / "report.md") as partial:
        partial.write_text(markdown(content), encoding="utf-8")
    return files


def _write_lines(path: Path, lines: Iterable[dict[str, Any]]) -> None:
    with replacing(path) as partial, partial.open("wb") as file:
        file.writelines(orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE) for line in lines)
