"""Which candidates become negatives: each filter, sampling, relabelling, and how rankings are merged."""

import numpy as np
import pytest
from pydantic import ValidationError

from codiemb.curation.mining.keys import KeyIndex, key
from codiemb.curation.mining.merging import Candidate, Place, merged
from codiemb.curation.mining.options import MiningOptions
from codiemb.curation.mining.pool import TextPool, as_document
from codiemb.curation.mining.selection import (
    ABOVE_MAX,
    ANSWER,
    BELOW_MIN,
    MARGIN,
    NEAR_NEGATIVE,
    NEAR_POSITIVE,
    SHARE,
    Selector,
    answer_finder,
    share_limit,
)
from codiemb.data.documents import Document
from codiemb.data.examples import Text

POSITIVE = "先养一周酵种，再把面粉、水和盐揉成面团，静置一夜，第二天早上再送进烤箱。"
TEXTS = [
    POSITIVE,
    "去上海的火车九点开。",
    "洗衣机漏水的时候，先检查水管和过滤网是不是松了。",
    "面包机说明书：按下红色按钮，等待四十分钟。",
    "去上海的火车，九点开了",
    "先养一周酵种,再把面粉、水和盐揉成面团,静置一夜,第二天早上再送入烤箱",
    "静置一夜，第二天早上再送进烤箱。",
    "Mix flour, water and salt, then wait until 1995.",
]


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    documents = [Document(f"d{number}", text, {}) for number, text in enumerate(TEXTS)]
    return TextPool.build(tmp_path_factory.mktemp("pools"), iter(documents), ())


@pytest.fixture
def select(pool):
    """Selects from texts 1 to 7 with falling scores, 0.9 for the first; returns numbers and reasons."""

    def run(positive_score=1.0, chance=0.0, answers=(), kept=(), scores=None, by_score=False, seed=0, **options):
        options = {"share": None, "negatives": 7, "near_duplicate": 1.0, **options}
        scores = scores or [0.9 - 0.1 * place for place in range(7)]
        candidates = [Candidate(number, {}, score) for number, score in enumerate(scores, 1)]
        selector = Selector(MiningOptions(**options), pool, chance, by_score=by_score)
        rng = np.random.default_rng(seed)
        selection = selector.select(candidates, positive_score, [0], kept, answers, rng)
        assert selection.looked_at == len(selection.negatives) + len(selection.relabelled) + sum(
            found.count for found in selection.rejected.values()
        )
        selection.numbers = [candidate.number for candidate in selection.negatives]
        selection.reasons = {reason: found.count for reason, found in selection.rejected.items()}
        return selection

    return run


def test_top_takes_the_first_that_pass(select):
    assert select().numbers == [1, 2, 3, 4, 5, 7]  # 6 is a part of the positive
    chosen = select(negatives=2)
    assert (chosen.numbers, chosen.looked_at) == ([1, 2], 2)


@pytest.mark.parametrize(
    ("options", "numbers", "reasons"),
    [
        ({"max_score": 0.75}, [3, 4, 5, 7], {ABOVE_MAX: 2, NEAR_POSITIVE: 1}),
        ({"min_score": 0.65}, [1, 2, 3], {BELOW_MIN: 4}),
        ({"margin": 0.25}, [3, 4, 5, 7], {MARGIN: 2, NEAR_POSITIVE: 1}),
        ({"share": 0.75}, [3, 4, 5, 7], {SHARE: 2, NEAR_POSITIVE: 1}),
        ({"near_duplicate": 0.6}, [1, 2, 3, 7], {NEAR_NEGATIVE: 1, NEAR_POSITIVE: 2}),
    ],
)
def test_each_filter_counts_what_it_rejects(select, options, numbers, reasons):
    selection = select(**options)
    assert selection.numbers == numbers
    assert selection.reasons == reasons


def test_a_share_counts_from_chance():
    assert share_limit(0.9, 0.95, 0.0) == pytest.approx(0.855)
    assert share_limit(0.9, 0.95, 0.8) == pytest.approx(0.895)
    assert share_limit(0.7, 0.95, 0.8) == 0.7  # what is below chance already is the limit itself


def test_chance_moves_the_limit(select):
    # Of scores between 0.6 and 1, nine tenths of the plain score leave nothing, nine tenths above chance nearly all.
    scores = [0.99, 0.95, 0.92, 0.91, 0.905, 0.904, 0.9]
    assert select(share=0.9, scores=scores).numbers == [7]
    assert select(share=0.9, chance=0.6, scores=scores).numbers == [2, 3, 4, 5, 7]


def test_a_text_with_the_answer_is_no_negative(select):
    selection = select(answers=["九点"])
    assert selection.numbers == [2, 3, 5, 7]
    assert selection.reasons[ANSWER] == 2


@pytest.mark.parametrize(
    ("answer", "text", "found"),
    [
        ("5", "in 1995", False),
        ("5", "5月", True),
        ("1995", "建于１９９５年", True),
        ("train", "two TRAINS", False),
        ("a  train", "A train leaves", True),
        ("九点", "九点开", True),
        ("C++", "learn c++ now", True),
        ("c", "c++", True),
    ],
)
def test_answers_are_found_as_words(answer, text, found):
    assert answer_finder([answer])(text) is found
    assert not answer_finder([])(text)


