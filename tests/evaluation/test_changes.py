import io
import json

import numpy as np
import pytest
from rich.console import Console

from codiemb.data.examples import Text
from codiemb.evaluation import PairTask, RerankingRow, RerankingTask, Result, RetrievalTask, evaluate
from codiemb.evaluation.changes import changes, rank_errors
from codiemb.evaluation.changes_table import changes_report
from codiemb.prompts import TEMPLATES


def text(string):
    return Text("", "", string)


def printed(found, width=80):
    stream = io.StringIO()
    Console(file=stream, width=width).print(changes_report({"task": found}, ("mine", "base")))
    return stream.getvalue()


PAIRS = PairTask(
    "stsb", "stsb.tsv", [(text(f"left {i}"), text(f"right {i}")) for i in range(6)], np.array([0.0, 0, 1, 1, 2, 2])
)


def pair_result(cosines, task=PAIRS, **settings):
    values = {"cosine": np.array(cosines, dtype=np.float64), "score": task.scores}
    return Result(task.name, "sts", 0.0, {}, len(task), settings, values)


def test_rank_errors_count_places_outside_those_of_the_gold_score():
    scores = PAIRS.scores
    assert rank_errors(np.array([0.1, 0.2, 0.3, 0.4, 0.5, 0.6]), scores).tolist() == [0] * 6
    assert rank_errors(np.array([0.2, 0.1, 0.4, 0.3, 0.6, 0.5]), scores).tolist() == [0] * 6  # order among equals
    swapped = rank_errors(np.array([0.6, 0.2, 0.3, 0.4, 0.5, 0.1]), scores)
    assert (6 * swapped).tolist() == [4, 0, 0, 0, 0, -4]
    reversed_ = rank_errors(np.array([0.6, 0.5, 0.4, 0.3, 0.2, 0.1]), scores)
    assert (6 * reversed_).tolist() == [4, 3, 0, 0, -3, -4]
    assert (6 * rank_errors(np.full(6, 0.5), scores)).tolist() == [1.5, 1.5, 0, 0, -1.5, -1.5]


def test_pairs_that_gained_and_lost_most():
    good, bad = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6], [0.6, 0.2, 0.3, 0.4, 0.5, 0.1]
    found = changes(PAIRS, pair_result(good), pair_result(bad))
    assert [(one.texts, one.change) for one in found.gains] == [
        (("left 0", "right 0"), pytest.approx(4 / 6)),
        (("left 5", "right 5"), pytest.approx(4 / 6)),
    ]
    assert found.losses == []
    first = found.gains[0]
    assert (first.score, first.model_cosine, first.other_cosine) == (0, 0.1, 0.6)
    assert (first.model_error, first.other_error) == (0, pytest.approx(4 / 6))
    back = changes(PAIRS, pair_result(bad), pair_result(good))
    assert back.gains == []
    assert [one.texts for one in back.losses] == [one.texts for one in found.gains]
    assert [-one.change for one in back.losses] == [one.change for one in found.gains]
    assert len(changes(PAIRS, pair_result(good), pair_result(bad), most=1).gains) == 1
    assert changes(PAIRS, pair_result(good), pair_result(good)).to_dict() == {"gains": [], "losses": []}


CORPUS = {f"d{i}": text(f"document {i}") for i in range(5)}
SEARCH = RetrievalTask(
    "wiki",
    "wiki/",
    {"q1": text("first"), "q2": text("second"), "q3": text("third")},
    CORPUS,
    {"q1": {"d1": 1, "d2": 2, "d3": 0}, "q2": {"d4": 1, "gone": 1}, "q3": {"d0": 1}},
)


def search_result(scores, ranks):
    values = {"ndcg_at_10": np.array(scores)}
    return Result("wiki", "ir", float(np.mean(scores)), {"ndcg_at_10": float(np.mean(scores))}, 3, {}, values, ranks)


