"""What every trainer here shares: checkpoints that are whole or not there, counts over all ranks, finite losses."""

from __future__ import annotations

import json
import math
import shutil
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors import SafetensorError
from torch import nn
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import PrinterCallback, ProgressCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from codiemb.training.totals import Totals

DEFAULT_CHECKPOINTS = 10
"""A run has, where the recipe says nothing."""

STATE_FILE = "trainer_state.json"
"""Written last into a checkpoint, so its presence says that the checkpoint is complete."""


class DivergedError(ValueError):
    """A loss that is no number: nothing that follows can be of use."""


def training_arguments(recipe: Any, state: Path, *, evaluate_every: int | None, **own: Any) -> TrainingArguments:
    """transformers' arguments of any training here.

    Args:
        recipe: its keys that all trainings have.
        state: receives the checkpoints.
        evaluate_every: optimizer steps; None for no evaluation on the way.
        own: further arguments of one kind of training.
    """
    optimizer = recipe.optimizer
    arguments = TrainingArguments(
        output_dir=str(state),
        num_train_epochs=recipe.epochs,
        max_steps=recipe.max_steps or -1,
        gradient_accumulation_steps=recipe.accumulation,
        learning_rate=optimizer.learning_rate,
        lr_scheduler_type="constant_with_warmup" if optimizer.schedule == "constant" else optimizer.schedule,
        warmup_steps=optimizer.warmup,
        weight_decay=optimizer.weight_decay,
        max_grad_norm=optimizer.max_grad_norm,
        optim="adamw_torch_fused",
        logging_steps=recipe.log_every,
        eval_strategy="steps" if evaluate_every else "no",
        eval_steps=evaluate_every,
        save_strategy="steps",
        save_steps=evaluate_every or 1,  # until the number of steps is known
        save_total_limit=recipe.checkpoints.keep,
        report_to=[],  # the callback for TensorBoard is given our directory
        logging_nan_inf_filter=False,  # it would hide them
        log_level_replica="error",
        seed=recipe.seed,
        use_cpu=not torch.accelerator.is_available(),  # unless told, ranks on CPUs would not find each other
        disable_tqdm=True,
        remove_unused_columns=False,
        ddp_find_unused_parameters=False,
        ddp_broadcast_buffers=False,  # they are constants
        # Autocast is our own; losses stay in float32.
        bf16=False,
        fp16=False,
        **own,
    )
    arguments._n_gpu = min(arguments.n_gpu, 1)  # else the library spreads one process over all devices it sees
    return arguments


class _LastStepIsLogged(TrainerCallback):
    """Whatever the distance between logs."""

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if state.global_step >= state.max_steps:
            control.should_log = True


