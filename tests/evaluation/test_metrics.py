import math

import numpy as np
import pytest

from codiemb.evaluation.metrics import correlations, rank_documents, ranking_metrics, unit


def random_units(seed, rows, dim=16):
    return unit(np.random.default_rng(seed).standard_normal((rows, dim)).astype(np.float32))


def slow_ranking(queries, documents, ids, depth):
    """Sort everything: best score first, of equal ones the greater id."""
    scores = (queries.astype(np.float64) @ documents.astype(np.float64).T).astype(np.float32)
    return [
        [ids[i] for i in sorted(range(len(ids)), key=lambda i, row=row: (row[i], ids[i]), reverse=True)][:depth]
        for row in scores
    ]


@pytest.fixture
def with_ties():
    """30 documents of which every third is a copy of another."""
    documents = random_units(0, 30)
    documents[2::3] = documents[0::3]
    return random_units(1, 7), documents, [f"q{i}" for i in range(7)], [f"d{i}" for i in range(30)]


@pytest.mark.parametrize("query_block", [1, 3, 100])
@pytest.mark.parametrize("document_block", [1, 4, 100])
@pytest.mark.parametrize("depth", [1, 5, 1000])
def test_ranking_is_the_full_sort_whatever_the_blocks(with_ties, query_block, document_block, depth):
    queries, documents, query_ids, ids = with_ties
    rankings = rank_documents(
        queries, documents, query_ids, ids, depth=depth, query_block=query_block, document_block=document_block
    )
    assert rankings == slow_ranking(queries, documents, ids, depth)


def test_ranking_does_not_depend_on_the_order_of_the_corpus(with_ties):
    queries, documents, query_ids, ids = with_ties
    order = np.random.default_rng(2).permutation(len(ids))
    shuffled = rank_documents(queries, documents[order], query_ids, [ids[i] for i in order], depth=4)
    assert shuffled == rank_documents(queries, documents, query_ids, ids, depth=4)


def test_signs_and_zeros_are_in_order():
    documents = np.array([[-1.0], [1.0], [-0.0], [0.0], [-0.5], [0.5]], dtype=np.float32)
    query = np.array([[1.0]], dtype=np.float32)
    assert rank_documents(query, documents, ["q"], list("abcdef")) == [["b", "f", "d", "c", "e", "a"]]


@pytest.mark.parametrize("document_block", [1, 3, 100])
def test_a_document_with_the_id_of_the_query_can_be_left_out(document_block):
    vectors, ids = random_units(3, 5), list("abcde")
    kept = rank_documents(vectors, vectors, ids, ids)
    assert [ranking[0] for ranking in kept] == ids
    left_out = rank_documents(vectors, vectors, ids, ids, ignore_identical_ids=True, document_block=document_block)
    assert left_out == [ranking[1:] for ranking in kept]


def test_a_zero_vector_has_the_cosine_zero():
    assert unit(np.array([[0.0, 0.0], [3.0, 4.0]], dtype=np.float32)).tolist() == [[0, 0], pytest.approx([0.6, 0.8])]


def slow_metrics(qrels, ranking):
    gains = [qrels.get(document, 0) for document in ranking]
    best = sorted(qrels.values(), reverse=True)
    dcg, ideal = (sum(gain / math.log2(rank + 2) for rank, gain in enumerate(values[:10])) for values in (gains, best))
    relevant = sum(gain > 0 for gain in best)
    precisions = [sum(g > 0 for g in gains[: i + 1]) / (i + 1) for i, gain in enumerate(gains) if gain > 0]
    reciprocal = next((1 / (rank + 1) for rank, gain in enumerate(gains[:10]) if gain > 0), 0.0)
    recall = sum(gain > 0 for gain in gains[:100]) / relevant
    return [dcg / ideal, sum(precisions) / relevant, reciprocal, recall]


def test_ranking_metrics_are_the_formulas():
    random = np.random.default_rng(4)
    ids = [f"d{i}" for i in range(300)]
    query_ids = [f"q{i}" for i in range(20)]
    rankings = [[ids[i] for i in random.permutation(300)[:200]] for _ in query_ids]
    qrels = {
        query: {ids[i]: int(random.integers(0, 3)) for i in random.permutation(300)[:25]} | {"d7": 1}
        for query in query_ids
    }
    values = ranking_metrics(qrels, query_ids, rankings)
    expected = [slow_metrics(qrels[query], ranking) for query, ranking in zip(query_ids, rankings, strict=True)]
    assert list(values) == ["ndcg_at_10", "map", "mrr_at_10", "recall_at_100"]
    np.testing.assert_allclose(np.column_stack(list(values.values())), expected, atol=1e-6)
    backwards = ranking_metrics(qrels, query_ids, [ranking[::-1] for ranking in rankings])
    assert not np.allclose(backwards["map"], values["map"])


def test_a_query_whose_only_document_is_left_out_scores_zero():
    values = ranking_metrics({"a": {"a": 1}}, ["a"], [[]])
    assert {name: column.tolist() for name, column in values.items()} == {name: [0.0] for name in values}


def test_a_model_that_gives_one_cosine_scores_zero_with_a_warning(caplog):
    assert correlations(np.full(3, 0.5), np.array([0.0, 1, 2]), "pairs") == {"cosine_spearman": 0, "cosine_pearson": 0}
    assert "pairs: the model gives all pairs the cosine 0.5" in caplog.text
