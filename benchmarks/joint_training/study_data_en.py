"""The English study's data: STS-B and Cranfield, whose test queries no training row holds.

    python benchmarks/joint_training/study_data_en.py DATA OUTPUT

DATA is the folder of public sets that recipes/prepare_smollm2_en.py reads; its readers are used here. Retrieval is
trained on Cranfield's titles, each with its document's abstract, and tested with Cranfield's queries over all
documents, a third of the queries for validation. The documents of the test are known from training, then, and their
judgements are not. STS-B has splits of its own.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
from study_data import FILES, PARTS, SEED, VALIDATION_SHARE, Writer, command, joint_zh, mixed_rows

from codiemb.prompts import TEMPLATES

sys.path.insert(0, str(Path(__file__).parents[2] / "recipes"))

import prepare_smollm2_en as smollm2


def pairs(data: Path, writer: Writer) -> None:
    """STS-B: dev is for validation."""
    writer.train["stsb"], _ = smollm2.sts_rows(data)
    for part, file in zip(PARTS, FILES, strict=True):
        found = smollm2.scored_pairs(data / "sts_en" / f"stsb_{file}.tsv")
        writer.items["pairs"][part] = {"stsb": [(first, second, float(score)) for first, second, score in found]}


def documents(data: Path, writer: Writer, encoder: joint_zh.Encoder) -> None:
    """Cranfield, with other abstracts that the bundled model ranks high as hard negatives."""
    folder = data / "ir" / "cranfield"
    corpus = {item["_id"]: item["text"] for item in smollm2.objects(folder / "corpus.jsonl")}  # titles included
    writer.add_documents(list(corpus), list(corpus.values()))
    judged: dict[str, list[str]] = {}
    for line in (folder / "qrels" / "test.tsv").read_text(encoding="utf-8").splitlines()[1:]:
        query, document, score = line.split("\t")
        if int(score) > 0 and document in corpus:
            judged.setdefault(query, []).append(document)
    queries = [item for item in smollm2.objects(folder / "queries.jsonl") if item["_id"] in judged]
    np.random.default_rng(SEED).shuffle(queries)
    border = round(VALIDATION_SHARE * len(queries))
    for part, chosen in zip(PARTS, (queries[:border], queries[border:]), strict=True):
        writer.items["queries"][part] = {
            "cranfield": [{"text": q["text"], "relevant": judged[q["_id"]], "excluded": []} for q in chosen]
        }
    titled, _ = smollm2.cranfield_pairs(data)
    titles, abstracts = [title for _, title, _ in titled], [abstract for _, _, abstract in titled]
    similarities = encoder.queries(titles) @ encoder.documents(abstracts).T
    writer.train["cranfield"] = []
    for i, scores in enumerate(similarities):
        best, scores[i] = float(scores[i]), -1
        negatives = [abstracts[j] for j in joint_zh.hard_negatives(scores, best)]
        writer.train["cranfield"].append(joint_zh._ir_row(titles[i], [abstracts[i]], negatives))


def prepare(data: Path, output: Path) -> None:
    """Write everything; a finished OUTPUT is left alone."""
    if (output / "items.json").is_file():
        return
    writer = Writer(output)
    pairs(data, writer)
    documents(data, writer, joint_zh.Encoder())
    for name, rows in writer.train.items():
        joint_zh._write_jsonl(output / "train" / f"{name}.jsonl", rows)
        print(f"{name}: {len(rows)} training rows")
    joint_zh._write_jsonl(output / "train-mixed" / "mixed.jsonl", mixed_rows(writer.train, TEMPLATES["none"]))
    joint_zh._write_text(output / "items.json", json.dumps(writer.items, ensure_ascii=False))
    for part in PARTS:
        print({name: len(rows) for group in ("pairs", "queries") for name, rows in writer.items[group][part].items()})


if __name__ == "__main__":
    command(prepare, __doc__)
