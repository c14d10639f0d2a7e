"""A whole training run: from a recipe to a measured model directory."""

from __future__ import annotations

import logging
import math
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from rich.console import Console
from sentence_transformers import SentenceTransformer
from torch.utils.tensorboard import SummaryWriter
from transformers import TrainingArguments, set_seed
from transformers.integrations import TensorBoardCallback
from transformers.utils import logging as transformers_logging

from codiemb import backbones, evaluation
from codiemb.data.collator import TaskCollator
from codiemb.data.readers import TaskTable, read
from codiemb.data.sampler import SingleTaskBatchSampler, SourceSpec
from codiemb.encoding import EmbeddingPass, best_precision
from codiemb.model_source import find
from codiemb.prompts import TEMPLATES, InstructionTemplate, PromptedText
from codiemb.tasks import SYMMETRIC, TASKS, StsOptions, TaskOptions
from codiemb.training import cpu
from codiemb.training.adapters import LowRankAdapter, quantize
from codiemb.training.compilation import compile_layers
from codiemb.training.consistency import ConsistencyFilter, PairFilter, Verdicts, check_tables, filtered, write_refused
from codiemb.training.model_card import model_card
from codiemb.training.nested import scores_by_width, width_weights
from codiemb.training.output import RunDirectory
from codiemb.training.parameters import count_parameters, freeze_layers
from codiemb.training.progress import TrainingProgress
from codiemb.training.recipe import Recipe, RecipeError
from codiemb.training.resumable import (
    DEFAULT_CHECKPOINTS,
    checkpoint_step,
    last_checkpoint,
    training_arguments,
    wait_for_all_ranks,
)
from codiemb.training.trainer import CoDiEmbTrainer, Evaluate, TrainingRows

logger = logging.getLogger(__name__)


@dataclass
class TrainingReport:
    """What a run did.

    Attributes:
        model: directory of the trained model.
        before, after: held-out scores (0 to 1) by name, with `ir`, `sts` and `mean`; empty without evaluation data.
        by_width: scores of the trained model cut to each width of the recipe's `matryoshka`, by width.
        data: per data set, its task, rows, steps per epoch, and the rows left out: `rejected` as broken, `refused` by
            the filter of pairs.
        settings: precision, attention, devices, versions, and the seconds of training.
        steps: optimizer steps; tokens: read by the network, without padding. With `truncated_texts` and
            `training_seconds`, of the whole run however often it was resumed.
        seconds: wall time of this process, set-up and evaluation included.
        best_step: of the checkpoint that became the model, None where none was chosen.
        history: everything that was logged, by step.
    """

    model: str
    before: dict[str, float]
    after: dict[str, float]
    data: list[dict[str, Any]]
    settings: dict[str, Any]
    steps: int = 0
    seconds: float = 0.0
    tokens: int = 0
    truncated_texts: int = 0
    best_step: int | None = None
    history: list[dict[str, float]] = field(default_factory=list)
    by_width: dict[str, dict[str, float]] = field(default_factory=dict)


