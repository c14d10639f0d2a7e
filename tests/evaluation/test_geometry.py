import itertools
import json
import re

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.special import i0
from scipy.stats import skew, spearmanr
from sklearn.decomposition import PCA
from sklearn.neighbors import NearestNeighbors

from codiemb.data.examples import Text
from codiemb.evaluation.clouds import TextCloud, embed_cloud, sample_cloud
from codiemb.evaluation.geometry import (
    GeometryError,
    alignment,
    cosines,
    hubness,
    isoscore,
    measure,
    nearest,
    spectrum,
    truncation,
    uniformity,
    unit_rows,
)
from codiemb.evaluation.geometry_report import DataGeometry, charts, file_name, geometry_page, measure_model
from codiemb.evaluation.tasks import PairTask, RerankingRow, RerankingTask, RetrievalTask
from codiemb.prompts import InstructionTemplate


def sphere(texts, dim, seed=0):
    return unit_rows(np.random.default_rng(seed).normal(size=(texts, dim)))


def lopsided(texts, dim, seed=0):
    """Points with a common direction, and less variance in each further dimension."""
    points = np.random.default_rng(seed).normal(size=(texts, dim)) / np.arange(1, dim + 1)
    return points + np.eye(dim)[0]


# -- against obvious versions, and known values ----------------------------------------------------------------------


def test_alignment_is_the_mean_squared_distance():
    first, second = sphere(50, 8), sphere(50, 8, seed=1)
    expected = np.mean(
        [sum((a - b) ** 2 for a, b in zip(x, y, strict=True)) for x, y in zip(first, second, strict=True)]
    )
    assert alignment(first, second) == pytest.approx(expected)
    assert alignment(first, first) == 0
    assert alignment(first, -first) == pytest.approx(4)


@pytest.mark.parametrize("texts", [7, 1100])  # 1100: several blocks, the last one short
def test_uniformity_is_over_all_pairs(texts):
    points = unit_rows(lopsided(texts, 5))
    distances = np.square(points[:, None] - points[None]).sum(axis=-1)[np.triu_indices(texts, 1)]
    assert uniformity(points) == pytest.approx(np.log(np.exp(-2 * distances).mean()))


@pytest.mark.parametrize("dim", [2, 3, 16, 256])
def test_uniformity_of_the_even_sphere_is_the_integral_over_cosines(dim):
    def density(cosine):
        return (1 - cosine**2) ** ((dim - 3) / 2)

    def integral(function):
        # In the angle, where the density of the circle has no poles.
        return quad(lambda angle: function(np.cos(angle)) * np.sin(angle), 0, np.pi)[0]

    expected = np.log(integral(lambda c: np.exp(4 * c - 4) * density(c)) / integral(density))
    if dim == 2:
        assert expected == pytest.approx(np.log(i0(4)) - 4)
    assert uniformity(sphere(3000, dim)) == pytest.approx(expected, abs=0.01)


def test_uniformity_of_one_point_is_0_and_of_opposite_ones_minus_8():
    assert uniformity(np.tile([[0.6, 0.8]], (9, 1))) == pytest.approx(0)
    assert uniformity(np.array([[1.0, 0.0], [-1.0, 0.0]])) == pytest.approx(-8)


def isoscore_step_by_step(points):
    """The paper's algorithm, one step a line."""
    n = points.shape[1]
    reoriented = PCA(n_components=n).fit_transform(points)
    variances = np.diag(np.cov(reoriented.T))
    scaled = np.sqrt(n) * variances / np.linalg.norm(variances)
    defect = np.linalg.norm(scaled - np.ones(n)) / np.sqrt(2 * (n - np.sqrt(n)))
    share = (n - defect**2 * (n - np.sqrt(n))) ** 2 / n**2
    return (n * share - 1) / (n - 1)


@pytest.mark.parametrize("points", [lopsided(200, 12), sphere(300, 6), 40 * lopsided(60, 2, seed=3)])
def test_isoscore_is_the_papers_algorithm(points):
    assert isoscore(points) == pytest.approx(isoscore_step_by_step(points))


