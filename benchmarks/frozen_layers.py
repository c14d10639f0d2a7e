"""What frozen layers, an adapter and gradient checkpointing do to one training step: time and kept activations.

    python benchmarks/frozen_layers.py [--model bundled] [--texts 24] [--words 40]

A step is a forward and a backward pass over random words, without an optimizer, on one thread. Time is processor time,
so that other work on the machine matters little; activations are what autograd keeps, parameters left out.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Callable

import torch
from rich.console import Console
from rich.table import Table

from codiemb import backbones
from codiemb.encoding import EmbeddingPass, hidden_layers
from codiemb.prompts import PromptedText
from codiemb.training import cpu
from codiemb.training.adapters import LowRankAdapter
from codiemb.training.parameters import count_parameters, freeze_layers
from codiemb.training.recipe import Adapter

WORDS = ("house", "river", "stone", "train", "bread", "water", "paper", "music", "garden", "winter")


def measure(change: Callable[[EmbeddingPass], object], model: str, texts: int, words: int) -> tuple[str, ...]:
    """(trained share, processor seconds of the better of two steps, MB that autograd keeps)."""
    loaded = backbones.load(model, device="cpu", attention="eager")
    cpu.use_fast_dropout(loaded[0].model)
    cpu.use_fast_attention(loaded[0].model)
    embedding_pass = EmbeddingPass(loaded.train(), graph_budget=2**20)
    loaded[0].model.get_input_embeddings().requires_grad_(False)
    change(embedding_pass)
    counted = count_parameters(embedding_pass)
    generator = random.Random(0)
    batch = embedding_pass.tokenize(
        [PromptedText("", " ".join(generator.choices(WORDS, k=words))) for _ in range(texts)]
    )
    own = {parameter.untyped_storage().data_ptr() for parameter in embedding_pass.parameters()}
    seconds, kept = [], {}
    for counting in (False, False, True):

        def see(tensor: torch.Tensor) -> torch.Tensor:
            if tensor.untyped_storage().data_ptr() not in own:
                kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        started = time.process_time()
        if counting:
            with torch.autograd.graph.saved_tensors_hooks(see, lambda tensor: tensor):
                final = embedding_pass(batch).final
        else:
            final = embedding_pass(batch).final
        final.square().mean().backward()
        embedding_pass.zero_grad()
        seconds.append(time.process_time() - started)
    share = f"{counted.trained / counted.total:.1%}"
    return share, f"{min(seconds[:2]):.2f}", f"{sum(kept.values()) / 1e6:.0f}"


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="bundled")
    parser.add_argument("--texts", type=int, default=24)
    parser.add_argument("--words", type=int, default=40)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    layers = len(hidden_layers(backbones.load(arguments.model, device="cpu")[0]))
    half, most = layers // 2, layers * 3 // 4

    def checkpointed(embedding_pass: EmbeddingPass) -> None:
        embedding_pass.transformer.model.gradient_checkpointing_enable({"use_reentrant": False})

    changes: dict[str, Callable[[EmbeddingPass], object]] = {
        "token table frozen": lambda _: None,
        f"frozen_layers: {half}": lambda embedding_pass: freeze_layers(embedding_pass, half),
        f"frozen_layers: {most}": lambda embedding_pass: freeze_layers(embedding_pass, most),
        "adapter: {rank: 16}": lambda embedding_pass: LowRankAdapter(embedding_pass.model, Adapter(), "base"),
        "gradient_checkpointing": checkpointed,
    }
    table = Table("", "trained", "processor s", "kept, MB")
    for name, change in changes.items():
        table.add_row(name, *measure(change, arguments.model, arguments.texts, arguments.words))
    Console().print(table)


if __name__ == "__main__":
    main()
