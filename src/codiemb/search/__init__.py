"""Search by meaning: an index of documents on disk, and the index of vectors beneath it."""

from codiemb.search.documents import Answers, DocumentIndex, Hit
from codiemb.search.finders import FLAT_LIMIT, HNSW_LIMIT, KINDS, Kind, SearchIndexError, choose_kind
from codiemb.search.manifest import Manifest
from codiemb.search.vectors import VectorIndex

__all__ = [
    "FLAT_LIMIT",
    "HNSW_LIMIT",
    "KINDS",
    "Answers",
    "DocumentIndex",
    "Hit",
    "Kind",
    "Manifest",
    "SearchIndexError",
    "VectorIndex",
    "choose_kind",
]
