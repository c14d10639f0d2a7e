"""Lay out public sets as `codiemb evaluate` takes them: for `--dataset-root`, and as data of one's own for mteb's code.

    python benchmarks/lay_out.py DATA HELD_OUT OUTPUT

DATA is the folder of public sets that `make joint-zh` takes, HELD_OUT what its preparation holds out
(runs/joint-zh-data/dev). Written are

- OUTPUT/hub: the test split of Chinese STS-B, which is CMTEB's task STSB, under the name of mteb's data set,
- OUTPUT/local/topics.tsv: 300 held-out questions each on a bank's loans, on consumer credit, and of any kind, with that
  as their label; for classification and clustering,
- OUTPUT/local/paragraphs: the first 200 held-out questions of DRCD and CMRC, to be answered from 300 held-out
  paragraphs, those with the answers among them; a retrieval task that takes little time,
- OUTPUT/local/lcqmc-pairs.jsonl: held-out pairs of questions that mean the same or not, for pair classification,
- OUTPUT/short/pairs.tsv: 12,500 pairs of short questions from LCQMC and BQ, to measure how long an evaluation takes.
"""

import csv
import json
import sys
from pathlib import Path

TOPICS = {"bq": "bank loans", "afqmc": "consumer credit", "lcqmc": "anything"}
EACH = 300
QUESTIONS, PARAGRAPHS = 200, 300
SHORT_PAIRS = 12_500


def rows(path: Path) -> list[list[str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE))[1:]


def write_lines(path: Path, lines: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")
    print(f"{path}: {len(lines)} rows")


def similarity(data: Path, hub: Path) -> None:
    pairs = rows(data / "sts_zh" / "stsb_test.tsv")
    lines = [{"sentence1": a, "sentence2": b, "score": float(score)} for a, b, score in pairs]
    write_lines(hub / "mteb" / "STSB" / "test.jsonl", lines)


def topics(held_out: Path, path: Path) -> None:
    lines = ["text\tlabel"]
    for name, label in TOPICS.items():
        questions = dict.fromkeys(
            text for first, second, _ in rows(held_out / f"{name}.tsv") for text in (first, second)
        )
        lines += [f"{text}\t{label}" for text in list(questions)[:EACH]]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"{path}: {len(lines) - 1} rows")


def short_pairs(data: Path, path: Path) -> None:
    pairs = [row for name in ("lcqmc_dev", "bq_dev") for row in rows(data / "sts_zh" / f"{name}.tsv")][:SHORT_PAIRS]
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = ["sentence1\tsentence2\tscore", *map("\t".join, pairs)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"{path}: {len(pairs)} rows")


def paragraphs(source: Path, folder: Path) -> None:
    corpus, queries = (
        [json.loads(line) for line in (source / f"{part}.jsonl").read_text(encoding="utf-8").splitlines()]
        for part in ("corpus", "queries")
    )
    queries = queries[:QUESTIONS]
    asked = {query["_id"] for query in queries}
    qrels = [row for row in rows(source / "qrels" / "test.tsv") if row[0] in asked]
    answers = {document for _, document, _ in qrels}
    corpus.sort(key=lambda row: row["_id"] not in answers)  # stable: the answers, then the others as they stand
    write_lines(folder / "corpus.jsonl", corpus[: max(PARAGRAPHS, len(answers))])
    write_lines(folder / "queries.jsonl", queries)
    (folder / "qrels").mkdir(exist_ok=True)
    lines = ["query-id\tcorpus-id\tscore", *map("\t".join, qrels)]
    (folder / "qrels" / "test.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")


def classified_pairs(held_out: Path, path: Path) -> None:
    lines = [
        {"task_type": "pair_classification", "query": a, "positives": [b], "positive_scores": [float(label)]}
        for a, b, label in rows(held_out / "lcqmc.tsv")
    ]
    write_lines(path, lines)


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    data, held_out, output = map(Path, sys.argv[1:])
    similarity(data, output / "hub")
    topics(held_out, output / "local" / "topics.tsv")
    paragraphs(held_out / "drcd_cmrc", output / "local" / "paragraphs")
    short_pairs(data, output / "short" / "pairs.tsv")
    classified_pairs(held_out, output / "local" / "lcqmc-pairs.jsonl")
