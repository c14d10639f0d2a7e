"""The bounded-memory embedding pass: one text path for training, bulk encoding, mining, evaluation and serving.

Template -> tokenise -> dedupe -> sort by length -> chunk by token budget -> forward -> pool -> scatter back.

Peak memory follows the token budget, not the number of texts. In training, the graph of the last chunk is kept and
the other chunks are recomputed one at a time in the backward pass with the random state of their first run. This is
GradCache (Gao et al., 2021, arXiv:2101.06983) written as activation checkpointing of whole chunks, so the gradient is
the one-pass gradient, with dropout on, for any loss.
"""

from __future__ import annotations

import ctypes
import logging
import sys
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers.tokenization_utils_base import LARGE_INTEGER

from codiemb.inference import InferenceCopy, worker_pool
from codiemb.prompts import PromptedText
from codiemb.texts import leading_part, without_lone_surrogates

logger = logging.getLogger(__name__)

# Padded tokens of one forward pass. On a CPU, small chunks stay in its caches and have little padding: training a batch
# of short sentences was 1.3 times as fast with 2048 as with 4096. A GPU wants enough work for all its units.
_CPU_TOKEN_BUDGET, _GPU_TOKEN_BUDGET = 2048, 16384
_LEAST_CHUNK = 256  # tokens that are worth a chunk of their own, where another worker could take them
_CHUNKS_BETWEEN_RETURNS = 8  # of free memory to the system
_C_LIBRARY = ctypes.CDLL(None) if sys.platform == "linux" else None
WINDOW = 4096  # texts that are sorted by length together in bulk encoding


def best_precision(device: torch.device) -> tuple[torch.dtype, str]:
    """The faster of bfloat16 autocast and float32 on `device`, and the reason."""
    if device.type == "cuda":
        if torch.cuda.get_device_capability(device)[0] >= 8:
            return torch.bfloat16, "the GPU multiplies bfloat16 in hardware"
        return torch.float32, "the GPU has no bfloat16 units"
    if device.type == "cpu":
        if torch.cpu._is_amx_tile_supported():
            return torch.bfloat16, "the processor has AMX"
        if torch.cpu._is_avx512_bf16_supported():
            return torch.bfloat16, "the processor has AVX512-BF16"
        return torch.float32, "the processor has neither AMX nor AVX512-BF16"
    return torch.float32, f"bfloat16 is not tried on {device.type}"


@dataclass(frozen=True)
class TokenBatch:
    """Tokenised texts, each distinct (prompt, text) once.

    Attributes:
        input_ids: token ids of the distinct texts, special tokens included, without padding.
        prompt_lengths: leading tokens of each that belong to its prompt.
        inverse: (texts,) int64, the row in `input_ids` of each text that was asked for.
        truncated: how many distinct texts were cut to the maximum length.
    """

    input_ids: list[list[int]]
    prompt_lengths: list[int]
    inverse: Tensor
    truncated: int

    @property
    def num_tokens(self) -> int:
        """Tokens of the distinct texts, without padding."""
        return sum(map(len, self.input_ids))


class Embeddings(NamedTuple):
    """What one pass gives, float32: `final` (texts, dim), and `middle` (texts, hidden) if it was asked for."""

    final: Tensor
    middle: Tensor | None


def plan_chunks(lengths: Sequence[int], token_budget: int, max_rows: int | None = None) -> list[list[int]]:
    """Cut the texts, shortest first, into chunks of at most `token_budget` padded tokens.

    Args:
        lengths: tokens of each text.
        token_budget: rows x longest row of a chunk stays within it; a longer text is a chunk of its own.
        max_rows: texts of a chunk; as many as the budget allows if None.
    Returns: indices into `lengths`, the longest texts in the last chunk.
    """
    chunks: list[list[int]] = []
    current: list[int] = []
    for index in sorted(range(len(lengths)), key=lengths.__getitem__):
        if current and ((len(current) + 1) * lengths[index] > token_budget or len(current) == max_rows):
            chunks.append(current)
            current = []
        current.append(index)
    if current:
        chunks.append(current)
    return chunks


