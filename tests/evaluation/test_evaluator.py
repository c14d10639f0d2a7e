from dataclasses import replace

import numpy as np
import pytest
import torch
from sentence_transformers.evaluation import EmbeddingSimilarityEvaluator, InformationRetrievalEvaluator

from codiemb.data.examples import Text
from codiemb.encoding import EmbeddingPass
from codiemb.evaluation import PairTask, RerankingRow, RerankingTask, RetrievalTask, evaluate
from codiemb.evaluation.metrics import unit
from codiemb.prompts import TEMPLATES, InstructionTemplate, PromptedText


def sentence(random, words=6):
    return " ".join(f"w{i}" for i in random.integers(0, 200, words))


def plain(text):
    return Text("", "", text)


@pytest.fixture(scope="module")
def retrieval():
    """40 queries, each with two relevant documents among 80 that share some of its words."""
    random = np.random.default_rng(0)
    corpus = {f"d{i}": sentence(random, int(random.integers(4, 20))) for i in range(80)}
    queries = {f"q{i}": " ".join(corpus[f"d{i}"].split()[:2]) + " " + sentence(random, 3) for i in range(40)}
    qrels = {f"q{i}": {f"d{i}": 1, f"d{i + 1}": 1} for i in range(40)}
    return RetrievalTask(
        "small", "small/", {k: plain(v) for k, v in queries.items()}, {k: plain(v) for k, v in corpus.items()}, qrels
    )


@pytest.fixture(scope="module")
def pairs():
    random = np.random.default_rng(1)
    texts = [(sentence(random), sentence(random)) for _ in range(50)]
    return PairTask("pairs", "pairs.tsv", [(plain(a), plain(b)) for a, b in texts], random.integers(0, 6, 50) / 1.0)


@pytest.mark.parametrize("template", [TEMPLATES["none"], TEMPLATES["e5"]], ids=["none", "e5"])
def test_retrieval_equals_sentence_transformers(embedding_pass, tiny_model, retrieval, template):
    reference = InformationRetrievalEvaluator(
        {id_: text.text for id_, text in retrieval.queries.items()},
        {id_: text.text for id_, text in retrieval.corpus.items()},
        {id_: set(documents) for id_, documents in retrieval.qrels.items()},
        ndcg_at_k=[10],
        map_at_k=[1000],
        mrr_at_k=[10],
        precision_recall_at_k=[100],
        query_prompt=template.query,
        corpus_prompt=template.document,
    )(tiny_model)
    result = evaluate(embedding_pass, template, retrieval)
    names = {"ndcg_at_10": "ndcg@10", "map": "map@1000", "mrr_at_10": "mrr@10", "recall_at_100": "recall@100"}
    expected = {ours: reference[f"cosine_{theirs}"] for ours, theirs in names.items()}
    assert result.metrics == pytest.approx(expected, abs=1e-6)
    assert result.main_score == result.metrics["ndcg_at_10"]
    assert 0.1 < result.main_score < 0.9  # else the comparison says little
    assert {name: values.mean() for name, values in result.values.items()} == pytest.approx(result.metrics)


def test_pairs_equal_sentence_transformers(embedding_pass, tiny_model, pairs):
    first, second = ([pair[side].text for pair in pairs.pairs] for side in (0, 1))
    reference = EmbeddingSimilarityEvaluator(first, second, pairs.scores.tolist(), main_similarity="cosine")(tiny_model)
    result = evaluate(embedding_pass, TEMPLATES["none"], pairs)
    assert result.metrics == pytest.approx(
        {"cosine_spearman": reference["spearman_cosine"], "cosine_pearson": reference["pearson_cosine"]}, abs=1e-5
    )
    assert result.main_score == result.metrics["cosine_spearman"]
    assert result.values["cosine"].shape == (50,)


def test_both_texts_of_a_pair_take_the_query_side(embedding_pass, pairs):
    template = InstructionTemplate(query="query: ", document="passage: ")
    result = evaluate(embedding_pass, template, pairs)
    assert result.settings["prompts"] == {"query": {"distinct": 1, "first": ["query: "]}}
    vectors = embedding_pass.encode([PromptedText("query: ", text.text) for pair in pairs.pairs for text in pair])
    expected = (unit(vectors[0::2]) * unit(vectors[1::2])).sum(axis=1)
    np.testing.assert_allclose(result.values["cosine"], expected, atol=1e-5)


def test_instruction_and_prefix_are_read(embedding_pass, caplog):
    template = InstructionTemplate(query="query: {instruction} ", document="")
    queries = {"q0": Text("w7", "w8 ", "w9")}
    task = RetrievalTask("t", "t", queries, {"d0": plain("w9"), "d1": plain("w1")}, {"q0": {"d0": 1}})
    seen = []
    tokenize = embedding_pass.tokenize
    embedding_pass.tokenize = lambda texts: seen.extend(texts) or tokenize(texts)
    result = evaluate(embedding_pass, template, task)
    assert seen[0] == PromptedText("query: w7 ", "w8 w9")
    assert result.settings["prompts"]["query"]["first"] == ["query: w7 "]
    assert result.settings["prompts"]["document"]["first"] == [""]
    assert not caplog.records


