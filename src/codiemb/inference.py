"""What makes inference on a CPU fast: a copy of the network for it, with packed weights and an attention of its own.

The copy shares the embeddings, norms and everything else with the network, and computes the same to rounding error:

- Weights of linear layers are cast once, not in each forward pass as autocast does, and laid out as oneDNN reads them.
- Attention in bfloat16 is two batched products with an exponential between them, in blocks that stay in the cache.
"""

from __future__ import annotations

import copy
import logging
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from typing import Any

import torch
from sentence_transformers.sentence_transformer.modules import Transformer
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, bidirectional_mask_function, sdpa_mask

logger = logging.getLogger(__name__)

ATTENTION = "codiemb_inference"
"""The name of the attention in transformers' registry."""

_BLOCK = 2**19  # scores that are computed at a time: 1 MiB, a core's own cache
_LONGEST = 2**22  # scores of one head beyond which torch's attention, which never holds them all, is taken
_MOST_WORKERS = 16  # chunks in memory at once
_ROWS = 1024  # of the inputs for which weights are laid out; others work as well
_TOLERANCE = 0.1  # between the copy's states and the network's, relative: rounding is below 0.02, a mistake above 1


class InferenceCopy:
    """A network's copy for fast inference, good as long as the network's weights stay as they are.

    It computes in `precision`. The network itself serves where a copy would not be faster or does not work: on other
    devices than CPUs, in float32 where packing gains nothing, where memory does not suffice for a second set of
    weights, where hooks watch the network, and where the copy's states are not the network's.

    Attributes:
        transformer: to call instead of the original.
    """

    def __init__(self, transformer: Transformer, precision: torch.dtype) -> None:
        self._parameters = list(transformer.parameters())
        self._samples = [parameter.detach().view(-1)[:4] for parameter in self._parameters if parameter.numel()]
        self._state = self._current_state()
        with torch.no_grad():
            reason = _why_not(transformer.model, precision)
            self.transformer = transformer if reason else _checked_copy(transformer, precision)
        if reason:
            logger.info("No copy of %s for inference: %s.", type(transformer.model).__name__, reason)

    def is_current(self) -> bool:
        """Whether the network still has the weights that were copied."""
        (versions, values), (versions_now, values_now) = self._state, self._current_state()
        return versions == versions_now and torch.equal(values, values_now)

    def _current_state(self) -> tuple[list[tuple[int, int]], Tensor]:
        # Changes made through `.data` leave the version as it is, but not the values.
        versions = [(p.data_ptr(), 0 if p.is_inference() else p._version) for p in self._parameters]
        return versions, torch.cat([sample.float() for sample in self._samples])


def _why_not(network: nn.Module, precision: torch.dtype) -> str | None:
    if any(parameter.device.type != "cpu" for parameter in network.parameters()):
        return "it is not on a CPU"
    if not _packing_pays(precision):
        return f"packed weights gain nothing in {precision}"
    modules = list(network.modules())
    if any(m._forward_hooks or m._forward_pre_hooks or hasattr(m, "_hf_hook") for m in modules):
        return "it has hooks"
    weights = sum(module.weight.numel() for module in modules if type(module) is nn.Linear)
    if weights * precision.itemsize > _free_memory():
        return f"there is no memory for {weights} more weights"
    return None


def _checked_copy(transformer: Transformer, precision: torch.dtype) -> Transformer:
    try:
        made = _copy(transformer, precision)
        difference = _difference(transformer, made, precision)
        problem = None if difference < _TOLERANCE else f"the states of its copy differ by {difference:.2g}"
    except Exception as error:  # whatever a network from elsewhere is made of
        problem = str(error)
    if problem is None:
        return made
    logger.warning("%s is used as it is, without fast inference: %s", type(transformer.model).__name__, problem)
    return transformer


def _copy(transformer: Transformer, precision: torch.dtype) -> Transformer:
    network = transformer.model
    shared = {id(tensor): tensor for tensor in (*network.parameters(), *network.buffers())}
    made = copy.deepcopy(network, shared)
    for module in list(made.modules()):
        for name, child in list(module.named_children()):
            if type(child) is nn.Linear:
                setattr(module, name, PackedLinear(child, precision))
    if precision == torch.bfloat16 and _plain_attention(made) and _own_attention_pays():
        made.set_attn_implementation(ATTENTION)
    result = copy.copy(transformer)
    result._modules = {**transformer._modules, "model": made}
    return result.eval()


