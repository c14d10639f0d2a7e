"""Turn the folder of public data sets into the training and held-out files of recipes/joint-zh.yaml.

    python recipes/prepare_joint_zh.py DATA OUTPUT [--seed 42]

DATA holds sts_zh/*.tsv (sentence1, sentence2, score), ir/qbqtc_dev.tsv (query, title, relevance) and the BEIR folders
ir/drcd_dev and ir/cmrc_trial. OUTPUT gets train/*.jsonl in the unified format and dev/ for `codiemb evaluate`.

Held out by text: pairs that share a sentence, in one set or across sets, stay on one side; questions of a held-out
paragraph are held out together; and a training row with a held-out sentence or question of any set is left out. The
same inputs, seed and script give the same files; a finished OUTPUT is left alone.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import shutil
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console
from rich.table import Table

from codiemb import backbones
from codiemb.data.delimited import read_columns
from codiemb.data.examples import DataError
from codiemb.encoding import EmbeddingPass
from codiemb.prompts import PromptedText

PAIR_SETS = {
    "stsb": "stsb_train.tsv",
    "afqmc": "afqmc_train.tsv",
    "lcqmc": "lcqmc_dev.tsv",
    "bq": "bq_dev.tsv",
    "pawsx": "pawsx_dev.tsv",
}
HELD_OUT_PAIRS = {"afqmc": 1000, "lcqmc": 1000, "bq": 1000, "pawsx": 300}  # of stsb, its own dev split
HELD_OUT_SHARE = 0.15  # of paragraphs (DRCD, CMRC) and of QBQTC's queries
HELD_OUT_WEB_PAIRS = 1000  # QBQTC's queries and titles as scored pairs
NEGATIVES = 7  # of a question; training samples from them
MINED_RANKS = 50
# A candidate closer to the question than this share of the positive's cosine may be an unlabelled positive
# (NV-Retriever, arXiv:2407.15831). E5's cosines lie within 0.7 and 1, hence a value nearer to 1 than the paper's 0.95.
POSITIVE_SHARE = 0.98
CHUNK_CHARACTERS = 200  # about 130 tokens; longer paragraphs are cut at sentence ends
CHUNK_MARGIN = 0.01  # by which the best chunk's cosine has to beat the second's to count as the one with the answer

LONGEST_PARAGRAPH = 700  # characters, below the 512 tokens that the model reads
PARAGRAPH_SHARE = 0.25  # of the mined chunks whose whole paragraph becomes the negative

_DONE = "done.json"


class Pair(NamedTuple):
    """A scored pair."""

    first: str
    second: str
    score: float


@dataclass
class Counts:
    """What became of the rows of one set: of pairs, or of the questions or queries of a retrieval set."""

    read: int = 0
    train: int = 0
    held_out: int = 0
    dropped: Counter[str] = field(default_factory=Counter)


def normalised(text: str) -> str:
    """What two spellings of one sentence share: NFKC, case folded, letters and digits only."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return "".join(character for character in folded if character.isalnum())


# -- pairs ---------------------------------------------------------------------------------------------------------


def read_pairs(path: Path, counts: Counts) -> list[Pair]:
    """Rows of a TSV without repeated ones and the ones that hold no usable text."""
    pairs: dict[Pair, None] = {}
    for first, second, score in _rows(path):
        counts.read += 1
        pair = Pair(first, second, float(score))
        if not normalised(first) or not normalised(second) or _CONTROL.search(first + second):
            counts.dropped["no text or a control character"] += 1
        elif pair in pairs:
            counts.dropped["there twice"] += 1
        else:
            pairs[pair] = None
    return list(pairs)


_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def _rows(path: Path, columns: tuple[str, str, str] = ("sentence1", "sentence2", "score")) -> Iterable[list[str]]:
    for line in read_columns(path, columns):
        if line.problem:
            raise DataError(f"{path}:{line.number}: {line.problem}")
        first, second, value = line.fields
        yield [first.strip(), second.strip(), value]


