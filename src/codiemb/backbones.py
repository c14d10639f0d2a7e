"""From a name to sentence-transformers modules: a hub id, a local directory, or `bundled`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from huggingface_hub import constants, get_session
from safetensors import SafetensorError
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, Normalize, Pooling, Transformer

from codiemb.prompts import InstructionTemplate

Attention = Literal["eager", "sdpa", "flash_attention_2"]

TEMPLATE_FILE = "codiemb.json"
"""Beside a saved model: the instruction template, which sentence-transformers' `prompts` cannot hold."""


class ModelError(ValueError):
    """A model that cannot be loaded; the message says what to do."""


def load(
    name: str | Path,
    *,
    device: str | None = None,
    attention: Attention | None = None,
    dropout: float | None = None,
) -> SentenceTransformer:
    """Load a sentence-transformers model, float32, as its own configuration says.

    Args:
        name: `bundled` (multilingual-e5-small), a directory, or a hub id.
        device: as torch names it; the best there is if None.
        attention: implementation in transformers; its default if None.
        dropout: sets every dropout rate of the network; None keeps them.
    Raises:
        ModelError: no such model, a directory with missing or damaged files, or a device that is not there.
    """
    with explained(name):
        return SentenceTransformer(**arguments(name, device=device, attention=attention, dropout=dropout))


@contextmanager
def explained(name: object) -> Iterator[None]:
    """Turn what can go wrong while the model `name` is loaded into a `ModelError`."""
    try:
        yield
    except ModelError:
        raise
    except (OSError, ValueError, TypeError, KeyError, RuntimeError, ImportError, SafetensorError) as error:
        raise ModelError(
            f"{name}: cannot be loaded: {error}\nGive a complete sentence-transformers directory, a hub id "
            "(with the network or a filled hub cache), or 'bundled'."
        ) from error


def arguments(
    name: str | Path,
    *,
    device: str | None = None,
    attention: Attention | None = None,
    dropout: float | None = None,
    **options: Any,
) -> dict[str, Any]:
    """What `SentenceTransformer` has to be called with to get the model `name`; arguments as of `load`.

    Args:
        options: further arguments of `SentenceTransformer`, which win over what follows from the others.
    """
    path = resolve(name)
    if device is not None:
        check_device(device)
    if path.is_dir():
        _check_directory(path)
    elif len(path.parts) > 2 or str(name).startswith((".", "/", "~")):
        raise ModelError(f"{name}: there is no such directory. Give a model directory, a hub id, or 'bundled'.")
    local = path.is_dir() or not _hub_answers()
    model_kwargs: dict[str, Any] = {"dtype": torch.float32}
    if attention is not None:
        model_kwargs["attn_implementation"] = attention
    config_kwargs = {} if dropout is None else _dropout_settings(str(path), dropout, local)
    return {
        "model_name_or_path": str(path),
        "device": device,
        "local_files_only": local,
        **options,
        "model_kwargs": {**model_kwargs, **(options.get("model_kwargs") or {})},
        "config_kwargs": {**config_kwargs, **(options.get("config_kwargs") or {})},
    }


def resolve(name: str | Path) -> Path:
    """The directory of `bundled`; any other name as it is."""
    if name != "bundled":
        return Path(name)
    from codiemb.bundled import bundled_model

    return bundled_model()


def template_of(model: SentenceTransformer, directory: str | Path | None = None) -> InstructionTemplate:
    """The template a model was trained with: the saved one, else its own query and document prompts."""
    if directory is not None and (path := Path(directory) / TEMPLATE_FILE).is_file():
        return InstructionTemplate(**_read_json(path)["template"])
    prompts = model.prompts or {}
    return InstructionTemplate(query=prompts.get("query") or "", document=prompts.get("document") or "")


def set_prompts(model: SentenceTransformer, template: InstructionTemplate, pool_prompt: bool | None) -> None:
    """Give the model the template's prompts, and say whether prompt tokens are pooled (None keeps what it says)."""
    model.prompts = {
        **(model.prompts or {}),
        # Without an instruction: what a user who gives none gets.
        "query": template.prompt("query"),
        "document": template.prompt("document"),
    }
    if pool_prompt is not None:
        model.set_pooling_include_prompt(pool_prompt)


