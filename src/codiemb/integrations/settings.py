"""What the integrations share: settings that can be saved, and the model that they stand for."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, Field, JsonValue, PlainSerializer, PositiveInt, PrivateAttr

from codiemb.instructions import instruction_for
from codiemb.interface import Embedder
from codiemb.prompts import InstructionTemplate, Side

API = "tencent-cloud:"
"""Before the name of a model of the official API."""

_SECRETS = ("secret_id", "secret_key", "token")


class Model:
    """A model that is loaded by its name, or an instance that was given.

    Pickled, a model by name is its name and options, and is loaded again where it is used.
    """

    def __init__(self, source: str | Embedder, options: dict[str, Any]) -> None:
        self.source = source
        self.options = options
        self._loaded = None if isinstance(source, str) else source
        self._loading = threading.Lock()

    def load(self) -> Embedder:
        """The model, loaded at the first call."""
        with self._loading:
            if self._loaded is None:
                assert isinstance(self.source, str)
                self._loaded = _load(self.source, self.options)
            return self._loaded

    def embed(self, side: Side, texts: Sequence[str], instruction: str | None) -> list[list[float]]:
        """Embed texts of one side, with their prompt."""
        model = self.load()
        encode = model.encode_queries if side == "query" else model.encode_passages
        return encode(texts, instruction=instruction).tolist()

    def __getstate__(self) -> tuple[str | Embedder, dict[str, Any]]:
        return self.source, self.options

    def __setstate__(self, state: tuple[str | Embedder, dict[str, Any]]) -> None:
        self.__init__(*state)  # type: ignore[misc]


def _load(name: str, options: dict[str, Any]) -> Embedder:
    # Either import is heavy, and the first needs its extra.
    if name.startswith(API):
        from codiemb.clients import TencentEmbeddingModel

        return TencentEmbeddingModel(name.removeprefix(API), **options)
    from codiemb.embedder import LLMEmbeddingModel

    return LLMEmbeddingModel(name, **options)


def _check_model(model: object) -> str | Embedder:
    if isinstance(model, str | Path):
        return str(model)
    if not isinstance(model, Embedder):
        raise TypeError(
            f"model is a {type(model).__name__}, expected a model's name or directory, or an object with "
            "encode_queries and encode_passages. Of a SentenceTransformer, codiemb.LLMEmbeddingModel(model) makes one."
        )
    return model


def _save_model(model: str | Embedder) -> str:
    if isinstance(model, str):
        return model
    raise ValueError(
        f"model is a {type(model).__name__} in memory, which no configuration can hold. Give it by name: "
        f"model='DIRECTORY' with the settings it is loaded with, or model='{API}NAME' for the official API."
    )


class ModelSettings(BaseModel):
    """Fields of both integrations.

    Those after `instruction` hold for a model that is given by name, and are refused with an instance: `template` for
    all, `api` for the official API, the others for local models, as in `LLMEmbeddingModel`; None takes its default.
    """

    model: Annotated[Any, BeforeValidator(_check_model), PlainSerializer(_save_model)] = Field("bundled", frozen=True)
    instruction: str | None = Field(None, frozen=True)
    template: str | InstructionTemplate | None = Field(None, frozen=True)
    device: str | None = Field(None, frozen=True)
    attention: str | None = Field(None, frozen=True)
    bidirectional: bool | None = Field(None, frozen=True)
    compute: Literal["auto", "bf16", "fp32"] | None = Field(None, frozen=True)
    max_length: PositiveInt | None = Field(None, frozen=True)
    token_budget: PositiveInt | None = Field(None, frozen=True)
    truncate_dim: PositiveInt | None = Field(None, frozen=True)
    backend: Literal["torch", "onnx", "openvino"] | None = Field(None, frozen=True)
    api: dict[str, JsonValue] | None = Field(None, frozen=True)

    _model: Model = PrivateAttr()

    def model_post_init(self, context: Any) -> None:
        """Load the model, so that a wrong name is found here and not at the first query."""
        if self.instruction:
            instruction_for(self.instruction)
        self._model = Model(self.model, self._options())
        self._model.load()

    def _options(self) -> dict[str, Any]:
        """What the model is loaded with."""
        if secrets := [name for name in _SECRETS if name in (self.api or {})]:
            raise ValueError(
                f"api has {', '.join(secrets)}, but settings are saved and shown. Put the credentials into the "
                "environment, or give a TencentEmbeddingModel that has them as model."
            )
        allowed: tuple[str, ...]
        if not isinstance(self.model, str):
            kind, allowed = f"a {type(self.model).__name__} that is there already", ()
        elif self.model.startswith(API):
            kind, allowed = "behind the official API", ("template", "api")
        else:
            kind, allowed = "local", tuple(name for name in _OPTIONS if name != "api")
        given = {name: value for name in _OPTIONS if (value := getattr(self, name)) is not None}
        if idle := given.keys() - set(allowed):
            raise ValueError(
                f"{', '.join(sorted(idle))}: no use here, since the model is {kind}. "
                f"{'These have: ' + ', '.join(allowed) if allowed else 'Make it with them, or give it by name'}."
            )
        return {**given.pop("api", {}), **given}

    def _embed(self, side: Side, texts: Sequence[str]) -> list[list[float]]:
        return self._model.embed(side, texts, self.instruction)


_OPTIONS = [name for name in ModelSettings.model_fields if name not in ("model", "instruction")]