def test_queries_that_gained_and_lost_most():
    mine = search_result([0.9, 0.1, 0.5], [{"d1": 2, "d2": 1}, {}, {"d0": 3}])
    base = search_result([0.5, 0.8, 0.5], [{"d1": 9, "d2": 4}, {"d4": 1}, {"d0": 3}])
    found = changes(SEARCH, mine, base)
    (gain,), (loss,) = found.gains, found.losses
    assert (gain.id, gain.query, gain.model_score, gain.other_score) == ("q1", "first", 0.9, 0.5)
    assert gain.change == pytest.approx(0.4)
    assert [(d.id, d.text, d.relevance, d.model_rank, d.other_rank) for d in gain.relevant] == [
        ("d2", "document 2", 2, 1, 4),
        ("d1", "document 1", 1, 2, 9),
    ]
    assert [(d.id, d.model_rank, d.other_rank) for d in loss.relevant] == [("d4", None, 1)]
    json.dumps(found.to_dict(), allow_nan=False)
    shown = printed(found)
    for line in ("task: what gained most (base → mine)", "+40.0  50.0 → 90.0  query q1", "rank 4 → 1: document 2"):
        assert line in shown
    assert "rank 1 → not found: document 4" in shown


def test_rows_of_reranking_show_the_ranks_of_their_positives(embedding_pass):
    rows = [RerankingRow(text("w1 w2"), [text("w1 w2"), text("w8"), text("w9")], [1, 0, 0])]
    rows.append(RerankingRow(text("w3"), [text("w90"), text("w3"), text("w3")], [1, 0, 0]))
    task = RerankingTask("lists", "lists.jsonl", rows)
    result = evaluate(embedding_pass, TEMPLATES["none"], task)
    assert result.ranks == [{"000000": 1}, {"000000": 3}]
    worst = Result("lists", "reranking", 0.0, {}, 2, {}, {"map": np.zeros(2)}, [{"000000": 3}, {"000000": 3}])
    found = changes(task, result, worst)
    assert [one.query for one in found.gains] == ["w1 w2", "w3"]
    (document,) = found.gains[0].relevant
    assert (document.text, document.model_rank, document.other_rank) == ("w1 w2", 1, 3)


def test_ranks_of_retrieval_are_those_of_its_scores(embedding_pass):
    queries = {f"q{i}": text(f"w{i} w{i + 1}") for i in range(20)}
    corpus = {f"d{i}": text(f"w{i} w{i + 2} w{i * 7 % 40}") for i in range(30)}
    task = RetrievalTask("wiki", "wiki/", queries, corpus, {f"q{i}": {f"d{i}": 1} for i in range(20)})
    result = evaluate(embedding_pass, TEMPLATES["none"], task)
    ndcg = [1 / np.log2(1 + rank) if rank <= 10 else 0.0 for (rank,) in (ranks.values() for ranks in result.ranks)]
    np.testing.assert_allclose(result.values["ndcg_at_10"], ndcg)


def test_a_sample_shows_the_texts_that_were_scored(embedding_pass):
    pairs = [(text(f"w{i} w{i + 1}"), text(f"w{i} w{i + 3}")) for i in range(40)]
    task = PairTask("stsb", "stsb.tsv", pairs, np.arange(40.0))
    result = evaluate(embedding_pass, TEMPLATES["none"], task, sample=10, seed=3)
    other = Result("stsb", "sts", 0.0, {}, 10, result.settings, {**result.values, "cosine": -result.values["cosine"]})
    found = changes(task, result, other)
    assert found.gains
    for one in found.gains:
        place = int(one.score)  # the gold score is the place in the task
        assert one.texts == (pairs[place][0].text, pairs[place][1].text)


def test_long_texts_are_cut_on_the_terminal_and_whole_in_json():
    long = "长" * 300 + "\nnext line"
    task = PairTask("stsb", "s.tsv", [(text(long), text(long))] * 2, np.array([0.0, 1.0]))
    found = changes(task, pair_result([0.1, 0.2], task), pair_result([0.2, 0.1], task))
    lines = printed(found, width=60).splitlines()
    assert any(line.rstrip().endswith("…") for line in lines)
    assert len(lines) == 2 + 2 * 3  # a blank line, the title, and three lines a pair
    assert found.to_dict()["gains"][0]["texts"] == (long, long)


def test_markup_in_texts_is_text():
    task = PairTask("stsb", "s.tsv", [(text("[red]a"), text("b"))] * 2, np.array([0.0, 1.0]))
    found = changes(task, pair_result([0.1, 0.2], task), pair_result([0.2, 0.1], task))
    assert "[red]a" in printed(found)
