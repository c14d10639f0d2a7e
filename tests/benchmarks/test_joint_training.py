"""The reproduction study's own parts: scores, choice of rates, resuming, and the bootstrap."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import pytrec_eval
from scipy.stats import spearmanr

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

    study = Study(tmp_path, ["ours", "without-pro", "ours-scaled"])
    rates = study.arms["ours"]["rates"]
    assert [study.next(set())] == [(Trial("ours", 1, rates[0]), [])]
    assert study.next({Trial("ours", 1, rates[0])}) == (Trial("ours", 1, rates[1]), [])
    for rate, validation in zip(rates, (60.0, 62.0, 61.0), strict=True):
        assert study.rate("ours") is None
        finish(tmp_path / Trial("ours", 1, rate).folder, validation)
    assert study.rate("ours") == study.rate("without-pro") == rates[1]
    assert study.next(set()) == (Trial("ours", 2, rates[1]), [])
    running = {Trial("ours", seed, rates[1]) for seed in (2, 3)} | {Trial("without-pro", 1, rates[1])}
    fused, parts = study.next(running)
    assert fused == Trial("ours-scaled", 1, None)
    assert parts == [tmp_path / Trial("ours", 1, rates[1]).folder / "model"]


def test_an_unknown_arm_is_named(tmp_path):
    from run import Study

    with pytest.raises(SystemExit, match="no arm 'our'"):
        Study(tmp_path, ["our"])


def arm(name: str, items: dict[str, np.ndarray], gold: dict[str, list]):
    from analyse import Arm

    scores = {task: 100 * spearmanr(items[f"test/{task}"], [p[2] for p in pairs])[0] for task, pairs in gold.items()}
    ir = 100 * float(items["test/titles"].mean())
    sts = float(np.mean(list(scores.values())))
    test = scores | {"titles": ir, "sts": sts, "ir": ir, "mean": (sts + ir) / 2}
    return Arm(name, 1e-4, [{"test": test}], [items], [{}])


def test_bootstrap_pairs_the_items_of_two_arms():
    from analyse import Bootstrap

    random = np.random.default_rng(0)
    gold = {"stsb": [["", "", float(score)] for score in random.integers(0, 6, 300)]}
    truth = np.array([pair[2] for pair in gold["stsb"]])
    good = {"test/stsb": truth + random.normal(size=300), "test/titles": random.random(200)}
    bad = {"test/stsb": truth + 3 * random.normal(size=300), "test/titles": good["test/titles"] - 0.1}
    bootstrap = Bootstrap({"pairs": {"test": gold}, "queries": {"test": {"titles": [{}] * 200}}}, resamples=200)
    one, two = arm("one", good, gold), arm("two", bad, gold)
    assert bootstrap.difference(one, one, "mean") == (0, 0, 0)
    for score in ("sts", "ir", "mean"):
        value, low, high = bootstrap.difference(one, two, score)
        assert 0 < low <= value <= high
        assert bootstrap.difference(two, one, score) == pytest.approx((-value, -high, -low))
    # The same shift for every query leaves nothing to chance.
    assert bootstrap.difference(one, two, "ir") == pytest.approx((10, 10, 10))
    first = bootstrap.scores(one)["sts"][0]
    rows = bootstrap.drawn["stsb"][0]
    assert first == pytest.approx(100 * spearmanr(good["test/stsb"][rows], truth[rows])[0])


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
    rows = mixed_rows({"stsb": pairs, "drcd": answers})
    assert {"task_type": "ir", "query": "query: q", "positives": ["passage: p"], "negatives": ["passage: n"]} in rows
    assert {row["query"]: row["positives"] for row in rows[1:]} == {"query: a": ["query: x"], "query: b": ["query: x"]}
