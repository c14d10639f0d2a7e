"""`LLMEmbeddingModel`: sentence-transformers' methods and meanings on the one text path."""

import copy
import pickle
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer.evaluation import EmbeddingSimilarityEvaluator
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from sentence_transformers.sentence_transformer.modules import Pooling, Router, StaticEmbedding, Transformer
from tiny_models import TEXTS, assemble, wordpiece_tokenizer
from transformers import XLMRobertaConfig, XLMRobertaModel

from codiemb import LLMEmbeddingModel, backbones
from codiemb.interface import Embedder
from codiemb.prompts import TEMPLATES, InstructionTemplate

YOUTU = TEMPLATES["youtu"]


@pytest.fixture
def model(tiny_model_directory) -> LLMEmbeddingModel:
    return LLMEmbeddingModel(tiny_model_directory, device="cpu", compute="fp32")


@pytest.fixture
def instructed(decoder_directory) -> LLMEmbeddingModel:
    """A decoder that reads both ways, reads instructions and does not pool them, as a model trained here."""
    model = LLMEmbeddingModel(decoder_directory, device="cpu", compute="fp32", template="youtu", max_length=256)
    model.set_pooling_include_prompt(False)
    return model


def chunk_sizes(model, monkeypatch) -> list[tuple[int, int]]:
    """Shapes of the forward passes to come."""
    shapes = []
    embed = model.embedding_pass._embed_chunk

    def seen(*arguments):
        input_ids, _mask, _prompts = arguments[-3:]
        shapes.append(tuple(input_ids.shape))
        return embed(*arguments)

    monkeypatch.setattr(model.embedding_pass, "_embed_chunk", seen)
    return shapes


# -- a SentenceTransformer ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"prompt": "query: "},
        {"prompt_name": "document"},
        {"normalize_embeddings": True, "truncate_dim": 7},
        {"truncate_dim": 7},
        {"precision": "int8"},
        {"precision": "uint8"},
        {"precision": "binary"},
        {"precision": "ubinary", "truncate_dim": 11},
        {"convert_to_tensor": True},
        {"convert_to_numpy": False},
        {"output_value": "token_embeddings"},
        {"output_value": None},
        {"batch_size": 3},
        {"processing_kwargs": {"text": {"max_length": 8, "truncation": True}}},
    ],
    ids=str,
)
def test_options_have_the_meaning_of_sentence_transformers(model, tiny_model, options):
    for inputs in (TEXTS, TEXTS[0], np.array(TEXTS), tuple(TEXTS)):
        if inputs is TEXTS[0] and options.get("precision") in ("int8", "uint8"):
            continue  # the range of one value
        expected = tiny_model.encode(inputs, **options)
        actual = model.encode(inputs, **options)
        assert type(actual) is type(expected)
        if options.get("precision") in ("int8", "uint8"):
            assert np.abs(actual.astype(int) - expected.astype(int)).max() <= 1
            assert actual.dtype == expected.dtype
        elif isinstance(expected, (np.ndarray, torch.Tensor)):
            torch.testing.assert_close(torch.as_tensor(actual), torch.as_tensor(expected), atol=1e-6, rtol=0)
        elif options.get("output_value", "") is not None:
            torch.testing.assert_close(actual, expected, atol=1e-6, rtol=0)
        else:
            vectors = [row["sentence_embedding"] for row in (actual if isinstance(actual, list) else [actual])]
            expected = [row["sentence_embedding"] for row in (expected if isinstance(expected, list) else [expected])]
            torch.testing.assert_close(vectors, expected, atol=1e-6, rtol=0)


def test_sides_without_an_instruction_are_those_of_sentence_transformers(model, tiny_model):
    for ours, name in (("encode_queries", "encode_query"), ("encode_passages", "encode_document")):
        expected = getattr(tiny_model, name)(TEXTS)
        np.testing.assert_allclose(getattr(model, name)(TEXTS), expected, atol=1e-6)
        np.testing.assert_allclose(getattr(model, ours)(TEXTS), expected, atol=1e-6)
        np.testing.assert_allclose(getattr(model, name)(sentences=TEXTS), expected, atol=1e-6)
    assert not np.allclose(model.encode_query(TEXTS), model.encode_document(TEXTS), atol=1e-3)


