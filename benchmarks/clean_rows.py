"""Rows per second and peak memory of `codiemb data dedupe|filter|decontaminate|split|mix`, beside plain loops.

    python benchmarks/clean_rows.py --rows 1000000
    python benchmarks/clean_rows.py --rows 100000 --commands near datasketch --repeats 3

Writes synthetic Chinese and English rows (one positive, one negative; 5 % near duplicates, 5 % equal ones) into a
temporary directory and runs each command in a process of its own. The peers: `datasketch` is the loop of its manual
over the same texts, a MinHash of 128 permutations for each text's character 3-grams, inserted into and looked up in a
MinHashLSH; `set` reads the same file with json and keeps the pairs that it has not seen. Rates are of processor time,
so that a busy machine does not change them; `wall` is beside it. The last line on stdout is one JSON object.
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

COMMANDS = ("normalised", "near", "filter", "decontaminate", "split", "mix", "datasketch", "set")
EVALUATION_TEXTS = 10_000


def make_rows(rows: int, path: Path, evaluation: Path) -> None:
    """A file of rows, and one of evaluation texts that it does not have."""
    rng = random.Random(0)
    characters = [chr(code) for code in range(0x4E00, 0x4E00 + 3000)]
    words = ["".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(2, 9))) for _ in range(5000)]

    def text(low: int, high: int) -> str:
        if rng.random() < 0.7:
            return "".join(rng.choices(characters, k=rng.randint(low, high)))
        return " ".join(rng.choices(words, k=max(2, rng.randint(low, high) // 4)))

    with evaluation.open("w", encoding="utf-8") as file:
        file.writelines(f"{text(10, 60)}\n" for _ in range(EVALUATION_TEXTS))
    query, positive = text(8, 30), text(30, 100)
    with path.open("w", encoding="utf-8") as file:
        for _ in range(rows):
            chance = rng.random()
            if chance < 0.05:
                positive += "吧"
            elif chance > 0.1:
                query, positive = text(8, 30), text(30, 100)
            row = {"task_type": "ir", "query": query, "positives": [positive], "negatives": [text(30, 100)]}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def datasketch_loop(source: Path) -> int:
    """Rows kept by MinHashLSH over the pair's text, as its manual does it."""
    from datasketch import MinHash, MinHashLSH

    lsh = MinHashLSH(threshold=0.8, num_perm=128)
    kept = 0
    with source.open(encoding="utf-8") as file:
        for number, line in enumerate(file):
            row = json.loads(line)
            text = row["query"] + row["positives"][0]
            signature = MinHash(num_perm=128)
            signature.update_batch([text[i : i + 3].encode() for i in range(max(len(text) - 2, 1))])
            if not lsh.query(signature):
                lsh.insert(number, signature)
                kept += 1
    return kept


def set_loop(source: Path, output: Path) -> int:
    """Rows whose pair was not there before."""
    seen = set()
    with source.open(encoding="utf-8") as file, output.open("w", encoding="utf-8") as sink:
        for line in file:
            row = json.loads(line)
            pair = (row["query"], *row["positives"])
            if pair not in seen:
                seen.add(pair)
                sink.write(line)
    return len(seen)


def run_command(command: str, work: Path) -> dict[str, float]:
    """One command in this process: rows written, processor and wall seconds, and the peak of resident memory."""
    source, output = work / "rows.jsonl", work / "out.jsonl"
    start, wall = time.process_time(), time.perf_counter()
    if command == "datasketch":
        rows = datasketch_loop(source)
    elif command == "set":
        rows = set_loop(source, output)
    else:
        from codiemb.curation.cleaning.decontaminating import decontaminate
        from codiemb.curation.cleaning.deduplicating import deduplicate
        from codiemb.curation.cleaning.evaluation_texts import evaluation_texts
        from codiemb.curation.cleaning.filtering import FilterRules, filter_rows
        from codiemb.curation.cleaning.leaks import LeakFinder, NearOptions
        from codiemb.curation.cleaning.mixing import mix
        from codiemb.curation.cleaning.rows import RowStream
        from codiemb.curation.cleaning.splitting import split

        stream = RowStream([source])
        if command in ("normalised", "near"):
            report = deduplicate(stream, output, match=command)
        elif command == "filter":
            report = filter_rows(stream, output, FilterRules())
        elif command == "decontaminate":
            finder = LeakFinder(list(evaluation_texts([str(work / "evaluation.txt")])), near=NearOptions())
            report = decontaminate(stream, output, finder)
        elif command == "split":
            report = split(stream, {"train": output, "dev": work / "dev.jsonl"}, {"train": 0.0, "dev": 0.1})
        else:
            report = mix([source], output)
        rows = report.rows
    return {
        "rows": rows,
        "seconds": time.process_time() - start,
        "wall": time.perf_counter() - wall,
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def main() -> None:
    """Make the data, run every command in a process of its own, print a table and a JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--commands", nargs="+", choices=COMMANDS, default=COMMANDS)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(run_command(arguments.one, arguments.work)))
        return
    results = {}
    with tempfile.TemporaryDirectory() as directory:
        work = Path(directory)
        make_rows(arguments.rows, work / "rows.jsonl", work / "evaluation.txt")
        size = (work / "rows.jsonl").stat().st_size / 2**20
        print(f"{arguments.rows:,} rows, {size:,.0f} MiB; {platform.machine()}, {os.cpu_count()} CPUs")
        for command in arguments.commands:
            call = [sys.executable, __file__, "--one", command, "--work", directory]
            runs = [
                json.loads(subprocess.run(call, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
                for _ in range(arguments.repeats)
            ]
            middle = {key: statistics.median(run[key] for run in runs) for key in runs[0]}
            results[command] = {key: round(value, 2) for key, value in middle.items()}
            print(
                f"{command:14} {arguments.rows / middle['seconds']:>9,.0f} rows/s  {middle['seconds']:7.1f} s of "
                f"processor  {middle['wall']:7.1f} s wall  {middle['peak_mib']:7,.0f} MiB  {middle['rows']:,.0f} rows",
                flush=True,
            )
    print(json.dumps({"rows": arguments.rows, "results": results}))


if __name__ == "__main__":
    main()
