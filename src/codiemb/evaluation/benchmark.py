"""Benchmarks: mteb's tasks and metrics on one model, resumable, one result file a task.

Results lie in mteb's own layout, `OUTPUT/results/MODEL/REVISION/TASK.json` with `model_meta.json`, so
`mteb.ResultCache(OUTPUT)` reads them. `tasks.jsonl` beside them has a line for each time a task ended: its type, which
mteb does not know for local data, its prompts, and why it failed if it did.
"""

from __future__ import annotations

import copy
import difflib
import json
import logging
import math
import os
import re
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal, TypeVar

import mteb
from mteb.abstasks import AbsTask, AbsTaskRetrieval
from mteb.get_tasks import TASK_LIST
from mteb.languages import check_language_code
from mteb.results import TaskResult
from mteb.timing import TimingStack

from codiemb.evaluation import offline
from codiemb.evaluation.benchmark_items import items_file, keep_items, predictions_folder
from codiemb.evaluation.mteb_model import InstructedEncoder
from codiemb.evaluation.runs import LOG_FILE
from codiemb.prompts import Side

logger = logging.getLogger(__name__)

_LISTED = 12  # names in an error
_DATALOADER_BATCH = 1024  # texts that mteb's dataloader hands over at a time; the text path makes batches of its own

State = Literal["measured", "kept", "failed"]


@dataclass(frozen=True)
class Outcome:
    """How a task ended.

    Attributes:
        type: as mteb names it.
        state: `kept`: the result was there already.
        score: mteb's score of the task, the mean of its main metric over splits and subsets; None if it failed.
        main_metric: of mteb's many metrics, the one that counts.
        seconds: this run spent on it.
        prompts: by side; empty for a task that was not run.
    """

    task: str
    type: str
    state: State
    score: float | None
    main_metric: str
    seconds: float
    prompts: Mapping[Side, str]
    error: str = ""


# -- which tasks -----------------------------------------------------------------------------------------------------


def task_names() -> set[str]:
    """Names of all tasks that mteb has."""
    return {task.metadata.name for task in TASK_LIST}


def select(
    benchmark: str | None = None,
    *,
    tasks: Sequence[str] = (),
    types: Sequence[str] = (),
    languages: Sequence[str] = (),
) -> list[AbsTask]:
    """mteb's tasks that meet all conditions given, in mteb's order.

    Args:
        benchmark: a name that mteb knows; None: all text tasks that it has.
        tasks: by name; without a benchmark, any of mteb's.
        types: `STS`, `Retrieval`, ... in any spelling of case and dashes.
        languages: `cmn`, `eng-Latn`, ...; of a multilingual task only its parts in these.
    Raises:
        ValueError: an unknown name, with the nearest ones, or nothing left.
    """
    if benchmark is not None:
        names = {alias: known for known in mteb.get_benchmarks() for alias in (known.name, *(known.aliases or ()))}
        chosen = [copy.copy(task) for task in _named(names, benchmark, "benchmark").tasks]
    elif tasks:
        chosen = [cls() for cls in TASK_LIST if cls.metadata.name in tasks]
    else:
        chosen = list(mteb.get_tasks(modalities=["text"], exclusive_modality_filter=True))
    by_name = {task.metadata.name: task for task in chosen}
    if tasks:
        known = by_name if benchmark else dict.fromkeys(task_names())
        for name in tasks:
            _named(known, name, f"task of {benchmark}" if benchmark else "task")
        chosen = [by_name[name] for name in dict.fromkeys(tasks)]
    if types:
        spelled = {_plain(task.metadata.type): task.metadata.type for task in chosen}
        known_types = {type_: type_ for type_ in spelled.values()}
        wanted = {_named(known_types, spelled.get(_plain(type_), type_), "type of the chosen tasks") for type_ in types}
        chosen = [task for task in chosen if task.metadata.type in wanted]
    if languages:
        for code in languages:
            _check_language(code)
        chosen = [task for task in chosen if _in_languages(task, languages)]
    if not chosen:
        raise ValueError(f"No task of {benchmark or 'mteb'} is of type {list(types)} and language {list(languages)}.")
    return chosen


_Named = TypeVar("_Named")


def _named(known: Mapping[str, _Named], name: str, what: str) -> _Named:
    if name in known:
        return known[name]
    folded = {key.casefold(): key for key in known}
    near = [folded[key] for key in difflib.get_close_matches(name.casefold(), folded, n=3, cutoff=0.5)]
    more = f" and {len(known) - _LISTED} more" if len(known) > _LISTED else ""
    hint = f"the nearest are {', '.join(near)}" if near else f"there are {', '.join(sorted(known)[:_LISTED])}{more}"
    raise ValueError(f"{name}: no such {what}; {hint}.")


def _check_language(code: str) -> None:
    try:
        check_language_code(code)
    except ValueError as error:
        raise ValueError(
            f"{code}: no such language; expected ISO 639-3, with or without a script: cmn, eng, eng-Latn."
        ) from error


def _plain(type_: str) -> str:
    return re.sub(r"[^a-z0-9]", "", type_.lower())


def _in_languages(task: AbsTask, languages: Sequence[str]) -> bool:
    """Restrict `task` to its parts in these languages; whether there are any."""
    try:
        task.filter_languages(list(languages))
    except ValueError:
        return False
    return True


# -- running ---------------------------------------------------------------------------------------------------------


