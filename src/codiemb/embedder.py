"""`LLMEmbeddingModel`: a sentence-transformers model whose every way to encode is the one text path.

Prompts. Every method reads at most one prompt, in this order:

1. `instruction=`: a text, or a task's name in `codiemb.instructions`; the model's template makes the prompt of it. It
   says all there is to say, so together with `prompt=` or `prompt_name=` it is an error.
2. `prompt=`: the string itself; it wins over `prompt_name=`, as in sentence-transformers.
3. `prompt_name=`: a key of the model's `prompts`.
4. The model's own: `encode_query` and `encode_queries` take its `query` prompt, `encode_document` and
   `encode_passages` its `document`, `passage` or `corpus` prompt, `encode` its default prompt, if it has these.
"""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal, TypedDict, TypeVar, cast
from weakref import WeakKeyDictionary

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Transformer
from sentence_transformers.util.decorators import deprecated_kwargs
from tqdm.auto import tqdm
from typing_extensions import Unpack

from codiemb import backbones
from codiemb.encoding import EmbeddingPass, renders_chat
from codiemb.instructions import instruction_for
from codiemb.model_source import check_device, find
from codiemb.prompts import TEMPLATES, InstructionTemplate, PromptedText, Side

logger = logging.getLogger(__name__)

Compute = Literal["auto", "bf16", "fp32"]
Precision = Literal["float32", "int8", "uint8", "binary", "ubinary"]

_COMPUTE: Mapping[Compute, torch.dtype | None] = {"auto": None, "bf16": torch.bfloat16, "fp32": torch.float32}
_BACKENDS = ("torch", "onnx", "openvino")
_EMPTY_TYPES: Mapping[str, type] = {
    "float32": np.float32,
    "int8": np.int8,
    "uint8": np.uint8,
    "binary": np.int8,
    "ubinary": np.uint8,
}
_PROMPT_NAMES: Mapping[Side, tuple[str, ...]] = {"query": ("query",), "document": ("document", "passage", "corpus")}
_NO_LIMIT = 2**31 - 1  # texts of one forward pass, where the token budget alone decides
# By the first module, which models may share; not an attribute, since locks are not copied with a model.
_TURNS: WeakKeyDictionary[torch.nn.Module, threading.RLock] = WeakKeyDictionary()


Method = TypeVar("Method", bound=Callable[..., Any])


def _accepts_sentences(method: Method) -> Method:
    """Take the older keyword `sentences=` for `inputs=`, as sentence-transformers does."""
    return cast(Method, deprecated_kwargs(sentences="inputs")(method))


class EncodeOptions(TypedDict, total=False):
    """Options of `LLMEmbeddingModel.encode` that its other methods take too."""

    batch_size: int | None
    show_progress_bar: bool | None
    output_value: Literal["sentence_embedding", "token_embeddings"] | None
    precision: Precision | None
    convert_to_numpy: bool
    convert_to_tensor: bool
    device: str | torch.device | list[str] | None
    normalize_embeddings: bool
    truncate_dim: int | None
    pool: dict[str, Any] | None
    chunk_size: int | None


