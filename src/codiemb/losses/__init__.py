"""Training objectives: pure functions of embeddings, masks and scores, without model, tokenizer or file.

All compute in float32 at least, whatever the model's dtype, and stay finite, with finite gradients, for a
single row, constant scores, and rows or batches with nothing to compare (0, with a gradient path). None
synchronises the device, but for `gather`, which compares the ranks' shapes.
`codiemb.losses.adapters` has them as losses for the sentence-transformers trainer.
"""

from .angle import angle_loss
from .contrastive import info_nce, listwise_softmax
from .correlation import pearson_loss
from .distributed import gather
from .matryoshka import leading, matryoshka
from .ranking import cosent_loss, pro_loss, rank_kl_loss
from .sts import PRESETS, StsWeights, sts_objective, sts_weights

__all__ = [
    "PRESETS",
    "StsWeights",
    "angle_loss",
    "cosent_loss",
    "gather",
    "info_nce",
    "leading",
    "listwise_softmax",
    "matryoshka",
    "pearson_loss",
    "pro_loss",
    "rank_kl_loss",
    "sts_objective",
    "sts_weights",
]
