import json

import numpy as np
import pytest
from scipy.stats import bootstrap, permutation_test, spearmanr

from codiemb.evaluation import Result
from codiemb.evaluation.significance import crc32, differences, holm, intervals

METRICS = {"ir": "ndcg_at_10", "reranking": "map"}


def ranking(values, task="wiki", kind="ir"):
    values = np.asarray(values, dtype=np.float64)
    score, metric = float(values.mean()), METRICS[kind]
    return Result(task, kind, score, {metric: score}, len(values), {}, {metric: values})


def pairs(cosines, scores, task="stsb"):
    cosines, scores = np.asarray(cosines, dtype=np.float64), np.asarray(scores, dtype=np.float64)
    score = float(spearmanr(cosines, scores).statistic) if np.ptp(cosines) else 0.0
    return Result(task, "sts", score, {}, len(scores), {}, {"cosine": cosines, "score": scores})


def two_models(seed, n=80, noise=(1.0, 1.0), levels=6, task="stsb"):
    """Cosines of two models for the same pairs: the gold score and noise, in part the same for both."""
    rng = np.random.default_rng(seed)
    gold, shared = rng.integers(levels, size=n).astype(float), rng.normal(size=n)
    return [pairs(gold + shared + size * rng.normal(size=n), gold, task) for size in noise]


def generator(task, seed=0):
    return np.random.default_rng([seed, crc32(task.encode())])


def spearman(x, y):
    return spearmanr(x, y).statistic


@pytest.mark.parametrize("levels", [2, 6, 10_000])
@pytest.mark.parametrize("decimals", [1, 12])
def test_intervals_of_spearman_are_those_of_scipy(levels, decimals):
    model = two_models(1, n=60, levels=levels)[0]
    model = pairs(model.values["cosine"].round(decimals), model.values["score"])  # 1 decimal: ties
    ours = intervals([model], resamples=300).tasks["stsb"]
    values = model.values["cosine"], model.values["score"]
    theirs = bootstrap(
        values,
        spearman,
        paired=True,
        vectorized=False,
        n_resamples=300,
        method="percentile",
        rng=generator("stsb"),
    ).confidence_interval
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=1e-12)


def test_intervals_of_means_are_those_of_scipy():
    model = ranking(np.random.default_rng(0).beta(0.4, 0.2, size=70))
    ours = intervals([model], resamples=500, level=0.9).tasks["wiki"]
    theirs = bootstrap(
        (model.values["ndcg_at_10"],),
        np.mean,
        n_resamples=500,
        method="percentile",
        confidence_level=0.9,
        rng=generator("wiki"),
    ).confidence_interval
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=1e-12)


def test_p_of_means_is_that_of_scipys_permutation_test():
    rng = np.random.default_rng(3)
    base = rng.uniform(size=40)
    for shift in (0.0, 0.02, 0.1):
        mine, theirs = ranking(base + shift + 0.1 * rng.normal(size=40)), ranking(base)
        difference = mine.values["ndcg_at_10"] - theirs.values["ndcg_at_10"]
        reference = permutation_test(
            (difference,), np.mean, permutation_type="samples", vectorized=True, n_resamples=20_000, rng=0
        ).pvalue
        found = differences([mine], [theirs], resamples=20_000).tasks["wiki"]
        assert found.p == pytest.approx(reference, abs=0.015)


def test_p_of_spearman_is_that_of_scipys_permutation_test_on_ranks():
    for seed, noise in ((0, (1.0, 1.0)), (1, (0.8, 1.2)), (2, (0.2, 1.5))):
        mine, theirs = two_models(seed, n=30, noise=noise)
        gold = mine.values["score"]
        ranks = [np.argsort(np.argsort(one.values["cosine"])) for one in (mine, theirs)]  # no ties
        reference = permutation_test(
            ranks,
            lambda a, b, gold=gold: abs(spearman(a, gold) - spearman(b, gold)),
            permutation_type="samples",
            alternative="greater",
            vectorized=False,
            n_resamples=1000,
            rng=0,
        ).pvalue
        found = differences([mine], [theirs], resamples=1000).tasks["stsb"]
        assert found.p == pytest.approx(reference, abs=0.04)


def test_ranges_of_cosines_do_not_matter():
    mine, theirs = two_models(4)
    narrow = pairs(0.9 + theirs.values["cosine"] / 1000, theirs.values["score"])
    assert differences([mine], [theirs]) == differences([mine], [narrow])


def test_95_percent_of_intervals_hold_the_truth():
    rng = np.random.default_rng(5)
    truth = spearman(*rng.multivariate_normal([0, 0], [[1, 0.6], [0.6, 1]], size=200_000).T)
    held = {"sts": 0, "ir": 0}
    for seed in range(200):
        model = pairs(*rng.multivariate_normal([0, 0], [[1, 0.6], [0.6, 1]], size=100).T)
        found = intervals([model, ranking(rng.beta(2, 1, size=100))], resamples=400, seed=seed).tasks
        held["sts"] += found["stsb"].low <= truth <= found["stsb"].high
        held["ir"] += found["wiki"].low <= 2 / 3 <= found["wiki"].high
    assert 180 <= held["sts"] <= 199
    assert 180 <= held["ir"] <= 199


