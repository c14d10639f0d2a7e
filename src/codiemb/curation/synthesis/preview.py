"""What a run would ask, and what that would cost, without asking."""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import chain

from codiemb.curation.synthesis.answers import json_schema
from codiemb.curation.synthesis.plan import Request, plan_rows, plan_tasks
from codiemb.curation.synthesis.recipe import Api, SynthesisRecipe
from codiemb.curation.synthesis.run import prepare
from codiemb.curation.synthesis.tokens import Spent, estimated_tokens


@dataclass(frozen=True)
class Preview:
    """An estimate, and the first prompts of each kind.

    Attributes:
        requests: how many of each kind.
        tokens: of prompts as estimated, and of answers at most (`max_tokens` each), if every first answer is usable.
        cost: of these, None without prices.
        minutes: at least, by the rate limits; None without limits.
        prompts: request and its text.
    """

    documents: int
    requests: dict[str, int]
    tokens: Spent
    cost: float | None
    minutes: float | None
    prompts: list[Request]


def preview(recipe: SynthesisRecipe, prompts: int = 1) -> Preview:
    """Plan a run and count; queries are planned with the tasks of the recipe, since the model has proposed none yet.

    Args:
        prompts: to show of each kind.
    Raises:
        RecipeError, DataError: as `synthesize`.
    """
    templates, corpus = prepare(recipe)
    planned = chain(plan_tasks(recipe, corpus, templates), plan_rows(recipe, corpus, templates, recipe.tasks))
    counts: dict[str, int] = {}
    shown: list[Request] = []
    inputs = 0
    for request in planned:
        counts[request.kind] = counts.get(request.kind, 0) + 1
        inputs += sum(estimated_tokens(message["content"]) for message in request.messages)
        if counts[request.kind] <= prompts:
            shown.append(request)
    total = sum(counts.values())
    tokens = Spent(inputs, total * (recipe.api.max_tokens or 0))
    return Preview(
        len(corpus.chosen), counts, tokens, tokens.cost(recipe.api), _minutes(recipe.api, total, tokens), shown
    )


def as_text(request: Request) -> str:
    """A request as people read it."""
    messages = "\n".join(f"[{one['role']}]\n{one['content']}" for one in request.messages)
    return f"{messages}\n[schema]\n{json.dumps(json_schema(request.answer), ensure_ascii=False)}"


def _minutes(api: Api, requests: int, tokens: Spent) -> float | None:
    limits = [
        units / limit
        for units, limit in ((requests, api.requests_per_minute), (sum(tokens), api.tokens_per_minute))
        if limit
    ]
    return max(limits) if limits else None
