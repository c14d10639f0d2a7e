"""Mining from files to a file: against a brute-force search, after a stop, and with all kinds of miners."""

import json
import sys

import numpy as np
import pytest
from tiny_models import TEXTS, wordpiece_tokenizer
from transformers import BertConfig, BertForSequenceClassification

from codiemb.curation.mining import Miner, MiningError, MiningOptions, dense, mine, report, windows
from codiemb.curation.mining.dense import DenseMiner
from codiemb.curation.mining.judges import cross_encoder
from codiemb.curation.mining.pool import TextPool
from codiemb.curation.mining.queries import Queries
from codiemb.curation.mining.rows import Row
from codiemb.data import DataError, read
from codiemb.data.documents import Document
from codiemb.data.examples import parse_example
from codiemb.embedder import LLMEmbeddingModel

PAIRS = [
    ("How do I make bread?", TEXTS[1]),
    ("怎么在家做酸面包？", TEXTS[3]),
    ("When does the train leave?", TEXTS[4]),
    ("去上海的火车几点开？", TEXTS[5]),
    ("My washing machine leaks.", TEXTS[8]),
    ("洗衣机为什么漏水？", TEXTS[9]),
    ("How do I make bread?", "Bake the loaf in a hot oven for forty minutes."),
    ("Where is the hose?", "The hose sits behind the washing machine."),
]
DISTRACTORS = [f"{text} {number}" for number, text in enumerate(TEXTS)]
STS_ROW = {"task_type": "sts", "query": "bread", "positives": ["loaf"], "positive_scores": [3.5]}
PLAIN = {"share": None, "near_duplicate": 1.0, "negatives": 3}  # no filter but the known positives


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def write(path, rows):
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def rows_of(pairs, **more):
    return [{"task_type": "ir", "query": query, "positives": [positive], **more} for query, positive in pairs]


@pytest.fixture(scope="module")
def model(tiny_model_directory):
    return LLMEmbeddingModel(tiny_model_directory, device="cpu", compute="fp32")


@pytest.fixture
def data(tmp_path):
    return write(tmp_path / "data.jsonl", [*rows_of(PAIRS), STS_ROW])


@pytest.fixture
def corpus(tmp_path):
    rows = [{"_id": f"c{number}", "text": text} for number, text in enumerate([*DISTRACTORS, PAIRS[0][1]])]
    return write(tmp_path / "corpus.jsonl", rows)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def run(model, data, corpus, cache, tmp_path, monkeypatch):
    """Mines into `name`; the tests share vectors, and most draw no plot, which takes longer than all the rest."""

    def mined(name="out.jsonl", options=None, *, source=data, documents=(corpus,), plot=False, **more):
        options = MiningOptions(**(PLAIN if options is None else options))
        output = tmp_path / name
        common = {"model_name": "tiny", "corpus": documents, "cache": cache, **more}
        with monkeypatch.context() as patched:
            if not plot:
                patched.setattr(report._Tally, "plot", lambda *_: b"")
            return mine(model, source, output, options=options, **common)

    return mined


def brute_force(model, pairs, documents, count):
    """The nearest documents of each query that answer none of the rows with that query."""
    queries = model.encode_query([query for query, _ in pairs], normalize_embeddings=True)
    vectors = model.encode_document(documents, normalize_embeddings=True)
    found = []
    for (query, _), scores in zip(pairs, queries @ vectors.T, strict=True):
        known = {positive for other, positive in pairs if other == query}
        ranked = [documents[place] for place in np.argsort(-scores, kind="stable")]
        found.append([text for text in ranked if text not in known][:count])
    return found


def test_negatives_are_the_nearest_that_do_not_answer(run, model):
    result = run()
    mined = lines(result.output)
    expected = brute_force(model, PAIRS, [*DISTRACTORS, PAIRS[0][1]], 3)
    assert [[text for _, _, text in row["negatives"]] for row in mined[:-1]] == expected
    assert mined[-1]["positive_scores"] == [3.5]  # of another task, as it was
    assert not mined[-1]["negatives"]
    assert {table.task_type: len(table.rows) for table in read(result.output)} == {"ir": 8, "sts": 1}
    report = result.report
    assert (report.negatives, report.short_rows, report.per_row) == (24, 0, {"3": 8})
    assert report.rejected == {"a known positive of the query": 2}  # both rows that ask for bread
    assert (report.about["documents"], report.about["rows"], report.about["queries"]) == (11, 9, 7)


