"""Answers that were paid for, one a line, so that a stopped run never asks for them again."""

from __future__ import annotations

import hashlib
import logging
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import orjson

try:
    import fcntl
except ModuleNotFoundError:  # not on Windows, where two runs on one journal go unnoticed
    fcntl = None  # type: ignore[assignment]


logger = logging.getLogger(__name__)


class JournalError(ValueError):
    """A journal that cannot be gone on with."""


class Completion(NamedTuple):
    """An answer as the server gave it; `estimated` if it did not say how many tokens it took."""

    content: str
    finish_reason: str | None
    input_tokens: int
    output_tokens: int
    estimated: bool = False


def request_key(content: Mapping[str, Any]) -> str:
    """A hash of everything that an answer depends on."""
    return hashlib.sha256(orjson.dumps(content, option=orjson.OPT_SORT_KEYS)).hexdigest()[:32]


class Journal:
    """An append-only file of answers by the key of their request. Used as a context, from several threads.

    A line is on the disk before the answer counts; one that a kill has cut short is taken off when the file is opened.

    Raises:
        JournalError: another process has it open, or a line other than the last is damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._answers: dict[str, Completion] = {}
        self._lock = threading.Lock()
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file: BinaryIO = path.open("a+b")
        try:
            if fcntl is not None:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._load()
        except BlockingIOError:
            self._file.close()
            raise JournalError(f"{path}: another run has it open. Wait for it, or give another output.") from None
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def __len__(self) -> int:
        return len(self._answers)

    def get(self, key: str) -> Completion | None:
        """The answer to a request, None if there is none yet."""
        return self._answers.get(key)

    def add(self, key: str, completion: Completion) -> None:
        """Keep an answer: it is on the disk when this returns."""
        line = orjson.dumps({"key": key, **completion._asdict()}, option=orjson.OPT_APPEND_NEWLINE)
        with self._lock:
            self._file.write(line)
            self._file.flush()
            os.fsync(self._file.fileno())
            self._answers[key] = completion

    def _load(self) -> None:
        self._file.seek(0)
        whole = 0  # bytes of whole lines
        for number, line in enumerate(self._file, 1):
            if not line.endswith(b"\n"):
                break
            try:
                row = orjson.loads(line)
                key = row.pop("key")
                self._answers[key] = Completion(**row)
            except (orjson.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
                raise JournalError(
                    f"{self.path}:{number}: not a line of a journal ({error!r}). Remove this line to ask again for "
                    "what it held."
                ) from None
            whole += len(line)
        self._file.seek(0, os.SEEK_END)
        if cut := self._file.tell() - whole:
            logger.warning("%s: a last line of %d bytes was cut short by a stop and is taken off.", self.path, cut)
            self._file.truncate(whole)
