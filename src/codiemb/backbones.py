"""From a name to sentence-transformers modules: a hub id, a local directory, a GGUF file, or `bundled`.

A published model keeps what its configuration says. A bare network, which has no `modules.json`, gets mean pooling and
unit length, and a decoder among them is made to read both ways. All of this is saved with the model, so that plain
sentence-transformers loads the same.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch
import transformers
from safetensors import SafetensorError
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, Normalize, Pooling, Transformer
from transformers import PreTrainedModel

from codiemb.extras import require
from codiemb.model_source import WHAT_TO_GIVE, ModelError, ModelSource, check_device, find
from codiemb.prompts import TEMPLATES, InstructionTemplate

__all__ = ["Attention", "ModelError", "PoolingMode", "load", "pools_prompt", "save", "set_prompts", "template_of"]

Attention = Literal["eager", "sdpa", "flash_attention_2"]
PoolingMode = Literal["mean", "cls", "lasttoken", "weightedmean", "max"]

TEMPLATE_FILE = "codiemb.json"
"""Beside a saved model: the instruction template, which sentence-transformers' `prompts` cannot hold."""

# Architectures of one family of embedding models each, whose saved prompts show no template or another one.
_FAMILY_TEMPLATES: Mapping[str, str] = {"youtu": "youtu", "minicpm": "minicpm"}
_INSTRUCTED = re.compile(r"(?P<before>Instruct(ion)?: )(?P<instruction>.+?)(?P<after>\s*Query:\s*)", re.DOTALL)


def load(
    name: str | Path,
    *,
    device: str | None = None,
    attention: Attention | None = None,
    dropout: float | None = None,
    bidirectional: bool | None = None,
    pooling: PoolingMode | None = None,
) -> SentenceTransformer:
    """Load a sentence-transformers model, float32, as its own configuration says.

    Args:
        name: `bundled` (multilingual-e5-small), a directory, a GGUF file, or a hub id.
        device: as torch names it; the best there is if None.
        attention: implementation in transformers; its default if None.
        dropout: sets every dropout rate of the network; None keeps them.
        bidirectional: whether each token sees the later ones too. If None, as a published model says, and yes for a
            bare decoder; one that shall stay causal is pooled at its last token.
        pooling: how token states become an embedding; None keeps what the model has, or gets as a bare network.
    Raises:
        ModelError: no such model, a directory with missing or damaged files, a device that is not there, or a network
            that cannot read as `bidirectional` asks.
    """
    with explained(name):
        source = find(name)
        options = arguments(source, device=device, attention=attention, dropout=dropout)
        model = SentenceTransformer(**options)
        complete(model, source, bidirectional)
        if pooling is not None:
            _set_pooling(model, pooling)
    return model


@contextmanager
def explained(name: object) -> Iterator[None]:
    """Turn what can go wrong while the model `name` is loaded into a `ModelError`."""
    try:
        yield
    except (ModelError, ModuleNotFoundError):
        raise
    except (OSError, ValueError, TypeError, KeyError, RuntimeError, ImportError, SafetensorError) as error:
        raise ModelError(f"{name}: cannot be loaded: {error}\n{WHAT_TO_GIVE}") from error


def arguments(
    source: ModelSource,
    *,
    device: str | None = None,
    attention: Attention | None = None,
    dropout: float | None = None,
    **options: Any,
) -> dict[str, Any]:
    """What `SentenceTransformer` has to be called with to get the model at `source`; arguments as of `load`.

    Args:
        options: further arguments of `SentenceTransformer`, which win over what follows from the others.
    """
    if device is not None:
        check_device(device)
    backend = options.get("backend") or "torch"
    if backend != "torch" and find_spec("optimum") is None:
        raise ModuleNotFoundError(
            f"backend={backend!r} needs the package 'optimum'. "
            f"Install it with: pip install 'sentence-transformers[{backend}]'"
        )
    everywhere = {} if source.gguf is None else {"gguf_file": source.gguf}
    model_kwargs: dict[str, Any] = {"dtype": torch.float32, **everywhere}
    if attention is not None:
        model_kwargs["attn_implementation"] = attention
    if source.gguf is not None:
        require("gguf", "gguf")
    if source.gguf is not None and hasattr(transformers, "GgufConfig"):  # older versions always unpack
        model_kwargs["quantization_config"] = transformers.GgufConfig(dequantize=True)
    rates = {} if dropout is None else _dropout_settings(source, dropout)
    return {
        "device": device,
        **options,
        "model_name_or_path": source.path,
        "local_files_only": source.local,
        "model_kwargs": {**model_kwargs, **(options.get("model_kwargs") or {})},
        "config_kwargs": {**everywhere, **rates, **(options.get("config_kwargs") or {})},
        "processor_kwargs": {**everywhere, **(options.get("processor_kwargs") or {})},
    }


