"""The listwise softmax of reranking rows against a loop written from its definition."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from codiemb.losses import listwise_softmax

TAU = 0.1


def unit(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(*shape, generator=generator, dtype=torch.float64), dim=-1)


def batch(rows: int = 6) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(9)
    return {
        "query": unit(rows, 8),
        "positives": unit(rows, 3, 8, seed=1),
        "negatives": unit(rows, 4, 8, seed=2),
        "positive_mask": torch.rand(rows, 3, generator=generator) < 0.6,
        "negative_mask": torch.rand(rows, 4, generator=generator) < 0.6,
        "positive_scores": torch.randint(0, 4, (rows, 3), generator=generator).double(),
    }


def loop(rows: dict[str, Tensor]) -> float:
    losses = []
    for i, query in enumerate(rows["query"]):
        positives = [p for p in range(3) if rows["positive_mask"][i, p]]
        relevance = [float(rows["positive_scores"][i, p]) for p in positives]
        scores = [float(query @ rows["positives"][i, p]) / TAU for p in positives]
        negatives = [float(query @ rows["negatives"][i, n]) / TAU for n in range(4) if rows["negative_mask"][i, n]]
        partition = sum(math.exp(score) for score in scores + negatives)
        if sum(relevance):
            terms = [
                r / sum(relevance) * math.log(math.exp(s) / partition) for r, s in zip(relevance, scores, strict=True)
            ]
            losses.append(-sum(terms))
    assert losses
    return sum(losses) / len(losses)


def test_equals_the_loop_of_the_formula() -> None:
    assert listwise_softmax(**batch(20), temperature=TAU).item() == pytest.approx(loop(batch(20)), rel=1e-11)


def test_gradient_is_that_of_the_value() -> None:
    rows = batch(3)
    embeddings = [rows.pop(name).requires_grad_() for name in ("query", "positives", "negatives")]
    assert torch.autograd.gradcheck(lambda *tensors: listwise_softmax(*tensors, **rows, temperature=TAU), embeddings)


def test_one_positive_equals_cross_entropy() -> None:
    query, candidates = unit(5, 8), unit(5, 4, 8, seed=1)
    logits = torch.einsum("bd,bnd->bn", query, candidates) / TAU
    expected = F.cross_entropy(logits, torch.zeros(5, dtype=torch.int64))
    actual = listwise_softmax(query, candidates[:, :1], candidates[:, 1:], temperature=TAU)
    torch.testing.assert_close(actual, expected)


def test_scores_default_to_equal_and_only_their_ratio_counts() -> None:
    rows = batch()
    del rows["positive_scores"]
    equal = listwise_softmax(**rows)
    torch.testing.assert_close(listwise_softmax(**rows, positive_scores=torch.full((6, 3), 4)), equal)
    graded = torch.tensor([3.0, 2.0, 1.0]).expand(6, 3)
    assert not torch.isclose(listwise_softmax(**rows, positive_scores=graded), equal)


def test_rows_do_not_see_each_other() -> None:
    rows = batch()
    each = [listwise_softmax(**{name: t[i : i + 1] for name, t in rows.items()}) for i in range(6)]
    counted = (rows["positive_scores"] * rows["positive_mask"]).sum(1) > 0
    torch.testing.assert_close(listwise_softmax(**rows), torch.stack(each)[counted].mean())


@pytest.mark.parametrize("padding", [7.0, math.nan])
def test_padding_may_hold_anything(padding: float) -> None:
    rows = batch()
    expected = listwise_softmax(**rows)
    for role in ("positive", "negative"):
        rows[f"{role}s"] = rows[f"{role}s"].masked_fill(~rows[f"{role}_mask"][..., None], padding)
    rows["positive_scores"] = rows["positive_scores"].masked_fill(~rows["positive_mask"], padding)
    actual = listwise_softmax(**rows | {"query": rows["query"].requires_grad_()})
    actual.backward()
    torch.testing.assert_close(actual, expected)
    assert rows["query"].grad is not None
    assert rows["query"].grad.isfinite().all()


@pytest.mark.parametrize("case", ["one candidate", "no valid positive", "scores of zero", "all masked"])
def test_nothing_to_compare_is_zero_with_a_zero_gradient(case: str) -> None:
    query, positives, negatives = unit(2, 8).float().requires_grad_(), unit(2, 1, 8).float(), unit(2, 2, 8).float()
    no = {"positive_mask": torch.zeros(2, 1, dtype=torch.bool)}
    loss = {
        "one candidate": lambda: listwise_softmax(query, positives),
        "no valid positive": lambda: listwise_softmax(query, positives, negatives, **no),
        "scores of zero": lambda: listwise_softmax(query, positives, negatives, positive_scores=torch.zeros(2, 1)),
        "all masked": lambda: listwise_softmax(query, positives, **no),
    }[case]()
    loss.backward()
    assert loss.item() == 0
    assert query.grad is not None
    assert (query.grad == 0).all()


def test_half_precision_computes_in_float32() -> None:
    rows = {name: t.bfloat16() if t.is_floating_point() else t for name, t in batch().items()}
    expected = listwise_softmax(**{name: t.float() if t.is_floating_point() else t for name, t in rows.items()})
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual = listwise_softmax(**rows)
    assert actual.dtype == torch.float32
    assert actual.item() == expected.item()


def test_scores_of_another_shape() -> None:
    with pytest.raises(ValueError, match=r"positive_scores of shape \(6, 4\), expected \(6, 3\)"):
        listwise_softmax(**batch() | {"positive_scores": torch.ones(6, 4)})