def test_documents_take_the_first_of_three_prompt_names(encoder_directory):
    plain = assemble(encoder_directory, prompts={"passage": "p: ", "corpus": "c: "})
    del plain.prompts["document"]
    model = LLMEmbeddingModel(plain, compute="fp32")
    np.testing.assert_allclose(model.encode_document(TEXTS), plain.encode(TEXTS, prompt="p: "), atol=1e-6)


def test_other_processes_give_the_vectors_of_this_one(model):
    texts = TEXTS * 4
    expected = model.encode(texts, prompt="query: ", truncate_dim=9)
    pool = model.start_multi_process_pool(["cpu"])
    try:
        actual = model.encode(texts, prompt="query: ", truncate_dim=9, pool=pool, chunk_size=7)
        instructed = model.encode_query(texts, instruction="STSB", pool=pool)
    finally:
        model.stop_multi_process_pool(pool)
    np.testing.assert_allclose(actual, expected, atol=1e-6)
    np.testing.assert_allclose(instructed, model.encode_query(texts), atol=1e-6)


def test_trainers_and_evaluators_take_it(model, tmp_path):
    arguments = SentenceTransformerTrainingArguments(
        str(tmp_path), max_steps=2, per_device_train_batch_size=4, report_to=[], use_cpu=True, save_strategy="no"
    )
    rows = Dataset.from_dict({"anchor": TEXTS[:8], "positive": TEXTS[:8]})
    before = model.encode(TEXTS)
    SentenceTransformerTrainer(model, arguments, rows, loss=MultipleNegativesRankingLoss(model)).train()
    assert not np.array_equal(model.encode(TEXTS), before)
    scores = EmbeddingSimilarityEvaluator(TEXTS[:4], TEXTS[4:8], [0.1, 0.4, 0.9, 0.2])(model)
    assert -1 <= scores["spearman_cosine"] <= 1


def test_encoding_while_training_leaves_dropout_on(model):
    model.train()
    first, second = model.encode(TEXTS), model.encode(TEXTS)
    np.testing.assert_array_equal(first, second)
    assert model.training


def test_threads_take_turns(tiny_model, monkeypatch):
    sharing = [LLMEmbeddingModel(tiny_model, compute="fp32") for _ in range(2)]
    for model in sharing:
        model.train()  # an encoding that ends turns dropout on again, for all others too
    expected = sharing[0].encode(TEXTS)
    inside = threading.Lock()
    inference = LLMEmbeddingModel._inference

    def alone(self, *arguments, **options):
        assert inside.acquire(blocking=False), "two threads are in the model"
        try:
            time.sleep(0.01)
            return inference(self, *arguments, **options)
        finally:
            inside.release()

    monkeypatch.setattr(LLMEmbeddingModel, "_inference", alone)
    with ThreadPoolExecutor(4) as threads:
        for found in threads.map(lambda turn: sharing[turn % 2].encode(TEXTS), range(8)):
            np.testing.assert_array_equal(found, expected)


def test_a_saved_model_is_a_plain_directory(instructed, tmp_path):
    instructed.save_pretrained(str(tmp_path))
    plain = SentenceTransformer(str(tmp_path), device="cpu")
    prompt = instructed.prompt_for("query", "T2Retrieval")
    expected = instructed.encode_query(TEXTS, instruction="T2Retrieval")
    np.testing.assert_allclose(plain.encode(TEXTS, prompt=prompt), expected, atol=1e-6)
    assert (tmp_path / "README.md").read_text().count("SentenceTransformer(") >= 1
    again = LLMEmbeddingModel(tmp_path, device="cpu", compute="fp32")
    assert again.template == YOUTU
    np.testing.assert_array_equal(again.encode_query(TEXTS, instruction="T2Retrieval"), expected)


def test_copies_and_pickles_encode_alike(model):
    expected = model.encode(TEXTS)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert other.embedding_pass.model is other
        np.testing.assert_array_equal(other.encode(TEXTS), expected)