def save(model: SentenceTransformer, directory: Path, template: InstructionTemplate) -> None:
    """Write the model as a plain sentence-transformers directory, the template beside it."""
    model.save_pretrained(str(directory), create_model_card=False)
    _write_common_names(model, directory)
    content = {"template": template.to_dict(), "pools_prompt": pools_prompt(model)}
    _write_json(directory / TEMPLATE_FILE, content)


def _write_common_names(model: SentenceTransformer, directory: Path) -> None:
    """Spell modules, pooling and length as every sentence-transformers version and other engines read them.

    sentence-transformers 6.2 writes names that are new with it, and reads both.
    """
    modules = _read_json(directory / "modules.json")
    for entry, module in zip(modules, model, strict=True):
        if type(module) in (Transformer, Pooling, Normalize, Dense):
            entry["type"] = f"sentence_transformers.models.{type(module).__name__}"
        path = directory / entry["path"]
        if type(module) is Pooling:
            modes = (module.pooling_mode,) if isinstance(module.pooling_mode, str) else module.pooling_mode
            flags = {f"pooling_mode_{flag}": mode in modes for mode, flag in _POOLING_FLAGS.items()}
            width = {"word_embedding_dimension": module.embedding_dimension}
            _write_json(path / "config.json", {**width, **flags, "include_prompt": module.include_prompt})
        elif type(module) is Transformer and model.max_seq_length is not None:
            config = path / "sentence_bert_config.json"
            _write_json(config, {**_read_json(config), "max_seq_length": model.max_seq_length})
    _write_json(directory / "modules.json", modules)


_POOLING_FLAGS = {
    "cls": "cls_token",
    "mean": "mean_tokens",
    "max": "max_tokens",
    "mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "weightedmean": "weightedmean_tokens",
    "lasttoken": "lasttoken",
}


def _read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def _write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def pools_prompt(model: SentenceTransformer) -> bool:
    """Whether the tokens of the prompt are part of the pooled embedding."""
    return all(module.include_prompt for module in model if isinstance(module, Pooling))


def check_device(device: str) -> None:
    """Raise a `ModelError` that says why, if `device` cannot be used on this machine."""
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition("\n")[0].partition(". ")[0]
        raise ModelError(f"device {device!r} cannot be used here: {reason}. Use device 'cpu'.") from error


def _check_directory(path: Path) -> None:
    if not any((path / file).is_file() for file in ("modules.json", "config.json")):
        raise ModelError(
            f"{path}: holds neither modules.json nor config.json, so it is not a model directory. "
            f"It holds: {', '.join(sorted(child.name for child in path.iterdir())[:8]) or 'nothing'}."
        )
    if (path / "config_sentence_transformers.json").is_file() and not (path / "modules.json").is_file():
        raise ModelError(f"{path}: modules.json, which says how tokens are pooled, is missing. Save the model again.")
    weights = [*path.rglob("*.safetensors"), *path.rglob("*.bin"), *path.rglob("*.onnx"), *path.rglob("*.gguf")]
    if not weights:
        raise ModelError(f"{path}: has a configuration but no weights (*.safetensors). Copy or save the model again.")


def _hub_answers() -> bool:
    """Asked once: left to itself, the hub's client retries for a minute where there is no network."""
    try:
        get_session().head(constants.ENDPOINT, timeout=5)
    except Exception:  # of requests or httpx, as the hub's version has it
        return False
    return True


def _dropout_settings(name: str, dropout: float, local: bool) -> dict[str, float]:
    """Every dropout rate that the model's configuration has, set to `dropout`."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(name, local_files_only=local)
    rates = [
        key
        for key, value in config.to_dict().items()
        if key.endswith(("dropout", "dropout_prob", "pdrop")) and type(value) in (int, float)
    ]
    return dict.fromkeys(rates, dropout)
