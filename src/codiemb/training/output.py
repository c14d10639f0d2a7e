"""The output directory of a run: what may be written there, and how files get there whole."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import yaml
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from codiemb.json_files import to_json, write_json
from codiemb.training.resumable import checkpoint_step

REPORT_FILE = "training_report.json"


class OutputError(ValueError):
    """An output directory that this run must not touch, or cannot write to."""


class RunRecipe(Protocol):
    """What is asked here of a recipe, which is a `Section`."""

    @property
    def output(self) -> Path:
        """Directory of the run."""

    def inputs(self) -> list[Path]:
        """What it reads; a hub id is a path that does not exist."""

    def model_dump(self, *, mode: str) -> dict[str, Any]:
        """All keys."""


class RunDirectory:
    """Layout: the model, README.md and the report at the top once a run is done, all else in `training/`.

    Args:
        recipe: its `output` is the directory.
    """

    def __init__(self, recipe: RunRecipe) -> None:
        self.path = recipe.output
        self._report = self.path / REPORT_FILE
        self.state = self.path / "training"
        self.logs = self.state / "logs"
        self._recipe = recipe
        self._recipe_file = self.state / "recipe.yaml"

    def check(self, *, resume: bool, overwrite: bool) -> None:
        """See whether the run may use the directory; nothing is touched.

        Raises:
            OutputError: why not, and what to do.
        """
        if resume and overwrite:
            raise OutputError("--resume and --overwrite contradict each other: give one of them.")
        existing = next(path for path in (self.path, *self.path.absolute().parents) if path.exists())
        if not existing.is_dir():
            raise OutputError(f"{existing}: is a file, expected a directory to write the model to.")
        if not os.access(existing, os.W_OK | os.X_OK):
            raise OutputError(f"{existing}: may not be written to. Give another directory (output=DIR).")
        if not self.path.is_dir() or not any(self.path.iterdir()):
            return
        if not self._recipe_file.is_file():
            raise OutputError(f"{self.path}: holds files that no training run wrote. Give an empty or new directory.")
        if overwrite:
            self._check_inputs_outside()
        elif not resume:
            raise OutputError(
                f"{self.path}: holds another run. Go on with it (--resume), replace it (--overwrite), or give another "
                "directory (output=DIR)."
            )
        else:
            then = yaml.safe_load(self._recipe_file.read_text("utf-8"))
            if changes := list(_changes(then, _moved(_content(self._recipe), then))):
                raise OutputError(
                    f"{self.path}: holds a run of another recipe: {'; '.join(changes)}. Resume with the recipe in "
                    f"{self._recipe_file}, or start anew with --overwrite."
                )

    def finished(self) -> dict[str, Any] | None:
        """The report of a run that is done, with `model` where it lies now; None while it is not."""
        if not self._report.is_file():
            return None
        return {**json.loads(self._report.read_text(encoding="utf-8")), "model": str(self.path)}

    def prepare(self, *, overwrite: bool) -> None:
        """Make the directory this run's, and clear away what a killed process left half-written.

        Raises:
            OutputError: it cannot be written to.
        """
        try:
            if overwrite and self.path.is_dir():
                shutil.rmtree(self.path)
            self.state.mkdir(parents=True, exist_ok=True)
            for checkpoint in self.state.glob(f"{PREFIX_CHECKPOINT_DIR}-*"):
                if checkpoint_step(checkpoint) is None:
                    shutil.rmtree(checkpoint)
            for scratch in self.state.glob("final-*"):
                shutil.rmtree(scratch)
            _write_whole(self._recipe_file, recipe_yaml(self._recipe))
        except OSError as error:
            raise OutputError(
                f"{self.path}: cannot be written: {error}. Give another directory (output=DIR)."
            ) from error

    def remembered(self, name: str, make: Callable[[], dict[str, Any]], *, write: bool) -> dict[str, Any]:
        """The content of `name`.json from an earlier start of this run; else that of `make()`, kept if `write`."""
        path = self.state / f"{name}.json"
        if path.is_file():
            return dict(json.loads(path.read_text(encoding="utf-8")))
        content = make()
        if write:
            write_json(path, content)
        return content

    def publish(self, save_model: Callable[[Path], None], card: str, report: Mapping[str, Any]) -> None:
        """Write model, card and report: all are made aside and moved in, the report, which says "done", last."""
        scratch = Path(tempfile.mkdtemp(prefix="final-", dir=self.state))
        try:
            save_model(scratch)
            (scratch / "README.md").write_text(card, encoding="utf-8")
            (scratch / REPORT_FILE).write_text(to_json(report), encoding="utf-8")
            for path in sorted(scratch.iterdir(), key=lambda path: path.name == REPORT_FILE):
                target = self.path / path.name
                if target.is_dir():
                    shutil.rmtree(target)
                path.replace(target)
        except OSError as error:
            raise OSError(
                f"The model could not be written to {self.path} ({error}). Nothing is lost: free some space and give "
                "the same command with --resume."
            ) from error
        finally:
            shutil.rmtree(scratch, ignore_errors=True)

    def _check_inputs_outside(self) -> None:
        for path in self._recipe.inputs():
            if path.exists() and self.path.resolve() in (path.resolve(), *path.resolve().parents):
                raise OutputError(f"{path}: lies in {self.path}, which --overwrite deletes. Give another output=DIR.")


def recipe_yaml(recipe: RunRecipe) -> str:
    """The whole recipe, defaults included."""
    return yaml.safe_dump(_content(recipe), allow_unicode=True, sort_keys=False)


def _content(recipe: RunRecipe) -> dict[str, Any]:
    return recipe.model_dump(mode="json")


def _moved(now: dict[str, Any], then: Mapping[str, Any]) -> dict[str, Any]:
    """`now`, with what a run that was moved has elsewhere as it was then.

    That is the directory itself, and with it a model beside it, as a stage's is that of the one before.
    """
    beside = [
        recipe.get("model") is not None and Path(recipe["model"]).parent == Path(recipe["output"]).parent
        for recipe in (then, now)
    ]
    moved = {"output": then["output"]}
    if all(beside) and Path(then["model"]).name == Path(now["model"]).name:
        moved["model"] = then["model"]
    return {**now, **moved}


def _changes(then: Any, now: Any, key: str = "") -> Iterator[str]:
    """Keys with another value, as `key: 1 then, 2 now`."""
    if isinstance(then, dict) and isinstance(now, dict):
        for name in {**then, **now}:
            yield from _changes(then.get(name), now.get(name), f"{key}.{name}".lstrip("."))
    elif isinstance(then, list) and isinstance(now, list) and len(then) == len(now):
        for number, (one, other) in enumerate(zip(then, now, strict=True), start=1):
            yield from _changes(one, other, f"{key}.{number}")
    elif then != now:
        yield f"{key}: {then} then, {now} now"


def _write_whole(path: Path, text: str) -> None:
    """`path` holds the old text or the whole new one at every moment."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)
