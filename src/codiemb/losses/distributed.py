"""Candidates of all ranks in one loss, with gradients back to their owners."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def world_size() -> int:
    """Number of processes in the default group; 1 where there is no group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Rank of this process in the default group; 0 where there is no group."""
    return dist.get_rank() if world_size() > 1 else 0


def gather(tensor: Tensor) -> Tensor:
    """Concatenate the tensors of all ranks along dim 0, in the order of the ranks, on every rank.

    The gradient that reaches an owner is the sum over all ranks. As DistributedDataParallel then averages
    over ranks, the parameters get the gradient of the mean of the ranks' losses. Both directions are
    collectives: every rank has to call this, and backward through it. Without a process group, or alone in
    one, it is the identity.

    Args:
        tensor: (rows, ...), of the same shape and dtype on all ranks.

    Returns: (world size * rows, ...).

    Raises:
        ValueError: on every rank, if the shapes differ.
    """
    if world_size() == 1:
        return tensor
    _check_equal_shapes(tensor)
    return _Gather.apply(tensor)  # type: ignore[no-untyped-call]


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        return torch.cat(_all_gather(tensor))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        # All-reduce and slice: reduce-scatter would send less, but not every backend has it.
        gradient = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(gradient)
        return gradient.chunk(world_size())[rank()]


def _all_gather(tensor: Tensor) -> list[Tensor]:
    tensor = tensor.contiguous()
    parts = [torch.empty_like(tensor) for _ in range(world_size())]
    dist.all_gather(parts, tensor)
    return parts


def _check_equal_shapes(tensor: Tensor) -> None:
    """Exchange the shapes first: unequal ones would hang or corrupt the collective that follows."""
    shape = torch.tensor([tensor.ndim, *tensor.shape, *[0] * (7 - tensor.ndim)], device=tensor.device)
    shapes = [tuple(sizes[1 : 1 + sizes[0]]) for sizes in torch.stack(_all_gather(shape)).tolist()]
    if len(set(shapes)) > 1:
        raise ValueError(
            f"the ranks hold tensors of shapes {shapes}, expected equal shapes. Give every rank as many rows, "
            "and pad positives and negatives to a common number (masking the padding)."
        )
