"""The data card of a training set: README.md as the hub reads it."""

from __future__ import annotations

import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from codiemb.data.readers import read
from codiemb.data.stats import characters, describe

_SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))
_LONGEST = 512  # characters


def describe_split(path: Path) -> dict[str, Any]:
    """Rows and, for each task, candidates, lengths in characters, scores and duplicates."""
    with tempfile.TemporaryDirectory(prefix="codiemb-") as cache:
        found = read(path, cache_dir=Path(cache))
        tables = [asdict(describe(table, measure=characters, max_length=_LONGEST)) for table in found]
    for table in tables:
        for key in ("name", "source", "rejected"):
            del table[key]
    return {"rows": sum(table["rows"] for table in tables), "tasks": tables}


def data_card(name: str, content: dict[str, Any]) -> str:
    """Markdown with the hub's metadata block.

    Args:
        content: of `curation.json`.
    """
    card, splits, steps = content["card"], content["splits"], content["steps"]
    rows = sum(split["rows"] for split in splits)
    tasks = sorted({table["task_type"] for split in splits for table in split["tasks"]})
    synthetic = any(step["step"].endswith("synthesize") for step in steps)
    metadata: dict[str, Any] = {
        "license": card["license"] or "unknown",
        "language": card["languages"],
        "pretty_name": card["title"] or name,
        "size_categories": [next((size for most, size in _SIZES if rows < most), "n>1M")],
        "task_categories": ["sentence-similarity", "text-retrieval"],
        "tags": ["embeddings", "codiemb", *(["synthetic"] if synthetic else [])],
        "configs": [
            {
                "config_name": "default",
                "data_files": [{"split": split["split"], "path": split["file"]} for split in splits],
            }
        ],
    }
    metadata = {key: value for key, value in metadata.items() if value}
    parts = [
        f"---\n{yaml.safe_dump(metadata, sort_keys=False, allow_unicode=True)}---",
        f"# {card['title'] or name}",
        card["description"] or f"Training data of {', '.join(tasks)} for text-embedding models, made with codiemb.",
        "## Use\n\n```python\nfrom codiemb.data import read\n\n"
        f'tables = read("PATH/{splits[0]["file"]}")\n```\n\n'
        "The rows are in codiemb's format: `task_type`, `query`, `positives`, `negatives` and their scores, each text "
        "with its instruction, prefix and text.",
        "## Splits\n\n" + _splits(splits),
        "## Lengths\n\nCharacters, with the instruction.\n\n" + _lengths(splits),
    ]
    if scores := _scores(splits):
        parts.append("## Scores\n\n" + scores)
    parts += ["## Sources\n\n" + _sources(content), "## Steps\n\n" + _steps(steps)]
    return "\n\n".join(parts) + "\n"


def _splits(splits: list[dict[str, Any]]) -> str:
    lines = ["| split | task | rows | positives | negatives | repeated queries |", "|---|---|---:|---:|---:|---:|"]
    for split in splits:
        for table in split["tasks"]:
            lines.append(
                f"| {split['split']} | {table['task_type']} | {table['rows']:,} | {table['positives']['mean']:.2f} | "
                f"{table['negatives']['mean']:.2f} | {table['duplicate_queries']:,} |"
            )
    return "\n".join(lines) + "\n\nPositives and negatives are means for each row."


def _lengths(splits: list[dict[str, Any]]) -> str:
    lines = [
        "| split | task | side | texts | median | 90 % | 99 % | longest |",
        "|---|---|---|---:|---:|---:|---:|---:|",
    ]
    for split in splits:
        for table in split["tasks"]:
            for side in ("queries", "documents"):
                one = table[side]
                numbers = " | ".join(f"{one[key]:,}" for key in ("texts", "p50", "p90", "p99", "max"))
                lines.append(f"| {split['split']} | {table['task_type']} | {side} | {numbers} |")
    return "\n".join(lines)


def _scores(splits: list[dict[str, Any]]) -> str:
    lines = []
    for split in splits:
        for table in split["tasks"]:
            if histogram := table["scores"]:
                low, high = histogram["edges"][0], histogram["edges"][-1]
                counts = " ".join(f"{count:,}" for count in histogram["counts"])
                lines.append(f"| {split['split']} | {table['task_type']} | {low:g} | {high:g} | {counts} |")
    head = ["| split | task | lowest | highest | rows in equal bins |", "|---|---|---:|---:|---|"]
    return "\n".join(head + lines) if lines else ""


def _sources(content: dict[str, Any]) -> str:
    lines = ["| source | what it gave | license | where from | note |", "|---|---|---|---|---|"]
    given = [(source, "rows") for source in content["sources"]]
    given += [(source, f"documents of {', '.join(source['read_by'])}") for source in content["documents"]]
    for source, what in given:
        origin = [source["license"] or "unknown", source["url"] or "", source["note"] or ""]
        lines.append("| " + " | ".join(map(_cell, (", ".join(source["files"]), what, *origin))) + " |")
    models = [step["options"]["api"]["model"] for step in content["steps"] if step["step"].endswith("synthesize")]
    written = f"\n\nSynthetic rows were written by {', '.join(dict.fromkeys(models))}." if models else ""
    return "\n".join(lines) + written


def _steps(steps: list[dict[str, Any]]) -> str:
    lines = ["| step | rows read | rows written | left out | reason |", "|---|---:|---:|---:|---|"]
    for step in steps:
        written = sum(step["written"].values())
        reasons = sorted(step["rejected"].items(), key=lambda item: -item[1]) or [("", 0)]
        for place, (reason, count) in enumerate(reasons):
            shown = [step["step"], f"{step['read']:,}", f"{written:,}"] if place == 0 else ["", "", ""]
            lines.append("| " + " | ".join([*shown, f"{count:,}" if reason else "0", _cell(reason)]) + " |")
    return "\n".join(lines) + (
        "\n\nWhat was left out is in `rejected/`, but for candidates of mining; options and counts are in "
        "`curation.json`."
    )


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