def test_a_loaded_model_is_shared(tiny_model):
    tiny_model.truncate_dim = 9
    model = LLMEmbeddingModel(tiny_model, compute="fp32", template="e5")
    assert model[0] is tiny_model[0]
    assert model.encode_query(TEXTS).shape == (len(TEXTS), 9)
    np.testing.assert_allclose(model.encode(TEXTS), tiny_model.encode(TEXTS), atol=1e-6)
    assert model.template == TEMPLATES["e5"]
    assert tiny_model.prompts == {"query": "query: ", "document": "passage: "}


@pytest.mark.parametrize("options", [{"attention": "eager"}, {"bidirectional": True}])
def test_a_loaded_model_cannot_be_loaded_otherwise(tiny_model, options):
    with pytest.raises(ValueError, match=r"a loaded model keeps its own\. Load it by name"):
        LLMEmbeddingModel(tiny_model, **options)


def test_a_model_with_a_module_for_each_side_gets_the_side(encoder_directory, tmp_path):
    short, long = Transformer(str(encoder_directory)), Transformer(str(encoder_directory))
    with torch.no_grad():
        long.model.embeddings.word_embeddings.weight.mul_(-1)
    sides = {"query": [short, Pooling(32)], "document": [long, Pooling(32)]}
    plain = SentenceTransformer(modules=[Router.for_query_document(*sides.values())], device="cpu")
    model = LLMEmbeddingModel(plain)
    for method in ("encode_query", "encode_document"):
        np.testing.assert_array_equal(getattr(model, method)(TEXTS), getattr(plain, method)(TEXTS))
    assert not np.allclose(model.encode_query(TEXTS), model.encode_document(TEXTS), atol=1e-3)


def test_importing_the_package_does_not_load_torch():
    code = "import sys, codiemb, codiemb.interface, codiemb.instructions; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
    import codiemb

    with pytest.raises(AttributeError, match="has no attribute 'Nothing'"):
        _ = codiemb.Nothing


# -- instructions ------------------------------------------------------------------------------------------------------


def test_an_instruction_becomes_the_prompt_of_its_side(instructed):
    plain = SentenceTransformer(modules=list(instructed), device="cpu")
    prompt = "Instruction: Given a Chinese search query, retrieve web passages that answer the question \nQuery: "
    as_query = plain.encode(TEXTS, prompt=prompt)
    for method in (instructed.encode, instructed.encode_query, instructed.encode_queries):
        np.testing.assert_allclose(method(TEXTS, instruction="T2Retrieval"), as_query, atol=1e-6)
    as_text = instructed.encode_query(
        TEXTS, instruction="Given a Chinese search query, retrieve web passages that answer the question"
    )
    np.testing.assert_array_equal(as_text, instructed.encode_query(TEXTS, instruction="T2Retrieval"))
    for method in (instructed.encode_document, instructed.encode_passages):
        np.testing.assert_allclose(method(TEXTS, instruction="T2Retrieval"), plain.encode(TEXTS), atol=1e-6)


def test_symmetric_tasks_read_both_sides_as_queries(instructed):
    queries = instructed.encode_queries(TEXTS, instruction="STSB")
    np.testing.assert_array_equal(instructed.encode_passages(TEXTS, instruction="STSB"), queries)
    assert not np.allclose(queries, instructed.encode_passages(TEXTS, instruction="T2Retrieval"), atol=1e-3)


@pytest.mark.parametrize("other", [{"prompt": "query: "}, {"prompt_name": "query"}])
def test_an_instruction_beside_a_prompt_is_an_error(instructed, other):
    for method in (instructed.encode, instructed.encode_query, instructed.encode_document):
        with pytest.raises(ValueError, match=r"instruction='STSB'.*together with.*Give either"):
            method(TEXTS, instruction="STSB", **other)


def test_near_misses_of_task_names_are_errors(instructed):
    with pytest.raises(ValueError, match=r"'T2Retreival' is no task.*nearest.*T2Retrieval"):
        instructed.encode_queries(TEXTS, instruction="T2Retreival")


def test_an_instruction_that_nothing_reads_is_said_once(model, caplog):
    caplog.set_level("WARNING")
    for _ in range(2):
        np.testing.assert_array_equal(model.encode_query(TEXTS, instruction="STSB"), model.encode_query(TEXTS))
    assert [record.message.partition(":")[0] for record in caplog.records] == ["The instruction is not read"]


