"""What a run made, what it rejected and why, and what it cost: for people and for programs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from codiemb.curation.synthesis.asking import Outcome
from codiemb.curation.synthesis.plan import Corpus, Request
from codiemb.curation.synthesis.recipe import SynthesisRecipe
from codiemb.curation.synthesis.rows import Rejection, Row
from codiemb.curation.synthesis.scores import Calibration
from codiemb.curation.synthesis.tokens import Spent

_EXAMPLES = 3  # of each kind that was kept, and of each reason
_SHOWN = 120  # characters of an example


@dataclass
class RequestCounts:
    """Of one kind of request: how many, how many brought what was asked, and the answers that took."""

    requests: int = 0
    answered: int = 0
    answers: int = 0


@dataclass
class Tally:
    """Everything that is counted while requests are answered.

    Attributes:
        asked: answers that came in this run, not from the journal.
        estimated: answers for which the server gave no token counts.
    """

    requests: dict[str, RequestCounts] = field(default_factory=dict)
    spent: Spent = field(default_factory=Spent)
    asked: int = 0
    estimated: int = 0

    def add(self, request: Request, outcome: Outcome) -> None:
        """Count one request."""
        counts = self.requests.setdefault(request.kind, RequestCounts())
        counts.requests += 1
        counts.answered += outcome.answered.answer is not None
        counts.answers += outcome.answers
        self.spent = Spent(*(a + b for a, b in zip(self.spent, outcome.spent, strict=True)))
        self.asked += outcome.asked
        self.estimated += outcome.estimated


@dataclass(frozen=True)
class SynthesisReport:
    """The result of a run; `content` is what `report.json` holds, which a stopped run and an unstopped one have alike.

    Attributes:
        files: data file to its rows, empty ones left out.
        asked: answers that came in this run, not from the journal.
    """

    output: Path
    files: dict[Path, int]
    asked: int
    cost: float | None
    content: dict[str, Any] = field(repr=False)

    @property
    def rows(self) -> int:
        """Rows of all files."""
        return sum(self.files.values())


def report_content(
    recipe: SynthesisRecipe,
    corpus: Corpus,
    tally: Tally,
    tasks: Sequence[str],
    rows: Sequence[Row],
    rejections: Sequence[Rejection],
    calibration: Calibration | None,
    skipped: Sequence[str],
) -> dict[str, Any]:
    """What `report.json` holds."""
    kept = Counter(row.kind for row in rows)
    if tasks:
        kept["task"] = len(tasks)
    kept["hard negative"] = sum(len(row.negatives) for row in rows)
    kept["written positive"] = sum(len(row.positives) for row in rows)
    reasons: dict[str, Counter[str]] = {}
    for one in rejections:
        reasons.setdefault(one.kind, Counter())[one.gate] += 1
    kinds = {
        kind: {
            "kept": kept[kind],
            "rejected": sum(reasons.get(kind, Counter()).values()),
            "reasons": dict(sorted(reasons.get(kind, Counter()).items())),
        }
        for kind in sorted({*kept, *reasons})
        if kept[kind] or kind in reasons
    }
    return {
        "model": recipe.api.model,
        "language": recipe.language,
        "seed": recipe.seed,
        "documents": {
            "read": len(corpus.documents),
            "too_short": corpus.short,
            "written_for": len(corpus.chosen),
            "cut_in_prompts": sum(
                len(corpus.documents[number].text.strip()) > recipe.max_characters for number in corpus.chosen
            ),
        },
        "requests": {kind: vars(counts) for kind, counts in tally.requests.items()},
        "tokens": {**tally.spent._asdict(), "answers_without_counts": tally.estimated},
        "cost": tally.spent.cost(recipe.api),
        "tasks": list(tasks),
        "files": dict(Counter(row.file for row in rows)),
        "kinds": kinds,
        "gates": recipe.gates.model_dump(mode="json"),
        "gates_left_out": list(skipped),
        "calibration": calibration and calibration.to_dict(),
        "examples": {"kept": _kept_examples(rows), "rejected": _rejected_examples(rejections)},
    }


def markdown(content: Mapping[str, Any]) -> str:
    """`report.md`: the same for people."""
    return "\n".join(_markdown_lines(content)) + "\n"


def _markdown_lines(content: Mapping[str, Any]) -> Iterator[str]:
    documents, tokens = content["documents"], content["tokens"]
    yield f"# Synthetic data by {content['model']}\n"
    files = ", ".join(f"{count:,} in {name}.jsonl" for name, count in content["files"].items())
    yield f"Rows: {files or 'none'}.\n"
    yield (
        f"Documents: {documents['read']:,} read, {documents['too_short']:,} too short, "
        f"{documents['written_for']:,} written for, {documents['cut_in_prompts']:,} cut in prompts.\n"
    )
    cost = "" if content["cost"] is None else f"; cost {content['cost']:,.4f}"
    estimated = tokens["answers_without_counts"]
    note = f" ({estimated:,} answers came without token counts: estimated)" if estimated else ""
    yield f"Tokens: {tokens['input_tokens']:,} of prompts, {tokens['output_tokens']:,} of answers{note}{cost}.\n"
    yield "## Requests\n"
    yield from _table(
        ("kind", "requests", "with a usable answer", "answers paid for"),
        ((kind, *counts.values()) for kind, counts in content["requests"].items()),
    )
    yield "## Kept and rejected\n"
    yield from _table(
        ("kind", "kept", "rejected", "reasons"),
        (
            (kind, one["kept"], one["rejected"], ", ".join(f"{gate} {n:,}" for gate, n in one["reasons"].items()))
            for kind, one in content["kinds"].items()
        ),
    )
    if content["gates_left_out"]:
        yield "Gates left out: " + "; ".join(content["gates_left_out"]) + ".\n"
    if found := content["calibration"]:
        correlation = "" if found["spearman"] is None else f", Spearman with the cosines {found['spearman']:.2f}"
        yield "## Scores\n"
        yield f"{found['pairs']:,} pairs{correlation}: {found['verdict']}.\n"
        yield from _table(
            ("score", "pairs", "mean cosine", "deviation", "becomes"),
            (
                (score, one["pairs"], f"{one['mean']:.3f}", f"{one['deviation']:.3f}", found["scale"].get(score, score))
                for score, one in found["degrees"].items()
            ),
        )
    if content["tasks"]:
        yield "## Tasks\n"
        yield from (f"- {task}" for task in content["tasks"])
        yield ""
    yield "## Examples\n"
    for kind, examples in content["examples"]["kept"].items():
        yield from (f"- {kind}: {_inline(text)}" for text in examples)
    yield "\nRejected:\n"
    for kind, gates in content["examples"]["rejected"].items():
        for gate, examples in gates.items():
            yield from (f"- {kind}, {gate}: {_inline(one['text'])} ({_inline(one['detail'])})" for one in examples)


def _kept_examples(rows: Iterable[Row]) -> dict[str, list[str]]:
    examples: dict[str, list[str]] = {}
    for row in rows:
        if len(shown := examples.setdefault(row.kind, [])) < _EXAMPLES:
            before = "" if row.file == "ir" else f"{row.source} → "
            after = f" ({row.score:g})" if row.file == "sts" else ""
            shown.append(f"{before}{row.written}{after}")
    return examples


def _rejected_examples(rejections: Iterable[Rejection]) -> dict[str, dict[str, list[dict[str, str]]]]:
    examples: dict[str, dict[str, list[dict[str, str]]]] = {}
    for one in rejections:
        shown = examples.setdefault(one.kind, {}).setdefault(one.gate, [])
        if len(shown) < _EXAMPLES:
            shown.append({"text": str(one.content.get("text", ""))[:_SHOWN], "detail": one.detail[:_SHOWN]})
    return examples


def _table(headings: Sequence[str], rows: Iterable[Sequence[object]]) -> Iterator[str]:
    yield f"| {' | '.join(headings)} |"
    yield "| --- " * len(headings) + "|"
    for row in rows:
        yield "| " + " | ".join(f"{cell:,}" if isinstance(cell, int) else _inline(str(cell)) for cell in row) + " |"
    yield ""


def _inline(text: str) -> str:
    """A text on one line, that Markdown shows as it is written."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")
