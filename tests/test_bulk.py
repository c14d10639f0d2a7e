"""Embedding files: every row once and in order, whatever stops a run, and never rows of another model or input."""

import errno
import json

import numpy as np
import pyarrow.parquet as pq
import pytest
from tiny_models import TEXTS

from codiemb import bulk
from codiemb.bulk import BulkError, embed_rows
from codiemb.data.text_rows import TextRow
from codiemb.embedder import LLMEmbeddingModel

ROWS = [TextRow(None, f"{text} {number}") for number, text in enumerate(TEXTS * 3)]
WITH_IDS = [TextRow(f"d{number}", row.text) for number, row in enumerate(ROWS)]


@pytest.fixture(autouse=True)
def _small_parts(monkeypatch):
    monkeypatch.setattr(bulk, "PART_ROWS", 7)


@pytest.fixture(scope="module")
def model(tiny_model_directory):
    return LLMEmbeddingModel(tiny_model_directory, device="cpu", compute="fp32")


@pytest.fixture(scope="module")
def expected(model):
    return model.encode_passages([row.text for row in ROWS])


class Stop(Exception):
    pass


def stop_after(parts):
    """A progress callback that ends the run when so many parts are there."""
    seen = []

    def advance(rows, tokens):
        seen.append(tokens)
        if len([count for count in seen if count]) == parts:
            raise Stop

    return advance


# -- outputs -----------------------------------------------------------------------------------------------------------


def test_npy(model, expected, tmp_path):
    result = embed_rows(model, iter(ROWS), tmp_path / "out.npy")
    np.testing.assert_allclose(np.load(tmp_path / "out.npy"), expected, atol=2e-6)
    assert (result.rows, result.resumed, result.dimension) == (30, 0, 32)
    assert sorted(path.name for path in tmp_path.iterdir() if path.name[0] != ".") == ["out.npy"]


def test_npy_with_ids(model, expected, tmp_path):
    embed_rows(model, WITH_IDS, tmp_path / "out.npy")
    np.testing.assert_allclose(np.load(tmp_path / "out.npy"), expected, atol=2e-6)
    ids = [json.loads(line) for line in (tmp_path / "out.ids.jsonl").read_text().splitlines()]
    assert ids == [row.id for row in WITH_IDS]


