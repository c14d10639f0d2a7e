"""The README.md of a fused model: what it was made of, with which weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

if TYPE_CHECKING:
    from codiemb.fusion.deltas import LayerDelta
    from codiemb.fusion.fusing import FusionReport

_METHODS = {
    "uniform": "every checkpoint has the same weight",
    "delta": "a checkpoint's weight is its share in the norms of the deltas",
    "weights": "the weights were given",
}


def fusion_card(report: FusionReport) -> str:
    """Markdown with the hub's metadata block."""
    metadata: dict[str, Any] = {
        "library_name": "sentence-transformers",
        "pipeline_tag": "sentence-similarity",
        "tags": ["sentence-transformers", "feature-extraction", "sentence-similarity", "codiemb", "merge"],
    }
    base = "intfloat/multilingual-e5-small" if report.base == "bundled" else report.base
    if not Path(base).exists():  # the hub takes its own ids only
        metadata["base_model"] = base
    numbers = range(1, len(report.checkpoints) + 1)
    rows = [
        f"| {layer.name} | {layer.parameters:,} | {_cells(layer.weights, '.4f')} | {_moved(layer)} |"
        for layer in report.layers
    ]
    heading = " | ".join(f"weight {k}" for k in numbers) + " | " + " | ".join(f"moved {k}" for k in numbers)
    parts = [
        f"---\n{yaml.safe_dump(metadata, sort_keys=False)}---",
        f"# {report.output.resolve().name}",
        f"A text-embedding model fused with codiemb from {len(report.checkpoints)} checkpoint(s) that were fine-tuned "
        f"from `{report.base}`: the base plus {report.scale:g} times the weighted mean of what each changed.",
        f"- method: `{report.method}` ({_METHODS[report.method]}), granularity `{report.granularity}`\n"
        f"- scale: {report.scale:g}\n- base: `{report.base}`{_search(report.search)}",
        "| | checkpoint |\n|---:|---|\n"
        + "\n".join(f"| {k} | `{name}` |" for k, name in zip(numbers, report.checkpoints, strict=True)),
        "Modules, prompts, tokenizer and configuration are those of checkpoint 1.",
        "## Weights\n\nThe weight of each checkpoint (the mean over a layer's parameters; those of each tensor are in "
        "`fusion.json`), and how far it moved the layer: the norm of the difference from the base over the norm of the "
        f"base.\n\n| layer | parameters | {heading} |\n|---|---:|{'---:|' * 2 * len(numbers)}\n" + "\n".join(rows),
        "## Use\n\n```python\nfrom sentence_transformers import SentenceTransformer\n\n"
        'model = SentenceTransformer("PATH")\n'
        'queries = model.encode_query(["..."])\ndocuments = model.encode_document(["..."])\n'
        "print(model.similarity(queries, documents))\n```",
    ]
    return "\n\n".join(parts) + "\n"


def _search(search: Mapping[str, Any] | None) -> str:
    if search is None:
        return ""
    data = ", ".join(f"`{entry['source']}`" for entry in search["data"])
    return (
        f"\n- found by `--search`: `{search['metric']}` on {data}, {len(search['tries'])} fusions tried, "
        f"{search['rule']} taken (all in `fusion.json`)"
    )


def _moved(layer: LayerDelta) -> str:
    """Relative norms; where the base is all 0, the norms themselves."""
    pairs = zip(layer.relative_norms, layer.norms, strict=True)
    return " | ".join(f"{norm:.3g} from 0" if relative is None else f"{relative:.5f}" for relative, norm in pairs)


def _cells(numbers: tuple[float, ...], style: str) -> str:
    return " | ".join(format(number, style) for number in numbers)
