"""InfoNCE against a loop written from the formula, and its masks, ids and edge cases."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from codiemb.losses import contrastive, info_nce

TAU = 0.1
Batch = dict[str, Any]


def unit(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(*shape, generator=generator, dtype=torch.float64), dim=-1)


def ragged_batch(rows: int = 5, seed: int = 0) -> Batch:
    """Rows of 0-3 positives, first ones missing too, and 0-4 negatives, with ids of few distinct texts."""
    generator = torch.Generator().manual_seed(seed)

    def ids(*shape: int) -> Tensor:
        return torch.randint(-1, 25, shape, generator=generator)

    def mask(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator) < 0.7

    return {
        "query": unit(rows, 8, seed=seed),
        "positives": unit(rows, 3, 8, seed=seed + 1),
        "negatives": unit(rows, 4, 8, seed=seed + 2),
        "positive_mask": mask(rows, 3),
        "negative_mask": mask(rows, 4),
        "query_ids": ids(rows),
        "positive_ids": ids(rows, 3),
        "negative_ids": ids(rows, 4),
        "known_positive_ids": ids(rows, 2),
    }


def loop(batch: Batch, *, margin: float = math.inf, in_batch: bool = True) -> float:
    """The definition, one query, positive and candidate at a time."""
    query, positives, negatives = batch["query"], batch["positives"], batch["negatives"]
    valid_positives = [mask.nonzero().flatten().tolist() for mask in batch["positive_mask"]]
    valid_negatives = [mask.nonzero().flatten().tolist() for mask in batch["negative_mask"]]
    rows = range(len(query))
    query_ids = batch["query_ids"].tolist()
    per_query = []
    for i in rows:
        own = {query_ids[i], *batch["positive_ids"][i][valid_positives[i]].tolist()}
        own = (own | set(batch["known_positive_ids"][i].tolist())) - {-1}
        candidates = []
        for j in rows if in_batch else [i]:
            same_query = i == j or query_ids[i] == query_ids[j] != -1
            if valid_positives[j] and not same_query:
                first = valid_positives[j][0]
                positive_id = int(batch["positive_ids"][j, first])
                candidates.append((positives[j, first], positive_id))
            if "query_negatives" in batch and not same_query:
                candidates.append((batch["query_negatives"][j], query_ids[j]))
            candidates += [(negatives[j, n], int(batch["negative_ids"][j, n])) for n in valid_negatives[j]]
        terms = []
        for p in valid_positives[i]:
            positive = float(query[i] @ positives[i, p])
            cosines = [float(query[i] @ candidate) for candidate, text_id in candidates if text_id not in own]
            partition = sum(math.exp(c / TAU) for c in cosines if c <= positive + margin)
            terms.append(-math.log(math.exp(positive / TAU) / (math.exp(positive / TAU) + partition)))
        if terms:
            per_query.append(sum(terms) / len(terms))
    return sum(per_query) / len(per_query) if per_query else 0.0


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("margin", [None, 0.0, 0.3])
@pytest.mark.parametrize("in_batch", [True, False])
def test_equals_the_loop_of_the_formula(seed: int, margin: float | None, in_batch: bool) -> None:
    batch = ragged_batch(seed=seed)
    actual = info_nce(**batch, temperature=TAU, false_negative_margin=margin, in_batch=in_batch)
    expected = loop(batch, margin=math.inf if margin is None else margin, in_batch=in_batch)
    assert actual.item() == pytest.approx(expected, rel=1e-11)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("margin", [None, 0.3])
def test_other_queries_as_negatives_equal_the_loop(seed: int, margin: float | None) -> None:
    batch = ragged_batch(rows=9, seed=seed)
    without = loop(batch, margin=math.inf if margin is None else margin)
    batch["query_negatives"] = unit(9, 8, seed=seed + 3)
    actual = info_nce(**batch, temperature=TAU, false_negative_margin=margin)
    expected = loop(batch, margin=math.inf if margin is None else margin)
    assert actual.item() == pytest.approx(expected, rel=1e-11)
    assert expected > without


def test_other_queries_are_of_the_batch() -> None:
    with pytest.raises(ValueError, match="in_batch=False"):
        info_nce(**ragged_batch(), query_negatives=unit(5, 8), in_batch=False)
    with pytest.raises(ValueError, match="query_negatives"):
        info_nce(**ragged_batch(), query_negatives=unit(4, 8))


@pytest.mark.parametrize("margin", [None, 0.1])
@pytest.mark.parametrize("in_batch", [True, False])
def test_gradient_is_that_of_the_value(margin: float | None, in_batch: bool) -> None:
    batch = ragged_batch(rows=4)
    embeddings = [batch.pop(name).requires_grad_() for name in ("query", "positives", "negatives")]
    options = {"temperature": TAU, "false_negative_margin": margin, "in_batch": in_batch}
    assert torch.autograd.gradcheck(lambda *tensors: info_nce(*tensors, **batch, **options), embeddings)


@pytest.mark.parametrize("similarities", [1, 60, 150])  # of 25 candidates a query, 20 of them hard negatives
@pytest.mark.parametrize("margin", [None, 0.1])
@pytest.mark.parametrize("in_batch", [True, False])
def test_blocks_of_queries_give_the_loss_and_gradients_of_the_whole(
    similarities: int, margin: float | None, in_batch: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def computed() -> list[Tensor]:
        batch = ragged_batch(seed=3)
        embeddings = [batch[name].requires_grad_() for name in ("query", "positives", "negatives")]
        loss = info_nce(**batch, temperature=TAU, false_negative_margin=margin, in_batch=in_batch)
        return [loss.detach(), *torch.autograd.grad(loss, embeddings)]

    whole = computed()
    monkeypatch.setattr(contrastive, "_SIMILARITIES", similarities)
    torch.testing.assert_close(computed(), whole, rtol=1e-12, atol=1e-14)


def test_similarities_of_a_large_batch_never_exist_as_a_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, block = 256, 16
    query, positives = unit(rows, 8).requires_grad_(), unit(rows, 1, 8, seed=1).requires_grad_()

    def largest() -> int:
        with _LargestTensor() as watched:
            info_nce(query, positives, false_negative_margin=0.1).backward()
        return watched.elements

    assert largest() >= rows * rows
    monkeypatch.setattr(contrastive, "_SIMILARITIES", block * rows)
    assert largest() <= block * rows


class _LargestTensor(TorchDispatchMode):
    """Elements of the largest tensor that any operation returned."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        tensors = [part for part in tree_leaves(result) if isinstance(part, Tensor)]
        self.elements = max([self.elements, *(tensor.numel() for tensor in tensors)])
        return result


