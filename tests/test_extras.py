"""Optional dependencies."""

import json
import sys

import pytest

from codiemb.extras import require


def test_what_is_installed_is_imported():
    assert require("json", "search") is json
    assert require("json.decoder", "search") is json.decoder


@pytest.mark.parametrize("module", ["no_such_package", "no_such_package.models.v1"])
def test_what_is_missing_names_the_pip_command(module):
    with pytest.raises(ModuleNotFoundError, match=r"'no_such_package'.*pip install 'codiemb\[tencent\]'") as caught:
        require(module, "tencent")
    assert caught.value.name == "no_such_package"


def test_a_failure_inside_an_installed_package_keeps_its_own_error(tmp_path, monkeypatch):
    (tmp_path / "broken_package.py").write_text("import something_else_missing\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ModuleNotFoundError, match="No module named 'something_else_missing'"):
        require("broken_package", "search")
    assert "broken_package" not in sys.modules
