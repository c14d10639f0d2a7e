"""The embedding pass: the vectors of sentence-transformers, the gradient of one pass, in bounded memory."""

import threading
import weakref
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import StaticEmbedding
from tiny_models import TEXTS, assemble, byte_bpe_tokenizer, save_encoder, wordpiece_tokenizer
from torch import nn

from codiemb.encoding import EmbeddingPass, best_precision, plan_chunks
from codiemb.prompts import PromptedText

PROMPTS = ["", "query: ", "Instruct: 找到相关的段落\nQuery:"]
MIXED = [PromptedText(PROMPTS[i % 3], text) for i, text in enumerate(TEXTS * 2)]


def make_pass(model, **options) -> EmbeddingPass:
    return EmbeddingPass(model, **{"precision": torch.float32, **options})


def reference(model, texts, **options) -> np.ndarray:
    """One call of `SentenceTransformer.encode` for each prompt."""
    vectors = np.zeros((len(texts), model.get_embedding_dimension()), dtype=np.float32)
    for prompt in {text.prompt for text in texts}:
        rows = [row for row, text in enumerate(texts) if text.prompt == prompt]
        vectors[rows] = model.encode([texts[row].text for row in rows], prompt=prompt, **options)
    return vectors


def without_dropout(model) -> None:
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0


def gradients(embedding_pass, texts, *, seed=0, use_middle=False) -> dict[str, torch.Tensor]:
    """Of a loss in which every embedding meets every other, in training mode."""
    torch.manual_seed(seed)
    embedding_pass.train()
    embedding_pass.zero_grad(set_to_none=True)
    final, middle = embedding_pass(embedding_pass.tokenize(texts))
    loss = torch.logsumexp(final @ final.T / 0.1, dim=1).mean()
    if use_middle:
        loss = loss + (middle @ middle.T).pow(3).sum()
    loss.backward()
    return {name: p.grad.clone() for name, p in embedding_pass.named_parameters() if p.grad is not None}


# -- chunks ----------------------------------------------------------------------------------------------------------


@settings(max_examples=200, deadline=None)
@given(lengths=st.lists(st.integers(1, 60), max_size=80), budget=st.integers(1, 300))
def test_plan_chunks(lengths, budget):
    chunks = plan_chunks(lengths, budget)
    order = [row for chunk in chunks for row in chunk]
    assert sorted(order) == list(range(len(lengths)))
    assert [lengths[row] for row in order] == sorted(lengths)
    sizes = [len(chunk) * max(lengths[row] for row in chunk) for chunk in chunks]
    assert all(size <= budget or len(chunk) == 1 for size, chunk in zip(sizes, chunks, strict=True))
    for chunk, following in pairwise(chunks):  # no chunk ends while the next text would fit
        assert (len(chunk) + 1) * lengths[following[0]] > budget


# -- equal to sentence-transformers ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def networks(encoder_directory, decoder_directory, tmp_path_factory):
    left = save_encoder(tmp_path_factory.mktemp("left"), tokenizer=wordpiece_tokenizer(padding_side="left"))
    return {"bert": encoder_directory, "bert, left-padded": left, "qwen3": decoder_directory}


@pytest.mark.parametrize("include_prompt", [True, False])
@pytest.mark.parametrize("pooling", ["mean", "cls", "lasttoken", "weightedmean", "max", ("mean", "cls")])
@pytest.mark.parametrize("network", ["bert", "bert, left-padded", "qwen3"])
def test_encode_equals_sentence_transformers(networks, network, pooling, include_prompt):
    model = assemble(networks[network], pooling, include_prompt)
    # One text a batch: a left-padded BERT's positions, and so its vectors, depend on the longest text beside it.
    alone = "left" in network
    actual = make_pass(model, token_budget=1 if alone else 4096).encode(MIXED)
    expected = reference(model, MIXED, batch_size=1 if alone else 64)
    np.testing.assert_allclose(actual, expected, atol=2e-6)


@pytest.mark.parametrize("batch_size", [1, 7, 64])
@pytest.mark.parametrize("token_budget", [1, 50, 4096])
def test_batch_sizes_do_not_matter(tiny_decoder, batch_size, token_budget):
    actual = make_pass(tiny_decoder, token_budget=token_budget).encode(MIXED)
    np.testing.assert_allclose(actual, reference(tiny_decoder, MIXED, batch_size=batch_size), atol=2e-6)