def _plain_attention(network: Any) -> bool:
    return getattr(network, "_supports_sdpa", False) and network.config._attn_implementation != "eager"


def _difference(transformer: Transformer, other: Transformer, precision: torch.dtype) -> float:
    """Of the states for a padded batch of any tokens, relative to their size."""
    ids = torch.arange(16).view(2, 8) % transformer.model.get_input_embeddings().num_embeddings
    mask = torch.ones_like(ids)
    side = slice(0, 3) if transformer.tokenizer.padding_side == "left" else slice(5, 8)
    mask[1, side] = 0
    states = []
    training = [module for module in transformer.modules() if module.training]
    transformer.eval()
    try:
        for each in (transformer, other):
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16):
                states.append(each({"input_ids": ids, "attention_mask": mask})["token_embeddings"][mask.bool()].float())
    finally:
        for module in training:
            module.training = True
    return float((states[0] - states[1]).norm() / states[0].norm())


def _free_memory() -> int:
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):  # not every system tells
        return 2**62


# -- linear layers -----------------------------------------------------------------------------------------------------


class PackedLinear(nn.Module):
    """`nn.Linear` for inference, its weight cast to `precision` and laid out for oneDNN."""

    def __init__(self, linear: nn.Linear, precision: torch.dtype) -> None:
        super().__init__()
        weight = linear.weight.detach().to(precision).contiguous()
        self.weight: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight, _ROWS)
        self.bias = None if linear.bias is None else linear.bias.detach().to(precision)
        self.in_features, self.out_features = linear.in_features, linear.out_features

    def forward(self, inputs: Tensor) -> Tensor:
        """(..., in) to (..., out), in the weight's dtype."""
        inputs = inputs.to(self.weight.dtype)
        result: Tensor = torch.ops.mkldnn._linear_pointwise(inputs, self.weight, self.bias, "none", [], "")
        return result


@cache
def _packing_pays(precision: torch.dtype) -> bool:
    """Always in bfloat16, which saves the casts; in float32 where oneDNN is faster than torch's own product."""
    available: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    if not available or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return False
    if precision != torch.float32:
        return precision == torch.bfloat16
    linear = nn.Linear(512, 1024).requires_grad_(False)
    packed, inputs = PackedLinear(linear, precision), torch.randn(_ROWS, 512)
    return _seconds(lambda: packed(inputs)) < 0.8 * _seconds(lambda: linear(inputs))


# -- threads -----------------------------------------------------------------------------------------------------------


def worker_pool() -> ThreadPoolExecutor | None:
    """A pool of this process with a worker for each of torch's threads, or None if torch has but one.

    Workers that embed a chunk each, on one thread, need not wait for each other after every operation. On a machine
    with other work that makes up to twice the speed.
    """
    threads = torch.get_num_threads()
    return _pool(min(threads, _MOST_WORKERS)) if threads > 1 else None


