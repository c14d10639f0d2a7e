"""Which parameters are trained, how many they are, and how fast each of them learns."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from torch import nn
from torch.optim import Optimizer

from codiemb.encoding import EmbeddingPass, hidden_layers
from codiemb.training.sections import RecipeError
from codiemb.training.token_rows import UsedRowsEmbedding


class ParameterCount(NamedTuple):
    """How many numbers a model consists of, and how many of them are trained."""

    trained: int
    total: int

    def __str__(self) -> str:
        return f"{self.trained:,} of {self.total:,} parameters are trained ({self.trained / self.total:.2%})"


def count_parameters(module: nn.Module) -> ParameterCount:
    """Count each parameter once: rows that are trained in the place of a table's own are the table's."""
    stand_ins = {id(child.rows) for child in module.modules() if isinstance(child, UsedRowsEmbedding)}
    sizes = {parameter: _size(parameter) for parameter in module.parameters()}
    return ParameterCount(
        trained=sum(size for parameter, size in sizes.items() if parameter.requires_grad),
        total=sum(size for parameter, size in sizes.items() if id(parameter) not in stand_ins),
    )


def _size(parameter: nn.Parameter) -> int:
    state = getattr(parameter, "quant_state", None)  # of 4-bit weights, of which each byte holds two
    return parameter.numel() if state is None else int(state.shape.numel())


def freeze_layers(embedding_pass: EmbeddingPass, count: int) -> None:
    """Keep the first `count` hidden layers, and the embeddings below them, as they are.

    Autograd then records nothing below the first trained layer: no activation of these layers is kept, and the
    backward pass ends above them.

    Raises:
        RecipeError: there are not more layers than that.
    """
    layers = hidden_layers(embedding_pass.transformer)
    if count >= len(layers):
        raise RecipeError(f"frozen_layers: got {count}, expected fewer than the network's {len(layers)} layers")
    for depth, parameter in _by_depth(embedding_pass):
        if depth <= count:
            parameter.requires_grad_(False)


def decay_by_layer(optimizer: Optimizer, embedding_pass: EmbeddingPass, decay: float) -> None:
    """Give each layer `decay` times the learning rate of the layer above it, and the embeddings that of a layer more.

    The last layer, and what follows it, keep the optimizer's own rate. Call it before a schedule is made.
    """
    top = len(hidden_layers(embedding_pass.transformer))
    depths = {id(parameter): depth for depth, parameter in _by_depth(embedding_pass)}
    groups = []
    for group in optimizer.param_groups:
        by_depth: dict[int, list[nn.Parameter]] = {}
        for parameter in group["params"]:
            by_depth.setdefault(depths.get(id(parameter), top), []).append(parameter)
        for depth, parameters in sorted(by_depth.items()):
            rate = group["lr"] * decay ** (top - depth)
            groups.append({**group, "params": parameters, "lr": rate})
    optimizer.param_groups[:] = groups


def _by_depth(embedding_pass: EmbeddingPass) -> Iterator[tuple[int, nn.Parameter]]:
    """The network's parameters: those of layer i, from 1, are i deep; before the layers 0; after them, as the last."""
    layers = hidden_layers(embedding_pass.transformer)
    own = {id(parameter): depth for depth, layer in enumerate(layers, start=1) for parameter in layer.parameters()}
    depth = 0
    for parameter in embedding_pass.transformer.model.parameters():
        # Parameters come in the order in which the network's modules were made.
        depth = own.get(id(parameter), len(layers) if depth else 0)
        yield depth, parameter
