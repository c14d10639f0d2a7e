import threading
from functools import partial

import pytest
from tc3_server import SECRET_ID, SECRET_KEY, TC3Server

from codiemb.clients import TencentEmbeddingModel


@pytest.fixture(autouse=True)
def _no_proxy_no_credentials(monkeypatch):
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    for name in ("TENCENTCLOUD_SECRET_ID", "TENCENTCLOUD_SECRET_KEY", "TENCENTCLOUD_TOKEN"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def server():
    server = TC3Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def make_model(server):
    """A client of the server that does not wait long between attempts."""
    return partial(
        TencentEmbeddingModel,
        secret_id=SECRET_ID,
        secret_key=SECRET_KEY,
        endpoint=server.endpoint,
        protocol="http",
        requests_per_second=1000,
        backoff=0.001,
        timeout=5,
    )