def run(
    recipe: Recipe,
    *,
    resume: bool = False,
    overwrite: bool = False,
    console: Console | None = None,
    keep_pairs: PairFilter | None = None,
) -> TrainingReport:
    """Train as the recipe says. Start it under `torchrun` to use several devices: a process uses one.

    Args:
        recipe: checked by `load_recipe`.
        resume: go on from the last checkpoint in the output directory; from the start if there is none. A run that
            is done is not repeated.
        overwrite: delete what an earlier run left in the output directory.
        console: for progress; stderr if None.
        keep_pairs: decides which rows of task `ir` are trained on, in place of the recipe's `consistency`; asked by
            every process, each for all rows.
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
        return TrainingReport(**finished)
    all_tables = read_tables(recipe)
    tables, verdicts = _consistent_tables(recipe, all_tables, keep_pairs, arguments.device, say)
    options: dict[str, TaskOptions] = {name: getattr(recipe.tasks, name) for name in TASKS}
    sampler = make_sampler(recipe, tables, options, arguments)
    steps = _total_steps(recipe, sampler)
    arguments.save_steps = recipe.checkpoints.every or recipe.evaluation.every or math.ceil(steps / DEFAULT_CHECKPOINTS)
    eval_tasks = evaluation.discover(recipe.evaluation.data) if recipe.evaluation.data else []
    _check_metric(recipe, eval_tasks)
    set_seed(recipe.seed)  # for weights that a model lacks
    model, template = load_model(recipe, arguments.device)
    embedding_pass = make_pass(recipe, model, options, {table.task_type for table in tables})
    adapter = restrict(recipe, embedding_pass)
    if recipe.compile:
        compile_layers(embedding_pass)
    widths = width_weights(recipe.matryoshka, embedding_pass.dimension) if recipe.matryoshka else None
    if widths:
        model[0].model.config.matryoshka_dimensions = sorted(widths)  # where vLLM looks for them
    used = used_token_ids(embedding_pass, tables, template) if recipe.token_embeddings == "used" else None

    wait_for_all_ranks()  # none may find what the main one writes now
    if is_main:
        directory.prepare(overwrite=overwrite)
        for table in all_tables:
            if table.name in verdicts:
                path = directory.state / "refused" / f"{table.name.replace('/', '-')}.jsonl"
                write_refused(table, verdicts[table.name], path)
                say(f"{table.name}: {_refused(verdicts, table)} of {len(table.rows)} rows left out, see {path}")
    wait_for_all_ranks()
    plan = directory.remembered("plan", sampler.state_dict, write=is_main)
    sampler.load_state_dict(plan)  # an error if the data have changed
    checkpoint = last_checkpoint(directory.state)
    steps_done = (checkpoint_step(checkpoint) if checkpoint else None) or 0

    score = _scorer(eval_tasks, template, arguments) if eval_tasks else None
    progress = TrainingProgress(console)
    writer = SummaryWriter(str(directory.logs), purge_step=steps_done + 1) if is_main else None
    trainer = CoDiEmbTrainer(
        embedding_pass,
        arguments,
        rows=TrainingRows(tables, make_collator(recipe, tables, template, options), sampler),
        options=options,
        template=template,
        evaluate=score,
        used_tokens=used,
        adapter=adapter,
        layer_decay=recipe.optimizer.layer_decay,
        widths=widths,
        gather=recipe.gather,
        callbacks=[TensorBoardCallback(writer), progress],
    )
    progress.totals = trainer.totals
    say(_describe(recipe, sampler, tables, template, embedding_pass, used))
    say(f"watch it: tensorboard --logdir {directory.logs}")
    before = directory.remembered("scores_before", lambda: dict(score(embedding_pass)), write=is_main) if score else {}
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
    by_width = {}
    if widths and eval_tasks:
        by_width = _scores_by_width(embedding_pass, eval_tasks, template, arguments, sorted(widths))
    report = TrainingReport(
        model=str(recipe.output),
        before=before,
        after=dict(score(embedding_pass)) if score else {},
        by_width=by_width,
        data=[
            {**counts, "refused": _refused(verdicts, table)}
            for counts, table in zip(_data_counts(tables, sampler), tables, strict=True)
        ],
        settings=_settings(embedding_pass, arguments, trainer.totals.seconds),
        steps=trainer.state.global_step,
        seconds=round(time.monotonic() - started, 1),
        tokens=trainer.totals.tokens,
        truncated_texts=trainer.totals.truncated_texts,
        best_step=trainer.state.best_global_step if arguments.load_best_model_at_end else None,
        history=trainer.numbers_logged(),
    )
    if is_main:
        directory.publish(trainer.save_to, model_card(recipe, report, template), vars(report))
    wait_for_all_ranks()
    return report


def check(recipe: Recipe) -> None:
    """Find what `run` would find wrong with data, sampling and evaluation; only the cache of data is written.

    Raises:
        DataError, RecipeError, ModelError, ValueError: what cannot be used, and why.
    """
    tables = read_tables(recipe)
    if recipe.consistency:
        check_tables(tables)
        find(recipe.consistency.model)
    options: dict[str, TaskOptions] = {name: getattr(recipe.tasks, name) for name in TASKS}
    make_sampler(recipe, tables, options, _training_arguments(recipe, recipe.output))
    _check_metric(recipe, evaluation.discover(recipe.evaluation.data) if recipe.evaluation.data else [])


# -- the parts, also used by benchmarks and diagnostics --------------------------------------------------------------


def read_tables(recipe: Recipe) -> list[TaskTable]:
    """The training data, one table per (file, task type)."""
    return read([source.path for source in recipe.train], on_error=recipe.on_error)


def _consistent_tables(
    recipe: Recipe,
    tables: list[TaskTable],
    keep_pairs: PairFilter | None,
    device: torch.device,
    say: Callable[[str], None],
) -> tuple[list[TaskTable], dict[str, Verdicts]]:
    if keep_pairs is None and recipe.consistency is not None:
        say(f"ranking the documents of the training pairs with {recipe.consistency.model}; ranks are kept")
        keep_pairs = ConsistencyFilter(recipe.consistency, seed=recipe.seed, device=str(device))
    return filtered(tables, keep_pairs) if keep_pairs else (tables, {})


def _refused(verdicts: Mapping[str, Verdicts], table: TaskTable) -> int:
    return int((~verdicts[table.name].keep).sum()) if table.name in verdicts else 0


def make_sampler(
    recipe: Recipe, tables: Sequence[TaskTable], options: Mapping[str, TaskOptions], arguments: TrainingArguments
) -> SingleTaskBatchSampler:
    """The sampler of this rank."""
    specs = [
        SourceSpec(table.name, table.task_type, len(table.rows), options[table.task_type].batch_size)
        for table in tables
    ]
    weights = {source.path.resolve(): source.weight for source in recipe.train if source.weight is not None}
    return SingleTaskBatchSampler(
        specs,
        rank=arguments.process_index,
        world_size=arguments.world_size,
        accumulation=recipe.accumulation,
        seed=recipe.seed,
        task_shares=recipe.sampling.task_shares,
        weights={table.name: _weight_of(table, weights) for table in tables} if weights else None,
        temperature=recipe.sampling.temperature,
    )


def load_model(recipe: Recipe, device: torch.device) -> tuple[SentenceTransformer, InstructionTemplate]:
    """The model to train, with the recipe's prompts, and the template that makes them."""
    on_cpu = device.type == "cpu"
    attention = recipe.attention
    if attention == "auto":
        attention = "eager" if on_cpu else "sdpa"
    quantized = recipe.adapter.quantize if recipe.adapter else None
    model = backbones.load(
        recipe.model,
        device="cpu" if quantized else str(device),  # where it need not fit in whole
        attention=attention,
        dropout=recipe.dropout,
        bidirectional=None if recipe.causal is None else not recipe.causal,
        pooling=recipe.pooling,
    )
    if quantized:
        quantize(model[0].model, quantized, device, _precision(recipe) or best_precision(device)[0])
        model.to(device)
    if on_cpu:
        network = model[0].model
        cpu.use_fast_dropout(network)
        if recipe.attention == "auto":
            cpu.use_fast_attention(network)
    chosen = recipe.prompts.template
    named = TEMPLATES[chosen] if isinstance(chosen, str) else chosen
    template = named or backbones.template_of(model, recipe.model)
    backbones.set_prompts(model, template, recipe.prompts.pool_prompt)
    return model, template


