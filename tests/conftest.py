"""What several tests share: tiny random models, and caches that are not the user's.

Unpacked once, the bundled model stays in the user's own cache; prepared data goes to a directory of the test run.
"""

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # before any import that reads it
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from pathlib import Path

import pytest
import torch
from sentence_transformers import SentenceTransformer
from tiny_models import assemble, save_decoder, save_encoder

from codiemb.bundled import cache_root

USERS_MODELS = cache_root() / "models"


@pytest.fixture(autouse=True)
def _caches(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prepared data in a directory of this run; the bundled model in the user's cache, so that it is there already."""
    root = tmp_path_factory.getbasetemp() / "cache"
    root.mkdir(exist_ok=True)
    if not (root / "models").exists():
        USERS_MODELS.mkdir(parents=True, exist_ok=True)
        (root / "models").symlink_to(USERS_MODELS.resolve())
    monkeypatch.setenv("CODIEMB_CACHE", str(root))


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def encoder_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bare network of `tiny_model`."""
    return save_encoder(tmp_path_factory.mktemp("encoder"))


@pytest.fixture(scope="session")
def decoder_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bare network of `tiny_decoder`."""
    return save_decoder(tmp_path_factory.mktemp("decoder"))


@pytest.fixture(scope="session")
def tiny_model_directory(encoder_directory: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`tiny_model`, saved as sentence-transformers saves it."""
    directory = tmp_path_factory.mktemp("tiny-model")
    model = assemble(encoder_directory, prompts={"query": "query: ", "document": "passage: "})
    model.save_pretrained(str(directory), create_model_card=False)
    return directory


@pytest.fixture
def tiny_model(tiny_model_directory: Path) -> SentenceTransformer:
    """A random BERT of 2 layers, 32 wide: WordPiece, right-padded, mean pooling, dropout 0.1, at most 64 tokens."""
    return SentenceTransformer(str(tiny_model_directory), device="cpu")


@pytest.fixture
def tiny_decoder(decoder_directory: Path) -> SentenceTransformer:
    """A random causal Qwen3 of 2 layers, 32 wide: byte BPE, left-padded, last-token pooling, prompt not pooled."""
    return assemble(decoder_directory, "lasttoken", include_prompt=False)
