"""What the API answers: vectors, or errors of which some pass."""

from __future__ import annotations

from typing import Any

import numpy as np
import requests
from tencentcloud.common.exception.tencent_cloud_sdk_exception import TencentCloudSDKException

from codiemb.clients.results import Outcome

# Codes of what may be over at the next attempt, each also with a suffix after a point.
_TRANSIENT_CODES = (
    "RequestLimitExceeded",
    "InternalError",
    "ServiceUnavailable",
    "FailedOperation.EngineServerError",
    "FailedOperation.InternalError",
    "FailedOperation.UnKnowError",
    "ServerNetworkError",  # the SDK's: an HTTP status other than 200, which no answer of the API itself has
)
_NETWORK_FAULTS = (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError)
_SHOWN = 300  # characters of the service's message


def read_outcomes(response: dict[str, Any], count: int) -> tuple[list[Outcome], int]:
    """The outcomes of the `count` texts of a request, and the tokens that it is billed for."""
    tokens = (response.get("Usage") or {}).get("TotalTokens")
    data = response.get("Data")
    if isinstance(data, list) and len(data) == count:
        outcomes = [_vector(item) for item in data]
    else:  # nobody can tell which vector belongs to which text
        got = len(data) if isinstance(data, list) else "no"
        outcomes = [f"malformed answer: {got} vectors for {count} texts"] * count
    return outcomes, tokens if isinstance(tokens, int) else 0


def _vector(item: Any) -> Outcome:
    try:
        with np.errstate(over="ignore"):  # infinity is reported below
            vector = np.asarray(item["Embedding"], dtype=np.float32)
    except (ValueError, LookupError, TypeError):
        return "malformed answer: no vector"
    if vector.ndim != 1 or not len(vector):
        return "malformed answer: no vector"
    return vector if np.isfinite(vector).all() else "malformed answer: a vector with NaN or infinity"


def is_transient(error: TencentCloudSDKException | requests.RequestException) -> bool:
    """Whether the same request may succeed later: throttled, or a fault of the server or on the way to it."""
    if isinstance(error, requests.RequestException):
        return isinstance(error, _NETWORK_FAULTS)
    code = str(error.code)
    if code == "ClientNetworkError":  # the SDK's for all that goes wrong in sending, an unusable URL included
        return isinstance(error.__context__, _NETWORK_FAULTS)
    return any(code == known or code.startswith(f"{known}.") for known in _TRANSIENT_CODES)


def reason_of(error: TencentCloudSDKException | requests.RequestException) -> str:
    """The error in one line."""
    if isinstance(error, requests.RequestException):
        return f"{type(error).__name__}: {error}"
    message = error.message.decode(errors="replace") if isinstance(error.message, bytes) else str(error.message)
    request = f" (request {error.requestId})" if error.requestId else ""
    return f"{error.code}: {' '.join(message.split())[:_SHOWN]}{request}"
