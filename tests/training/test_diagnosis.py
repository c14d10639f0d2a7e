"""The diagnosis of conflict: gradients against torch's own, statistics against made-up gradients, and whole runs."""

from __future__ import annotations

import json
import random
import tempfile
from collections import namedtuple
from dataclasses import replace

import numpy as np
import pytest
import torch

from codiemb.tasks import TASKS
from codiemb.training import run as training
from codiemb.training.diagnosis import gradients
from codiemb.training.diagnosis.batches import Drawn, draw, mix
from codiemb.training.diagnosis.conflict import MIXED, MODEL, NETWORK, diagnose
from codiemb.training.diagnosis.gradients import TOKEN_TABLE, GradientProducts, measure
from codiemb.training.diagnosis.report import heat_maps, layer_map, pair_map, write_report
from codiemb.training.diagnosis.verdict import verdict
from codiemb.training.trainer import TrainingRows

from .conftest import WORDS, write_lines


@pytest.fixture
def measured(make_recipe) -> GradientProducts:
    return measure(make_recipe(), batches=4, mixed=True)


# -- gradients -------------------------------------------------------------------------------------------------------


def by_hand(recipe, count: int):
    """Gradients of the first batches of each task, by torch.autograd on the whole token table."""
    arguments = training.TrainingArguments(output_dir=str(recipe.output), use_cpu=True, report_to=[])
    tables = training.read_tables(recipe)
    options = {name: getattr(recipe.tasks, name) for name in TASKS}
    sampler = training.make_sampler(recipe, tables, options, arguments)
    model, template = training.load_model(recipe, torch.device("cpu"))
    embedding_pass = training.make_pass(recipe, model, options, {table.task_type for table in tables}).train()
    rows = TrainingRows(tables, training.make_collator(recipe, tables, template, options), sampler)
    network = embedding_pass.transformer.model
    names, parameters = zip(
        *[(name, p) for name, p in network.named_parameters() if not name.startswith("pooler")], strict=True
    )
    found = []
    batches = list(sampler)
    for task in ("ir", "sts"):
        of_task = [indices for indices in batches if sampler.datasets[sampler.source_of(indices[0])].task == task]
        for indices in of_task[:count]:
            batch = rows.__getitems__(indices)
            torch.manual_seed(recipe.seed + len(found))
            embeddings = embedding_pass(embedding_pass.tokenize(batch.texts))
            loss = TASKS[task].objective(embeddings, batch, options[task], gather=False).total
            found.append(dict(zip(names, torch.autograd.grad(loss, parameters), strict=True)))
    return found


def test_products_are_those_of_torchs_gradients(make_recipe, monkeypatch):
    monkeypatch.setattr(gradients, "_BLOCK", 1000)
    recipe = make_recipe()
    measured = measure(recipe, batches=4)
    expected = by_hand(recipe, 4)
    assert measured.layers == (TOKEN_TABLE, "embeddings", "encoder.layer.0", "encoder.layer.1")
    for layer, products in zip(measured.layers, measured.products, strict=True):
        keys = [key for key in expected[0] if belongs(key, layer)]
        rows = torch.stack([torch.cat([one[key].flatten() for key in keys]) for one in expected]).double()
        np.testing.assert_allclose(products, (rows @ rows.T).numpy(), rtol=1e-3, atol=1e-9)


def belongs(key: str, layer: str) -> bool:
    if layer == TOKEN_TABLE:
        return "word_embeddings" in key
    return key.startswith(f"{layer}.") and "word_embeddings" not in key


def test_the_same_seed_gives_the_same_figures(make_recipe):
    first, second, other = (measure(make_recipe(seed=seed), batches=4) for seed in (1, 1, 2))
    assert np.array_equal(first.products, second.products)
    assert diagnose(first).to_dict() == diagnose(second).to_dict()
    assert not np.array_equal(first.products, other.products)


def test_what_is_not_trained_is_no_layer(make_recipe):
    frozen = measure(make_recipe(token_embeddings="frozen"), batches=4)
    assert TOKEN_TABLE not in frozen.layers
    diagnosis = diagnose(frozen)
    assert diagnosis.layers[-1] == MODEL
    assert NETWORK not in diagnosis.layers


def test_frozen_layers_and_adapters_leave_what_is_trained(make_recipe):
    top = measure(make_recipe(frozen_layers=1), batches=4)
    assert top.layers == ("encoder.layer.1",)
    pytest.importorskip("peft")
    adapted = measure(make_recipe(adapter={"rank": 2}), batches=4)
    assert adapted.layers == ("encoder.layer.0", "encoder.layer.1")
    assert adapted.parameters[0] < top.parameters[0] / 4


