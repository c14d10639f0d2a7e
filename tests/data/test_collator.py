"""Rows of one task become a batch."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from codiemb.data.collator import CandidateCount, TaskCollator, text_id
from codiemb.prompts import TEMPLATES, InstructionTemplate, PromptedText


def text(content, prefix="", instruction=""):
    return {"instruction": instruction, "prefix": prefix, "text": content}


def row(index, query, positives, negatives=(), scores=()):
    return {
        "index": index,
        "query": text(query),
        "positives": [text(positive) for positive in positives],
        "negatives": [text(negative) for negative in negatives],
        "positive_scores": list(scores),
        "negative_scores": [],
    }


def collator(positives=1, negatives=0, template=TEMPLATES["e5"], **options):
    count = CandidateCount(positives, negatives)
    return TaskCollator(template, {"ir": count, "sts": count}, symmetric=frozenset({"sts"}), **options)


def test_indices_point_at_the_texts_with_their_prompts():
    batch = collator(negatives=1)("d", "ir", [row(0, "q", ["p"], ["n"]), row(1, "r", ["p"], ["q"])])
    assert [batch.texts[i] for i in batch.query] == [("query: ", "q"), ("query: ", "r")]
    assert [batch.texts[i] for i in batch.positives[:, 0]] == [("passage: ", "p")] * 2
    assert [batch.texts[i] for i in batch.negatives[:, 0]] == [("passage: ", "n"), ("passage: ", "q")]
    assert len(batch.texts) == len(set(batch.texts)) == 5  # "p" once; "q" as query and as document
    assert (batch.source, batch.task) == ("d", "ir")


def test_queries_are_documents_too_where_they_are_candidates():
    rows = [row(0, "q", ["p"]), row(1, "r", ["q"])]
    counts = {"ir": CandidateCount(queries=True), "sts": CandidateCount(queries=True)}
    both = TaskCollator(TEMPLATES["e5"], counts, symmetric=frozenset({"sts"}))
    batch = both("d", "ir", rows)
    assert [batch.texts[i] for i in batch.query_documents] == [("passage: ", "q"), ("passage: ", "r")]
    assert batch.query_documents[0] == batch.positives[1, 0]
    batch = both("d", "sts", rows)
    assert batch.query_documents.tolist() == batch.query.tolist()
    assert collator()("d", "ir", rows).query_documents.tolist() == batch.query.tolist()


def test_symmetric_tasks_take_the_query_side():
    batch = collator()("d", "sts", [row(0, "a", ["b"], scores=[1.0])])
    assert batch.texts == [PromptedText("query: ", "a"), PromptedText("query: ", "b")]


def test_the_prefix_is_text_and_the_instruction_is_prompt():
    made = row(0, "q", ["p"])
    made["query"] = text("q", prefix="Title: ", instruction="Find it")
    batch = collator(template=InstructionTemplate(query="{instruction}\n"))("d", "ir", [made])
    assert batch.texts[0] == PromptedText("Find it\n", "Title: q")


def test_text_ids_ignore_prompts():
    batch = collator(negatives=1)("d", "ir", [row(0, "same", ["p"], ["same"])])
    assert batch.text_ids[batch.query[0]] == batch.text_ids[batch.negatives[0, 0]] == text_id("same")
    assert batch.text_ids[batch.positives[0, 0]] != text_id("same")


def test_fewer_candidates_are_masked_and_more_are_sampled():
    rows = [row(0, "q", ["a"], []), row(1, "r", list("bcde"), list("uvwxyz"))]
    batch = collator(2, 3)("d", "ir", rows)
    assert batch.positive_mask.tolist() == [[True, False], [True, True]]
    assert batch.negative_mask.tolist() == [[False] * 3, [True] * 3]
    chosen = [batch.texts[i].text for i in batch.negatives[1]]
    assert len(set(chosen)) == 3
    assert set(chosen) <= set("uvwxyz")
    assert not any(made.text == "" for made in batch.texts)  # no padding text


def test_all_positives_are_known_whether_used_or_not():
    batch = collator()("d", "ir", [row(0, "q", ["a"]), row(1, "r", ["b", "c", "d"])])
    assert batch.known_positives[0].tolist() == [text_id("a"), -1, -1]
    assert batch.known_positives[1].tolist() == [text_id("b"), text_id("c"), text_id("d")]


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**31), epoch=st.integers(0, 99), order=st.permutations(range(5)))
def test_the_choice_of_candidates_is_a_function_of_seed_epoch_and_row(seed, epoch, order):
    rows = [row(i, f"q{i}", [f"p{i}{j}" for j in range(4)], [f"n{i}{j}" for j in range(9)]) for i in range(5)]

    def chosen(rows):
        batch = collator(2, 3, seed=seed)("d", "ir", rows, epoch=epoch)
        return {
            batch.texts[q].text: [batch.texts[i].text for i in [*p, *n]]
            for q, p, n in zip(batch.query, batch.positives, batch.negatives, strict=True)
        }

    assert chosen(rows) == chosen([rows[i] for i in order])


def test_epochs_and_seeds_choose_differently():
    rows = [row(i, f"q{i}", ["p"], [f"n{i}{j}" for j in range(20)]) for i in range(10)]

    def chosen(seed, epoch):
        batch = collator(1, 3, seed=seed)("d", "ir", rows, epoch=epoch)
        return [batch.texts[i].text for i in batch.negatives.flatten()]

    assert len({tuple(chosen(seed, epoch)) for seed in (0, 1) for epoch in (0, 1)}) == 4


def test_scores_follow_their_positive():
    rows = [row(0, "q", ["a", "b", "c"], scores=[1.0, 2.0, 3.0])]
    batch = collator(3)("d", "ir", rows)
    texts = [batch.texts[i].text for i in batch.positives[0]]
    assert dict(zip(texts, batch.scores[0].tolist(), strict=True)) == {"a": 1.0, "b": 2.0, "c": 3.0}


def test_scores_are_one_where_none_is_given():
    assert collator()("d", "ir", [row(0, "q", ["a"])]).scores.tolist() == [[1.0]]


@pytest.mark.parametrize(("low", "high"), [(0.0, 5.0), (0.1, 0.7), (-3.3, 1.1), (1.0, 4.9)])
def test_rescaled_scores_span_exactly_0_to_1(low, high):
    """The highest score has to reach a threshold of 1."""
    rows = [row(0, "a", ["b"], scores=[low]), row(1, "c", ["d"], scores=[high]), row(2, "e", ["f"], scores=[low])]
    batch = collator(score_range={"d": (low, high)})("d", "sts", rows)
    assert batch.scores.dtype == torch.float32
    assert batch.scores[:, 0].tolist() == [0.0, 1.0, 0.0]


def test_other_data_sets_and_constant_scores():
    make = collator(score_range={"d": (2.0, 2.0)})
    assert make("d", "sts", [row(0, "a", ["b"], scores=[2.0])]).scores.tolist() == [[0.0]]
    assert make("e", "sts", [row(0, "a", ["b"], scores=[2.0])]).scores.tolist() == [[2.0]]


def test_text_id_is_pinned():
    """Equal in every process and version: ranks and resumed runs compare them."""
    assert text_id("你好") == 3066438128102696814 != text_id("你好 ")
    assert 0 <= text_id("") < 2**63


def test_to_moves_all_tensors():
    batch = collator(negatives=1)("d", "ir", [row(0, "q", ["p"], ["n"])]).to(torch.device("meta"))
    assert {value.device.type for value in vars(batch).values() if isinstance(value, torch.Tensor)} == {"meta"}
    assert batch.source == "d"
