"""mteb's tasks through codiemb, against mteb run by hand on the same model with the same prompts."""

import copy
import json
import re

import datasets
import hub_layout
import mteb
import pytest
import torch
from datasets import Dataset, DatasetDict
from mteb.abstasks.retrieval_dataset_loaders import RetrievalSplitData
from mteb.models.sentence_transformer_wrapper import SentenceTransformerEncoderWrapper
from sentence_transformers import SentenceTransformer
from tiny_models import assemble, byte_bpe_tokenizer, save_decoder

from codiemb.embedder import LLMEmbeddingModel
from codiemb.evaluation import benchmark, benchmark_progress, mteb_model
from codiemb.evaluation.mteb_model import InstructedEncoder, read_instructions
from codiemb.instructions import TASK_INSTRUCTIONS, TaskInstruction

CMTEB = "MTEB(cmn, v1)"


@pytest.fixture(autouse=True)
def _own_datasets_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    root = tmp_path_factory.mktemp("hub")
    hub_layout.write(root)
    return root


@pytest.fixture(scope="module")
def reader_of_instructions(tmp_path_factory):
    """A random decoder that has room for an instruction."""
    directory = tmp_path_factory.mktemp("decoder")
    save_decoder(directory, tokenizer=byte_bpe_tokenizer(model_max_length=256))
    model = assemble(directory, "lasttoken", include_prompt=False)
    return LLMEmbeddingModel(model, device="cpu", compute="fp32", template="youtu")


@pytest.fixture
def encoder(tiny_model_directory):
    model = LLMEmbeddingModel(tiny_model_directory, device="cpu", compute="fp32")
    return InstructedEncoder(model, "tests/tiny")


def run(encoder, names, output, root, **options):
    tasks = benchmark.select(CMTEB, tasks=names)
    return list(benchmark.run(encoder, tasks, output, dataset_root=root, **options))


def result(output, encoder, name):
    return json.loads((benchmark.result_folder(output, encoder) / f"{name}.json").read_text())


def log(output, encoder):
    return hub_layout.json_lines(benchmark.result_folder(output, encoder) / benchmark.LOG_FILE)


# -- equal to mteb ---------------------------------------------------------------------------------------------------


def filled_by_hand(name):
    """The task as mteb makes it, its data put in without any loader."""
    (task,) = (copy.copy(task) for task in mteb.get_benchmark(CMTEB).tasks if task.metadata.name == name)
    content = hub_layout.rows()[task.metadata.dataset["path"]]
    if "corpus" in content:
        parts = {config: next(iter(splits.values())) for config, splits in content.items()}
        relevant = {}
        for row in parts.get("default", parts.get("qrels")):
            relevant.setdefault(row["query-id"], {})[row["corpus-id"]] = row["score"]
        texts = {
            part: Dataset.from_list([{"id": row["_id"], "text": row["text"]} for row in parts[part]])
            for part in ("corpus", "queries")
        }
        top = {row["query-id"]: row["corpus-ids"] for row in parts.get("top_ranked", ())} or None
        task.dataset = {"default": {"dev": RetrievalSplitData(relevant_docs=relevant, top_ranked=top, **texts)}}
    else:
        splits = {split: Dataset.from_list(rows) for split, rows in content["default"].items()}
        task.dataset = DatasetDict(splits)
        task.dataset_transform()
    task.data_loaded = True
    return task


