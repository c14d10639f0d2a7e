"""A training recipe: one YAML file, checked as a whole before anything is loaded."""

from __future__ import annotations

import difflib
import re
import reprlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    create_model,
    field_validator,
    model_validator,
)

from codiemb.prompts import TEMPLATES, InstructionTemplate
from codiemb.tasks import TASKS


class RecipeError(ValueError):
    """A recipe that cannot be used; the message lists every fault with its key."""


class Section(BaseModel):
    """Part of a recipe: unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


_PROMPT_SIDES = ("query", "document", "default")


class Source(Section):
    """A data file in the unified format."""

    path: Path = Field(description="jsonl, json or parquet, gzip too; a folder means all data files in it")
    weight: PositiveFloat | None = Field(
        None, description="steps relative to the other data sets (of its task, given task_shares); all or none set it"
    )


class Prompts(Section):
    """How instructions become prompts."""

    template: str | InstructionTemplate | None = Field(
        None, description=f"a name ({', '.join(TEMPLATES)}), or query and document prompts; null keeps the model's own"
    )
    pool_prompt: bool | None = Field(
        None, description="whether prompt tokens are pooled; null keeps what the model's own configuration says"
    )

    @field_validator("template", mode="before")
    @classmethod
    def _template(cls, value: Any) -> Any:
        expected = f"one of {', '.join(TEMPLATES)}, or a section with query and document prompts"
        if value is None or isinstance(value, InstructionTemplate) or (isinstance(value, str) and value in TEMPLATES):
            return value
        if isinstance(value, str):
            raise ValueError(f"unknown template{_nearest(value, TEMPLATES)} expected {expected}")
        if not isinstance(value, dict) or not all(isinstance(prompt, str) for prompt in value.values()):
            raise ValueError(f"expected {expected}")
        if unknown := [key for key in value if key not in _PROMPT_SIDES]:
            raise ValueError(f"unknown key {unknown[0]!r}{_nearest(unknown[0], _PROMPT_SIDES)} expected {expected}")
        return InstructionTemplate(**value)


class Sampling(Section):
    """How often each task and data set is trained on."""

    task_shares: dict[str, NonNegativeFloat] | None = Field(
        None, description="share of the steps for each task, such as {ir: 0.5, sts: 0.5}; null: by size"
    )
    temperature: float | None = Field(
        None, ge=1, description="data sets weigh size^(1/temperature); null or 1: by size, large: evenly"
    )


class Optimizer(Section):
    """AdamW and its schedule."""

    learning_rate: PositiveFloat = 5e-5
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    warmup: float = Field(0.1, ge=0, lt=1, description="share of the steps over which the learning rate rises")
    weight_decay: NonNegativeFloat = Field(0.01, description="not applied to biases, norms and embeddings")
    max_grad_norm: PositiveFloat = 1.0


class Evaluation(Section):
    """Scores on held-out data, before, during and after training."""

    data: list[Path] = Field(default_factory=list, description="BEIR folders, scored pairs, unified files")
    every: PositiveInt | None = Field(None, description="optimizer steps between evaluations; null: only at the end")
    metric: str = Field(
        "mean", description="the score that the best checkpoint is chosen by: mean, ir, sts, reranking, or a data set"
    )
    keep_best: bool = Field(True, description="end with the best evaluated checkpoint, not the last one")


class Checkpoints(Section):
    """What a killed run can go on from."""

    every: PositiveInt | None = Field(
        None, description="optimizer steps between checkpoints; null: at evaluations, else ten a run"
    )
    keep: PositiveInt = Field(2, description="how many stay, the best one included")


def _tasks_section() -> type[Section]:
    """One optional section for each registered task, with that task's own options."""
    options: dict[str, Any] = {
        name: (task.options, Field(default_factory=task.options)) for name, task in TASKS.items()
    }
    return create_model("Tasks", __base__=Section, __doc__="Options of each task.", **options)


Tasks = _tasks_section()


