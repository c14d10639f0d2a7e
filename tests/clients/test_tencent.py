import copy
import json
import logging
import pickle
import subprocess
import sys
import traceback

import numpy as np
import pytest
from tc3_server import (
    DIMENSION,
    SECRET_ID,
    SECRET_KEY,
    TOKEN,
    Reply,
    embedded,
    error,
    tc3_signature,
    vector_of,
)

from codiemb.clients import EmbeddingRequestError, TencentEmbeddingModel
from codiemb.instructions import TASK_INSTRUCTIONS
from codiemb.interface import Embedder

TEXTS = [f"第{index}段文字 {index}" for index in range(20)]
THROTTLED = error("RequestLimitExceeded", "Too many requests.")


def vectors_of(texts, prompt=""):
    return np.stack([vector_of(prompt + text) for text in texts])


def malformed(change):
    """A good answer, changed."""

    def reply(request):
        response = embedded(request.body["Inputs"])
        change(response)
        return Reply(response)

    return reply


# -- success --------------------------------------------------------------------------------------------------------


def test_the_server_checks_signatures_as_documented():
    """The worked example of the API's documentation."""
    headers = {"content-type": "application/json; charset=utf-8", "host": "cvm.tencentcloudapi.com"}
    payload = rb'{"Limit": 1, "Filters": [{"Values": ["\u672a\u547d\u540d"], "Name": "instance-name"}]}'
    signature = tc3_signature(
        "Gu5t9xGARNpq86cd98joQYCN3EXAMPLE", 1551113065, "cvm", headers, ["content-type", "host"], payload
    )
    assert signature == "72e494ea809ad7a8c8f7a4507b9bddcbaa8e581f516e8da2f66e2c5a96525168"


def test_vectors_come_in_order_from_requests_of_at_most_seven(server, make_model):
    server.reply = lambda request: Reply(delay=0.03 if request.number % 2 == 0 else 0)  # later ones overtake
    model = make_model(concurrency=4)
    vectors = model.encode_passages(TEXTS)
    assert vectors.dtype == np.float32
    np.testing.assert_array_equal(vectors, vectors_of(TEXTS))
    assert sorted(len(request.body["Inputs"]) for request in server.requests) == [6, 7, 7]
    assert {request.headers["x-tc-region"] for request in server.requests} == {"ap-guangzhou"}
    assert model.total_tokens == sum(map(len, TEXTS))
    assert model.dimension == DIMENSION


def test_one_text_gives_one_vector_and_none_gives_none(server, make_model):
    model = make_model()
    assert model.encode_queries([]).shape == (0, 0)
    assert model.encode_passages("text").shape == (DIMENSION,)
    assert model.encode_queries([]).shape == (0, DIMENSION)
    assert make_model(dimension=5).encode([]).shape == (0, 5)
    assert len(server.requests) == 1


def test_satisfies_the_interface_and_compares_by_cosine(make_model):
    model = make_model()
    assert isinstance(model, Embedder)
    similarity = model.compute_similarity("a", TEXTS[:3])
    assert similarity.shape == (1, 3)
    unit = vectors_of(["a", *TEXTS[:3]])
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    np.testing.assert_allclose(similarity[0], unit[1:] @ unit[0], atol=1e-6)


def test_identical_texts_are_paid_for_once(server, make_model):
    texts = ["a", "b", "a", "a", "b"]
    np.testing.assert_array_equal(make_model().encode(texts), vectors_of(texts))
    assert [request.body["Inputs"] for request in server.requests] == [["a", "b"]]


# -- prompts --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model_name", ["youtu-embedding-llm-v1", "lke-text-embedding-v2"])
@pytest.mark.parametrize(
    ("method", "instruction", "text_type", "prompt"),
    [
        ("encode_queries", None, "query", ""),
        ("encode_passages", None, "document", ""),
        ("encode", None, "document", ""),
        ("encode_queries", "Find the answer", "query", "Instruction: Find the answer \nQuery: "),
        ("encode_passages", "Find the answer", "document", ""),
        (
            "encode_queries",
            "T2Retrieval",
            "query",
            f"Instruction: {TASK_INSTRUCTIONS['T2Retrieval'].query} \nQuery: ",
        ),
        ("encode_passages", "T2Retrieval", "document", ""),
        ("encode_passages", "STSB", "query", f"Instruction: {TASK_INSTRUCTIONS['STSB'].query} \nQuery: "),
        ("encode", "STSB", "query", f"Instruction: {TASK_INSTRUCTIONS['STSB'].query} \nQuery: "),
    ],
)
def test_prompts_go_where_the_model_reads_them(server, make_model, model_name, method, instruction, text_type, prompt):
    getattr(make_model(model_name), method)("text", instruction=instruction)
    (request,) = server.requests
    in_field = prompt and model_name == "youtu-embedding-llm-v1"
    expected = {"Model": model_name, "Inputs": ["text" if in_field else prompt + "text"], "TextType": text_type}
    assert request.body == expected | ({"Instruction": prompt} if in_field else {})


