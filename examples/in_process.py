"""Embed questions and passages in this process with LLMEmbeddingModel, and rank the passages.

    pip install 'codiemb[bundled]'
    python examples/in_process.py

Output:
    learn to swim as an adult, panic when face is under
      0.884  Start in chest-deep water and hold t
      0.858  Fear on the sharp end shrinks with g
      0.848  A mental block under pressure is cau
    护照快没页了还剩三年，能换吗
      0.917  可以换发。签证栏用完或有效期不足一年都属于受理情形，在移民局应用预约后去
      0.899  许多目的地要求证件剩余有效期在六个月以上，不足的即使签证在手，也可能被拒
      0.884  凭学历证书和派出所开具的迁移证，到生源地或就业地公安机关申请落户，迁移证
"""

from sample_passages import QUESTIONS, sample_passages

from codiemb import LLMEmbeddingModel

# Or a hub id such as tencent/Youtu-Embedding, or a directory that was trained here.
model = LLMEmbeddingModel("bundled")
passages = list(sample_passages().values())

# A model that reads instructions takes one, or the name of a CMTEB task: instruction="T2Retrieval".
scores = model.compute_similarity(QUESTIONS, passages)  # (questions, passages)

for question, row in zip(QUESTIONS, scores, strict=True):
    print(question)
    for index in row.argsort()[::-1][:3]:
        print(f"  {row[index]:.3f}  {passages[index][:36]}")
