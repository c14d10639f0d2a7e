"""Youtu-Embedding's architecture: a small random network, saved as the published model is laid out."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from tiny_models import TEXTS, byte_bpe_tokenizer
from transformers import YoutuConfig, YoutuModel

from codiemb import LLMEmbeddingModel, backbones
from codiemb.prompts import TEMPLATES

INSTRUCTION = "Given a search query, retrieve passages that answer the question"
PROMPT = f"Instruction: {INSTRUCTION} \nQuery: "


def save_youtu(directory: Path, **settings: object) -> Path:
    """All parts of its latent attention (query and key-value ranks, rotary and plain dimensions), 2 layers."""
    torch.manual_seed(0)
    tokenizer = byte_bpe_tokenizer(padding_side="right", model_max_length=256)
    config = YoutuConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        q_lora_rank=24,
        kv_lora_rank=16,
        qk_rope_head_dim=8,
        qk_nope_head_dim=8,
        v_head_dim=8,
        max_position_embeddings=512,
        initializer_range=0.2,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
        **settings,
    )
    YoutuModel(config).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def published(tmp_path_factory) -> Path:
    """Bidirectional, mean pooling without the prompt, prompts as the model card has them."""
    directory = save_youtu(tmp_path_factory.mktemp("youtu"), is_causal=False)
    modules = {"Transformer": "", "Pooling": "1_Pooling", "Normalize": "2_Normalize"}
    files = {
        "modules.json": [
            {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{name}"}
            for i, (name, path) in enumerate(modules.items())
        ],
        "sentence_bert_config.json": {"max_seq_length": 256, "do_lower_case": False},
        "config_sentence_transformers.json": {
            "prompts": {"query": f"Instruction: {INSTRUCTION} \nQuery:", "document": ""},
            "similarity_fn_name": "cosine",
        },
        "1_Pooling/config.json": {
            "word_embedding_dimension": 32,
            "pooling_mode_mean_tokens": True,
            "include_prompt": False,
        },
        "2_Normalize/config.json": {},
    }
    for name, content in files.items():
        (directory / name).parent.mkdir(exist_ok=True)
        (directory / name).write_text(json.dumps(content), encoding="utf-8")
    return directory


@pytest.fixture(scope="module")
def model(published: Path) -> LLMEmbeddingModel:
    return LLMEmbeddingModel(published, device="cpu", compute="fp32")


def one_by_one(model: SentenceTransformer, prompt: str, texts: list[str]) -> np.ndarray:
    """Each text alone through the bare network: the mean of its states behind the prompt, to unit length."""
    tokenizer, network = model.tokenizer, model[0].model.eval()
    prompt_tokens = len(tokenizer(prompt)["input_ids"])
    vectors = []
    for text in texts:
        ids = torch.tensor([tokenizer(prompt + text)["input_ids"]])
        with torch.no_grad():
            states = network(input_ids=ids).last_hidden_state[0, prompt_tokens:]
        mean = states.mean(0)
        vectors.append((mean / mean.norm()).numpy())
    return np.stack(vectors)


def first_state(model: SentenceTransformer, ids: list[int]) -> torch.Tensor:
    with torch.no_grad():
        return model[0].model.eval()(input_ids=torch.tensor([ids])).last_hidden_state[0, 0]


@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_every_batch_size_gives_the_vectors_of_one_text_at_a_time(model, batch_size):
    texts = [*TEXTS, *(text + TEXTS[1] for text in TEXTS), *(text[:3] for text in TEXTS)] * 2
    queries = model.encode_queries(texts, instruction=INSTRUCTION, batch_size=batch_size)
    np.testing.assert_allclose(queries, one_by_one(model, PROMPT, texts), atol=1e-5)
    documents = model.encode_passages(texts, instruction=INSTRUCTION, batch_size=batch_size)
    np.testing.assert_allclose(documents, one_by_one(model, "", texts), atol=1e-5)


def test_the_last_token_changes_the_state_of_the_first(model, tmp_path):
    ids = list(range(5, 25))
    assert (first_state(model, ids) - first_state(model, [*ids[:-1], 40])).abs().max() > 0.01
    model.save_pretrained(str(tmp_path))
    plain = SentenceTransformer(str(tmp_path), device="cpu")
    assert (first_state(plain, ids) - first_state(plain, [*ids[:-1], 40])).abs().max() > 0.01
    torch.testing.assert_close(first_state(plain, ids), first_state(model, ids))


def test_the_instruction_is_read_and_not_pooled(model):
    """A mean that took in the instruction's states would be another vector."""
    text = TEXTS[0]
    ours = model.encode_query(text, instruction=INSTRUCTION)
    ids = model.tokenizer(PROMPT + text)["input_ids"]
    with torch.no_grad():
        states = model[0].model(input_ids=torch.tensor([ids])).last_hidden_state[0]
    pooled = torch.nn.functional.normalize(states.mean(0), dim=0).numpy()
    assert ours @ pooled < 0.999
    assert ours @ model.encode_document(text) < 0.999
    assert ours @ model.encode_query(text, instruction="Find something else entirely") < 0.9999


def test_its_prompt_is_that_of_the_published_scores(model):
    assert model.template.query == TEMPLATES["youtu"].query
    assert model.prompt_for("query", "T2Retrieval") == (
        "Instruction: Given a Chinese search query, retrieve web passages that answer the question \nQuery: "
    )
    assert model.prompt_for("document", "T2Retrieval") == ""
    assert model.prompt_for("query", "") == PROMPT  # the published default instruction, in the template's spelling


def test_a_bare_causal_network_is_built_to_read_both_ways(tmp_path):
    bare = save_youtu(tmp_path / "bare")
    assert "is_causal" not in json.loads((bare / "config.json").read_text())
    model = LLMEmbeddingModel(bare, device="cpu", compute="fp32")
    model.set_pooling_include_prompt(False)
    assert model.template == TEMPLATES["youtu"]
    np.testing.assert_allclose(
        model.encode_queries(TEXTS, instruction=INSTRUCTION), one_by_one(model, PROMPT, TEXTS), atol=1e-5
    )
    backbones.save(model, tmp_path / "saved", model.template)
    plain = SentenceTransformer(str(tmp_path / "saved"), device="cpu")
    np.testing.assert_allclose(plain.encode(TEXTS, prompt=PROMPT), one_by_one(model, PROMPT, TEXTS), atol=1e-5)
