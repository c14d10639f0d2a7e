"""Items of mteb's scores: kept beside its results, and believed only where its score follows from them."""

import json
import math
from dataclasses import replace
from types import SimpleNamespace

import datasets
import hub_layout
import mteb
import numpy as np
import pytest
import torch

from codiemb.embedder import LLMEmbeddingModel
from codiemb.evaluation import benchmark, discover, evaluate
from codiemb.evaluation.benchmark_changes import benchmark_changes
from codiemb.evaluation.benchmark_compare import compare_scores, score_intervals
from codiemb.evaluation.benchmark_items import items_file, read_scores
from codiemb.evaluation.changes import PairChange, QueryChange, TextChange, changes
from codiemb.evaluation.local_tasks import mteb_tasks
from codiemb.evaluation.mteb_model import InstructedEncoder
from codiemb.evaluation.tasks import LabelledTask

LABELS = ["kitchen", "travel"]


def local():
    retrieval, pairs = discover([hub_layout.SAMPLES / "ir", hub_layout.SAMPLES / "sts.tsv"])
    retrieval = retrieval.sampled(12, seed=0)
    texts = [first for first, _ in pairs.pairs[:18]]  # labels at random: no model gets them all
    own = [LabelledTask(kind, "topics.tsv", texts, LABELS * 9, kind) for kind in ("classification", "clustering")]
    relevant = {id_ for query in retrieval.queries for id_ in retrieval.qrels[query]}
    kept = dict.fromkeys([*sorted(relevant), *list(retrieval.corpus)[:20]])
    return [replace(retrieval, corpus={id_: retrieval.corpus[id_] for id_ in kept}), pairs.sampled(40, seed=0), *own]


@pytest.fixture(scope="module")
def measured(tiny_model_directory, tmp_path_factory):
    """All tasks of the hub's layout and local ones, by a random model and by one near it."""
    root = tmp_path_factory.mktemp("measured")
    hub_layout.write(root / "hub")
    tasks = [*benchmark.select("MTEB(cmn, v1)", tasks=hub_layout.TASKS), *mteb_tasks(local())]
    folders, models = [], []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", root / "datasets")
        patch.setenv("CODIEMB_CACHE", str(root / "cache"))
        random = torch.Generator().manual_seed(0)
        for noise in (0.0, 0.3):
            model = LLMEmbeddingModel(tiny_model_directory, device="cpu", compute="fp32")
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.add_(noise * torch.randn(parameter.shape, generator=random))
            encoder = InstructedEncoder(model, "tests/tiny")
            outcomes = list(benchmark.run(encoder, tasks, root / "out", dataset_root=root / "hub"))
            assert {outcome.error for outcome in outcomes} == {""}
            folders.append(benchmark.result_folder(root / "out", encoder))
            models.append(model)
        loaded = {task.metadata.name: benchmark.with_data(task, root / "hub") for task in tasks}
    scores = [read_scores(folder, tasks) for folder in folders]
    return SimpleNamespace(tasks=tasks, folders=folders, models=models, scores=scores, loaded=loaded)


def test_every_score_follows_from_its_items(measured):
    scores = measured.scores[0]
    kinds = {name: (score.kind, len(next(iter(score.parts.values())).items)) for name, score in scores.items()}
    assert kinds == {
        "STSB": ("pairs", 16),
        "AFQMC": ("pairs", 16),
        "Ocnli": ("pairs", 16),
        "Waimai": ("texts", 12),
        "CLSClusteringS2S": ("draws", 1),
        "MedicalRetrieval": ("queries", 8),
        "T2Reranking": ("queries", 8),
        "ir": ("queries", 12),
        "sts": ("pairs", 40),
        "classification": ("texts", 18),
        "clustering": ("draws", 10),
    }
    for name, score in scores.items():
        assert score.reason == ""
        recomputed = np.mean([part.items.score() for part in score.parts.values()])
        assert recomputed == pytest.approx(score.score, abs=1e-5), name
    assert not [path for path in measured.folders[0].iterdir() if path.name.startswith(".")]  # predictions are gone


