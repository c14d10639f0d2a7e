"""JSON as this project writes it."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path


def to_json(content: object) -> str:
    """JSON as all other programs read it: UTF-8, and no NaN."""
    return json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def write_json(path: Path, content: object) -> None:
    """Write `content` so that `path` holds the old file or the whole new one at every moment."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, partial = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(to_json(content))
        Path(partial).chmod(0o644)  # mkstemp makes it 0600
        os.replace(partial, path)
    except BaseException:
        Path(partial).unlink(missing_ok=True)
        raise
