"""Loading and saving of models."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
import transformers
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling
from tiny_gguf import write_gguf
from tiny_models import TEXTS, assemble, byte_bpe_tokenizer

from codiemb import LLMEmbeddingModel, backbones
from codiemb.encoding import EmbeddingPass
from codiemb.prompts import TEMPLATES, InstructionTemplate, PromptedText


def test_a_directory_keeps_its_own_prompts_and_pooling(tiny_model_directory):
    model = backbones.load(tiny_model_directory, device="cpu")
    assert backbones.template_of(model) == InstructionTemplate("query: ", "passage: ")
    assert backbones.pools_prompt(model)
    assert next(model.parameters()).dtype == torch.float32


@pytest.mark.parametrize("rate", [0.0, 0.3])
def test_dropout_sets_every_rate(tiny_model_directory, rate):
    model = backbones.load(tiny_model_directory, device="cpu", dropout=rate)
    rates = {module.p for module in model.modules() if isinstance(module, torch.nn.Dropout)}
    assert rates == {rate}


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_attention_is_the_one_asked_for(tiny_model_directory, attention):
    model = backbones.load(tiny_model_directory, device="cpu", attention=attention)
    assert model[0].model.config._attn_implementation == attention


def test_template_and_pooling_survive_saving(tiny_model_directory, tmp_path):
    model = backbones.load(tiny_model_directory, device="cpu")
    template = TEMPLATES["youtu"]
    backbones.set_prompts(model, template, False)
    backbones.save(model, tmp_path, template)
    again = backbones.load(tmp_path, device="cpu")
    assert backbones.template_of(again, tmp_path) == template
    assert not backbones.pools_prompt(again)


PLAIN = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "codiemb":
            raise ImportError("codiemb is blocked")

sys.meta_path.insert(0, Blocked())
import numpy as np
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling

model = SentenceTransformer(sys.argv[1], device="cpu")
instruction = "Instruction: find answers \\nQuery: "
np.savez(
    sys.argv[2],
    query=model.encode_query(["怎么在家做酸面包？", "short"]),
    instructed=model.encode(["怎么在家做酸面包？", "short"], prompt=instruction),
)
"""


