"""What passes the gates and what does not, and that the reason is said."""

import numpy as np
import pytest

from codiemb.curation.synthesis.gates import (
    duplicate_findings,
    longest_run,
    screen_passages,
    sieve,
    text_fault,
    text_findings,
)
from codiemb.curation.synthesis.language import detect, in_language
from codiemb.curation.synthesis.model_gates import Judge
from codiemb.curation.synthesis.plan import Corpus
from codiemb.curation.synthesis.recipe import Gates, SynthesisRecipe
from codiemb.curation.synthesis.rows import Row
from codiemb.curation.synthesis.scores import calibrate, contradictions, cosines
from codiemb.data.documents import Document

DOCUMENT = "长江是中国最长的河流，发源于唐古拉山脉，在上海流入东海，全长六千三百余公里。"


def row(written, file="ir", kind="question", source=DOCUMENT, language="zh", **more):
    return Row(file, kind, "queries/0", 0, source, written, language, "检索", **more)


class Words:
    """Embeds a text as the counts of its characters, which is enough to tell near from far."""

    def encode_queries(self, texts, *, instruction=None):
        vectors = np.zeros((len(texts), 512), np.float32)
        for vector, text in zip(vectors, texts, strict=True):
            for character in text:
                vector[ord(character) % 512] += 1
        return vectors

    encode_passages = encode_queries


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("长江发源于哪里？", "zh"),
        ("長江發源於哪裡？", "zh"),
        ("iPhone 15 电池续航怎么样", "zh"),
        ("Where does the Yangtze rise?", "en"),
        ("Où est-ce que le fleuve prend sa source dans les Alpes ?", "fr"),
        ("Wo ist die Quelle der Donau?", "de"),
        ("¿Dónde nace el río y por qué se llama así?", "es"),
        ("長江はどこから流れていますか", "ja"),
        ("양쯔강은 어디에서 발원하나요", "ko"),
        ("Откуда течёт Янцзы?", "ru"),
        ("Yangtze Tanggula", None),
        ("12345 !?", None),
    ],
)
def test_languages(text, language):
    assert detect(text) == language


def test_what_cannot_be_told_passes_by_its_script():
    assert in_language("Yangtze Tanggula", "en")
    assert in_language("Yangtze Tanggula", "fr")
    assert not in_language("Yangtze Tanggula", "zh")
    assert not in_language("12345", "zh")
    assert not in_language("Where does the Yangtze rise?", "zh")
    assert not in_language("长江发源于哪里？", "en")
    assert not in_language("Wo ist die Quelle der Donau?", "en")
    assert in_language("Waar ontspringt de Donau in het zwarte woud?", "nl")  # not known here


@pytest.mark.parametrize(
    ("one", "gate"),
    [
        (row("长江从哪座山流出来？"), None),
        (row("江"), "length"),
        (row("江" * 401), "length"),
        (row(" ".join(["Where does the Yangtze rise"] * 12), kind="long", language="en"), None),
        (row("....？！"), "characters"),
        (row("长江\x00在哪里"), "characters"),
        (row("Where does the Yangtze rise?"), "language"),
        (row("Where does the Yangtze rise?", language="en"), None),
        (row("在上海流入东海，全长六千三百余公里吗"), "copied"),
        (row("长江 唐古拉山脉", kind="keyword"), None),
        (row("全长六千三百余公里", kind="keyword"), None),
        (row(DOCUMENT, kind="keyword"), "copied"),
        (row("长江是中国最长的河流", "sts", "pair", score=4.0), None),
        (row("长江是中国最长的河流", "sts", "pair", score=6.0), "score"),
        (row("长江是中国最长的河流！", "sts", "pair", "长江是中国最长的河流", score=5.0), "copied"),
        (row("长江是中国最长的河流呀", "paraphrases", "paraphrase", "长江是中国最长的河流"), "copied"),
        (row("中国的河里数长江最长", "paraphrases", "paraphrase", "长江是中国最长的河流"), None),
    ],
)
def test_texts(one, gate):
    bin_ = []
    kept = sieve([one], text_findings([one], Gates(), (0, 5)), bin_)
    assert [rejection.gate for rejection in bin_] == ([gate] if gate else [])
    assert kept == ([] if gate else [one])
    assert all(rejection.detail and rejection.content["text"] == one.written for rejection in bin_)


def test_gates_that_are_off_let_pass():
    off = Gates(language=False, copied=None)
    rows = [row("Where does the Yangtze rise?"), row("在上海流入东海，全长六千三百余公里")]
    assert sieve(rows, text_findings(rows, off, (0, 5)), []) == rows


def test_duplicates_of_each_file_apart():
    text = "长江的源头在唐古拉山脉的哪一个地方呢，请告诉我"
    rows = [row(text), row("黄河流经哪些省份？"), row(f"{text}。"), row(text, "paraphrases", "paraphrase")]
    bin_ = []
    assert sieve(rows, duplicate_findings(rows, 0.8), bin_) == [rows[0], rows[1], rows[3]]
    assert bin_[0].gate == "near duplicate"
    assert text in bin_[0].detail


def test_the_longest_run_is_that_of_every_pair_of_parts():
    generator = np.random.default_rng(0)
    for _ in range(200):
        text, source = ("".join(generator.choice(list("ab"), size)) for size in generator.integers(0, 12, 2))
        parts = {text[i:j] for i in range(len(text)) for j in range(i, len(text) + 1)}
        assert longest_run(text, source) == max((len(part) for part in parts if part in source), default=0)