def test_provenance_says_where_each_negative_comes_from(run, model):
    result = run(plot=True)
    records = lines(result.directory / "provenance.jsonl")
    assert [record["row"] for record in records] == list(range(8))
    assert [record["query"] for record in records] == [query for query, _ in PAIRS]
    first = records[2]["negatives"][0]
    text = lines(result.output)[2]["negatives"][0][2]
    assert first["id"] == f"c{DISTRACTORS.index(text)}"
    query, document = model.encode_query(PAIRS[2][0]), model.encode_document(text)
    assert first["score"] == pytest.approx(float(query @ document), abs=1e-5)
    assert first["found_by"] == {"tiny": {"rank": 1, "score": pytest.approx(first["score"], abs=1e-6)}}
    positive = records[2]["positives"][0]  # it is in no corpus, and judged all the same
    assert positive["score"] == pytest.approx(float(query @ model.encode_document(PAIRS[2][1])), abs=1e-5)
    assert (result.directory / "scores.png").read_bytes().startswith(b"\x89PNG")
    page = (result.directory / "report.md").read_text()
    assert "24 negatives for 8 rows (7 queries), out of 11 documents" in page
    assert json.loads((result.directory / "report.json").read_text()) == json.loads(json.dumps(result.report.to_dict()))


def test_without_a_corpus_the_datas_own_candidates_are_mined(run, model, tmp_path):
    rows = rows_of(PAIRS, negatives=["A text that was a negative."])
    result = run(source=write(tmp_path / "more.jsonl", rows), documents=(), options={**PLAIN, "existing": "replace"})
    candidates = [positive for _, positive in PAIRS]
    candidates.insert(1, "A text that was a negative.")
    expected = brute_force(model, PAIRS, candidates, 3)
    assert [[text for _, _, text in row["negatives"]] for row in lines(result.output)] == expected


def test_ranks_count_what_is_no_known_positive(run, model):
    documents = [*DISTRACTORS, PAIRS[0][1]]
    result = run(options={**PLAIN, "skip": 2, "depth": 4, "negatives": 2})
    expected = [found[2:] for found in brute_force(model, PAIRS, documents, 4)]
    assert [[text for _, _, text in row["negatives"]] for row in lines(result.output)[:-1]] == expected
    assert result.report.rejected["before the rank window"] == 16
    ranks = {
        negative["found_by"]["tiny"]["rank"]
        for record in lines(result.directory / "provenance.jsonl")
        for negative in record["negatives"]
    }
    assert ranks == {3, 4}


def test_shares_count_from_the_mean_of_random_pairs(run, model):
    queries = model.encode_query(list(dict.fromkeys(query for query, _ in PAIRS)))
    cosines = queries @ model.encode_document([*DISTRACTORS, PAIRS[0][1]]).T
    result = run(options={**PLAIN, "share": 0.9})
    chance = result.report.about["chance"]
    assert chance == pytest.approx(float(cosines.mean()), abs=0.1 * float(cosines.std()))
    records = lines(result.directory / "provenance.jsonl")
    above = [record for record in records if record["positives"][0]["score"] > chance]
    assert above
    for record in above:
        limit = chance + 0.9 * (record["positives"][0]["score"] - chance)
        assert all(negative["score"] <= limit for negative in record["negatives"])
    assert result.report.rejected["score above the share of the positive's"] > 0
    assert run("zero.jsonl", {**PLAIN, "share": 0.9, "chance": "zero"}).report.about["chance"] == 0


class Stop(Exception):
    pass


def half_written(finder, directory):
    (directory / f"{finder.kind}.faiss").write_bytes(b"IHN")
    raise Stop


@pytest.mark.parametrize("kind", ["hnsw", "ivf"])
def test_approximate_indexes_give_the_same_scores(run, kind, monkeypatch, tmp_path):
    exact = lines(run().directory / "provenance.jsonl")
    with monkeypatch.context() as patched:  # killed while the index is written
        patched.setattr("codiemb.search.finders.Finder.write", half_written)
        with pytest.raises(Stop):
            run("near.jsonl", kind=kind, cache=tmp_path / "cache")
    near = run("near.jsonl", kind=kind, cache=tmp_path / "cache")
    known = {(record["row"], one["id"]): one["score"] for record in exact for one in record["negatives"]}
    found = {
        (record["row"], one["id"]): one["score"]
        for record in lines(near.directory / "provenance.jsonl")
        for one in record["negatives"]
    }
    assert len(known.keys() & found.keys()) >= 20
    assert all(found[place] == known[place] for place in known.keys() & found.keys())


