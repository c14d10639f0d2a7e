"""Tokens and their price, before and after."""

from __future__ import annotations

import re
from typing import NamedTuple

from codiemb.curation.synthesis.recipe import Api

_DENSE = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\uf900-\ufaff]")
_OTHER_CHARACTERS = 4  # a token


def estimated_tokens(text: str) -> int:
    """About how many tokens a model makes of a text: one of a Chinese, Japanese or Korean character, or of four others.

    Tokenizers made for Chinese need about a third less.
    """
    dense = len(_DENSE.findall(text))
    return dense + -(-(len(text) - dense) // _OTHER_CHARACTERS)


class Spent(NamedTuple):
    """Tokens that were paid for."""

    input_tokens: int = 0
    output_tokens: int = 0

    def cost(self, api: Api) -> float | None:
        """In the currency of the recipe's prices; None without prices."""
        if api.input_price is None and api.output_price is None:
            return None
        return (self.input_tokens * (api.input_price or 0) + self.output_tokens * (api.output_price or 0)) / 1e6
