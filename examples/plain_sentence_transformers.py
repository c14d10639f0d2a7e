"""A saved model is a plain sentence-transformers directory: where it is used, codiemb need not be installed.

    pip install 'codiemb[bundled]'
    python examples/plain_sentence_transformers.py

Output:
    {'query': 'query: ', 'document': 'passage: '}
    learn to swim as an adult, panic when face is under
      0.884  Start in chest-deep water and hold t
      0.858  Fear on the sharp end shrinks with g
      0.848  A mental block under pressure is cau
    护照快没页了还剩三年，能换吗
      0.917  可以换发。签证栏用完或有效期不足一年都属于受理情形，在移民局应用预约后去
      0.900  许多目的地要求证件剩余有效期在六个月以上，不足的即使签证在手，也可能被拒
      0.884  凭学历证书和派出所开具的迁移证，到生源地或就业地公安机关申请落户，迁移证
"""

import tempfile

from sample_passages import QUESTIONS, sample_passages
from sentence_transformers import SentenceTransformer

from codiemb import LLMEmbeddingModel

passages = list(sample_passages().values())

with tempfile.TemporaryDirectory() as folder:
    LLMEmbeddingModel("bundled").save_pretrained(folder)  # as is what `codiemb train` writes

    # Nothing of codiemb from here on. The prompts of both sides are in the directory.
    model = SentenceTransformer(folder)
    print(model.prompts)
    scores = model.similarity(model.encode_query(QUESTIONS), model.encode_document(passages))

for question, row in zip(QUESTIONS, scores, strict=True):
    print(question)
    for index in row.argsort(descending=True)[:3]:
        print(f"  {row[index]:.3f}  {passages[index][:36]}")
