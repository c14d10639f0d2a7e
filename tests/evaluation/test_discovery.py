import gzip

import pytest

from codiemb.data.examples import DataError, Text
from codiemb.evaluation import PairTask, RerankingTask, RetrievalTask, discover


def plain(text):
    return Text("", "", text)


@pytest.fixture
def pairs(tmp_path):
    def write(name, content):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode("utf-8", "surrogateescape"))
        return path

    return write


def found(path, **options):
    (task,) = discover(path, **options)
    return task


def message(path, **options):
    with pytest.raises(DataError) as error:
        discover(path, **options)
    return str(error.value)


# -- BEIR ------------------------------------------------------------------------------------------------------------


def test_beir_folder(beir):
    task = found(beir())
    assert isinstance(task, RetrievalTask)
    assert (task.name, task.type) == ("small", "ir")
    assert task.queries == {"q1": plain("w1"), "q2": plain("w2")}
    assert task.corpus == {"d1": plain("w1\nw3 w4"), "d2": plain("w2 w5")}
    assert task.qrels == {"q1": {"d1": 1}, "q2": {"d2": 2}}


def test_a_title_that_starts_the_text_is_not_repeated(beir):
    corpus = [{"_id": "d1", "title": "w1", "text": "w1 w3"}, {"_id": "d2", "title": "w9", "text": ""}]
    assert found(beir(corpus=corpus)).corpus == {"d1": plain("w1 w3"), "d2": plain("w9")}


def test_compressed_beir_with_numbers_as_ids_and_qrels_without_header(beir):
    folder = beir(queries=[{"_id": 1, "text": "w1"}], corpus=[{"_id": 2, "text": "w1"}])
    for name in ("corpus", "queries"):
        plain_file = folder / f"{name}.jsonl"
        (folder / f"{name}.jsonl.gz").write_bytes(gzip.compress(plain_file.read_bytes()))
        plain_file.unlink()
    (folder / "qrels" / "test.tsv").write_text("1\t2\t1\n")
    assert found(folder).qrels == {"1": {"2": 1}}


def test_the_split_is_test_then_dev_then_the_only_one(beir):
    folder = beir(split="only", qrels="q1\td1\t1\n")
    assert found(folder).qrels == {"q1": {"d1": 1}}
    beir(split="dev", qrels="q1\td2\t1\n")
    assert found(folder).qrels == {"q1": {"d2": 1}}
    beir(split="test", qrels="q2\td1\t1\n")
    assert found(folder).qrels == {"q2": {"d1": 1}}
    chosen = found(folder / "qrels" / "only.tsv")
    assert (chosen.name, chosen.qrels) == ("small:only", {"q1": {"d1": 1}})


def test_several_other_splits_are_an_error_that_lists_them(beir):
    beir(split="a")
    assert "qrels: has a.tsv, b.tsv; expected test.tsv, dev.tsv or one other" in message(beir(split="b"))


def test_queries_that_cannot_be_scored_are_left_out_and_counted(beir):
    queries = [{"_id": f"q{i}", "text": f"w{i}"} for i in range(4)]
    corpus = [{"_id": "d1", "text": "w1"}, {"_id": "d2", "text": " ", "title": None}]
    task = found(beir(queries=queries, corpus=corpus, qrels="q1\td1\t1\nq2\td1\t0\n"))
    assert list(task.queries) == ["q1"]
    assert task.counts == {
        "queries_without_judgements": 2,
        "queries_without_relevant_documents": 1,
        "empty_documents": 1,
    }


def test_qrels_without_any_relevant_document(beir):
    assert "no query has a relevant document" in message(beir(qrels="q1\td1\t0\n"))


def test_unknown_ids_are_counted_and_the_first_five_named(beir):
    rows = "".join(f"q1\tx{i}\t1\n" for i in range(6)) + "q7\td1\t1\n"
    text = message(beir(qrels="q1\td1\t1\n" + rows))
    assert "test.tsv: 7 rows name ids" in text
    assert "document 'x0' in line 3" in text
    assert "'x4' in line 7, ..." in text
    assert "'x5'" not in text


