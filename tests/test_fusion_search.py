"""The search for fusion weights, on pairs whose gold scores are the cosines of one known fusion."""

from __future__ import annotations

import shutil
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from tiny_models import TEXTS

from codiemb.data.examples import DataError
from codiemb.fusion import fuse
from codiemb.fusion import search as search_module
from codiemb.fusion.candidates import Candidate, first_candidates, neighbours, pattern_search
from codiemb.fusion.search import Search, Try, choose, search
from codiemb.fusion.validation import require_validation

HALF, QUARTER = Fraction(1, 2), Fraction(1, 4)
WORDS = " ".join(TEXTS).split()


@pytest.fixture(scope="module")
def models(tiny_model_directory, tmp_path_factory) -> list[Path]:
    """A base, and two models that moved in random directions."""
    folder = tmp_path_factory.mktemp("models")
    for seed in (1, 2):
        copy = shutil.copytree(tiny_model_directory, folder / f"tuned-{seed}")
        generator = torch.Generator().manual_seed(seed)
        moved = {
            name: tensor + 0.15 * torch.randn(tensor.shape, generator=generator)
            for name, tensor in load_file(copy / "model.safetensors").items()
        }
        save_file(moved, copy / "model.safetensors", metadata={"format": "pt"})
    return [tiny_model_directory, folder / "tuned-1", folder / "tuned-2"]


def pairs(count: int) -> list[tuple[str, str]]:
    rng = np.random.default_rng(0)
    return [tuple(" ".join(rng.choice(WORDS, 6)) for _ in range(2)) for _ in range(count)]


def scored_by(directory: Path, path: Path) -> Path:
    """Pairs whose gold scores are the model's cosines."""
    model = SentenceTransformer(str(directory), device="cpu")
    texts = pairs(150)
    first, second = (model.encode_query([pair[side] for pair in texts]) for side in (0, 1))
    cosines = (first * second).sum(1) / np.linalg.norm(first, axis=1) / np.linalg.norm(second, axis=1)
    lines = [f"{a}\t{b}\t{score:.6f}\n" for (a, b), score in zip(texts, cosines, strict=True)]
    path.parent.mkdir(exist_ok=True)
    path.write_text("sentence1\tsentence2\tscore\n" + "".join(lines))
    return path


@pytest.fixture(scope="module")
def found(models, tmp_path_factory) -> tuple[Search, Path, Path]:
    """A search on the cosines of 0.75 of a 3:1 mix; its data, and its cache."""
    folder = tmp_path_factory.mktemp("search")
    fuse(models[0], models[1:], folder / "target", method="weights", weights=[0.75, 0.25], scale=0.75)
    data = scored_by(folder / "target", folder / "dev" / "sts.tsv")
    return search(models[0], models[1:], [data], budget=12, cache_dir=folder / "cache"), data, folder / "cache"


def test_the_fusion_that_made_the_scores_is_found(found):
    outcome = found[0]
    assert outcome.best.candidate == Candidate((3 * QUARTER, QUARTER), 3 * QUARTER)
    assert outcome.best.score > 0.999  # not 1: evaluation may compute in bfloat16
    assert outcome.chosen is outcome.best  # nothing simpler is within one standard error of a perfect score
    assert outcome.base.score < outcome.tries[0].score < outcome.best.score
    assert [one.behind for one in outcome.tries] == [outcome.best.score - one.score for one in outcome.tries]
    for one in outcome.tries:
        if one is not outcome.best:  # whose own score is all but sure
            assert one.behind_error == pytest.approx(one.error, rel=0.05)


def test_the_chosen_one_is_written_as_it_was_scored(found, models, tmp_path):
    outcome, data, _ = found
    weights = [float(weight) for weight in outcome.chosen.candidate.weights]
    scale = float(outcome.chosen.candidate.scale)
    fuse(models[0], models[1:], tmp_path / "out", method="weights", weights=weights, scale=scale)
    (result,) = search_module._evaluated(tmp_path / "out", "out", search_module.discover(data), None, 0)
    assert result.main_score == outcome.chosen.score


