from __future__ import annotations

import json
import random
from dataclasses import replace

import datasets
import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from transformers import TrainingArguments

from codiemb import encoding
from codiemb.data.readers import read
from codiemb.training import consistency
from codiemb.training.consistency import ConsistencyFilter, Verdicts, filtered
from codiemb.training.recipe import Consistency
from codiemb.training.run import run

from .conftest import WORDS, sentence, write_lines
from .processes import on_two_ranks

ROWS, WRONG = 60, 12  # the last rows have a document of no relation


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    rng = random.Random(1)
    queries = [sentence(rng) for _ in range(ROWS)]
    documents = [f"{query} {rng.choice(WORDS)}" for query in queries[:-WRONG]] + [sentence(rng) for _ in range(WRONG)]
    documents[1] = documents[0]  # shared by two queries, each of which has it as its own
    rows = [{"task_type": "ir", "query": q, "positives": [d]} for q, d in zip(queries, documents, strict=True)]
    rows[2]["positives"] = [sentence(rng), documents[2]]  # the better one counts
    return write_lines(tmp_path_factory.mktemp("pairs") / "pairs.jsonl", rows)


@pytest.fixture
def table(pairs):
    return read(pairs)[0]


def in_float32(device) -> tuple[torch.dtype, str]:
    """For ranks that shall be equal: in bfloat16 near ties fall by the attention that each process finds faster."""
    return torch.float32, "ranks shall be equal"


def ranks_by_loop(table, model) -> list[int]:
    """The definition, with all first positives as the pool."""
    pool = list(dict.fromkeys(row["positives"][0]["text"] for row in table.rows))
    vectors = dict(zip(pool, model.encode_document(pool), strict=True))
    ranks = []
    for row in table.rows:
        query = model.encode_query(row["query"]["text"])
        own = [positive["text"] for positive in row["positives"]]
        best = max(float(query @ model.encode_document(text)) for text in own)
        ranks.append(sum(float(query @ vector) > best for text, vector in vectors.items() if text not in own))
    return ranks


def test_ranks_are_those_of_a_loop_over_all_documents(table, model_directory, monkeypatch):
    monkeypatch.setattr(encoding, "best_precision", in_float32)
    model = SentenceTransformer(str(model_directory), device="cpu")
    ranks = ConsistencyFilter(Consistency(model=str(model_directory), pool=1000), device="cpu").ranks(table)
    assert ranks.tolist() == ranks_by_loop(table, model)
    assert np.median(ranks[:-WRONG]) < 2
    assert np.median(ranks[-WRONG:]) > 5


def test_ranks_are_kept_and_a_killed_run_loses_only_its_last_rows(table, model_directory, tmp_path, monkeypatch):
    monkeypatch.setattr(consistency, "_SHARD", 25)
    options = Consistency(model=str(model_directory), pool=20)
    cached = ConsistencyFilter(options, device="cpu", cache_dir=tmp_path)
    first = cached.ranks(table)
    shards = sorted(tmp_path.rglob("*.npy"))
    assert len(shards) == 3
    next(path for path in shards if path.name == "25.npy").unlink()
    ranked = []
    rank = ConsistencyFilter._ranks

    def watched(self, rows, pool):
        ranked.append(len(rows))
        return rank(self, rows, pool)

    monkeypatch.setattr(ConsistencyFilter, "_ranks", watched)
    stricter = ConsistencyFilter(Consistency(model=str(model_directory), pool=20, keep_top=1), cache_dir=tmp_path)
    assert stricter.ranks(table).tolist() == first.tolist()
    assert ranked == [25]
    assert stricter(table).keep.tolist() == (first == 0).tolist()
    # Another pool, seed or choice of rows ranks anew.
    shifted = replace(table, rows=table.rows.select([*range(1, ROWS), 0]))
    in_memory = replace(table, rows=datasets.Dataset.from_list(table.rows.to_list()))
    smaller = Consistency(model=str(model_directory), pool=19)
    for other, seed, rows in ((smaller, 0, table), (options, 1, table), (options, 0, shifted), (options, 0, in_memory)):
        ranked.clear()
        ConsistencyFilter(other, seed=seed, cache_dir=tmp_path).ranks(rows)
        assert sum(ranked) == ROWS


