"""codiemb: train one text-embedding model jointly on retrieval and similarity, measure it, and put it to work."""

from importlib.metadata import version
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from codiemb.embedder import LLMEmbeddingModel

__all__ = ["LLMEmbeddingModel", "__version__"]

__version__ = version("codiemb")


def __getattr__(name: str) -> object:
    # Importing codiemb alone must not load torch.
    if name == "LLMEmbeddingModel":
        from codiemb.embedder import LLMEmbeddingModel

        return LLMEmbeddingModel
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
