"""What every loss does with its inputs: enough precision, and shapes that fit."""

from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec

import torch
from torch import Tensor

P = ParamSpec("P")


def raised(argument: Any) -> Any:
    """Return a half-precision tensor as float32, and anything else as it is."""
    if isinstance(argument, Tensor) and argument.is_floating_point() and argument.dtype.itemsize < 4:
        return argument.float()
    return argument


def at_least_float32(loss: Callable[P, Tensor]) -> Callable[P, Tensor]:
    """Run a loss with autocast off and its half-precision tensors raised to float32.

    A bfloat16 cosine near 1 is off by up to 2**-9, and a temperature of 0.02 makes that an error of 0.1 nats.
    float64 stays float64, integers and masks stay as they are.
    """

    @wraps(loss)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> Tensor:
        device = next(a.device for a in (*args, *kwargs.values()) if isinstance(a, Tensor))
        with torch.autocast(device.type, enabled=False):
            return loss(*map(raised, args), **{name: raised(value) for name, value in kwargs.items()})

    return wrapper


def check_temperature(temperature: float) -> None:
    """Raise ValueError unless `temperature` is above 0."""
    if not temperature > 0:
        raise ValueError(f"temperature={temperature}, expected a number above 0, such as 0.02 or 0.05.")


def gold_scores(x: Tensor, y: Tensor) -> Tensor:
    """Return the gold scores `y` in the dtype of the predicted scores `x`, both (pairs,).

    Raises:
        ValueError: if they are not two vectors of the same length, at least 1.
    """
    if x.ndim != 1 or x.shape != y.shape or not len(x):
        raise ValueError(
            f"got scores x {tuple(x.shape)} and gold scores y {tuple(y.shape)}, expected both (pairs,), at "
            "least one pair. Pass one predicted and one gold score for each, e.g. labels.view(-1)."
        )
    return y.to(x.dtype)
