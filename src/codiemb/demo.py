"""The demo: train the bundled model on the sample data, measure it, show what it does."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path

import numpy as np
from rich.console import Console

from codiemb import backbones, evaluation
from codiemb.encoding import EmbeddingPass
from codiemb.prompts import PromptedText
from codiemb.training.recipe import parse_recipe
from codiemb.training.run import TrainingReport, run

REPORT_FILE = "report.json"
QUERY_IDS = ("q094", "q000")  # of the test part, one Chinese and one English; chosen to show right answers


@dataclass(frozen=True)
class Ranking:
    """Passages for a query, best first, with their cosines; `relevant` marks the ones that answer it."""

    query: str
    passages: list[str]
    scores: list[float]
    relevant: list[bool]


@contextmanager
def sample_data() -> Iterator[Path]:
    """The folder with the sample data that ships in the package."""
    with as_file(files("codiemb") / "sample_data") as folder:
        yield folder


def run_demo(output: Path, *, seed: int = 42, console: Console | None = None) -> TrainingReport:
    """Train on the sample data's train part and measure on its test part; write model/ and report.json to `output`.

    An earlier demo in `output` is replaced.
    """
    with sample_data() as data:
        recipe = parse_recipe(
            {
                "model": "bundled",
                "output": str(output / "model"),
                "train": [{"path": str(data / "train" / "ir.jsonl")}, {"path": str(data / "train" / "sts.jsonl")}],
                # Measured before and after only: nothing is chosen by it.
                "evaluation": {"data": [str(data / "test" / "ir"), str(data / "test" / "sts.tsv")]},
                "tasks": {"ir": {"batch_size": 32, "negatives": 2}, "sts": {"batch_size": 32}},
                "optimizer": {"learning_rate": 1e-4},
                "checkpoints": {"every": 1000},  # a run of two minutes starts anew
                "epochs": 2,
                "dropout": 0.0,  # a quarter faster
                "log_every": 5,
                "seed": seed,
            }
        )
        report = run(recipe, overwrite=True, console=console)
    summary = {
        "before": {"ir_ndcg_at_10": report.before["ir"], "sts_spearman": report.before["sts"]},
        "after": {"ir_ndcg_at_10": report.after["ir"], "sts_spearman": report.after["sts"]},
        "model": report.model,
        "seconds": report.seconds,
    }
    (output / REPORT_FILE).write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    return report


def rank_sample_passages(
    model_directory: Path, query_ids: tuple[str, ...] = QUERY_IDS, *, top: int = 4
) -> list[Ranking]:
    """Rank the passages of the sample data's test part for some of its queries."""
    with sample_data() as data:
        (task,) = evaluation.discover(data / "test" / "ir")
    assert isinstance(task, evaluation.RetrievalTask)  # a BEIR folder
    passages = [text.full for text in task.corpus.values()]
    queries = [task.queries[query].full for query in query_ids]
    model = backbones.load(model_directory)
    template = backbones.template_of(model, model_directory)
    encoder = EmbeddingPass(model)
    documents = encoder.encode(PromptedText(template.prompt("document"), text) for text in passages)
    embedded = encoder.encode(PromptedText(template.prompt("query"), query) for query in queries)
    rankings = []
    for query_id, query, scores in zip(query_ids, queries, embedded @ documents.T, strict=True):
        best = np.argsort(-scores)[:top]
        relevant = [list(task.corpus)[i] in task.qrels[query_id] for i in best]
        rankings.append(Ranking(query, [passages[i] for i in best], [float(scores[i]) for i in best], relevant))
    return rankings
