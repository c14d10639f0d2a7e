"""Rankings in the terminal: a bar, the score and the text on one line each."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Console
from rich.text import Text

_BAR = 24  # cells of a full bar


def print_ranking(console: Console, ranking: Iterable[tuple[float, str]]) -> None:
    """Print scores and texts, best first; a full bar is a score of 1.

    In a terminal, texts are cut to its width, a Chinese character taking two cells; elsewhere they are whole.
    """
    for score, text in ranking:
        line = Text.assemble(_bar(score), f" {score:6.3f}  {' '.join(text.split())}")
        if console.is_terminal:
            line.truncate(console.width, overflow="ellipsis")
        console.print(line, highlight=False, soft_wrap=True)


def _bar(score: float) -> Text:
    filled = round(_BAR * min(max(score, 0.0), 1.0))
    return Text("█" * filled + "·" * (_BAR - filled), style="cyan")