def test_what_belongs_to_an_output_is_replaced_with_it(model, tmp_path):
    embed_rows(model, WITH_IDS, tmp_path / "out.npy", precision="int8")
    assert {path.name for path in tmp_path.iterdir()} == {"out.npy", "out.ids.jsonl", "out.ranges.npy"}
    embed_rows(model, ROWS, tmp_path / "out.npy", overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["out.npy"]


@pytest.mark.parametrize("keep_text", [True, False])
def test_parquet(model, expected, tmp_path, keep_text):
    embed_rows(model, WITH_IDS, tmp_path / "out.parquet", keep_text=keep_text)
    table = pq.read_table(tmp_path / "out.parquet")
    assert table.column_names == (["id", "text", "embedding"] if keep_text else ["id", "embedding"])
    assert str(table.schema.field("embedding").type) == "fixed_size_list<element: float>[32]"
    np.testing.assert_allclose(np.array(table["embedding"].to_pylist()), expected, atol=2e-6)
    assert table["id"].to_pylist() == [row.id for row in WITH_IDS]
    assert not keep_text or table["text"].to_pylist() == [row.text for row in ROWS]


def test_jsonl(model, expected, tmp_path):
    embed_rows(model, ROWS, tmp_path / "out.jsonl", keep_text=True)
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [row["index"] for row in rows] == list(range(30))
    assert [row["text"] for row in rows] == [row.text for row in ROWS]
    np.testing.assert_allclose([row["embedding"] for row in rows], expected, atol=2e-6)


def test_sides_and_instructions(model, tmp_path):
    embed_rows(model, ROWS, tmp_path / "queries.npy", side="query")
    wanted = model.encode_queries([row.text for row in ROWS])
    np.testing.assert_allclose(np.load(tmp_path / "queries.npy"), wanted, atol=2e-6)
    with_template = LLMEmbeddingModel(model, template="e5-instruct", compute="fp32")
    embed_rows(with_template, ROWS, tmp_path / "task.npy", side="query", instruction="Find it")
    wanted = with_template.encode_queries([row.text for row in ROWS], instruction="Find it")
    np.testing.assert_allclose(np.load(tmp_path / "task.npy"), wanted, atol=2e-6)
    assert np.abs(np.load(tmp_path / "task.npy") - np.load(tmp_path / "queries.npy")).max() > 1e-3


def test_empty_texts_have_vectors(model, tmp_path):
    rows = [TextRow(None, ""), TextRow(None, "a"), TextRow(None, "")]
    embed_rows(model, rows, tmp_path / "out.npy")
    np.testing.assert_allclose(np.load(tmp_path / "out.npy"), model.encode_passages(["", "a", ""]), atol=2e-6)


def test_half_a_character_can_be_written(model, tmp_path):
    embed_rows(model, [TextRow(None, "bad \ud800 text")], tmp_path / "out.parquet", keep_text=True)
    assert pq.read_table(tmp_path / "out.parquet")["text"].to_pylist() == ["bad \ufffd text"]


@pytest.mark.parametrize("precision", ["binary", "ubinary"])
def test_bits(model, tmp_path, precision):
    embed_rows(model, ROWS, tmp_path / "out.npy", precision=precision)
    wanted = model.encode_passages([row.text for row in ROWS], precision=precision)
    assert np.array_equal(np.load(tmp_path / "out.npy"), wanted)


def test_the_ranges_of_integers_are_those_of_many_rows(model, tmp_path, monkeypatch):
    monkeypatch.setattr(bulk, "PART_CHARACTERS", 50)  # a part of every row or two
    monkeypatch.setattr(bulk, "_RANGE_ROWS", 5)
    expected = model.encode_passages([row.text for row in ROWS])
    embed_rows(model, ROWS, tmp_path / "out.npy", precision="uint8")
    least, most = np.load(tmp_path / "out.ranges.npy")
    np.testing.assert_allclose([least, most], [expected[:5].min(axis=0), expected[:5].max(axis=0)], atol=2e-6)


def test_equal_rows_can_be_turned_back_from_integers(model, tmp_path):
    rows = [TextRow(None, "one text")] * 3
    embed_rows(model, rows, tmp_path / "out.npy", precision="int8")
    least, most = np.load(tmp_path / "out.ranges.npy")
    restored = least + (np.load(tmp_path / "out.npy").astype(np.float32) + 128) * (most - least) / 255
    np.testing.assert_allclose(restored, model.encode_passages(["one text"] * 3), atol=2e-6)


@pytest.mark.parametrize("precision", ["int8", "uint8"])
def test_integers_can_be_turned_back(model, expected, tmp_path, precision):
    with pytest.raises(Stop):  # the ranges survive
        embed_rows(model, ROWS, tmp_path / "out.npy", precision=precision, on_progress=stop_after(2))
    embed_rows(model, ROWS, tmp_path / "out.npy", precision=precision)
    least, most = np.load(tmp_path / "out.ranges.npy")
    assert np.array_equal([least, most], [expected[:7].min(axis=0), expected[:7].max(axis=0)])
    vectors = np.load(tmp_path / "out.npy")
    assert vectors.dtype == precision
    steps = vectors.astype(np.float32) + (128 if precision == "int8" else 0)
    restored = least + steps * (most - least) / 255
    assert np.abs(restored - expected.clip(least, most)).max() < 1.01 * ((most - least) / 255).max()


# -- stopped and gone on with ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["out.npy", "out.parquet", "out.jsonl"])
@pytest.mark.parametrize("parts", [1, 3, 5])
def test_a_stopped_run_is_gone_on_with(model, tmp_path, name, parts):
    whole, stopped = tmp_path / "whole" / name, tmp_path / "stopped" / name
    embed_rows(model, WITH_IDS, whole)
    with pytest.raises(Stop):
        embed_rows(model, WITH_IDS, stopped, on_progress=stop_after(parts))
    assert not stopped.exists()
    done = []
    result = embed_rows(model, WITH_IDS, stopped, on_progress=lambda rows, tokens: done.append((rows, tokens)))
    assert stopped.read_bytes() == whole.read_bytes()
    assert result.resumed == min(7 * parts, 30)
    assert done[0] == (result.resumed, 0)
    assert sum(rows for rows, _ in done) == 30
    assert not stopped.with_name(f"{name}.parts").exists()


def test_a_full_disk_keeps_the_parts(model, expected, tmp_path, monkeypatch):
    written = []
    write = bulk._write_whole

    def full(path, content):
        written.append(path)
        if len(written) == 4:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(path, content)

    monkeypatch.setattr(bulk, "_write_whole", full)
    with pytest.raises(OSError, match="No space left"):
        embed_rows(model, ROWS, tmp_path / "out.npy")
    monkeypatch.setattr(bulk, "_write_whole", write)
    assert embed_rows(model, ROWS, tmp_path / "out.npy").resumed == 14
    np.testing.assert_allclose(np.load(tmp_path / "out.npy"), expected, atol=2e-6)


def test_a_full_disk_at_the_end_keeps_the_parts(model, expected, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(bulk, "write_output", full)
        with pytest.raises(OSError, match="No space left"):
            embed_rows(model, ROWS, tmp_path / "out.npy")
    result = embed_rows(model, ROWS, tmp_path / "out.npy")
    assert (result.resumed, result.tokens) == (30, 0)
    np.testing.assert_allclose(np.load(tmp_path / "out.npy"), expected, atol=2e-6)


def test_half_a_part_counts_for_nothing(model, expected, tmp_path):
    with pytest.raises(Stop):
        embed_rows(model, ROWS, tmp_path / "out.npy", on_progress=stop_after(2))
    (tmp_path / "out.npy.parts" / ".00000002.parquet").write_bytes(b"PAR1 cut off")
    assert embed_rows(model, ROWS, tmp_path / "out.npy").resumed == 14
    np.testing.assert_allclose(np.load(tmp_path / "out.npy"), expected, atol=2e-6)


@pytest.mark.parametrize("change", ["text", "id", "fewer", "order"])
def test_another_input_is_refused(model, tmp_path, change):
    with pytest.raises(Stop):
        embed_rows(model, WITH_IDS, tmp_path / "out.npy", on_progress=stop_after(2))
    rows = list(WITH_IDS)
    if change == "text":
        rows[9] = rows[9]._replace(text="other")
    elif change == "id":
        rows[9] = rows[9]._replace(id="other")
    elif change == "fewer":
        rows = rows[:9]
    else:
        rows[9], rows[10] = rows[10], rows[9]
    with pytest.raises(BulkError, match="embedded other texts in rows 8 to 14"):
        embed_rows(model, rows, tmp_path / "out.npy")
    assert not (tmp_path / "out.npy").exists()


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"side": "query"}, r"prompt: 'passage: ', now 'query: '"),
        ({"precision": "binary"}, r"precision: 'float32', now 'binary'"),
        ({"keep_text": True}, r"text: False, now True"),
    ],
)
def test_other_settings_are_refused_unless_all_is_to_be_done_anew(model, tmp_path, options, named):
    output = tmp_path / "out.parquet"
    with pytest.raises(Stop):
        embed_rows(model, ROWS, output, on_progress=stop_after(2))
    with pytest.raises(BulkError, match=named):
        embed_rows(model, ROWS, output, **options)
    assert embed_rows(model, ROWS, output, overwrite=True, **options).resumed == 0


