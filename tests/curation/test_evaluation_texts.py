"""Evaluation texts of every kind of source."""

import hub_layout
import pytest
from cleaning_rows import ir, write

from codiemb.curation.cleaning.evaluation_texts import evaluation_texts
from codiemb.data.examples import DataError


def found(*sources, **options):
    return [(one.side, one.text) for one in evaluation_texts([str(source) for source in sources], **options)]


def test_files(tmp_path):
    unified = write(tmp_path / "unified.jsonl", ir("问", "答", negatives=["错"]))
    documents = write(tmp_path / "documents.jsonl", {"_id": "1", "title": "题", "text": "文"})
    plain = tmp_path / "queries.txt"
    plain.write_text("一行\n\n二行\n", encoding="utf-8")
    table = tmp_path / "pairs.tsv"
    table.write_text("sentence1\tsentence2\tscore\n甲\t乙\t3.5\n", encoding="utf-8")
    assert found(unified) == [("query", "问"), ("document", "答"), ("document", "错")]
    assert found(documents) == [("document", "题\n文")]
    assert found(plain) == [("query", "一行"), ("query", "二行")]
    assert found(table) == [("query", "甲"), ("document", "乙")]
    assert len(found(tmp_path)) == 8  # the whole folder


def test_a_table_without_header(tmp_path):
    table = tmp_path / "pairs.csv"
    table.write_text("甲,乙,1\n丙,丁,0\n", encoding="utf-8")
    assert found(table) == [("query", "甲"), ("document", "乙"), ("query", "丙"), ("document", "丁")]


def test_beir_folder(tmp_path):
    write(tmp_path / "set/corpus.jsonl", {"_id": "d", "title": "", "text": "文"})
    write(tmp_path / "set/queries.jsonl", {"_id": "q", "text": "问"})
    assert found(tmp_path / "set") == found(tmp_path) == [("query", "问"), ("document", "文")]


def test_tasks_of_mteb_from_a_folder(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
    hub_layout.write(tmp_path / "hub")
    rows = hub_layout.rows()["mteb/MedicalRetrieval"]
    texts = found("MedicalRetrieval", dataset_root=tmp_path / "hub")
    assert {text for side, text in texts if side == "query"} == {
        row["text"] for row in next(iter(rows["queries"].values()))
    }
    documents = [text for side, text in texts if side == "document"]
    assert len(documents) == len(next(iter(rows["corpus"].values())))
    assert documents[0].endswith(next(iter(rows["corpus"].values()))[0]["text"])
    pairs = found("AFQMC", dataset_root=tmp_path / "hub")
    assert {side for side, _ in pairs} == {"query", "document"}
    assert {side for side, _ in found("Waimai", dataset_root=tmp_path / "hub")} == {"query"}


def test_neither_file_nor_task(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        found(tmp_path / "missing.jsonl")
    (tmp_path / "x.pdf").write_bytes(b"")
    with pytest.raises(DataError, match="not a kind"):
        found(tmp_path / "x.pdf")
