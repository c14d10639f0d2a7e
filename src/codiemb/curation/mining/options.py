"""What a miner may be told, checked before any work is done."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator
from typing_extensions import Self

from codiemb.training.sections import Section

Sampling = Literal["top", "random", "weighted"]
Merging = Literal["rrf", "round-robin"]
Existing = Literal["keep", "replace"]
Words = Literal["characters", "jieba"]


class MiningOptions(Section):
    """How negatives are chosen among the documents that miners find.

    A candidate's score is the judge's: of the first model, or of the cross-encoder where there is one. A row with
    several positives is measured by the lowest of their scores.

    Attributes:
        negatives: to find for each row; fewer where fewer pass.
        skip, depth: a miner's first `skip` ranks are left out, and those after `depth`; known positives have no rank.
        share: the most that a candidate may have of the positive's score (TopK-PercPos of NV-Retriever,
            arXiv:2407.15831), both counted from `chance`; None for no such filter.
        chance: `measured` counts from the mean score of random pairs, so that one share suits a model whose cosines lie
            between 0.7 and 1 as well as one where random pairs have 0; `zero` is the paper's plain ratio.
        margin: by which a candidate has to be below the positive's score (TopK-MarginPos); None for no such filter.
        min_score, max_score: bounds whatever the positive's score is.
        near_duplicate: a candidate with this Jaccard similarity (0..1) to a positive or a negative of the row is left
            out, and so is one that contains so much of a positive, or is so much part of one.
        sampling: `top` takes candidates in their merged order, `random` any, `weighted` draws by softmax of the
            judge's score over `temperature`.
        relabel_above: a candidate with at least this score becomes a positive; needs a cross-encoder.
        existing: negatives of a row stay before those that are found, or go.
        answer_field: key of a row's `meta_data` with answers; a candidate that contains one is left out.
    """

    negatives: PositiveInt = 7
    skip: NonNegativeInt = 0
    depth: PositiveInt = 100
    share: float | None = Field(0.95, gt=0, le=1)
    chance: Literal["measured", "zero"] = "measured"
    margin: float | None = Field(None, ge=0)
    min_score: float | None = None
    max_score: float | None = None
    near_duplicate: float = Field(0.8, gt=0, le=1)
    sampling: Sampling = "top"
    temperature: PositiveFloat = 0.02
    merging: Merging = "rrf"
    relabel_above: float | None = None
    existing: Existing = "keep"
    answer_field: str = "answers"
    seed: NonNegativeInt = 0

    @model_validator(mode="after")
    def _negatives_fit(self) -> Self:
        room = self.depth - self.skip
        if self.negatives > room:
            raise ValueError(
                f"negatives={self.negatives}, but the ranks {self.skip + 1} to {self.depth} hold {max(room, 0)}; "
                "raise depth or lower skip"
            )
        low, high = self.min_score, self.max_score
        if low is not None and high is not None and low > high:
            raise ValueError(f"min_score={low:g} is above max_score={high:g}, so that nothing passes")
        return self