def make_pass(
    recipe: Recipe, model: SentenceTransformer, options: Mapping[str, TaskOptions], task_types: set[str]
) -> EmbeddingPass:
    """The embedding pass of a training run."""
    needs_middle = any(
        isinstance(option, StsOptions) and option.loss.mid_nce for option in (options[name] for name in task_types)
    )
    if recipe.gradient_checkpointing:
        model[0].model.gradient_checkpointing_enable({"use_reentrant": False})
    return EmbeddingPass(
        model,
        token_budget=recipe.token_budget,
        graph_budget=recipe.graph_budget,
        max_length=recipe.max_length,
        precision=_precision(recipe),
        middle_layer=model[0].model.config.num_hidden_layers // 2 if needs_middle else None,
    )


def restrict(recipe: Recipe, embedding_pass: EmbeddingPass) -> LowRankAdapter | None:
    """Freeze what the recipe does not train, and give the network its adapter, which is returned."""
    model = embedding_pass.model
    adapter = LowRankAdapter(model, recipe.adapter, recipe.model) if recipe.adapter else None
    if recipe.token_embeddings == "frozen":
        model[0].model.get_input_embeddings().requires_grad_(False)
    if recipe.frozen_layers:
        freeze_layers(embedding_pass, recipe.frozen_layers)
    return adapter


