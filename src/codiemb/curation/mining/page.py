"""The report for people, as Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from codiemb.curation.mining.selection import (
    ABOVE_MAX,
    BELOW_MIN,
    MARGIN,
    NEAR_NEGATIVE,
    NEAR_POSITIVE,
    SHARE,
    WINDOW,
)

#: What lets more candidates pass, by the reason that kept them out.
_LOOSEN = {
    WINDOW: "lower --skip",
    ABOVE_MAX: "raise --max-score",
    BELOW_MIN: "lower --min-score",
    MARGIN: "lower --margin",
    SHARE: "raise --share, or --no-share",
    NEAR_POSITIVE: "raise --near-duplicate",
    NEAR_NEGATIVE: "raise --near-duplicate",
}

_LONGEST = 160  # characters of a text that are shown
_SHOWN_NEGATIVES = 4


def page(report: Mapping[str, Any], plot: str) -> str:
    """The page, with a link to the plot beside it."""
    return "\n".join(_lines(report, plot)) + "\n"


def shortfall(report: Mapping[str, Any]) -> Iterator[str]:
    """How many rows got too few negatives, and what to loosen; nothing if none did."""
    about = report["about"]
    if report["short_rows"]:
        yield (
            f"{report['short_rows']:,} of {about['mined_rows']:,} rows got fewer negatives than the "
            f"{about['options']['negatives']} that were asked for, {report['per_row'].get('0', 0):,} of them none. "
            "Deeper ranks (--depth), another --miner or a larger corpus may hold more."
        )
        kept_out = sorted(((report["short_reasons"].get(reason, 0), reason) for reason in _LOOSEN), reverse=True)
        if shown := [f"{count:,} {reason} ({_LOOSEN[reason]})" for count, reason in kept_out if count]:
            yield f"Their candidates that were kept out: {'; '.join(shown)}."
    if report["weak_rows"]:
        yield (
            f"{report['weak_rows']:,} rows have a positive that scores no higher than random pairs: either their "
            "labels are wrong, or the model is, and its filters say little about them (--no-share, --cross-encoder)."
        )


def _lines(report: Mapping[str, Any], plot: str) -> Iterator[str]:
    about = report["about"]
    yield "# Mined negatives"
    yield ""
    yield (
        f"{report['negatives']:,} negatives for {about['mined_rows']:,} rows ({about['queries']:,} queries), out of "
        f"{about['documents']:,} documents."
    )
    yield from (f"\n{line}" for line in shortfall(report))
    if about["duplicate_documents"] or about["unusable_documents"]:
        yield (
            f"\nOf the documents {about['duplicate_documents']:,} were left out as duplicates and "
            f"{about['unusable_documents']:,} as blank or with control characters."
        )
    if report["relabelled"]:
        yield f"\n{report['relabelled']:,} candidates became positives."
    yield ""
    yield from _table(("negatives of a row", "rows"), report["per_row"].items())
    if len(report["found_by"]) > 1:
        yield from _table(("miner", "negatives it found"), report["found_by"].items())
    yield "## Scores"
    yield ""
    yield f"![scores of positives and negatives]({plot})"
    yield ""
    judge = "cosines" if about["judge"]["kind"] == "cosine" else "the cross-encoder's"
    yield f"Scores are {judge}. The gap is a row's lowest positive less a negative;"
    yield f"{report['above_positive']:,} negatives are above their positive."
    if about["chance"]:
        yield f"Random pairs have {about['chance']:.3f} in the mean."
    yield ""
    percentiles = list(next(iter(report["scores"].values()))["percentiles"])
    yield from _table(
        ("", "texts", "mean", *(f"{percentile} %" for percentile in percentiles)),
        (
            (name, scores["count"], f"{scores['mean']:.3f}", *(f"{v:.3f}" for v in scores["percentiles"].values()))
            for name, scores in report["scores"].items()
        ),
    )
    yield "## Rejected candidates"
    yield ""
    yield f"{report['looked_at']:,} candidates were looked at; a row's are looked at until it has enough."
    yield ""
    yield from _table(("reason", "candidates"), report["rejected"].items())
    for example in report["rejections"]:
        yield f"**{example['reason']}** (row {example['row']})"
        yield ""
        yield f"- query: {_short(example['query'])}"
        yield f"- positive{_score(example['positive'])}: {_short(example['positive']['text'])}"
        yield f"- rejected{_score(example['candidate'])}: {_short(example['candidate']['text'])}"
        yield ""
    yield "## Examples"
    for example in report["examples"]:
        yield ""
        yield f"**{_short(example['query'])}** (row {example['row']})"
        yield ""
        for positive in example["positives"]:
            yield f"- positive{_score(positive)}: {_short(positive['text'])}"
        for gained in example["relabelled"]:
            yield f"- now a positive{_score(gained)}: {_short(gained['text'])}"
        for negative in example["negatives"][:_SHOWN_NEGATIVES]:
            places = ", ".join(f"{name} {place['rank']}" for name, place in negative["found_by"].items())
            yield f"- negative{_score(negative)}, rank {places}: {_short(negative['text'])}"
        if more := len(example["negatives"]) - _SHOWN_NEGATIVES:
            yield f"- and {more} more" if more > 0 else ""


def _table(heading: Sequence[str], rows: Any) -> Iterator[str]:
    yield f"| {' | '.join(heading)} |"
    yield f"|{'---|' * len(heading)}"
    for row in rows:
        yield f"| {' | '.join(f'{cell:,}' if isinstance(cell, int) else str(cell) for cell in row)} |"
    yield ""


def _score(found: Mapping[str, Any]) -> str:
    return "" if found["score"] is None else f" ({found['score']:.3f})"


def _short(text: str) -> str:
    """On one line, cut, and without what Markdown would read."""
    text = " ".join(text.split())
    text = text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"
    return "".join(f"\\{character}" if character in "\\`*_[]<>#|" else character for character in text)