@pytest.mark.parametrize("negatives", [0, 1, 3])
def test_one_positive_equals_sentence_transformers(negatives: int) -> None:
    columns = list(unit(2 + negatives, 6, 8).unbind(0))
    theirs = MultipleNegativesRankingLoss(model=None, scale=1 / TAU)
    hard = torch.stack(columns[2:], 1) if negatives else None
    torch.testing.assert_close(
        info_nce(columns[0], columns[1][:, None], hard, temperature=TAU),
        theirs.compute_loss_from_embeddings(columns, None),
    )


def test_own_positives_are_never_negatives_of_their_query() -> None:
    query, positives = unit(1, 8), unit(1, 3, 8, seed=1)
    assert info_nce(query, positives).item() == 0
    # Control: as hard negatives, the same texts cost something.
    assert info_nce(query, positives[:, :1], positives[:, 1:]).item() > 0


def test_rows_are_a_set() -> None:
    batch = ragged_batch(rows=6)
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    shuffled = {name: tensor[order] for name, tensor in batch.items()}
    torch.testing.assert_close(info_nce(**shuffled), info_nce(**batch))


@pytest.mark.parametrize("padding", [0.0, 7.0, math.inf, math.nan])
def test_padding_may_hold_anything(padding: float) -> None:
    batch = ragged_batch()
    expected = info_nce(**batch)
    padded = dict(batch)
    for role in ("positive", "negative"):
        mask = ~batch[f"{role}_mask"]
        padded[f"{role}s"] = batch[f"{role}s"].masked_fill(mask[..., None], padding).requires_grad_()
        padded[f"{role}_ids"] = batch[f"{role}_ids"].masked_fill(mask, int(batch["query_ids"][0]))
    actual = info_nce(**padded)
    actual.backward()
    torch.testing.assert_close(actual, expected)
    for role in ("positive", "negative"):
        gradient = padded[f"{role}s"].grad
        assert gradient.isfinite().all()
        assert (gradient[~batch[f"{role}_mask"]] == 0).all()


def test_in_batch_negative_of_another_row_is_its_first_valid_positive() -> None:
    query, positives = unit(2, 8), unit(2, 2, 8, seed=1)
    mask = torch.tensor([[True, True], [False, True]])
    second_of_other = positives.clone()
    second_of_other[1, 0] = second_of_other[1, 1]
    expected = info_nce(query, second_of_other, positive_mask=torch.tensor([[True, True], [True, False]]))
    torch.testing.assert_close(info_nce(query, positives, positive_mask=mask), expected)


# Two rows and a hard negative each; every case makes one candidate a false negative of query 0 alone.
QUERY_IDS, POSITIVE_IDS, NEGATIVE_IDS = [0, 1], [[2], [3]], [[4], [5]]


@pytest.mark.parametrize(
    ("ids", "dropped"),
    [
        pytest.param({"query_ids": [3, 1]}, "positive of 1", id="candidate repeats the query's text"),
        pytest.param({"known_positive_ids": [[9, 3], [-1, -1]]}, "positive of 1", id="known positive"),
        pytest.param({"known_positive_ids": [[5], [-1]]}, "negative of 1", id="negative is a known positive"),
        pytest.param({"negative_ids": [[4], [2]]}, "negative of 1", id="negative repeats the positive"),
    ],
)
def test_false_negatives_by_id_are_left_out(ids: dict[str, Any], dropped: str) -> None:
    query, positives, negatives = unit(2, 8), unit(2, 1, 8, seed=1), unit(2, 1, 8, seed=2)
    given = {"query_ids": QUERY_IDS, "positive_ids": POSITIVE_IDS, "negative_ids": NEGATIVE_IDS, **ids}
    actual = info_nce(query, positives, negatives, **{name: torch.tensor(value) for name, value in given.items()})
    candidates = {"positive of 1": positives[1, 0], "negative of 0": negatives[0, 0], "negative of 1": negatives[1, 0]}
    del candidates[dropped]
    first = F.cross_entropy(
        query[:1] @ torch.stack([positives[0, 0], *candidates.values()]).T / 0.02, torch.tensor([0])
    )
    second = torch.stack([positives[1, 0], positives[0, 0], negatives[0, 0], negatives[1, 0]])
    second = F.cross_entropy(query[1:] @ second.T / 0.02, torch.tensor([0]))
    torch.testing.assert_close(actual, (first + second) / 2)


