"""Rows per second and peak memory of checking and converting a large file, beside `datasets.load_dataset("json")`.

    python benchmarks/read_rows.py --rows 1000000

Writes synthetic rows (80 % `ir` with one positive and three negatives, 20 % `sts`) into a temporary directory and runs
each stage in a process of its own, `--repeats` times, every time with an empty cache. `load_dataset` parses the same
file into Arrow without checking any row. The last line on stdout is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SENTENCES = 20_000
STAGES = ("validate", "convert", "load_dataset")


def make_rows(rows: int, unified: Path, triplets: Path) -> None:
    """Two files of the same texts: the unified format, and query/pos/neg objects to convert."""
    rng = random.Random(0)
    words = ["".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(2, 9))) for _ in range(3000)]
    words += ["".join(chr(rng.randint(0x4E00, 0x9FA5)) for _ in range(rng.randint(1, 4))) for _ in range(3000)]
    short, long = (
        [json.dumps(" ".join(rng.choices(words, k=rng.randint(*size))), ensure_ascii=False) for _ in range(SENTENCES)]
        for size in ((4, 14), (15, 60))
    )
    instruction = json.dumps("Given a question, retrieve passages that answer it")
    with unified.open("w", encoding="utf-8") as first, triplets.open("w", encoding="utf-8") as second:
        for i in range(rows):
            query, (positive, *negatives) = rng.choice(short), rng.choices(long, k=4)
            if i % 5:
                texts = ", ".join(f'["", "", {text}]' for text in negatives)
                first.write(
                    f'{{"task_type": "ir", "query": [{instruction}, "", {query}], "positives": [["", "", {positive}]], '
                    f'"negatives": [{texts}], "positive_scores": [], "negative_scores": []}}\n'
                )
            else:
                first.write(
                    f'{{"task_type": "sts", "query": ["", "", {query}], "positives": [["", "", {positive}]], '
                    f'"negatives": [], "positive_scores": [{rng.random() * 5:.2f}], "negative_scores": []}}\n'
                )
            second.write(f'{{"query": {query}, "pos": [{positive}], "neg": [{", ".join(negatives)}]}}\n')


def run_stage(stage: str, source: Path, work: Path) -> dict[str, float]:
    """One stage in this process: its seconds, and the peak of the process's resident memory."""
    if stage == "validate":
        from codiemb.data import read as action

        arguments, options = (source,), {"cache_dir": work}
    elif stage == "convert":
        from codiemb.data.converters import triplets as action

        arguments, options = (source, work / "converted.jsonl"), {}
    else:
        from datasets import load_dataset as action

        arguments, options = ("json",), {"data_files": str(source), "cache_dir": str(work)}
    import datasets

    datasets.disable_progress_bars()  # and its import is not what is measured
    start, cpu_start = time.perf_counter(), time.process_time()
    action(*arguments, **options)
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
    # Linux counts in KiB, macOS in bytes.
    unit = 1 if sys.platform == "darwin" else 1024
    return {
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--stage", choices=STAGES, help=argparse.SUPPRESS)
    parser.add_argument("--source", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.stage:
        print(json.dumps(run_stage(options.stage, options.source, options.work)))
        return

    report: dict[str, object] = {"rows": options.rows, "repeats": options.repeats, "cpus": os.cpu_count()}
    report["machine"] = platform.machine()
    with tempfile.TemporaryDirectory() as directory:
        unified, triplets = Path(directory, "unified.jsonl"), Path(directory, "triplets.jsonl")
        make_rows(options.rows, unified, triplets)
        report["file_mb"] = round(unified.stat().st_size / 1e6)
        print(f"{options.rows:,} rows, {report['file_mb']} MB")
        for stage in STAGES:
            source = triplets if stage == "convert" else unified
            runs = []
            for _ in range(options.repeats):
                with tempfile.TemporaryDirectory(dir=directory) as work:
                    command = [sys.executable, __file__, "--stage", stage, "--source", str(source), "--work", work]
                    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
                runs.append(json.loads(output.splitlines()[-1]))
            rates = sorted(options.rows / run["seconds"] for run in runs)
            peak = max(run["peak_bytes"] for run in runs) / 1e6
            spread = f"{rates[0]:,.0f} to {rates[-1]:,.0f}"
            # Of all threads together: what is left to compare on a machine that does other work too.
            cpu = statistics.median(run["cpu_seconds"] for run in runs) / options.rows * 1e6
            median = statistics.median(rates)
            print(f"{stage:13} {median:>9,.0f} rows/s ({spread}), {cpu:.1f} µs CPU a row, peak {peak:,.0f} MB")
            report[stage] = {"rows_per_s": round(median), "cpu_us_per_row": round(cpu, 1), "peak_mb": round(peak)}
    report["read_ratio"] = round(report["validate"]["rows_per_s"] / report["load_dataset"]["rows_per_s"], 2)
    print(json.dumps(report))


if __name__ == "__main__":
    main()
