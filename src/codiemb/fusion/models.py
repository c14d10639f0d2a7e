"""Model directories as fusion sees them: which tensors they hold, and whether they belong together."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from sentence_transformers.sentence_transformer.modules import Dense, Normalize, Pooling
from transformers import AutoConfig, AutoTokenizer

from codiemb.backbones import TEMPLATE_FILE
from codiemb.fusion.tensors import FLOATING, StoredTensor, stored_tensors
from codiemb.prompts import InstructionTemplate

logger = logging.getLogger(__name__)

_INDEX = "model.safetensors.index.json"

# Of no account for the weights: how a run was set up, and what a library noted.
_FREE_SETTINGS = {"_name_or_path", "transformers_version", "dtype", "architectures", "use_cache"}
# What making an embedding model of a language model changes.
_ROLE_SETTINGS = {"is_causal", "pad_token_id", "bos_token_id", "eos_token_id", "is_decoder"}


class ModelDirectory:
    """A sentence-transformers directory, or a bare transformers network.

    Attributes:
        name: as the user gave it.
        modules: (type, folder) of each module; one for a bare network.
        tensors: all weights; those of modules after the first are named `folder.name`.

    Raises:
        ValueError: no directory, no safetensors weights, or files that are missing or damaged.
    """

    def __init__(self, name: str | Path) -> None:
        self.name = str(name)
        self.path = _resolve(name)
        self.modules = [("Transformer", "")]
        if (self.path / "modules.json").is_file():
            entries = _read_json(self.path / "modules.json")
            self.modules = [(entry["type"].rpartition(".")[2], entry["path"]) for entry in entries]
        self.tensors: dict[str, StoredTensor] = {}
        self.files: list[Path] = []
        for number, (_, folder) in enumerate(self.modules):
            self._add_weights(folder, needed=number == 0)

    @property
    def network(self) -> Path:
        """Folder of the transformer: its config and tokenizer."""
        return self.path / self.modules[0][1]

    def _add_weights(self, folder: str, *, needed: bool) -> None:
        directory = self.path / folder
        if (directory / "adapter_config.json").is_file():
            raise ValueError(
                f"{directory}: is an adapter, expected whole weights. Merge it into its model and save that."
            )
        if (directory / _INDEX).is_file():
            listed: dict[str, str] = _read_json(directory / _INDEX)["weight_map"]
            files = {file: {name for name in listed if listed[name] == file} for file in sorted(set(listed.values()))}
        else:
            files = {"model.safetensors": set()}
        for file, expected in files.items():
            path = directory / file
            if not path.is_file():
                if needed or expected or any(directory.glob("pytorch_model*.bin")):
                    raise ValueError(
                        f"{path}: there is no such file. Fusion reads safetensors: load the model with "
                        "sentence-transformers and save it again."
                    )
                continue
            found = stored_tensors(path)
            if missing := sorted(expected - set(found)):
                raise ValueError(f"{path}: lacks {missing[0]}, which {_INDEX} lists there. Copy the model again.")
            self.files.append(path)
            prefix = f"{folder}." if folder and not needed else ""
            self.tensors.update({prefix + name: tensor for name, tensor in found.items()})

    def template(self) -> dict[str, str]:
        """The instruction template it was trained with: the saved one, else its own prompts."""
        if (self.path / TEMPLATE_FILE).is_file():
            return InstructionTemplate(**_read_json(self.path / TEMPLATE_FILE)["template"]).to_dict()
        prompts = self.prompts()
        return InstructionTemplate(prompts.get("query") or "", prompts.get("document") or "").to_dict()

    def prompts(self) -> dict[str, str]:
        """The prompts that sentence-transformers reads."""
        path = self.path / "config_sentence_transformers.json"
        return dict(_read_json(path).get("prompts") or {}) if path.is_file() else {}

    def module_settings(self) -> dict[str, Any]:
        """What the modules after the first do, in the names of the installed sentence-transformers."""
        known = {module.__name__: module for module in (Pooling, Dense, Normalize)}
        settings: dict[str, Any] = {"modules": [kind for kind, _ in self.modules]}
        for kind, folder in self.modules[1:]:
            config = self.path / folder / "config.json"
            if kind in known:
                settings[folder] = (
                    known[kind].load(str(self.path), subfolder=folder, local_files_only=True).get_config_dict()
                )
            elif config.is_file():
                settings[folder] = _read_json(config)
        return settings

    def config(self) -> dict[str, Any]:
        """The network's configuration, flat, with the defaults that its file leaves out; dropout rates left out."""
        try:
            config = AutoConfig.from_pretrained(str(self.network), local_files_only=True)
        except (OSError, ValueError, KeyError) as error:
            raise ValueError(f"{self.network / 'config.json'}: cannot be read: {error}") from error
        return {
            key: value
            for key, value in _flat(config.to_dict())
            if key.rpartition(".")[2] not in _FREE_SETTINGS and not key.endswith(("dropout", "dropout_prob", "pdrop"))
        }

    def tokenizer(self) -> dict[str, Any]:
        """What decides the token ids of a text, by part."""
        try:
            tokenizer = AutoTokenizer.from_pretrained(str(self.network), local_files_only=True)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{self.network}: the tokenizer cannot be read: {error}") from error
        parts: dict[str, Any] = {"vocabulary": tokenizer.get_vocab()}
        if tokenizer.is_fast:
            content = json.loads(tokenizer.backend_tokenizer.to_str())
            parts |= {part: content[part] for part in ("normalizer", "pre_tokenizer", "post_processor")}
        return parts


