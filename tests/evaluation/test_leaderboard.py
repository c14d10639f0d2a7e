import csv
import io
import json
import math
import random
import re
from pathlib import Path

import mteb
import pytest
from mteb.benchmarks.benchmark import Benchmark
from rich.console import Console

from codiemb.evaluation import leaderboard_tables as tables
from codiemb.evaluation import plots
from codiemb.evaluation.leaderboard import ALL_FOUND, DEFAULT_BENCHMARK, build
from codiemb.evaluation.published import PUBLISHED, TYPES
from codiemb.evaluation.runs import read_runs

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture(scope="module")
def benchmark() -> Benchmark:
    return mteb.get_benchmark(DEFAULT_BENCHMARK)


@pytest.fixture
def write(tmp_path, benchmark):
    """Writes results of a model in mteb's layout under `results/`; scores are random unless given."""

    def write_results(model="org/mine", revision="r1", *, tasks=None, scores=None, seed=0, root="results", meta=True):
        draw = random.Random(seed)
        folder = tmp_path / root / model.replace("/", "__") / revision
        folder.mkdir(parents=True, exist_ok=True)
        if meta:
            (folder / "model_meta.json").write_text(
                json.dumps({"name": model, "revision": revision, "n_parameters": 118_000_000})
            )
        for task in benchmark.tasks:
            name = task.metadata.name
            if tasks is not None and name not in tasks:
                continue
            by_split = (scores or {}).get(name, {split: draw.random() for split in task.eval_splits})
            write_result(folder, name, by_split, task.metadata.revision)
        return folder

    return write_results


def write_result(folder, name, by_split, revision="1"):
    content = {
        "task_name": name,
        "dataset_revision": revision,
        "mteb_version": mteb.__version__,
        "evaluation_time": 1.0,
        "scores": {
            split: [{"main_score": score, "hf_subset": "default", "languages": ["cmn-Hans"]}]
            for split, score in by_split.items()
        },
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(content))


def row_of(board, model):
    return next(row for row in board.rows if row.model == model)


def shown(renderable, width=200):
    stream = io.StringIO()
    Console(file=stream, width=width).print(renderable)
    return stream.getvalue()


# -- means -----------------------------------------------------------------------------------------------------------


def test_means_are_mtebs_own(write, tmp_path):
    models = {"intfloat/multilingual-e5-small": 0, "BAAI/bge-small-zh-v1.5": 1}  # mteb's table shows models it knows
    for model, seed in models.items():
        write(model, mteb.get_model_meta(model).revision, seed=seed)
    theirs = mteb.ResultCache(tmp_path).load_results(tasks=DEFAULT_BENCHMARK).get_benchmark_result()
    board = build(read_runs([tmp_path]))
    names = {"Mean(Task)": "Mean (Task)", "Mean(Type)": "Mean (TaskType)"}
    for _, line in theirs.iterrows():
        for column in board.columns:
            expected = 100 * line[names.get(column, column)]
            assert row_of(board, line["Model"]).means[column].value == pytest.approx(expected), column
    assert len(theirs) == 2


def test_a_task_of_two_splits_is_their_mean_and_needs_both(write, tmp_path):
    write("org/both", scores={"MultilingualSentiment": {"validation": 0.5, "test": 0.7}})
    write("org/one", scores={"MultilingualSentiment": {"validation": 0.5}})
    write("org/more", scores={"STSB": {"validation": 0.9, "test": 0.4, "train": 0.1}})
    board = build(read_runs([tmp_path]), published=False)
    assert row_of(board, "org/both").scores["MultilingualSentiment"] == pytest.approx(60)
    one = row_of(board, "org/one")
    assert "MultilingualSentiment" not in one.scores
    assert (one.means["Classification"].n, one.means["Classification"].of) == (5, 6)
    assert any("MultilingualSentiment counts as missing: no score of test/default" in note for note in board.notes)
    splits = next(
        task for task in mteb.get_benchmark(DEFAULT_BENCHMARK).tasks if task.metadata.name == "STSB"
    ).eval_splits
    expected = {"validation": 0.9, "test": 0.4}
    mean = 100 * sum(expected[split] for split in splits) / len(splits)
    assert row_of(board, "org/more").scores["STSB"] == pytest.approx(mean)


