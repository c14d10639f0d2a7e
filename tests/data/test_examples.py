import math

import pytest

from codiemb.data.examples import TASK_TYPES, DataError, RowError, Text, parse_example


def row(**changes):
    return {"task_type": "ir", "query": "q", "positives": ["p"], **changes}


def sts(**changes):
    return {"task_type": "sts", "query": "q", "positives": ["p"], "positive_scores": [2.5], **changes}


@pytest.mark.parametrize(
    ("spelling", "expected"),
    [
        ("text", Text("", "", "text")),
        (["do", "pre ", "text"], Text("do", "pre ", "text")),
        (("do", "pre ", "text"), Text("do", "pre ", "text")),
        ([None, None, "text"], Text("", "", "text")),
        ({"instruction": "do", "prefix": "pre ", "text": "text"}, Text("do", "pre ", "text")),
        ({"text": "text", "prefix": None}, Text("", "", "text")),
        ("a\ttab,\na line\r\nand \u3000 a wide space", Text("", "", "a\ttab,\na line\r\nand \u3000 a wide space")),
        ("长" * 200_000, Text("", "", "长" * 200_000)),
    ],
)
def test_every_spelling_of_a_text(spelling, expected):
    example = parse_example(row(query=spelling, positives=[spelling], negatives=[spelling, "other"]))
    assert example.query == expected
    assert example.positives == [expected]
    assert example.negatives == [expected, Text("", "", "other")]


def test_the_pooled_part_is_prefix_and_text():
    assert Text("do this", "title: ", "text").full == "title: text"


@pytest.mark.parametrize("task", TASK_TYPES)
def test_every_task_type(task):
    assert parse_example(row(task_type=task, positive_scores=[1])).task_type == task


def test_absent_and_null_fields_are_alike():
    nothing = parse_example(row())
    assert nothing == parse_example(row(negatives=None, positive_scores=None, negative_scores=None))
    assert (nothing.negatives, nothing.positive_scores, nothing.negative_scores) == ([], [], [])


def test_a_row_without_task_is_ir_unless_it_has_scores():
    assert parse_example({"query": "q", "positives": ["p"]}).task_type == "ir"
    with pytest.raises(RowError, match="task_type: missing in a row with scores"):
        parse_example({"query": "q", "positives": ["p"], "positive_scores": [0.5]})


def test_notes_are_not_read():
    assert parse_example(row(meta_data={"id": math.nan})) == parse_example(row())


def test_pairs_of_a_row_with_several_scored_candidates():
    example = parse_example(sts(positives=["a", "b"], positive_scores=[5, 4.5], negatives=["c"], negative_scores=[0]))
    pairs = [
        (pair.query.text, pair.positives[0].text, pair.positive_scores, pair.negatives) for pair in example.pairs()
    ]
    assert pairs == [("q", "a", [5], []), ("q", "b", [4.5], []), ("q", "c", [0], [])]


def test_a_pair_row_may_have_only_negatives():
    example = parse_example({"task_type": "sts", "query": "q", "negatives": ["n"], "negative_scores": [0.0]})
    assert len(list(example.pairs())) == 1


@pytest.mark.parametrize(
    ("bad", "field", "message"),
    [
        (["not", "an", "object"], "row", "not an object"),
        ({"task_type": "ir", "positives": ["p"]}, "query", "missing"),
        (row(query=None), "query", "missing"),
        (row(query=5), "query", "not a text, got 5"),
        (row(query=["only", "two"]), "query", "a list of 2"),
        (row(query=["", "", 5]), "query.text", "not a string, got 5"),
        (row(query={"text": "q", "prefix": 1}), "query.prefix", "not a string"),
        (row(query={"instruction": "do"}), "query.text", "not a string, got None"),
        (row(query={"txt": "q"}), "query.txt", "unknown key; expected 'text'"),
        (row(query=""), "query.text", "empty"),
        (row(positives=["p", ["", "", " \n\u3000"]]), "positives[1].text", "empty"),
        (row(positives=["", "", "p"]), "positives", "one text instead of a list of texts"),
        (row(positives="p"), "positives", "not a list"),
        (row(positives=[]), "positives", "none in a row of ir"),
        (row(positives=None, task_type="reranking"), "positives", "none in a row of reranking"),
        (row(positives=None, task_type="classification"), "positives", "none in a row of classification"),
        (row(positives=None, task_type="clustering"), "positives", "none in a row of clustering"),
        (row(negatives=["n", "a\ud800b"]), "negatives[1].text", "lone surrogate.*U\\+D800, here its character 2"),
        (row(query=["a\x00", "", "q"]), "query.instruction", "control character.*U\\+0000"),
        (row(query=["", "\x7f", "q"]), "query.prefix", "control character.*U\\+007F"),
        (row(query="a\x85"), "query.text", "control character.*U\\+0085"),
        (row(task_type="rerank"), "task_type", "got 'rerank'.*did you mean reranking"),
        (row(task_type=["ir"]), "task_type", "unknown task type"),
        (row(positve=["p"]), "positve", "unknown key; expected 'positives'"),
        (row(id=7), "id", "unknown key.*notes go under 'meta_data'"),
        (row(positive_scores=[1, 2]), "positive_scores", "not one score for each of positives.*expected 1 numbers"),
        (row(negative_scores=[1]), "negative_scores", "not one score for each of negatives"),
        (sts(positives=[], positive_scores=[]), "positives", "none in a row of sts"),
        (sts(positive_scores=None), "positive_scores", "not one score for each"),
        (sts(negatives=["n"]), "negative_scores", "not one score for each of negatives"),
        (sts(positive_scores=3.5), "positive_scores", "not a list"),
        (sts(positive_scores=[math.nan]), "positive_scores[0]", "not a score, got nan"),
        (sts(positive_scores=[-math.inf]), "positive_scores[0]", "not a score, got -inf"),
        (sts(positive_scores=[1e39]), "positive_scores[0]", "not a score"),
        (sts(positive_scores=["1"]), "positive_scores[0]", "not a score, got '1'"),
        (sts(positive_scores=[True]), "positive_scores[0]", "not a score, got True"),
        (sts(positive_scores=[None]), "positive_scores[0]", "not a score, got None"),
        (sts(task_type="pair_classification"), "positive_scores[0]", "not a class, got 2.5; expected 0 or 1"),
    ],
)
def test_a_bad_row_is_named_by_field(bad, field, message):
    with pytest.raises(DataError, match=message) as caught:
        parse_example(bad)
    assert caught.value.field == field
    assert str(caught.value).startswith(f"{field}: ")


def test_reasons_count_alike_whatever_the_index_and_value():
    reasons = set()
    for i in range(3):
        with pytest.raises(RowError) as caught:
            parse_example(row(positives=["p"] * i + [i]))
        reasons.add(caught.value.reason)
    assert reasons == {"positives[]: not a text"}
