"""safetensors files, read and written block by block: memory follows the block, not the tensor or the model."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

BLOCK = 1 << 20  # elements read at once: 8 MiB a model in float64

FLOATING: Mapping[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}
"""What is averaged, by its name in the file; all else must be equal."""


class StoredTensor(NamedTuple):
    """Where a tensor lies and what it is; `dtype` as the file names it, `offset` and `nbytes` in bytes."""

    file: Path
    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int

    @property
    def elements(self) -> int:
        """How many numbers it holds."""
        return math.prod(self.shape)

    def blocks(self) -> Iterator[Tensor]:
        """Its values, flat, at most `BLOCK` at a time; bytes where the dtype is not in `FLOATING`."""
        # Plain reads: the pages of a mapped file would count as memory of the process.
        dtype = FLOATING.get(self.dtype, torch.uint8)
        with self.file.open("rb") as file:
            file.seek(self.offset)
            for start in range(0, self.nbytes, BLOCK * dtype.itemsize):
                block = bytearray(min(BLOCK * dtype.itemsize, self.nbytes - start))
                if file.readinto(block) != len(block):
                    raise ValueError(f"{self.file}: ends within {self.name}; it was changed while it was read.")
                yield torch.frombuffer(block, dtype=dtype)


def stored_tensors(file: Path) -> dict[str, StoredTensor]:
    """All tensors of a file, by name.

    Raises:
        ValueError: it is damaged.
    """
    try:
        with safe_open(file, framework="pt"):  # checks the header and the file's size
            pass
    except SafetensorError as error:
        raise ValueError(
            f"{file}: is damaged or no safetensors file ({error}). Copy or save the model again."
        ) from error
    header, start = _header(file)
    found = {}
    for name, entry in header.items():
        if name != "__metadata__":
            first, end = entry["data_offsets"]
            found[name] = StoredTensor(file, name, entry["dtype"], tuple(entry["shape"]), start + first, end - first)
    return found


def file_metadata(file: Path) -> dict[str, str]:
    """The free-form part of the header."""
    return dict(_header(file)[0].get("__metadata__", {}))


def _header(file: Path) -> tuple[dict[str, Any], int]:
    """The header, and where the tensors begin."""
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        return json.loads(opened.read(length)), 8 + length


class TensorWriter:
    """A safetensors file whose tensors are written one after the other, in the order of `names`.

    Args:
        tensors: name to (dtype as the format names it, shape, bytes).
    """

    def __init__(
        self, path: Path, tensors: Mapping[str, tuple[str, tuple[int, ...], int]], metadata: dict[str, str]
    ) -> None:
        # Widest numbers first, as the library does, so that every tensor is aligned.
        self.names = sorted(tensors, key=lambda name: (-_width(*tensors[name]), name))
        header: dict[str, object] = {"__metadata__": metadata} if metadata else {}
        self.nbytes = 0
        for name in self.names:
            dtype, shape, nbytes = tensors[name]
            header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [self.nbytes, self.nbytes + nbytes]}
            self.nbytes += nbytes
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        self._file = path.open("wb")
        self._file.write(len(text).to_bytes(8, "little") + text)

    def write(self, values: Tensor) -> None:
        """The next block of the current tensor."""
        self._file.write(values.contiguous().view(torch.uint8).numpy().data)

    def __enter__(self) -> TensorWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._file.close()


def _width(dtype: str, shape: tuple[int, ...], nbytes: int) -> int:
    return nbytes // max(math.prod(shape), 1)