@pytest.mark.parametrize("kind", ["tiny_model", "tiny_decoder"])
def test_without_prompt_exclusion_the_vectors_differ(kind, request):
    """The negative control of the tests above."""
    model = request.getfixturevalue(kind)
    model.set_pooling_include_prompt(False)
    model[1].pooling_mode = "mean"
    excluded = make_pass(model).encode(MIXED)
    model.set_pooling_include_prompt(True)
    included = make_pass(model).encode(MIXED)
    differs = np.abs(excluded - included).max(axis=1) > 1e-3
    assert differs.tolist() == [text.prompt != "" for text in MIXED]


def test_truncated_dimensions(encoder_directory):
    model = assemble(encoder_directory, truncate_dim=8)
    assert make_pass(model).encode(MIXED).shape == (len(MIXED), 8)
    np.testing.assert_allclose(make_pass(model).encode(MIXED), reference(model, MIXED), atol=2e-6)


def test_lower_casing_is_the_models_own(tmp_path):
    tokenizer = wordpiece_tokenizer()
    tokenizer.backend_tokenizer.normalizer.lowercase = False
    save_encoder(tmp_path, tokenizer=tokenizer)
    model = assemble(tmp_path)
    lower = assemble(tmp_path)
    lower[0] = type(lower[0])(str(tmp_path), do_lower_case=True)
    text = [PromptedText("Query: ", "The Train to SHANGHAI")]
    np.testing.assert_allclose(make_pass(lower).encode(text), reference(lower, text), atol=2e-6)
    assert np.abs(make_pass(lower).encode(text) - make_pass(model).encode(text)).max() > 1e-3


# -- tokens ----------------------------------------------------------------------------------------------------------


def test_dedupe_and_order(tiny_model):
    embedding_pass = make_pass(tiny_model)
    texts = [MIXED[i] for i in (3, 0, 3, 1, 0, 3)]
    batch = embedding_pass.tokenize(texts)
    assert len(batch.input_ids) == 3
    assert batch.inverse.tolist() == [0, 1, 0, 2, 1, 0]
    assert batch.num_tokens == sum(len(tiny_model.tokenizer(t.prompt + t.text)["input_ids"]) for t in set(texts))
    vectors = embedding_pass.encode(texts)
    for row, text in zip(vectors, texts, strict=True):
        np.testing.assert_allclose(row, embedding_pass.encode([text])[0], atol=1e-6)


def test_equal_texts_with_different_prompts_are_different_texts(tiny_model):
    batch = make_pass(tiny_model).tokenize([PromptedText("query: ", "a"), PromptedText("", "a")])
    assert len(batch.input_ids) == 2
    assert batch.prompt_lengths[0] > batch.prompt_lengths[1] == 0


def test_each_distinct_text_is_run_through_the_network_once(tiny_model):
    rows = []
    tiny_model[0].model.embeddings.register_forward_hook(lambda _module, _args, output: rows.append(len(output)))
    make_pass(tiny_model, token_budget=60).encode(MIXED * 5)
    assert sum(rows) == len(set(MIXED))


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("kind", ["encoder", "decoder"])
def test_truncation_cuts_the_end_and_never_the_prompt(kind, side, encoder_directory, decoder_directory):
    model = assemble(encoder_directory if kind == "encoder" else decoder_directory, include_prompt=False)
    model.tokenizer.truncation_side = side
    embedding_pass = make_pass(model, max_length=40)
    prompt = PROMPTS[2] if kind == "encoder" else PROMPTS[1]
    texts = [PromptedText(prompt, TEXTS[1] * 9), PromptedText(prompt, "short")]
    batch = embedding_pass.tokenize(texts)
    length = batch.prompt_lengths[0]
    special = 1 if kind == "encoder" else 0  # [CLS] before, [SEP] after
    prompt_ids = model.tokenizer(prompt, add_special_tokens=False)["input_ids"]
    assert batch.input_ids[0][special:length][: len(prompt_ids) - 1] == prompt_ids[:-1]
    assert len(batch.input_ids[0]) == 40
    assert batch.truncated == 1
    uncut = model.tokenizer(prompt + TEXTS[1] * 9, add_special_tokens=False)["input_ids"]
    assert batch.input_ids[0][special : 40 - special] == uncut[: 40 - 2 * special]
    # Later, without us, the saved model cuts texts as it did in training.
    model.max_seq_length = 40
    np.testing.assert_allclose(embedding_pass.encode(texts), reference(model, texts), atol=2e-6)