@pytest.mark.parametrize(
    ("part", "content", "expected"),
    [
        ("corpus", '{"_id": "d1", "text": "w1"}\n{"_id": "d1", "text": "w2"}\n', "corpus.jsonl:2: _id: there twice"),
        ("corpus", '{"_id": "d1", "text": "w1"}\n{"_id": \n', "corpus.jsonl:2: row: broken JSON"),
        ("corpus", "", "corpus.jsonl: empty"),
        ("corpus", '{"_id": "d1"}\n', "corpus.jsonl:1: text: not a text"),
        ("corpus", '{"_id": "d1", "text": "\\ud800"}\n', "corpus.jsonl:1: text: not valid UTF-8"),
        ("queries", '{"text": "w1"}\n', "queries.jsonl:1: _id: missing"),
        ("queries", '"q1"\n', "queries.jsonl:1: row: not an object"),
    ],
)
def test_bad_beir_rows_are_located(beir, part, content, expected):
    folder = beir()
    (folder / f"{part}.jsonl").write_text(content)
    assert expected in message(folder)


@pytest.mark.parametrize(
    ("qrels", "expected"),
    [
        ("q1\td1\tyes\n", "test.tsv:2: score: not a relevance, got 'yes'"),
        ("q1\td1\tnan\n", "test.tsv:2: score: not a relevance"),
        ("q1\td1\n", "test.tsv:2: row: another number of fields"),
        ("q1\td1\t1\nq1\td1\t2\n", "test.tsv:3: score: two values for one pair"),
    ],
)
def test_bad_qrels_are_located(beir, qrels, expected):
    assert expected in message(beir(qrels=qrels))


@pytest.mark.parametrize("part", ["corpus.jsonl", "queries.jsonl"])
def test_a_missing_part_of_a_beir_folder(beir, part):
    folder = beir()
    (folder / part).unlink()
    assert f"{part}: no such file" in message(folder)


# -- scored pairs ----------------------------------------------------------------------------------------------------


def test_tsv_has_no_quoting_and_csv_has(pairs):
    task = found(pairs("a.tsv", 'sentence1\tsentence2\tscore\n"w1\tw2"\t1.5\nw3\tw4\t-2\n'))
    assert isinstance(task, PairTask)
    assert task.pairs[0] == (plain('"w1'), plain('w2"'))
    assert task.scores.tolist() == [1.5, -2]
    task = found(pairs("b.csv", 'sentence1,sentence2,score\n"w1, w2","a ""b""",1\nw3,w4,0\n'))
    assert task.pairs[0] == (plain("w1, w2"), plain('a "b"'))


@pytest.mark.parametrize(
    "content",
    [
        "query\ttitle\trelevance\nw1\tw2\t1\nw3\tw4\t0\n",
        "left\tright\tgold\nw1\tw2\t1\nw3\tw4\t0\n",
        "id\tscore\tsentence2\tsentence1\n7\t1\tw2\tw1\n8\t0\tw4\tw3\n",
    ],
    ids=["known", "three others by place", "known among more"],
)
def test_columns_by_name_or_place(pairs, content):
    task = found(pairs("a.tsv", content))
    assert task.pairs == [(plain("w1"), plain("w2")), (plain("w3"), plain("w4"))]
    assert task.scores.tolist() == [1, 0]


HEADER = "sentence1\tsentence2\tscore\n"


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (HEADER + "w1\tw2\t1\n" * 15 + "w1\tw2\n", "bad.tsv:17: row: another number of fields than the first line"),
        (HEADER + "w1\tw2\tnan\n", "bad.tsv:2: score: not a score, got 'nan'; expected a finite number"),
        (HEADER + "w1\tw2\tinf\n", "bad.tsv:2: score: not a score"),
        (HEADER + "w1\tw2\thigh\n", "bad.tsv:2: score: not a score, got 'high'"),
        (HEADER + "w1\tw\udcff\t1\n", "bad.tsv:2: text 2: not valid UTF-8"),
        (HEADER + "w1\tw2\t3\nw3\tw4\t3\n", "bad.tsv: no correlation can be measured on 2 pairs: all scores are 3"),
        (HEADER, "bad.tsv: no correlation can be measured on 0 pairs"),
        ("", "bad.tsv: empty"),
        ("w1\tw2\t1\nw3\tw4\t0\n", "bad.tsv: the first line has the score '1', expected a header"),
        ("a\tb\nw1\tw2\n", "bad.tsv: 2 columns by the first line"),
    ],
)
def test_bad_pairs_are_located(pairs, content, expected):
    assert expected in message(pairs("bad.tsv", content))


# -- the unified format ----------------------------------------------------------------------------------------------


