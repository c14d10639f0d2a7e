"""The objective of scored pairs: a weighted sum of correlation and ranking losses."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from types import MappingProxyType

from torch import Tensor

from .correlation import pearson_loss
from .ranking import cosent_loss, pro_loss, rank_kl_loss


@dataclass(frozen=True)
class StsWeights:
    """What `sts_objective` adds up; a component of weight 0 is not computed.

    Attributes:
        pearson, rank_kl, pro, cosent: weights, >= 0, of the losses of those names.
        mid_nce: weight, >= 0, of InfoNCE on embeddings from the middle layer, over the pairs with a gold
            score of at least `mid_nce_threshold`. It needs the model, so whoever runs the model adds it.
        mid_nce_threshold: on the scale of the gold scores that the caller passes.
        rank_kl_divide_by_n: divide RankKL by the number of pairs, as the research release does; its share of
            the total then fades as the batch grows.
        temperature: > 0, of the ranking losses.
    """

    pearson: float = 1.0
    rank_kl: float = 1.0
    pro: float = 0.25
    cosent: float = 0.0
    mid_nce: float = 0.0
    mid_nce_threshold: float = 1.0
    rank_kl_divide_by_n: bool = False
    temperature: float = 0.05

    def __post_init__(self) -> None:
        """Raise ValueError for a weight that is negative or not finite, or a temperature not above 0."""
        for name in ("pearson", "rank_kl", "pro", "cosent", "mid_nce"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name}={getattr(self, name)!r}, expected a finite weight of at least 0.")
        if not 0 < self.temperature < math.inf:
            raise ValueError(f"temperature={self.temperature!r}, expected a finite number above 0.")


PRESETS: Mapping[str, StsWeights] = MappingProxyType(
    {
        "default": StsWeights(),
        "codiemb-release": StsWeights(pearson=2.0, rank_kl=5.0, pro=0.5, mid_nce=1.0, rank_kl_divide_by_n=True),
    }
)


def sts_weights(name_or_weights: str | StsWeights) -> StsWeights:
    """Return the preset of that name, or the weights themselves.

    Raises:
        ValueError: if there is no preset of that name.
    """
    if isinstance(name_or_weights, StsWeights):
        return name_or_weights
    if name_or_weights not in PRESETS:
        names = [field.name for field in fields(StsWeights)]
        raise ValueError(
            f"there is no STS preset {name_or_weights!r}, only {sorted(PRESETS)}. "
            f"Use one of these, or StsWeights(...) with {names}."
        )
    return PRESETS[name_or_weights]


def sts_objective(x: Tensor, y: Tensor, weights: StsWeights) -> tuple[Tensor, dict[str, Tensor]]:
    """Weighted sum of the losses on scored pairs that `weights` asks for, but for the middle layer's.

    Args:
        x: predicted scores, usually cosines, (pairs,).
        y: gold scores, finite, (pairs,), rescaled to [0, 1] per data set.
        weights: of each component.

    Returns: the total, a scalar of at least float32, and each component by name, detached and unweighted.

    Raises:
        ValueError: if the shapes do not fit.
    """
    losses: dict[str, Tensor] = {}
    if weights.pearson:
        losses["pearson"] = pearson_loss(x, y)
    if weights.rank_kl:
        rank_kl = rank_kl_loss(x, y, temperature=weights.temperature)
        losses["rank_kl"] = rank_kl / len(x) if weights.rank_kl_divide_by_n else rank_kl
    if weights.pro:
        losses["pro"] = pro_loss(x, y, temperature=weights.temperature)
    if weights.cosent:
        losses["cosent"] = cosent_loss(x, y, temperature=weights.temperature)
    no_loss = x.float().sum() * 0  # keeps a gradient path where only the middle layer has a weight
    total = sum((getattr(weights, name) * loss for name, loss in losses.items()), start=no_loss)
    return total, {name: loss.detach() for name, loss in losses.items()}