def test_isoscore_of_known_clouds():
    even = np.random.default_rng(0).normal(size=(20_000, 10))
    line = np.outer(np.linspace(-1, 1, 50), np.arange(1, 6))
    plane = np.hstack([even[:, :2], np.zeros((20_000, 8))])
    assert isoscore(even) == pytest.approx(1, abs=0.01)
    assert isoscore(unit_rows(even)) == pytest.approx(1, abs=0.01)
    assert isoscore(line) == pytest.approx(0, abs=1e-9)
    assert isoscore(plane) == pytest.approx(1 / 9, abs=1e-3)  # k of n dimensions in equal use: (k - 1) / (n - 1)
    assert isoscore(even + 7) == pytest.approx(isoscore(even))  # where the cloud lies makes no difference
    assert isoscore(np.random.default_rng(1).normal(size=(200, 100))) == pytest.approx(200 / 300, abs=0.03)


@pytest.mark.parametrize("shape", [(90, 12), (12, 90)])
def test_spectrum_is_that_of_the_singular_values(shape):
    points = unit_rows(lopsided(*shape))
    values = np.linalg.svd(points, compute_uv=False)
    shares = values / values.sum()
    entropy = -(shares * np.log(shares)).sum()
    found = spectrum(points)
    assert found.values == pytest.approx(shares.tolist(), rel=1e-6)
    assert found.entropy == pytest.approx(entropy)
    assert found.effective_rank == pytest.approx(np.exp(entropy))
    assert found.rank == np.linalg.matrix_rank(points) == 12
    assert found.condition_number == pytest.approx(values[0] / values[-1])


def test_effective_rank_counts_directions_in_equal_use():
    axes = np.tile(np.eye(6)[:4], (5, 1))
    found = spectrum(axes)
    assert found.effective_rank == pytest.approx(4)
    assert (found.rank, found.condition_number) == (4, pytest.approx(1))
    same = spectrum(np.tile([[0.6, 0.8]], (9, 1)))
    assert (same.rank, same.effective_rank) == (1, pytest.approx(1))


def test_overlap_and_auc_of_cosines():
    rng = np.random.default_rng(0)
    positive, random = np.round(rng.uniform(0.1, 0.9, 70), 2), np.round(rng.uniform(-0.6, 0.5, 90), 2)
    found = cosines(positive, random)
    edges = np.linspace(-1, 1, 101)
    overlap = 0.0
    for number, (low, high) in enumerate(itertools.pairwise(edges)):
        inside = [
            np.mean([low <= v and (v < high or (number == 99 and v <= high)) for v in values])
            for values in (positive, random)
        ]
        overlap += min(inside)
    wins = [1.0 if p > r else 0.5 if p == r else 0.0 for p in positive for r in random]
    assert found.overlap == pytest.approx(overlap, abs=0.03)  # a value on an edge may round to either side
    assert found.auc == pytest.approx(np.mean(wins))
    assert sum(found.positive_histogram) == pytest.approx(1)
    assert found.positive_mean == pytest.approx(positive.mean())
    apart = cosines(np.array([0.9, 1.0 + 1e-7]), np.array([-1.0, 0.2]))
    assert (apart.overlap, apart.auc, sum(apart.positive_histogram)) == (0, 1, pytest.approx(1))
    alike = cosines(positive, positive)
    assert (alike.overlap, alike.auc) == (pytest.approx(1), pytest.approx(0.5))


def test_nearest_and_hubness_against_scikit_learn():
    points = unit_rows(lopsided(700, 6))
    _, expected = NearestNeighbors(n_neighbors=11, metric="cosine").fit(points).kneighbors(points)
    assert [set(row) for row in nearest(points, 10)] == [set(row[1:]) for row in expected]
    counts = np.bincount(expected[:, 1:].ravel(), minlength=700)
    assert hubness(points) == pytest.approx(skew(counts))
    some = np.array([3, 650])
    assert [set(row) for row in nearest(points, 10, some)] == [set(expected[i, 1:]) for i in some]


