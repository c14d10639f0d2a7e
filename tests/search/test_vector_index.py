import numpy as np
import pytest

from codiemb.search import FLAT_LIMIT, HNSW_LIMIT, SearchIndexError, VectorIndex, choose_kind, vectors
from codiemb.search.finders import Finder


def clustered(count, dimension=64, clusters=50, seed=0):
    """Unit vectors around centres, as embeddings lie."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(99).standard_normal((clusters, dimension))
    rows = centres[rng.integers(0, clusters, count)] + rng.standard_normal((count, dimension))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def with_duplicates(count=3000):
    """A third of the rows are one of 5 vectors, so that many scores are equal."""
    rng = np.random.default_rng(1)
    rows = clustered(count)
    rows[rng.permutation(count)[: count // 3]] = rows[rng.integers(0, 5, count // 3)]
    return rows


def reference(rows, queries, k):
    """Brute force in float64; of equal scores the lower id first."""
    exact = np.stack([np.einsum("nd,d->n", rows.astype(np.float64), query.astype(np.float64)) for query in queries])
    ids = np.argsort(-exact, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(exact, ids, axis=1).astype(np.float32), ids


def recall(found, expected):
    return np.mean([len(set(a) & set(b)) / len(b) for a, b in zip(found, expected, strict=True)])


@pytest.mark.parametrize("queries", [1, 7, 40])  # few and many are searched in different ways
@pytest.mark.parametrize("block_values", [64 * 700, 1 << 26])
def test_exact_search_is_brute_force(monkeypatch, queries, block_values):
    monkeypatch.setattr(vectors, "_BLOCK_VALUES", block_values)
    rows = with_duplicates()
    asked = np.concatenate([rows[: queries // 2], clustered(queries - queries // 2, seed=2)])
    scores, ids = VectorIndex.build(rows).search(asked, 10)
    expected_scores, expected = reference(rows, asked, 10)
    np.testing.assert_array_equal(ids, expected)
    np.testing.assert_array_equal(scores, expected_scores)


def test_equal_vectors_rank_by_id_though_all_tie():
    rows = np.tile(clustered(1), (2000, 1))
    for queries in (rows[:1], rows[:30]):
        scores, ids = VectorIndex.build(rows).search(queries, 20)
        np.testing.assert_array_equal(ids, np.tile(np.arange(20), (len(queries), 1)))
        assert len(np.unique(scores)) == 1


def test_inexact_candidates_do_not_change_the_result(monkeypatch):
    """As where a GPU multiplies in TensorFloat32: the error is seen, and more candidates are taken."""
    rows, asked = with_duplicates(), clustered(5, seed=2)

    def coarse(queries, block, count, device):
        noisy = (queries @ block.T) + np.random.default_rng(0).normal(0, 3e-3, (len(queries), len(block)))
        ids = np.argsort(-noisy, axis=1)[:, :count]
        return np.take_along_axis(noisy, ids, axis=1).astype(np.float32), ids

    monkeypatch.setattr(vectors, "_nearest", coarse)
    _, ids = VectorIndex.build(rows).search(asked, 10)
    np.testing.assert_array_equal(ids, reference(rows, asked, 10)[1])


@pytest.mark.parametrize(("kind", "floor"), [("hnsw", 0.98), ("ivf", 0.98)])
def test_approximate_search_finds_most_and_scores_exactly(kind, floor, tmp_path):
    rows, asked = clustered(12000), clustered(100, seed=2)
    index = VectorIndex.build(np.array_split(rows, 5), kind=kind, directory=tmp_path)
    scores, ids = index.search(asked, 10)
    expected_scores, expected = reference(rows, asked, 10)
    assert recall(ids, expected) >= floor
    same = ids == expected
    np.testing.assert_array_equal(scores[same], expected_scores[same])
    np.testing.assert_array_equal(np.sort(-scores, axis=1), -scores)
    # Negative control: the measure sees neighbours that are missing.
    assert recall(np.random.default_rng(0).integers(0, 12000, ids.shape), expected) < 0.1

    again = VectorIndex.load(tmp_path)
    assert (again.kind, len(again), again.dimension) == (kind, 12000, 64)
    one_by_one = [again.search(query[None], 10) for query in asked]
    np.testing.assert_array_equal(np.concatenate([found for _, found in one_by_one]), ids)
    np.testing.assert_array_equal(np.concatenate([found for found, _ in one_by_one]), scores)


@pytest.mark.parametrize("kind", ["flat", "hnsw", "ivf"])
@pytest.mark.parametrize("count", [1, 2, 100])
def test_k_larger_than_the_corpus_gives_all_of_it(kind, count):
    rows = clustered(count)
    scores, ids = VectorIndex.build(rows, kind=kind).search(rows[:3], 500)
    assert scores.shape == ids.shape == (min(count, 3), count)
    np.testing.assert_array_equal(np.sort(ids, axis=1), np.tile(np.arange(count), (min(count, 3), 1)))
    np.testing.assert_array_equal(ids[:, 0], np.arange(min(count, 3)))


def test_an_approximate_index_that_finds_too_few_is_searched_exactly():
    rows = clustered(4000)
    index = VectorIndex.build(rows, kind="ivf")
    index._finder.index.nprobe = 1
    _, ids = index.search(rows[:4], 1500)
    np.testing.assert_array_equal(ids, reference(rows, rows[:4], 1500)[1])


def test_kind_follows_the_number_of_vectors():
    assert [choose_kind(count) for count in (1, FLAT_LIMIT, FLAT_LIMIT + 1, HNSW_LIMIT, HNSW_LIMIT + 1)] == [
        "flat",
        "flat",
        "hnsw",
        "hnsw",
        "ivf",
    ]
    assert VectorIndex.build(clustered(10)).kind == "flat"


@pytest.mark.parametrize("kind", ["flat", "ivf"])
def test_blocks_memory_and_disk_make_the_same_index(kind, tmp_path):
    rows, asked = clustered(2000), clustered(20, seed=2)
    (tmp_path / "saved").mkdir()
    (tmp_path / "built").mkdir()
    whole = VectorIndex.build(rows, kind=kind)
    whole.save(tmp_path / "saved")
    VectorIndex.build((rows[i : i + 300] for i in range(0, 2000, 300)), kind=kind, directory=tmp_path / "built")
    expected = whole.search(asked, 5)
    for name in ("saved", "built"):
        index = VectorIndex.load(tmp_path / name)
        np.testing.assert_array_equal(np.load(tmp_path / name / "vectors.npy"), rows)
        for got, wanted in zip(index.search(asked, 5), expected, strict=True):
            np.testing.assert_array_equal(got, wanted)
    files = {path.name for path in (tmp_path / "built").iterdir()}
    assert files == {"vectors.npy"} | ({"ivf.faiss"} if kind == "ivf" else set())


def test_no_queries_give_no_rows():
    scores, ids = VectorIndex.build(clustered(30)).search(np.zeros((0, 64), np.float32), 5)
    assert scores.shape == ids.shape == (0, 5)


@pytest.mark.parametrize(
    ("blocks", "message"),
    [
        ([], "no vectors"),
        ([np.zeros((0, 4), np.float32)], "no vectors"),
        ([np.zeros((2, 4), np.float32), np.zeros((2, 3), np.float32)], r"shape \(2, 3\), expected \(any, 4\)"),
        ([np.zeros(4, np.float32)], "expected"),
        ([np.array([[1.0, np.nan]], np.float32)], "not finite"),
    ],
)
def test_blocks_that_make_no_index(blocks, message, tmp_path):
    with pytest.raises(SearchIndexError, match=message):
        VectorIndex.build(blocks)
    with pytest.raises(SearchIndexError, match=message):
        VectorIndex.build(blocks, directory=tmp_path)


def test_bad_searches():
    index = VectorIndex.build(clustered(30))
    with pytest.raises(SearchIndexError, match=r"shape \(2, 3\), expected \(any, 64\)"):
        index.search(np.zeros((2, 3), np.float32), 5)
    with pytest.raises(SearchIndexError, match="not finite"):
        index.search(np.full((1, 64), np.inf, np.float32), 5)
    with pytest.raises(ValueError, match="k=0"):
        index.search(clustered(1), 0)


def test_damaged_files(tmp_path):
    VectorIndex.build(clustered(300), kind="ivf", directory=tmp_path)
    finder = tmp_path / "ivf.faiss"
    whole = finder.read_bytes()
    finder.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(SearchIndexError, match=r"ivf\.faiss: damaged"):
        VectorIndex.load(tmp_path)
    finder.write_bytes(whole)
    np.save(tmp_path / "vectors.npy", clustered(299))
    with pytest.raises(SearchIndexError, match=r"holds 300 vectors .* shape \(299, 64\)"):
        VectorIndex.load(tmp_path)
    (tmp_path / "vectors.npy").write_bytes(b"\x93NUMPY")
    with pytest.raises(SearchIndexError, match=r"vectors\.npy: missing or damaged"):
        VectorIndex.load(tmp_path)


def test_a_finder_that_cannot_be_written_is_an_os_error(tmp_path):
    with pytest.raises(OSError, match="cannot be written"):
        Finder.build(clustered(50), "ivf").write(tmp_path / "gone")
