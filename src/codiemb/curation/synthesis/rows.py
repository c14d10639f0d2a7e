"""What was written, as rows on their way through the gates."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from codiemb.curation.synthesis.plan import Corpus, Request, query_language
from codiemb.curation.synthesis.recipe import SynthesisRecipe
from codiemb.data.examples import NOTES_KEY, TaskType

RowFile = Literal["ir", "sts", "paraphrases"]
TASK_TYPES: dict[RowFile, TaskType] = {"ir": "ir", "sts": "sts", "paraphrases": "ir"}


@dataclass
class Row:
    """A row that a model wrote; `query` and `written` are what it has to answer for.

    Attributes:
        kind: of query, `pair` or `paraphrase`.
        document: its number in the corpus.
        source: what `written` may not be copied from.
        written: the text that is new: the query, or the second sentence.
        positives: passages beside the document that the model wrote, of `ir` only.
        score: of `sts` only; `wanted` is the degree that was asked for.
    """

    file: RowFile
    kind: str
    request: str
    document: int
    source: str
    written: str
    language: str
    instruction: str
    positives: list[str] = field(default_factory=list)
    negatives: list[str] = field(default_factory=list)
    score: float = 0.0
    wanted: float = 0.0
    notes: dict[str, Any] = field(default_factory=dict)


class Rejection(NamedTuple):
    """Something that did not pass: a whole row, a passage of one, or what a request should have brought.

    Attributes:
        gate: the reason, as it is counted.
        detail: what was found and what was expected.
        content: as much of it as there is.
    """

    kind: str
    gate: str
    detail: str
    request: str
    content: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """As a line of `rejected.jsonl`."""
        return self._asdict()


def rejected(row: Row, gate: str, detail: str) -> Rejection:
    """A whole row that did not pass."""
    content: dict[str, Any] = {"text": row.written, "source": row.source}
    if row.file == "sts":
        content["score"] = row.score
    return Rejection(row.kind, gate, detail, row.request, content)


def written_rows(
    request: Request, answer: Any, recipe: SynthesisRecipe, corpus: Corpus, instruction: str
) -> Iterator[Row]:
    """The rows of a request for queries, pairs or paraphrases.

    Args:
        answer: as `request.answer` describes it.
        instruction: of pairs and paraphrases.
    """
    common: dict[str, Any] = {"request": request.name, "document": request.document}
    if request.kind == "queries":
        for one, cell in zip(answer.queries, request.cells, strict=True):
            yield Row(
                file="ir",
                kind=cell.kind,
                source=corpus.documents[request.document].text,
                written=one.query.strip(),
                language=query_language(recipe, cell),
                instruction=request.task,
                positives=[text.strip() for text in getattr(one, "positives", [])],
                negatives=[text.strip() for text in getattr(one, "hard_negatives", [])],
                notes={"length": cell.length, "difficulty": cell.difficulty, "persona": cell.persona},
                **common,
            )
    elif request.kind == "pairs":
        for one, wanted in zip(answer.pairs, request.scores, strict=True):
            yield Row(
                file="sts",
                kind="pair",
                source=request.sentence,
                written=one.sentence.strip(),
                language=recipe.language,
                instruction=instruction,
                score=round(one.score, 2),
                wanted=wanted,
                **common,
            )
    else:
        for text in answer.paraphrases:
            yield Row(
                file="paraphrases",
                kind="paraphrase",
                source=request.sentence,
                written=text.strip(),
                language=recipe.language,
                instruction=instruction,
                **common,
            )


def encoded(row: Row, corpus: Corpus) -> dict[str, Any]:
    """A row of the unified format, its origin under `meta_data`."""
    document = corpus.documents[row.document]
    asked = [row.instruction, "", row.source if row.file != "ir" else row.written]
    if row.file == "ir":
        positives = [["", "", text] for text in (document.text, *row.positives)]
    else:
        positives = [[row.instruction, "", row.written]]
    notes = {"document": document.id, "kind": row.kind, **row.notes}
    if row.file == "sts":
        notes["wanted"] = row.wanted
    return {
        "task_type": TASK_TYPES[row.file],
        "query": asked,
        "positives": positives,
        "negatives": [["", "", text] for text in row.negatives],
        "positive_scores": [row.score] if row.file == "sts" else [],
        "negative_scores": [],
        NOTES_KEY: notes,
    }
