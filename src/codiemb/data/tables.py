"""The Arrow shape of checked examples: what lies on disk, in the cache and in parquet files."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, chain

import pyarrow as pa

from codiemb.data.examples import Example, Text

TEXT_TYPE = pa.struct([("instruction", pa.string()), ("prefix", pa.string()), ("text", pa.string())])
_TEXTS_TYPE = pa.list_(TEXT_TYPE)
_SCORES_TYPE = pa.list_(pa.float32())

#: A table of one task.
TABLE_SCHEMA = pa.schema(
    [
        ("query", TEXT_TYPE),
        ("positives", _TEXTS_TYPE),
        ("negatives", _TEXTS_TYPE),
        ("positive_scores", _SCORES_TYPE),
        ("negative_scores", _SCORES_TYPE),
    ]
)
#: A file of the unified format: the rows name their task.
FILE_SCHEMA = pa.schema([("task_type", pa.string()), *TABLE_SCHEMA])


def table_batch(examples: Sequence[Example]) -> pa.RecordBatch:
    """Examples of one task as a batch of `TABLE_SCHEMA`."""
    return pa.RecordBatch.from_arrays(_columns(examples), schema=TABLE_SCHEMA)


def file_batch(examples: Sequence[Example]) -> pa.RecordBatch:
    """Examples of any tasks as a batch of `FILE_SCHEMA`."""
    task_types = pa.array([example.task_type for example in examples], pa.string())
    return pa.RecordBatch.from_arrays([task_types, *_columns(examples)], schema=FILE_SCHEMA)


def _columns(examples: Sequence[Example]) -> list[pa.Array]:
    _, queries, positives, negatives, positive_scores, negative_scores = zip(*examples, strict=True)
    return [
        _text_array(queries),
        _text_lists(positives),
        _text_lists(negatives),
        _score_lists(positive_scores),
        _score_lists(negative_scores),
    ]


def _text_array(texts: Sequence[Text]) -> pa.StructArray:
    # Column by column: several times faster than letting Arrow take the tuples apart.
    parts = zip(*texts, strict=True) if texts else ((), (), ())
    return pa.StructArray.from_arrays([pa.array(part, pa.string()) for part in parts], fields=list(TEXT_TYPE))


def _text_lists(lists: Sequence[list[Text]]) -> pa.ListArray:
    values = _text_array(list(chain.from_iterable(lists)))
    return pa.ListArray.from_arrays(_offsets(lists), values, type=_TEXTS_TYPE)


def _score_lists(lists: Sequence[list[float]]) -> pa.ListArray:
    values = pa.array(chain.from_iterable(lists), pa.float32())
    return pa.ListArray.from_arrays(_offsets(lists), values, type=_SCORES_TYPE)


def _offsets(lists: Sequence[Sequence[object]]) -> pa.Array:
    return pa.array(accumulate(map(len, lists), initial=0), pa.int32())
