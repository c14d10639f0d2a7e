"""Near duplicates against the comparison of all pairs."""

import random
from itertools import combinations

import pytest

from codiemb.curation.near_duplicates import near_duplicates
from codiemb.curation.shingles import jaccard, shingles

CHARACTERS = "天地玄黄宇宙洪荒日月盈昃辰宿列张寒来暑往秋收冬藏闰余成岁律吕调阳云腾致雨露结为霜"


@pytest.fixture(scope="module")
def texts():
    random_ = random.Random(0)
    originals = ["".join(random_.choices(CHARACTERS, k=40)) for _ in range(150)]
    copies = []
    for text in originals[:60]:
        place = random_.randrange(40)
        copies.append(text[:place] + "改" * random_.randint(1, 4) + text[place:])
    mixed = [*originals, *copies, *originals[60:70]]
    random_.shuffle(mixed)
    return mixed


def test_equals_the_comparison_of_all_pairs(texts):
    found = near_duplicates(texts, threshold=0.7)
    sets = [shingles(text) for text in texts]
    assert all(
        jaccard(sets[a], sets[b]) < 0.5 or jaccard(sets[a], sets[b]) > 0.8
        for a, b in combinations(range(len(texts)), 2)
    )
    expected = {b for a, b in combinations(range(len(texts)), 2) if jaccard(sets[a], sets[b]) >= 0.7}
    assert {one.row for one in found} == expected
    assert len(found) == 70
    for one in found:
        assert one.of < one.row
        assert one.similarity == pytest.approx(jaccard(sets[one.row], sets[one.of]))


def test_a_duplicate_is_one_of_a_kept_text():
    chain = [
        "甲乙丙丁戊己庚辛壬癸子丑寅卯辰巳午未申酉" + tail
        for tail in ("天", "天地", "天地玄", "天地玄黄", "天地玄黄宇宙洪荒")
    ]
    found = near_duplicates(chain, threshold=0.8)
    dropped = {one.row for one in found}
    assert dropped
    assert not dropped & {one.of for one in found}
    assert 4 not in dropped  # near the fourth, which was dropped, but not near the first


def test_each_part_has_to_be_near():
    document = "甲乙丙丁戊己庚辛壬癸子丑寅卯辰巳午未申酉天地玄黄宇宙洪荒日月盈昃"
    rows = [("谁来了", document), ("何时走的", document + "。"), ("谁来了", document + "辰"), ("谁来了", "别的文档")]
    assert [(one.row, one.of) for one in near_duplicates(rows)] == [(2, 0)]
    assert near_duplicates(rows)[0].similarity == pytest.approx(jaccard(shingles(document), shingles(document + "辰")))
    joined = near_duplicates([query + text for query, text in rows], threshold=0.75)
    assert [one.row for one in joined] == [1, 2]  # as one text, the document hides the query


def test_long_texts_and_empty_ones():
    long = "".join(random.Random(1).choices(CHARACTERS, k=200_000))
    found = near_duplicates(["", long, "短", long + "尾", ""])
    assert [(one.row, one.of) for one in found] == [(3, 1)]


def test_traditional_and_simplified():
    pair = ["臺灣大學的資訊工程與軟體發展歷史", "台湾大学的资讯工程与软体发展历史"]
    assert not near_duplicates(pair)
    assert [one.similarity for one in near_duplicates(pair, simplify=True)] == [1.0]


def test_misuse():
    with pytest.raises(ValueError, match="iterator"):
        near_duplicates(iter(["a"]))
    with pytest.raises(ValueError, match="threshold=1"):
        near_duplicates(["a"], threshold=1)
    assert near_duplicates([]) == []
