"""Rows without the texts that a model is to be measured with."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from codiemb.curation.cleaning.leaks import Leak, LeakFinder
from codiemb.curation.cleaning.outputs import Outputs, RejectedFile
from codiemb.curation.cleaning.report import CleaningReport
from codiemb.curation.cleaning.rows import Row, RowStream
from codiemb.data.examples import Text

Drop = Literal["row", "text", "any"]
DROPS: tuple[Drop, ...] = get_args(Drop)

_BATCH_TEXTS = 4096
_BATCH_CHARACTERS = 400_000


class FieldLeak(NamedTuple):
    """A leak in one field of a row: `query`, or `positives` or `negatives` with a place."""

    side: str
    place: int
    text: Text
    leak: Leak

    @property
    def field(self) -> str:
        """As errors name it."""
        return "query" if self.side == "query" else f"{self.side}[{self.place}]"


def decontaminate(stream: RowStream, output: Path, finder: LeakFinder, *, drop: Drop = "row") -> CleaningReport:
    """Write the rows without evaluation texts; what is left out goes beside them with every match.

    Args:
        stream: the training rows.
        output: a file, or a directory with a file for each input.
        drop: "row": a leak in the query or a positive takes the row, one in a negative only the negative; "text": a
            leak in a positive takes only that where there are others; "any": every leak takes the row.
    Raises:
        DataError: bad rows that are not skipped, or an output that is an input.
    """
    outputs = Outputs(output, stream.files)
    kinds: Counter[str] = Counter()
    sets: Counter[str] = Counter()
    leaking = changed = 0
    with outputs, RejectedFile(outputs.rejected, stream) as rejected:
        for row, leaks in find_leaks(stream, finder):
            if not leaks:
                outputs.write(row)
                continue
            leaking += 1
            kinds.update(one.leak.kind for one in leaks)
            sets.update(f"{one.leak.evaluation.source} ({one.leak.evaluation.side})" for one in leaks)
            left = _without(row, leaks, drop)
            reason = _reason(leaks) + ("" if left is None else ", candidates only")
            dropped = "row" if left is None else sorted({one.field for one in leaks})
            rejected.add(row, reason, dropped=dropped, matches=[_record(one) for one in leaks])
            if left is not None:
                outputs.write(left)
                changed += 1
        rejected.add_bad_rows()
    details = {
        "evaluation_texts": len(finder.texts),
        "rows_with_matches": leaking,
        "matches_by_kind": dict(kinds),
        "matches_by_set": dict(sets.most_common()),
    }
    counts = dict(rejected.counts)
    read = stream.rows + len(stream.rejected)
    return CleaningReport(read, outputs.rows, counts, outputs.rejected if counts else None, changed, details)


def find_leaks(rows: Iterable[Row], finder: LeakFinder) -> Iterator[tuple[Row, list[FieldLeak]]]:
    """All rows, each with its leaks: of every text the closest one of each evaluation set and side.

    A text that has a prefix is looked up with and without it.
    """
    for batch in _batches(rows):
        fields = [_fields(row) for row in batch]
        places: dict[str, int] = {}
        for row_fields in fields:
            for _, _, text in row_fields:
                for spelling in {text.full, text.text}:
                    places.setdefault(spelling, len(places))
        found = finder.find(list(places))
        for row, row_fields in zip(batch, fields, strict=True):
            leaks = []
            for side, index, text in row_fields:
                closest = {(one.evaluation.source, one.evaluation.side): one for one in found[places[text.full]]}
                for one in found[places[text.text]] if text.prefix else ():
                    closest.setdefault((one.evaluation.source, one.evaluation.side), one)
                leaks += [FieldLeak(side, index, text, one) for one in closest.values()]
            yield row, leaks


def _batches(rows: Iterable[Row]) -> Iterator[list[Row]]:
    batch: list[Row] = []
    texts = characters = 0
    for row in rows:
        batch.append(row)
        lengths = [len(text.full) for _, _, text in _fields(row)]
        texts += len(lengths)
        characters += sum(lengths)
        if texts >= _BATCH_TEXTS or characters >= _BATCH_CHARACTERS:
            yield batch
            batch, texts, characters = [], 0, 0
    if batch:
        yield batch


def _fields(row: Row) -> list[tuple[str, int, Text]]:
    return [("query", 0, row.example.query), *row.candidates()]


def _without(row: Row, leaks: list[FieldLeak], drop: Drop) -> Row | None:
    taking = {"row": {"query", "positives"}, "text": {"query"}, "any": {"query", "positives", "negatives"}}[drop]
    if any(one.side in taking for one in leaks):
        return None
    return row.without({(one.side, one.place) for one in leaks})


def _reason(leaks: list[FieldLeak]) -> str:
    """Of the closest leak in the most important field."""
    order = ("exact", "normalised", "characters", "near", "contained")
    sides = ("query", "positives", "negatives")
    first = min(leaks, key=lambda one: (sides.index(one.side), order.index(one.leak.kind)))
    return f"{first.side}: {first.leak.kind} match of an evaluation {first.leak.evaluation.side}"


def _record(one: FieldLeak) -> dict[str, Any]:
    evaluation, kind, similarity = one.leak
    return {
        "field": one.field,
        "text": one.text.full,
        "kind": kind,
        "similarity": round(similarity, 4),
        "evaluation": {"set": evaluation.source, "side": evaluation.side, "id": evaluation.id, "text": evaluation.text},
    }
