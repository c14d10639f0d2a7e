import numpy as np
import pytest

from codiemb.data.examples import DataError, Text
from codiemb.evaluation import discover
from codiemb.evaluation.discovery import discover_all
from codiemb.evaluation.tasks import LabelledTask


@pytest.fixture
def table(tmp_path):
    def write(content, name="t.tsv"):
        path = tmp_path / name
        path.write_text(content, encoding="utf-8")
        return path

    return write


def test_nli_pairs_are_pair_classification_without_the_neutral_ones(table):
    (task,) = discover(table("premise\thypothesis\tlabel\na\tb\tentailment\nc\td\tneutral\ne\tf\tcontradiction\n"))
    assert (task.type, task.counts) == ("pair_classification", {"empty_texts": 0, "neutral_pairs": 1})
    assert task.pairs == [(Text("", "", "a"), Text("", "", "b")), (Text("", "", "e"), Text("", "", "f"))]
    np.testing.assert_array_equal(task.scores, [1, 0])


def test_numbers_stay_scored_pairs_and_the_first_row_decides(table):
    (task,) = discover(table("sentence1\tsentence2\tlabel\na\tb\t1\nc\td\t0\n"))
    assert task.type == "sts"
    with pytest.raises(DataError, match=r"t.tsv:3: score: not a score, got 'entailment'"):
        discover(table("a\tb\tlabel\na\tb\t1\nc\td\tentailment\n"))
    with pytest.raises(DataError, match=r"t.tsv:3: label: not an NLI label, got '1'; expected entailment or contrad"):
        discover(table("a\tb\tlabel\na\tb\tentailment\nc\td\t1\n"))


def test_text_and_label_are_classification_and_clustering(table):
    path = table('id,label,text\n1,food,"bread, fresh"\n2,travel,train\n3,food,rice\n', "topics.csv")
    first, second = discover_all(path)
    assert isinstance(first, LabelledTask)
    assert (first.name, first.type) == ("topics:classification", "classification")
    assert (second.name, second.type) == ("topics:clustering", "clustering")
    assert list(first.texts) == [Text("", "", text) for text in ("bread, fresh", "train", "rice")]
    assert list(first.labels) == ["food", "travel", "food"]
    sample = first.sampled(2, seed=0)
    assert len(sample) == len(sample.labels) == 2
    assert set(zip(sample.texts, sample.labels, strict=True)) < set(zip(first.texts, first.labels, strict=True))


def test_a_second_text_makes_it_pairs(table):
    (task,) = discover_all(table("query\ttext\tlabel\na\tb\t1\nc\td\t0\n"))
    assert task.type == "sts"


def test_labelled_texts_need_mteb(table):
    with pytest.raises(DataError, match=r"t.tsv: has rows of classification, .* with --as-mteb labelled texts too"):
        discover(table("text\tlabel\na\tx\nb\ty\nc\tx\n"))


def test_labelled_rows_of_a_unified_file(tmp_path, write_jsonl):
    rows = [{"task_type": "clustering", "query": text, "positives": [label]} for text, label in ("ax", "bx", "cy")]
    (task,) = discover_all(write_jsonl(tmp_path / "rows.jsonl", rows))
    assert (task.name, task.type, list(task.labels)) == ("rows", "clustering", ["x", "x", "y"])
    rows[1]["positives"] = ["x", "y"]
    with pytest.raises(DataError, match="1 rows of clustering have several positives; expected one, the label"):
        discover_all(write_jsonl(tmp_path / "rows.jsonl", rows))
