"""Charts of leaderboards and of embedding geometry, as matplotlib figures; they need the extra `plots`."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from codiemb.evaluation.leaderboard_tables import MISSING, heading
from codiemb.extras import require

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from codiemb.evaluation.geometry import Geometry
    from codiemb.evaluation.leaderboard import Leaderboard

_COLOURS = ("#0b5cad", "#d1495b", "#2e8b57", "#8e5ea2", "#e08e0b", "#17a2b8")
_PUBLISHED = "#b8bec6"
_POSITIVE, _RANDOM = "#0b5cad", "#e08e0b"
_DPI = 110


def png(figure: Figure) -> bytes:
    """The figure as a PNG file."""
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=_DPI)
    return stream.getvalue()


# -- leaderboards ----------------------------------------------------------------------------------------------------


def bar_chart(board: Leaderboard) -> Figure:
    """A panel for each column, a bar for each model, one's own in colour; incomplete means are hatched."""
    columns, rows = board.columns, list(board.rows)
    across = min(4, len(columns))
    down = -(-len(columns) // across)
    figure = _figure(3.0 * across + 1.5, down * (0.28 * len(rows) + 0.9))
    panels = figure.subplots(down, across, squeeze=False, sharey=True).ravel()
    colours = _row_colours(board)
    for panel, column in zip(panels, columns, strict=False):
        means = [row.means[column] for row in rows]
        best = board.best(column)
        values = [mean.value for mean in means if mean.value is not None]
        # The differences that matter are small, so the axis starts below the lowest bar; its labels show it.
        low = max(0.0, 5 * np.floor(min(values, default=0.0) / 5) - 5)
        high = max(values, default=1.0)
        for place, (mean, colour) in enumerate(zip(means, colours, strict=True)):
            if mean.value is None:
                panel.text(low, place, f" {MISSING}", va="center", fontsize=8)
                continue
            panel.barh(
                place,
                mean.value - low,
                left=low,
                color=colour,
                hatch=None if mean.complete else "////",
                height=0.72,
                edgecolor="white",
                linewidth=0,
            )
            shown = f" {mean.value:.1f}" if mean.complete else f" {mean.value:.1f} ({mean.n}/{mean.of})"
            bold = best is not None and mean.complete and round(mean.value, 2) >= best
            panel.text(mean.value, place, shown, va="center", fontsize=8, fontweight="bold" if bold else "normal")
        panel.set_title(heading(column), fontsize=10)
        panel.set_xlim(low, high + 0.35 * (high - low))
        panel.set_yticks(range(len(rows)), [_label(row.model) for row in rows], fontsize=8)
        panel.tick_params(axis="x", labelsize=7)
        panel.spines[["top", "right"]].set_visible(False)
    if any(not row.means[column].complete for row in rows for column in columns):
        figure.supxlabel("hatched: over a part of the tasks, (n/m)", fontsize=8)
    panels[0].invert_yaxis()
    for panel in panels[len(columns) :]:
        panel.set_visible(False)
    return figure


def radar_chart(board: Leaderboard) -> Figure:
    """The types as axes, a line for each model, one's own in colour; a line is broken at an incomplete type.

    Raises:
        ValueError: fewer than three types, which make no area.
    """
    types = board.types
    if len(types) < 3:
        raise ValueError(f"A radar chart needs three types of tasks, and there are {len(types)}. Draw bars.")
    figure = _figure(8.5, 6.0)
    panel: Any = figure.add_subplot(projection="polar")
    angles = np.linspace(0, 2 * np.pi, len(types), endpoint=False)
    lowest = 100.0
    unnamed = "published models"  # grey, and one entry of the legend
    for row, colour in zip(board.rows, _row_colours(board), strict=True):
        means = [row.means[name] for name in types]
        values = [mean.value if mean.complete and mean.value is not None else np.nan for mean in means]
        lowest = min([lowest, *(value for value in values if not np.isnan(value))])
        panel.plot(
            [*angles, angles[0]],
            [*values, values[0]],
            color=colour,
            label=unnamed if row.published else _label(row.model),
            linewidth=1.0 if row.published else 2.0,
            marker="o",
            markersize=2.5 if row.published else 4,
            zorder=1 if row.published else 2,
        )
        if row.published:
            unnamed = "_"  # no further entry
    panel.set_xticks(angles, [heading(name) for name in types], fontsize=9)
    panel.set_theta_offset(np.pi / 2)
    panel.set_theta_direction(-1)
    panel.set_ylim(max(0.0, 10 * np.floor(lowest / 10) - 10), None)
    panel.tick_params(axis="y", labelsize=7)
    panel.tick_params(axis="x", pad=22)
    figure.legend(loc="outside right center", fontsize=8, frameon=False)
    return figure


def _row_colours(board: Leaderboard) -> list[Any]:
    own = iter(range(len(board.rows)))
    return [_PUBLISHED if row.published else _COLOURS[next(own) % len(_COLOURS)] for row in board.rows]


# -- geometry --------------------------------------------------------------------------------------------------------


def cosine_chart(models: Sequence[tuple[str, Geometry]]) -> Figure:
    """Histograms of the cosines of positive and of random pairs, a panel for each model."""
    figure = _figure(7.5, 2.1 * len(models) + 0.4)
    panels = figure.subplots(len(models), 1, squeeze=False, sharex=True).ravel()
    lowest = 1.0
    for panel, (name, geometry) in zip(panels, models, strict=True):
        cosines = geometry.cosines
        histograms = {"random pairs": cosines.random_histogram, "positive pairs": cosines.positive_histogram}
        edges = np.linspace(-1, 1, len(cosines.random_histogram) + 1)
        for (label, shares), colour in zip(histograms.items(), (_RANDOM, _POSITIVE), strict=True):
            panel.stairs(shares, edges, fill=True, color=colour, alpha=0.55, label=label)
            lowest = min(lowest, edges[np.flatnonzero(shares)[0]])
        panel.set_title(f"{_label(name)}: overlap {cosines.overlap:.3f}", fontsize=10)
        panel.set_ylabel("share of pairs", fontsize=8)
        _plain(panel)
    panels[0].legend(fontsize=8, frameon=False, loc="upper left")
    panels[-1].set_xlim(max(-1.0, lowest - 0.05), 1.0)
    panels[-1].set_xlabel("cosine", fontsize=9)
    return figure


def spectrum_chart(models: Sequence[tuple[str, Geometry]]) -> Figure:
    """Singular values of the embeddings as shares of their sum, largest first."""
    figure = _figure(7.5, 3.6)
    panel = figure.subplots()
    for (name, geometry), colour in zip(models, _cycle(len(models)), strict=True):
        spectrum = geometry.spectrum
        label = f"{_label(name)}: effective rank {spectrum.effective_rank:.0f} of {geometry.dim}"
        values = np.array(spectrum.values[: spectrum.rank])
        panel.plot(np.arange(1, len(values) + 1), values, color=colour, label=label)
    panel.set_xscale("log")
    panel.set_yscale("log")
    panel.set_xlabel("singular value", fontsize=9)
    panel.set_ylabel("share of the sum", fontsize=9)
    panel.legend(fontsize=8, frameon=False)
    _plain(panel)
    return figure


def truncation_chart(models: Sequence[tuple[str, Geometry]]) -> Figure:
    """What the first dimensions keep: the order of cosines, and the nearest neighbours."""
    figure = _figure(7.5, 3.4)
    panels = figure.subplots(1, 2, sharex=True)
    dims = sorted({point.dim for _, geometry in models for point in geometry.truncation})
    for (name, geometry), colour in zip(models, _cycle(len(models)), strict=True):
        points = geometry.truncation
        for panel, kept in zip(panels, ("spearman", "neighbours"), strict=True):
            values = [getattr(point, kept) for point in points]
            panel.plot(
                [point.dim for point in points], values, color=colour, marker="o", markersize=4, label=_label(name)
            )
    for panel, title in zip(
        panels, ("cosines: Spearman with all dimensions", "10 nearest neighbours kept"), strict=True
    ):
        panel.set_title(title, fontsize=10)
        panel.set_xscale("log", base=2)
        panel.set_xticks(dims, [str(dim) for dim in dims], fontsize=8)
        panel.minorticks_off()
        panel.set_xlabel("dimensions", fontsize=9)
        _plain(panel)
    panels[0].legend(fontsize=8, frameon=False, loc="lower right")
    return figure


# -- common ----------------------------------------------------------------------------------------------------------


def _figure(width: float, height: float) -> Figure:
    figure: Figure = require("matplotlib.figure", "plots").Figure(figsize=(width, height), layout="constrained")
    return figure


def _plain(panel: Axes) -> None:
    panel.spines[["top", "right"]].set_visible(False)
    panel.tick_params(labelsize=8)
    panel.grid(alpha=0.25, linewidth=0.6)


def _cycle(count: int) -> Sequence[str]:
    return [_COLOURS[number % len(_COLOURS)] for number in range(count)]


def _label(text: str) -> str:
    """`text` as matplotlib draws it: `$` is no formula, and what the font lacks is escaped, not drawn as a box."""
    fonts = require("matplotlib.font_manager", "plots")
    font = fonts.get_font(fonts.findfont(fonts.FontProperties()))
    if not all(font.get_char_index(ord(character)) for character in text):
        text = text.encode("ascii", "backslashreplace").decode()
    return text.replace("$", r"\$")
