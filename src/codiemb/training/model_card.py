"""The README.md of a trained model: what it is, what it was trained on, how good it is, how to use it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from codiemb.prompts import InstructionTemplate
from codiemb.tasks import SYMMETRIC
from codiemb.training.output import recipe_yaml
from codiemb.training.recipe import Recipe

if TYPE_CHECKING:
    from codiemb.training.run import TrainingReport


def model_card(recipe: Recipe, report: TrainingReport, template: InstructionTemplate) -> str:
    """Markdown with the hub's metadata block."""
    metadata: dict[str, Any] = {
        "library_name": "sentence-transformers",
        "pipeline_tag": "sentence-similarity",
        "tags": ["sentence-transformers", "feature-extraction", "sentence-similarity", "codiemb"],
    }
    base = "intfloat/multilingual-e5-small" if recipe.model == "bundled" else recipe.model
    if not Path(base).exists():  # the hub takes its own ids only
        metadata["base_model"] = base
    parts = [
        f"---\n{yaml.safe_dump(metadata, sort_keys=False)}---",
        f"# {recipe.output.resolve().name}",
        f"A text-embedding model trained jointly on {_tasks(report)} with codiemb (CoDiEmb, arXiv:2508.11442), "
        f"starting from `{recipe.model}`.",
        "## Use\n\n```python\nfrom sentence_transformers import SentenceTransformer\n\n"
        'model = SentenceTransformer("PATH")\n'
        'queries = model.encode_query(["..."])\ndocuments = model.encode_document(["..."])\n'
        "print(model.similarity(queries, documents))\n```" + _advice(report, template),
        "## Training data\n\n| data set | task | rows | rows left out | steps an epoch |\n"
        "|---|---|---:|---:|---:|\n"
        + "\n".join(
            f"| {d['name']} | {d['task']} | {d['rows']} | {d['rejected'] + d['refused']} | {d['steps_per_epoch']} |"
            for d in report.data
        ),
    ]
    if report.after:
        pairs = {name: (100 * report.before[name], 100 * after) for name, after in report.after.items()}
        rows = [f"| {name} | {old:.2f} | {new:.2f} | {new - old:+.2f} |" for name, (old, new) in pairs.items()]
        parts.append(
            "## Scores on held-out data\n\nnDCG@10 for retrieval, Spearman's correlation of the cosine for similarity, "
            "MAP for reranking, times 100.\n\n| | before | after | change |\n|---|---:|---:|---:|\n" + "\n".join(rows)
        )
    if report.by_width:
        widths = list(report.by_width)
        rows = [
            f"| {name} | " + " | ".join(f"{100 * report.by_width[width][name]:.2f}" for width in widths) + " |"
            for name in report.after
        ]
        parts.append(
            "## Shorter embeddings\n\nThe leading dimensions are trained to stand alone: "
            f'`SentenceTransformer("PATH", truncate_dim={widths[0]})`. The scores above by dimensions kept:\n\n'
            f"| | {' | '.join(widths)} |\n|---|{'---:|' * len(widths)}\n" + "\n".join(rows)
        )
    if recipe.adapter:
        trained, total = report.settings["parameters"].values()
        parts.append(
            f"## Adapter\n\nTrained with LoRA of rank {recipe.adapter.rank}: {trained:,} of {total:,} parameters. The "
            "model here has the change in its weights and needs no adapter; `adapter/` holds the change alone, for "
            "peft and for `load_adapter` of the base model."
        )
    parts.append(
        f"## Recipe\n\n{report.steps} optimizer steps, {report.tokens:,} tokens, "
        f"{report.settings['training_seconds']:.0f} s on "
        f"{report.settings['device']} in {report.settings['precision']}.\n\n```yaml\n{recipe_yaml(recipe)}```"
    )
    return "\n\n".join(parts) + "\n"


def _tasks(report: TrainingReport) -> str:
    return " and ".join(sorted({str(entry["task"]) for entry in report.data}))


def _advice(report: TrainingReport, template: InstructionTemplate) -> str:
    advice = ""
    if any(entry["task"] in SYMMETRIC for entry in report.data):
        advice += "\n\nFor similarity between sentences, use `encode_query` on both sides, as in training."
    if template.reads_instruction:
        sides = f"query `{template.query!r}`, document `{template.document!r}`"
        advice += f"\n\nIt reads instructions: give `prompt=` with yours in the place of `{{instruction}}` of {sides}."
    return advice
