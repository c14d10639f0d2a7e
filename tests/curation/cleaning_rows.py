"""Files of rows for the tests of cleaning."""

import json
from pathlib import Path


def ir(query, *positives, negatives=(), **more):
    return {"task_type": "ir", "query": query, "positives": list(positives), "negatives": list(negatives), **more}


def sts(query, other, score):
    return {"task_type": "sts", "query": query, "positives": [other], "positive_scores": [score]}


def write(path, *rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def read(path):
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]


def queries(path):
    rows = [row["query"] for row in read(path)]
    return [row if isinstance(row, str) else row["text"] if isinstance(row, dict) else row[2] for row in rows]
