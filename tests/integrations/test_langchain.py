"""`CodiembEmbeddings` in LangChain: stores, retrievers, async, LangChain's own way to save."""

from __future__ import annotations

import asyncio
import json
import threading
from inspect import signature

import numpy as np
import pytest
from langchain_community.vectorstores import FAISS
from langchain_community.vectorstores.utils import DistanceStrategy
from langchain_core.documents import Document
from langchain_core.load import dumpd, dumps, load
from recording_embedders import INSTRUCTION, PASSAGES, QUERY, Recorder, Waiting

from codiemb import LLMEmbeddingModel
from codiemb.integrations import CodiembEmbeddings
from codiemb.prompts import InstructionTemplate

DOCUMENTS = [Document(text, metadata={"about": about}) for about, text in PASSAGES.items()]


def loaded(saved):
    """LangChain loads classes of others where it is told so, by package and in newer versions by class."""
    told = {"allowed_objects": [CodiembEmbeddings]} if "allowed_objects" in signature(load).parameters else {}
    return load(saved, valid_namespaces=["codiemb"], **told)


def test_a_store_keeps_bare_texts_and_ranks_by_the_model(saved_directories, tmp_path):
    model = LLMEmbeddingModel(saved_directories["both"], device="cpu", compute="fp32")
    embeddings = CodiembEmbeddings(model, instruction=INSTRUCTION)
    store = FAISS.from_documents(DOCUMENTS, embeddings, distance_strategy=DistanceStrategy.MAX_INNER_PRODUCT)
    store.save_local(str(tmp_path))
    store = FAISS.load_local(
        str(tmp_path),
        embeddings,
        distance_strategy=DistanceStrategy.MAX_INNER_PRODUCT,
        allow_dangerous_deserialization=True,
    )
    found = store.similarity_search_with_score(QUERY, k=len(DOCUMENTS))
    # The research release wrote the instruction into page_content, so that searches returned it.
    assert {document.page_content: document.metadata["about"] for document, _ in found} == {
        text: about for about, text in PASSAGES.items()
    }
    scores = model.compute_similarity([QUERY], list(PASSAGES.values()), instruction=INSTRUCTION)[0]
    expected = sorted(zip(scores, PASSAGES, strict=True), reverse=True)
    assert [document.metadata["about"] for document, _ in found] == [about for _, about in expected]
    np.testing.assert_allclose([score for _, score in found], [score for score, _ in expected], atol=1e-5)


def test_stores_and_retrievers_give_the_model_bare_texts():
    embedder = Recorder()
    store = FAISS.from_documents(DOCUMENTS, CodiembEmbeddings(embedder, instruction=INSTRUCTION))
    store.add_texts(["more"])
    (found,) = store.as_retriever(search_kwargs={"k": 1, "filter": {"about": "train"}}).invoke(QUERY)
    assert (found.page_content, found.metadata) == (DOCUMENTS[-1].page_content, DOCUMENTS[-1].metadata)
    assert embedder.calls == [
        ("document", list(PASSAGES.values()), INSTRUCTION),
        ("document", ["more"], INSTRUCTION),
        ("query", [QUERY], INSTRUCTION),
    ]


@pytest.mark.parametrize("method", ["aembed_query", "aembed_documents"])
def test_async_leaves_the_event_loop_free(method):
    embedder = Waiting()
    embeddings = CodiembEmbeddings(embedder)

    async def release_while_it_embeds() -> list:
        task = asyncio.create_task(getattr(embeddings, method)([QUERY] if method.endswith("documents") else QUERY))
        await asyncio.sleep(0.01)
        embedder.released.set()
        return await task

    result = asyncio.run(release_while_it_embeds())
    assert result == ([[len(QUERY), 0]] if method.endswith("documents") else [len(QUERY), 1])
    assert embedder.threads != [threading.main_thread()]


def test_langchain_saves_and_loads_it(saved_directories):
    embeddings = CodiembEmbeddings(
        saved_directories["youtu"], instruction="T2Retrieval", device="cpu", template={"query": "{instruction}: "}
    )
    saved = dumpd(embeddings)
    assert saved["kwargs"] == {
        "model": str(saved_directories["youtu"]),
        "instruction": "T2Retrieval",
        "template": InstructionTemplate(query="{instruction}: ").to_dict(),
        "device": "cpu",
    }
    again = loaded(json.loads(json.dumps(saved)))
    assert again.model_dump() == embeddings.model_dump()
    assert again.embed_query(QUERY) == embeddings.embed_query(QUERY)


def test_langchain_is_told_that_an_instance_cannot_be_saved():
    embeddings = CodiembEmbeddings(Recorder())
    with pytest.raises(ValueError, match="model is a Recorder in memory, which no configuration can hold"):
        dumps(embeddings)
