"""The trainer: transformers' `Trainer` with single-task batches, the embedding pass and the task registry.

Optimizer, schedule, checkpoints, logging, DDP and DeepSpeed are the library's. Ours are the data order, the loss, what
a checkpoint's model directory looks like, and the evaluation.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sentence_transformers import SentenceTransformer
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader, Dataset
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from codiemb import backbones
from codiemb.data.collator import TaskBatch, TaskCollator
from codiemb.data.readers import TaskTable
from codiemb.data.sampler import SingleTaskBatchSampler
from codiemb.encoding import EmbeddingPass, Embeddings
from codiemb.prompts import InstructionTemplate
from codiemb.tasks import TASKS, TaskOptions, detached
from codiemb.training.adapters import LowRankAdapter
from codiemb.training.nested import on_parts
from codiemb.training.parameters import decay_by_layer
from codiemb.training.resumable import DivergedError, ResumableTrainer, checkpoint_step, last_checkpoint
from codiemb.training.token_rows import UsedRowsEmbedding, install, remove

__all__ = ["CoDiEmbTrainer", "DivergedError", "Evaluate", "TrainingRows", "checkpoint_step", "last_checkpoint"]

logger = logging.getLogger(__name__)

Scores = Mapping[str, float]
ADAPTER_FOLDER = "adapter"
"""In the directory of a model that was trained with one."""

Evaluate = Callable[[EmbeddingPass], Scores]


class TrainingRows(Dataset[TaskBatch]):
    """All training tables behind one index; a list of indices of one table gives a collated batch."""

    def __init__(self, tables: Sequence[TaskTable], collator: TaskCollator, sampler: SingleTaskBatchSampler) -> None:
        self.tables = tables
        self.collator = collator
        self.epoch = 0  # the sampler's own runs ahead by one while it hands out the last batch
        self.sampler = sampler
        self._starts: list[int] = [0]
        for table in tables:
            self._starts.append(self._starts[-1] + len(table.rows))

    def __len__(self) -> int:
        return self._starts[-1]

    def __getitems__(self, indices: list[int]) -> TaskBatch:
        """DataLoader asks for a whole batch at once."""
        source = self.sampler.source_of(indices[0])
        table, start = self.tables[source], self._starts[source]
        columns = table.rows[[index - start for index in indices]]
        rows = [
            {name: values[i] for name, values in columns.items()} | {"index": index} for i, index in enumerate(indices)
        ]
        return self.collator(table.name, table.task_type, rows, epoch=self.epoch)


class _Flow(TrainerCallback):
    """Tells sampler and rows which epoch begins, also on resuming, before any batch is made."""

    def __init__(self, rows: TrainingRows) -> None:
        self.rows = rows

    def on_epoch_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.rows.epoch = int(state.epoch or 0)
        self.rows.sampler.set_epoch(self.rows.epoch)


class CoDiEmbTrainer(ResumableTrainer):
    """Trains an `EmbeddingPass` on single-task batches.

    Args:
        embedding_pass: the model to train.
        args: transformers' arguments. `output_dir` receives the checkpoints.
        rows: training data, in the order that its sampler gives.
        options: per task type.
        template: saved with the model.
        evaluate: held-out scores of the model, or None for no evaluation.
        used_tokens: train only these rows of the token table; None trains it as the model has it.
        adapter: what is trained in the network; checkpoints hold it alone. None: the network itself.
        layer_decay: see `decay_by_layer`.
        widths: weights of the objective by width of the embeddings, the whole width first; None: whole only.
        gather: losses see the batches of all ranks.
    """

    token_tables = (nn.Embedding, UsedRowsEmbedding)

    def __init__(
        self,
        embedding_pass: EmbeddingPass,
        args: TrainingArguments,
        *,
        rows: TrainingRows,
        options: Mapping[str, TaskOptions],
        template: InstructionTemplate,
        evaluate: Evaluate | None = None,
        used_tokens: set[int] | None = None,
        adapter: LowRankAdapter | None = None,
        layer_decay: float = 1.0,
        widths: Mapping[int, float] | None = None,
        gather: bool = True,
        callbacks: list[TrainerCallback] | None = None,
    ) -> None:
        self._rows = rows
        self._options = options
        self._template = template
        self._evaluate_scores = evaluate
        self._gather = gather
        self._adapter = adapter
        self._layer_decay = layer_decay
        self._widths = widths
        self._losses: dict[str, list[Tensor | float]] = {}  # of this rank since the last log
        self._token_rows: UsedRowsEmbedding | None = None
        if used_tokens is not None:
            self._token_rows = install(embedding_pass.transformer.model, used_tokens)
        _freeze_unread(embedding_pass)
        super().__init__(
            model=embedding_pass,
            args=args,
            train_dataset=rows,
            eval_dataset=[] if evaluate else None,
            callbacks=[_Flow(rows), *(callbacks or [])],
        )
        # Our loss is a mean over the batch: the trainer has to divide it by the accumulation steps itself.
        self.model_accepts_loss_kwargs = False

    # -- data and loss -------------------------------------------------------------------------------------------

    def get_train_dataloader(self) -> DataLoader:  # type: ignore[type-arg]
        """Batches of this rank; the sampler has divided them already, so accelerate must not."""
        return DataLoader(self._rows, batch_sampler=self._rows.sampler, collate_fn=_as_inputs)  # type: ignore[arg-type]

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The objective of the batch's task on the embeddings of its distinct texts."""
        batch: TaskBatch = inputs["batch"].to(self.args.device)
        embedding_pass: EmbeddingPass = self.model
        tokens = embedding_pass.tokenize(batch.texts)
        embeddings: Embeddings = model(tokens)
        task = TASKS[batch.task]  # type: ignore[index]
        gather = self._gather and self.args.world_size > 1
        compute = on_parts(task.objective, self._widths) if self._widths else task.objective
        objective = compute(embeddings, batch, self._options[batch.task], gather=gather)
        self._counts[0] += tokens.num_tokens
        self._counts[1] += tokens.truncated
        named: dict[str, Tensor | float] = {"loss": objective.total.detach(), **detached(objective.components)}
        for name, value in named.items():
            self._losses.setdefault(f"{batch.task}/{name}", []).append(value)
        return (objective.total, embeddings) if return_outputs else objective.total

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add each task's mean losses since the last log, over all ranks.

        Raises:
            DivergedError: the loss is not finite.
        """
        if "loss" in logs:
            means = [float(sum(values)) / len(values) for values in self._losses.values()]
            means = [total / self.args.world_size for total in self._sum_over_ranks(means)]
            logs.update(zip(self._losses, means, strict=True))
            self._losses.clear()
            self._count()
        super().log(logs, start_time)
        self._require_finite(logs.get("loss", 0.0))

    def create_optimizer(self, model: nn.Module | None = None) -> Optimizer:
        """As the library's, with the learning rates of the layers."""
        existed = self.optimizer is not None
        optimizer: Optimizer = super().create_optimizer(model)
        if self._layer_decay < 1 and not existed:
            decay_by_layer(optimizer, self.model, self._layer_decay)
        return optimizer

    # -- evaluation ----------------------------------------------------------------------------------------------

    def held_out_scores(self) -> Scores:
        """Those of the data it was given."""
        assert self._evaluate_scores is not None  # the trainer only evaluates where it was given data
        embedding_pass: EmbeddingPass = self.model
        return self._evaluate_scores(embedding_pass)

    # -- saving and loading --------------------------------------------------------------------------------------

    def save_to(self, directory: Path) -> None:
        """Write the model as a plain sentence-transformers directory; an adapter is part of it, and beside it."""
        directory.mkdir(parents=True, exist_ok=True)
        network, rows = self._sentence_transformer[0].model, self._token_rows
        if self._adapter is not None:
            with self._adapter.merged():
                backbones.save(self._sentence_transformer, directory, self._template)
            self._adapter.save(directory / ADAPTER_FOLDER)
            return
        if rows is None:
            backbones.save(self._sentence_transformer, directory, self._template)
            return
        remove(network, rows)
        try:
            backbones.save(self._sentence_transformer, directory, self._template)
        finally:
            network.set_input_embeddings(rows)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        if self._adapter is None:
            super()._save(output_dir, state_dict)
        elif self.args.should_save:
            self._adapter.save(Path(output_dir or self.args.output_dir))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        if self._adapter is not None:
            self._adapter.load(Path(resume_from_checkpoint))
            return
        saved = SentenceTransformer(resume_from_checkpoint, device="cpu")
        network, rows = self._sentence_transformer[0].model, self._token_rows
        if rows is not None:
            network.set_input_embeddings(rows.original)
        self._sentence_transformer.load_state_dict(saved.state_dict())
        if rows is not None:
            rows.read_again()
            network.set_input_embeddings(rows)

    def _load_best_model(self) -> None:
        logger.info("The best checkpoint is %s.", self.state.best_model_checkpoint)
        self._load_from_checkpoint(str(self.state.best_model_checkpoint))

    @property
    def _sentence_transformer(self) -> SentenceTransformer:
        return self.model.model


def _freeze_unread(embedding_pass: EmbeddingPass) -> None:
    """BERT-like networks carry a pooler that sentence embeddings do not read; DDP would wait for its gradient."""
    pooler = getattr(embedding_pass.transformer.model, "pooler", None)
    if isinstance(pooler, nn.Module):
        pooler.requires_grad_(False)


def _as_inputs(batch: TaskBatch) -> dict[str, TaskBatch]:
    """The trainer wants a mapping."""
    return {"batch": batch}
