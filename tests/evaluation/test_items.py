"""Scores that follow from items, against scikit-learn, mteb and SciPy."""

import numpy as np
import pytest
from mteb.abstasks import AbsTaskPairClassification
from scipy.stats import bootstrap, permutation_test
from sklearn.metrics import average_precision_score

from codiemb.evaluation.items import Items
from codiemb.evaluation.significance import crc32, differences_of, intervals_of

STATISTICS = ("average_precision", "best_accuracy")


def reference(statistic, values, gold):
    if statistic == "average_precision":
        return average_precision_score(gold, values)
    return AbsTaskPairClassification._find_best_acc_and_threshold(None, list(values), gold, True)[0]


def pairs(seed, n=40, decimals=12, noise=1.0):
    rng = np.random.default_rng(seed)
    gold = rng.integers(2, size=n).astype(float)
    return (gold + noise * rng.normal(size=n)).round(decimals), gold


def no_means(_):
    return {}


@pytest.mark.parametrize("statistic", STATISTICS)
@pytest.mark.parametrize("decimals", [0, 1, 12])  # many ties, some, none
def test_scores_by_threshold(statistic, decimals):
    for seed in range(5):
        values, gold = pairs(seed, decimals=decimals)
        assert Items(statistic, values, gold).score() == pytest.approx(reference(statistic, values, gold), abs=1e-12)


@pytest.mark.parametrize("statistic", STATISTICS)
def test_intervals_by_threshold_are_those_of_scipy(statistic):
    values, gold = pairs(0, decimals=1)
    ours = intervals_of({"nli": {"": Items(statistic, values, gold)}}, no_means, resamples=100).tasks["nli"]
    theirs = bootstrap(
        (values, gold),
        lambda v, g: reference(statistic, v, g),
        paired=True,
        vectorized=False,
        n_resamples=100,
        method="percentile",
        rng=np.random.default_rng([0, crc32(b"nli")]),
    ).confidence_interval
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=1e-12)


@pytest.mark.parametrize("statistic", STATISTICS)
def test_p_by_threshold_is_that_of_scipys_permutation_test_on_ranks(statistic):
    (values, gold), (other, _) = pairs(1, noise=0.5), pairs(2, noise=2.0)
    other = np.where(gold == 1, np.abs(other), other)
    expected = permutation_test(
        [one.argsort().argsort() for one in (values, other)],
        lambda a, b: abs(reference(statistic, a, gold) - reference(statistic, b, gold)),
        permutation_type="samples",
        alternative="greater",
        vectorized=False,
        n_resamples=150,
        rng=0,
    ).pvalue
    models = [{"nli": {"": Items(statistic, one, gold)}} for one in (values, other)]
    found = differences_of(*models, no_means, resamples=1000).tasks["nli"]
    assert found.p == pytest.approx(expected, abs=0.08)


def test_a_task_of_several_parts_is_the_mean_of_them():
    rng = np.random.default_rng(0)
    parts = {name: rng.uniform(size=n) for name, n in (("dev/zh", 30), ("dev/en", 10))}
    task = {name: Items("mean", values) for name, values in parts.items()}
    worse = {name: Items("mean", values - 0.1) for name, values in parts.items()}
    found = intervals_of({"sts": task}, no_means).tasks["sts"]
    spread = np.sqrt(sum(values.var() / len(values) for values in parts.values())) / 2
    assert found.high - found.low == pytest.approx(2 * 1.96 * spread, rel=0.1)
    assert found.low < np.mean([values.mean() for values in parts.values()]) < found.high
    difference = differences_of({"sts": task}, {"sts": worse}, no_means).tasks["sts"]
    assert (difference.low, difference.high) == pytest.approx((0.1, 0.1))
    assert difference.verdict == "better"
    alone = {**task, "dev/de": Items("mean", np.array([0.5]))}
    assert intervals_of({"sts": alone}, no_means).tasks["sts"] is None
