"""Self-contained HTML pages: tables and embedded images, no script and nothing to fetch."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterable, Sequence
from html import escape
from typing import NamedTuple

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 76em; margin: 2em auto; padding: 0 1em; }
table { border-collapse: collapse; margin: 1em 0; }
th, td { padding: .3em .7em; border-bottom: 1px solid #ddd; text-align: right; font-variant-numeric: tabular-nums; }
th:first-child, td:first-child { text-align: left; }
thead th { border-bottom: 2px solid #888; }
tr.own td:first-child { font-weight: 600; color: #0b5cad; }
img { max-width: 100%; }
p.note { color: #666; font-size: 13px; margin: .2em 0; }
"""


class Cell(NamedTuple):
    """A table's cell; `best` is set in bold."""

    text: str
    best: bool = False


def page(title: str, parts: Iterable[str]) -> str:
    """An HTML document of `parts`, each of which is HTML."""
    body = "\n".join(parts)
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{escape(title)}</title>\n'
        f"<style>{_STYLE}</style>\n</head>\n<body>\n<h1>{escape(title)}</h1>\n{body}\n</body>\n</html>\n"
    )


def heading(text: str) -> str:
    """A second-level heading."""
    return f"<h2>{escape(text)}</h2>"


def paragraph(text: str) -> str:
    """Plain text."""
    return f"<p>{escape(text)}</p>"


def note(text: str) -> str:
    """A remark in small print."""
    return f'<p class="note">{escape(text)}</p>'


def table(headings: Sequence[str], rows: Iterable[Sequence[Cell]], own: Sequence[bool] = ()) -> str:
    """A table; the rows that `own` marks stand out."""
    head = "".join(f"<th>{escape(text)}</th>" for text in headings)
    lines = []
    for number, row in enumerate(rows):
        cells = "".join(f"<td>{f'<b>{escape(c.text)}</b>' if c.best else escape(c.text)}</td>" for c in row)
        lines.append(f'<tr class="own">{cells}</tr>' if number < len(own) and own[number] else f"<tr>{cells}</tr>")
    return f"<table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n" + "\n".join(lines) + "\n</tbody>\n</table>"


def image(png: bytes, description: str) -> str:
    """An image that is part of the page."""
    return f'<img alt="{escape(description)}" src="data:image/png;base64,{b64encode(png).decode()}">'
