"""Rows that lie on disk: the same answer as from memory, a part at a time, and clear words when damaged."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp
from probe_data import problem

from interp import cluster
from interp.probe import LatentSummary, Sparse1DProbe
from interp.probe.files import RowShards

X, Y = problem(3)


def mapped(folder: Path, x: sp.csr_array = X, index_type: type = np.int64) -> Path:
    folder.mkdir(exist_ok=True)
    np.save(folder / "data.npy", x.data)
    np.save(folder / "indices.npy", x.indices.astype(index_type))
    np.save(folder / "indptr.npy", x.indptr.astype(index_type))
    np.save(folder / "shape.npy", x.shape)
    return folder


def labels(path: Path, y: np.ndarray = Y) -> Path:
    if path.suffix == ".npy":
        np.save(path, y)
    else:
        y.astype(np.uint8).tofile(path)
    return path


@pytest.mark.parametrize("index_type", [np.int32, np.int64])
@pytest.mark.parametrize("name", ["labels.bin", "labels.npy"])
def test_a_mapped_code_gives_its_rows_in_parts(tmp_path: Path, index_type: type, name: str) -> None:
    rows = RowShards(mapped(tmp_path / "code", X, index_type), labels(tmp_path / name), shard_rows=97)
    for _ in range(2):  # as often as one likes
        parts = list(rows)
        assert [x.shape for x, _ in parts] == [(97, 12)] * 6 + [(18, 12)]
        x = sp.vstack([x for x, _ in parts])
        assert (x != X).nnz == 0
        assert x.dtype == X.dtype
        np.testing.assert_array_equal(np.concatenate([y for _, y in parts]), Y)


def test_everything_that_takes_shards_takes_them(tmp_path: Path) -> None:
    rows = RowShards(mapped(tmp_path / "code"), labels(tmp_path / "labels.bin"), shard_rows=100)
    whole, parts = Sparse1DProbe().fit(X, Y), Sparse1DProbe().fit(rows)
    np.testing.assert_allclose(parts.coef_, whole.coef_, rtol=0, atol=1e-12)
    np.testing.assert_array_equal(parts.confusion(rows).tp, whole.confusion(X, Y).tp)
    np.testing.assert_allclose(parts.metrics(rows).auroc, whole.metrics(X, Y).auroc, rtol=0, atol=1e-12)
    assert parts.certify(rows).max() <= 1e-5


def test_a_file_is_one_shard(tmp_path: Path) -> None:
    sp.save_npz(tmp_path / "token_acts.npz", X)
    ((x, y),) = RowShards(tmp_path / "token_acts.npz", labels(tmp_path / "labels.bin"))
    assert (x != X).nnz == 0
    np.testing.assert_array_equal(y, Y)


def test_no_more_than_a_part_is_ever_in_memory(tmp_path: Path) -> None:
    rows = RowShards(mapped(tmp_path / "code"), labels(tmp_path / "labels.bin"), shard_rows=10)
    for x, y in rows:
        assert not any(isinstance(a, np.memmap) for a in (x.data, x.indices, x.indptr))
        assert x.nnz < 10 * 12
        assert isinstance(y, np.memmap)


def test_more_events_than_32_bits_count(tmp_path: Path) -> None:
    """The offsets of a code of 2³² events, of which only the last rows are there: the file has a hole."""
    n = 2**32
    folder = tmp_path / "code"
    folder.mkdir()
    for name, dtype in (("data", np.float32), ("indices", np.int32)):
        array = np.lib.format.open_memmap(folder / f"{name}.npy", "w+", dtype, (n,))
        array[-2:] = 1
        del array
    # One row with all that is not looked at, and two with an event each.
    np.save(folder / "indptr.npy", np.array([0, 0, n - 2, n - 1, n], np.int64))
    np.save(folder / "shape.npy", (4, 3))
    rows = iter(RowShards(folder, labels(tmp_path / "labels.bin", np.arange(4)), shard_rows=1))
    assert next(rows)[0].nnz == 0
    rows = RowShards(folder, tmp_path / "labels.bin", shard_rows=2)
    # Only the last shard is made: the first would hold the hole.
    indptr = np.load(folder / "indptr.npy")
    np.save(folder / "indptr.npy", np.concatenate([[n - 2] * 2, indptr[2:]]))
    *_, (x, y) = rows
    np.testing.assert_array_equal(x.toarray(), [[0, 1, 0], [0, 1, 0]])
    np.testing.assert_array_equal(y, [2, 3])


def test_a_cluster_sums_mapped_shards_and_files_alike(tmp_path: Path) -> None:
    pairs = []
    for k, (start, stop) in enumerate([(0, 150), (150, 300), (300, 450), (450, 600)]):
        x, y = X[start:stop], labels(tmp_path / f"labels_{k}.bin", Y[start:stop])
        if k % 2:
            sp.save_npz(tmp_path / f"token_acts_{k}.npz", x)
            pairs.append((tmp_path / f"token_acts_{k}.npz", y))
        else:
            pairs.append((mapped(tmp_path / f"code_{k}", x), y))
    summary = cluster.merge(cluster.run(cluster.plan(pairs, tmp_path / "run", n_tasks=2), executor="inline"))
    expected = LatentSummary(12).add(X, Y)
    np.testing.assert_allclose(summary.label_sums, expected.label_sums, rtol=1e-12)
    np.testing.assert_array_equal(summary.n_events, expected.n_events)


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda f: (f / "indptr.npy").unlink(), r"no indptr\.npy in .*expected data, indices, indptr, shape"),
        (lambda f: (f / "data.npy").write_bytes(b"abc"), r"data\.npy is damaged"),
        (lambda f: np.save(f / "data.npy", np.zeros((3, 3))), r"shape \(3, 3\), expected one dimension"),
        (lambda f: np.save(f / "data.npy", np.zeros(3)), r"no CSR matrix.* 3 values"),
        (lambda f: np.save(f / "shape.npy", (7, 12)), r"no CSR matrix: shape 7 × 12 with 601 row offsets"),
        (lambda f: np.save(f / "indices.npy", np.full(X.nnz, 12)), r"column 12 in row 0, outside 0 … 11"),
        (lambda f: np.save(f / "indices.npy", np.full(X.nnz, -1)), r"from row 0 on, has column -1"),
        (lambda f: np.save(f / "indptr.npy", np.r_[X.indptr[-1], X.indptr[1:]]), r"indptr falls at row 0"),
        (lambda f: np.save(f / "data.npy", np.array([{}] * X.nnz)), r"damaged|pickle"),
    ],
)
def test_what_is_damaged_is_named(tmp_path: Path, spoil, says: str) -> None:
    folder = mapped(tmp_path / "code")
    spoil(folder)
    with pytest.raises((ValueError, FileNotFoundError), match=says):
        list(RowShards(folder, labels(tmp_path / "labels.bin")))


def test_labels_have_to_fit(tmp_path: Path) -> None:
    folder = mapped(tmp_path / "code")
    with pytest.raises(ValueError, match=r"599 labels, x has 600 rows"):
        list(RowShards(folder, labels(tmp_path / "labels.bin", Y[1:])))
    with pytest.raises(FileNotFoundError, match="no labels"):
        list(RowShards(folder, tmp_path / "none.bin"))
    with pytest.raises(FileNotFoundError, match="no sparse code"):
        RowShards(tmp_path / "nothing", tmp_path / "labels.bin")
    with pytest.raises(ValueError, match="shard_rows must be at least 1, got 0"):
        RowShards(folder, tmp_path / "labels.bin", shard_rows=0)
