"""`fuse`: read the deltas once to weigh them, once more to add them, and write the result beside its card."""

from __future__ import annotations

import json
import math
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, SupportsFloat

import numpy as np
import torch

from codiemb.fusion.card import fusion_card
from codiemb.fusion.deltas import (
    Granularity,
    LayerDelta,
    Method,
    OnBlock,
    by_layer,
    delta_blocks,
    fusion_weights,
    measure,
)
from codiemb.fusion.models import ModelDirectory, check_alike, starting_tensors
from codiemb.fusion.tensors import FLOATING, StoredTensor, TensorWriter, file_metadata
from codiemb.json_files import to_json

REPORT_FILE = "fusion.json"

OnProgress = Callable[[int, int], None]

# Weights in any form, what a training run left, and the card, which is written anew.
_WEIGHT_SUFFIXES = {".safetensors", ".bin", ".pt", ".pth", ".onnx", ".gguf", ".h5", ".msgpack", ".ot"}
_NOT_COPIED = {"README.md", "training_report.json", "trainer_state.json", "model.safetensors.index.json", REPORT_FILE}


@dataclass(frozen=True)
class FusionReport:
    """What was fused, and how.

    Attributes:
        layers: deltas and weights of each layer, and of the whole model, named `model`, last.
        tensors: weights of the checkpoints for each tensor.
        search: how weights and scale were found; None where they were given.
    """

    output: Path
    base: str
    checkpoints: tuple[str, ...]
    method: Method
    granularity: Granularity
    scale: float
    layers: tuple[LayerDelta, ...]
    tensors: dict[str, tuple[float, ...]] = field(repr=False)
    search: Mapping[str, Any] | None = field(default=None, repr=False)

    def to_dict(self) -> dict[str, Any]:
        """As written to `fusion.json`."""
        return {**asdict(self), "output": self.output.name}


def compare_deltas(
    base: str | Path, checkpoints: Sequence[str | Path], *, on_progress: OnProgress | None = None
) -> tuple[LayerDelta, ...]:
    """How far each checkpoint moved each layer of the base, and in how far in the same direction; nothing is written.

    Raises:
        ValueError: as `fuse`.
    """
    models = open_models(base, checkpoints)
    starts = averaged_tensors(models)
    return by_layer(measure(starts, models[1:], _counter(starts, 1, on_progress)))


def fuse(
    base: str | Path,
    checkpoints: Sequence[str | Path],
    output: str | Path,
    *,
    method: Method = "uniform",
    granularity: Granularity = "tensor",
    weights: Sequence[float] | None = None,
    scale: float = 1.0,
    search: Mapping[str, Any] | None = None,
    on_progress: OnProgress | None = None,
) -> FusionReport:
    """Write θ_0 + scale · Σ_k w_k (θ_k − θ_0) as a model directory.

    Everything but the weights comes from the first checkpoint: modules, prompts, template, tokenizer, configuration.
    Each tensor keeps the dtype that it has in the base. Sums are taken in float64 and rounded once, so that one
    checkpoint, or equal ones, give themselves. Memory: one block of 2**20 numbers a model, whatever their size.

    Args:
        base: the model that all checkpoints were fine-tuned from: a directory or `bundled`; a bare network will do.
        output: a new or empty directory; it holds the whole model or nothing.
        weights: one a checkpoint, at least 0, summing to 1; for method `weights` only.
        scale: 1 keeps the deltas' mean, less pulls it back towards the base (WiSE-FT, arXiv:2109.01903), 0 is the base.
        search: how weights and scale were found, for the report; see `search.Search`.
        on_progress: called with (numbers done, all of them); each is read twice.
    Raises:
        ValueError: models that do not belong together, options out of range, values that are not finite or do not
            fit the base's dtype.
    """
    weights = _checked_weights(method, weights, len(checkpoints))
    if not (math.isfinite(scale) and scale >= 0):
        raise ValueError(f"scale={scale}, expected a number of at least 0.")
    output = Path(output)
    require_new(output)
    models = open_models(base, checkpoints)
    starts = averaged_tensors(models)
    on_block = _counter(starts, 2, on_progress)
    deltas = measure(starts, models[1:], on_block)
    by_tensor = fusion_weights(deltas, method, granularity, weights)
    report = FusionReport(
        output,
        models[0].name,
        tuple(model.name for model in models[1:]),
        method,
        granularity,
        scale,
        by_layer(deltas, by_tensor),
        {name: tuple(row.tolist()) for name, row in by_tensor.items()},
        search,
    )
    output.parent.mkdir(parents=True, exist_ok=True)
    private = Path(tempfile.mkdtemp(prefix=f".{output.name}-", dir=output.parent))
    try:
        _copy_settings(models[1], private, starts)
        _write_weights(models[1:], starts, by_tensor, scale, private, on_block)
        _write(private / "README.md", fusion_card(report))
        _write(private / REPORT_FILE, to_json(report.to_dict()))
        private.chmod(0o755)  # mkdtemp lets the owner alone read
        private.replace(output)
    finally:
        shutil.rmtree(private, ignore_errors=True)
    return report


