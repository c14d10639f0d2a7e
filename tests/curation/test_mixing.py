"""Mixes of files."""

from collections import Counter

import pytest
from cleaning_rows import ir, queries, read, write

from codiemb.curation.cleaning import mixing
from codiemb.curation.cleaning.mixing import mix
from codiemb.data.examples import DataError


@pytest.fixture
def files(tmp_path):
    return [
        write(tmp_path / f"{name}.jsonl", *(ir(f"{name}{i}", "p", meta_data={"i": i}) for i in range(rows)))
        for name, rows in (("a", 1000), ("b", 100), ("c", 10))
    ]


def counts(path):
    return Counter(query[0] for query in queries(path))


def test_all_rows_once_in_another_order(files, tmp_path):
    report = mix(files, tmp_path / "out.jsonl")
    mixed = queries(tmp_path / "out.jsonl")
    originals = [query for file in files for query in queries(file)]
    assert sorted(mixed) == sorted(originals)
    assert mixed != originals
    assert [query[0] for query in mixed[:200]].count("b") > 5  # not one file after the other
    assert report.rows == 1110
    assert read(tmp_path / "out.jsonl")[0]["meta_data"]  # rows are as they were


def test_weights(files, tmp_path):
    mix(files, tmp_path / "out.jsonl", weights=[3, 1, 0])
    assert counts(tmp_path / "out.jsonl") == {"a": 300, "b": 100}  # as many as keep the weights exact
    mix(files, tmp_path / "out.jsonl", weights=[1, 1, 1], total=300)
    assert counts(tmp_path / "out.jsonl") == {"a": 190, "b": 100, "c": 10}  # small files give all, the others fill up
    assert len(set(queries(tmp_path / "out.jsonl"))) == 300


def test_upsampling(files, tmp_path):
    mix(files, tmp_path / "out.jsonl", weights=[1, 1, 1], total=300, upsample=True)
    assert counts(tmp_path / "out.jsonl") == {"a": 100, "b": 100, "c": 100}
    times = Counter(queries(tmp_path / "out.jsonl"))
    assert {times[f"c{i}"] for i in range(10)} == {10}
    mix(files, tmp_path / "out.jsonl", weights=[0, 0, 1], total=25, upsample=True)
    assert set(Counter(queries(tmp_path / "out.jsonl")).values()) == {2, 3}


def test_temperature_brings_sizes_closer(files, tmp_path):
    mix(files, tmp_path / "out.jsonl", temperature=2, total=200)
    # Parts as the square roots of 1000, 100 and 10: 141, 45 and 14, of which the last file has 10.
    assert counts(tmp_path / "out.jsonl") == {"a": 144, "b": 46, "c": 10}


def test_same_seed_same_bytes_however_rows_are_buffered(files, tmp_path, monkeypatch):
    mix(files, tmp_path / "one.jsonl", total=500, seed=3)
    monkeypatch.setattr(mixing, "_BUCKET_ROWS", 7)
    mix(files, tmp_path / "two.jsonl", total=500, seed=3)
    assert (tmp_path / "one.jsonl").read_bytes() == (tmp_path / "two.jsonl").read_bytes()
    mix(files, tmp_path / "two.jsonl", total=500, seed=4)
    assert (tmp_path / "one.jsonl").read_bytes() != (tmp_path / "two.jsonl").read_bytes()


def test_misuse(files, tmp_path):
    for options, message in (
        ({"total": 2000}, "more than the 1,110 rows"),
        ({"weights": [1, 2]}, "one for each of 3 files"),
        ({"weights": [1, -1, 1]}, "none below 0"),
        ({"temperature": 0}, "more than 0"),
    ):
        with pytest.raises(DataError, match=message):
            mix(files, tmp_path / "out.jsonl", **options)
    with pytest.raises(DataError, match="is an input"):
        mix(files, files[0])
