"""The README.md of a pre-trained model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from codiemb.training.output import recipe_yaml
from codiemb.training.pretraining.recipe import PretrainRecipe

if TYPE_CHECKING:
    from codiemb.training.pretraining.run import PretrainReport

_OBJECTIVES = {
    "clm": "predicts each token from those before it",
    "mntp": "predicts hidden tokens from both sides (masked next-token prediction, arXiv:2404.05961)",
}


def model_card(recipe: PretrainRecipe, report: PretrainReport) -> str:
    """Markdown with the hub's metadata block."""
    metadata: dict[str, Any] = {"library_name": "transformers", "pipeline_tag": "text-generation", "tags": ["codiemb"]}
    if recipe.model is not None and not Path(recipe.model).exists():  # the hub takes its own ids only
        metadata["base_model"] = recipe.model
    origin = f"It began as `{recipe.model}`." if recipe.model else "It began with random weights."
    train = report.data["train"]
    parts = [
        f"---\n{yaml.safe_dump(metadata, sort_keys=False)}---",
        f"# {recipe.output.resolve().name}",
        f"A language model ({report.settings['architecture']}, {report.settings['parameters']:,} parameters) that "
        f"{_OBJECTIVES[report.objective]}, trained with codiemb. {origin} It is meant to become an embedding model: "
        "`codiemb train` takes this directory as `model`.",
        f"## Training data\n\n{train['documents']:,} documents, {train['tokens']:,} tokens; {report.steps:,} steps on "
        f"{report.tokens:,} predictions.",
    ]
    if report.after:
        rows = [f"| {name} | {report.before[name]:.3f} | {value:.3f} |" for name, value in report.after.items()]
        parts.append("## Held-out documents\n\n| | before | after |\n|---|---:|---:|\n" + "\n".join(rows))
    parts.append(f"## Recipe\n\n```yaml\n{recipe_yaml(recipe)}```")
    return "\n\n".join(parts) + "\n"
