from __future__ import annotations

import random

import pytest
from transformers import AutoTokenizer

from codiemb.training.pretraining.recipe import NewTokenizer
from codiemb.training.pretraining.tokenizer import SPECIAL, train_tokenizer
from codiemb.training.sections import RecipeError

from .pretraining_world import sentences


def sayings(count):
    """Words of frequent stems and endings, some of them Chinese, all different."""
    rng = random.Random(0)
    stems, endings = ["morning", "river", "天气", "火车", "garden"], ["ation", "ness", "公园", "很好", "ly"]
    word = lambda: rng.choice(stems) + rng.choice(stems) + rng.choice(endings) + rng.choice("abcdefgh")  # noqa: E731
    return [" ".join(word() for _ in range(8)) for _ in range(count)]


TEXTS = [
    *sayings(200),
    *sentences(0, 200),
    *["Prices rose 3.5% in 2024."] * 20,
    "\tcode:\n  x = 1\n",
]
STRANGE = ["龘 🙂 ñandú", "  spaces   kept ", "line\nline\r\n\ttab", "<0x41> is text", "", " ", "１２３", "a" * 300]


@pytest.fixture(scope="module", params=["bpe", "unigram"])
def tokenizer(request, tmp_path_factory):
    settings = NewTokenizer(algorithm=request.param, vocab_size=350, special_tokens=["<|user|>"])
    directory = tmp_path_factory.mktemp(request.param)
    train_tokenizer(TEXTS, settings).save_pretrained(directory)
    return AutoTokenizer.from_pretrained(directory)


def test_every_text_comes_back(tokenizer):
    rng = random.Random(0)
    any_text = "".join(chr(rng.choice([rng.randrange(32, 0xD800), rng.randrange(0xE000, 0x11000)])) for _ in range(500))
    for text in [*TEXTS, *STRANGE, any_text.replace("▁", "")]:
        ids = tokenizer(text)["input_ids"]
        assert tokenizer.decode(ids, skip_special_tokens=True) == text
        assert tokenizer.unk_token_id not in ids
        assert len(tokenizer(text, add_special_tokens=False)["input_ids"]) == len(ids) - 2


def test_the_vocabulary_is_as_large_as_asked_and_begins_with_special_tokens_and_bytes(tokenizer):
    assert 330 < len(tokenizer) <= 350
    names = [*SPECIAL.values(), "<|user|>", *(f"<0x{byte:02X}>" for byte in range(256))]
    assert tokenizer.convert_ids_to_tokens(range(len(names))) == names
    roles = {name: getattr(tokenizer, f"{name}_token") for name in SPECIAL}
    assert roles == SPECIAL


def test_a_text_stands_between_begin_and_end(tokenizer):
    tokens = tokenizer.convert_ids_to_tokens(tokenizer("今天 天气")["input_ids"])
    assert (tokens[0], tokens[-1]) == ("<s>", "</s>")
    assert "".join(tokens[1:-1]) == "今天▁天气"


def test_special_tokens_are_never_cut(tokenizer):
    ids = tokenizer("今天<|user|>天气", add_special_tokens=False)["input_ids"]
    assert tokenizer.convert_tokens_to_ids("<|user|>") in ids


def test_frequent_words_are_fewer_tokens_than_characters(tokenizer):
    text = TEXTS[0]
    assert len(tokenizer(text)["input_ids"]) < 0.5 * len(text)


def test_pieces_stay_within_words_digits_and_punctuation(tokenizer):
    for piece in tokenizer.get_vocab():
        if piece not in tokenizer.all_special_tokens and not piece.startswith("<0x"):
            assert "▁" not in piece[1:] or set(piece) == {"▁"}
            assert len(piece) == 1 or not any(character.isdigit() or character in "。，.%:" for character in piece)


def test_rare_characters_become_bytes():
    texts = [*sentences(0, 200), "é"]
    rare = train_tokenizer(texts, NewTokenizer(vocab_size=320, character_coverage=0.99))
    assert rare.convert_ids_to_tokens(rare("é", add_special_tokens=False)["input_ids"]) == ["<0xC3>", "<0xA9>"]
    every = train_tokenizer(texts, NewTokenizer(vocab_size=320, character_coverage=1.0))
    assert every.convert_ids_to_tokens(every("é", add_special_tokens=False)["input_ids"]) == ["é"]


def test_a_vocabulary_too_small_for_the_characters():
    texts = ["".join(chr(0x4E00 + i) for i in range(500))]
    with pytest.raises(RecipeError, match=r"got 400, which leaves 139 tokens .* but 500 characters shall have one"):
        train_tokenizer(texts, NewTokenizer(vocab_size=400))


def test_only_so_many_characters_are_read():
    read = []

    def texts():
        for text in sentences(0, 500):
            read.append(text)
            yield text

    train_tokenizer(texts(), NewTokenizer(vocab_size=300, algorithm="bpe", max_characters=2000))
    assert 2000 <= sum(map(len, read)) < 2200
