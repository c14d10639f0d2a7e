"""Embed questions and passages with Tencent Cloud's API, and rank the passages. It costs a few thousand tokens.

    pip install 'codiemb[tencent]'
    export TENCENTCLOUD_SECRET_ID=... TENCENTCLOUD_SECRET_KEY=...
    python examples/cloud_api.py

Output: two questions, each with the three nearest passages and their cosines; then the tokens that were billed.
"""

from sample_passages import QUESTIONS, sample_passages

from codiemb.clients import EmbeddingRequestError, TencentEmbeddingModel

model = TencentEmbeddingModel()  # credentials from the environment
passages = list(sample_passages().values())

try:
    scores = model.compute_similarity(QUESTIONS, passages, instruction="T2Retrieval")  # (questions, passages)
except EmbeddingRequestError as error:
    raise SystemExit(str(error)) from None

for question, row in zip(QUESTIONS, scores, strict=True):
    print(question)
    for index in row.argsort()[::-1][:3]:
        print(f"  {row[index]:.3f}  {passages[index][:60]}")
print(f"{model.total_tokens} tokens")
