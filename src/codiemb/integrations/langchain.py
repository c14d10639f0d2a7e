"""`CodiembEmbeddings`: LangChain's `Embeddings`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import ConfigDict

from codiemb.extras import require
from codiemb.integrations.settings import ModelSettings
from codiemb.interface import Embedder

try:
    from langchain_core.embeddings import Embeddings
    from langchain_core.load.serializable import Serializable
except ModuleNotFoundError:
    require("langchain_core", "langchain")
    raise


class CodiembEmbeddings(ModelSettings, Serializable, Embeddings):
    """A model of this package, local or remote, as LangChain's embeddings.

    The model reads each text with the prompt of its side; a vector store keeps the text alone. The async methods run
    in a thread.

    Args:
        model: `bundled`, a directory or a hub id as for `LLMEmbeddingModel`; `tencent-cloud:NAME` for a model of the
            official API, with the credentials in the environment; or an instance of `LLMEmbeddingModel`,
            `TencentEmbeddingModel` or another `codiemb.interface.Embedder`.
        instruction: a task's name in `codiemb.instructions`, or a text that says what is searched for.
        settings: template, device, attention, bidirectional, compute, max_length, token_budget, truncate_dim and
            backend as for `LLMEmbeddingModel`, for a local model given by name; template and `api`, a mapping of
            options of `TencentEmbeddingModel`, for one of the official API.
    Raises:
        ModelError, ValueError, TypeError: what cannot be used, and what can.

    `langchain_core.load.dumpd` and `model_dump` save the settings, never credentials; a model that was given as an
    instance cannot be saved, and says so.
    """

    # Errors hide what was given: it may be a credential under a wrong name.
    model_config = ConfigDict(extra="forbid", protected_namespaces=(), hide_input_in_errors=True)

    def __init__(self, model: str | Path | Embedder = "bundled", **settings: Any) -> None:
        super().__init__(model=model, **settings)

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """Embed texts that are searched in, all in one pass."""
        return self._embed("document", texts)

    def embed_query(self, text: str) -> list[float]:
        """Embed a text that is searched with."""
        return self._embed("query", [text])[0]

    @classmethod
    def is_lc_serializable(cls) -> bool:
        """LangChain may save it: the settings hold no secret."""
        return True

    def to_json(self) -> Any:
        """As `langchain_core.load.dumpd` writes it."""
        settings = self.model_dump(mode="json", exclude_none=True)
        return {"lc": 1, "type": "constructor", "id": self.lc_id(), "kwargs": settings}
