"""Parts of embeddings into one file: `.npy`, `.parquet` or `.jsonl`, a part at a time, there whole or not at all."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from codiemb.data.writers import replacing


def check_output(output: Path, keep_text: bool) -> None:
    """Refuse what `write_output` cannot do, before any work is done.

    Raises:
        ValueError: another kind of file, or texts in a `.npy`.
    """
    if output.suffix not in _WRITERS:
        raise ValueError(f"{output}: cannot write this kind; expected a name that ends in {', '.join(_WRITERS)}.")
    if keep_text and output.suffix == ".npy":
        raise ValueError(f"{output}: an array has no place for texts. Write .parquet or .jsonl, or leave them out.")


def write_output(output: Path, parts: Sequence[Path], rows: int, ranges: np.ndarray | None) -> None:
    """Join the parts' rows in their order.

    Beside a `.npy` of rows with ids goes `.ids.jsonl`, an id a line; beside integer vectors goes `.ranges.npy`,
    float32 (2, dim): the least and greatest value of each dimension. Those of an output that is replaced go with it.
    """
    ids, scales = output.with_suffix(".ids.jsonl"), output.with_suffix(".ranges.npy")
    with ExitStack() as stack:  # left in reverse order, so that the output itself comes last
        target = stack.enter_context(replacing(output))
        if output.exists():
            ids.unlink(missing_ok=True)
            scales.unlink(missing_ok=True)
        if ranges is not None:
            with replacing(scales) as partial, partial.open("wb") as file:
                np.save(file, ranges)
        if output.suffix == ".npy" and "id" in pq.read_schema(parts[0]).names:
            with replacing(ids) as partial, partial.open("wb") as file:
                for table in _tables(parts):
                    file.writelines(
                        orjson.dumps(id_, option=orjson.OPT_APPEND_NEWLINE) for id_ in table["id"].to_pylist()
                    )
        _WRITERS[output.suffix](target, parts, rows)


def _tables(parts: Sequence[Path]) -> Iterator[pa.Table]:
    for part in parts:
        yield pq.read_table(part).replace_schema_metadata(None)


def _vectors(table: pa.Table) -> np.ndarray:
    """(rows, dim), without a copy."""
    column = table["embedding"].combine_chunks()
    return np.asarray(column.flatten().to_numpy()).reshape(len(column), -1)


def _write_npy(target: Path, parts: Sequence[Path], rows: int) -> None:
    first = _vectors(next(_tables(parts)))
    with target.open("wb") as file:
        header = {"descr": np.lib.format.dtype_to_descr(first.dtype), "fortran_order": False}
        np.lib.format.write_array_header_1_0(file, {**header, "shape": (rows, first.shape[1])})
        for table in _tables(parts):
            file.write(np.ascontiguousarray(_vectors(table)).data)


def _write_parquet(target: Path, parts: Sequence[Path], rows: int) -> None:
    schema = pq.read_schema(parts[0]).remove_metadata()
    packed = {name: "none" if name == "embedding" else "zstd" for name in schema.names}
    packed["embedding.list.element"] = "none"
    with pq.ParquetWriter(target, schema, compression=packed, use_dictionary=False) as writer:
        for table in _tables(parts):
            writer.write_table(table)


def _write_jsonl(target: Path, parts: Sequence[Path], rows: int) -> None:
    with target.open("wb") as file:
        for table in _tables(parts):
            vectors = _vectors(table)
            others = table.drop_columns("embedding").to_pylist()
            for row, vector in zip(others, vectors, strict=True):
                row["embedding"] = vector
                file.write(orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE | orjson.OPT_SERIALIZE_NUMPY))


_WRITERS: dict[str, Callable[[Path, Sequence[Path], int], None]] = {
    ".npy": _write_npy,
    ".parquet": _write_parquet,
    ".jsonl": _write_jsonl,
}
