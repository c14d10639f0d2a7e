"""Whether a text is in a language, from its script and its frequent words: no model, and no guess where both fail."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping

_SCRIPTS: Mapping[str, re.Pattern[str]] = {
    "han": re.compile(r"[\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]"),
    "kana": re.compile(r"[\u3040-\u30ff]"),
    "hangul": re.compile(r"[\u1100-\u11ff\uac00-\ud7af]"),
    "cyrillic": re.compile(r"[\u0400-\u04ff]"),
    "arabic": re.compile(r"[\u0600-\u06ff]"),
    "thai": re.compile(r"[\u0e00-\u0e7f]"),
    "latin": re.compile(r"[A-Za-z\u00c0-\u024f]+"),  # a word counts once, as a character of the others does
}
_OF_SCRIPT: Mapping[str, str] = {
    "han": "zh",
    "kana": "ja",
    "hangul": "ko",
    "cyrillic": "ru",
    "arabic": "ar",
    "thai": "th",
}
_FREQUENT_WORDS: Mapping[str, str] = {
    "en": "the of and to in is a for on with that are what how which who was were does did when where why can i it do "
    "my be this from by or an at",
    "fr": "le la les de des du et est un une que qui dans pour sur au en quel quelle comment ce il",
    "de": "der die das und ist ein eine zu den von mit wie was wer im dem nicht sich auf für welche",
    "es": "el los las de y es un una que en por para del con cómo qué cuál se al lo",
    "pt": "o os as de e um uma que em por para do da com como qual se no na não",
    "it": "il lo gli di e è un una che in per del della con come quale si dei delle",
}
_FREQUENT = {language: frozenset(words.split()) for language, words in _FREQUENT_WORDS.items()}
_KNOWN = {*_OF_SCRIPT.values(), *_FREQUENT}
_LEAST_SHARE = 0.5  # of the characters and words that have a script


def detect(text: str) -> str | None:
    """Code of the language of a text; None if it cannot be told, as of a name or of numbers.

    Chinese is recognised whatever its script, Japanese by its kana. Languages in Latin script are told by frequent
    words, if one of them has more than all others.
    """
    text = unicodedata.normalize("NFKC", text)
    counts = {name: len(pattern.findall(text)) for name, pattern in _SCRIPTS.items()}
    total = sum(counts.values())
    if not total:
        return None
    if counts["kana"] and (counts["kana"] + counts["han"]) / total >= _LEAST_SHARE and counts["kana"] / total > 0.1:
        return "ja"
    script = max(counts, key=lambda name: counts[name])
    if counts[script] / total < _LEAST_SHARE:
        return None
    if script != "latin":
        return _OF_SCRIPT[script]
    words = re.findall(r"[^\W\d_]+", text.lower())
    found = {language: sum(word in frequent for word in words) for language, frequent in _FREQUENT.items()}
    best = max(found, key=lambda name: found[name])
    return best if found[best] and list(found.values()).count(found[best]) == 1 else None


def in_language(text: str, language: str) -> bool:
    """Whether a text may be in `language`: it is detected as that, or cannot be told and has the language's script.

    Of a language that `detect` does not know, any text may be.
    """
    if language not in _KNOWN:
        return True
    found = detect(text)
    if found is not None:
        return found == language
    script = next((name for name, code in _OF_SCRIPT.items() if code == language), "latin")
    return bool(_SCRIPTS[script].search(text))