class Components:
    """Union-find over sentences."""

    def __init__(self) -> None:
        self._parent: dict[str, str] = {}

    def find(self, item: str) -> str:
        """The representative of the item's component."""
        root = item
        while (parent := self._parent.setdefault(root, root)) != root:
            root = parent
        while self._parent[item] != root:
            self._parent[item], item = root, self._parent[item]
        return root

    def join(self, first: str, second: str) -> None:
        """Put both items into one component."""
        self._parent[self.find(first)] = self.find(second)


def split_pairs(
    sets: Mapping[str, Sequence[Pair]],
    wanted: Mapping[str, int],
    forbidden: set[str],
    counts: Mapping[str, Counts],
    seed: int,
) -> tuple[dict[str, list[Pair]], dict[str, list[Pair]]]:
    """Split so that no sentence is on both sides, over all sets at once.

    Args:
        wanted: pairs to hold out of each set; a set without an entry is all train.
        forbidden: normalised sentences that must not be trained on.
    """
    components = Components()
    for pairs in sets.values():
        for pair in pairs:
            components.join(normalised(pair.first), normalised(pair.second))
    members: dict[str, list[tuple[str, Pair]]] = defaultdict(list)
    for name, pairs in sets.items():
        for pair in pairs:
            members[components.find(normalised(pair.first))].append((name, pair))
    roots = sorted(members)
    np.random.default_rng(seed).shuffle(roots)
    missing = Counter(wanted)
    train: dict[str, list[Pair]] = {name: [] for name in sets}
    held_out: dict[str, list[Pair]] = {name: [] for name in wanted}
    for root in roots:
        group = members[root]
        per_set = Counter(name for name, _ in group)
        # Popular sentences tie thousands of pairs together; such a group can only be trained on.
        fits = len(group) <= 20 and all(missing[name] >= count for name, count in per_set.items())
        for name, pair in group:
            if fits:
                held_out[name].append(pair)
                missing[name] -= 1
            elif {normalised(pair.first), normalised(pair.second)} & forbidden:
                counts[name].dropped["sentence of a dev or test set"] += 1
            else:
                train[name].append(pair)
    return train, held_out


def prepare_pairs(data: Path, output: Path, counts: dict[str, Counts], seed: int) -> None:
    """The sts sets."""
    folder = data / "sts_zh"
    sets = {name: read_pairs(folder / file, counts[name]) for name, file in PAIR_SETS.items()}
    stsb_dev = read_pairs(folder / "stsb_dev.tsv", Counts())
    stsb_test = read_pairs(folder / "stsb_test.tsv", Counts())
    forbidden = {normalised(text) for pair in [*stsb_dev, *stsb_test] for text in (pair.first, pair.second)}
    train, held_out = split_pairs(sets, HELD_OUT_PAIRS, forbidden, counts, seed)
    held_out["stsb"] = stsb_dev
    for name, pairs in train.items():
        _write_pairs(output, name, pairs, held_out[name], counts[name])


def _write_pairs(output: Path, name: str, train: Sequence[Pair], held_out: Sequence[Pair], count: Counts) -> None:
    count.train, count.held_out = len(train), len(held_out)
    _write_jsonl(output / "train" / f"{name}.jsonl", map(sts_row, train))
    lines = [f"{p.first}\t{p.second}\t{p.score:g}" for p in held_out]
    _write_text(output / "dev" / f"{name}.tsv", "\n".join(["sentence1\tsentence2\tscore", *lines]) + "\n")


def sts_row(pair: Pair) -> dict[str, Any]:
    """A scored pair in the unified format."""
    return {"task_type": "sts", "query": pair.first, "positives": [pair.second], "positive_scores": [pair.score]}


# -- questions and paragraphs --------------------------------------------------------------------------------------


class Question(NamedTuple):
    """A question and the id of its paragraph."""

    id: str
    text: str
    paragraph: str