def test_fewer_than_asked_are_counted_and_not_padded(run):
    scores = [one["score"] for record in lines(run().directory / "provenance.jsonl") for one in record["negatives"]]
    result = run("fewer.jsonl", options={**PLAIN, "min_score": float(np.median(scores))})
    found = result.report
    counts = [len(row["negatives"]) for row in lines(result.output)[:-1]]
    assert found.negatives == sum(counts) < 24
    assert found.short_rows == sum(count < 3 for count in counts) > 0
    assert sum(found.per_row.values()) == 8
    # A short row looks at all 11 documents, less its positive, if that is among them.
    below = found.short_reasons["score below min_score"]
    known = found.short_reasons.get("a known positive of the query", 0)
    assert below == sum(11 - count for count in counts if count < 3) - known
    page = (result.directory / "report.md").read_text()
    assert (
        f"{found.short_rows} of 8 rows got fewer negatives than the 3 that were asked for, {counts.count(0)} of" in page
    )
    assert f"kept out: {below} score below min_score (lower --min-score)." in page
    assert "asked for" not in (result.output.parent / "out.mining" / "report.md").read_text()


def test_positives_no_nearer_than_random_pairs_are_reported(run, tmp_path):
    """Every text is a positive of another row, so that some are nearer than random pairs and some are not."""
    texts = [*DISTRACTORS, PAIRS[0][1]]
    source = write(tmp_path / "crossed.jsonl", rows_of(zip([query for query, _ in PAIRS], texts, strict=False)))
    result = run(source=source, options={**PLAIN, "share": 0.9})
    records = lines(result.directory / "provenance.jsonl")
    chance = result.report.about["chance"]
    weak = sum(record["positives"][0]["score"] <= chance for record in records)
    assert result.report.weak_rows == weak
    assert 0 < weak < 8
    assert f"{weak} rows have a positive that scores no higher" in (result.directory / "report.md").read_text()


def test_notes_are_kept_and_answers_respected(run, tmp_path):
    notes = {"answers": ["Shanghai", "上海"], "source": "wiki"}
    source = write(tmp_path / "noted.jsonl", rows_of(PAIRS, meta_data=notes))
    result = run(source=source)
    mined = lines(result.output)
    assert all(row["meta_data"] == notes for row in mined)
    assert not any("Shanghai" in text or "上海" in text for row in mined for _, _, text in row["negatives"])
    assert result.report.rejected["contains the answer"] > 0
    write(source, rows_of(PAIRS, meta_data={"answers": [5]}))
    with pytest.raises(DataError, match=r"noted.jsonl:1: meta_data.answers: not answers, got \[5\]"):
        run("other.jsonl", source=source)


@pytest.mark.parametrize(("existing", "kept"), [("keep", [["", "", "Old one."]]), ("replace", [])])
def test_existing_negatives(run, tmp_path, existing, kept):
    scored = {"negatives": ["Old one."], "negative_scores": [0.5], "positive_scores": [2.0], "task_type": "reranking"}
    source = write(tmp_path / "scored.jsonl", rows_of(PAIRS, **scored))
    row = lines(run(source=source, options={**PLAIN, "existing": existing}).output)[0]
    assert row["negatives"][: len(kept)] == kept
    assert len(row["negatives"]) == len(kept) + 3
    assert row["negative_scores"] == ([0.5] * 4 if kept else [])  # one for each, or none
    assert row["positive_scores"] == [2.0]


def test_parquet(run):
    result = run("out.parquet")
    rows = next(table for table in read(result.output) if table.task_type == "ir").rows
    assert [len(row["negatives"]) for row in rows] == [3] * 8


# -- several miners, and a cross-encoder -----------------------------------------------------------------------------


def test_miners_are_merged(run, model):
    result = run(miners=[Miner("dense", model), Miner("bm25", None)], options={**PLAIN, "merging": "round-robin"})
    records = lines(result.directory / "provenance.jsonl")
    first = [record["negatives"][0]["found_by"] for record in records]
    assert all(found["dense"]["rank"] == 1 for found in first)
    by_words = [record["negatives"][1]["found_by"] for record in records]
    assert any(found.get("bm25", {}).get("rank") == 1 for found in by_words)
    assert set(result.report.found_by) == {"dense", "bm25"}
    scores = [one["score"] for record in records for one in record["negatives"]]
    assert all(-1 <= score <= 1.000001 for score in scores)  # all judged by the model, those of BM25 too


