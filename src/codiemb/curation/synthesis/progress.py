"""A bar for requests: how many are done, the time left, tokens and cost so far."""

from __future__ import annotations

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from codiemb.curation.synthesis.asking import Outcome
from codiemb.curation.synthesis.plan import Corpus, Request
from codiemb.curation.synthesis.recipe import SynthesisRecipe
from codiemb.curation.synthesis.report import Tally


class RequestBar:
    """Counts outcomes in `tally` and shows them; nothing is shown where there is no console, or no terminal."""

    def __init__(self, console: Console | None, recipe: SynthesisRecipe, corpus: Corpus, tally: Tally) -> None:
        self._recipe = recipe
        self._tally = tally
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[spent]}"),
            console=console or Console(quiet=True),
            disable=console is None or not console.is_terminal,
        )
        self._task = self._bar.add_task("requests", total=most_requests(recipe, corpus), spent="")

    def __enter__(self) -> RequestBar:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def finish(self) -> None:
        """Say that no request follows: documents with too few sentences have fewer than the bar counted on."""
        self._bar.update(self._task, total=self._bar.tasks[0].completed)

    def add(self, request: Request, outcome: Outcome) -> None:
        """Count one request that is done with."""
        self._tally.add(request, outcome)
        spent = self._tally.spent
        cost = spent.cost(self._recipe.api)
        price = "" if cost is None else f", cost {cost:,.4f}"
        text = f"{spent.input_tokens + spent.output_tokens:,} tokens{price}"
        self._bar.update(self._task, advance=1, spent=text)


def most_requests(recipe: SynthesisRecipe, corpus: Corpus) -> int:
    """Requests of a run in which every document has as many sentences as are wanted."""
    each = (
        bool(recipe.queries)
        + (recipe.pairs.per_document if recipe.pairs else 0)
        + (recipe.paraphrases.per_document if recipe.paraphrases else 0)
    )
    tasks = recipe.brainstorm.requests if recipe.brainstorm and recipe.queries else 0
    return tasks + each * len(corpus.chosen)
