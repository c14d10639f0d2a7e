"""Prompts as files that a user can edit: one text for each kind of request, and the words they are made of."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from importlib.resources import as_file, files
from pathlib import Path
from string import Template
from typing import Literal, TypeAlias, get_args

import yaml

from codiemb.curation.synthesis.recipe import QUERY_KINDS, Language
from codiemb.training.sections import RecipeError, Section, parse_section

RequestKind = Literal["tasks", "queries", "pairs", "paraphrases"]
REQUEST_KINDS: tuple[RequestKind, ...] = get_args(RequestKind)
LANGUAGES: tuple[Language, ...] = get_args(Language)
Messages: TypeAlias = "list[dict[str, str]]"

WORDS_FILE = "words.yaml"
_PARTS = {"=== system": "system", "=== user": "user"}

#: What each template may use; those first have to be there, since the answer depends on them.
_PLACEHOLDERS: Mapping[RequestKind, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "tasks": (("documents",), ("count", "shape")),
    "queries": (("document", "queries"), ("task", "count", "passages", "shape")),
    "pairs": (("sentence", "scores"), ("lowest", "highest", "degrees", "count", "shape")),
    "paraphrases": (("sentence",), ("count", "shape")),
}
_WORD_PLACEHOLDERS: Mapping[str, tuple[str, ...]] = {
    "document": ("number", "text"),
    "query": ("number", "kind", "length", "difficulty", "persona", "language"),
    "positives": ("count",),
    "hard_negatives": ("count",),
    "degree": ("score", "meaning"),
    "retry": ("reason",),
}


class Words(Section):
    """The content of `words.yaml`."""

    general_task: str
    pairs_instruction: str
    document: str
    query: str
    positives: str
    hard_negatives: str
    degree: str
    retry: str
    kinds: dict[str, str]
    lengths: dict[str, str]
    difficulties: dict[str, str]
    languages: dict[str, str]
    personas: list[str]
    degrees: dict[float, str]


class Templates:
    """The prompts of one language.

    Args:
        language: which of the two.
        directory: a folder that holds a folder of that name; the shipped one if None.
    Raises:
        RecipeError: a file is missing, is not what it should be, or has a placeholder that nothing fills.
    """

    def __init__(self, language: Language, directory: Path | None = None) -> None:
        with as_file(files(__package__) / "templates") as shipped:
            folder = (directory or shipped) / language
            self.words = _words(folder / WORDS_FILE)
            self._parts = {kind: _parts(folder / f"{kind}.txt", kind) for kind in REQUEST_KINDS}

    def messages(self, kind: RequestKind, **values: object) -> Messages:
        """The messages of a request, every placeholder filled."""
        return [
            {"role": role, "content": Template(text).substitute(values).strip()}
            for role, text in self._parts[kind].items()
        ]

    def phrase(self, name: str, **values: object) -> str:
        """One of the words that have placeholders, filled."""
        return Template(getattr(self.words, name)).substitute(values)


def copy_templates(output: Path) -> list[Path]:
    """Copy the shipped templates of all languages into a folder.

    Raises:
        RecipeError: one of them is there already.
    """
    copied = []
    with as_file(files(__package__) / "templates") as shipped:
        pairs = [(path, output / path.relative_to(shipped)) for path in sorted(shipped.glob("*/*")) if path.is_file()]
        if there := [target for _, target in pairs if target.exists()]:
            raise RecipeError(f"{there[0]}: is there already; give another directory, or remove it.")
        for path, target in pairs:
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
            copied.append(target)
    return copied


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(
            f"{path}: cannot be read ({error}). `codiemb synthesize templates -o DIR` writes all files of a folder."
        ) from None


def _parts(path: Path, kind: RequestKind) -> dict[str, str]:
    """Role to text, in the order of the file."""
    parts: dict[str, list[str]] = {}
    role = None
    for line in _read(path).splitlines():
        if line.strip() in _PARTS:
            role = _PARTS[line.strip()]
            parts[role] = []
        elif role is not None:
            parts[role].append(line)
        elif line.strip():
            raise RecipeError(f"{path}: begins with {line[:40]!r}, expected the line '=== system' or '=== user'.")
    if "user" not in parts:
        raise RecipeError(f"{path}: has no part '=== user', which is what the model is asked.")
    texts = {role: "\n".join(lines) for role, lines in parts.items()}
    needed, allowed = _PLACEHOLDERS[kind]
    used = set().union(*(_identifiers(text, str(path)) for text in texts.values()))
    _refuse_unknown(used, (*needed, *allowed), str(path))
    if missing := [name for name in needed if name not in used]:
        raise RecipeError(f"{path}: ${missing[0]} is not in it, and without it the model does not know what to write.")
    return texts


def _words(path: Path) -> Words:
    try:
        content = yaml.safe_load(_read(path))
    except yaml.YAMLError as error:
        raise RecipeError(f"{path}: is not YAML: {error}") from error
    if not isinstance(content, dict):
        raise RecipeError(f"{path}: got {type(content).__name__}, expected the keys {', '.join(Words.model_fields)}.")
    words = parse_section(Words, content, str(path))
    for name, allowed in _WORD_PLACEHOLDERS.items():
        _refuse_unknown(_identifiers(getattr(words, name), f"{path}: {name}"), allowed, f"{path}: {name}")
    for key, needed in (("kinds", QUERY_KINDS), ("lengths", ("short", "medium", "long")), ("languages", LANGUAGES)):
        if missing := [name for name in needed if name not in getattr(words, key)]:
            raise RecipeError(f"{path}: {key}.{missing[0]}: missing, but required")
    return words


def _identifiers(text: str, where: str) -> set[str]:
    template = Template(text)
    if not template.is_valid():
        raise RecipeError(f"{where}: a $ that begins no placeholder; a dollar sign itself is $$.")
    return set(template.get_identifiers())


def _refuse_unknown(used: set[str], allowed: tuple[str, ...], where: str) -> None:
    if unknown := sorted(used - set(allowed)):
        raise RecipeError(f"{where}: ${unknown[0]} is no placeholder here; allowed are ${', $'.join(allowed)}.")