def test_an_instruction_longer_than_the_window_is_an_error(instructed):
    with pytest.raises(ValueError, match=r"takes \d+ tokens and the maximum length is 256.*Shorten the instruction"):
        instructed.encode_queries(TEXTS, instruction="Find the answer to the question. " * 90)


def test_similarities_are_those_of_the_two_sides(instructed):
    queries = instructed.encode_queries(TEXTS[:3], instruction="T2Retrieval")
    passages = instructed.encode_passages(TEXTS, instruction="T2Retrieval")
    scores = instructed.compute_similarity(TEXTS[:3], TEXTS, instruction="T2Retrieval")
    assert isinstance(instructed, Embedder)
    np.testing.assert_allclose(scores, queries @ passages.T, atol=1e-6)
    assert instructed.compute_similarity(TEXTS[0], TEXTS[1]).shape == (1, 1)
    assert instructed.compute_similarity([], TEXTS).shape == (0, len(TEXTS))


# -- shapes and limits -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["float32", "int8", "uint8", "binary", "ubinary"])
@pytest.mark.parametrize("truncate_dim", [None, 11, 1000])
@pytest.mark.filterwarnings("ignore")
def test_no_texts_have_the_shape_and_type_of_some(model, precision, truncate_dim):
    options = {"precision": precision, "truncate_dim": truncate_dim}
    for method in (model.encode, model.encode_queries, model.encode_passages):
        some, none = method(TEXTS, **options), method([], **options)
        assert none.shape == (0, some.shape[1])
        assert none.dtype == some.dtype
    assert model.encode([], convert_to_tensor=True, **options).shape == (0, some.shape[1])
    assert model.encode([], convert_to_numpy=False) == []
    assert model.encode([], output_value="token_embeddings") == []
    with pytest.raises(ValueError, match="precision='int4', expected one of: float32, int8"):
        model.encode([], precision="int4")


def test_a_single_text_gives_a_single_vector(model):
    for method in (model.encode, model.encode_query, model.encode_document, model.encode_queries):
        np.testing.assert_allclose(method(TEXTS[0]), method([TEXTS[0]])[0], atol=1e-6)
    assert model.encode(TEXTS[0], convert_to_tensor=True, device=torch.device("cpu")).shape == (32,)


def test_a_larger_dimension_than_the_models_own_is_given(tiny_model_directory, model):
    cut = LLMEmbeddingModel(tiny_model_directory, device="cpu", compute="fp32", truncate_dim=8)
    assert cut.encode(TEXTS).shape == (len(TEXTS), 8)
    np.testing.assert_allclose(cut.encode(TEXTS, truncate_dim=20), model.encode(TEXTS)[:, :20], atol=1e-6)
    assert cut.truncate_dim == 8


def test_batch_size_limits_the_texts_of_a_forward_pass(model, monkeypatch):
    shapes = chunk_sizes(model, monkeypatch)
    texts = [text[:5] + str(index) for index, text in enumerate(TEXTS * 3)]
    model.encode(texts)
    assert len(shapes) == 1  # the token budget alone decides
    shapes.clear()
    model.encode(texts, batch_size=7)
    assert sorted(rows for rows, _ in shapes) == [2, 7, 7, 7, 7]
    with pytest.raises(ValueError, match="batch_size"):
        model.encode(texts, batch_size=0)


def test_token_budget_limits_the_tokens_of_a_forward_pass(tiny_model_directory, monkeypatch):
    model = LLMEmbeddingModel(tiny_model_directory, device="cpu", compute="fp32", token_budget=80)
    shapes = chunk_sizes(model, monkeypatch)
    model.encode(TEXTS)
    assert len(shapes) > 1
    assert max(rows * width for rows, width in shapes) <= 80


def test_max_length_cuts_up_to_what_the_network_reads(tiny_model_directory, model):
    short = LLMEmbeddingModel(tiny_model_directory, device="cpu", compute="fp32", max_length=8)
    long = " ".join(TEXTS)
    assert short.max_seq_length == 8
    np.testing.assert_allclose(
        short.encode(long), model.encode(model.tokenizer.decode(model.tokenizer(long)["input_ids"][1:7])), atol=1e-6
    )
    model.max_seq_length = 8  # as users of sentence-transformers set it
    np.testing.assert_allclose(model.encode(long), short.encode(long), atol=1e-6)
    with pytest.raises(ValueError, match="max_length=65, but the network reads at most 64 tokens"):
        LLMEmbeddingModel(tiny_model_directory, device="cpu", max_length=65)


