"""Instruction templates: the one place where an instruction becomes the prompt that a model reads.

Terms: the *instruction* says what the task is ("Given a question, retrieve passages that answer it"); the *prompt* is
template + instruction, the string put before the text.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Literal, NamedTuple

Side = Literal["query", "document"]

_PLACEHOLDER = "{instruction}"


class PromptedText(NamedTuple):
    """A text as the model reads it: `prompt + text`."""

    prompt: str
    text: str


@dataclass(frozen=True)
class InstructionTemplate:
    """Prompts of the two sides; `{instruction}` stands for the task's instruction.

    A side without the placeholder has the same prompt whatever the instruction is. A side with it has no prompt where
    no instruction is given, unless the template has a default one, which is for queries.
    """

    query: str = ""
    document: str = ""
    default: str = ""

    def prompt(self, side: Side, instruction: str = "") -> str:
        """The prompt for a text on `side`."""
        template = self.query if side == "query" else self.document
        if _PLACEHOLDER not in template:
            return template
        if side == "query":
            instruction = instruction or self.default
        return template.replace(_PLACEHOLDER, instruction) if instruction else ""

    @property
    def reads_instruction(self) -> bool:
        """Whether an instruction changes anything."""
        return _PLACEHOLDER in self.query or _PLACEHOLDER in self.document

    def to_dict(self) -> dict[str, str]:
        """As saved with a model."""
        return asdict(self)


TEMPLATES: Mapping[str, InstructionTemplate] = {
    "none": InstructionTemplate(),
    # The string of mteb's loader, with which Youtu-Embedding's published scores were made.
    "youtu": InstructionTemplate(query="Instruction: {instruction} \nQuery: "),
    "e5": InstructionTemplate(query="query: ", document="passage: "),
    "e5-instruct": InstructionTemplate(query="Instruct: {instruction}\nQuery: "),
    "bge-zh": InstructionTemplate(query="为这个句子生成表示以用于检索相关文章："),
    "qwen3": InstructionTemplate(query="Instruct: {instruction}\nQuery:"),
    "minicpm": InstructionTemplate(query="Instruction: {instruction} Query: "),
}
