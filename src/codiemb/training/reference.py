"""Every key of a recipe as a Markdown page, made from the recipe's own definition: `docs/recipe.md`."""

from __future__ import annotations

import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from codiemb.losses import PRESETS, StsWeights
from codiemb.training.recipe import ALIGN_DEFAULTS, Recipe
from codiemb.training.staged_recipe import StagedRecipe

_INTRO = """# Every key of a recipe

A recipe is one YAML file for `codiemb train`. Unknown keys are errors. Any key can be changed on the command line as
`key.sub=value`, values being YAML: `codiemb train my.yaml sampling.task_shares.ir=0.3 evaluation.every=null`. Relative
paths are taken from the working directory.

| key | values | default | meaning |
|---|---|---|---|
"""

_STS = """
## `tasks.sts.loss`

A preset's name ({presets}), weights by name (`{{pearson: 1, cosent: 0.5}}`, others 0), or a preset with changes
(`{{preset: default, pro: 0}}`).

| weight | `default` | `codiemb-release` |
|---|---:|---:|
"""

_ALIGN = """
## `stage: align`

Other defaults than above, for training on weak pairs ([stages](three-stages.md)):

| key | default |
|---|---|
"""

_STAGES = """
## `stages`

A recipe of several stages has these keys ([stages](three-stages.md)). A stage that sets a key itself keeps its own.

| key | values | default | meaning |
|---|---|---|---|
"""


def keys_of(recipe: type[BaseModel]) -> list[str]:
    """A row for each key, of sections too: its name, its values, its default and what it means."""
    return [f"| `{key}` | {kind} | {default} | {meaning} |" for key, kind, default, meaning in _rows(recipe, "")]


def recipe_reference() -> str:
    """The page as Markdown."""
    rows = keys_of(Recipe)
    ours, release = PRESETS["default"], PRESETS["codiemb-release"]
    weights = [
        f"| `{item.name}` | {getattr(ours, item.name)} | {getattr(release, item.name)} |" for item in fields(StsWeights)
    ]
    presets = ", ".join(f"`{name}`" for name in PRESETS)
    align = [f"| `{key}` | `{value}` |" for key, value in _flat(ALIGN_DEFAULTS)]
    shared = {name: _section(info.annotation)[0] for name, info in StagedRecipe.model_fields.items()}
    staged = [
        f"| `{name}` | {'mapping or null' if shared[name] else _kind(info.annotation)} | {_default(info)} "
        f"| {info.description} |"
        for name, info in StagedRecipe.model_fields.items()
    ]
    tables = (rows, weights, align, staged)
    heads = (_INTRO, _STS.format(presets=presets), _ALIGN, _STAGES)
    return "".join(head + "\n".join(table) + "\n" for head, table in zip(heads, tables, strict=True))


def _flat(content: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in content.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _rows(model: type[BaseModel], prefix: str) -> Iterator[tuple[str, str, str, str]]:
    for name, info in model.model_fields.items():
        key = f"{prefix}{name}"
        section, listed = _section(info.annotation)
        if section is not None:
            if info.default is None:
                yield key, "mapping or null", "`null`", info.description or ""
            yield from _rows(section, f"{key}[]." if listed else f"{key}.")
        else:
            yield key, _kind(info.annotation), _default(info), (info.description or "").replace("|", "\\|")


def _section(annotation: Any) -> tuple[type[BaseModel] | None, bool]:
    listed = typing.get_origin(annotation) is list
    optional = type(None) in typing.get_args(annotation)
    inner = typing.get_args(annotation)[0] if listed or optional else annotation
    return (inner, listed) if isinstance(inner, type) and issubclass(inner, BaseModel) else (None, listed)


def _kind(annotation: Any) -> str:
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return _kind(arguments[0])
    if origin is typing.Literal:
        return ", ".join(f"`{value}`" for value in arguments)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_kind(argument) for argument in arguments)
    if origin is list:
        return f"list of {_kind(arguments[0])}s"
    if origin is dict:
        return "mapping"
    if annotation is type(None):
        return "null"
    if annotation is Any:
        return "mapping"
    if is_dataclass(annotation):
        return "mapping"
    return {str: "text", Path: "path", int: "whole number", float: "number", bool: "true, false"}.get(
        annotation, str(annotation)
    )


def _default(info: FieldInfo) -> str:
    default = info.get_default(call_default_factory=True)
    if default is PydanticUndefined:
        return "required"
    if is_dataclass(default):
        return "`default`"
    return f"`{'null' if default is None else str(default).lower() if isinstance(default, bool) else default}`"
