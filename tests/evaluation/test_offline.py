import datasets
import hub_layout
import mteb
import pytest

from codiemb.evaluation import benchmark
from codiemb.evaluation.offline import MissingDataError, attach, missing_files

CMTEB = "MTEB(cmn, v1)"


@pytest.fixture(autouse=True)
def _own_datasets_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")


@pytest.fixture
def hub(tmp_path):
    hub_layout.write(tmp_path / "hub")
    return tmp_path / "hub"


def task(name):
    return benchmark.select(CMTEB, tasks=[name])[0]


def multilingual(name, *subsets):
    chosen = mteb.get_task(name)
    chosen.hf_subsets = list(subsets)
    return chosen


@pytest.mark.parametrize("name", hub_layout.TASKS)
def test_all_of_a_layout_is_found_and_read(hub, name):
    original = task(name)
    published = dict(original.metadata.dataset)
    assert missing_files(original, hub) == []
    attached = attach(original, hub)
    attached.load_data()
    content = hub_layout.rows()[published["path"]]
    if "corpus" in content:
        read = attached.dataset["default"]["dev"]
        for part in ("corpus", "queries"):
            rows = next(iter(content[part].values()))
            assert list(read[part]["id"]) == [row["_id"] for row in rows]
            assert list(read[part]["text"]) == [row["text"] for row in rows]
        assert (read["top_ranked"] is None) == (name == "MedicalRetrieval")
    else:
        for split, rows in content["default"].items():
            assert len(attached.dataset[split]) == len(rows)
            (column,) = {"text", "sentences", "sentence1"} & set(attached.dataset[split].column_names)
            first = next(rows[0][key] for key in (column, "sent1") if key in rows[0])
            assert attached.dataset[split][0][column] == first
    assert original.metadata.dataset == published  # mteb's own object is not touched


def test_parts_of_a_multilingual_task_are_folders(tmp_path):
    sts = multilingual("SemRel24STS", "afr", "arb")
    folder = tmp_path / sts.metadata.dataset["path"]
    hub_layout.write_jsonl(folder / "afr" / "test.jsonl", [{"sentence1": "a", "sentence2": "b", "score": 1.0}])
    assert missing_files(sts, tmp_path) == [f"{folder}/arb/test.{{parquet,jsonl,csv}}"]
    sts = multilingual("SemRel24STS", "afr")
    assert missing_files(sts, tmp_path) == []
    attached = attach(sts, tmp_path)
    attached.load_data()
    assert attached.dataset["afr"]["test"]["sentence2"][0] == "b"


def test_missing_files_are_named(hub):
    path = f"{hub}/mteb/T2Retrieval"
    assert missing_files(task("T2Retrieval"), hub) == [
        f"{path}/ with corpus.{{parquet,jsonl,csv}}, queries.{{parquet,jsonl,csv}}, qrels/dev.{{parquet,jsonl,csv}}"
    ]
    (hub / "mteb/T2Reranking/top_ranked.jsonl").unlink()
    (hub / "mteb/T2Reranking/queries.jsonl").unlink()
    path = f"{hub}/mteb/T2Reranking"
    assert missing_files(task("T2Reranking"), hub) == [
        f"{path}/queries.{{parquet,jsonl,csv}}",
        f"{path}/top_ranked.{{parquet,jsonl,csv}}",
    ]
    (hub / "C-MTEB/waimai-classification/train.csv").unlink()
    assert missing_files(task("Waimai"), hub) == [f"{hub}/C-MTEB/waimai-classification/train.{{parquet,jsonl,csv}}"]
    (hub / "mteb/STSB/test.jsonl").rename(hub / "mteb/STSB/dev.jsonl")
    with pytest.raises(MissingDataError, match=r"mteb/STSB is not complete under .*/STSB/test"):
        attach(task("STSB"), hub)


def test_a_card_that_names_files_that_are_not_there(hub):
    (hub / "mteb/MedicalRetrieval/corpus/part-1.jsonl").unlink()
    (missing,) = missing_files(task("MedicalRetrieval"), hub)
    assert missing.startswith(f"{hub}/mteb/MedicalRetrieval/ with corpus.")
    assert missing.endswith(f"; No (supported) data files found in {hub}/mteb/MedicalRetrieval")


def test_files_that_cannot_be_read_together(hub):
    hub_layout.write_csv(hub / "mteb/STSB/validation.csv", [{"sentence1": "a", "sentence2": "b", "score": 1}])
    (missing,) = missing_files(task("STSB"), hub)
    assert "several formats (.csv, .json)" in missing
    (hub / "mteb/MedicalRetrieval/README.md").write_text("---\nconfigs: [\n---\n")
    (missing,) = missing_files(task("MedicalRetrieval"), hub)
    assert "the YAML at its head cannot be read" in missing


def test_the_revision_is_that_of_the_data(hub):
    def revision():
        return attach(task("STSB"), hub).metadata.revision

    before = revision()
    assert revision() == before
    (hub / "mteb/STSB/.cache").mkdir()
    (hub / "mteb/STSB/.cache/lock").write_text("x")
    assert revision() == before
    file = hub / "mteb/STSB/test.jsonl"
    file.write_text(file.read_text().replace("4.8", "4.7", 1))
    changed = revision()
    assert changed != before
    card = hub / "mteb/STSB/README.md"
    card.write_text("---\nlicense: mit\n---\nWords.\n")
    assert revision() == changed
    card.write_text("---\nconfigs:\n- {config_name: default, data_files: [{split: test, path: test.jsonl}]}\n---\n")
    assert revision() != changed


@pytest.mark.parametrize("name", ["STSB", "MedicalRetrieval"])
def test_changed_files_are_not_read_from_a_cache(hub, name):
    def size():
        attached = attach(task(name), hub)
        attached.load_data()
        data = attached.dataset
        return len(data["test"]) if name == "STSB" else len(data["default"]["dev"]["corpus"])

    before = size()
    file = hub / ("mteb/STSB/test.jsonl" if name == "STSB" else "mteb/MedicalRetrieval/corpus/part-1.jsonl")
    file.write_text("".join(file.read_text().splitlines(keepends=True)[:-1]))
    assert size() == before - 1


def test_one_data_set_in_two_places(hub, tmp_path):
    hub_layout.write(tmp_path / "copy")
    for root in (hub, tmp_path / "copy", hub):
        attached = attach(task("MedicalRetrieval"), root)
        attached.load_data()
        assert len(attached.dataset["default"]["dev"]["queries"]) == 8


def test_an_aggregate_needs_the_data_of_all_its_parts(tmp_path):
    chosen = mteb.get_task("CQADupstackRetrieval")
    assert len(missing_files(chosen, tmp_path)) == len(chosen.metadata.tasks) > 1
    with pytest.raises(MissingDataError, match="mteb/CQADupstackAndroidRetrieval is not complete"):
        attach(chosen, tmp_path)
