"""LangChain's and LlamaIndex's embeddings over any model of this package; each needs its extra."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from codiemb.integrations.langchain import CodiembEmbeddings
    from codiemb.integrations.llama_index import CodiembEmbedding

__all__ = ["CodiembEmbedding", "CodiembEmbeddings"]


def __getattr__(name: str) -> Any:
    # Neither library is imported before it is asked for.
    if name == "CodiembEmbeddings":
        from codiemb.integrations.langchain import CodiembEmbeddings

        return CodiembEmbeddings
    if name == "CodiembEmbedding":
        from codiemb.integrations.llama_index import CodiembEmbedding

        return CodiembEmbedding
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
