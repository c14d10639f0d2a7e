"""What a run has done so far: windows of rows, each in a file that is there whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson

_JOURNAL = "journal.json"


class MiningError(ValueError):
    """An output that cannot be made, or gone on with; the message says what to do."""


class Parts:
    """Finished windows in a directory, with a journal of how they were made.

    Args:
        settings: all that the rows depend on; windows made with other settings are not gone on with.
        overwrite: drop such windows.
    Raises:
        MiningError: there are windows that were made otherwise.
    """

    def __init__(self, directory: Path, settings: Mapping[str, Any], overwrite: bool) -> None:
        self._directory = directory
        self.count = 0
        journal = directory / _JOURNAL
        if journal.is_file():
            known = json.loads(journal.read_text(encoding="utf-8"))
            different = [key for key in settings if known.get(key) != settings[key]]
            if not different:
                while self._path(self.count).is_file():
                    self.count += 1
                return
            if not overwrite:
                shown = "; ".join(f"{key}: {known.get(key)!r}, now {settings[key]!r}" for key in different)
                raise MiningError(
                    f"{directory}: a stopped run worked with other settings ({shown}). Go on with the old ones, or "
                    "begin anew (--overwrite)."
                )
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True)
        _write_whole(journal, json.dumps(settings, indent=2, ensure_ascii=False).encode())

    def _path(self, number: int) -> Path:
        return self._directory / f"{number:08}.json"

    def add(self, rows: Sequence[bytes], records: Sequence[Mapping[str, Any]]) -> None:
        """Keep a window: its rows as lines of JSON, and what is known of each mined one."""
        content = {"rows": [row.decode() for row in rows], "records": records}
        _write_whole(self._path(self.count), orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY))
        self.count += 1

    def rows(self) -> Iterator[bytes]:
        """The lines of all windows."""
        for number in range(self.count):
            yield from (row.encode() for row in orjson.loads(self._path(number).read_bytes())["rows"])

    def records(self) -> Iterator[dict[str, Any]]:
        """What is known of all mined rows."""
        for number in range(self.count):
            yield from orjson.loads(self._path(number).read_bytes())["records"]

    def remove(self) -> None:
        """Delete all windows."""
        shutil.rmtree(self._directory)


def _write_whole(path: Path, content: bytes) -> None:
    partial = path.with_name(f".{path.name}")
    with partial.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
