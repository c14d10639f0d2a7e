"""The `codiemb` command."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable
from functools import cache
from typing import Any

import typer

from codiemb import __version__

app = typer.Typer(
    name="codiemb",
    help="Train one text-embedding model jointly on retrieval and similarity, measure it, and put it to work.\n\n"
    "New here? `codiemb demo` trains a model on sample data in about three minutes and says what comes next.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        print(__version__)
        raise typer.Exit


@app.callback()
def _options(
    verbose: bool = typer.Option(False, "--verbose", "-v", help="Log what is going on, and show tracebacks."),
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Print the version."),
) -> None:
    logging.basicConfig(
        level=logging.INFO if verbose else logging.WARNING,
        format="%(levelname)s %(name)s: %(message)s",
        stream=sys.stderr,
    )
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it warns of kernels that it does without


def main() -> None:
    """Run the command; what a user can mend ends with a message and exit status 2, not a traceback."""
    # Threads that wait for each other spin less before they sleep: on a busy machine, spinning ones keep the one they
    # wait for off its core. Read by libgomp when torch is loaded.
    os.environ.setdefault("GOMP_SPINCOUNT", "20000")
    _register()
    try:
        app()
    except (ValueError, OSError, ModuleNotFoundError) as error:
        if "--verbose" in sys.argv or "-v" in sys.argv:
            raise
        print(f"codiemb: {error}", file=sys.stderr)
        sys.exit(2)


@cache  # commands that are there already would be added again
def _register() -> None:
    from codiemb.cli.compare import compare_command
    from codiemb.cli.curate import curate_command
    from codiemb.cli.data import data_app
    from codiemb.cli.data_cleaning import CLEANING_COMMANDS
    from codiemb.cli.demo import demo_command
    from codiemb.cli.diagnose import diagnose_command
    from codiemb.cli.embed import embed_command
    from codiemb.cli.evaluate import evaluate_command
    from codiemb.cli.fuse import fuse_command
    from codiemb.cli.geometry import geometry_command
    from codiemb.cli.leaderboard import leaderboard_command
    from codiemb.cli.mine import mine_command
    from codiemb.cli.pretrain import pretrain_command
    from codiemb.cli.search import search_app
    from codiemb.cli.synthesize import synthesize_app
    from codiemb.cli.train import train_command

    commands: dict[str, Callable[..., Any]] = {
        "demo": demo_command,
        "pretrain": pretrain_command,
        "train": train_command,
        "diagnose": diagnose_command,
        "evaluate": evaluate_command,
        "embed": embed_command,
        "compare": compare_command,
        "leaderboard": leaderboard_command,
        "mine": mine_command,
        "geometry": geometry_command,
        "fuse": fuse_command,
        "curate": curate_command,
    }
    for name, command in commands.items():
        app.command(name)(command)
    for name, command in CLEANING_COMMANDS.items():
        data_app.command(name)(command)
    app.add_typer(data_app, name="data")
    app.add_typer(search_app, name="search")
    app.add_typer(synthesize_app, name="synthesize")
