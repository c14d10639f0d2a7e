"""The fast check against the slow one, which is the reference: same rows in, same table out, or no verdict."""

import copy
import json
import random
import unicodedata

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from codiemb.data.columns import checked_batches
from codiemb.data.examples import PAIR_TASKS, RowError, parse_example
from codiemb.data.sources import blocks
from codiemb.data.tables import table_batch

GOOD = [
    {"task_type": "ir", "query": ["do", "", "q\n1"], "positives": [["", "t: ", "p"], ["", "", "r"]], "negatives": []},
    {"task_type": "ir", "query": ["", None, "2024-01-01"], "positives": [["", "", "é·中\u3000文"]], "negatives": None},
    {"task_type": "ir", "query": ["", "", "q"], "positives": [["", "", "p"]], "negatives": [["", "", "n"]] * 3,
     "positive_scores": [2], "negative_scores": [0, -1.5, 0]},
    {"task_type": "reranking", "query": ["", "", "q"], "positives": [["", "", "p"]], "positive_scores": []},
    {"task_type": "sts", "query": ["s", "", "q"], "positives": [["s", "", "p"]], "positive_scores": [4.2]},
    {"task_type": "pair_classification", "query": ["", "", "q"], "positives": [["", "", "p"]], "positive_scores": [1]},
]  # fmt: skip


def as_objects(row):
    def spell(text):
        return dict(zip(("instruction", "prefix", "text"), text, strict=True))

    return {**as_strings(row, spell)}


def as_strings(row, spell=lambda text: text[2]):
    texts = {key: [spell(text) for text in row[key] or []] for key in ("positives", "negatives") if key in row}
    return {**row, "query": spell(row["query"]), **texts}


def fast(tmp_path, rows):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    (block,) = blocks(path)
    table = block.table()
    return None if table is None else checked_batches(table)


def slow(rows):
    by_task = {}
    for row in rows:
        example = parse_example(row)
        by_task.setdefault(example.task_type, []).extend(
            example.pairs() if example.task_type in PAIR_TASKS else [example]
        )
    return {task: table_batch(examples) for task, examples in by_task.items()}


@pytest.mark.parametrize("spell", [copy.copy, as_objects, as_strings])
def test_good_rows_give_the_same_tables(tmp_path, spell):
    rows = [spell(row) for row in GOOD]
    batches = fast(tmp_path, rows)
    assert batches == slow(rows)
    for batch in batches.values():
        batch.validate(full=True)


def test_parquet_of_any_nesting_gives_the_same_tables(tmp_path):
    for spell in (copy.copy, as_objects, as_strings):
        rows = [spell(row) for row in GOOD]
        columns = GOOD[2].keys()  # the row with all of them
        table = pa.table({key: [row.get(key) for row in rows] for key in columns})
        large = pa.schema([(field.name, _large(field.type)) for field in table.schema])
        for stored in (table, table.cast(large)):
            pq.write_table(stored, tmp_path / "rows.parquet")
            (block,) = blocks(tmp_path / "rows.parquet")
            assert checked_batches(block.table()) == slow(rows)


def _large(kind):
    """The types that polars writes."""
    if pa.types.is_string(kind):
        return pa.large_string()
    if pa.types.is_list(kind):
        return pa.large_list(_large(kind.value_type))
    return kind


def test_it_never_passes_a_row_that_the_slow_check_refuses(tmp_path):
    verdicts = {"refused": 0, "passed": 0, "left to the slow check": 0}
    for seed in range(300):
        rows = _with_junk(random.Random(seed))
        path = tmp_path / "rows.jsonl"
        path.write_bytes(b"".join(json.dumps(row).encode() + b"\n" for row in rows))
        (block,) = blocks(path)
        table = block.table()
        batches = None if table is None else checked_batches(table)
        try:
            expected = slow(rows)
        except RowError:
            assert batches is None, rows
            verdicts["refused"] += 1
        else:
            assert batches is None or batches == expected, rows
            verdicts["passed" if batches else "left to the slow check"] += 1
    assert min(verdicts.values()) > 0, verdicts


def _with_junk(rng):
    junk = [
        None,
        "",
        " \u2003",
        3,
        True,
        [],
        {},
        [""],
        ["a", "b"],
        "x\x00",
        "\x9f",
        "a\x7f",
        "\ud800",
        1e39,
        float("nan"),
    ]
    rows = copy.deepcopy(GOOD)
    row = rng.choice(rows)
    field = rng.choice(["task_type", "query", "positives", "negatives", "positive_scores", "negative_scores", "extra"])
    if isinstance(row.get(field), list) and row[field] and rng.random() < 0.7:
        target = row[field]
        while isinstance(target[0], list) and rng.random() < 0.7:
            target = rng.choice(target)
        target[rng.randrange(len(target))] = rng.choice(junk)
    else:
        row[field] = rng.choice(junk)
    return rows


@pytest.mark.parametrize("template", ["{}", "a{}b"])  # is it white space? is it a control character?
def test_every_character_gets_the_same_verdict(template):
    characters = [chr(code) for code in range(0x10000) if not 0xD800 <= code <= 0xDFFF]
    refused = []
    # Only characters of these classes can be refused, so the others need no slow check.
    for character in (c for c in characters if unicodedata.category(c) in ("Cc", "Cf", "Zl", "Zp", "Zs")):
        try:
            parse_example({"query": template.format(character), "positives": ["p"]})
        except RowError:
            refused.append(character)
    assert len(refused) > 60
    good = sorted(set(characters) - set(refused))
    assert checked_batches(_table(template, good)) is not None
    assert not [character for character in refused if checked_batches(_table(template, [character])) is not None]


def _table(template, characters):
    queries = [template.format(character) for character in characters]
    return pa.table({"task_type": ["ir"] * len(queries), "query": queries, "positives": [["p"]] * len(queries)})


def test_bytes_that_are_not_utf8_are_left_to_the_slow_check(tmp_path):
    (tmp_path / "rows.jsonl").write_bytes(b'{"task_type": "ir", "query": "caf\xe9", "positives": ["p"]}\n')
    (block,) = blocks(tmp_path / "rows.jsonl")
    table = block.table()
    assert table is None or checked_batches(table) is None


@pytest.mark.parametrize(
    "data",
    [b'{"task_type":"ir","query":"q","positives":["p"]}' * 2, b'{"task_type":"ir",\n"query":"q","positives":["p"]}\n'],
)
def test_lines_that_are_not_one_object_each_are_left_to_the_slow_check(tmp_path, data):
    (tmp_path / "rows.jsonl").write_bytes(data)
    (block,) = blocks(tmp_path / "rows.jsonl")
    assert block.table() is None