class Recipe(Section):
    """Everything a training run depends on."""

    model: str = Field(description="a hub id, a directory, or 'bundled'")
    output: Path = Field(description="directory of the trained model; checkpoints and logs lie in its training/")
    train: list[Source] = Field(min_length=1)
    evaluation: Evaluation = Evaluation()
    prompts: Prompts = Prompts()
    tasks: Tasks = Field(default_factory=Tasks)  # type: ignore[valid-type]
    sampling: Sampling = Sampling()
    optimizer: Optimizer = Optimizer()
    checkpoints: Checkpoints = Checkpoints()

    epochs: PositiveFloat = 1.0
    max_steps: PositiveInt | None = Field(None, description="optimizer steps, in place of epochs")
    accumulation: PositiveInt = Field(1, description="batches of one data set that make up an optimizer step")
    max_length: PositiveInt | None = Field(None, description="tokens a text is cut to; null: the model's limit")
    token_budget: PositiveInt | None = Field(
        None, description="padded tokens of one forward pass; null: 2048 on a CPU, else 16384"
    )
    graph_budget: NonNegativeInt = Field(
        8192, description="padded tokens whose activations may be kept instead of computed twice"
    )
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    attention: Literal["auto", "eager", "sdpa", "flash_attention_2"] = Field(
        "auto", description="auto: codiemb's own on a CPU, where its backward pass is faster, else sdpa"
    )
    dropout: float | None = Field(None, ge=0, lt=1, description="all dropout rates of the network; null keeps them")
    token_embeddings: Literal["used", "all", "frozen"] = Field(
        "used", description="rows of the token table that are trained: those in the data (as good as all), all, none"
    )
    gather: bool = Field(True, description="losses see the batches of all devices")
    seed: NonNegativeInt = 42
    log_every: PositiveInt = 10
    on_error: Literal["raise", "skip"] = Field("raise", description="what a broken data row does")

    @model_validator(mode="after")
    def _consistent(self) -> Recipe:
        if faults := list(self._contradictions()):
            raise ValueError("\n".join(faults))
        return self

    def _contradictions(self) -> Iterator[str]:
        shares = self.sampling.task_shares or {}
        for name in shares:
            if name not in TASKS:
                yield f"sampling.task_shares.{name}: unknown task{_nearest(name, TASKS)} allowed: {', '.join(TASKS)}"
        if shares and not any(shares.values()):
            yield "sampling.task_shares: all shares are 0, expected at least one above 0"
        weighted = [source for source in self.train if source.weight is not None]
        if weighted and len(weighted) != len(self.train):
            missing = next(source.path for source in self.train if source.weight is None)
            yield f"train: {missing} has no weight and others have one; give all of them one, or none"
        if weighted and self.sampling.temperature is not None:
            yield "sampling.temperature and the weights under train set the same thing; give one of them"
        every = self.evaluation.every
        if every and not self.evaluation.data:
            yield "evaluation.every is set and evaluation.data is empty; name data to evaluate on"
        saved = self.checkpoints.every
        if every and saved and self.evaluation.keep_best and saved % every:
            yield (
                f"checkpoints.every is {saved}, expected a multiple of evaluation.every ({every}), so that the best "
                "evaluated model is on disk; make it one, or set evaluation.keep_best to false"
            )


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe, apply `key.sub=value` overrides (values are YAML), and check it.

    Relative paths in the file are taken from the working directory, as on a command line.

    Raises:
        RecipeError: the file cannot be read, or with every fault: its key, what was given, what is allowed.
    """
    try:
        content = _yaml(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RecipeError(f"{path}: there is no such recipe. The ready ones lie in recipes/.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: cannot be read: {error}") from error
    except yaml.YAMLError as error:
        raise RecipeError(f"{path}: is not YAML: {error}") from error
    if not isinstance(content, dict):
        raise RecipeError(f"{path}: got {type(content).__name__}, expected keys such as model, output and train.")
    for override in overrides:
        _override(content, override)
    return parse_recipe(content, str(path))


def parse_recipe(content: Mapping[str, Any], origin: str = "recipe") -> Recipe:
    """Check the content of a recipe.

    Raises:
        RecipeError: with every fault.
    """
    try:
        return Recipe.model_validate(content)
    except ValidationError as error:
        lines = [line for fault in error.errors(include_url=False) for line in _explain(fault).splitlines()]
        raise RecipeError("\n".join(f"{origin}: {line}" for line in lines)) from None


class _Loader(yaml.SafeLoader):
    """YAML where `3e-5` is a number, as in YAML 1.2, and a key given twice is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in keys:
                raise yaml.MarkedYAMLError(problem=f"the key {key!r} is given twice", problem_mark=key_node.start_mark)
            keys.add(key)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def _yaml(text: str) -> Any:
    return yaml.load(text, _Loader)


def _override(content: dict[str, Any], override: str) -> None:
    key, equals, value = override.partition("=")
    if not equals or not key:
        raise RecipeError(f"override {override!r}: expected key.sub=value, such as optimizer.learning_rate=3e-5")
    *parents, last = key.split(".")
    node: Any = content
    for depth, name in enumerate(parents, start=1):
        if node.get(name) is None:
            node[name] = {}
        node = node[name]
        if not isinstance(node, dict):
            raise RecipeError(
                f"override {override!r}: {'.'.join(parents[:depth])} is no section of keys but {reprlib.repr(node)}; "
                "give it a whole new value"
            )
    try:
        node[last] = _yaml(value)
    except yaml.YAMLError as error:
        raise RecipeError(f"override {override!r}: the value is not YAML: {error}") from error


def _explain(fault: Mapping[str, Any]) -> str:
    location = list(fault["loc"])
    key = ".".join(map(str, location))
    given = reprlib.repr(fault["input"])
    if fault["type"] == "extra_forbidden":
        allowed = _fields_at(location[:-1])
        return f"{key}: unknown key (got {given}){_nearest(str(location[-1]), allowed)} allowed: {', '.join(allowed)}"
    if fault["type"] == "missing":
        return f"{key}: missing, but required"
    message = str(fault["msg"]).removeprefix("Value error, ")
    if not location:  # of the recipe as a whole: the message names its keys
        return message
    if fault["type"] == "model_type":
        message = f"expected the keys {', '.join(_fields_at(location))}"
    return f"{key}: got {given}, {message.replace('Input should be', 'expected', 1)}"


def _nearest(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {near[0]}?" if near else ";"


def _fields_at(location: Iterable[str | int]) -> list[str]:
    """The keys of the section at `location`."""
    section: Any = Recipe
    for part in location:
        if isinstance(part, str):
            annotation = section.model_fields[part].annotation
            section = getattr(annotation, "__args__", (annotation,))[0]
    return list(section.model_fields)