def test_a_judge_need_not_be_a_miner(run, model):
    result = run(miners=[Miner("bm25", None)])
    records = lines(result.directory / "provenance.jsonl")
    assert {name for record in records for one in record["negatives"] for name in one["found_by"]} == {"bm25"}
    assert result.report.scores["negatives"].percentiles["100"] <= 1.000001
    assert result.report.short_rows > 0  # texts that share no word are not found


@pytest.fixture(scope="module")
def reranker(tmp_path_factory):
    directory = tmp_path_factory.mktemp("reranker")
    tokenizer = wordpiece_tokenizer()
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=64,
        num_labels=1,
        initializer_range=0.5,
    )
    BertForSequenceClassification(config).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def test_a_cross_encoder_judges_and_relabels(run, reranker):
    model = cross_encoder(str(reranker), "cpu")
    documents = [*DISTRACTORS, PAIRS[0][1]]
    scores = {
        query: np.asarray(model.predict([(query, text) for text in documents], show_progress_bar=False))
        for query, _ in PAIRS
    }
    least = float(np.quantile(np.concatenate(list(scores.values())), 0.9))
    result = run(cross_encoder=model, options={**PLAIN, "relabel_above": least})
    expected = [
        {text for text, score in zip(documents, scores[query], strict=True) if score >= least and text != positive}
        for query, positive in PAIRS
    ]
    expected[6].discard(PAIRS[0][1])  # known from another row
    mined = lines(result.output)[:-1]
    gained = [{text for _, _, text in row["positives"][1:]} for row in mined]
    assert gained == expected
    assert sum(map(len, gained)) == result.report.relabelled > 0
    assert result.report.about["judge"]["kind"] == "cross-encoder"
    for row, (query, _) in zip(mined, PAIRS, strict=True):
        own = [float(scores[query][documents.index(text)]) for _, _, text in row["negatives"]]
        assert own == sorted(own, reverse=True)
        assert max(own) < least


def test_a_cross_encoder_needs_one_score(run, reranker, model):
    broken = cross_encoder(str(reranker), "cpu")
    broken.model.config.num_labels = 3
    with pytest.raises(ValueError, match="gives 3 scores for a pair, expected one"):
        run(cross_encoder=broken)
    with pytest.raises(ValueError, match="cannot be loaded as a cross-encoder"):
        cross_encoder("no/such/model", "cpu")


# -- prompts ---------------------------------------------------------------------------------------------------------


def test_each_query_is_read_with_its_instruction(tiny_model_directory, tmp_path, monkeypatch):
    model = LLMEmbeddingModel(tiny_model_directory, device="cpu", compute="fp32", template="e5-instruct")
    rows = [
        {"query": ["Find the answer.", "", "bread"], "positives": ["x"]},
        {"query": ["", "p: ", "bread"], "positives": ["x"]},
        {"query": ["Find the train.", "", "bread"], "positives": ["x"]},
        {"query": ["Find the answer.", "", "bread"], "positives": ["y"]},
    ]
    queries = Queries("The default.")
    list(queries.scan((Row(parse_example(row), None) for row in rows), with_negatives=False))
    pool = TextPool.build(tmp_path, iter([Document("1", text, {}) for text in TEXTS]), ())
    miner = DenseMiner("tiny", model, pool, queries, tmp_path)
    texts = [("Find the answer.", "bread"), ("The default.", "p: bread"), ("Find the train.", "bread")]
    expected = [model.encode_query(text, instruction=instruction) for instruction, text in texts]
    np.testing.assert_allclose(miner.queries, expected, atol=1e-5)
    assert np.abs(expected[0] - expected[2]).max() > 1e-3
    np.testing.assert_allclose(miner.vectors, model.encode_document(TEXTS), atol=1e-5)

    asked, numbers = np.array([0, 2, 1, 0, 2]), np.array([3, 0, 5, 0, 5])
    monkeypatch.setattr(dense, "_PAIRS", 2)  # scored in three blocks
    expected = np.einsum("nd,nd->n", miner.queries[asked], miner.vectors[numbers])
    np.testing.assert_allclose(miner.scores(asked, numbers), expected, atol=1e-6)


# -- stopping, going on, and the cache -------------------------------------------------------------------------------


