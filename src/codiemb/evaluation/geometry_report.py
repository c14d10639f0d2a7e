"""The geometry of several models on several data sets, side by side: JSON, terminal tables, plots and one page."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

from rich.table import Table
from rich.text import Text

from codiemb.encoding import EmbeddingPass
from codiemb.evaluation import pages
from codiemb.evaluation.clouds import TextCloud, embed_cloud
from codiemb.evaluation.geometry import Geometry, GeometryError, measure
from codiemb.evaluation.pages import Cell
from codiemb.evaluation.report import short_names
from codiemb.prompts import InstructionTemplate


@dataclass(frozen=True)
class ModelGeometry:
    """One model on one data set; `settings` says how its texts were read."""

    model: str
    geometry: Geometry
    token_similarity: float | None
    settings: Mapping[str, Any]


@dataclass(frozen=True)
class DataGeometry:
    """All models on one data set, on the same texts and pairs; `counts` is what the data set has before sampling."""

    data: str
    counts: Mapping[str, int]
    models: Sequence[ModelGeometry]

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        models = [
            {
                "model": one.model,
                **one.geometry.to_dict(),
                "token_similarity": one.token_similarity,
                "settings": dict(one.settings),
            }
            for one in self.models
        ]
        return {"data": self.data, "counts": dict(self.counts), "models": models}


def measure_model(
    embedding_pass: EmbeddingPass,
    template: InstructionTemplate,
    cloud: TextCloud,
    model: str,
    *,
    seed: int = 0,
    on_progress: Callable[[int], None] | None = None,
) -> ModelGeometry:
    """Embed a data set's texts and measure their geometry.

    Args:
        model: its name in the report.
        seed: chooses the texts and pairs that token similarity and truncation are measured on.
        on_progress: called with the number of texts just embedded.
    Raises:
        GeometryError: see `geometry.measure`.
    """
    embedded = embed_cloud(embedding_pass, template, cloud, seed=seed, on_progress=on_progress)
    try:
        geometry = measure(embedded.embeddings, cloud.positives, cloud.random_pairs, seed=seed)
    except GeometryError as error:
        raise GeometryError(f"{model} on {cloud.name}: {error}") from None
    settings = {
        "template": template.to_dict(),
        "max_length": embedding_pass.max_length,
        "precision": str(embedding_pass.precision).removeprefix("torch."),
        "seed": seed,
    }
    return ModelGeometry(model, geometry, embedded.token_similarity, settings)


class _Line(NamedTuple):
    """A line of the tables: what is better, how to read it, and the cell of one model."""

    name: str
    better: str
    reading: str
    cell: Callable[[ModelGeometry], str]


_LINES = (
    _Line("alignment", "↓", "squared distance of positive pairs, 0 to 4", lambda m: f"{m.geometry.alignment:.4f}"),
    _Line("uniformity", "↓", "0: one point; -4: evenly over the sphere", lambda m: f"{m.geometry.uniformity:.4f}"),
    _Line("IsoScore", "↑", "0: variance in one direction; 1: in all alike", lambda m: f"{m.geometry.isoscore:.4f}"),
    _Line("effective rank", "↑", "exp of the SVD entropy", lambda m: f"{m.geometry.spectrum.effective_rank:.1f}"),
    _Line("SVD entropy", "↑", "of the singular values, in nats", lambda m: f"{m.geometry.spectrum.entropy:.4f}"),
    _Line("rank", "↑", "singular values above rounding", lambda m: f"{m.geometry.spectrum.rank} of {m.geometry.dim}"),
    _Line(
        "condition number", "↓", "largest of these / smallest", lambda m: f"{m.geometry.spectrum.condition_number:.4g}"
    ),
    _Line("token similarity", "↓", "mean cosine of the tokens in a text", lambda m: _number(m.token_similarity)),
    _Line("cosine, positive pairs", "", "mean", lambda m: f"{m.geometry.cosines.positive_mean:.4f}"),
    _Line("cosine, random pairs", "", "mean", lambda m: f"{m.geometry.cosines.random_mean:.4f}"),
    _Line("overlap of the two", "↓", "shared area of their histograms", lambda m: f"{m.geometry.cosines.overlap:.4f}"),
    _Line("AUC", "↑", "a positive pair is above a random one", lambda m: f"{m.geometry.cosines.auc:.4f}"),
    _Line("hubness", "↓", "skewness of 10-occurrence", lambda m: f"{m.geometry.hubness:.2f}"),
    _Line("norm", "", "mean ± deviation", lambda m: f"{m.geometry.norms.mean:.4g} ± {m.geometry.norms.std:.4f}"),
)


def geometry_table(data: DataGeometry) -> Table:
    """One line a measure, one column a model."""
    table = Table(title=Text(f"{data.data}: {about(data)}"), title_justify="left")
    table.caption = "↓ lower or ↑ higher is better, all else being equal"
    table.caption_justify = "left"
    table.add_column("measure")
    for name in _names(data):
        table.add_column(Text(name), justify="right", overflow="fold")
    for number, (line, cells) in enumerate(_rows(data)):
        if number == len(_LINES):
            table.add_section()
        table.add_row(*map(Text, (f"{line.name} {line.better}".strip(), *cells)))
    return table


def geometry_page(results: Sequence[DataGeometry]) -> str:
    """Tables and charts of all data sets on one self-contained HTML page."""
    parts = []
    for data in results:
        rows = [
            [Cell(f"{line.name} {line.better}".strip()), *map(Cell, cells), Cell(line.reading)]
            for line, cells in _rows(data)
        ]
        parts += [pages.heading(data.data), pages.note(about(data))]
        parts.append(pages.table(["measure", *_names(data), "how to read it"], rows))
        parts += [pages.image(png, f"{kind} of {data.data}") for kind, png in charts(data).items()]
    return pages.page("Embedding geometry", parts)


def charts(data: DataGeometry) -> dict[str, bytes]:
    """PNG files by kind of chart: cosines, spectrum, truncation."""
    from codiemb.evaluation import plots

    models = [(name, one.geometry) for name, one in zip(_names(data), data.models, strict=True)]
    return {
        "cosines": plots.png(plots.cosine_chart(models)),
        "spectrum": plots.png(plots.spectrum_chart(models)),
        "truncation": plots.png(plots.truncation_chart(models)),
    }


def file_name(data: str, kind: str) -> str:
    """Name of a chart's file: letters, digits, dots and dashes of the data set's name, and the kind."""
    plain = re.sub(r"[^\w.]+", "-", data).strip("-")
    return f"{plain or 'data'}-{kind}.png"


def about(data: DataGeometry) -> str:
    """How many texts and pairs were measured, of how many."""
    geometry = data.models[0].geometry
    shown = f"{geometry.texts:,} texts"
    if geometry.texts < data.counts["texts"]:
        shown += f" of {data.counts['texts']:,}"
    shown += f", {geometry.positive_pairs:,} positive pairs"
    if geometry.positive_pairs < data.counts["positive_pairs"]:
        shown += f" of {data.counts['positive_pairs']:,}"
    return f"{shown}, {geometry.random_pairs:,} random pairs"


def _names(data: DataGeometry) -> list[str]:
    return short_names([one.model for one in data.models])


def _rows(data: DataGeometry) -> list[tuple[_Line, list[str]]]:
    """Every line of a table with its cells, the widths of truncation last."""
    lines = list(_LINES)
    for dim in sorted({point.dim for one in data.models for point in one.geometry.truncation}):
        lines.append(
            _Line(f"kept by {dim} dims", "↑", "order of cosines (Spearman) / nearest neighbours", partial(_kept, dim))
        )
    return [(line, [line.cell(one) for one in data.models]) for line in lines]


def _kept(dim: int, one: ModelGeometry) -> str:
    found = next((point for point in one.geometry.truncation if point.dim == dim), None)
    return f"{found.spearman:.3f} / {found.neighbours:.3f}" if found else ""


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"
