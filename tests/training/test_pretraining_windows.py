from __future__ import annotations

import gzip
import json
import math
from itertools import chain

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from tiny_models import byte_bpe_tokenizer

from codiemb.data.examples import DataError
from codiemb.training.pretraining.data import held_out_test
from codiemb.training.pretraining.documents import corpus_files, documents
from codiemb.training.pretraining.masking import MaskedWindows, mask_token_id
from codiemb.training.pretraining.recipe import Corpus, HeldOut, Masking
from codiemb.training.pretraining.tokens import DOCUMENT, TokenFile, framing, text_hash, tokenised
from codiemb.training.pretraining.trainer import WindowSampler
from codiemb.training.pretraining.windows import IGNORED, NO_WINDOW, Windows
from codiemb.training.sections import RecipeError

from .pretraining_world import sentences, write_corpus

PADDING = 999_999


def token_file(lengths, first_id=0):
    """Documents of given lengths whose token ids are all different."""
    tokens = np.arange(first_id, first_id + sum(lengths))
    rows = np.zeros(len(lengths), DOCUMENT)
    rows["tokens"] = lengths
    return TokenFile("", "", tokens, rows)


def predictions(windows):
    """(tokens before in the window and document, token that is predicted), over all windows."""
    for index in range(len(windows)):
        window = {name: value.tolist() for name, value in windows[index].items()}
        for place, label in enumerate(window["labels"]):
            if label != IGNORED:
                begin = place - window["position_ids"][place]
                yield window["input_ids"][begin : place + 1], label


@pytest.mark.parametrize("size", [2, 3, 7, 16, 64])
def test_each_token_but_the_first_of_a_document_is_predicted_once_from_its_own_document(size):
    lengths = [[5, 2, 9, 3, 30], [2, 2, 2, 17, 7, 40, 4]]
    files = [token_file(lengths[0]), token_file(lengths[1], first_id=1000)]
    windows = Windows(files, size, padding=PADDING)
    predicted = []
    for before, label in predictions(windows):
        assert before == list(range(label - len(before), label))  # the tokens right before it, none left out
        predicted.append(label)
    starts = {int(end - n) for end, n in zip(np.cumsum(lengths[0]), lengths[0], strict=True)}
    starts |= {int(1000 + end - n) for end, n in zip(np.cumsum(lengths[1]), lengths[1], strict=True)}
    assert predicted == [id_ for file in files for id_ in file.tokens.tolist() if id_ not in starts]

    counts = windows.counts
    assert counts.documents == 12
    assert counts.tokens == sum(map(sum, lengths))
    assert counts.predictions == counts.tokens - counts.documents == len(predicted)
    assert counts.windows == math.ceil(counts.predictions / size)
    assert counts.unused == counts.windows * size - counts.predictions
    full = [windows[i]["labels"] for i in range(len(windows) - 1)]
    assert all((labels != IGNORED).all() for labels in full)


def test_places_that_are_left_hold_padding_and_see_only_themselves():
    windows = Windows([token_file([4, 3])], 8, padding=PADDING)
    assert windows[0]["input_ids"].tolist() == [0, 1, 2, 4, 5, PADDING, PADDING, PADDING]
    assert windows[0]["position_ids"].tolist() == [0, 1, 2, 0, 1, 0, 0, 0]
    assert windows[0]["labels"].tolist() == [1, 2, 3, 5, 6, IGNORED, IGNORED, IGNORED]
    assert (windows[NO_WINDOW]["labels"] == IGNORED).all()