def test_another_model_is_refused(model, tmp_path):
    with pytest.raises(Stop):
        embed_rows(model, ROWS, tmp_path / "out.npy", on_progress=stop_after(2))
    other = LLMEmbeddingModel(model, compute="fp32", truncate_dim=8)
    with pytest.raises(BulkError, match="dimension: 32, now 8"):
        embed_rows(other, ROWS, tmp_path / "out.npy")
    weight = model[0].model.encoder.layer[0].output.dense.weight
    weight.data[0, 0] += 1
    try:
        with pytest.raises(BulkError, match=r"model: '[0-9a-f]{32}', now '[0-9a-f]{32}'"):
            embed_rows(model, ROWS, tmp_path / "out.npy")
    finally:
        weight.data[0, 0] -= 1


# -- refused -----------------------------------------------------------------------------------------------------------


def test_an_output_that_is_there_is_not_lost(model, tmp_path):
    output = tmp_path / "out.npy"
    output.write_bytes(b"mine")
    with pytest.raises(BulkError, match="is there already"):
        embed_rows(model, ROWS, output)
    assert output.read_bytes() == b"mine"
    embed_rows(model, ROWS, output, overwrite=True)
    assert np.load(output).shape == (30, 32)


def test_two_runs_at_once(model, tmp_path):
    def second(_rows, _tokens):
        with pytest.raises(BulkError, match="another run is writing it"):
            embed_rows(model, ROWS, tmp_path / "out.npy")
        raise Stop

    with pytest.raises(Stop):
        embed_rows(model, ROWS, tmp_path / "out.npy", on_progress=second)


def test_a_directory_in_the_way_is_left_alone(model, tmp_path):
    (tmp_path / "out.npy.parts").mkdir()
    (tmp_path / "out.npy.parts" / "mine.txt").write_text("keep")
    with pytest.raises(BulkError, match=r"out.npy.parts: is in the way"):
        embed_rows(model, ROWS, tmp_path / "out.npy", overwrite=True)
    assert (tmp_path / "out.npy.parts" / "mine.txt").read_text() == "keep"


def test_no_rows(model, tmp_path):
    with pytest.raises(BulkError, match="no rows to embed"):
        embed_rows(model, [], tmp_path / "out.npy")
    assert not list(tmp_path.iterdir())


def test_unknown_kinds(model, tmp_path):
    with pytest.raises(ValueError, match=r"expected a name that ends in .npy, .parquet, .jsonl"):
        embed_rows(model, ROWS, tmp_path / "out.csv")
    with pytest.raises(ValueError, match="an array has no place for texts"):
        embed_rows(model, ROWS, tmp_path / "out.npy", keep_text=True)


def test_memory_does_not_grow_with_the_input(model, tmp_path, monkeypatch):
    """Rows are taken at most two parts ahead of what is written."""
    taken = done = 0
    ahead = []

    def rows():
        nonlocal taken
        for number in range(200):
            taken += 1
            yield TextRow(None, f"text {number}")

    def advance(count, _tokens):
        nonlocal done
        done += count
        ahead.append(taken - done)

    embed_rows(model, rows(), tmp_path / "out.npy", on_progress=advance)
    assert done == 200
    assert max(ahead) <= 2 * 7 + 1
