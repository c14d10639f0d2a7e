"""What tells one model's vectors from another's: a hash over weights, tokenizer, architecture, pooling and prompts."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Transformer

from codiemb import backbones

_HEX_DIGITS = 32
_PIECE = 1 << 24  # values hashed at a time, so that a table of embeddings is not copied whole

# Of a network's configuration: what does not change its vectors, or changes with the library's version.
_NOT_IN_VECTORS = ("transformers_version", "architectures", "dtype", "torch_dtype", "_name_or_path", "use_cache")
_COMPILED = "_orig_mod."  # what torch.compile puts into the names of weights


def fingerprint(model: SentenceTransformer) -> str:
    """32 hex digits that are equal for two models only if both give the same vectors for the same texts.

    Weights are compared as bfloat16, so a model has one fingerprint whether it was loaded in float32 or bfloat16, on
    a CPU or a GPU, and wherever it lies. Its `prompts` count and, where it has one (`LLMEmbeddingModel`), its
    `template`. Not part of it is what a caller chooses for a run: device, precision, the length and the
    dimension that texts and vectors are cut to, and the instruction.

    All weights are read once: 0.9 s for the 118M parameters of the bundled model on one core, about 3 s for each
    billion parameters.

    Raises:
        ValueError: the weights are not torch tensors, as with an ONNX or OpenVINO backend.
    """
    digest = hashlib.blake2b(digest_size=_HEX_DIGITS // 2)
    weights = {name.replace(_COMPILED, ""): value for name, value in model.state_dict().items()}
    if not weights:
        raise ValueError("The model has no torch weights to tell it by. Load it with the torch backend.")
    template = getattr(model, "template", None) or backbones.template_of(model)
    settings = {
        "modules": [_settings(module) for module in model],
        "prompts": {**(model.prompts or {}), "default": model.default_prompt_name},
        "template": template.to_dict(),
        "tokenizer": hashlib.blake2b(_tokenizer(model.tokenizer)).hexdigest(),
        "weights": {name: list(value.shape) for name, value in sorted(weights.items())},
    }
    digest.update(json.dumps(settings, sort_keys=True, default=str).encode())
    for _, value in sorted(weights.items()):
        for piece in value.detach().flatten().split(_PIECE):
            narrow = piece.to(torch.bfloat16) if piece.is_floating_point() else piece
            digest.update(narrow.cpu().contiguous().view(torch.uint8).numpy())
    return digest.hexdigest()


def _settings(module: Any) -> dict[str, Any]:
    """Of one sentence-transformers module, what its vectors depend on."""
    if not isinstance(module, Transformer):
        return {"class": type(module).__name__, **module.get_config_dict()}
    config = module.model.config.to_diff_dict()
    kept = {key: value for key, value in config.items() if key not in _NOT_IN_VECTORS and "dropout" not in key}
    return {"class": "Transformer", **kept}


def _tokenizer(tokenizer: Any) -> bytes:
    """A tokenizer as bytes, without the padding and truncation that every call sets anew."""
    fast = getattr(tokenizer, "backend_tokenizer", None)
    if fast is None:
        return json.dumps([type(tokenizer).__name__, sorted(tokenizer.get_vocab().items())]).encode()
    content: str = fast.to_str()
    return content[content.index('"added_tokens"') :].encode()  # truncation and padding stand before it
