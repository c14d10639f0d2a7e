"""Published scores that a leaderboard shows beside one's own: reference data, each table with its source and date."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

TYPES = ("Classification", "Clustering", "PairClassification", "Reranking", "Retrieval", "STS")


class PublishedRow(NamedTuple):
    """One model, scores in 0..100 as printed; `types` follow `TYPES`. An empty `parameters` was not published."""

    model: str
    parameters: str
    mean_task: float
    mean_type: float
    types: tuple[float, float, float, float, float, float]


@dataclass(frozen=True)
class PublishedTable:
    """What one page says about one benchmark.

    Attributes:
        source: where the numbers are printed.
        date: when they were recorded there, by the page itself.
    """

    source: str
    date: str
    rows: tuple[PublishedRow, ...]


# Each row's two means follow from its six type means (mteb: 6, 4, 2, 4, 8 and 7 tasks), which a test checks.
PUBLISHED: Mapping[str, PublishedTable] = {
    "MTEB(cmn, v1)": PublishedTable(
        source="README of github.com/TencentCloudADP/youtu-embedding (commit 3f5f1d7), from the MTEB leaderboard",
        date="2025-09-28",
        rows=(
            PublishedRow("bge-multilingual-gemma2", "9B", 67.64, 68.52, (75.31, 59.30, 79.30, 68.28, 73.73, 55.19)),
            PublishedRow("ritrieve_zh_v1", "326M", 72.71, 73.85, (76.88, 66.50, 85.98, 72.86, 76.97, 63.92)),
            PublishedRow("Qwen3-Embedding-4B", "4B", 72.27, 73.51, (75.46, 77.89, 83.34, 66.05, 77.03, 61.26)),
            PublishedRow("Qwen3-Embedding-8B", "8B", 73.84, 75.00, (76.97, 80.08, 84.23, 66.99, 78.21, 63.53)),
            PublishedRow("Conan-embedding-v2", "1.4B", 74.24, 75.99, (76.47, 68.84, 92.44, 74.41, 78.31, 65.48)),
            PublishedRow("Seed1.6-embedding", "", 75.63, 76.68, (77.98, 73.11, 88.71, 71.65, 79.69, 68.94)),
            PublishedRow("QZhou-Embedding", "7B", 76.99, 78.58, (79.99, 70.91, 95.07, 74.85, 78.80, 71.89)),
            PublishedRow("Youtu-Embedding-V1", "2B", 77.58, 78.86, (78.65, 84.27, 86.12, 75.10, 80.21, 68.82)),
        ),
    )
}