def test_a_template_without_its_instruction_warns(embedding_pass, pairs, caplog):
    evaluate(embedding_pass, TEMPLATES["youtu"], pairs)
    assert "pairs: the model's template reads an instruction and the data has none" in caplog.text
    caplog.clear()
    result = evaluate(embedding_pass, replace(TEMPLATES["youtu"], default="w1"), pairs)
    assert result.settings["prompts"]["query"]["first"] == ["Instruction: w1 \nQuery: "]
    assert not caplog.records


def test_reranking_scores_each_list_by_itself(embedding_pass):
    random = np.random.default_rng(2)
    rows = [
        RerankingRow(plain(sentence(random)), [plain(sentence(random)) for _ in range(8)], [1, 1, 1, 0, 0, 0, 0, 0])
        for _ in range(12)
    ]
    result = evaluate(embedding_pass, TEMPLATES["none"], RerankingTask("lists", "lists.jsonl", rows))
    expected = []
    for query, candidates, relevance in rows:
        vectors = unit(embedding_pass.encode([PromptedText("", text.text) for text in (query, *candidates)]))
        hits = np.array(relevance)[np.argsort(-(vectors[1:] @ vectors[0]))]
        expected.append(np.mean([hits[: i + 1].mean() for i in np.flatnonzero(hits)]))
    np.testing.assert_allclose(result.values["map"], expected, atol=1e-6)
    assert result.main_score == pytest.approx(np.mean(expected))


def test_equal_candidates_do_not_favour_the_positive(embedding_pass):
    row = RerankingRow(plain("w1"), [plain("w2"), plain("w2")], [1, 0])
    result = evaluate(embedding_pass, TEMPLATES["none"], RerankingTask("tie", "tie.jsonl", [row]))
    assert result.metrics["map"] == pytest.approx(0.5)


def test_a_sample_keeps_the_corpus_and_is_chosen_by_the_seed(embedding_pass, retrieval, pairs):
    full = evaluate(embedding_pass, TEMPLATES["none"], retrieval)
    result = evaluate(embedding_pass, TEMPLATES["none"], retrieval, sample=10, seed=3)
    again = evaluate(embedding_pass, TEMPLATES["none"], retrieval, sample=10, seed=3)
    other = evaluate(embedding_pass, TEMPLATES["none"], retrieval, sample=10, seed=4)
    assert (result.n, result.settings["documents"]) == (10, 80)
    assert result.settings["sample"] == {"of": 40, "seed": 3}
    assert result.metrics == again.metrics != other.metrics
    assert set(result.values["map"].round(6)) <= set(full.values["map"].round(6))
    assert evaluate(embedding_pass, TEMPLATES["none"], retrieval, sample=40).metrics == full.metrics
    assert evaluate(embedding_pass, TEMPLATES["none"], pairs, sample=20).n == 20


def test_each_distinct_text_is_embedded_and_counted_once(tiny_model):
    short = EmbeddingPass(tiny_model, precision=torch.float32, max_length=5)
    texts = [plain("w1 w2"), plain("w1 w2"), plain("w3"), plain("w1 w2 w3 w4 w5")]
    task = PairTask("p", "p.tsv", [(texts[0], texts[2]), (texts[1], texts[3])], np.array([0.0, 1.0]))
    progress = []
    result = evaluate(short, TEMPLATES["none"], task, on_progress=lambda *step: progress.append(step))
    settings = result.settings
    assert (settings["distinct_texts"], settings["tokens"], settings["truncated_texts"]) == (3, 4 + 3 + 5, 1)
    assert settings["max_length"] == 5
    assert progress[-1] == (3, 3)


def test_identical_ids_can_be_ignored(embedding_pass):
    texts = {id_: plain(text) for id_, text in {"a": "w1 w2", "b": "w1 w3", "c": "w8 w9"}.items()}
    task = RetrievalTask("self", "self/", {"a": texts["a"]}, texts, {"a": {"b": 1}})
    counted = evaluate(embedding_pass, TEMPLATES["none"], task)
    ignored = evaluate(embedding_pass, TEMPLATES["none"], task, ignore_identical_ids=True)
    assert (counted.metrics["mrr_at_10"], ignored.metrics["mrr_at_10"]) == (0.5, 1.0)


def test_the_model_is_left_as_it_was(embedding_pass, pairs):
    embedding_pass.train()
    evaluate(embedding_pass, TEMPLATES["none"], pairs)
    assert embedding_pass.training
    assert not embedding_pass._forward_pre_hooks
    assert not embedding_pass.transformer._forward_hooks


def test_a_model_that_gives_nan_is_an_error_with_the_text(tiny_model, pairs):
    weight = tiny_model[0].model.encoder.layer[1].output.LayerNorm.weight
    saved = weight.data.clone()
    weight.data.fill_(float("nan"))
    try:
        with pytest.raises(ValueError, match=r"pairs: the model's embedding of 'w.* is not finite"):
            evaluate(EmbeddingPass(tiny_model, precision=torch.float32), TEMPLATES["none"], pairs)
    finally:
        weight.data.copy_(saved)


@pytest.mark.parametrize("document", ["", "   "])
def test_an_empty_document_is_embedded(embedding_pass, document):
    task = RetrievalTask("e", "e/", {"q": plain("w1")}, {"d": plain("w1"), "e": plain(document)}, {"q": {"d": 1}})
    assert evaluate(embedding_pass, TEMPLATES["e5"], task).main_score == 1.0
