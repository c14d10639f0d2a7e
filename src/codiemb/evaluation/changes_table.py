"""What changed between two models, for people: texts are cut to a line here, and whole in `compare.json`."""

from __future__ import annotations

from collections.abc import Mapping

from rich.console import Group
from rich.padding import Padding
from rich.text import Text

from codiemb.evaluation.changes import Change, Changes, PairChange, RelevantDocument, TextChange

_DOCUMENTS = 3  # relevant documents of a query


def changes_report(changes: Mapping[str, Changes], names: tuple[str, str]) -> Group:
    """By task, the items that gained and lost most from the second of `names` to the first."""
    parts: list[Text | Padding] = []
    for task, found in changes.items():
        for title, items, style in (("gained", found.gains, "green"), ("lost", found.losses, "red")):
            if items:
                parts += [Text(""), Text(f"{task}: what {title} most ({names[1]} → {names[0]})", style="bold")]
                parts += [Padding(_lines(item, style), (0, 0, 0, 2)) for item in items]
    return Group(*parts)


def _lines(item: Change, style: str) -> Text:
    text = Text(f"{100 * item.change:+.1f}  ", style=style)
    if isinstance(item, PairChange):
        text.append(
            f"off by {_places(item.other_error)} → {_places(item.model_error)}, cosine {item.other_cosine:.3f} → "
            f"{item.model_cosine:.3f}, gold score {item.score:g}",
            style="default",
        )
        return _with(text, *(_line(side) for side in item.texts))
    scores = f"{100 * item.other_score:.1f} → {100 * item.model_score:.1f}"
    if isinstance(item, TextChange):
        return _with(text.append(f"{scores}  label {item.label}", style="default"), _line(item.text))
    text.append(f"{scores}  query {item.id}", style="default")
    shown = [_line(item.query), *map(_document, item.relevant[:_DOCUMENTS])]
    if (left := len(item.relevant) - _DOCUMENTS) > 0:
        shown.append(Text(f"and {left} more relevant documents", style="dim"))
    return _with(text, *shown)


def _places(error: float) -> str:
    """A rank error, in percent of the pairs."""
    return f"{100 * error:+.1f} %" if error else "0"


def _document(document: RelevantDocument) -> Text:
    ranks = " → ".join(
        "not found" if rank is None else str(rank) for rank in (document.other_rank, document.model_rank)
    )
    return Text(f"rank {ranks}: ", style="dim").append_text(_line(document.text))


def _with(head: Text, *lines: Text) -> Text:
    for line in lines:
        head.append("\n    ", style="default").append_text(line)
    head.no_wrap, head.overflow = True, "ellipsis"
    return head


def _line(text: str) -> Text:
    """On one line, which the console cuts at its width."""
    return Text(" ".join(text.split()), style="default")