def test_scores_are_kept_and_belong_to_models_data_and_settings(found, models, tmp_path, monkeypatch):
    outcome, data, cache = found
    monkeypatch.setattr(search_module, "_evaluated", lambda *_: pytest.fail("evaluated again"))
    again = search(models[0], models[1:], [data], budget=12, cache_dir=cache)
    assert all(one.known for one in again.tries)
    assert again.to_dict() == outcome.to_dict()
    by_name = search(models[0], models[1:], [data], metric="sts", budget=5, cache_dir=cache)
    assert [one.candidate for one in by_name.tries] == [one.candidate for one in outcome.tries[:5]]

    other = scored_by(models[1], tmp_path / "dev" / "sts.tsv")
    for paths, options in (((models[0], models[1:], [other]), {}), ((models[0], models[1:], [data]), {"sample": 50})):
        with pytest.raises(pytest.fail.Exception, match="evaluated again"):
            search(*paths, budget=12, cache_dir=cache, **options)
    monkeypatch.setattr(search_module, "best_precision", lambda device: (torch.float16, "another processor"))
    with pytest.raises(pytest.fail.Exception, match="evaluated again"):
        search(models[0], models[1:], [data], budget=12, cache_dir=cache)


def test_a_stopped_search_goes_on(found, models, tmp_path, monkeypatch):
    outcome, data, _ = found
    evaluated, calls = search_module._evaluated, []

    def counted(*arguments):
        if len(calls) == 3:
            raise KeyboardInterrupt
        calls.append(arguments)
        return evaluated(*arguments)

    monkeypatch.setattr(search_module, "_evaluated", counted)
    with pytest.raises(KeyboardInterrupt):
        search(models[0], models[1:], [data], budget=4, cache_dir=tmp_path)
    monkeypatch.setattr(search_module, "_evaluated", evaluated)
    resumed = search(models[0], models[1:], [data], budget=4, cache_dir=tmp_path)
    assert [one.known for one in resumed.tries] == [True, True, True, False]
    assert [one.score for one in resumed.tries] == [one.score for one in outcome.tries[:4]]


# -- the rule, and the candidates ------------------------------------------------------------------------------------


def tried(weights: tuple[float, ...], scale: float, behind: float, error: float = 0.01) -> Try:
    candidate = Candidate(tuple(map(Fraction, weights)), Fraction(scale))
    return Try(candidate, {}, 0.8 - behind, error, behind, error if behind else 0.0, False)


@pytest.mark.parametrize(
    ("tries", "chosen"),
    [
        ([tried((0.5, 0.5), 1, 0.009), tried((0.75, 0.25), 1, 0)], 0),
        ([tried((0.5, 0.5), 1, 0.011), tried((0.75, 0.25), 1, 0)], 1),
        ([tried((0.5, 0.5), 1, 0.02), tried((0.5, 0.5), 0.75, 0.009), tried((0.75, 0.25), 1, 0)], 1),
        ([tried((0.5, 0.5), 0.5, 0.009), tried((0.5, 0.5), 0.75, 0.008), tried((0.75, 0.25), 1, 0)], 1),
        ([tried((0.5, 0.5), 0, 0.001), tried((0.5, 0.5), 1, 0.002), tried((0.75, 0.25), 1, 0)], 1),
        ([tried((0.5, 0.5), 0, 0), tried((0.5, 0.5), 1, 0.002)], 0),
    ],
    ids=["mean within", "mean outside", "scaled mean", "better of two", "never the base", "unless it is best"],
)
def test_the_simplest_within_one_standard_error(tries, chosen):
    best = next(one for one in tries if not one.behind)
    assert choose(tries, best) is tries[chosen]


def quadratic(weights, scale):
    def score(candidate: Candidate) -> float:
        coefficients = [float(candidate.scale * weight) for weight in candidate.weights]
        target = [scale * weight for weight in weights]
        return -sum((c - t) ** 2 for c, t in zip(coefficients, target, strict=True))

    return score


