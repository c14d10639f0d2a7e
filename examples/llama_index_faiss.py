"""LlamaIndex with a FAISS store, end to end: index documents, save the index, load it, search it.

    pip install 'codiemb[bundled,llama-index,search]' llama-index-vector-stores-faiss
    python examples/llama_index_faiss.py

Output:
    learn to swim as an adult, panic when face is under
      0.884  d173  Start in chest-deep water and hold t
      0.858  d169  Fear on the sharp end shrinks with g
      0.848  d150  A mental block under pressure is cau
    护照快没页了还剩三年，能换吗
      0.917  d442  可以换发。签证栏用完或有效期不足一年都属于受理情形，在移民局应用预约后去
      0.899  d326  许多目的地要求证件剩余有效期在六个月以上，不足的即使签证在手，也可能被拒
      0.884  d440  凭学历证书和派出所开具的迁移证，到生源地或就业地公安机关申请落户，迁移证
"""

import tempfile

import faiss
from llama_index.core import Document, StorageContext, VectorStoreIndex, load_index_from_storage
from llama_index.vector_stores.faiss import FaissVectorStore
from sample_passages import QUESTIONS, sample_passages

from codiemb.integrations import CodiembEmbedding

embedding = CodiembEmbedding("bundled")  # each side gets its prompt from the model: put none into the texts
dimension = len(embedding.get_query_embedding(QUESTIONS[0]))
documents = [
    Document(text=text, id_=id_, metadata={"id": id_}, excluded_embed_metadata_keys=["id"])  # not part of the vector
    for id_, text in sample_passages().items()
]
store = FaissVectorStore(faiss.IndexFlatIP(dimension))
context = StorageContext.from_defaults(vector_store=store)
index = VectorStoreIndex.from_documents(documents, storage_context=context, embed_model=embedding)

with tempfile.TemporaryDirectory() as folder:
    index.storage_context.persist(folder)
    context = StorageContext.from_defaults(vector_store=FaissVectorStore.from_persist_dir(folder), persist_dir=folder)
    index = load_index_from_storage(context, embed_model=embedding)

retriever = index.as_retriever(similarity_top_k=3)
for question in QUESTIONS:
    print(question)
    for found in retriever.retrieve(question):
        print(f"  {found.score:.3f}  {found.metadata['id']}  {found.text[:36]}")
