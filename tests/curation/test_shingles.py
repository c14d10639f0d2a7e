"""Normalisation and shingles."""

import numpy as np
import pytest

from codiemb.curation.shingles import containment, jaccard, normalise, shingle_batch, shingles


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Ｈｅｌｌｏ，　World！", "helloworld"),
        ("花呗 怎么还款？", "花呗怎么还款"),
        ("Straße ①", "strasse1"),
        ("C++ ~ €5", "c++€5"),
        ("a\u200bb\u00adc", "abc"),  # zero-width space, soft hyphen
        ("𠀀\U000e0001𠀁😀", "𠀀𠀁😀"),  # a language tag beyond the basic plane
        ("？！ …", "?!..."),
        ("", ""),
    ],
)
def test_normalise(text, expected):
    assert normalise(text) == expected
    assert normalise(expected) == expected


def test_traditional_characters_become_simplified_on_request_only():
    assert normalise("臺灣大學", simplify=True) == normalise("台湾大学", simplify=True) == "台湾大学"
    assert normalise("臺灣大學") == "臺灣大學"


def test_every_character_begins_one_shingle():
    assert len(shingles("花呗怎么还款")) == 6
    assert len(shingles("helloworld")) == 10
    assert len(shingles("字")) == 1
    assert shingles("？") != shingles("！")
    assert shingles("") == frozenset()


def test_shingles_are_two_chinese_or_four_other_characters():
    # Chinese: an edit of one character in the middle changes two shingles of each; other scripts: four.
    assert len(shingles("甲乙丙丁戊己庚") - shingles("甲乙丙天戊己庚")) == 2
    assert len(shingles("abcdefghij") - shingles("abcdexghij")) == 4
    assert jaccard(shingles("价格12"), shingles("价格13")) < 0.5


def test_a_batch_equals_its_texts_one_by_one():
    texts = ["花呗怎么还款", "", "the quick brown fox", "iPhone手机多少钱", "𠀀𠀁"]
    batch = shingle_batch([normalise(text) for text in texts])
    for i, text in enumerate(texts):
        assert frozenset(batch.of(i).tolist()) == shingles(text)


def test_hashes_do_not_collide_on_near_texts():
    texts = [f"{number:05d}" for number in range(20_000)]
    batch = shingle_batch(texts)
    first = batch.hashes[batch.offsets[:-1]]
    assert len(np.unique(first)) == 2000  # the first four of five digits


def test_similarities():
    a, b = frozenset({1, 2, 3, 4}), frozenset({3, 4, 5})
    assert jaccard(a, b) == pytest.approx(2 / 5)
    assert containment(b, a) == pytest.approx(2 / 3)
    assert containment(a, b) == pytest.approx(1 / 2)
    assert jaccard(frozenset(), frozenset()) == containment(frozenset(), a) == 0
