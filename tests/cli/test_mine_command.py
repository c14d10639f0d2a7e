import json

import pytest

from codiemb.curation.mining import report

PAIRS = [
    ("How do I make bread?", "Feed the starter for a week."),
    ("去上海的火车几点开？", "去上海的火车九点开。"),
    ("My washing machine leaks.", "Check the hose first."),
]
CORPUS = ["The train to Shanghai leaves at nine.", "先检查水管。", "Why is bread so popular?", "洗衣机", "no", "开水"]


@pytest.fixture
def mine(tiny_model_directory, run_codiemb, tmp_path, monkeypatch):
    """Runs `codiemb mine` in `tmp_path` for a small file and corpus."""
    monkeypatch.chdir(tmp_path)
    rows = [{"query": query, "positives": [positive]} for query, positive in PAIRS]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "corpus.txt").write_text("\n".join([*CORPUS, *(positive for _, positive in PAIRS)]))

    def run(*arguments, plot=False):
        if not plot:  # it takes longer than all the rest
            monkeypatch.setattr(report._Tally, "plot", lambda *_: b"")
        common = ("--data", "data.jsonl", "--corpus", "corpus.txt", "-o", "out.jsonl", "--cache", "cache")
        return run_codiemb("mine", tiny_model_directory, *common, "--device", "cpu", *arguments)

    return run


def test_the_command(mine, tmp_path):
    status, out, err = mine("-n", "3", "--miner", "dense", "--miner", "bm25", "--no-share", plot=True)
    assert (status, err) == (0, "")
    assert "9 negatives for 3 rows in out.jsonl" in out
    assert "a known positive of the query" in out
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [row["query"][2] for row in rows] == [query for query, _ in PAIRS]
    assert all(text in CORPUS + [positive for _, positive in PAIRS] for row in rows for _, _, text in row["negatives"])
    assert (tmp_path / "out.mining" / "report.md").is_file()
    assert "asked for" not in out


def test_too_few_negatives_are_explained(mine):
    out = mine("--min-score", "0.99999", "--no-share")[1]
    assert (
        "3 of 3 rows got fewer negatives than the 7 that were asked for, 3 of them none. Deeper ranks (--depth)" in out
    )
    assert "score below min_score (lower --min-score)." in out


def test_the_report_as_json(mine):
    status, out, _ = mine("-n", "2", "--no-share", "--json")
    assert status == 0
    assert json.loads(out)["per_row"] == {"2": 3}


def test_an_output_is_not_replaced_unasked(mine):
    assert mine("--no-share")[0] == 0
    status, out, err = mine("--no-share")
    assert (status, out) == (2, "")
    assert "out.jsonl: is there already" in err
    assert mine("--no-share", "--overwrite")[0] == 0


def test_options_that_do_not_fit(mine):
    status, _, err = mine("-n", "3", "--skip", "99")
    assert status == 2
    assert "negatives=3, but the ranks 100 to 100 hold 1" in err
    status, _, err = mine("--share", "2")
    assert status == 2
    assert "--share: Input should be less than or equal to 1" in err


def test_a_stop_says_that_the_command_goes_on(mine, monkeypatch):
    def stop(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("codiemb.curation.mining.windows.WindowMiner.fill", stop)
        status, out, err = mine("--no-share")
    assert status != 0
    assert out == ""
    assert "stopped: what is done is kept; the same command goes on from there" in err
    assert mine("--no-share")[0] == 0
