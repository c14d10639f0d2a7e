"""AnglE: a ranking loss on embeddings instead of their cosines."""

import torch.nn.functional as F
from torch import Tensor

from ._inputs import at_least_float32
from .ranking import cosent_loss


@at_least_float32
def angle_loss(a: Tensor, b: Tensor, y: Tensor, *, temperature: float = 0.05) -> Tensor:
    """AnglE (arXiv:2309.12871): CoSENT on angles in complex space, where the gradient does not vanish near 1.

    The halves of an embedding are real and imaginary parts. With z the product of the one complex vector and
    the other's conjugate, both at unit norm, the score is |sum of Re z + Im z|, and grows with the similarity
    as in the authors' code (equation 3 of the paper has the opposite order).

    Args:
        a, b: embeddings of the two texts, of any norm, (pairs, dim); an odd dim is padded with a zero.
        y: gold scores, finite, on any scale, (pairs,).
        temperature: > 0.

    Returns: scalar in nats, at least float32.

    Raises:
        ValueError: if the shapes do not fit or the temperature is not above 0.
    """
    if a.ndim != 2 or a.shape != b.shape:
        raise ValueError(f"got embeddings {tuple(a.shape)} and {tuple(b.shape)}, expected both (pairs, dim).")
    a, b = (F.pad(F.normalize(side), (0, side.shape[1] % 2)) for side in (a, b))
    (a_real, a_imaginary), (b_real, b_imaginary) = a.chunk(2, dim=1), b.chunk(2, dim=1)
    real = (a_real * b_real + a_imaginary * b_imaginary).sum(1)
    imaginary = (a_imaginary * b_real - a_real * b_imaginary).sum(1)
    return cosent_loss((real + imaginary).abs(), y, temperature=temperature)
