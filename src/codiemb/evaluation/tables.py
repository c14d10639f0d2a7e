"""Tables with a header (.tsv, .csv): scored pairs, NLI pairs, and texts with a label."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from codiemb.data.delimited import read_lines
from codiemb.data.examples import DataError, Problem, RowError, Text
from codiemb.evaluation.beir import plain_text
from codiemb.evaluation.tasks import LABELLED_TYPES, LabelledTask, PairTask

TABLE_SUFFIXES = (".tsv", ".tsv.gz", ".csv", ".csv.gz")

# Column names of pairs that are known wherever they stand; three columns of other names are taken in order.
_FIRST = ("sentence1", "text1", "query", "question1", "premise")
_SECOND = ("sentence2", "text2", "title", "passage", "document", "question2", "hypothesis")
_SCORE = ("score", "label", "relevance", "similarity")
# Column names of labelled texts.
_TEXT = ("text", "sentence")
_LABEL = ("label", "category")

_NLI: Mapping[str, float] = {"entailment": 1.0, "contradiction": 0.0, "neutral": np.nan}


def read_table(path: Path) -> list[PairTask] | list[LabelledTask]:
    """Read a table; its columns say what it is.

    Two texts and a number are scored pairs (`sts`). Two texts and `entailment`, `contradiction` or `neutral` are pair
    classification, from which neutral pairs are left out and counted, as CMTEB does. Columns `text` and `label` are
    labelled texts: a task of classification and one of clustering.

    Raises:
        DataError: a bad header or row, by line, or nothing that can be measured.
    """
    name = next(path.name.removesuffix(suffix) for suffix in TABLE_SUFFIXES if path.name.endswith(suffix))
    columns: tuple[int, ...] = ()
    rows: list[list[Text]] = []
    values: list[str] = []
    scores: list[float] = []
    for line in read_lines(path):
        try:
            if line.problem:
                raise RowError("row", line.problem, "as many as in the header, separated by " + _separator(path))
            if not columns:
                columns = _labelled_columns(line.fields) or _pair_columns(path, line.fields)
                continue
            *fields, value = (line.fields[column] for column in columns)
            values.append(value)
            if len(columns) == 3:
                scores.append(_nli_score(value) if values[0] in _NLI else _number(value))
            rows.append([plain_text(text, f"text {i}") for i, text in enumerate(fields, 1)])
        except RowError as error:
            problem = Problem(str(path), line.number, error.field, error.detail)
            raise DataError(str(problem), [problem], 1) from None
    counts = {"empty_texts": sum(not text.text.strip() for row in rows for text in row)}
    if len(columns) == 2:
        texts = [text for (text,) in rows]
        return [LabelledTask(f"{name}:{kind}", str(path), texts, values, kind, counts) for kind in LABELLED_TYPES]
    gold = np.array(scores, dtype=np.float64)
    pairs = [(first, second) for first, second in rows]
    if not values or values[0] not in _NLI:
        return [PairTask(name, str(path), pairs, gold, counts)]
    kept = np.flatnonzero(~np.isnan(gold))
    counts["neutral_pairs"] = len(gold) - len(kept)
    return [PairTask(name, str(path), [pairs[i] for i in kept], gold[kept], counts, type="pair_classification")]


def _separator(path: Path) -> str:
    return "commas" if ".csv" in path.suffixes else "tabs"


def _labelled_columns(header: list[str]) -> tuple[int, int] | None:
    """The places of text and label, if the header names one of each and no second text."""
    names = [name.strip().lower() for name in header]
    places = [[i for i, name in enumerate(names) if name in known] for known in (_TEXT, _LABEL)]
    if any(len(found) != 1 for found in places) or any(name in (*_FIRST, *_SECOND) for name in names):
        return None
    return places[0][0], places[1][0]


def _pair_columns(path: Path, header: list[str]) -> tuple[int, int, int]:
    """The places of the two texts and the score: by name, else the only three columns in order."""
    names = [name.strip().lower() for name in header]
    chosen = [[i for i, name in enumerate(names) if name in known] for known in (_FIRST, _SECOND, _SCORE)]
    if all(len(places) == 1 for places in chosen):
        return chosen[0][0], chosen[1][0], chosen[2][0]
    if len(names) != 3:
        raise DataError(
            f"{path}: {len(names)} columns by the first line, {header[:6]}. Expected a header and three columns "
            f"(text, text, score), separated by {_separator(path)}, or columns named sentence1, sentence2 and score, "
            "or text and label."
        )
    try:
        float(header[2])
    except ValueError:
        return 0, 1, 2
    raise DataError(
        f"{path}: the first line has the score {header[2]!r}, expected a header: sentence1, sentence2, score."
    )


def _number(value: str) -> float:
    try:
        number = float(value)
    except ValueError:
        number = np.nan
    if not np.isfinite(number):
        raise RowError("score", "not a score", "a finite number", value)
    return number


def _nli_score(value: str) -> float:
    """1 for entailment, 0 for contradiction, NaN for a neutral pair."""
    if value not in _NLI:
        raise RowError("label", "not an NLI label", " or ".join(_NLI), value)
    return _NLI[value]
