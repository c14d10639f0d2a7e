"""`codiemb demo`."""

from __future__ import annotations

from pathlib import Path

import typer
from rich.console import Console

from codiemb.cli._bars import print_ranking


def demo_command(
    output: Path = typer.Option(Path("runs/demo"), "--output", "-o", help="Where model/ and report.json go."),
    seed: int = typer.Option(42, help="Of the data order and dropout."),
) -> None:
    """See it work: train a multilingual model on sample data, about three minutes on a CPU, no model hub needed.

    Prints retrieval and similarity scores on held-out data before and after, then ranks passages for two
    held-out queries (✓ marks the answer).
    """
    from codiemb.cli.train import scores_table
    from codiemb.demo import REPORT_FILE, rank_sample_passages, run_demo

    console = Console()
    report = run_demo(output, seed=seed, console=Console(stderr=True))
    headline = {"retrieval (nDCG@10)": "ir", "similarity (Spearman)": "sts"}
    console.print(
        scores_table(
            {title: report.before[name] for title, name in headline.items()},
            {title: report.after[name] for title, name in headline.items()},
        )
    )
    for ranking in rank_sample_passages(Path(report.model)):
        console.print(f"\n[bold]{ranking.query}[/bold]")
        print_ranking(console, zip(ranking.scores, ranking.passages, strict=True))
    console.print(
        f"\nThe model is in {report.model}, the figures in {output / REPORT_FILE} ({report.seconds:.0f} s). Next:\n"
        f"  codiemb evaluate {report.model} --data MY_DATA --output runs/scores   your own held-out data\n"
        "  codiemb data convert --help                                     your files into training data\n"
        "  codiemb train recipes/joint-zh.yaml                             a real recipe to start from",
        highlight=False,
        soft_wrap=True,
    )
