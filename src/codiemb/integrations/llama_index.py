"""`CodiembEmbedding`: LlamaIndex's `BaseEmbedding`."""

from __future__ import annotations

import asyncio
import copy
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, Field

from codiemb.extras import require
from codiemb.integrations.settings import ModelSettings
from codiemb.interface import Embedder

try:
    from llama_index.core.base.embeddings.base import BaseEmbedding
except ModuleNotFoundError:
    require("llama_index.core", "llama-index")
    raise


class CodiembEmbedding(ModelSettings, BaseEmbedding):
    """A model of this package, local or remote, as LlamaIndex's embedding.

    The model reads each text with the prompt of its side; nodes keep their text. As with every embedding of LlamaIndex,
    the metadata that a node does not exclude (`excluded_embed_metadata_keys`) is embedded with its text. The async
    methods run in a thread.

    Args:
        model: as for `CodiembEmbeddings`: a name, or an instance.
        model_name: the model, where `model` is not given; else what traces call it.
        settings: those of `CodiembEmbeddings`, and embed_batch_size, callback_manager, num_workers and rate_limiter as
            in every `BaseEmbedding`.
    Raises:
        ModelError, ValueError, TypeError: what cannot be used, and what can.

    `to_dict` and `to_json` save the settings, never credentials; a model that was given as an instance cannot be saved,
    and says so. That includes an `IngestionPipeline`, which knows what it has cached by the settings, unless it is made
    with `disable_cache=True`.
    """

    # Errors hide what was given: it may be a credential under a wrong name.
    model_config = ConfigDict(extra="forbid", protected_namespaces=(), hide_input_in_errors=True)

    # Within a batch, texts are sorted by length and cut into passes by tokens: the more there are, the less is padding.
    embed_batch_size: int = Field(256, gt=0, le=2048)

    def __init__(
        self, model: str | Path | Embedder | None = None, *, model_name: str | None = None, **settings: Any
    ) -> None:
        settings.pop("class_name", None)  # of saved settings
        if model is None:
            model = model_name or "bundled"
        name = model_name or (str(model) if isinstance(model, str | Path) else type(model).__name__)
        super().__init__(model=model, model_name=name, **settings)

    def model_post_init(self, context: Any) -> None:
        """Refuse what would give wrong vectors, and load the model."""
        if self.embeddings_cache is not None:
            raise ValueError(
                "embeddings_cache keeps one vector for each text, but a text has two here: as a query and as a "
                "document. Leave it out; an IngestionPipeline caches the embeddings of documents."
            )
        super().model_post_init(context)

    def __getstate__(self) -> dict[str, Any]:
        # LlamaIndex drops what cannot be pickled, from the object itself too: let it do so to a copy.
        state: dict[str, Any] = BaseEmbedding.__getstate__(copy.copy(self))
        if "model" not in state["__dict__"]:
            raise TypeError(f"model is a {type(self.model).__name__}, which cannot be pickled. Give it by its name.")
        return state

    @classmethod
    def class_name(cls) -> str:
        """The name in saved settings."""
        return "CodiembEmbedding"

    def _get_query_embedding(self, query: str) -> list[float]:
        return self._embed("query", [query])[0]

    def _get_text_embedding(self, text: str) -> list[float]:
        return self._embed("document", [text])[0]

    def _get_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        return self._embed("document", texts)

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return await asyncio.to_thread(self._get_query_embedding, query)

    async def _aget_text_embedding(self, text: str) -> list[float]:
        return await asyncio.to_thread(self._get_text_embedding, text)

    async def _aget_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        return await asyncio.to_thread(self._get_text_embeddings, texts)
