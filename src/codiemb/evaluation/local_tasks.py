"""Local data as mteb tasks in memory: scored by mteb's code, in the same folders and tables as its benchmarks."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value
from mteb.abstasks import (
    AbsTask,
    AbsTaskClassification,
    AbsTaskClustering,
    AbsTaskPairClassification,
    AbsTaskRetrieval,
    AbsTaskSTS,
)
from mteb.abstasks.retrieval_dataset_loaders import RetrievalSplitData
from mteb.abstasks.task_metadata import TaskMetadata

from codiemb.data.examples import DataError, Text
from codiemb.evaluation.tasks import AnyTask, LabelledTask, PairTask, RerankingTask, RetrievalTask

SPLIT = "test"
_CLUSTERED = 16_384  # texts of one clustering, mteb's own limit
_UNKNOWN_LANGUAGE = "und-Zyyy"

# mteb's name of each kind of task, and its main score.
_KINDS: Mapping[str, tuple[type[AbsTask], str, str]] = {
    "ir": (AbsTaskRetrieval, "Retrieval", "ndcg_at_10"),
    "reranking": (AbsTaskRetrieval, "Reranking", "map_at_1000"),
    "sts": (AbsTaskSTS, "STS", "cosine_spearman"),
    "pair_classification": (AbsTaskPairClassification, "PairClassification", "max_ap"),
    "classification": (AbsTaskClassification, "Classification", "accuracy"),
    "clustering": (AbsTaskClustering, "Clustering", "v_measure"),
}


def mteb_tasks(tasks: Iterable[AnyTask], *, taken: Collection[str] = (), same_ids: bool = True) -> list[AbsTask]:
    """Make mteb tasks of local ones; their texts, judgements and instructions stay in memory.

    Names lose what a file's name cannot have; one that mteb has a task of gets `-local`. Labelled texts are classified
    by cross-validation, mteb's way where there is no training split, and clustered whole.

    Args:
        taken: names of mteb's own tasks.
        same_ids: whether a document with its query's id is ranked; not in ArguAna and Quora.
    Raises:
        DataError: data that mteb cannot score: rows with different instructions, pairs with scores other than 0 and 1.
    """
    made = []
    for task in tasks:
        name = re.sub(r"[^\w.-]+", "-", task.name).strip("-.")
        name = f"{name}-local" if name in taken else name
        made.append(_mteb_task(task, name, same_ids))
    for name, times in Counter(task.metadata.name for task in made).items():
        if times > 1:
            raise DataError(f"{times} data sets would be named {name}. Rename their files.")
    return made


def _mteb_task(task: AnyTask, name: str, same_ids: bool) -> AbsTask:
    data: Any
    options: dict[str, Any] = {}
    documents: Sequence[Text] = ()
    if isinstance(task, RetrievalTask):
        queries, documents = list(task.queries.values()), list(task.corpus.values())
        options["ignore_identical_ids"] = not same_ids
        qrels = {query: dict(task.qrels[query]) for query in task.queries}
        data = _search_data(task.queries, task.corpus, qrels, None)
    elif isinstance(task, RerankingTask):
        queries = [row.query for row in task.rows]
        documents = [text for row in task.rows for text in row.candidates]
        data = _reranking_data(task)
    elif isinstance(task, PairTask):
        queries = [text for pair in task.pairs for text in pair]
        columns: dict[str, list[Any]] = {
            "sentence1": [a.full for a, _ in task.pairs],
            "sentence2": [b.full for _, b in task.pairs],
        }
        if task.type == "pair_classification":
            columns["labels"] = _zero_or_one(task)
        else:
            columns["score"] = task.scores.tolist()
            options |= {"min_score": float(task.scores.min()), "max_score": float(task.scores.max())}
        data = DatasetDict({SPLIT: Dataset.from_dict(columns)})
    else:
        queries = list(task.texts)
        data, options = _labelled_data(task)
    base, type_, main_score = _KINDS[task.type]
    metadata = TaskMetadata(
        name=name,
        description=f"Local data from {task.source}",
        dataset={"path": task.source, "revision": f"local-{_digest([data, options])}"},
        prompt={"query": _instruction(task, queries), "document": _instruction(task, documents)},
        type=type_,
        category="t2c" if isinstance(task, LabelledTask) else "t2t",
        eval_splits=[SPLIT],
        eval_langs=[_UNKNOWN_LANGUAGE],
        main_score=main_score,
    )
    made: Any = type(f"Local{type_}", (base,), {"metadata": metadata, **options})()
    made.dataset = data
    made.data_loaded = True
    return made


def _search_data(
    queries: Mapping[str, Text],
    corpus: Mapping[str, Text],
    qrels: dict[str, dict[str, int]],
    top_ranked: dict[str, list[str]] | None,
) -> dict[str, dict[str, RetrievalSplitData]]:
    columns = [{"id": list(texts), "text": [text.full for text in texts.values()]} for texts in (queries, corpus)]
    split = RetrievalSplitData(
        queries=Dataset.from_dict(columns[0]),
        corpus=Dataset.from_dict(columns[1]),
        relevant_docs=qrels,
        top_ranked=top_ranked,
    )
    return {"default": {SPLIT: split}}


def _reranking_data(task: RerankingTask) -> dict[str, dict[str, RetrievalSplitData]]:
    queries: dict[str, Text] = {}
    corpus: dict[str, Text] = {}
    qrels: dict[str, dict[str, int]] = {}
    for number, row in enumerate(task.rows):
        query = f"q{number}"
        queries[query] = row.query
        qrels[query] = {f"{query}-d{i}": relevance for i, relevance in enumerate(row.relevance)}
        corpus |= zip(qrels[query], row.candidates, strict=True)
    return _search_data(queries, corpus, qrels, {query: list(documents) for query, documents in qrels.items()})


def _zero_or_one(task: PairTask) -> list[int]:
    if not np.isin(task.scores, (0, 1)).all():
        other = task.scores[~np.isin(task.scores, (0, 1))][0]
        raise DataError(
            f"{task.source}: pair classification has the score {other:g}; mteb's has 0 and 1. Make it a file of sts."
        )
    return task.scores.astype(int).tolist()


def _labelled_data(task: LabelledTask) -> tuple[DatasetDict, dict[str, Any]]:
    distinct = sorted(set(task.labels))
    if not 1 < len(distinct) < len(task.labels):
        raise DataError(
            f"{task.source}: {len(task.labels)} texts with {len(distinct)} different labels; expected at least two "
            "labels, and texts that share one."
        )
    texts = [text.full for text in task.texts]
    labels = [distinct.index(label) for label in task.labels]
    if task.type == "classification":
        features = Features(text=Value("string"), label=ClassLabel(names=distinct))
        split = Dataset.from_dict({"text": texts, "label": labels}, features=features)
        return DatasetDict({SPLIT: split}), {"train_split": SPLIT, "is_cross_validation": True}
    split = Dataset.from_dict({"sentences": texts, "labels": labels})
    options = {"max_fraction_of_documents_to_embed": None, "max_documents_per_cluster": min(len(texts), _CLUSTERED)}
    return DatasetDict({SPLIT: split}), options


def _instruction(task: AnyTask, texts: Iterable[Text]) -> str:
    """The instruction of one side of a task."""
    found = sorted({text.instruction for text in texts})
    if len(found) > 1:
        raise DataError(
            f"{task.source}: one side has {len(found)} different instructions ({found[0]!r}, {found[1]!r}, ...), and "
            "mteb gives a task one. Split the file by instruction, or evaluate without --as-mteb."
        )
    return found[0] if found else ""


def _digest(data: Any) -> str:
    """12 hex digits of all texts, judgements, labels and options."""

    def plain(value: Any) -> Any:
        return value.to_dict() if isinstance(value, Dataset) else value

    return hashlib.blake2b(json.dumps(data, default=plain, sort_keys=True).encode(), digest_size=6).hexdigest()
