"""Find weights and scale of a fusion on validation data.

Each candidate is written as `fuse` would write it, evaluated as `codiemb evaluate` would, and deleted. Its scores are
kept under a hash of models, data and settings, so that a search that was stopped goes on, and one with another metric
or a larger budget only pays for what is new.

A score chosen as the best of many is too high, and the more so the more weights were free. So the simplest candidate is
taken whose score is within one standard error of the best one's (Breiman et al., 1984): a plain mean before a scaled
one before weights of their own. The standard error is that of the difference on the same queries and pairs.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sentence_transformers.util import get_device_name

import codiemb
from codiemb.bundled import cache_root
from codiemb.embedder import LLMEmbeddingModel
from codiemb.encoding import best_precision
from codiemb.evaluation import EvalTask, Result, discover, evaluate, summarise
from codiemb.evaluation.significance import Interval, differences, intervals
from codiemb.fusion.candidates import Candidate, pattern_search
from codiemb.fusion.fusing import averaged_tensors, open_models, write_candidate
from codiemb.fusion.models import ModelDirectory
from codiemb.fusion.validation import require_validation
from codiemb.json_files import write_json

_ONE_ERROR = 0.6827  # of a normal distribution lies within one standard error
_MODEL_FILES = {".safetensors", ".json", ".txt", ".model"}


@dataclass(frozen=True)
class Try:
    """A candidate that was evaluated.

    Attributes:
        scores: as `evaluation.summarise` gives them, 0 to 1; score: the one that was searched for.
        error: standard error of `score`; None where one item was scored.
        behind: the best score minus this one; behind_error: the standard error of that.
        known: its scores were there from an earlier search.
    """

    candidate: Candidate
    scores: dict[str, float]
    score: float
    error: float | None
    behind: float
    behind_error: float | None
    known: bool


@dataclass(frozen=True)
class Search:
    """All tries in order, of which `chosen` is the simplest that is as good as `best` but for chance."""

    metric: str
    data: tuple[dict[str, Any], ...]
    tries: tuple[Try, ...]
    best: Try
    chosen: Try

    @property
    def base(self) -> Try | None:
        """The base's scores; None where the budget did not reach it."""
        return next((one for one in self.tries if one.candidate.is_base), None)

    def to_dict(self) -> dict[str, Any]:
        """For `fusion.json`."""
        return {
            "metric": self.metric,
            "data": list(self.data),
            "rule": "the simplest within one standard error of the best",
            "chosen": self.tries.index(self.chosen),
            "best": self.tries.index(self.best),
            "tries": [
                {
                    "weights": [float(weight) for weight in one.candidate.weights],
                    "scale": float(one.candidate.scale),
                    "score": one.score,
                    "standard_error": one.error,
                    "behind_best": one.behind,
                    "behind_standard_error": one.behind_error,
                    "scores": one.scores,
                }
                for one in self.tries
            ],
        }


def search(
    base: str | Path,
    checkpoints: Sequence[str | Path],
    data: Sequence[str | Path],
    *,
    metric: str = "mean",
    budget: int = 20,
    sample: int | None = None,
    seed: int = 0,
    cache_dir: Path | None = None,
    on_try: Callable[[Candidate, float, bool], None] | None = None,
) -> Search:
    """Look for the weights (one a checkpoint) and the scale whose fusion scores best on `data`.

    Args:
        data: validation data, as `evaluation.discover` takes it.
        metric: `mean`, `ir`, `sts`, `reranking`, or the name of a data set.
        budget: candidates to evaluate at most.
        sample: queries, pairs or rows of each data set at most, chosen by `seed`.
        cache_dir: of the scores; None: `fusion-search` in codiemb's cache directory.
        on_try: called with each candidate, its score, and whether it was known.
    Raises:
        DataError: data that cannot be read, or that says it is a test set.
        ValueError: models that do not belong together, no such metric, or a budget below 1.
    """
    if budget < 1:
        raise ValueError(f"budget={budget}, expected at least 1 candidate to evaluate.")
    tasks = discover(data)
    require_validation(task.source for task in tasks)
    _check_metric(metric, tasks)
    models = open_models(base, checkpoints)
    starts = averaged_tensors(models)
    key = _key(models, data, sample, seed)
    folder = (cache_dir or cache_root() / "fusion-search") / key
    found: dict[Candidate, tuple[list[Result], bool]] = {}

    def score(candidate: Candidate) -> float:
        file = folder / f"{_file_name(candidate)}.json"
        known = file.is_file()
        if known:
            results = [_result(entry) for entry in json.loads(file.read_text(encoding="utf-8"))]
        else:
            with tempfile.TemporaryDirectory(prefix="codiemb-fusion-") as directory:
                write_candidate(models, starts, candidate.weights, candidate.scale, Path(directory))
                results = _evaluated(Path(directory), str(candidate), tasks, sample, seed)
            write_json(file, [_entry(result) for result in results])
        found[candidate] = results, known
        value = summarise(results)[metric]
        if on_try:
            on_try(candidate, value, known)
        return value

    scores = pattern_search(score, len(checkpoints), budget)
    best = max(scores, key=scores.__getitem__)
    tries = [_try(candidate, found, best, metric, seed) for candidate in scores]
    described = tuple(
        {"name": task.name, "type": task.type, "source": task.source, "n": result.n}
        for task, result in zip(tasks, found[best][0], strict=True)
    )
    of_best = next(one for one in tries if one.candidate == best)
    return Search(metric, described, tuple(tries), of_best, choose(tries, of_best))


