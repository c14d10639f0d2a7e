"""`CodiembEmbedding` in LlamaIndex: indexes, metadata, pipelines, async, batches, LlamaIndex's own way to save."""

from __future__ import annotations

import asyncio
import pickle
import threading

import faiss
import numpy as np
import pytest
from llama_index.core import Document, Settings, StorageContext, VectorStoreIndex
from llama_index.core.callbacks import CallbackManager, CBEventType, LlamaDebugHandler
from llama_index.core.ingestion import IngestionPipeline
from llama_index.core.schema import MetadataMode, TextNode
from llama_index.core.storage.kvstore import SimpleKVStore
from llama_index.vector_stores.faiss import FaissVectorStore
from recording_embedders import INSTRUCTION, PASSAGES, QUERY, Recorder, Waiting

from codiemb import LLMEmbeddingModel
from codiemb.integrations import CodiembEmbedding
from codiemb.integrations.settings import Model

TEXTS = list(PASSAGES.values())


def nodes(**options) -> list[TextNode]:
    return [TextNode(text=text, id_=about, metadata={"about": about}, **options) for about, text in PASSAGES.items()]


def test_a_store_keeps_bare_texts_and_ranks_by_the_model(saved_directories):
    model = LLMEmbeddingModel(saved_directories["both"], device="cpu", compute="fp32")
    embedding = CodiembEmbedding(model, instruction=INSTRUCTION)
    context = StorageContext.from_defaults(
        vector_store=FaissVectorStore(faiss.IndexFlatIP(model.embedding_pass.dimension))
    )
    documents = [
        Document(text=text, id_=about, metadata={"about": about}, excluded_embed_metadata_keys=["about"])
        for about, text in PASSAGES.items()
    ]
    index = VectorStoreIndex.from_documents(documents, storage_context=context, embed_model=embedding)
    found = index.as_retriever(similarity_top_k=len(TEXTS)).retrieve(QUERY)
    # The research release wrote the instruction into the text, so that searches returned it.
    assert {one.text: one.metadata for one in found} == {text: {"about": about} for about, text in PASSAGES.items()}
    scores = model.compute_similarity([QUERY], TEXTS, instruction=INSTRUCTION)[0]
    expected = sorted(zip(scores, PASSAGES, strict=True), reverse=True)
    assert [one.metadata["about"] for one in found] == [about for _, about in expected]
    np.testing.assert_allclose([one.score for one in found], [score for score, _ in expected], atol=1e-5)


def test_metadata_is_embedded_unless_it_is_excluded():
    embedder = Recorder()
    embedding = CodiembEmbedding(embedder, instruction=INSTRUCTION)
    embedded = embedding(nodes())
    assert embedder.calls == [
        ("document", [f"about: {about}\n\n{text}" for about, text in PASSAGES.items()], INSTRUCTION)
    ]
    assert [node.get_content(MetadataMode.NONE) for node in embedded] == TEXTS
    embedding(nodes(excluded_embed_metadata_keys=["about"]))
    assert embedder.calls[1] == ("document", TEXTS, INSTRUCTION)


def test_texts_come_in_batches_and_in_order():
    embedder = Recorder()
    embedding = CodiembEmbedding(embedder, embed_batch_size=3)
    expected = [[len(text), 0] for text in TEXTS]
    assert embedding.get_text_embedding_batch(TEXTS) == expected
    assert [len(texts) for _, texts, _ in embedder.calls] == [3, 1]
    assert asyncio.run(embedding.aget_text_embedding_batch(TEXTS)) == expected
    assert embedding.get_agg_embedding_from_queries(["a", "abc"]) == [2, 1]
    assert CodiembEmbedding(embedder).embed_batch_size == 256


@pytest.mark.parametrize("method", ["aget_query_embedding", "aget_text_embedding", "aget_text_embedding_batch"])
def test_async_leaves_the_event_loop_free(method):
    embedder = Waiting()
    embedding = CodiembEmbedding(embedder)

    async def release_while_it_embeds() -> list:
        task = asyncio.create_task(getattr(embedding, method)([QUERY] if method.endswith("batch") else QUERY))
        await asyncio.sleep(0.01)
        embedder.released.set()
        return await task

    result = asyncio.run(release_while_it_embeds())
    vector = [len(QUERY), int("query" in method)]
    assert result == ([vector] if method.endswith("batch") else vector)
    assert embedder.threads != [threading.main_thread()]


