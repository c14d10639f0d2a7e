"""Deltas of fine-tuned models as a heat map; needs the extra `plots`."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from codiemb.extras import require
from codiemb.fusion.deltas import LayerDelta

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def delta_heat_map(layers: Sequence[LayerDelta], checkpoints: Sequence[str]) -> Figure:
    """A row for each layer: how far each checkpoint moved it, and the cosine between each two changes.

    Args:
        checkpoints: their names, for the legend.
    """
    pairs = list(combinations(range(len(checkpoints)), 2))
    numbers = range(1, len(checkpoints) + 1)
    legend = "\n".join(f"{k}: {name}" for k, name in zip(numbers, checkpoints, strict=True))
    size = 4.2 + 0.7 * (len(checkpoints) + len(pairs)), 1.5 + 0.3 * len(layers) + 0.2 * len(checkpoints)
    figure: Figure = require("matplotlib.figure", "plots").Figure(figsize=size, layout="constrained")
    panels = figure.subplots(
        1,
        2 if pairs else 1,
        squeeze=False,
        sharey=True,
        width_ratios=[len(checkpoints), *([len(pairs)] if pairs else [])],
    )[0]
    moved = 100 * np.array([layer.relative_norms for layer in layers], dtype=float)  # None becomes nan
    most = np.nanmax(moved, initial=0.0) or 1.0
    title = "Change in % of the base's norm"
    draw_cells(panels[0], moved, title, "{:.2f}", "Blues", 0.0, most, missing="base 0")
    panels[0].set_xticks(range(len(checkpoints)), [str(k) for k in numbers])
    panels[0].set_yticks(range(len(layers)), [layer.name for layer in layers])
    if pairs:
        cosines = np.array([[layer.cosines[j][k] for j, k in pairs] for layer in layers])
        draw_cells(panels[1], cosines, "Cosine between changes", "{:+.2f}", "RdBu", -1.0, 1.0)
        panels[1].set_xticks(range(len(pairs)), [f"{j + 1}, {k + 1}" for j, k in pairs])
    figure.supxlabel(legend, fontsize=8, x=0.02, ha="left")
    return figure


def save_heat_map(path: Path, layers: Sequence[LayerDelta], checkpoints: Sequence[str]) -> None:
    """Write `delta_heat_map` in the format of the file's suffix: .png, .svg or .pdf."""
    path.parent.mkdir(parents=True, exist_ok=True)
    delta_heat_map(layers, checkpoints).savefig(path, dpi=110)


def draw_cells(
    axes: Axes, values: np.ndarray, title: str, style: str, colours: str, low: float, high: float, missing: str = ""
) -> None:
    """A cell for each value (rows, columns), with its number in it; where there is none, grey with `missing` in it."""
    axes.imshow(values, cmap=colours, vmin=low, vmax=high, aspect="auto")
    axes.set_facecolor("#dddddd")
    axes.set_title(title, fontsize=9)
    axes.tick_params(length=0, labelsize=8)
    for (row, column), value in np.ndenumerate(values):
        strong = abs(value) > 0.6 * max(abs(low), abs(high))
        shown = missing if np.isnan(value) else style.format(value)
        axes.text(column, row, shown, ha="center", va="center", fontsize=7, color="white" if strong else "black")
