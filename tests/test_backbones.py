"""Loading and saving of models."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from tiny_models import assemble

from codiemb import backbones
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
    again = SentenceTransformer(str(tmp_path), device="cpu")
    assert again[1].pooling_mode == mode
    assert not again[1].include_prompt
    assert again.max_seq_length == model.max_seq_length
    texts = ["怎么在家做酸面包？", "short"]
    np.testing.assert_array_equal(again.encode(texts, prompt="query: "), model.encode(texts, prompt="query: "))
