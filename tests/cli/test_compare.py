import io
import json

import pytest
from rich.cells import cell_len
from rich.console import Console

from codiemb import LLMEmbeddingModel, backbones
from codiemb.cli._bars import print_ranking
from codiemb.prompts import TEMPLATES, InstructionTemplate

PASSAGES = ["Feed the starter for a week.", "去上海的火车九点开。", "Check the hose first."]


@pytest.fixture
def compare(tiny_model_directory, run_codiemb):
    """Runs the command with the tiny model and returns its exit status, stdout and stderr."""

    def run(*arguments, stdin="", model=tiny_model_directory):
        return run_codiemb("compare", model, *arguments, stdin=stdin)

    return run


def test_passages_are_ranked_with_bars_and_without_colours_in_a_pipe(compare, tiny_model_directory):
    status, out, _ = compare("How do I make bread?", *PASSAGES)
    assert status == 0
    assert "\x1b" not in out
    model = LLMEmbeddingModel(tiny_model_directory, device="cpu")
    scores = dict(zip(PASSAGES, model.compute_similarity("How do I make bread?", PASSAGES)[0], strict=True))
    expected = sorted(scores, key=scores.__getitem__, reverse=True)
    assert [line.split(maxsplit=2)[2] for line in out.splitlines()] == expected
    for line, passage in zip(out.splitlines(), expected, strict=True):
        bar, score = line.split()[:2]
        assert len(bar) == 24
        assert bar.count("█") == round(24 * max(float(score), 0))
        assert float(score) == pytest.approx(scores[passage], abs=6e-4)


def test_json_and_several_queries(compare):
    status, out, _ = compare("bread", *PASSAGES, PASSAGES[1], "-q", "火车", "--top", "2", "--json")
    content = json.loads(out)
    assert status == 0
    assert [answer["query"] for answer in content["queries"]] == ["bread", "火车"]
    for answer in content["queries"]:
        first, second = answer["ranking"]
        assert (first["rank"], second["rank"]) == (1, 2)
        assert first["score"] >= second["score"]
        for entry in (first, second):
            assert entry["passage"] == [*PASSAGES, PASSAGES[1]][entry["index"]]


def test_equal_passages_tie_and_keep_their_order(compare):
    _, out, _ = compare("bread", *PASSAGES * 5, "--json")
    ranking = json.loads(out)["queries"][0]["ranking"]
    for start in range(0, 15, 5):
        group = ranking[start : start + 5]
        assert len({entry["score"] for entry in group}) == 1
        assert [entry["index"] for entry in group] == list(range(group[0]["index"], 15, 3))


def test_passages_from_stdin_and_files(compare, tmp_path):
    _, expected, _ = compare("bread", *PASSAGES)
    assert compare("bread", stdin="\n\n".join(PASSAGES))[1] == expected
    assert compare("bread", PASSAGES[0], "--passages", "-", stdin="\n".join(PASSAGES[1:]))[1] == expected
    path = tmp_path / "passages.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in PASSAGES))
    assert compare("bread", "-f", path)[1] == expected


def test_the_template_says_which_side_reads_an_instruction(compare, tiny_model_directory, tmp_path):
    model = backbones.load(tiny_model_directory, device="cpu")
    backbones.save(model, tmp_path / "instructed", TEMPLATES["e5-instruct"])
    backbones.save(model, tmp_path / "both", InstructionTemplate(query="{instruction}: ", document="{instruction}: "))

    def score(*options, model="instructed"):
        _, out, _ = compare("one text", "one text", "--json", *options, model=tmp_path / model)
        return json.loads(out)["queries"][0]["ranking"][0]["score"]

    assert score("--instruction", "Find the answer") < 0.999
    assert score("--instruction", "Ocnli") == pytest.approx(1, abs=1e-5)
    assert score("--instruction", "Find the answer", model="both") == pytest.approx(1, abs=1e-5)
    assert score("--instruction", "T2Retrieval", model="both") < 0.999  # its documents have no instruction


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["bread"], "No passages to rank"),
        (["", "x"], "query 1 of 1 is blank"),
        (["bread", "x", " "], "passage 2 of 2 is blank"),
        (["bread", "-f", "gone.txt"], "gone.txt: no such file"),
        (["bread", "x", "--instruction", "STSBB"], "STSB"),
    ],
)
def test_bad_input_ends_with_status_2_and_no_traceback(compare, arguments, message):
    status, out, err = compare(*arguments)
    assert (status, out) == (2, "")
    assert message in err
    assert "Traceback" not in err


@pytest.mark.parametrize("colours", ["standard", None])
def test_in_a_terminal_lines_fit_its_width(colours):
    stream = io.StringIO()
    long = "先养一周酵种，再把面粉、水和盐揉成面团，静置一夜。" * 3
    console = Console(file=stream, force_terminal=True, width=60, color_system=colours)
    print_ranking(console, [(0.5, long), (2.0, "two\nlines"), (-1.0, "x")])
    assert ("\x1b[36m" in stream.getvalue()) == (colours is not None)
    if colours is None:
        cut, full, low = stream.getvalue().splitlines()
        assert 59 <= cell_len(cut) <= 60
        assert cut.endswith("…")
        assert (full, low) == ("█" * 24 + "  2.000  two lines", "·" * 24 + " -1.000  x")
