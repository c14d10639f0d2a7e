"""What makes training on a CPU fast: an attention that stays in bfloat16, and dropout that draws few random numbers.

`use_fast_attention` and `use_fast_dropout` change how a network computes, not what it computes: the results are those
of plain attention and dropout to rounding error, and nothing of it is saved with the model.
"""

from __future__ import annotations

import logging
import math
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import repeat_kv
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

logger = logging.getLogger(__name__)

ATTENTION = "codiemb_cpu"
"""The name of the attention in transformers' registry."""

_LANES = {torch.float32: (torch.int32, 32), torch.bfloat16: (torch.int16, 16), torch.float16: (torch.int16, 16)}
_UNSUPPORTED = ("softcap", "s_aux", "position_bias")  # variants that only some networks have


# -- dropout -----------------------------------------------------------------------------------------------------------


def keep_bits(shape: torch.Size, dtype: torch.dtype, dropout: float) -> Tensor:
    """Random integers as wide as `dtype`: all bits set with probability 1 - dropout, else none.

    torch draws one random number an element in one thread. Here one draw of 64 bits serves four elements of 16 bits or
    two of 32; the probability is rounded to a multiple of 2**-15 or 2**-31.
    """
    integer, bits = _LANES[dtype]
    count = math.prod(shape)
    draws = torch.empty(-(-count * bits // 64), dtype=torch.int64).random_(-(2**63), None)
    lanes = draws.view(integer)[:count].view(shape)
    highest = 2 ** (bits - 1) - 1
    # The sign of (uniform - threshold), spread over all bits, marks what is dropped.
    return lanes.bitwise_and_(highest).sub_(round(dropout * highest)).bitwise_right_shift_(bits - 1).bitwise_not_()


def _masked(values: Tensor, keep: Tensor) -> Tensor:
    return (values.view(keep.dtype) & keep).view(values.dtype)


class _Dropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, dropout: float) -> Tensor:
        keep = keep_bits(values.shape, values.dtype, dropout)
        ctx.save_for_backward(keep)
        ctx.scale = 1 / (1 - dropout)
        return _masked(values.contiguous(), keep).mul_(ctx.scale)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (keep,) = ctx.saved_tensors
        return _masked(gradient.contiguous(), keep).mul_(ctx.scale), None


class FastDropout(nn.Dropout):
    """`nn.Dropout` on a CPU with a quarter of the random numbers, drawn from the same generator."""

    def forward(self, values: Tensor) -> Tensor:
        """Zero each element with probability `p` and scale the others by 1 / (1 - p), in training only."""
        plain = values.dtype not in _LANES or values.device.type != "cpu"
        if not self.training or plain or not 0 < self.p < 1:
            return super().forward(values)
        return _Dropout.apply(values, self.p)  # type: ignore[no-untyped-call]


def use_fast_dropout(network: nn.Module) -> None:
    """Put `FastDropout` in the place of every `nn.Dropout` of the network."""
    for module in network.modules():
        if type(module) is nn.Dropout:
            module.__class__ = FastDropout


# -- attention ---------------------------------------------------------------------------------------------------------


class _Attention(torch.autograd.Function):
    """softmax(q k' * scale + bias) v, with everything between the products in the dtype of q, k and v.

    Under autocast, plain attention makes float32 copies of the scores, which are most of its memory and time.
    """

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, scale: float, dropout: float
    ) -> Tensor:
        query = query * scale
        scores = query @ key.transpose(-1, -2)
        if bias is not None:
            scores += bias
        weights = scores.softmax(dim=-1)
        keep = keep_bits(weights.shape, weights.dtype, dropout) if dropout else None
        ctx.save_for_backward(query, key, value, weights, keep)
        ctx.scale, ctx.kept_scale = scale, 1 / (1 - dropout)
        used = weights if keep is None else _masked(weights, keep).mul_(ctx.kept_scale)
        return used @ value

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, weights, keep = ctx.saved_tensors
        used = weights if keep is None else _masked(weights, keep).mul_(ctx.kept_scale)
        to_value = used.transpose(-1, -2) @ gradient
        to_weights = gradient @ value.transpose(-1, -2)
        if keep is not None:
            to_weights = _masked(to_weights, keep).mul_(ctx.kept_scale)
        to_scores = torch._softmax_backward_data(to_weights, weights, -1, weights.dtype)
        to_query = (to_scores @ key).mul_(ctx.scale)
        return to_query, to_scores.transpose(-1, -2) @ query, to_value, None, None, None


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **variant: Any,
) -> tuple[Tensor, None]:
    """Attention as transformers calls it.

    Args:
        query: (batch, heads, tokens, head width).
        key, value: (batch, key heads, tokens, head width); the key heads divide the heads.
        attention_mask: bool, True where a query may look, or added to the scores; (batch, 1, tokens, tokens).
        scaling: of the products; 1 / sqrt(head width) if None.
    Returns: (batch, tokens, heads, head width).
    Raises:
        ValueError: a variant of attention that this one does not compute.
    """
    if unsupported := [name for name in _UNSUPPORTED if variant.get(name) is not None]:
        raise ValueError(
            f"{type(module).__name__} asks for attention with {', '.join(unsupported)}, which the fast attention for "
            "CPUs does not have. Set attention: eager."
        )
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else query.dtype
    groups = query.shape[1] // key.shape[1]
    query, key, value = (part.to(dtype) for part in (query, repeat_kv(key, groups), repeat_kv(value, groups)))
    bias = attention_mask
    if bias is not None and bias.dtype == torch.bool:
        bias = torch.zeros(bias.shape, dtype=dtype).masked_fill_(~bias, torch.finfo(dtype).min)
    elif bias is not None:
        bias = bias.to(dtype)
    if scaling is None:
        scaling = query.shape[-1] ** -0.5
    with torch.autocast("cpu", enabled=False):
        output: Tensor = _Attention.apply(query, key, value, bias, scaling, dropout)  # type: ignore[no-untyped-call]
    return output.transpose(1, 2).contiguous(), None


def _mask(*arguments: Any, **options: Any) -> Tensor | None:
    # A causal mask is always made: left out, only the module would know that there is one.
    return sdpa_mask(*arguments, **{**options, "allow_is_causal_skip": False})


AttentionInterface.register(ATTENTION, attention)
AttentionMaskInterface.register(ATTENTION, _mask)


def use_fast_attention(network: PreTrainedModel) -> bool:
    """Let the network compute attention here; False where its kind of attention is not known to fit."""
    config = network.config.get_text_config()
    if not network._supports_sdpa or getattr(config, "attn_logit_softcapping", None):
        logger.info("%s keeps its own attention.", type(network).__name__)
        return False
    network.set_attn_implementation(ATTENTION)
    return True
