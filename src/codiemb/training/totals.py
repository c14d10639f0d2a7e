"""What a run has done so far; checkpoints keep it, so a resumed run goes on counting."""

from __future__ import annotations

import time
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState


class Totals(TrainerCallback, ExportableState):
    """Counts of a run, over all its ranks and resumptions.

    Attributes:
        tokens: read by the network, without padding.
        truncated_texts: cut to the maximum length, counted anew in each batch.
    """

    def __init__(self) -> None:
        self.tokens = 0
        self.truncated_texts = 0
        self._seconds = 0.0  # before the clock was started
        self._started: float | None = None

    @property
    def seconds(self) -> float:
        """Wall time of training, mid-training evaluations and checkpoints included."""
        return self._seconds + (time.monotonic() - self._started if self._started is not None else 0.0)

    def state(self) -> dict[str, Any]:
        """For the checkpoint."""
        counts = {"tokens": self.tokens, "truncated_texts": self.truncated_texts, "_seconds": self.seconds}
        return {"args": {}, "attributes": counts}

    def take_over(self, state: TrainerState) -> None:
        """Go on from the counts in a trainer's state."""
        self.__dict__.update(state.stateful_callbacks[type(self).__name__]["attributes"])

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Start the clock."""
        self.take_over(state)
        self._started = time.monotonic()

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Stop the clock."""
        self._seconds, self._started = self.seconds, None
