"""Recipe files of every kind: YAML with overrides, read into sections that say every fault with its key."""

from __future__ import annotations

import difflib
import re
import reprlib
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator
from typing_extensions import Self


class RecipeError(ValueError):
    """A recipe that cannot be used; the message lists every fault with its key."""


class Section(BaseModel):
    """Part of a recipe: unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class RecipeSection(Section):
    """A whole recipe, whose keys have to fit each other: all that do not are reported together."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if faults := list(self._contradictions()):
            raise ValueError("\n".join(faults))
        return self

    @abstractmethod
    def _contradictions(self) -> Iterator[str]:
        """What does not fit, each with its keys."""


Checked = TypeVar("Checked", bound=Section)


def load_section(kind: type[Checked], path: Path, overrides: Sequence[str] = ()) -> Checked:
    """Read a recipe of one kind, apply `key.sub=value` overrides (values are YAML), and check it.

    Relative paths in the file are taken from the working directory, as on a command line.

    Raises:
        RecipeError: the file cannot be read, or with every fault: its key, what was given, what is allowed.
    """
    return parse_section(kind, read_content(kind, path, overrides), str(path))


def read_content(kind: type[Section], path: Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The keys of a recipe file with `overrides` applied, not checked yet.

    Raises:
        RecipeError: it cannot be read, is not YAML, or an override has no place.
    """
    try:
        content = _yaml(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RecipeError(f"{path}: there is no such recipe. The ready ones lie in recipes/.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: cannot be read: {error}") from error
    except yaml.YAMLError as error:
        raise RecipeError(f"{path}: is not YAML: {error}") from error
    if not isinstance(content, dict):
        required = [name for name, info in kind.model_fields.items() if info.is_required()]
        expected = f"{', '.join(required[:-1])} and {required[-1]}" if len(required) > 1 else required[0]
        raise RecipeError(f"{path}: got {type(content).__name__}, expected keys such as {expected}.")
    for override in overrides:
        apply_override(content, override)
    return content


def parse_section(kind: type[Checked], content: Mapping[str, Any], origin: str = "recipe") -> Checked:
    """Check the content of a recipe.

    Raises:
        RecipeError: with every fault.
    """
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        faults = error.errors(include_url=False)
        lines = [line for fault in faults for line in _explain(kind, fault).splitlines()]
        raise RecipeError("\n".join(f"{origin}: {line}" for line in lines)) from None


def merged(defaults: Mapping[str, Any], content: Mapping[str, Any]) -> dict[str, Any]:
    """`content`, with what it lacks from `defaults`, section by section."""
    result = {**defaults, **content}
    for key in defaults.keys() & content.keys():
        if isinstance(defaults[key], Mapping) and isinstance(content[key], Mapping):
            result[key] = merged(defaults[key], content[key])
    return result


def nearest(name: str, known: Iterable[str]) -> str:
    """`; did you mean ...?` where a known name is near, else `;`."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {near[0]}?" if near else ";"


class _Loader(yaml.SafeLoader):
    """YAML where `3e-5` is a number, as in YAML 1.2, and a key given twice is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in keys:
                raise yaml.MarkedYAMLError(problem=f"the key {key!r} is given twice", problem_mark=key_node.start_mark)
            keys.add(key)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def _yaml(text: str) -> Any:
    return yaml.load(text, _Loader)


def apply_override(content: dict[str, Any], override: str) -> None:
    """Change one key in place, as `key.sub=value`.

    Raises:
        RecipeError: it is none, or its value is no YAML.
    """
    key, equals, value = override.partition("=")
    if not equals or not key:
        raise RecipeError(f"override {override!r}: expected key.sub=value, such as optimizer.learning_rate=3e-5")
    *parents, last = key.split(".")
    node: Any = content
    for depth, name in enumerate(parents, start=1):
        if node.get(name) is None:
            node[name] = {}
        node = node[name]
        if not isinstance(node, dict):
            raise RecipeError(
                f"override {override!r}: {'.'.join(parents[:depth])} is no section of keys but {reprlib.repr(node)}; "
                "give it a whole new value"
            )
    try:
        node[last] = _yaml(value)
    except yaml.YAMLError as error:
        raise RecipeError(f"override {override!r}: the value is not YAML: {error}") from error


def _explain(kind: type[Section], fault: Mapping[str, Any]) -> str:
    location = list(fault["loc"])
    key = ".".join(map(str, location))
    given = reprlib.repr(fault["input"])
    if fault["type"] == "extra_forbidden":
        allowed = _fields_at(kind, location[:-1])
        return f"{key}: unknown key (got {given}){nearest(str(location[-1]), allowed)} allowed: {', '.join(allowed)}"
    if fault["type"] == "missing":
        return f"{key}: missing, but required"
    message = str(fault["msg"]).removeprefix("Value error, ")
    if not location:  # of the recipe as a whole: the message names its keys
        return message
    if fault["type"] == "model_type":
        message = f"expected the keys {', '.join(_fields_at(kind, location))}"
    return f"{key}: got {given}, {message.replace('Input should be', 'expected', 1)}"


def _fields_at(section: Any, location: Iterable[str | int]) -> list[str]:
    """The keys at `location` below `section`."""
    for part in location:
        if isinstance(part, str):
            annotation = section.model_fields[part].annotation
            section = getattr(annotation, "__args__", (annotation,))[0]
    return list(section.model_fields)
