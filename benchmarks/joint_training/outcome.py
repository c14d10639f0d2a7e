"""What a trial leaves: its scores, and what each item contributed. Read without the libraries that made them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

GOLD = "/gold"  # ends the name of the scores that people gave


@dataclass
class Outcome:
    """Of one model.

    Attributes:
        scores: by part and task, Spearman's correlation or mean nDCG@10, times 100.
        items: of the test part, by task, what each item contributed: the cosine of a pair (`task/gold` has the score
            that people gave it), the nDCG@10 of a query.
    """

    scores: dict[str, dict[str, float]]
    items: dict[str, np.ndarray]

    def save(self, folder: Path) -> None:
        """Write scores.json and items.npz."""
        np.savez_compressed(
            folder / "items.npz", **{name: values.astype(np.float32) for name, values in self.items.items()}
        )
        (folder / "scores.json").write_text(json.dumps(self.scores, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> Outcome:
        """What `save` wrote."""
        scores = json.loads((folder / "scores.json").read_text(encoding="utf-8"))
        return cls(scores, dict(np.load(folder / "items.npz")))
