"""The reproduction study's own parts: scores, choice of rates, resuming, and the bootstrap."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import pytrec_eval
from scipy.stats import spearmanr

from codiemb.prompts import TEMPLATES

STUDY = Path(__file__).parents[2] / "benchmarks" / "joint_training"


@pytest.fixture(scope="module", autouse=True)
def study_on_path():
    sys.path.insert(0, str(STUDY))
    yield
    sys.path.remove(str(STUDY))


def test_ndcg_is_trec_evals_where_no_scores_tie():
    from scoring import Index

    random = np.random.default_rng(0)
    groups = [f"g{i % 40}" for i in range(100)]
    index = Index(groups)
    similarities = random.normal(size=(20, 100))
    best = index.best(similarities.copy())
    for row, found in zip(similarities, best, strict=True):
        by_group = {name: max(row[i] for i, group in enumerate(groups) if group == name) for name in index.names}
        assert dict(zip(index.names, found, strict=True)) == by_group
        relevant = list(random.choice(index.names, size=random.integers(1, 14), replace=False))
        excluded = [name for name in random.choice(index.names, size=3, replace=False) if name not in relevant]
        run = {name: float(score) for name, score in by_group.items() if name not in excluded}
        judged = {"q": dict.fromkeys(relevant, 1)}
        expected = pytrec_eval.RelevanceEvaluator(judged, {"ndcg_cut.10"}).evaluate({"q": run})["q"]["ndcg_cut_10"]
        assert index.ndcg(found.copy(), relevant, [*excluded, "not there"]) == pytest.approx(expected)


def test_relevant_texts_rank_last_among_equals():
    from scoring import Index

    index = Index(["a", "b", "c"])
    assert index.ndcg(np.array([0.5, 0.5, 0.5]), ["b"], []) == pytest.approx(1 / np.log2(4))


def finish(folder: Path, validation: float) -> None:
    folder.mkdir(parents=True)
    (folder / "scores.json").write_text(json.dumps({"validation": {"mean": validation}}))
    (folder / "run.json").write_text("{}")


def test_rates_are_chosen_on_validation_and_finished_trials_are_left_alone(tmp_path):
    from run import Study, Trial

    config = tmp_path / "arms.yaml"
    config.write_text(
        """
        {model: bundled, template: e5, groups: {main: {
          joint: {engine: codiemb, rates: [1.0e-5, 2.0e-5, 3.0e-5], seeds: 3, recipe: {tasks: {ir: {negatives: 1}}}},
          changed: {like: joint, recipe: {tasks: {ir: {batch_size: 8}}}}},
          fusion: {averaged: {engine: fuse, of: [joint]}}}}
        """
    )
    study = Study(tmp_path, ["joint", "changed", "averaged"], config)
    rates = (1e-5, 2e-5, 3e-5)
    assert study.arms["changed"]["recipe"] == {"tasks": {"ir": {"negatives": 1, "batch_size": 8}}}
    assert study.next(set()) == (Trial("joint", 1, rates[0]), [])
    assert study.next({Trial("joint", 1, rates[0])}) == (Trial("joint", 1, rates[1]), [])
    for rate, validation in zip(rates, (60.0, 62.0, 61.0), strict=True):
        assert study.rate("joint") is None
        finish(tmp_path / Trial("joint", 1, rate).folder, validation)
    assert study.rate("joint") == study.rate("changed") == rates[1]
    assert study.next(set()) == (Trial("joint", 2, rates[1]), [])
    assert Study(tmp_path, ["joint"], config, seeds=1).next(set()) is None
    assert study.next({Trial("joint", 2, rates[1])}) == (Trial("joint", 3, rates[1]), [])
    running = {Trial("joint", seed, rates[1]) for seed in (2, 3)}
    assert study.next(running) == (Trial("changed", 1, rates[1]), [])
    running.add(Trial("changed", 1, rates[1]))
    # Only the scores of `joint` were kept: its model is trained again for the average.
    assert study.again() == [Trial("joint", 1, rates[1])]
    assert study.next(running) == (Trial("joint", 1, rates[1]), [])
    assert study.next(running | {Trial("joint", 1, rates[1])}) is None
    assert Study(tmp_path, ["joint"], config, seeds=1).again() == []  # nothing asks for it
    model = tmp_path / Trial("joint", 1, rates[1]).folder / "model"
    model.mkdir()
    assert study.next(running) == (Trial("averaged", 1, None), [model])
    assert study.again() == []


@pytest.mark.parametrize("name", ["arms.yaml", "arms-en.yaml"])
def test_every_arm_is_a_recipe_that_codiemb_reads(name, tmp_path):
    from engines import TRAINERS, merged
    from run import TRAINED, Study

    from codiemb.training.recipe import parse_recipe

    study = Study(tmp_path, config=STUDY / name)
    given = {"model": "bundled", "train": [{"path": "train.jsonl"}], "output": "model"}
    trained = [arm for arm in study.arms.values() if arm["engine"] == "codiemb"]
    assert len(trained) > 5
    assert set(TRAINERS) == set(TRAINED)
    for arm in trained:
        parse_recipe(merged(merged(study.config["codiemb"], arm.get("recipe", {})), given))
    for arm in study.arms.values():
        assert set(arm.get("of", ())) <= set(study.arms)


def test_a_configuration_extends_another_and_keeps_some_of_its_arms(tmp_path):
    from run import read_config

    groups = "{main: {a: {engine: none}, b: {like: a}}, more: {c: {like: b}}}"
    (tmp_path / "one.yaml").write_text(f"{{budget: 10, codiemb: {{dropout: 0}}, groups: {groups}}}")
    (tmp_path / "two.yaml").write_text("{extends: one.yaml, budget: 20, codiemb: {seed: 1}, only: [c, a]}")
    assert read_config(tmp_path / "two.yaml") == {
        "budget": 20,
        "codiemb": {"dropout": 0, "seed": 1},
        "groups": {"main": {"a": {"engine": "none"}}, "more": {"c": {"like": "b"}}},
    }


def test_an_unknown_arm_is_named(tmp_path):
    from run import Study

    with pytest.raises(SystemExit, match="no arm 'our'"):
        Study(tmp_path, ["our"])


def arm(name: str, items: dict[str, np.ndarray], seeds=(1,)):
    from analyse import Arm
    from outcome import Outcome

    sts = 100 * spearmanr(items["stsb"], items["stsb/gold"])[0]
    ir = 100 * float(items["titles"].mean())
    test = {"stsb": sts, "titles": ir, "sts": sts, "ir": ir, "mean": (sts + ir) / 2}
    return Arm(name, 1e-4, {seed: Outcome({"test": test}, items) for seed in seeds}, [])


def test_bootstrap_pairs_the_items_of_two_arms():
    from analyse import Bootstrap

    random = np.random.default_rng(0)
    truth = random.integers(0, 6, 300).astype(float)
    good = {"stsb": truth + random.normal(size=300), "stsb/gold": truth, "titles": random.random(200)}
    bad = {"stsb": truth + 3 * random.normal(size=300), "stsb/gold": truth, "titles": good["titles"] - 0.1}
    bootstrap = Bootstrap(good, resamples=200)
    one, two = arm("one", good), arm("two", bad)
    assert bootstrap.difference(one, one, "mean") == (0, 0, 0)
    for score in ("sts", "ir", "mean"):
        value, low, high = bootstrap.difference(one, two, score)
        assert 0 < low <= value <= high
        assert bootstrap.difference(two, one, score) == pytest.approx((-value, -high, -low))
    # The same shift for every query leaves nothing to chance.
    assert bootstrap.difference(one, two, "ir") == pytest.approx((10, 10, 10))
    first = bootstrap.scores(one)["sts"][0]
    rows = bootstrap.drawn["stsb"][0]
    assert first == pytest.approx(100 * spearmanr(good["stsb"][rows], truth[rows])[0])


def test_arms_are_compared_over_the_seeds_of_both():
    from analyse import Arm, Bootstrap

    random = np.random.default_rng(0)
    truth = random.integers(0, 6, 100).astype(float)
    items = [
        {"stsb": truth + noise * random.normal(size=100), "stsb/gold": truth, "titles": random.random(50)}
        for noise in (1, 2, 3)
    ]
    bootstrap = Bootstrap(items[0], resamples=50)
    one, two, three = (arm("many", of_seed).trials[1] for of_seed in items)
    many = Arm("many", 1e-4, {1: one, 2: two, 3: three}, [])
    assert bootstrap.difference(many, arm("first", items[0]), "sts") == (0, 0, 0)
    assert bootstrap.difference(arm("last", items[2], seeds=[3]), many, "ir") == (0, 0, 0)
    untouched = Arm("base", None, {1: one}, [], seeded=False)
    mean = np.mean([trial.scores["test"]["sts"] for trial in (one, two, three)])
    assert bootstrap.difference(many, untouched, "sts")[0] == pytest.approx(mean - one.scores["test"]["sts"])
    assert bootstrap.difference(untouched, many, "sts")[0] == pytest.approx(one.scores["test"]["sts"] - mean)


def test_sections_are_merged_key_by_key():
    from engines import merged

    base = {"tasks": {"ir": {"batch_size": 32, "negatives": 1}}, "seed": 1}
    assert merged(base, {"tasks": {"ir": {"negatives": 0}}}) == {
        "tasks": {"ir": {"batch_size": 32, "negatives": 0}},
        "seed": 1,
    }
    assert base["tasks"]["ir"]["negatives"] == 1


def test_mixed_rows_carry_the_prompts_in_their_texts():
    from study_data import mixed_rows

    pairs = [
        {"task_type": "sts", "query": q, "positives": ["x"], "positive_scores": [s]}
        for q, s in zip("abc", (5.0, 4.0, 3.0), strict=False)
    ]
    answers = [{"task_type": "ir", "query": "q", "positives": ["p"], "negatives": ["n"]}]
    rows = mixed_rows({"stsb": pairs, "drcd": answers}, TEMPLATES["e5"])
    assert {"task_type": "ir", "query": "query: q", "positives": ["passage: p"], "negatives": ["passage: n"]} in rows
    assert {row["query"]: row["positives"] for row in rows[1:]} == {"query: a": ["query: x"], "query: b": ["query: x"]}


class RandomVectors:
    """Any embedding will do for the pool: what it ranks high is kept."""

    def documents(self, texts):
        return np.stack([np.random.default_rng(len(text)).normal(size=8) for text in texts])

    queries = documents


def test_the_pool_keeps_the_scores_of_the_model_that_it_is_made_with():
    from scoring import Index
    from study_data import pool

    random = np.random.default_rng(1)
    documents = ["x" * n for n in random.permutation(np.arange(1, 301))]
    groups = [f"g{i % 200}" for i in range(300)]
    queries = [
        {"text": "y" * (400 + i), "relevant": [f"g{i}"], "excluded": [f"g{i + 50}", "not there"]} for i in range(10)
    ]
    items = {"documents": documents, "groups": groups, "queries": {"test": {"titles": queries}}}

    def ndcg() -> list[float]:
        encoder, index = RandomVectors(), Index(items["groups"])
        similarities = encoder.queries([q["text"] for q in queries]) @ encoder.documents(items["documents"]).T
        best = index.best(similarities)
        return [index.ndcg(row, q["relevant"], q["excluded"]) for row, q in zip(best, queries, strict=True)]

    before = ndcg()
    pool(items, RandomVectors(), ranks=20)
    assert ndcg() == before
    assert len(items["documents"]) == len(items["groups"]) < 300


def test_english_data_hold_no_test_query_or_sentence(tmp_path):
    from study_data_en import prepare

    def write(name: str, lines: list[str]) -> None:
        path = tmp_path / "public" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")

    things = ("wing", "slipstream", "flutter", "boundary layer", "shock wave", "heat transfer")
    head = "sentence1\tsentence2\tscore"
    write("sts_en/stsb_train.tsv", [head, *(f"A {t}.\tThe {t}.\t{i}" for i, t in enumerate(things))])
    write("sts_en/stsb_dev.tsv", [head, "a WING\tA bird.\t1"])
    write("sts_en/stsb_test.tsv", [head, "A fish.\tthe flutter\t2"])
    corpus = [{"_id": f"{i}", "title": f"on {t} .", "text": f"on {t} . it is about {t}"} for i, t in enumerate(things)]
    write("ir/cranfield/corpus.jsonl", [json.dumps(item) for item in corpus])
    queries = [{"_id": f"{i}", "text": f"what is known of {t}"} for i, t in enumerate(things)]
    queries[0]["text"] = "On wing"
    write("ir/cranfield/queries.jsonl", [json.dumps(item) for item in queries])
    write("ir/cranfield/qrels/test.tsv", ["query-id\tcorpus-id\tscore", *(f"{i}\t{i}\t1" for i in range(5)), "5\t5\t0"])
    output = tmp_path / "data"
    prepare(tmp_path / "public", output)
    rows = {path.stem: [json.loads(line) for line in path.open()] for path in (output / "train").iterdir()}
    items = json.loads((output / "items.json").read_text())
    assert {row["query"] for row in rows["stsb"]} == {f"A {t}." for t in things} - {"A wing.", "A flutter."}
    assert {row["query"] for row in rows["cranfield"]} == {f"on {t} ." for t in things} - {"on wing ."}
    asked = [q for part in ("validation", "test") for q in items["queries"][part]["cranfield"]]
    assert sorted(q["text"] for q in asked) == sorted(q["text"] for q in queries[:5])  # the last has no document
    assert all(len(q["relevant"]) == 1 for q in asked)
