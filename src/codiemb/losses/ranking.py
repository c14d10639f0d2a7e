"""Losses on the order of scores: x predicted, y gold, one of each per pair of texts.

They read only the order of y, except PRO, which also reads the gaps. Where all of y is equal there is no
order to learn, and each is 0 with a gradient of 0. y must be finite: the data readers check that, since a
check here would cost a device synchronisation a step.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from ._inputs import at_least_float32, check_temperature, gold_scores


def average_rank(y: Tensor) -> Tensor:
    """0-based ascending ranks of y (pairs,), ties sharing their mean rank, as floats on the device of y."""
    ascending = y.sort().values
    first = torch.searchsorted(ascending, y)
    behind_last = torch.searchsorted(ascending, y, right=True)
    return (first + behind_last - 1).to(y.dtype) / 2


@at_least_float32
def rank_kl_loss(x: Tensor, y: Tensor, *, temperature: float = 0.05) -> Tensor:
    """KL(softmax(t / temperature) || softmax(x / temperature)), t the gold ranks (CoDiEmb, arXiv:2508.11442).

    t runs from 0 for the lowest gold score to 1 for the highest; ties share their mean rank. The divergence
    is between distributions over the pairs, so it is not divided by their number.

    Args:
        x: predicted scores, usually cosines, (pairs,).
        y: gold scores, finite, on any scale, (pairs,).
        temperature: > 0, divides ranks and scores.

    Returns: scalar in nats, at least float32.

    Raises:
        ValueError: if the shapes do not fit or the temperature is not above 0.
    """
    check_temperature(temperature)
    y = gold_scores(x, y)
    target = (average_rank(y) / max(len(y) - 1, 1) / temperature).log_softmax(0)
    divergence = F.kl_div((x / temperature).log_softmax(0), target, reduction="sum", log_target=True)
    return torch.where(y.amax() > y.amin(), divergence, 0.0)


@at_least_float32
def pro_loss(x: Tensor, y: Tensor, *, temperature: float = 0.05) -> Tensor:
    """Preference ranking: each pair against all pairs with a lower gold score (CoDiEmb, arXiv:2508.11442).

    For each k with some y_j < y_k: -log softmax of k over {k} and {j: y_j < y_k}, with logits
    x_j (y_k - y_j) / temperature, and for k itself x_k w_k / temperature, w_k the largest of those gaps.
    The mean over such k. Memory: pairs**2 floats.

    Args:
        x: predicted scores, usually cosines, (pairs,).
        y: gold scores, finite, (pairs,). The logits grow with their range: rescale each data set to [0, 1].
        temperature: > 0.

    Returns: scalar in nats, at least float32.

    Raises:
        ValueError: if the shapes do not fit or the temperature is not above 0.
    """
    check_temperature(temperature)
    y = gold_scores(x, y)
    scaled = x / temperature
    gap = y[:, None] - y[None, :]  # [k, j]
    lower = (scaled * gap).masked_fill(gap <= 0, torch.finfo(x.dtype).min).logsumexp(1)
    largest_gap = y - y.amin()
    # -log softmax of one logit against others, stably; 0 for the k with nothing below.
    losses = -F.logsigmoid(scaled * largest_gap - lower)
    return losses.sum() / (largest_gap > 0).sum().clamp(min=1)


@at_least_float32
def cosent_loss(x: Tensor, y: Tensor, *, temperature: float = 0.05) -> Tensor:
    """CoSENT (doi:10.1109/TASLP.2024.3402087): log(1 + sum over y_i > y_j of exp((x_j - x_i) / temperature)).

    Args:
        x: predicted scores, usually cosines, (pairs,).
        y: gold scores, finite, on any scale, (pairs,).
        temperature: > 0.

    Returns: scalar in nats, at least float32. It grows with the number of pairs.

    Raises:
        ValueError: if the shapes do not fit or the temperature is not above 0.
    """
    check_temperature(temperature)
    y = gold_scores(x, y)
    y, order = y.sort()
    scaled = x[order] / temperature
    # In ascending order of y, the j below i come first: one running sum serves all i, without a pairs**2 tensor.
    running = torch.cat([scaled.new_full((1,), torch.finfo(x.dtype).min), scaled.logcumsumexp(0)])
    inversions = running[torch.searchsorted(y, y)] - scaled
    return -F.logsigmoid(-inversions.logsumexp(0))
