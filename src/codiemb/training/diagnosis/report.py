"""A diagnosis for people: tables, heat maps and one page."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from rich.console import Group
from rich.table import Table
from rich.text import Text

from codiemb.evaluation import pages
from codiemb.evaluation.pages import Cell
from codiemb.extras import require
from codiemb.fusion.plot import draw_cells
from codiemb.json_files import write_json
from codiemb.training.diagnosis.conflict import MODEL, NETWORK, Diagnosis
from codiemb.training.diagnosis.verdict import bounds, verdict

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_PAIRS_BY_LAYER = 3  # that a terminal's table has room for
_READING = (
    "corrected: the cosine of the tasks' whole gradients, with the noise of single batches taken out; "
    "-1 opposite, 0 unrelated, 1 the same. In brackets: the middle 95 % of the resamples of batches."
)


def diagnosis_tables(diagnosis: Diagnosis) -> Group:
    """The verdict, the tasks, the pairs, and the layers where there are few pairs."""
    parts: list[Text | Table] = [Text(f"• {sentence}") for sentence in verdict(diagnosis)]
    for title, headings, rows in _tables(diagnosis):
        table = Table(title=Text(title), title_justify="left")
        for number, heading in enumerate(headings):
            table.add_column(Text(heading), justify="right" if number else "left", no_wrap=not number)
        for row in rows:
            if row[0] == diagnosis.layers[diagnosis.whole]:  # the first of the totals
                table.add_section()
            table.add_row(*map(Text, row))
        parts.append(table)
    parts.append(Text(_reading(diagnosis), style="dim"))
    return Group(*parts)


def write_report(directory: Path, diagnosis: Diagnosis, title: str) -> None:
    """Write diagnosis.json, diagnosis.html and the heat maps as PNG."""
    directory.mkdir(parents=True, exist_ok=True)
    write_json(directory / "diagnosis.json", {"verdict": verdict(diagnosis), **diagnosis.to_dict()})
    charts = heat_maps(diagnosis)
    for name, png in charts.items():
        (directory / f"diagnosis-{name}.png").write_bytes(png)
    (directory / "diagnosis.html").write_text(_page(diagnosis, title, charts), encoding="utf-8")


def heat_maps(diagnosis: Diagnosis) -> dict[str, bytes]:
    """PNG files: `layers`, and with three or more tasks or data sets `pairs`."""
    from codiemb.evaluation.plots import png

    charts = {"layers": png(layer_map(diagnosis))}
    if len(_single(diagnosis)) > 2:
        charts["pairs"] = png(pair_map(diagnosis))
    return charts


def layer_map(diagnosis: Diagnosis) -> Figure:
    """A row for each layer: corrected cosines of each pair, within-task cosines, and norms, a column each."""
    pairs, groups = [*diagnosis.single, *diagnosis.parts], _single(diagnosis)
    corrected = np.array([[_value(diagnosis, pair, layer) for pair in pairs] for layer in range(len(diagnosis.layers))])
    within = np.array([[diagnosis.groups[name][i].within.value for name in groups] for i in range(len(corrected))])
    norms = np.array([[diagnosis.groups[name][i].norm for name in groups] for i in range(len(corrected))])
    columns = len(pairs), len(groups), len(groups)
    figure = _figure(3.0 + 0.85 * sum(columns), 2.6 + 0.3 * len(corrected))
    panels = figure.subplots(1, 3, sharey=True, width_ratios=columns)
    draw_cells(panels[0], corrected, "corrected cosine\nbetween", "{:+.2f}", "RdBu", -1.0, 1.0)
    draw_cells(panels[1], within, "cosine of two\nbatches of one", "{:.2f}", "Greens", 0.0, 1.0)
    draw_cells(panels[2], norms, "norm of a\nbatch's gradient", "{:.2g}", "Purples", 0.0, norms.max() or 1.0)
    panels[0].set_yticks(range(len(corrected)), diagnosis.layers)
    for panel, names in zip(panels, ([f"{a} · {b}" for a, b in pairs], groups, groups), strict=True):
        panel.set_xticks(range(len(names)), names, rotation=30, ha="right")
    return figure


def pair_map(diagnosis: Diagnosis) -> Figure:
    """Corrected cosines of all tasks or data sets with each other, in the whole network."""
    groups = _single(diagnosis)
    values = np.eye(len(groups))
    for a, b in diagnosis.single:
        i, j = groups.index(a), groups.index(b)
        values[i, j] = values[j, i] = _value(diagnosis, (a, b), diagnosis.whole)
    figure = _figure(2.5 + 0.75 * len(groups), 2.0 + 0.55 * len(groups))
    panel = figure.subplots()
    title = f"corrected cosine, {diagnosis.layers[diagnosis.whole]}"
    draw_cells(panel, values, title, "{:+.2f}", "RdBu", -1.0, 1.0)
    panel.set_xticks(range(len(groups)), groups, rotation=30, ha="right")
    panel.set_yticks(range(len(groups)), groups)
    return figure


def _tables(diagnosis: Diagnosis) -> list[tuple[str, list[str], list[list[str]]]]:
    """Title, headings and rows of each table."""
    whole = diagnosis.whole
    where = diagnosis.layers[whole]
    groups = [
        [
            name,
            str(diagnosis.counts[name]),
            f"{diagnosis.losses[name]:.4f}",
            bounds(found[whole].within),
            f"{found[whole].norm:.3g}",
            f"{found[whole].signal:.3g}",
        ]
        for name, found in diagnosis.groups.items()
    ]
    pairs = [
        [f"{a} · {b}", bounds(found[whole].cosine), bounds(found[whole].corrected)]
        for (a, b), found in diagnosis.pairs.items()
    ]
    tables = [
        (
            f"Gradients of single batches, {where}",
            ["", "batches", "loss", "within", "norm", "norm of the mean"],
            groups,
        ),
        (f"Cosines between, {where}", ["", "of two batches", "corrected"], pairs),
    ]
    if len(diagnosis.single) <= _PAIRS_BY_LAYER:
        names = _single(diagnosis)
        headings = ["layer", *(f"{a} · {b}" for a, b in diagnosis.single)]
        headings += [f"within\n{name}" for name in names] + [f"norm\n{name}" for name in names]
        rows = [
            [
                layer,
                *(bounds(diagnosis.pairs[pair][i].corrected) for pair in diagnosis.single),
                *(f"{diagnosis.groups[name][i].within.value:+.2f}" for name in names),
                *(f"{diagnosis.groups[name][i].norm:.3g}" for name in names),
            ]
            for i, layer in enumerate(diagnosis.layers)
        ]
        tables.append(("Corrected cosines by layer", headings, rows))
    return tables


def _reading(diagnosis: Diagnosis) -> str:
    totals = f"{MODEL}: all layers."
    if NETWORK in diagnosis.layers:
        totals = f"{NETWORK}: all layers but the token table; {MODEL}: with it."
    length = diagnosis.settings["max_length"]
    return f"{_READING} {totals}" + (f" Texts were cut to {length} tokens." if length else "")


def _page(diagnosis: Diagnosis, title: str, charts: dict[str, bytes]) -> str:
    parts = [pages.heading("Verdict"), *(pages.paragraph(sentence) for sentence in verdict(diagnosis))]
    for heading, headings, rows in _tables(diagnosis):
        parts += [pages.heading(heading), pages.table(headings, [[Cell(text) for text in row] for row in rows])]
    parts.append(pages.note(_reading(diagnosis)))
    parts += [pages.image(png, f"heat map: {name}") for name, png in charts.items()]
    return pages.page(title, parts)


def _single(diagnosis: Diagnosis) -> list[str]:
    return list(dict.fromkeys(name for pair in diagnosis.single for name in pair))


def _value(diagnosis: Diagnosis, pair: tuple[str, str], layer: int) -> float:
    found = diagnosis.pairs[pair][layer].corrected
    return found.value if found else np.nan


def _figure(width: float, height: float) -> Figure:
    figure: Figure = require("matplotlib.figure", "plots").Figure(figsize=(width, height), layout="constrained")
    return figure