def _precision(recipe: Recipe) -> torch.dtype | None:
    return {"bf16": torch.bfloat16, "fp32": torch.float32}.get(recipe.precision)


def used_token_ids(
    embedding_pass: EmbeddingPass, tables: Sequence[TaskTable], template: InstructionTemplate
) -> set[int]:
    """Every token id that training on `tables` can meet, padding and special tokens included."""
    tokenizer = embedding_pass.tokenizer
    used = {*tokenizer.all_special_ids, 0 if tokenizer.pad_token_id is None else tokenizer.pad_token_id}
    for table in tables:
        symmetric = table.task_type in SYMMETRIC
        for texts in _texts(table, template, symmetric):
            for ids in embedding_pass.tokenize(texts).input_ids:
                used.update(ids)
    return used


def _texts(table: TaskTable, template: InstructionTemplate, symmetric: bool) -> Iterator[list[PromptedText]]:
    document = "query" if symmetric else "document"
    for batch in table.rows.iter(batch_size=1000):
        yield [
            *(_prompted(text, template, "query") for text in batch["query"]),
            *(_prompted(text, template, document) for texts in batch["positives"] for text in texts),
            *(_prompted(text, template, document) for texts in batch["negatives"] for text in texts),
        ]


def _prompted(text: Mapping[str, str], template: InstructionTemplate, side: Any) -> PromptedText:
    return PromptedText(template.prompt(side, text["instruction"]), text["prefix"] + text["text"])


def make_collator(
    recipe: Recipe, tables: Sequence[TaskTable], template: InstructionTemplate, options: Mapping[str, TaskOptions]
) -> TaskCollator:
    """What makes batches of rows."""
    ranges = {
        table.name: table.score_range
        for table in tables
        if TASKS[table.task_type].rescale_scores and table.score_range is not None
    }
    return TaskCollator(
        template,
        {name: option.candidates for name, option in options.items()},
        symmetric=SYMMETRIC,
        seed=recipe.seed,
        score_range=ranges,
    )


def _weight_of(table: TaskTable, weights: Mapping[Path, float]) -> float:
    source = table.source.resolve()
    return next(weights[path] for path in (source, *source.parents) if path in weights)


def _total_steps(recipe: Recipe, sampler: SingleTaskBatchSampler) -> int:
    return recipe.max_steps or math.ceil(recipe.epochs * len(sampler) / recipe.accumulation)


def _training_arguments(recipe: Recipe, state: Path) -> TrainingArguments:
    every = recipe.evaluation.every
    return training_arguments(
        recipe,
        state,
        evaluate_every=every,
        load_best_model_at_end=bool(every and recipe.evaluation.keep_best),
        metric_for_best_model=f"eval_{recipe.evaluation.metric}" if every else None,
        greater_is_better=True if every else None,
        average_tokens_across_devices=False,
    )