def test_document_prompts_are_in_the_text_since_the_field_is_for_queries(server, make_model):
    model = make_model(template="e5", instruction_field=True)
    model.encode_passages("text")
    model.encode_queries("text")
    first, second = (request.body for request in server.requests)
    assert (first["Inputs"], first.get("Instruction")) == (["passage: text"], None)
    assert (second["Inputs"], second.get("Instruction")) == (["text"], "query: ")


def test_a_misspelt_task_is_an_error(server, make_model):
    with pytest.raises(ValueError, match="T2Retrieval"):
        make_model().encode_queries("text", instruction="T2Retreival")
    assert not server.requests


# -- inputs ---------------------------------------------------------------------------------------------------------


def test_too_long_texts_are_an_error_that_names_them(server, make_model):
    texts = ["short", "长" * 2001, "x" * 2000, "y" * 3000]
    with pytest.raises(ValueError, match=r"2 of 4 texts are too long: 1 \(2001 characters\), 3 \(3000 characters\)"):
        make_model().encode_passages(texts)
    assert not server.requests


def test_the_prompt_counts(server, make_model):
    prompt = "Instruction: Find it now \nQuery: "
    fits = "x" * (2000 - len(prompt))
    make_model().encode_queries(fits, instruction="Find it now")
    with pytest.raises(ValueError, match=f"beside the prompt of {len(prompt)}"):
        make_model().encode_queries(fits + "x", instruction="Find it now")
    with pytest.raises(ValueError, match="Shorten the instruction"):
        make_model().encode_queries("x", instruction="Find it " * 300)


@pytest.mark.parametrize("field", [True, False])
def test_truncation_cuts_the_end_and_is_logged(server, make_model, caplog, field):
    prompt = "Instruction: Find it now \nQuery: "
    model = make_model(truncate=True, instruction_field=field)
    model.encode_queries(["head" + "x" * 1_000_000, "short"], instruction="Find it now")
    long, short = server.requests[0].body["Inputs"]
    assert short.endswith("short")
    assert long.startswith("head" if field else prompt + "head")
    assert len(long) == 2000 - (len(prompt) if field else 0)
    assert f"1 of 2 texts were cut to {2000 - len(prompt)} characters" in caplog.text


@pytest.mark.parametrize(
    ("texts", "kind", "message"),
    [
        (["a", None], TypeError, "Text 1 is NoneType"),
        (["a", 3], TypeError, "Text 1 is int"),
        (["a", " \n\t"], ValueError, "Text 1 is blank"),
    ],
)
def test_texts_that_cannot_be_sent(server, make_model, texts, kind, message):
    with pytest.raises(kind, match=message):
        make_model().encode_passages(texts)
    assert not server.requests


def test_half_a_character_is_replaced_as_in_a_local_model(make_model):
    np.testing.assert_array_equal(make_model().encode_passages("a\ud83dz"), vector_of("a\ufffdz"))


def test_punctuation_emoji_and_mixed_scripts_are_texts_like_others(make_model):
    texts = ["...", "🙂👩‍👩‍👧", "שלום 你好 hello", '"\\\n{instruction}']
    np.testing.assert_array_equal(make_model().encode_passages(texts), vectors_of(texts))


# -- faults that pass -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fault",
    [
        THROTTLED,
        error("RequestLimitExceeded.UinLimitExceeded"),
        error("InternalError"),
        error("FailedOperation.EngineServerError"),
        THROTTLED._replace(content_type="application/json; charset=utf-8"),
        Reply(body=b"<html>bad gateway</html>", status=502, content_type="text/html"),
        Reply(reset=True),
        Reply(cut=True),
    ],
    ids=["throttled", "throttled account", "internal", "engine", "charset", "502", "reset", "cut"],
)
def test_what_passes_is_tried_again(server, make_model, fault, caplog):
    server.script(fault, fault)
    with caplog.at_level(logging.INFO, "codiemb"):
        vectors = make_model(concurrency=1).encode_passages(TEXTS[:5])
    np.testing.assert_array_equal(vectors, vectors_of(TEXTS[:5]))
    assert len(server.requests) == 3
    assert "Attempt 2 of 6" in caplog.text


