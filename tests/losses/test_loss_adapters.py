"""The sentence-transformers adapters: equal to upstream's losses where they coincide, and they train a model."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from datasets import Dataset
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer.losses import CoSENTLoss, MultipleNegativesRankingLoss
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor, nn
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast, set_seed

from codiemb.losses import PRESETS, StsWeights
from codiemb.losses.adapters import CoDiEmbIRLoss, CoDiEmbSTSLoss, token_ids_hash

WORDS = ["cat", "dog", "fish", "bird", "sun", "rain", "snow", "wind", "runs", "swims", "shines", "falls"]
ANIMALS, WEATHER, VERBS = WORDS[:4], WORDS[4:8], WORDS[8:]


@pytest.fixture
def model(tmp_path: Path) -> SentenceTransformer:
    """A random two-layer BERT over a dozen words."""
    vocabulary = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS])}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    special = {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep")}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(tmp_path)
    set_seed(0)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    BertModel(config).save_pretrained(tmp_path)
    return SentenceTransformer(modules=[Transformer(str(tmp_path)), Pooling(16)], device="cpu")


def features(model: SentenceTransformer, *columns: list[str]) -> list[dict[str, Tensor]]:
    return [model.preprocess(column) for column in columns]


def losses_while_training(
    model: SentenceTransformer, loss: nn.Module, rows: dict[str, list], output: Path
) -> list[float]:
    arguments = SentenceTransformerTrainingArguments(
        output_dir=str(output),
        max_steps=8,
        per_device_train_batch_size=32,
        learning_rate=3e-3,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
    )
    trainer = SentenceTransformerTrainer(model, arguments, train_dataset=Dataset.from_dict(rows), loss=loss)
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def test_ir_loss_trains(model: SentenceTransformer, tmp_path: Path) -> None:
    rows: dict[str, list] = {"anchor": [], "positive": [], "negative_1": [], "negative_2": []}
    for i in range(32):
        animal, weather, verb = ANIMALS[i % 4], WEATHER[i // 4 % 4], VERBS[i // 16]
        texts = (animal, f"{animal} {verb} {weather}", f"{weather} {verb}", f"{ANIMALS[(i + 1) % 4]} {verb}")
        for column, text in zip(rows.values(), texts, strict=True):
            column.append(text)
    losses = losses_while_training(model, CoDiEmbIRLoss(model, temperature=0.1), rows, tmp_path)
    assert sum(losses[-3:]) < 0.7 * sum(losses[:3])


def test_sts_loss_trains_and_reaches_the_model_card(model: SentenceTransformer, tmp_path: Path) -> None:
    pairs = [(a, b) for i, a in enumerate(WORDS) for b in WORDS[:i]][:32]
    rows = {
        "sentence1": [a for a, _ in pairs],
        "sentence2": [f"{b} {b}" for _, b in pairs],
        "score": [float(WORDS.index(a) // 4 == WORDS.index(b) // 4) for a, b in pairs],
    }
    loss = CoDiEmbSTSLoss(model, replace(PRESETS["codiemb-release"], mid_nce=0.0))
    losses = losses_while_training(model, loss, rows, tmp_path)
    assert sum(losses[-3:]) < 0.7 * sum(losses[:3])
    model.save_pretrained(str(tmp_path / "saved"))
    card = (tmp_path / "saved" / "README.md").read_text()
    assert "CoDiEmbSTSLoss" in card
    assert '"rank_kl": 5.0' in card
    assert "2508.11442" in card


def test_ir_loss_equals_upstream_where_no_text_repeats(model: SentenceTransformer) -> None:
    columns = features(model, ["cat", "dog"], ["cat runs", "dog runs"], ["cat falls", "dog swims"])
    theirs = MultipleNegativesRankingLoss(model, scale=10.0)(columns, None)
    torch.testing.assert_close(CoDiEmbIRLoss(model, temperature=0.1)(columns, None), theirs)


def test_repeated_texts_are_not_negatives_of_each_other(model: SentenceTransformer) -> None:
    # Both rows have the same positive, which is also a negative, there with more padding. One negative remains.
    columns = features(model, ["cat", "dog"], ["bird", "bird"], ["bird", "bird swims in rain"])
    query, positive, negative = (F.normalize(model(column)["sentence_embedding"]) for column in columns)
    logits = query @ torch.stack([positive[0], negative[1]]).T / 0.02
    expected = F.cross_entropy(logits, torch.zeros(2, dtype=torch.int64))
    torch.testing.assert_close(CoDiEmbIRLoss(model)(columns), expected)
    assert MultipleNegativesRankingLoss(model, scale=50.0)(columns, None) > expected


def test_rows_of_the_same_anchor_do_not_push_each_others_positives(model: SentenceTransformer) -> None:
    assert CoDiEmbIRLoss(model)(features(model, ["cat", "cat"], ["cat runs", "cat swims"])) == 0
    assert CoDiEmbIRLoss(model)(features(model, ["cat", "dog"], ["cat runs", "cat swims"])) > 0


@pytest.mark.parametrize("padding_side", ["left", "right"])
def test_ids_are_equal_exactly_where_tokens_are(padding_side: str) -> None:
    texts = [[5, 6, 7], [7, 6, 5], [5, 6], [5, 6, 0], [0, 5, 6], [6, 5], [4, 7], [5, 6, 7]]

    def column(width: int) -> dict[str, Tensor]:
        rows = []
        for text in texts:
            padding = [(9, 0)] * (width - len(text))
            tokens = [(token, 1) for token in text]
            rows.append(padding + tokens if padding_side == "left" else tokens + padding)
        ids, mask = torch.tensor(rows).unbind(-1)
        return {"input_ids": ids, "attention_mask": mask}

    narrow, wide = token_ids_hash([column(3), column(8)]).unbind(1)
    assert torch.equal(narrow, wide)
    assert len(set(narrow.tolist())) == len(texts) - 1
    assert narrow[0] == narrow[-1]


def test_inputs_without_tokens_have_no_ids() -> None:
    assert token_ids_hash([{"pixel_values": torch.zeros(2, 3)}]) is None


def test_sts_loss_equals_upstream_for_cosent_alone(model: SentenceTransformer) -> None:
    columns, labels = (
        features(model, ["cat", "dog", "sun"], ["fish", "rain", "snow falls"]),
        torch.tensor([0.1, 0.5, 1]),
    )
    weights = StsWeights(pearson=0, rank_kl=0, pro=0, cosent=1)
    expected = CoSENTLoss(model, scale=20.0)(columns, labels)
    torch.testing.assert_close(CoDiEmbSTSLoss(model, weights)(columns, labels), expected)


def test_norms_do_not_matter() -> None:
    first, second = torch.randn(2, 5, 8).unbind(0)
    labels = torch.linspace(0, 1, 5)
    for loss in (CoDiEmbIRLoss(None), CoDiEmbSTSLoss(None)):
        scaled = loss.compute_loss_from_embeddings([3 * first, 0.5 * second], labels)
        torch.testing.assert_close(scaled, loss.compute_loss_from_embeddings([first, second], labels))


def test_margin_reaches_the_loss() -> None:
    embeddings = [torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]]), torch.tensor([[1.0, 0.1]])]
    assert CoDiEmbIRLoss(None).compute_loss_from_embeddings(embeddings) > 0
    assert CoDiEmbIRLoss(None, false_negative_margin=0.5).compute_loss_from_embeddings(embeddings) == 0


def test_options_are_reported() -> None:
    loss = CoDiEmbIRLoss(None, 0.05, false_negative_margin=0.1, gather_across_devices=True)
    assert loss.get_config_dict() == {
        "temperature": 0.05,
        "false_negative_margin": 0.1,
        "gather_across_devices": True,
    }


def test_bad_columns_and_weights() -> None:
    one = [torch.ones(2, 4)]
    with pytest.raises(ValueError, match=r"1 column\(s\), expected \(anchor, positive"):
        CoDiEmbIRLoss(None).compute_loss_from_embeddings(one)
    with pytest.raises(ValueError, match=r"3 column\(s\), expected \(sentence1, sentence2\)"):
        CoDiEmbSTSLoss(None).compute_loss_from_embeddings(one * 3, torch.ones(2))
    with pytest.raises(ValueError, match="expected both"):
        CoDiEmbSTSLoss(None).compute_loss_from_embeddings(one * 2, torch.ones(3))
    with pytest.raises(ValueError, match="middle layer"):
        CoDiEmbSTSLoss(None, "codiemb-release")
    with pytest.raises(ValueError, match="'defualt'"):
        CoDiEmbSTSLoss(None, "defualt")
