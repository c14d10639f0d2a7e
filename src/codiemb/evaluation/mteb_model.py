"""A model as mteb takes it: every text goes through the one text path, with the prompt of its task and side."""

from __future__ import annotations

import difflib
import hashlib
import json
import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from mteb.abstasks.abstask import get_abstask_prompt
from mteb.abstasks.task_metadata import TaskMetadata
from mteb.models import ModelMeta
from mteb.models.abs_encoder import AbsEncoder
from mteb.models.model_meta import ScoringFunction
from mteb.types import PromptType

import codiemb
from codiemb.embedder import LLMEmbeddingModel
from codiemb.fingerprint import fingerprint
from codiemb.instructions import TASK_INSTRUCTIONS, TaskInstruction
from codiemb.prompts import PromptedText, Side

logger = logging.getLogger(__name__)

Instructions = Mapping[str, TaskInstruction]

_WINDOW = 1024  # texts between two reports of progress


class InstructedEncoder(AbsEncoder):
    """`LLMEmbeddingModel` behind mteb's interface; similarity is the cosine.

    Queries of asymmetric tasks and all texts of symmetric ones take the template's query side with the task's
    instruction, documents its document side, as in training. The instruction is the first there is of: the caller's,
    codiemb's table, the one mteb has for the task, the one mteb has for tasks of its kind. A template that reads no
    instruction has one prompt for each side.

    Args:
        name: how results call the model, `organisation/model`.
        instructions: the caller's own, by task.
    Attributes:
        mteb_model_meta: its revision is a hash of the model's fingerprint and of all settings of the run that change
            scores, which are spelled out in `loader_kwargs`: results of other weights or settings lie elsewhere.
        prompts: of each task encoded so far, the prompt of each side.
        on_progress: called with the characters of a task's texts that were embedded since the last call.
    Raises:
        ValueError: instructions are given, and the model's template reads none.
    """

    def __init__(self, model: LLMEmbeddingModel, name: str, instructions: Instructions | None = None) -> None:
        if instructions and not model.template.reads_instruction:
            raise ValueError(
                f"{name} reads no instruction: its template is {model.template.to_dict()}. Leave the instructions "
                "out, or choose a template with {instruction}."
            )
        self.model = model
        self.instructions = instructions or {}
        self.prompts: dict[str, dict[Side, str]] = {}
        self.on_progress: Callable[[int], None] | None = None
        self.mteb_model_meta = _meta(model, name, self.instructions)

    def encode(  # the hf_ arguments and the dataloader's options are mteb's
        self,
        inputs: Any,
        *,
        task_metadata: TaskMetadata,
        hf_split: str = "",
        hf_subset: str = "",
        prompt_type: PromptType | None = None,
        **_: Any,
    ) -> np.ndarray:
        """Embed the texts of a dataloader, float32 (texts, dim).

        Raises:
            ValueError: an embedding that is not finite.
        """
        side: Side = "document" if prompt_type == PromptType.document else "query"
        prompt = instruction_of(task_metadata, self.instructions).prompt(self.model.template, side)
        self.prompts.setdefault(task_metadata.name, {})[side] = prompt
        texts = [text for batch in inputs for text in batch["text"]]
        if self.model.template.reads_instruction and side == "query" and not prompt:
            logger.warning(
                "%s: the model's template reads an instruction and the task has none, so texts get no prompt. Give one "
                "with the instructions (--instructions).",
                task_metadata.name,
            )
        vectors = self.model.embedding_pass.encode(
            (PromptedText(prompt, text) for text in texts), window=_WINDOW, on_progress=self._reporter(texts)
        )
        if not np.isfinite(vectors).all():
            text = texts[int(np.argmin(np.isfinite(vectors).all(axis=1)))]
            raise ValueError(f"The embedding of {text[:60]!r} is not finite. Try --compute fp32.")
        return vectors

    def _reporter(self, texts: Sequence[str]) -> Callable[[int], None]:
        """Takes the number of texts just embedded, and reports their characters."""
        left = iter(texts)

        def report(count: int) -> None:
            if self.on_progress:
                self.on_progress(sum(map(len, islice(left, count))))

        return report


def instruction_of(task: TaskMetadata, own: Instructions) -> TaskInstruction:
    """What a model is told about a task, by the order in `InstructedEncoder`."""
    if task.name in own:
        return own[task.name]
    if task.name in TASK_INSTRUCTIONS:
        return TASK_INSTRUCTIONS[task.name]
    prompt = get_abstask_prompt(task.name) if task.prompt is None else task.prompt
    if isinstance(prompt, str):
        return TaskInstruction(query=prompt)
    return TaskInstruction(query=prompt.get("query", ""), document=prompt.get("document", ""))


def read_instructions(path: Path, tasks: Collection[str]) -> dict[str, TaskInstruction]:
    """Read a JSON or YAML file of instructions: by task a text, or `query` and `document`.

    A text is for queries, or for all texts of a symmetric task.

    Args:
        tasks: names that may be there.
    Raises:
        ValueError: another shape, or a name that is no task.
    """
    content = path.read_text(encoding="utf-8")
    try:
        table = json.loads(content) if path.suffix == ".json" else yaml.safe_load(content)
    except (ValueError, yaml.YAMLError) as error:
        raise ValueError(f"{path}: cannot be read: {error}") from error
    if not isinstance(table, dict):
        raise ValueError(f"{path}: expected a mapping of task names to instructions, got {type(table).__name__}.")
    instructions = {}
    for name, value in table.items():
        if name not in tasks:
            near = difflib.get_close_matches(str(name), tasks, n=3)
            hint = f" The nearest names are: {', '.join(near)}." if near else ""
            raise ValueError(f"{path}: {name}: no such task.{hint}")
        sides = {"query": value} if isinstance(value, str) else value
        if (
            not isinstance(sides, dict)
            or not sides.keys() <= {"query", "document"}
            or not all(isinstance(text, str) for text in sides.values())
        ):
            raise ValueError(f"{path}: {name}: got {value!r}, expected a text, or texts named query and document.")
        instructions[name] = TaskInstruction(query=sides.get("query", ""), document=sides.get("document", ""))
    return instructions


def _meta(model: LLMEmbeddingModel, name: str, instructions: Instructions) -> ModelMeta:
    embedding_pass = model.embedding_pass
    settings: dict[str, Any] = {
        "max_length": embedding_pass.max_length,
        "precision": str(embedding_pass.precision).removeprefix("torch."),
        "truncate_dim": model.truncate_dim,
        "instructions": {task: asdict(texts) for task, texts in sorted(instructions.items())},
    }
    identity = json.dumps([fingerprint(model), settings], sort_keys=True)
    return ModelMeta.create_empty(
        {
            "name": name,
            "revision": hashlib.blake2b(identity.encode(), digest_size=6).hexdigest(),
            "n_parameters": sum(parameter.numel() for parameter in model.parameters()),
            "max_tokens": embedding_pass.max_length,
            "embed_dim": embedding_pass.dimension,
            "similarity_fn_name": ScoringFunction.COSINE,
            "framework": ["Sentence Transformers", "PyTorch"],
            "use_instructions": model.template.reads_instruction,
            "loader_kwargs": {**settings, "template": model.template.to_dict(), "codiemb": codiemb.__version__},
        }
    )
