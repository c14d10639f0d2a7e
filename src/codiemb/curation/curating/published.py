"""What a published file may say of the machine that it was made on: nothing."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TypeVar

Value = TypeVar("Value")


def published(value: Value) -> Value:
    """A value of JSON whose strings are no absolute paths: they become relative to the working directory, or names."""
    if isinstance(value, dict):
        return {key: published(entry) for key, entry in value.items()}  # type: ignore[return-value]
    if isinstance(value, list):
        return [published(entry) for entry in value]  # type: ignore[return-value]
    if isinstance(value, str) and os.path.isabs(value):
        path = Path(value)
        return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path.name)  # type: ignore[return-value]
    return value
