"""The registry: each task's objective is its loss on the right embeddings."""

import pytest
import torch
from pydantic import ValidationError
from torch.nn.functional import normalize

from codiemb import losses, tasks
from codiemb.data.collator import TaskCollator
from codiemb.data.examples import TASK_TYPES
from codiemb.encoding import Embeddings
from codiemb.prompts import TEMPLATES
from codiemb.tasks import (
    SYMMETRIC,
    TASKS,
    ContrastiveOptions,
    RerankingOptions,
    RetrievalOptions,
    StsOptions,
    Task,
    TaskOptions,
)


def text(content):
    return {"instruction": "", "prefix": "", "text": content}


def make_batch(task: str, options: TaskOptions, *, graded: bool = False):
    """Five rows with 1 to 3 positives (pairs: one), 0 to 4 negatives, a shared document, and gold scores."""
    pairs = task in ("sts", "pair_classification")
    rows = []
    for i in range(5):
        count = 1 if pairs else 1 + i % 3
        rows.append(
            {
                "index": i,
                "query": text(f"query {i}"),
                "positives": [text(f"positive {i} {j}") for j in range(count)],
                "negatives": [] if pairs else [text(f"negative {max(i, 3)} {j}") for j in range(i)],
                "positive_scores": [i % 2 if task == "pair_classification" else i / 4] * count if graded else [],
                "negative_scores": [],
            }
        )
    collator = TaskCollator(TEMPLATES["none"], {task: options.candidates}, symmetric=SYMMETRIC)
    return collator("d", task, rows)


def make_embeddings(batch) -> Embeddings:
    generator = torch.Generator().manual_seed(3)
    final, middle = (normalize(torch.randn(len(batch.texts), 8, generator=generator), dim=-1) for _ in range(2))
    return Embeddings(final.requires_grad_(), middle.requires_grad_())


def run(task: str, options: TaskOptions, *, graded: bool = False):
    batch = make_batch(task, options, graded=graded)
    embeddings = make_embeddings(batch)
    return batch, embeddings, TASKS[task].objective(embeddings, batch, options, gather=False)


@pytest.mark.parametrize("task", ["ir", "classification", "clustering"])
def test_contrastive_tasks_are_info_nce(task):
    options = ContrastiveOptions(temperature=0.1, positives=2, negatives=3, false_negative_margin=0.2)
    batch, (final, _), objective = run(task, options)
    ids = batch.text_ids
    expected = losses.info_nce(
        final[batch.query],
        final[batch.positives],
        final[batch.negatives],
        temperature=0.1,
        positive_mask=batch.positive_mask,
        negative_mask=batch.negative_mask,
        query_ids=ids[batch.query],
        positive_ids=ids[batch.positives],
        negative_ids=ids[batch.negatives],
        known_positive_ids=batch.known_positives,
        false_negative_margin=0.2,
    )
    assert objective.total == expected > 0
    assert objective.components == {"info_nce": expected}


@pytest.mark.parametrize(
    "change",
    [
        {"temperature": 0.2},
        {"false_negative_margin": -0.5},
        {"in_batch": False},
        {"negatives": 0},
        {"query_negatives": True},
    ],
)
def test_every_contrastive_option_has_an_effect(change):
    base = {"temperature": 0.1, "positives": 2, "negatives": 3, "false_negative_margin": None}
    assert (
        run("ir", ContrastiveOptions(**base))[2].total != run("ir", ContrastiveOptions(**{**base, **change}))[2].total
    )


def test_other_queries_are_negatives_of_retrieval_unless_negatives_are_a_rows_own():
    assert RetrievalOptions().candidates.queries
    assert not RetrievalOptions(in_batch=False).candidates.queries
    assert not ContrastiveOptions().candidates.queries
    with pytest.raises(ValueError, match="query_negatives needs in_batch"):
        RetrievalOptions(in_batch=False, query_negatives=True)


def test_reranking_is_a_softmax_within_each_row():
    options = RerankingOptions(positives=3, negatives=4)
    batch, (final, _), objective = run("reranking", options, graded=True)
    expected = losses.listwise_softmax(
        final[batch.query],
        final[batch.positives],
        final[batch.negatives],
        temperature=options.temperature,
        positive_mask=batch.positive_mask,
        negative_mask=batch.negative_mask,
        positive_scores=batch.scores,
    )
    assert objective.total == expected > 0


@pytest.mark.parametrize("task", ["sts", "pair_classification"])
@pytest.mark.parametrize("loss", ["default", {"pearson": 1}, {"cosent": 2, "temperature": 0.1}])
def test_scored_pairs_are_the_sts_objective(task, loss):
    options = StsOptions(loss=loss)
    batch, (final, _), objective = run(task, options, graded=True)
    cosines = (final[batch.query] * final[batch.positives[:, 0]]).sum(-1)
    expected, components = losses.sts_objective(cosines, batch.scores[:, 0], options.loss)
    assert objective.total == expected != 0
    assert objective.components == components