def test_scores_equal_mteb_by_hand(hub, tmp_path):
    model = LLMEmbeddingModel("bundled", device="cpu", compute="fp32")
    encoder = InstructedEncoder(model, "tests/bundled")
    prompts = {task: "query: " for task in hub_layout.TASKS if task not in ("MedicalRetrieval", "T2Reranking")}
    prompts |= {"query": "query: ", "document": "passage: "}
    plain = SentenceTransformer(str(model[0].model.name_or_path), device="cpu")
    reference = SentenceTransformerEncoderWrapper(plain, model_prompts=prompts)
    outcomes = run(encoder, hub_layout.TASKS, tmp_path, hub)
    assert [(outcome.task, outcome.state, outcome.error) for outcome in outcomes] == [
        (name, "measured", "") for name in hub_layout.TASKS
    ]
    for outcome in outcomes:
        task = filled_by_hand(outcome.task)
        by_hand = mteb.evaluate(reference, task, cache=None, co2_tracker=False, show_progress_bar=False).task_results[0]
        assert outcome.score == pytest.approx(by_hand.get_score(), abs=1e-4), outcome.task
        assert by_hand.scores.keys() == result(tmp_path, encoder, outcome.task)["scores"].keys()
        assert outcome.main_metric == task.metadata.main_score
    assert len({round(outcome.score, 6) for outcome in outcomes}) > 4  # else the comparison says little


def test_prompts_of_a_model_that_reads_instructions(hub, tmp_path, reader_of_instructions):
    own = {
        "Waimai": TaskInstruction(query="Meal"),
        "MedicalRetrieval": TaskInstruction(query="Ask", document="Answer"),
    }
    encoder = InstructedEncoder(reader_of_instructions, "tests/tiny", own)
    assert {outcome.error for outcome in run(encoder, hub_layout.TASKS, tmp_path, hub)} == {""}
    shown = {name: dict(sides) for name, sides in encoder.prompts.items()}
    assert shown.pop("MedicalRetrieval") == {"query": "Instruction: Ask \nQuery: ", "document": ""}
    assert shown.pop("T2Reranking") == {
        "query": f"Instruction: {TASK_INSTRUCTIONS['T2Reranking'].query} \nQuery: ",
        "document": "",
    }
    assert shown.pop("Waimai") == {"query": "Instruction: Meal \nQuery: "}
    for name, sides in shown.items():  # symmetric: all texts take the query side
        assert sides == {"query": f"Instruction: {TASK_INSTRUCTIONS[name].query} \nQuery: "}
    assert len(shown) == 4


def test_a_task_without_an_instruction_of_ours_takes_mtebs(reader_of_instructions):
    encoder = InstructedEncoder(reader_of_instructions, "tests/tiny")
    inputs = [{"text": ["a"]}]
    for name in ("STS12", "NFCorpus"):
        encoder.encode(inputs, task_metadata=mteb.get_task(name).metadata)
    assert encoder.prompts["NFCorpus"]["query"] == (
        "Instruction: Given a question, retrieve relevant documents that best answer the question \nQuery: "
    )
    assert encoder.prompts["STS12"]["query"] == "Instruction: Retrieve semantically similar text. \nQuery: "


def test_instructions_for_a_model_that_reads_none_are_an_error(encoder):
    with pytest.raises(ValueError, match=r"tests/e5 reads no instruction: its template is \{'query': 'query: '"):
        InstructedEncoder(encoder.model, "tests/e5", {"STSB": TaskInstruction(query="x")})


def test_embeddings_that_are_not_finite(encoder):
    with torch.no_grad():
        encoder.model[0].model.embeddings.word_embeddings.weight.fill_(torch.nan)
    with pytest.raises(ValueError, match="embedding of 'a' is not finite"):
        encoder.encode([{"text": ["a", "b"]}], task_metadata=mteb.get_task("STS12").metadata)


# -- results ---------------------------------------------------------------------------------------------------------


