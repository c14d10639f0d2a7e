"""One chat completion from any OpenAI-compatible server, structured as well as that server can."""

from __future__ import annotations

import os
import threading
from typing import Any, Literal

from pydantic import BaseModel, ValidationError

from codiemb.curation.synthesis.journal import Completion
from codiemb.curation.synthesis.recipe import Api
from codiemb.curation.synthesis.templates import Messages
from codiemb.curation.synthesis.tokens import estimated_tokens
from codiemb.extras import require
from codiemb.training.sections import RecipeError

Mode = Literal["schema", "json", "plain"]

_MODES: tuple[Mode, ...] = ("schema", "json", "plain")
_RESPONSE_FORMAT_REFUSED = (400, 404, 415, 422, 500, 501)  # what servers say to a response_format they do not know
_TRANSIENT = (408, 409, 425, 429)  # and all from 500 on
_HOPELESS = (401, 403, 404)  # whatever is asked
_SHOWN = 300  # characters of an error
_SECRET = 8  # characters that a key has at least; what is shorter stands for none, such as `EMPTY`


class RequestFailed(Exception):
    """An attempt brought no answer.

    Attributes:
        transient: the same request may succeed later.
        hopeless: no other request will succeed either.
        retry_after: s that the server asks to wait, None if it does not say.
    """

    def __init__(
        self, reason: str, *, transient: bool = False, hopeless: bool = False, retry_after: float | None = None
    ) -> None:
        super().__init__(reason)
        self.transient = transient
        self.hopeless = hopeless
        self.retry_after = retry_after


class _Message(BaseModel):
    content: str | None = None


class _Choice(BaseModel):
    message: _Message = _Message()
    finish_reason: str | None = None


class _Usage(BaseModel):
    prompt_tokens: int
    completion_tokens: int


class _Body(BaseModel):
    choices: list[_Choice]
    usage: _Usage | None = None


class ChatClient:
    """Sends requests through the `openai` package, without its own retries.

    Raises:
        ModuleNotFoundError: the extra is not installed.
        RecipeError: the key cannot be one.
    """

    def __init__(self, api: Api) -> None:
        self.api = api
        self._openai: Any = require("openai", "synthesis")
        self._key = _key(api.key_variable)
        # Local servers want no key; the client wants one that is not empty.
        self._client = self._openai.OpenAI(
            base_url=api.base_url,
            api_key=self._key or "none",
            max_retries=0,
            timeout=api.timeout,
        )
        self._mode: Mode = "schema" if api.structured == "auto" else api.structured
        self._lock = threading.Lock()

    def __enter__(self) -> ChatClient:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def complete(self, messages: Messages, schema: dict[str, Any], seed: int) -> Completion:
        """Ask once; where the server refuses a `response_format` and may, ask with the next simpler one.

        Raises:
            RequestFailed: there is no answer.
        """
        while True:
            mode = self._mode
            try:
                return self._attempt(mode, messages, schema, seed)
            except RequestFailed as failure:
                if not (isinstance(failure, _FormatRefused) and self._simplify(mode)):
                    raise

    def _simplify(self, refused: Mode) -> bool:
        """Go to the next mode, unless another thread has; False where there is none or the recipe fixes it."""
        if self.api.structured != "auto" or refused == _MODES[-1]:
            return False
        with self._lock:
            if self._mode == refused:
                self._mode = _MODES[_MODES.index(refused) + 1]
        return True

    def _attempt(self, mode: Mode, messages: Messages, schema: dict[str, Any], seed: int) -> Completion:
        options: dict[str, Any] = {"temperature": self.api.temperature, "seed": seed}
        if self.api.max_tokens is not None:
            options["max_tokens"] = self.api.max_tokens
        if mode == "schema":
            format_ = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, "strict": True}}
            options["response_format"] = format_
        elif mode == "json":
            options["response_format"] = {"type": "json_object"}
        try:
            response = self._client.chat.completions.with_raw_response.create(
                model=self.api.model, messages=messages, extra_body=self.api.body or None, **options
            )
            body = _Body.model_validate_json(response.http_response.content)
        except self._openai.APIStatusError as error:
            raise self._refusal(error, mode) from None
        except self._openai.APIConnectionError as error:  # its subclass for time-outs too
            cause = f" ({error.__cause__!r})" if error.__cause__ else ""
            raise RequestFailed(self._without_key(f"{error}{cause}"), transient=True) from None
        except ValidationError as error:
            fault = error.errors(include_url=False)[0]
            raise RequestFailed(f"not a chat completion: {fault['msg']}"[:_SHOWN], transient=True) from None
        return _completion(body, messages)

    def _refusal(self, error: Any, mode: Mode) -> RequestFailed:
        status = error.status_code
        message = error.body.get("message") if isinstance(error.body, dict) else error.message
        reason = f"HTTP {status}: {self._without_key(' '.join(str(message).split()))[:_SHOWN]}"
        told = str(error.body).lower()
        if mode != "plain" and status in _RESPONSE_FORMAT_REFUSED and _about_the_format(told):
            return _FormatRefused(reason)
        if status in (401, 403):
            reason += f" (the key is taken from the environment variable {self.api.key_variable})"
        no_money = status == 429 and "insufficient_quota" in told
        return RequestFailed(
            reason,
            transient=(status in _TRANSIENT or status >= 500) and not no_money,
            hopeless=status in _HOPELESS or no_money,
            retry_after=_seconds(error.response.headers.get("retry-after")),
        )

    def _without_key(self, text: str) -> str:
        """What a server or library said, which may quote the key; errors go into logs and reports."""
        return text.replace(self._key, "***") if len(self._key) >= _SECRET else text


class _FormatRefused(RequestFailed):
    """The server does not take this response_format."""


def _key(variable: str) -> str:
    """The key in an environment variable, without the line end that secrets from files have; empty if there is none."""
    key = os.environ.get(variable, "").strip()
    if not (key.isascii() and key.isprintable()):
        raise RecipeError(f"{variable}: this environment variable has characters that no key has. Set it anew.")
    return key


def _about_the_format(told: str) -> bool:
    return any(word in told for word in ("response_format", "json_schema", "json_object", "schema", "grammar"))


def _seconds(header: str | None) -> float | None:
    try:
        return max(float(header or ""), 0.0)
    except ValueError:  # a date, which hardly any API sends, or nothing
        return None


def _completion(body: _Body, messages: Messages) -> Completion:
    choice = body.choices[0] if body.choices else _Choice()
    content = choice.message.content or ""
    if body.usage is not None:
        return Completion(content, choice.finish_reason, body.usage.prompt_tokens, body.usage.completion_tokens)
    asked = sum(estimated_tokens(message["content"]) for message in messages)
    return Completion(content, choice.finish_reason, asked, estimated_tokens(content), estimated=True)
