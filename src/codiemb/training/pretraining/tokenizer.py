"""A new tokenizer, trained on text: Unigram or BPE pieces, and the 256 bytes for what they do not cover."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from codiemb.training.pretraining.recipe import NewTokenizer
from codiemb.training.sections import RecipeError

SPECIAL = {"unk": "<unk>", "bos": "<s>", "eos": "</s>", "pad": "<pad>", "mask": "<mask>"}
_BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
_BYTE_SCORE = -1e4  # in nats: a text that spells "<0x41>" itself is cut into its characters


def train_tokenizer(texts: Iterable[str], settings: NewTokenizer) -> PreTrainedTokenizerFast:
    """Train a tokenizer that gives every text back, whatever its characters.

    Texts are cut at spaces and around digits and punctuation; pieces do not cross these cuts. `<s>` and `</s>` stand
    around a text.

    Args:
        texts: read until `settings.max_characters`.
    Raises:
        RecipeError: the texts hold more characters than the vocabulary has room for.
    """
    sample = list(_first(texts, settings.max_characters))
    alphabet = _alphabet(sample, settings.character_coverage)
    special = [*SPECIAL.values(), *settings.special_tokens]
    room = settings.vocab_size - len(special) - len(_BYTES)
    if len(alphabet) + 1 > room:
        raise RecipeError(
            f"new_tokenizer.vocab_size: got {settings.vocab_size}, which leaves {room} tokens besides special ones and "
            f"bytes, but {len(alphabet)} characters shall have one; raise it, or lower character_coverage"
        )
    spaces = {ord(character): " " for character in {*"".join(sample)} - alphabet}
    trained = Tokenizer(models.Unigram() if settings.algorithm == "unigram" else models.BPE())
    trained.pre_tokenizer = _cuts()
    kind = trainers.UnigramTrainer if settings.algorithm == "unigram" else trainers.BpeTrainer
    trained.train_from_iterator(
        (text.translate(spaces) for text in sample), kind(vocab_size=room, special_tokens=[], show_progress=False)
    )
    learnt = json.loads(trained.to_str())["model"]
    pieces = _unigram(learnt, special) if settings.algorithm == "unigram" else _bpe(learnt, special)
    result = Tokenizer(pieces)
    result.add_special_tokens(special)
    result.pre_tokenizer = _cuts()
    result.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]  # ▁ in a text comes back as a space
    )
    begin, end = SPECIAL["bos"], SPECIAL["eos"]
    result.post_processor = processors.TemplateProcessing(
        single=f"{begin} $A {end}",
        pair=f"{begin} $A {end} {begin} $B {end}",
        special_tokens=[(token, special.index(token)) for token in (begin, end)],
    )
    names = {f"{name}_token": token for name, token in SPECIAL.items()}
    return PreTrainedTokenizerFast(
        tokenizer_object=result,
        **names,
        additional_special_tokens=settings.special_tokens,
        padding_side="right",
        model_input_names=["input_ids", "attention_mask"],
        clean_up_tokenization_spaces=False,
    )


def _cuts() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Metaspace(prepend_scheme="never"),
            pre_tokenizers.Punctuation("isolated"),
            pre_tokenizers.Digits(individual_digits=True),
        ]
    )


def _first(texts: Iterable[str], characters: int) -> Iterator[str]:
    for text in texts:
        yield text[:characters]
        characters -= len(text)
        if characters <= 0:
            return


def _alphabet(texts: Iterable[str], coverage: float) -> set[str]:
    """The most frequent characters, until they are `coverage` of the texts."""
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(text)
    counts.pop(" ", None)
    wanted = coverage * counts.total()
    alphabet: set[str] = set()
    covered = 0
    for character, count in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
        if covered >= wanted:
            break
        alphabet.add(character)
        covered += count
    return alphabet


def _unigram(learnt: dict[str, Any], special: list[str]) -> models.Unigram:
    framed = [(token, 0.0) for token in special] + [(token, _BYTE_SCORE) for token in _BYTES]
    known = {token for token, _ in framed}
    pieces = [(piece, score) for piece, score in learnt["vocab"] if piece not in known]
    return models.Unigram(framed + pieces, unk_id=special.index(SPECIAL["unk"]), byte_fallback=True)


def _bpe(learnt: dict[str, Any], special: list[str]) -> models.BPE:
    framed = [*special, *_BYTES]
    known = set(framed)
    pieces = [piece for piece in sorted(learnt["vocab"], key=learnt["vocab"].__getitem__) if piece not in known]
    return models.BPE(
        {piece: id_ for id_, piece in enumerate([*framed, *pieces])},
        [tuple(merge) for merge in learnt["merges"]],
        unk_token=SPECIAL["unk"],
        byte_fallback=True,
        fuse_unk=True,
    )
