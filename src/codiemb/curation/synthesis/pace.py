"""Requests and tokens a minute: when the next one may go."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable


class Pace:
    """At most `per_minute` units a minute, evenly spaced, over all threads that share it; None is no limit."""

    def __init__(self, per_minute: float | None, clock: Callable[[], float] = time.monotonic) -> None:
        self._seconds = 60 / per_minute if per_minute else 0.0  # for one unit
        self._clock = clock
        self._free_from = -math.inf
        self._lock = threading.Lock()

    def reserve(self, units: float = 1) -> float:
        """Take the next free moment for so many units. Returns: seconds until it."""
        with self._lock:
            now = self._clock()
            moment = max(now, self._free_from)
            self._free_from = moment + units * self._seconds
            return moment - now

    def correct(self, units: float) -> None:
        """Count so many units more (or fewer) than were reserved."""
        with self._lock:
            self._free_from += units * self._seconds
