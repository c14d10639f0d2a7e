"""Hard negatives for retrieval and reranking, found in a corpus by embeddings and words."""

from codiemb.curation.mining.mine import MiningResult, mine, report_directory
from codiemb.curation.mining.options import MiningOptions
from codiemb.curation.mining.parts import MiningError
from codiemb.curation.mining.windows import Miner

__all__ = ["Miner", "MiningError", "MiningOptions", "MiningResult", "mine", "report_directory"]
