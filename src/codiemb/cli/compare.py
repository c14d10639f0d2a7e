"""`codiemb compare`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import typer
from rich.console import Console

from codiemb.cli._bars import print_ranking
from codiemb.cli._models import Compute, Device, Instruction, MaxLength, ModelName, Template, check_template, load_model


def compare_command(
    model: ModelName,
    query: str = typer.Argument(metavar="QUERY", help="What to rank the passages for."),
    passages: list[str] = typer.Argument(None, metavar="[PASSAGE]..."),
    file: Path = typer.Option(
        None, "--passages", "-f", metavar="FILE", help="Passages from .txt, .jsonl or .parquet; - reads lines of stdin."
    ),
    more_queries: list[str] = typer.Option(None, "--query", "-q", help="Another query; repeatable."),
    top: int = typer.Option(None, "--top", "-k", min=1, help="Show the best so many; all by default."),
    instruction: Instruction = None,
    template: Template = None,
    device: Device = None,
    compute: Compute = "auto",
    max_length: MaxLength = None,
    as_json: bool = typer.Option(False, "--json", help="Print JSON instead of bars."),
) -> None:
    """Rank passages for a query by MODEL's similarity, best first; passages of equal score keep their order.

    \b
    codiemb compare bundled "怎么做酸面包？" "先养一周酵种。" "去上海的火车九点开。"
    codiemb compare bundled "how to bake" --passages corpus.jsonl --top 5 --json
    """
    import numpy as np

    check_template(template)
    queries = [query, *(more_queries or [])]
    texts = [*(passages or []), *_file_passages(file, bool(passages))]
    for kind, given in (("query", queries), ("passage", texts)):
        for number, text in enumerate(given, 1):
            if not text.strip():
                raise ValueError(f"{kind} {number} of {len(given)} is blank, expected a text.")
    if not texts:
        raise ValueError("No passages to rank. Give them behind the query, with --passages FILE, or on stdin.")
    encoder = load_model(model, device=device, compute=compute, max_length=max_length, template=template)
    query_vectors = encoder.encode_queries(queries, instruction=instruction)
    # Each once: where a passage stands in a matrix may change the last bit of its score, and equal ones are to tie.
    places = {text: place for place, text in enumerate(dict.fromkeys(texts))}
    passage_vectors = encoder.encode_passages(list(places), instruction=instruction)
    scores = encoder.similarity(query_vectors, passage_vectors).cpu().numpy()[:, [places[text] for text in texts]]
    orders = np.argsort(-scores, axis=1, kind="stable")[:, :top]
    if as_json:
        rankings: list[dict[str, Any]] = [
            {
                "query": text,
                "ranking": [
                    {"rank": rank, "score": float(row[index]), "index": int(index), "passage": texts[index]}
                    for rank, index in enumerate(order, 1)
                ],
            }
            for text, row, order in zip(queries, scores, orders, strict=True)
        ]
        content = {"model": model, "instruction": instruction, "queries": rankings}
        print(json.dumps(content, indent=2, ensure_ascii=False))
        return
    console = Console()
    for number, (text, row, order) in enumerate(zip(queries, scores, orders, strict=True)):
        if len(queries) > 1:
            console.print(
                f"{chr(10) if number else ''}{text}", style="bold", highlight=False, markup=False, soft_wrap=True
            )
        print_ranking(console, ((float(row[index]), texts[index]) for index in order))


def _file_passages(file: Path | None, have_passages: bool) -> list[str]:
    from codiemb.data.documents import read_documents

    if file is None and (have_passages or sys.stdin is None or sys.stdin.isatty()):
        return []
    if file is None or str(file) == "-":
        return [line for line in map(str.strip, sys.stdin) if line]
    return [document.text for document in read_documents(file)]
