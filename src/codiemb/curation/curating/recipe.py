"""What a curation is told: sources, steps, and what its data card says."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator
from typing_extensions import Self

from codiemb.curation.cleaning.decontaminating import Drop
from codiemb.curation.cleaning.deduplicating import Keep, Match, On, check_options
from codiemb.curation.cleaning.filtering import FilterRules
from codiemb.curation.cleaning.leaks import NearOptions
from codiemb.curation.cleaning.splitting import By
from codiemb.curation.curating.published import published
from codiemb.curation.mining import MiningOptions
from codiemb.curation.synthesis import SynthesisRecipe
from codiemb.training.sections import Section, parse_section

StepKind = Literal["synthesize", "filter", "dedupe", "mine", "decontaminate", "split"]
STEP_KINDS: tuple[StepKind, ...] = get_args(StepKind)

_PUBLISHED_API = ("model", "temperature", "max_tokens", "answers")


class Source(Section):
    """A file or directory, and where it comes from, for the data card."""

    path: Path
    license: str | None = None
    url: str | None = None
    note: str | None = None


class DedupeStep(Section):
    """As in `codiemb data dedupe`."""

    on: On = "pair"
    match: Match = "near"
    keep: Keep = "first"
    threshold: float | None = Field(None, gt=0, lt=1)
    simplify: bool = False

    @model_validator(mode="after")
    def _valid(self) -> Self:
        check_options(on=self.on, match=self.match, keep=self.keep, threshold=self.threshold)
        return self


class MineStep(Section):
    """As in `codiemb mine`."""

    model: str = "bundled"
    corpus: list[Path] = Field(default_factory=list, description="documents; empty: the rows' own texts")
    text_field: str = "text"
    miners: list[Literal["dense", "bm25"]] = Field(["dense"], min_length=1)
    instruction: str = ""
    words: Literal["characters", "jieba"] = "characters"
    max_length: PositiveInt | None = None
    options: MiningOptions = MiningOptions()


class DecontaminateStep(Section):
    """As in `codiemb data decontaminate`."""

    against: list[str] = Field(min_length=1, description="tasks or benchmarks of mteb, files or folders")
    dataset_root: Path | None = None
    side: Literal["both", "query", "document"] = "both"
    drop: Drop = "row"
    near: bool = True
    jaccard: float = Field(0.7, gt=0)
    overlap: float = Field(0.85, gt=0)
    containment: float = Field(0.8, gt=0)
    simplify: bool = True

    def near_options(self) -> NearOptions | None:
        """As the finder takes them."""
        return NearOptions(self.jaccard, self.overlap, self.containment) if self.near else None


class SplitStep(Section):
    """As in `codiemb data split`."""

    sizes: dict[str, PositiveFloat | Literal["rest"]] = Field(
        min_length=2, description="a share below 1, a number of rows, or rest"
    )
    by: By = "pair"  # by "text", mined negatives would link all rows
    group_field: str = "group"
    simplify: bool = False


class Step(Section):
    """One step: a single key, which names it, with its options."""

    synthesize: dict[str, Any] | None = None
    filter: FilterRules | None = None
    dedupe: DedupeStep | None = None
    mine: MineStep | None = None
    decontaminate: DecontaminateStep | None = None
    split: SplitStep | None = None

    @model_validator(mode="before")
    @classmethod
    def _defaults(cls, value: Any) -> Any:
        if isinstance(value, str):  # `- filter`: all of its defaults
            return {value: {}}
        return {key: {} if one is None else one for key, one in value.items()} if isinstance(value, dict) else value

    @model_validator(mode="after")
    def _one(self) -> Self:
        given = sorted(self.model_fields_set)
        if len(given) != 1:
            raise ValueError(f"got {', '.join(given) or 'no step'}; expected one step, such as `- filter: {{}}`")
        if self.synthesize is not None:
            self.synthesis(Path("output"))
        return self

    @property
    def kind(self) -> StepKind:
        """Which step it is."""
        return next(kind for kind in STEP_KINDS if kind in self.model_fields_set)

    @property
    def documents(self) -> list[Path]:
        """What the step takes texts from that may end up in the set."""
        if self.synthesize is not None:
            return self.synthesis(Path("output")).documents
        return self.mine.corpus if self.mine else []

    def synthesis(self, output: Path) -> SynthesisRecipe:
        """The recipe of a synthesis into `output`."""
        return parse_section(SynthesisRecipe, {**(self.synthesize or {}), "output": output}, "synthesize")

    def options(self) -> dict[str, Any]:
        """Everything that the step is told, for JSON."""
        if self.synthesize is not None:
            return self.synthesis(Path("output")).model_dump(mode="json", exclude={"output"})
        content: dict[str, Any] = getattr(self, self.kind).model_dump(mode="json")
        return content

    def published_options(self) -> dict[str, Any]:
        """The same without which server is asked and how, and without absolute paths."""
        content = self.options()
        if self.synthesize is not None:
            content["api"] = {key: value for key, value in content["api"].items() if key in _PUBLISHED_API}
        return published(content)


class Card(Section):
    """What the data card says that the data cannot."""

    title: str | None = None
    description: str | None = None
    license: str | None = Field(None, description="an identifier of the hub: apache-2.0, cc-by-4.0, other, ...")
    languages: list[str] = Field(default_factory=list, description="zh, en, ...")


class CurationRecipe(Section):
    """Everything that a curation depends on."""

    output: Path = Field(description="directory of the data set; what its steps left lies in OUTPUT.steps")
    sources: list[Source] = Field(default_factory=list, description="labelled rows; none where a step writes them")
    documents: list[Source] = Field(default_factory=list, description="of those that steps read: license, url, note")
    steps: list[Step] = Field(min_length=1)
    format: Literal["parquet", "jsonl"] = Field("parquet", description="jsonl keeps the rows' notes")
    on_error: Literal["raise", "skip"] = Field("raise", description="skip: bad rows of sources are left out")
    card: Card = Card()
    seed: NonNegativeInt = 0

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        kinds = [step.kind for step in self.steps]
        if "split" in kinds[:-1]:
            raise ValueError("steps: split has to be the last one")
        if not self.sources and kinds[0] != "synthesize":
            raise ValueError("sources: none, and the first step is not synthesize; expected rows to begin with")
        read = {path for step in self.steps for path in step.documents}
        if unread := [str(one.path) for one in self.documents if one.path not in read]:
            raise ValueError(f"documents: {unread[0]} is read by no step; expected a path as a step names it")
        first = next((kind for kind in kinds if kind != "synthesize"), None)
        if self.on_error == "skip" and first in (None, "mine"):
            raise ValueError("on_error: skip leaves bad rows out in the first cleaning step; add `- filter` before")
        return self