def test_missing_tasks_are_never_averaged_over_silently(write, tmp_path, benchmark):
    sts = [task.metadata.name for task in benchmark.tasks if task.metadata.type == "STS"]
    high = {task.metadata.name: dict.fromkeys(task.eval_splits, 0.99) for task in benchmark.tasks}
    write("org/whole", seed=1)
    write("org/sts-only", tasks=sts, scores=high)
    write("org/part", tasks=[*sts[:3], "T2Retrieval"], scores=high)
    board = build(read_runs([tmp_path]))
    part = row_of(board, "org/part")
    assert (part.means["Mean(Task)"].n, part.means["Mean(Task)"].of) == (4, 31)
    assert part.means["Clustering"].value is None
    assert not part.means["STS"].complete
    assert row_of(board, "org/sts-only").means["STS"].complete
    # 99 is the highest number of every column, and is best only where it is a mean of all tasks.
    assert board.best("STS") == 99
    assert board.best("Mean(Task)") < 99
    assert board.best("Retrieval") < 99
    assert [row.model for row in board.rows[-2:]] == ["org/sts-only", "org/part"]
    assert any("org/part: no result of 27 of 31 tasks: all of Classification" in note for note in board.notes)


def test_a_score_that_is_no_number_counts_as_missing(write, tmp_path):
    write("org/nan", scores={"BQ": {"test": math.nan, "validation": math.nan}})
    board = build(read_runs([tmp_path]), published=False)
    assert "BQ" not in board.rows[0].scores
    assert any("BQ counts as missing" in note for note in board.notes)


# -- which results ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", [".", "results", "results/org__mine", "results/org__mine/r1", "STSB.json"])
@pytest.mark.parametrize("meta", [True, False])
def test_folders_of_any_level(write, tmp_path, level, meta):
    folder = write(tasks=["STSB"], meta=meta)
    (run,) = read_runs([folder / level if level.endswith("json") else tmp_path / level])
    assert (run.model, run.revision) == ("org/mine", "r1")
    assert set(run.results) == {"STSB"}


def test_a_flat_folder_is_named_by_itself(tmp_path):
    write_result(tmp_path / "mine", "STSB", {"test": 0.5})
    (run,) = read_runs([tmp_path / "mine"])
    assert run.model == "mine"


def test_a_folder_given_twice_counts_once(write, tmp_path):
    folder = write(tasks=["STSB"])
    assert len(read_runs([tmp_path, folder])) == 1


def test_files_of_one_folder_given_one_by_one(write):
    folder = write(tasks=["STSB", "BQ", "LCQMC"])
    (run,) = read_runs([folder / "STSB.json", folder / "BQ.json"])
    assert set(run.results) == {"STSB", "BQ"}


def test_a_folder_of_broken_results_only_is_not_passed_over_in_silence(write, tmp_path, caplog):
    write(tasks=["STSB"])
    broken = tmp_path / "results" / "org__broken" / "r1"
    broken.mkdir(parents=True)
    (broken / "BQ.json").write_text('{"task_name": "BQ", "sco')
    assert len(read_runs([tmp_path])) == 1
    assert "org__broken/r1/BQ.json: not JSON" in caplog.text


def test_data_of_other_revisions_is_said_so(tmp_path):
    for model, revision in {"org__a": "local-0123456789ab", "org__b": "local-ba9876543210"}.items():
        write_result(tmp_path / model / "r1", "faq", {"test": 0.5}, revision)
        write_result(tmp_path / model / "r1", "STSB", {"test": 0.5, "validation": 0.5})
    for benchmark_name, differs in ((ALL_FOUND, True), (DEFAULT_BENCHMARK, False)):
        notes = "\n".join(build(read_runs([tmp_path]), benchmark_name).notes)
        assert ("faq: the data was of several revisions (local-0123456789ab, local-ba9876543210)" in notes) == differs
        assert "STSB: the data" not in notes