class ResumableTrainer(Trainer):
    """transformers' `Trainer` whose checkpoints are model directories of the subclass's own making.

    Attributes:
        totals: tokens and the like of the whole run, brought up to date at each log and checkpoint.
        token_tables: kinds of modules that hold a vector for each token.
    """

    token_tables: tuple[type[nn.Module], ...] = (nn.Embedding,)

    def __init__(self, *, callbacks: Sequence[TrainerCallback] = (), **arguments: Any) -> None:
        self._counts = [0, 0]  # tokens and truncated texts of this rank that are not in `totals` yet
        self.totals = Totals()
        super().__init__(**arguments, callbacks=[_LastStepIsLogged(), self.totals, *callbacks])
        self.remove_callback(PrinterCallback)
        self.remove_callback(ProgressCallback)

    @abstractmethod
    def save_to(self, directory: Path) -> None:
        """Write the model as others read it."""

    @abstractmethod
    def held_out_scores(self) -> Mapping[str, float]:
        """Scores of the model as it is on held-out data, the same on all ranks."""

    def train_from(self, checkpoint: Path | None, say: Callable[[str], None]) -> None:
        """Train, on from a checkpoint if there is one; say what an interrupted training can be resumed from."""
        try:
            self.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        except KeyboardInterrupt:
            survivor = last_checkpoint(Path(self.args.output_dir))
            remedy = f"go on from {survivor} with --resume" if survivor else "there is no checkpoint yet"
            say(f"interrupted at step {self.state.global_step}; {remedy}")
            raise

    def load_finished(self, checkpoint: Path) -> None:
        """Take over what a training that ended with `checkpoint` left."""
        self.state = TrainerState.load_from_json(str(checkpoint / STATE_FILE))
        self.totals.take_over(self.state)
        best = checkpoint.parent / f"{PREFIX_CHECKPOINT_DIR}-{self.state.best_global_step}"
        self._load_from_checkpoint(str(best if self.args.load_best_model_at_end and best.is_dir() else checkpoint))

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """As the library's, without token tables: decay would move the rows of tokens that no text holds."""
        tables = tuple(f"{name}." for name, module in model.named_modules() if isinstance(module, self.token_tables))
        return [name for name in super().get_decay_parameter_names(model) if not name.startswith(tables)]

    def numbers_logged(self) -> list[dict[str, float]]:
        """Everything that was logged and is a finite number, by step."""
        return [
            {key: value for key, value in entry.items() if isinstance(value, (int, float)) and math.isfinite(value)}
            for entry in self.state.log_history
        ]

    def evaluate(self, *_: Any, metric_key_prefix: str = "eval", **__: Any) -> dict[str, float]:
        """Held-out scores as `eval_<name>`."""
        # Dropout's random numbers must not depend on whether and when there was an evaluation.
        device = self.args.device
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            scores = self.held_out_scores()
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in scores.items()}
        self.log(metrics)
        control: TrainerControl = self.control  # type: ignore[has-type]
        self.control = self.callback_handler.on_evaluate(self.args, self.state, control, metrics)
        return metrics

    def _count(self) -> None:
        """Move the counts of all ranks to the totals."""
        tokens, truncated = self._sum_over_ranks(self._counts)
        self.totals.tokens += int(tokens)
        self.totals.truncated_texts += int(truncated)
        self._counts = [0, 0]

    def _sum_over_ranks(self, values: Sequence[float]) -> list[float]:
        if self.args.world_size == 1:
            return list(values)
        total = torch.tensor(values, dtype=torch.float64, device=self.args.device)
        dist.all_reduce(total)
        return total.tolist()

    def _require_finite(self, loss: float) -> None:
        if not math.isfinite(loss):
            survivor = last_checkpoint(Path(self.args.output_dir))
            raise DivergedError(
                f"The loss became {loss} at step {self.state.global_step} or up to {self.args.logging_steps} steps "
                f"before. Lower optimizer.learning_rate, or set precision to fp32"
                + (f"; {survivor} was saved before." if survivor else ".")
            )

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """As the library does, but a checkpoint that fails leaves no debris and says what survives."""
        self._count()
        self._require_finite(float(self._tr_loss))
        try:
            super()._save_checkpoint(model, trial)
        except (OSError, RuntimeError, SafetensorError) as error:
            broken = Path(self.args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
            shutil.rmtree(broken, ignore_errors=True)
            survivor = last_checkpoint(Path(self.args.output_dir))
            remedy = (
                f"{survivor} is whole: go on from it with --resume"
                if survivor
                else "there is none before it: begin anew"
            )
            raise OSError(
                f"The checkpoint {broken} could not be written ({error}). Free some space; {remedy}."
            ) from error

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        self.accelerator.wait_for_everyone()  # before the main rank writes the state, which says that all is there

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        if self.args.should_save:  # the library calls this on all ranks
            self.save_to(Path(output_dir or self.args.output_dir))


def wait_for_all_ranks() -> None:
    """Return once every process has come here."""
    if dist.is_initialized():
        dist.barrier()


def checkpoint_step(checkpoint: Path) -> int | None:
    """Optimizer steps that a checkpoint holds; None if it is not complete."""
    try:
        return int(json.loads((checkpoint / STATE_FILE).read_text(encoding="utf-8"))["global_step"])
    except (OSError, ValueError, KeyError, TypeError):  # killed while writing
        return None


def last_checkpoint(directory: Path) -> Path | None:
    """The newest complete checkpoint."""
    steps = {path: checkpoint_step(path) for path in directory.glob(f"{PREFIX_CHECKPOINT_DIR}-*")}
    complete = {path: step for path, step in steps.items() if step is not None}
    return max(complete, key=complete.__getitem__, default=None)
