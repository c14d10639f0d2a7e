"""Scores of one model on the study's items, with what each item contributed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from outcome import GOLD, Outcome
from scipy.stats import spearmanr
from study_data import INSTRUCTIONS, PARTS

from codiemb import backbones
from codiemb.encoding import EmbeddingPass
from codiemb.prompts import InstructionTemplate, PromptedText, Side

DEPTH = 10
SHORT_TEXTS = ("question-", "title-")  # begin the names of groups of the Chinese index that are no paragraphs


class Index:
    """What is searched: texts in groups, of which each ranks where its best text does (MaxP, arXiv:1905.09217)."""

    def __init__(self, groups: Sequence[str]) -> None:
        self.names = sorted(set(groups))
        self.place = {name: i for i, name in enumerate(self.names)}
        members = np.array([self.place[name] for name in groups])
        self._order = np.argsort(members, kind="stable")
        self._starts = np.searchsorted(members[self._order], np.arange(len(self.names)))

    def best(self, similarities: np.ndarray) -> np.ndarray:
        """Group scores, (queries, groups), of similarities to each text, (queries, texts)."""
        return np.maximum.reduceat(similarities[:, self._order], self._starts, axis=1)

    def ndcg(self, scores: np.ndarray, relevant: Sequence[str], excluded: Sequence[str]) -> float:
        """nDCG@10 of one query, with the relevant groups last among equal scores.

        Args:
            scores: of each group, (groups,); changed.
        """
        scores[[self.place[name] for name in excluded if name in self.place]] = -np.inf
        mine = np.array([self.place[name] for name in relevant])
        others = np.delete(scores, mine)
        found = np.sort(scores[mine])[::-1]
        # 0-based ranks: everything better or equal that is not relevant, and the relevant ones before.
        ranks = (others[None, :] >= found[:, None]).sum(axis=1) + np.arange(len(found))
        gain = (1 / np.log2(ranks[ranks < DEPTH] + 2)).sum()
        return float(gain / (1 / np.log2(np.arange(min(DEPTH, len(mine))) + 2)).sum())


class Scorer:
    """Embeds the items with the study's prompts, whatever prompts a model was saved with.

    Args:
        template: prompts of the two sides, the same for all arms.
        instructed: whether each task's instruction is given.
        pool_prompt: whether prompts are pooled; None as the model says.
    """

    def __init__(
        self, items: Mapping[str, Any], template: InstructionTemplate, *, instructed: bool, pool_prompt: bool | None
    ) -> None:
        self._items = items
        self._template = template
        self._instructed = instructed
        self._pool_prompt = pool_prompt
        self._index = Index(items["groups"])

    def score(self, model: str) -> Outcome:
        """All parts and tasks of a model: `bundled`, a directory or a hub id."""
        network = backbones.load(model, device="cpu")
        backbones.set_prompts(network, self._template, self._pool_prompt)
        embed = EmbeddingPass(network, max_length=256)

        def vectors(texts: Sequence[str], side: Side, task: str) -> np.ndarray:
            prompt = self._template.prompt(side, INSTRUCTIONS[task] if self._instructed else "")
            distinct = list(dict.fromkeys(texts))
            place = {text: i for i, text in enumerate(distinct)}
            return embed.encode(PromptedText(prompt, text) for text in distinct)[[place[text] for text in texts]]

        documents = vectors(self._items["documents"], "document", "passages")
        outcome = Outcome({}, {})
        for part in PARTS:
            scores = outcome.scores[part] = {}
            for name, pairs in self._items["pairs"][part].items():
                first = vectors([pair[0] for pair in pairs], "query", "sts")
                second = vectors([pair[1] for pair in pairs], "query", "sts")
                cosines = np.einsum("pd,pd->p", first, second)
                gold = np.array([pair[2] for pair in pairs])
                if part == "test":
                    outcome.items |= {name: cosines, f"{name}{GOLD}": gold}
                scores[name] = 100 * float(spearmanr(cosines, gold).statistic)
            for name, queries in self._items["queries"][part].items():
                task = "titles" if name == "titles" else "passages"
                found = self._index.best(vectors([query["text"] for query in queries], "query", task) @ documents.T)
                gains = self._gains(found, queries)
                if part == "test":
                    outcome.items[name] = np.array(gains)
                scores[name] = 100 * float(np.mean(gains))
                if name == "passages":  # what the other texts of the index cost; in no mean
                    found[:, [text.startswith(SHORT_TEXTS) for text in self._index.names]] = -np.inf
                    scores["paragraphs_alone"] = 100 * float(np.mean(self._gains(found, queries)))
            sts, ir = (list(self._items[group][part]) for group in ("pairs", "queries"))
            scores["sts"] = float(np.mean([scores[name] for name in sts]))
            scores["ir"] = float(np.mean([scores[name] for name in ir]))
            scores["mean"] = (scores["sts"] + scores["ir"]) / 2
        return outcome

    def _gains(self, scores: np.ndarray, queries: Sequence[Mapping[str, Any]]) -> list[float]:
        """nDCG@10 of each query, from group scores, (queries, groups); changed."""
        return [
            self._index.ndcg(row, query["relevant"], query["excluded"])
            for row, query in zip(scores, queries, strict=True)
        ]