def require_new(output: Path) -> None:
    """See that there is nothing where a model is to be written.

    Raises:
        ValueError: there is something.
    """
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ValueError(f"{output}: exists and is not an empty directory. Give a new one.")


def write_candidate(
    models: Sequence[ModelDirectory],
    starts: Mapping[str, StoredTensor],
    weights: Sequence[SupportsFloat],
    scale: SupportsFloat,
    directory: Path,
) -> None:
    """Write into an empty directory what `fuse` gives with these weights; no card, no report.

    Args:
        models: as of `open_models`; starts: as of `averaged_tensors`.
        weights: one a checkpoint, summing to 1.
    """
    shares = np.array([float(weight) for weight in weights])
    by_tensor = dict.fromkeys(starts, shares / shares.sum())
    _copy_settings(models[1], directory, starts)
    _write_weights(models[1:], starts, by_tensor, float(scale), directory, lambda _: None)


def _checked_weights(method: Method, weights: Sequence[float] | None, count: int) -> Sequence[float] | None:
    if method != "weights":
        if weights is not None:
            raise ValueError(f"weights={list(weights)} are for the method 'weights', got the method {method!r}.")
        return None
    if weights is None or len(weights) != count:
        got = "none" if weights is None else len(weights)
        raise ValueError(f"The method 'weights' needs one weight a checkpoint: got {got}, expected {count}.")
    if not all(math.isfinite(weight) and weight >= 0 for weight in weights) or abs(sum(weights) - 1) > 1e-6:
        raise ValueError(
            f"weights={list(weights)} sum to {sum(weights):g}, expected weights of at least 0 that sum to 1. "
            "Use scale to move further or less far from the base."
        )
    return weights


def open_models(base: str | Path, checkpoints: Sequence[str | Path]) -> list[ModelDirectory]:
    """The base, then the checkpoints, which belong together."""
    if not checkpoints:
        raise ValueError("No checkpoint was given; expected at least one beside the base.")
    models = [ModelDirectory(name) for name in (base, *checkpoints)]
    check_alike(models[0], models[1:])
    return models


def _counter(starts: Mapping[str, StoredTensor], passes: int, on_progress: OnProgress | None) -> OnBlock:
    total = passes * sum(start.elements for start in starts.values())
    done = 0

    def count(elements: int) -> None:
        nonlocal done
        done += elements
        if on_progress:
            on_progress(done, total)

    return count