def _check_metric(recipe: Recipe, tasks: Sequence[evaluation.EvalTask]) -> None:
    results = [evaluation.Result(task.name, task.type, 0.0, {}, len(task), {}, {}) for task in tasks]
    allowed, metric = list(evaluation.summarise(results)), recipe.evaluation.metric
    if tasks and metric not in allowed:
        raise RecipeError(
            f"evaluation.metric: got {metric!r}, expected a score of evaluation.data: {', '.join(allowed)}"
        )


def _scorer(
    tasks: Sequence[evaluation.EvalTask], template: InstructionTemplate, arguments: TrainingArguments
) -> Evaluate:
    """Scores of a model on `tasks`, which the ranks divide among them; the same on all ranks."""

    def score(current: EmbeddingPass) -> dict[str, float]:
        mine = tasks[arguments.process_index :: arguments.world_size]
        return _summary([evaluation.evaluate(current, template, task) for task in mine], tasks, arguments)

    return score


def _scores_by_width(
    current: EmbeddingPass,
    tasks: Sequence[evaluation.EvalTask],
    template: InstructionTemplate,
    arguments: TrainingArguments,
    widths: Sequence[int],
) -> dict[str, dict[str, float]]:
    """As `_scorer`, of the model cut to each width."""
    mine = tasks[arguments.process_index :: arguments.world_size]
    results = scores_by_width(current, template, mine, widths)
    return {str(width): _summary(found, tasks, arguments) for width, found in results.items()}


def _summary(
    mine: list[evaluation.Result], tasks: Sequence[evaluation.EvalTask], arguments: TrainingArguments
) -> dict[str, float]:
    """Scores from the results of all ranks."""
    parts = [mine]
    if arguments.world_size > 1:
        parts = [[] for _ in range(arguments.world_size)]
        dist.all_gather_object(parts, mine)
    results = {result.task: result for part in parts for result in part}
    return evaluation.summarise([results[task.name] for task in tasks])


def _describe(
    recipe: Recipe,
    sampler: SingleTaskBatchSampler,
    tables: Sequence[TaskTable],
    template: InstructionTemplate,
    embedding_pass: EmbeddingPass,
    used: set[int] | None,
) -> str:
    device = embedding_pass.model.device
    precision = str(embedding_pass.precision).removeprefix("torch.")
    reason = best_precision(device)[1] if recipe.precision == "auto" else "as the recipe says"
    lines = [sampler.describe(), f"{_total_steps(recipe, sampler)} steps on {device}, {precision} ({reason})"]
    lines.append(str(count_parameters(embedding_pass)))
    if used is not None:
        lines.append(f"token table: the {len(used):,} rows in use are trained")
    if not template.reads_instruction and any(table.rows[0]["query"]["instruction"] for table in tables):
        lines.append("the data hold instructions, but the prompts template has no place for one: they are not used")
    return "\n".join(lines)


def _data_counts(tables: Sequence[TaskTable], sampler: SingleTaskBatchSampler) -> list[dict[str, Any]]:
    return [
        {
            "name": table.name,
            "task": table.task_type,
            "rows": len(table.rows),
            "rejected": table.rejected,
            "steps_per_epoch": sampler.steps[table.name],
            "leftover_per_epoch": sampler.leftover[table.name],
        }
        for table in tables
    ]


def _settings(embedding_pass: EmbeddingPass, arguments: TrainingArguments, seconds: float) -> dict[str, Any]:
    return {
        "device": str(embedding_pass.model.device),
        "processes": arguments.world_size,
        "threads": torch.get_num_threads(),
        "precision": str(embedding_pass.precision).removeprefix("torch."),
        "attention": embedding_pass.transformer.model.config._attn_implementation,
        "parameters": count_parameters(embedding_pass)._asdict(),
        "training_seconds": round(seconds, 1),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("torch", "transformers", "sentence-transformers")},
    }