def test_kept_negatives_are_not_found_again(select):
    selection = select(kept=["去上海的火车九点开"])
    assert selection.numbers == [2, 3, 4, 5, 7]
    assert selection.reasons[NEAR_NEGATIVE] == 1


def test_random_sampling_is_a_function_of_the_seed(select):
    chosen = [tuple(select(sampling="random", negatives=2, seed=seed).numbers) for seed in range(40)]
    assert chosen[:5] == [tuple(select(sampling="random", negatives=2, seed=seed).numbers) for seed in range(5)]
    assert {number for numbers in chosen for number in numbers} == {1, 2, 3, 4, 5, 7}


def test_weighted_sampling_prefers_high_scores(select):
    def firsts(temperature):
        return [
            select(sampling="weighted", temperature=temperature, negatives=1, seed=seed).numbers[0]
            for seed in range(60)
        ]

    assert set(firsts(0.001)) == {1}
    assert 60 > firsts(0.1).count(1) > 20  # softmax gives it 0.63 / (1 - what is rejected)
    assert firsts(100.0).count(1) < 25


def test_a_cross_encoder_orders_by_its_score(select):
    scores = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7]
    assert select(scores=scores, by_score=True, negatives=2).numbers == [7, 5]
    assert select(scores=scores, by_score=False, negatives=2).numbers == [1, 2]


def test_relabelled_candidates_become_positives_once(select):
    scores = [0.99, 0.2, 0.1, 0.98, 0.1, 0.1, 0.1]
    selection = select(scores=scores, relabel_above=0.9, near_duplicate=0.6, negatives=1)
    assert [candidate.number for candidate in selection.relabelled] == [1]  # 4 says the same
    assert selection.reasons == {NEAR_POSITIVE: 1}
    assert selection.numbers == [2]
    untouched = select(scores=scores, near_duplicate=0.6, negatives=1)
    assert (untouched.relabelled, untouched.numbers) == ([], [1])


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"negatives": 5, "skip": 98}, "negatives=5, but the ranks 99 to 100 hold 2"),
        ({"min_score": 0.5, "max_score": 0.4}, "min_score=0.5 is above max_score=0.4"),
        ({"share": 1.5}, "less than or equal to 1"),
        ({"sampling": "best"}, "'top', 'random' or 'weighted'"),
        ({"unknown": 1}, "Extra inputs are not permitted"),
    ],
)
def test_options_that_do_not_fit(wrong, said):
    with pytest.raises(ValidationError, match=said.replace("(", r"\(")):
        MiningOptions(**wrong)


# -- merging ---------------------------------------------------------------------------------------------------------

RANKINGS = {
    "dense": [(7, Place(1, 0.9)), (3, Place(2, 0.8)), (5, Place(3, 0.7))],
    "bm25": [(5, Place(1, 12.0)), (9, Place(2, 8.0)), (7, Place(3, 5.0))],
}


def test_reciprocal_ranks_prefer_what_several_found():
    found = merged(RANKINGS, "rrf")
    assert [candidate.number for candidate in found] == [5, 7, 3, 9]  # 1/61 + 1/63 twice, then 1/62 twice
    assert found[0].places == {"dense": Place(3, 0.7), "bm25": Place(1, 12.0)}


def test_round_robin_takes_turns():
    assert [candidate.number for candidate in merged(RANKINGS, "round-robin")] == [7, 5, 3, 9]


def test_one_ranking_stays_as_it_is():
    for how in ("rrf", "round-robin"):
        assert [one.number for one in merged({"dense": RANKINGS["dense"]}, how)] == [7, 3, 5]


# -- texts by number -------------------------------------------------------------------------------------------------


def test_keys_ignore_punctuation_width_and_case():
    assert key("Ｈｅｌｌｏ， world!") == key("hello world")
    assert key("hello world") != key("hello word")


def test_keys_are_found():
    index = KeyIndex(np.array([5, 9, 5, 1], dtype=np.uint64))
    assert index.find(np.array([1, 5, 7, 2**63], dtype=np.uint64)).tolist() == [3, 0, -1, -1]
    assert index.all(5).tolist() == [0, 2]
    assert index.all(6).tolist() == []
    assert KeyIndex(np.array([], dtype=np.uint64)).find(np.array([1], dtype=np.uint64)).tolist() == [-1]


def test_a_pool_holds_each_text_once(tmp_path):
    texts = [
        Text("", "", "one"),
        Text("i", "p: ", "two"),
        Text("", "", "One."),
        Text("", "", " "),
        Text("", "", "a\x00"),
    ]
    documents = [as_document(text, str(number)) for number, text in enumerate(texts)]
    others = [Document("x", "p: two", {}), Document("y", "three", {})]
    pool = TextPool.build(tmp_path, iter(documents), iter(others))
    assert pool.counts._asdict() == {"candidates": 2, "duplicates": 1, "unusable": 2, "others": 1}
    assert list(pool.texts()) == [texts[0], texts[1], Text("", "", "three")]
    again = TextPool.build(tmp_path, iter(documents), iter(others))
    assert again.directory == pool.directory
    assert TextPool.build(tmp_path, iter(documents[:1]), iter(others)).directory != pool.directory
    assert len([path for path in tmp_path.iterdir() if path.name[0] != "."]) == 2
    assert not [path for path in tmp_path.iterdir() if path.name[0] == "."]