def test_a_file_named_like_the_log_from_elsewhere(write):
    folder = write(tasks=["STSB"])
    (folder / "tasks.jsonl").write_text('["a list"]\n{"task": "STSB", "type": "STS"}\n')
    (run,) = read_runs([folder])
    assert set(run.results) == {"STSB"}
    assert [problem.partition("jsonl")[2][:3] for problem in run.problems] == [":1:", ":2:"]


def test_labels_tell_revisions_and_folders_apart(write, tmp_path):
    write(revision="a" * 40, tasks=["STSB"])
    write(revision="b" * 40, tasks=["STSB"])
    write("org/other", tasks=["STSB"])
    write("org/other", tasks=["STSB"], root="again")
    board = build(read_runs([tmp_path]), published=False)
    labels = {row.model for row in board.rows}
    assert {"org/mine@aaaaaaaa", "org/mine@bbbbbbbb"} <= labels
    assert sum(label.startswith("org/other (") for label in labels) == 2


def test_other_json_is_passed_over_and_broken_results_are_named(write, tmp_path):
    folder = write(tasks=["STSB", "BQ"])
    (folder / "config.json").write_text('{"hidden_size": 3}')
    (folder / "BQ.json").write_text('{"task_name": "BQ", "sco')
    (folder / "LCQMC.json").write_text(
        '{"task_name": "LCQMC", "scores": {"test": [{"nothing": 1}]}, "mteb_version": "2.0"}'
    )
    board = build(read_runs([tmp_path]), published=False)
    notes = "\n".join(board.notes)
    assert board.rows[0].means["STS"].n == 1
    assert "BQ.json: not JSON" in notes
    assert "LCQMC.json: mteb cannot read this result" in notes
    assert "config.json" not in notes


