"""SingleTaskBatchSampler in a DataLoader, under accelerate and in a plain sentence-transformers trainer."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

from codiemb.data.sampler import SingleTaskBatchSampler, SourceSpec

SOURCES = [
    SourceSpec("dureader", "ir", 301, 3),
    SourceSpec("t2", "ir", 157, 2),
    SourceSpec("stsb", "sts", 211, 5),
]
TOTAL = sum(d.size for d in SOURCES)


def ranks(world_size: int, accumulation: int) -> list[SingleTaskBatchSampler]:
    return [
        SingleTaskBatchSampler(SOURCES, rank=rank, world_size=world_size, accumulation=accumulation)
        for rank in range(world_size)
    ]


def test_data_loader_with_prefetching_workers() -> None:
    sampler = SingleTaskBatchSampler(SOURCES)
    whole = list(sampler)
    sampler.set_epoch(0)
    loader = DataLoader(list(range(TOTAL)), batch_sampler=sampler, collate_fn=list, num_workers=1, prefetch_factor=4)
    iterator = iter(loader)
    assert [next(iterator) for _ in range(3)] == whole[:3]
    assert sampler.state_dict()["step"] > 3  # runs ahead, hence start_at
    del iterator
    sampler.start_at(0, 3)
    assert list(loader) == whole[3:]


@pytest.mark.parametrize("accumulation", [1, 3])
@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_accelerate_either_way(world_size: int, accumulation: int) -> None:
    prepare = pytest.importorskip("accelerate.data_loader").prepare_data_loader

    def loader(sampler: SingleTaskBatchSampler) -> DataLoader[int]:
        return DataLoader(list(range(TOTAL)), batch_sampler=sampler, collate_fn=list)

    for rank, sampler in enumerate(ranks(world_size, accumulation)):
        expected = [list(sampler), list(sampler)]
        sampler.set_epoch(0)
        ours = prepare(loader(sampler), num_processes=1, process_index=0)
        shared = SingleTaskBatchSampler(SOURCES, accumulation=world_size * accumulation)
        dealt = prepare(loader(shared), num_processes=world_size, process_index=rank)
        for prepared in (ours, dealt):
            assert len(prepared) == len(sampler)
            assert [list(prepared), list(prepared)] == expected


def test_accelerate_skips_to_a_position() -> None:
    accelerate = pytest.importorskip("accelerate.data_loader")
    expected = ranks(2, 3)[1]
    expected.set_epoch(1)
    rest = list(expected)[10:]

    ours = ranks(2, 3)[1]
    shared = SingleTaskBatchSampler(SOURCES, accumulation=6)
    for sampler, deal in [(ours, (1, 0)), (shared, (2, 1))]:
        loader = DataLoader(list(range(TOTAL)), batch_sampler=sampler, collate_fn=list)
        prepared = accelerate.prepare_data_loader(loader, num_processes=deal[0], process_index=deal[1])
        skipping = accelerate.skip_first_batches(prepared, 10)
        sampler.set_epoch(1)
        assert list(skipping) == rest
    ours.start_at(1, 10)
    prepared = accelerate.prepare_data_loader(
        DataLoader(list(range(TOTAL)), batch_sampler=ours, collate_fn=list), num_processes=1, process_index=0
    )
    prepared.set_epoch(1)
    assert list(prepared) == rest


def given_sampler(sampler: SingleTaskBatchSampler, dataset: Any, **_: Any) -> SingleTaskBatchSampler:
    return sampler


def test_plain_sentence_transformers_trainer(tmp_path: Path) -> None:
    """Two epochs in a plain trainer, then resumed from a checkpoint in the second one."""
    sentence_transformers = pytest.importorskip("sentence_transformers")
    datasets = pytest.importorskip("datasets")
    tokenizers = pytest.importorskip("tokenizers")
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding

    specs = [SourceSpec("pairs", "ir", 11, 2), SourceSpec("scored", "sts", 14, 3)]
    texts = [str(n) for n in range(25)]  # row n of the concatenation is the token n
    data = datasets.DatasetDict(
        pairs=datasets.Dataset.from_dict({"anchor": texts[:11], "positive": texts[:11]}),
        scored=datasets.Dataset.from_dict({"s1": texts[11:], "s2": texts[11:], "label": [0.5] * 14}),
    )
    vocabulary = {text: n for n, text in enumerate(texts)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="0"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()

    class Recorder(torch.nn.Module):
        def __init__(self, model: Any) -> None:
            super().__init__()
            self.model = model

        def forward(self, features: Any, labels: Any) -> torch.Tensor:
            seen.append(features[0]["input_ids"].tolist())
            return self.model(features[0])["sentence_embedding"].sum()

    def train(resume: str | None) -> None:
        model = sentence_transformers.SentenceTransformer(
            modules=[StaticEmbedding(tokenizer, embedding_dim=4)], device="cpu"
        )
        sampler = SingleTaskBatchSampler(specs, accumulation=2, seed=1)
        arguments = sentence_transformers.SentenceTransformerTrainingArguments(
            output_dir=str(tmp_path),
            num_train_epochs=2,
            gradient_accumulation_steps=2,
            multi_dataset_batch_sampler=functools.partial(given_sampler, sampler),
            save_steps=5,
            report_to="none",
            use_cpu=True,
            disable_tqdm=True,
        )
        trainer = sentence_transformers.SentenceTransformerTrainer(
            model, arguments, train_dataset=data, loss=Recorder(model)
        )
        trainer.train(resume_from_checkpoint=resume)

    seen: list[list[int]] = []
    train(None)
    plain = SingleTaskBatchSampler(specs, accumulation=2, seed=1)
    expected = [*plain, *plain]
    assert seen == expected
    assert len(plain) == 8  # checkpoint 5 is one step of two micro-batches into the second epoch
    seen.clear()
    train(str(tmp_path / "checkpoint-5"))
    assert seen == expected[10:]
