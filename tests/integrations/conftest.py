"""Saved models that read their prompts in different ways."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_models import assemble, byte_bpe_tokenizer, save_decoder

from codiemb import backbones
from codiemb.prompts import TEMPLATES, InstructionTemplate


@pytest.fixture(scope="session")
def saved_directories(encoder_directory: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Saved models by template: `e5` pools its prompts; `youtu` does not, nor `both`, which reads two instructions."""
    templates = {**TEMPLATES, "both": InstructionTemplate("ask {instruction}: ", "find {instruction}: ")}
    decoder = save_decoder(tmp_path_factory.mktemp("long"), tokenizer=byte_bpe_tokenizer(model_max_length=256))
    saved = {}
    for name, network in (("e5", encoder_directory), ("youtu", decoder), ("both", decoder)):
        saved[name] = tmp_path_factory.mktemp(name)
        model = assemble(network)
        backbones.set_prompts(model, templates[name], name == "e5")
        backbones.save(model, saved[name], templates[name])
    return saved