def test_the_objective_on_parts_is_the_one_that_is_measured(make_recipe):
    whole, nested = (measure(make_recipe(matryoshka=part), batches=4) for part in (None, {"dims": [8]}))
    assert (nested.losses > whole.losses).all()


def test_no_file_is_seen_at_any_time_and_a_full_disk_is_an_error(make_recipe, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "scratch"))
    (tmp_path / "scratch").mkdir()
    seen = []
    measure(make_recipe(), batches=4, on_progress=lambda *_: seen.append(list((tmp_path / "scratch").iterdir())))
    assert seen == [[]] * 8
    usage = namedtuple("usage", "total used free")(10, 9, 1)
    monkeypatch.setattr(gradients.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(OSError, match=r"8 gradients take .* Set TMPDIR to a folder with more room, or take fewer"):
        measure(make_recipe(), batches=4)


def test_texts_are_cut_to_save_time(make_recipe):
    whole, same, cut = (measure(make_recipe(), batches=4, max_length=length) for length in (None, 500, 8))
    assert (whole.settings["max_length"], same.settings["max_length"], cut.settings["max_length"]) == (64, 64, 8)
    assert np.array_equal(whole.products, same.products)
    assert not np.array_equal(whole.products, cut.products)


# -- batches ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def drawn(make_recipe):
    def drawn_of(count, by="task", **changes):
        recipe = make_recipe(**changes)
        arguments = training.TrainingArguments(output_dir=str(recipe.output), use_cpu=True, report_to=[])
        tables = training.read_tables(recipe)
        options = {name: getattr(recipe.tasks, name) for name in TASKS}
        sampler = training.make_sampler(recipe, tables, options, arguments)
        _, template = training.load_model(recipe, torch.device("cpu"))
        rows = TrainingRows(tables, training.make_collator(recipe, tables, template, options), sampler)
        return draw(sampler, rows, count, by)

    return drawn_of


def test_batches_of_a_task_share_no_row(drawn):
    found = drawn(10)
    assert [one.group for one in found] == ["ir"] * 4 + ["sts"] * 4  # an epoch has no more
    queries = [
        text.text for one in found if one.group == "ir" for text in (one.batch.texts[i] for i in one.batch.query)
    ]
    assert len(set(queries)) == len(queries) == 64
    with pytest.raises(ValueError, match=r"sts: an epoch has 1 batch\(es\) of it, .* smaller tasks.sts.batch_size"):
        drawn(4, tasks={"ir": {"batch_size": 16}, "sts": {"batch_size": 64}})


def test_data_sets_are_groups_of_their_own_if_asked(drawn, data, tmp_path):
    second = write_lines(tmp_path / "more.jsonl", [json.loads(line) for line in (data / "ir.jsonl").open()])
    train = [{"path": str(path)} for path in (data / "ir.jsonl", second, data / "sts.jsonl")]
    assert [one.group for one in drawn(4, by="dataset", train=train)] == ["ir"] * 4 + ["more"] * 4 + ["sts"] * 4
    assert [one.group for one in drawn(4, train=train)] == ["ir"] * 4 + ["sts"] * 4


def test_a_mixed_batch_is_the_sum_of_its_parts(drawn, make_recipe):
    """One InfoNCE over all rows, written out, has the parts' loss and gradient."""
    parts = mix(drawn(4))
    assert [one.group for one in parts] == ["ir in mixed", "sts in mixed"] * 4
    assert sum(one.share for one in parts[:2]) == pytest.approx(1)
    ir, sts = (one.batch for one in parts[:2])
    whole = replace(
        ir,
        positive_mask=ir.positive_mask | sts.positive_mask,
        negative_mask=ir.negative_mask & sts.negative_mask,  # without what became a negative in one of them
    )
    assert whole.positive_mask.any(1).sum() == 8 + (sts.positive_mask.any(1)).sum()
    generator = torch.Generator().manual_seed(0)
    vectors = torch.nn.functional.normalize(torch.randn(len(ir.texts), 8, generator=generator), dim=1).requires_grad_()
    options = make_recipe().tasks.ir

    def loss(batch):
        return TASKS["ir"].objective(Embedded(vectors), batch, options, gather=False)

    total = loss(whole).total
    added = sum(one.share * loss(one.batch).total for one in parts[:2])
    torch.testing.assert_close(added, total)
    torch.testing.assert_close(*(torch.autograd.grad(value, vectors)[0] for value in (added, total)))


Embedded = namedtuple("Embedded", "final")


def test_pairs_below_the_threshold_are_not_in_mixed_batches(drawn):
    sts = next(one for one in mix(drawn(4)) if one.group == "sts in mixed").batch
    assert (sts.scores[sts.positive_mask] >= 0.8).all()
    assert sts.positive_mask.any()


# -- statistics ------------------------------------------------------------------------------------------------------


def made_up(cosine: float, reliability: float, batches: int = 8, seed: int = 0) -> GradientProducts:
    """Gradients of two tasks with the given cosine of their means, whose batches have the given within-task cosine."""
    rng = np.random.default_rng(seed)
    size = 3000
    first, second = np.linalg.qr(rng.normal(size=(size, 2)))[0].T
    means = {"a": first, "b": cosine * first + np.sqrt(1 - cosine**2) * second}
    noise = np.sqrt((1 / reliability - 1) / size)
    rows = np.array([mean + noise * rng.normal(size=size) for mean in means.values() for _ in range(batches)])
    rows[batches:] *= 3  # b is the louder
    half = size // 2
    products = np.stack([rows[:, :half] @ rows[:, :half].T, rows[:, half:] @ rows[:, half:].T])
    drawn = [Drawn(name, None, "ir", frozenset({(name, i)})) for name in means for i in range(batches)]
    return GradientProducts(drawn, ("layer.0", "layer.1"), (half, half), products, np.ones(len(rows)), {})


@pytest.mark.parametrize("cosine", [-0.6, 0.0, 0.6])
@pytest.mark.parametrize("reliability", [0.1, 0.5, 0.99])
def test_the_corrected_cosine_is_that_without_noise(cosine, reliability):
    diagnosis = diagnose(made_up(cosine, reliability))
    found = diagnosis.pairs["a", "b"][diagnosis.whole]
    assert found.corrected.low <= cosine <= found.corrected.high
    assert found.corrected.value == pytest.approx(cosine, abs=0.1)
    assert found.cosine.value == pytest.approx(cosine * reliability, abs=0.03)  # what single batches show
    assert diagnosis.groups["a"][diagnosis.whole].within.value == pytest.approx(reliability, abs=0.03)
    assert diagnosis.groups["a"][diagnosis.whole].signal == pytest.approx(1, rel=0.1)
    assert diagnosis.groups["b"][diagnosis.whole].norm == pytest.approx(3 / np.sqrt(reliability), rel=0.05)


@pytest.mark.parametrize("batches", [5, 8])
def test_intervals_hold_the_truth_as_often_as_they_say(monkeypatch, batches):
    monkeypatch.setattr("codiemb.training.diagnosis.conflict.RESAMPLES", 300)
    hits = [
        found.low <= 0.3 <= found.high
        for seed in range(60)
        for found in [diagnose(made_up(0.3, 0.2, batches, seed=seed), seed=seed).pairs["a", "b"][-1].corrected]
    ]
    assert np.mean(hits) > 0.9


def test_noise_alone_is_not_taken_for_conflict():
    diagnosis = diagnose(made_up(-1.0, 0.001, batches=3))
    assert diagnosis.pairs["a", "b"][diagnosis.whole].corrected is None
    assert "a and b: too noisy to tell" in verdict(diagnosis)[0]
    wide = verdict(diagnose(made_up(0.0, 0.03)))
    assert wide[0].startswith("a and b: too few batches to tell (--batches). The cosine is ")
    calm = verdict(diagnose(made_up(0.0, 0.5)))
    assert calm[0] == "No conflict beyond noise."
    assert "a and b neither help nor hurt each other" in calm[1]
    apart = made_up(0.0, 0.99)  # where a small cosine is sure, it is still small
    assert diagnose(apart).pairs["a", "b"][0].corrected.sign != 0
    assert verdict(diagnose(apart))[0] == "No conflict beyond noise."


def test_the_verdict_names_who_where_and_how_strongly():
    product = made_up(0.0, 0.9)
    signs = np.array([1.0] * 8 + [-1.0] * 8)
    agree = made_up(0.9, 0.9).products[0]
    both = replace(product, products=np.stack([agree, agree * np.outer(signs, signs)]))
    (pair, louder) = verdict(diagnose(both))
    assert "They pull against each other in layer.1 (-0.9" in pair
    assert "layer.0" not in pair
    assert louder.startswith("The gradient of a batch of b is 3.0 times as long as one of a")
    opposed = verdict(diagnose(made_up(-0.7, 0.5)))[0]
    assert opposed.startswith("a and b pull against each other strongly: cosine -0.7")
    assert "They pull against each other in every layer" in opposed
    assert verdict(diagnose(made_up(0.7, 0.5)))[1].startswith("a and b agree: cosine +0.")


# -- whole diagnoses -------------------------------------------------------------------------------------------------


@pytest.fixture
def opposed(tmp_path):
    """A data set that calls texts of some words alike and those of others unlike, and two that say the opposite."""
    rng = random.Random(1)
    files = {}
    for name, alike in (("first", 0), ("turned", 1), ("again", 1)):
        rows = []
        for i in range(192):
            words = WORDS[:4] if i % 2 == 0 else WORDS[4:8]
            query, candidate = (" ".join(rng.choices(words, k=6)) for _ in range(2))
            score = float(i % 2 == alike)
            rows.append({"task_type": "sts", "query": query, "positives": [candidate], "positive_scores": [score]})
        files[name] = {"path": str(write_lines(tmp_path / f"{name}.jsonl", rows))}
    return files


def test_opposed_data_sets_have_a_cosine_of_minus_one_and_equal_ones_of_one(make_recipe, opposed):
    def of(*names):
        tasks = {"sts": {"batch_size": 48, "loss": {"pearson": 1}}}
        recipe = make_recipe(train=[opposed[name] for name in names], tasks=tasks, dropout=0.0)
        return diagnose(measure(recipe, batches=4, by="dataset"))

    against = of("first", "turned")
    assert against.pairs["first", "turned"][against.whole].corrected.value < -0.9
    assert verdict(against)[0].startswith("first and turned pull against each other strongly: cosine -")
    alike = of("turned", "again")
    assert alike.pairs["turned", "again"][alike.whole].corrected.value > 0.9
    assert verdict(alike)[0] == "No conflict beyond noise."


def test_mixed_batches_are_measured_beside(measured):
    diagnosis = diagnose(measured)
    assert list(diagnosis.groups) == ["ir", "sts", "ir in mixed", "sts in mixed", MIXED]
    assert diagnosis.single == [("ir", "sts")]
    assert diagnosis.parts == [("ir in mixed", "sts in mixed")]
    assert [pair for pair in diagnosis.pairs if MIXED in pair] == [(MIXED, "ir"), (MIXED, "sts")]
    words = " ".join(verdict(diagnosis))
    assert "In mixed batches, under one InfoNCE, the tasks' parts have the cosine ir and sts" in words


def test_totals_are_sums_of_the_layers(measured):
    diagnosis = diagnose(measured)
    assert diagnosis.layers[-2:] == (NETWORK, MODEL)
    assert diagnosis.parameters[-1] == sum(diagnosis.parameters[:-2])
    squares = [one.norm**2 for one in diagnosis.groups["ir"]]
    assert squares[-1] == pytest.approx(sum(squares[:-2]))
    assert squares[-2] == pytest.approx(sum(squares[1:-2]))


def test_the_report(measured, tmp_path):
    pytest.importorskip("matplotlib")
    diagnosis = diagnose(measured)
    write_report(tmp_path / "out", diagnosis, "Do they <conflict>?")
    names = ["diagnosis-layers.png", "diagnosis.html", "diagnosis.json"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == names
    content = json.loads((tmp_path / "out" / "diagnosis.json").read_text())
    assert content["verdict"] == verdict(diagnosis)
    assert [one["name"] for one in content["layers"]] == list(diagnosis.layers)
    html = (tmp_path / "out" / "diagnosis.html").read_text()
    assert "Do they &lt;conflict&gt;?" in html
    assert "data:image/png" in html


def test_the_map_of_layers_shows_the_corrected_cosines():
    pytest.importorskip("matplotlib")
    diagnosis = diagnose(made_up(-0.6, 0.5, batches=4))
    shown = np.array(layer_map(diagnosis).axes[0].images[0].get_array())
    np.testing.assert_allclose(shown[:, 0], [one.corrected.value for one in diagnosis.pairs["a", "b"]])
    assert shown[-1, 0] == pytest.approx(-0.6, abs=0.1)


def test_three_data_sets_have_a_map_of_pairs(make_recipe, opposed):
    pytest.importorskip("matplotlib")
    tasks = {"sts": {"batch_size": 48, "loss": {"pearson": 1}}}
    recipe = make_recipe(train=list(opposed.values()), tasks=tasks, dropout=0.0)
    diagnosis = diagnose(measure(recipe, batches=4, by="dataset"))
    assert heat_maps(diagnosis).keys() == {"layers", "pairs"}
    shown = np.array(pair_map(diagnosis).axes[0].images[0].get_array())
    np.testing.assert_allclose(shown, [[1, -1, -1], [-1, 1, 1], [-1, 1, 1]], atol=0.1)
