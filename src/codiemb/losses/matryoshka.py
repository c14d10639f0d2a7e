"""One objective on leading parts of the embeddings (Matryoshka representation learning, arXiv:2205.13147)."""

from collections.abc import Callable, Mapping

import torch.nn.functional as F
from torch import Tensor


def leading(embeddings: Tensor, dim: int) -> Tensor:
    """The first `dim` of (..., width) at unit length, float32; (..., dim)."""
    return F.normalize(embeddings[..., :dim].float(), dim=-1)


def matryoshka(objective: Callable[[Tensor], Tensor], embeddings: Tensor, weights: Mapping[int, float]) -> Tensor:
    """The weighted sum of an objective over leading parts of the embeddings.

    Args:
        objective: of unit embeddings, a scalar.
        embeddings: of any norm, (..., width).
        weights: by the widths of the parts, each from 1 to the whole width.
    Returns: scalar, in the objective's unit.
    Raises:
        ValueError: no parts, or one of a width that the embeddings do not have.
    """
    if not weights or not all(1 <= dim <= embeddings.shape[-1] for dim in weights):
        raise ValueError(f"got parts of widths {list(weights)}, expected some from 1 to {embeddings.shape[-1]}.")
    terms = [weight * objective(leading(embeddings, dim)) for dim, weight in weights.items()]
    return sum(terms[1:], terms[0])
