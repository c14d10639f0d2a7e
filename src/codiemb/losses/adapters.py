"""The objectives as losses for `SentenceTransformerTrainer`."""

from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

import torch
import torch.nn.functional as F
from sentence_transformers import SentenceTransformer
from torch import Tensor, nn

from ._inputs import raised
from .contrastive import UNKNOWN, info_nce
from .sts import StsWeights, sts_objective, sts_weights

CITATION = """
@misc{zhang2025codiemb,
    title={CoDiEmb: A Collaborative yet Distinct Framework for Unified Representation Learning in Information
        Retrieval and Semantic Textual Similarity},
    author={Bowen Zhang and Zixin Song and Chunquan Chen and Qian-Wen Zhang and Di Yin and Xing Sun},
    year={2025},
    eprint={2508.11442},
    archivePrefix={arXiv},
    primaryClass={cs.CL},
    url={https://arxiv.org/abs/2508.11442},
}
"""


class CoDiEmbIRLoss(nn.Module):
    """InfoNCE with hard negatives over columns (anchor, positive, negative_1, ..., negative_n), n >= 0.

    Texts that reach the model as equal tokens are never each other's negatives, whatever the batch sampler.

    Args:
        model: the model to train.
        temperature: > 0, divides the cosine; the inverse of sentence-transformers' `scale`.
        false_negative_margin: leave out candidates whose cosine exceeds the positive's by more than this.
        gather_across_devices: use the candidates of all devices; all need equal batch sizes and columns.
    """

    def __init__(
        self,
        model: SentenceTransformer,
        temperature: float = 0.02,
        *,
        false_negative_margin: float | None = None,
        gather_across_devices: bool = False,
    ) -> None:
        """Keep the model and the options."""
        super().__init__()
        self.model = model
        self.temperature = temperature
        self.false_negative_margin = false_negative_margin
        self.gather_across_devices = gather_across_devices

    def forward(self, sentence_features: Iterable[dict[str, Tensor]], labels: Tensor | None = None) -> Tensor:
        """Embed each column and return the loss, a scalar; labels are not read."""
        columns = list(sentence_features)
        ids = token_ids_hash(columns)
        return self.compute_loss_from_embeddings(_embed(self.model, columns), ids=ids)

    def compute_loss_from_embeddings(
        self, embeddings: list[Tensor], labels: Tensor | None = None, *, ids: Tensor | None = None
    ) -> Tensor:
        """Return the loss of columns of embeddings, of any norm, each (batch, dim).

        Args:
            embeddings: anchors, positives, then any number of columns of negatives.
            labels: not read.
            ids: int64, equal exactly where texts are equal, (batch, columns).

        Raises:
            ValueError: with fewer than two columns.
        """
        if len(embeddings) < 2:
            raise ValueError(
                f"got {len(embeddings)} column(s), expected (anchor, positive, negative_1, ..., negative_n). "
                "Add a column of positives to the data set."
            )
        texts = F.normalize(raised(torch.stack(embeddings, 1)), dim=-1)
        ids = torch.full(texts.shape[:2], UNKNOWN, device=texts.device) if ids is None else ids
        return info_nce(
            texts[:, 0],
            texts[:, 1:2],
            texts[:, 2:],
            query_ids=ids[:, 0],
            positive_ids=ids[:, 1:2],
            negative_ids=ids[:, 2:],
            temperature=self.temperature,
            false_negative_margin=self.false_negative_margin,
            gather=self.gather_across_devices,
        )

    def get_config_dict(self) -> dict[str, Any]:
        """Return the options, for the model card."""
        return {
            "temperature": self.temperature,
            "false_negative_margin": self.false_negative_margin,
            "gather_across_devices": self.gather_across_devices,
        }

    @property
    def citation(self) -> str:
        """BibTeX, for the model card."""
        return CITATION


class CoDiEmbSTSLoss(nn.Module):
    """Correlation and ranking losses over columns (sentence1, sentence2) and a score, on the pairs' cosines.

    Args:
        model: the model to train.
        weights: of the components, or the name of a preset. PRO reads the size of the gaps between scores:
            rescale them to [0, 1].

    Raises:
        ValueError: for an unknown preset, or weights with `mid_nce`, which reads the middle layer.
    """

    def __init__(self, model: SentenceTransformer, weights: StsWeights | str = "default") -> None:
        """Keep the model and the weights."""
        super().__init__()
        self.model = model
        self.weights = sts_weights(weights)
        if self.weights.mid_nce:
            raise ValueError(
                f"got weights with mid_nce={self.weights.mid_nce}, expected 0: this loss does not see the "
                "middle layer. Pass dataclasses.replace(weights, mid_nce=0.0)."
            )

    def forward(self, sentence_features: Iterable[dict[str, Tensor]], labels: Tensor) -> Tensor:
        """Embed both columns and return the loss, a scalar; labels are the gold scores, (batch,)."""
        return self.compute_loss_from_embeddings(_embed(self.model, list(sentence_features)), labels)

    def compute_loss_from_embeddings(self, embeddings: list[Tensor], labels: Tensor) -> Tensor:
        """Return the loss of two columns of embeddings, of any norm, each (batch, dim), and scores, (batch,).

        Raises:
            ValueError: if there are not two columns and one score a row.
        """
        if len(embeddings) != 2:
            raise ValueError(f"got {len(embeddings)} column(s), expected (sentence1, sentence2) and a score.")
        first, second = map(raised, embeddings)
        return sts_objective(F.cosine_similarity(first, second), labels.view(-1), self.weights)[0]

    def get_config_dict(self) -> dict[str, Any]:
        """Return the weights, for the model card."""
        return asdict(self.weights)

    @property
    def citation(self) -> str:
        """BibTeX, for the model card."""
        return CITATION


def token_ids_hash(columns: list[dict[str, Tensor]]) -> Tensor | None:
    """Return int64 ids, (batch, columns), equal where the tokens are; None if the inputs have no tokens.

    A sum of tokens times pseudo-random 64-bit factors of their positions: it runs on the device, and does not
    depend on the padding, which differs between columns.
    """
    if not all({"input_ids", "attention_mask"} <= column.keys() for column in columns):
        return None
    hashes = []
    for column in columns:
        mask = column["attention_mask"].long()
        position = mask.cumsum(1)  # counts from the first token, also where the padding is on the left
        hashes.append(((column["input_ids"] + 1) * mask * _mix(position)).sum(1))
    return torch.stack(hashes, 1)


def _mix(values: Tensor) -> Tensor:
    """Spread small integers over 64 bits as SplitMix64 does at its end; int64 products wrap around."""
    for shift, factor in ((30, -0x40A7B892E31B1A47), (27, -0x6B2FB644ECCEEE15)):
        values = (values ^ (values >> shift)) * factor
    return values ^ (values >> 31)


def _embed(model: nn.Module, columns: list[dict[str, Tensor]]) -> list[Tensor]:
    return [model(column)["sentence_embedding"] for column in columns]
