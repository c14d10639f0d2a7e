"""One row of the unified format: its shape, and the check that every row of every file goes through.

A text may be spelled `[instruction, prefix, text]`, `{"instruction": ..., "prefix": ..., "text": ...}` or `"text"`;
a null field counts as absent. `parse_example` turns any of these into an `Example` or says which field is wrong.
"""

from __future__ import annotations

import difflib
import re
import reprlib
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any, Literal, NamedTuple, get_args

TaskType = Literal["ir", "sts", "pair_classification", "reranking", "classification", "clustering"]
TASK_TYPES: tuple[TaskType, ...] = get_args(TaskType)

#: Tasks whose rows are scored pairs: every candidate needs a score, and positives may be missing.
PAIR_TASKS: frozenset[TaskType] = frozenset({"sts", "pair_classification"})

#: A row's key for notes (ids, sources): accepted and not read, as in the CoDiEmb research release.
NOTES_KEY = "meta_data"

_ROW_KEYS = ("task_type", "query", "positives", "negatives", "positive_scores", "negative_scores", NOTES_KEY)
_TEXT_KEYS = ("instruction", "prefix", "text")
_ROW_KEY_SET = frozenset(_ROW_KEYS)
_TEXT_KEY_SET = frozenset(_TEXT_KEYS)
_SPELLINGS = '"text", [instruction, prefix, text] or {"instruction": ..., "prefix": ..., "text": ...}'
_FLOAT32_MAX = 3.4028234663852886e38  # scores are stored as float32
_BAD_CHARACTER = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")


class Text(NamedTuple):
    """A text to embed. `instruction` conditions the encoder and is not pooled; `prefix` is pooled like the text."""

    instruction: str
    prefix: str
    text: str

    @property
    def full(self) -> str:
        """The pooled part: prefix and text."""
        return self.prefix + self.text


class Example(NamedTuple):
    """A checked row. Score lists are empty where the row gives none, else as long as their candidates."""

    task_type: TaskType
    query: Text
    positives: list[Text]
    negatives: list[Text]
    positive_scores: list[float]
    negative_scores: list[float]

    def pairs(self) -> Iterator[Example]:
        """One example for each scored candidate, as the positive of its own row."""
        for texts, scores in ((self.positives, self.positive_scores), (self.negatives, self.negative_scores)):
            for text, score in zip(texts, scores, strict=True):
                yield Example(self.task_type, self.query, [text], [], [score], [])


class Problem(NamedTuple):
    """Where a file breaks the format, and how. In a parquet file `line` is the row's number, from 1."""

    file: str
    line: int
    field: str
    message: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.field}: {self.message}"


class DataError(ValueError):
    """Data that cannot be used.

    Attributes:
        problems: the located findings, at most the first 20 of each file.
        total: how many bad rows there are in all.
    """

    def __init__(self, message: str, problems: Iterable[Problem] = (), total: int = 0) -> None:
        super().__init__(message)
        self.problems = list(problems)
        self.total = total


class RowError(DataError):
    """A row that breaks the format: its `field` (`positives[2].text`), the `problem`, what was expected and got."""

    def __init__(self, field: str, problem: str, expected: str, *got: object) -> None:
        self.field = field
        self.problem = problem
        shown = "".join(f", got {reprlib.repr(value)}" for value in got)
        self.detail = f"{problem}{shown}; expected {expected}"
        super().__init__(f"{field}: {self.detail}")

    @property
    def reason(self) -> str:
        """The kind of problem, without index and value: what rows can be counted by."""
        return f"{re.sub(r'[0-9]+', '', self.field)}: {self.problem}"


def parse_example(row: object) -> Example:
    """Check one decoded row and bring it into one shape.

    A row without `task_type` is `ir`, as in the research release, unless it has scores: then it may be meant as `sts`.
    Lone surrogates and control characters (Unicode's Cc except tab and line ends) are errors in every text: no
    tokenizer makes sense of them, and they are the trace of a wrong encoding or a broken export.

    Raises:
        RowError: the first field that is wrong, what is wrong with it and what was expected.
    """
    if not isinstance(row, Mapping):
        raise RowError("row", "not an object", 'an object such as {"task_type": "ir", "query": ...}', row)
    if not row.keys() <= _ROW_KEY_SET:
        raise _unknown_key(row, _ROW_KEYS, "")
    task_type = _task_type(row)
    if row.get("query") is None:
        raise RowError("query", "missing", _SPELLINGS)
    query = parse_text(row["query"], "query")
    positives, positive_scores = _candidates(row, "positives", "positive_scores", task_type)
    negatives, negative_scores = _candidates(row, "negatives", "negative_scores", task_type)
    if not positives and (task_type not in PAIR_TASKS or not negatives):
        raise RowError("positives", f"none in a row of {task_type}", "at least one text")
    return Example(task_type, query, positives, negatives, positive_scores, negative_scores)


