"""Many requests to a remote API: in parallel, within a rate, and tried again where that can help."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed

from tenacity import (
    RetryCallState,
    Retrying,
    retry_if_exception,
    sleep_using_event,
    stop_after_attempt,
    stop_when_event_set,
    wait_exponential,
    wait_random,
)

from codiemb.clients.results import Outcome

logger = logging.getLogger(__name__)

_LONGEST_WAIT = 30.0  # s between two attempts
_GIVE_UP_AFTER = 3  # failed requests in a row


class RequestFailed(Exception):
    """A request brought no vectors; `transient` if the same request may succeed later."""

    def __init__(self, reason: str, *, transient: bool = False) -> None:
        super().__init__(reason)
        self.transient = transient


class RateLimiter:
    """At most `rate` requests a second, evenly spaced, over all threads that share the limiter."""

    def __init__(self, rate: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._interval = 1 / rate
        self._clock = clock
        self._free_from = -math.inf
        self._lock = threading.Lock()

    def reserve(self) -> float:
        """Take the next free moment. Returns: seconds until it."""
        with self._lock:
            now = self._clock()
            moment = max(now, self._free_from)
            self._free_from = moment + self._interval
            return moment - now


class Sender:
    """Sends batches of texts and brings their outcomes in order.

    Args:
        requests_per_second: retries count too.
        concurrency: requests under way at once.
        max_attempts: of one request, the first included.
        backoff: s; the wait before a retry starts between one and two of these, doubles each time up to 30 s, and has
            a random part, so that clients that were refused together do not come back together.
    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(self, *, requests_per_second: float, concurrency: int, max_attempts: int, backoff: float) -> None:
        if not 0 < requests_per_second < math.inf or not 0 <= backoff < math.inf:
            raise ValueError(
                f"requests_per_second={requests_per_second}, backoff={backoff}, expected more than 0 requests and at "
                "least 0 s."
            )
        if concurrency < 1 or max_attempts < 1:
            raise ValueError(f"concurrency={concurrency}, max_attempts={max_attempts}, expected at least 1 of each.")
        self.limiter = RateLimiter(requests_per_second)
        self.concurrency = concurrency
        self.max_attempts = max_attempts
        self.backoff = backoff

    def send(
        self,
        batches: Sequence[Sequence[str]],
        request: Callable[[Sequence[str]], list[Outcome]],
        on_progress: Callable[[int], None],
    ) -> list[Outcome]:
        """Outcomes of all texts of all batches, in order.

        After three failed requests with no success between them, the service or the account is at fault: what is
        under way is finished and the rest is not sent.

        Args:
            request: sends one batch; raises RequestFailed. Called from several threads.
            on_progress: called with the number of texts whose outcome has just become known.
        """
        stop = threading.Event()
        retrying = self._retrying(stop)
        outcomes: list[list[Outcome]] = [[] for _ in batches]
        failed_in_a_row = 0
        with ThreadPoolExecutor(max_workers=max(1, min(self.concurrency, len(batches)))) as pool:
            pending = {
                pool.submit(self._outcomes, retrying, stop, request, batch): index
                for index, batch in enumerate(batches)
            }
            try:
                for future in as_completed(pending):
                    came = outcomes[pending[future]] = future.result()
                    failed_in_a_row = failed_in_a_row + 1 if all(isinstance(one, str) for one in came) else 0
                    if failed_in_a_row == _GIVE_UP_AFTER:
                        stop.set()
                    on_progress(len(came))
            finally:
                stop.set()  # after an interrupt, the pool would send all that is pending before it lets go
        return [outcome for batch in outcomes for outcome in batch]

    def _outcomes(
        self,
        retrying: Retrying,
        stop: threading.Event,
        request: Callable[[Sequence[str]], list[Outcome]],
        batch: Sequence[str],
    ) -> list[Outcome]:
        def attempt() -> list[Outcome]:
            if stop.is_set() or stop.wait(self.limiter.reserve()):
                raise RequestFailed("given up, since the requests before it failed")
            return request(batch)

        try:
            return retrying(attempt)
        except RequestFailed as failure:
            attempts = retrying.statistics["attempt_number"]
            return [f"{failure}, at attempt {attempts}" if attempts > 1 else str(failure)] * len(batch)

    def _retrying(self, stop: threading.Event) -> Retrying:
        def log(state: RetryCallState) -> None:
            logger.info(
                "Attempt %d of %d: %s; again in %.1f s.",
                state.attempt_number,
                self.max_attempts,
                state.outcome and state.outcome.exception(),
                state.next_action and state.next_action.sleep,
            )

        return Retrying(
            retry=retry_if_exception(lambda error: isinstance(error, RequestFailed) and error.transient),
            wait=wait_exponential(multiplier=self.backoff, max=_LONGEST_WAIT) + wait_random(0, self.backoff),
            stop=stop_after_attempt(self.max_attempts) | stop_when_event_set(stop),
            sleep=sleep_using_event(stop),
            before_sleep=log,
            reraise=True,
        )