def prepare_paragraphs(data: Path, output: Path, counts: dict[str, Counts], encoder: Encoder, seed: int) -> None:
    """DRCD and CMRC: questions of a held-out paragraph are held out, searched over all paragraphs of both."""
    corpus: dict[str, str] = {}
    train: dict[str, list[Question]] = {}
    held_out: list[Question] = []
    for name, folder in (("drcd", "drcd_dev"), ("cmrc", "cmrc_trial")):
        paragraphs, all_questions = _read_beir(data / "ir" / folder, name)
        questions = [question for question in all_questions if normalised(question.text)]
        counts[name].dropped["no text"] = len(all_questions) - len(questions)
        corpus |= paragraphs
        ids = sorted(paragraphs)
        np.random.default_rng(seed).shuffle(ids)
        out = set(ids[: round(HELD_OUT_SHARE * len(ids))])
        chosen = [question for question in questions if question.paragraph in out]
        asked = {normalised(question.text) for question in chosen}
        train[name] = []
        for question in questions:
            if question.paragraph in out:
                continue
            if normalised(question.text) in asked:
                counts[name].dropped["question held out"] += 1
            else:
                train[name].append(question)
        held_out += chosen
        counts[name].read, counts[name].held_out = len(all_questions), len(chosen)
    _write_beir(
        output / "dev" / "drcd_cmrc",
        corpus,
        {q.id: q.text for q in held_out},
        {q.id: [q.paragraph] for q in held_out},
    )
    _write_chunk_rows(output, corpus, train, {q.paragraph for q in held_out}, counts, encoder, seed)


def _write_chunk_rows(
    output: Path,
    corpus: Mapping[str, str],
    train: Mapping[str, Sequence[Question]],
    held_out_paragraphs: set[str],
    counts: dict[str, Counts],
    encoder: Encoder,
    seed: int,
) -> None:
    """Training rows: a question, the paragraph and the chunk that answer it, and hard negatives of both lengths.

    With chunks alone, a model loses on whole paragraphs, which people search too; training draws one of the positives.
    """
    chunks, owner = [], []
    for paragraph, text in corpus.items():
        if paragraph not in held_out_paragraphs:
            parts = cut(text)
            chunks += parts
            owner += [paragraph] * len(parts)
    chunk_owner = np.array(owner)
    documents = encoder.documents(chunks)
    random = np.random.default_rng(seed)

    def whole(paragraph: str) -> list[str]:
        text = corpus[paragraph]
        return [text] if len(text) <= LONGEST_PARAGRAPH else []  # a longer one may be cut before the answer

    for name, questions in train.items():
        queries = encoder.queries([question.text for question in questions])
        rows = []
        for question, query in zip(questions, queries, strict=True):
            scores = documents @ query
            own = np.flatnonzero(chunk_owner == question.paragraph)
            ranked = own[np.argsort(-scores[own], kind="stable")]
            best = scores[ranked[0]]
            # There are no answer spans in these files: the base model says which chunk answers, where it is clear.
            clear = len(ranked) == 1 or best - scores[ranked[1]] >= CHUNK_MARGIN
            positives = [*([chunks[ranked[0]]] if clear else []), *whole(question.paragraph)]
            positives = list(dict.fromkeys(positives))  # a short paragraph is its only chunk
            if not positives:
                counts[name].dropped["long paragraph in which no chunk is clearly the answer"] += 1
                continue
            scores[own] = -1
            negatives: list[str] = []
            for index in hard_negatives(scores, float(best)):
                longer = whole(str(chunk_owner[index])) if random.random() < PARAGRAPH_SHARE else []
                negatives += longer or [chunks[index]]
            rows.append(_ir_row(question.text, positives, list(dict.fromkeys(negatives))))
        counts[name].train = len(rows)
        _write_jsonl(output / "train" / f"{name}.jsonl", rows)


