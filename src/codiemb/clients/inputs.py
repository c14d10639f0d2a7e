"""Texts are checked before any is sent and paid for."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from codiemb.texts import without_lone_surrogates

logger = logging.getLogger(__name__)

_SHOWN = 5  # texts named in a message


def checked(texts: Sequence[str], prompt: str, *, max_characters: int, truncate: bool) -> list[str]:
    """The texts as they are sent: without lone surrogates, as for a local model, and cut where they may be.

    Args:
        prompt: counts towards the `max_characters` of each text.
        truncate: cut what is too long and log how many; if False, it is an error.
    Raises:
        TypeError: something is no string.
        ValueError: a text is blank or too long, or the prompt leaves it no room.
    """
    room = max_characters - len(prompt)
    if room < 1:
        raise ValueError(
            f"The prompt {prompt[:60]!r}... has {len(prompt)} characters, but a request takes {max_characters}, the "
            "text included. Shorten the instruction."
        )
    too_long = []
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            raise TypeError(f"Text {index} is {type(text).__name__}, expected a string.")
        if not text.strip():
            raise ValueError(f"Text {index} is blank. Leave it out: it could fail the texts that are sent with it.")
        if len(text) > room:
            too_long.append(index)
    if too_long and not truncate:
        shown = ", ".join(f"{index} ({len(texts[index])} characters)" for index in too_long[:_SHOWN])
        raise ValueError(
            f"{len(too_long)} of {len(texts)} texts are too long: {shown}{', ...' if len(too_long) > _SHOWN else ''}. "
            f"At most {room} characters are left beside the prompt of {len(prompt)}. Split them, or pass truncate=True."
        )
    if too_long:
        logger.warning("%d of %d texts were cut to %d characters.", len(too_long), len(texts), room)
    return [without_lone_surrogates(text[:room]) for text in texts]