class EmbeddingPass(nn.Module):
    """Embeds any number of texts with a sentence-transformers model in bounded memory, with or without gradients.

    Pooling, prompt exclusion, dense layers and normalisation are the model's own modules, applied as
    `SentenceTransformer.encode` applies them; rows of one chunk may have different prompts.

    Args:
        model: modules `Transformer`, `Pooling` and any that follow.
        token_budget: padded tokens of one forward pass; 2048 on a CPU, else 16384, if None.
        graph_budget: padded tokens whose graph may be kept between forward and backward; chunks beyond it are
            recomputed. The last chunk's graph is always kept: it costs no memory that recomputing would not.
        max_length: tokens a text is cut to, prompt and special tokens included; the model's own limit if None.
        precision: `torch.bfloat16` for autocast, `torch.float32` for none, None for the faster on the device.
        middle_layer: also pool the states of this hidden layer (1-based), for losses on the middle of the network.
    Raises:
        ValueError: the model has no Transformer module or reads chat messages, or an argument is out of range.

    The tokenizer is set to cut texts at their end, so that a prompt is never cut away, also after saving.
    """

    def __init__(
        self,
        model: SentenceTransformer,
        *,
        token_budget: int | None = None,
        graph_budget: int = 0,
        max_length: int | None = None,
        precision: torch.dtype | None = None,
        middle_layer: int | None = None,
    ) -> None:
        super().__init__()
        transformer = next(iter(model), None)
        if not isinstance(transformer, Transformer):
            raise ValueError(
                f"The model's first module is {type(transformer).__name__}, expected a sentence-transformers "
                "Transformer. Load it with codiemb.backbones.load()."
            )
        if renders_chat(transformer):
            raise ValueError(
                "This model reads texts as messages of its tokenizer's chat template, which the embedding pass does "
                "not do. Encode with sentence-transformers' own methods, or load the bare network it was made from."
            )
        if token_budget is None:
            token_budget = _CPU_TOKEN_BUDGET if model.device.type == "cpu" else _GPU_TOKEN_BUDGET
        if token_budget < 1 or graph_budget < 0:
            raise ValueError(
                f"token_budget={token_budget}, graph_budget={graph_budget}, expected at least 1 and 0 tokens."
            )
        if max_length is not None and max_length < 1:
            raise ValueError(f"max_length={max_length}, expected at least 1 token.")
        limit = model.max_seq_length
        if limit is not None and limit > LARGE_INTEGER:  # how a tokenizer says that it knows no limit
            limit = None
        if max_length is not None and limit is not None and max_length > limit:
            raise ValueError(f"max_length={max_length}, but the model reads at most {limit} tokens.")
        self.model = model
        self.token_budget = token_budget
        self.graph_budget = graph_budget
        self.max_length = max_length or limit
        self.precision = precision or best_precision(model.device)[0]
        self._memory_was_short = False
        self._copy: InferenceCopy | None = None
        self._prompt_tokens: dict[str, int] = {}
        model.tokenizer.truncation_side = "right"
        self.middle_layer = middle_layer
        if middle_layer is not None:
            layers = hidden_layers(transformer)
            if not 1 <= middle_layer <= len(layers):
                raise ValueError(f"middle_layer={middle_layer}, but the model has the layers 1 to {len(layers)}.")

    @property
    def transformer(self) -> Transformer:
        """The model's first module; `.model` of it is the network."""
        return self.model[0]

    @property
    def tokenizer(self) -> Any:
        """The model's tokenizer."""
        return self.model.tokenizer

    # -- tokens --------------------------------------------------------------------------------------------------

    def prompt_tokens(self, prompt: str) -> int:
        """Leading tokens that `prompt` takes, counted as sentence-transformers counts them.

        That is: the tokens of the prompt alone without a trailing special token. Where a tokenizer merges the end of
        the prompt with the start of a text, the merged token counts as prompt, there as here, so that both give the
        same vectors.

        Raises:
            ValueError: the prompt leaves no room for a text.
        """
        if prompt not in self._prompt_tokens:
            ids = self.tokenizer(without_lone_surrogates(prompt), add_special_tokens=True)["input_ids"]
            count = len(ids) - bool(ids and ids[-1] in self.tokenizer.all_special_ids)
            room = (self.max_length or len(ids) + 3) - len(ids)
            if prompt and room < 2:
                raise ValueError(
                    f"The prompt {prompt[:60]!r}... takes {len(ids)} tokens and the maximum length is "
                    f"{self.max_length}, which leaves no room for a text. Shorten the instruction or raise max_length."
                )
            self._prompt_tokens[prompt] = count if prompt else 0
        return self._prompt_tokens[prompt]

    def tokenize(self, texts: Sequence[PromptedText]) -> TokenBatch:
        """Tokenise each distinct text once; what is too long is cut at its end, never in its prompt."""
        rows: dict[PromptedText, int] = {}
        inverse = [rows.setdefault(text, len(rows)) for text in texts]
        distinct = list(rows)
        prompt_lengths = [self.prompt_tokens(text.prompt) for text in distinct]
        strings = [text.prompt + text.text for text in distinct]
        if not strings:
            return TokenBatch([], [], torch.empty(0, dtype=torch.int64), 0)
        try:
            encoded = self._cut_to_length(strings)
        except (TypeError, UnicodeError):  # how tokenizers refuse half a character
            strings = [without_lone_surrogates(string) for string in strings]
            encoded = self._cut_to_length(strings)
        input_ids = encoded["input_ids"]
        truncated = sum(
            len(ids) == self.max_length and bool(encoded.encodings is None or encoded.encodings[row].overflowing)
            for row, ids in enumerate(input_ids)
        )
        return TokenBatch(input_ids, prompt_lengths, torch.tensor(inverse, dtype=torch.int64), truncated)

    def _cut_to_length(self, strings: list[str]) -> Any:
        limit = self.max_length
        if limit is not None:
            strings = [leading_part(string, limit, self._all_tokens) for string in strings]
        return self.tokenizer(
            strings,
            truncation=limit is not None,
            max_length=limit,
            padding=False,
            return_attention_mask=False,
            return_token_type_ids=False,
        )

    def _all_tokens(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False, truncation=False, verbose=False)["input_ids"]

    # -- embedding -----------------------------------------------------------------------------------------------

    def forward(self, batch: TokenBatch, max_rows: int | None = None) -> Embeddings:
        """Embed a batch. With gradients enabled, the graph is bounded as described in the module's docstring.

        Args:
            max_rows: texts of one forward pass; as many as the token budget allows if None.
        Returns: row i belongs to text i of the texts that were tokenised.
        """
        return self._embed(batch, max_rows, self.transformer)

    def _embed(self, batch: TokenBatch, max_rows: int | None, network: Transformer) -> Embeddings:
        lengths = [len(ids) for ids in batch.input_ids]
        pool = worker_pool() if network is not self.transformer and self.precision == torch.bfloat16 else None
        chunks = plan_chunks(lengths, self._budget(sum(lengths), pool), max_rows)
        if torch.is_grad_enabled():
            outputs = self._embed_with_graph(batch, chunks, lengths)
        else:
            chunks, outputs = self._embed_within_memory(batch, chunks, lengths, network, pool)
        if not outputs:
            return Embeddings(torch.zeros(0, self.dimension, device=self.model.device), None)
        order = torch.tensor([row for chunk in chunks for row in chunk])
        position_of = torch.empty_like(order)
        position_of[order] = torch.arange(len(order))
        rows = position_of[batch.inverse].to(self.model.device)
        joined = [torch.cat(parts)[rows] for parts in zip(*outputs, strict=True)]
        return Embeddings(joined[0], joined[1] if self.middle_layer is not None else None)

    def _embed_with_graph(
        self, batch: TokenBatch, chunks: list[list[int]], lengths: list[int]
    ) -> list[tuple[Tensor, ...]]:
        first_kept = self._first_kept_chunk(chunks, lengths)
        outputs: list[tuple[Tensor, ...]] = []
        for position, chunk in enumerate(chunks):
            inputs = self._inputs(batch, chunk)
            if position < first_kept:
                outputs.append(checkpoint(self._embed_recomputed, position, *inputs, use_reentrant=False))
            else:
                outputs.append(self._embed_chunk(self.transformer, *inputs))
        return outputs

    def _embed_recomputed(self, position: int, *inputs: Any) -> tuple[Tensor, ...]:
        """Embed a chunk, in the forward pass and again in the backward pass."""
        if position % _CHUNKS_BETWEEN_RETURNS == 0 and self.model.device.type == "cpu":
            _return_free_memory()
        return self._embed_chunk(self.transformer, *inputs)

    def _embed_within_memory(
        self,
        batch: TokenBatch,
        chunks: list[list[int]],
        lengths: list[int],
        network: Transformer,
        pool: ThreadPoolExecutor | None,
    ) -> tuple[list[list[int]], list[tuple[Tensor, ...]]]:
        """Embed the chunks; where memory does not suffice for one, halve the token budget and cut the rest anew.

        Returns: the chunks as they were embedded, and their embeddings.
        """

        @torch.inference_mode()
        def embed(chunk: list[int]) -> tuple[Tensor, ...]:
            return self._embed_chunk(network, *self._inputs(batch, chunk))

        if pool is not None and len(chunks) > 1:
            try:
                return chunks, list(pool.map(embed, chunks))
            except (RuntimeError, MemoryError) as error:
                if not _is_out_of_memory(error):
                    raise
            # Several chunks at once were too many: one by one.
        done: list[list[int]] = []
        outputs: list[tuple[Tensor, ...]] = []
        while len(done) < len(chunks):
            chunk = chunks[len(done)]
            tokens = len(chunk) * lengths[chunk[-1]]
            try:
                outputs.append(self._embed_chunk(network, *self._inputs(batch, chunk)))
                done.append(chunk)
                continue
            except (RuntimeError, MemoryError) as error:  # torch.OutOfMemoryError is the former
                if not _is_out_of_memory(error):
                    raise
                if len(chunk) == 1:
                    raise torch.OutOfMemoryError(
                        f"There is not enough memory for a single text of {tokens} tokens: "
                        f"{str(error).partition(chr(10))[0]}\nLower max_length, now {self.max_length}."
                    ) from error
            # Only here are the failed pass's tensors free: inside `except`, its traceback holds them.
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            self.token_budget = max(1, min(self.token_budget, tokens) // 2)
            logger.log(
                logging.INFO if self._memory_was_short else logging.WARNING,
                "There is not enough memory for %d tokens at once; going on with token_budget=%d.",
                tokens,
                self.token_budget,
            )
            self._memory_was_short = True
            rest = [row for later in chunks[len(done) :] for row in later]
            cut = plan_chunks([lengths[row] for row in rest], self.token_budget, len(chunk))
            chunks = [*done, *([rest[row] for row in rows] for rows in cut)]
        return done, outputs

    def _budget(self, tokens: int, pool: ThreadPoolExecutor | None) -> int:
        """Padded tokens of a chunk; with several workers, such that all of them have work to the end."""
        if pool is None:
            return self.token_budget
        rounds = max(1, -(-tokens // (pool._max_workers * self.token_budget)))
        return min(self.token_budget, max(_LEAST_CHUNK, -(-tokens // (rounds * pool._max_workers))))

    def _inputs(self, batch: TokenBatch, chunk: list[int]) -> tuple[Tensor, Tensor, tuple[int, ...]]:
        prompts = tuple(batch.prompt_lengths[row] for row in chunk)
        return *self._pad([batch.input_ids[row] for row in chunk]), prompts

    @property
    def dimension(self) -> int:
        """Width of an embedding."""
        return int(self.model.get_embedding_dimension() or 0)

    def _first_kept_chunk(self, chunks: list[list[int]], lengths: list[int]) -> int:
        """The chunks from here on keep their graphs. Backward starts with the last one, so it is always kept."""
        first = max(len(chunks) - 1, 0)
        kept = len(chunks[first]) * lengths[chunks[first][-1]] if chunks else 0
        while first > 0:
            kept += len(chunks[first - 1]) * lengths[chunks[first - 1][-1]]
            if kept > self.graph_budget:
                break
            first -= 1
        return first

    def _pad(self, rows: list[list[int]]) -> tuple[Tensor, Tensor]:
        width = max(1, *map(len, rows))  # a text without any token is one masked position, and embeds as zeros
        pad = self.tokenizer.pad_token_id
        input_ids = np.full((len(rows), width), 0 if pad is None else pad, dtype=np.int64)
        mask = np.zeros((len(rows), width), dtype=np.int64)
        left = self.tokenizer.padding_side == "left"
        for row, ids in enumerate(rows):
            span = slice(width - len(ids), width) if left else slice(0, len(ids))
            input_ids[row, span] = ids
            mask[row, span] = 1
        device = self.model.device
        return torch.from_numpy(input_ids).to(device), torch.from_numpy(mask).to(device)

    def _embed_chunk(
        self, network: Transformer, input_ids: Tensor, mask: Tensor, prompt_lengths: tuple[int, ...]
    ) -> tuple[Tensor, ...]:
        # Autocast is entered per chunk, so that gradients of several chunks are summed in float32.
        low = self.precision != torch.float32
        with torch.autocast(input_ids.device.type, self.precision if low else torch.bfloat16, enabled=low):
            states, middle_states = self._token_states(network, input_ids, mask)
        final = self._pool(states.float(), mask, prompt_lengths, whole=True)[:, : self.model.truncate_dim]
        if middle_states is None:
            return (final,)
        middle = self._pool(middle_states.float(), mask, prompt_lengths, whole=False)
        return final, nn.functional.normalize(middle, dim=-1)

    def _token_states(self, network: Transformer, input_ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor | None]:
        """(batch, tokens, hidden) of the last layer, and of the middle layer if one was asked for."""
        inputs = {"input_ids": input_ids, "attention_mask": mask}
        if self.middle_layer is None:
            return network(inputs)["token_embeddings"], None
        seen: list[Tensor] = []
        layer = hidden_layers(network)[self.middle_layer - 1]

        def see(_layer: nn.Module, _inputs: object, output: Tensor | tuple[Tensor, ...]) -> None:
            seen.append(output[0] if isinstance(output, tuple) else output)

        with layer.register_forward_hook(see):
            return network(inputs)["token_embeddings"], seen[0]

    def _pool(self, states: Tensor, mask: Tensor, prompt_lengths: tuple[int, ...], *, whole: bool) -> Tensor:
        """Apply the modules after the transformer (`whole`), or the pooling alone.

        Pooling takes one prompt length a call, so rows are grouped by it; the arithmetic stays sentence-transformers'.
        """
        modules = list(self.model)[1:]
        if not whole:
            modules = [module for module in modules if isinstance(module, Pooling)]
        excluded = any(isinstance(module, Pooling) and not module.include_prompt for module in modules)
        lengths = prompt_lengths if excluded else (0,) * len(prompt_lengths)
        groups: dict[int, list[int]] = {}
        for row, length in enumerate(lengths):
            groups.setdefault(length, []).append(row)
        parts = []
        for length, rows in groups.items():
            select = slice(None) if len(groups) == 1 else torch.tensor(rows, device=states.device)
            features: dict[str, Any] = {"token_embeddings": states[select], "attention_mask": mask[select]}
            if length:
                features["prompt_length"] = length
            for module in modules:
                features = module(features)
            parts.append(features["sentence_embedding"])
        if len(parts) == 1:
            return parts[0]
        order = torch.tensor([row for rows in groups.values() for row in rows], device=states.device)
        return torch.cat(parts)[order.argsort()]

    # -- bulk encoding -------------------------------------------------------------------------------------------

    def encode(
        self,
        texts: Iterable[PromptedText],
        *,
        max_rows: int | None = None,
        window: int = WINDOW,
        on_progress: Callable[[int], None] | None = None,
        on_tokens: Callable[[TokenBatch], None] | None = None,
    ) -> np.ndarray:
        """Embed many texts without gradients; tokenisation runs ahead in a thread.

        Args:
            texts: read once, in windows.
            max_rows: texts of one forward pass; as many as the token budget allows if None.
            window: texts that are sorted by length together, and between two reports of progress.
            on_progress: called with the number of texts just embedded.
            on_tokens: called with the tokens of each window, once it is embedded.
        Returns: (texts, dim) float32, in the order given; (0, dim) for no texts.
        """
        parts: list[np.ndarray] = [np.zeros((0, self.dimension), dtype=np.float32)]
        truncated = 0
        source = iter(texts)
        windows = iter(lambda: list(islice(source, window)), [])
        with closing(self.encode_windows(windows, max_rows=max_rows)) as encoded:
            for vectors, batch in encoded:
                parts.append(vectors)
                truncated += batch.truncated
                if on_tokens:
                    on_tokens(batch)
                if on_progress:
                    on_progress(len(vectors))
        if truncated:
            logger.warning("%d distinct texts were cut to %d tokens.", truncated, self.max_length)
        return np.concatenate(parts)

    def encode_windows(
        self, windows: Iterable[Sequence[PromptedText]], *, max_rows: int | None = None
    ) -> Generator[tuple[np.ndarray, TokenBatch], None, None]:
        """Embed texts window by window, in constant memory; within a window they are sorted by length.

        Close the generator, or read it to its end: until then the model is in evaluation mode.

        Yields: for each window its (texts, dim) float32 and its tokens.
        """
        in_training = [module for module in self.modules() if module.training]
        self.eval()
        copied = self._copy
        if copied is None or not copied.is_current():
            copied = self._copy = InferenceCopy(self.transformer, self.precision)
        try:
            with closing(self._tokenized(windows)) as batches:
                for batch in batches:
                    with torch.inference_mode():
                        vectors = self._embed(batch, max_rows, copied.transformer).final.cpu().numpy()
                    yield vectors, batch
        finally:
            for module in in_training:
                module.training = True
            if self.transformer.model.training:
                self._copy = None  # training needs the memory, and changes the weights

    def _tokenized(self, windows: Iterable[Sequence[PromptedText]]) -> Generator[TokenBatch, None, None]:
        with ThreadPoolExecutor(max_workers=1) as executor:
            ahead = None
            for window in windows:
                pending, ahead = ahead, executor.submit(self.tokenize, window)
                if pending is not None:
                    yield pending.result()
            if ahead is not None:
                yield ahead.result()


def renders_chat(transformer: nn.Module) -> bool:
    """Whether sentence-transformers puts each text into the tokenizer's chat template, as it does by default."""
    return "message" in getattr(transformer, "modality_config", {})


def _return_free_memory() -> None:
    """Let glibc give the free pages of its heap back, in milliseconds.

    Each chunk leaves some small objects behind (its graph's nodes), between which the heap is in pieces too small for
    the next chunk's tensors: left alone, it grew by 16 MB a chunk.
    """
    trim = getattr(_C_LIBRARY, "malloc_trim", None)
    if trim is not None:
        trim(0)


def _is_out_of_memory(error: RuntimeError | MemoryError) -> bool:
    # On a CPU there is no error class for it: these are what torch's allocator and oneDNN say.
    said = str(error)
    return (
        isinstance(error, (torch.OutOfMemoryError, MemoryError))
        or "can't allocate memory" in said
        or said in ("could not create a primitive", "could not create a memory object")
    )


def hidden_layers(transformer: Transformer) -> nn.ModuleList:
    """The network's layers, the first one first."""
    count = transformer.model.config.get_text_config().num_hidden_layers
    for module in transformer.modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return module
    raise ValueError(f"No list of {count} layers was found in {type(transformer.model).__name__}.")
