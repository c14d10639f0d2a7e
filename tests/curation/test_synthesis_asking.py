"""Requests to a server that misbehaves, the journal, and rates."""

import json
import multiprocessing
import time

import pytest
from chat_server import Reply, chat_server, refusal

from codiemb.curation.synthesis.answers import tasks_answer
from codiemb.curation.synthesis.asking import Asker, SynthesisError
from codiemb.curation.synthesis.chat import ChatClient
from codiemb.curation.synthesis.journal import Completion, Journal, JournalError
from codiemb.curation.synthesis.pace import Pace
from codiemb.curation.synthesis.plan import Request
from codiemb.curation.synthesis.recipe import Api
from codiemb.curation.synthesis.templates import Templates
from codiemb.training.sections import RecipeError

GOOD = '{"tasks": ["检索"]}'


@pytest.fixture(scope="module")
def templates():
    return Templates("zh")


@pytest.fixture
def server(monkeypatch):
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    # Certificates, which no test needs, take each new client 80 ms to read.
    monkeypatch.setattr("ssl.SSLContext.load_verify_locations", lambda *_, **__: None)
    with chat_server(lambda body: GOOD) as running:
        yield running


@pytest.fixture
def ask(server, templates, tmp_path):
    """Asks so many requests and returns their outcomes; the journal stays between calls."""

    def run(count=1, journal=tmp_path / "journal.jsonl", **options):
        settings = {"backoff": 0.001, "timeout": 5, "attempts": 3, "concurrency": 1, **options}
        api = Api(base_url=server.base_url, model="m", **settings)
        requests = [
            Request("tasks", f"tasks/{k}", [{"role": "user", "content": f"请求{k}"}], tasks_answer(1))
            for k in range(count)
        ]
        seen = []
        with Journal(journal) as book, ChatClient(api) as client:
            asker = Asker(client, book, templates, 42)
            outcomes = [outcome for _, outcome in asker.ask(requests, lambda *one: seen.append(one[0].name))]
        assert seen == [one.name for one in requests]
        return outcomes

    return run


@pytest.mark.parametrize(
    "reply",
    [
        refusal(500, "boom"),
        refusal(503, "busy"),
        refusal(429, "slow down"),
        Reply(delay=0.4),
        Reply(cut=True),
        Reply(body=b"<html>gateway</html>"),
        Reply(body=b'{"choices": 5}'),
    ],
    ids=["500", "503", "429", "time-out", "cut", "no JSON", "no completion"],
)
def test_what_fails_on_the_way_is_tried_again(ask, server, reply):
    server.script(reply, reply)
    (outcome,) = ask(timeout=0.2)
    assert outcome.answered.answer.tasks == ["检索"]
    assert (outcome.answers, outcome.asked, len(server.bodies)) == (1, 1, 3)
    assert server.bodies[0] == server.bodies[2]


def test_attempts_are_bounded_and_the_next_request_goes_on(ask, server):
    server.script(*[refusal(500, "boom")] * 3)
    first, second = ask(2)
    assert first.answered.reason == "request failed"
    assert "HTTP 500: " in first.answered.detail
    assert "boom" in first.answered.detail
    assert second.answered.answer is not None
    assert (first.answers, second.answers, len(server.bodies)) == (0, 1, 4)


def test_retry_after_is_waited_for(ask, server):
    server.script(Reply(429, body=b"{}", headers=(("Retry-After", "0.5"),)))
    ask()
    assert server.times[1] - server.times[0] >= 0.5


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (Reply(content="I cannot."), "no JSON"),
        (Reply(content='{"tasks": []}'), "wrong structure"),
        (Reply(content=GOOD, finish_reason="length"), "cut"),
        (Reply(body=b'{"choices": [], "usage": {"prompt_tokens": 100, "completion_tokens": 0}}'), "empty"),
        (Reply(content=""), "empty"),
    ],
)
def test_answers_that_cannot_be_read_are_asked_for_again_with_the_reason(ask, server, reply, reason):
    server.script(reply)
    (outcome,) = ask()
    assert outcome.answered.answer is not None
    assert (outcome.answers, outcome.spent.input_tokens) == (2, 200)
    first, second = server.bodies
    assert reason in second["messages"][-1]["content"]
    assert second["messages"][-1]["content"].startswith("请求0")
    assert first["seed"] != second["seed"]