@pytest.mark.parametrize(("windows", "world_size"), [(17, 1), (17, 2), (16, 2), (9, 4), (1, 3)])
def test_ranks_read_all_windows_once_in_as_many_steps(windows, world_size):
    samplers = [WindowSampler(windows, 4, rank=rank, world_size=world_size, seed=3) for rank in range(world_size)]
    batches = [list(sampler) for sampler in samplers]
    assert {len(of_rank) for of_rank in batches} == {len(samplers[0])}
    read = [index for of_rank in batches for batch in of_rank for index in batch if index != NO_WINDOW]
    assert sorted(read) == list(range(windows))
    # The windows of a step do not depend on how many ranks share it.
    alone = list(WindowSampler(windows, 4 * world_size, seed=3))
    assert [sorted(chain(*step)) for step in zip(*batches, strict=True)] == [
        sorted([*step, *[NO_WINDOW] * max(0, world_size - len(step))]) for step in alone
    ]


def test_epochs_and_seeds_have_orders_of_their_own():
    sampler = WindowSampler(50, 50, seed=1)
    first = list(sampler)
    assert list(sampler) == first
    sampler.set_epoch(1)
    assert list(sampler) != first
    assert list(WindowSampler(50, 50, seed=2)) != first


# -- hidden tokens -----------------------------------------------------------------------------------------------------


def test_hidden_tokens_are_predicted_at_the_place_before_them():
    windows = Windows([token_file([40, 30, 2, 2, 60])], 32, padding=PADDING)
    masked = MaskedWindows(windows, 0.5, mask_id=-7, vocabulary=100, seed=5)
    hidden = kept = 0
    for index in range(len(windows)):
        plain, window = windows[index], masked[index]
        chosen = torch.cat([torch.tensor([False]), window["labels"][:-1] != IGNORED])
        assert not chosen[plain["position_ids"] == 0].any()  # nothing is before the first token of a document
        assert torch.equal(window["labels"][:-1][chosen[1:]], plain["input_ids"][chosen])
        assert torch.equal(window["input_ids"][~chosen], plain["input_ids"][~chosen])
        hidden += int((window["input_ids"][chosen] == -7).sum())
        kept += int((window["input_ids"][chosen] == plain["input_ids"][chosen]).sum())
    assert 0.3 < (hidden + kept) / windows.counts.predictions < 0.6
    assert hidden > 4 * kept


def test_what_is_hidden_follows_from_seed_epoch_and_window():
    windows = Windows([token_file([100])], 32, padding=PADDING)
    masked = MaskedWindows(windows, 0.5, mask_id=-7, vocabulary=100, seed=5)
    first = [masked[i]["input_ids"] for i in (0, 1)]
    assert torch.equal(masked[0]["input_ids"], first[0])
    masked.epoch = 1
    assert not torch.equal(masked[0]["input_ids"], first[0])
    assert not torch.equal(first[0] == -7, first[1] == -7)


def test_a_mask_token_has_to_be_one():
    tokenizer = byte_bpe_tokenizer()
    with pytest.raises(RecipeError, match=r"masking\.token: got null, but the tokenizer has no mask token"):
        mask_token_id(Masking(), tokenizer)
    with pytest.raises(RecipeError, match=r"got '#_#', which is 3 tokens here, expected one token"):
        mask_token_id(Masking(token="#_#"), tokenizer)
    assert mask_token_id(Masking(token="_"), tokenizer) == tokenizer.convert_tokens_to_ids("_")


# -- documents and their tokens ----------------------------------------------------------------------------------------

TEXT = "one\nmore of one\n\n  \ntwo\r\n\r\nthree 三\n"


@pytest.mark.parametrize(
    ("division", "expected"),
    [
        ("paragraphs", ["one\nmore of one", "two", "three 三"]),
        ("lines", ["one", "more of one", "two", "three 三"]),
        ("file", [TEXT.strip("\r\n")]),
    ],
)
def test_documents_of_a_text_file(division, expected, tmp_path):
    path = tmp_path / "text.txt.gz"
    path.write_bytes(gzip.compress(TEXT.encode()))
    assert list(documents(path, Corpus(path=path, documents=division))) == expected


