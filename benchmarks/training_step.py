"""A training step of InfoNCE with hard negatives: codiemb against sentence-transformers' cached loss in its trainer.

Same model, data, batch, precision, dropout, negatives and number of optimizer steps; each measurement in a process of
its own, the two sides in turn. Queries have about 10 tokens, passages 50 to 400.

    python benchmarks/training_step.py                              # batch 64 on both sides, then memory: half an hour
    python benchmarks/training_step.py --batch 64 256 1024          # all on both sides: hours on two cores

The last line on stdout is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from contextlib import AbstractContextManager
from pathlib import Path
from statistics import median

import numpy as np
import torch

from codiemb.encoding import best_precision

os.environ.setdefault("HF_HUB_OFFLINE", "1")
TEMPERATURE = 0.02
SIDES = ("codiemb", "sentence-transformers")


def make_rows(count: int, seed: int = 0) -> list[dict[str, str]]:
    """Chinese text of the lengths named above: character sequences from the sample data, no two rows alike."""
    from codiemb.demo import sample_data

    with sample_data() as folder:
        lines = (folder / "train" / "ir.jsonl").read_text(encoding="utf-8").splitlines()
    text = "".join(json.loads(line)["positives"][0] for line in lines if not line.isascii())
    random = np.random.default_rng(seed)

    def cut(tokens: int) -> str:
        start = int(random.integers(len(text)))
        return (text[start:] + text)[: int(tokens * 1.6)]  # about 1.6 characters a token

    passage = lambda: cut(int(random.integers(50, 401)))  # noqa: E731
    return [{"query": cut(10), "positive": passage(), "negative": passage()} for _ in range(count)]


def run_ours(rows: list[dict[str, str]], batch: int, precision: str, steps: int, scratch: Path) -> dict[str, float]:
    from codiemb.training.recipe import parse_recipe
    from codiemb.training.run import run

    data = scratch / "rows.jsonl"
    with data.open("w", encoding="utf-8") as file:
        for row in rows:
            content = {
                "task_type": "ir",
                "query": row["query"],
                "positives": [row["positive"]],
                "negatives": [row["negative"]],
            }
            file.write(json.dumps(content, ensure_ascii=False) + "\n")
    recipe = parse_recipe(
        {
            "model": "bundled",
            "output": str(scratch / "ours"),
            "train": [{"path": str(data)}],
            "tasks": {
                "ir": {
                    "batch_size": batch,
                    "negatives": 1,
                    "temperature": TEMPERATURE,
                    "false_negative_margin": None,
                    "query_negatives": False,  # the peer has none
                }
            },
            "max_steps": steps,
            "precision": precision,
            "checkpoints": {"every": 10_000},
            "log_every": 1,
        }
    )
    step_times = _StepTimes()
    with step_times.watching():
        report = run(recipe)
    return {"seconds": step_times.median(), "tokens": report.tokens / report.steps}


def run_theirs(rows: list[dict[str, str]], batch: int, precision: str, steps: int, scratch: Path) -> dict[str, float]:
    from datasets import Dataset
    from sentence_transformers import (
        SentenceTransformer,
        SentenceTransformerTrainer,
        SentenceTransformerTrainingArguments,
    )
    from sentence_transformers.sentence_transformer.losses import CachedMultipleNegativesRankingLoss

    from codiemb.bundled import bundled_model

    model = SentenceTransformer(str(bundled_model()), device="cpu")
    loss = CachedMultipleNegativesRankingLoss(model, scale=1 / TEMPERATURE, mini_batch_size=32)
    arguments = SentenceTransformerTrainingArguments(
        output_dir=str(scratch / "theirs"),
        per_device_train_batch_size=batch,
        max_steps=steps,
        learning_rate=5e-5,
        bf16=precision == "bf16",
        use_cpu=True,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        logging_steps=1,
        prompts={"query": "query: ", "positive": "passage: ", "negative": "passage: "},
    )
    step_times = _StepTimes()
    trainer = SentenceTransformerTrainer(model, arguments, Dataset.from_list(rows), loss=loss)
    with step_times.watching():
        trainer.train()
    return {"seconds": step_times.median()}


class _StepTimes:
    """Wall time of the steps after the first, seen from the trainer both sides share."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def watching(self) -> AbstractContextManager[object]:
        from unittest.mock import patch

        from transformers import trainer_callback

        handler = trainer_callback.CallbackHandler
        begin, end = handler.on_step_begin, handler.on_step_end
        started = 0.0

        def on_begin(*args: object, **kwargs: object) -> object:
            nonlocal started
            started = time.perf_counter()
            return begin(*args, **kwargs)

        def on_end(*args: object, **kwargs: object) -> object:
            self.seconds.append(time.perf_counter() - started)
            return end(*args, **kwargs)

        return patch.multiple(handler, on_step_begin=on_begin, on_step_end=on_end)

    def median(self) -> float:
        return median(self.seconds[1:] or self.seconds)


