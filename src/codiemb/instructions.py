"""Instructions of the CMTEB tasks: one table for inference, evaluation and serving.

The texts are an interface: Youtu-Embedding read them when its published scores were made, so they must not change.
They are those of `mteb.models.model_implementations.youtu_models` in mteb 2.26; a test compares the two. The table has
the 31 tasks of mteb's `MTEB(cmn, v1)`. STS22 and the Chinese parts of multilingual tasks (Amazon reviews, MASSIVE) have
no published instruction.

Retrieval and reranking tasks are asymmetric: queries have an instruction and documents have none. All others are
symmetric: every text is read as a query, with the task's instruction. An instruction in words says what the task is,
not for which side: callers give it for queries and documents alike, and the template, which rarely has a place for it
on the document side, says who reads it.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass

from codiemb.prompts import InstructionTemplate, Side


@dataclass(frozen=True)
class TaskInstruction:
    """Instructions of a task's two sides.

    Attributes:
        query: for queries, or for all texts of a symmetric task.
        document: for documents; empty where these have no instruction.
        symmetric: the task has one kind of text (similarity, classification, clustering): both sides are read as
            queries.
    """

    query: str
    document: str = ""
    symmetric: bool = False

    def prompt(self, template: InstructionTemplate, side: Side) -> str:
        """The string that `template` puts before a text on `side`."""
        if side == "query" or self.symmetric:
            return template.prompt("query", self.query)
        return template.prompt("document", self.document)


def instruction_for(name_or_text: str) -> TaskInstruction:
    """The instruction of the task with that name; any other text is itself the instruction, on both sides.

    It is the one rule for all that take an `instruction`: models, clients, integrations and commands pass it to both
    sides as it was given.

    Raises:
        ValueError: it resembles a task's name but is none, or is one word, which names a task but does not describe it.
        TypeError: no text.
    """
    if not isinstance(name_or_text, str):
        raise TypeError(f"instruction={name_or_text!r}, expected a text or a task's name.")
    if name_or_text in TASK_INSTRUCTIONS:
        return TASK_INSTRUCTIONS[name_or_text]
    folded = {name.casefold(): name for name in TASK_INSTRUCTIONS}
    near = difflib.get_close_matches(name_or_text.casefold(), folded, n=3, cutoff=0.8)
    if near or _NAME.fullmatch(name_or_text):
        near = near or difflib.get_close_matches(name_or_text.casefold(), folded, n=3, cutoff=0.4)
        nearest = ", ".join(folded[name] for name in near)
        raise ValueError(
            f"instruction={name_or_text!r} is no task in codiemb.instructions. "
            + (f"The nearest names are: {nearest}. " if nearest else "")
            + "Give one of its names, or the instruction itself as a sentence."
        )
    return TaskInstruction(query=name_or_text, document=name_or_text)


_NAME = re.compile(r"[A-Za-z][A-Za-z0-9]*([-_.][A-Za-z0-9]+)*")


_WEB_ZH = "Given a Chinese search query, retrieve web passages that answer the question"
_WEB = "Given a web search query, retrieve relevant passages that answer the query"
_COMMUNITY_MEDICAL = "Given a Chinese community medical question, retrieve replies that best answer the question"
_FINANCIAL_SERVICE = (
    "Represent the text in conversations between users and financial customer service, retrieve "
    "semantically similar text"
)
_SIMILAR = "Retrieve semantically similar text"

_ASYMMETRIC = {
    "CmedqaRetrieval": _COMMUNITY_MEDICAL,
    "CovidRetrieval": "Given a question on COVID-19, retrieve news articles that answer the question",
    "DuRetrieval": _WEB_ZH,
    "EcomRetrieval": "Given a user query from an e-commerce website, retrieve description sentences of relevant "
    "products",
    "MedicalRetrieval": "Given a medical question, retrieve user replies that best answer the question",
    "MMarcoRetrieval": _WEB,
    "T2Retrieval": _WEB_ZH,
    "VideoRetrieval": "Given a video search query, retrieve the titles of relevant videos",
    "T2Reranking": _WEB_ZH,
    "MMarcoReranking": _WEB,
    "CMedQAv1-reranking": _COMMUNITY_MEDICAL,
    "CMedQAv2-reranking": _COMMUNITY_MEDICAL,
}
_SYMMETRIC = {
    "AFQMC": _FINANCIAL_SERVICE,
    "ATEC": _FINANCIAL_SERVICE,
    "BQ": "Represent the user problem descriptions when handling bank credit business, retrieve "
    "semantically similar text",
    "LCQMC": "Represent the user question descriptions on general question-answering platforms, retrieve "
    "semantically similar text",
    "PAWSX": "Represent the Chinese Translations of English Encyclopedias, retrieve semantically similar text",
    "QBQTC": "Represent the web search query, retrieve semantically similar text",
    "STSB": "Represent the short general domain sentences, retrieve semantically similar text",
    "Ocnli": _SIMILAR,
    "Cmnli": _SIMILAR,
    "TNews": "Classify the fine-grained category of the given news title",
    "IFlyTek": "Given an App description text, find the appropriate fine-grained category",
    "Waimai": "Classify the customer review from a food takeaway platform into positive or negative",
    "OnlineShopping": "Classify the customer review for online shopping into positive or negative",
    "JDReview": "Classify the customer review for iPhone on e-commerce platform into positive or negative",
    "MultilingualSentiment": "Classify sentiment of the customer review into positive, neutral, or negative",
    "CLSClusteringS2S": "Given the papers, find the appropriate fine-grained topic or theme based on the titles",
    "CLSClusteringP2P": "Given the papers, find the appropriate fine-grained topic or theme based on the titles and "
    "abstracts",
    "ThuNewsClusteringS2S": "Identify the topic or theme of the given news articles based on the titles",
    "ThuNewsClusteringP2P": "Identify the topic or theme of the given news articles based on the titles and contents",
}

TASK_INSTRUCTIONS: Mapping[str, TaskInstruction] = {
    **{task: TaskInstruction(query=text) for task, text in _ASYMMETRIC.items()},
    **{task: TaskInstruction(query=text, document=text, symmetric=True) for task, text in _SYMMETRIC.items()},
}
