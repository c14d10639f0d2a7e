"""Signals."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn


@contextmanager
def errors_on_sigterm() -> Iterator[Callable[[], None]]:
    """A polite kill ends like an error meanwhile, so that temporary files are removed.

    Yields: a function to call now and then where a library may catch that error: it raises it again.
    """
    stopped = False

    def stop(*_: object) -> NoReturn:
        nonlocal stopped
        stopped = True
        sys.exit(128 + signal.SIGTERM)

    def check() -> None:
        if stopped:
            sys.exit(128 + signal.SIGTERM)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield check
    finally:
        signal.signal(signal.SIGTERM, before)