def test_a_text_of_just_the_maximum_length_is_not_counted_as_cut(tiny_model):
    ids = tiny_model.tokenizer(TEXTS[0])["input_ids"]
    assert make_pass(tiny_model, max_length=len(ids)).tokenize([PromptedText("", TEXTS[0])]).truncated == 0
    assert make_pass(tiny_model, max_length=len(ids) - 1).tokenize([PromptedText("", TEXTS[0])]).truncated == 1


def test_encode_says_how_many_texts_were_cut(tiny_model, caplog):
    make_pass(tiny_model, max_length=8).encode([PromptedText("", TEXTS[1]), PromptedText("", "a")])
    assert "1 distinct texts were cut to 8 tokens" in caplog.text


def test_a_prompt_that_leaves_no_room_is_an_error(tiny_model):
    with pytest.raises(ValueError, match=r"leaves no room for a text. Shorten the instruction or raise max_length"):
        make_pass(tiny_model, max_length=16).tokenize([PromptedText("Find the passage " * 9, "a")])


def test_a_tokenizer_without_a_limit(decoder_directory):
    model = assemble(decoder_directory)
    model.max_seq_length = int(1e30)
    embedding_pass = make_pass(model)
    assert embedding_pass.max_length is None
    assert len(embedding_pass.tokenize([PromptedText("query: ", "ab" * 300)]).input_ids[0]) > 300


@pytest.mark.parametrize("text", ["", "   ", "\n\t", "😀👩‍👩‍👧", "\x00\x07", "\u200b", "ﷺ"])
@pytest.mark.parametrize("prompt", ["", "query: "])
@pytest.mark.parametrize("kind", ["tiny_model", "tiny_decoder"])
def test_odd_texts_beside_a_plain_one(kind, prompt, text, request):
    model = request.getfixturevalue(kind)
    texts = [PromptedText(prompt, text), PromptedText(prompt, "hello")]
    actual = make_pass(model).encode(texts)
    np.testing.assert_allclose(actual, reference(model, texts), atol=2e-6)
    embedding_pass = make_pass(model)
    assert all(grad.isfinite().all() for grad in gradients(embedding_pass, texts).values())


def test_a_text_without_any_token_embeds_as_zeros(tiny_decoder):
    """Alone, plain sentence-transformers fails on it; beside another text it gives zeros too."""
    assert (make_pass(tiny_decoder).encode([PromptedText("", "")]) == 0).all()


@pytest.mark.parametrize("kind", ["tiny_model", "tiny_decoder"])
def test_a_very_long_text(kind, request):
    model = request.getfixturevalue(kind)
    texts = [PromptedText("query: ", "长文 text " * 25_000), PromptedText("query: ", "短")]
    np.testing.assert_allclose(make_pass(model).encode(texts), reference(model, texts), atol=2e-6)


# -- gradients -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("graph_budget", [0, 100, 10**6])
@pytest.mark.parametrize("token_budget", [1, 40, 150, 10**6])
@pytest.mark.parametrize("kind", ["tiny_model", "tiny_decoder"])
def test_chunked_gradient_equals_the_one_pass_gradient(kind, token_budget, graph_budget, request):
    model = request.getfixturevalue(kind)
    without_dropout(model)
    expected = gradients(make_pass(model, token_budget=10**6), MIXED)
    actual = gradients(make_pass(model, token_budget=token_budget, graph_budget=graph_budget), MIXED)
    assert expected
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("middle_layer", [None, 1, 2])
def test_recomputed_gradient_equals_the_kept_one_with_dropout(tiny_model, middle_layer):
    options = {"token_budget": 60, "middle_layer": middle_layer}
    use_middle = middle_layer is not None
    kept = gradients(make_pass(tiny_model, graph_budget=10**6, **options), MIXED, use_middle=use_middle)
    recomputed = gradients(make_pass(tiny_model, graph_budget=0, **options), MIXED, use_middle=use_middle)
    torch.testing.assert_close(recomputed, kept, rtol=1e-5, atol=1e-7)
    other = gradients(make_pass(tiny_model, graph_budget=0, **options), MIXED, use_middle=use_middle, seed=1)
    name = "model.0.model.encoder.layer.0.attention.self.query.weight"
    assert (other[name] - kept[name]).abs().max() > 1e-3  # dropout was on


