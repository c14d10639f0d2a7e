import io
import sys

import pytest

from codiemb.cli.app import main


@pytest.fixture
def run_codiemb(monkeypatch, capsys):
    """Runs `codiemb` with arguments, and standard input or what is typed; returns exit status, stdout and stderr."""

    def run(*arguments, stdin="", keys=None):
        monkeypatch.setattr(sys, "argv", ["codiemb", *map(str, arguments)])
        monkeypatch.setattr(sys, "stdin", io.StringIO(stdin or "\n".join(keys or [])))
        monkeypatch.setattr(sys.stdin, "isatty", lambda: keys is not None)
        status = 0
        try:
            main()
        except SystemExit as end:
            status = end.code
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run
