"""Rows whose texts look like texts: length, script, repetition, punctuation, digits, broken characters, and labels."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Literal, get_args

from pydantic import model_validator
from typing_extensions import Self

from codiemb.curation.cleaning.outputs import Outputs, RejectedFile
from codiemb.curation.cleaning.report import CleaningReport
from codiemb.curation.cleaning.rows import Row, RowStream
from codiemb.curation.shingles import normalise
from codiemb.data.examples import PAIR_TASKS, Example
from codiemb.training.sections import Section

Script = Literal["han", "kana", "hangul", "latin", "cyrillic", "arabic", "greek", "hebrew", "thai", "devanagari"]
SCRIPTS: tuple[Script, ...] = get_args(Script)

_SCRIPT_PREFIXES = {"CJK": "han", "HIRAGANA": "kana", "KATAKANA": "kana"}  # of Unicode names
_SEEN = 2000  # characters of a text that are looked at for its shares
_GRAM = 4  # characters that are repeated
_LEAST_REPEATED = 20  # characters from which on repetition is measured
_LABEL_TASKS = frozenset({"classification", "clustering"})
_BROKEN = re.compile(
    r"[\ufffd\ue000-\uf8ff\ufff0-\ufffb]|[ÃÂ][\u0080-\u00bf]"
)  # replaced, private, or UTF-8 read as Latin-1

Measure = Callable[[str], int]


class FilterRules(Section):
    """What a text and a row have to be; None turns a rule off.

    Attributes:
        query_length: fewest and most characters (or what `measure` counts) of a query.
        document_length: likewise of positives and negatives. Labels, the positives of classification and clustering,
            have none.
        scripts: only texts most of whose letters are in these.
        script_share: how many, 0 to 1.
        max_repetition: most of a text's runs of four characters that were there before, 0 to 1.
        max_punctuation: most of the characters that are punctuation or symbols, 0 to 1.
        max_digits: most of the characters that are digits, 0 to 1.
        broken: refuse U+FFFD, characters for private use, and UTF-8 that was read as Latin-1.
        copies: refuse a positive that is the query and a negative that is a positive or the query, all normalised;
            not in rows of pairs, whose scores say so.
        scores: lowest and highest score.
    """

    query_length: tuple[int, int] | None = (2, 512)
    document_length: tuple[int, int] | None = (2, 20_000)
    scripts: tuple[Script, ...] | None = None
    script_share: float = 0.5
    max_repetition: float | None = 0.6
    max_punctuation: float | None = 0.5
    max_digits: float | None = 0.8
    broken: bool = True
    copies: bool = True
    scores: tuple[float, float] | None = None

    @model_validator(mode="after")
    def _valid(self) -> Self:
        for name in ("query_length", "document_length", "scores"):
            limits = getattr(self, name)
            if limits and limits[0] > limits[1]:
                raise ValueError(f"{name}={limits}: expected the lower limit first.")
        for name in ("script_share", "max_repetition", "max_punctuation", "max_digits"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise ValueError(f"{name}={value}: expected 0 to 1.")
        return self


def filter_rows(stream: RowStream, output: Path, rules: FilterRules, *, measure: Measure = len) -> CleaningReport:
    """Write the rows that pass; the others go beside them, each with its reason.

    A query that fails takes its row; a positive or negative that fails is left out, and takes the row if no positive
    is left.

    Args:
        measure: length of a text, for instance in tokens.
    Raises:
        DataError: bad rows that are not skipped, or an output that is an input.
    """
    outputs = Outputs(output, stream.files)
    changed = 0
    with outputs, RejectedFile(outputs.rejected, stream) as rejected:
        for row in stream:
            failures = row_failures(row, rules, measure)
            if not failures:
                outputs.write(row)
                continue
            left = None if "query" in failures else row.without({_place(field) for field in failures})
            for field, (reason, detail) in failures.items():
                side = field.partition("[")[0]
                dropped = "row" if left is None else field
                suffix = "" if left is None else ", candidates only"
                rejected.add(row, f"{side}: {reason}{suffix}", field=field, detail=detail, dropped=dropped)
                if left is None:
                    break  # one reason for a row
            if left is not None:
                outputs.write(left)
                changed += 1
        rejected.add_bad_rows()
    counts = dict(rejected.counts)
    read = stream.rows + len(stream.rejected)
    return CleaningReport(read, outputs.rows, counts, outputs.rejected if counts else None, changed)


def row_failures(row: Row, rules: FilterRules, measure: Measure = len) -> dict[str, tuple[str, str]]:
    """By field (`query`, `positives[0]`, ...) the first rule that it breaks, and what was found."""
    example = row.example
    failures: dict[str, tuple[str, str]] = {}
    if failure := text_failure(example.query.full, rules, rules.query_length, measure):
        failures["query"] = failure
    for side, index, text in row.candidates():
        if example.task_type in _LABEL_TASKS:
            continue
        failure = text_failure(text.full, rules, rules.document_length, measure)
        if failure := failure or _score_failure(example, side, index, rules):
            failures[f"{side}[{index}]"] = failure
    if rules.copies and example.task_type not in PAIR_TASKS | _LABEL_TASKS:
        for field, failure in _copies(example).items():
            failures.setdefault(field, failure)
    return failures


def text_failure(
    text: str, rules: FilterRules, limits: tuple[int, int] | None, measure: Measure = len
) -> tuple[str, str] | None:
    """The first rule that a text breaks, and what was found; None if it is good."""
    if limits:
        length = measure(text.strip())
        if length < limits[0]:
            return "too short", f"{length}, least {limits[0]}"
        if length > limits[1]:
            return "too long", f"{length}, most {limits[1]}"
    if rules.broken and (found := _BROKEN.search(text)):
        return "broken characters", f"U+{ord(found[0][0]):04X} at character {found.start() + 1}"
    return _shares_failure(text[:_SEEN], rules)


def _shares_failure(text: str, rules: FilterRules) -> tuple[str, str] | None:
    kinds = [_kind(character) for character in text if not character.isspace()]
    shown = max(len(kinds), 1)
    punctuation, digits = kinds.count("punctuation") / shown, kinds.count("digit") / shown
    if rules.max_punctuation is not None and punctuation > rules.max_punctuation:
        return "too much punctuation", f"{punctuation:.2f} of its characters, most {rules.max_punctuation:g}"
    if rules.max_digits is not None and digits > rules.max_digits:
        return "too many digits", f"{digits:.2f} of its characters, most {rules.max_digits:g}"
    if rules.scripts:
        letters = [kind for kind in kinds if kind not in ("punctuation", "digit")]
        share = sum(kind in rules.scripts for kind in letters) / max(len(letters), 1)
        if share < rules.script_share:
            return "another script", f"{share:.2f} of its letters in {', '.join(rules.scripts)}"
    if rules.max_repetition is not None and (repeated := repetition(text)) > rules.max_repetition:
        return "repetitive", f"{repeated:.2f} of its runs repeat earlier ones, most {rules.max_repetition:g}"
    return None


def repetition(text: str) -> float:
    """How many of a text's runs of four characters have been there before, 0 to 1; 0 for short texts."""
    plain = normalise(text)
    if len(plain) < _LEAST_REPEATED:
        return 0.0
    runs = [plain[i : i + _GRAM] for i in range(len(plain) - _GRAM + 1)]
    return 1 - len(set(runs)) / len(runs)