@pytest.fixture
def small_windows(monkeypatch):
    monkeypatch.setattr(windows, "WINDOW_ROWS", 2)


def stop_after(windows_done):
    seen = []

    def advance(stage, done, total):
        seen.append(stage)
        if seen.count("mining: rows") == windows_done:
            raise Stop

    return advance


RANDOM = {**PLAIN, "sampling": "random"}


def test_a_stopped_run_goes_on_and_ends_the_same(run, small_windows):
    whole = run("whole.jsonl", RANDOM)
    with pytest.raises(Stop):
        run("out.jsonl", RANDOM, on_progress=stop_after(2))
    assert not (whole.output.parent / "out.jsonl").exists()
    seen = []
    result = run("out.jsonl", RANDOM, on_progress=lambda *progress: seen.append(progress))
    assert result.resumed == 4
    assert result.output.read_bytes() == whole.output.read_bytes()
    assert next(progress for progress in seen if progress[0] == "mining: rows") == ("mining: rows", 4, 9)
    assert result.report == whole.report
    assert not (result.directory / "parts").exists()


def test_a_stopped_run_with_other_settings_is_not_gone_on_with(run, small_windows):
    with pytest.raises(Stop):
        run(options=RANDOM, on_progress=stop_after(1))
    with pytest.raises(MiningError, match=r"a stopped run worked with other settings \(options: .*--overwrite"):
        run(options={**RANDOM, "seed": 1})
    result = run(options={**RANDOM, "seed": 1}, overwrite=True)
    assert result.resumed == 0


def test_a_stopped_run_is_not_gone_on_with_by_miners_in_another_order(run, model, small_windows):
    miners = [Miner("dense", model), Miner("bm25", None)]
    with pytest.raises(Stop):
        run(miners=miners, on_progress=stop_after(1))
    with pytest.raises(MiningError, match=r"other settings \(miners: "):
        run(miners=miners[::-1])


def test_vectors_are_computed_once_and_weights_read_once(run, model, monkeypatch, tmp_path):
    taken = []
    monkeypatch.setattr(dense, "fingerprint", lambda model: taken.append(model) or "0" * 32)
    monkeypatch.setattr("codiemb.bulk.fingerprint", lambda _: pytest.fail("weights read again"))
    first = run(cache=tmp_path / "cache")
    assert len(taken) == 1
    monkeypatch.undo()
    run("before.jsonl")
    monkeypatch.setattr(type(model.embedding_pass), "encode_windows", lambda *_, **__: pytest.fail("embedded again"))
    assert run("again.jsonl").report.scores == first.report.scores
    monkeypatch.setattr(model, "template", model.template.__class__(query="other: "))
    with pytest.raises(pytest.fail.Exception, match="embedded again"):
        run("changed.jsonl")


# -- errors ----------------------------------------------------------------------------------------------------------


def test_what_cannot_be_done_is_refused_first(run, data, tmp_path, model, monkeypatch):
    with pytest.raises(DataError, match="expected a name that ends in"):
        run("out.csv")
    with pytest.raises(MiningError, match="is one of the data files"):
        run("data.jsonl", overwrite=True)
    with pytest.raises(MiningError, match="Two miners have one name"):
        run(miners=[Miner("a", model), Miner("a", None)])
    with pytest.raises(MiningError, match="relabel_above is for a cross-encoder"):
        run(options={**PLAIN, "relabel_above": 0.5})
    with pytest.raises(MiningError, match="no rows of ir or reranking"):
        run(source=write(tmp_path / "sts.jsonl", [STS_ROW]))
    with pytest.raises(MiningError, match="no documents to mine: all are blank or have control characters"):
        run(documents=[write(tmp_path / "blank.jsonl", [{"text": " "}])])
    with monkeypatch.context() as patched:
        patched.setitem(sys.modules, "jieba", None)
        patched.setattr(TextPool, "build", lambda *_: pytest.fail("work before the refusal"))
        with pytest.raises(ModuleNotFoundError, match=r"jieba.*codiemb\[curation\]"):
            run(miners=[Miner("dense", model), Miner("bm25", None)], words="jieba")
    bad = write(tmp_path / "bad.jsonl", [{"query": "a", "positives": []}])
    with pytest.raises(DataError, match=r"bad.jsonl:1: positives"):
        run(source=bad)
    (tmp_path / "out.jsonl").write_text("mine")
    with pytest.raises(MiningError, match="is there already"):
        run()
    assert (tmp_path / "out.jsonl").read_text() == "mine"
