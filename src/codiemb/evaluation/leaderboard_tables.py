"""A leaderboard as terminal tables, Markdown, CSV and an HTML page."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from codiemb.evaluation import pages
from codiemb.evaluation.leaderboard import Leaderboard, Mean
from codiemb.evaluation.pages import Cell

MISSING = "–"
_INCOMPLETE = "A mean with (n/m) is over n of its m tasks; it is not ranked, and no best score."
_HEADINGS = {"PairClassification": "Pair classification"}
# Headings for a terminal.
_NARROW = {
    "Mean(Task)": "Mean\n(Task)",
    "Mean(Type)": "Mean\n(Type)",
    "Classification": "Class.",
    "Clustering": "Clust.",
    "PairClassification": "Pair",
    "Reranking": "Rerank.",
    "Retrieval": "Retr.",
}


def heading(column: str) -> str:
    """A column's name for people."""
    return _HEADINGS.get(column, column)


def notes_of(board: Leaderboard) -> list[str]:
    """The notes, and how to read an incomplete mean if there is one."""
    partial = any(mean.n != mean.of for row in board.rows for mean in row.means.values())
    return [_INCOMPLETE, *board.notes] if partial else list(board.notes)


def summary_table(board: Leaderboard, *, wide: bool = True) -> Table:
    """The means, for a terminal; one's own models in colour.

    Args:
        wide: with parameters and number of tasks; without, the table of the Chinese benchmark fits 80 columns.
    """
    table = Table(title=Text(board.benchmark), title_justify="left", pad_edge=False)
    table.box, table.padding = (SIMPLE_HEAD, (0, 1)) if wide else (None, (0, 0, 0, 2))
    shown = [0, *range(1 if wide else 2, len(board.columns) + (3 if wide else 2))]
    headings = _summary_headings(board, narrow=True)
    table.add_column("model", overflow="fold", min_width=14)
    for column in shown[1:]:
        table.add_column(headings[column], justify="right")
    for row, cells in zip(board.rows, _summary(board), strict=True):
        styles = ["" if row.published else "cyan", *("bold" if cells[column].best else "" for column in shown[1:])]
        texts = [cells[column].text.replace(" (", "\n(") for column in shown]
        table.add_row(*(Text(text, style=style) for text, style in zip(texts, styles, strict=True)))
    return table


def tasks_table(board: Leaderboard) -> Table:
    """The scores of each task, for a terminal."""
    table = Table(title=Text(f"{board.benchmark}: tasks"), title_justify="left")
    for text in _task_headings(board):
        table.add_column(Text(text), overflow="fold", justify="left" if text in ("task", "type") else "right")
    before = ""
    for cells in _tasks(board):
        if before and cells[1].text != before:
            table.add_section()
        before = cells[1].text
        table.add_row(*(Text(cell.text, style="bold" if cell.best else "") for cell in cells))
    return table


def to_markdown(board: Leaderboard) -> str:
    """Summary, tasks and notes."""
    parts = [f"## {board.benchmark}", _markdown(_summary_headings(board), _summary(board))]
    parts += ["### Tasks", _markdown(_task_headings(board), _tasks(board), left=2)]
    notes = "\n".join(f"- {_escaped(note)}" for note in notes_of(board))
    return "\n\n".join([*parts, notes]).rstrip() + "\n"


def to_csv(board: Leaderboard) -> str:
    """One line a model: complete means, then the score of each task; what is missing or incomplete is empty."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["model", "parameters", "source", "published", "tasks", "of", *board.columns, *board.tasks])
    for row in board.rows:
        total = row.means[board.columns[0]]
        means = [f"{mean.value:.4f}" if (mean := row.means[name]).complete else "" for name in board.columns]
        scores = [f"{row.scores[name]:.4f}" if name in row.scores else "" for name in board.tasks]
        about = [row.model, row.parameters, row.source, str(row.published).lower(), total.n, total.of]
        writer.writerow([*about, *means, *scores])
    return file.getvalue()


def to_html(board: Leaderboard) -> str:
    """A page with the tables and notes."""
    own = [not row.published for row in board.rows]
    parts = [pages.table(_summary_headings(board), _summary(board), own)]
    parts += [pages.heading("Tasks"), pages.table(_task_headings(board), _tasks(board))]
    return pages.page(board.benchmark, [*parts, *map(pages.note, notes_of(board))])


def _summary_headings(board: Leaderboard, *, narrow: bool = False) -> list[str]:
    names = [_NARROW.get(name, name) if narrow else heading(name) for name in board.columns]
    return ["model", "params", *names, "tasks"]


def _summary(board: Leaderboard) -> list[list[Cell]]:
    best = {name: board.best(name) for name in board.columns}
    lines = []
    for row in board.rows:
        means = [_mean_cell(row.means[name], best[name]) for name in board.columns]
        total = row.means[board.columns[0]]
        tasks = "published" if row.published else f"{total.n}/{total.of}"
        lines.append([Cell(row.model), Cell(row.parameters), *means, Cell(tasks)])
    return lines


def _mean_cell(mean: Mean, best: float | None) -> Cell:
    if mean.value is None:
        return Cell(MISSING)
    if not mean.complete:
        return Cell(f"{mean.value:.2f} ({mean.n}/{mean.of})")
    return Cell(f"{mean.value:.2f}", best is not None and round(mean.value, 2) >= best)


def _task_headings(board: Leaderboard) -> list[str]:
    return ["task", "type", *(row.model for row in board.rows if not row.published)]


def _tasks(board: Leaderboard) -> list[list[Cell]]:
    own = [row for row in board.rows if not row.published]
    lines = []
    for name, type_ in board.tasks.items():
        best = board.best_score(name)
        scores = [row.scores.get(name) for row in own]
        cells = [
            Cell(MISSING) if score is None else Cell(f"{score:.2f}", best is not None and round(score, 2) >= best)
            for score in scores
        ]
        lines.append([Cell(name), Cell(heading(type_)), *cells])
    return lines


def _markdown(headings: Sequence[str], rows: Sequence[Sequence[Cell]], *, left: int = 1) -> str:
    rule = ["---"] * left + ["---:"] * (len(headings) - left)
    lines = [map(_escaped, headings), rule]
    lines += [[f"**{_escaped(c.text)}**" if c.best else _escaped(c.text) for c in row] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _escaped(text: str) -> str:
    """`text` as Markdown shows it: no cell breaks, no emphasis by underscores or stars in names."""
    for character in "\\|_*<":
        text = text.replace(character, f"\\{character}")
    return " ".join(text.split())
