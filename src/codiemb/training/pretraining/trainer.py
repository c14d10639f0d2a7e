"""The trainer of language models: all predictions of a step count alike, however spread over passes and ranks."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, Sampler
from transformers import (
    AutoModelForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from codiemb import backbones
from codiemb.training.pretraining.attention import network_inputs
from codiemb.training.pretraining.masking import MaskedWindows
from codiemb.training.pretraining.windows import IGNORED, NO_WINDOW, Windows
from codiemb.training.resumable import ResumableTrainer

Batch = dict[str, Tensor]


class WindowSampler(Sampler[list[int]]):
    """Batches of window indices for one rank, in an order that follows from seed and epoch alone.

    All ranks shuffle alike and take their part of each step's windows. Where the last batches of an epoch have fewer
    windows than ranks, the others get `NO_WINDOW`, so that all ranks take as many steps and no window is left out.
    """

    def __init__(self, windows: int, batch_size: int, *, rank: int = 0, world_size: int = 1, seed: int = 0) -> None:
        self._windows = windows
        self._batch_size = batch_size
        self._rank, self._world_size = rank, world_size
        self._seed = seed
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """The order of which epoch comes next."""
        self._epoch = epoch

    def __len__(self) -> int:
        return -(-self._windows // (self._batch_size * self._world_size))

    def __iter__(self) -> Iterator[list[int]]:
        generator = torch.Generator().manual_seed(self._seed * 1_000_003 + self._epoch)
        order = torch.randperm(self._windows, generator=generator)
        together = self._batch_size * self._world_size
        for start in range(0, self._windows, together):
            mine = order[start : start + together].tensor_split(self._world_size)[self._rank]
            yield mine.tolist() or [NO_WINDOW]


class _Epochs(TrainerCallback):
    """Tells sampler and masks which epoch begins, also on resuming, before any batch is made."""

    def __init__(self, sampler: WindowSampler, windows: Windows | MaskedWindows) -> None:
        self._sampler = sampler
        self._windows = windows

    def on_epoch_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        epoch = int(state.epoch or 0)
        self._sampler.set_epoch(epoch)
        if isinstance(self._windows, MaskedWindows):
            self._windows.epoch = epoch


class PretrainTrainer(ResumableTrainer):
    """Trains a language model on windows.

    Args:
        network: reads in the direction that its configuration says.
        tokenizer: saved with it.
        args: transformers' arguments. `output_dir` receives the checkpoints.
        windows: what is trained on, in the order of `sampler`.
        held_out: what is not; None for no evaluation.
        objective: the name that losses are logged under.
        precision: bfloat16 for autocast, or float32.
    """

    def __init__(
        self,
        network: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        args: TrainingArguments,
        *,
        windows: Windows | MaskedWindows,
        sampler: WindowSampler,
        held_out: Windows | MaskedWindows | None = None,
        objective: str,
        precision: torch.dtype,
        callbacks: Sequence[TrainerCallback] = (),
    ) -> None:
        self._network = network
        self._tokenizer = tokenizer
        self._windows = windows
        self._sampler = sampler
        self._held_out = held_out
        self._objective = objective
        self._precision = precision
        self._nats = torch.zeros((), dtype=torch.float64, device=args.device)  # of this rank since the last log
        self._predictions = 0
        super().__init__(
            model=network,
            args=args,
            train_dataset=windows,
            eval_dataset=[] if held_out is not None else None,
            callbacks=[_Epochs(sampler, windows), *callbacks],
        )
        # The loss is divided by the predictions of the whole step, which the trainer counts in labels as they are.
        self.model_accepts_loss_kwargs = True
        self._loss_shifts_labels = False

    def get_train_dataloader(self) -> DataLoader[Batch]:
        """Batches of this rank; the sampler has divided them already, so accelerate must not."""
        return DataLoader(self._windows, batch_sampler=self._sampler, collate_fn=_as_it_is)  # type: ignore[arg-type]

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Batch,
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Cross-entropy in nats, summed, divided by the predictions that all ranks make in this step."""
        assert num_items_in_batch is not None  # counted by the trainer, as its arguments ask for
        nats = self._nats_of(model, inputs)
        predictions = int((inputs["labels"] != IGNORED).sum())
        self._nats += nats.detach()
        self._predictions += predictions
        self._counts[0] += predictions
        # DistributedDataParallel takes the mean of the gradients of all ranks: their sum is wanted.
        loss = nats * self.args.world_size / max(int(num_items_in_batch), 1)
        return (loss, None) if return_outputs else loss

    def _nats_of(self, model: nn.Module, batch: Batch) -> Tensor:
        """Of all predictions of a batch together."""
        batch = {name: value.to(self.args.device) for name, value in batch.items()}
        inputs = network_inputs(self._network, batch["input_ids"], batch["position_ids"])
        with self._autocast():
            logits = model(**inputs).logits
        labels = batch["labels"].flatten()
        return F.cross_entropy(logits.flatten(0, 1).float(), labels, ignore_index=IGNORED, reduction="sum")

    def _autocast(self) -> contextlib.AbstractContextManager[Any]:
        if self._precision == torch.float32:
            return contextlib.nullcontext()
        return torch.autocast(self.args.device.type, dtype=self._precision)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the mean loss of all predictions since the last log, over all ranks.

        Raises:
            DivergedError: the loss is not finite.
        """
        if "loss" in logs:
            nats, predictions = self._sum_over_ranks([float(self._nats), float(self._predictions)])
            logs[f"{self._objective}/loss"] = nats / max(predictions, 1)
            self._nats.zero_()
            self._predictions = 0
            self._count()
        super().log(logs, start_time)
        self._require_finite(logs.get("loss", 0.0))

    def held_out_scores(self) -> dict[str, float]:
        """Perplexity of the held-out predictions, and for `clm` bits for each character and byte of the texts.

        The latter count the token that ends each document as well, and compare models whatever their tokenizers.
        """
        assert self._held_out is not None  # the trainer only evaluates where it was given data
        windows, size = self._held_out, self.args.per_device_train_batch_size
        mine = range(self.args.process_index, len(windows), self.args.world_size)
        nats, predictions = 0.0, 0
        training = self._network.training
        self._network.eval()
        try:
            with torch.inference_mode():
                for start in range(0, len(mine), size):
                    batch = windows.__getitems__(list(mine[start : start + size]))
                    nats += float(self._nats_of(self._network, batch))
                    predictions += int((batch["labels"] != IGNORED).sum())
        finally:
            self._network.train(training)
        nats, total = self._sum_over_ranks([nats, float(predictions)])
        loss = nats / max(total, 1)
        scores = {"loss": loss, "perplexity": math.exp(min(loss, 700.0))}
        if isinstance(windows, Windows):
            bits = nats / math.log(2)
            scores["bits_per_character"] = bits / windows.counts.characters
            scores["bits_per_byte"] = bits / windows.counts.bytes
        return scores

    def save_to(self, directory: Path) -> None:
        """Write network and tokenizer as transformers reads them."""
        directory.mkdir(parents=True, exist_ok=True)
        self._network.save_pretrained(directory)
        self._tokenizer.save_pretrained(directory)
        backbones.write_common_tokenizer(directory)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        saved = AutoModelForCausalLM.from_pretrained(
            resume_from_checkpoint, local_files_only=True, dtype=torch.float32, attn_implementation="eager"
        )
        state = saved.state_dict()
        for file in Path(resume_from_checkpoint).glob("*.safetensors"):
            # As they were saved: some networks zero the row of the padding token on loading.
            for name, tensor in load_file(file).items():
                if name in state:
                    state[name].copy_(tensor)
        self._network.load_state_dict(state)


def _as_it_is(batch: Batch) -> Batch:
    return batch
