"""Local evaluation: from files to retrieval, similarity and reranking scores of a model."""

from codiemb.evaluation.discovery import discover
from codiemb.evaluation.evaluator import Result, evaluate
from codiemb.evaluation.report import summarise, write_results
from codiemb.evaluation.tasks import EvalTask, PairTask, RerankingRow, RerankingTask, RetrievalTask

__all__ = [
    "EvalTask",
    "PairTask",
    "RerankingRow",
    "RerankingTask",
    "Result",
    "RetrievalTask",
    "discover",
    "evaluate",
    "summarise",
    "write_results",
]
