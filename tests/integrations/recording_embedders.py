"""Embedders that record what they are asked for."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import numpy as np

PASSAGES = {
    "bread": "Feed the starter for a week, then mix flour, water and salt.",
    "面包": "先养一周酵种，再把面粉、水和盐揉成面团。",
    "washer": "Check the hose first.",
    "train": "The train to Shanghai leaves at nine.",
}
QUERY = "Why is my washing machine leaking?"
INSTRUCTION = "Given a question, find the passage that answers it"


class Recorder:
    """An embedder, not of this package, whose vectors are the texts' lengths and their side."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, list[str], str | None]] = []
        self.threads: list[threading.Thread] = []

    def encode_queries(self, queries: str | Sequence[str], *, instruction: str | None = None) -> np.ndarray:
        return self._encode("query", queries, instruction)

    def encode_passages(self, passages: str | Sequence[str], *, instruction: str | None = None) -> np.ndarray:
        return self._encode("document", passages, instruction)

    def compute_similarity(self, queries, passages, *, instruction: str | None = None) -> np.ndarray:
        return np.zeros((len(queries), len(passages)), dtype=np.float32)

    def _encode(self, side: str, texts: str | Sequence[str], instruction: str | None) -> np.ndarray:
        self.calls.append((side, list(texts), instruction))
        self.threads.append(threading.current_thread())
        return np.array([[len(text), side == "query"] for text in texts], dtype=np.float32).reshape(-1, 2)


class Waiting(Recorder):
    """Answers only once `released` is set, which its caller's thread must be free to do."""

    def __init__(self) -> None:
        super().__init__()
        self.released = threading.Event()

    def _encode(self, side: str, texts: str | Sequence[str], instruction: str | None) -> np.ndarray:
        assert self.released.wait(timeout=20), "the event loop was blocked"
        return super()._encode(side, texts, instruction)


class Crowd(Recorder):
    """Counts the threads that are in it at once; each stays until another comes or 0.1 s have passed."""

    def __init__(self) -> None:
        super().__init__()
        self.inside = self.most = 0
        self._changed = threading.Condition()

    def _encode(self, side: str, texts: str | Sequence[str], instruction: str | None) -> np.ndarray:
        with self._changed:
            self.inside += 1
            self.most = max(self.most, self.inside)
            self._changed.notify_all()
            self._changed.wait_for(lambda: self.most > 1, timeout=0.1)
            self.inside -= 1
        return super()._encode(side, texts, instruction)
