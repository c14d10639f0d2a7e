"""The answers that are asked for, as schemas, and the reading of what models really write."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import cache
from typing import Annotated, Any, NamedTuple, get_args

from pydantic import BaseModel, Field, ValidationError, create_model

from codiemb.extras import require

_THOUGHTS = re.compile(r"^.*?</think>", re.DOTALL)
_REASON = 200  # characters of a reason


class Answered(NamedTuple):
    """What a request brought: the checked answer, or why there is none."""

    answer: BaseModel | None
    reason: str = ""
    detail: str = ""


@cache
def tasks_answer(count: int) -> type[BaseModel]:
    """`{"tasks": ["..."]}`."""
    return _listed("tasks", str, count)


@cache
def queries_answer(count: int, positives: int, hard_negatives: int) -> type[BaseModel]:
    """`{"queries": [{"query": "...", "positives": [...], "hard_negatives": [...]}]}`, the lists if asked for."""
    fields: dict[str, Any] = {"query": (str, ...)}
    for name, length in (("positives", positives), ("hard_negatives", hard_negatives)):
        if length:
            fields[name] = (_exactly(str, length), ...)
    return _listed("queries", create_model("Query", **fields), count)


@cache
def pairs_answer(count: int) -> type[BaseModel]:
    """`{"pairs": [{"sentence": "...", "score": 3}]}`."""
    return _listed("pairs", create_model("Pair", sentence=(str, ...), score=(float, ...)), count)


@cache
def paraphrases_answer(count: int) -> type[BaseModel]:
    """`{"paraphrases": ["..."]}`."""
    return _listed("paraphrases", str, count)


def json_schema(answer: type[BaseModel]) -> dict[str, Any]:
    """The schema as servers want it for structured output: every object closed, without titles."""
    schema = answer.model_json_schema()
    definitions = schema.pop("$defs", {})

    def plain(node: Any) -> Any:
        if isinstance(node, list):
            return [plain(item) for item in node]
        if not isinstance(node, dict):
            return node
        if "$ref" in node:
            return plain(definitions[node["$ref"].rsplit("/", 1)[1]])
        copied = {key: plain(value) for key, value in node.items() if key != "title"}
        return {**copied, "additionalProperties": False} if copied.get("type") == "object" else copied

    return plain(schema)


def shape(answer: type[BaseModel]) -> str:
    """The structure in one line, as prompts show it: `{"queries": [{"query": "..."}]}`."""

    def example(node: Mapping[str, Any]) -> Any:
        if node["type"] == "object":
            return {name: example(value) for name, value in node["properties"].items()}
        if node["type"] == "array":
            return [example(node["items"])]
        return "..." if node["type"] == "string" else 0

    return json.dumps(example(json_schema(answer)), ensure_ascii=False)


def parse_answer(content: str, finish_reason: str | None, answer: type[BaseModel]) -> Answered:
    """Read the text of a completion.

    Thoughts before the answer, code fences, words around the JSON, trailing commas and the like are mended, a list or a
    single object gets the object it belongs into. What is cut, empty or of another structure is no answer.
    """
    content = _THOUGHTS.sub("", content).strip()
    if finish_reason == "length":
        return Answered(None, "cut", f"the answer did not end within max_tokens: {content[-_REASON:]}")
    if finish_reason == "content_filter":
        return Answered(None, "filtered", "the server's content filter stopped the answer")
    if not content:
        return Answered(None, "empty", "the answer has no text")
    if not re.search(r"[\[{]", content):
        return Answered(None, "no JSON", content[:_REASON])
    try:
        found = json.loads(content, strict=False)
    except ValueError:
        found = require("json_repair", "synthesis").loads(content)
    try:
        return Answered(answer.model_validate(_wrapped(found, answer)))
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        place = ".".join(map(str, fault["loc"]))
        return Answered(None, "wrong structure", f"{place}: {fault['msg']}; got {content}"[: 2 * _REASON])


def _wrapped(found: object, answer: type[BaseModel]) -> object:
    """What was found, inside the object that holds the list of items."""
    ((name, field),) = answer.model_fields.items()
    if isinstance(found, dict) and name in found:
        found = found[name]
    items = found if isinstance(found, list) else [found]
    if len(items) == 1 and isinstance(items[0], dict) and isinstance(items[0].get(name), list):
        items = items[0][name]
    (item,) = get_args(field.annotation)
    if isinstance(item, type) and issubclass(item, BaseModel) and len(item.model_fields) == 1:
        (only,) = item.model_fields
        items = [{only: entry} if isinstance(entry, str) else entry for entry in items]
    if item is str:  # {"task": "..."} where "..." was asked for
        items = [
            next(iter(entry.values())) if isinstance(entry, dict) and len(entry) == 1 else entry for entry in items
        ]
    return {name: items}


def _listed(name: str, item: Any, count: int) -> type[BaseModel]:
    return create_model(name.capitalize(), **{name: (_exactly(item, count), ...)})  # type: ignore[call-overload]


def _exactly(item: Any, count: int) -> Any:
    return Annotated[list[item], Field(min_length=count, max_length=count)]