def test_a_time_out_is_tried_again(server, make_model):
    server.script(Reply(delay=0.4))
    np.testing.assert_array_equal(make_model(timeout=0.1).encode_passages("a"), vector_of("a"))
    assert len(server.requests) == 2


def test_a_time_out_that_stays_is_an_error(server, make_model):
    server.reply = lambda request: Reply(delay=0.4)
    with pytest.raises(EmbeddingRequestError, match=r"ClientNetworkError: .*[Rr]ead timed out.*, at attempt 2"):
        make_model(timeout=0.1, max_attempts=2).encode_passages("a")


def test_nobody_listens(make_model):
    with pytest.raises(EmbeddingRequestError, match=r"ClientNetworkError.*at attempt 2"):
        make_model(endpoint="127.0.0.1:9", max_attempts=2).encode_passages("a")


def test_a_bad_network_costs_time_and_nothing_else(server, make_model):
    faults = [None, None, THROTTLED, Reply(reset=True), None, Reply(status=503), Reply(cut=True)]
    random = np.random.default_rng(0)
    drawn = random.choice(len(faults), size=1000)
    server.reply = lambda request: faults[drawn[request.number]]
    texts = [f"text {index}" for index in range(500)]
    model = make_model(concurrency=8, max_attempts=30, backoff=0, batch_size=5)
    np.testing.assert_array_equal(model.encode_passages(texts), vectors_of(texts))
    assert model.total_tokens == sum(map(len, texts))
    assert len(server.requests) > 150  # of 100 batches


def test_throttling_that_stays_ends_the_job(server, make_model):
    server.reply = lambda request: THROTTLED
    texts = [f"text {index}" for index in range(700)]
    with pytest.raises(EmbeddingRequestError, match=r"RequestLimitExceeded: Too many requests\. \(request request-1\)"):
        make_model(max_attempts=2, concurrency=4).encode_passages(texts)
    assert 6 <= len(server.requests) <= 2 * (3 + 2 * 4)  # of 200, were all 100 batches sent


# -- faults that stay -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "code", ["InvalidParameterValue", "UnauthorizedOperation", "ResourceUnavailable.InArrears", "FailedOperation"]
)
def test_what_stays_is_not_tried_again(server, make_model, code):
    server.reply = lambda request: error(code)
    with pytest.raises(EmbeddingRequestError, match=code):
        make_model().encode_passages("a")
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("credentials", "code"),
    [
        ({"secret_key": "wrong" + SECRET_KEY}, "AuthFailure.SignatureFailure"),
        ({"secret_id": "AKIDsomebodyElse"}, "AuthFailure.SecretIdNotFound"),
        ({"token": "staleToken"}, "AuthFailure.TokenFailure"),
    ],
)
def test_wrong_credentials_are_not_tried_again(server, make_model, credentials, code):
    with pytest.raises(EmbeddingRequestError, match=code):
        make_model(**credentials).encode_passages("a")
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"", "JSONDecodeError"),
        (b"not json", "JSONDecodeError"),
        (b"\xff\xfe\xfd", "malformed answer: "),
        (b"{}", "KeyError: 'Response'"),
        (b"[1]", "TypeError"),
        (b'{"Response": null}', "TypeError"),
        (b'{"Response": []}', "AttributeError"),
        (b'{"Response": {"RequestId": "x"}}', "no vectors for 2 texts"),
        (b'{"Response": {"Data": null}}', "no vectors for 2 texts"),
        (b'{"Response": {"Data": [], "Usage": null}}', "0 vectors for 2 texts"),
        (b'{"Response": {"Data": [{"Embedding": [1]}]}}', "1 vectors for 2 texts"),
        (b'{"Response": {"Error": {}}}', "KeyError: 'Code'"),
    ],
)
def test_malformed_answers(server, make_model, body, reason):
    server.reply = lambda request: Reply(body=body)
    with pytest.raises(EmbeddingRequestError, match="malformed answer") as caught:
        make_model().encode_passages(["a", "b"])
    assert set(caught.value.partial.failures) == {0, 1}
    assert reason in caught.value.partial.failures[1]
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("item", "reason"),
    [
        (None, "no vector"),
        ({}, "no vector"),
        ({"Embedding": None}, "no vector"),
        ({"Embedding": []}, "no vector"),
        ({"Embedding": "text"}, "no vector"),
        ({"Embedding": [[1.0] * DIMENSION]}, "no vector"),
        ({"Embedding": [1.0, float("nan")] * 4}, "NaN or infinity"),
        ({"Embedding": [1.0, None] * 4}, "NaN or infinity"),
        ({"Embedding": [1e300] * DIMENSION}, "NaN or infinity"),
        ({"Embedding": [1.0] * (DIMENSION + 1)}, f"{DIMENSION + 1} numbers, expected {DIMENSION}"),
    ],
)
def test_a_malformed_vector_costs_only_its_own_text(server, make_model, item, reason):
    server.reply = malformed(lambda response: response["Data"].__setitem__(2, item))
    partial = make_model().try_encode(["a", "b", "c", "d"])
    assert list(partial.failures) == [2]
    assert reason in partial.failures[2]
    np.testing.assert_array_equal(partial.vectors[partial.received], vectors_of(["a", "b", "d"]))


