"""Seven small benchmark data sets in hub layout, made of the package's sample texts, and their rows."""

import csv
import json
import re
from importlib.resources import files
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

SAMPLES = Path(str(files("codiemb") / "sample_data" / "test"))
TASKS = (
    "MedicalRetrieval",
    "T2Reranking",
    "Ocnli",
    "CLSClusteringS2S",
    "AFQMC",
    "Waimai",
    "STSB",
)


def json_lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def write_jsonl(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def write_parquet(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path)


def write_csv(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def chinese(text):
    return int(bool(re.search("[\u4e00-\u9fff]", text)))


def rows():
    """By data set: its rows by configuration and split."""
    with (SAMPLES / "sts.tsv").open(encoding="utf-8") as file:
        lines = [line.rstrip("\n").split("\t") for line in file][1:]
    pairs = [{"sentence1": a, "sentence2": b, "score": float(score)} for a, b, score in lines]
    queries = json_lines(SAMPLES / "ir" / "queries.jsonl")[::9][:8]
    ids = {query["_id"] for query in queries}
    qrels = [line.split("\t") for line in (SAMPLES / "ir" / "qrels" / "test.tsv").read_text().splitlines()[1:]]
    qrels = [{"query-id": q, "corpus-id": d, "score": int(score)} for q, d, score in qrels if q in ids]
    corpus = json_lines(SAMPLES / "ir" / "corpus.jsonl")
    relevant = [row["corpus-id"] for row in qrels]
    others = [row for row in corpus if row["_id"] not in set(relevant)][::9][:12]
    corpus = [{"_id": row["_id"], "text": row["text"][:60]} for row in corpus if row["_id"] in set(relevant)] + [
        {"_id": row["_id"], "text": row["text"][:60]} for row in others
    ]
    other_ids = [row["_id"] for row in others]
    top = [
        {"query-id": query["_id"], "corpus-ids": [*other_ids[i : i + 4], *_relevant(qrels, query["_id"])]}
        for i, query in enumerate(queries)
    ]
    texts = [{"text": pair["sentence1"], "label": chinese(pair["sentence1"])} for pair in pairs[::2]]
    texts = [row for kind in (0, 1) for row in [row for row in texts if row["label"] == kind][:12]]
    clustered = {"sentences": [row["text"] for row in texts], "labels": [str(row["label"]) for row in texts]}
    nli = [
        {"sent1": pair["sentence1"], "sent2": pair["sentence2"], "labels": int(pair["score"] > 2.5)} for pair in pairs
    ]
    return {
        "mteb/STSB": {"default": {"test": pairs[:16]}},
        "C-MTEB/AFQMC": {"default": {"validation": pairs[-16:]}},
        "C-MTEB/OCNLI": {"default": {"validation": nli[40:56]}},
        "C-MTEB/waimai-classification": {"default": {"train": texts[::2], "test": texts[1::2]}},
        "C-MTEB/CLSClusteringS2S": {"default": {"test": [clustered]}},
        "mteb/MedicalRetrieval": {
            "corpus": {"dev": corpus},
            "queries": {"dev": queries},
            "default": {"dev": qrels},
        },
        "mteb/T2Reranking": {
            "corpus": {"corpus": corpus},
            "queries": {"queries": queries},
            "qrels": {"dev": qrels},
            "top_ranked": {"top_ranked": top},
        },
    }


def _relevant(qrels, query):
    return [row["corpus-id"] for row in qrels if row["query-id"] == query]


def write(root):
    """All spellings of the layout: README.md with configurations and without, parquet, jsonl and csv."""
    content = rows()
    write_jsonl(root / "mteb/STSB/test.jsonl", content["mteb/STSB"]["default"]["test"])
    afqmc = content["C-MTEB/AFQMC"]["default"]["validation"]
    write_parquet(root / "C-MTEB/AFQMC/data/validation-00000-of-00002-0a1b2c3d.parquet", afqmc[:12])
    write_parquet(root / "C-MTEB/AFQMC/data/validation-00001-of-00002-0a1b2c3d.parquet", afqmc[12:])
    write_jsonl(root / "C-MTEB/OCNLI/validation.jsonl", content["C-MTEB/OCNLI"]["default"]["validation"])
    for split, part in content["C-MTEB/waimai-classification"]["default"].items():
        write_csv(root / f"C-MTEB/waimai-classification/{split}.csv", part)
    write_parquet(root / "C-MTEB/CLSClusteringS2S/test.parquet", content["C-MTEB/CLSClusteringS2S"]["default"]["test"])
    medical = root / "mteb/MedicalRetrieval"
    card = ["---", "configs:"]
    for config, splits in content["mteb/MedicalRetrieval"].items():
        write_jsonl(medical / config / "part-1.jsonl", splits["dev"])
        card += [f"- config_name: {config}", "  data_files:", "  - split: dev", f"    path: {config}/*"]
    (medical / "README.md").write_text("\n".join([*card, "---", "", "# Written for a test", ""]))
    reranking = content["mteb/T2Reranking"]
    for config in ("corpus", "queries", "top_ranked"):
        write_jsonl(root / f"mteb/T2Reranking/{config}.jsonl", reranking[config][config])
    write_jsonl(root / "mteb/T2Reranking/qrels/dev.jsonl", reranking["qrels"]["dev"])
    return content