def test_failures_of_an_evaluation_are_shown(write, tmp_path):
    folder = write(tasks=["STSB"])
    lines = [
        {"task": "BQ", "type": "STS", "state": "failed", "error": "OSError: no disk"},
        {"task": "LCQMC", "type": "STS", "state": "failed", "error": "RuntimeError: once"},
        {"task": "LCQMC", "type": "STS", "state": "measured", "error": ""},
    ]
    (folder / "tasks.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"task": "QB')
    notes = "\n".join(build(read_runs([tmp_path])).notes)
    assert "org/mine: BQ failed: OSError: no disk" in notes
    assert "RuntimeError: once" not in notes
    assert "tasks.jsonl:4: not JSON" in notes
    board = build(read_runs([tmp_path]), ALL_FOUND)
    assert (set(board.tasks), board.rows[0].means["STS"].n) == ({"STSB", "BQ"}, 1)


def test_tasks_that_mteb_does_not_know_have_the_type_of_the_evaluations_log(write, tmp_path):
    folder = write(tasks=["STSB"])
    write_result(folder, "our-search", {"test": 0.25})
    write_result(folder, "unlogged", {"test": 0.125})
    (folder / "tasks.jsonl").write_text(
        json.dumps({"task": "our-search", "type": "Retrieval", "state": "measured", "error": ""}) + "\n"
    )
    board = build(read_runs([tmp_path]), ALL_FOUND)
    assert board.tasks == {"our-search": "Retrieval", "STSB": "STS", "unlogged": "Other"}
    assert board.rows[0].means["Retrieval"].value == 25
    (row,) = board.rows  # published rows are of another set of tasks
    assert row.means["Mean(Type)"].value == pytest.approx((25 + 12.5 + row.scores["STSB"]) / 3)
    default = build(read_runs([tmp_path]))
    assert default.benchmark == DEFAULT_BENCHMARK
    assert any("left out, not in the benchmark: our-search, unlogged" in note for note in default.notes)


def test_all_tasks_found_say_where_models_were_scored_on_different_splits(write, tmp_path):
    both = {"STSB": {"validation": 0.5, "test": 0.7}, "BQ": {"test": 0.5}}
    write("org/both", tasks=["STSB", "BQ"], scores=both)
    write("org/test", tasks=["STSB", "BQ"], scores={"STSB": {"test": 0.7}, "BQ": {"test": 0.6}})
    board = build(read_runs([tmp_path]), ALL_FOUND)
    assert row_of(board, "org/both").scores["STSB"] == pytest.approx(60)
    assert [note.split(":")[0] for note in board.notes] == ["STSB"]
    assert build(read_runs([tmp_path])).best_score("STSB") == 70  # the benchmark says which split counts


def test_a_benchmark_by_another_name(write, tmp_path):
    alias = next(iter(mteb.get_benchmark(DEFAULT_BENCHMARK).aliases))
    write(tasks=["STSB"])
    board = build(read_runs([tmp_path]), alias)
    assert (board.benchmark, len(board.rows)) == (DEFAULT_BENCHMARK, 9)


def test_without_a_task_of_the_default_benchmark_all_found_are_shown(tmp_path):
    write_result(tmp_path / "org__mine" / "r1", "our-search", {"test": 0.25})
    assert build(read_runs([tmp_path])).benchmark == ALL_FOUND


@pytest.mark.parametrize(
    ("make", "benchmark_name", "expected"),
    [
        (lambda folder: None, None, "no such file or folder"),
        (lambda folder: folder.mkdir(parents=True), None, "No results under"),
        (
            lambda folder: write_result(folder, "STSB", {"test": 1.0}),
            "MTEB(xyz)",
            "mteb has no benchmark named 'MTEB(xyz)'",
        ),
        (lambda folder: write_result(folder, "mine", {"test": 1.0}), DEFAULT_BENCHMARK, "there are results of mine"),
    ],
)
def test_errors_say_what_to_do(tmp_path, make, benchmark_name, expected):
    make(tmp_path / "results")
    with pytest.raises((ValueError, FileNotFoundError), match=re.escape(expected)):
        build(read_runs([tmp_path / "results"]), benchmark_name)


def test_two_results_of_one_task_in_one_folder(write, tmp_path):
    folder = write(tasks=["STSB"])
    (folder / "copy.json").write_text((folder / "STSB.json").read_text())
    with pytest.raises(ValueError, match="holds two results of STSB"):
        read_runs([tmp_path])


# -- published rows --------------------------------------------------------------------------------------------------


def test_published_means_follow_from_their_types(benchmark):
    types = [task.metadata.type for task in benchmark.tasks]
    table = PUBLISHED[DEFAULT_BENCHMARK]
    assert len(table.rows) == 8
    for row in table.rows:
        assert row.mean_type == pytest.approx(sum(row.types) / 6, abs=0.011)
        weighted = sum(types.count(name) * score for name, score in zip(TYPES, row.types, strict=True)) / 31
        assert row.mean_task == pytest.approx(weighted, abs=0.011)


def test_published_rows_can_be_left_out_and_rank_among_the_others(write, tmp_path, benchmark):
    write(scores={task.metadata.name: dict.fromkeys(task.eval_splits, 0.77) for task in benchmark.tasks})
    board = build(read_runs([tmp_path]))
    assert [row.model for row in board.rows][:3] == ["Youtu-Embedding-V1", "org/mine", "QZhou-Embedding"]
    assert board.best("Mean(Task)") == 77.58
    assert any(PUBLISHED[DEFAULT_BENCHMARK].source in note and "2025-09-28" in note for note in board.notes)
    assert len(build(read_runs([tmp_path]), published=False).rows) == 1


# -- output ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def board(write, tmp_path, benchmark):
    write("org/my_model", seed=1)
    write("org/part|x", tasks=["STSB", "T2Retrieval"], seed=2)
    return build(read_runs([tmp_path]))


def test_terminal_tables(board):
    text = shown(tables.summary_table(board))
    mine = row_of(board, "org/my_model")
    line = next(line for line in text.splitlines() if "org/my_model" in line)
    for mean in mine.means.values():
        assert f"{mean.value:.2f}" in line
    assert "118M" in line
    assert "31/31" in line
    assert "(2/31)" in text
    assert "–" in text
    narrow = shown(tables.summary_table(board, wide=False), width=80)
    assert all(len(line) <= 80 for line in narrow.splitlines())
    assert "…" not in narrow
    assert f"{mine.means['STS'].value:.2f}" in narrow
    detail = shown(tables.tasks_table(board))
    assert all(name in detail for name in board.tasks)


def test_best_is_bold_in_markdown_and_names_are_literal(board):
    text = tables.to_markdown(board)
    assert "| org/my\\_model | 118M |" in text
    assert "org/part\\|x" in text
    for column in board.columns:
        assert f"**{board.best(column):.2f}**" in text
    score = row_of(board, "org/part|x").means["STS"].value
    assert f"{score:.2f} (1/7)" in text
    assert f"**{score:.2f} (1/7)**" not in text
    assert text.count("| Retrieval |") == 8 + 1  # rows of tasks, and a heading


def test_csv_leaves_incomplete_means_empty(board):
    lines = {line["model"]: line for line in csv.DictReader(io.StringIO(tables.to_csv(board)))}
    assert len(lines) == 10
    mine, part = lines["org/my_model"], lines["org/part|x"]
    assert float(mine["Mean(Task)"]) == pytest.approx(row_of(board, "org/my_model").means["Mean(Task)"].value, abs=1e-4)
    assert (part["Mean(Task)"], part["STS"], part["tasks"], part["of"]) == ("", "", "2", "31")
    assert float(part["STSB"]) == pytest.approx(row_of(board, "org/part|x").scores["STSB"], abs=1e-4)
    assert lines["Youtu-Embedding-V1"]["published"] == "true"
    assert lines["Youtu-Embedding-V1"]["STSB"] == ""


def test_html_is_one_page_without_anything_to_fetch(board):
    text = tables.to_html(board)
    assert "<b>" in text
    assert '<tr class="own"><td>org/my_model</td>' in text
    assert not re.search(r"(src|href)=|<script|@import|url\(", text)


def test_json_has_everything(board):
    content = json.loads(json.dumps(board.to_dict(), allow_nan=False))
    assert content["rows"][0]["means"]["Mean(Task)"] == {"value": 77.58, "n": 31, "of": 31}
    assert content["tasks"]["STSB"] == "STS"


@pytest.mark.filterwarnings("error:.*missing from font.*")
def test_charts_show_every_model(board, write, tmp_path):
    write("组织/模型", tasks=["STSB"], seed=3)  # the default font has no Chinese
    board = build(read_runs([tmp_path]))
    bars = plots.bar_chart(board)
    labels = [label.get_text() for label in bars.axes[0].get_yticklabels()]
    assert labels == [
        row.model if row.model.isascii() else row.model.encode("ascii", "backslashreplace").decode()
        for row in board.rows
    ]
    widths = sorted(round(bar.get_width() + bar.get_x(), 2) for bar in bars.axes[0].patches)
    assert widths == sorted(round(row.means["Mean(Task)"].value, 2) for row in board.rows)
    hatched = [bar for bar in bars.axes[0].patches if bar.get_hatch()]
    assert len(hatched) == 2
    assert plots.png(bars).startswith(PNG)
    radar = plots.radar_chart(board)
    assert len(radar.axes[0].lines) == len(board.rows)
    assert plots.png(radar).startswith(PNG)


def test_a_radar_needs_three_axes(tmp_path):
    write_result(tmp_path / "org__mine" / "r1", "STSB", {"test": 0.25, "validation": 0.5})
    with pytest.raises(ValueError, match="needs three types of tasks, and there are 1"):
        plots.radar_chart(build(read_runs([tmp_path]), ALL_FOUND))


def test_bars_of_a_single_model_with_equal_scores(tmp_path):
    for name in ("STSB", "our-search"):
        write_result(tmp_path / "org__mine" / "r1", name, {"test": 0.5, "validation": 0.5})
    assert plots.png(plots.bar_chart(build(read_runs([tmp_path]), ALL_FOUND))).startswith(PNG)


def test_paths_may_be_strings(write, tmp_path):
    write(tasks=["STSB"])
    assert read_runs([str(tmp_path)])[0].folder.is_relative_to(Path(tmp_path))
