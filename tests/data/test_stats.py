import json
from dataclasses import asdict

import numpy as np
import pytest

from codiemb.data import read
from codiemb.data.stats import describe


def table(tmp_path, *rows):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return read(path)[0]


def ir(query, *positives, negatives=()):
    return {"task_type": "ir", "query": query, "positives": list(positives), "negatives": list(negatives)}


def sts(first, second, score):
    return {"task_type": "sts", "query": first, "positives": [second], "positive_scores": [score]}


def test_counts_and_candidates(tmp_path):
    found = describe(table(tmp_path, ir("a", "p", "r"), ir("b", "p", negatives=["n", "m", "o"])))
    assert (found.name, found.task_type, found.rows, found.rejected, found.scores) == ("rows", "ir", 2, 0, None)
    assert asdict(found.positives) == {"min": 1, "mean": 1.5, "max": 2}
    assert asdict(found.negatives) == {"min": 0, "mean": 1.5, "max": 3}
    assert (found.queries.texts, found.documents.texts) == (2, 6)


def test_lengths_of_both_sides_count_instruction_and_prefix(tmp_path):
    rows = [ir(["do ", "t: ", "x" * i], "y" * (10 * i), negatives=["z" * 5]) for i in range(1, 101)]
    found = describe(table(tmp_path, *rows), max_length=100)
    queries = np.arange(1, 101) + 6
    assert (found.queries.p50, found.queries.p90, found.queries.p99, found.queries.max) == (
        *(int(np.percentile(queries, q, method="higher")) for q in (50, 90, 99)),
        106,
    )
    assert found.queries.truncated == 6
    assert (found.documents.max, found.documents.truncated) == (1000, 90)


def test_another_measure(tmp_path):
    found = describe(
        table(tmp_path, ir("three small words", "one")), measure=lambda texts: [len(t.split()) for t in texts]
    )
    assert (found.queries.max, found.documents.max) == (3, 1)


def test_a_large_side_is_measured_on_an_even_sample(tmp_path):
    rows = [ir("q", "p" * (1 + i % 100), negatives=["n" * (1 + i % 100)]) for i in range(3000)]
    found = describe(table(tmp_path, *rows), sample=1000)
    assert (found.documents.texts, found.documents.measured, found.queries.measured) == (6000, 1000, 1000)
    assert found.documents.p50 == pytest.approx(50, abs=8)  # of 1000 draws: 4 standard errors are 6.3
    assert found == describe(table(tmp_path, *rows), sample=1000)


def test_duplicates_are_exact(tmp_path):
    rows = [
        ir("q", "a", "b"),
        ir("q", "a"),
        ir("q", "c"),
        ir(["do", "", "q"], "a"),
        ir("Q", "a"),
        ir("other", "a", "a"),
    ]
    found = describe(table(tmp_path, *rows))
    assert (found.duplicate_queries, found.duplicate_pairs) == (2, 2)


def test_score_histogram(tmp_path):
    found = describe(table(tmp_path, *(sts("a", f"b{i}", i / 10) for i in range(51))))
    assert found.scores.edges == pytest.approx(np.linspace(0, 5, 11))
    assert found.scores.counts == [5] * 9 + [6]
    constant = describe(table(tmp_path, sts("a", "b", 3), sts("c", "d", 3)))
    assert (constant.scores.edges, constant.scores.counts) == ([3.0, 3.0], [2])


def test_one_row(tmp_path):
    found = describe(table(tmp_path, sts("ab", "c", 1)))
    assert (found.rows, found.queries.p50, found.documents.max, found.duplicate_queries) == (1, 2, 1, 0)