def complete(model: SentenceTransformer, source: ModelSource, bidirectional: bool | None) -> None:
    """Decide what a bare network leaves open, and turn a network as `bidirectional` asks; in place."""
    network = model[0].model if isinstance(model[0], Transformer) else None
    if not isinstance(network, PreTrainedModel):  # a graph of onnxruntime or OpenVINO is fixed
        return
    if source.gguf is not None:
        forget_quantization(network)
    bare = source.bare
    if not bare and bidirectional is None:
        return
    both_ways = bidirectional is not False
    if _reads_both_ways(network) != both_ways:
        for config in {id(c): c for c in (network.config, network.config.get_text_config())}.values():
            config.is_causal = not both_ways
        if _reads_both_ways(network) != both_ways:
            wanted = "both ways" if both_ways else "one way only"
            raise ModelError(
                f"{source.path}: {type(network).__name__} cannot be made to read {wanted}: it does not follow "
                f"`is_causal` in its configuration. Load it with bidirectional={not both_ways}."
            )
    if bare:
        # A tokenizer's chat template is for chats: sentence-transformers would put every text into it.
        model[0].modality_config.pop("message", None)
        pooling = next(module for module in model if isinstance(module, Pooling))
        pooling.pooling_mode = "mean" if both_ways else "lasttoken"
        model.append(Normalize())
        if model.tokenizer.pad_token is None:  # plain sentence-transformers cannot make batches without one
            model.tokenizer.pad_token = model.tokenizer.eos_token or model.tokenizer.unk_token


def _set_pooling(model: SentenceTransformer, mode: PoolingMode) -> None:
    modules = [module for module in model if isinstance(module, Pooling)]
    if not modules:
        raise ModelError(f"pooling={mode}: the model has no pooling of its own to replace. Leave pooling out.")
    for module in modules:
        if module.pooling_output_dimension != module.embedding_dimension:
            raise ModelError(
                f"pooling={mode}: the model joins several poolings ({module.pooling_mode}), which what follows expects."
            )
        module.pooling_mode = mode


def positions(model: SentenceTransformer) -> int | None:
    """Tokens that the network can read, special ones included; None where nothing limits it."""
    network = getattr(model[0], "model", None)
    if not isinstance(network, PreTrainedModel):
        return model.max_seq_length
    limit = getattr(network.config.get_text_config(), "max_position_embeddings", None)
    if not isinstance(limit, int) or limit < 1:
        return None
    for name, module in network.named_modules():
        # RoBERTa's kind counts positions from the padding index on.
        if name.endswith("position_embeddings") and getattr(module, "padding_idx", None) is not None:
            return limit - module.padding_idx - 1
    return limit


def _reads_both_ways(network: PreTrainedModel) -> bool | None:
    """Try it: whether another last token changes the state of the first one; None where that depends on padding."""
    ids = torch.tensor([[1, 2, 3, 4, 0], [1, 2, 3, 5, 0]], device=network.device)
    mask = torch.tensor([[1, 1, 1, 1, 0]], device=network.device).expand_as(ids)
    training = network.training
    network.eval()
    seen = set()
    try:
        with torch.inference_mode():
            for width in (4, 5):  # attention without a mask runs other code
                states = network(input_ids=ids[:, :width], attention_mask=mask[:, :width]).last_hidden_state
                seen.add(not torch.equal(states[0, 0], states[1, 0]))
    finally:
        network.train(training)
    return seen.pop() if len(seen) == 1 else None


def forget_quantization(network: PreTrainedModel) -> None:
    """The weights of a GGUF file are unpacked; what says otherwise would keep the model from being saved."""
    network.hf_quantizer = None
    network.is_quantized = False
    for config in (network.config, network.config.get_text_config()):
        if hasattr(config, "quantization_config"):
            del config.quantization_config


def template_of(model: SentenceTransformer, name: str | Path | ModelSource | None = None) -> InstructionTemplate:
    """The template a model was trained with.

    That is, the first there is of: the one saved with it (`codiemb.json`); the one of its architecture, if that is the
    one of a family of embedding models and no other prompts are saved; the one that its saved query prompt is made
    with, as in Qwen3-Embedding's `Instruct: ...\\nQuery:`; its saved query and document prompts as they are.

    Args:
        name: where the model is; without it, the saved template cannot be found.
    """
    if name is not None and (file := (name if isinstance(name, ModelSource) else find(name)).file(TEMPLATE_FILE)):
        return InstructionTemplate(**_read_json(file)["template"])
    prompts = model.prompts or {}
    query, document = prompts.get("query") or "", prompts.get("document") or ""
    instructed = _INSTRUCTED.fullmatch(query)
    family = _FAMILY_TEMPLATES.get(_model_type(model))
    if family is not None and not document and (not query or instructed):
        return replace(TEMPLATES[family], default=instructed["instruction"] if instructed else "")
    if instructed:
        query = f"{instructed['before']}{{instruction}}{instructed['after']}"
        return InstructionTemplate(query=query, document=document, default=instructed["instruction"])
    return InstructionTemplate(query=query, document=document)


