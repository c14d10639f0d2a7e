"""`codiemb synthesize`: whole runs, and a killed one that ends as one that was not."""

import io
import json
import multiprocessing
import time

import pytest
from chat_server import Reply, chat_server
from rich.console import Console
from tiny_gguf import write_gguf
from tiny_models import byte_bpe_tokenizer, save_decoder
from typer.testing import CliRunner

from codiemb.cli import app as cli
from codiemb.curation.synthesis import SynthesisRecipe, synthesize
from codiemb.curation.synthesis.templates import copy_templates
from codiemb.data.readers import read
from codiemb.training.sections import parse_section

PLACES = ["北京", "上海", "广州", "成都", "西安", "南京", "武汉", "杭州", "重庆", "天津", "苏州", "青岛"]
FILES = ("ir.jsonl", "sts.jsonl", "paraphrases.jsonl", "rejected.jsonl", "report.json", "report.md")


@pytest.fixture(scope="module", autouse=True)
def _commands():
    if not cli.app.registered_commands:
        cli._register()


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch):
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    # Certificates, which no test needs, take each new client 80 ms to read.
    monkeypatch.setattr("ssl.SSLContext.load_verify_locations", lambda *_, **__: None)


@pytest.fixture
def documents(tmp_path):
    path = tmp_path / "corpus.jsonl"
    rows = [
        {"_id": f"d{number}", "text": f"{place}位于中国，是一座有{number + 3}座桥的老城。{place}的居民喜欢在河边散步！"}
        for number, place in enumerate(PLACES)
    ]
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def arguments(documents, output, base_url, *more, model="null"):
    return [
        *("synthesize", str(documents), "-o", str(output), "--base-url", base_url, "--model", "m"),
        *("--set", f"gates.model={model}", "--set", "api.backoff=0.01", *map(str, more)),
    ]


def run(*given, **options):
    return CliRunner().invoke(cli.app, arguments(*given, **options), catch_exceptions=False)


def contents(output):
    return {name: (output / name).read_bytes() for name in FILES}


@pytest.fixture
def server():
    with chat_server() as running:
        yield running


