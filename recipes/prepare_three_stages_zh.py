"""Make the text and the weak pairs of recipes/three-stages-zh.yaml from public data sets.

    python recipes/prepare_joint_zh.py DATA runs/joint-zh-data
    python recipes/prepare_three_stages_zh.py DATA runs/joint-zh-data OUTPUT

The first script's folder gives the questions and pairs that may be trained on, and what is held out. OUTPUT gets
corpus/*.jsonl (documents for pre-training) and pairs/*.jsonl (weak pairs in the unified format). Nothing in them is, in
any spelling, a held-out sentence or question, a sentence of STS-B's dev and test sets, or the paragraph or title that
a held-out question is answered by.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from prepare_joint_zh import cut, normalised
from rich.console import Console
from rich.table import Table

from codiemb.data.delimited import read_columns
from codiemb.data.examples import DataError

PARAGRAPHS = ("drcd", "cmrc")
PAIR_SETS = ("stsb", "afqmc", "lcqmc", "bq", "pawsx")
SHORTEST_SENTENCE = 10  # characters of a sentence that is paired with its paragraph


def held_out_texts(data: Path, joint: Path) -> set[str]:
    """Normalised texts that no stage may see."""
    texts: list[str] = []
    for path in [*sorted((joint / "dev").glob("*.tsv")), *sorted((data / "sts_zh").glob("stsb_[dt]e*.tsv"))]:
        texts += [text for row in columns(path, ("sentence1", "sentence2")) for text in row]
    for folder in sorted(path.parent for path in (joint / "dev").glob("*/queries.jsonl")):
        texts += [item["text"] for item in objects(folder / "queries.jsonl")]
        relevant = {row[0] for row in columns(folder / "qrels" / "test.tsv", ("corpus-id",))}
        texts += [item["text"] for item in objects(folder / "corpus.jsonl") if item["_id"] in relevant]
    return {normalised(text) for text in texts}


def paragraphs(data: Path, name: str) -> Iterator[tuple[str, str]]:
    """Title and text of each."""
    folder = {"drcd": "drcd_dev", "cmrc": "cmrc_trial"}[name]
    for item in objects(data / "ir" / folder / "corpus.jsonl"):
        yield item["title"], item["text"]


def prepare(data: Path, joint: Path, output: Path) -> dict[str, int]:
    """Write all files; rows by file."""
    kept_out = held_out_texts(data, joint)
    counts: dict[str, int] = {}

    def allowed(*texts: str) -> bool:
        keys = [normalised(text) for text in texts]
        return all(keys) and not any(key in kept_out for key in keys)

    def write(name: str, rows: Iterable[Mapping[str, Any]]) -> None:
        lines = list(dict.fromkeys(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
        path = output / f"{name}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(lines), encoding="utf-8")
        counts[name] = len(lines)

    def pair(query: str, document: str) -> dict[str, Any]:
        return {"task_type": "ir", "query": query, "positives": [document]}

    of_set = {name: [(t, p) for t, p in paragraphs(data, name) if allowed(p)] for name in PARAGRAPHS}
    web = [row for row in columns(data / "ir" / "qbqtc_dev.tsv", ("query", "title", "relevance")) if allowed(*row[:2])]
    for name, content in of_set.items():
        write(f"corpus/{name}", ({"text": text} for _, text in content))
        write(f"pairs/{name}-titles", (pair(title, text) for title, text in content if allowed(title)))
        write(f"pairs/{name}-sentences", (pair(*parts) for _, text in content for parts in sentences(text)))
        trained = [row for row in objects(joint / "train" / f"{name}.jsonl") if allowed(row["query"])]
        write(f"pairs/{name}-questions", (pair(r["query"], p) for r in trained for p in r["positives"] if allowed(p)))
    write("corpus/web", ({"text": text} for row in web for text in row[:2]))
    write("pairs/web", (pair(query, title) for query, title, relevance in web if int(relevance) > 0))
    for name in PAIR_SETS:
        rows = objects(joint / "train" / f"{name}.jsonl")
        write(f"corpus/{name}", ({"text": t} for r in rows for t in (r["query"], *r["positives"]) if allowed(t)))
    return counts


def sentences(paragraph: str) -> Iterator[tuple[str, str]]:
    """Each chunk's first sentence, and the paragraph without it."""
    for chunk in cut(paragraph):
        sentence = next((part for part in re.split("[。！？]", chunk) if part), "").strip()
        rest = paragraph.replace(sentence, "", 1).strip("。 ")
        if len(sentence) >= SHORTEST_SENTENCE and normalised(rest):
            yield sentence, rest


def objects(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of a file of JSON objects."""
    with path.open(encoding="utf-8") as lines:
        yield from map(json.loads, lines)


def columns(path: Path, names: tuple[str, ...]) -> Iterator[list[str]]:
    """Some columns of a TSV."""
    for line in read_columns(path, names):
        if line.problem:
            raise DataError(f"{path}:{line.number}: {line.problem}")
        yield [field.strip() for field in line.fields]


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, metavar="DATA")
    parser.add_argument("joint", type=Path, metavar="JOINT")
    parser.add_argument("output", type=Path, metavar="OUTPUT")
    arguments = parser.parse_args()
    table = Table("file", "rows")
    try:
        counts = prepare(arguments.data, arguments.joint, arguments.output)
    except (DataError, OSError) as error:
        raise SystemExit(f"prepare_three_stages_zh: {error}") from None
    for name, count in counts.items():
        table.add_row(f"{name}.jsonl", f"{count:,}")
    Console().print(table)


if __name__ == "__main__":
    main()
