"""The network and tokenizer that a pre-training begins with: new ones, or those of a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import (
    CONFIG_MAPPING,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from codiemb import backbones
from codiemb.extras import require
from codiemb.model_source import ModelError, find


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """The tokenizer of the model or directory `name`.

    Raises:
        ModelError: there is none.
    """
    with backbones.explained(name):
        if Path(name).is_dir() and not (Path(name) / "config.json").is_file():  # a tokenizer alone
            return AutoTokenizer.from_pretrained(name, local_files_only=True)
        source = find(name)
        gguf = _gguf(source.gguf)
        return AutoTokenizer.from_pretrained(source.path, local_files_only=source.local, **gguf)


def load_network(name: str, attention: str) -> PreTrainedModel:
    """A causal language model, float32, whole.

    Raises:
        ModelError: there is none, it is no causal language model, or weights are missing.
    """
    with backbones.explained(name):
        source = find(name)
        options: dict[str, Any] = _gguf(source.gguf)
        if source.gguf is not None and hasattr(transformers, "GgufConfig"):  # older versions always unpack
            options["quantization_config"] = transformers.GgufConfig(dequantize=True)
        network, found = AutoModelForCausalLM.from_pretrained(
            source.path,
            local_files_only=source.local,
            dtype=torch.float32,
            attn_implementation=attention,
            output_loading_info=True,
            **options,
        )
    if missing := sorted(found["missing_keys"]):
        raise ModelError(
            f"{name}: is not a whole language model: {', '.join(missing[:3])} {'and others ' * (len(missing) > 3)}"
            "would be random. Give a causal language model, not an encoder or an embedding model."
        )
    if source.gguf is not None:
        backbones.forget_quantization(network)
    return network


def new_network(values: dict[str, Any], tokenizer: PreTrainedTokenizerBase, attention: str) -> PreTrainedModel:
    """A network with random weights, drawn from torch's generator, for the ids of `tokenizer`.

    Args:
        values: of its configuration, `model_type` among them.
    Raises:
        ModelError: the network cannot be built.
    """
    kind = values["model_type"]
    own = {key: value for key, value in values.items() if key != "model_type"}
    # Without a padding id: the token's row is trained as the others, and some networks would zero it on loading.
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": None}
    try:
        config = CONFIG_MAPPING[kind](**{"vocab_size": len(tokenizer), **ids, **own})
        return AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation=attention)
    except Exception as error:  # each architecture has its own
        raise ModelError(f"config: a {kind} network of these values cannot be built: {error}") from error


def check_window(network: PreTrainedModel, window: int) -> None:
    """Raise a `ModelError` if the network has no position for each place of a window."""
    positions = getattr(network.config.get_text_config(), "max_position_embeddings", None)
    if isinstance(positions, int) and positions < window:
        raise ModelError(
            f"window is {window}, but the network has {positions} positions (max_position_embeddings). Lower the "
            "window, or give a new network more."
        )


def _gguf(file: str | None) -> dict[str, Any]:
    if file is None:
        return {}
    require("gguf", "gguf")
    return {"gguf_file": file}