class LLMEmbeddingModel(SentenceTransformer):
    """An embedding model: load it by name, give texts and an instruction, get vectors.

    It is a `SentenceTransformer`, for trainers, evaluators and all else that takes one. Several threads may use it: it
    embeds for one at a time, since they would share its device and need their memory at once.

    Args:
        name: `bundled`, a directory, a hub id, or a loaded model, whose modules are shared.
        device: as torch names it; the best there is if None.
        attention: implementation in transformers; its default if None.
        template: how instructions become prompts, by name or itself; None takes the model's own.
        bidirectional: whether each token sees the later ones; if None, as a published model says, and yes for a bare
            decoder.
        compute: `bf16` autocast, `fp32`, or the faster of both on the device.
        max_length: tokens a text is cut to, prompt and special tokens included, up to what the network reads; the
            model's own limit if None.
        token_budget: padded tokens of one forward pass; None takes a good one for the device.
        truncate_dim: keep this many leading dimensions of each vector; None keeps all.
        backend: `torch`, `onnx` or `openvino`, as sentence-transformers has them.
        options: further arguments of `SentenceTransformer`: `revision`, `token`, `trust_remote_code`, `model_kwargs`...
    Raises:
        ModelError: the model cannot be loaded, or the device is not there.
        ValueError: an argument is out of range, or an unknown template.
    """

    def __init__(
        self,
        name: str | Path | SentenceTransformer = "bundled",
        *,
        device: str | None = None,
        attention: backbones.Attention | None = None,
        template: str | InstructionTemplate | None = None,
        bidirectional: bool | None = None,
        compute: Compute = "auto",
        max_length: int | None = None,
        token_budget: int | None = None,
        truncate_dim: int | None = None,
        backend: Literal["torch", "onnx", "openvino"] = "torch",
        **options: Any,
    ) -> None:
        _check_choices(template, compute, backend, max_length, token_budget, truncate_dim)
        if isinstance(name, SentenceTransformer):
            fixed = {"attention": attention, "bidirectional": bidirectional}
            if given := [option for option, value in fixed.items() if value is not None]:
                raise ValueError(f"{given[0]}={fixed[given[0]]!r}, but a loaded model keeps its own. Load it by name.")
            super().__init__(**{**_shared(name, device, truncate_dim), **options})
            self.prompts = options.get("prompts") or dict(name.prompts)  # without the empty ones that are added
            own = getattr(name, "template", None) or backbones.template_of(name)
        else:
            with backbones.explained(name):
                source = find(name, **options)
                loading = {"attention": attention, "truncate_dim": truncate_dim, "backend": backend, **options}
                super().__init__(**backbones.arguments(source, device=device, **loading))
                backbones.complete(self, source, bidirectional)
            own = backbones.template_of(self, source)
        self._instruction_is_lost = False
        self.compute = compute
        self.token_budget = token_budget
        self.template: InstructionTemplate = own
        if template is not None:
            self.template = TEMPLATES[template] if isinstance(template, str) else template
            backbones.set_prompts(self, self.template, None)
        if max_length is not None:
            limit = backbones.positions(self)
            if limit is not None and max_length > limit:
                raise ValueError(f"max_length={max_length}, but the network reads at most {limit} tokens.")
            self.max_seq_length = max_length

    @property
    def embedding_pass(self) -> EmbeddingPass:
        """The text path that every method goes through, for the device and length limit of now.

        Raises:
            ValueError: the model's first module is no Transformer, or puts texts into a chat template. The methods of
                such a model encode as those of sentence-transformers do.
        """
        key = (self.device, self.max_seq_length, self.compute, self.token_budget)
        known: tuple[object, EmbeddingPass] | None = self.__dict__.get("_pass")
        if known is None or known[0] != key:
            known = key, EmbeddingPass(self, token_budget=self.token_budget, precision=_COMPUTE[self.compute])
            # Not an attribute: torch would make the pass, which holds this model, a module of this model.
            self.__dict__["_pass"] = known
        return known[1]

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "_pass"}

    def prompt_for(self, side: Side, instruction: str | None = None) -> str:
        """The string that is put before a text on `side`.

        Args:
            instruction: a text or a task's name; None shows the model's own prompt.
        """
        if instruction is None:
            names = (*_PROMPT_NAMES[side], self.default_prompt_name)
            return next((self.prompts[name] for name in names if name is not None and name in self.prompts), None) or ""
        if instruction and not self.template.reads_instruction and not self._instruction_is_lost:
            self._instruction_is_lost = True
            logger.warning(
                "The instruction is not read: this model's template %s has no place for one.", self.template.to_dict()
            )
        return instruction_for(instruction).prompt(self.template, side) if instruction else self.template.prompt(side)

    # -- encoding ------------------------------------------------------------------------------------------------

    @_accepts_sentences
    def encode(
        self,
        inputs: str | Iterable[str],
        prompt_name: str | None = None,
        prompt: str | None = None,
        batch_size: int | None = None,
        show_progress_bar: bool | None = None,
        output_value: Literal["sentence_embedding", "token_embeddings"] | None = "sentence_embedding",
        precision: Precision | None = "float32",
        convert_to_numpy: bool = True,
        convert_to_tensor: bool = False,
        device: str | torch.device | list[str] | None = None,
        normalize_embeddings: bool = False,
        truncate_dim: int | None = None,
        pool: dict[str, Any] | None = None,
        chunk_size: int | None = None,
        *,
        instruction: str | None = None,
        **kwargs: Any,
    ) -> Any:
        """Embed texts that have no sides, or with a prompt of your own.

        Args:
            inputs: a text, or any number of them.
            prompt_name: a key of the model's `prompts`.
            prompt: the prompt itself.
            batch_size: at most so many texts in one forward pass; None lets the token budget alone decide.
            show_progress_bar: None shows one where sentence-transformers logs at level INFO.
            output_value: `token_embeddings` or None (everything) instead of one vector a text, by the slower path of
                sentence-transformers.
            precision: `int8` and `uint8` scale each dimension to its range over these texts, `binary` and `ubinary`
                pack signs, 8 to a byte, as sentence-transformers does.
            convert_to_numpy: False gives a list of tensors.
            convert_to_tensor: one tensor, on the model's device.
            device: where to run; several run one process each, for many texts.
            normalize_embeddings: unit length, after truncation.
            truncate_dim: keep this many leading dimensions; None keeps those of the model.
            pool: processes of `start_multi_process_pool`.
            chunk_size: texts that a process takes at once.
            instruction: a text or a task's name, read as on the query side.
            kwargs: as sentence-transformers takes them: `task`, `processing_kwargs`.
        Returns: (texts, dim), or (dim,) for a single text; (0, dim) for none.
        Raises:
            TypeError: an input is not a text; the message has its index.
            ValueError: the instruction contradicts the prompt, resembles a task's name, or leaves no room for a text.
            ModelError: the device is not there.

        What has no characters (an empty text, white space) is embedded from the special tokens around it; where the
        prompt is not pooled and there are none, it is zeros. Half a character (a lone surrogate) is read as U+FFFD.
        """
        single = isinstance(inputs, str)
        texts = [inputs] if isinstance(inputs, str) else _texts(inputs)
        if instruction is not None:
            prompt = self._instructed("query", instruction, prompt_name, prompt)
        for one in device if isinstance(device, (list, tuple)) else [device]:
            if one is not None:
                check_device(one)
        precision = precision or "float32"  # evaluators of sentence-transformers pass None
        if precision not in _EMPTY_TYPES:
            raise ValueError(f"precision={precision!r}, expected one of: {', '.join(_EMPTY_TYPES)}.")
        if truncate_dim is not None and truncate_dim < 1:
            raise ValueError(f"truncate_dim={truncate_dim}, expected at least 1.")
        with _TURNS.setdefault(self[0], threading.RLock()):
            if not texts and output_value == "sentence_embedding":
                return self._no_vectors(precision, truncate_dim, convert_to_numpy, convert_to_tensor)
            return super().encode(
                texts[0] if single else texts,
                prompt_name=prompt_name,
                prompt=prompt,
                batch_size=_NO_LIMIT if batch_size is None else batch_size,
                show_progress_bar=show_progress_bar,
                output_value=output_value,
                precision=precision,
                convert_to_numpy=convert_to_numpy,
                convert_to_tensor=convert_to_tensor,
                device=device,
                normalize_embeddings=normalize_embeddings,
                truncate_dim=truncate_dim,
                pool=pool,
                chunk_size=chunk_size,
                **kwargs,
            )

    @_accepts_sentences
    def encode_query(
        self,
        inputs: str | Iterable[str],
        prompt_name: str | None = None,
        prompt: str | None = None,
        *,
        instruction: str | None = None,
        **options: Unpack[EncodeOptions],
    ) -> Any:
        """Embed queries, or the texts of a symmetric task; options as of `encode`."""
        return self._encode_side("query", inputs, prompt_name, prompt, instruction, options)

    @_accepts_sentences
    def encode_document(
        self,
        inputs: str | Iterable[str],
        prompt_name: str | None = None,
        prompt: str | None = None,
        *,
        instruction: str | None = None,
        **options: Unpack[EncodeOptions],
    ) -> Any:
        """Embed documents; options as of `encode`."""
        return self._encode_side("document", inputs, prompt_name, prompt, instruction, options)

    def encode_queries(
        self, queries: str | Sequence[str], *, instruction: str | None = None, **options: Unpack[EncodeOptions]
    ) -> Any:
        """`encode_query` by the name it has in `codiemb.interface`."""
        return self.encode_query(queries, instruction=instruction, **options)

    def encode_passages(
        self, passages: str | Sequence[str], *, instruction: str | None = None, **options: Unpack[EncodeOptions]
    ) -> Any:
        """`encode_document` by the name it has in `codiemb.interface`."""
        return self.encode_document(passages, instruction=instruction, **options)

    def compute_similarity(
        self, queries: str | Sequence[str], passages: str | Sequence[str], *, instruction: str | None = None
    ) -> np.ndarray:
        """Similarity of each query with each passage by the model's own measure, float32 (queries, passages)."""
        rows = np.atleast_2d(self.encode_queries(queries, instruction=instruction))
        columns = np.atleast_2d(self.encode_passages(passages, instruction=instruction))
        return self.similarity(rows, columns).cpu().numpy()

    # -- how ------------------------------------------------------------------------------------------------------

    def _encode_side(
        self,
        side: Side,
        inputs: str | Iterable[str],
        prompt_name: str | None,
        prompt: str | None,
        instruction: str | None,
        options: EncodeOptions,
    ) -> Any:
        if instruction is not None:
            prompt = self._instructed(side, instruction, prompt_name, prompt)
        elif prompt is None and prompt_name is None:
            prompt = self.prompt_for(side)
        # The side is also the task that a model with a module for each side goes by.
        return self.encode(inputs, prompt_name, prompt, task=side, **options)

    def _instructed(self, side: Side, instruction: str, prompt_name: str | None, prompt: str | None) -> str:
        if prompt is not None or prompt_name is not None:
            raise ValueError(
                f"instruction={instruction!r} was given together with prompt={prompt!r} and "
                f"prompt_name={prompt_name!r}. Give either the instruction or the prompt."
            )
        return self.prompt_for(side, instruction)

    def _no_vectors(self, precision: Precision, truncate_dim: int | None, as_numpy: bool, as_tensor: bool) -> Any:
        dimension = self._dimension(truncate_dim)
        if precision in ("binary", "ubinary"):
            dimension = -(-dimension // 8)
        vectors: np.ndarray = np.zeros((0, dimension), dtype=_EMPTY_TYPES[precision])
        if as_tensor:
            return torch.from_numpy(vectors).to(self.device)
        return vectors if as_numpy else []

    def _dimension(self, truncate_dim: int | None) -> int:
        with self.truncate_embeddings(truncate_dim or self.truncate_dim):
            return int(self.get_embedding_dimension() or 0)

    @torch.inference_mode()
    def _inference(self, inputs: list[str], **options: Any) -> Any:
        """Where sentence-transformers runs the network, in this process or in one of a pool."""
        max_rows = None if options["batch_size"] == _NO_LIMIT else options["batch_size"]
        own_path = isinstance(self[0], Transformer) and not renders_chat(self[0])
        if not own_path or options["output_value"] != "sentence_embedding" or options.get("processing_kwargs"):
            return super()._inference(inputs, **{**options, "batch_size": max_rows or 32})
        device = self._resolve_inference_device(options["device"])
        prompt, truncate_dim = options["prompt"] or "", options["truncate_dim"]
        texts = (PromptedText(prompt, text) for text in inputs)
        with ExitStack() as stack:
            if self.truncate_dim is not None and truncate_dim is not None and truncate_dim > self.truncate_dim:
                stack.enter_context(self.truncate_embeddings(truncate_dim))
            bar = stack.enter_context(tqdm(total=len(inputs), unit="text", disable=not options["show_progress_bar"]))
            vectors = self.embedding_pass.encode(texts, max_rows=max_rows, on_progress=bar.update)
        embeddings = torch.from_numpy(vectors)[:, :truncate_dim]
        if options["normalize_embeddings"]:
            embeddings = torch.nn.functional.normalize(embeddings, dim=1)
        return embeddings if options["save_to_cpu"] else embeddings.to(device)

    # -- saving --------------------------------------------------------------------------------------------------

    def save(self, path: str, *args: Any, **options: Any) -> None:
        """Write a plain sentence-transformers directory, the template beside it."""
        super().save(path, *args, **options)
        backbones.write_common_files(self, Path(path), self.template)


def _check_choices(
    template: str | InstructionTemplate | None,
    compute: str,
    backend: str,
    max_length: int | None,
    token_budget: int | None,
    truncate_dim: int | None,
) -> None:
    if isinstance(template, str) and template not in TEMPLATES:
        raise ValueError(f"template={template!r} is unknown. There are: {', '.join(TEMPLATES)}.")
    if not isinstance(template, str | InstructionTemplate | None):
        raise TypeError(f"template is {_shown(template)}, expected a name or an InstructionTemplate.")
    for choice, given, known in (("compute", compute, _COMPUTE), ("backend", backend, _BACKENDS)):
        if given not in known:
            raise ValueError(f"{choice}={given!r}, expected one of: {', '.join(known)}.")
    for option, value in (("max_length", max_length), ("token_budget", token_budget), ("truncate_dim", truncate_dim)):
        if value is not None and value < 1:
            raise ValueError(f"{option}={value}, expected at least 1.")


def _shared(model: SentenceTransformer, device: str | None, truncate_dim: int | None) -> dict[str, Any]:
    """Arguments that give a model with the modules and settings of `model`."""
    if device is not None:
        check_device(device)
    return {
        "modules": OrderedDict(model.named_children()),
        "device": device or str(model.device),
        "prompts": dict(model.prompts),
        "default_prompt_name": model.default_prompt_name,
        "similarity_fn_name": model.similarity_fn_name,
        "truncate_dim": truncate_dim or model.truncate_dim,
        "backend": model.backend,
    }


def _texts(inputs: Iterable[str]) -> list[str]:
    if isinstance(inputs, (bytes, Mapping)) or not isinstance(inputs, Iterable):
        raise TypeError(f"inputs is {_shown(inputs)}, expected a text or a sequence of texts.")
    texts = list(inputs)
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            raise TypeError(f"inputs[{index}] is {_shown(text)}, expected a text (str).")
    return texts


def _shown(value: object) -> str:
    return "None" if value is None else f"{str(value)[:40]!r} ({type(value).__name__})"
