"""The recipe of `codiemb pretrain`: text, a network, a tokenizer, and how the one is trained on the other."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    field_validator,
)

from codiemb.training.recipe import Checkpoints
from codiemb.training.sections import RecipeSection, Section, load_section, nearest, parse_section

Objective = Literal["clm", "mntp"]


class Corpus(Section):
    """Files of documents."""

    path: Path = Field(description="text, jsonl or parquet, gzip too; a folder means all such files in it")
    text_field: str = Field("text", description="the field or column that holds a document, in jsonl and parquet")
    documents: Literal["paragraphs", "lines", "file"] = Field(
        "paragraphs", description="what a document is in a text file: what blank lines part, a line, or the whole file"
    )


class HeldOut(Section):
    """Documents that are not trained on and tell how well the rest was learnt, before, during and after."""

    data: list[Corpus] = Field(default_factory=list, description="files of their own")
    share: float = Field(0.0, ge=0, lt=1, description="share of the corpus, chosen by the hash of each document's text")
    every: PositiveInt | None = Field(None, description="optimizer steps between evaluations; null: only at the end")


class NewTokenizer(Section):
    """A tokenizer trained on the corpus, with bytes for what its vocabulary lacks."""

    algorithm: Literal["bpe", "unigram"] = Field("bpe", description="unigram takes some ten times as long")
    vocab_size: PositiveInt = Field(
        description="tokens at most: special ones, 256 bytes, and what is learnt, as far as the text has it"
    )
    character_coverage: float = Field(
        0.9995, gt=0, le=1, description="share of the text whose characters get tokens; the others become bytes"
    )
    special_tokens: list[str] = Field(default_factory=list, description="further tokens that are never cut")
    max_characters: PositiveInt = Field(
        20_000_000, description="of the corpus, for the training of the tokenizer, which holds them in memory"
    )

    @field_validator("vocab_size")
    @classmethod
    def _room(cls, value: int) -> int:
        if value < 300:
            raise ValueError("expected at least 300: 5 special tokens, 256 bytes, and what is learnt")
        return value


class Masking(Section):
    """What `objective: mntp` hides."""

    rate: float = Field(0.2, gt=0, lt=1, description="share of the tokens that are hidden and predicted")
    token: str | None = Field(None, description="stands in their place; null: the tokenizer's own mask token")


class PretrainOptimizer(Section):
    """AdamW and its schedule."""

    learning_rate: PositiveFloat = 1e-3
    schedule: Literal["linear", "cosine", "constant"] = "cosine"
    warmup: float = Field(0.05, ge=0, lt=1, description="share of the steps over which the learning rate rises")
    weight_decay: NonNegativeFloat = Field(0.01, description="not applied to biases, norms and embeddings")
    max_grad_norm: PositiveFloat = 1.0


class PretrainRecipe(RecipeSection):
    """Everything a pre-training depends on."""

    model: str | None = Field(None, description="a causal language model to go on from: a hub id, directory or GGUF")
    config: dict[str, Any] | None = Field(
        None, description="or a new network: its model_type and what its configuration shall have other than usual"
    )
    tokenizer: str | None = Field(None, description="of a new network: a hub id, a directory or 'bundled'")
    new_tokenizer: NewTokenizer | None = Field(None, description="or one that is trained on the corpus")
    output: Path = Field(description="directory of the trained model; checkpoints and logs lie in its training/")
    corpus: list[Corpus] = Field(min_length=1)
    held_out: HeldOut = HeldOut()
    objective: Objective = Field(
        "clm", description="clm: each token from those before it; mntp: hidden tokens from both sides"
    )
    masking: Masking = Masking()
    window: PositiveInt = Field(512, ge=2, description="tokens that are read together")
    batch_size: PositiveInt = Field(8, description="windows of one forward pass, for each device")
    accumulation: PositiveInt = Field(1, description="forward passes of an optimizer step")
    epochs: PositiveFloat = 1.0
    max_steps: PositiveInt | None = Field(None, description="optimizer steps, in place of epochs")
    optimizer: PretrainOptimizer = PretrainOptimizer()
    checkpoints: Checkpoints = Checkpoints()
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    attention: Literal["eager", "sdpa"] = "sdpa"
    gradient_checkpointing: bool = Field(False, description="less memory, a third more time")
    compile: bool = Field(False, description="torch.compile: faster steps after a slow first one")
    seed: NonNegativeInt = 42
    log_every: PositiveInt = 10

    def _contradictions(self) -> Iterator[str]:
        if (self.model is None) == (self.config is None):
            yield f"model and config: got {'neither' if self.model is None else 'both'}, expected one of them"
        elif self.model is not None and (self.tokenizer or self.new_tokenizer):
            key = "tokenizer" if self.tokenizer else "new_tokenizer"
            yield f"{key}: {self.model} has a tokenizer, which its token table belongs to; remove this key"
        if self.config is not None:
            if (self.tokenizer is None) == (self.new_tokenizer is None):
                got = "neither" if self.tokenizer is None else "both"
                yield f"tokenizer and new_tokenizer: got {got}, expected one of them, as config makes a new network"
            yield from _config_faults(self.config)
        if self.held_out.every and not (self.held_out.data or self.held_out.share):
            yield "held_out.every is set, but neither held_out.data nor held_out.share; set one of them"
        if self.held_out.data and self.held_out.share:
            yield "held_out.data and held_out.share: got both, expected one of them at most"
        if self.objective != "mntp" and self.masking != Masking():
            yield f"masking is set, but objective is {self.objective}, which hides nothing; set objective to mntp"

    def inputs(self) -> list[Path]:
        """Files and directories that a run reads."""
        names = [name for name in (self.model, self.tokenizer) if name is not None]
        return [*(corpus.path for corpus in (*self.corpus, *self.held_out.data)), *map(Path, names)]


def load_pretrain_recipe(path: Path, overrides: Sequence[str] = ()) -> PretrainRecipe:
    """Read a recipe, apply `key.sub=value` overrides (values are YAML), and check it.

    Raises:
        RecipeError: the file cannot be read, or with every fault: its key, what was given, what is allowed.
    """
    return load_section(PretrainRecipe, path, overrides)


def parse_pretrain_recipe(content: Mapping[str, Any], origin: str = "recipe") -> PretrainRecipe:
    """Check the content of a recipe.

    Raises:
        RecipeError: with every fault.
    """
    return parse_section(PretrainRecipe, content, origin)


def _config_faults(config: Mapping[str, Any]) -> Iterator[str]:
    """What is wrong with the configuration of a new network."""
    from transformers import CONFIG_MAPPING, PreTrainedConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    kind = config.get("model_type")
    if not isinstance(kind, str) or kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        near = nearest(str(kind), MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
        yield f"config.model_type: got {kind!r}{near} expected a causal language model of transformers, such as youtu"
        return
    values = {key: value for key, value in config.items() if key != "model_type"}
    own = _keys(CONFIG_MAPPING[kind]) - _keys(PreTrainedConfig)
    if unknown := [key for key in values if key not in own]:
        for key in unknown:
            yield f"config.{key}: unknown key of {kind}{nearest(key, own)} allowed: {', '.join(sorted(own))}"
    elif "vocab_size" in values:
        yield "config.vocab_size: follows from the tokenizer; remove this key"
    else:
        try:
            CONFIG_MAPPING[kind](**values)
        except Exception as error:  # each configuration class has its own
            yield f"config: {kind} does not take these values: {' '.join(str(error).split())}"


def _keys(configuration: Any) -> set[str]:
    """Names of the values that a configuration class takes."""
    if dataclasses.is_dataclass(configuration):
        names = {field.name for field in dataclasses.fields(configuration)}
    else:
        names = set(inspect.signature(configuration.__init__).parameters) - {"self", "kwargs"}
    return names | set(getattr(configuration, "attribute_map", {}))