def test_ir_rows_share_one_corpus(tmp_path, write_jsonl):
    rows = [
        {"task_type": "ir", "query": ["find", "", "w1"], "positives": ["w2", "w3"], "negatives": ["w4"]},
        {"task_type": "ir", "query": "w5", "positives": ["w4"], "negatives": ["w2"]},
        {"task_type": "ir", "query": ["find", "", "w1"], "positives": ["w4"]},
    ]
    task = found(write_jsonl(tmp_path / "ir.jsonl", rows))
    assert isinstance(task, RetrievalTask)
    texts = {id_: text.text for id_, text in task.corpus.items()}
    assert sorted(texts.values()) == ["w2", "w3", "w4"]
    relevant = {task.queries[query]: {texts[d] for d in documents} for query, documents in task.qrels.items()}
    assert relevant == {Text("find", "", "w1"): {"w2", "w3", "w4"}, plain("w5"): {"w4"}}


def test_each_task_type_of_a_file_is_a_task(tmp_path, write_jsonl):
    rows = [
        {"task_type": "ir", "query": "w1", "positives": ["w2"]},
        {"task_type": "sts", "query": "w1", "positives": ["w2", "w3"], "positive_scores": [4.5, 1]},
        {"task_type": "pair_classification", "query": "w1", "positives": ["w2"], "positive_scores": [1]},
        {"task_type": "pair_classification", "query": "w1", "positives": ["w3"], "positive_scores": [0]},
        {"task_type": "reranking", "query": "w1", "positives": ["w2"], "negatives": ["w3", "w4"]},
        {"task_type": "reranking", "query": "w1", "positives": ["w2"]},
    ]
    path = write_jsonl(tmp_path / "all.jsonl", rows)
    tasks = {task.type: task for task in discover(path)}
    assert {task.name for task in tasks.values()} == {f"all:{kind}" for kind in tasks}
    assert tasks["sts"].pairs == [(plain("w1"), plain("w2")), (plain("w1"), plain("w3"))]
    assert tasks["sts"].scores.tolist() == [4.5, 1]
    assert tasks["pair_classification"].scores.tolist() == [1, 0]
    reranking = tasks["reranking"]
    assert isinstance(reranking, RerankingTask)
    assert [row.relevance for row in reranking.rows] == [[1, 0, 0]]
    assert reranking.counts["rows_without_negatives"] == 1
    assert [task.type for task in discover(path, task_type="sts")] == ["sts"]


def test_other_task_types_say_what_is_supported(tmp_path, write_jsonl):
    rows = [{"task_type": "classification", "query": "w1", "positives": ["label"]}]
    path = write_jsonl(tmp_path / "c.jsonl", rows)
    assert "has rows of classification, which this command does not evaluate. It evaluates ir, sts" in message(path)


def test_reranking_without_negatives_has_nothing_to_order(tmp_path, write_jsonl):
    path = write_jsonl(tmp_path / "r.jsonl", [{"task_type": "reranking", "query": "w1", "positives": ["w2"]}])
    assert "no row has both positives and negatives" in message(path)


# -- folders and names -----------------------------------------------------------------------------------------------


def test_a_folder_of_everything(tmp_path, beir, pairs, write_jsonl):
    beir("data/retrieval/wiki")
    pairs("data/sts.tsv", HEADER + "w1\tw2\t1\nw3\tw4\t0\n")
    pairs("data/README.md", "# not data")
    pairs("data/rows.rejected.jsonl", "not data\n")
    write_jsonl(tmp_path / "data" / "ir.jsonl", [{"query": "w1", "positives": ["w2"]}])
    assert [(task.name, task.type) for task in discover(tmp_path / "data")] == [
        ("ir", "ir"),
        ("wiki", "ir"),
        ("sts", "sts"),
    ]
    assert [task.name for task in discover(tmp_path / "data", task_type="ir")] == ["ir", "wiki"]
    assert "no reranking task found" in message(tmp_path / "data", task_type="reranking")


def test_equal_names_are_told_apart_and_one_path_counts_once(pairs):
    content = HEADER + "w1\tw2\t1\nw3\tw4\t0\n"
    paths = [pairs(name, content) for name in ("en/dev.tsv", "zh/dev.tsv", "zh/test.tsv")]
    assert [task.name for task in discover(paths)] == ["en/dev", "zh/dev", "test"]
    assert "given 2 times" in message([paths[0], paths[0]])


def test_missing_unknown_and_empty_paths(tmp_path, pairs):
    assert "nowhere: no such file or directory; expected a BEIR folder" in message(tmp_path / "nowhere")
    assert "a.docx: not a file that can be evaluated" in message(pairs("a.docx", "x"))
    (tmp_path / "empty").mkdir()
    assert "empty: nothing to evaluate found" in message(tmp_path / "empty")
