"""Models behind a remote API, with the interface of the local ones (`codiemb.interface.Embedder`)."""

from codiemb.extras import require

for _module in ("tenacity", "tencentcloud.lkeap.v20240522.lkeap_client"):
    require(_module, "tencent")

from codiemb.clients.results import EmbeddingRequestError, PartialEmbeddings  # noqa: E402
from codiemb.clients.tencent import TencentEmbeddingModel  # noqa: E402

__all__ = ["EmbeddingRequestError", "PartialEmbeddings", "TencentEmbeddingModel"]