def test_a_dimension_given_is_checked(make_model):
    with pytest.raises(EmbeddingRequestError, match=f"a vector of {DIMENSION} numbers, expected 7"):
        make_model(dimension=7).encode_passages("a")


# -- partial failure ------------------------------------------------------------------------------------------------


def test_partial_failure_keeps_what_came(server, make_model):
    poisoned = [*TEXTS[:9], "poison", *TEXTS[9:]]
    server.reply = lambda request: error("InvalidParameter") if "poison" in request.body["Inputs"] else None
    model = make_model()
    with pytest.raises(
        EmbeddingRequestError, match=r"7 of 21 texts have no vector\. 7-13: InvalidParameter: "
    ) as caught:
        model.encode_passages(poisoned)
    for partial in (model.try_encode(poisoned), pickle.loads(pickle.dumps(caught.value)).partial):
        assert list(partial.failures) == list(range(7, 14))
        assert partial.received.sum() == 14
        kept = [text for index, text in enumerate(poisoned) if index not in partial.failures]
        np.testing.assert_array_equal(partial.vectors[partial.received], vectors_of(kept))
        assert np.isnan(partial.vectors[~partial.received]).all()


def test_the_failed_texts_alone_can_be_sent_again(server, make_model):
    server.script(error("InvalidParameter"))
    model = make_model(concurrency=1)
    partial = model.try_encode(TEXTS)
    again = model.try_encode([TEXTS[index] for index in partial.failures])
    partial.vectors[list(partial.failures)] = again.vectors
    np.testing.assert_array_equal(partial.vectors, vectors_of(TEXTS))
    assert sum(len(request.body["Inputs"]) for request in server.requests) == len(TEXTS) + 7


def test_a_failed_duplicate_is_reported_at_each_of_its_places(server, make_model):
    server.reply = lambda request: error("InvalidParameter") if "b" in request.body["Inputs"] else None
    assert list(make_model(batch_size=1).try_encode(["b", "a", "b"]).failures) == [0, 2]


# -- secrets --------------------------------------------------------------------------------------------------------


@pytest.fixture
def all_logs(caplog):
    caplog.set_level(logging.DEBUG)
    for name in ("tencentcloud_sdk_common", "urllib3", "codiemb"):
        caplog.set_level(logging.DEBUG, name)
    return caplog


def test_secrets_are_in_no_log_repr_or_error(server, make_model, all_logs):
    def reply(request):  # a service that repeats what it was sent
        echoed = json.dumps(request.headers)
        return [None, error("InvalidParameter", echoed), Reply(status=500, body=echoed.encode())][request.number]

    server.reply = reply
    model = make_model(token=TOKEN, max_attempts=1)
    model.encode_passages("a")
    shown = [repr(model), str(model)]
    for _ in range(2):
        with pytest.raises(EmbeddingRequestError) as caught:
            model.encode_passages("a")
        shown += [*traceback.format_exception(caught.value), repr(caught.value), repr(caught.value.partial)]
    wrong = make_model(secret_key="wrong" + SECRET_KEY)
    with pytest.raises(EmbeddingRequestError) as caught:
        wrong.encode_passages("a")
    shown += [*traceback.format_exception(caught.value), repr(wrong)]
    assert "***" in "".join(shown)
    assert "X-TC-Action: GetEmbedding" in all_logs.text  # the SDK's log was read
    for secret in (SECRET_ID, SECRET_KEY, TOKEN):
        assert secret not in "".join(shown)
        assert secret not in all_logs.text


