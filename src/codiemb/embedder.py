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
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypedDict, TypeVar, cast

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.util.decorators import deprecated_kwargs
from tqdm.auto import tqdm
from typing_extensions import Unpack

from codiemb import backbones
from codiemb.encoding import EmbeddingPass
from codiemb.instructions import instruction_for
from codiemb.prompts import TEMPLATES, InstructionTemplate, PromptedText, Side

logger = logging.getLogger(__name__)

Compute = Literal["auto", "bf16", "fp32"]
Precision = Literal["float32", "int8", "uint8", "binary", "ubinary"]

_COMPUTE: Mapping[Compute, torch.dtype | None] = {"auto": None, "bf16": torch.bfloat16, "fp32": torch.float32}
_EMPTY_TYPES: Mapping[str, type] = {
    "float32": np.float32,
    "int8": np.int8,
    "uint8": np.uint8,
    "binary": np.int8,
    "ubinary": np.uint8,
}
_PROMPT_NAMES: Mapping[Side, tuple[str, ...]] = {"query": ("query",), "document": ("document", "passage", "corpus")}
_NO_LIMIT = 2**31 - 1  # texts of one forward pass, where the token budget alone decides


Method = TypeVar("Method", bound=Callable[..., Any])


def _accepts_sentences(method: Method) -> Method:
    """Take the older keyword `sentences=` for `inputs=`, as sentence-transformers does."""
    return cast(Method, deprecated_kwargs(sentences="inputs")(method))


class EncodeOptions(TypedDict, total=False):
    """Options of `LLMEmbeddingModel.encode` that its other methods take too."""

    batch_size: int | None
    show_progress_bar: bool | None
    output_value: Literal["sentence_embedding", "token_embeddings"] | None
    precision: Precision
    convert_to_numpy: bool
    convert_to_tensor: bool
    device: str | list[str] | None
    normalize_embeddings: bool
    truncate_dim: int | None
    pool: dict[str, Any] | None
    chunk_size: int | None


class LLMEmbeddingModel(SentenceTransformer):
    """An embedding model: load it by name, give texts and an instruction, get vectors.

    It is a `SentenceTransformer`, for trainers, evaluators and all else that takes one.

    Args:
        name: `bundled`, a directory, a hub id, or a loaded model, whose modules are shared.
        device: as torch names it; the best there is if None.
        attention: implementation in transformers; its default if None.
        template: how instructions become prompts, by name or itself; None takes the model's own.
        compute: `bf16` autocast, `fp32`, or the faster of both on the device.
        max_length: tokens a text is cut to, prompt and special tokens included, up to what the network reads; the
            model's own limit if None.
        token_budget: padded tokens of one forward pass; None takes a good one for the device.
        truncate_dim: keep this many leading dimensions of each vector; None keeps all.
        backend: `torch`, `onnx` or `openvino`, as sentence-transformers has them.
        options: further arguments of `SentenceTransformer`: `revision`, `token`, `trust_remote_code`, `model_kwargs`...
    Raises:
        ModelError: the model cannot be loaded, or the device is not there.
        ValueError: an argument is out of range.
    """

    def __init__(
        self,
        name: str | Path | SentenceTransformer = "bundled",
        *,
        device: str | None = None,
        attention: backbones.Attention | None = None,
        template: str | InstructionTemplate | None = None,
        compute: Compute = "auto",
        max_length: int | None = None,
        token_budget: int | None = None,
        truncate_dim: int | None = None,
        backend: Literal["torch", "onnx", "openvino"] = "torch",
        **options: Any,
    ) -> None:
        with backbones.explained(name):
            super().__init__(
                **backbones.arguments(
                    name, device=device, attention=attention, truncate_dim=truncate_dim, backend=backend, **options
                )
            )
        self.compute = compute
        self.token_budget = token_budget
        if template is None:
            self.template = backbones.template_of(self, backbones.resolve(name))
        else:
            self.template = template if isinstance(template, InstructionTemplate) else TEMPLATES[template]
            backbones.set_prompts(self, self.template, None)
        if max_length is not None:
            self.max_seq_length = max_length

    @property
    def embedding_pass(self) -> EmbeddingPass:
        """The text path that every method goes through, for the device and length limit of now."""
        key = (self.device, self.max_seq_length, self.compute, self.token_budget)
        known: tuple[object, EmbeddingPass] | None = self.__dict__.get("_pass")
        if known is None or known[0] != key:
            known = key, EmbeddingPass(self, token_budget=self.token_budget, precision=_COMPUTE[self.compute])
            # Not an attribute: torch would make the pass, which holds this model, a module of this model.
            self.__dict__["_pass"] = known
        return known[1]

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "_pass"}

    def prompt_for(self, side: Side, instruction: str) -> str:
        """The string that is put before a text on `side` when `instruction` (a text or a task's name) is given."""
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
        precision: Precision = "float32",
        convert_to_numpy: bool = True,
        convert_to_tensor: bool = False,
        device: str | list[str] | None = None,
        normalize_embeddings: bool = False,
        truncate_dim: int | None = None,
        pool: dict[str, Any] | None = None,
        chunk_size: int | None = None,
        *,
        instruction: str | None = None,
        **kwargs: Any,
    ) -> Any:
        """Embed texts that have no sides, or with a prompt of your own."""
        single = isinstance(inputs, str)
        texts = [inputs] if isinstance(inputs, str) else list(inputs)
        if instruction is not None:
            prompt = self._instructed("query", instruction, prompt_name, prompt)
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
            prompt_name = next((name for name in _PROMPT_NAMES[side] if name in self.prompts), None)
        return self.encode(inputs, prompt_name, prompt, **options)

    def _instructed(self, side: Side, instruction: str, prompt_name: str | None, prompt: str | None) -> str:
        if prompt is not None or prompt_name is not None:
            raise ValueError(
                f"instruction={instruction!r} was given together with prompt={prompt!r} and "
                f"prompt_name={prompt_name!r}. Give either the instruction or the prompt."
            )
        return self.prompt_for(side, instruction)

    def _no_vectors(self, precision: str, truncate_dim: int | None, as_numpy: bool, as_tensor: bool) -> Any:
        dimension = int(self.get_embedding_dimension() or 0)
        dimension = min(truncate_dim or dimension, dimension)
        if precision in ("binary", "ubinary"):
            dimension = -(-dimension // 8)
        vectors: np.ndarray = np.zeros((0, dimension), dtype=_EMPTY_TYPES[precision])
        if as_tensor:
            return torch.from_numpy(vectors)
        return vectors if as_numpy else []

    @torch.inference_mode()
    def _inference(self, inputs: list[str], **options: Any) -> Any:
        """Where sentence-transformers runs the network, in this process or in one of a pool."""
        if options["output_value"] != "sentence_embedding" or options.get("processing_kwargs"):
            options["batch_size"] = min(options["batch_size"], 32)
            return super()._inference(inputs, **options)
        device = self._resolve_inference_device(options["device"])
        prompt = options["prompt"] or ""
        with tqdm(total=len(inputs), unit="text", disable=not options["show_progress_bar"]) as bar:
            vectors = self.embedding_pass.encode(
                (PromptedText(prompt, text) for text in inputs), on_progress=bar.update
            )
        embeddings = torch.from_numpy(vectors)[:, : options["truncate_dim"]]
        if options["normalize_embeddings"]:
            embeddings = torch.nn.functional.normalize(embeddings, dim=1)
        return embeddings if options["save_to_cpu"] else embeddings.to(device)
