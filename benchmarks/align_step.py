"""One step of `stage: align` on many weak pairs: how soon it starts, how long it takes, how much memory it needs.

    python benchmarks/align_step.py --pairs 1000000 --batch 16384     # a quarter of an hour on two cores
    python benchmarks/align_step.py --pairs 100000 --batch 1024 --steps 3

The pairs are made up from sample text: queries of about 10 tokens, documents of up to 60 (--characters). The run is one
process of its own with the bundled model, all of whose weights are trained; it is started twice, first with data that
no run has read. Memory is that of the process, sampled ten times a second: `resident` counts pages of the mapped data
file, which the system takes back when it needs them, `anonymous` does not. The last line on stdout is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import yaml

os.environ.setdefault("HF_HUB_OFFLINE", "1")


def write_pairs(path: Path, count: int, longest: int) -> None:
    from codiemb.demo import sample_data

    with sample_data() as folder:
        lines = (folder / "train" / "ir.jsonl").read_text(encoding="utf-8").splitlines()
    text = "".join(json.loads(line)["positives"][0] for line in lines if not line.isascii())
    random = np.random.default_rng(0)
    with path.open("w", encoding="utf-8") as file:
        for number in range(count):
            start = int(random.integers(len(text) - 200))
            query, document = (
                text[start : start + 10],
                text[start + 10 : start + 10 + int(random.integers(longest // 6, longest + 1))],
            )
            # The number keeps texts apart that come from the same place.
            row = {"task_type": "ir", "query": f"{query} {number}", "positives": [f"{document} {number}"]}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def measure(recipe: Path, overrides: list[str]) -> dict[str, float]:
    """Seconds until training starts and of a step, and the largest memory in MiB, of one `codiemb train`."""
    command = [sys.executable, "-m", "codiemb", "train", str(recipe), "--overwrite", *overrides]
    log = recipe.with_suffix(".log")
    started, start = time.monotonic(), None
    largest = {"RssAnon": 0, "VmHWM": 0}
    with log.open("w") as file, subprocess.Popen(command, stderr=file, stdout=file) as process:
        status = Path(f"/proc/{process.pid}/status")
        while process.poll() is None:
            content = status.read_text()
            for name in largest:
                if found := re.search(rf"{name}:\s+(\d+) kB", content):
                    largest[name] = max(largest[name], int(found[1]) // 1024)
            if start is None and "watch it" in log.read_text():
                start = time.monotonic() - started
            time.sleep(0.1)
    if process.returncode:
        raise SystemExit(log.read_text())
    assert start is not None
    output = Path(yaml.safe_load(recipe.read_text())["output"])
    report = json.loads((output / "training_report.json").read_text())
    return {
        "start_seconds": round(start, 1),
        "step_seconds": round(report["settings"]["training_seconds"] / report["steps"], 1),
        "tokens_per_step": report["tokens"] // report["steps"],
        "resident_mib": largest["VmHWM"],
        "anonymous_mib": largest["RssAnon"],
        "precision": report["settings"]["precision"],
        "threads": report["settings"]["threads"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=1_000_000)
    parser.add_argument("--batch", type=int, default=16_384)
    parser.add_argument("--characters", type=int, default=100, help="of the longest documents")
    parser.add_argument("--steps", type=int, default=1)
    parser.add_argument("--model", default="bundled")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        data = scratch / "pairs.jsonl"
        write_pairs(data, arguments.pairs, arguments.characters)
        recipe = scratch / "recipe.yaml"
        content = {
            "stage": "align",
            "model": arguments.model,
            "output": str(scratch / "run"),
            "train": [{"path": str(data)}],
            "tasks": {"ir": {"batch_size": arguments.batch}},
            "max_steps": arguments.steps,
            "checkpoints": {"every": 10_000},
        }
        recipe.write_text(yaml.safe_dump(content))
        first = measure(recipe, [])
        again = measure(recipe, ["max_steps=1", "tasks.ir.batch_size=32"])
    result = {
        "pairs": arguments.pairs,
        "batch": arguments.batch,
        **first,
        "start_seconds_again": again["start_seconds"],
        "anonymous_mib_small_batch": again["anonymous_mib"],
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
