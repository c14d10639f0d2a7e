"""How far each checkpoint moved from the base, and what weight that gives it.

With Δ_k = θ_k − θ_0, the fused parameters are θ_0 + scale · Σ_k w_k Δ_k. A group is a tensor, a layer or the model;
within it Σ_k w_k = 1:

- `uniform`: w_k = 1/K, the uniform soup (Wortsman et al., 2022, arXiv:2203.05482);
- `delta`: w_k = ‖Δ_k‖ / Σ_j ‖Δ_j‖ over the group, uniform where no checkpoint moved;
- `weights`: given.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from codiemb.fusion.models import ModelDirectory
from codiemb.fusion.tensors import StoredTensor

Method = Literal["delta", "uniform", "weights"]
Granularity = Literal["tensor", "layer", "model"]
OnBlock = Callable[[int], None]

_NUMBERED = re.compile(r"^(?:.*?\.)?\d+(?=\.)")


@dataclass(frozen=True, eq=False)
class TensorDelta:
    """One tensor: `products` (checkpoints, checkpoints) float64 are the inner products Δ_j · Δ_k.

    `counted` is the name that stands for it: another tensor's where that one is equal in the base and in every
    checkpoint (a tied weight that the file has twice), so that it counts once and both get one set of weights.
    """

    parameters: int
    base_square: float
    products: np.ndarray
    counted: str


@dataclass(frozen=True)
class LayerDelta:
    """One layer: its tensors together.

    Attributes:
        norms: ‖Δ_k‖ of each checkpoint.
        relative_norms: divided by ‖θ_0‖; None where that is 0 and the checkpoint moved.
        cosines: between the checkpoints' deltas, (checkpoints, checkpoints); 0 where a delta is 0.
        weights: of each checkpoint, the mean over the layer's parameters; empty if nothing was fused.
    """

    name: str
    parameters: int
    norms: tuple[float, ...]
    relative_norms: tuple[float | None, ...]
    cosines: tuple[tuple[float, ...], ...]
    weights: tuple[float, ...] = ()


def layer_of(tensor: str) -> str:
    """`encoder.layer.3` of `encoder.layer.3.output.dense.weight`; without a number the first part of the name."""
    numbered = _NUMBERED.match(tensor)
    return numbered[0] if numbered else tensor.partition(".")[0]


def delta_blocks(start: StoredTensor, states: Sequence[StoredTensor]) -> Iterator[tuple[Tensor, Tensor]]:
    """θ_0 (n,) and Δ (checkpoints, n) of a tensor, float64, block by block."""
    for parts in zip(start.blocks(), *(state.blocks() for state in states), strict=True):
        base = parts[0].double()
        yield base, torch.stack([part.double() for part in parts[1:]]).sub_(base)


def measure(
    starts: Mapping[str, StoredTensor], checkpoints: Sequence[ModelDirectory], on_block: OnBlock
) -> dict[str, TensorDelta]:
    """Inner products of the deltas of every tensor in `starts`.

    Raises:
        ValueError: a checkpoint or the base holds values that are not finite.
    """
    deltas: dict[str, TensorDelta] = {}
    seen: dict[tuple[object, ...], str] = {}
    for name, start in starts.items():
        products = torch.zeros(len(checkpoints), len(checkpoints), dtype=torch.float64)
        base_square = 0.0
        for base, moved in delta_blocks(start, [checkpoint.tensors[name] for checkpoint in checkpoints]):
            products += moved @ moved.T
            base_square += float(base @ base)
            on_block(base.numel())
        if not np.isfinite(base_square):
            raise ValueError(f"{start.file}: {name} of the base holds values that are not finite.")
        for checkpoint, square in zip(checkpoints, products.diag().tolist(), strict=True):
            if not np.isfinite(square):
                raise ValueError(f"{checkpoint.name}: {name} holds values that are not finite; its training diverged.")
        copy = (start.shape, base_square, products.numpy().tobytes())
        counted = seen.setdefault(copy, name) if products.any() else name
        deltas[name] = TensorDelta(start.elements, base_square, products.numpy(), counted)
    return deltas


def fusion_weights(
    deltas: Mapping[str, TensorDelta], method: Method, granularity: Granularity, given: Sequence[float] | None
) -> dict[str, np.ndarray]:
    """w of each tensor, (checkpoints,) float64, each summing to 1."""

    def group(name: str) -> str:
        counted = deltas[name].counted
        return {"tensor": counted, "layer": layer_of(counted), "model": ""}[granularity]

    squares: dict[str, np.ndarray] = {}
    for name, delta in deltas.items():
        if delta.counted == name:
            squares[group(name)] = squares.get(group(name), 0.0) + delta.products.diagonal()
    weights = {}
    for name, square in squares.items():
        shares = np.sqrt(square) if method == "delta" else np.asarray(given) if given else np.ones(len(square))
        if not shares.any():
            shares = np.ones(len(square))
        weights[name] = shares / shares.sum()
    return {name: weights[group(name)] for name in deltas}


def by_layer(
    deltas: Mapping[str, TensorDelta], weights: Mapping[str, np.ndarray] | None = None
) -> tuple[LayerDelta, ...]:
    """The layers in the order in which a text passes them, as far as the names tell, and `model`, all of them."""
    layers: dict[str, list[str]] = defaultdict(list)
    for name in deltas:
        layers[layer_of(name)].append(name)
    ordered = sorted(layers, key=layer_depth)
    return (
        *(_layer(name, layers[name], deltas, weights) for name in ordered),
        _layer("model", list(deltas), deltas, weights),
    )


def layer_depth(layer: str) -> tuple[int, int, str]:
    """Sorts layers in the order in which a text passes them, as far as the names tell."""
    number = layer.rpartition(".")[2]
    place = 0 if "embed" in layer or layer in ("wte", "wpe") else 1 if number.isdigit() else 2
    return place, int(number) if place == 1 else 0, layer


def _layer(
    layer: str, names: Iterable[str], deltas: Mapping[str, TensorDelta], weights: Mapping[str, np.ndarray] | None
) -> LayerDelta:
    counted = [name for name in names if deltas[name].counted == name] or list(names)
    sizes = np.array([deltas[name].parameters for name in counted])
    products = np.sum([deltas[name].products for name in counted], axis=0)
    base = math.sqrt(sum(deltas[name].base_square for name in counted))
    norms = np.sqrt(products.diagonal())
    outer = np.outer(norms, norms)
    cosines = np.divide(products, outer, out=np.zeros_like(outer), where=outer > 0).clip(-1, 1)
    mean = np.average([weights[name] for name in counted], axis=0, weights=sizes) if weights else np.zeros(0)
    return LayerDelta(
        layer,
        int(sizes.sum()),
        tuple(norms.tolist()),
        tuple(norm / base if base else None if norm else 0.0 for norm in norms.tolist()),
        tuple(map(tuple, cosines.tolist())),
        tuple(float(weight) for weight in mean),
    )
