import json
import shutil
import signal
import subprocess
import sys
import time
from functools import partial

import numpy as np
import pytest

from codiemb import LLMEmbeddingModel
from codiemb.data.documents import Document, parse_document
from codiemb.fingerprint import fingerprint
from codiemb.search import DocumentIndex

CORPUS = [
    {"_id": "a", "title": "Bread", "text": "Feed the starter for a week.", "lang": "en"},
    {"_id": "b", "text": "去上海的火车九点开。"},
    {"_id": "c", "text": "Check the hose first."},
]


@pytest.fixture
def search(tmp_path, monkeypatch, run_codiemb):
    """Runs `codiemb search` in `tmp_path` and returns its exit status, stdout and stderr."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in CORPUS))

    return partial(run_codiemb, "search")


@pytest.fixture(scope="module")
def built(tiny_model_directory, tmp_path_factory):
    model = LLMEmbeddingModel(tiny_model_directory, device="cpu")
    rows = (parse_document(row) for row in CORPUS)
    return DocumentIndex.build(
        (Document(*row) for row in rows),
        model,
        tmp_path_factory.mktemp("built") / "my.index",
        model=str(tiny_model_directory),
        fingerprint=fingerprint(model),
    )


@pytest.fixture
def index(search, built, tmp_path):
    shutil.copytree(built.directory, tmp_path / "my.index")
    return tmp_path / "my.index"


def hits(out):
    return [[hit["id"] for hit in query["hits"]] for query in json.loads(out)["queries"]]


def test_build_says_what_it_made(search, tiny_model_directory, tmp_path):
    status, out, err = search("build", tiny_model_directory, "corpus.jsonl", "-o", "my.index", "--kind", "hnsw")
    assert (status, err) == (0, "")
    own = fingerprint(LLMEmbeddingModel(tiny_model_directory, device="cpu"))
    assert "my.index: 3 documents, 32 dimensions, hnsw, cosine" in out
    assert f"model {tiny_model_directory}, fingerprint {own}" in out
    assert search("info", "my.index")[1] == out
    about = json.loads(search("info", "my.index", "--json")[1])
    assert (about["documents"], about["kind"], about["fingerprint"]) == (3, "hnsw", own)


def test_queries_as_arguments(search, index, tiny_model_directory):
    status, out, err = search("query", "my.index", "how to bake", "火车", "-k", "2", "--json")
    assert status == 0
    content = json.loads(out)
    assert [query["query"] for query in content["queries"]] == ["how to bake", "火车"]
    assert content["embedding_ms"] > 0
    assert content["search_ms"] > 0
    model = LLMEmbeddingModel(tiny_model_directory, device="cpu")
    texts = ["Bread\nFeed the starter for a week.", CORPUS[1]["text"], CORPUS[2]["text"]]
    expected = model.compute_similarity("how to bake", texts)[0]
    first = content["queries"][0]["hits"]
    assert [hit["id"] for hit in first] == ["abc"[i] for i in (-expected).argsort()[:2]]
    assert [hit["score"] for hit in first] == pytest.approx(sorted(expected)[::-1][:2], abs=2e-6)
    assert [hit["metadata"] for hit in first] == [{"lang": "en"} if hit["id"] == "a" else {} for hit in first]

    status, out, err = search("query", "my.index", "how to bake")
    assert [line.split()[2] for line in out.splitlines()] == ["abc"[i] for i in (-expected).argsort()]
    assert "\x1b" not in out
    assert err.startswith("embedding ")
    assert " ms, search " in err


def test_interactive_and_piped_queries(search, index, monkeypatch):
    expected = [hits(search("query", "my.index", text, "--json")[1]) for text in ("bread", "火车")]
    status, out, _ = search("query", "my.index", "--json", stdin="bread\n\n火车\n")
    assert status == 0
    assert [hits(line) for line in out.splitlines()] == expected
    answers = iter(["bread", "  ", "火车"])

    def typed(prompt):
        assert prompt == "query> "
        try:
            return next(answers)
        except StopIteration:
            raise EOFError from None

    monkeypatch.setattr("builtins.input", typed)
    status, out, err = search("query", "my.index", "--json", keys=[])
    assert status == 0
    assert [hits(line) for line in out.splitlines()] == expected
    assert "Ctrl-D ends" in err


def test_queries_from_a_file(search, index, tmp_path):
    (tmp_path / "queries.jsonl").write_text('{"_id": "q1", "text": "bread"}\n{"_id": "q2", "text": "火车"}\n')
    status, out, err = search("query", "my.index", "--queries", "queries.jsonl")
    rows = [json.loads(line) for line in out.splitlines()]
    assert status == 0
    assert "2 queries: embedding " in err
    assert [(row["query_id"], row["query"]) for row in rows] == [("q1", "bread"), ("q2", "火车")]
    expected = hits(search("query", "my.index", "bread", "火车", "--json")[1])
    assert [[hit["id"] for hit in row["hits"]] for row in rows] == expected

    options = ("--queries", "queries.jsonl", "--format", "trec", "-k", "2")
    status, out, _ = search("query", "my.index", *options, "-o", "runs/run.trec")
    assert (status, out) == (0, "")
    run = (tmp_path / "runs" / "run.trec").read_text()
    assert run == search("query", "my.index", *options)[1]
    fields = [line.split() for line in run.splitlines()]
    assert [(row[0], row[1], row[2], row[3], row[5]) for row in fields] == [
        (query, "Q0", document, str(rank), "codiemb")
        for query, found in zip(("q1", "q2"), expected, strict=True)
        for rank, document in enumerate(found[:2], 1)
    ]
    assert float(fields[0][4]) == pytest.approx(rows[0]["hits"][0]["score"], abs=1e-6)


def test_ids_that_a_trec_run_cannot_hold(search, index, tmp_path):
    (tmp_path / "queries.jsonl").write_text('{"_id": "q 1", "text": "bread"}\n')
    status, _, err = search("query", "my.index", "--queries", "queries.jsonl", "--format", "trec", "-o", "run.trec")
    assert status == 2
    assert "The id 'q 1' has white space" in err
    assert not (tmp_path / "run.trec").exists()


def test_add(search, index, tmp_path):
    (tmp_path / "more.jsonl").write_text('{"_id": "d", "text": "bread"}\n')
    assert "4 documents" in search("add", "my.index", "more.jsonl")[1]
    assert "d" in hits(search("query", "my.index", "bread", "--json")[1])[0]
    status, _, err = search("add", "my.index", "more.jsonl")
    assert status == 2
    assert "Document 5 has the id 'd'" in err
    (tmp_path / "lines.txt").write_text("one\ntwo\n")
    assert search("add", "my.index", "lines.txt")[0] == 0
    assert {"5", "6"} <= set(hits(search("query", "my.index", "bread", "--json")[1])[0])


def test_an_index_knows_its_model(search, index, tiny_model_directory, tmp_path):
    moved = LLMEmbeddingModel(tiny_model_directory, device="cpu")
    moved.save_pretrained(str(tmp_path / "moved"))
    moved.prompts["query"] = "question: "
    moved.save_pretrained(str(tmp_path / "changed"))
    assert search("query", "my.index", "bread", "--model", "moved")[0] == 0
    status, out, err = search("query", "my.index", "bread", "--model", "changed")
    assert (status, out) == (2, "")
    assert f"was made with {tiny_model_directory}" in err
    assert "weights, tokenizer, pooling or prompts differ" in err
    (tmp_path / "more.txt").write_text("bread")
    assert search("add", "my.index", "more.txt", "--model", "changed")[0] == 2
    assert len(DocumentIndex.load(index)) == 3


def test_dimension_and_length_are_remembered(search, tiny_model_directory, tmp_path):
    options = ("--truncate-dim", "8", "--max-length", "16")
    assert "8 dimensions" in search("build", tiny_model_directory, "corpus.jsonl", "-o", "small.index", *options)[1]
    assert search("query", "small.index", "bread")[0] == 0
    (tmp_path / "more.jsonl").write_text(json.dumps({**CORPUS[0], "_id": "d"}) + "\n")
    assert search("add", "small.index", "more.jsonl")[0] == 0
    vectors = np.load(tmp_path / "small.index" / "vectors.npy")
    np.testing.assert_allclose(vectors[3], vectors[0], atol=1e-5)
    whole = LLMEmbeddingModel(tiny_model_directory, device="cpu").encode_passages("Bread\nFeed the starter for a week.")
    assert not np.allclose(vectors[0], whole[:8] / np.linalg.norm(whole[:8]), atol=1e-3)


def test_the_template_and_instruction_of_an_index_are_those_of_its_queries_too(search, tiny_model_directory, tmp_path):
    def best(*options):
        answers = json.loads(search("query", "my.index", CORPUS[1]["text"], "--json", *options)[1])
        return answers["queries"][0]["hits"][0]["score"]

    def build(*options):
        arguments = ("corpus.jsonl", "-o", "my.index", "--overwrite", "--template", "e5-instruct", *options)
        assert search("build", tiny_model_directory, *arguments)[0] == 0

    build("--instruction", "Ocnli")  # symmetric: the same text is the same vector on both sides
    assert best() == pytest.approx(1, abs=1e-5)
    build()
    plain, asked = best(), best("--instruction", "Find the answer")
    assert asked != pytest.approx(plain, abs=1e-4)
    build("--instruction", "Find the answer")
    assert "instruction: Find the answer" in search("info", "my.index")[1]
    assert best() == pytest.approx(asked, abs=1e-6)


def test_a_polite_kill_leaves_nothing(tiny_model_directory, tmp_path):
    (tmp_path / "many.txt").write_text("".join(f"line {number}\n" for number in range(50_000)))
    command = [sys.executable, "-m", "codiemb", "search", "build", tiny_model_directory, "many.txt", "-o", "my.index"]
    with subprocess.Popen(command, cwd=tmp_path) as process:
        for _ in range(600):
            if list(tmp_path.glob(".my.index.partial-*/*")):
                break
            time.sleep(0.1)
        process.terminate()
        assert process.wait(30) == 128 + signal.SIGTERM
    assert [path.name for path in tmp_path.iterdir()] == ["many.txt"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["query", "gone", "bread"], "gone: no such directory, expected an index"),
        (["query", ".", "bread"], "is not an index: it has no manifest.json"),
        (["query", "my.index", ""], "Query 1 of 1 is blank"),
        (["query", "my.index", "x", "--queries", "corpus.jsonl"], "not both"),
        (["query", "my.index", "x", "-o", "out.jsonl"], "--output and --format are for --queries"),
        (["query", "my.index", "--queries", "empty.txt"], "empty.txt: no documents"),
        (["build", "MODEL", "gone.jsonl", "-o", "new"], "gone.jsonl: no such file"),
        (["build", "MODEL", "empty.txt", "-o", "new"], "empty.txt: no documents"),
        (["build", "MODEL", "corpus.jsonl", "corpus.jsonl", "-o", "new"], "Document 4 has the id 'a'"),
        (["build", "MODEL", "corpus.jsonl", "-o", "my.index"], "is an index already"),
        (["build", "MODEL", "corpus.jsonl", "-o", "new", "--instruction", "T2Retrievel"], "T2Retrieval"),
    ],
)
def test_bad_input_ends_with_status_2_and_leaves_nothing(
    search, index, tiny_model_directory, tmp_path, arguments, message
):
    (tmp_path / "empty.txt").touch()
    before = sorted(path.name for path in tmp_path.iterdir())
    status, _, err = search(*(tiny_model_directory if argument == "MODEL" else argument for argument in arguments))
    assert status == 2
    assert message in err
    assert "Traceback" not in err
    assert sorted(path.name for path in tmp_path.iterdir()) == before
