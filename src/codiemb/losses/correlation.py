"""Pearson correlation as a loss."""

import math

import torch
from torch import Tensor

from ._inputs import at_least_float32, gold_scores


@at_least_float32
def pearson_loss(x: Tensor, y: Tensor, *, eps: float = 1e-6) -> Tensor:
    """One minus the Pearson correlation of predicted and gold scores (CoDiEmb, arXiv:2508.11442).

    Args:
        x: predicted scores, usually cosines, (pairs,).
        y: gold scores, finite, on any scale, (pairs,).
        eps: scores count as constant if their standard deviation is at most `eps` times the largest absolute
            score: below that the correlation is rounding noise and its gradient has no bound.

    Returns: scalar in [0, 2], at least float32; 0 where x or y is constant (so for one pair).

    Raises:
        ValueError: if the shapes do not fit.
    """
    y = gold_scores(x, y)
    x_deviation, y_deviation = x - x.mean(), y - y.mean()
    x_norm, y_norm = torch.linalg.vector_norm(x_deviation), torch.linalg.vector_norm(y_deviation)
    defined = (x_norm > eps * _largest_norm(x)) & (y_norm > eps * _largest_norm(y))
    # Where undefined, divide by 1: a `where` around the quotient alone would leave 0/0 = NaN in the gradient.
    correlation = torch.dot(x_deviation, y_deviation) / torch.where(defined, x_norm * y_norm, 1.0)
    return torch.where(defined, 1 - correlation, 0.0)


def _largest_norm(scores: Tensor) -> Tensor:
    """The norm of as many scores, all as large as the largest: `eps` of that in deviation is noise."""
    return scores.detach().abs().amax() * math.sqrt(len(scores))
