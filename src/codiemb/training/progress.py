"""What a person sees while a model trains: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from codiemb.training.totals import Totals


def _hundredfold(score: float) -> str:
    return f"{100 * score:.2f}"


class TrainingProgress(TrainerCallback):
    """Steps, each task's loss, learning rate, tokens/s and the time left.

    `totals`: of the trainer that calls this; set it before training.

    Args:
        show: a held-out score as text.
    """

    def __init__(self, console: Console, show: Callable[[float], str] = _hundredfold) -> None:
        self.console = console
        self._show = show
        self.totals = Totals()
        self._bar: Progress | None = None
        self._since = (0.0, 0)  # (time, tokens) at the last log

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Draw the bar."""
        self._since = (time.monotonic(), self.totals.tokens)
        if not state.is_world_process_zero or not self.console.is_terminal:
            return
        self._bar = Progress(
            TextColumn("train"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.description}"),
            console=self.console,
        )
        self._bar.add_task("", total=state.max_steps, completed=state.global_step)
        self._bar.start()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Move the bar."""
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=state.global_step)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        """Show the losses."""
        if not state.is_world_process_zero or not logs or "loss" not in logs:
            return
        now, tokens = time.monotonic(), self.totals.tokens
        rate = (tokens - self._since[1]) / max(now - self._since[0], 1e-9)
        self._since = (now, tokens)
        losses = [f"{key.removesuffix('/loss')} {value:.3f}" for key, value in logs.items() if key.endswith("/loss")]
        text = f"loss {', '.join(losses)}  lr {logs['learning_rate']:.2e}  {rate:,.0f} tokens/s"
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], description=text)
        else:
            self.console.print(
                f"step {state.global_step}/{state.max_steps}  {text}", markup=False, highlight=False, soft_wrap=True
            )

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        """Show the held-out scores."""
        if state.is_world_process_zero and metrics:
            scores = "  ".join(
                f"{key.removeprefix('eval_')} {self._show(value)}"
                for key, value in metrics.items()
                if key.startswith("eval_")
            )
            self.console.print(
                f"step {state.global_step}  held out: {scores}", markup=False, highlight=False, soft_wrap=True
            )
        self._since = (time.monotonic(), self.totals.tokens)

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Leave the terminal as it was."""
        self.close()

    def close(self) -> None:
        """Remove the bar, also where training ended early."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