def test_the_middle_layer_joins_where_it_has_a_weight():
    options = StsOptions(loss={"preset": "default", "mid_nce": 0.5, "mid_nce_threshold": 0.75})
    batch, (final, middle), objective = run("sts", options, graded=True)
    without = run("sts", StsOptions(loss="default"), graded=True)[2]
    mid_nce = losses.info_nce(
        middle[batch.query],
        middle[batch.positives],
        temperature=options.loss.temperature,
        positive_mask=torch.tensor([False, False, False, True, True])[:, None],
        query_ids=batch.text_ids[batch.query],
        positive_ids=batch.text_ids[batch.positives],
    )
    torch.testing.assert_close(objective.total, without.total + 0.5 * mid_nce)
    assert objective.components["mid_nce"] == mid_nce
    objective.total.backward()
    assert middle.grad is not None
    assert final.grad is not None


@pytest.mark.parametrize("task", list(TASKS))
def test_total_has_a_gradient_and_components_have_none(task):
    _, (final, _), (total, components) = run(task, TASKS[task].options(), graded=task not in ("ir", "reranking"))
    total.backward()
    assert final.grad.isfinite().all()
    assert final.grad.abs().sum() > 0
    assert components
    assert not any(value.requires_grad for value in components.values())
    assert tasks.detached(components) == {name: pytest.approx(float(value)) for name, value in components.items()}


def test_every_task_type_of_the_format_is_registered():
    assert set(TASKS) == set(TASK_TYPES)
    assert {"sts", "pair_classification", "classification", "clustering"} == SYMMETRIC
    assert [name for name, task in TASKS.items() if task.rescale_scores] == ["sts"]


def test_a_task_is_one_entry():
    """Options and an objective suffice: the batch and its embeddings know nothing of the task."""

    class Options(TaskOptions):
        weight: float = 2.0

    def alignment(embeddings, batch, options, *, gather):
        distance = (embeddings.final[batch.query] - embeddings.final[batch.positives[:, 0]]).pow(2).sum(-1).mean()
        return tasks.Objective(options.weight * distance, {"alignment": distance.detach()})

    task = Task(Options, alignment, symmetric=True)
    batch = make_batch("alignment", task.options())
    embeddings = make_embeddings(batch)
    objective = task.objective(embeddings, batch, task.options(), gather=False)
    assert objective.total == 2 * objective.components["alignment"] > 0


# -- options ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", list(TASKS))
def test_unknown_options_are_errors(task):
    with pytest.raises(ValidationError, match="batchsize"):
        TASKS[task].options(batchsize=3)


@pytest.mark.parametrize(
    ("task", "option"),
    [
        ("ir", {"batch_size": 0}),
        ("ir", {"temperature": 0}),
        ("ir", {"positives": 0}),
        ("ir", {"negatives": -1}),
        ("reranking", {"negatives": 0}),
        ("sts", {"batch_size": 1.5}),
    ],
)
def test_options_out_of_range_are_errors(task, option):
    with pytest.raises(ValidationError, match=next(iter(option))):
        TASKS[task].options(**option)


@pytest.mark.parametrize(
    ("spelling", "expected"),
    [
        ("default", losses.PRESETS["default"]),
        ("codiemb-release", losses.PRESETS["codiemb-release"]),
        ({"preset": "codiemb-release"}, losses.PRESETS["codiemb-release"]),
        ({"pro": 3}, losses.StsWeights(pearson=0, rank_kl=0, pro=3)),
        ({"preset": "default", "pro": 0}, losses.StsWeights(pro=0)),
        (losses.StsWeights(cosent=1), losses.StsWeights(cosent=1)),
    ],
)
def test_spellings_of_the_sts_loss(spelling, expected):
    options = StsOptions(loss=spelling)
    assert options.loss == expected
    assert StsOptions.model_validate(options.model_dump(mode="json")) == options


@pytest.mark.parametrize(
    ("spelling", "message"),
    [
        ("codiemb", "no STS preset 'codiemb'"),
        ({"preset": []}, "no STS preset"),
        ({"prx": 1}, "unknown prx"),
        ({"pro": "much"}, r"loss.pro\s+Input should be a valid number"),
        ({"pro": -1}, "pro=-1.0, expected a finite weight"),
        ({"pro": float("nan")}, "finite number"),
        ({}, "all weights are 0"),
        ({"temperature": 0.1}, "all weights are 0"),
        (3, "got 3, expected a preset"),
    ],
)
def test_sts_losses_that_make_no_sense(spelling, message):
    with pytest.raises(ValidationError, match=message):
        StsOptions(loss=spelling)


def test_candidates_follow_the_options():
    assert ContrastiveOptions(positives=2, negatives=5).candidates == (
        counts := RerankingOptions(positives=2, negatives=5).candidates
    )
    assert (counts.positives, counts.negatives) == (2, 5)
    assert (StsOptions().candidates.positives, StsOptions().candidates.negatives) == (1, 0)