def test_answers_are_bounded_and_not_paid_for_twice(ask, server):
    server.reply = lambda number, body: Reply(content="no")
    (outcome,) = ask(answers=2)
    assert outcome.answered.reason == "no JSON"
    assert (outcome.answers, len(server.bodies)) == (2, 2)
    (again,) = ask(answers=2)
    assert again == outcome._replace(asked=0)
    assert len(server.bodies) == 2


def test_json_is_asked_for_as_well_as_the_server_can(ask, server):
    def only_plain(number, body):
        wanted = body.get("response_format", {}).get("type")
        return refusal(400, f"response_format {wanted} is not supported") if wanted else None

    server.reply = only_plain
    assert all(outcome.answered.answer for outcome in ask(3))
    kinds = [body.get("response_format", {}).get("type") for body in server.bodies]
    assert kinds == ["json_schema", "json_object", None, None, None]
    assert server.bodies[0]["response_format"]["json_schema"]["schema"]["required"] == ["tasks"]


def test_a_fixed_way_of_asking_is_kept(ask, server):
    server.reply = lambda number, body: refusal(400, "json_schema is not supported")
    (outcome,) = ask(structured="schema")
    assert "json_schema is not supported" in outcome.answered.detail
    assert len(server.bodies) == 1


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        (refusal(401, "bad key"), r"HTTP 401: .*bad key.*OPENAI_API_KEY\). 1 answers are in .*goes on from there"),
        (refusal(404, "no such model"), r"HTTP 404: .*no such model"),
        (refusal(429, "pay first", code="insufficient_quota"), r"HTTP 429: .*pay first"),
    ],
)
def test_what_no_request_can_get_past_stops_the_run(ask, server, reply, message):
    server.reply = lambda number, body: reply if number else None
    with pytest.raises(SynthesisError, match=message):
        ask(50)
    assert len(server.bodies) < 10


def test_five_failures_in_a_row_stop_the_run(ask, server):
    server.reply = lambda number, body: refusal(400, "too long")
    with pytest.raises(SynthesisError, match="too long"):
        ask(50)
    assert 5 <= len(server.bodies) < 10


def test_failures_between_successes_do_not(ask, server):
    server.reply = lambda number, body: refusal(400, "filtered") if number % 2 else None
    outcomes = ask(20)
    assert [outcome.answered.answer is None for outcome in outcomes] == [False, True] * 10


def test_key_body_and_settings_are_sent(ask, server, monkeypatch):
    monkeypatch.setenv("MY_KEY", "secret")
    ask(key_variable="MY_KEY", body={"top_k": 20}, temperature=0.3, max_tokens=50)
    (body,) = server.bodies
    assert server.keys == ["Bearer secret"]
    assert (body["top_k"], body["temperature"], body["max_tokens"], body["model"]) == (20, 0.3, 50, "m")
    assert "secret" not in json.dumps(body)
    ask(max_tokens=None)
    assert "max_tokens" not in server.bodies[-1]


def test_a_key_is_written_nowhere(ask, server, monkeypatch, tmp_path, caplog):
    key = "sk-0123456789abcdef"
    monkeypatch.setenv("OPENAI_API_KEY", f"{key}\n")  # as `echo` and secrets from files leave it
    caplog.set_level("INFO")
    server.script(refusal(500, f"upstream said no to {key}"), refusal(400, f"{'x' * 290} {key}"))
    failed, answered = ask(2)
    assert set(server.keys) == {f"Bearer {key}"}
    assert failed.answered.detail.startswith("HTTP 400: xxx")
    assert answered.answered.answer is not None
    assert "said no to ***" in caplog.text
    for written in (failed.answered.detail, caplog.text, (tmp_path / "journal.jsonl").read_text()):
        assert key[:6] not in written
    server.reply = lambda number, body: refusal(401, f"Incorrect API key provided: {key}.")
    with pytest.raises(SynthesisError, match=r"provided: \*\*\*\. \(the key is taken from") as error:
        ask(3)
    assert key not in str(error.value)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-0123\n456789")
    with pytest.raises(RecipeError, match=r"OPENAI_API_KEY: this environment variable has characters that no key has"):
        ask(4)


