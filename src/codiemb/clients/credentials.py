"""Tencent Cloud credentials: where they come from, and that they show up nowhere."""

from __future__ import annotations

import logging
import os
import re

from tencentcloud.common.credential import Credential

_NAMES = ("TENCENTCLOUD_SECRET_ID", "TENCENTCLOUD_SECRET_KEY", "TENCENTCLOUD_TOKEN")
_secrets: set[str] = set()  # of all clients of this process


def load_credential(secret_id: str | None, secret_key: str | None, token: str | None) -> Credential:
    """The SDK's credential, from the arguments or, where no argument is given, from the environment.

    Raises:
        ValueError: one is missing or cannot be part of an HTTP header. The message has none of their values.
    """
    if secret_id is None and secret_key is None and token is None:
        source = "the environment"
        secret_id, secret_key, token = (os.environ.get(name) for name in _NAMES)
    else:
        source = "the arguments"
    for what, value in (("secret_id", secret_id), ("secret_key", secret_key), ("token", token)):
        if not value:
            if what == "token":  # only temporary credentials have one
                continue
            raise ValueError(
                f"No {what} in {source}. Set {_NAMES[0]} and {_NAMES[1]} (and {_NAMES[2]} with temporary credentials), "
                "or pass secret_id and secret_key (and token)."
            )
        if not re.fullmatch(r"[!-~]+", value):
            raise ValueError(
                f"The {what} in {source} has blanks or characters other than ASCII. Copy it again, without line ends."
            )
    credential = Credential(secret_id, secret_key, token or None)
    _secrets.update(filter(None, credential.get_credential_info()))
    logging.getLogger("tencentcloud_sdk_common").addFilter(_redact)
    return credential


def redacted(text: str) -> str:
    """`text` without any part of a credential that was loaded here."""
    for secret in _secrets:
        text = text.replace(secret, "***")
    return text


def _redact(record: logging.LogRecord) -> bool:
    """At level DEBUG the SDK logs whole requests, with the headers that authorise them, and whole answers."""
    record.msg, record.args = redacted(record.getMessage()), None
    return True