def run(
    encoder: InstructedEncoder,
    tasks: Iterable[AbsTask],
    output: Path,
    *,
    dataset_root: Path | None = None,
    on_start: Callable[[AbsTask], None] | None = None,
) -> Iterator[Outcome]:
    """Score a model on tasks, each result written before the next task starts.

    A task whose result is there, of the same model, settings and data, is kept. A task that fails is recorded with its
    error, and the rest go on.

    Args:
        dataset_root: where data sets lie in the layout of `codiemb.evaluation.offline`; None: mteb loads them from
            the hub or its cache.
        on_start: called before each task that is run.
    """
    cache = mteb.ResultCache(output)
    folder = result_folder(output, encoder)
    log = folder / LOG_FILE
    logged = _logged_tasks(log)
    for task in tasks:
        started = time.monotonic()
        name, metadata = task.metadata.name, task.metadata
        kept, score, error, trace = False, None, "", ""
        task = _own(task)
        try:
            if dataset_root is not None and not task.data_loaded:
                task = offline.attach(task, dataset_root)
            metadata = task.metadata  # mteb restores the published one when it unloads the data
            result = _earlier(cache, encoder, task)
            kept = result is not None and not result.get_missing_evaluations(task)
            if result is None or not kept:
                if on_start:
                    on_start(task)
                result = _evaluate(encoder, task, cache, folder, fresh=result is None)
            score = _score(result, task)
        except Exception as failure:
            error, trace = f"{type(failure).__name__}: {failure}", traceback.format_exc()
            logger.debug("%s failed", name, exc_info=True)
        outcome = Outcome(
            name,
            metadata.type,
            "failed" if error else "kept" if kept else "measured",
            score,
            metadata.main_score,
            time.monotonic() - started,
            encoder.prompts.get(name, {}),
            error,
        )
        if not kept or name not in logged:  # a run may be killed between a result and its line
            date = datetime.now(timezone.utc).isoformat(timespec="seconds")
            _append(log, {**asdict(outcome), "data": metadata.dataset, "date": date, "traceback": trace})
        yield outcome


def with_data(task: AbsTask, dataset_root: Path | None) -> AbsTask:
    """A copy of `task` with its data loaded, from where `run` takes it."""
    if task.data_loaded:
        return task
    own = _own(task) if dataset_root is None else offline.attach(_own(task), dataset_root)
    own.load_data()
    if isinstance(own, AbsTaskRetrieval):
        own.convert_v1_dataset_format_to_v2(num_proc=None)
    return own


def result_folder(output: Path, encoder: InstructedEncoder) -> Path:
    """Where the results of this model with these settings lie."""
    return Path(mteb.ResultCache(output).get_task_result_path("any", encoder.mteb_model_meta).parent)


def _earlier(cache: mteb.ResultCache, encoder: InstructedEncoder, task: AbsTask) -> TaskResult | None:
    """The result there is, whole or in part, if it was measured on the same data."""
    try:
        result = cache.load_task_result(task.metadata.name, encoder.mteb_model_meta)
    except (ValueError, KeyError):  # half a file, of a run that was killed
        return None
    return result if result is not None and result.is_mergeable(task) else None


def _own(task: AbsTask) -> AbsTask:
    """A copy that draws as if `task` was new: what is measured does not depend on what was measured before."""
    own: Any = copy.copy(task)
    own.rng_state, own.np_rng = copy.deepcopy((task.rng_state, task.np_rng))
    return own


def _evaluate(
    encoder: InstructedEncoder, task: AbsTask, cache: mteb.ResultCache, folder: Path, *, fresh: bool
) -> TaskResult:
    timer = TimingStack()
    with predictions_folder(folder, task) as predictions:
        if predictions and not task.data_loaded:  # else mteb unloads it before the items are made
            task.load_data(timer=timer)
        outcome = mteb.evaluate(
            encoder,
            task,
            co2_tracker=False,
            cache=cache,
            overwrite_strategy="always" if fresh else "only-missing",
            encode_kwargs={"batch_size": _DATALOADER_BATCH},
            prediction_folder=predictions,
            show_progress_bar=False,
            timer=timer,
        )
        if outcome.exceptions:  # a private data set that was not found
            raise RuntimeError(outcome.exceptions[0].exception)
        if predictions:
            try:
                keep_items(folder, task, predictions, fresh=fresh)
            except (KeyError, TypeError, ValueError, OSError) as error:  # the score stands without an interval
                items_file(folder, task.metadata.name).unlink(missing_ok=True)
                logger.warning("%s: no items were kept: %s: %s", task.metadata.name, type(error).__name__, error)
    return outcome.task_results[0]


def _score(result: TaskResult, task: AbsTask) -> float:
    """The mean of the main scores of the splits and subsets that the task has."""
    score = float(result.validate_and_filter_scores(task).get_score())
    if math.isnan(score):
        raise ValueError(f"{task.metadata.main_score} is not a number, as with constant scores or similarities.")
    return score


def _logged_tasks(file: Path) -> set[str]:
    names = set()
    for line in file.read_text(encoding="utf-8").splitlines() if file.is_file() else ():
        with suppress(ValueError):  # half a line, of a run that was killed
            names.add(json.loads(line)["task"])
    return names


def _append(file: Path, entry: Mapping[str, Any]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    line = json.dumps(entry, ensure_ascii=False).encode() + b"\n"
    with file.open("a+b") as lines:
        if lines.seek(0, os.SEEK_END):
            lines.seek(-1, os.SEEK_END)
            line = line if lines.read(1) == b"\n" else b"\n" + line  # half a line, of a run that was killed
        lines.write(line)
