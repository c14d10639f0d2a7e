"""Queries of `codiemb search query` as they come, and answers as they go."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rich.console import Console

from codiemb.cli._bars import print_ranking

if TYPE_CHECKING:
    from codiemb.search import Answers, Hit

Form = Literal["jsonl", "trec"]

_BATCH = 1024  # queries of a file that are searched together


def asked() -> Iterator[str]:
    """Queries from the terminal, until its end (Ctrl-D), or lines of stdin."""
    if not sys.stdin.isatty():
        yield from (line for line in map(str.strip, sys.stdin) if line)
        return
    with suppress(ImportError):
        import readline  # noqa: F401  (gives input() a history and keys that move)
    console = Console(stderr=True)
    console.print("Type a query; Ctrl-D ends.", style="dim")
    while True:
        try:
            query = input("query> ").strip()
        except (EOFError, KeyboardInterrupt):
            console.print()
            return
        if query:
            yield query


def search_file(search: Callable[[Sequence[str]], Answers], file: Path, output: Path | None, form: Form) -> None:
    """Answer all queries of a file, on stdout or into `output`, which is there whole or not at all."""
    from codiemb.data.documents import read_documents
    from codiemb.data.writers import replacing

    source = read_documents(file)
    embed = find = 0.0
    count = 0

    def lines() -> Iterator[str]:
        nonlocal embed, find, count
        while batch := list(islice(source, _BATCH)):
            answers = search([query.text for query in batch])
            embed += answers.embed_seconds
            find += answers.search_seconds
            count += len(batch)
            for query, hits in zip(batch, answers.hits, strict=True):
                if form == "trec":
                    yield from _trec_lines(query.id, hits)
                else:
                    content = {"query_id": query.id, "query": query.text, "hits": _ranked(hits)}
                    yield json.dumps(content, ensure_ascii=False) + "\n"

    if output is None:
        sys.stdout.writelines(lines())
    else:
        with replacing(output) as partial, partial.open("w", encoding="utf-8") as stream:
            stream.writelines(lines())
    shown = f"{count} queries: embedding {1000 * embed / count:.2f} ms, search {1000 * find / count:.2f} ms a query"
    Console(stderr=True).print(shown, highlight=False)


def print_answers(queries: Sequence[str], answers: Answers, as_json: bool) -> None:
    """Show hits with score bars, and on stderr how long it took; or all of it as one line of JSON."""
    embedding, search = 1000 * answers.embed_seconds, 1000 * answers.search_seconds
    pairs = list(zip(queries, answers.hits, strict=True))
    if as_json:
        content = {
            "queries": [{"query": query, "hits": _ranked(hits)} for query, hits in pairs],
            "embedding_ms": round(embedding, 3),
            "search_ms": round(search, 3),
        }
        print(json.dumps(content, ensure_ascii=False))
        return
    console = Console()
    for query, hits in pairs:
        if len(pairs) > 1:
            console.print(query, style="bold", highlight=False, markup=False, soft_wrap=True)
        print_ranking(console, ((hit.score, f"{hit.id}  {hit.text}") for hit in hits))
    shown = f"embedding {embedding:.1f} ms, search {search:.1f} ms"
    Console(stderr=True).print(shown, style="dim", highlight=False)


def _ranked(hits: Sequence[Hit]) -> list[dict[str, Any]]:
    return [{"rank": rank, **hit._asdict()} for rank, hit in enumerate(hits, 1)]


def _trec_lines(query_id: str, hits: Sequence[Hit]) -> Iterator[str]:
    for rank, hit in enumerate(hits, 1):
        for name in (query_id, hit.id):
            if len(name.split()) != 1:
                raise ValueError(f"The id {name!r} has white space, which a TREC run cannot hold. Use --format jsonl.")
        yield f"{query_id} Q0 {hit.id} {rank} {hit.score:.6f} codiemb\n"
