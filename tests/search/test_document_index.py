import json
import multiprocessing
import os
import resource
import signal
import zlib
from datetime import date

import numpy as np
import pyarrow as pa
import pytest

from codiemb.data.documents import Document
from codiemb.interface import Embedder
from codiemb.search import DocumentIndex, SearchIndexError, store

WORDS = ["bread", "flour", "water", "salt", "starter", "train", "hose", "leak", "面包", "面粉", "火车", "上海", "水管"]


class WordEmbedder(Embedder):
    """A vector of hashed words; not of length 1."""

    def __init__(self, dimension=16):
        self.dimension = dimension
        self.asked = []

    def encode_passages(self, passages, *, instruction=None):
        self.asked.append((len(passages), instruction))
        vectors = np.zeros((len(passages), self.dimension), np.float32)
        for vector, text in zip(vectors, passages, strict=True):
            for word in text.split():
                vector += np.random.default_rng(zlib.crc32(word.encode())).standard_normal(self.dimension)
        return vectors

    encode_queries = encode_passages


def corpus(count):
    rng = np.random.default_rng(0)
    for number in range(count):
        yield Document(f"d{number}", " ".join(rng.choice(WORDS, 6)), {"number": number})


def build(directory, source, embedder=None, **options):
    settings = {"model": "words", "fingerprint": "f00d", **options}
    return DocumentIndex.build(source, embedder or WordEmbedder(), directory, **settings)


def test_build_load_search(tmp_path):
    embedder = WordEmbedder()
    progress = []
    index = build(tmp_path / "a" / "index", corpus(700), embedder, instruction="find", on_progress=progress.append)
    assert progress == [512, 188]
    assert embedder.asked == [(512, "find"), (188, "find")]
    index = DocumentIndex.load(tmp_path / "a" / "index")
    about = index.manifest
    assert (len(index), about.documents, about.dimension, about.kind, about.metric) == (700, 700, 16, "flat", "cosine")
    assert (about.model, about.fingerprint, about.instruction) == ("words", "f00d", "find")
    assert {"codiemb", "faiss", "torch"} <= about.versions.keys()

    source = list(corpus(700))
    answers = index.search([source[650].text, "bread flour"], embedder, 3, instruction="ask")
    assert embedder.asked[-1] == (2, "ask")
    assert index.search("bread flour", embedder, 3).hits == [answers.hits[1]]
    assert embedder.asked[-1] == (1, "find")
    assert answers.embed_seconds > 0
    assert answers.search_seconds > 0
    assert [len(hits) for hits in answers.hits] == [3, 3]
    best = answers.hits[0][0]
    assert best.score == pytest.approx(1, abs=1e-6)
    assert (best.text, best.metadata) == (source[650].text, {"number": int(best.id[1:])})

    matrix = embedder.encode_passages([document.text for document in source]).astype(np.float64)
    matrix /= np.linalg.norm(matrix, axis=1, keepdims=True)
    query = embedder.encode_queries(["bread flour"])[0] / np.linalg.norm(embedder.encode_queries(["bread flour"]))
    cosines = matrix @ query
    np.testing.assert_allclose([hit.score for hit in answers.hits[1]], np.sort(cosines)[::-1][:3], atol=1e-6)
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["index"]


def test_dot_keeps_the_length_of_vectors(tmp_path):
    texts = [Document("short", "bread", {}), Document("long", "bread bread bread", {})]
    dot, cosine = build(tmp_path / "dot", texts, metric="dot"), build(tmp_path / "cosine", texts)
    (hits,) = dot.search(["bread"], WordEmbedder()).hits
    assert [hit.id for hit in hits] == ["long", "short"]
    assert hits[0].score == pytest.approx(3 * hits[1].score)
    (hits,) = cosine.search(["bread"], WordEmbedder()).hits
    assert [hit.id for hit in hits] == ["short", "long"]  # equal: the earlier first
    assert hits[0].score == hits[1].score == pytest.approx(1)


def test_one_document_and_k_larger_than_the_corpus(tmp_path):
    index = build(tmp_path / "one", [Document("only", "bread", {})])
    (hits,) = index.search(["flour"], WordEmbedder(), 10).hits
    assert [hit.id for hit in hits] == ["only"]


