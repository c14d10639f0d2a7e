"""BM25 beside embeddings: how texts are cut into words, and what is found by them."""

import jieba
import numpy as np
import pytest

from codiemb.curation.mining.pool import TextPool
from codiemb.curation.mining.queries import Queries
from codiemb.curation.mining.rows import Row
from codiemb.curation.mining.words import WordMiner, character_pairs, cutter, segment
from codiemb.data.documents import Document
from codiemb.data.examples import parse_example

DOCUMENTS = [
    "去上海的火车九点开。",
    "The train to Shanghai leaves at nine.",
    "洗衣机漏水，先检查水管。",
    "Check the hose of your washing machine first.",
    "火车站旁边的洗衣店九点关门。",
    "!!!",
]
QUERIES = ["上海火车几点开？", "washing machine leaks", "zzz"]


@pytest.fixture(scope="module", autouse=True)
def _small_dictionary(tmp_path_factory):
    """jieba with a few words: reading its own 350,000 takes seconds."""
    directory = tmp_path_factory.mktemp("jieba")
    words = ["去", "上海", "的", "火车", "九点", "开", "洗衣机"]
    (directory / "words.txt").write_text("".join(f"{word} 9\n" for word in words))
    tokenizer = jieba.Tokenizer(str(directory / "words.txt"))
    tokenizer.tmp_dir = str(directory)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(jieba, "cut", tokenizer.cut)
        yield


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    documents = [Document(f"d{number}", text, {}) for number, text in enumerate(DOCUMENTS)]
    return TextPool.build(tmp_path_factory.mktemp("pools"), iter(documents), iter([Document("p", "上海火车", {})]))


@pytest.fixture(scope="module")
def queries():
    known = Queries("")
    rows = (Row(parse_example({"query": query, "positives": ["x"]}), None) for query in QUERIES)
    list(known.scan(rows, with_negatives=False))
    return known


def test_words_by_script():
    text = "Ｔｈｅ C3PO机器人 says: 你好，한국어 ok_now 人"
    assert segment(text, character_pairs) == [
        *("the", "c3po", "机器", "器人", "says", "你好", "한국", "국어", "ok", "now", "人")
    ]


def test_jieba_knows_words():
    assert segment("去上海的火车 ABC", cutter("jieba")) == ["去", "上海", "的", "火车", "abc"]


@pytest.mark.parametrize("words", ["characters", "jieba"])
def test_documents_that_share_words_are_found(pool, queries, words):
    seen = []
    miner = WordMiner("bm25", pool, queries, words, lambda *progress: seen.append(progress))
    scores, numbers = miner.find(np.array([0, 1, 2]), 4)
    assert numbers[0, 0] == 0
    assert 6 not in numbers  # a positive that is no candidate
    assert numbers[1].tolist() == [3, -1, -1, -1]
    assert numbers[2].tolist() == [-1, -1, -1, -1]
    assert (np.diff(scores, axis=1) <= 0).all()
    assert seen == [("bm25: words", 6, 6)]

    again = WordMiner("bm25", pool, queries, words, lambda *progress: seen.append(progress))
    assert len(seen) == 1  # read from the pool's directory
    np.testing.assert_array_equal(again.find(np.array([0, 1, 2]), 4)[0], scores)


def test_scores_are_lucenes(pool, queries):
    """One word of five that two documents of six have, by hand."""
    miner = WordMiner("bm25", pool, queries, "jieba")
    scores, _ = miner.find(np.array([1]), 1)
    lengths = [len(segment(text, cutter("jieba"))) for text in DOCUMENTS]
    k1, b = 1.5, 0.75
    idf = np.log(1 + (6 - 1 + 0.5) / (1 + 0.5))  # `washing` and `machine`, each in one document
    norm = k1 * (1 - b + b * lengths[3] / np.mean(lengths))
    assert scores[0, 0] == pytest.approx(2 * idf / (1 + norm), rel=1e-5)
