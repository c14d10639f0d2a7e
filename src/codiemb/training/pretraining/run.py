"""A whole pre-training: from a recipe to a language model whose perplexity is known."""

from __future__ import annotations

import math
import platform
import time
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch.utils.tensorboard import SummaryWriter
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainingArguments, set_seed
from transformers.integrations import TensorBoardCallback
from transformers.utils import logging as transformers_logging

from codiemb.encoding import best_precision
from codiemb.training.output import RunDirectory
from codiemb.training.pretraining.attention import check_attention, set_direction
from codiemb.training.pretraining.card import model_card
from codiemb.training.pretraining.data import PretrainData, as_objective, new_tokenizer, save_whole
from codiemb.training.pretraining.documents import corpus_files
from codiemb.training.pretraining.networks import check_window, load_network, load_tokenizer, new_network
from codiemb.training.pretraining.recipe import PretrainRecipe
from codiemb.training.pretraining.trainer import PretrainTrainer, WindowSampler
from codiemb.training.progress import TrainingProgress
from codiemb.training.resumable import (
    DEFAULT_CHECKPOINTS,
    checkpoint_step,
    last_checkpoint,
    training_arguments,
    wait_for_all_ranks,
)


@dataclass
class PretrainReport:
    """What a run did.

    Attributes:
        model: directory of the language model.
        objective: `clm` or `mntp`.
        before, after: on held-out documents: `loss` (nats a prediction), `perplexity`, and for `clm`
            `bits_per_character` and `bits_per_byte`; empty without held-out documents.
        data: `train` and `held_out`, each with the `Counts` of its documents.
        settings: parameters, vocabulary, precision, devices, versions, and the seconds of training.
        steps: optimizer steps; tokens: predictions that were trained on. With `training_seconds`, of the whole run
            however often it was resumed.
        seconds: wall time of this process, set-up and evaluation included.
        history: everything that was logged, by step.
    """

    model: str
    objective: str
    before: dict[str, float]
    after: dict[str, float]
    data: dict[str, dict[str, int]]
    settings: dict[str, Any]
    steps: int = 0
    seconds: float = 0.0
    tokens: int = 0
    history: list[dict[str, float]] = field(default_factory=list)


def pretrain(
    recipe: PretrainRecipe, *, resume: bool = False, overwrite: bool = False, console: Console | None = None
) -> PretrainReport:
    """Train a language model as the recipe says. Start it under `torchrun` to use several devices.

    Args:
        recipe: checked by `load_pretrain_recipe`.
        resume: go on from the last checkpoint in the output directory; from the start if there is none. A run that
            is done is not repeated.
        overwrite: delete what an earlier run left in the output directory.
        console: for progress; stderr if None.
    Raises:
        OutputError: the output directory holds something else, or another recipe's run.
        DivergedError: the loss became infinite or no number.
        DataError, RecipeError, ModelError, ValueError: what cannot be used, and why.
        OSError: something could not be written; what was written before is whole.
    """
    started = time.monotonic()
    directory = RunDirectory(recipe)
    arguments = _training_arguments(recipe, directory.state)
    is_main = arguments.process_index == 0
    console = (console or Console(stderr=True)) if is_main else Console(quiet=True)
    say = partial(console.print, markup=False, highlight=False, soft_wrap=True)
    transformers_logging.disable_progress_bar()

    # Everything that can be wrong is looked at before anything is written.
    directory.check(resume=resume, overwrite=overwrite)
    if resume and (finished := directory.finished()):
        say(f"{directory.path} holds the finished run: nothing to do.")
        return PretrainReport(**finished)
    corpus_files([*recipe.corpus, *recipe.held_out.data])
    kept = directory.state / "tokenizer"  # a new one, so that a resumed run has the same
    if recipe.new_tokenizer is None:
        tokenizer = load_tokenizer(recipe.model or recipe.tokenizer or "")
    elif resume and kept.is_dir():
        tokenizer = load_tokenizer(str(kept))
    else:
        made = new_tokenizer(recipe, is_main=is_main, wait=wait_for_all_ranks, progress=say)
        tokenizer = load_tokenizer(str(made))
    set_seed(recipe.seed)  # for new weights
    network = _network(recipe, tokenizer).to(arguments.device)
    check_attention(network, both_ways=recipe.objective == "mntp")
    data = PretrainData(recipe, tokenizer, progress=say)
    parts = {name: as_objective(recipe, tokenizer, windows) for name, windows in data.parts().items()}

    wait_for_all_ranks()  # none may find what the main one writes now
    if is_main:
        directory.prepare(overwrite=overwrite)
        if recipe.new_tokenizer is not None:
            save_whole(tokenizer, kept)
    wait_for_all_ranks()
    data.check(directory.remembered("data", data.state, write=is_main))
    sampler = WindowSampler(
        len(data.train),
        recipe.batch_size,
        rank=arguments.process_index,
        world_size=arguments.world_size,
        seed=recipe.seed,
    )
    steps = recipe.max_steps or math.ceil(recipe.epochs * math.ceil(len(sampler) / recipe.accumulation))
    arguments.save_steps = recipe.checkpoints.every or recipe.held_out.every or math.ceil(steps / DEFAULT_CHECKPOINTS)
    checkpoint = last_checkpoint(directory.state)
    steps_done = (checkpoint_step(checkpoint) if checkpoint else None) or 0

    precision = {"bf16": torch.bfloat16, "fp32": torch.float32}.get(recipe.precision)
    precision = precision or best_precision(arguments.device)[0]
    progress = TrainingProgress(console, show="{:.3f}".format)
    writer = SummaryWriter(str(directory.logs), purge_step=steps_done + 1) if is_main else None
    trainer = PretrainTrainer(
        network,
        tokenizer,
        arguments,
        windows=parts["train"],
        sampler=sampler,
        held_out=parts.get("held_out"),
        objective=recipe.objective,
        precision=precision,
        callbacks=[TensorBoardCallback(writer), progress],
    )
    progress.totals = trainer.totals
    say(_describe(recipe, network, tokenizer, data, steps, precision))
    say(f"watch it: tensorboard --logdir {directory.logs}")
    measured = data.held_out is not None
    before = directory.remembered("scores_before", trainer.held_out_scores, write=is_main) if measured else {}
    if recipe.gradient_checkpointing:
        network.gradient_checkpointing_enable({"use_reentrant": False})
    if recipe.compile:
        network.compile()
    if checkpoint:
        say(f"going on from {checkpoint}")

    if checkpoint and steps_done >= steps:  # killed before the model was written
        trainer.load_finished(checkpoint)
    else:
        set_seed(recipe.seed + arguments.process_index)  # ranks drop out different units
        try:
            trainer.train_from(checkpoint, say)
        finally:
            progress.close()
    report = PretrainReport(
        model=str(recipe.output),
        objective=recipe.objective,
        before=before,
        after=trainer.held_out_scores() if measured else {},
        data=data.counts(),
        settings=_settings(network, tokenizer, arguments, precision, trainer.totals.seconds),
        steps=trainer.state.global_step,
        seconds=round(time.monotonic() - started, 1),
        tokens=trainer.totals.tokens,
        history=trainer.numbers_logged(),
    )
    if is_main:
        directory.publish(trainer.save_to, model_card(recipe, report), vars(report))
    wait_for_all_ranks()
    return report