def choose(tries: Iterable[Try], best: Try) -> Try:
    """The simplest within one standard error of the best; of equally simple ones the better. The base only if best."""
    if best.candidate.is_base:
        return best
    within = [one for one in tries if one.behind <= (one.behind_error or 0.0) and not one.candidate.is_base]
    return min(within, key=lambda one: (one.candidate.simplicity, one.behind))


def _try(
    candidate: Candidate, found: dict[Candidate, tuple[list[Result], bool]], best: Candidate, metric: str, seed: int
) -> Try:
    results, known = found[candidate]
    scores = summarise(results)
    ranges = intervals(results, seed=seed, level=_ONE_ERROR)
    error = _half({**ranges.tasks, **ranges.means}[metric])
    if candidate == best:
        return Try(candidate, scores, scores[metric], error, 0.0, 0.0, known)
    of_best = found[best][0]
    compared = differences(of_best, results, seed=seed, level=_ONE_ERROR)
    behind_error = _half({**compared.tasks, **compared.means}[metric])
    behind = summarise(of_best)[metric] - scores[metric]
    return Try(candidate, scores, scores[metric], error, behind, behind_error, known)


def _half(interval: Interval | None) -> float | None:
    return None if interval is None else (interval.high - interval.low) / 2


def _check_metric(metric: str, tasks: Sequence[EvalTask]) -> None:
    allowed = list(summarise([Result(task.name, task.type, 0.0, {}, len(task), {}, {}) for task in tasks]))
    if metric not in allowed:
        raise ValueError(f"metric={metric!r}, expected a score of the validation data: {', '.join(allowed)}.")


def _evaluated(directory: Path, name: str, tasks: Sequence[EvalTask], sample: int | None, seed: int) -> list[Result]:
    model = LLMEmbeddingModel(directory)
    embedding_pass, template = model.embedding_pass, model.template
    return [evaluate(embedding_pass, template, task, sample=sample, seed=seed, model_name=name) for task in tasks]


# -- what is kept ----------------------------------------------------------------------------------------------------


def _key(models: Sequence[ModelDirectory], data: Sequence[str | Path], sample: int | None, seed: int) -> str:
    """A hash of everything that scores depend on."""
    libraries = ("torch", "transformers", "sentence-transformers")
    device = torch.device(get_device_name())  # where candidates will be evaluated
    numerics = [device.type, str(best_precision(device)[0])]
    settings = [codiemb.__version__, *map(version, libraries), *numerics, sample, seed]
    digest = hashlib.blake2b(json.dumps(settings).encode(), digest_size=16)
    for model in models:
        folders = dict.fromkeys(model.path / folder for _, folder in [("", ""), *model.modules])
        for folder in folders:
            _add(digest, sorted(f for f in folder.iterdir() if f.is_file() and f.suffix in _MODEL_FILES), model.path)
    for path in map(Path, data):
        qrels = path.parent.name == "qrels"  # one file chooses the split of the whole folder
        root = path.parent.parent if qrels else path
        files = sorted(file for file in root.rglob("*") if file.is_file()) if root.is_dir() else [root]
        _add(digest, files, root.parent)
        digest.update(path.name.encode())
    return digest.hexdigest()


def _add(digest: Any, files: Iterable[Path], root: Path) -> None:
    for file in files:
        digest.update(f"{file.relative_to(root)} {file.stat().st_size}\n".encode())
        with file.open("rb") as opened:
            while block := opened.read(1 << 20):
                digest.update(block)


def _file_name(candidate: Candidate) -> str:
    if candidate.is_base:
        return "base"
    numbers = (*candidate.weights, candidate.scale)
    return "_".join(str(number).replace("/", "-") for number in numbers)


def _entry(result: Result) -> dict[str, Any]:
    return {**result.to_dict(), "values": {name: values.tolist() for name, values in result.values.items()}}


def _result(entry: dict[str, Any]) -> Result:
    return Result(**{**entry, "values": {name: np.array(values) for name, values in entry["values"].items()}})
