"""From an instruction to the prompt that a model reads."""

import pytest

from codiemb.prompts import TEMPLATES, InstructionTemplate


@pytest.mark.parametrize(
    ("name", "query", "document"),
    [
        ("none", "", ""),
        ("youtu", "Instruction: Find answers \nQuery: ", ""),
        ("e5", "query: ", "passage: "),
        ("e5-instruct", "Instruct: Find answers\nQuery: ", ""),
        ("bge-zh", "为这个句子生成表示以用于检索相关文章：", ""),
        ("qwen3", "Instruct: Find answers\nQuery:", ""),
        ("minicpm", "Instruction: Find answers Query: ", ""),
    ],
)
def test_named_templates(name, query, document):
    template = TEMPLATES[name]
    assert template.prompt("query", "Find answers") == query
    assert template.prompt("document", "Find answers") == document


def test_every_named_template_is_tested():
    assert set(TEMPLATES) == {"none", "youtu", "e5", "e5-instruct", "bge-zh", "qwen3", "minicpm"}


def test_a_side_with_a_placeholder_has_no_prompt_without_an_instruction():
    template = InstructionTemplate(query="Do: {instruction}\n", document="passage: ")
    assert template.prompt("query") == ""
    assert template.prompt("document") == "passage: "


def test_a_default_instruction_is_for_queries_without_one():
    template = InstructionTemplate("Do: {instruction}\n", "{instruction}: ", default="search")
    assert template.prompt("query") == "Do: search\n"
    assert template.prompt("query", "sort") == "Do: sort\n"
    assert template.prompt("document") == ""


def test_braces_in_an_instruction_stay_as_they_are():
    template = InstructionTemplate(query="{instruction} / ")
    assert template.prompt("query", "a {b} {instruction} %s") == "a {b} {instruction} %s / "


def test_reads_instruction():
    assert InstructionTemplate(document="{instruction}: ").reads_instruction
    assert not TEMPLATES["e5"].reads_instruction


def test_dictionary_round_trip():
    for template in TEMPLATES.values():
        assert InstructionTemplate(**template.to_dict()) == template
