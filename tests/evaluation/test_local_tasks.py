"""Local data as mteb tasks: the scores of codiemb's own evaluation, and mteb's where it has none."""

import json
from dataclasses import replace

import hub_layout
import numpy as np
import pytest

from codiemb.data.examples import DataError, Text
from codiemb.embedder import LLMEmbeddingModel
from codiemb.evaluation import PairTask, RerankingRow, RerankingTask, RetrievalTask, benchmark, discover, evaluate
from codiemb.evaluation.local_tasks import mteb_tasks
from codiemb.evaluation.metrics import unit
from codiemb.evaluation.mteb_model import InstructedEncoder
from codiemb.evaluation.tasks import LabelledTask
from codiemb.prompts import PromptedText


@pytest.fixture
def model(tiny_model_directory):
    return LLMEmbeddingModel(tiny_model_directory, device="cpu", compute="fp32")


@pytest.fixture
def score(model, tmp_path):
    """Scores and results of mteb on local tasks."""

    def run(tasks, **options):
        encoder = InstructedEncoder(model, "tests/tiny")
        outcomes = list(benchmark.run(encoder, mteb_tasks(tasks, **options), tmp_path / "out"))
        assert [outcome.error for outcome in outcomes] == [""] * len(outcomes)
        folder = benchmark.result_folder(tmp_path / "out", encoder)
        results = [json.loads((folder / f"{outcome.task}.json").read_text()) for outcome in outcomes]
        return outcomes, [result["scores"]["test"][0] for result in results]

    return run


def plain(text):
    return Text("", "", text)


def samples():
    return discover([hub_layout.SAMPLES / "ir", hub_layout.SAMPLES / "sts.tsv"])


def reranking():
    retrieval, _ = samples()
    corpus = list(retrieval.corpus)
    rows = []
    for number, (query, text) in enumerate(list(retrieval.queries.items())[:30]):
        relevant = [retrieval.corpus[document] for document in retrieval.qrels[query]]
        others = [retrieval.corpus[document] for document in corpus[number * 7 : number * 7 + 5]]
        rows.append(RerankingRow(text, [*relevant, *others], [1] * len(relevant) + [0] * len(others)))
    return RerankingTask("lists", "lists.jsonl", rows)


def test_retrieval_sts_and_reranking_agree_with_codiembs_own_evaluation(model, score):
    retrieval, pairs = samples()
    queries = {  # a random network knows the words of a text, not their meaning
        id_: plain(retrieval.corpus[next(iter(retrieval.qrels[id_]))].text[:100]) for id_ in retrieval.queries
    }
    retrieval = replace(retrieval, queries=queries)
    vectors = unit(model.embedding_pass.encode(PromptedText("query: ", t.text) for pair in pairs.pairs for t in pair))
    order = (vectors[0::2] * vectors[1::2]).sum(axis=1).argsort().argsort()
    noise = np.random.default_rng(0).normal(scale=0.2 * len(order), size=len(order))
    pairs = replace(pairs, scores=order + noise)
    tasks = [retrieval, pairs, reranking()]
    outcomes, results = score(tasks)
    own = [evaluate(model.embedding_pass, model.template, task) for task in tasks]
    assert [outcome.type for outcome in outcomes] == ["Retrieval", "STS", "Reranking"]
    names = [
        {"ndcg_at_10": "ndcg_at_10", "recall_at_100": "recall_at_100", "map": "map_at_1000", "mrr_at_10": "mrr_at_10"},
        {"cosine_spearman": "cosine_spearman", "cosine_pearson": "cosine_pearson"},
        {"map": "map_at_1000", "mrr_at_10": "mrr_at_10", "ndcg_at_10": "ndcg_at_10"},
    ]
    for outcome, theirs, ours, shared in zip(outcomes, results, own, names, strict=True):
        # mteb rounds rankings to 5 digits, and takes cosines in float32: nearly equal ones change places.
        error = 5e-4 if outcome.type == "STS" else 2e-5
        assert outcome.score == pytest.approx(ours.main_score, abs=error)
        assert {name: theirs[other] for name, other in shared.items()} == pytest.approx(ours.metrics, abs=error)
        assert 0.05 < abs(ours.main_score) < 0.99  # else the comparison says little


def test_a_document_with_its_querys_id(model, score):
    corpus = list(samples()[0].corpus.values())[:30]
    texts = {f"x{i}": text for i, text in enumerate(corpus)}
    task = RetrievalTask("same", "same/", texts, texts, {f"x{i}": {f"x{(i + 1) % 30}": 1} for i in range(30)})
    for same_ids in (True, False):
        (outcome,), _ = score([task], same_ids=same_ids)
        own = evaluate(model.embedding_pass, model.template, task, ignore_identical_ids=not same_ids)
        assert outcome.score == pytest.approx(own.main_score, abs=2e-5)


