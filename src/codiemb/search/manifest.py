"""What an index says of itself, and how it comes to be under its name whole or not at all."""

from __future__ import annotations

import errno
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from codiemb.search.finders import Kind, SearchIndexError

MANIFEST_FILE = "manifest.json"
FORMAT: Final = "codiemb search index"

Metric = Literal["cosine", "dot"]

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class Manifest(BaseModel):
    """What `manifest.json` says of an index.

    Attributes:
        model: what the model was loaded by.
        fingerprint: tells its vectors from those of other models, see `codiemb.fingerprint`.
        metric: `cosine` (vectors were brought to length 1) or `dot`.
        template: of prompts, by name, where the model was loaded with another than its own.
        instruction: of the task, a text or a name, as the documents' side read it; None took the model's own prompt.
        max_length: tokens that documents were cut to; None if nothing says.
        files: bytes of each other file.
        versions: of the packages that made the index.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal["codiemb search index"] = FORMAT
    format_version: Literal[1] = 1
    model: str
    fingerprint: str
    documents: int
    dimension: int
    kind: Kind
    metric: Metric
    template: str | None
    instruction: str | None
    max_length: int | None
    files: dict[str, int]
    versions: dict[str, str]

    def write(self, directory: Path) -> None:
        """As `manifest.json` in `directory`."""
        content = json.dumps(self.model_dump(), indent=2, ensure_ascii=False) + "\n"
        (directory / MANIFEST_FILE).write_text(content, encoding="utf-8")


def read_manifest(directory: Path) -> Manifest:
    """The manifest of the index in `directory`.

    Raises:
        SearchIndexError: it is not one, or damaged, or of a later version.
    """
    path = directory / MANIFEST_FILE
    if not directory.is_dir():
        raise SearchIndexError(f"{directory}: no such directory, expected an index (`codiemb search build` makes one).")
    if not path.is_file():
        raise SearchIndexError(f"{directory}: is not an index: it has no {MANIFEST_FILE}.")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(content, dict) and content.get("format") == FORMAT and content.get("format_version") != 1:
            raise SearchIndexError(
                f"{path}: has format version {content.get('format_version')}, this codiemb reads 1. Update codiemb."
            )
        return Manifest.model_validate(content)
    except (ValidationError, json.JSONDecodeError, UnicodeDecodeError) as error:
        reason = error.errors()[0]["loc"] if isinstance(error, ValidationError) else error
        raise SearchIndexError(f"{path}: not the manifest of an index, or damaged ({reason}).") from None


def check_vacant(directory: Path, overwrite: bool) -> None:
    """Refuse a place for an index that holds something else, or an index that may not be replaced.

    Raises:
        SearchIndexError: saying which.
    """
    if not directory.exists() or (directory.is_dir() and not any(directory.iterdir())):
        return
    read_manifest(directory)
    if not overwrite:
        raise SearchIndexError(f"{directory}: is an index already. Choose another name, or replace it (--overwrite).")


@contextmanager
def new_directory(directory: Path, overwrite: bool) -> Iterator[Path]:
    """A directory beside `directory` that takes its name at the end, or is removed."""
    check_vacant(directory, overwrite)
    directory.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{directory.name}.partial-", dir=directory.parent))
    try:
        yield partial
        partial.chmod(0o755)  # mkdtemp makes it 0700
        previous = None
        if directory.exists():
            previous = partial.with_name(partial.name.replace(".partial-", ".previous-"))
            directory.rename(previous)
        try:
            partial.rename(directory)
        except OSError:
            if previous:
                previous.rename(directory)
            raise
        if previous:
            shutil.rmtree(previous)
    except BaseException as error:
        shutil.rmtree(partial, ignore_errors=True)
        if isinstance(error, OSError) and error.errno in _NO_ROOM:
            reason = f"{os.strerror(error.errno)}: the index was not written, and nothing is left of it"
            raise OSError(error.errno, reason, str(directory)) from error
        raise