@cache
def _pool(workers: int) -> ThreadPoolExecutor:
    threads = torch.get_num_threads()
    pool = ThreadPoolExecutor(
        workers, "codiemb-worker", initializer=partial(torch.set_num_threads, max(1, threads // workers))
    )
    everyone = threading.Barrier(workers)
    list(pool.map(lambda _: everyone.wait(), range(workers)))  # so that all threads are started here
    torch.set_num_threads(threads)  # each worker has set its own number, but also that of threads to come
    return pool


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.cache_clear)  # a forked process has no threads but one


# -- attention ---------------------------------------------------------------------------------------------------------


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Attention as transformers calls it; torch's where this one does not apply.

    exp(q k') [v 1] has the sum of the weights in its last column. No maximum is subtracted before the exponential:
    where it overflows, which the sums show, torch's attention computes all anew. Padding is zero rows of [v 1].

    Args: query (batch, heads, tokens, width), key and value (batch, key heads, tokens, width).
    Returns: (batch, tokens, heads, width).
    """

    def plain() -> tuple[Tensor, None]:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **options)

    batch, heads, length, width = query.shape
    causal = options.get("is_causal")
    causal = getattr(module, "is_causal", True) if causal is None else causal
    one_for_all = attention_mask is not None and attention_mask.dtype == torch.bool and attention_mask.stride(2) == 0
    if (
        not (one_for_all or (attention_mask is None and not causal))
        or any(options.get(name) is not None for name in ("position_bias", "s_aux", "softcap", "cache"))
        or length * key.shape[2] > _LONGEST
        or torch.is_grad_enabled()
    ):
        return plain()
    groups = heads // key.shape[1]
    keys, values = repeat_kv(key, groups).bfloat16(), repeat_kv(value, groups).bfloat16()
    values = torch.cat([values, values.new_ones(*values.shape[:3], 1)], dim=3)
    if attention_mask is not None:
        values.mul_(attention_mask[:, :, 0, :, None])
    output = _exponential_attention(
        query.bfloat16().flatten(0, 1), keys.flatten(0, 1), values.flatten(0, 1), scaling or width**-0.5
    ).view(batch, heads, length, -1)
    sums = output[..., -1:]
    least, most = sums.aminmax()
    if not (least > 1e-36 and most < 1e36):
        return plain()
    result = output.new_empty(batch, length, heads, output.shape[3] - 1)
    torch.div(output[..., :-1], sums, out=result.transpose(1, 2))
    return result, None


def _exponential_attention(query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
    """exp(q k' scaling) v of each of the first dimension, unscaled."""
    keys = key.transpose(1, 2)
    step = max(1, _BLOCK // (query.shape[1] * key.shape[1]))
    block = query.new_empty(min(step, len(query)), query.shape[1], key.shape[1])
    output = query.new_empty(*query.shape[:2], value.shape[2])
    for start in range(0, len(query), step):
        part = slice(start, start + step)
        scores = block[: len(query[part])]
        torch.baddbmm(scores, query[part], keys[part], beta=0, alpha=scaling, out=scores)
        torch.bmm(scores.exp_(), value[part], out=output[part])
    return output


def _mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    mask_function: Callable[..., Any] | None = None,
    attention_mask: Tensor | None = None,
    **options: Any,
) -> Tensor | None:
    """A mask that hides padding from all queries alike is expanded over them, not copied: `_attention` sees it."""
    whole = attention_mask is not None and attention_mask.shape == (batch_size, kv_length)
    if whole and mask_function is bidirectional_mask_function and not options.get("local_size"):
        assert attention_mask is not None
        mask = attention_mask.bool()
        return None if mask.all() else mask[:, None, None, :].expand(-1, -1, q_length, -1)
    return sdpa_mask(
        batch_size=batch_size,
        q_length=q_length,
        kv_length=kv_length,
        mask_function=mask_function,
        attention_mask=attention_mask,
        **options,
    )


AttentionInterface.register(ATTENTION, _attention)
AttentionMaskInterface.register(ATTENTION, _mask)


@cache
def _own_attention_pays() -> bool:
    """Whether it beats torch's on this processor, on texts of usual size."""
    shape = (8, 12, 192, 32)
    query, key, value = (torch.randn(shape).bfloat16() for _ in range(3))
    module = nn.Module()
    mask = torch.ones(8, 192, dtype=torch.bool)
    mask[:, -4:] = False
    hidden = mask[:, None, None, :].expand(-1, -1, 192, -1)
    options = {"is_causal": False}
    own = _seconds(lambda: _attention(module, query, key, value, hidden, **options))
    theirs = _seconds(lambda: sdpa_attention_forward(module, query, key, value, hidden, **options))
    logger.info("Attention of %.1f ms here against %.1f ms in torch.", 1000 * own, 1000 * theirs)
    return own < 0.9 * theirs


def _seconds(call: Callable[[], object]) -> float:
    """Processor time of one call on a worker's thread: other work on the machine does not count."""

    @torch.inference_mode()
    def measure() -> float:
        call()
        started = time.thread_time()
        for _ in range(3):
            call()
        return (time.thread_time() - started) / 3

    pool = worker_pool()
    return measure() if pool is None else pool.submit(measure).result()
