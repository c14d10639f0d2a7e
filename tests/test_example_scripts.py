"""The examples run with the bundled model and print what their docstrings show."""

from __future__ import annotations

import ast
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "examples"
ELSEWHERE = {"sample_passages", "cloud_api"}  # imported by the others; needs an account and has its own test
EXAMPLES = sorted(path.stem for path in FOLDER.glob("*.py") if path.stem not in ELSEWHERE)
NUMBER = re.compile(r"\d\.\d{3}")
TOLERANCE = {"joint_training": 0.05}  # training adds up what processors round differently


def shown_output(example: str) -> list[str]:
    docstring = ast.get_docstring(ast.parse((FOLDER / f"{example}.py").read_text(encoding="utf-8"))) or ""
    block = re.search(r"^Output.*:\n((?:    .*\n?)+)", docstring, re.MULTILINE)
    assert block, f"{example} does not show its output"
    return [line[4:] for line in block[1].splitlines()]


def check(example: str, printed: str) -> None:
    actual, shown = [line.rstrip() for line in printed.splitlines()], shown_output(example)
    assert [NUMBER.sub("#", line) for line in actual] == [NUMBER.sub("#", line) for line in shown]
    numbers = [[float(number) for line in lines for number in NUMBER.findall(line)] for lines in (actual, shown)]
    assert numbers[0] == pytest.approx(numbers[1], abs=TOLERANCE.get(example, 0.004))


@pytest.mark.parametrize("example", [example for example in EXAMPLES if example != "in_process"])
def test_an_example_prints_what_it_shows(example, monkeypatch, capsys):
    monkeypatch.syspath_prepend(FOLDER)
    runpy.run_path(str(FOLDER / f"{example}.py"), run_name="__main__")
    check(example, capsys.readouterr().out)


def test_an_example_runs_from_any_directory(tmp_path):
    command = [sys.executable, str(FOLDER / "in_process.py")]
    check("in_process", subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout)


def test_a_changed_output_is_noticed():
    shown = "\n".join(shown_output("in_process"))
    check("in_process", shown)
    for changed in shown.replace("learn", "earn"), shown.replace("0.884", "0.894"), shown + "\nmore":
        with pytest.raises(AssertionError):
            check("in_process", changed)