def test_a_saved_model_gives_the_same_vectors_without_codiemb(tiny_model_directory, tmp_path):
    model = backbones.load(tiny_model_directory, device="cpu")
    template = InstructionTemplate("Instruction: {instruction} \nQuery: ", "passage: ")
    backbones.set_prompts(model, template, False)
    backbones.save(model, tmp_path / "model", template)
    script = tmp_path / "plain.py"
    script.write_text(PLAIN, encoding="utf-8")
    command = [sys.executable, str(script), str(tmp_path / "model"), str(tmp_path / "out.npz")]
    subprocess.run(command, check=True, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    plain = np.load(tmp_path / "out.npz")
    encoder = EmbeddingPass(model, precision=torch.float32)
    texts = ["怎么在家做酸面包？", "short"]
    for name, prompt in (("query", ""), ("instructed", template.prompt("query", "find answers"))):
        ours = encoder.encode(PromptedText(prompt, text) for text in texts)
        np.testing.assert_allclose(ours, plain[name], atol=1e-6)
    assert not np.allclose(plain["query"], plain["instructed"])  # the prompt is read


def test_unknown_names_and_broken_directories_say_what_is_wrong(tiny_model_directory, tmp_path):
    with pytest.raises(backbones.ModelError, match="there is no such directory"):
        backbones.load("./nowhere/at/all")
    (tmp_path / "empty").mkdir()
    with pytest.raises(backbones.ModelError, match=r"neither modules\.json nor config\.json.*nothing"):
        backbones.load(tmp_path / "empty")
    copy = tmp_path / "copy"
    shutil.copytree(tiny_model_directory, copy)
    weights = copy / "model.safetensors"
    content = weights.read_bytes()
    weights.unlink()
    with pytest.raises(backbones.ModelError, match="no weights"):
        backbones.load(copy)
    weights.write_bytes(content[: len(content) // 2])
    with pytest.raises(backbones.ModelError, match="cannot be loaded"):
        backbones.load(copy, device="cpu")
    weights.write_bytes(content)
    (copy / "1_Pooling" / "config.json").write_text(json.dumps({"embedding_dimension": 32, "pooling_mode": "nonsense"}))
    with pytest.raises(backbones.ModelError, match="nonsense"):
        backbones.load(copy, device="cpu")


@pytest.mark.parametrize("file", ["modules.json", "1_Pooling/config.json", "config.json", "tokenizer.json"])
def test_a_missing_file_is_an_error_and_never_a_different_model(tiny_model_directory, tmp_path, file):
    copy = shutil.copytree(tiny_model_directory, tmp_path / "copy")
    (copy / file).unlink()
    with pytest.raises(backbones.ModelError, match="copy"):
        backbones.load(copy, device="cpu")


LOAD = """
import sys, time
from codiemb import backbones

started = time.monotonic()
try:
    backbones.load("nobody/no-such-model", device="cpu", dropout=0.0)
except backbones.ModelError as error:
    print(time.monotonic() - started, error)
"""


def test_a_hub_that_does_not_answer_fails_at_once():
    """The hub's client alone would retry for a minute."""
    environment = {**os.environ, "HF_ENDPOINT": "http://127.0.0.1:9"}
    environment.pop("HF_HUB_OFFLINE")
    run = subprocess.run([sys.executable, "-c", LOAD], env=environment, capture_output=True, text=True, check=True)
    seconds, _, message = run.stdout.partition(" ")
    assert float(seconds) < 10
    assert message.startswith("nobody/no-such-model: cannot be loaded")


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_gpu_that_is_not_there_is_refused(tiny_model_directory):
    for device in ("cuda", "cuda:1", "abacus"):
        with pytest.raises(backbones.ModelError, match=f"{device}.*Use device 'cpu'"):
            backbones.load(tiny_model_directory, device=device)


@pytest.mark.parametrize("mode", ["mean", "cls", "lasttoken", "weightedmean"])
def test_saved_names_are_those_that_other_engines_read(encoder_directory, tmp_path, mode):
    model = assemble(encoder_directory, mode, include_prompt=False)
    backbones.save(model, tmp_path, InstructionTemplate())
    types = [entry["type"] for entry in json.loads((tmp_path / "modules.json").read_text())]
    assert types[:2] == ["sentence_transformers.models.Transformer", "sentence_transformers.models.Pooling"]
    pooling = json.loads((tmp_path / "1_Pooling" / "config.json").read_text())
    flag = {"cls": "cls_token", "lasttoken": "lasttoken"}.get(mode, f"{mode}_tokens")
    assert [key for key, value in pooling.items() if value is True] == [f"pooling_mode_{flag}"]
    length = json.loads((tmp_path / "sentence_bert_config.json").read_text())
    assert length == {"max_seq_length": model.max_seq_length}  # earlier versions refuse any key that they do not know
    tokenizer = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert tokenizer["tokenizer_class"] == "PreTrainedTokenizerFast"
    again = SentenceTransformer(str(tmp_path), device="cpu")
    assert again[1].pooling_mode == mode
    assert not again[1].include_prompt
    assert again.max_seq_length == model.max_seq_length
    texts = ["怎么在家做酸面包？", "short"]
    np.testing.assert_array_equal(again.encode(texts, prompt="query: "), model.encode(texts, prompt="query: "))


# -- bare networks -----------------------------------------------------------------------------------------------------

COMMON = {
    "vocab_size": 400,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 256,
    "initializer_range": 0.3,
    "pad_token_id": 0,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
LATENT = {"q_lora_rank": 24, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8}
DECODERS = {
    "youtu": transformers.YoutuConfig(**COMMON, num_key_value_heads=4, **LATENT),
    "qwen2": transformers.Qwen2Config(**COMMON, num_key_value_heads=2),
    "qwen3": transformers.Qwen3Config(**COMMON, num_key_value_heads=2, head_dim=8),
    "llama": transformers.LlamaConfig(**COMMON, num_key_value_heads=2),
    "minicpm3": transformers.MiniCPM3Config(**COMMON, num_key_value_heads=4, **LATENT),
    "mistral": transformers.MistralConfig(**COMMON, num_key_value_heads=2),
    "gemma3": transformers.Gemma3TextConfig(
        **COMMON,
        num_key_value_heads=2,
        head_dim=8,
        sliding_window=128,
        layer_types=["sliding_attention", "full_attention"],
    ),
}


def save_network(config, directory):
    torch.manual_seed(0)
    transformers.AutoModel.from_config(config).save_pretrained(directory)
    byte_bpe_tokenizer().save_pretrained(directory)
    return directory


def change_of_first_state(model, pad=0):
    """How far another last token moves the state of the first, in a batch with or without padding."""
    ids = torch.tensor([[*range(5, 25)], [*range(5, 24), 99]])
    mask = torch.ones_like(ids)
    ids, mask = torch.nn.functional.pad(ids, (0, pad)), torch.nn.functional.pad(mask, (0, pad))
    with torch.no_grad():
        states = model[0].model.eval()(input_ids=ids, attention_mask=mask).last_hidden_state
    return (states[0, 0] - states[1, 0]).abs().max().item()


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("name", DECODERS)
def test_bare_decoders_read_both_ways_also_after_saving(name, attention, tmp_path):
    network = save_network(DECODERS[name], tmp_path / "bare")
    causal = SentenceTransformer(str(network), device="cpu")
    assert change_of_first_state(causal) == change_of_first_state(causal, pad=3) == 0  # the architecture's default
    model = backbones.load(network, device="cpu", attention=attention)
    backbones.save(model, tmp_path / "saved", InstructionTemplate())
    plain = SentenceTransformer(str(tmp_path / "saved"), device="cpu", model_kwargs={"attn_implementation": attention})
    for both_ways in (model, plain):
        assert change_of_first_state(both_ways) > 0.01
        assert change_of_first_state(both_ways, pad=3) > 0.01
        assert both_ways[1].pooling_mode == "mean"
    texts = [*TEXTS, "a"]
    vectors = plain.encode(texts)
    np.testing.assert_allclose(model.encode(texts), vectors, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)


def test_a_bare_decoder_can_stay_causal(decoder_directory, tmp_path):
    model = backbones.load(decoder_directory, device="cpu", bidirectional=False)
    assert change_of_first_state(model) == 0
    assert model[1].pooling_mode == "lasttoken"
    backbones.save(model, tmp_path, InstructionTemplate())
    assert change_of_first_state(SentenceTransformer(str(tmp_path), device="cpu")) == 0


@pytest.mark.parametrize("pooling", ["mean", "lasttoken"])
@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize("name", DECODERS)
def test_the_side_of_the_padding_does_not_matter(name, bidirectional, pooling, tmp_path):
    network = save_network(DECODERS[name], tmp_path / "bare")
    model = backbones.load(network, device="cpu", bidirectional=bidirectional, pooling=pooling)
    backbones.save(model, tmp_path / "saved", InstructionTemplate())
    plain = SentenceTransformer(str(tmp_path / "saved"), device="cpu")
    assert plain[1].pooling_mode == pooling
    vectors = {}
    for side in ("left", "right"):
        for each in (model, plain):
            each.tokenizer.padding_side = side
        vectors[side] = EmbeddingPass(model, precision=torch.float32).encode(PromptedText("", text) for text in TEXTS)
        np.testing.assert_allclose(plain.encode(TEXTS), vectors[side], atol=2e-6)
    np.testing.assert_allclose(vectors["left"], vectors["right"], atol=2e-5)
    alone = np.stack([plain.encode(text) for text in TEXTS])  # without any padding
    np.testing.assert_allclose(vectors["left"], alone, atol=2e-5)


def test_pooling_is_a_choice_for_published_models_too(tiny_model_directory, tmp_path):
    kept = backbones.load(tiny_model_directory, device="cpu")
    model = backbones.load(tiny_model_directory, device="cpu", pooling="cls")
    assert (kept[1].pooling_mode, model[1].pooling_mode) == ("mean", "cls")
    assert not np.allclose(kept.encode(TEXTS), model.encode(TEXTS), atol=1e-3)
    backbones.save(model, tmp_path, InstructionTemplate())
    np.testing.assert_allclose(SentenceTransformer(str(tmp_path), device="cpu").encode(TEXTS), model.encode(TEXTS))


def test_a_model_of_several_poolings_keeps_them(encoder_directory, tmp_path):
    model = assemble(encoder_directory)
    model[1] = Pooling(32, ("cls", "mean"))
    model.save_pretrained(str(tmp_path), create_model_card=False)
    with pytest.raises(backbones.ModelError, match="pooling=mean: the model joins several poolings"):
        backbones.load(tmp_path, device="cpu", pooling="mean")


def test_a_published_causal_model_stays_so_unless_asked(tiny_decoder, tmp_path):
    backbones.save(tiny_decoder, tmp_path, InstructionTemplate())
    kept = backbones.load(tmp_path, device="cpu")
    assert change_of_first_state(kept) == 0
    assert kept[1].pooling_mode == "lasttoken"
    assert change_of_first_state(backbones.load(tmp_path, device="cpu", bidirectional=True)) > 0.01


def test_a_bare_encoder_is_pooled_and_cannot_be_causal(encoder_directory):
    model = backbones.load(encoder_directory, device="cpu")
    assert change_of_first_state(model) > 0.01
    assert [type(module).__name__ for module in model] == ["Transformer", "Pooling", "Normalize"]
    with pytest.raises(backbones.ModelError, match=r"BertModel cannot be made to read one way.*bidirectional=True"):
        backbones.load(encoder_directory, device="cpu", bidirectional=False)


def test_a_tokenizer_without_padding_gets_some(tmp_path):
    network = save_network(DECODERS["llama"], tmp_path / "bare")
    byte_bpe_tokenizer(pad_token=None).save_pretrained(network)
    backbones.save(backbones.load(network, device="cpu"), tmp_path / "saved", InstructionTemplate())
    plain = SentenceTransformer(str(tmp_path / "saved"), device="cpu")
    assert plain.encode(["a", "a longer text"]).shape == (2, 32)


def test_texts_are_not_put_into_a_chat_template(tmp_path):
    network = save_network(DECODERS["qwen3"], tmp_path / "bare")
    expected = backbones.load(network, device="cpu").encode(TEXTS)
    byte_bpe_tokenizer(
        chat_template="{% for message in messages %}user: {{ message['content'] }}{% endfor %}"
    ).save_pretrained(network)
    assert "message" in SentenceTransformer(str(network), device="cpu")[0].modality_config
    model = LLMEmbeddingModel(network, device="cpu", compute="fp32")
    model.save_pretrained(str(tmp_path / "saved"))
    plain = SentenceTransformer(str(tmp_path / "saved"), device="cpu")
    for vectors in (model.encode(TEXTS), plain.encode(TEXTS)):
        np.testing.assert_allclose(vectors, expected, atol=1e-6)


def test_a_published_model_that_reads_chat_messages_still_does(tmp_path):
    network = save_network(DECODERS["qwen3"], tmp_path / "bare")
    byte_bpe_tokenizer(
        chat_template="{% for message in messages %}user: {{ message['content'] }}{% endfor %}"
    ).save_pretrained(network)
    plain = SentenceTransformer(str(network), device="cpu")
    plain.save_pretrained(str(tmp_path / "published"))
    model = LLMEmbeddingModel(tmp_path / "published", device="cpu")
    np.testing.assert_array_equal(model.encode(TEXTS), plain.encode(TEXTS))
    with pytest.raises(ValueError, match="messages of its tokenizer's chat template"):
        _ = model.embedding_pass


# -- GGUF --------------------------------------------------------------------------------------------------------------


def test_a_gguf_file_gives_the_vectors_of_the_network_it_was_made_from(tmp_path):
    # transformers takes Qwen3's own width of a head, whatever the file says.
    sizes = {**COMMON, "vocab_size": len(byte_bpe_tokenizer())}
    network = save_network(transformers.Qwen3Config(**sizes, num_key_value_heads=2, head_dim=128), tmp_path / "bare")
    folder = tmp_path / "gguf"
    folder.mkdir()
    file = write_gguf(network, folder / "tiny.gguf")
    expected = backbones.load(network, device="cpu").encode(TEXTS)
    for name in (file, folder):
        model = backbones.load(name, device="cpu")
        assert change_of_first_state(model) > 0.01
        np.testing.assert_allclose(model.encode(TEXTS), expected, atol=1e-5)
    backbones.save(model, tmp_path / "saved", InstructionTemplate())
    plain = SentenceTransformer(str(tmp_path / "saved"), device="cpu")
    np.testing.assert_allclose(plain.encode(TEXTS), expected, atol=1e-5)
    shutil.copy(file, folder / "other.gguf")
    with pytest.raises(backbones.ModelError, match=r"several GGUF files: other\.gguf, tiny\.gguf"):
        backbones.load(folder)


def test_a_damaged_gguf_file_is_an_error(tmp_path):
    pytest.importorskip("gguf")
    (tmp_path / "tiny.gguf").write_bytes(b"GGUF" + bytes(100))
    with pytest.raises(backbones.ModelError, match=r"tiny\.gguf: cannot be loaded"):
        backbones.load(tmp_path / "tiny.gguf", device="cpu")
    with pytest.raises(backbones.ModelError, match="no such directory or file"):
        backbones.load(tmp_path / "none.gguf")


# -- templates ---------------------------------------------------------------------------------------------------------

WEB = "Given a web search query, retrieve relevant passages that answer the query"


@pytest.mark.parametrize(
    ("prompts", "expected"),
    [
        ({"query": f"Instruct: {WEB}\nQuery:", "document": ""}, replace(TEMPLATES["qwen3"], default=WEB)),
        ({"query": f"Instruct: {WEB}\nQuery: "}, replace(TEMPLATES["e5-instruct"], default=WEB)),
        ({"query": f"Instruction: {WEB} \nQuery: "}, replace(TEMPLATES["youtu"], default=WEB)),
        ({"query": "query: ", "document": "passage: "}, TEMPLATES["e5"]),
        ({"query": "Instruct me: "}, InstructionTemplate(query="Instruct me: ")),
        ({}, InstructionTemplate()),
    ],
)
def test_saved_prompts_show_the_template_they_were_made_with(encoder_directory, prompts, expected):
    model = assemble(encoder_directory, prompts=prompts)
    template = backbones.template_of(model)
    assert template == expected
    assert template.prompt("query") == prompts.get("query", "")
    assert template.prompt("document") == prompts.get("document", "")


@pytest.mark.parametrize("with_template", [True, False])
def test_the_template_of_a_hub_model_is_fetched_too(tiny_model_directory, tmp_path, with_template):
    """A filled cache of the hub's client stands for the hub."""
    snapshot = tmp_path / "models--somebody--a-model" / "snapshots" / ("0" * 40)
    shutil.copytree(tiny_model_directory, snapshot)
    references = tmp_path / "models--somebody--a-model" / "refs"
    references.mkdir()
    (references / "main").write_text("0" * 40)
    if with_template:
        (snapshot / "codiemb.json").write_text(json.dumps({"template": TEMPLATES["youtu"].to_dict()}))
    model = LLMEmbeddingModel("somebody/a-model", device="cpu", cache_folder=str(tmp_path))
    assert model.template == TEMPLATES["youtu" if with_template else "e5"]
    assert model.encode_query(TEXTS).shape == (len(TEXTS), 32)
