"""What mining did: counts, scores and examples, as JSON, as a page and as a plot, and each negative's provenance."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from codiemb.curation.mining.options import MiningOptions
from codiemb.curation.mining.page import page
from codiemb.curation.mining.pool import TextPool
from codiemb.curation.mining.queries import Queries
from codiemb.curation.mining.selection import REASONS
from codiemb.data.writers import replacing
from codiemb.evaluation.plots import png
from codiemb.extras import require
from codiemb.json_files import write_json

PROVENANCE_FILE, REPORT_FILE, PAGE_FILE, PLOT_FILE = "provenance.jsonl", "report.json", "report.md", "scores.png"

_QUANTILES = (0, 5, 25, 50, 75, 95, 100)
_EXAMPLES = 8
_POSITIVE, _NEGATIVE = "#0b5cad", "#e08e0b"


@dataclass(frozen=True)
class Scores:
    """Of one kind of text or difference: how many, their mean, and percentiles 0, 5, 25, 50, 75, 95 and 100."""

    count: int
    mean: float
    percentiles: dict[str, float]


@dataclass(frozen=True)
class Report:
    """What `report.json` says.

    Attributes:
        about: settings, and what was read.
        negatives: that were found; `per_row` says how many rows have how many.
        short_rows: rows with fewer negatives than were asked for.
        short_reasons: as `rejected`, of those rows only: what to loosen.
        weak_rows: rows with a positive that scores no higher than `chance`, where that is measured.
        relabelled: candidates that became positives.
        looked_at: candidates that were looked at until a row had enough; each was taken, relabelled or rejected.
        rejected: candidates by reason. A known positive, the query itself and ranks before the window are counted for
            each miner that found them, before anything is looked at.
        found_by: negatives that each miner found, alone or with others.
        scores: the judge's, of `positives`, `negatives`, and `gap`: the row's lowest positive less each negative.
        above_positive: negatives whose score is above the row's lowest positive.
        examples: rows with the texts that were found, over the whole data.
        rejections: for each reason that looks at a text or its score, the first candidate.
    """

    about: dict[str, Any]
    negatives: int
    per_row: dict[str, int]
    short_rows: int
    short_reasons: dict[str, int]
    weak_rows: int
    relabelled: int
    looked_at: int
    rejected: dict[str, int]
    found_by: dict[str, int]
    scores: dict[str, Scores]
    above_positive: int
    examples: list[dict[str, Any]]
    rejections: list[dict[str, Any]]

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return asdict(self)


def write_report(
    directory: Path,
    records: Callable[[], Iterable[dict[str, Any]]],
    about: dict[str, Any],
    pool: TextPool,
    queries: Queries,
    options: MiningOptions,
) -> Report:
    """Write the provenance, the report, its page and the plot into `directory`.

    Args:
        records: of the mined rows, in order; read twice.
    """
    directory.mkdir(parents=True, exist_ok=True)
    tally = _Tally(queries.mined_rows, options.negatives)
    with replacing(directory / PROVENANCE_FILE) as partial, partial.open("wb") as file:
        for record in tally.counted(records()):
            file.write(orjson.dumps({**record, "query": queries.texts[record["query"]]}) + b"\n")
    report = tally.report(about, _Shown(pool, queries))
    write_json(directory / REPORT_FILE, report.to_dict())
    _write(directory / PAGE_FILE, page(report.to_dict(), PLOT_FILE).encode())
    _write(directory / PLOT_FILE, tally.plot(about["judge"]["kind"], about["chance"]))
    return report


def _write(path: Path, content: bytes) -> None:
    with replacing(path) as partial:
        partial.write_bytes(content)


class _Tally:
    """Counts records as they pass; memory grows by 20 bytes for each negative."""

    def __init__(self, rows: int, wanted: int) -> None:
        self._every = max(1, rows // _EXAMPLES)
        self._wanted = wanted
        self._positives, self._negatives, self._gaps = array("d"), array("d"), array("d")
        self._lowest = array("d")  # positive of each row
        self._per_row: Counter[int] = Counter()
        self._rejected: Counter[str] = Counter()
        self._short_reasons: Counter[str] = Counter()
        self._found_by: Counter[str] = Counter()
        self._relabelled = self._looked_at = 0
        self._examples: list[dict[str, Any]] = []
        self._rejections: dict[str, dict[str, Any]] = {}

    def counted(self, records: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        for place, record in enumerate(records):
            positives = [positive["score"] for positive in record["positives"]]
            self._positives.extend(positives)
            self._lowest.append(min(positives))
            for negative in record["negatives"]:
                self._negatives.append(negative["score"])
                self._gaps.append(min(positives) - negative["score"])
                self._found_by.update(negative["found_by"].keys())
            self._per_row[len(record["negatives"])] += 1
            self._relabelled += len(record["relabelled"])
            self._looked_at += record["looked_at"]
            for reason, found in record["rejected"].items():
                self._rejected[reason] += found["count"]
                if len(record["negatives"]) < self._wanted:
                    self._short_reasons[reason] += found["count"]
                if found["first"]["score"] is not None:  # not looked at: what is known needs no example
                    self._rejections.setdefault(reason, record)
            if place % self._every == 0 and len(self._examples) < _EXAMPLES:
                self._examples.append(record)
            yield record

    def report(self, about: dict[str, Any], shown: _Shown) -> Report:
        scores = {"positives": self._positives, "negatives": self._negatives, "gap": self._gaps}
        return Report(
            about=about,
            negatives=len(self._negatives),
            per_row={str(count): rows for count, rows in sorted(self._per_row.items())},
            short_rows=sum(rows for count, rows in self._per_row.items() if count < self._wanted),
            short_reasons=_by_reason(self._short_reasons),
            weak_rows=int((np.frombuffer(self._lowest) <= about["chance"]).sum()) if about["chance"] else 0,
            relabelled=self._relabelled,
            looked_at=self._looked_at,
            rejected=_by_reason(self._rejected),
            found_by=dict(self._found_by.most_common()),
            scores={name: _summary(values) for name, values in scores.items() if values},
            above_positive=int((np.frombuffer(self._gaps) < 0).sum()) if self._gaps else 0,
            examples=[shown.example(record) for record in self._examples],
            rejections=[
                shown.rejection(reason, self._rejections[reason]) for reason in REASONS if reason in self._rejections
            ],
        )

    def plot(self, kind: str, chance: float) -> bytes:
        """Histograms of the scores as a PNG file."""
        figure = require("matplotlib.figure", "curation").Figure(figsize=(7.5, 3.4), layout="constrained")
        panel = figure.subplots()
        # Rounded, since numpy makes no bins of scores that differ by less than a double holds.
        positives, negatives = (np.frombuffer(values).round(6) for values in (self._positives, self._negatives))
        edges = np.histogram_bin_edges(np.concatenate([positives, negatives]), bins=80)
        for label, values, colour in (("positives", positives, _POSITIVE), ("negatives", negatives, _NEGATIVE)):
            if len(values):
                shares = np.histogram(values, edges)[0] / len(values)
                panel.stairs(shares, edges, fill=True, color=colour, alpha=0.55, label=f"{label} ({len(values):,})")
        if chance and edges[0] <= chance <= edges[-1]:
            panel.axvline(chance, color="#888", linewidth=1, linestyle="--", label="mean of random pairs")
        panel.set_xlabel(f"score ({kind})", fontsize=9)
        panel.set_ylabel("share of texts", fontsize=9)
        panel.spines[["top", "right"]].set_visible(False)
        panel.tick_params(labelsize=8)
        panel.grid(alpha=0.25, linewidth=0.6)
        panel.legend(fontsize=8, frameon=False)
        return png(figure)


class _Shown:
    """Records with their texts."""

    def __init__(self, pool: TextPool, queries: Queries) -> None:
        self._pool = pool
        self._queries = queries

    def example(self, record: Mapping[str, Any]) -> dict[str, Any]:
        sides: dict[str, Sequence[Mapping[str, Any]]] = {
            side: record[side] for side in ("positives", "negatives", "relabelled")
        }
        texts = {side: [self._with_text(found) for found in members] for side, members in sides.items()}
        return {"row": record["row"], "query": self._queries.texts[record["query"]], **texts}

    def rejection(self, reason: str, record: Mapping[str, Any]) -> dict[str, Any]:
        positive = min(record["positives"], key=lambda positive: float(positive["score"]))
        return {
            "reason": reason,
            "row": record["row"],
            "query": self._queries.texts[record["query"]],
            "positive": self._with_text(positive),
            "candidate": self._with_text(record["rejected"][reason]["first"]),
        }

    def _with_text(self, found: Mapping[str, Any]) -> dict[str, Any]:
        return {**found, "text": self._pool.text(found["document"]).full}


def _by_reason(counts: Counter[str]) -> dict[str, int]:
    return {reason: counts[reason] for reason in REASONS if counts[reason]}


def _summary(values: array[float]) -> Scores:
    numbers = np.frombuffer(values)
    percentiles = np.percentile(numbers, _QUANTILES)
    return Scores(
        len(numbers), float(numbers.mean()), {str(q): float(v) for q, v in zip(_QUANTILES, percentiles, strict=True)}
    )
