"""What holds for both integrations: the model, what its options may be, saving, threads."""

from __future__ import annotations

import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from inspect import Parameter, signature
from pathlib import Path

import numpy as np
import pytest
from recording_embedders import INSTRUCTION, PASSAGES, QUERY, Crowd, Recorder
from sentence_transformers import SentenceTransformer

from codiemb import LLMEmbeddingModel
from codiemb.integrations import CodiembEmbedding, CodiembEmbeddings
from codiemb.integrations.settings import _OPTIONS
from codiemb.prompts import InstructionTemplate

BOTH = pytest.mark.parametrize("integration", [CodiembEmbeddings, CodiembEmbedding])
TEXTS = list(PASSAGES.values())


def embed_documents(embeddings, texts: list[str]) -> list[list[float]]:
    if isinstance(embeddings, CodiembEmbeddings):
        return embeddings.embed_documents(texts)
    return embeddings.get_text_embedding_batch(texts)


def embed_query(embeddings, text: str) -> list[float]:
    return (
        embeddings.embed_query(text)
        if isinstance(embeddings, CodiembEmbeddings)
        else embeddings.get_query_embedding(text)
    )


@BOTH
@pytest.mark.parametrize("instruction", [None, INSTRUCTION, "T2Retrieval", "STSB"])
def test_vectors_are_those_of_the_model_by_name_and_by_instance(integration, instruction, saved_directories):
    model = LLMEmbeddingModel(saved_directories["both"], device="cpu", compute="fp32")
    queries = model.encode_queries([QUERY], instruction=instruction)
    documents = model.encode_passages(TEXTS, instruction=instruction)
    if instruction is not None:  # prompts matter
        assert np.abs(queries - model.encode([QUERY], prompt="")).max() > 0.01
    by_name = integration(saved_directories["both"], instruction=instruction, device="cpu", compute="fp32")
    for embeddings in by_name, integration(model, instruction=instruction):
        np.testing.assert_allclose(embed_query(embeddings, QUERY), queries[0], atol=1e-6)
        np.testing.assert_allclose(embed_documents(embeddings, TEXTS), documents, atol=1e-6)


@BOTH
def test_any_embedder_gets_the_bare_texts_and_the_instruction(integration):
    embedder = Recorder()
    embeddings = integration(embedder, instruction=INSTRUCTION)
    assert embed_query(embeddings, QUERY) == [len(QUERY), 1]
    assert embed_documents(embeddings, TEXTS) == [[len(text), 0] for text in TEXTS]
    assert embedder.calls == [("query", [QUERY], INSTRUCTION), ("document", TEXTS, INSTRUCTION)]


@BOTH
def test_no_texts_give_no_vectors(integration, tiny_model_directory):
    assert embed_documents(integration(tiny_model_directory, device="cpu"), []) == []


# -- what is refused ------------------------------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize(
    ("model", "settings", "error", "message"),
    [
        ("/no/such/model", {}, ValueError, "no such directory"),
        (3, {}, TypeError, "model is a int, expected a model's name"),
        (Recorder(), {"instruction": "T2Retreival"}, ValueError, "nearest names are: T2Retrieval"),
        (Recorder(), {"device": "cpu", "max_length": 8}, ValueError, "device, max_length: no use here"),
        ("bundled", {"api": {"region": "ap-beijing"}}, ValueError, "api: no use here, since the model is local"),
        ("tencent-cloud:m", {"device": "cpu"}, ValueError, "device: no use here, since the model is behind"),
        ("tencent-cloud:m", {"api": {"secret_key": "x"}}, ValueError, "api has secret_key, but settings are saved"),
        (Recorder(), {"instructions": "x"}, ValueError, "instructions"),
        (Recorder(), {"compute": "fp64"}, ValueError, "'fp32'"),
    ],
)
def test_mistakes_are_found_when_it_is_made(integration, model, settings, error, message):
    with pytest.raises(error, match=message):
        integration(model, **settings)


@BOTH
def test_a_plain_sentence_transformer_is_refused_with_what_to_do(integration, tiny_model):
    with pytest.raises(TypeError, match=r"LLMEmbeddingModel\(model\)"):
        integration(tiny_model)
    wrapped = LLMEmbeddingModel(tiny_model)
    assert isinstance(wrapped, SentenceTransformer)
    np.testing.assert_allclose(
        embed_query(integration(wrapped), QUERY), wrapped.encode_query(QUERY, convert_to_numpy=True), atol=1e-6
    )


@BOTH
@pytest.mark.parametrize("name", ["model", "instruction", "device"])
def test_settings_do_not_change_under_a_loaded_model(integration, name):
    embeddings = integration(Recorder())
    with pytest.raises(ValueError, match="frozen"):
        setattr(embeddings, name, "other")


def test_every_option_of_a_local_model_is_a_setting():
    options = signature(LLMEmbeddingModel.__init__).parameters.values()
    assert {option.name for option in options if option.kind is Parameter.KEYWORD_ONLY} <= set(_OPTIONS)


# -- saving ---------------------------------------------------------------------------------------------------------