@pytest.mark.parametrize(
    ("weights", "scale", "budget"), [((1.0,), 0.8, 9), ((0.3, 0.7), 1.2, 25), ((0.6, 0.1, 0.3), 0.8, 60)]
)
def test_pattern_search_comes_near_the_top(weights, scale, budget):
    scores = pattern_search(quadratic(weights, scale), len(weights), budget)
    best = max(scores, key=scores.__getitem__)
    assert len(scores) <= budget
    assert float(best.scale) == pytest.approx(scale, abs=0.1)
    assert [float(weight) for weight in best.weights] == pytest.approx(list(weights), abs=0.1)
    assert all(sum(candidate.weights) == 1 and candidate.scale >= 0 for candidate in scores)


def test_the_first_candidates_and_their_neighbours():
    first = first_candidates(2)
    assert list(map(str, first)) == [
        "weights 0.5, 0.5, scale 1",
        "the base",
        "weights 1, 0, scale 1",
        "weights 0, 1, scale 1",
    ]
    assert first_candidates(1) == [Candidate((Fraction(1),), Fraction(1)), Candidate((Fraction(1),), Fraction(0))]
    assert list(neighbours(first[1], QUARTER)) == [Candidate((HALF, HALF), QUARTER)]
    assert list(neighbours(first[2], QUARTER)) == [
        Candidate((Fraction(1), Fraction(0)), 3 * QUARTER),
        Candidate((Fraction(1), Fraction(0)), 5 * QUARTER),
        Candidate((3 * QUARTER, QUARTER), Fraction(1)),
    ]
    assert list(pattern_search(lambda _: 0.0, 2, 3)) == first[:3]


# -- what the search takes -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("files", "source", "refused"),
    [
        (["sts/stsb_test.tsv"], "sts/stsb_test.tsv", "says that it is a test set"),
        (["test/sts.tsv"], "test/sts.tsv", "says that it is a test set"),
        (["dev/sts-test.tsv"], "dev/sts-test.tsv", "says that it is a test set"),
        (["test/sts_dev.tsv"], "test/sts_dev.tsv", None),
        (["latest/greatest.tsv"], "latest/greatest.tsv", None),
        (["nq/qrels/test.tsv"], "nq", "says that it is a test set"),
        (["nq/qrels/test.tsv"], "nq/qrels/test.tsv", "says that it is a test set"),
        (["dev/nq/qrels/test.tsv"], "dev/nq", None),
        (["dev/nq/qrels/test.tsv", "dev/nq/qrels/dev.tsv"], "dev/nq", r"`test` would be read.*nq/qrels/dev\.tsv"),
        (["nq/qrels/test.tsv", "nq/qrels/dev.tsv"], "nq/qrels/dev.tsv", None),
    ],
)
def test_data_that_says_it_is_a_test_set_is_refused(files, source, refused, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for file in map(Path, files):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    if refused is None:
        require_validation([source])
    else:
        with pytest.raises(DataError, match=refused):
            require_validation([source])


def test_errors_come_before_any_evaluation(found, models, tmp_path, monkeypatch):
    _, data, _ = found
    monkeypatch.setattr(search_module, "_evaluated", lambda *_: pytest.fail("evaluated"))
    test_set = shutil.copy(data, tmp_path / "sts_test.tsv")
    for changes, message in (
        ({"data": [test_set]}, "says that it is a test set"),
        ({"metric": "ir"}, "metric='ir', expected a score of the validation data: sts, mean"),
        ({"budget": 0}, "budget=0, expected at least 1"),
        ({"base": tmp_path / "none"}, "no such directory"),
    ):
        arguments = {"base": models[0], "checkpoints": models[1:], "data": [data], "cache_dir": tmp_path, **changes}
        with pytest.raises(ValueError, match=message):
            search(**arguments)
    assert [path.name for path in tmp_path.iterdir()] == ["sts_test.tsv"]
