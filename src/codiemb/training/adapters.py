"""LoRA (arXiv:2106.09685) and QLoRA (arXiv:2305.14314): small matrices beside linear layers that stay as they are.

The layers are peft's. Here is what a training run needs of them: which layers they are put beside, a checkpoint that
holds nothing else, and a model directory with the change added to the weights, which needs no peft.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from torch import nn
from transformers import PreTrainedModel

from codiemb.backbones import ModelError
from codiemb.extras import require
from codiemb.training.recipe import Adapter
from codiemb.training.sections import RecipeError

WEIGHTS = "adapter_model.safetensors"
_PREFIX = "base_model.model."  # of peft's own names, so that it loads what is saved here
_UNREAD = "pooler."  # of BERT-like networks, which sentence embeddings do not read


class LowRankAdapter:
    """A LoRA adapter in the network of `model`; nothing else of the model stays trainable.

    Args:
        model: its network gets the adapter.
        options: of the recipe.
        base: name of the model, for whoever loads the adapter alone.
    Raises:
        RecipeError: a target module that the network does not have.
        ModuleNotFoundError: peft is not installed.
    """

    def __init__(self, model: SentenceTransformer, options: Adapter, base: str) -> None:
        self._peft = require("peft", "lora")
        self._network: PreTrainedModel = model[0].model
        targets = options.target_modules
        if targets is None:
            targets = linear_layers(self._network)
        else:
            _check_targets(self._network, targets)
        self._config = self._peft.LoraConfig(
            r=options.rank,
            lora_alpha=options.alpha,
            lora_dropout=options.dropout,
            target_modules=targets,
            bias=options.bias,
            use_rslora=options.rslora,
            use_dora=options.dora,
            task_type="FEATURE_EXTRACTION",
            base_model_name_or_path=base,
        )
        model.requires_grad_(False)
        self._peft.inject_adapter_in_model(self._config, self._network)

    def save(self, directory: Path) -> None:
        """Write the adapter alone, as peft and `SentenceTransformer.load_adapter` read it."""
        directory.mkdir(parents=True, exist_ok=True)
        self._config.save_pretrained(str(directory))
        state = self._peft.get_peft_model_state_dict(self._network)
        tensors = {f"{_PREFIX}{name}": tensor.contiguous() for name, tensor in state.items()}
        save_file(tensors, directory / WEIGHTS, metadata={"format": "pt"})

    def load(self, directory: Path) -> None:
        """Take over the weights that `save` wrote."""
        state = {name.removeprefix(_PREFIX): tensor for name, tensor in load_file(directory / WEIGHTS).items()}
        self._peft.set_peft_model_state_dict(self._network, state)

    @contextmanager
    def merged(self) -> Iterator[None]:
        """Within it, the network has plain linear layers with the adapter's change in their weights.

        They are made aside: adding a change and subtracting it again would not give the same bits.
        """
        layers = {name: module for name, module in self._network.named_modules() if _is_adapted(module)}
        for name, layer in layers.items():
            self._network.set_submodule(name, _merged(layer))
        try:
            yield
        finally:
            for name, layer in layers.items():
                self._network.set_submodule(name, layer)


def linear_layers(network: nn.Module) -> list[str]:
    """Names of the linear layers that the embeddings depend on."""
    return [
        name
        for name, module in network.named_modules()
        if isinstance(module, nn.Linear) and not name.startswith(_UNREAD)
    ]


def quantize(
    network: PreTrainedModel, kind: Literal["nf4", "int8"], device: torch.device, compute: torch.dtype
) -> None:
    """Put bitsandbytes' layers in the place of the linear ones, their weights in 4 or 8 bits and on `device`.

    Args:
        network: in float32, anywhere; layers are moved one by one, so that they need not fit on `device` as they are.
        compute: what 4-bit weights are unpacked to in the products.
    Raises:
        ModelError: bitsandbytes does not work on the device.
        ModuleNotFoundError: bitsandbytes is not installed.
    """
    library = require("bitsandbytes", "qlora")
    for name in linear_layers(network):
        linear = network.get_submodule(name)
        try:
            network.set_submodule(name, _quantized(library.nn, linear, kind, device, compute))
        except (RuntimeError, NotImplementedError, AttributeError) as error:
            raise ModelError(
                f"adapter.quantize: bitsandbytes cannot make {kind} weights on {device}: {error}\n"
                "Set adapter.quantize to null, or train on a CUDA GPU."
            ) from error
    # What peft looks at.
    network.is_loaded_in_4bit = kind == "nf4"
    network.is_loaded_in_8bit = kind == "int8"


def _quantized(layers: Any, linear: nn.Module, kind: str, device: torch.device, compute: torch.dtype) -> nn.Module:
    assert isinstance(linear, nn.Linear)
    weight, bias = linear.weight.detach(), linear.bias
    sizes = (linear.in_features, linear.out_features, bias is not None)
    if kind == "nf4":
        made = layers.Linear4bit(*sizes, compute_dtype=compute, quant_type="nf4")
        made.weight = layers.Params4bit(weight, requires_grad=False, quant_type="nf4", module=made)
        made.support_avx512bf16_for_cpu = False  # else evaluating repacks the weights, with other scales, for good
    else:
        made = layers.Linear8bitLt(*sizes, has_fp16_weights=False)
        made.weight = layers.Int8Params(weight, requires_grad=False, has_fp16_weights=False)
    made.bias = bias
    return made.to(device)


def _check_targets(network: nn.Module, targets: list[str]) -> None:
    names = linear_layers(network)
    for target in targets:
        if not any(name == target or name.endswith(f".{target}") for name in names):
            ends = sorted({name.rpartition(".")[2] for name in names})
            raise RecipeError(
                f"adapter.target_modules: no linear layer's name ends in {target!r}; the network has {', '.join(ends)}"
            )


def _is_adapted(module: nn.Module) -> bool:
    from peft.tuners.lora import LoraLayer

    return isinstance(module, LoraLayer)


@torch.no_grad()
def _merged(layer: Any) -> nn.Module:
    """The linear layer that computes what the adapted one does."""
    from peft.utils.integrations import dequantize_module_weight

    base = layer.get_base_layer()
    if type(base) is nn.Linear:
        layer = copy.deepcopy(layer)
        layer.merge()
        return layer.get_base_layer()
    weight = dequantize_module_weight(base).float()
    change = sum(layer.get_delta_weight(name) for name in layer.active_adapters)
    plain = nn.Linear(base.in_features, base.out_features, base.bias is not None, device=weight.device)
    plain.weight.copy_(weight + change)
    if base.bias is not None:
        plain.bias.copy_(base.bias)
    return plain
