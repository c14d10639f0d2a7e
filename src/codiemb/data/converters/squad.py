"""SQuAD files (Rajpurkar et al., 2016, arXiv:1606.05250) and what shares their structure."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import orjson

from codiemb.data.cache import Progress
from codiemb.data.converters.common import Conversion, Dropped, check_paths, write
from codiemb.data.examples import NOTES_KEY, DataError
from codiemb.data.sources import open_bytes
from codiemb.data.writers import Noted

logger = logging.getLogger(__name__)

# After a sentence's last mark and closing quotes or brackets; western marks need a space after them.
_SENTENCE_END = re.compile(r"[。！？…；]+[”’」』）]*|[.!?]+[\"')\]”’]*(?=\s)|\n")


class Answer(NamedTuple):
    """An answer as annotated: its text and the character it starts at."""

    text: str
    start: int


class _Question(NamedTuple):
    place: str
    context: str
    text: object
    answers: list[Answer]


def squad(
    source: Path,
    output: Path,
    *,
    chunk_size: int | None = None,
    instruction: str = "",
    progress: Progress | None = None,
) -> Conversion:
    """Rows of `ir` from a SQuAD file: a question and the paragraph that answers it. The file is read whole.

    Answers go under `answers` of the rows' notes, where mining finds them: a text that holds one is no negative.

    Args:
        chunk_size: cut paragraphs at sentence ends into chunks of at most so many characters, longer only where one
            sentence is: the chunk with the answer is the positive, chunks without it are negatives. None: whole
            paragraphs, and no negatives.

    Raises:
        DataError: a missing file, another structure, or no good row.
    """
    check_paths(source, output)
    if chunk_size is not None and chunk_size < 1:
        raise DataError(f"chunk_size={chunk_size}; expected at least 1 character.")
    if output.name.endswith(".parquet"):
        logger.warning("%s: answers are left out: parquet files have no place for %s.", output, NOTES_KEY)
    dropped = Dropped()

    def examples() -> Iterator[Noted]:
        for question in _questions(source):
            if not question.answers:
                dropped.add("question without an answer", question.place)
                continue
            positives, negatives = [question.context], list[str]()
            if chunk_size is not None:
                positives, negatives = split_at_answer(question.context, question.answers, chunk_size)
            if not positives:
                dropped.add("no chunk holds the whole answer", question.place)
                continue
            row = {
                "task_type": "ir",
                "query": [instruction, "", question.text],
                "positives": positives,
                "negatives": negatives,
            }
            notes = {"answers": list(dict.fromkeys(answer.text for answer in question.answers))}
            yield from (Noted(example, notes) for example in dropped.checked(row, question.place))

    return write(examples(), output, dropped, progress)


def split_at_answer(context: str, answers: list[Answer], chunk_size: int) -> tuple[list[str], list[str]]:
    """Chunks of a paragraph that hold an annotated answer, and those that hold no answer's text at all.

    A chunk where an answer's text merely occurs again, or into which an answer reaches, may answer too: it is neither.
    """
    positives, negatives = [], []
    for start, end in chunks(context, chunk_size):
        chunk = context[start:end]
        spans = [(answer.start, answer.start + len(answer.text)) for answer in answers]
        if any(start <= first and last <= end for first, last in spans):
            positives.append(chunk.strip())
        elif chunk.strip() and not any(
            answer.text in chunk or (first < end and start < last)
            for answer, (first, last) in zip(answers, spans, strict=True)
        ):
            negatives.append(chunk.strip())
    return positives, negatives


def chunks(text: str, size: int) -> list[tuple[int, int]]:
    """Spans that cover the text, cut at sentence ends, at most `size` characters unless one sentence is longer."""
    ends = [match.end() for match in _SENTENCE_END.finditer(text)]
    spans: list[tuple[int, int]] = []
    start = cut = 0
    for end in [*ends, len(text)]:
        if end - start > size and cut > start:
            spans.append((start, cut))
            start = cut
        cut = end
    return [*spans, (start, len(text))] if start < len(text) else spans


def _questions(source: Path) -> Iterator[_Question]:
    with open_bytes(source) as stream:
        try:
            content = orjson.loads(stream.read())
        except orjson.JSONDecodeError as error:
            raise DataError(f"{source}: broken JSON: {error}") from None
    try:
        for i, article in enumerate(content["data"]):
            for j, paragraph in enumerate(article["paragraphs"]):
                for k, question in enumerate(paragraph["qas"]):
                    place = f"{source}: data[{i}].paragraphs[{j}].qas[{k}]"
                    yield _Question(place, paragraph["context"], question["question"], _answers(paragraph, question))
    except (KeyError, TypeError, IndexError) as error:
        raise DataError(
            f"{source}: not in SQuAD's structure ({type(error).__name__}: {error}); expected "
            '{"data": [{"paragraphs": [{"context": ..., "qas": [{"question": ..., "answers": [...]}]}]}]}.'
        ) from None


def _answers(paragraph: dict[str, Any], question: dict[str, Any]) -> list[Answer]:
    """The answers that stand in the paragraph; none where it is said to hold none (SQuAD 2)."""
    if question.get("is_impossible"):
        return []
    context = paragraph["context"]
    found = []
    for answer in question.get("answers") or []:
        text, start = answer["text"], answer.get("answer_start", -1)
        if context[start : start + len(text)] != text:
            start = context.find(text)  # offsets counted in bytes, or before white space was cleaned
        if text and start >= 0:
            found.append(Answer(text, start))
    return found
