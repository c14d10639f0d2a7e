"""Hard negatives of `codiemb mine` against those of sentence-transformers' `mine_hard_negatives`, and random ones.

    python benchmarks/mine.py DATA OUTPUT [--paragraphs 1256] [--steps 80] [--seeds 3] [--arms random codiemb ...]

DATA holds the BEIR folders ir/drcd_dev and ir/cmrc_trial. Their paragraphs are cut into chunks of about 100 characters;
a quarter of the paragraphs is held out with its questions. All arms mine the same texts for the same questions with the
bundled model, train it on the same rows with the same steps and seeds, and are scored on the held-out questions, each
in traditional and in simplified script. What is mined and searched holds chunks and, as collections of real texts do,
other people's questions, which resemble a query and answer none; a paragraph ranks where its best chunk does.

Arms: `random` draws negatives; `codiemb` has the defaults of `codiemb mine`; `st-0.05` is
sentence-transformers with the setting its documentation recommends (relative_margin 0.05, NV-Retriever's), `st-0.02`
and `codiemb-0.98` both with a share of 0.98 counted from zero, which suits a model whose cosines lie between 0.7 and 1.

What is finished in OUTPUT is left alone, so that a stopped benchmark goes on. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from codiemb import LLMEmbeddingModel
from codiemb.curation.mining import MiningOptions, mine
from codiemb.encoding import EmbeddingPass
from codiemb.evaluation.evaluator import Result
from codiemb.evaluation.significance import differences
from codiemb.extras import require
from codiemb.prompts import PromptedText

sys.path.insert(0, str(Path(__file__).parents[1] / "recipes"))

import prepare_joint_zh as joint_zh

CHUNK_CHARACTERS = 100
HELD_OUT_SHARE = 0.25
NEGATIVES = 7
ARMS = ("random", "codiemb", "st-0.05", "codiemb-0.98", "st-0.02")
Rows = list[dict[str, Any]]


# -- data ------------------------------------------------------------------------------------------------------------


def prepare(data: Path, output: Path, count: int) -> None:
    """Training rows without negatives, the texts to mine, and what is scored."""
    joint_zh.CHUNK_CHARACTERS = CHUNK_CHARACTERS
    rng = np.random.default_rng(7)
    paragraphs: dict[str, str] = {}
    questions: list[joint_zh.Question] = []
    for name, folder in (("drcd", "drcd_dev"), ("cmrc", "cmrc_trial")):
        corpus, asked = joint_zh._read_beir(data / "ir" / folder, name)
        paragraphs |= corpus
        questions += [question for question in asked if joint_zh.normalised(question.text)]
    chosen = sorted(paragraphs)
    rng.shuffle(chosen)
    chosen = chosen[:count]
    held_out = set(chosen[: round(HELD_OUT_SHARE * len(chosen))])
    owners, chunks = zip(*((p, chunk) for p in chosen for chunk in joint_zh.cut(paragraphs[p])), strict=True)
    owner = np.array(owners)
    encoder = joint_zh.Encoder()
    known = [question for question in questions if question.paragraph in set(chosen)]
    train = [question for question in known if question.paragraph not in held_out]
    vectors, asked_vectors = encoder.documents(chunks), encoder.queries([question.text for question in train])
    rows = []
    for question, query in zip(train, asked_vectors, strict=True):
        own = np.flatnonzero(owner == question.paragraph)
        ranked = own[np.argsort(-(vectors[own] @ query), kind="stable")]
        best = vectors[ranked[:2]] @ query
        # No answer spans in these files: the base model says which chunk answers, where it is clear.
        if len(ranked) == 1 or best[0] - best[1] >= joint_zh.CHUNK_MARGIN:
            rows.append({"task_type": "ir", "query": question.text, "positives": [chunks[ranked[0]]]})
    corpus = [{"text": text} for text, p in zip(chunks, owners, strict=True) if p not in held_out]
    corpus += [{"text": question.text} for question in train]
    joint_zh._write_jsonl(output / "rows.jsonl", rows)
    joint_zh._write_jsonl(output / "corpus.jsonl", corpus)
    asked_later = [question for question in known if question.paragraph in held_out]
    convert = {name: require("opencc", "curation").OpenCC(name).convert for name in ("t2s", "s2t")}
    scored = {
        "documents": [*chunks, *(question.text for question in known)],
        "owners": [*owners, *(f"question {question.id}" for question in known)],
        # In their own script, then in the other one: DRCD is traditional, CMRC simplified.
        "queries": [question.text for question in asked_later]
        + [convert["t2s" if q.id.startswith("drcd") else "s2t"](q.text) for q in asked_later],
        "own": 2 * [f"question {question.id}" for question in asked_later],
        "relevant": 2 * [question.paragraph for question in asked_later],
    }
    (output / "scored.json").write_text(json.dumps(scored, ensure_ascii=False), encoding="utf-8")


def read_lines(path: Path) -> Rows:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


# -- miners ----------------------------------------------------------------------------------------------------------


def random_negatives(output: Path, folder: Path) -> None:
    rng = np.random.default_rng(0)
    texts = [row["text"] for row in read_lines(output / "corpus.jsonl")]
    rows = read_lines(output / "rows.jsonl")
    for row in rows:
        drawn = [texts[i] for i in rng.choice(len(texts), NEGATIVES + 2, replace=False)]
        row["negatives"] = [text for text in drawn if text not in (row["query"], *row["positives"])][:NEGATIVES]
    joint_zh._write_jsonl(folder / "mined.jsonl", rows)


def codiemb_negatives(output: Path, folder: Path, **options: Any) -> None:
    shutil.rmtree(folder / "cache", ignore_errors=True)
    mine(
        LLMEmbeddingModel("bundled", device="cpu"),
        output / "rows.jsonl",
        folder / "mined.jsonl",
        model_name="bundled",
        corpus=[output / "corpus.jsonl"],
        options=MiningOptions(negatives=NEGATIVES, **options),
        cache=folder / "cache",
        overwrite=True,
    )


def their_negatives(output: Path, folder: Path, relative_margin: float) -> None:
    from datasets import Dataset
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.util import mine_hard_negatives

    from codiemb.bundled import bundled_model

    rows = read_lines(output / "rows.jsonl")
    pairs = {"query": [row["query"] for row in rows], "positive": [row["positives"][0] for row in rows]}
    mined = mine_hard_negatives(
        Dataset.from_dict(pairs),
        SentenceTransformer(str(bundled_model()), device="cpu"),
        corpus=[row["text"] for row in read_lines(output / "corpus.jsonl")],
        relative_margin=relative_margin,
        range_max=100,
        num_negatives=NEGATIVES,
        sampling_strategy="top",
        output_format="labeled-list",
        use_faiss=True,
        verbose=False,
    )
    columns = [name for name in mined.column_names if name not in ("query", "labels")]
    found = {
        row["query"]: [text for text, label in zip(row[columns[0]], row["labels"], strict=True) if not label]
        for row in mined
    }
    for row in rows:
        row["negatives"] = found.get(row["query"], [])
    joint_zh._write_jsonl(folder / "mined.jsonl", rows)


MINERS: Mapping[str, Callable[[Path, Path], None]] = {
    "random": random_negatives,
    "codiemb": codiemb_negatives,
    "codiemb-0.98": lambda output, folder: codiemb_negatives(output, folder, share=0.98, chance="zero"),
    "st-0.05": lambda output, folder: their_negatives(output, folder, 0.05),
    "st-0.02": lambda output, folder: their_negatives(output, folder, 0.02),
}


def mined(output: Path, arm: str) -> dict[str, float]:
    """Mine once, and say how long it took: s of wall clock and of all cores."""
    folder = output / arm
    record = folder / "mining.json"
    if not record.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        wall, cores = time.perf_counter(), time.process_time()
        MINERS[arm](output, folder)
        seconds = {"wall_s": time.perf_counter() - wall, "cpu_s": time.process_time() - cores}
        rows = read_lines(folder / "mined.jsonl")
        counts = [len(row["negatives"]) for row in rows]
        seconds |= {"negatives": sum(counts), "short_rows": sum(count < NEGATIVES for count in counts)}
        record.write_text(json.dumps(seconds))
    return json.loads(record.read_text())


# -- training and scoring --------------------------------------------------------------------------------------------


def train(output: Path, arm: str, seed: int, steps: int, batch: int) -> Path:
    from codiemb.training.recipe import parse_recipe
    from codiemb.training.run import run

    folder = output / arm / f"model-{seed}"
    recipe = parse_recipe(
        {
            "model": "bundled",
            "output": str(folder),
            "train": [{"path": str(output / arm / "mined.jsonl")}],
            "tasks": {"ir": {"batch_size": batch, "negatives": 4, "query_negatives": False}},
            "max_steps": steps,
            "max_length": 128,
            "optimizer": {"learning_rate": 8e-5},
            "checkpoints": {"every": 100_000},
            "dropout": 0.0,
            "seed": seed,
        }
    )
    run(recipe, overwrite=True)
    return folder


def score(output: Path, model: str | Path) -> np.ndarray:
    """nDCG@10 of each held-out question in each script; it has one relevant paragraph."""
    scored = json.loads((output / "scored.json").read_text(encoding="utf-8"))
    encoder = LLMEmbeddingModel(model, device="cpu")
    embed = EmbeddingPass(encoder, max_length=128)
    query, document = encoder.prompt_for("query", ""), encoder.prompt_for("document", "")
    similarities = (
        embed.encode(PromptedText(query, text) for text in scored["queries"])
        @ embed.encode(PromptedText(document, text) for text in scored["documents"]).T
    )
    names = sorted(set(scored["owners"]))
    place = {name: i for i, name in enumerate(names)}
    best = np.full((len(scored["queries"]), len(names)), -np.inf, dtype=np.float32)
    np.maximum.at(best.T, [place[owner] for owner in scored["owners"]], similarities.T)
    best[np.arange(len(best)), [place[owner] for owner in scored["own"]]] = -np.inf  # the question itself
    relevant = np.array([place[owner] for owner in scored["relevant"]])
    own = np.take_along_axis(best, relevant[:, None], axis=1)
    ranks = (best >= own).sum(axis=1)  # from 1; ties count against the model
    return np.where(ranks <= 10, 1 / np.log2(ranks + 1), 0.0)


def trained_scores(output: Path, arm: str, seed: int, steps: int, batch: int) -> np.ndarray:
    path = output / arm / f"ndcg-{seed}-{steps}x{batch}.npy"
    if not path.is_file():
        folder = train(output, arm, seed, steps, batch)
        np.save(path, score(output, folder))
        shutil.rmtree(folder)
    return np.load(path)


def compared(first: Sequence[np.ndarray], second: Sequence[np.ndarray]) -> dict[str, Any]:
    """Mean difference over seeds, its 95 % interval over questions, and p."""

    def result(values: np.ndarray) -> Result:
        column = {"ndcg_at_10": values}
        return Result("held-out questions", "ir", float(values.mean()), {}, len(values), {}, column)

    mine_, theirs = result(np.mean(first, axis=0)), result(np.mean(second, axis=0))
    found = differences([mine_], [theirs]).tasks["held-out questions"]
    assert found is not None
    return {
        "difference": round(100 * (mine_.main_score - theirs.main_score), 2),
        "low": round(100 * found.low, 2),
        "high": round(100 * found.high, 2),
        "p": found.p,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, metavar="DATA")
    parser.add_argument("output", type=Path, metavar="OUTPUT")
    parser.add_argument("--paragraphs", type=int, default=1256, help="of both sets together")
    parser.add_argument("--steps", type=int, default=80)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=["random", "codiemb", "st-0.05"])
    arguments = parser.parse_args()
    output: Path = arguments.output
    if not (output / "scored.json").is_file():
        output.mkdir(parents=True, exist_ok=True)
        prepare(arguments.data, output, arguments.paragraphs)
    base = output / "base.npy"
    if not base.is_file():
        np.save(base, score(output, "bundled"))
    mining = {arm: mined(output, arm) for arm in arguments.arms}
    for arm, found in mining.items():
        print(f"{arm:<14} mining {found['wall_s']:7.1f} s wall, {found['cpu_s']:7.1f} s of cores", end="", flush=True)
        print(f"{found['negatives']:8.0f} negatives, {found['short_rows']:.0f} rows with fewer than {NEGATIVES}")
    print(f"{'base':<14} nDCG@10 {100 * np.load(base).mean():.2f}", flush=True)
    scores: dict[str, list[np.ndarray]] = {arm: [] for arm in arguments.arms}
    for seed in range(1, arguments.seeds + 1):
        for arm in arguments.arms:
            scores[arm].append(trained_scores(output, arm, seed, arguments.steps, arguments.batch))
            print(f"{arm:<14} seed {seed}: nDCG@10 {100 * scores[arm][-1].mean():.2f}", flush=True)
    against = {
        f"{first} - {second}": compared(scores[first], scores[second])
        for first in arguments.arms
        for second in arguments.arms
        if first.startswith("codiemb") and not second.startswith("codiemb")
    }
    for name, found in against.items():
        print(f"{name}: {found['difference']:+.2f} [{found['low']:+.2f}, {found['high']:+.2f}], p = {found['p']:.3f}")
    ours, theirs = mining.get("codiemb"), mining.get("st-0.05")
    print(
        json.dumps(
            {
                "ndcg_at_10": {arm: round(100 * float(np.mean(values)), 2) for arm, values in scores.items()},
                "base": round(100 * float(np.load(base).mean()), 2),
                "differences": against,
                "mining": mining,
                "wall_ratio": round(theirs["wall_s"] / ours["wall_s"], 2) if ours and theirs else None,
                "queries": len(np.load(base)),
                "threads": torch.get_num_threads(),
            }
        )
    )


if __name__ == "__main__":
    main()
