"""Correlation and ranking losses against loops written from the formulas, and the objective made of them."""

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from scipy.stats import pearsonr, rankdata
from sentence_transformers.sentence_transformer.losses import AnglELoss, CoSENTLoss
from torch import Tensor

from codiemb.losses import (
    PRESETS,
    StsWeights,
    angle_loss,
    cosent_loss,
    pearson_loss,
    pro_loss,
    rank_kl_loss,
    sts_objective,
    sts_weights,
)
from codiemb.losses.ranking import average_rank

TAU = 0.05
Loss = Callable[[Tensor, Tensor], Tensor]
LOSSES = [pearson_loss, rank_kl_loss, pro_loss, cosent_loss]
RANKING_LOSSES = [rank_kl_loss, pro_loss, cosent_loss]


def scores(n: int, seed: int = 0, *, levels: int | None = None) -> tuple[Tensor, Tensor]:
    """Random cosines and gold scores in [0, 1], float64; `levels` distinct gold scores make ties."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(n, generator=generator, dtype=torch.float64) * 2 - 1
    y = torch.rand(n, generator=generator, dtype=torch.float64)
    return x, y if levels is None else (y * levels).floor() / (levels - 1)


def pearson_loop(x: list[float], y: list[float]) -> float:
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    covariance = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True))
    return 1 - covariance / math.sqrt(sum((a - mean_x) ** 2 for a in x) * sum((b - mean_y) ** 2 for b in y))


def rank_kl_loop(x: list[float], y: list[float]) -> float:
    n = len(x)
    target = []
    for a in y:
        rank = sum(b > a for b in y) + (sum(b == a for b in y) - 1) / 2  # descending, 0-based
        target.append(math.exp((n - 1 - rank) / (n - 1) / TAU))
    predicted = [math.exp(a / TAU) for a in x]
    p, q = ([value / sum(values) for value in values] for values in (target, predicted))
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def pro_loop(x: list[float], y: list[float]) -> float:
    terms = []
    for k in range(len(x)):
        lower = [j for j in range(len(x)) if y[j] < y[k]]
        if lower:
            positive = math.exp(x[k] / TAU * max(y[k] - y[j] for j in lower))
            negative = sum(math.exp(x[j] / TAU * (y[k] - y[j])) for j in lower)
            terms.append(-math.log(positive / (positive + negative)))
    return sum(terms) / len(terms)


def cosent_loop(x: list[float], y: list[float]) -> float:
    pairs = [(i, j) for i in range(len(x)) for j in range(len(x)) if y[i] > y[j]]
    return math.log(1 + sum(math.exp((x[j] - x[i]) / TAU) for i, j in pairs))


@pytest.mark.parametrize(
    ("loss", "loop"),
    [
        (pearson_loss, pearson_loop),
        (rank_kl_loss, rank_kl_loop),
        (pro_loss, pro_loop),
        (cosent_loss, cosent_loop),
    ],
)
@pytest.mark.parametrize(("n", "levels"), [(2, None), (7, None), (12, 3), (30, 2), (40, 6)])
def test_equals_the_loop_of_the_formula(
    loss: Loss, loop: Callable[[list[float], list[float]], float], n: int, levels: int | None
) -> None:
    x, y = scores(n, seed=n, levels=levels)
    assert loss(x, y).item() == pytest.approx(loop(x.tolist(), y.tolist()), rel=1e-11)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("levels", [None, 3])
def test_gradient_is_that_of_the_value(loss: Loss, levels: int | None) -> None:
    x, y = scores(9, seed=1, levels=levels)
    assert torch.autograd.gradcheck(lambda x: loss(x, y), x.requires_grad_())


@pytest.mark.parametrize("seed", range(3))
def test_pearson_equals_scipy_on_any_scale(seed: int) -> None:
    x, y = scores(25, seed)
    expected = 1 - pearsonr(x.numpy(), y.numpy()).statistic
    assert pearson_loss(x, y).item() == pytest.approx(expected)
    assert pearson_loss(x, 1000 * y - 7).item() == pytest.approx(expected)
    assert pearson_loss(1e-4 * x, 1e-4 * y).item() == pytest.approx(expected)


@pytest.mark.parametrize("levels", [None, 2, 5])
def test_ties_share_their_mean_rank_as_in_scipy(levels: int | None) -> None:
    y = scores(50, seed=4, levels=levels)[1]
    assert average_rank(y).tolist() == (rankdata(y.numpy()) - 1).tolist()


@pytest.mark.parametrize("loss", LOSSES)
def test_right_order_costs_less_than_wrong_order(loss: Loss) -> None:
    y = torch.linspace(0, 1, 8)
    assert loss(y, y) < loss(y.flip(0), y)


@pytest.mark.parametrize("n", [16, 256])
def test_rank_kl_does_not_fade_with_the_batch(n: int) -> None:
    # All predictions equal: KL to the uniform distribution, log n - entropy, whose entropy is bounded by that of a
    # geometric distribution in temperature * n ranks; so about log(1 / (temperature * e)).
    y = torch.linspace(0, 1, n)
    assert rank_kl_loss(torch.zeros(n), y).item() == pytest.approx(-math.log(TAU) - 1, rel=0.25)


@pytest.mark.parametrize("loss", LOSSES)
def test_order_of_the_rows_does_not_matter(loss: Loss) -> None:
    x, y = scores(20, levels=4)
    order = torch.randperm(20, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(loss(x[order], y[order]), loss(x, y))


def test_only_pro_reads_more_of_gold_scores_than_their_order() -> None:
    x, y = scores(20)
    for loss in (rank_kl_loss, cosent_loss):
        torch.testing.assert_close(loss(x, y**3), loss(x, y))
    assert not torch.isclose(pro_loss(x, y**3), pro_loss(x, y))


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize(
    ("x", "y"),
    [
        pytest.param([0.3], [1.0], id="one pair"),
        pytest.param([0.3, 0.1, 0.9], [0.7, 0.7, 0.7], id="constant gold"),
        pytest.param([0.1] * 7, [0.7] * 7, id="all constant"),
    ],
)
def test_nothing_to_compare_is_zero_with_a_zero_gradient(loss: Loss, x: list[float], y: list[float]) -> None:
    predicted = torch.tensor(x, requires_grad=True)
    value = loss(predicted, torch.tensor(y))
    value.backward()
    assert value.item() == 0
    assert predicted.grad is not None
    assert predicted.grad.tolist() == [0.0] * len(x)


@pytest.mark.parametrize("x", [[0.1] * 7, [0.0] * 7, [1.0] * 7])
def test_constant_predictions_have_a_finite_gradient(x: list[float]) -> None:
    y = torch.linspace(0, 1, 7)
    for loss in LOSSES:
        predicted = torch.tensor(x, requires_grad=True)
        value = loss(predicted, y)
        value.backward()
        assert predicted.grad is not None
        assert predicted.grad.isfinite().all()
        # Pearson is undefined there; the ranking losses are not, and push the pairs apart.
        if loss is pearson_loss:
            assert value.item() == 0
        else:
            assert value.item() > 0
            assert predicted.grad[0] > predicted.grad[-1]


@pytest.mark.parametrize("loss", LOSSES)
def test_extreme_scores_stay_finite(loss: Loss) -> None:
    x = torch.tensor([1.0, -1.0, 1.0, -1.0], requires_grad=True)
    value = loss(x, torch.tensor([0.0, 5.0, 0.0, 5.0]))
    value.backward()
    assert value.isfinite()
    assert x.grad is not None
    assert x.grad.isfinite().all()


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_computes_in_float32_also_under_autocast(loss: Loss, dtype: torch.dtype) -> None:
    x, y = (side.to(dtype) for side in scores(30))
    expected = loss(x.float(), y.float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual = loss(x, y)
    assert actual.dtype == torch.float32
    assert actual.item() == expected.item()


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool])
def test_integer_gold_scores(dtype: torch.dtype) -> None:
    x, y = scores(10, levels=2)
    for loss in LOSSES:
        torch.testing.assert_close(loss(x, y.to(dtype)), loss(x, y))


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("shapes", [((3,), (4,)), ((3, 1), (3, 1)), ((0,), (0,))])
def test_shapes_that_do_not_fit(loss: Loss, shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    with pytest.raises(ValueError, match="expected both"):
        loss(*(torch.zeros(shape) for shape in shapes))


@pytest.mark.parametrize("loss", RANKING_LOSSES)
def test_temperature_must_be_positive(loss: Callable[..., Tensor]) -> None:
    with pytest.raises(ValueError, match="temperature=0"):
        loss(*scores(3), temperature=0)


@pytest.mark.parametrize("levels", [None, 3])
def test_cosent_and_angle_equal_sentence_transformers(levels: int | None) -> None:
    generator = torch.Generator().manual_seed(5)
    a, b = (torch.randn(16, 11, generator=generator, dtype=torch.float64) for _ in range(2))
    y = scores(16, levels=levels)[1]
    cosine = torch.cosine_similarity(a, b)
    theirs = CoSENTLoss(model=None, scale=1 / TAU).compute_loss_from_embeddings([a, b], y)
    torch.testing.assert_close(cosent_loss(cosine, y), theirs)
    theirs = AnglELoss(model=None, scale=1 / TAU).compute_loss_from_embeddings([a, b], y)
    torch.testing.assert_close(angle_loss(a, b, y), theirs)


def test_angle_loss_gradient_and_shapes() -> None:
    a, b = (torch.randn(5, 6, dtype=torch.float64, requires_grad=True) for _ in range(2))
    y = scores(5)[1]
    assert torch.autograd.gradcheck(lambda a, b: angle_loss(a, b, y), (a, b))
    with pytest.raises(ValueError, match="pairs, dim"):
        angle_loss(a, b[:4], y)


def test_objective_is_the_weighted_sum_and_skips_what_has_no_weight() -> None:
    x, y = scores(12, levels=4)
    weights = StsWeights(pearson=2.0, rank_kl=0.0, pro=0.5, cosent=3.0)
    total, components = sts_objective(x.requires_grad_(), y, weights)
    assert set(components) == {"pearson", "pro", "cosent"}
    torch.testing.assert_close(total, 2 * pearson_loss(x, y) + 0.5 * pro_loss(x, y) + 3 * cosent_loss(x, y))
    torch.testing.assert_close(components["pro"], pro_loss(x, y).detach())
    assert total.requires_grad
    assert not any(value.requires_grad for value in components.values())


def test_release_preset_divides_rank_kl_by_the_number_of_pairs() -> None:
    x, y = scores(8)
    total, components = sts_objective(x, y, sts_weights("codiemb-release"))
    torch.testing.assert_close(components["rank_kl"], rank_kl_loss(x, y) / 8)
    torch.testing.assert_close(total, 2 * pearson_loss(x, y) + 5 / 8 * rank_kl_loss(x, y) + 0.5 * pro_loss(x, y))
    assert PRESETS["codiemb-release"].mid_nce == 1


def test_objective_passes_its_temperature_on() -> None:
    x, y = scores(8)
    weights = StsWeights(pearson=0, rank_kl=1, pro=1, cosent=1, temperature=0.2)
    losses = [loss(x, y, temperature=0.2) for loss in RANKING_LOSSES]
    torch.testing.assert_close(sts_objective(x, y, weights)[0], torch.stack(losses).sum())


def test_objective_of_the_middle_layer_alone_is_zero_with_a_gradient_path() -> None:
    x, y = scores(4)
    nothing = replace(PRESETS["default"], pearson=0.0, rank_kl=0.0, pro=0.0, mid_nce=1.0)
    total, components = sts_objective(x.requires_grad_(), y, nothing)
    assert total.item() == 0
    assert total.requires_grad
    assert not components


def test_bad_weights_say_what_is_wrong() -> None:
    for bad in ({"pro": -1.0}, {"cosent": math.nan}, {"pearson": math.inf}, {"temperature": 0.0}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            StsWeights(**bad)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"'cosnet', only .*codiemb-release"):
        sts_weights("cosnet")