def _model_type(model: SentenceTransformer) -> str:
    config = getattr(getattr(model[0], "model", None), "config", None)
    return getattr(config, "model_type", "")


def set_prompts(model: SentenceTransformer, template: InstructionTemplate, pool_prompt: bool | None) -> None:
    """Give the model the template's prompts, and say whether prompt tokens are pooled (None keeps what it says)."""
    model.prompts = {
        **(model.prompts or {}),
        # Without an instruction: what a user who gives none gets.
        "query": template.prompt("query"),
        "document": template.prompt("document"),
    }
    if pool_prompt is not None:
        model.set_pooling_include_prompt(pool_prompt)


def save(model: SentenceTransformer, directory: Path, template: InstructionTemplate) -> None:
    """Write the model as a plain sentence-transformers directory, the template beside it."""
    model.save_pretrained(str(directory), create_model_card=False)
    write_common_files(model, directory, template)


def write_common_files(model: SentenceTransformer, directory: Path, template: InstructionTemplate) -> None:
    """Complete what sentence-transformers saved in `directory`: names that all engines read, and the template."""
    _write_common_names(model, directory)
    content = {"template": template.to_dict(), "pools_prompt": pools_prompt(model)}
    _write_json(directory / TEMPLATE_FILE, content)


def _write_common_names(model: SentenceTransformer, directory: Path) -> None:
    """Spell modules, pooling, length and tokenizer as earlier versions of the libraries and other engines read them.

    sentence-transformers 6.2 and transformers 5 write names that are new with them, and read both.
    """
    modules = _read_json(directory / "modules.json")
    for entry, module in zip(modules, model, strict=True):
        if type(module) in (Transformer, Pooling, Normalize, Dense):
            entry["type"] = f"sentence_transformers.models.{type(module).__name__}"
        path = directory / entry["path"]
        if type(module) is Pooling:
            modes = (module.pooling_mode,) if isinstance(module.pooling_mode, str) else module.pooling_mode
            flags = {f"pooling_mode_{flag}": mode in modes for mode, flag in _POOLING_FLAGS.items()}
            width = {"word_embedding_dimension": module.embedding_dimension}
            _write_json(path / "config.json", {**width, **flags, "include_prompt": module.include_prompt})
        elif type(module) is Transformer:
            config = path / "sentence_bert_config.json"
            content = _read_json(config)
            if _TEXT_NETWORK.items() <= content.items():  # what is assumed where nothing is said
                content = {key: value for key, value in content.items() if key not in _TEXT_NETWORK}
            if model.max_seq_length is not None:
                content["max_seq_length"] = model.max_seq_length
            _write_json(config, content)
            write_common_tokenizer(path)
    _write_json(directory / "modules.json", modules)


def write_common_tokenizer(directory: Path) -> None:
    """Name the class of the tokenizer saved in `directory` as earlier versions of transformers know it."""
    config = directory / "tokenizer_config.json"
    if config.is_file() and (content := _read_json(config)).get("tokenizer_class") == "TokenizersBackend":
        _write_json(config, {**content, "tokenizer_class": "PreTrainedTokenizerFast"})


_TEXT_NETWORK = {
    "transformer_task": "feature-extraction",
    "modality_config": {"text": {"method": "forward", "method_output_name": "last_hidden_state"}},
    "module_output_name": "token_embeddings",
}
_POOLING_FLAGS = {
    "cls": "cls_token",
    "mean": "mean_tokens",
    "max": "max_tokens",
    "mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "weightedmean": "weightedmean_tokens",
    "lasttoken": "lasttoken",
}


def _read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def _write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def pools_prompt(model: SentenceTransformer) -> bool:
    """Whether the tokens of the prompt are part of the pooled embedding."""
    return all(module.include_prompt for module in model if isinstance(module, Pooling))


def _dropout_settings(source: ModelSource, dropout: float) -> dict[str, float]:
    """Every dropout rate that the model's configuration has, set to `dropout`."""
    from transformers import AutoConfig

    gguf = {} if source.gguf is None else {"gguf_file": source.gguf}
    config = AutoConfig.from_pretrained(source.path, local_files_only=source.local, **gguf)
    rates = [
        key
        for key, value in config.to_dict().items()
        if key.endswith(("dropout", "dropout_prob", "pdrop")) and type(value) in (int, float)
    ]
    return dict.fromkeys(rates, dropout)
