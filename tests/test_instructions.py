"""The instructions of the CMTEB tasks."""

import pytest

from codiemb.instructions import TASK_INSTRUCTIONS, TaskInstruction, instruction_for
from codiemb.prompts import TEMPLATES


def test_the_table_is_the_one_the_published_scores_were_made_with():
    """mteb's table and loader, the prompt of every task and side compared as strings."""
    youtu = pytest.importorskip("mteb.models.model_implementations.youtu_models")
    from mteb.types import PromptType

    theirs, template = youtu.youtu_instruction, TEMPLATES["youtu"]
    assert set(theirs) == set(TASK_INSTRUCTIONS)
    for task, instruction in theirs.items():
        ours = TASK_INSTRUCTIONS[task]
        assert ours.symmetric == isinstance(instruction, str)
        if ours.symmetric:
            expected = youtu.instruction_template(instruction)
            assert ours.prompt(template, "query") == ours.prompt(template, "document") == expected
        else:
            assert ours.prompt(template, "query") == youtu.instruction_template(instruction, PromptType.query)
            assert ours.prompt(template, "document") == youtu.instruction_template(instruction, PromptType.document)


def test_the_table_has_the_tasks_of_the_benchmark():
    benchmarks = pytest.importorskip("mteb")
    tasks = {task.metadata.name: task.metadata.type for task in benchmarks.get_benchmark("MTEB(cmn, v1)").tasks}
    assert set(tasks) == set(TASK_INSTRUCTIONS)
    for name, kind in tasks.items():
        assert TASK_INSTRUCTIONS[name].symmetric == (kind not in ("Retrieval", "Reranking"))


@pytest.mark.parametrize(
    ("typed", "nearest"),
    [
        ("T2Retreival", "T2Retrieval"),
        ("t2retrieval", "T2Retrieval"),
        ("STS-B", "STSB"),
        ("stsb", "STSB"),
        ("STS22", "STSB"),
        ("T2 Retrieval", "T2Retrieval"),
        ("CMedQAv1-Reranking", "CMedQAv1-reranking"),
        ("Clustering", "CLSClusteringS2S"),
    ],
)
def test_a_name_that_is_no_task_is_an_error_with_the_nearest_names(typed, nearest):
    with pytest.raises(ValueError, match=rf"{typed}.* no task.*nearest.*{nearest}.*or the instruction itself"):
        instruction_for(typed)


def test_a_word_like_no_task_at_all_is_an_error_too():
    with pytest.raises(ValueError, match=r"'Zzzzz' is no task.* Give one"):
        instruction_for("Zzzzz")


@pytest.mark.parametrize("text", ["Find the answer", "为这个医学问题检索相关回答", "summarise:", ""])
def test_any_other_text_is_the_instruction_of_both_sides(text):
    assert instruction_for(text) == TaskInstruction(query=text, document=text)


def test_the_template_says_which_side_reads_what():
    symmetric, asymmetric = instruction_for("STSB"), instruction_for("T2Retrieval")
    e5 = TEMPLATES["e5"]
    assert asymmetric.prompt(e5, "document") == "passage: "
    assert symmetric.prompt(e5, "document") == symmetric.prompt(e5, "query") == "query: "