def test_gradient_equals_that_of_plain_sentence_transformers(tiny_model):
    without_dropout(tiny_model)
    texts = [PromptedText("query: ", text) for text in TEXTS]
    actual = gradients(make_pass(tiny_model, token_budget=50), texts)
    tiny_model.zero_grad()
    vectors = tiny_model(tiny_model.preprocess(TEXTS, prompt="query: "))["sentence_embedding"]
    torch.logsumexp(vectors @ vectors.T / 0.1, dim=1).mean().backward()
    expected = {f"model.{name}": p.grad for name, p in tiny_model.named_parameters() if p.grad is not None}
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


def live_bytes(embedding_pass, texts) -> int:
    """Bytes of activations that autograd holds between forward and backward."""
    held: dict[int, int] = {}
    parameters = {p.untyped_storage().data_ptr() for p in embedding_pass.parameters()}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            held[storage.data_ptr()] = storage.nbytes()
        return tensor

    embedding_pass.train()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        embedding_pass(embedding_pass.tokenize(texts))
    return sum(held.values())


def test_the_kept_graph_does_not_grow_with_the_batch(tiny_model):
    few = [PromptedText("", f"text number {i} about bread and trains") for i in range(16)]
    many = [PromptedText("", f"text number {i} about bread and trains") for i in range(256)]
    bounded, unbounded = (make_pass(tiny_model, token_budget=256, graph_budget=budget) for budget in (0, 10**9))
    assert live_bytes(bounded, many) < 1.5 * live_bytes(bounded, few)
    assert live_bytes(unbounded, many) > 8 * live_bytes(unbounded, few)  # the hook does see a growing graph


def test_backward_recomputes_one_chunk_at_a_time(tiny_model):
    """The states of layer 1 that are alive at once, in forward and backward."""
    alive: set[int] = set()
    peak = 0

    def watch(_module, _args, output):
        nonlocal peak
        tensor = output[0] if isinstance(output, tuple) else output
        alive.add(id(tensor))
        weakref.finalize(tensor, alive.discard, id(tensor))
        peak = max(peak, len(alive))

    tiny_model[0].model.encoder.layer[0].intermediate.register_forward_hook(watch)
    gradients(make_pass(tiny_model, token_budget=30), MIXED)
    chunks = len(plan_chunks([len(ids) for ids in make_pass(tiny_model).tokenize(MIXED).input_ids], 30))
    assert chunks > 8
    assert peak <= 3


def test_a_batch_of_no_texts(tiny_model):
    embedding_pass = make_pass(tiny_model, token_budget=30)
    final, middle = embedding_pass(embedding_pass.tokenize([]))
    assert final.shape == (0, 32)
    assert middle is None


# -- bulk encoding ---------------------------------------------------------------------------------------------------


def test_no_texts(tiny_model):
    vectors = make_pass(tiny_model).encode([])
    assert vectors.shape == (0, 32)
    assert vectors.dtype == np.float32


def test_many_windows(tiny_model):
    seen = []
    vectors = make_pass(tiny_model).encode(iter(MIXED), window=7, on_progress=seen.append)
    assert seen == [7, 7, 6]
    np.testing.assert_allclose(vectors, reference(tiny_model, MIXED), atol=2e-6)


def tokenizing_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if "ThreadPoolExecutor" in thread.name]


def test_an_error_in_the_tokenizing_thread_surfaces(tiny_model):
    texts = [*MIXED[:9], PromptedText("", 3), *MIXED]
    with pytest.raises(TypeError):
        make_pass(tiny_model).encode(texts, window=4)
    assert not tokenizing_threads()


def test_an_error_in_the_source_or_the_caller_leaves_no_thread(tiny_model):

    def texts():
        yield from MIXED[:9]
        raise OSError("disk gone")

    def stop(_count):
        raise KeyboardInterrupt

    with pytest.raises(OSError, match="disk gone"):
        make_pass(tiny_model).encode(texts(), window=4)
    with pytest.raises(KeyboardInterrupt) as caught:
        make_pass(tiny_model).encode(MIXED, window=4, on_progress=stop)
    assert not tokenizing_threads()
    assert caught.type is KeyboardInterrupt  # the traceback is still held here


