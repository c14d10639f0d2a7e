"""Which requests a run makes: a pure function of seed, documents, recipe and templates."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from pydantic import BaseModel

from codiemb.curation.synthesis.answers import pairs_answer, paraphrases_answer, queries_answer, shape, tasks_answer
from codiemb.curation.synthesis.grid import Cell, cell
from codiemb.curation.synthesis.order import dealt, shuffled, ticket
from codiemb.curation.synthesis.recipe import SynthesisRecipe
from codiemb.curation.synthesis.templates import Messages, RequestKind, Templates
from codiemb.data.documents import Document

_SHOWN = 400  # characters of a document in a request for tasks
_SENTENCE_END = re.compile(r"(?<=[。！？!?])|(?<=[.!?])\s+|\n+")
_SENTENCE = (8, 200)  # characters of a sentence that is worth a pair; 30 English words have that many


class Request(NamedTuple):
    """One thing to ask.

    Attributes:
        name: unique in the run.
        document: its number in the corpus, -1 for tasks.
        task: instruction of the queries, of `queries` only.
        cells: what each query is to be like, of `queries` only.
        sentence: what is paired or paraphrased.
        scores: wanted degrees, of `pairs` only.
    """

    kind: RequestKind
    name: str
    messages: Messages
    answer: type[BaseModel]
    document: int = -1
    task: str = ""
    cells: tuple[Cell, ...] = ()
    sentence: str = ""
    scores: tuple[float, ...] = ()


class Corpus(NamedTuple):
    """All documents, and the numbers of those that are written for, in order.

    Attributes:
        short: documents with fewer than `min_characters`, which are not written for.
    """

    documents: list[Document]
    chosen: list[int]
    short: int


def choose(documents: Sequence[Document], recipe: SynthesisRecipe) -> Corpus:
    """Take the documents that are long enough, `limit` of them drawn by the seed."""
    fit = [number for number, one in enumerate(documents) if len(one.text.strip()) >= recipe.min_characters]
    short = len(documents) - len(fit)
    if recipe.limit is not None and recipe.limit < len(fit):
        fit = sorted(sorted(fit, key=lambda number: ticket(recipe.seed, "limit", number))[: recipe.limit])
    return Corpus(list(documents), fit, short)


def plan_tasks(recipe: SynthesisRecipe, corpus: Corpus, templates: Templates) -> Iterator[Request]:
    """Requests for retrieval tasks; each shows other documents, as long as there are enough."""
    wanted = recipe.brainstorm
    if wanted is None or not recipe.queries:
        return
    answer = tasks_answer(wanted.tasks)
    for number in range(wanted.requests):
        first = number * wanted.documents
        shown = dict.fromkeys(
            dealt(corpus.chosen, first + place, recipe.seed, "tasks") for place in range(wanted.documents)
        )
        texts = [
            templates.phrase("document", number=place, text=corpus.documents[one].text.strip()[:_SHOWN])
            for place, one in enumerate(shown, 1)
        ]
        messages = templates.messages("tasks", documents="\n\n".join(texts), count=wanted.tasks, shape=shape(answer))
        yield Request("tasks", f"tasks/{number}", messages, answer)


def plan_rows(recipe: SynthesisRecipe, corpus: Corpus, templates: Templates, tasks: Sequence[str]) -> Iterator[Request]:
    """Requests for queries, pairs and paraphrases, document by document.

    Args:
        tasks: instructions to deal to the documents; the templates' general one if there are none.
    """
    tasks = shuffled(list(tasks) or [templates.words.general_task], recipe.seed, "task")
    written = 0  # pairs so far
    for place, number in enumerate(corpus.chosen):
        if recipe.queries:
            yield _queries(recipe, corpus, templates, place, number, tasks[place % len(tasks)])
        if recipe.pairs:
            for sentence in _sentences(corpus, number, recipe.pairs.per_document, recipe.seed, "pairs"):
                yield _pairs(recipe, corpus, templates, number, sentence, written)
                written += recipe.pairs.pairs
        if recipe.paraphrases:
            answer = paraphrases_answer(recipe.paraphrases.count)
            wanted = recipe.paraphrases.per_document
            for order, sentence in enumerate(_sentences(corpus, number, wanted, recipe.seed, "paraphrases")):
                messages = templates.messages(
                    "paraphrases", sentence=sentence, count=recipe.paraphrases.count, shape=shape(answer)
                )
                name = f"paraphrases/{number}/{order}"
                yield Request("paraphrases", name, messages, answer, number, sentence=sentence)


def _queries(
    recipe: SynthesisRecipe, corpus: Corpus, templates: Templates, place: int, number: int, task: str
) -> Request:
    wanted, words = recipe.queries, templates.words
    assert wanted is not None
    cells = tuple(
        cell(
            place * wanted.per_document + order,
            wanted.kinds,
            wanted.difficulties,
            wanted.personas or words.personas,
            recipe.seed,
        )
        for order in range(wanted.per_document)
    )
    lines = [
        templates.phrase(
            "query",
            number=order,
            kind=words.kinds[one.kind],
            length=words.lengths[one.length],
            difficulty=words.difficulties[one.difficulty],
            persona=one.persona,
            language=words.languages[query_language(recipe, one)],
        )
        for order, one in enumerate(cells, 1)
    ]
    passages = [
        templates.phrase(name, count=count)
        for name, count in (("positives", wanted.positives), ("hard_negatives", wanted.hard_negatives))
        if count
    ]
    answer = queries_answer(wanted.per_document, wanted.positives, wanted.hard_negatives)
    messages = templates.messages(
        "queries",
        document=corpus.documents[number].text.strip()[: recipe.max_characters],
        task=task,
        count=wanted.per_document,
        queries="\n".join(lines),
        passages="\n".join(passages),
        shape=shape(answer),
    )
    return Request("queries", f"queries/{number}", messages, answer, number, task, cells)


def query_language(recipe: SynthesisRecipe, one: Cell) -> str:
    """The language that a query is asked for in."""
    return recipe.cross_language if one.kind == "cross_lingual" else recipe.language


def _pairs(
    recipe: SynthesisRecipe, corpus: Corpus, templates: Templates, number: int, sentence: str, written: int
) -> Request:
    wanted, words = recipe.pairs, templates.words
    assert wanted is not None
    scores = tuple(dealt(wanted.scores, written + order, recipe.seed, "score") for order in range(wanted.pairs))
    answer = pairs_answer(wanted.pairs)
    messages = templates.messages(
        "pairs",
        sentence=sentence,
        lowest=f"{wanted.scores[0]:g}",
        highest=f"{wanted.scores[-1]:g}",
        degrees="\n".join(
            templates.phrase("degree", score=f"{one:g}", meaning=words.degrees[one]) for one in wanted.scores
        ),
        count=wanted.pairs,
        scores=", ".join(f"{one:g}" for one in scores),
        shape=shape(answer),
    )
    name = f"pairs/{number}/{ticket(sentence)}"
    return Request("pairs", name, messages, answer, number, sentence=sentence, scores=scores)


def _sentences(corpus: Corpus, number: int, count: int, seed: int, purpose: str) -> list[str]:
    """At most so many different sentences of a document, drawn by the seed."""
    low, high = _SENTENCE
    parts = (part.strip() for part in _SENTENCE_END.split(corpus.documents[number].text))
    found = list(dict.fromkeys(part for part in parts if low <= len(part) <= high))
    return shuffled(found, seed, purpose, number)[:count]
