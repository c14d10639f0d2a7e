"""What models write instead of the JSON that was asked for."""

import pytest

from codiemb.curation.synthesis.answers import (
    json_schema,
    pairs_answer,
    parse_answer,
    queries_answer,
    shape,
    tasks_answer,
)

PAIR = '{"pairs": [{"sentence": "a", "score": 3}]}'


@pytest.mark.parametrize(
    "content",
    [
        PAIR,
        f"```json\n{PAIR}\n```",
        f"Sure! Here it is:\n{PAIR}\nI hope this helps.",
        '{"pairs": [{"sentence": "a", "score": 3,},],}',
        "{'pairs': [{'sentence': 'a', 'score': 3}]}",
        '[{"sentence": "a", "score": 3}]',
        '{"sentence": "a", "score": "3"}',
        '{"pairs": {"sentence": "a", "score": 3, "why": "they differ"}}',
        f"<think>The user wants {{a pair}}.</think>{PAIR}",
        f"[{PAIR}]",
    ],
)
def test_answers_are_mended(content):
    answered = parse_answer(content, "stop", pairs_answer(1))
    assert answered.reason == ""
    assert answered.answer.model_dump() == {"pairs": [{"sentence": "a", "score": 3.0}]}


@pytest.mark.parametrize(
    ("content", "finish_reason", "reason"),
    [
        (PAIR, "length", "cut"),
        (PAIR, "content_filter", "filtered"),
        ("", "stop", "empty"),
        ("<think>only thoughts</think>", "stop", "empty"),
        ("I cannot do that.", "stop", "no JSON"),
        ('{"pairs": []}', "stop", "wrong structure"),
        ('{"pairs": [{"sentence": "a"}]}', "stop", "wrong structure"),
        ('{"pairs": [{"sentence": "a", "score": "high"}]}', "stop", "wrong structure"),
        ('{"pairs": [{"sentence": "a", "score": 1}, {"sentence": "b", "score": 2}]}', "stop", "wrong structure"),
        ("[[[", "stop", "wrong structure"),
    ],
)
def test_what_is_no_answer_says_why(content, finish_reason, reason):
    answered = parse_answer(content, finish_reason, pairs_answer(1))
    assert answered.answer is None
    assert answered.reason == reason
    assert answered.detail


def test_plain_texts_for_objects_and_objects_for_plain_texts():
    queries = parse_answer('{"queries": ["x", "y"]}', "stop", queries_answer(2, 0, 0)).answer
    assert [one.query for one in queries.queries] == ["x", "y"]
    tasks = parse_answer('{"tasks": [{"task": "x"}]}', "stop", tasks_answer(1)).answer
    assert tasks.tasks == ["x"]


def test_schema_is_closed_and_whole():
    schema = json_schema(queries_answer(2, 0, 1))
    assert schema == {
        "type": "object",
        "required": ["queries"],
        "additionalProperties": False,
        "properties": {
            "queries": {
                "type": "array",
                "minItems": 2,
                "maxItems": 2,
                "items": {
                    "type": "object",
                    "required": ["query", "hard_negatives"],
                    "additionalProperties": False,
                    "properties": {
                        "query": {"type": "string"},
                        "hard_negatives": {"type": "array", "minItems": 1, "maxItems": 1, "items": {"type": "string"}},
                    },
                },
            }
        },
    }
    assert shape(queries_answer(2, 1, 0)) == '{"queries": [{"query": "...", "positives": ["..."]}]}'
    assert shape(pairs_answer(2)) == '{"pairs": [{"sentence": "...", "score": 0}]}'
