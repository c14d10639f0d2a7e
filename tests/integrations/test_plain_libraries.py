"""A saved model gives the same vectors in plain sentence-transformers, LangChain and LlamaIndex as through ours."""

from __future__ import annotations

import numpy as np
import pytest
from langchain_huggingface import HuggingFaceEmbeddings
from llama_index.embeddings.huggingface import HuggingFaceEmbedding
from recording_embedders import PASSAGES, QUERY
from sentence_transformers import SentenceTransformer

from codiemb import LLMEmbeddingModel
from codiemb.integrations import CodiembEmbedding, CodiembEmbeddings

TEXTS = list(PASSAGES.values())


def same(actual, expected) -> None:
    np.testing.assert_allclose(np.asarray(actual), np.asarray(expected), atol=2e-6)


@pytest.mark.parametrize("template", ["e5", "youtu"])
def test_without_an_instruction_the_saved_prompts_are_the_same_everywhere(saved_directories, template):
    directory = str(saved_directories[template])
    ours = CodiembEmbeddings(directory, device="cpu", compute="fp32")
    query, documents = ours.embed_query(QUERY), ours.embed_documents(TEXTS)

    llama_index = CodiembEmbedding(directory, device="cpu", compute="fp32")
    same(llama_index.get_query_embedding(QUERY), query)
    same(llama_index.get_text_embedding_batch(TEXTS), documents)

    plain = SentenceTransformer(directory, device="cpu")
    same(plain.encode_query(QUERY), query)
    same(plain.encode_document(TEXTS), documents)

    langchain = HuggingFaceEmbeddings(
        model_name=directory,
        model_kwargs={"device": "cpu"},
        encode_kwargs={"prompt_name": "document"},
        query_encode_kwargs={"prompt_name": "query"},
    )
    same(langchain.embed_query(QUERY), query)
    same(langchain.embed_documents(TEXTS), documents)

    hugging_face = HuggingFaceEmbedding(
        model_name=directory,
        device="cpu",
        query_instruction=plain.prompts["query"],
        text_instruction=plain.prompts["document"],
    )
    same(hugging_face.get_query_embedding(QUERY), query)
    same(hugging_face.get_text_embedding_batch(TEXTS), documents)


def test_the_prompt_of_an_instruction_is_the_same_everywhere(saved_directories):
    directory, instruction = str(saved_directories["both"]), "T2Retrieval"
    model = LLMEmbeddingModel(directory, device="cpu", compute="fp32")
    ours = CodiembEmbeddings(model, instruction=instruction)
    query, documents = ours.embed_query(QUERY), ours.embed_documents(TEXTS)
    assert np.abs(np.array(query) - model.encode_query(QUERY)).max() > 0.01  # the instruction is read
    ask, find = model.prompt_for("query", instruction), model.prompt_for("document", instruction)

    plain = SentenceTransformer(directory, device="cpu")
    same(plain.encode_query(QUERY, prompt=ask), query)
    same(plain.encode_document(TEXTS, prompt=find), documents)

    langchain = HuggingFaceEmbeddings(
        model_name=directory,
        model_kwargs={"device": "cpu"},
        encode_kwargs={"prompt": find},
        query_encode_kwargs={"prompt": ask},
    )
    same(langchain.embed_query(QUERY), query)
    same(langchain.embed_documents(TEXTS), documents)

    hugging_face = HuggingFaceEmbedding(
        model_name=directory, device="cpu", query_instruction=ask, text_instruction=find
    )
    same(hugging_face.get_query_embedding(QUERY), query)
    same(hugging_face.get_text_embedding_batch(TEXTS), documents)


def test_line_ends_are_kept_where_plain_langchain_replaces_them(saved_directories):
    directory = str(saved_directories["youtu"])
    ours = CodiembEmbeddings(directory, device="cpu", compute="fp32")
    langchain = HuggingFaceEmbeddings(model_name=directory, model_kwargs={"device": "cpu"})
    plain = SentenceTransformer(directory, device="cpu")
    text = "Check the hose first.\nThen the pump."
    same(ours.embed_documents([text]), plain.encode_document([text]))
    same(langchain.embed_documents([text]), ours.embed_documents([text.replace("\n", " ")]))
    assert np.abs(np.array(ours.embed_documents([text])) - langchain.embed_documents([text])).max() > 0.001


def test_libraries_that_are_not_told_read_no_prompt(saved_directories):
    directory = str(saved_directories["e5"])
    bare = SentenceTransformer(directory, device="cpu").encode(QUERY, prompt="")
    same(HuggingFaceEmbeddings(model_name=directory, model_kwargs={"device": "cpu"}).embed_query(QUERY), bare)
    same(HuggingFaceEmbedding(model_name=directory, device="cpu").get_query_embedding(QUERY), bare)
    ours = CodiembEmbeddings(directory, device="cpu", compute="fp32").embed_query(QUERY)
    assert np.abs(np.array(ours) - bare).max() > 0.01