def test_documents_to_a_data_set_that_loads(server, documents, tmp_path, tiny_model_directory):
    prices = ("--input-price", 2, "--output-price", 10, "--set", "gates.top_k=12", "--set", "gates.disagreement=null")
    result = run(documents, tmp_path / "out", server.base_url, *prices, model=tiny_model_directory)
    report = json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))
    tables = {table.name: table for table in read(tmp_path / "out" / f"{name}.jsonl" for name in ("ir", "sts"))}
    assert {name: table.task_type for name, table in tables.items()} == {"ir": "ir", "sts": "sts"}
    assert {name: len(table.rows) for name, table in tables.items()} == {name: report["files"][name] for name in tables}
    assert f"{report['files']['ir']} rows in" in result.stdout

    requests = sum(counts["requests"] for counts in report["requests"].values())
    assert requests == len(server.bodies) == 4 + 3 * len(PLACES)
    assert report["tokens"] == {
        "input_tokens": 100 * requests,
        "output_tokens": 10 * requests,
        "answers_without_counts": 0,
    }
    assert report["cost"] == pytest.approx((200 + 100) * requests / 1e6)
    assert f"cost {report['cost']:,.4f}" in result.stdout

    rejected = [json.loads(line) for line in (tmp_path / "out" / "rejected.jsonl").read_text().splitlines()]
    asked = {"ir": 2 * len(PLACES), "sts": 3 * len(PLACES), "paraphrases": 2 * len(PLACES)}
    kinds = report["kinds"]
    whole = {kind: one for kind, one in kinds.items() if kind not in ("task", "hard negative")}
    assert sum(one["kept"] + one["rejected"] for one in whole.values()) == sum(asked.values())
    assert sum(one["rejected"] for one in kinds.values()) == len(rejected)
    assert all(one["gate"] and one["detail"] and one["request"] for one in rejected)

    first = json.loads((tmp_path / "out" / "ir.jsonl").read_text(encoding="utf-8").splitlines()[0])
    assert first["query"][0] in report["tasks"]
    assert first["positives"][0][2].startswith(PLACES[0])
    assert first["meta_data"]["document"] == "d0"
    markdown = (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
    for part in ("## Kept and rejected", "| cross_lingual |", "## Scores", "near duplicate"):
        assert part in markdown


def test_a_killed_run_ends_as_one_that_was_not_and_pays_once(server, documents, tmp_path):
    whole = tmp_path / "whole"
    run(documents, whole, server.base_url)
    wanted = len(server.bodies)
    server.bodies.clear()
    server.answered.clear()

    out = tmp_path / "out"
    server.reply = lambda number, body: Reply(delay=0.05 if number < 20 else 30)  # gets stuck in the middle
    process = multiprocessing.get_context("fork").Process(target=run, args=(documents, out, server.base_url))
    process.start()
    until = time.monotonic() + 120
    while len(server.bodies) < 24:  # four are under way
        assert process.is_alive()
        assert time.monotonic() < until
        time.sleep(0.02)
    process.kill()
    process.join()
    assert not (out / "report.json").exists()
    kept = (out / "journal.jsonl").read_bytes()
    assert len(kept.splitlines()) == 20
    with (out / "journal.jsonl").open("ab") as file:
        file.write(kept.splitlines()[0][:50])  # as a kill in the middle of a write leaves it

    server.reply = lambda number, body: None
    result = run(documents, out, server.base_url)
    assert contents(out) == contents(whole)
    assert f"{wanted - 20} answers in this run" in result.stdout
    assert len(server.answered) == wanted
    assert set(server.answered.values()) == {1}
    assert (out / "journal.jsonl").read_bytes().startswith(kept)

    asked = len(server.bodies)
    run(documents, out, server.base_url, "--set", "gates.passage_length=[1,9]")  # other gates, the same answers
    assert len(server.bodies) == asked
    assert contents(out)["ir.jsonl"] != contents(whole)["ir.jsonl"]


def test_progress_shows_requests_tokens_and_cost(server, documents, tmp_path):
    recipe = {
        "documents": [str(documents)],
        "output": str(tmp_path / "out"),
        "api": {"base_url": server.base_url, "model": "m", "input_price": 10, "output_price": 100},
        "pairs": None,
        "brainstorm": None,
        "gates": {"model": None},
    }
    shown = io.StringIO()
    synthesize(parse_section(SynthesisRecipe, recipe), console=Console(file=shown, force_terminal=True, width=120))
    assert "24/24" in shown.getvalue()
    assert "2,640 tokens, cost 0.0480" in shown.getvalue()


def test_the_order_of_answers_does_not_matter(server, documents, tmp_path):
    run(documents, tmp_path / "one", server.base_url, "--set", "api.concurrency=1")
    server.reply = lambda number, body: Reply(delay=0.03 * (number % 3))
    run(documents, tmp_path / "many", server.base_url, "--set", "api.concurrency=8")
    assert contents(tmp_path / "one") == contents(tmp_path / "many")


def test_what_cannot_be_used_is_kept_with_its_reason(server, documents, tmp_path):
    def bad(number, body):
        return {5: Reply(content="no"), 6: Reply(content="no"), 7: Reply(content="no")}.get(number)

    server.reply = bad
    run(documents, tmp_path / "out", server.base_url, "--set", "api.concurrency=1")
    rejected = [json.loads(line) for line in (tmp_path / "out" / "rejected.jsonl").read_text().splitlines()]
    unread = [one for one in rejected if one["gate"] == "answer no JSON"]
    assert [one["kind"] for one in unread] == ["pair"] * 3  # request 5 asked for three pairs, three times
    assert len({one["request"] for one in unread}) == 1


def test_nothing_that_passes_is_an_error_with_a_report(server, documents, tmp_path):
    server.model = lambda body: '{"queries": [{"query": "...", "hard_negatives": ["..."]}]}'
    off = ("--set", "brainstorm=null", "--set", "queries.per_document=1", "--set", "pairs=null")
    with pytest.raises(ValueError, match=r"no row passed the gates; report\.md there says why"):
        run(
            documents,
            tmp_path / "out",
            server.base_url,
            *off,
            "--set",
            "paraphrases=null",
            "--set",
            "gates.copied=null",
        )
    page = (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
    assert "characters" in page
    assert "Gates left out: copied; all that ask an embedding model, since gates.model is null." in page
    assert not (tmp_path / "out" / "ir.jsonl").exists()


def test_dry_run_asks_nothing(server, documents, tmp_path):
    options = ("--dry-run", "--input-price", 1, "--output-price", 1, "--set", "api.requests_per_minute=10")
    result = run(documents, tmp_path / "out", server.base_url, *options)
    assert server.bodies == []
    assert not (tmp_path / "out").exists()
    assert "12 documents, 40 requests: 4 for tasks, 12 for queries, 12 for pairs, 12 for paraphrases" in result.stdout
    assert "北京位于中国" in result.stdout
    assert "at most 40,960 of answers" in result.stdout
    assert "at least 4.0 minutes" in result.stdout
    assert result.stdout.count("--- ") == 4
    assert run(documents, tmp_path / "out", server.base_url, "--dry-run", "--prompts", 0).stdout.count("--- ") == 0


def test_recipe_options_and_changes(server, documents, tmp_path):
    recipe = tmp_path / "synthesis.yaml"
    recipe.write_text(
        f"documents: [{documents}]\noutput: {tmp_path / 'out'}\nlimit: 5\n"
        "api: {base_url: http://localhost:1/v1, model: m}\nbrainstorm: null\n"
        "pairs: null\nparaphrases: null\ngates: {model: null}\n",
        encoding="utf-8",
    )
    command = ["synthesize", "--recipe", str(recipe), "--base-url", server.base_url, "--limit", "3"]
    CliRunner().invoke(cli.app, [*command, "--set", "queries.per_document=3"], catch_exceptions=False)
    assert len(server.bodies) == 3
    assert (tmp_path / "out" / "ir.jsonl").exists()
    with pytest.raises(ValueError, match=r"queries\.per_dokument: unknown key .*did you mean per_document\?"):
        CliRunner().invoke(cli.app, [*command, "--set", "queries.per_dokument=3"], catch_exceptions=False)
    with pytest.raises(ValueError, match=r"options: output: missing, but required"):
        CliRunner().invoke(cli.app, ["synthesize", str(documents)], catch_exceptions=False)


def test_templates_are_copied(tmp_path):
    result = CliRunner().invoke(cli.app, ["synthesize", "templates", "-o", str(tmp_path / "p")], catch_exceptions=False)
    assert len(result.stdout.split()) == 10
    assert (tmp_path / "p" / "en" / "words.yaml").is_file()


def test_a_real_server(documents, tmp_path):
    """llama.cpp with a tiny random network: the schema alone makes its answers readable."""
    xllamacpp = pytest.importorskip("xllamacpp")
    network = save_decoder(tmp_path / "network", tokenizer=byte_bpe_tokenizer(model_max_length=2048))
    config = json.loads((network / "config.json").read_text())
    (network / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 4096}))
    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(write_gguf(network, tmp_path / "tiny.gguf"))
    parameters.n_ctx, parameters.n_parallel, parameters.warmup = 4096, 2, False
    parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = 1
    parameters.hostnames, parameters.port = ["127.0.0.1"], 0
    server = xllamacpp.Server(parameters)
    vocabulary = json.loads((network / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]
    # A random network writes any bytes; without those that are no ASCII, what it writes is text.
    unwanted = {str(number): -100 for token, number in vocabulary.items() if not token.replace("Ġ", " ").isascii()}
    prompts = tmp_path / "prompts"
    copy_templates(prompts)
    (prompts / "zh" / "queries.txt").write_text("=== user\n$document $queries", encoding="utf-8")
    recipe = {
        "documents": [str(documents)],
        "output": str(tmp_path / "out"),
        "templates": str(prompts),
        "limit": 6,
        "api": {
            "base_url": f"{server.listening_address}/v1",
            "model": "tiny",
            "max_tokens": 1500,
            "concurrency": 2,
            "body": {"logit_bias": unwanted},
        },
        "brainstorm": None,
        "queries": {"per_document": 1, "hard_negatives": 0},
        "pairs": None,
        "paraphrases": None,
        "gates": {"language": False, "query_length": [1, 9999], "model": None},
    }
    report = synthesize(parse_section(SynthesisRecipe, recipe))
    assert report.asked >= 6
    counts = report.content["kinds"].values()
    assert sum(one["kept"] + one["rejected"] for one in counts) == 6
    assert report.rows == sum(one["kept"] for one in counts) > 0
    (table,) = read(tmp_path / "out" / "ir.jsonl")
    assert all(row["query"]["text"].isascii() for row in table.rows)
    assert report.content["tokens"]["answers_without_counts"] == 0
    again = synthesize(parse_section(SynthesisRecipe, recipe))
    assert (again.asked, again.content) == (0, report.content)
