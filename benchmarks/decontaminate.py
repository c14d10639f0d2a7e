"""Leaks planted into 100,000 rows of real texts: how many `codiemb data decontaminate` finds, and its false alarms.

    python benchmarks/decontaminate.py --data ../shared/data

`--data` holds BEIR folders under `ir/` (the evaluation sets) and tables of sentence pairs under `sts_zh/` and `sts_en/`
(the training texts). A planted leak is an evaluation query put in place of a row's query, or an evaluation document in
place of its positive: as it is, with other punctuation, in traditional instead of simplified characters or the other
way round, or with 90 % of it left: one run replaced, single characters (in English: words) replaced, the end cut off,
or characters inserted. Every row that was left as it is and is reported counts as a false alarm. Seconds are of
processor time. The last line on stdout is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import resource
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from opencc import OpenCC

from codiemb.curation.cleaning.decontaminating import decontaminate
from codiemb.curation.cleaning.evaluation_texts import evaluation_texts
from codiemb.curation.cleaning.leaks import EvaluationText, LeakFinder, NearOptions
from codiemb.curation.cleaning.rows import RowStream

EVALUATION = ("ir/drcd_dev", "ir/cmrc_trial", "ir/cranfield")
TABLES = ("sts_zh/*_train.tsv", "sts_zh/*_dev.tsv", "sts_en/*_train.tsv", "sts_en/*_dev.tsv")
SHARE = 0.1  # of a text that an edit changes
STRANGE = "囧槑嬲嫑巭勥烎奣靐龘"  # characters to put in


def punctuation(text: str, rng: random.Random) -> str:
    """Full width for half width, other marks, more spaces."""
    other = text.translate(str.maketrans("，。？！,.?!：:", "、．?! ，。？：；"))
    return f"「{other}」" if rng.random() < 0.5 else other + " ！！"


def characters(text: str, _: random.Random) -> str:
    """In simplified characters if it is in traditional ones, else in traditional ones."""
    simplified = OpenCC("t2s").convert(text)
    return simplified if simplified != text else OpenCC("s2t").convert(text)


def run_replaced(text: str, rng: random.Random) -> str:
    """One run of characters becomes others."""
    size = int(len(text) * SHARE)
    start = rng.randrange(len(text) - size + 1)
    return text[:start] + "".join(rng.choices(STRANGE, k=size)) + text[start + size :]


def places_replaced(text: str, rng: random.Random) -> str:
    """Single characters, or words where there are spaces, become others."""
    units = re.findall(r"\S+|\s", text) if text.isascii() else list(text)
    chosen = [i for i, unit in enumerate(units) if unit.strip()]
    budget = int(len(text) * SHARE)
    rng.shuffle(chosen)
    for i in chosen:
        if len(units[i]) <= budget:
            budget -= len(units[i])
            units[i] = rng.choice(STRANGE) if len(units[i]) == 1 else "".join(rng.choices("qxzvjk", k=len(units[i])))
    return "".join(units)


def cut(text: str, _: random.Random) -> str:
    """Without its last tenth."""
    return text[: len(text) - int(len(text) * SHARE)]


def inserted(text: str, rng: random.Random) -> str:
    """With a run of others in the middle."""
    start = rng.randrange(len(text))
    return text[:start] + "".join(rng.choices(STRANGE, k=int(len(text) * SHARE))) + text[start:]


EDITS: dict[str, Callable[[str, random.Random], str]] = {
    "exact": lambda text, _: text,
    "punctuation": punctuation,
    "characters": characters,
    "90 %, a run replaced": run_replaced,
    "90 %, places replaced": places_replaced,
    "90 %, end cut off": cut,
    "90 %, inserted": inserted,
}


def training_texts(data: Path) -> list[tuple[str, str]]:
    """Pairs of real texts."""
    pairs = []
    for pattern in TABLES:
        for path in sorted(data.glob(pattern)):
            with path.open(encoding="utf-8") as file:
                next(file)
                pairs += [tuple(line.rstrip("\n").split("\t")[:2]) for line in file]
    with (data / "ir/qbqtc_dev.tsv").open(encoding="utf-8") as file:
        next(file)
        pairs += [tuple(line.rstrip("\n").split("\t")[:2]) for line in file]
    return [(a, b) for a, b in pairs if a.strip() and b.strip() and (a + b).isprintable()]  # 17 have backspaces


def plant(texts: list[EvaluationText], each: int, rng: random.Random) -> Iterator[tuple[str, str, str]]:
    """Side, kind of edit and text of each leak."""
    for side in ("query", "document"):
        for kind, edit in EDITS.items():
            # A tenth of a text has to be a character at least, and characters have to differ where that is the edit.
            usable = [one.text for one in texts if one.side == side and (len(one.text) >= 10 or "90" not in kind)]
            if kind == "characters":
                usable = [text for text in rng.sample(usable, len(usable)) if re.search("[一-龥]", text)]
            for text in rng.sample(usable, min(each, len(usable))):
                edited = edit(text, rng)
                if kind != "characters" or edited != text:
                    yield side, kind, edited


def main() -> None:
    """Plant, decontaminate, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--each", type=int, default=200, help="leaks of each kind and side")
    parser.add_argument("--jaccard", type=float, default=NearOptions().jaccard)
    parser.add_argument("--overlap", type=float, default=NearOptions().overlap)
    parser.add_argument("--containment", type=float, default=NearOptions().containment)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--show", type=int, default=0, help="false alarms and missed leaks to print")
    arguments = parser.parse_args()
    rng = random.Random(arguments.seed)
    pairs = training_texts(arguments.data)
    texts = list(evaluation_texts([str(arguments.data / name) for name in EVALUATION]))
    leaks = list(plant(texts, arguments.each, rng))
    places = rng.sample(range(arguments.rows), len(leaks))
    planted = dict(zip(places, leaks, strict=True))
    with tempfile.TemporaryDirectory() as directory:
        source, output = Path(directory) / "rows.jsonl", Path(directory) / "clean.jsonl"
        with source.open("w", encoding="utf-8") as file:
            for i in range(arguments.rows):
                query, positive = pairs[i % len(pairs)]
                if i in planted:
                    side, _, text = planted[i]
                    query, positive = (text, positive) if side == "query" else (query, text)
                row = {"task_type": "ir", "query": query, "positives": [positive], "negatives": [rng.choice(pairs)[1]]}
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        start, wall = time.process_time(), time.perf_counter()
        finder = LeakFinder(texts, near=NearOptions(arguments.jaccard, arguments.overlap, arguments.containment))
        built = time.process_time() - start
        report = decontaminate(RowStream([source]), output, finder)
        seconds, wall = time.process_time() - start, time.perf_counter() - wall
        found = [json.loads(line) for line in report.rejected_file.open(encoding="utf-8")]
    lines = {record["line"] - 1: record for record in found}
    total, hit = Counter(), Counter()
    for place, (side, kind, text) in planted.items():
        total[side, kind] += 1
        wanted = "query" if side == "query" else "positives[0]"
        if place in lines and any(match["field"] == wanted for match in lines[place]["matches"]):
            hit[side, kind] += 1
        elif arguments.show:
            print(f"missed: {side}, {kind}: {text[:100]}")
    alarms = [record for place, record in lines.items() if place not in planted]
    kinds = Counter(match["kind"] for record in alarms for match in record["matches"])
    for record in alarms[: arguments.show]:
        match = record["matches"][0]
        print(
            f"alarm: {match['kind']} {match['similarity']}: {match['text'][:80]} | {match['evaluation']['text'][:80]}"
        )
    for side, kind in total:
        print(f"{side:8} {kind:24} {hit[side, kind]:4} of {total[side, kind]:4} found")
    clean = arguments.rows - len(planted)
    result = {
        "rows": arguments.rows,
        "evaluation_texts": len(finder.texts),
        "planted": len(planted),
        "found": sum(hit.values()),
        "clean_rows": clean,
        "false_alarms": len(alarms),
        "false_alarm_rate": len(alarms) / clean,
        "alarms_by_kind": dict(kinds),
        "index_seconds": round(built, 2),
        "seconds": round(seconds, 2),
        "wall_seconds": round(wall, 2),
        "rows_per_second": round(arguments.rows / seconds),
        "peak_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        "peak_mib_before": round(before),
        "options": {name: getattr(arguments, name) for name in ("jaccard", "overlap", "containment")},
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