def test_hubness_grows_with_dimensionality_and_is_0_without_hubs():
    # Texts near the common direction are hubs, the more so the higher the dimension (Radovanovic et al., section 4).
    shifted = {dim: unit_rows(np.random.default_rng(0).normal(size=(1000, dim)) + 1) for dim in (3, 200)}
    assert hubness(shifted[200]) > hubness(shifted[3]) + 1
    assert hubness(shifted[200]) > hubness(sphere(1000, 200)) + 1
    angles = np.arange(30) * 2 * np.pi / 30
    circle = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    assert hubness(circle, k=2) == pytest.approx(0)


def test_truncation_against_brute_force():
    points = lopsided(60, 48).astype(np.float32)
    found = truncation(points)
    assert [point.dim for point in found] == [32, 48]
    assert found[-1].spearman == pytest.approx(1)
    assert found[-1].neighbours == 1

    def cosine_matrix(vectors):
        rows = vectors.astype(np.float64)
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        return rows @ rows.T

    full, cut = cosine_matrix(points), cosine_matrix(points[:, :32])
    upper = np.triu_indices(60, 1)
    assert found[0].spearman == pytest.approx(spearmanr(full[upper], cut[upper]).statistic)
    near = [[set(np.argsort(-row)[1:11]) for row in matrix] for matrix in (full, cut)]
    kept = np.mean([len(a & b) / 10 for a, b in zip(*near, strict=True)])
    assert found[0].neighbours == pytest.approx(kept)
    assert 0.5 < kept < 1


def test_truncation_of_many_texts_is_sampled_by_seed():
    points = lopsided(1200, 40)
    first, again, other = (truncation(points, dims=[4], seed=seed)[0] for seed in (0, 0, 1))
    assert first == again
    assert first != other
    assert first.spearman == pytest.approx(other.spearman, abs=0.02)
    assert [point.dim for point in truncation(points[:50, :16])] == [16]  # narrower than the first power of two


# -- degenerate inputs -----------------------------------------------------------------------------------------------

PAIRS = np.array([[0, 1], [2, 3]])


@pytest.mark.parametrize(
    ("points", "expected"),
    [
        (sphere(1, 4), "There are 1 distinct texts; 10 neighbours of each need at least 12"),
        (np.ones((20, 4)), "All embeddings are equal"),
        (np.zeros((20, 4)), "20 of 20 embeddings are zero or not finite, the first is row 0"),
        (np.vstack([sphere(20, 4), [[np.nan] * 4]]), "1 of 21 embeddings are zero or not finite, the first is row 20"),
        (np.arange(1.0, 21)[:, None], "compares dimensions, and the embeddings have 1"),
    ],
)
def test_what_has_no_geometry_is_an_error(points, expected):
    with pytest.raises(GeometryError, match=re.escape(expected)):
        measure(points, PAIRS, PAIRS)


def test_no_pairs():
    with pytest.raises(GeometryError, match="no positive pairs"):
        measure(sphere(20, 4), PAIRS[:0], PAIRS)
    with pytest.raises(GeometryError, match="no random pairs"):
        measure(sphere(20, 4), PAIRS, PAIRS[:0])


def test_measure_puts_all_together_and_keeps_norms():
    points = lopsided(40, 33).astype(np.float32)
    found = measure(points, PAIRS, PAIRS[:, ::-1] + 4)
    unit = unit_rows(points)
    assert (found.texts, found.dim, found.positive_pairs, found.random_pairs) == (40, 33, 2, 2)
    assert found.alignment == pytest.approx(alignment(unit[[0, 2]], unit[[1, 3]]))
    assert found.cosines.random_mean == pytest.approx(np.mean([unit[5] @ unit[4], unit[7] @ unit[6]]))
    norms = np.linalg.norm(points, axis=1)
    assert (found.norms.min, found.norms.max) == pytest.approx((norms.min(), norms.max()))
    assert found.norms.std == pytest.approx(norms.std(), rel=1e-4)
    scaled = measure(3 * points, PAIRS, PAIRS[:, ::-1] + 4)
    assert scaled.norms.mean == pytest.approx(3 * found.norms.mean)
    assert scaled.isoscore == pytest.approx(found.isoscore)
    json.dumps(found.to_dict(), allow_nan=False)