@pytest.mark.parametrize("mode", [True, False])
def test_encode_restores_the_mode_of_every_module(tiny_model, mode):
    embedding_pass = make_pass(tiny_model)
    tiny_model.train(mode)
    tiny_model[0].model.encoder.layer[0].eval()
    before = [module.training for module in embedding_pass.modules()]
    embedding_pass.encode(MIXED)
    assert [module.training for module in embedding_pass.modules()] == before
    with pytest.raises(TypeError):
        embedding_pass.encode([PromptedText("", 3)])
    assert [module.training for module in embedding_pass.modules()] == before


def test_encode_is_without_dropout(tiny_model):
    embedding_pass = make_pass(tiny_model).train()
    assert np.array_equal(embedding_pass.encode(MIXED), embedding_pass.encode(MIXED))


def test_encoding_between_forward_and_backward_changes_nothing(tiny_model):
    expected = gradients(make_pass(tiny_model, token_budget=60, middle_layer=1), MIXED)
    embedding_pass = make_pass(tiny_model, token_budget=60, middle_layer=1)
    torch.manual_seed(0)
    embedding_pass.train()
    embedding_pass.zero_grad()
    final, _ = embedding_pass(embedding_pass.tokenize(MIXED))
    embedding_pass.encode(MIXED[:3])
    torch.logsumexp(final @ final.T / 0.1, dim=1).mean().backward()
    actual = {name: p.grad for name, p in embedding_pass.named_parameters() if p.grad is not None}
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-7)


def test_middle_layer_is_the_pooled_hidden_state(tiny_model):
    tiny_model.eval()
    embedding_pass = make_pass(tiny_model, middle_layer=1, token_budget=10**6)
    with torch.no_grad():
        middle = embedding_pass(embedding_pass.tokenize([PromptedText("", text) for text in TEXTS])).middle
        encoded = tiny_model.tokenizer(TEXTS, padding=True, return_tensors="pt")
        states = tiny_model[0].model(**encoded, output_hidden_states=True).hidden_states[1]
        mask = encoded["attention_mask"][..., None]
        expected = nn.functional.normalize((states * mask).sum(1) / mask.sum(1), dim=-1)
    torch.testing.assert_close(middle, expected, rtol=0, atol=2e-6)


def test_two_passes_on_one_model_do_not_disturb_each_other(tiny_model):
    with_middle, plain = make_pass(tiny_model, middle_layer=1), make_pass(tiny_model)
    batch = plain.tokenize(MIXED)
    assert with_middle(batch).middle is not None
    assert plain(batch).middle is None
    assert not tiny_model[0].model.encoder.layer[0]._forward_hooks  # none is left behind


# -- precision -------------------------------------------------------------------------------------------------------


def test_bfloat16_is_close_and_does_not_leak(tiny_model):
    full = make_pass(tiny_model).encode(MIXED)
    half = make_pass(tiny_model, precision=torch.bfloat16).encode(MIXED)
    assert half.dtype == np.float32
    assert (full * half).sum(axis=1).min() > 0.99
    assert not np.array_equal(full, half)
    assert not torch.is_autocast_enabled("cpu")
    assert tiny_model[0].model.dtype == torch.float32


def test_bfloat16_gradients_are_float32_and_close(tiny_model):
    without_dropout(tiny_model)
    full = gradients(make_pass(tiny_model, token_budget=60), MIXED)
    half = gradients(make_pass(tiny_model, token_budget=60, precision=torch.bfloat16), MIXED)
    name = "model.0.model.encoder.layer.0.output.dense.weight"
    assert half[name].dtype == torch.float32
    assert nn.functional.cosine_similarity(half[name].flatten(), full[name].flatten(), dim=0) > 0.98


def test_float32_means_float32_inside_an_outer_autocast(tiny_model):
    expected = make_pass(tiny_model).encode(MIXED)
    with torch.autocast("cpu", torch.bfloat16):
        assert np.array_equal(make_pass(tiny_model).encode(MIXED), expected)


def test_best_precision_gives_its_reason():
    dtype, reason = best_precision(torch.device("cpu"))
    assert (dtype == torch.bfloat16) == ("has AMX" in reason or "has AVX512" in reason)


