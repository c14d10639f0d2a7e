"""`codiemb embed`: files and pipes in, vectors out, and a killed run that is gone on with."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pyarrow.parquet as pq
import pytest
from tiny_models import TEXTS
from typer.testing import CliRunner

from codiemb.cli import app as cli
from codiemb.embedder import LLMEmbeddingModel


@pytest.fixture(scope="module", autouse=True)
def _commands():
    if not cli.app.registered_commands:
        cli._register()


def run(*arguments, stdin=None):
    return CliRunner().invoke(cli.app, ["embed", *map(str, arguments)], input=stdin, catch_exceptions=False)


@pytest.fixture(scope="module")
def model(tiny_model_directory):
    return LLMEmbeddingModel(tiny_model_directory, device="cpu")


def test_text_to_npy(tiny_model_directory, model, tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("\n".join(TEXTS) + "\n\n")
    result = run(tiny_model_directory, path, "-o", tmp_path / "a.npy", "--side", "query")
    assert "11 vectors of 32 dimensions" in result.stderr
    assert "tokens/s" in result.stderr
    assert result.stdout == ""
    np.testing.assert_allclose(np.load(tmp_path / "a.npy"), model.encode_queries([*TEXTS, ""]), atol=2e-2)


def test_json_lines_to_parquet(tiny_model_directory, model, tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"_id": f"d{i}", "body": text}) + "\n" for i, text in enumerate(TEXTS)))
    output = tmp_path / "a.parquet"
    run(tiny_model_directory, path, "-o", output, "--text-field", "body", "--keep-text", "--truncate-dim", 8)
    table = pq.read_table(output)
    assert table["id"].to_pylist() == [f"d{i}" for i in range(10)]
    assert table["text"].to_pylist() == TEXTS
    wanted = model.encode_passages(TEXTS, truncate_dim=8)
    np.testing.assert_allclose(np.array(table["embedding"].to_pylist()), wanted, atol=2e-2)


def test_standard_input(tiny_model_directory, tmp_path):
    run(tiny_model_directory, "-", "-o", tmp_path / "a.jsonl", "--precision", "ubinary", stdin="a\nb\n")
    rows = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert [row["index"] for row in rows] == [0, 1]
    assert len(rows[0]["embedding"]) == 4


def test_template_and_instruction_make_the_prompt(tiny_model_directory, tmp_path):
    options = ("--side", "query", "--template", "e5-instruct", "--instruction", "Ocnli", "--compute", "fp32")
    run(tiny_model_directory, "-", "-o", tmp_path / "a.npy", *options, stdin="a\nb\n")
    instructed = LLMEmbeddingModel(tiny_model_directory, device="cpu", compute="fp32", template="e5-instruct")
    wanted = instructed.encode_queries(["a", "b"], instruction="Ocnli")
    np.testing.assert_allclose(np.load(tmp_path / "a.npy"), wanted, atol=1e-5)
    with pytest.raises(ValueError, match=r"--template e6: no such template; expected one of none, youtu"):
        run("no-such-model", "-", "-o", tmp_path / "b.npy", "--template", "e6", stdin="a\n")


def test_a_bad_line_is_named_before_it_is_too_late(tiny_model_directory, tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"fine\n\xff\n")
    with pytest.raises(ValueError, match=r"a.txt:2: line: not UTF-8"):
        run(tiny_model_directory, path, "-o", tmp_path / "a.npy")


def test_an_output_of_an_unknown_kind_is_refused_before_the_model_is_loaded(tmp_path):
    with pytest.raises(ValueError, match=r"expected a name that ends in .npy"):
        run("no-such-model", tmp_path / "a.txt", "-o", tmp_path / "a.csv")


def test_a_killed_run_is_gone_on_with(tiny_model_directory, model, tmp_path):
    lines = [f"{number} {' '.join(TEXTS) * 5}" for number in range(400)]  # some 150 to a part
    output, parts = tmp_path / "a.npy", tmp_path / "a.npy.parts"
    command = [sys.executable, "-m", "codiemb", "embed", str(tiny_model_directory), "-", "-o", str(output)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE, env=environment) as process:
        process.stdin.write("".join(f"{line}\n" for line in lines).encode())
        process.stdin.flush()  # but not closed: the run waits for more
        until = time.monotonic() + 120
        while not list(parts.glob("0*.parquet")):
            assert process.poll() is None, process.stderr.read().decode()
            assert time.monotonic() < until
            time.sleep(0.1)
        process.send_signal(signal.SIGKILL)
    assert not output.exists()
    text = "".join(f"{line}\n" for line in lines)
    result = run(tiny_model_directory, "-", "-o", output, stdin=text)
    assert "of them were there from a stopped run" in result.stderr
    np.testing.assert_allclose(np.load(output), model.encode_passages(lines), atol=2e-2)
    assert not parts.exists()


def test_a_stop_says_how_to_go_on(tiny_model_directory, tmp_path, monkeypatch):
    from codiemb import bulk

    monkeypatch.setattr(bulk, "PART_ROWS", 3)

    def full(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr(bulk, "write_output", full)
    path = tmp_path / "a.txt"
    path.write_text("\n".join(TEXTS))
    result = CliRunner().invoke(cli.app, ["embed", str(tiny_model_directory), str(path), "-o", str(tmp_path / "a.npy")])
    assert isinstance(result.exception, OSError)
    assert "stopped: 10 rows are kept in" in result.stderr