# -- texts and pairs -------------------------------------------------------------------------------------------------


def text(value):
    return Text("", "", value)


def pair_task(pairs, scores):
    return PairTask("pairs", "pairs.tsv", [(text(a), text(b)) for a, b in pairs], np.array(scores, dtype=float))


def strings(cloud, pairs):
    return {(cloud.texts[a][1].text, cloud.texts[b][1].text) for a, b in pairs.tolist()}


def test_positive_pairs_are_those_from_a_share_of_the_score_range():
    task = pair_task([("a", "b"), ("c", "d"), ("e", "f"), ("g", "h"), ("i", "i")], [0, 5, 4, 3.9, 5])
    cloud = sample_cloud(task)
    assert strings(cloud, cloud.positives) == {("c", "d"), ("e", "f")}
    assert cloud.counts == {"texts": 9, "positive_pairs": 2, "identical_pairs": 1}
    assert {side for side, _ in cloud.texts} == {"query"}
    lower = sample_cloud(task, positive_from=0.7)
    assert strings(lower, lower.positives) == {("c", "d"), ("e", "f"), ("g", "h")}


def test_random_pairs_are_never_labelled_pairs():
    names = [f"t{i}" for i in range(12)]
    pairs = [(names[i], names[i + 1]) for i in range(11)]
    cloud = sample_cloud(pair_task(pairs, [i % 2 for i in range(11)]))
    found = strings(cloud, cloud.random_pairs)
    assert not found & {pair[::order] for pair in pairs for order in (1, -1)}
    assert all(a != b and (b, a) not in found for a, b in found)
    firsts = {pair[0] for number, pair in enumerate(pairs) if number % 2}
    possible = {frozenset((a, b)) for a in firsts for b in names if a != b} - {frozenset(pair) for pair in pairs}
    assert {frozenset(pair) for pair in found} == possible  # few enough to be taken all


def retrieval_task(queries=30, documents=200):
    return RetrievalTask(
        "search",
        "search/",
        {f"q{i}": text(f"query {i}") for i in range(queries)},
        {f"d{i}": text(f"document {i}") for i in range(documents)},
        {f"q{i}": {f"d{i}": 1, f"d{i + 1}": 0} for i in range(queries)},
    )


def test_retrieval_pairs_a_query_with_its_documents_and_keeps_the_sides():
    cloud = sample_cloud(retrieval_task(), max_pairs=50)
    assert len(cloud.texts) == 230
    assert strings(cloud, cloud.positives) == {(f"query {i}", f"document {i}") for i in range(30)}
    assert len(cloud.random_pairs) == 50
    labelled = {(f"query {i}", f"document {i + j}") for i in range(30) for j in (0, 1)}
    assert not strings(cloud, cloud.random_pairs) & labelled
    for pairs in (cloud.positives, cloud.random_pairs):
        assert {(cloud.texts[a][0], cloud.texts[b][0]) for a, b in pairs.tolist()} == {("query", "document")}


def test_reranking_lists_give_pairs_too():
    rows = [RerankingRow(text(f"q{i}"), [text(f"good {i}"), text(f"bad {i}")], [1, 0]) for i in range(5)]
    cloud = sample_cloud(RerankingTask("lists", "lists.jsonl", rows))
    assert strings(cloud, cloud.positives) == {(f"q{i}", f"good {i}") for i in range(5)}
    assert not strings(cloud, cloud.random_pairs) & {(f"q{i}", f"bad {i}") for i in range(5)}


