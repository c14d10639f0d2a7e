"""What commands that embed have in common."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from codiemb.embedder import LLMEmbeddingModel


def load_model(name: str, **options: Any) -> LLMEmbeddingModel:
    """Load a model without the progress bars of its libraries."""
    from transformers.utils import logging as transformers_logging

    from codiemb.embedder import LLMEmbeddingModel

    transformers_logging.disable_progress_bar()
    return LLMEmbeddingModel(name, **options)


def passage_instruction(instruction: str | None) -> str | None:
    """The instruction for passages where `instruction` is that for queries.

    A task's name says how both sides are read; a text is for queries only.
    """
    from codiemb.instructions import TASK_INSTRUCTIONS

    return instruction if instruction in TASK_INSTRUCTIONS else None


def durable_name(name: str) -> str:
    """The name that loads the model from any directory."""
    return str(Path(name).resolve()) if Path(name).is_dir() else name