def check_alike(base: ModelDirectory, checkpoints: Sequence[ModelDirectory]) -> None:
    """See whether the checkpoints are one model in several states that grew from the base's weights.

    Checkpoints agree in modules, template, prompts, configuration, tokenizer, and in the name, shape and kind of each
    tensor. The base may be bare, and causal: its configuration (less its role), vocabulary and tensors are compared.

    Raises:
        ValueError: they do not; the message names what, got and expected.
    """
    first = checkpoints[0]
    settings, config, tokenizer = first.module_settings(), first.config(), first.tokenizer()
    for other in checkpoints[1:]:
        _same(other, first, "", other.module_settings(), settings)
        _same(other, first, "template.", other.template(), first.template())
        _same(other, first, "prompts.", other.prompts(), first.prompts())
        _same(other, first, "config.json: ", other.config(), config)
        _same_tokenizer(other, first, other.tokenizer(), tokenizer)
        _same_tensors(other, first)
        if extra := sorted(set(other.tensors) - set(first.tensors)):
            raise ValueError(f"{other.name}: has the tensor {extra[0]}, which {first.name} lacks.")
    role = {key for key in config if key.rpartition(".")[2] in _ROLE_SETTINGS}
    theirs = {key: value for key, value in base.config().items() if key not in role}
    ours = {key: value for key, value in config.items() if key not in role}
    _same(base, first, "config.json: ", {key: theirs.get(key) for key in ours}, ours)
    _same_tokenizer(base, first, {"vocabulary": base.tokenizer()["vocabulary"]}, tokenizer)


def starting_tensors(base: ModelDirectory, first: ModelDirectory) -> dict[str, StoredTensor]:
    """The base's tensor for each of a checkpoint; those that are no floating-point numbers may be missing.

    A language model's file puts its network under a prefix (`model.`, `bert.`) beside its head; the head is left out.

    Raises:
        ValueError: the base lacks one, or its shape differs.
    """
    prefixes = ["", *sorted({f"{name.partition('.')[0]}." for name in base.tensors})]
    prefix = max(prefixes, key=lambda prefix: sum(prefix + name in base.tensors for name in first.tensors))
    found = {}
    for name, tensor in first.tensors.items():
        start = base.tensors.get(prefix + name)
        if start is not None:
            _same_tensor(name, start, tensor, base, first)
            found[name] = start
        elif tensor.dtype in FLOATING:
            raise ValueError(
                f"{base.name}: has no tensor {name}, which {first.name} has. Give the model that the checkpoints were "
                "fine-tuned from."
            )
    unused = sorted(set(base.tensors) - {prefix + name for name in first.tensors})
    if unused:
        logger.warning("%s: %d tensors that no checkpoint has are left out: %s.", base.name, len(unused), unused[:3])
    return found


def _same_tensors(other: ModelDirectory, first: ModelDirectory) -> None:
    for name, tensor in first.tensors.items():
        if name not in other.tensors:
            raise ValueError(f"{other.name}: lacks the tensor {name}, which {first.name} has.")
        _same_tensor(name, other.tensors[name], tensor, other, first)


def _same_tensor(
    name: str, got: StoredTensor, expected: StoredTensor, other: ModelDirectory, first: ModelDirectory
) -> None:
    if got.shape != expected.shape:
        raise ValueError(
            f"{other.name}: {name} has the shape {list(got.shape)}, expected {list(expected.shape)} as in {first.name}."
        )
    if (got.dtype in FLOATING) != (expected.dtype in FLOATING):
        raise ValueError(f"{other.name}: {name} is {got.dtype}, but {expected.dtype} in {first.name}.")


def _same(
    other: ModelDirectory, first: ModelDirectory, where: str, got: Mapping[str, Any], expected: Mapping[str, Any]
) -> None:
    for key in {**expected, **got}:
        if got.get(key) != expected.get(key):
            raise ValueError(
                f"{other.name}: {where}{key} is {got.get(key)!r}, expected {expected.get(key)!r} as in {first.name}."
            )


def _same_tokenizer(
    other: ModelDirectory, first: ModelDirectory, got: Mapping[str, Any], expected: Mapping[str, Any]
) -> None:
    for part, content in got.items():
        if content == expected.get(part):
            continue
        if part == "vocabulary":
            differing = sorted(set(content.items()) ^ set(expected[part].items()), key=lambda item: item[::-1])
            piece = differing[0][0]
            detail = (
                f"has {len(content)} pieces, expected {len(expected[part])}; {piece!r} has the id "
                f"{content.get(piece)}, expected {expected[part].get(piece)}"
            )
        else:
            detail = f"is {_clip(content)}, expected {_clip(expected.get(part))}"
        raise ValueError(f"{other.name}: the tokenizer's {part} {detail} as in {first.name}.")


def _clip(content: object) -> str:
    text = json.dumps(content, ensure_ascii=False)
    return text if len(text) <= 200 else f"{text[:200]}..."


def _flat(content: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in content.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _resolve(name: str | Path) -> Path:
    if name == "bundled":
        from codiemb.bundled import bundled_model

        return bundled_model()
    path = Path(name)
    if not path.is_dir():
        raise ValueError(f"{name}: there is no such directory. Fusion reads model directories and 'bundled'.")
    if not any((path / file).is_file() for file in ("modules.json", "config.json")):
        raise ValueError(f"{name}: holds neither modules.json nor config.json, so it is not a model directory.")
    return path


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: cannot be read: {error}") from error
