"""Rankings, and scores from the field's own code: trec_eval for rankings, SciPy for correlations."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

try:
    import pytrec_eval
    from scipy.stats import pearsonr, spearmanr
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"Evaluation needs the package {error.name!r}. Install it with: pip install 'codiemb[eval]'"
    ) from error

logger = logging.getLogger(__name__)

RANKING_DEPTH = 1000
"""Documents of a query that are ranked; what lies deeper counts as not found. trec_eval's own default."""

TIES = "of documents with equal scores the one with the greater id ranks first, as in trec_eval"

_QUERY_BLOCK = 256
_DOCUMENT_BLOCK = 16_384
_LOW = 0xFFFF_FFFF
_EXCLUDED = torch.iinfo(torch.int64).min

Ranking = list[str]


def unit(embeddings: np.ndarray) -> np.ndarray:
    """Rows divided by their norm; a zero row stays zero, so that its cosines are 0."""
    norms = np.linalg.norm(embeddings, axis=-1, keepdims=True)
    return np.asarray(embeddings / np.maximum(norms, np.finfo(np.float32).tiny))


def rank_documents(
    queries: np.ndarray,
    documents: np.ndarray,
    query_ids: Sequence[str],
    document_ids: Sequence[str],
    *,
    depth: int = RANKING_DEPTH,
    ignore_identical_ids: bool = False,
    query_block: int = _QUERY_BLOCK,
    document_block: int = _DOCUMENT_BLOCK,
) -> list[Ranking]:
    """The best documents of each query by dot product, exactly, in memory that follows the block sizes.

    A score and the document's place among the ids make one integer key, so the order is total: it depends neither on
    the blocks nor on the order of the corpus. Products are summed in float64 and rounded to float32, because float32
    sums change with the shape of the block, and equal documents would no longer tie.

    Args:
        queries: (queries, dim) float32, documents: (documents, dim) float32.
        depth: documents a query at most.
        ignore_identical_ids: leave out a document whose id is the query's.
    Returns: for each query, document ids from best to worst.
    """
    by_id = sorted(range(len(document_ids)), key=document_ids.__getitem__, reverse=True)
    low_bits = torch.empty(len(by_id), dtype=torch.int64)
    low_bits[by_id] = _LOW - torch.arange(len(by_id))
    index_of = {document_id: i for i, document_id in enumerate(document_ids)} if ignore_identical_ids else {}
    rankings: list[Ranking] = []
    for first in range(0, len(queries), query_block):
        block = torch.from_numpy(queries[first : first + query_block]).double()
        excluded = torch.tensor([index_of.get(id_, -1) for id_ in query_ids[first : first + query_block]])
        best = torch.empty((len(block), 0), dtype=torch.int64)
        for start in range(0, len(documents), document_block):
            stop = min(start + document_block, len(documents))
            scores = block @ torch.from_numpy(documents[start:stop]).double().T
            keys = _ordered(scores.float()) << 32 | low_bits[start:stop]
            rows = ((excluded >= start) & (excluded < stop)).nonzero().squeeze(1)
            keys[rows, excluded[rows] - start] = _EXCLUDED
            best = torch.cat([best, keys.topk(min(depth, stop - start)).values], dim=1)
            best = best.topk(min(depth, best.shape[1])).values
        for row in best:
            places = _LOW - (row[row != _EXCLUDED] & _LOW)
            rankings.append([document_ids[by_id[place]] for place in places.tolist()])
    return rankings


def _ordered(scores: Tensor) -> Tensor:
    """float32 as int64 with the same order: negative numbers have their bits below the sign reversed."""
    bits = (scores + 0.0).view(torch.int32)  # -0.0 + 0.0 is 0.0: the two zeros must tie
    return torch.where(bits < 0, bits ^ 0x7FFF_FFFF, bits).long()


def ranking_metrics(
    qrels: Mapping[str, Mapping[str, int]], query_ids: Sequence[str], rankings: Sequence[Ranking]
) -> dict[str, np.ndarray]:
    """Scores of each query by trec_eval: linear gain in nDCG, relevance of 1 or more is relevant elsewhere.

    Returns: `ndcg_at_10`, `map`, `mrr_at_10`, `recall_at_100`, each (queries,) float64 in 0..1.
    """
    deep = pytrec_eval.RelevanceEvaluator(qrels, {"ndcg_cut.10", "map", "recall.100"})
    top_10 = pytrec_eval.RelevanceEvaluator(qrels, {"recip_rank"})
    rows = []
    for query_id, ranking in zip(query_ids, rankings, strict=True):
        # trec_eval sorts again: ranks as scores keep our order of ties.
        run = {document_id: float(-rank) for rank, document_id in enumerate(ranking)}
        if not run:  # the only document was left out
            rows.append((0.0, 0.0, 0.0, 0.0))
            continue
        values = deep.evaluate({query_id: run})[query_id]
        first = top_10.evaluate({query_id: {document_id: run[document_id] for document_id in ranking[:10]}})[query_id]
        rows.append((values["ndcg_cut_10"], values["map"], first["recip_rank"], values["recall_100"]))
    names = ("ndcg_at_10", "map", "mrr_at_10", "recall_at_100")
    return dict(zip(names, np.array(rows, dtype=np.float64).T, strict=True))


def correlations(cosines: np.ndarray, scores: np.ndarray, name: str) -> dict[str, float]:
    """Spearman's and Pearson's correlation of the cosines (pairs,) with the gold scores (pairs,), which must differ.

    A model that gives every pair the same cosine knows nothing about their order: its correlations are 0.
    """
    if np.ptp(cosines) == 0:
        logger.warning("%s: the model gives all pairs the cosine %g; its correlations count as 0.", name, cosines[0])
        return {"cosine_spearman": 0.0, "cosine_pearson": 0.0}
    return {
        "cosine_spearman": float(spearmanr(cosines, scores).statistic),
        "cosine_pearson": float(pearsonr(cosines, scores).statistic),
    }