def test_documents_of_jsonl_and_parquet(tmp_path):
    rows = [{"id": 1, "body": "a 一"}, {"id": 2, "body": " "}, {"id": 3, "body": "b"}]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "b.parquet")
    (tmp_path / "notes.csv").write_text("x")
    corpus = Corpus(path=tmp_path, text_field="body")
    assert [path.name for path, _ in corpus_files([corpus])] == ["a.jsonl", "b.parquet"]
    for path, _ in corpus_files([corpus]):
        assert list(documents(path, corpus)) == ["a 一", "b"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.txt", None, "none.txt: no such file or directory"),
        ("a.csv", b"x", "not a kind that is read here; expected text, .jsonl or .parquet"),
        ("a.jsonl", b'{"text": "x"}\n{"txt": "y"}\n', "a.jsonl:2: text: missing"),
        ("a.txt", b"good\n\xff bad", "a.txt:2: line: not UTF-8"),
        ("a.txt", b" \n", "holds no document"),
    ],
)
def test_files_that_cannot_be_used(name, content, message, tmp_path):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=message.replace(".", r"\.")):
        tokenised([Corpus(path=path)], byte_bpe_tokenizer(), cache_dir=tmp_path / "cache")
    assert not list((tmp_path / "cache").glob("*"))


def test_a_file_is_given_once(tmp_path):
    path = write_corpus(tmp_path / "a.jsonl", ["x"])
    with pytest.raises(DataError, match="given twice"):
        corpus_files([Corpus(path=path), Corpus(path=tmp_path)])


def test_tokens_are_those_of_the_tokenizer_between_begin_and_end(tmp_path):
    tokenizer, texts = byte_bpe_tokenizer(), sentences(0, 300)
    path = write_corpus(tmp_path / "a.jsonl", texts)
    (file,) = tokenised([Corpus(path=path)], tokenizer, cache_dir=tmp_path / "cache")
    end = tokenizer.eos_token_id
    assert framing(tokenizer) == (end, end)  # it has no token for the beginning
    expected = [[end, *tokenizer(text)["input_ids"], end] for text in texts]
    assert file.tokens.tolist() == list(chain(*expected))
    assert file.tokens.dtype == np.uint16
    assert file.documents["tokens"].tolist() == [len(ids) for ids in expected]
    assert file.documents["characters"].tolist() == [len(text) for text in texts]
    assert file.documents["bytes"].tolist() == [len(text.encode()) for text in texts]


def test_tokens_are_kept_until_content_or_tokenizer_change(tmp_path):
    path = write_corpus(tmp_path / "a.jsonl", ["x", "y"])
    told = []

    def count(tokenizer, **options):
        told.clear()
        tokenised([Corpus(path=path, **options)], tokenizer, cache_dir=tmp_path / "cache", progress=told.append)
        return len(told)

    tokenizer = byte_bpe_tokenizer()
    assert [count(tokenizer), count(tokenizer)] == [1, 0]
    write_corpus(path, ["x", "z"])
    assert [count(tokenizer), count(tokenizer)] == [1, 0]
    write_corpus(path, ["x", "y"])
    assert count(tokenizer) == 0  # touched, but as before
    other = byte_bpe_tokenizer()
    other.add_tokens(["xyz"])
    assert count(other) == 1


def test_equal_texts_are_on_one_side_and_the_share_is_as_asked(tmp_path):
    texts = [*sentences(0, 2000), *sentences(0, 2000)]
    hashes = np.array([text_hash(text) for text in texts], np.uint64)
    held_out = held_out_test(HeldOut(share=0.2))(hashes)
    assert 0.17 < held_out.mean() < 0.23
    assert np.array_equal(held_out[:2000], held_out[2000:])
    assert not held_out_test(HeldOut())(hashes).any()
    more = held_out_test(HeldOut(share=0.3))(hashes)
    assert more[held_out].all()  # a larger share keeps those of a smaller one

    path = write_corpus(tmp_path / "held.jsonl", texts[:5])
    of_file = held_out_test(HeldOut(data=[Corpus(path=path)]))(hashes)
    assert {texts[i] for i in np.flatnonzero(of_file)} == set(texts[:5])
