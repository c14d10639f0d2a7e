"""`codiemb leaderboard`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import typer
from rich.console import Console

_FORMATS = (".md", ".csv", ".html", ".png", ".json")
_PIPED_WIDTH = 160  # characters, where no terminal sets a limit


def leaderboard_command(
    results: list[Path] = typer.Argument(help="Folders of mteb results: MODEL/REVISION/TASK.json, at any level."),
    benchmark: str = typer.Option(
        None, "--benchmark", "-b", help="As mteb names it, or 'all tasks found'. Default: MTEB(cmn, v1) if it fits."
    ),
    output: list[Path] = typer.Option(
        None, "--output", "-o", metavar="FILE", help="Write .md, .csv, .html, .png or .json; repeatable."
    ),
    tasks: bool = typer.Option(False, "--tasks", help="Show the scores of each task too."),
    published: bool = typer.Option(
        True, "--published/--no-published", help="Show the published scores of other models on the benchmark."
    ),
    chart: Literal["bars", "radar"] = typer.Option("bars", "--chart", help="What a .png shows."),
    as_json: bool = typer.Option(False, "--json", help="Print JSON instead of tables."),
) -> None:
    """Show where models stand: means by task and by type from mteb results, beside published scores.

    A mean over a part of its tasks is marked as such and never ranked.

    \b
    codiemb leaderboard runs/cmteb
    codiemb leaderboard runs/a runs/b --tasks -o board.md -o board.csv -o board.html -o board.png
    """
    from codiemb.evaluation import leaderboard_tables as tables
    from codiemb.evaluation.leaderboard import Leaderboard, build
    from codiemb.evaluation.runs import read_runs
    from codiemb.json_files import to_json

    for path in output or []:
        if path.suffix not in _FORMATS:
            raise ValueError(f"--output {path}: unknown format {path.suffix!r}; expected {', '.join(_FORMATS)}.")
    board = build(read_runs(results), benchmark, published=published)

    def content(board: Leaderboard, suffix: str) -> bytes:
        if suffix == ".png":
            from codiemb.evaluation import plots

            return plots.png(plots.bar_chart(board) if chart == "bars" else plots.radar_chart(board))
        texts = {".md": tables.to_markdown, ".csv": tables.to_csv, ".html": tables.to_html}
        return (to_json(board.to_dict()) if suffix == ".json" else texts[suffix](board)).encode()

    if as_json:
        print(to_json(board.to_dict()), end="")
    else:
        console = Console()
        if not console.is_terminal:
            console.width = _PIPED_WIDTH
        summary = tables.summary_table(board)
        fits = console.measure(summary).maximum <= console.width
        console.print(summary if fits else tables.summary_table(board, wide=False))
        if tasks:
            console.print(tables.tasks_table(board))
        for note in tables.notes_of(board):
            console.print(note, highlight=False, markup=False, soft_wrap=True)
    for path in output or []:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content(board, path.suffix))
    if output:
        Console(stderr=True).print(f"written: {', '.join(map(str, output))}", highlight=False, soft_wrap=True)
