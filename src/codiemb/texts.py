"""Texts that a tokenizer cannot read, or would take long to read, made such that it gives the same tokens fast."""

from __future__ import annotations

from collections.abc import Callable, Sequence

_CHARACTERS_PER_TOKEN = 16  # of a first guess; ordinary text has 1 to 5
_MARGIN = 64  # tokens before a cut that it might have changed, many times more than any tokenizer looks back


def without_lone_surrogates(text: str) -> str:
    """Half a character, which no UTF-8 text can hold, becomes U+FFFD; two halves that belong together are joined."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def leading_part(text: str, max_tokens: int, tokens: Callable[[str], Sequence[int]]) -> str:
    """As much of a long text as decides its first `max_tokens` tokens; short texts are returned as they are.

    A tokenizer reads all of a text before it cuts, so a million characters take seconds of which all but the first
    milliseconds are for tokens that are dropped. The part is cut before white space where there is some, since no
    token crosses it, and has more tokens than are kept by a margin that the cut cannot have changed.

    Args:
        tokens: tokenises without special tokens and without cutting.
    """
    size = max(_CHARACTERS_PER_TOKEN * max_tokens, 1024)
    while size < len(text):
        cut = max(text.rfind(" ", size // 2, size), text.rfind("\n", size // 2, size))
        part = text[: cut if cut > 0 else size]
        if len(tokens(part)) >= max_tokens + _MARGIN:
            return part
        size *= 4  # text that takes few tokens: runs of spaces, words that are one unknown token
    return text
