"""The cloud API in small: an HTTP server on loopback that checks TC3-HMAC-SHA256 signatures and embeds texts.

The signature is computed here from the algorithm's public description, not with the SDK.
"""

import hashlib
import hmac
import json
import re
import socket
import struct
import threading
import time
import zlib
from collections.abc import Callable
from datetime import datetime, timezone
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

import numpy as np

SECRET_ID, SECRET_KEY, TOKEN = "AKIDtestIdentity0123456789", "testKey9876543210abcdef", "testToken-ABCDEF0123"
DIMENSION = 8


class Request(NamedTuple):
    number: int  # of this request, from 0
    body: dict[str, Any]
    headers: dict[str, str]


class Reply(NamedTuple):
    """What the server does: the parts of a good answer that are given replace those of the default."""

    response: dict[str, Any] | None = None  # the value of "Response"
    body: bytes | None = None  # the whole body
    status: int = 200
    content_type: str = "application/json"
    delay: float = 0  # s before the answer
    reset: bool = False  # break the connection instead of an answer
    cut: bool = False  # break it within the body


def vector_of(text: str) -> np.ndarray:
    """The embedding of `text`, float32 (8,)."""
    return np.random.default_rng(zlib.crc32(text.encode())).normal(size=DIMENSION).astype(np.float32)


def embedded(inputs: list[str]) -> dict[str, Any]:
    """The response to a good request."""
    data = [{"Embedding": vector_of(text).tolist()} for text in inputs]
    return {"Data": data, "Usage": {"TotalTokens": sum(map(len, inputs))}, "RequestId": "good"}


def error(code: str, message: str = "refused") -> Reply:
    return Reply({"Error": {"Code": code, "Message": message}, "RequestId": "request-1"})


def tc3_signature(
    secret_key: str, timestamp: int, service: str, headers: dict[str, str], signed: list[str], payload: bytes
) -> str:
    """The signature of a POST to `/`; `headers` by lower-case name."""
    date = datetime.fromtimestamp(timestamp, timezone.utc).strftime("%Y-%m-%d")
    canonical_headers = "".join(f"{name}:{headers[name].strip().lower()}\n" for name in signed)
    canonical = ["POST", "/", "", canonical_headers, ";".join(signed), hashlib.sha256(payload).hexdigest()]
    hashed = hashlib.sha256("\n".join(canonical).encode()).hexdigest()
    to_sign = f"TC3-HMAC-SHA256\n{timestamp}\n{date}/{service}/tc3_request\n{hashed}"
    key = f"TC3{secret_key}".encode()
    for part in (date, service, "tc3_request"):
        key = hmac.digest(key, part.encode(), "sha256")
    return hmac.new(key, to_sign.encode(), "sha256").hexdigest()


def signature_error(headers: dict[str, str], payload: bytes) -> str | None:
    """The API's code for what is wrong with a request's authorisation."""
    pattern = (
        r"TC3-HMAC-SHA256 Credential=(\S+)/(\d{4}-\d\d-\d\d)/(\w+)/tc3_request, SignedHeaders=(\S+), Signature=(\w+)"
    )
    match = re.fullmatch(pattern, headers.get("authorization", ""))
    if not match:
        return "AuthFailure.InvalidAuthorization"
    secret_id, date, service, signed, signature = match.groups()
    timestamp = int(headers["x-tc-timestamp"])
    if secret_id != SECRET_ID:
        return "AuthFailure.SecretIdNotFound"
    if headers.get("x-tc-token", TOKEN) != TOKEN:
        return "AuthFailure.TokenFailure"
    if abs(time.time() - timestamp) > 300:
        return "AuthFailure.SignatureExpire"
    expected = tc3_signature(SECRET_KEY, timestamp, "lkeap", headers, signed.split(";"), payload)
    required = {"content-type", "host"} <= set(signed.split(";"))
    if not (required and service == "lkeap" and hmac.compare_digest(signature, expected)):
        return "AuthFailure.SignatureFailure"
    return None if date == time.strftime("%Y-%m-%d", time.gmtime(timestamp)) else "AuthFailure.SignatureFailure"


class TC3Server(ThreadingHTTPServer):
    """Answers as the API does, unless `reply` returns something else for a request."""

    daemon_threads = True
    block_on_close = False

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.requests: list[Request] = []
        self.reply: Callable[[Request], Reply | None] = lambda request: None
        self.lock = threading.Lock()

    @property
    def endpoint(self) -> str:
        return f"127.0.0.1:{self.server_address[1]}"

    def script(self, *replies: Reply | None) -> None:
        """Reply to the requests in their order; what follows is answered well."""
        self.reply = lambda request: replies[request.number] if request.number < len(replies) else None

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that went away is what some tests are about."""

    def shutdown_request(self, request: socket.socket) -> None:  # type: ignore[override]
        self.close_request(request)  # at once, so that a connection with a linger time of 0 is reset


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: TC3Server

    def log_message(self, *_: object) -> None:
        """Nothing."""

    def do_POST(self) -> None:
        payload = self.rfile.read(int(self.headers["Content-Length"]))
        headers = {name.lower(): value for name, value in self.headers.items()}
        with self.server.lock:
            request = Request(len(self.server.requests), json.loads(payload), headers)
            self.server.requests.append(request)
        reply = self._refusal(request, payload) or self.server.reply(request) or Reply()
        time.sleep(reply.delay)
        body = reply.body
        if body is None:
            response = embedded(request.body["Inputs"]) if reply.response is None else reply.response
            body = json.dumps({"Response": response}).encode()
        if reply.reset or reply.cut:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.close_connection = True
        if not reply.reset:
            self.send_response(reply.status)
            self.send_header("Content-Type", reply.content_type)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body[: len(body) // 2] if reply.cut else body)

    @staticmethod
    def _refusal(request: Request, payload: bytes) -> Reply | None:
        if code := signature_error(request.headers, payload):
            return error(code, f"The credential {request.headers.get('authorization')} is not valid.")
        known = (request.headers["x-tc-action"], request.headers["x-tc-version"]) == ("GetEmbedding", "2024-05-22")
        inputs = request.body["Inputs"]
        if not known or not 1 <= len(inputs) <= 7 or max(map(len, inputs)) > 2000 or not all(inputs):
            return error("InvalidParameterValue")
        return None