def parse_text(value: object, field: str, index: int | None = None) -> Text:
    """One text in any of its spellings; `field` and `index` say where it stands.

    Raises:
        RowError: not a text, empty, or with characters that no text has.
    """
    instruction: Any
    prefix: Any
    text: Any
    if isinstance(value, str):
        instruction, prefix, text = "", "", value
    elif isinstance(value, (list, tuple)):
        if len(value) != 3:
            raise RowError(_place(field, index), f"a list of {len(value)}", _SPELLINGS, value)
        instruction, prefix, text = value
    elif isinstance(value, Mapping):
        if not value.keys() <= _TEXT_KEY_SET:
            raise _unknown_key(value, _TEXT_KEYS, _place(field, index) + ".")
        instruction, prefix, text = value.get("instruction"), value.get("prefix"), value.get("text")
    else:
        raise RowError(_place(field, index), "not a text", _SPELLINGS, value)

    instruction = "" if instruction is None else instruction
    prefix = "" if prefix is None else prefix
    # The cheap look at all three first: isprintable is False for \n and some spaces too, then the slow check decides.
    if not (
        type(instruction) is type(prefix) is type(text) is str
        and text.isprintable()
        and (not instruction or instruction.isprintable())
        and (not prefix or prefix.isprintable())
    ):
        for name, part in zip(_TEXT_KEYS, (instruction, prefix, text), strict=True):
            if type(part) is not str:
                raise RowError(f"{_place(field, index)}.{name}", "not a string", "a string", part)
            if bad := _BAD_CHARACTER.search(part):
                raise _bad_character(f"{_place(field, index)}.{name}", bad)
    if not text or text.isspace():
        raise RowError(f"{_place(field, index)}.text", "empty", "a character other than white space", text)
    return Text(instruction, prefix, text)


def _task_type(row: Mapping[str, Any]) -> TaskType:
    given = row.get("task_type")
    if given in TASK_TYPES:
        return given
    choices = f"one of {', '.join(TASK_TYPES)}"
    if given is not None:
        nearest = difflib.get_close_matches(str(given).lower(), TASK_TYPES, n=1)
        expected = choices + (f" (did you mean {nearest[0]}?)" if nearest else "")
        raise RowError("task_type", "unknown task type", expected, given)
    if row.get("positive_scores") or row.get("negative_scores"):
        raise RowError("task_type", "missing in a row with scores", choices)
    return "ir"


def _candidates(
    row: Mapping[str, Any], key: str, scores_key: str, task_type: TaskType
) -> tuple[list[Text], list[float]]:
    values = row.get(key)
    if values is None:
        values = []
    elif not isinstance(values, (list, tuple)):
        raise RowError(key, "not a list", f"a list of texts, each {_SPELLINGS}", values)
    elif len(values) == 3 and values[0] == "":
        raise RowError(key, "one text instead of a list of texts", f"another pair of brackets: {key}: [[...]]", values)
    texts = [parse_text(value, key, i) for i, value in enumerate(values)]

    scores = row.get(scores_key)
    if scores is None:
        scores = []
    elif not isinstance(scores, (list, tuple)):
        raise RowError(scores_key, "not a list", "a list of numbers", scores)
    if len(scores) != len(texts) and (scores or task_type in PAIR_TASKS):
        raise RowError(scores_key, f"not one score for each of {key}", f"{len(texts)} numbers", scores)
    for i, score in enumerate(scores):
        # NaN fails the comparison too.
        if type(score) not in (int, float) or not -_FLOAT32_MAX <= score <= _FLOAT32_MAX:
            raise RowError(f"{scores_key}[{i}]", "not a score", "a finite number", score)
        if task_type == "pair_classification" and score not in (0, 1):
            raise RowError(f"{scores_key}[{i}]", "not a class", "0 or 1", score)
    return texts, list(scores)


def _place(field: str, index: int | None) -> str:
    return field if index is None else f"{field}[{index}]"


def _unknown_key(row: Mapping[str, Any], known: Collection[str], where: str) -> RowError:
    key = str(next(key for key in row if key not in known))
    nearest = difflib.get_close_matches(key.lower(), known, n=1)
    expected = f"{nearest[0]!r}" if nearest else f"one of {', '.join(known)}"
    if not where:
        expected += f" (notes go under {NOTES_KEY!r})"
    return RowError(f"{where}{key}", "unknown key", expected)


def _bad_character(field: str, match: re.Match[str]) -> RowError:
    code = ord(match[0])
    if 0xD800 <= code <= 0xDFFF:
        problem, trace = "lone surrogate", "half of a UTF-16 pair, or a byte that is not UTF-8"
    else:
        problem, trace = "control character", "only tab, \\n and \\r belong in a text"
    return RowError(field, problem, f"a text without U+{code:04X}, here its character {match.start() + 1}: {trace}")