def _network(recipe: PretrainRecipe, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """A new network or that of a checkpoint, made to read as the objective needs."""
    if recipe.model is not None:
        network = load_network(recipe.model, recipe.attention)
    else:
        network = new_network(recipe.config or {}, tokenizer, recipe.attention)
    check_window(network, recipe.window)
    set_direction(network, both_ways=recipe.objective == "mntp")
    return network


def _training_arguments(recipe: PretrainRecipe, state: Path) -> TrainingArguments:
    return training_arguments(
        recipe,
        state,
        evaluate_every=recipe.held_out.every,
        per_device_train_batch_size=recipe.batch_size,
        average_tokens_across_devices=True,  # the loss is divided by the predictions of all ranks
        use_cache=True,  # of the saved configuration; training itself never does
    )


def _describe(
    recipe: PretrainRecipe,
    network: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    data: PretrainData,
    steps: int,
    precision: torch.dtype,
) -> str:
    kind, size = type(network).__name__, network.num_parameters()
    lines = [f"{kind}, {size:,} parameters, a vocabulary of {len(tokenizer):,} tokens"]
    for name, windows in data.parts().items():
        counts = windows.counts
        lines.append(
            f"{name.replace('_', ' ')}: {counts.documents:,} documents, {counts.tokens:,} tokens, {counts.windows:,} "
            f"windows of {recipe.window}, {counts.unused} places of the last one unused"
        )
    reason = best_precision(network.device)[1] if recipe.precision == "auto" else "as the recipe says"
    lines.append(f"{steps} steps on {network.device}, {str(precision).removeprefix('torch.')} ({reason})")
    return "\n".join(lines)


def _settings(
    network: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    arguments: TrainingArguments,
    precision: torch.dtype,
    seconds: float,
) -> dict[str, Any]:
    return {
        "architecture": type(network).__name__,
        "parameters": network.num_parameters(),
        "vocabulary": len(tokenizer),
        "device": str(network.device),
        "processes": arguments.world_size,
        "threads": torch.get_num_threads(),
        "precision": str(precision).removeprefix("torch."),
        "attention": network.config._attn_implementation,
        "training_seconds": round(seconds, 1),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("torch", "transformers", "tokenizers")},
    }