def test_without_the_filter_the_sdk_would_log_them(make_model, all_logs):
    model = make_model(token=TOKEN)
    sdk = logging.getLogger("tencentcloud_sdk_common")
    filters, sdk.filters = sdk.filters, []
    try:
        model.encode_passages("a")
    finally:
        sdk.filters = filters
    assert SECRET_ID in all_logs.text
    assert TOKEN in all_logs.text


def test_a_client_is_not_pickled_and_copies_are_itself(make_model):
    model = make_model()
    with pytest.raises(TypeError, match="not pickled"):
        pickle.dumps(model)
    assert copy.deepcopy(model) is model
    assert copy.copy(model) is model


# -- construction ---------------------------------------------------------------------------------------------------


def test_credentials_from_the_environment(server, monkeypatch):
    monkeypatch.setenv("TENCENTCLOUD_SECRET_ID", SECRET_ID)
    monkeypatch.setenv("TENCENTCLOUD_SECRET_KEY", SECRET_KEY)
    monkeypatch.setenv("TENCENTCLOUD_TOKEN", TOKEN)
    TencentEmbeddingModel(endpoint=server.endpoint, protocol="http").encode_passages("a")
    assert server.requests[0].headers["x-tc-token"] == TOKEN


@pytest.mark.parametrize(
    ("credentials", "message"),
    [
        ({}, "No secret_id in the environment"),
        ({"secret_id": SECRET_ID}, "No secret_key in the arguments"),
        ({"token": TOKEN}, "No secret_id in the arguments"),
        ({"secret_id": SECRET_ID, "secret_key": f"{SECRET_KEY}\n"}, "The secret_key in the arguments has blanks"),
        ({"secret_id": SECRET_ID, "secret_key": SECRET_KEY, "token": "令牌"}, "other than ASCII"),
    ],
)
def test_missing_or_broken_credentials(credentials, message):
    with pytest.raises(ValueError, match=message) as caught:
        TencentEmbeddingModel(**credentials)
    assert not any(secret in str(caught.value) for secret in (SECRET_ID, SECRET_KEY, TOKEN))


@pytest.mark.parametrize(
    "options",
    [
        {"batch_size": 8},
        {"max_characters": 2001},
        {"endpoint": "https://lkeap.tencentcloudapi.com"},
        {"protocol": "ftp"},
        {"template": "no-such"},
        {"timeout": 0},
    ],
    ids=str,
)
def test_arguments_out_of_range(make_model, options):
    with pytest.raises(ValueError, match=next(iter(options))):
        make_model(**options)


def test_https_and_the_sdks_host_are_the_default():
    model = TencentEmbeddingModel(secret_id=SECRET_ID, secret_key=SECRET_KEY)
    assert repr(model) == (
        "TencentEmbeddingModel('youtu-embedding-llm-v1', region='ap-guangzhou', "
        "endpoint='lkeap.tencentcloudapi.com', protocol='https')"
    )


def test_smaller_limits_of_another_site_hold(server, make_model):
    model = make_model("adp-text-embedding-0.5b", region="ap-jakarta", max_characters=500, batch_size=2)
    with pytest.raises(ValueError, match=r"0 \(501 characters\)"):
        model.encode_passages("x" * 501)
    model.encode_passages(["a", "b", "c"])
    assert sorted(len(request.body["Inputs"]) for request in server.requests) == [1, 2]
    assert server.requests[0].headers["x-tc-region"] == "ap-jakarta"


def test_a_progress_bar_on_stderr(make_model, capsys):
    model = make_model()
    model.encode_passages(TEXTS, show_progress_bar=True)
    shown = capsys.readouterr()
    assert "20/20" in shown.err
    assert not shown.out
    model.encode_passages(TEXTS)  # stderr is no terminal here
    assert not capsys.readouterr().err


def test_needs_no_torch():
    code = "import sys, codiemb.clients; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