def test_caps_hold_and_the_seed_decides():
    task = retrieval_task()
    clouds = [sample_cloud(task, max_texts=24, max_pairs=10, seed=seed) for seed in (0, 0, 1)]
    for cloud in clouds:
        assert (len(cloud.texts), len(cloud.positives), len(cloud.random_pairs)) == (24, 10, 10)
        assert len(set(cloud.texts)) == 24
    assert clouds[0].texts == clouds[1].texts
    assert (clouds[0].random_pairs == clouds[1].random_pairs).all()
    assert clouds[0].texts != clouds[2].texts
    few = sample_cloud(task, max_texts=12)
    assert (len(few.texts), len(few.positives)) == (12, 6)


def test_data_without_pairs_is_an_error():
    with pytest.raises(GeometryError, match="pairs: no pair of different texts counts as positive"):
        sample_cloud(pair_task([("a", "a"), ("b", "c")], [1, 0]))
    with pytest.raises(GeometryError, match="no two texts that are not labelled as a pair"):
        sample_cloud(pair_task([("a", "b"), ("a", "b")], [1, 0]))
    with pytest.raises(ValueError, match="max_texts=1"):
        sample_cloud(retrieval_task(), max_texts=1)


# -- a model ---------------------------------------------------------------------------------------------------------

TEMPLATE = InstructionTemplate(query="query: ", document="passage: ")


def word_cloud(texts=20):
    sided = [
        ("query" if i % 2 else "document", text(" ".join(f"w{i * j % 200}" for j in range(1, 3 + i % 5))))
        for i in range(texts)
    ]
    return TextCloud("words", sided, PAIRS, PAIRS + 4, {"texts": texts, "positive_pairs": 2, "identical_pairs": 0})


def test_each_text_takes_the_prompt_of_its_side(embedding_pass, tiny_model):
    cloud = word_cloud()
    embedded = embed_cloud(embedding_pass, TEMPLATE, cloud)
    prompts = {"query": "query: ", "document": "passage: "}
    expected = tiny_model.encode([prompts[side] + one.text for side, one in cloud.texts])
    np.testing.assert_allclose(embedded.embeddings, expected, atol=1e-5)


def test_token_similarity_against_the_obvious_version(embedding_pass, tiny_model):
    cloud = word_cloud()
    prompts = {"query": "query: ", "document": "passage: "}
    means = []
    for side, one in cloud.texts:
        with torch.inference_mode():
            states = tiny_model.encode(prompts[side] + one.text, output_value="token_embeddings").cpu().double()
        rows = torch.nn.functional.normalize(states, dim=-1)
        means.append(np.mean([float(rows[a] @ rows[b]) for a in range(len(rows)) for b in range(len(rows)) if a != b]))
    progress = []
    embedded = embed_cloud(embedding_pass, TEMPLATE, cloud, on_progress=progress.append)
    assert embedded.token_similarity == pytest.approx(np.mean(means), abs=1e-5)
    assert sum(progress) == len(cloud.texts)
    assert not embedding_pass.transformer._forward_hooks


def test_errors_name_the_model_and_the_data(embedding_pass):
    cloud = word_cloud(8)
    with pytest.raises(GeometryError, match="mine on words: There are 8 distinct texts"):
        measure_model(embedding_pass, TEMPLATE, cloud, "mine")


def test_page_and_charts_of_several_models(embedding_pass):
    cloud = word_cloud()
    models = [
        measure_model(embedding_pass, TEMPLATE, cloud, f"/long/way/to/the/{name}/model") for name in ("a<b", "$c")
    ]
    data = DataGeometry("词 words/1", cloud.counts, models)
    page = geometry_page([data])
    assert "<th>a&lt;b/model</th>" in page
    assert page.count('src="data:image/png;base64,') == len(charts(data)) == 3
    assert not re.search(r"(src|href)=\"(?!data:)|<script|@import|url\(", page)
    assert f"{models[0].geometry.uniformity:.4f}" in page
    assert file_name(data.data, "cosines") == "词-words-1-cosines.png"
    assert file_name("///", "cosines") == "data-cosines.png"
    assert json.loads(json.dumps(data.to_dict(), allow_nan=False))["models"][1]["settings"]["precision"] == "float32"