def test_passages_are_taken_out_of_their_row(tmp_path):
    good = "黄河是中国第二长的河流，发源于巴颜喀拉山脉，在山东流入渤海。"
    one = row(
        "长江在哪里流入海？", negatives=[good, "短", good, DOCUMENT, "The Yellow River is the second longest river."]
    )
    one.positives = ["万里长江自青藏高原奔流而下，最后在上海附近汇入东海的怀抱。"]
    api = {"base_url": "http://a", "model": "m"}
    bin_ = []
    screen_passages([one], SynthesisRecipe(documents=["a"], output="b", api=api), bin_)
    assert one.negatives == [good]
    assert len(one.positives) == 1
    assert [rejection.gate for rejection in bin_] == ["length", "near duplicate", "near duplicate", "language"]
    assert {rejection.kind for rejection in bin_} == {"hard negative"}


def test_texts_that_say_nothing():
    assert text_fault("...", (1, 9), None)[0] == "characters"
    assert text_fault("a", (1, 9), None) is None


# -- with a model ------------------------------------------------------------------------------------------------------

CITIES = ["北京城墙故宫", "上海港口外滩", "广州早茶荔枝", "成都火锅熊猫", "西安兵马俑塔"]


@pytest.fixture
def judge():
    documents = [Document(str(number), text, {}) for number, text in enumerate([*CITIES, CITIES[0]])]
    return Judge(Words(), Corpus(documents, list(range(6)), 0))


def about(number, written, **more):
    one = row(written, source=CITIES[number % 5], **more)
    one.document = number
    return one


def test_the_way_back_to_the_document(judge):
    rows = [about(0, "北京故宫"), about(1, "成都火锅在哪"), about(5, "北京城墙"), about(3, "熊猫")]
    findings = list(judge.lost(rows, judge.queries(rows), 1))
    assert [(number, gate) for number, gate, _ in findings] == [(1, "not found")]
    assert findings[0][2].endswith("of 5, expected at most 1")  # the document that is there twice counts once
    assert list(judge.lost(rows, judge.queries(rows), 5)) == []
    assert list(judge.lost([], judge.queries([]), 1)) == []


def test_the_same_meaning_twice(judge):
    rows = [about(0, "北京故宫在哪"), about(3, "成都熊猫"), about(0, "故宫在北京哪"), about(0, "在哪北京故宫")]
    found = [(number, gate) for number, gate, _ in judge.repeated(rows, judge.queries(rows), 0.99)]
    assert found == [(2, "same meaning"), (3, "same meaning")]
    assert list(judge.repeated(rows[:1], judge.queries(rows[:1]), 0.99)) == []


def test_negatives_that_are_nearer_than_the_document(judge):
    rows = [about(0, "北京故宫", negatives=["北京故宫开", "成都火锅好吃"])]
    false = judge.false_negatives(rows, judge.queries(rows), 0.0)
    assert list(false) == [("北京故宫", "北京故宫开")]
    assert len(judge.false_negatives(rows, judge.queries(rows), 1.0)) == 2


def pairs(scores):
    return [row("x", "sts", "pair", score=score) for score in scores]


def test_pairs_that_contradict_the_model():
    similarities = np.linspace(0, 1, 30)
    scores = [number // 5 for number in range(30)]
    rows = pairs(scores)
    assert list(contradictions(rows, similarities, 0.5)) == []
    rows[0].score, rows[29].score = 5, 0
    assert [number for number, _, _ in contradictions(rows, similarities, 0.5)] == [0, 29]
    assert list(contradictions(rows[:19], similarities[:19], 0.01)) == []  # too few to tell


def test_calibration_keeps_the_order_and_takes_the_spacing():
    means = {0: 0.1, 1: 0.2, 2: 0.6, 3: 0.55, 4: 0.9, 5: 0.9}
    scores = [float(score) for score in means for _ in range(10)]
    noise = np.tile(np.linspace(-0.01, 0.01, 10), 6)
    found = calibrate(pairs(scores), np.array([means[int(score)] for score in scores]) + noise)
    assert found.verdict == "calibrated"
    scale = [found.scale[str(score)] for score in range(6)]
    assert scale == sorted(scale)
    assert (scale[0], scale[5]) == (0, 5)
    assert scale[1] == pytest.approx(5 * 0.1 / 0.8, abs=0.01)
    assert scale[2] == scale[3] == pytest.approx(5 * 0.475 / 0.8, abs=0.01)  # what the model does not tell apart
    assert found.degrees["4"] == {"pairs": 10, "mean": 0.9, "deviation": pytest.approx(0.0064, abs=1e-3)}


@pytest.mark.parametrize(
    ("scores", "similarities", "verdict"),
    [
        ([1.0] * 30, np.linspace(0, 1, 30), "30 pairs with 1 scores, expected 20 and 2 or more"),
        ([0.0, 5.0] * 5, np.linspace(0, 1, 10), "10 pairs with 2 scores"),
        ([0.0, 5.0] * 15, np.linspace(0, 1, 30), "hardly agree"),
        ([5.0] * 15 + [0.0] * 15, np.linspace(0, 1, 30), "hardly agree"),
    ],
)
def test_scores_that_say_nothing_stay_and_are_reported(scores, similarities, verdict):
    found = calibrate(pairs(scores), similarities)
    assert verdict in found.verdict
    assert found.scale == {}


def test_cosines_of_pairs():
    rows = [row("北京故宫", "sts", "pair", "北京故宫"), row("甲乙丙", "sts", "pair", "北京故宫")]
    np.testing.assert_allclose(cosines(rows, Words()), [1, 0], atol=1e-6)
    assert len(cosines([], Words())) == 0
