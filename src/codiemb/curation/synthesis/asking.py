"""Many requests: answered from the journal or by the server, in parallel, within limits, and tried again.

The outcome of a request depends on its content and the answers to it alone, and outcomes come in the order of the
requests, so a run that was stopped and gone on with ends as one that was not.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

from codiemb.curation.synthesis.answers import Answered, json_schema, parse_answer
from codiemb.curation.synthesis.chat import ChatClient, RequestFailed
from codiemb.curation.synthesis.journal import Completion, Journal, request_key
from codiemb.curation.synthesis.order import ticket
from codiemb.curation.synthesis.pace import Pace
from codiemb.curation.synthesis.plan import Request
from codiemb.curation.synthesis.recipe import Api
from codiemb.curation.synthesis.templates import Messages, Templates
from codiemb.curation.synthesis.tokens import Spent, estimated_tokens
from codiemb.extras import require

logger = logging.getLogger(__name__)

_LONGEST_WAIT = 60.0  # s between two attempts, unless the server asks for more
_GIVE_UP_AFTER = 5  # failed requests in a row
_WINDOW = 4  # requests handed out at a time, for each one under way


class SynthesisError(ValueError):
    """A run that cannot go on; what was answered is in the journal."""


class Outcome(NamedTuple):
    """What came of a request.

    Attributes:
        spent: all answers to it, also those of an earlier run.
        answers: how many these are.
        asked: how many of them came in this run.
        estimated: how many of them had no token counts.
    """

    answered: Answered
    spent: Spent = Spent()
    answers: int = 0
    asked: int = 0
    estimated: int = 0


OnOutcome = Callable[[Request, Outcome], None]


class Asker:
    """Asks one API, and keeps every answer.

    Args:
        seed: of the run; each answer has a seed of its own that follows from it.
    """

    def __init__(self, client: ChatClient, journal: Journal, templates: Templates, seed: int) -> None:
        self.api: Api = client.api
        self._client = client
        self._journal = journal
        self._templates = templates
        self._seed = seed
        self._requests = Pace(self.api.requests_per_minute)
        self._tokens = Pace(self.api.tokens_per_minute)
        self._stop = threading.Event()
        self._failed_in_a_row = 0
        self._lock = threading.Lock()
        self._tenacity: Any = require("tenacity", "synthesis")

    def ask(self, requests: Iterable[Request], on_outcome: OnOutcome) -> Iterator[tuple[Request, Outcome]]:
        """Each request with its outcome, in order.

        Args:
            on_outcome: called in the order of the requests.
        Raises:
            SynthesisError: the server refuses everything, or five requests in a row failed.
        """
        pending: deque[tuple[Request, Future[Outcome]]] = deque()
        with ThreadPoolExecutor(max_workers=self.api.concurrency) as pool:
            try:
                for request in requests:
                    pending.append((request, pool.submit(self._outcome, request)))
                    if len(pending) >= _WINDOW * self.api.concurrency:
                        yield self._next(pending, on_outcome)
                while pending:
                    yield self._next(pending, on_outcome)
            except BaseException:
                self._stop.set()  # or the pool would ask all that is pending before it lets go
                for _, future in pending:
                    future.cancel()
                raise

    @staticmethod
    def _next(pending: deque[tuple[Request, Future[Outcome]]], on_outcome: OnOutcome) -> tuple[Request, Outcome]:
        request, future = pending[0]
        outcome = future.result()
        pending.popleft()
        on_outcome(request, outcome)
        return request, outcome

    def _outcome(self, request: Request) -> Outcome:
        """Ask until an answer can be read, or the answers that may be paid for are used up."""
        schema = json_schema(request.answer)
        messages = request.messages
        spent, asked, estimated = Spent(), 0, 0
        answered = Answered(None)
        for number in range(self.api.answers):
            seed = ticket(self._seed, "answer", request.name, number) % 2**31
            content = {
                "model": self.api.model,
                "messages": messages,
                "schema": schema,
                "temperature": self.api.temperature,
                "max_tokens": self.api.max_tokens,
                "body": self.api.body,
                "seed": seed,
            }
            key = request_key(content)
            completion = self._journal.get(key)
            if completion is None:
                try:
                    completion = self._completion(messages, schema, seed)
                except RequestFailed as failure:
                    return Outcome(Answered(None, "request failed", str(failure)), spent, number, asked, estimated)
                self._journal.add(key, completion)
                asked += 1
            spent = Spent(spent.input_tokens + completion.input_tokens, spent.output_tokens + completion.output_tokens)
            estimated += completion.estimated
            answered = parse_answer(completion.content, completion.finish_reason, request.answer)
            if answered.answer is not None:
                break
            messages = self._with_reason(request.messages, answered.reason)
        return Outcome(answered, spent, number + 1, asked, estimated)

    def _with_reason(self, messages: Messages, reason: str) -> Messages:
        """The request again, with what was wrong with the answer."""
        *first, last = messages
        note = self._templates.phrase("retry", reason=reason)
        return [*first, {**last, "content": f"{last['content']}\n\n{note}"}]

    def _completion(self, messages: Messages, schema: dict[str, Any], seed: int) -> Completion:
        """An answer, after as many attempts as the recipe allows."""
        expected = sum(estimated_tokens(message["content"]) for message in messages) + (self.api.max_tokens or 0)

        def attempt() -> Completion:
            wait = max(self._requests.reserve(), self._tokens.reserve(expected))
            if self._stop.wait(wait) or self._stop.is_set():
                raise RequestFailed("given up, since the requests before it failed")
            completion = self._client.complete(messages, schema, seed)
            self._tokens.correct(completion.input_tokens + completion.output_tokens - expected)
            return completion

        try:
            completion = self._retrying()(attempt)
        except RequestFailed as failure:
            self._count_failure(failure)
            raise
        with self._lock:
            self._failed_in_a_row = 0
        return completion

    def _count_failure(self, failure: RequestFailed) -> None:
        if self._stop.is_set():
            return
        with self._lock:
            self._failed_in_a_row += 1
            hopeless = failure.hopeless or self._failed_in_a_row >= _GIVE_UP_AFTER
        if hopeless:
            self._stop.set()
            raise SynthesisError(
                f"{self.api.base_url}, model {self.api.model}: {failure}. {len(self._journal):,} answers are in "
                f"{self._journal.path}; mend this, and the same command goes on from there."
            )

    def _retrying(self) -> Any:
        tenacity = self._tenacity

        def wait(state: Any) -> float:
            failure = state.outcome.exception()
            backoff = min(self.api.backoff * 2 ** (state.attempt_number - 1), _LONGEST_WAIT)
            # Up to a quarter more, so that requests that were refused together do not come back together.
            backoff *= 1 + ticket(threading.get_ident(), state.attempt_number) / 2**66
            return backoff if failure.retry_after is None else max(failure.retry_after, backoff)

        def log(state: Any) -> None:
            logger.log(
                logging.INFO if state.next_action.sleep <= 2 * _LONGEST_WAIT else logging.WARNING,
                "Attempt %d of %d: %s; again in %.1f s.",
                state.attempt_number,
                self.api.attempts,
                state.outcome.exception(),
                state.next_action.sleep,
            )

        return tenacity.Retrying(
            retry=tenacity.retry_if_exception(lambda error: isinstance(error, RequestFailed) and error.transient),
            wait=wait,
            stop=tenacity.stop_after_attempt(self.api.attempts) | tenacity.stop_when_event_set(self._stop),
            sleep=tenacity.sleep_using_event(self._stop),
            before_sleep=log,
            reraise=True,
        )
