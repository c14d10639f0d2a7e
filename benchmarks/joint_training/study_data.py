"""The study's data: training files, and validation and test items that share no sentence or paragraph with them.

    python benchmarks/joint_training/study_data.py DATA OUTPUT

DATA is the folder of public sets that recipes/prepare_joint_zh.py reads; its readers and its cutting are used here.
What differs: three parts in place of two, larger held-out parts, QBQTC's pairs as a sixth similarity set, training rows
of chunks only, and a retrieval test that the base model does not solve:

- one index holds the chunks of all paragraphs of DRCD (traditional script) and CMRC (simplified), QBQTC's titles, and
  all questions and web queries, which resemble a query and answer none; a paragraph ranks where its best chunk does
  (MaxP);
- `passages` asks a held-out question in its own script, `cross_script` the same question in the other one, `titles` a
  held-out web query.

Of these texts the index keeps what the base model ranks among the first POOLED of any query of the test or validation
parts, as MTEB does with large collections: the base's own scores stay, and a scoring takes half the time.

OUTPUT gets train/*.jsonl, and items.json with everything that is scored.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from codiemb.extras import require
from codiemb.prompts import TEMPLATES, InstructionTemplate

sys.path.insert(0, str(Path(__file__).parents[2] / "recipes"))

import prepare_joint_zh as joint_zh
from prepare_joint_zh import Counts, Pair, Question, normalised, sts_row

SEED = 7
HELD_OUT = {"afqmc": 1500, "lcqmc": 1500, "bq": 1500, "pawsx": 450}  # pairs; a third of them is for validation
VALIDATION_SHARE = 1 / 3
HELD_OUT_SHARE = 0.2  # of paragraphs and of web queries
INDEXED = 20_000  # at most so many titles, and so many web queries
HELD_OUT_WEB_PAIRS = 1500
POOLED = 20
NEGATIVES = 7
PARTS = ("validation", "test")
FILES = ("dev", "test")  # of STS-B
INSTRUCTIONS = {
    "sts": "Retrieve semantically similar text.",
    "passages": "Given a question, retrieve the passage that answers it.",
    "titles": "Given a web search query, retrieve the title of a page that answers it.",
}

Row = dict[str, Any]


class Writer:
    """Collects training rows and scored items."""

    def __init__(self, output: Path) -> None:
        self.output = output
        self.train: dict[str, list[Row]] = {}
        self.items: dict[str, Any] = {"pairs": {}, "documents": [], "groups": [], "queries": {}}

    def add_documents(self, groups: Sequence[str], texts: Sequence[str]) -> None:
        """Texts of the index; a group ranks where its best text does."""
        self.items["groups"] += groups
        self.items["documents"] += texts


def split_in_two(sets: Mapping[str, Sequence[Pair]], seed: int) -> dict[str, dict[str, list[Pair]]]:
    """Validation and test parts of held-out pairs that share no sentence."""
    wanted = {name: round(VALIDATION_SHARE * len(pairs)) for name, pairs in sets.items()}
    counts = {name: Counts() for name in sets}
    test, validation = joint_zh.split_pairs(sets, wanted, set(), counts, seed)
    return {"validation": validation, "test": test}


def pairs(data: Path, writer: Writer) -> None:
    """The five sets of recipes/joint-zh.yaml. STS-B has splits of its own: dev is for validation, test for the end."""
    folder = data / "sts_zh"
    sets = {name: joint_zh.read_pairs(folder / file, Counts()) for name, file in joint_zh.PAIR_SETS.items()}
    stsb = {
        part: joint_zh.read_pairs(folder / f"stsb_{file}.tsv", Counts())
        for part, file in zip(PARTS, FILES, strict=True)
    }
    forbidden = {normalised(text) for rows in stsb.values() for pair in rows for text in (pair.first, pair.second)}
    train, held_out = joint_zh.split_pairs(sets, HELD_OUT, forbidden, {name: Counts() for name in sets}, SEED)
    parts = split_in_two(held_out, SEED)
    for name, rows in train.items():
        writer.train[name] = [sts_row(pair) for pair in rows]
    for part in PARTS:
        writer.items["pairs"][part] = {"stsb": stsb[part], **parts[part]}


def passages(data: Path, writer: Writer, encoder: joint_zh.Encoder) -> None:
    """DRCD and CMRC: paragraphs are held out with their questions; training pairs a question with its chunk."""
    convert = {name: require("opencc", "curation").OpenCC(name).convert for name in ("t2s", "s2t")}
    held_out: dict[str, list[tuple[Question, str]]] = {part: [] for part in PARTS}
    train: dict[str, list[Question]] = {}
    paragraphs: dict[str, str] = {}
    for name, folder, other in (("drcd", "drcd_dev", "t2s"), ("cmrc", "cmrc_trial", "s2t")):
        corpus, questions = joint_zh._read_beir(data / "ir" / folder, name)
        paragraphs |= corpus
        ids = sorted(corpus)
        np.random.default_rng(SEED).shuffle(ids)
        out = ids[: round(HELD_OUT_SHARE * len(ids))]
        validation = set(out[: round(VALIDATION_SHARE * len(out))])
        test = set(out) - validation
        train[name] = [q for q in questions if normalised(q.text) and q.paragraph not in validation | test]
        for part, chosen in zip(PARTS, (validation, test), strict=True):
            held_out[part] += [
                (q, convert[other](q.text)) for q in questions if q.paragraph in chosen and normalised(q.text)
            ]
    chunk_texts, owners = [], []
    for paragraph, text in paragraphs.items():
        chunks = joint_zh.cut(text)
        chunk_texts += chunks
        owners += [paragraph] * len(chunks)
    writer.add_documents(owners, chunk_texts)
    questions = {q.text for rows in train.values() for q in rows} | {
        q.text for rows in held_out.values() for q, _ in rows
    }
    for text in sorted(questions):
        writer.add_documents([f"question-{normalised(convert['t2s'](text))}"], [text])
    for part in PARTS:
        for task, spoken in (("passages", 0), ("cross_script", 1)):
            writer.items["queries"].setdefault(part, {})[task] = [
                {
                    "text": (question.text, other)[spoken],
                    "relevant": [question.paragraph],
                    # The question itself lies in the index, in its own script.
                    "excluded": [f"question-{normalised(convert['t2s'](question.text))}"],
                }
                for question, other in held_out[part]
            ]
    closed = {q.paragraph for rows in held_out.values() for q, _ in rows}
    searched = [i for i, owner in enumerate(owners) if owner not in closed]
    vectors = encoder.documents([chunk_texts[i] for i in searched])
    own = np.array([owners[i] for i in searched])
    for name, rows in train.items():
        writer.train[name] = []
        for question, query in zip(rows, encoder.queries([q.text for q in rows]), strict=True):
            scores = vectors @ query
            mine = np.flatnonzero(own == question.paragraph)
            ranked = mine[np.argsort(-scores[mine], kind="stable")]
            best = float(scores[ranked[0]])
            if len(ranked) > 1 and best - scores[ranked[1]] < joint_zh.CHUNK_MARGIN:
                continue  # no answer spans in these files: where two chunks are alike, neither is taken
            scores[mine] = -1
            negatives = [chunk_texts[searched[i]] for i in joint_zh.hard_negatives(scores, best)]
            writer.train[name].append(joint_zh._ir_row(question.text, [chunk_texts[searched[ranked[0]]]], negatives))


def titles(data: Path, writer: Writer, encoder: joint_zh.Encoder) -> None:
    """QBQTC as retrieval (relevance 2 is relevant) and as a similarity set (0, 1, 2), split by query."""
    by_query: dict[str, dict[str, int]] = defaultdict(dict)
    columns = ("query", "title", "relevance")
    for query, title, relevance in joint_zh._rows(data / "ir" / "qbqtc_dev.tsv", columns):
        if normalised(query) and normalised(title) and not joint_zh._CONTROL.search(query + title):
            by_query[query][title] = max(int(relevance), by_query[query].get(title, 0))
    judged = [Pair(query, title, score) for query, found in by_query.items() for title, score in found.items()]
    wanted = {"qbqtc": HELD_OUT_WEB_PAIRS}
    train, held_out = joint_zh.split_pairs({"qbqtc": judged}, wanted, set(), {"qbqtc": Counts()}, SEED)
    # Relevance 2 is rare: as many queries that have such a title are held out as are needed for a test.
    random = np.random.default_rng(SEED)
    answered = sorted({p.first for p in train["qbqtc"] if p.score == 2})
    random.shuffle(answered)
    asked = set(answered[: round(HELD_OUT_SHARE * len(answered))])
    joined = {normalised(p.first) for p in train["qbqtc"] if p.first in asked}
    moved = [p for p in train["qbqtc"] if normalised(p.first) in joined]
    closed = {normalised(p.second) for p in moved} | joined | {normalised(t) for p in held_out["qbqtc"] for t in p[:2]}
    kept = [p for p in train["qbqtc"] if not {normalised(p.first), normalised(p.second)} & closed]
    parts = split_in_two(held_out, SEED)
    for part in PARTS:
        writer.items["pairs"][part]["qbqtc"] = parts[part]["qbqtc"]
    writer.train["qbqtc_pairs"] = [sts_row(pair) for pair in kept]
    relevant: dict[str, list[str]] = defaultdict(list)
    for pair in moved:
        if pair.score == 2:
            relevant[pair.first].append(pair.second)
    every = sorted({pair.second for pair in judged})
    random.shuffle(every)
    index = {title: f"title-{i}" for i, title in enumerate(dict.fromkeys([*chain(*relevant.values()), *every]))}
    indexed = list(index)[:INDEXED]
    writer.add_documents([index[title] for title in indexed], indexed)
    asking = sorted(by_query)
    random.shuffle(asking)
    for query in dict.fromkeys([*relevant, *asking][:INDEXED]):
        writer.add_documents([f"question-{normalised(query)}"], [query])
    queries = sorted(relevant)
    random.shuffle(queries)
    border = round(VALIDATION_SHARE * len(queries))
    for part, chosen in zip(PARTS, (queries[:border], queries[border:]), strict=True):
        writer.items["queries"][part]["titles"] = [
            {
                "text": query,
                "relevant": [index[title] for title in relevant[query]],
                # What is judged "partly relevant" is neither right nor wrong.
                "excluded": [
                    f"question-{normalised(query)}",
                    *(index[title] for title, score in by_query[query].items() if score == 1),
                ],
            }
            for query in chosen
        ]
    pool = sorted({pair.second for pair in kept})
    place = {title: i for i, title in enumerate(pool)}
    vectors = encoder.documents(pool)
    rows: dict[str, dict[str, int]] = defaultdict(dict)
    for pair in kept:
        rows[pair.first][pair.second] = int(pair.score)
    trained = [query for query, found in rows.items() if 2 in found.values()]
    writer.train["qbqtc"] = []
    for query, vector in zip(trained, encoder.queries(trained), strict=True):
        scores = vectors @ vector
        right = [title for title, score in rows[query].items() if score == 2]
        best = float(max(scores[place[title]] for title in right))
        scores[[place[title] for title in rows[query]]] = -1
        wrong = [title for title, score in rows[query].items() if score == 0]
        mined = [pool[i] for i in joint_zh.hard_negatives(scores, best)]
        writer.train["qbqtc"].append(joint_zh._ir_row(query, right, [*wrong, *mined][:NEGATIVES]))


def pool(items: dict[str, Any], encoder: joint_zh.Encoder, ranks: int = POOLED) -> None:
    """Keep the groups of the index with a text among the first `ranks` of some query, and the relevant ones."""
    groups = np.array(items["groups"])
    vectors = encoder.documents(items["documents"])
    queries = [query for part in items["queries"].values() for rows in part.values() for query in rows]
    kept = {group for query in queries for group in query["relevant"]}
    for query, vector in zip(queries, encoder.queries([query["text"] for query in queries]), strict=True):
        scores = vectors @ vector
        scores[np.isin(groups, query["excluded"])] = -np.inf
        kept |= set(groups[np.argpartition(-scores, ranks)[:ranks]])
    chosen = [i for i, group in enumerate(items["groups"]) if group in kept]
    items["documents"] = [items["documents"][i] for i in chosen]
    items["groups"] = [items["groups"][i] for i in chosen]


def held_out_texts(items: Mapping[str, Any]) -> set[str]:
    """Normalised sentences and queries, of both scripts, that no training row may hold."""
    texts = {text for part in items["pairs"].values() for rows in part.values() for row in rows for text in row[:2]}
    texts |= {query["text"] for part in items["queries"].values() for rows in part.values() for query in rows}
    return {normalised(text) for text in texts}


def drop_held_out(writer: Writer) -> Counter[str]:
    """Take held-out texts out of all training rows, whatever set they come from; returns the dropped rows by set."""
    closed = held_out_texts(writer.items)
    dropped: Counter[str] = Counter()
    for name, rows in writer.train.items():
        kept = [row for row in rows if not {normalised(t) for t in (row["query"], *row["positives"])} & closed]
        for row in kept:
            if "negatives" in row:
                row["negatives"] = [text for text in row["negatives"] if normalised(text) not in closed]
        dropped[name] = len(rows) - len(kept)
        writer.train[name] = kept
    return dropped


def mixed_rows(train: Mapping[str, Sequence[Row]], template: InstructionTemplate) -> list[Row]:
    """All sets as one, for InfoNCE over mixed batches: of scored pairs, those of the top fifth of the scores.

    The prompts are part of the texts, since in such a batch both texts of some rows take the query side's.
    """
    query, document = (template.prompt(side) for side in ("query", "document"))
    rows: list[Row] = []
    for name in sorted(train):
        scores = [score for row in train[name] for score in row.get("positive_scores", [])]
        if not scores:
            rows += [
                row
                | {"query": query + row["query"]}
                | {side: [document + text for text in row[side]] for side in ("positives", "negatives")}
                for row in train[name]
            ]
            continue
        threshold = 0.8 * max(scores)
        rows += [
            {
                "task_type": "ir",
                "query": query + row["query"],
                "positives": [query + row["positives"][0]],
                "negatives": [],
            }
            for row in train[name]
            if row["positive_scores"][0] >= threshold
        ]
    return rows


def instructed_rows(rows: Sequence[Row], instruction: str) -> list[Row]:
    """The same rows with a task instruction on each text that takes the query side."""

    def with_instruction(text: str) -> list[str]:
        return [instruction, "", text]

    symmetric = rows[0]["task_type"] == "sts"
    return [
        row
        | {"query": with_instruction(row["query"])}
        | ({"positives": [with_instruction(text) for text in row["positives"]]} if symmetric else {})
        for row in rows
    ]


def prepare(data: Path, output: Path) -> None:
    """Write everything; a finished OUTPUT is left alone."""
    if (output / "items.json").is_file():
        return
    writer = Writer(output)
    encoder = joint_zh.Encoder()
    pairs(data, writer)
    passages(data, writer, encoder)
    titles(data, writer, encoder)
    dropped = drop_held_out(writer)
    pool(writer.items, encoder)
    shutil.rmtree(output, ignore_errors=True)
    for name, rows in writer.train.items():
        joint_zh._write_jsonl(output / "train" / f"{name}.jsonl", rows)
        print(f"{name}: {len(rows)} training rows, {dropped[name]} dropped for a held-out text")
        instruction = INSTRUCTIONS[
            "sts" if "positive_scores" in rows[0] else "titles" if name == "qbqtc" else "passages"
        ]
        joint_zh._write_jsonl(output / "train-instructed" / f"{name}.jsonl", instructed_rows(rows, instruction))
    joint_zh._write_jsonl(output / "train-mixed" / "mixed.jsonl", mixed_rows(writer.train, TEMPLATES["e5"]))
    content = json.dumps(writer.items, ensure_ascii=False)
    joint_zh._write_text(output / "items.json", content)
    for part in PARTS:
        sizes = {name: len(rows) for group in ("pairs", "queries") for name, rows in writer.items[group][part].items()}
        print(f"{part}: {sizes}")
    print(f"index: {len(writer.items['documents'])} texts; sha256 {hashlib.sha256(content.encode()).hexdigest()[:16]}")


def command(prepare: Callable[[Path, Path], None], description: str | None) -> None:
    """The command that prepares a study's data."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, metavar="DATA")
    parser.add_argument("output", type=Path, metavar="OUTPUT")
    arguments = parser.parse_args()
    prepare(arguments.data, arguments.output)


if __name__ == "__main__":
    command(prepare, __doc__)
