"""Attention that stays within each document of a window, and the proof that a network keeps to it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.masking_utils import create_masks_for_generate

from codiemb.model_source import ModelError
from codiemb.training.pretraining.windows import document_numbers

_TOLERANCE = 1e-4  # relative, float32: the same sums in another order


def set_direction(network: PreTrainedModel, both_ways: bool) -> None:
    """Whether each token sees the later ones of its document too; in place, and saved with the network."""
    for config in {id(c): c for c in (network.config, network.config.get_text_config())}.values():
        if getattr(config, "is_causal", True) == both_ways:
            config.is_causal = not both_ways


def network_inputs(network: PreTrainedModel, input_ids: Tensor, position_ids: Tensor) -> dict[str, Any]:
    """What a network is called with so that no token sees another document.

    A causal network of transformers reads from positions that begin anew where documents do. One that reads both ways
    does not, and gets masks: one, or one for each kind of its layers.

    Args:
        input_ids: (windows, size); position_ids: from 0 in each document.
    """
    inputs: dict[str, Any] = {"input_ids": input_ids, "position_ids": position_ids, "use_cache": False}
    config = network.config.get_text_config()
    if not getattr(config, "is_causal", True):
        documents = document_numbers(position_ids)
        like = network.get_input_embeddings().weight
        inputs["attention_mask"] = create_masks_for_generate(
            config=config,
            inputs_embeds=like.new_empty((*input_ids.shape, 1)),
            attention_mask=None,
            past_key_values=None,
            and_mask_function=lambda window, head, query, key: documents[window, query] == documents[window, key],
        )
    return inputs


def check_attention(network: PreTrainedModel, both_ways: bool) -> None:
    """Try it: a document's logits beside another one are those it has alone, and later tokens count or do not.

    Raises:
        ModelError: the network cannot be run, mixes documents, or does not read in the direction that is asked for.
    """
    vocabulary = network.config.get_text_config().vocab_size
    first, second = torch.arange(7) % vocabulary, (torch.arange(5) * 3 + 1) % vocabulary
    changed = torch.cat([second[:-1], (second[-1:] + 1) % vocabulary])
    training = network.training
    network.eval()
    try:
        with torch.inference_mode():
            beside = _logits(network, [first, second])[len(first) :]
            alone = _logits(network, [second])
            earlier = _logits(network, [changed])[:-1]
    except (RuntimeError, ValueError, TypeError) as error:  # of values that do not fit each other
        raise ModelError(f"{type(network).__name__} cannot be run: {error}. Look at the values of config.") from error
    finally:
        network.train(training)
    size = alone.abs().max()
    if (beside - alone).abs().max() > _TOLERANCE * size:
        raise ModelError(
            f"{type(network).__name__} lets the documents of a window see each other: it does not follow positions "
            "that begin anew. Choose another architecture, or give attention another value."
        )
    if ((earlier - alone[:-1]).abs().max() > _TOLERANCE * size * 0.1) != both_ways:
        asked = "both ways, as objective mntp needs" if both_ways else "from left to right, as objective clm needs"
        raise ModelError(f"{type(network).__name__} cannot be made to read {asked}. Choose another architecture.")


def _logits(network: PreTrainedModel, documents: list[Tensor]) -> Tensor:
    """Logits of one window, (tokens, vocabulary)."""
    ids = torch.cat(documents)[None].to(network.device)
    positions = torch.cat([torch.arange(len(document)) for document in documents])[None].to(network.device)
    return network(**network_inputs(network, ids, positions)).logits[0].float()