def test_rows_of_the_same_query_do_not_push_each_others_positives() -> None:
    query = unit(1, 8).expand(2, 8)
    positives = unit(2, 1, 8, seed=1)
    assert info_nce(query, positives, query_ids=torch.tensor([7, 7])).item() == 0
    assert info_nce(query, positives, query_ids=torch.tensor([7, 8])).item() > 0
    assert info_nce(query, positives, query_ids=torch.tensor([-1, -1])).item() > 0


def test_margin_drops_what_is_closer_than_the_positive() -> None:
    query = torch.tensor([[1.0, 0.0]])
    positive = torch.tensor([[[0.8, 0.6]]])
    hard = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])
    easy_only = info_nce(query, positive, hard[:, 1:])
    torch.testing.assert_close(info_nce(query, positive, hard, false_negative_margin=0.1), easy_only)
    torch.testing.assert_close(
        info_nce(query, positive, hard, false_negative_margin=0.3), info_nce(query, positive, hard)
    )


def test_queries_without_a_positive_do_not_count_but_their_negatives_serve() -> None:
    query, positives, negatives = unit(2, 8), unit(2, 1, 8, seed=1), unit(2, 1, 8, seed=2)
    mask = torch.tensor([[True], [False]])
    expected = info_nce(query[:1], positives[:1], negatives.view(1, 2, 8))
    torch.testing.assert_close(info_nce(query, positives, negatives, positive_mask=mask), expected)


@pytest.mark.parametrize("in_batch", [True, False])
@pytest.mark.parametrize("margin", [None, 0.1])
@pytest.mark.parametrize("case", ["one row", "no valid positive", "no valid negative"])
def test_nothing_to_compare_is_zero_with_a_zero_gradient(case: str, margin: float | None, in_batch: bool) -> None:
    rows = 1 if case == "one row" else 3
    query = unit(rows, 8).float().requires_grad_()
    positives = unit(rows, 2, 8, seed=1).float().requires_grad_()
    negatives = None if case == "one row" else unit(rows, 2, 8, seed=2).float().requires_grad_()
    masks: Batch = {"query_ids": torch.zeros(rows, dtype=torch.int64)}
    if negatives is not None:
        kept = case == "no valid positive"
        masks |= {"positive_mask": torch.full((rows, 2), not kept), "negative_mask": torch.full((rows, 2), kept)}
    loss = info_nce(query, positives, negatives, **masks, in_batch=in_batch, false_negative_margin=margin)
    loss.backward()
    assert loss.item() == 0
    assert query.grad is not None
    assert (query.grad == 0).all()


def test_hardest_case_stays_finite() -> None:
    query = torch.tensor([[1.0, 0.0]], requires_grad=True)
    loss = info_nce(query, -query[:, None].detach(), query[:, None].detach(), temperature=0.01)
    loss.backward()
    assert loss.item() == pytest.approx(200)
    assert query.grad is not None
    assert query.grad.isfinite().all()


def test_half_precision_computes_in_float32_also_under_autocast() -> None:
    query, positives, negatives = (t.bfloat16() for t in (unit(4, 8), unit(4, 2, 8), unit(4, 3, 8, seed=1)))
    expected = info_nce(query.float(), positives.float(), negatives.float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual = info_nce(query, positives=positives, negatives=negatives)
    assert actual.dtype == torch.float32
    assert actual.item() == expected.item()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"positives": torch.zeros(5, 0, 8)}, "at least one positive"),
        ({"positives": torch.zeros(5, 8)}, r"positives \(5, 8\)"),
        ({"negatives": torch.zeros(4, 4, 8)}, r"negatives \(4, 4, 8\)"),
        ({"positive_mask": torch.ones(5, 2, dtype=torch.bool)}, r"positive_mask of shape \(5, 2\), expected \(5, 3\)"),
        ({"negative_ids": torch.zeros(5)}, r"negative_ids of shape \(5,\), expected \(5, 4\)"),
        ({"query_ids": torch.zeros(5, 1)}, r"query_ids of shape \(5, 1\), expected \(5,\)"),
        ({"known_positive_ids": torch.zeros(5)}, r"known_positive_ids of shape \(5,\)"),
        ({"temperature": 0.0}, "temperature=0.0"),
    ],
)
def test_bad_input_says_what_was_expected(change: Batch, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        info_nce(**(ragged_batch() | change))
