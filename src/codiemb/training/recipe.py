"""A training recipe: one YAML file, checked as a whole before anything is loaded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    create_model,
    field_validator,
    model_validator,
)

from codiemb.backbones import PoolingMode
from codiemb.prompts import TEMPLATES, InstructionTemplate
from codiemb.tasks import TASKS, ContrastiveOptions
from codiemb.training.sections import RecipeError, RecipeSection, Section, load_section, merged, nearest, parse_section

__all__ = ["Recipe", "RecipeError", "load_recipe", "parse_recipe"]


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
            raise ValueError(f"unknown template{nearest(value, TEMPLATES)} expected {expected}")
        if not isinstance(value, dict) or not all(isinstance(prompt, str) for prompt in value.values()):
            raise ValueError(f"expected {expected}")
        if unknown := [key for key in value if key not in _PROMPT_SIDES]:
            raise ValueError(f"unknown key {unknown[0]!r}{nearest(unknown[0], _PROMPT_SIDES)} expected {expected}")
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
    layer_decay: float = Field(
        1.0, gt=0, le=1, description="the learning rate of a layer, divided by that of the layer above it"
    )


class Adapter(Section):
    """LoRA: the network stays as it is, and small matrices beside its linear layers are trained."""

    rank: PositiveInt = 16
    alpha: PositiveInt = Field(32, description="the adapter's change is scaled by alpha / rank")
    dropout: float = Field(0.0, ge=0, lt=1, description="of the adapter's inputs")
    target_modules: list[str] | None = Field(
        None, min_length=1, description="names of linear layers, or their ends; null: all of the network"
    )
    bias: Literal["none", "all", "lora_only"] = Field("none", description="which biases are trained too")
    rslora: bool = Field(False, description="scale by alpha / sqrt(rank) instead")
    dora: bool = Field(False, description="also train the length of each weight's rows (DoRA)")
    quantize: Literal["nf4", "int8"] | None = Field(
        None, description="hold the network's linear weights in 4 or 8 bits while it is trained (QLoRA)"
    )


class Matryoshka(Section):
    """Train leading parts of the embeddings too, so that they can be cut short."""

    dims: list[PositiveInt] = Field(
        min_length=1, description="widths of the parts; the full width is trained too, with weight 1 if not among them"
    )
    weights: list[PositiveFloat] | None = Field(None, description="of the objective on each; null: 1 each")

    @property
    def weight_of(self) -> dict[int, float]:
        """By width."""
        return dict(zip(self.dims, self.weights or [1.0] * len(self.dims), strict=True))

    @model_validator(mode="after")
    def _one_weight_each(self) -> Matryoshka:
        if len(set(self.dims)) < len(self.dims):
            raise ValueError(f"dims: {self.dims} has a width twice, expected distinct ones")
        if self.weights is not None and len(self.weights) != len(self.dims):
            raise ValueError(f"weights: got {len(self.weights)} for {len(self.dims)} dims, expected one for each")
        return self


class Evaluation(Section):
    """Scores on held-out data, before, during and after training."""

    data: list[Path] = Field(default_factory=list, description="BEIR folders, scored pairs, unified files")
    every: PositiveInt | None = Field(None, description="optimizer steps between evaluations; null: only at the end")
    metric: str = Field(
        "mean", description="the score that the best checkpoint is chosen by: mean, ir, sts, reranking, or a data set"
    )
    keep_best: bool = Field(True, description="end with the best evaluated checkpoint, not the last one")


class Consistency(Section):
    """Which weak pairs are kept: those whose document a model finds again among others."""

    model: str = Field("bundled", description="the model that ranks: a hub id, a directory, or 'bundled'")
    keep_top: PositiveInt = Field(2, description="a row stays if one of its positives is among that many best")
    pool: PositiveInt = Field(10_000, description="documents of the data set, drawn at random, that it is ranked among")


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


_WEAK_PAIRS = {"batch_size": 4096, "temperature": 0.05, "negatives": 0}
ALIGN_DEFAULTS: Mapping[str, Any] = {
    "tasks": {
        **{name: _WEAK_PAIRS for name, task in TASKS.items() if issubclass(task.options, ContrastiveOptions)},
        "ir": {**_WEAK_PAIRS, "query_negatives": False},
    },
    "optimizer": {"learning_rate": 2e-4},
    "token_embeddings": "all",
}
"""What `stage: align` has in place of the other defaults: large batches, negatives from the batch alone, and a higher
temperature, as some of them are false. Finding the rows of the token table in use would read millions of pairs first.
"""


class Recipe(RecipeSection):
    """Everything a training run depends on."""

    stage: Literal["align", "finetune"] = Field(
        "finetune", description="align: other defaults, for training on weak pairs, see below"
    )
    model: str = Field(description="a hub id, a directory, or 'bundled'")
    output: Path = Field(description="directory of the trained model; checkpoints and logs lie in its training/")
    train: list[Source] = Field(min_length=1)
    consistency: Consistency | None = Field(None, description="null: all rows of `train` are trained on")
    evaluation: Evaluation = Evaluation()
    prompts: Prompts = Prompts()
    causal: bool | None = Field(
        None, description="whether tokens see earlier ones only; null: as a published model says, no for a bare decoder"
    )
    pooling: PoolingMode | None = Field(
        None, description="null: as a published model says; of a bare network the mean, or the last token if causal"
    )
    tasks: Tasks = Field(default_factory=Tasks)  # type: ignore[valid-type]
    sampling: Sampling = Sampling()
    optimizer: Optimizer = Optimizer()
    checkpoints: Checkpoints = Checkpoints()
    adapter: Adapter | None = Field(None, description="null: the network itself is trained")
    matryoshka: Matryoshka | None = Field(None, description="null: full width only")

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
        "used",
        description="rows of the token table that are trained: those in the data (as good as all), all, none; "
        "with an adapter or frozen layers none",
    )
    frozen_layers: NonNegativeInt = Field(
        0, description="first layers that stay as they are, and the embeddings below them; they keep no activations"
    )
    gradient_checkpointing: bool = Field(
        False, description="keep no activations within layers and compute them again: slower, for long texts"
    )
    compile: bool = Field(False, description="torch.compile each layer of the network, for training")
    gather: bool = Field(True, description="losses see the batches of all devices")
    seed: NonNegativeInt = 42
    log_every: PositiveInt = 10
    on_error: Literal["raise", "skip"] = Field("raise", description="what a broken data row does")

    @model_validator(mode="before")
    @classmethod
    def _other_defaults(cls, content: Any) -> Any:
        if isinstance(content, Mapping) and (content.get("adapter") is not None or content.get("frozen_layers")):
            content = merged({"token_embeddings": "frozen"}, content)
        if isinstance(content, Mapping) and content.get("stage") == "align":
            return merged(ALIGN_DEFAULTS, content)
        return content

    def inputs(self) -> list[Path]:
        """Files and directories that a run reads."""
        judge = [Path(self.consistency.model)] if self.consistency else []
        return [*(source.path for source in self.train), *self.evaluation.data, Path(self.model), *judge]

    def _contradictions(self) -> Iterator[str]:
        shares = self.sampling.task_shares or {}
        for name in shares:
            if name not in TASKS:
                yield f"sampling.task_shares.{name}: unknown task{nearest(name, TASKS)} allowed: {', '.join(TASKS)}"
        if shares and not any(shares.values()):
            yield "sampling.task_shares: all shares are 0, expected at least one above 0"
        weighted = [source for source in self.train if source.weight is not None]
        if weighted and len(weighted) != len(self.train):
            missing = next(source.path for source in self.train if source.weight is None)
            yield f"train: {missing} has no weight and others have one; give all of them one, or none"
        if weighted and self.sampling.temperature is not None:
            yield "sampling.temperature and the weights under train set the same thing; give one of them"
        if self.token_embeddings != "frozen":
            for key in ("adapter", "frozen_layers"):
                if getattr(self, key):
                    yield (
                        f"token_embeddings: got {self.token_embeddings!r}, but with {key} the token table stays as it "
                        "is; leave token_embeddings out"
                    )
        if self.adapter and self.adapter.dora and self.adapter.quantize:
            yield "adapter.dora needs the weights as they are; set adapter.quantize to null"
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
    return load_section(Recipe, path, overrides)


def parse_recipe(content: Mapping[str, Any], origin: str = "recipe") -> Recipe:
    """Check the content of a recipe.

    Raises:
        RecipeError: with every fault.
    """
    return parse_section(Recipe, content, origin)