@BOTH
def test_settings_survive_saving(integration, saved_directories):
    template = InstructionTemplate(query="task {instruction}: ", document="")
    settings = {"instruction": INSTRUCTION, "device": "cpu", "compute": "fp32", "truncate_dim": 8, "max_length": 99}
    embeddings = integration(saved_directories["both"], template=template, **settings)
    again = integration(**integration.model_validate_json(embeddings.model_dump_json()).model_dump())
    assert again.template == template
    assert {name: getattr(again, name) for name in settings} == settings
    assert embed_query(again, QUERY) == embed_query(embeddings, QUERY)
    assert len(embed_query(again, QUERY)) == 8


@BOTH
def test_a_model_by_name_is_pickled_as_its_name(integration, tiny_model_directory):
    embeddings = integration(tiny_model_directory, device="cpu", instruction=INSTRUCTION)
    pickled = pickle.dumps(embeddings)
    assert len(pickled) < 4000  # the model has 60 kB
    assert embed_query(pickle.loads(pickled), QUERY) == embed_query(embeddings, QUERY)


@BOTH
def test_an_instance_is_pickled_whole_and_never_saved(integration, tiny_model_directory):
    embeddings = integration(LLMEmbeddingModel(tiny_model_directory, device="cpu"))
    assert embed_query(pickle.loads(pickle.dumps(embeddings)), QUERY) == embed_query(embeddings, QUERY)
    for save in embeddings.model_dump, embeddings.model_dump_json:
        with pytest.raises(ValueError, match=r"model is a LLMEmbeddingModel in memory.*model='DIRECTORY'"):
            save()


# -- the official API -------------------------------------------------------------------------------------------------


@pytest.fixture
def credentials(monkeypatch) -> tuple[str, str]:
    secrets = "AKIDsecretsecret", "keykeykey"
    monkeypatch.setenv("TENCENTCLOUD_SECRET_ID", secrets[0])
    monkeypatch.setenv("TENCENTCLOUD_SECRET_KEY", secrets[1])
    return secrets


@BOTH
def test_the_official_api_by_name_keeps_credentials_out_of_all_that_is_saved(integration, credentials):
    api = {"region": "ap-beijing", "endpoint": "127.0.0.1:1", "protocol": "http", "max_attempts": 1}
    embeddings = integration("tencent-cloud:lke-text-embedding-v2", api=api, template="e5")
    again = pickle.loads(pickle.dumps(embeddings))
    for each in embeddings, again, integration(**embeddings.model_dump()):
        with pytest.raises(OSError, match="1 of 1 texts have no vector"):  # nobody listens: it was the API's client
            embed_query(each, QUERY)
        assert (each.api, each.template) == (api, "e5")
        shown = f"{each!r}{each.model_dump()}{each.model_dump_json()}{pickle.dumps(each)!r}"
        assert not any(secret in shown for secret in credentials)


@BOTH
@pytest.mark.parametrize(
    "settings", [{"secret_key": "keykeykey"}, {"api": {"token": "keykeykey"}}, {"api": "keykeykey"}]
)
def test_a_credential_that_is_refused_is_not_shown(integration, settings):
    with pytest.raises(ValueError, match=r"secret_key|token|api") as refused:
        integration("tencent-cloud:lke-text-embedding-v2", **settings)
    assert "keykeykey" not in str(refused.value)


@BOTH
def test_an_api_client_by_instance_is_neither_saved_nor_pickled(integration, credentials):
    from codiemb.clients import TencentEmbeddingModel

    embeddings = integration(TencentEmbeddingModel(endpoint="127.0.0.1:1"))
    assert not any(secret in repr(embeddings) for secret in credentials)
    with pytest.raises(ValueError, match="model='tencent-cloud:NAME'"):
        embeddings.model_dump()
    with pytest.raises(TypeError, match="pickled"):
        pickle.dumps(embeddings)


# -- threads ----------------------------------------------------------------------------------------------------------


def test_several_threads_are_in_a_model_at_once():  # which itself sees to taking turns, where it has to
    embedder = Crowd()
    sharing = CodiembEmbeddings(embedder), CodiembEmbedding(embedder, instruction=INSTRUCTION)
    with ThreadPoolExecutor(2) as threads:
        list(threads.map(embed_query, sharing, [QUERY, QUERY]))
    assert embedder.most == 2


# -- imports ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("library", "name", "extra"),
    [("langchain_core", "CodiembEmbeddings", "langchain"), ("llama_index", "CodiembEmbedding", "llama-index")],
)
def test_a_missing_library_gives_the_pip_command(library, name, extra):
    code = f"""
import sys
sys.modules[{library!r}] = None
import codiemb.integrations
try:
    codiemb.integrations.{name}
except ModuleNotFoundError as error:
    print(error)
"""
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown.strip().endswith(f"Install it with: pip install 'codiemb[{extra}]'")


def test_importing_is_light_until_a_model_is_loaded():
    code = """
import sys
import codiemb.integrations
print(sorted({"torch", "langchain_core", "llama_index", "pydantic"} & set(sys.modules)))
from codiemb.integrations import CodiembEmbedding, CodiembEmbeddings
print("torch" in sys.modules)
"""
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown.split() == ["[]", "False"]


def test_there_is_nothing_else():
    import codiemb.integrations

    with pytest.raises(AttributeError, match="no attribute 'CodiembEmbeddingss'"):
        codiemb.integrations.CodiembEmbeddingss  # noqa: B018


def test_paths_are_names(tiny_model_directory):
    assert CodiembEmbeddings(Path(tiny_model_directory), device="cpu").model == str(tiny_model_directory)