def test_long_waits_that_a_server_asks_for_are_said(ask, server, monkeypatch, caplog):
    server.script(Reply(429, body=b"{}", headers=(("Retry-After", "7200"),)))
    monkeypatch.setattr("threading.Event.wait", lambda self, timeout=None: self.is_set())
    ask()
    assert "HTTP 429" in caplog.text
    assert "again in 7200.0 s" in caplog.text


def test_missing_token_counts_are_estimated_and_counted(ask, server):
    server.script(Reply(content=GOOD, usage=False))
    (outcome,) = ask()
    assert outcome.estimated == 1
    assert outcome.spent.output_tokens > 0


def test_at_most_so_many_at_once_and_in_order(ask, server):
    server.reply = lambda number, body: Reply(delay=0.05 if number % 3 == 0 else 0.01)
    server.model = lambda body: json.dumps({"tasks": [body["messages"][0]["content"]]})
    outcomes = ask(12, concurrency=3)
    assert [outcome.answered.answer.tasks[0] for outcome in outcomes] == [f"请求{k}" for k in range(12)]
    assert server.most_at_once == 3


def test_requests_a_minute(ask, server):
    ask(4, requests_per_minute=600, concurrency=4)
    assert server.times[3] - server.times[0] >= 0.25


def test_pace_spaces_units_and_is_corrected():
    now = [0.0]
    pace = Pace(60, clock=lambda: now[0])
    assert [pace.reserve(10), pace.reserve(5), pace.reserve(1)] == [0, 10, 15]
    pace.correct(-6)
    now[0] = 4.0
    assert pace.reserve() == pytest.approx(6)
    now[0] = 100.0
    assert pace.reserve() == 0
    assert [Pace(None).reserve(1000) for _ in range(2)] == [0, 0]


# -- the journal -------------------------------------------------------------------------------------------------------


def test_a_cut_last_line_is_taken_off_and_asked_again(ask, server, tmp_path):
    path = tmp_path / "journal.jsonl"
    whole = ask(3)
    path.write_bytes(path.read_bytes()[:-20])
    again = ask(3)
    assert [one._replace(asked=1) for one in again] == whole
    assert [one.asked for one in again] == [0, 0, 1]
    assert len(server.bodies) == 4
    assert all(json.loads(line) for line in path.read_text().splitlines())


def test_a_damaged_line_names_its_place(ask, tmp_path):
    path = tmp_path / "journal.jsonl"
    ask(2)
    first, second = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(first[:-9] + b"\n" + second)
    with pytest.raises(JournalError, match=r"journal\.jsonl:1: not a line of a journal"):
        ask(2)


def test_another_question_is_another_request(ask, server):
    ask(1)
    ask(1, temperature=0.1)
    ask(1, max_tokens=9)
    ask(1, body={"top_p": 0.5})
    ask(1, concurrency=2, timeout=9, input_price=1)  # does not change the answer
    assert len(server.bodies) == 4


def _hold(path, held, leave):
    with Journal(path):
        held.set()
        leave.wait(30)


def test_two_runs_do_not_share_a_journal(tmp_path):
    context = multiprocessing.get_context("fork")
    held, leave = context.Event(), context.Event()
    other = context.Process(target=_hold, args=(tmp_path / "j.jsonl", held, leave))
    other.start()
    assert held.wait(30)
    with pytest.raises(JournalError, match="another run has it open"):
        Journal(tmp_path / "j.jsonl")
    leave.set()
    other.join()
    with Journal(tmp_path / "j.jsonl") as book:
        book.add("k", Completion("x", "stop", 1, 2))
    with Journal(tmp_path / "j.jsonl") as book:
        assert book.get("k") == Completion("x", "stop", 1, 2)


def test_a_stop_lets_go_at_once(server, templates, tmp_path):
    server.reply = lambda number, body: refusal(503, "busy")
    api = Api(base_url=server.base_url, model="m", backoff=60, attempts=2)
    requests = (Request("tasks", f"t{k}", [{"role": "user", "content": str(k)}], tasks_answer(1)) for k in range(10))

    def failing():
        yield next(requests)
        while not server.bodies:
            time.sleep(0.01)
        raise KeyboardInterrupt

    start = time.monotonic()
    with Journal(tmp_path / "j.jsonl") as book, ChatClient(api) as client, pytest.raises(KeyboardInterrupt):
        list(Asker(client, book, templates, 0).ask(failing(), lambda *_: None))
    assert time.monotonic() - start < 30
