"""torch.compile in training: layer by layer, for batches of any size."""

from __future__ import annotations

from codiemb.encoding import EmbeddingPass, hidden_layers


def compile_layers(embedding_pass: EmbeddingPass, backend: str = "inductor") -> None:
    """Let the network's layers be compiled when they are first called; names, weights and saving stay as they are.

    Layers of one kind share their code, so there is little to compile, and sizes are symbols, so that batches and
    chunks of other lengths compile nothing anew. A layer whose states are watched for a loss on the middle of the
    network stays as it is: a watcher that comes and goes would compile it in every step. So does the copy that CPUs
    encode with.

    Args:
        backend: of torch.compile.
    """
    for number, layer in enumerate(hidden_layers(embedding_pass.transformer), start=1):
        if number != embedding_pass.middle_layer:
            layer.compile(dynamic=True, backend=backend)