def test_blank_documents_are_kept_and_counted(tmp_path, caplog):
    index = build(tmp_path / "index", [Document("a", "bread", {}), Document("b", " ", {}), Document("c", "", {})])
    assert len(index) == 3
    assert "2 documents are blank" in caplog.text


def test_metadata_of_all_sorts(tmp_path):
    metadata = {"list": [1, None], "date": date(2026, 1, 2), "nan": float("nan"), "nested": {"a": "火"}, 1: b"x"}
    index = build(tmp_path / "index", [Document("a", "bread", metadata)])
    expected = {"list": [1, None], "date": "2026-01-02", "nan": None, "nested": {"a": "火"}, "1": "b'x'"}
    assert index.texts.take([0])[0].metadata == expected


def test_documents_are_embedded_as_a_stream_and_read_from_disk(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "_WINDOW_CHARACTERS", 1 << 20)
    read = 0

    def source():
        nonlocal read
        for number in range(200):
            read += 1
            yield Document(str(number), f"{number} " + "x" * 100_000, {})

    class Watching(WordEmbedder):
        def encode_passages(self, passages, *, instruction=None):
            assert sum(map(len, passages)) < 1_200_000
            assert read - sum(count for count, _ in self.asked) == len(passages)  # none is read ahead
            return super().encode_passages(passages)

    build(tmp_path / "index", source(), Watching())
    before = pa.total_allocated_bytes()
    index = DocumentIndex.load(tmp_path / "index")
    documents = index.texts.take([199, 0, 50, 0])
    assert [document.id for document in documents] == ["199", "0", "50", "0"]
    assert documents[2].text.startswith("50 x")
    assert pa.total_allocated_bytes() - before < 1_000_000 < (tmp_path / "index" / "documents.arrow").stat().st_size


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ([], "no vectors"),
        ([Document("a", "x", {}), Document("b", "y", {}), Document("a", "z", {})], "Document 3 has the id 'a'"),
    ],
)
def test_an_error_leaves_nothing(tmp_path, source, message):
    with pytest.raises(SearchIndexError, match=message):
        build(tmp_path / "index", source)
    assert list(tmp_path.iterdir()) == []


def test_an_index_is_replaced_only_when_asked_and_only_by_a_whole_one(tmp_path):
    directory = tmp_path / "index"
    build(directory, corpus(5))
    with pytest.raises(SearchIndexError, match="is an index already"):
        build(directory, corpus(9))
    with pytest.raises(SearchIndexError, match="no vectors"):
        build(directory, [], overwrite=True)
    assert len(DocumentIndex.load(directory)) == 5
    build(directory, corpus(9), overwrite=True)
    assert len(DocumentIndex.load(directory)) == 9
    assert [path.name for path in tmp_path.iterdir()] == ["index"]


def test_a_directory_that_is_no_index_is_never_replaced(tmp_path):
    (tmp_path / "index").mkdir()
    (tmp_path / "index" / "thesis.txt").write_text("years of work")
    for overwrite in (False, True):
        with pytest.raises(SearchIndexError, match=r"is not an index: it has no manifest\.json"):
            build(tmp_path / "index", corpus(5), overwrite=overwrite)
    assert (tmp_path / "index" / "thesis.txt").read_text() == "years of work"
    (tmp_path / "index" / "thesis.txt").unlink()
    assert len(build(tmp_path / "index", corpus(5))) == 5  # an empty one is taken


def test_add(tmp_path):
    source = list(corpus(900))
    index = build(tmp_path / "index", source[:600], instruction="find")
    embedder = WordEmbedder()
    grown = index.add(source[600:], embedder, fingerprint="f00d")
    assert embedder.asked == [(300, "find")]
    assert grown.manifest.model_dump(exclude={"files"}) == {
        **index.manifest.model_dump(exclude={"files"}),
        "documents": 900,
    }
    whole = build(tmp_path / "whole", source)
    assert [grown.texts.take(range(900)), grown.search(["bread"], embedder, 50).hits] == [
        whole.texts.take(range(900)),
        whole.search(["bread"], embedder, 50).hits,
    ]
    assert grown.add([Document("new", "hose", {})], embedder, fingerprint="f00d", kind="hnsw").manifest.kind == "hnsw"
    with pytest.raises(SearchIndexError, match="Document 902 has the id 'd3'"):
        DocumentIndex.load(tmp_path / "index").add([Document("d3", "x", {})], embedder, fingerprint="f00d")
    with pytest.raises(SearchIndexError, match="has fingerprint beef"):
        grown.add(corpus(5), embedder, fingerprint="beef")
    assert len(DocumentIndex.load(tmp_path / "index")) == 901