def test_it_is_saved_and_made_again(saved_directories):
    embedding = CodiembEmbedding(
        saved_directories["youtu"], instruction="T2Retrieval", device="cpu", embed_batch_size=64, num_workers=2
    )
    saved = embedding.to_dict()
    assert (saved["class_name"], saved["model_name"]) == ("CodiembEmbedding", str(saved_directories["youtu"]))
    for again in CodiembEmbedding.from_dict(saved), CodiembEmbedding.from_json(embedding.to_json()):
        assert again.to_dict() == saved
        assert again.get_query_embedding(QUERY) == embedding.get_query_embedding(QUERY)
    with pytest.raises(ValueError, match="model is a Recorder in memory, which no configuration can hold"):
        CodiembEmbedding(Recorder()).to_json()


def test_model_name_is_the_model_or_what_traces_call_it(saved_directories):
    directory = str(saved_directories["e5"])
    assert CodiembEmbedding(model_name=directory).model == directory
    named = CodiembEmbedding(Recorder(), model_name="mine")
    assert (named.model_name, CodiembEmbedding(Recorder()).model_name) == ("mine", "Recorder")
    assert named.to_payload() == {"class_name": "CodiembEmbedding", "model_name": "mine", "embed_batch_size": 256}


def test_a_pipeline_caches_by_the_settings(saved_directories, monkeypatch):
    asked: list[str] = []
    embed = Model.embed
    monkeypatch.setattr(Model, "embed", lambda self, side, *rest: (asked.append(side), embed(self, side, *rest))[1])
    pipeline = IngestionPipeline(transformations=[])

    def run(instruction: str) -> list[float]:
        directory = saved_directories["both"]
        pipeline.transformations = [CodiembEmbedding(directory, instruction=instruction, device="cpu")]
        return pipeline.run(nodes=nodes())[0].embedding

    first = run("STSB")
    assert run("STSB") == first
    assert asked == ["document"]
    assert np.abs(np.array(run("TNews")) - first).max() > 0.01


def test_a_pipeline_does_not_cache_an_instance():
    instance = [CodiembEmbedding(Recorder())]
    with pytest.raises(ValueError, match="model is a Recorder in memory"):
        IngestionPipeline(transformations=instance).run(nodes=nodes())
    assert IngestionPipeline(transformations=instance, disable_cache=True).run(nodes=nodes())[0].embedding[1] == 0


def test_a_cache_by_text_is_refused():
    # Its key is the text alone: a query would get the vector of a document that has the same text.
    with pytest.raises(ValueError, match="a text has two here"):
        CodiembEmbedding(Recorder(), embeddings_cache=SimpleKVStore())


def test_settings_and_callbacks_of_llama_index(monkeypatch):
    handler = LlamaDebugHandler(print_trace_on_end=False)
    monkeypatch.setattr(Settings, "_embed_model", None)
    monkeypatch.setattr(Settings, "_callback_manager", CallbackManager([handler]))
    Settings.embed_model = CodiembEmbedding(Recorder())
    VectorStoreIndex(nodes()).as_retriever(similarity_top_k=1).retrieve(QUERY)
    assert len(handler.get_event_pairs(CBEventType.EMBEDDING)) == 2  # the nodes, the query


def test_pickling_leaves_the_pickled_object_whole(saved_directories):
    embedding = CodiembEmbedding(saved_directories["youtu"], device="cpu")
    embedding.callback_manager = CallbackManager([LlamaDebugHandler()])
    embedding.callback_manager.lock = threading.Lock()  # cannot be pickled, and is left out
    again = pickle.loads(pickle.dumps(embedding))
    assert again.get_text_embedding(QUERY) == embedding.get_text_embedding(QUERY)
    assert len(embedding.callback_manager.handlers) == 1
