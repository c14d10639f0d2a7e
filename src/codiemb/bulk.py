"""Embedding files of any length: in constant memory, and to be gone on with after a stop.

Rows are embedded part by part. A part is written beside the output, flushed to the disk and renamed, so it is there
whole or not at all; a later run skips the rows of the parts there are. At the end they become the output, which appears
under its name only when it is whole. A journal says how the parts were made: parts of another model or other options
are never gone on with, nor are parts of another input, which each part's hash of all rows so far tells.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from filelock import FileLock, Timeout
from sentence_transformers.util.quantization import quantize_embeddings

from codiemb.bulk_output import check_output, write_output
from codiemb.data.text_rows import TextRow
from codiemb.embedder import LLMEmbeddingModel, Precision
from codiemb.fingerprint import fingerprint
from codiemb.prompts import PromptedText, Side
from codiemb.texts import without_lone_surrogates

PART_ROWS, PART_CHARACTERS = 4096, 2**17
"""Texts, and their characters, that a part has at most: what a stop can cost."""
_RANGE_ROWS = 256  # that the first part has at least where it gives the ranges of integers, however long they are

_JOURNAL = "journal.json"


class BulkError(ValueError):
    """An output that cannot be made, or gone on with; the message says what to do."""


@dataclass(frozen=True)
class BulkResult:
    """What a run did.

    Attributes:
        rows: of the output; `resumed` of them were there before this run.
        tokens: that this run put through the network.
        truncated: distinct texts that this run cut to the maximum length.
    """

    rows: int
    resumed: int
    tokens: int
    truncated: int
    dimension: int


def embed_rows(
    model: LLMEmbeddingModel,
    rows: Iterable[TextRow],
    output: Path,
    *,
    side: Side = "document",
    instruction: str | None = None,
    precision: Precision = "float32",
    keep_text: bool = False,
    overwrite: bool = False,
    known_fingerprint: str | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> BulkResult:
    """Embed rows into a `.npy`, `.parquet` or `.jsonl` file, going on with what a stopped run left.

    Every row gives one vector, an empty text too. Precisions are those of sentence-transformers; the ranges of `int8`
    and `uint8` are those of the first part, values beyond are clipped.

    Args:
        rows: the same rows again in a run that goes on: those of finished parts are read and compared.
        instruction: a text or a task's name; the model's own prompt for `side` if None.
        keep_text: write the texts too (not to `.npy`).
        overwrite: replace an output of that name, and drop parts that cannot be gone on with.
        known_fingerprint: the model's, where the caller has it, since taking it reads all weights.
        on_progress: called with rows and tokens just done; (rows, 0) once for those of a stopped run.
    Raises:
        BulkError: the output is there, or parts were made otherwise, or another run writes them.
        OSError: a full disk, say. Finished parts stay.
    """
    check_output(output, keep_text)
    if output.exists() and not overwrite:
        raise BulkError(f"{output}: is there already. Choose another name, or replace it with overwrite (--overwrite).")
    output.parent.mkdir(parents=True, exist_ok=True)
    settings = {
        "model": known_fingerprint or fingerprint(model),
        "prompt": model.prompt_for(side, instruction),
        "max_length": model.embedding_pass.max_length,
        "compute": str(model.embedding_pass.precision).removeprefix("torch."),
        "dimension": min(model.truncate_dim or 2**31, model.embedding_pass.dimension),
        "precision": precision,
        "text": keep_text,
    }
    with ExitStack() as stack:
        lock = output.with_name(f".{output.name}.lock")
        try:
            stack.enter_context(FileLock(lock, timeout=0))
        except Timeout:
            raise BulkError(f"{output}: another run is writing it. Wait for its end or choose another name.") from None
        stack.callback(lock.unlink, missing_ok=True)
        parts = _Parts(output.with_name(f"{output.name}.parts"), settings, overwrite)
        source = iter(rows)
        resumed = parts.skip(source)
        if resumed and on_progress:
            on_progress(resumed, 0)
        tokens = truncated = 0
        encoder = _Quantizer(precision, parts.directory)
        windows = _Windows(source, str(settings["prompt"]), 1 if encoder.is_ready else _RANGE_ROWS)
        with closing(model.embedding_pass.encode_windows(windows)) as encoded:
            for vectors, batch in encoded:
                parts.add(windows.pop(), encoder(vectors))
                tokens, truncated = tokens + batch.num_tokens, truncated + batch.truncated
                if on_progress:
                    on_progress(len(vectors), batch.num_tokens)
        if not parts.rows:
            parts.remove()
            raise BulkError(f"{output}: not written, since there are no rows to embed.")
        write_output(output, parts.files(), parts.rows, encoder.ranges)
        parts.remove()
    return BulkResult(parts.rows, resumed, tokens, truncated, int(settings["dimension"] or 0))


class _Windows:
    """Rows in windows, each remembered until its vectors are there; the first has at least `first_rows`."""

    def __init__(self, rows: Iterator[TextRow], prompt: str, first_rows: int) -> None:
        self._rows = rows
        self._prompt = prompt
        self._least = first_rows
        self._waiting: list[list[TextRow]] = []

    def __iter__(self) -> Iterator[list[PromptedText]]:
        window: list[TextRow] = []
        characters = 0
        for row in self._rows:
            long_enough = len(window) >= self._least and characters + len(row.text) > PART_CHARACTERS
            if long_enough or len(window) == PART_ROWS:
                yield self._handed_out(window)
                window, characters, self._least = [], 0, 1
            window.append(row)
            characters += len(row.text)
        if window:
            yield self._handed_out(window)

    def _handed_out(self, window: list[TextRow]) -> list[PromptedText]:
        self._waiting.append(window)
        return [PromptedText(self._prompt, row.text) for row in window]

    def pop(self) -> list[TextRow]:
        return self._waiting.pop(0)


class _Part(NamedTuple):
    path: Path
    rows: int
    digest: str


class _Parts:
    """The finished parts of an output, in a directory beside it."""

    def __init__(self, directory: Path, settings: dict[str, Any], overwrite: bool) -> None:
        self.directory = directory
        self.rows = 0
        self._keep_text = bool(settings["text"])
        self._hash = hashlib.blake2b(digest_size=16)
        self._parts: list[_Part] = []
        journal = directory / _JOURNAL
        if journal.is_file():
            known = json.loads(journal.read_text(encoding="utf-8"))
            different = [f"{key}: {known.get(key)!r}, now {value!r}" for key, value in settings.items()]
            different = [line for line, key in zip(different, settings, strict=True) if known.get(key) != settings[key]]
            if not different:
                self._find()
                return
            if not overwrite:
                raise BulkError(
                    f"{directory}: what a stopped run left was made with other settings ({'; '.join(different)}). "
                    "Go on with the old ones, or begin anew with overwrite (--overwrite)."
                )
        elif directory.exists() and not (
            directory.is_dir() and all(path.name[0] == "." for path in directory.iterdir())
        ):
            raise BulkError(
                f"{directory}: is in the way, and no stopped run left it. Move it, or choose another output."
            )
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True)
        _write_whole(journal, json.dumps(settings, indent=2, ensure_ascii=False).encode())

    def _find(self) -> None:
        for path in self.directory.glob(".*"):
            path.unlink()  # half written when the run was stopped
        while (path := self._path(len(self._parts))).is_file():
            metadata = pq.read_schema(path).metadata
            self._parts.append(_Part(path, int(metadata[b"rows"]), metadata[b"digest"].decode()))

    def _path(self, number: int) -> Path:
        return self.directory / f"{number:08}.parquet"

    def files(self) -> list[Path]:
        return [part.path for part in self._parts]

    def skip(self, rows: Iterator[TextRow]) -> int:
        """Read the rows of the parts there are, and see that they are the same."""
        for part in self._parts:
            for _ in range(part.rows):
                row = next(rows, None)
                if row is not None:
                    self._read(row)
            if self._hash.hexdigest() != part.digest:
                raise BulkError(
                    f"{self.directory}: a stopped run embedded other texts in rows {self.rows + 1} to "
                    f"{self.rows + part.rows}. Give its input again, or begin anew: remove that directory."
                )
            self.rows += part.rows
        return self.rows

    def _read(self, row: TextRow) -> None:
        for value in row:
            data = b"\0" if value is None else value.encode("utf-8", "surrogatepass")
            self._hash.update(len(data).to_bytes(8, "little") + data)

    def add(self, rows: list[TextRow], vectors: np.ndarray) -> None:
        for row in rows:
            self._read(row)
        columns: dict[str, pa.Array] = {}
        if rows[0].id is None:
            columns["index"] = pa.array(range(self.rows, self.rows + len(rows)), pa.int64())
        else:
            columns["id"] = pa.array([row.id for row in rows], pa.string())
        if self._keep_text:
            columns["text"] = pa.array([without_lone_surrogates(row.text) for row in rows], pa.string())
        flat = pa.array(vectors.reshape(-1))
        columns["embedding"] = pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1])
        metadata = {"rows": str(len(rows)), "digest": self._hash.hexdigest()}
        table = pa.table(columns).replace_schema_metadata(metadata)
        path = self._path(len(self._parts))
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, compression="none", use_dictionary=False)
        _write_whole(path, sink.getvalue())
        self._parts.append(_Part(path, len(rows), metadata["digest"]))
        self.rows += len(rows)

    def remove(self) -> None:
        shutil.rmtree(self.directory)


class _Quantizer:
    """Vectors to the wanted precision; the ranges that integers need are kept with the parts."""

    def __init__(self, precision: Precision, directory: Path) -> None:
        self._precision: Literal["float32", "int8", "uint8", "binary", "ubinary"] = precision
        self._file = directory / "ranges.npy"
        self.ranges: np.ndarray | None = None
        if self._file.is_file():
            self.ranges = np.load(self._file)

    @property
    def is_ready(self) -> bool:
        """Whether vectors can be stored without ranges that are still to be measured."""
        return self.ranges is not None or self._precision not in ("int8", "uint8")

    def __call__(self, vectors: np.ndarray) -> np.ndarray:
        if self._precision in ("int8", "uint8"):
            if self.ranges is None:
                least = vectors.min(axis=0)
                wider = least + 1e-6 * np.maximum(np.abs(least), 1)  # a range of nothing cannot be divided by
                self.ranges = np.stack([least, np.maximum(vectors.max(axis=0), wider)]).astype(np.float32)
                sink = pa.BufferOutputStream()
                np.save(sink, self.ranges)
                _write_whole(self._file, sink.getvalue())
            vectors = vectors.clip(*self.ranges)
        return np.asarray(quantize_embeddings(vectors, self._precision, ranges=self.ranges))


def _write_whole(path: Path, content: Any) -> None:
    """Write a file that is there whole or not at all, also after a crash of the machine."""
    partial = path.with_name(f".{path.name}")
    try:
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
