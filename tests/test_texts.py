"""Texts that a tokenizer cannot read, or would take long to read."""

import random
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import TEXTS, byte_bpe_tokenizer, wordpiece_tokenizer
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from codiemb.texts import leading_part, without_lone_surrogates


def unigram_tokenizer() -> PreTrainedTokenizerFast:
    """SentencePiece's kind: a word is what stands between spaces, so Chinese text is one long word."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=300, special_tokens=["<unk>"], unk_token="<unk>", show_progress=False)
    tokenizer.train_from_iterator(TEXTS, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", pad_token="<unk>")


TOKENIZERS = {
    "wordpiece": wordpiece_tokenizer(),
    "byte_bpe": byte_bpe_tokenizer(),
    "unigram": unigram_tokenizer(),
}
ALPHABETS = ["先养周酵种再把面粉水和盐。，", "abcde fgh. \n", " \t\n", "a", "😀👍é", "aé先 \u200d👩"]


def untruncated(tokenizer):
    return lambda text: tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize(
    "alphabet", ["先养周酵种再把面粉水和盐。，", "abcde fgh. \n", " \t\n", "a", "😀👍é", "aé先 \u200d👩"]
)
def test_the_first_tokens_are_those_of_the_whole_text(name, alphabet):
    tokens = untruncated(TOKENIZERS[name])
    text = "".join(random.Random(0).choices(alphabet, k=20_000)) + TEXTS[0]
    part = leading_part(text, 64, tokens)
    assert tokens(part)[:64] == tokens(text)[:64]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from([*TEXTS, " ", "\n\n", "é", "word", "。", "😀", "x" * 150]), min_size=100, max_size=400))
def test_any_mixture_of_scripts_keeps_its_first_tokens(pieces):
    text = "".join(pieces)
    for tokenizer in TOKENIZERS.values():
        tokens = untruncated(tokenizer)
        assert tokens(leading_part(text, 32, tokens))[:32] == tokens(text)[:32]


def test_a_text_that_fits_is_left_alone_and_an_ordinary_long_one_is_cut():
    tokens = untruncated(TOKENIZERS["wordpiece"])
    assert leading_part("short", 64, tokens) == "short"
    text = "".join(TEXTS) * 4000
    assert len(leading_part(text, 64, tokens)) < 2000 < 10**6 < len(text)


def test_a_text_that_takes_few_tokens_is_read_on():
    tokens = untruncated(TOKENIZERS["wordpiece"])
    text = " " * 50_000 + "bread"
    assert leading_part(text, 64, tokens) == text


def test_half_characters_are_replaced_and_whole_ones_joined():
    assert without_lone_surrogates("a\ud83db") == "a\ufffdb"
    assert without_lone_surrogates("a\ud83d\ude00b") == "a😀b"
    assert without_lone_surrogates("面包") == "面包"


def test_a_million_characters_take_a_moment():
    tokens = untruncated(TOKENIZERS["byte_bpe"])
    text = "".join(TEXTS) * 4000
    started = time.perf_counter()
    leading_part(text, 512, tokens)
    assert len(text) > 10**6
    assert time.perf_counter() - started < 0.5  # reading all of it takes seconds
