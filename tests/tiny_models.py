"""Tiny random models, built in memory: an encoder of BERT's kind and a decoder of Qwen's."""

from pathlib import Path

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast, Qwen3Config, Qwen3Model

TEXTS = [
    "How do I make sourdough bread at home?",
    "Feed the starter for a week, then mix flour, water and salt and let the dough rest overnight.",
    "怎么在家做酸面包？",
    "先养一周酵种，再把面粉、水和盐揉成面团，静置一夜。",
    "The train to Shanghai leaves at nine.",
    "去上海的火车九点开。",
    "Why is my washing machine leaking?",
    "洗衣机漏水是什么原因？",
    "Check the hose first.",
    "先检查水管。",
]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]


def wordpiece_tokenizer(**options: object) -> PreTrainedTokenizerFast:
    """BERT's kind: `[CLS] ... [SEP]`, each Chinese character a word, trained on `TEXTS`."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    alphabet = sorted({*"".join(TEXTS).lower(), *"abcdefghijklmnopqrstuvwxyz0123456789:"})
    trainer = trainers.WordPieceTrainer(
        vocab_size=400, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **{**names, "model_max_length": 64, **options})


def byte_bpe_tokenizer(**options: object) -> PreTrainedTokenizerFast:
    """Qwen's kind: bytes, no special tokens around a text, padded on the left."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|end|>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    defaults = {"pad_token": "<|end|>", "eos_token": "<|end|>", "padding_side": "left", "model_max_length": 64}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **{**defaults, **options})


def save_encoder(directory: Path, *, tokenizer: PreTrainedTokenizerFast | None = None, dropout: float = 0.1) -> Path:
    """A bare BERT of 2 layers and its tokenizer."""
    torch.manual_seed(0)
    tokenizer = tokenizer or wordpiece_tokenizer()
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=64,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
        initializer_range=0.2,  # BERT's own 0.02 makes all embeddings of so small a network nearly equal
    )
    BertModel(config).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def save_decoder(directory: Path, *, tokenizer: PreTrainedTokenizerFast | None = None) -> Path:
    """A bare causal Qwen3 of 2 layers and its tokenizer."""
    torch.manual_seed(0)
    tokenizer = tokenizer or byte_bpe_tokenizer()
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        intermediate_size=64,
        max_position_embeddings=256,
        pad_token_id=tokenizer.pad_token_id,
        initializer_range=0.2,
    )
    Qwen3Model(config).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def assemble(
    directory: Path, pooling: str | tuple[str, ...] = "mean", include_prompt: bool = True, **options: object
) -> SentenceTransformer:
    """A sentence-transformers model on the network in `directory`."""
    pool = Pooling(32, pooling, include_prompt=include_prompt)
    return SentenceTransformer(modules=[Transformer(str(directory)), pool, Normalize()], device="cpu", **options)