@lru_cache(maxsize=1 << 16)
def _kind(character: str) -> str:
    """`punctuation`, `digit`, or the script of a letter as Unicode's name of it begins."""
    category = unicodedata.category(character)
    if category[0] in "PS":
        return "punctuation"
    if category[0] == "N":
        return "digit"
    first = unicodedata.name(character, "").partition(" ")[0]
    return _SCRIPT_PREFIXES.get(first, first.lower())


def _score_failure(example: Example, side: str, index: int, rules: FilterRules) -> tuple[str, str] | None:
    scores: Sequence[float] = getattr(example, f"{side[:-1]}_scores")
    if rules.scores and scores and not rules.scores[0] <= scores[index] <= rules.scores[1]:
        return "score out of range", f"{scores[index]:g}, expected {rules.scores[0]:g} to {rules.scores[1]:g}"
    return None


def _copies(example: Example) -> dict[str, tuple[str, str]]:
    query = normalise(example.query.full)
    positives = [normalise(text.full) for text in example.positives]
    copies = {}
    for i, text in enumerate(positives):
        if text == query:
            copies[f"positives[{i}]"] = ("is the query", "normalised texts are equal")
    for i, negative in enumerate(example.negatives):
        text = normalise(negative.full)
        if text == query or text in positives:
            what = "is the query" if text == query else "is a positive"
            copies[f"negatives[{i}]"] = (what, "normalised texts are equal")
    return copies


def _place(field: str) -> tuple[str, int]:
    side, _, index = field.partition("[")
    return side, int(index.rstrip("]"))