def ranked_by_each(table, options, folder) -> None:
    """Write down which rows this process ranked, and which ranks it ended with; the target of `on_two_ranks`."""
    consistency._SHARD = 20
    encoding.best_precision = in_float32
    TrainingArguments(str(folder), use_cpu=True, report_to=[]).device  # noqa: B018 - makes it find the other one
    own, rank = [], ConsistencyFilter._ranks
    ConsistencyFilter._ranks = lambda self, rows, pool: own.append(len(rows)) or rank(self, rows, pool)
    ranks = ConsistencyFilter(options, device="cpu", cache_dir=folder / "ranks").ranks(table)
    print(json.dumps({"own": own, "ranks": ranks.tolist()}))


def test_several_processes_rank_a_part_of_the_rows_each(table, model_directory, tmp_path, monkeypatch):
    monkeypatch.setattr(consistency, "_SHARD", 20)
    monkeypatch.setattr(encoding, "best_precision", in_float32)
    options = Consistency(model=str(model_directory), pool=20)
    printed = on_two_ranks(tmp_path, ranked_by_each, table, options, tmp_path)
    reports = [json.loads(text.splitlines()[-1]) for text in printed]
    assert [report["own"] for report in reports] == [[20, 20], [20]]
    assert reports[0]["ranks"] == reports[1]["ranks"] == ConsistencyFilter(options, device="cpu").ranks(table).tolist()


def test_a_run_leaves_the_inconsistent_pairs_out_and_says_which(make_recipe, pairs, model_directory, capsys):
    recipe = make_recipe(
        stage="align",
        train=[{"path": str(pairs)}],
        consistency={"model": str(model_directory), "keep_top": 3, "pool": 1000},
        tasks={"ir": {"batch_size": 8}},
        max_steps=2,
    )
    report = run(recipe)
    side_file = recipe.output / "training" / "refused" / "pairs.jsonl"
    refused = [json.loads(line) for line in side_file.read_text().splitlines()]
    expected = ConsistencyFilter(recipe.consistency, seed=recipe.seed).ranks(read(pairs)[0])
    assert [line["row"] for line in refused] == np.flatnonzero(expected >= 3).tolist()
    assert [line["rank"] for line in refused] == (expected[expected >= 3] + 1).tolist()
    assert (
        refused[0]["positives"][0]["text"]
        == json.loads(pairs.read_text().splitlines()[refused[0]["row"]])["positives"][0]
    )
    assert report.data[0]["rows"] == ROWS - len(refused)
    assert report.data[0]["refused"] == len(refused) >= WRONG // 2
    assert f"pairs: {len(refused)} of {ROWS} rows left out" in capsys.readouterr().err.replace("\n", "")


def test_any_function_of_a_table_can_decide(make_recipe, data):
    recipe = make_recipe(max_steps=1)
    report = run(recipe, keep_pairs=lambda table: Verdicts(np.arange(len(table.rows)) % 2 == 0))
    by_task = {entry["task"]: entry for entry in report.data}
    assert (by_task["ir"]["rows"], by_task["ir"]["refused"]) == (32, 32)
    assert (by_task["sts"]["rows"], by_task["sts"]["refused"]) == (64, 0)


def test_verdicts_that_fit_no_table_are_errors(table, data):
    with pytest.raises(ValueError, match=r"verdicts of shape \(3,\) on pairs, expected one for each of its 60 rows"):
        filtered([table], lambda table: Verdicts(np.ones(3, dtype=bool)))
    with pytest.raises(ValueError, match="rows of task ir, and the training data have none"):
        filtered(read(data / "sts.jsonl"), lambda table: Verdicts(np.ones(64, dtype=bool)))