def cut(paragraph: str) -> list[str]:
    """Chunks of whole sentences, at most about `CHUNK_CHARACTERS` long and of similar length."""
    sentences = re.findall(r"[^。！？!?]*[。！？!?]+[”」』）)]*|[^。！？!?]+$", paragraph)
    pieces = max(1, -(-len(paragraph) // CHUNK_CHARACTERS))
    target = len(paragraph) / pieces
    chunks = [""]
    for sentence in sentences:
        # A stray mark between two sentence ends stays with what is before it.
        if chunks[-1] and normalised(sentence) and len(chunks[-1]) + len(sentence) / 2 > target:
            chunks.append("")
        chunks[-1] += sentence
    return [chunk.strip() for chunk in chunks if chunk.strip()]


def hard_negatives(scores: np.ndarray, positive_score: float) -> list[int]:
    """The highest-ranked candidates that are not suspiciously close to the question."""
    ranked = np.argsort(-scores, kind="stable")[:MINED_RANKS]
    return [int(i) for i in ranked if 0 < scores[i] <= POSITIVE_SHARE * positive_score][:NEGATIVES]


# -- web queries and titles ----------------------------------------------------------------------------------------


def prepare_qbqtc(data: Path, output: Path, counts: dict[str, Counts], encoder: Encoder, seed: int) -> None:
    """QBQTC, as retrieval and, as CMTEB reads it, as pairs of a query and a title that are scored 0, 1 or 2.

    In retrieval, relevance 2 is relevant, 0 is not; 1 is neither ("partly"), so it is no positive and no negative.
    """
    count, pair_count = counts["qbqtc"], counts["qbqtc_pairs"]
    by_query: dict[str, dict[str, int]] = defaultdict(dict)
    for query, title, relevance in _rows(data / "ir" / "qbqtc_dev.tsv", ("query", "title", "relevance")):
        judged = by_query[query]
        pair_count.read += 1
        if not normalised(query) or not normalised(title) or _CONTROL.search(query + title):
            pair_count.dropped["no text or a control character"] += 1
            continue
        pair_count.dropped["there twice"] += title in judged
        judged[title] = max(int(relevance), judged.get(title, 0))
    count.read = len(by_query)
    titles = sorted({title for judged in by_query.values() for title in judged})
    groups = sorted({normalised(query) for query, judged in by_query.items() if 2 in judged.values()})
    np.random.default_rng(seed).shuffle(groups)
    out = set(groups[: round(HELD_OUT_SHARE * len(groups))])
    out_pairs = _held_out_pairs(by_query, out, seed)
    relevant = {query: [t for t, r in judged.items() if r == 2] for query, judged in by_query.items()}
    held_out = [query for query in by_query if normalised(query) in out and relevant[query]]
    title_ids = {title: f"t{i}" for i, title in enumerate(titles)}
    _write_beir(
        output / "dev" / "qbqtc",
        {title_ids[title]: title for title in titles},
        {f"q{i}": query for i, query in enumerate(held_out)},
        {f"q{i}": [title_ids[title] for title in relevant[query]] for i, query in enumerate(held_out)},
    )
    answered = [query for query in by_query if relevant[query] and normalised(query) not in out]
    train = [query for query in answered if normalised(query) not in out_pairs]
    count.held_out = len(held_out)
    count.dropped["query held out with its scored pairs"] = len(answered) - len(train)
    count.dropped["no usable title of relevance 2"] = sum(not titles for titles in relevant.values())
    documents = encoder.documents(titles)
    index = {title: i for i, title in enumerate(titles)}
    rows = []
    for query, embedded in zip(train, encoder.queries(train), strict=True):
        scores = documents @ embedded
        judged = by_query[query]
        positive_score = float(max(scores[index[title]] for title in relevant[query]))
        scores[[index[title] for title in judged]] = -1
        wrong = [title for title, relevance in judged.items() if relevance == 0]
        mined = [titles[i] for i in hard_negatives(scores, positive_score)]
        rows.append(_ir_row(query, relevant[query], [*wrong, *mined][:NEGATIVES]))
    count.train = len(rows)
    _write_jsonl(output / "train" / "qbqtc.jsonl", rows)
    pairs = [Pair(query, title, score) for query, judged in by_query.items() for title, score in judged.items()]
    train_pairs = [pair for pair in pairs if normalised(pair.first) not in out | out_pairs]
    held_out_pairs = [pair for pair in pairs if normalised(pair.first) in out_pairs]
    pair_count.dropped["query held out for retrieval"] = len(pairs) - len(train_pairs) - len(held_out_pairs)
    _write_pairs(output, "qbqtc_pairs", train_pairs, held_out_pairs, pair_count)


def _held_out_pairs(by_query: Mapping[str, Mapping[str, int]], taken: set[str], seed: int) -> set[str]:
    """Normalised queries, other than the ones taken, that together have the wanted number of scored titles."""
    sizes: Counter[str] = Counter()
    for query, judged in by_query.items():
        sizes[normalised(query)] += len(judged)
    groups = sorted(set(sizes) - taken)
    np.random.default_rng(seed + 1).shuffle(groups)
    before = np.cumsum([0, *(sizes[group] for group in groups)])
    return set(groups[: int(np.searchsorted(before, HELD_OUT_WEB_PAIRS))])


# -- files and models ----------------------------------------------------------------------------------------------


class Encoder:
    """The base model of the recipe, for mining."""

    def __init__(self) -> None:
        model = backbones.load("bundled", device="cpu")
        self._template = backbones.template_of(model)
        self._pass = EmbeddingPass(model)

    def queries(self, texts: Sequence[str]) -> np.ndarray:
        """Unit embeddings, (texts, dim)."""
        return self._embed(texts, self._template.prompt("query"))

    def documents(self, texts: Sequence[str]) -> np.ndarray:
        """Unit embeddings, (texts, dim)."""
        return self._embed(texts, self._template.prompt("document"))

    def _embed(self, texts: Sequence[str], prompt: str) -> np.ndarray:
        return self._pass.encode(PromptedText(prompt, text) for text in texts)


def _ir_row(query: str, positives: list[str], negatives: list[str]) -> dict[str, Any]:
    return {"task_type": "ir", "query": query, "positives": positives, "negatives": negatives}


def _read_beir(folder: Path, prefix: str) -> tuple[dict[str, str], list[Question]]:
    def objects(file: str) -> Iterable[dict[str, str]]:
        with (folder / file).open(encoding="utf-8") as lines:
            yield from map(json.loads, lines)

    corpus = {f"{prefix}-{item['_id']}": item["text"] for item in objects("corpus.jsonl")}
    texts = {item["_id"]: item["text"] for item in objects("queries.jsonl")}
    questions = [
        Question(f"{prefix}-{query}", texts[query], f"{prefix}-{document}")
        for query, document, relevance in _rows(folder / "qrels" / "test.tsv", ("query-id", "corpus-id", "score"))
        if int(relevance) > 0
    ]
    return corpus, questions


def _write_beir(
    folder: Path, corpus: Mapping[str, str], queries: Mapping[str, str], relevant: Mapping[str, Sequence[str]]
) -> None:
    _write_jsonl(folder / "corpus.jsonl", ({"_id": i, "title": "", "text": text} for i, text in corpus.items()))
    _write_jsonl(folder / "queries.jsonl", ({"_id": i, "text": text} for i, text in queries.items()))
    lines = [f"{query}\t{document}\t1" for query, documents in relevant.items() for document in documents]
    _write_text(folder / "qrels" / "test.tsv", "\n".join(["query-id\tcorpus-id\tscore", *lines]) + "\n")


def _write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    _write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def _write_text(path: Path, content: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content, encoding="utf-8")


def drop_held_out(output: Path, counts: Mapping[str, Counts]) -> None:
    """Take rows with a held-out sentence or question out of all training files, and such negatives out of rows.

    Each preparation keeps its own set apart; this one keeps all sets apart from each other.
    """
    held_out = {normalised(text) for path in sorted((output / "dev").rglob("*.tsv")) for text in _sentences(path)}
    for path in sorted((output / "dev").rglob("queries.jsonl")):
        held_out |= {normalised(json.loads(line)["text"]) for line in path.read_text(encoding="utf-8").splitlines()}
    for name, count in counts.items():
        path = output / "train" / f"{name}.jsonl"
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        kept = [row for row in rows if not {normalised(t) for t in (row["query"], *row["positives"])} & held_out]
        for row in kept:
            if "negatives" in row:
                row["negatives"] = [text for text in row["negatives"] if normalised(text) not in held_out]
        if dropped := len(rows) - len(kept):
            count.dropped["sentence or question held out in another set"] += dropped
        count.train = len(kept)
        _write_jsonl(path, kept)


def _sentences(path: Path) -> Iterable[str]:
    """Both texts of the scored pairs in `path`; of a BEIR folder's judgements, none."""
    if path.parent.name == "qrels":
        return []
    return (text for first, second, _ in _rows(path) for text in (first, second))


def fingerprint(data: Path, seed: int) -> dict[str, Any]:
    """What the output depends on."""
    digest = hashlib.sha256(Path(__file__).read_bytes())
    files = [data / "sts_zh" / name for name in [*PAIR_SETS.values(), "stsb_dev.tsv", "stsb_test.tsv"]]
    files += [data / "ir" / "qbqtc_dev.tsv"]
    for folder in ("drcd_dev", "cmrc_trial"):
        files += [data / "ir" / folder / name for name in ("corpus.jsonl", "queries.jsonl", "qrels/test.tsv")]
    if missing := [path for path in files if not path.is_file()]:
        raise DataError(f"{data}: lacks {', '.join(str(path.relative_to(data)) for path in missing)}")
    for path in files:
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return {"sha256": digest.hexdigest(), "seed": seed}


def prepare(data: Path, output: Path, seed: int) -> dict[str, Counts]:
    """Write all files; `output` appears whole or not at all."""
    stamp = fingerprint(data, seed)
    done = output / _DONE
    if done.is_file():
        content = json.loads(done.read_text(encoding="utf-8"))
        if content["inputs"] == stamp:
            return {name: Counts(**{**c, "dropped": Counter(c["dropped"])}) for name, c in content["counts"].items()}
    elif output.exists() and any(output.iterdir()):
        raise DataError(f"{output}: holds files that this script did not write. Give a new directory.")
    scratch = output.with_name(f".{output.name}.partial")
    shutil.rmtree(scratch, ignore_errors=True)
    counts = {name: Counts() for name in [*PAIR_SETS, "drcd", "cmrc", "qbqtc", "qbqtc_pairs"]}
    prepare_pairs(data, scratch, counts, seed)
    encoder = Encoder()
    prepare_paragraphs(data, scratch, counts, encoder, seed)
    prepare_qbqtc(data, scratch, counts, encoder, seed)
    drop_held_out(scratch, counts)
    content = {"inputs": stamp, "counts": {name: vars(count) for name, count in counts.items()}}
    _write_text(scratch / _DONE, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    shutil.rmtree(output, ignore_errors=True)
    scratch.rename(output)
    return counts


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, metavar="DATA")
    parser.add_argument("output", type=Path, metavar="OUTPUT")
    parser.add_argument("--seed", type=int, default=42)
    arguments = parser.parse_args()
    table = Table("set", "read", "train", "held out", "dropped")
    try:
        counts_by_set = prepare(arguments.data, arguments.output, arguments.seed)
    except DataError as error:
        raise SystemExit(f"prepare_joint_zh: {error}") from None
    for name, count in counts_by_set.items():
        dropped = "; ".join(f"{number} {reason}" for reason, number in count.dropped.items() if number)
        table.add_row(name, str(count.read), str(count.train), str(count.held_out), dropped)
    Console().print(table)


if __name__ == "__main__":
    main()
