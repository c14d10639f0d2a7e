"""What a synthesis run is told: documents, a chat API, what to make of the documents, and the gates that rows pass."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)
from typing_extensions import Self

from codiemb.training.sections import RecipeSection, Section

Language = Literal["zh", "en"]
Structured = Literal["auto", "schema", "json", "plain"]
QueryKind = Literal["keyword", "question", "long", "colloquial", "cross_lingual"]
Length = Literal["short", "medium", "long"]
Difficulty = Literal["easy", "medium", "hard"]

QUERY_KINDS: tuple[QueryKind, ...] = get_args(QueryKind)
Bounds = tuple[PositiveInt, PositiveInt]

# Fields of a request that are codiemb's own: `body` may not set them behind its back.
_OWN_FIELDS = ("model", "messages", "response_format", "temperature", "max_tokens", "seed", "stream", "n")


class Api(Section):
    """An OpenAI-compatible chat API and how fast it may be asked."""

    base_url: str = Field(description="up to and with /v1: https://api.openai.com/v1, http://localhost:11434/v1, ...")
    model: str = Field(description="its name there")
    key_variable: str = Field("OPENAI_API_KEY", description="environment variable with the key, if one is needed")
    structured: Structured = Field(
        "auto",
        description="how JSON is asked for: by its schema, by response_format json_object, in words alone; auto: the "
        "first of these that the server takes",
    )
    temperature: float = Field(0.8, ge=0, le=2)
    max_tokens: PositiveInt | None = Field(1024, description="of an answer; null leaves it to the server")
    body: dict[str, Any] = Field(
        default_factory=dict,
        description="further fields of every request, such as {chat_template_kwargs: {enable_thinking: false}}",
    )
    concurrency: PositiveInt = Field(4, description="requests under way at once")
    requests_per_minute: PositiveFloat | None = None
    tokens_per_minute: PositiveFloat | None = Field(None, description="of prompts and answers together")
    timeout: PositiveFloat = Field(120.0, description="s for one attempt")
    attempts: PositiveInt = Field(5, description="of a request that fails on the way (429, 5xx, time-out, cut)")
    backoff: NonNegativeFloat = Field(1.0, description="s before the second attempt, doubled each time, at most 60")
    answers: PositiveInt = Field(3, description="that are paid for when a request's answers cannot be read")
    input_price: NonNegativeFloat | None = Field(None, description="of a million prompt tokens, in any currency")
    output_price: NonNegativeFloat | None = Field(None, description="of a million tokens of answers")

    @field_validator("base_url")
    @classmethod
    def _url(cls, value: str) -> str:
        if not value.startswith(("http://", "https://")):
            raise ValueError("expected an address that begins with http:// or https://")
        return value

    @field_validator("body")
    @classmethod
    def _body(cls, value: dict[str, Any]) -> dict[str, Any]:
        if taken := [field for field in _OWN_FIELDS if field in value]:
            raise ValueError(f"{taken[0]} is set by codiemb; allowed are other fields of the API")
        return value


class Brainstorm(Section):
    """The model proposes retrieval tasks after reading documents of the corpus."""

    requests: PositiveInt = 4
    documents: PositiveInt = Field(5, description="that one request shows, each cut to 400 characters")
    tasks: PositiveInt = Field(4, description="that one request asks for")


class Queries(Section):
    """Queries that a document answers, with hard negatives; rows of task `ir`."""

    per_document: PositiveInt = Field(2, description="asked for in one request")
    kinds: list[QueryKind] = Field(list(QUERY_KINDS), min_length=1)
    difficulties: list[Difficulty] = Field(["easy", "medium", "hard"], min_length=1)
    personas: list[str] | None = Field(None, min_length=1, description="who asks; null: those of words.yaml")
    query_language: str | None = Field(
        None, description="of cross-lingual queries, a key of words.yaml's languages; null: en for zh, zh for en"
    )
    hard_negatives: NonNegativeInt = Field(1, description="passages near the subject that do not answer, each query")
    positives: NonNegativeInt = Field(0, description="passages in other words that answer too, beside the document")


class Pairs(Section):
    """Pairs of a sentence of the document and one that the model writes, similar to a wanted degree; task `sts`."""

    per_document: PositiveInt = Field(1, description="sentences, each in a request of its own")
    pairs: PositiveInt = Field(3, description="of each sentence; their degrees cover the range evenly over the run")
    scores: list[float] = Field(
        [0, 1, 2, 3, 4, 5], min_length=2, description="degrees that words.yaml describes, lowest first"
    )

    @field_validator("scores")
    @classmethod
    def _rising(cls, value: list[float]) -> list[float]:
        if value != sorted(set(value)):
            raise ValueError("expected rising numbers")
        return value


class Paraphrases(Section):
    """A sentence of the document in other words; rows of task `ir` with one instruction on both sides."""

    per_document: PositiveInt = Field(1, description="sentences, each in a request of its own")
    count: PositiveInt = Field(2, description="paraphrases of each")


class Gates(Section):
    """What a row has to pass. Lengths are characters without spaces at the ends, bounds included."""

    language: bool = Field(True, description="texts are in the language that was asked for")
    query_length: Bounds = Field((2, 400), description="a long English query of 60 words takes that much")
    sentence_length: Bounds = (4, 300)
    passage_length: Bounds = (20, 4000)
    copied: float | None = Field(
        0.8, gt=0, le=1, description="most of a text that one run of its source's characters may make up"
    )
    near_duplicate: float | None = Field(0.8, gt=0, lt=1, description="Jaccard similarity to an earlier text")
    model: str | None = Field("bundled", description="embedding model of the gates below; null leaves them out")
    similar: float | None = Field(0.98, gt=0, le=1, description="cosine of a query to an earlier one")
    top_k: PositiveInt | None = Field(10, description="the query finds its document among so many of the corpus")
    negative_margin: float | None = Field(
        0.0, ge=0, description="by which a written negative has to be less similar to the query than the document"
    )
    disagreement: float | None = Field(
        0.5, gt=0, le=1, description="most that a pair's places by score and by cosine, 0 to 1, may differ"
    )
    calibrate: bool = Field(True, description="scores get the spacing of their mean cosines, order kept")

    @model_validator(mode="after")
    def _bounds(self) -> Self:
        for name in ("query_length", "sentence_length", "passage_length"):
            low, high = getattr(self, name)
            if low > high:
                raise ValueError(f"gates.{name}: the lower bound {low} is above the upper one {high}")
        return self


class SynthesisRecipe(RecipeSection):
    """Everything that a synthesis run depends on."""

    documents: list[Path] = Field(min_length=1, description=".jsonl, .json, .parquet, .txt, gzip too, or BEIR folders")
    output: Path = Field(description="directory of the data files, the report and the journal")
    api: Api
    language: Language = Field("zh", description="of the documents, the prompts and what is written")
    templates: Path | None = Field(None, description="from `codiemb synthesize templates`; null: the shipped ones")
    text_field: str = Field("text", description="of the documents")
    limit: PositiveInt | None = Field(None, description="documents to write for, drawn by the seed; null: all")
    max_characters: PositiveInt = Field(2000, description="of a document that a prompt shows")
    min_characters: PositiveInt = Field(20, description="documents shorter than this are left out")
    tasks: list[str] = Field(default_factory=list, description="retrieval tasks in words; instructions of the queries")
    brainstorm: Brainstorm | None = Field(Brainstorm(), description="adds tasks to these; null asks for none")
    queries: Queries | None = Queries()
    pairs: Pairs | None = Pairs()
    paraphrases: Paraphrases | None = Paraphrases()
    gates: Gates = Gates()
    seed: NonNegativeInt = 42

    def _contradictions(self) -> Iterator[str]:
        if not (self.queries or self.pairs or self.paraphrases):
            yield "queries, pairs and paraphrases are all null, expected at least one of them"
        if self.queries and self.queries.query_language == self.language:
            yield f"queries.query_language is {self.language}, the language of the documents; expected another one"
        if blank := [number for number, task in enumerate(self.tasks) if not task.strip()]:
            yield f"tasks.{blank[0]}: empty, expected a task in words"

    @property
    def cross_language(self) -> str:
        """The language of cross-lingual queries."""
        named = self.queries.query_language if self.queries else None
        return named or ("en" if self.language == "zh" else "zh")