def test_results_are_in_mtebs_layout_and_kept(hub, tmp_path, encoder):
    started = []
    (first,) = run(encoder, ["STSB"], tmp_path, hub, on_start=lambda task: started.append(task.metadata.name))
    folder = tmp_path / "results" / "tests__tiny" / encoder.mteb_model_meta.revision
    assert {path.name for path in folder.iterdir()} == {
        "STSB.json",
        "STSB.items.parquet",
        "model_meta.json",
        "run_settings.jsonl",
        "tasks.jsonl",
    }
    loaded = mteb.ResultCache(tmp_path).load_task_result("STSB", encoder.mteb_model_meta)
    assert loaded.get_score() == pytest.approx(first.score, abs=1e-6)
    assert loaded.dataset_revision.startswith("local-")
    (line,) = log(tmp_path, encoder)
    assert (line["task"], line["type"], line["state"]) == ("STSB", "STS", "measured")
    assert (line["prompts"], line["error"]) == ({"query": "query: "}, "")
    encoder.model.embedding_pass.encode = None  # nothing is embedded again
    (again,) = run(encoder, ["STSB"], tmp_path, hub, on_start=lambda task: started.append(task.metadata.name))
    assert (again.state, again.score) == ("kept", pytest.approx(first.score, abs=1e-6))
    assert started == ["STSB"]
    assert len(log(tmp_path, encoder)) == 1
    (folder / "tasks.jsonl").unlink()  # as if the run had been killed before it wrote the line
    run(encoder, ["STSB"], tmp_path, hub)
    (line,) = log(tmp_path, encoder)
    assert (line["task"], line["type"], line["state"]) == ("STSB", "STS", "kept")


def test_half_a_line_of_the_log_costs_no_other(hub, tmp_path, encoder):
    run(encoder, ["STSB"], tmp_path, hub)
    file = benchmark.result_folder(tmp_path, encoder) / benchmark.LOG_FILE
    file.write_text(file.read_text()[:50])  # as a run that is killed leaves it
    run(encoder, ["AFQMC"], tmp_path, hub)
    half, whole = file.read_text().splitlines()
    assert len(half) == 50
    assert json.loads(whole)["task"] == "AFQMC"


def test_half_a_result_file_is_measured_again(hub, tmp_path, encoder):
    run(encoder, ["STSB"], tmp_path, hub)
    file = benchmark.result_folder(tmp_path, encoder) / "STSB.json"
    whole = file.read_text()
    file.write_text(whole[:200])
    (outcome,) = run(encoder, ["STSB"], tmp_path, hub)
    assert outcome.state == "measured"
    assert json.loads(file.read_text())["scores"] == json.loads(whole)["scores"]


def test_other_settings_and_weights_have_a_folder_of_their_own(tiny_model_directory):
    def revision(weight=0.0, instructions=None, **options):
        model = LLMEmbeddingModel(tiny_model_directory, device="cpu", **{"compute": "fp32", **options})
        with torch.no_grad():
            model[0].model.embeddings.word_embeddings.weight[5, 0] += weight
        return InstructedEncoder(model, "tests/tiny", instructions).mteb_model_meta.revision

    assert revision() == revision()
    changed = [
        revision(weight=1.0),
        revision(compute="bf16"),
        revision(max_length=32),
        revision(truncate_dim=8),
        revision(template="youtu"),
        revision(template="youtu", instructions={"STSB": TaskInstruction(query="x")}),
    ]
    assert len({revision(), *changed}) == 1 + len(changed)


def test_a_failing_task_is_recorded_and_the_rest_go_on(tmp_path, encoder):
    content = hub_layout.write(tmp_path / "hub")
    broken = tmp_path / "hub" / "mteb/STSB/test.jsonl"
    hub_layout.write_jsonl(broken, [{"sentence1": "a", "sentence2": "b"}] * 3)
    (tmp_path / "hub" / "C-MTEB/OCNLI/validation.jsonl").unlink()
    states = [(o.task, o.state) for o in run(encoder, ["STSB", "Ocnli", "AFQMC"], tmp_path / "out", tmp_path / "hub")]
    assert states == [("STSB", "failed"), ("Ocnli", "failed"), ("AFQMC", "measured")]
    lines = log(tmp_path / "out", encoder)
    assert [line["state"] for line in lines] == ["failed", "failed", "measured"]
    assert "'score'" in lines[0]["error"]
    assert "Traceback" in lines[0]["traceback"]
    assert "OCNLI/ with validation.{parquet,jsonl,csv}" in lines[1]["error"]
    hub_layout.write_jsonl(broken, content["mteb/STSB"]["default"]["test"])
    states = [(o.task, o.state) for o in run(encoder, ["STSB", "AFQMC"], tmp_path / "out", tmp_path / "hub")]
    assert states == [("STSB", "measured"), ("AFQMC", "kept")]


