"""How an arm gets its model: codiemb's training, sentence-transformers' trainer, or fusion."""

from __future__ import annotations

import functools
import json
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

from codiemb import backbones, fusion
from codiemb.data.sampler import SingleTaskBatchSampler, SourceSpec
from codiemb.training import cpu
from codiemb.training import run as training
from codiemb.training.recipe import parse_recipe
from codiemb.training.sections import merged

Config = dict[str, Any]
Row = dict[str, Any]

_MEASURED_ROWS = 400  # of a data set, for its mean length


def read_rows(folder: Path) -> dict[str, list[Row]]:
    """Training rows by data set."""
    return {
        path.stem: [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        for path in sorted(folder.glob("*.jsonl"))
    }


def tokens_of_a_row(rows: Sequence[Row], negatives: int, tokenizer: Any, *, queries: int = 1) -> float:
    """Mean tokens of a query, read `queries` times, one positive and `negatives` negatives, prompts left aside."""
    chosen = np.random.default_rng(0).permutation(len(rows))[:_MEASURED_ROWS]
    texts = []
    for i in chosen:
        row = rows[i]
        texts += [*[row["query"]] * queries, row["positives"][0], *row.get("negatives", [])[:negatives]]
    plain = ["".join(text) if isinstance(text, list) else text for text in texts]
    lengths = [min(len(ids), 256) for ids in tokenizer(plain, verbose=False).input_ids]
    return sum(lengths) / len(chosen)


def train_codiemb(arm: Config, common: Config, data: Path, output: Path, seed: int, rate: float, budget: int) -> Config:
    """`codiemb train` for as many steps as the budget of tokens pays for."""
    folder = data / arm.get("data", "train")
    sources = [{"path": str(path)} for path in sorted(folder.glob("*.jsonl"))]
    given = {"train": sources, "output": str(output), "seed": seed, "optimizer": {"learning_rate": rate}}
    recipe = parse_recipe(merged(merged(common, arm.get("recipe", {})), given))
    rows = read_rows(folder)
    options = {name: getattr(recipe.tasks, name) for name in ("ir", "sts")}
    tokenizer = backbones.load(recipe.model, device="cpu").tokenizer
    means = {}
    for name, found in rows.items():
        option = options[found[0]["task_type"]]
        counts = option.candidates
        per_row = tokens_of_a_row(found, counts.negatives, tokenizer, queries=1 + counts.queries)
        means[name] = option.batch_size * per_row
    specs = [SourceSpec(n, r[0]["task_type"], len(r), options[r[0]["task_type"]].batch_size) for n, r in rows.items()]
    plan = SingleTaskBatchSampler(
        specs, task_shares=recipe.sampling.task_shares, temperature=recipe.sampling.temperature
    ).steps
    micro_batches = arm.get("micro_batches", 1)
    per_step = micro_batches * sum(plan[name] * means[name] for name in plan) / sum(plan.values())
    recipe = recipe.model_copy(update={"max_steps": max(1, round(budget / per_step))})
    with _mixed_steps(micro_batches):
        report = training.run(recipe, resume=True)
    shutil.rmtree(output / "training", ignore_errors=True)  # checkpoints
    return {"steps": report.steps, "tokens": report.tokens, "training_seconds": report.settings["training_seconds"]}


def _mixed_steps(micro_batches: int) -> Any:
    """Let an optimizer step add up that many batches, of different data sets, which the sampler never does itself."""
    make = training._training_arguments

    def arguments(*args: Any) -> Any:
        made = make(*args)
        made.gradient_accumulation_steps = micro_batches
        return made

    return patch.object(training, "_training_arguments", arguments)


def train_sentence_transformers(
    arm: Config, common: Config, data: Path, output: Path, seed: int, rate: float, budget: int
) -> Config:
    """The library's own trainer, losses and samplers; only attention is codiemb's, which changes speed alone."""
    from datasets import Dataset, DatasetDict
    from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments
    from sentence_transformers.sentence_transformer.losses import CoSENTLoss, MultipleNegativesRankingLoss

    rows = read_rows(data / "train")
    model = backbones.load(common["model"], device="cpu", attention="eager", dropout=0.0)
    template = backbones.template_of(model, common["model"])
    query, document = (template.prompt(side) for side in ("query", "document"))
    model.max_seq_length = 256
    cpu.use_fast_attention(model[0].model)
    batch_size = common["batch_size"]
    random = np.random.default_rng(seed)
    sets, losses, prompts, means = {}, {}, {}, {}
    for name, found in rows.items():
        scored = found[0]["task_type"] == "sts"
        query_negatives = not scored and arm.get("query_negatives", False)
        means[name] = batch_size * tokens_of_a_row(found, 1, model.tokenizer, queries=1 + query_negatives)
        if scored:
            top = max(row["positive_scores"][0] for row in found)
            columns = [
                {"sentence1": r["query"], "sentence2": r["positives"][0], "score": r["positive_scores"][0] / top}
                for r in found
            ]
            losses[name] = CoSENTLoss(model)
            prompts[name] = {"sentence1": query, "sentence2": query}
        else:
            columns = [
                {"anchor": r["query"], "positive": r["positives"][0], "negative": str(random.choice(r["negatives"]))}
                for r in found
                if r["negatives"]
            ]
            losses[name] = MultipleNegativesRankingLoss(model)
            prompts[name] = {"anchor": query, "positive": document, "negative": document}
            if query_negatives:
                others = [*columns[1:], columns[0]]
                columns = [row | {"query": other["anchor"]} for row, other in zip(columns, others, strict=True)]
                prompts[name]["query"] = document
        sets[name] = Dataset.from_list(columns)
    batches = {name: len(found) // batch_size for name, found in sets.items()}
    sampler: Any = arm["sampler"]
    if sampler == "proportional":
        shares = batches
    elif sampler == "round-robin":
        shares = dict.fromkeys(batches, 1)
        sampler = "round_robin"
    else:
        specs = [SourceSpec(n, rows[n][0]["task_type"], len(found), batch_size) for n, found in sets.items()]
        ours = SingleTaskBatchSampler(specs, seed=seed, task_shares=sampler, temperature=2)
        shares, sampler = ours.steps, functools.partial(_given, ours)
    per_step = sum(shares[name] * means[name] for name in shares) / sum(shares.values())
    counted = {"tokens": 0}

    network_forward = model[0].forward

    def counting_forward(features: Any, **options: Any) -> Any:
        counted["tokens"] += int(features["attention_mask"].sum())
        return network_forward(features, **options)

    model[0].forward = counting_forward
    arguments = SentenceTransformerTrainingArguments(
        output_dir=str(output / "training"),
        per_device_train_batch_size=batch_size,
        max_steps=max(1, round(budget / per_step)),
        learning_rate=rate,
        warmup_steps=0.1,
        multi_dataset_batch_sampler=sampler,
        bf16=True,
        use_cpu=True,
        seed=seed,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        prompts=prompts,
    )
    started = time.monotonic()
    trainer = SentenceTransformerTrainer(model, arguments, DatasetDict(sets), loss=losses)
    trainer.train()
    seconds = time.monotonic() - started
    del model[0].forward
    backbones.save(model, output, template)
    shutil.rmtree(output / "training", ignore_errors=True)
    return {"steps": arguments.max_steps, "tokens": counted["tokens"], "training_seconds": seconds}


def _given(sampler: SingleTaskBatchSampler, dataset: Any, **_: Any) -> SingleTaskBatchSampler:
    return sampler


TRAINERS = {"codiemb": train_codiemb, "sentence-transformers": train_sentence_transformers}


def fuse(base: str, arm: Config, parts: Sequence[Path], output: Path) -> Config:
    """`codiemb fuse` over the models of other arms."""
    fusion.fuse(base, parts, output, method=arm.get("method", "uniform"), scale=arm.get("scale", 1.0))
    return {"steps": 0, "tokens": 0, "training_seconds": 0.0}