def test_a_shorter_limit_of_the_files_can_be_raised(encoder_directory, tmp_path):
    plain = assemble(encoder_directory)
    plain.max_seq_length = 16
    plain.save_pretrained(str(tmp_path), create_model_card=False)
    assert LLMEmbeddingModel(tmp_path, device="cpu").embedding_pass.max_length == 16
    assert LLMEmbeddingModel(tmp_path, device="cpu", max_length=64).embedding_pass.max_length == 64


def test_positions_that_start_behind_the_padding_index_are_not_counted(tmp_path):
    config = XLMRobertaConfig(
        vocab_size=300, hidden_size=32, num_hidden_layers=1, num_attention_heads=4, max_position_embeddings=66
    )
    XLMRobertaModel(config).save_pretrained(tmp_path)
    wordpiece_tokenizer(model_max_length=32).save_pretrained(tmp_path)
    long = LLMEmbeddingModel(tmp_path, device="cpu", max_length=64)
    assert np.isfinite(long.encode(" ".join(TEXTS * 9))).all()
    with pytest.raises(ValueError, match="reads at most 64 tokens"):
        LLMEmbeddingModel(tmp_path, device="cpu", max_length=65)


def test_models_that_are_no_transformer_encode_as_in_sentence_transformers(tmp_path):
    static = StaticEmbedding(wordpiece_tokenizer().backend_tokenizer, embedding_dim=8)
    plain = SentenceTransformer(modules=[static], device="cpu", prompts={"query": "query: "})
    plain.save_pretrained(str(tmp_path))
    model = LLMEmbeddingModel(tmp_path, device="cpu")
    np.testing.assert_array_equal(model.encode_query(TEXTS), plain.encode_query(TEXTS))
    assert model.encode_passages([]).shape == (0, 8)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"template": "yuotu"}, r"template='yuotu' is unknown.*youtu"),
        ({"compute": "fp16"}, r"compute='fp16', expected one of: auto, bf16, fp32"),
        ({"backend": "tensorrt"}, r"backend='tensorrt', expected one of: torch, onnx, openvino"),
        ({"max_length": 0}, "max_length=0, expected at least 1"),
        ({"token_budget": 0}, "token_budget=0"),
        ({"truncate_dim": -1}, "truncate_dim=-1"),
    ],
)
def test_arguments_out_of_range_are_errors_before_anything_is_loaded(options, message):
    with pytest.raises(ValueError, match=message):
        LLMEmbeddingModel("nowhere/at-all", **options)


def test_arguments_of_a_call_out_of_range_are_errors(model):
    for wrong in (0, -1):
        with pytest.raises(ValueError, match=rf"truncate_dim={wrong}, expected at least 1"):
            model.encode(TEXTS, truncate_dim=wrong)
    with pytest.raises(TypeError, match=r"instruction=3, expected a text or a task's name"):
        model.encode(TEXTS, instruction=3)
    with pytest.raises(TypeError, match=r"template is .*dict.*expected a name or an InstructionTemplate"):
        LLMEmbeddingModel(model, template={"query": "query: "})


def test_compute_is_the_one_asked_for(tiny_model_directory):
    passes = {
        compute: LLMEmbeddingModel(tiny_model_directory, device="cpu", compute=compute).embedding_pass
        for compute in ("auto", "bf16", "fp32")
    }
    assert passes["bf16"].precision == torch.bfloat16
    assert passes["fp32"].precision == torch.float32
    from codiemb.encoding import best_precision

    assert passes["auto"].precision == best_precision(torch.device("cpu"))[0]


def test_a_template_can_be_given_itself(tiny_model_directory):
    template = InstructionTemplate(query="{instruction}: ", document="{instruction}, a document: ")
    model = LLMEmbeddingModel(tiny_model_directory, device="cpu", compute="fp32", template=template)
    assert model.prompts["query"] == ""
    assert model.prompt_for("document", "Find it now") == "Find it now, a document: "
    assert model.prompt_for("document") == ""
    np.testing.assert_allclose(
        model.encode_document(TEXTS, instruction="Find it now"),
        model.encode(TEXTS, prompt="Find it now, a document: "),
        atol=1e-6,
    )


