"""Progress in the terminal, in one look for all that counts texts or rows."""

from __future__ import annotations

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


def counting_bars(console: Console, *more: ProgressColumn, shown: bool | None = None) -> Progress:
    """Bars with what is done and of how many, the time so far and the time left, and `more` behind them.

    Args:
        shown: None: where `console` is a terminal.
    """
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        *more,
        console=console,
        disable=not (console.is_terminal if shown is None else shown),
    )
