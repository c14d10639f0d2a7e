import gzip
import json
from functools import partial

import pytest

GOOD = {"task_type": "ir", "query": "q", "positives": ["p"], "negatives": ["n"]}
SCORED = {"task_type": "sts", "query": "a", "positives": ["b"], "positive_scores": [2.5]}
BAD = {"task_type": "ir", "query": "q"}


@pytest.fixture
def codiemb(tmp_path, monkeypatch, run_codiemb):
    """Runs a command in `tmp_path` and returns its exit status, stdout and stderr."""
    monkeypatch.setenv("CODIEMB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.chdir(tmp_path)

    return partial(run_codiemb, "data")


def write(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_validate_shows_every_table(codiemb, tmp_path):
    write(tmp_path / "mixed.jsonl", GOOD, SCORED, GOOD)
    status, out, _ = codiemb("validate", "mixed.jsonl")
    assert status == 0
    assert all(word in out for word in ("mixed:ir", "mixed:sts", "2.5 to 2.5"))
    status, out, _ = codiemb("validate", "mixed.jsonl", "--json")
    assert json.loads(out) == {
        "ok": True,
        "tables": [
            {
                "name": "mixed:ir",
                "task_type": "ir",
                "source": "mixed.jsonl",
                "rows": 2,
                "rejected": 0,
                "score_range": None,
            },
            {
                "name": "mixed:sts",
                "task_type": "sts",
                "source": "mixed.jsonl",
                "rows": 1,
                "rejected": 0,
                "score_range": [2.5, 2.5],
            },
        ],
    }


def test_validate_ends_with_status_2_and_no_traceback_on_bad_rows(codiemb, tmp_path):
    write(tmp_path / "a.jsonl", GOOD, BAD)
    status, out, err = codiemb("validate", "a.jsonl")
    assert (status, out) == (2, "")
    assert "a.jsonl:2: positives: none in a row of ir; expected at least one text" in err
    assert "Traceback" not in err
    status, out, _ = codiemb("validate", "a.jsonl", "--json")
    report = json.loads(out)
    assert (status, report["ok"], report["bad_rows"]) == (2, False, 1)
    assert report["problems"][0]["line"] == 2


def test_validate_can_skip_bad_rows(codiemb, tmp_path):
    write(tmp_path / "a.jsonl", GOOD, BAD)
    status, out, _ = codiemb("validate", "a.jsonl", "--on-error", "skip", "--rejected-to", "bad", "--json")
    assert (status, json.loads(out)["tables"][0]["rejected"]) == (0, 1)
    assert json.loads((tmp_path / "bad" / "a.rejected.jsonl").read_text())["row"] == json.dumps(BAD)


@pytest.mark.parametrize("command", ["validate", "stats"])
def test_missing_and_empty_files(codiemb, tmp_path, command):
    (tmp_path / "empty.jsonl").touch()
    for name, message in (("gone.jsonl", "no such file or directory"), ("empty.jsonl", "empty.jsonl: empty")):
        status, _, err = codiemb(command, name)
        assert status == 2
        assert message in err
        assert "Traceback" not in err


def test_stats_in_characters(codiemb, tmp_path):
    write(tmp_path / "a.jsonl", *[GOOD] * 3, {**GOOD, "query": "q" * 600})
    write(tmp_path / "b.jsonl", *[{**SCORED, "positive_scores": [i]} for i in range(5)])
    status, out, _ = codiemb("stats", "a.jsonl", "b.jsonl")
    assert status == 0
    assert all(word in out for word in ("lengths, characters", "over 512", "600", "scores in ten equal bins"))
    status, out, _ = codiemb("stats", tmp_path, "--json", "--max-length", "599")
    report = json.loads(out)
    assert (report["unit"], report["max_length"]) == ("characters", 599)
    first, second = report["tables"]
    assert (first["rows"], first["duplicate_queries"], first["queries"]["truncated"]) == (4, 2, 1)
    assert second["scores"]["counts"] == [1, 0, 1, 0, 0, 1, 0, 1, 0, 1]


def test_stats_in_tokens(codiemb, tmp_path):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.WordLevel({"q": 0, "?": 1}, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="?").save_pretrained(tmp_path / "tokenizer")
    write(tmp_path / "a.jsonl", {**GOOD, "query": ["do", "", " these four words"]})
    status, out, _ = codiemb("stats", "a.jsonl", "--tokenizer", tmp_path / "tokenizer", "--json")
    assert status == 0
    assert json.loads(out)["tables"][0]["queries"]["max"] == 4
    status, _, err = codiemb("stats", "a.jsonl", "--tokenizer", "no/such/tokenizer")
    assert status == 2
    assert "--tokenizer no/such/tokenizer" in err


def test_convert_scored_pairs(codiemb, tmp_path):
    (tmp_path / "a.tsv").write_text("sentence1\tsentence2\tscore\na\tb\t1\nc\t\t0\n")
    status, out, err = codiemb("convert", "scored-pairs", "a.tsv", "-o", "a.jsonl", "--task", "pair_classification")
    assert status == 0
    assert "1 rows written to a.jsonl" in out
    assert "1 left out: positives[].text: empty" in out
    status, out, _ = codiemb(
        "convert", "scored-pairs", "a.tsv", "-o", "b.jsonl.gz", "--columns", "2,1,3", "--header", "--json"
    )
    assert json.loads(out) == {"output": "b.jsonl.gz", "rows": 1, "dropped": {"query.text: empty": 1}}
    row = json.loads(gzip.decompress((tmp_path / "b.jsonl.gz").read_bytes()))
    assert (row["task_type"], row["query"]) == ("sts", ["", "", "b"])
    status, _, err = codiemb("convert", "scored-pairs", "a.tsv", "-o", "c.jsonl", "--columns", "a,b")
    assert status == 2
    assert "--columns a,b: expected three" in err


def test_convert_beir(codiemb, tmp_path):
    (tmp_path / "qrels").mkdir()
    (tmp_path / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq\td\t1\n")
    write(tmp_path / "corpus.jsonl", {"_id": "d", "title": "T", "text": "x"})
    write(tmp_path / "queries.jsonl", {"_id": "q", "text": "why"})
    options = ("--split", "test", "--no-title", "--instruction", "find")
    assert codiemb("convert", "beir", ".", "-o", "out.jsonl", *options)[0] == 0
    row = json.loads((tmp_path / "out.jsonl").read_text())
    assert (row["query"], row["positives"]) == (["find", "", "why"], [["", "", "x"]])


def test_convert_triplets(codiemb, tmp_path):
    (tmp_path / "a.csv").write_text("a,p,n\n")
    assert codiemb("convert", "triplets", "a.csv", "-o", "a.parquet")[0] == 2
    assert codiemb("convert", "triplets", "a.csv", "-o", "a.parquet", "--no-header")[0] == 0
    _, out, _ = codiemb("validate", "a.parquet", "--json")
    assert json.loads(out)["tables"][0]["rows"] == 1


def test_convert_squad(codiemb, tmp_path):
    paragraph = {"context": "One. Two.", "qas": [{"question": "q", "answers": [{"text": "Two", "answer_start": 5}]}]}
    (tmp_path / "a.json").write_text(json.dumps({"data": [{"paragraphs": [paragraph]}]}))
    assert codiemb("convert", "squad", "a.json", "-o", "a.jsonl", "--chunk-size", "4")[0] == 0
    row = json.loads((tmp_path / "a.jsonl").read_text())
    assert (row["positives"], row["negatives"]) == ([["", "", "Two."]], [["", "", "One."]])


def test_convert_relevance_list(codiemb, tmp_path):
    (tmp_path / "a.tsv").write_text("query\ttitle\trelevance\nq\ta\t2\nq\tb\t1\nq\tc\t0\n")
    options = ("--columns", "query,title,relevance", "--threshold", "2", "--task", "reranking")
    status, out, _ = codiemb("convert", "relevance-list", "a.tsv", "-o", "a.jsonl", *options)
    assert status == 0
    assert "1 left out: relevance between 0 and the threshold" in out
    row = json.loads((tmp_path / "a.jsonl").read_text())
    assert (row["task_type"], row["positives"], row["negatives"]) == ("reranking", [["", "", "a"]], [["", "", "c"]])


@pytest.mark.parametrize("kind", ["scored-pairs", "beir", "triplets", "squad", "relevance-list"])
def test_help_shows_an_example_and_bad_input_ends_with_status_2(codiemb, kind):
    status, out, _ = codiemb("convert", kind, "--help")
    assert status == 0
    assert f"codiemb data convert {kind} " in out
    status, _, err = codiemb("convert", kind, "gone.tsv", "-o", "out.jsonl")
    assert status == 2
    assert "gone.tsv" in err
    assert "Traceback" not in err
