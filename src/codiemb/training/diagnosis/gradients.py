"""The gradients of a recipe's objectives over several batches, reduced to their inner products, layer by layer.

All that a diagnosis says follows from these products. A gradient is as large as the model, and there is one a batch:
they wait in a temporary file until the products are taken, a block of every gradient at a time, so memory holds one
gradient whatever their number. Of the token table, the rows that the batches read are kept; the others have none.
"""

from __future__ import annotations

import math
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import TrainingArguments, set_seed

from codiemb.encoding import EmbeddingPass
from codiemb.fusion.deltas import layer_depth, layer_of
from codiemb.tasks import TASKS, Objective, TaskOptions
from codiemb.training import run as training
from codiemb.training.diagnosis.batches import By, Drawn, draw, mix
from codiemb.training.nested import on_parts, width_weights
from codiemb.training.recipe import Recipe
from codiemb.training.token_rows import install
from codiemb.training.trainer import TrainingRows

TOKEN_TABLE = "token table"
_ADAPTED = "base_model.model."  # how peft's names of a network's parts begin
_BLOCK = 1 << 18  # numbers of each gradient that are multiplied at once


@dataclass(frozen=True, eq=False)
class GradientProducts:
    """Inner products of the gradients of all batches.

    Attributes:
        batches: what each gradient is of.
        layers: in the order in which a text passes them; parameters: of each, those that are trained.
        products: (layers, batches, batches) float64.
        losses: (batches,).
        settings: what the gradients depend on.
    """

    batches: Sequence[Drawn]
    layers: tuple[str, ...]
    parameters: tuple[int, ...]
    products: np.ndarray
    losses: np.ndarray
    settings: Mapping[str, Any]