def test_a_score_that_is_not_a_number_is_a_failure(tmp_path, encoder):
    content = hub_layout.write(tmp_path / "hub")
    pairs = [{**pair, "score": 3.0} for pair in content["mteb/STSB"]["default"]["test"]]
    hub_layout.write_jsonl(tmp_path / "hub" / "mteb/STSB/test.jsonl", pairs)
    for _ in range(2):
        (outcome,) = run(encoder, ["STSB"], tmp_path / "out", tmp_path / "hub")
        assert (outcome.state, outcome.score) == ("failed", None)
        assert "cosine_spearman is not a number" in outcome.error


def test_changed_data_is_measured_again(tmp_path, encoder):
    content = hub_layout.write(tmp_path / "hub")
    (before,) = run(encoder, ["STSB"], tmp_path / "out", tmp_path / "hub")
    pairs = content["mteb/STSB"]["default"]["test"]
    hub_layout.write_jsonl(tmp_path / "hub" / "mteb/STSB/test.jsonl", pairs[:10])
    (after,) = run(encoder, ["STSB"], tmp_path / "out", tmp_path / "hub")
    assert after.state == "measured"
    assert after.score != before.score


# -- which tasks -----------------------------------------------------------------------------------------------------


def chosen(*arguments, **options):
    return [task.metadata.name for task in benchmark.select(*arguments, **options)]


def test_select_within_a_benchmark():
    assert len(chosen(CMTEB)) == 31
    assert chosen(CMTEB, types=["pair-classification"]) == ["Ocnli", "Cmnli"]
    assert chosen(CMTEB, types=["sts"], tasks=["LCQMC", "Ocnli"]) == ["LCQMC"]
    assert chosen(CMTEB, tasks=["STSB", "AFQMC", "STSB"]) == ["STSB", "AFQMC"]
    (task,) = benchmark.select(CMTEB, tasks=["STSB"])
    task.hf_subsets = []
    assert benchmark.select(CMTEB, tasks=["STSB"])[0].hf_subsets == ["default"]  # mteb's own object is not touched


def test_select_among_all_of_mtebs_tasks():
    assert chosen(tasks=["STS12", "CmedqaRetrieval"]) == ["STS12", "CmedqaRetrieval"]
    (task,) = benchmark.select(tasks=["STS22.v2"], languages=["cmn"])
    assert sorted(task.hf_subsets) == ["zh", "zh-en"]
    names = chosen(types=["STS"], languages=["cmn"])
    assert "LCQMC" in names
    assert "STS12" not in names


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"benchmark": "MTEB(cmn)"}, r"MTEB\(cmn\): no such benchmark; the nearest are .*MTEB\(cmn, v1\)"),
        ({"tasks": ["lcqcm"]}, "lcqcm: no such task; the nearest are LCQMC"),
        ({"benchmark": CMTEB, "tasks": ["STS12"]}, r"STS12: no such task of MTEB\(cmn, v1\); the nearest are"),
        (
            {"benchmark": CMTEB, "types": ["Summary"]},
            r"Summary: no such type of the chosen tasks; .*, Retrieval, STS\.$",
        ),
        ({"benchmark": CMTEB, "languages": ["english"]}, "english: no such language; expected ISO 639-3"),
        ({"benchmark": CMTEB, "languages": ["fra"]}, "No task of .* language"),
    ],
)
def test_unknown_names(arguments, expected):
    with pytest.raises(ValueError, match=expected):
        benchmark.select(**arguments)


