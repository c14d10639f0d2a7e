"""A random BERT of two layers whose tokenizer knows 200 words, and a writer of JSON lines."""

import json

import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from codiemb.encoding import EmbeddingPass

WORDS = [f"w{i}" for i in range(200)]


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory) -> SentenceTransformer:
    """Mean pooling, no normalisation, 64 tokens at most."""
    vocabulary = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "query:", "passage:", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=64, **names)
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    config = BertConfig(vocab_size=len(vocabulary), max_position_embeddings=64, **sizes)
    directory = str(tmp_path_factory.mktemp("network"))
    network = BertModel(config)
    network.embeddings.word_embeddings.weight.data.normal_()  # words differ more than at initialisation
    network.save_pretrained(directory)
    fast.save_pretrained(directory)
    return SentenceTransformer(modules=[Transformer(directory), Pooling(32, "mean")], device="cpu")


@pytest.fixture
def embedding_pass(tiny_model) -> EmbeddingPass:
    return EmbeddingPass(tiny_model, precision=torch.float32, token_budget=256)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CODIEMB_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def write_jsonl():
    def write(path, rows):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
        return path

    return write


@pytest.fixture
def beir(tmp_path, write_jsonl):
    """Writes a small BEIR folder; any part can be replaced."""

    def write(name="small", queries=None, corpus=None, qrels="q1\td1\t1\nq2\td2\t2\n", split="test"):
        folder = tmp_path / name
        write_jsonl(folder / "queries.jsonl", queries or [{"_id": "q1", "text": "w1"}, {"_id": "q2", "text": "w2"}])
        write_jsonl(
            folder / "corpus.jsonl",
            corpus or [{"_id": "d1", "title": "w1", "text": "w3 w4"}, {"_id": "d2", "text": "w2 w5"}],
        )
        (folder / "qrels").mkdir(exist_ok=True)
        (folder / "qrels" / f"{split}.tsv").write_text("query-id\tcorpus-id\tscore\n" + qrels, encoding="utf-8")
        return folder

    return write