def measure(
    recipe: Recipe,
    *,
    batches: int,
    by: By = "task",
    mixed: bool = False,
    max_length: int | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> GradientProducts:
    """Take the gradient of each batch's objective, as the first step of a training with the recipe would.

    Args:
        recipe: its model, data, sampling, tasks, dropout, precision and seed hold.
        batches: of each task or data set, `batches.LEAST` or more.
        by: what is compared.
        mixed: also of mixed batches, in parts; see `batches.mix`.
        max_length: tokens that texts are cut to, to save time; None: as in training.
        on_progress: called with (gradients done, all of them).
    Raises:
        ValueError: data that do not suffice, or a loss that is not finite.
        OSError: no room for the temporary file.
    """
    # The library's arguments say which device a training would take.
    arguments = TrainingArguments(
        output_dir=str(recipe.output), use_cpu=not torch.accelerator.is_available(), report_to=[]
    )
    tables = training.read_tables(recipe)
    options: dict[str, TaskOptions] = {name: getattr(recipe.tasks, name) for name in TASKS}
    sampler = training.make_sampler(recipe, tables, options, arguments)
    set_seed(recipe.seed)  # for weights that a model lacks
    model, template = training.load_model(recipe, arguments.device)
    embedding_pass = training.make_pass(recipe, model, options, {table.task_type for table in tables})
    training.restrict(recipe, embedding_pass)
    if max_length is not None:
        embedding_pass.max_length = min(max_length, embedding_pass.max_length or max_length)
    widths = width_weights(recipe.matryoshka, embedding_pass.dimension) if recipe.matryoshka else None
    rows = TrainingRows(tables, training.make_collator(recipe, tables, template, options), sampler)
    drawn = draw(sampler, rows, batches, by)
    if mixed:
        drawn += mix(drawn)
    _trained_rows(embedding_pass, drawn)
    layers = trained_layers(embedding_pass)
    losses = np.zeros(len(drawn))
    gradients = _Gradients(layers, len(drawn))
    for number, one in enumerate(drawn):
        objective = TASKS[one.options_of].objective  # type: ignore[index]
        if widths:
            objective = on_parts(objective, widths)
        torch.manual_seed(recipe.seed + number)  # dropout's
        losses[number] = _backward(embedding_pass, one, options[one.options_of], objective)
        gradients.store(number)
        if on_progress:
            on_progress(number + 1, len(drawn))
    products = gradients.products()
    seen = [place for place, matrix in enumerate(products) if matrix.any()]  # what no objective reads has no gradient
    names = list(layers)
    settings = {
        "model": recipe.model,
        "template": template.to_dict(),
        "max_length": embedding_pass.max_length,
        "precision": str(embedding_pass.precision).removeprefix("torch."),
        "device": str(model.device),
        "dropout": recipe.dropout,
        "seed": recipe.seed,
        "batch_sizes": {task: options[task].batch_size for task in dict.fromkeys(table.task_type for table in tables)},
    }
    return GradientProducts(
        drawn,
        tuple(names[place] for place in seen),
        tuple(sum(p.numel() for p in layers[names[place]]) for place in seen),
        products[seen],
        losses,
        settings,
    )


def trained_layers(embedding_pass: EmbeddingPass) -> dict[str, list[nn.Parameter]]:
    """Trainable parameters by layer, named as `codiemb fuse` names them; the token table is one of its own."""
    network = embedding_pass.transformer.model
    table = {id(parameter) for parameter in network.get_input_embeddings().parameters()}
    layers: dict[str, list[nn.Parameter]] = {}
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            layer = TOKEN_TABLE if id(parameter) in table else layer_of(name.removeprefix(_ADAPTED))
            layers.setdefault(layer, []).append(parameter)
    for number, module in list(enumerate(embedding_pass.model))[1:]:
        own = [parameter for parameter in module.parameters() if parameter.requires_grad]
        if own:
            layers[f"{number}_{type(module).__name__}"] = own
    return {name: layers[name] for name in sorted(layers, key=lambda name: (name != TOKEN_TABLE, layer_depth(name)))}


def _trained_rows(embedding_pass: EmbeddingPass, drawn: Sequence[Drawn]) -> None:
    """Leave the rows of the token table that the batches read, so that its gradient is not as large as the table."""
    network = embedding_pass.transformer.model
    table = network.get_input_embeddings()
    if type(table) is nn.Embedding and table.weight.requires_grad:
        tokenizer = embedding_pass.tokenizer
        used = {*tokenizer.all_special_ids, tokenizer.pad_token_id or 0}
        for one in drawn:
            for ids in embedding_pass.tokenize(one.batch.texts).input_ids:
                used.update(ids)
        install(network, used)


def _backward(
    embedding_pass: EmbeddingPass, one: Drawn, options: TaskOptions, objective: Callable[..., Objective]
) -> float:
    """Leave the gradient of one batch's objective in the parameters, and return the loss."""
    embedding_pass.train()
    embedding_pass.zero_grad(set_to_none=True)
    batch = one.batch.to(embedding_pass.model.device)
    embeddings = embedding_pass(embedding_pass.tokenize(batch.texts))
    loss = objective(embeddings, batch, options, gather=False).total
    loss.backward()  # type: ignore[no-untyped-call]
    value = float(loss.detach())
    if not math.isfinite(value):
        raise ValueError(
            f"The loss of a batch of {one.batch.source} is {value}, so it has no gradient. Set precision=fp32; if it "
            "stays, the model's weights are broken."
        )
    return value


class _Gradients:
    """A row for each batch, on disk; the file has no name, so nothing stays of it however the process ends."""

    def __init__(self, layers: Mapping[str, Sequence[nn.Parameter]], rows: int) -> None:
        self._layers = layers.values()
        self._sizes = [sum(parameter.numel() for parameter in parameters) for parameters in self._layers]
        shape = rows, sum(self._sizes)
        folder = tempfile.gettempdir()
        needed, free = 4 * math.prod(shape), shutil.disk_usage(folder).free
        if needed > free:
            raise OSError(
                f"{folder}: {rows} gradients take {needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free. Set TMPDIR "
                "to a folder with more room, or take fewer batches."
            )
        with tempfile.TemporaryFile(dir=folder) as file:
            self._numbers = np.memmap(file, dtype=np.float32, mode="w+", shape=shape)

    def store(self, row: int) -> None:
        """Keep what the last backward pass left in the parameters."""
        start = 0
        for parameter in chain.from_iterable(self._layers):
            stop = start + parameter.numel()
            if parameter.grad is not None:
                self._numbers[row, start:stop] = parameter.grad.detach().float().flatten().cpu().numpy()
            start = stop

    def products(self) -> np.ndarray:
        """(layers, rows, rows) float64."""
        rows = len(self._numbers)
        products = np.zeros((len(self._sizes), rows, rows))
        start = 0
        for matrix, size in zip(products, self._sizes, strict=True):
            stop = start + size
            for at in range(start, stop, _BLOCK):
                block = self._numbers[:, at : min(at + _BLOCK, stop)].astype(np.float64)
                matrix += block @ block.T
            start = stop
        return products
