"""Texts for the examples: the answers in the package's sample data, Chinese and English, and two questions to them."""

from __future__ import annotations

import json
from importlib.resources import files

QUESTIONS = ("learn to swim as an adult, panic when face is under", "护照快没页了还剩三年，能换吗")


def sample_passages() -> dict[str, str]:
    """152 passages by id, each of which answers some question."""
    folder = files("codiemb") / "sample_data" / "test" / "ir"
    relevant = (folder / "qrels" / "test.tsv").read_text(encoding="utf-8").splitlines()[1:]
    answers = {line.split("\t")[1] for line in relevant}
    rows = map(json.loads, (folder / "corpus.jsonl").read_text(encoding="utf-8").splitlines())
    return {row["_id"]: row["text"] for row in rows if row["_id"] in answers}