def test_another_model_or_dimension_is_refused(tmp_path):
    index = build(tmp_path / "index", corpus(5))
    index.check("f00d")
    with pytest.raises(SearchIndexError, match=r"made with words \(fingerprint f00d\), but mine has fingerprint beef"):
        index.check("beef", "mine")
    with pytest.raises(SearchIndexError, match="dimension 16, but the model gives 8"):
        index.search(["bread"], WordEmbedder(8))


@pytest.mark.parametrize("query", ["", " \n", "\u3000"])
def test_a_blank_query_is_an_error(tmp_path, query):
    with pytest.raises(SearchIndexError, match="Query 2 of 2 is blank"):
        build(tmp_path / "index", corpus(5)).search(["bread", query], WordEmbedder())


def damage_manifest(directory):
    (directory / "manifest.json").write_text('{"format": "codiemb search index", "format_version": 1}')


def break_json(directory):
    (directory / "manifest.json").write_text('{"format"')


def from_the_future(directory):
    (directory / "manifest.json").write_text('{"format": "codiemb search index", "format_version": 2}')


def cut(name):
    def change(directory):
        os.truncate(directory / name, 100)

    return change


def swap_texts(directory):
    other = build(directory.parent / "other", corpus(19))
    (other.directory / "documents.arrow").rename(directory / "documents.arrow")
    manifest = directory / "manifest.json"
    content = json.loads(manifest.read_text())
    content["files"]["documents.arrow"] = other.manifest.files["documents.arrow"]
    manifest.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (damage_manifest, "not the manifest of an index, or damaged"),
        (break_json, "not the manifest of an index, or damaged"),
        (from_the_future, "has format version 2"),
        (cut("vectors.npy"), "vectors.npy: has 100 bytes, expected 1408"),
        (cut("documents.arrow"), "documents.arrow: has 100 bytes"),
        (lambda directory: (directory / "vectors.npy").unlink(), "vectors.npy: is missing"),
        (lambda directory: (directory / "manifest.json").unlink(), "is not an index"),
        (swap_texts, "20 vectors of dimension 16"),
    ],
)
def test_damaged_and_foreign_directories(tmp_path, change, message):
    build(tmp_path / "index", corpus(20))
    change(tmp_path / "index")
    with pytest.raises(SearchIndexError, match=message):
        DocumentIndex.load(tmp_path / "index")
    with pytest.raises(SearchIndexError, match="no such directory"):
        DocumentIndex.load(tmp_path / "gone")


def in_a_fork(target, *arguments):
    """Run `target` in a child process and return its exit code (negative: the signal that ended it)."""
    child = multiprocessing.get_context("fork").Process(target=target, args=arguments)
    child.start()
    child.join(60)
    return child.exitcode


def test_killed_while_building(tmp_path):
    def build_until_killed():
        class Killed(WordEmbedder):
            def encode_passages(self, passages, *, instruction=None):
                if self.asked:
                    os.kill(os.getpid(), signal.SIGKILL)
                return super().encode_passages(passages)

        build(tmp_path / "index", corpus(700), Killed())

    assert in_a_fork(build_until_killed) == -signal.SIGKILL
    assert not (tmp_path / "index").exists()
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(".index.partial-")
    with pytest.raises(SearchIndexError, match=r"no manifest\.json"):
        DocumentIndex.load(left)
    assert len(build(tmp_path / "index", corpus(700))) == 700


def test_a_full_disk(tmp_path):
    def build_on_a_full_disk():
        # A limit on the size of files stands for the disk: writing beyond it fails likewise.
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
        try:
            build(tmp_path / "index", corpus(700))
        except OSError as error:
            os._exit(7 if "the index was not written, and nothing is left of it" in str(error) else 8)

    assert in_a_fork(build_on_a_full_disk) == 7
    assert list(tmp_path.iterdir()) == []