def test_items_are_those_of_codiembs_own_evaluation(measured):
    model, scores = measured.models[0], measured.scores[0]
    for task in local()[:2]:
        own = evaluate(model.embedding_pass, model.template, task)
        part = scores[task.name].parts["test/default"]
        np.testing.assert_allclose(part.items.values, own.items.values, atol=2e-5)
        np.testing.assert_array_equal(part.items.gold, own.items.gold)
        assert [dict(ranks) for ranks in part.ranks] == [dict(ranks) for ranks in own.ranks]


def test_results_are_what_mteb_writes_without_items(measured, tmp_path):
    encoder = InstructedEncoder(measured.models[0], "tests/tiny")
    for task in mteb_tasks(local()):
        plain = mteb.evaluate(encoder, task, cache=None, co2_tracker=False, show_progress_bar=False).task_results[0]
        written = json.loads((measured.folders[0] / f"{task.metadata.name}.json").read_text())
        plain.to_disk(tmp_path / "plain.json")
        expected = json.loads((tmp_path / "plain.json").read_text())["scores"]
        assert json.dumps(written["scores"], sort_keys=True) == json.dumps(expected, sort_keys=True)  # NaN is NaN


def test_a_score_does_not_depend_on_what_was_measured_before(measured, tmp_path):
    encoder = InstructedEncoder(measured.models[0], "tests/tiny")
    clustering = [task for task in measured.tasks if task.metadata.name == "clustering"]
    (again,) = benchmark.run(encoder, clustering, tmp_path)
    assert again.score == pytest.approx(measured.scores[0]["clustering"].score, abs=1e-6)


def test_intervals_are_of_items_and_none_of_draws_is_in_a_mean(measured):
    scores = measured.scores[0]
    found = score_intervals(scores)
    for name, score in scores.items():
        interval = found.tasks[name]
        if name == "CLSClusteringS2S":
            assert interval is None  # one draw
        else:
            assert interval.low <= score.score <= interval.high, name
    assert {"STS", "Retrieval", "Classification"} <= found.means.keys()
    assert not {"Clustering", "Mean(Task)", "Mean(Type)"} & found.means.keys()
    without = {name: score for name, score in scores.items() if score.kind != "draws"}
    mean = score_intervals(without).means["Mean(Task)"]
    assert mean.low < np.mean([score.score for score in without.values()]) < mean.high
    sts = score_intervals({"STSB": scores["STSB"], "AFQMC": scores["AFQMC"]}).means
    assert sts["STS"] == sts["Mean(Task)"] != found.means["STS"]


def test_items_of_another_result_are_not_believed(measured, tmp_path):
    (task,) = (task for task in measured.tasks if task.metadata.name == "AFQMC")
    mine, theirs = measured.folders
    (tmp_path / "AFQMC.json").write_bytes((mine / "AFQMC.json").read_bytes())

    def read():
        return read_scores(tmp_path, [task])["AFQMC"]

    assert (read().parts, read().reason) == ({}, "there is no AFQMC.items.parquet of this result")
    assert score_intervals({"AFQMC": read()}).tasks == {}
    items_file(tmp_path, "AFQMC").write_bytes(items_file(theirs, "AFQMC").read_bytes())
    assert (read().parts, read().reason) == ({}, "AFQMC.items.parquet is of another result")
    items_file(tmp_path, "AFQMC").write_bytes(items_file(mine, "AFQMC").read_bytes())
    assert read().parts.keys() == {"validation/default"}


def test_kinds_of_task_without_items_say_so(measured, tmp_path):
    (task,) = (task for task in measured.tasks if task.metadata.name == "STSB")
    own = benchmark._own(task)
    own.metadata = task.metadata.model_copy(update={"main_score": "manhattan_pearson"})
    result = json.loads((measured.folders[0] / "STSB.json").read_text())
    (tmp_path / "STSB.json").write_text(json.dumps(result))
    score = read_scores(tmp_path, [own])["STSB"]
    assert (score.parts, score.reason) == ({}, "mteb has no manhattan_pearson of single items")