def measure_here(side: str, batch: int, precision: str, steps: int) -> None:
    rows = make_rows(batch * steps)
    with tempfile.TemporaryDirectory() as scratch:
        result = (run_ours if side == SIDES[0] else run_theirs)(rows, batch, precision, steps, Path(scratch))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({**result, "peak_mb": peak}))


def measure(side: str, batch: int, precision: str, steps: int) -> dict[str, float]:
    command = [sys.executable, __file__, "--side", side, "--batch", str(batch), "--precision", precision]
    output = subprocess.run([*command, "--steps", str(steps)], check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(output.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, nargs="+", default=[64], help="measured on both sides")
    parser.add_argument("--memory-batch", type=int, default=1024, help="one step of codiemb alone, for its peak memory")
    parser.add_argument("--precision", choices=["auto", "bf16", "fp32"], default="auto")
    parser.add_argument("--steps", type=int, default=2, help="the first is warm-up")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.precision == "auto":
        arguments.precision = "bf16" if best_precision(torch.device("cpu"))[0] == torch.bfloat16 else "fp32"
    if arguments.side:
        measure_here(arguments.side, arguments.batch[0], arguments.precision, arguments.steps)
        return
    print(f"{arguments.precision}, {torch.get_num_threads()} threads")
    print(f"{'batch':>6} {'tokens':>8} {'side':<22} {'s/step':>8} {'tokens/s':>9} {'peak MB':>8}")
    ratios: dict[int, float] = {}
    peaks: dict[int, float] = {}
    for batch in sorted({*arguments.batch, arguments.memory_batch}):
        compared = batch in arguments.batch
        sides = SIDES if compared else SIDES[:1]
        steps = arguments.steps if compared else 1
        results = {side: measure(side, batch, arguments.precision, steps) for side in sides}
        tokens = results[SIDES[0]]["tokens"]  # without padding; the texts of both sides are the same
        for side, result in results.items():
            seconds, peak = result["seconds"], result["peak_mb"]
            line = f"{batch:>6} {tokens:>8.0f} {side:<22} {seconds:>8.2f} {tokens / seconds:>9.0f} {peak:>8.0f}"
            print(line, flush=True)
        peaks[batch] = results[SIDES[0]]["peak_mb"]
        if compared:
            ratios[batch] = results[SIDES[1]]["seconds"] / results[SIDES[0]]["seconds"]
    print(
        json.dumps(
            {
                "throughput_ratio": round(median(ratios.values()), 3),
                "throughput_ratios": {str(batch): round(ratio, 3) for batch, ratio in ratios.items()},
                "memory_growth": round(peaks[max(peaks)] / peaks[min(peaks)], 3),
                "peak_mb": {str(batch): round(peak) for batch, peak in peaks.items()},
                "precision": arguments.precision,
            }
        )
    )


if __name__ == "__main__":
    main()
