"""Other formats into files of the unified format, streamed; whatever is left out is counted by reason.

Every converter takes a source and an output (`.jsonl`, `.jsonl.gz` or `.parquet`), options by keyword, and returns a
`Conversion`. `instruction` is the task's text: it goes on both sides of scored pairs, elsewhere on the queries only.
"""

from codiemb.data.converters.beir import beir
from codiemb.data.converters.common import Conversion
from codiemb.data.converters.relevance import relevance_list
from codiemb.data.converters.scored_pairs import scored_pairs
from codiemb.data.converters.squad import squad
from codiemb.data.converters.triplets import triplets

__all__ = ["Conversion", "beir", "relevance_list", "scored_pairs", "squad", "triplets"]
