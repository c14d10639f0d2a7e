"""The example and the snippets of the manual, run against the server on loopback."""

import re
import runpy
from functools import partial
from pathlib import Path

import pytest
from tc3_server import SECRET_ID, SECRET_KEY, error

import codiemb.clients

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _served(server, monkeypatch):
    monkeypatch.setenv("TENCENTCLOUD_SECRET_ID", SECRET_ID)
    monkeypatch.setenv("TENCENTCLOUD_SECRET_KEY", SECRET_KEY)
    served = partial(codiemb.clients.TencentEmbeddingModel, endpoint=server.endpoint, protocol="http", backoff=0.001)
    monkeypatch.setattr(codiemb.clients, "TencentEmbeddingModel", served)
    monkeypatch.syspath_prepend(ROOT / "examples")


def test_the_example_ranks_the_passages(server, capsys):
    runpy.run_path(str(ROOT / "examples" / "cloud_api.py"))
    shown = capsys.readouterr().out.splitlines()
    assert len(shown) == 2 * (1 + 3) + 1
    scores = [float(line.split()[0]) for line in shown if line.startswith("  ")]
    assert scores[:3] == sorted(scores[:3], reverse=True)
    assert shown[-1] == f"{sum(len(text) for request in server.requests for text in request.body['Inputs'])} tokens"


def test_the_example_says_what_went_wrong(server):
    server.reply = lambda request: error("ResourceUnavailable.InArrears", "The account is in arrears.")
    with pytest.raises(SystemExit, match="The account is in arrears"):
        runpy.run_path(str(ROOT / "examples" / "cloud_api.py"))


def test_the_snippets_of_the_manual(server, capsys):
    first, second = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "cloud-api.md").read_text(), re.DOTALL)
    names: dict[str, object] = {"texts": ["a", "b"]}
    exec(first, names)
    assert names["queries"].shape == (1, 8)
    assert names["passages"].shape == (2, 8)
    assert names["scores"].shape == (1, 1)
    sent = len(server.requests)
    server.reply = lambda request: error("InvalidParameter", "no") if request.number == sent else None
    exec(second, names)
    assert "0 InvalidParameter: no" in capsys.readouterr().out
    assert names["again"].received.all()
