import io
import json

import numpy as np
import pytest
from rich.console import Console

from codiemb.evaluation import Result, summarise, write_results
from codiemb.evaluation.report import compare, comparison_table, results_table, short_names, verdicts
from codiemb.evaluation.significance import differences, intervals


def result(task, kind, score, **more):
    names = {"ir": "ndcg_at_10", "reranking": "map"}
    return Result(task, kind, score, {names.get(kind, "cosine_spearman"): score, **more}, 5, {}, {"v": np.ones(5)})


RESULTS = [
    result("wiki", "ir", 0.5, map=0.4),
    result("law", "ir", 0.7, map=0.6),
    result("stsb", "sts", 0.8, cosine_pearson=0.9),
    result("para", "pair_classification", 0.2, cosine_pearson=0.1),
]


def printed(renderable, terminal=False):
    stream = io.StringIO()
    Console(file=stream, width=100, force_terminal=terminal).print(renderable)
    return stream.getvalue()


def test_the_summary_is_a_mean_of_means():
    assert summarise(RESULTS) == pytest.approx(
        {"ir": 0.6, "sts": 0.5, "mean": 0.55, "wiki": 0.5, "law": 0.7, "stsb": 0.8, "para": 0.2}
    )
    assert summarise([*RESULTS, result("lists", "reranking", 1.0)])["mean"] == pytest.approx(0.7)
    assert summarise([]) == {}


def test_names_in_the_summary_are_never_overwritten():
    assert summarise([result("sts", "ir", 0.5), result("b", "sts", 0.1)])["sts"] == 0.1
    with pytest.raises(ValueError, match="Several tasks are named wiki"):
        summarise([RESULTS[0], RESULTS[0]])


def test_results_json_has_the_promised_keys_and_replaces_whole(tmp_path):
    path = tmp_path / "new" / "results.json"
    write_results(path, RESULTS)
    content = json.loads(path.read_text())
    assert [set(entry) for entry in content] == [{"task", "type", "main_score", "metrics", "n", "settings"}] * 4
    assert content[0]["main_score"] == 0.5
    broken = Result("x", "ir", float("nan"), {}, 1, {}, {})
    with pytest.raises(ValueError, match="Out of range float"):
        write_results(path, [broken])
    assert json.loads(path.read_text()) == content
    assert [file.name for file in path.parent.iterdir()] == ["results.json"]


def test_tables_show_scores_times_100_and_means():
    text = printed(results_table(RESULTS, "mine"))
    for shown in (
        "Retrieval: mine",
        "nDCG@10",
        "MAP",
        "50.00",
        "70.00",
        "60.00",
        "Similarity: mine",
        "Pearson",
        "90.00",
    ):
        assert shown in text
    assert "mean over the 2 kinds of task: 55.00" in text


def test_long_names_are_cut_to_what_tells_them_apart():
    assert short_names(["bundled", "a/very/long/way/to/runs/mine"]) == ["bundled", "runs/mine"]
    alike = ["a/very/long/way/to/the/model", "another/long/way/to/the/model"]
    assert short_names(alike) == alike


def test_markup_in_names_is_text():
    assert "[red]x" in printed(results_table([result("[red]x", "ir", 0.5)], "[bold]m"))


def test_comparison_has_both_models_and_the_difference():
    others = [result("wiki", "ir", 0.4, map=0.5), *RESULTS[1:]]
    comparison = compare(RESULTS, others, ("mine", "base"))
    first = comparison["tasks"][0]
    assert (first["task"], first["type"], first["n"], first["main_metric"]) == ("wiki", "ir", 5, "ndcg_at_10")
    assert first["main_score"] == pytest.approx({"model": 0.5, "other": 0.4, "difference": 0.1})
    assert first["metrics"]["map"]["difference"] == pytest.approx(-0.1)
    assert comparison["summary"]["ir"]["difference"] == pytest.approx(0.05)
    assert comparison["other_results"][0]["main_score"] == 0.4
    json.dumps(comparison, allow_nan=False)


def test_arrows_and_colour_are_for_terminals_only():
    worse = [result("wiki", "ir", 0.6, map=0.4), result("law", "ir", 0.7, map=0.6), *RESULTS[2:]]
    comparison = compare(RESULTS, worse, ("mine", "base"))
    plain = printed(comparison_table(comparison, arrows=False))
    assert "-10.00" in plain
    assert "+0.00" in plain
    assert not set("▲▼\x1b") & set(plain)
    shown = printed(comparison_table(comparison, arrows=True), terminal=True)
    assert "▼ -10.00" in shown
    assert "▲" not in shown
    assert "\x1b[31m" in shown


def scored(task, values):
    values = np.array(values)
    score = float(values.mean())
    return Result(task, "ir", score, {"ndcg_at_10": score}, len(values), {}, {"ndcg_at_10": values})


def test_intervals_stand_in_the_file_and_the_table(tmp_path):
    results = [scored("wiki", np.linspace(0, 1, 40)), scored("one", [0.5])]
    found = intervals(results)
    write_results(tmp_path / "results.json", results, found)
    content = json.loads((tmp_path / "results.json").read_text())
    assert content[0]["interval"] == found.tasks["wiki"].to_dict()
    assert content[1]["interval"] is None
    text = printed(results_table(results, "mine", found))
    assert "95 % interval" in text
    for interval in (found.tasks["wiki"], found.means["ir"]):
        assert f"[{100 * interval.low:.1f}, {100 * interval.high:.1f}]" in text
    (line,) = [line for line in text.splitlines() if "one" in line]
    assert " - " in line


def test_a_comparison_says_in_words_what_is_larger_than_chance():
    rng = np.random.default_rng(0)
    base = {name: rng.uniform(size=50) for name in ("wiki", "law", "news")}
    step = {"wiki": 0.1, "law": 0.0, "news": -0.1}
    mine = [scored(name, values + step[name] + 0.05 * rng.normal(size=50)) for name, values in base.items()]
    others = [scored(name, values) for name, values in base.items()]
    found = differences(mine, others)
    comparison = compare(mine, others, ("mine", "base"), differences=found, other_intervals=intervals(others))
    json.dumps(comparison, allow_nan=False)
    by_name = {task["task"]: task["significance"] for task in comparison["tasks"]}
    assert by_name["wiki"] == found.tasks["wiki"].to_dict()
    assert comparison["summary"]["mean"]["significance"]["verdict"] == "within chance"
    assert comparison["other_results"][0]["interval"]["level"] == 0.95
    assert verdicts(comparison) == (
        "Larger than chance (p < 0.05 after Holm's correction for 3 tasks): better in wiki; worse in news. "
        "Within chance: law. The mean: within chance."
    )
    text = printed(comparison_table(comparison, arrows=True))
    difference = found.tasks["wiki"]
    assert f"[{100 * difference.low:+.1f}, {100 * difference.high:+.1f}]" in text
    assert "<0.001" not in text  # the smallest p of 2000 resamples, times 3
    assert "Larger than chance" in text
    alone = [scored("one", [0.5])], [scored("one", [0.4])]
    comparison = compare(*alone, ("mine", "base"), differences=differences(*alone))
    assert "Too few queries" in printed(comparison_table(comparison, arrows=False))