def test_labelled_texts(score):
    _, pairs = samples()
    texts = [first for first, _ in pairs.pairs][:120]
    labels = ["zh" if hub_layout.chinese(text.text) else "en" for text in texts]
    tasks = [
        LabelledTask(f"language:{kind}", "l.tsv", texts, labels, kind) for kind in ("classification", "clustering")
    ]
    outcomes, (classified, clustered) = score(tasks)
    assert [(outcome.task, outcome.type, outcome.main_metric) for outcome in outcomes] == [
        ("language-classification", "Classification", "accuracy"),
        ("language-clustering", "Clustering", "v_measure"),
    ]
    assert len(classified["scores_per_experiment"]) == 5  # folds
    assert 0.8 < outcomes[0].score <= 1  # a random network tells Chinese from English
    assert len(clustered["v_measures"]["Level 0"]) == 10
    shuffled = [labels[i] for i in np.random.default_rng(0).permutation(len(labels))]
    (control,), _ = score([LabelledTask("shuffled", "l.tsv", texts, shuffled, "classification")])
    assert control.score < 0.7


def test_pair_classification(model, score):
    texts = [text for pair in samples()[1].pairs for text in pair][:60]
    pairs = [(texts[i], texts[i + i % 2]) for i in range(40)]
    task = PairTask(
        "same", "same.jsonl", pairs, np.array([float(a == b) for a, b in pairs]), type="pair_classification"
    )
    (outcome,), (scores,) = score([task])
    assert (outcome.type, outcome.main_metric, outcome.score) == ("PairClassification", "max_ap", pytest.approx(1))
    assert scores["cosine_ap"] == pytest.approx(1)


def test_results_are_kept_until_texts_or_the_sample_change(model, tmp_path):
    encoder = InstructedEncoder(model, "tests/tiny")
    _, pairs = samples()

    def state(task):
        (outcome,) = benchmark.run(encoder, mteb_tasks([task]), tmp_path)
        return outcome.state

    assert [state(pairs), state(pairs), state(pairs.sampled(50, 0)), state(pairs)] == [
        "measured",
        "kept",
        "measured",
        "measured",
    ]


def test_instructions_and_prefixes_of_the_data(tiny_model_directory, tmp_path):
    model = LLMEmbeddingModel(tiny_model_directory, device="cpu", compute="fp32", template="e5-instruct")
    queries = {"q": Text("find", "how ", "do I make bread?")}
    task = RetrievalTask("t", "t", queries, {"d": plain("bread"), "e": plain("train")}, {"q": {"d": 1}})
    (made,) = mteb_tasks([task])
    assert made.dataset["default"]["test"]["queries"]["text"][0] == "how do I make bread?"
    encoder = InstructedEncoder(model, "tests/tiny")
    (outcome,) = benchmark.run(encoder, [made], tmp_path)
    assert outcome.prompts == {"query": "Instruct: find\nQuery: ", "document": ""}
    queries["r"] = plain("train")
    mixed = RetrievalTask("t", "t.jsonl", queries, task.corpus, {"q": {"d": 1}, "r": {"e": 1}})
    with pytest.raises(DataError, match=r"t.jsonl: one side has 2 different instructions \('', 'find', ...\)"):
        mteb_tasks([mixed])


def test_names():
    texts, labels = [plain("a"), plain("b"), plain("c")], ["x", "y", "x"]
    tasks = [LabelledTask(name, "s", texts, labels, "clustering") for name in ("STSB", "zh/dev", "a:clustering")]
    assert [task.metadata.name for task in mteb_tasks(tasks, taken={"STSB"})] == [
        "STSB-local",
        "zh-dev",
        "a-clustering",
    ]
    with pytest.raises(DataError, match="2 data sets would be named zh-dev"):
        mteb_tasks([LabelledTask(name, "s", texts, labels, "clustering") for name in ("zh/dev", "zh:dev")])


@pytest.mark.parametrize(
    ("task", "expected"),
    [
        (
            PairTask("p", "p.jsonl", [(plain("a"), plain("b"))] * 2, np.array([0.5, 1]), type="pair_classification"),
            "p.jsonl: pair classification has the score 0.5; mteb's has 0 and 1",
        ),
        (
            LabelledTask("l", "l.tsv", [plain("a")] * 2, ["x", "x"], "clustering"),
            "l.tsv: 2 texts with 1 different labels",
        ),
        (
            LabelledTask("l", "l.tsv", [plain("a")] * 2, ["x", "y"], "clustering"),
            "l.tsv: 2 texts with 2 different labels",
        ),
    ],
)
def test_data_that_mteb_cannot_score(task, expected):
    with pytest.raises(DataError, match=expected):
        mteb_tasks([task])