def averaged_tensors(models: Sequence[ModelDirectory]) -> dict[str, StoredTensor]:
    """The base's tensor for each that is averaged; the others, which must be equal in all models, are checked."""
    base, first, *others = models
    starts = starting_tensors(base, first)
    for name, expected in first.tensors.items():
        if expected.dtype in FLOATING:
            continue
        stored = [(base, starts.pop(name, expected)), *((other, other.tensors[name]) for other in others)]
        for model, got in stored:
            equal = (got.dtype, got.shape) == (expected.dtype, expected.shape) and all(
                torch.equal(ours, theirs) for ours, theirs in zip(got.blocks(), expected.blocks(), strict=True)
            )
            if not equal:
                raise ValueError(
                    f"{model.name}: {name} ({got.dtype} {list(got.shape)}) differs from {first.name}'s "
                    f"({expected.dtype} {list(expected.shape)}). Only {', '.join(FLOATING)} can be averaged, so other "
                    "tensors must be equal; save a quantised model in floating point first."
                )
    return starts


def _write_weights(
    checkpoints: Sequence[ModelDirectory],
    starts: Mapping[str, StoredTensor],
    weights: Mapping[str, np.ndarray],
    scale: float,
    directory: Path,
    on_block: OnBlock,
) -> None:
    """Write the first checkpoint's weight files, in its shards, with fused values."""
    first = checkpoints[0]
    sizes: Counter[Path] = Counter()
    for file in first.files:
        keys = {tensor.name: key for key, tensor in first.tensors.items() if tensor.file == file}
        layout = {}
        for name, key in keys.items():
            stored = starts.get(key, first.tensors[key])
            layout[name] = stored.dtype, stored.shape, stored.nbytes
        target = directory / file.relative_to(first.path)
        with TensorWriter(target, layout, file_metadata(file)) as writer:
            for name in writer.names:
                key = keys[name]
                if key not in starts:
                    for block in first.tensors[key].blocks():
                        writer.write(block)
                    continue
                factors = torch.from_numpy(scale * weights[key])
                states = [checkpoint.tensors[key] for checkpoint in checkpoints]
                for base, moved in delta_blocks(starts[key], states):
                    fused = base.add_(factors @ moved).to(FLOATING[starts[key].dtype])
                    if not fused.isfinite().all():
                        raise ValueError(
                            f"{key}: fused values do not fit {starts[key].dtype}, the base's dtype. Give the base in "
                            "float32, or a smaller scale."
                        )
                    writer.write(fused)
                    on_block(base.numel())
        sizes[target.parent] += writer.nbytes
    for folder, size in sizes.items():
        index = first.path / folder.relative_to(directory) / "model.safetensors.index.json"
        if index.is_file():
            content = json.loads(index.read_text(encoding="utf-8"))
            content["metadata"] = {**content.get("metadata", {}), "total_size": size}
            _write(folder / index.name, to_json(content))


def _copy_settings(first: ModelDirectory, directory: Path, starts: Mapping[str, StoredTensor]) -> None:
    for folder in dict.fromkeys(["", *(folder for _, folder in first.modules)]):
        (directory / folder).mkdir(exist_ok=True, parents=True)
        for file in sorted((first.path / folder).iterdir()):
            wanted = file.suffix not in _WEIGHT_SUFFIXES and file.name not in _NOT_COPIED
            if file.is_file() and wanted and not file.name.startswith("."):
                shutil.copyfile(file, directory / folder / file.name)
    config = directory / first.network.relative_to(first.path) / "config.json"
    content = json.loads(config.read_text(encoding="utf-8"))
    sizes: Counter[str] = Counter()
    for start in starts.values():
        sizes[start.dtype] += start.elements
    dtype = str(FLOATING[sizes.most_common(1)[0][0]]).removeprefix("torch.")
    _write(config, to_json(_with_dtype({"dtype": dtype, **content}, dtype)))


def _with_dtype(config: dict[str, Any], dtype: str) -> dict[str, Any]:
    """The configuration, and those within it, saying what the weights are."""
    return {
        key: dtype
        if key in ("dtype", "torch_dtype")
        else _with_dtype(value, dtype)
        if isinstance(value, dict)
        else value
        for key, value in config.items()
    }


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
