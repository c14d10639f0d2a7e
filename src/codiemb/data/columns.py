"""The fast way to check rows: whole batches at a time in Arrow, for the usual case that all of them are good.

The rules are those of `examples.parse_example`, which alone decides that a row is bad and says why: here a batch is
either good for certain or left to it.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from codiemb.data.examples import PAIR_TASKS, TASK_TYPES, TaskType
from codiemb.data.tables import FILE_SCHEMA, TABLE_SCHEMA

Mask: TypeAlias = "np.ndarray[tuple[int], np.dtype[np.bool_]]"
Batches: TypeAlias = dict[TaskType, pa.RecordBatch]
Counts: TypeAlias = "np.ndarray[tuple[int], np.dtype[np.int64]]"

_FLOAT32_MAX = float(np.finfo(np.float32).max)
_TEXT_PARTS = ("instruction", "prefix", "text")
_NOT_TEXT = np.setdiff1d(np.arange(0x20, dtype=np.uint8), np.frombuffer(b"\t\n\r", np.uint8))


class _Unsure(Exception):
    """Some row may be bad, or is spelled in a way that only the slow check reads."""


def checked_batches(table: pa.Table) -> Batches | None:
    """A table with the columns of a file as one batch of `TABLE_SCHEMA` for each task, or None if a row may be bad.

    Texts may be strings, lists of strings or structs. Rows of several scored pairs are left to the slow check too.
    """
    try:
        columns = {name: table[name].combine_chunks() for name in table.column_names}
        if len(columns) != table.num_columns or not columns.keys() <= set(FILE_SCHEMA.names):
            raise _Unsure
        return _checked(columns)
    except (_Unsure, KeyError, pa.ArrowException):
        return None


def _checked(columns: dict[str, pa.Array]) -> Batches:
    task_types = columns["task_type"].cast(pa.string())
    queries = _texts(columns["query"])
    rows = len(queries)
    positives, positive_counts = _list_parts(columns.get("positives"), rows)
    negatives, negative_counts = _list_parts(columns.get("negatives"), rows)
    positive_scores, positive_score_counts = _list_parts(columns.get("positive_scores"), rows)
    negative_scores, negative_score_counts = _list_parts(columns.get("negative_scores"), rows)

    is_task = {task: _mask(pc.equal(task_types, task)) for task in TASK_TYPES}
    _require(np.sum(list(is_task.values()), axis=0) == 1)
    pairs = np.logical_or.reduce([is_task[task] for task in PAIR_TASKS])
    _require(positive_counts > 0)
    _require(~pairs | ((positive_counts == 1) & (negative_counts == 0)))
    _require((positive_score_counts == positive_counts) | (~pairs & (positive_score_counts == 0)))
    _require((negative_score_counts == negative_counts) | (negative_score_counts == 0))
    positive_scores, negative_scores = _scores(positive_scores), _scores(negative_scores)
    classes = positive_scores.to_numpy()[np.repeat(is_task["pair_classification"], positive_score_counts)]
    _require((classes == 0) | (classes == 1))

    batch = pa.RecordBatch.from_arrays(
        [
            queries,
            _list_array(_texts(positives), positive_counts, "positives"),
            _list_array(_texts(negatives), negative_counts, "negatives"),
            _list_array(positive_scores, positive_score_counts, "positive_scores"),
            _list_array(negative_scores, negative_score_counts, "negative_scores"),
        ],
        schema=TABLE_SCHEMA,
    )
    found = [task for task in TASK_TYPES if is_task[task].any()]
    return {task: batch if len(found) == 1 else batch.filter(pa.array(is_task[task])) for task in found}


def _texts(array: pa.Array) -> pa.StructArray:
    """Texts in any spelling, checked, as structs."""
    if array.null_count:
        raise _Unsure
    kind = array.type
    parts: list[pa.Array]
    if pa.types.is_null(kind):  # an empty list of texts, whose spelling is not known
        parts = [pa.array([], pa.string())] * 3
    elif pa.types.is_struct(kind):
        names = [field.name for field in kind]
        if not set(names) <= set(_TEXT_PARTS):
            raise _Unsure
        absent = pa.nulls(len(array), pa.string())
        parts = [array.field(name).cast(pa.string()) if name in names else absent for name in _TEXT_PARTS]
    elif pa.types.is_list(kind) or pa.types.is_large_list(kind):
        _require(_lengths(array) == 3)
        strings = array.flatten().cast(pa.string())
        parts = [strings.take(pa.array(np.arange(part, len(strings), 3))) for part in range(3)]
    else:
        parts = [*[pa.nulls(len(array), pa.string())] * 2, array.cast(pa.string())]
    if parts[2].null_count:
        raise _Unsure
    parts = [part.fill_null("") if part.null_count else part for part in parts]
    for part in parts:
        _require_characters(part)
    _require(~_mask(pc.equal(pc.binary_length(pc.utf8_ltrim_whitespace(parts[2])), 0)))
    return pa.StructArray.from_arrays(parts, fields=list(TABLE_SCHEMA.field("query").type))


def _require_characters(strings: pa.StringArray) -> None:
    strings.validate(full=True)  # JSON strings may hold bytes that are not UTF-8
    _, offset_buffer, data_buffer = strings.buffers()
    if not len(strings) or data_buffer is None:
        return
    offsets = np.frombuffer(offset_buffer, np.int32)
    data = np.frombuffer(data_buffer, np.uint8)[offsets[strings.offset] : offsets[strings.offset + len(strings)]]
    _require(~np.isin(data[data < 0x20], _NOT_TEXT))
    _require(data != 0x7F)
    _require(data[np.flatnonzero(data == 0xC2) + 1] >= 0xA0)  # U+0080 to U+009F


def _scores(array: pa.Array) -> pa.FloatArray:
    if array.null_count or pa.types.is_boolean(array.type):
        raise _Unsure
    values = array.cast(pa.float64())
    _require(np.abs(values.to_numpy()) <= _FLOAT32_MAX)  # false for NaN
    return values.cast(pa.float32())


def _list_parts(array: pa.Array | None, rows: int) -> tuple[pa.Array, Counts]:
    """The values of a column of lists, one after the other, and how many belong to each row."""
    if array is None or pa.types.is_null(array.type):
        return pa.nulls(0), np.zeros(rows, dtype=np.int64)
    if not (pa.types.is_list(array.type) or pa.types.is_large_list(array.type)):
        raise _Unsure
    return array.flatten(), _lengths(array)


def _lengths(array: pa.Array) -> Counts:
    counts: Counts = pc.list_value_length(array).fill_null(0).to_numpy().astype(np.int64)
    return counts


def _list_array(values: pa.Array, counts: Counts, column: str) -> pa.ListArray:
    offsets = pa.array(np.concatenate([[0], np.cumsum(counts)]).astype(np.int32))
    return pa.ListArray.from_arrays(offsets, values, type=TABLE_SCHEMA.field(column).type)


def _mask(array: pa.BooleanArray) -> Mask:
    mask: Mask = array.fill_null(False).to_numpy(zero_copy_only=False)
    return mask


def _require(condition: Mask) -> None:
    if not condition.all():
        raise _Unsure
