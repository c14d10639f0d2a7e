"""The items of a benchmark's scores, kept in a small file beside mteb's result: `TASK.items.parquet`.

A row is a query, a pair or a text, with its share of the score; intervals and comparisons come from these. The file is
believed only where the score that follows from it is the one in mteb's result. Clustering needs no file: mteb's result
has the V-measure of each of its draws.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
from mteb.abstasks import AbsTask, AbsTaskClassification, AbsTaskRetrieval
from mteb.abstasks.aggregated_task import AbsTaskAggregate
from mteb.results import TaskResult

from codiemb.evaluation.items import Items
from codiemb.evaluation.predictions import PartItems, part_items, predicts_items

Kind = Literal["queries", "pairs", "texts", "draws"]
Parts = dict[str, PartItems]

_SAME = 1e-4  # mteb rounds some scores to 5 digits
_KEY = b"codiemb"
_SCHEMA = pa.schema(
    [
        ("part", pa.string()),
        ("id", pa.string()),
        ("value", pa.float64()),
        ("gold", pa.float64()),
        ("ranks", pa.map_(pa.string(), pa.int32())),
    ]
)


@dataclass(frozen=True, eq=False)
class TaskScore:
    """A task's result and what it was computed from.

    Attributes:
        score: mteb's, the mean of the main metric over splits and subsets.
        data_revision: of the data, as mteb's result names it.
        kind: what `parts` holds; `draws`: samples of texts that mteb drew and clustered.
        parts: by split and subset; empty if the items are not known.
        reason: why they are not.
    """

    task: str
    type: str
    main_metric: str
    score: float
    data_revision: str
    kind: Kind
    parts: Parts
    reason: str = ""

    @property
    def n(self) -> int:
        """Items of all parts."""
        return sum(len(part.items) for part in self.parts.values())


def items_file(folder: Path, task: str) -> Path:
    """Where the items of a task lie."""
    return folder / f"{task}.items.parquet"


@contextmanager
def predictions_folder(folder: Path, task: AbsTask) -> Iterator[Path | None]:
    """A folder for mteb's predictions, which may be large, while the task runs; None: it predicts no items."""
    if not predicts_items(task):
        yield None
        return
    path = folder / f".predictions-{task.metadata.name}"
    shutil.rmtree(path, ignore_errors=True)  # of a run that was killed
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def keep_items(folder: Path, task: AbsTask, predictions: Path, *, fresh: bool) -> None:
    """Turn the predictions of a task, whose data is loaded, into its file of items.

    Args:
        fresh: False: the parts in the file stay, those that are predicted are added.
    """
    file = items_file(folder, task.metadata.name)
    parts = {} if fresh else _read(file)
    content = orjson.loads((predictions / task.prediction_file_name).read_bytes())
    for subset, splits in content.items():
        for split, predicted in splits.items() if subset != "mteb_model_meta" else ():
            parts[_part(split, subset)] = part_items(task, split, subset, predicted)
    _write(file, parts)


def read_scores(folder: Path, tasks: Iterable[AbsTask]) -> dict[str, TaskScore]:
    """The results of `tasks` in a folder of mteb results, by task; those without a score are not in it."""
    scores = {}
    for task in tasks:
        file = folder / f"{task.metadata.name}.json"
        if file.is_file():
            try:
                result = TaskResult.from_disk(file)
            except (ValueError, KeyError):  # half a file, of a run that was killed
                continue
            found = _task_score(result.validate_and_filter_scores(task), folder, task)
            if math.isfinite(found.score):
                scores[found.task] = found
    return scores


def _task_score(result: TaskResult, folder: Path, task: AbsTask) -> TaskScore:
    name, type_ = task.metadata.name, task.metadata.type
    main_scores = {
        _part(split, entry["hf_subset"]): entry for split, entries in result.scores.items() for entry in entries
    }
    kind: Kind = "pairs"
    parts: Parts = {}
    if isinstance(task, AbsTaskAggregate):
        reason = "it is put together from other tasks"
    elif all("v_measures" in entry for entry in main_scores.values()):
        kind, reason = "draws", ""
        parts = {part: PartItems(Items("mean", _draws(entry["v_measures"]))) for part, entry in main_scores.items()}
    elif not predicts_items(task):
        reason = f"mteb has no {task.metadata.main_score} of single items"
    else:
        kind = _kind(task)
        found = _read(items_file(folder, name))
        parts = {part: found[part] for part in main_scores if part in found}
        reason = "" if len(parts) == len(main_scores) else f"there is no {items_file(folder, name).name} of this result"
    if not reason and any(
        not abs(part.items.score() - main_scores[key]["main_score"]) <= _SAME for key, part in parts.items()
    ):
        reason = f"{items_file(folder, name).name} is of another result"
        if kind == "draws":
            reason = "the score is not the mean of mteb's draws"
    return TaskScore(
        name,
        type_,
        task.metadata.main_score,
        float(result.get_score()),
        result.dataset_revision,
        kind,
        {} if reason else parts,
        reason,
    )


def _kind(task: AbsTask) -> Kind:
    if isinstance(task, AbsTaskRetrieval):
        return "queries"
    return "texts" if isinstance(task, AbsTaskClassification) else "pairs"


def _draws(v_measures: Any) -> np.ndarray:
    """V-measure of each draw, over the levels of a hierarchy its mean."""
    levels = list(v_measures.values()) if isinstance(v_measures, dict) else [v_measures]
    return np.asarray(np.mean(levels, axis=0), dtype=np.float64)


# -- the file --------------------------------------------------------------------------------------------------------


def _part(split: str, subset: str) -> str:
    return f"{split}/{subset}"


def _write(file: Path, parts: Mapping[str, PartItems]) -> None:
    about = {name: {"statistic": part.items.statistic, "similarity": part.similarity} for name, part in parts.items()}
    rows = [
        {
            "part": name,
            "id": part.ids[i] if part.ids else None,
            "value": float(value),
            "gold": float(part.items.gold[i]) if len(part.items.gold) else None,
            "ranks": list(part.ranks[i].items()) if part.ranks else None,
        }
        for name, part in parts.items()
        for i, value in enumerate(part.items.values)
    ]
    table = pa.Table.from_pylist(rows, schema=_SCHEMA.with_metadata({_KEY: json.dumps(about)}))
    partial = file.with_name(f".{file.name}")
    pq.write_table(table, partial, compression="zstd")
    partial.replace(file)


def _read(file: Path) -> Parts:
    """The parts in a file; none if there is no file, or another's."""
    if not file.is_file():
        return {}
    table = pq.read_table(file)
    about = json.loads((table.schema.metadata or {}).get(_KEY, b"{}"))
    columns = {name: table[name].to_pylist() for name in _SCHEMA.names} if about else {}
    parts: Parts = {}
    for name, known in about.items():
        rows = [i for i, part in enumerate(columns["part"]) if part == name]
        values, gold = ([columns[column][i] for i in rows] for column in ("value", "gold"))
        no_gold = known["statistic"] == "mean"
        parts[name] = PartItems(
            Items(known["statistic"], np.array(values), np.array([] if no_gold else gold, dtype=np.float64)),
            [id_ for i in rows if (id_ := columns["id"][i]) is not None],
            [dict(ranks) for i in rows if (ranks := columns["ranks"][i]) is not None],
            known["similarity"],
        )
    return parts