# -- bad input ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (["a", None], r"inputs\[1\] is None, expected a text"),
        (["a", "b", 3], r"inputs\[2\] is '3' \(int\), expected a text"),
        ([["a", "b"]], r"inputs\[0\] is .* \(list\), expected a text"),
        (np.array([1.0, 2.0]), r"inputs\[0\] is '1.0' \(float64\)"),
        (None, "inputs is None, expected a text or a sequence of texts"),
        (7, r"inputs is '7' \(int\), expected a text or a sequence"),
        (b"bytes", r"inputs is .* \(bytes\), expected a text or a sequence"),
        ({"text": "a"}, r"inputs is .* \(dict\), expected a text or a sequence"),
    ],
)
def test_what_is_no_text_is_an_error_that_says_where(model, inputs, message):
    for method in (model.encode, model.encode_query, model.encode_document, model.encode_queries):
        with pytest.raises(TypeError, match=message):
            method(inputs)


def test_any_iterable_of_texts_is_read(model):
    expected = model.encode(TEXTS)
    np.testing.assert_array_equal(model.encode(text for text in TEXTS), expected)
    np.testing.assert_array_equal(model.encode(Dataset.from_dict({"text": TEXTS})["text"]), expected)


ODD = ["", "   \n\t", "。！？…", "😀👩‍👩‍👧", "mixed 混合 смешанный مختلط", "a\ud83d", "\x00\x07", "é" * 300, TEXTS[0]]


@pytest.mark.parametrize("directory", ["tiny_model_directory", "decoder_directory"])
def test_odd_texts_have_finite_vectors_that_do_not_depend_on_their_neighbours(request, directory):
    model = LLMEmbeddingModel(request.getfixturevalue(directory), device="cpu", compute="fp32", template="youtu")
    model.set_pooling_include_prompt(False)
    for options in ({}, {"instruction": "Find it"}):
        together = model.encode_query(ODD, **options)
        assert np.isfinite(together).all()
        alone = np.stack([model.encode_query(text, **options) for text in ODD])
        np.testing.assert_allclose(together, alone, atol=1e-6)


def test_a_text_of_which_nothing_but_the_prompt_is_left_is_zeros(instructed):
    vectors = instructed.encode_query(["", "bread"], instruction="STSB")
    assert not vectors[0].any()
    assert vectors[1] @ vectors[1] == pytest.approx(1)
    assert instructed.compute_similarity("", "bread", instruction="STSB") == pytest.approx(0)


def test_half_characters_are_read_as_replaced(model):
    np.testing.assert_array_equal(model.encode("a\ud83d b"), model.encode("a\ufffd b"))
    np.testing.assert_array_equal(model.encode("b", prompt="a\ud83d "), model.encode("b", prompt="a\ufffd "))


def test_a_million_characters_are_cut_first(model):
    text = "".join(TEXTS) * 4000
    started = time.perf_counter()
    vector = model.encode(text)
    assert time.perf_counter() - started < 1  # reading all of it takes several seconds
    np.testing.assert_allclose(vector, model.encode("".join(TEXTS)), atol=1e-6)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_gpu_that_is_not_there_is_refused(tiny_model_directory, model):
    with pytest.raises(backbones.ModelError, match=r"cuda.*Use device 'cpu'"):
        LLMEmbeddingModel(tiny_model_directory, device="cuda")
    for device in ("cuda", torch.device("cuda"), ["cpu", "cuda:1"]):
        with pytest.raises(backbones.ModelError, match=r"cuda.*Use device 'cpu'"):
            model.encode(TEXTS, device=device)


@pytest.mark.skipif(find_spec("optimum") is not None, reason="needs a machine without optimum")
def test_a_missing_backend_is_said(tiny_model_directory):
    with pytest.raises(ModuleNotFoundError, match=r"onnx.*pip install 'sentence-transformers\[onnx\]'"):
        LLMEmbeddingModel(tiny_model_directory, device="cpu", backend="onnx")