def test_equal_models_are_rarely_told_apart_and_different_ones_often():
    alarms = {"same": 0, "worse": 0}
    for seed in range(200):
        for case, noise in (("same", (1.0, 1.0)), ("worse", (0.5, 1.5))):
            mine, theirs = two_models(seed, noise=noise)
            found = differences([mine], [theirs], resamples=200, seed=seed).tasks["stsb"]
            alarms[case] += found.significant
    assert alarms["same"] <= 20  # 10 are expected; 20 or more of 200 have a chance of 0.2 %
    assert alarms["worse"] >= 150


def test_models_that_share_their_difficult_items_are_compared_sharply():
    rng = np.random.default_rng(6)
    hard = rng.uniform(size=200)
    mine, theirs = ranking(hard + 0.01 * rng.uniform(size=200)), ranking(hard)
    found = differences([mine], [theirs]).tasks["wiki"]
    assert found.verdict == "better"
    alone = intervals([mine]).tasks["wiki"]
    assert found.high - found.low < (alone.high - alone.low) / 20


def test_swapping_the_models_changes_signs_and_nothing_else():
    one, two = [[model, ranking(np.linspace(0, 1, 9) ** k)] for k, model in enumerate(two_models(7), 1)]
    there, back = differences(one, two), differences(two, one)
    swapped = {"better": "worse", "worse": "better", "within chance": "within chance"}
    for forth, reverse in ((there.tasks, back.tasks), (there.means, back.means)):
        assert forth.keys() == reverse.keys()
        for name, found in forth.items():
            assert found.p == reverse[name].p
            assert found.p_corrected == reverse[name].p_corrected
            assert (found.low, found.high) == pytest.approx((-reverse[name].high, -reverse[name].low), abs=1e-12)
            assert reverse[name].verdict == swapped[found.verdict]


def test_a_model_against_itself():
    mine = [two_models(9)[0], ranking(np.linspace(0, 1, 20))]
    found = differences(mine, mine)
    for difference in (*found.tasks.values(), *found.means.values()):
        assert (difference.low, difference.high, difference.p, difference.verdict) == (0, 0, 1, "within chance")


def test_few_items_never_are_more_than_chance():
    """Three queries that all improved: a bootstrap alone would be sure."""
    mine, theirs = ranking([0.5, 0.6, 0.7]), ranking([0.1, 0.2, 0.3])
    found = differences([mine], [theirs]).tasks["wiki"]
    assert found.low > 0
    assert found.p == pytest.approx(0.25, abs=0.03)
    assert found.verdict == "within chance"


def test_one_item_has_no_interval():
    mine, theirs = [ranking([0.5])], [ranking([0.4])]
    assert intervals(mine).tasks == {"wiki": None}
    assert intervals(mine).means == {"ir": None, "mean": None}
    assert differences(mine, theirs).tasks == {"wiki": None}


def test_a_model_that_knows_nothing_scores_zero_and_can_be_compared():
    good = two_models(10, noise=(0.1, 0.1))[0]
    blank = pairs(np.full(80, 0.7), good.values["score"])
    assert (intervals([blank]).tasks["stsb"].low, intervals([blank]).tasks["stsb"].high) == (0, 0)
    assert differences([good], [blank]).tasks["stsb"].verdict == "better"


def test_means_are_of_groups_as_in_the_summary():
    rng = np.random.default_rng(11)
    results = [ranking(rng.uniform(size=50), "a"), ranking(rng.uniform(size=30), "b"), two_models(12)[0]]
    found = intervals(results)
    assert set(found.means) == {"ir", "sts", "mean"}
    assert found.means["sts"] == found.tasks["stsb"]
    middle = (found.means["ir"].low + found.means["ir"].high) / 2
    assert middle == pytest.approx((results[0].main_score + results[1].main_score) / 2, abs=0.01)
    widths = {name: one.high - one.low for name, one in {**found.tasks, "ir": found.means["ir"]}.items()}
    expected = np.hypot(widths["a"], widths["b"]) / 2  # variances of independent tasks add up
    assert widths["ir"] == pytest.approx(expected, rel=0.1)


def test_an_interval_does_not_depend_on_the_other_tasks_and_follows_the_seed():
    one, two = two_models(13)[0], ranking(np.linspace(0, 1, 30))
    assert intervals([one, two]).tasks["stsb"] == intervals([one]).tasks["stsb"]
    assert intervals([one], seed=1).tasks["stsb"] != intervals([one]).tasks["stsb"]
    json.dumps(intervals([one]).tasks["stsb"].to_dict(), allow_nan=False)


def test_holm():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_many_tasks_raise_the_bar():
    rng = np.random.default_rng(14)
    base = rng.uniform(size=60)
    mine = ranking(base + 0.03 + 0.08 * rng.normal(size=60), "t0")
    alone = differences([mine], [ranking(base, "t0")])
    assert 0.001 < alone.tasks["t0"].p < 0.05
    assert alone.tasks["t0"].verdict == "better"
    noise = [ranking(base + 0.1 * rng.normal(size=60), f"n{i}") for i in range(60)]
    among = differences([mine, *noise], [ranking(base, one.task) for one in (mine, *noise)])
    assert among.tasks["t0"].p == alone.tasks["t0"].p
    assert among.tasks["t0"].p_corrected > 0.05
    assert among.tasks["t0"].verdict == "within chance"


def test_results_on_other_items_cannot_be_compared():
    with pytest.raises(ValueError, match="wiki with 2 items cannot be compared with wiki with 3"):
        differences([ranking([0.1, 0.2])], [ranking([0.1, 0.2, 0.3])])
    mine, theirs = two_models(15)[0], two_models(16)[0]
    with pytest.raises(ValueError, match="stsb: the two results have other gold scores"):
        differences([mine], [theirs])