@pytest.mark.parametrize("suffix", [".json", ".yaml"])
def test_instruction_files(tmp_path, suffix):
    file = tmp_path / f"own{suffix}"
    table = {"STSB": "说同样的话", "DuRetrieval": {"query": "Ask", "document": "Answer"}}
    file.write_text(json.dumps(table), encoding="utf-8")  # YAML too
    assert read_instructions(file, table) == {
        "STSB": TaskInstruction(query="说同样的话"),
        "DuRetrieval": TaskInstruction(query="Ask", document="Answer"),
    }


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("[1]", "expected a mapping of task names to instructions, got list"),
        ("{", "own.yaml: cannot be read"),
        ("STBS: x", "own.yaml: STBS: no such task. The nearest names are: STSB"),
        ("STSB: {passage: x}", "STSB: got {'passage': 'x'}, expected a text, or texts named query and document"),
        ("STSB: 3", "STSB: got 3"),
    ],
)
def test_bad_instruction_files(tmp_path, content, expected):
    (tmp_path / "own.yaml").write_text(content)
    with pytest.raises(ValueError, match=re.escape(expected)):
        read_instructions(tmp_path / "own.yaml", ["STSB", "LCQMC"])


# -- how long it takes -----------------------------------------------------------------------------------------------


def test_sizes_are_mtebs_statistics_of_the_chosen_splits():
    (stsb,) = benchmark.select(CMTEB, tasks=["STSB"])
    published = stsb.metadata.descriptive_stats["test"]
    assert benchmark_progress.characters(stsb) == published["number_of_characters"]
    (both,) = benchmark.select(tasks=["STSB"])
    assert benchmark_progress.characters(both) > benchmark_progress.characters(stsb)
    (part,) = benchmark.select(tasks=["STS22.v2"], languages=["deu"])
    (whole,) = benchmark.select(tasks=["STS22.v2"])
    assert benchmark_progress.characters(part) < benchmark_progress.characters(whole)


def test_time_left_follows_the_characters(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(benchmark_progress.time, "monotonic", lambda: now[0])
    sizes = {"STSB": 100, "LCQMC": 300, "AFQMC": None}
    monkeypatch.setattr(benchmark_progress, "characters", lambda task: sizes[task.metadata.name])
    progress = benchmark_progress.Progress(benchmark.select(CMTEB, tasks=list(sizes)))
    assert progress.total == 600  # the unknown size counts as the mean of the others
    assert progress.seconds_left is None
    progress.start("STSB")
    now[0] = 10
    progress.advance(50)
    assert (progress.done, progress.seconds_left) == (50, 110)
    now[0] = 20
    progress.end("STSB")  # ended early: fewer texts than published
    assert (progress.done, progress.seconds_left) == (100, 200)
    progress.end("LCQMC")  # kept
    assert (progress.done, progress.seconds_left) == (400, 80)


@pytest.mark.parametrize("compute", ["fp32", "bf16"])  # with and without a copy of the network for inference
def test_characters_are_reported_while_texts_are_embedded(tiny_model_directory, monkeypatch, compute):
    monkeypatch.setattr(mteb_model, "_WINDOW", 8)
    model = LLMEmbeddingModel(tiny_model_directory, device="cpu", compute=compute)
    encoder = InstructedEncoder(model, "tests/tiny")
    seen = []
    encoder.on_progress = seen.append
    texts = ["The train to Shanghai leaves at nine." * (1 + i % 3) for i in range(30)]
    encoder.encode([{"text": texts}], task_metadata=mteb.get_task("STS12").metadata)
    assert seen == [sum(map(len, texts[start : start + 8])) for start in range(0, 30, 8)]


def test_a_model_that_misses_its_instruction_is_warned_of(reader_of_instructions, caplog):
    encoder = InstructedEncoder(reader_of_instructions, "tests/decoder")
    metadata = mteb.get_task("STS12").metadata
    encoder.encode([{"text": ["a"]}], task_metadata=metadata)
    assert "so texts get no prompt" not in caplog.text
    without = metadata.model_copy(update={"name": "mine", "prompt": {"query": "", "document": ""}})
    encoder.encode([{"text": ["a"]}], task_metadata=without)
    assert "mine: the model's template reads an instruction and the task has none" in caplog.text
