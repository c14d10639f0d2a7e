"""Gates that need no model: length, characters, language, copying, duplicates."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TypeAlias

from codiemb.curation.near_duplicates import near_duplicates
from codiemb.curation.shingles import jaccard, normalise, shingles
from codiemb.curation.synthesis.language import detect, in_language
from codiemb.curation.synthesis.recipe import Bounds, Gates, SynthesisRecipe
from codiemb.curation.synthesis.rows import Rejection, Row, rejected
from codiemb.data.examples import RowError, parse_text

#: What is wrong with some rows: their numbers, the reason and the detail.
Findings: TypeAlias = Iterable[tuple[int, str, str]]


def sieve(rows: Sequence[Row], findings: Findings, bin_: list[Rejection]) -> list[Row]:
    """The rows without findings; the others go into the bin, each with its first one."""
    out: dict[int, tuple[str, str]] = {}
    for number, gate, detail in findings:
        out.setdefault(number, (gate, detail))
    bin_ += [rejected(rows[number], *out[number]) for number in sorted(out)]
    return [row for number, row in enumerate(rows) if number not in out]


def text_findings(rows: Sequence[Row], gates: Gates, score_range: tuple[float, float]) -> Findings:
    """Rows whose text is none, too short or long, in another language or copied, or whose score is out of range."""
    for number, row in enumerate(rows):
        bounds = gates.query_length if row.file == "ir" else gates.sentence_length
        language = row.language if gates.language else None
        if fault := text_fault(row.written, bounds, language) or _copied(row, gates.copied):
            yield number, *fault
        elif row.file == "sts" and not score_range[0] <= row.score <= score_range[1]:
            yield number, "score", f"{row.score:g}, expected {score_range[0]:g} to {score_range[1]:g}"


def text_fault(text: str, bounds: Bounds, language: str | None) -> tuple[str, str] | None:
    """Gate and detail of what is wrong with a text, None if nothing is."""
    low, high = bounds
    if not low <= len(text) <= high:
        return "length", f"{len(text)} characters, expected {low} to {high}"
    try:
        parse_text(text, "text")
    except RowError as error:
        return "characters", error.detail
    if not any(map(str.isalnum, text)):
        return "characters", "no letter or digit"
    if language is not None and not in_language(text, language):
        return "language", f"{detect(text) or 'another script'}, expected {language}"
    return None


def duplicate_findings(rows: Sequence[Row], threshold: float) -> Findings:
    """Rows of each file whose text is nearly that of an earlier one."""
    for file in dict.fromkeys(row.file for row in rows):
        numbers = [number for number, row in enumerate(rows) if row.file == file]
        texts = [rows[number].written for number in numbers]
        for index, of, similarity in near_duplicates(texts, threshold=threshold):
            yield numbers[index], "near duplicate", f"Jaccard similarity {similarity:.2f} to {texts[of]!r}"


def screen_passages(rows: Sequence[Row], recipe: SynthesisRecipe, bin_: list[Rejection]) -> None:
    """Take written positives and negatives out of their rows that are no passages or copies of the document."""
    gates = recipe.gates

    def fault(text: str, row: Row) -> tuple[str, str] | None:
        if wrong := text_fault(text, gates.passage_length, recipe.language if gates.language else None):
            return wrong
        if gates.near_duplicate is not None:
            similarity = jaccard(shingles(text), shingles(row.source))
            if similarity >= gates.near_duplicate:
                return "near duplicate", f"Jaccard similarity {similarity:.2f} to the document"
        return ("copied", "the query itself") if normalise(text) == normalise(row.written) else None

    screen(rows, "positives", fault, bin_)
    screen(rows, "negatives", fault, bin_)


def screen(
    rows: Iterable[Row], part: str, fault: Callable[[str, Row], tuple[str, str] | None], bin_: list[Rejection]
) -> None:
    """Keep the passages without a fault, each once; the others go into the bin."""
    kind = {"positives": "written positive", "negatives": "hard negative"}[part]
    for row in rows:
        kept: list[str] = []
        for text in getattr(row, part):
            wrong = ("near duplicate", "equal to another passage of the row") if text in kept else fault(text, row)
            if wrong:
                bin_.append(Rejection(kind, *wrong, row.request, {"text": text, "query": row.written}))
            else:
                kept.append(text)
        setattr(row, part, kept)


def longest_run(text: str, source: str) -> int:
    """Characters of the longest part of `text` that `source` has too."""
    best = 0
    for end in range(1, len(text) + 1):
        # If the part that ends here is longer than the best one, it is so by one character at most.
        while best < end and text[end - best - 1 : end] in source:
            best += 1
    return best


def _copied(row: Row, most: float | None) -> tuple[str, str] | None:
    text, source = normalise(row.written), normalise(row.source)
    if text == source:
        return "copied", "the same as its source"
    # Keywords are taken from the document by their nature; a pair of a high degree has most of its words in common.
    if most is None or row.kind == "keyword" or row.file == "sts":
        return None
    share = longest_run(text, source) / len(text)
    return (
        ("copied", f"one run of its source is {share:.2f} of it, expected at most {most:g}") if share > most else None
    )
