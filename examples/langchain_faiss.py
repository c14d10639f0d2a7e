"""LangChain with a FAISS store, end to end: index passages, save the index, load it, search it.

    pip install 'codiemb[bundled,langchain,search]' langchain-community
    python examples/langchain_faiss.py

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

from langchain_community.vectorstores import FAISS
from langchain_community.vectorstores.utils import DistanceStrategy
from langchain_core.documents import Document
from sample_passages import QUESTIONS, sample_passages

from codiemb.integrations import CodiembEmbeddings

embeddings = CodiembEmbeddings("bundled")  # each side gets its prompt from the model: put none into the texts
documents = [Document(text, metadata={"id": id_}) for id_, text in sample_passages().items()]
store = FAISS.from_documents(documents, embeddings, distance_strategy=DistanceStrategy.MAX_INNER_PRODUCT)

with tempfile.TemporaryDirectory() as folder:
    store.save_local(folder)
    store = FAISS.load_local(
        folder,
        embeddings,
        distance_strategy=DistanceStrategy.MAX_INNER_PRODUCT,
        allow_dangerous_deserialization=True,  # it holds a pickle: load only what you have saved
    )

for question in QUESTIONS:
    print(question)
    for document, score in store.similarity_search_with_score(question, k=3):
        print(f"  {score:.3f}  {document.metadata['id']}  {document.page_content[:36]}")