def test_two_models_side_by_side(measured):
    comparison = compare_scores(*measured.scores, ("mine", "base"))
    json.dumps(comparison, allow_nan=False)
    by_name = {entry["task"]: entry for entry in comparison["tasks"]}
    assert by_name.keys() == measured.scores[0].keys()
    for name, entry in by_name.items():
        difference = measured.scores[0][name].score - measured.scores[1][name].score
        assert entry["main_score"]["difference"] == pytest.approx(difference)
        if name != "CLSClusteringS2S":
            assert entry["significance"]["low"] - 1e-9 <= difference <= entry["significance"]["high"] + 1e-9
    assert by_name["CLSClusteringS2S"]["significance"] is None
    summary = comparison["summary"]
    assert summary["Mean(Task)"]["significance"] is None
    assert summary["STS"]["significance"]["p"] > 0
    scores = [measured.scores[0][name].score for name in by_name]
    assert summary["Mean(Task)"]["model"] == pytest.approx(np.mean(scores))
    same = compare_scores(measured.scores[0], measured.scores[0], ("mine", "mine"))
    assert {e["significance"]["verdict"] for e in same["tasks"] if e["significance"]} == {"within chance"}


def test_what_is_not_of_the_same_items_is_not_compared(measured):
    mine = measured.scores[0]
    other = {"STSB": SimpleNamespace(**{**vars(mine["STSB"]), "n": 16, "data_revision": "abc"})}
    comparison = compare_scores({name: mine[name] for name in ("STSB", "AFQMC")}, other, ("mine", "base"))
    assert comparison["tasks"] == []
    assert comparison["left_out"]["AFQMC"] == "base has no score"
    assert comparison["left_out"]["STSB"].startswith("measured on other data: local-")
    part = mine["MedicalRetrieval"].parts["dev/default"]
    moved = {"dev/default": SimpleNamespace(items=part.items, ids=part.ids[::-1])}
    other = {"MedicalRetrieval": SimpleNamespace(**{**vars(mine["MedicalRetrieval"]), "n": 8, "parts": moved})}
    (entry,) = compare_scores({"MedicalRetrieval": mine["MedicalRetrieval"]}, other, ("mine", "base"))["tasks"]
    assert (entry["significance"], entry["no_test"]) == (None, "the two results are not of the same items")


def test_changes_have_texts(measured):
    mine, theirs = measured.scores
    found = {
        name: benchmark_changes(measured.loaded[name], mine[name], theirs[name], most=3) for name in measured.loaded
    }
    for task in local()[:2]:  # as codiemb's own evaluation has them
        own = [evaluate(model.embedding_pass, model.template, task) for model in measured.models]
        expected = changes(task, *own, most=3)
        for side in ("gains", "losses"):
            ours, reference = getattr(found[task.name], side), getattr(expected, side)
            assert [one.change for one in ours] == pytest.approx([one.change for one in reference], abs=2e-5)
            texts = "query" if task.name == "ir" else "texts"
            assert [getattr(one, texts) for one in ours] == [getattr(one, texts) for one in reference]
    kinds = {"Ocnli": PairChange, "classification": TextChange, "T2Reranking": QueryChange}
    for name, kind in kinds.items():
        items = [*found[name].gains, *found[name].losses]
        assert items, name
        assert {type(one) for one in items} == {kind}
        assert all(math.copysign(1, one.change) == (1 if one in found[name].gains else -1) for one in items)
    text = (*found["classification"].gains, *found["classification"].losses)[0]
    (labelled,) = (task for task in local() if task.name == "classification")
    assert text.label == dict(zip((one.full for one in labelled.texts), labelled.labels, strict=True))[text.text]
    assert {text.model_score, text.other_score} == {0, 1}
    assert found["clustering"].gains == found["clustering"].losses == []
