"""Processes forked from one that has imported everything: a new interpreter would take many seconds to start."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

import torch
from rich.console import Console

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["codiemb.training.stages"])
_SECONDS = 120


def killed_at_step(step: int, function: Callable[..., Any], *arguments: Any) -> None:
    """Call a training in a process that is killed as it says that it has done `step`."""
    process = _CONTEXT.Process(target=_until, args=(step, dict(os.environ), function, arguments))
    process.start()
    process.join(_SECONDS)
    assert process.exitcode == -signal.SIGKILL


def on_two_ranks(folder: Path, function: Callable[..., Any], *arguments: Any, **environment: str) -> list[str]:
    """Call a training in two processes that find each other, as under `torchrun`; what each of them printed.

    Args:
        folder: their output is written there.
        environment: what is changed in it.
    """
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    shared = {**os.environ, **environment, "MASTER_ADDR": "localhost", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    processes, files = [], []
    for rank in ("0", "1"):
        files.append(folder / f"rank-{rank}.txt")
        of_rank = {**shared, "RANK": rank, "LOCAL_RANK": rank}
        processes.append(_CONTEXT.Process(target=_as_rank, args=(files[-1], of_rank, function, arguments)))
        processes[-1].start()
    for process in processes:
        process.join(_SECONDS)
        process.kill()  # one that waits for another that failed
    printed = [file.read_text() for file in files]
    assert [process.exitcode for process in processes] == [0, 0], "\n\n".join(printed)
    return printed


class _Watched:
    """A file that is the end of the process as soon as a text is written to it."""

    def __init__(self, deadly: str, file: TextIO) -> None:
        self._deadly = deadly
        self._file = file

    def write(self, text: str) -> int:
        if self._deadly in text:
            os.kill(os.getpid(), signal.SIGKILL)
        return self._file.write(text)

    def flush(self) -> None:
        self._file.flush()


def _until(step: int, environment: dict[str, str], function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    _prepare(environment)
    function(*arguments, console=Console(file=_Watched(f"step {step}/", sys.stderr)))  # type: ignore[arg-type]


def _as_rank(
    output: Path, environment: dict[str, str], function: Callable[..., Any], arguments: tuple[Any, ...]
) -> None:
    _prepare(environment)
    file = os.open(output, os.O_WRONLY | os.O_CREAT)
    os.dup2(file, 1)
    os.dup2(file, 2)
    function(*arguments)


def _prepare(environment: dict[str, str]) -> None:
    os.environ.clear()
    os.environ.update(environment)
    torch.set_num_threads(1)  # as in the tests' own process, so that numbers are added in the same order
