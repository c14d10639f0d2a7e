"""Contrastive objectives: InfoNCE with several positives and hard negatives, and a listwise softmax."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from . import distributed
from ._inputs import at_least_float32, check_temperature

UNKNOWN = -1  # the content id that equals no other
_SIMILARITIES = 1 << 24  # of queries and candidates that are held at once: 64 MiB of each float32 intermediate


@at_least_float32
def info_nce(
    query: Tensor,
    positives: Tensor,
    negatives: Tensor | None = None,
    *,
    temperature: float = 0.02,
    positive_mask: Tensor | None = None,
    negative_mask: Tensor | None = None,
    query_ids: Tensor | None = None,
    positive_ids: Tensor | None = None,
    negative_ids: Tensor | None = None,
    known_positive_ids: Tensor | None = None,
    false_negative_margin: float | None = None,
    in_batch: bool = True,
    query_negatives: Tensor | None = None,
    gather: bool = False,
) -> Tensor:
    """InfoNCE with several positives and hard negatives (CoDiEmb, arXiv:2508.11442; CPC, arXiv:1807.03748).

    For each query and each of its positives p: cross-entropy of cosine / temperature over p, the first valid
    positive of every other query, and the valid hard negatives of all queries; the mean over p, then over
    queries. A query's other positives are never its negatives. A query without a valid positive does not
    count (its hard negatives still serve the others); the loss is 0 where no query counts.

    A candidate is left out as a false negative of a query if its id is that of the query's text, of one of
    its positives or of its known positives; if it is the positive of a row with the same query text; or if
    its cosine exceeds that of the positive at hand by more than `false_negative_margin`.

    The similarities of a large batch never exist as a whole: they are computed for a block of queries at a time,
    and again in the backward pass, so that memory grows with the batch and not with its square.

    Args:
        query: unit norm, (batch, dim).
        positives: unit norm, (batch, positives, dim), at least one each. Padding may hold any values.
        negatives: unit norm, (batch, negatives, dim). Padding may hold any values.
        temperature: > 0, divides the cosine.
        positive_mask: bool, True where valid, (batch, positives); None: all are.
        negative_mask: bool, True where valid, (batch, negatives); None: all are.
        query_ids: int64, equal exactly where texts are equal, -1 where unknown, (batch,).
        positive_ids: likewise, (batch, positives).
        negative_ids: likewise, (batch, negatives).
        known_positive_ids: likewise, (batch, known), padded with -1: also the positives that were not
            sampled.
        false_negative_margin: in cosine units; None: no candidate is too close.
        in_batch: False takes a query's negatives from its own hard negatives only.
        query_negatives: the queries' texts embedded as documents, unit norm, (batch, dim): candidates of the other
            queries, also of those with the same positive, which they do not answer either (GTE, arXiv:2308.03281, has
            a like term, of queries embedded as queries). A model then learns to rank a document above a text that
            resembles the query. Needs `in_batch`; None: no such candidates.
        gather: score this rank's queries against the candidates of all ranks. The mean of the ranks' losses,
            and its gradient, are then those of one process on the union of the batches. Needs equal shapes.

    Returns: scalar in nats, at least float32.

    Raises:
        ValueError: if shapes do not fit (with `gather`, across ranks), the temperature is not above 0, or
            `query_negatives` are given without `in_batch`.
    """
    check_temperature(temperature)
    if query_negatives is not None and not in_batch:
        raise ValueError("query_negatives with in_batch=False: other queries are of the batch. Drop one of them.")
    own = _texts("positive", query, positives, positive_mask, positive_ids)
    hard = _texts("negative", query, negatives, negative_mask, negative_ids)
    text_ids = torch.full_like(own.ids[:, 0], UNKNOWN) if query_ids is None else query_ids
    known_ids = own.ids[:, :0] if known_positive_ids is None else known_positive_ids
    _check_shape("query_ids", text_ids, (len(query),))
    _check_shape("known_positive_ids", known_ids, (len(query), known_ids.shape[-1]))

    def from_all_ranks(tensor: Tensor) -> Tensor:
        return distributed.gather(tensor) if gather else tensor

    row = torch.arange(len(query), device=query.device)
    all_text_ids = from_all_ranks(text_ids)
    own_ids = torch.cat([text_ids[:, None], own.ids, known_ids], 1)
    if in_batch:
        first = own.valid.int().argmax(1)  # of equal maxima, argmax returns the first
        in_batch_positive = _Texts(*(part[row, first, None] for part in own))
        slots = [in_batch_positive, hard]
        if query_negatives is not None:
            _check_shape("query_negatives", query_negatives, query.shape)
            slots.append(_texts("query_negatives", query, query_negatives[:, None], None, text_ids[:, None]))
        candidates = _Texts(*(from_all_ranks(torch.cat(parts, 1)) for parts in zip(*slots, strict=True)))
    own_row = row + (distributed.rank() * len(query) if gather else 0)
    all_rows = torch.arange(len(all_text_ids), device=query.device)

    def losses_of(rows: slice) -> Tensor:
        """Of some queries and their positives, (rows, positives)."""
        if in_batch:
            cosine = query[rows] @ candidates.embeddings.flatten(0, 1).T  # (rows, candidates)
            # Slot 0 of a row is its positive and the last one its query as a document, left out for the row's own query
            # and for others of the same text.
            same_query = (own_row[rows, None] == all_rows) | _equal(text_ids[rows, None], all_text_ids)
            left_out = ~candidates.valid.repeat(len(cosine), 1, 1)  # (rows, all rows, slots)
            left_out[:, :, 0] |= same_query
            if query_negatives is not None:
                left_out[:, :, -1] |= same_query
            left_out = left_out.flatten(1)
            candidate_ids = candidates.ids.flatten()
        else:
            cosine = torch.einsum("bd,bnd->bn", query[rows], hard.embeddings[rows])
            left_out, candidate_ids = ~hard.valid[rows], hard.ids[rows]
        for ids in own_ids[rows].unbind(1):  # one at a time, to need memory for (rows, candidates) only
            left_out |= _equal(candidate_ids, ids[:, None])

        nothing = torch.finfo(cosine.dtype).min
        logits = (cosine / temperature).masked_fill(left_out, nothing)
        positive_cosine = torch.einsum("bd,bpd->bp", query[rows], own.embeddings[rows])
        if false_negative_margin is None:
            negative = logits.logsumexp(1, keepdim=True)
        else:
            limits = (positive_cosine + false_negative_margin).unbind(1)
            too_close = (cosine > limit[:, None] for limit in limits)
            negative = torch.stack([logits.masked_fill(close, nothing).logsumexp(1) for close in too_close], 1)
        # Cross-entropy of one logit against others, without the cancellation of a log-softmax when it is near 0.
        return -F.logsigmoid(positive_cosine / temperature - negative)

    width = candidates.ids.numel() if in_batch else hard.ids.shape[1]
    block = max(1, _SIMILARITIES // max(1, width))
    if len(query) <= block:
        losses = losses_of(slice(None))
    else:  # a block of queries is computed at a time, and again in the backward pass
        blocks = (slice(start, start + block) for start in range(0, len(query), block))
        losses = torch.cat(
            [checkpoint(losses_of, rows, use_reentrant=False, preserve_rng_state=False) for rows in blocks]
        )
    total = ((losses * own.valid).sum(1) / own.valid.sum(1).clamp(min=1)).sum()
    # The mean over the queries that count on any rank; as the ranks' losses are averaged, times their number.
    ranks = distributed.world_size() if gather else 1
    return total * ranks / from_all_ranks(own.valid.any(1)).sum().clamp(min=1)


@at_least_float32
def listwise_softmax(
    query: Tensor,
    positives: Tensor,
    negatives: Tensor | None = None,
    *,
    temperature: float = 0.02,
    positive_mask: Tensor | None = None,
    negative_mask: Tensor | None = None,
    positive_scores: Tensor | None = None,
) -> Tensor:
    """Softmax cross-entropy within each row's list, for reranking (ListNet, doi:10.1145/1273496.1273513).

    The target over a row's candidates is proportional to the scores of its positives (all equal without
    scores) and 0 on its negatives; nothing is compared across rows. The mean over the rows that have a
    positive of score above 0; 0 where there is none.

    Args:
        query: unit norm, (batch, dim).
        positives: unit norm, (batch, positives, dim), at least one each. Padding may hold any values.
        negatives: unit norm, (batch, negatives, dim). Padding may hold any values.
        temperature: > 0, divides the cosine.
        positive_mask: bool, True where valid, (batch, positives); None: all are.
        negative_mask: bool, True where valid, (batch, negatives); None: all are.
        positive_scores: relevance, >= 0, (batch, positives).

    Returns: scalar in nats, at least float32. Its minimum is the entropy of the targets.

    Raises:
        ValueError: if shapes do not fit or the temperature is not above 0.
    """
    check_temperature(temperature)
    own = _texts("positive", query, positives, positive_mask, None)
    hard = _texts("negative", query, negatives, negative_mask, None)
    scores = torch.ones_like(own.valid, dtype=query.dtype) if positive_scores is None else positive_scores
    _check_shape("positive_scores", scores, own.valid.shape)

    candidates, valid, _ = (torch.cat(parts, 1) for parts in zip(own, hard, strict=True))
    logits = torch.einsum("bd,bnd->bn", query, candidates) / temperature
    log_probability = logits.masked_fill(~valid, torch.finfo(logits.dtype).min).log_softmax(1)
    relevance = torch.where(own.valid, scores.to(logits.dtype), 0.0)
    sum_of_relevance = relevance.sum(1)
    counted = sum_of_relevance > 0
    losses = -(relevance * log_probability[:, : positives.shape[1]]).sum(1)
    return (losses / torch.where(counted, sum_of_relevance, 1.0)).sum() / counted.sum().clamp(min=1)


class _Texts(NamedTuple):
    """Texts in rows: embeddings (rows, texts, dim), valid and ids (rows, texts)."""

    embeddings: Tensor
    valid: Tensor
    ids: Tensor


def _texts(role: str, query: Tensor, embeddings: Tensor | None, mask: Tensor | None, ids: Tensor | None) -> _Texts:
    """Check the shapes against the query's, and clear the padding: NaN times a zero gradient would be NaN."""
    if embeddings is None:
        embeddings = query[:, None, :][:, :0]
    fits = query.ndim == 2 and embeddings.ndim == 3 and embeddings.shape[::2] == query.shape
    if not fits or (role == "positive" and not embeddings.shape[1]):
        raise ValueError(
            f"got query {tuple(query.shape)} and {role}s {tuple(embeddings.shape)}, expected (batch, dim) "
            f"and (batch, {role}s, dim) with at least one positive. Pad ragged rows, and mask the padding."
        )
    shape = embeddings.shape[:2]
    if mask is None:
        mask = torch.ones(shape, dtype=torch.bool, device=query.device)
    if ids is None:
        ids = torch.full(shape, UNKNOWN, device=query.device)
    _check_shape(f"{role}_mask", mask, shape)
    _check_shape(f"{role}_ids", ids, shape)
    return _Texts(embeddings.masked_fill(~mask[:, :, None], 0), mask, ids.masked_fill(~mask, UNKNOWN))


def _check_shape(name: str, tensor: Tensor, expected: tuple[int, ...]) -> None:
    if tensor.shape != expected:
        raise ValueError(f"got {name} of shape {tuple(tensor.shape)}, expected {tuple(expected)}.")


def _equal(a: Tensor, b: Tensor) -> Tensor:
    return (a == b) & (b != UNKNOWN)