# -- arguments -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"token_budget": 0}, "token_budget=0"),
        ({"graph_budget": -1}, "graph_budget=-1"),
        ({"max_length": 0}, "max_length=0"),
        ({"max_length": 65}, "max_length=65, but the model reads at most 64"),
        ({"middle_layer": 0}, "layers 1 to 2"),
        ({"middle_layer": 3}, "layers 1 to 2"),
    ],
)
def test_arguments_out_of_range(tiny_model, options, message):
    with pytest.raises(ValueError, match=message):
        EmbeddingPass(tiny_model, **options)


def test_a_model_without_a_transformer_is_an_error():
    model = SentenceTransformer(modules=[StaticEmbedding(byte_bpe_tokenizer(), embedding_dim=8)], device="cpu")
    with pytest.raises(ValueError, match="first module is StaticEmbedding"):
        EmbeddingPass(model)


def test_rows_of_a_chunk_are_limited():
    lengths = [3, 3, 3, 3, 3]
    assert [len(chunk) for chunk in plan_chunks(lengths, 1000, max_rows=2)] == [2, 2, 1]
    assert [len(chunk) for chunk in plan_chunks(lengths, 6, max_rows=4)] == [2, 2, 1]


def memory_for(encoder, monkeypatch, tokens, fail):
    """Make every pass over more than `tokens` padded tokens fail; returns the sizes that were tried."""
    tried = []
    embed = encoder._embed_chunk

    def limited(*arguments):
        input_ids, _mask, _prompts = arguments[-3:]
        tried.append(input_ids.numel())
        if input_ids.numel() > tokens:
            fail()
        return embed(*arguments)

    monkeypatch.setattr(encoder, "_embed_chunk", limited)
    return tried


def gpu_is_full():
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


def cpu_is_full():
    torch.empty(2**60, dtype=torch.uint8)  # the allocator's own error


def onednn_is_full():
    raise RuntimeError("could not create a primitive")


def python_is_full():
    raise MemoryError


@pytest.mark.parametrize("fail", [gpu_is_full, cpu_is_full, onednn_is_full, python_is_full])
def test_where_memory_does_not_suffice_the_budget_is_halved(tiny_model, monkeypatch, caplog, fail):
    texts = [PromptedText("", text) for text in [*TEXTS, *(text * 2 for text in TEXTS)]]
    expected = EmbeddingPass(tiny_model, precision=torch.float32).encode(texts)
    encoder = EmbeddingPass(tiny_model, precision=torch.float32, token_budget=4096)
    tried = memory_for(encoder, monkeypatch, 300, fail)
    caplog.set_level("WARNING")
    np.testing.assert_allclose(encoder.encode(texts), expected, atol=1e-6)
    assert encoder.token_budget <= 300
    assert sum(size > 300 for size in tried) <= 3  # halved from what failed, and not once more for each chunk left
    assert [record.message for record in caplog.records if "memory" in record.message] == [
        f"There is not enough memory for {tried[0]} tokens at once; going on with token_budget={tried[0] // 2}."
    ]
    tried.clear()
    encoder.encode(texts)
    assert max(tried) <= 300  # what was learnt is kept


def test_a_single_text_that_does_not_fit_is_an_error_that_says_what_to_do(tiny_model, monkeypatch):
    encoder = EmbeddingPass(tiny_model, precision=torch.float32)
    memory_for(encoder, monkeypatch, 5, gpu_is_full)
    with pytest.raises(torch.OutOfMemoryError, match=r"single text of \d+ tokens.*\n?.*Lower max_length, now 64"):
        encoder.encode([PromptedText("", TEXTS[1])])


def test_other_errors_of_the_network_are_not_taken_for_full_memory(tiny_model, monkeypatch):
    encoder = EmbeddingPass(tiny_model, precision=torch.float32)
    monkeypatch.setattr(encoder, "_embed_chunk", lambda *_: (_ for _ in ()).throw(RuntimeError("a bug")))
    with pytest.raises(RuntimeError, match="a bug"):
        encoder.encode([PromptedText("", text) for text in TEXTS])


def test_half_characters_and_million_character_texts(tiny_model):
    encoder = EmbeddingPass(tiny_model, precision=torch.float32)
    long = "".join(TEXTS) * 4000
    batch = encoder.tokenize([PromptedText("query: ", text) for text in ("a\ud83db", "a\ufffdb", long)])
    assert batch.input_ids[0] == batch.input_ids[1]
    assert batch.input_ids[2] == tiny_model.tokenizer("query: " + long, truncation=True, max_length=64)["input_ids"]
    assert batch.truncated == 1
