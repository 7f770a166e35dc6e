"""Files: written whole, read back equal, refused when damaged, and understood by others."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from probe_data import problem
from probe_reference import loss
from test_probe_summary import same

from interp.probe import LatentSummary, Sparse1DProbe
from interp.probe.files import load_csr, load_labels

X, Y = problem(0, n_rows=300, n_latents=5, n_classes=4, signed=True)
STATE = ("coef_", "intercept_", "status_", "n_iter_", "n_fail_", "lambda_", "loss_")


def summary() -> LatentSummary:
    return LatentSummary(5).add(X, Y)


def test_a_summary_comes_back_as_it_was(tmp_path: Path) -> None:
    path = summary().save(tmp_path / "deep" / "summary.safetensors")
    back = LatentSummary.load(path)
    same(back, summary(), rtol=0)
    for a, b in zip(back.nodes(), summary().nodes(), strict=True):
        assert np.array_equal(a, b)
    # It goes on growing like the one that was saved.
    same(back.add(X, Y + 2), summary().add(X, Y + 2))
    assert back.n_classes == 6
    fixed = LatentSummary.load(LatentSummary(5, 4).add(X, Y).save(tmp_path / "fixed"))
    with pytest.raises(ValueError, match="outside"):
        fixed.add(X, Y + 2)


def test_merging_loaded_parts_is_the_whole(tmp_path: Path) -> None:
    for k in range(3):
        LatentSummary(5, 4).add(X[k::3], Y[k::3]).save(tmp_path / f"{k}.safetensors")
    merged = LatentSummary(5, 4)
    for k in (2, 0, 1):
        merged.merge(LatentSummary.load(tmp_path / f"{k}.safetensors"))
    same(merged, summary())


def test_an_empty_summary_can_be_saved_and_merged(tmp_path: Path) -> None:
    empty = LatentSummary.load(LatentSummary(5, 4).save(tmp_path / "empty"))
    same(empty.merge(summary()), summary())
    with pytest.raises(ValueError, match="nothing to fit"):
        Sparse1DProbe().fit_summary(LatentSummary(5, 4))


def test_a_probe_comes_back_as_it_was(tmp_path: Path) -> None:
    probe = Sparse1DProbe(tol=1e-7, compute_dtype=torch.float32, class_slab_size=np.int64(3)).fit(X, Y)
    back = Sparse1DProbe.load(probe.save(tmp_path / "probe.safetensors"))
    for name in STATE:
        np.testing.assert_array_equal(getattr(back, name), getattr(probe, name))
    assert back.get_params() == probe.get_params()
    assert back.n_features_in_ == 5
    assert back.best_latents(2).equals(probe.best_latents(2))
    assert np.array_equal(back.confusion(X, Y).tp, probe.confusion(X, Y).tp)
    np.testing.assert_array_equal(back.certify(X, Y).scaled, probe.certify(X, Y).scaled)
    assert len(back.history_) == 0
    with pytest.raises(ValueError, match="holds no data"):
        back.polish(X, Y)
    np.testing.assert_array_equal(back.loss_, probe.loss_)
    again = back.fit(X, Y)
    np.testing.assert_allclose(again.coef_, probe.coef_, rtol=1e-9)


def test_saving_needs_a_fit(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not fitted"):
        Sparse1DProbe().save(tmp_path / "probe")
    assert list(tmp_path.iterdir()) == []


def _files(folder: Path) -> dict[str, tuple[Path, object]]:
    return {
        "summary": (summary().save(folder / "summary"), LatentSummary.load),
        "probe": (Sparse1DProbe().fit(X, Y).save(folder / "probe"), Sparse1DProbe.load),
        "csr": (_save_csr(folder / "token_acts.npz"), load_csr),
    }


def _save_csr(path: Path) -> Path:
    sp.save_npz(path, sp.csr_matrix(X), compressed=path.stem.endswith("s"))
    return path


@pytest.mark.parametrize("kind", ["summary", "probe", "csr"])
def test_truncated_files_are_refused_by_name(kind: str, tmp_path: Path) -> None:
    path, load = _files(tmp_path)[kind]
    whole = path.read_bytes()
    for size in (0, 1, 7, 8, 100, len(whole) // 2, len(whole) - 9, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match=path.name):
            load(path)


@pytest.mark.parametrize("kind", ["summary", "probe", "csr"])
def test_one_flipped_bit_anywhere_is_refused(kind: str, tmp_path: Path) -> None:
    """A wrong number read from a damaged file would be worse than no number."""
    path, load = _files(tmp_path)[kind]
    whole = bytearray(path.read_bytes())
    rng = np.random.default_rng(0)
    places = {*range(0, min(700, len(whole)), 3), *rng.integers(0, len(whole), 150).tolist()}
    accepted = []
    for at in sorted(places):
        damaged = bytearray(whole)
        damaged[at] ^= 1 << int(rng.integers(8))
        path.write_bytes(damaged)
        if _loads(load, path):
            accepted.append(at)
    if kind == "csr":  # a ZIP archive has bytes that nobody reads (dates, attributes)
        path.write_bytes(whole)
        want = load(path)
        for at in accepted:
            damaged = bytearray(whole)
            damaged[at] ^= 1
            path.write_bytes(damaged)
            if _loads(load, path):
                assert (load(path) != want).nnz == 0
    else:
        assert accepted == []


def _loads(load: object, path: Path) -> bool:
    """Whether a file is accepted; if not, it must be refused by name."""
    try:
        load(path)
    except ValueError as error:
        if path.name not in str(error):
            raise
        return False
    return True


@pytest.mark.parametrize("load", [LatentSummary.load, Sparse1DProbe.load, load_csr, load_labels])
def test_missing_files_are_named(load: object, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        load(tmp_path / "nowhere")


def test_files_of_another_kind_are_refused(tmp_path: Path) -> None:
    files = _files(tmp_path)
    with pytest.raises(ValueError, match=r"interp\.Sparse1DProbe.*expected 'interp\.LatentSummary'"):
        LatentSummary.load(files["probe"][0])
    with pytest.raises(ValueError, match=r"interp\.LatentSummary.*expected 'interp\.Sparse1DProbe'"):
        Sparse1DProbe.load(files["summary"][0])
    for path in (files["probe"][0], files["summary"][0]):
        with pytest.raises(ValueError, match=path.name):
            load_csr(path)
    for load in (LatentSummary.load, Sparse1DProbe.load):
        with pytest.raises(ValueError, match="token_acts"):
            load(files["csr"][0])
    from safetensors.numpy import save_file

    save_file({"a": np.zeros(3)}, tmp_path / "foreign")
    with pytest.raises(ValueError, match="foreign"):
        LatentSummary.load(tmp_path / "foreign")


def test_a_failed_write_leaves_the_old_file_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import safetensors.numpy

    path = summary().save(tmp_path / "summary")
    before = path.read_bytes()

    def full_disk(tensors: object, name: Path, **_: object) -> None:
        Path(name).write_bytes(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr(safetensors.numpy, "save_file", full_disk)
    with pytest.raises(OSError, match="no space"):
        summary().save(path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["summary"]


# ---------------------------------------------------------------------------- neighbours' files


def test_token_acts_and_labels_as_saev_writes_them(tmp_path: Path) -> None:
    """`scipy.sparse.save_npz` of a csr_matrix, and raw uint8, one byte per row."""
    for compressed in (True, False):
        sp.save_npz(tmp_path / "token_acts.npz", sp.csr_matrix(X), compressed=compressed)
        x = load_csr(tmp_path / "token_acts.npz")
        assert x.shape == X.shape
        assert x.dtype == X.dtype
        assert (x != X).nnz == 0
    Y.astype(np.uint8).tofile(tmp_path / "labels.bin")
    y = load_labels(tmp_path / "labels.bin", 300)
    assert y.dtype == np.uint8
    assert np.array_equal(y, Y)
    np.testing.assert_array_equal(Sparse1DProbe().fit(x, y).coef_, Sparse1DProbe().fit(X, Y).coef_)
    with pytest.raises(ValueError, match=r"300 labels, x has 299 rows"):
        load_labels(tmp_path / "labels.bin", 299)
    (tmp_path / "labels.bin").write_bytes(b"")
    with pytest.raises(ValueError, match="empty"):
        load_labels(tmp_path / "labels.bin")
    sp.save_npz(tmp_path / "csc.npz", sp.csc_matrix(X))
    with pytest.raises(ValueError, match="CSR"):
        load_csr(tmp_path / "csc.npz")


def test_nothing_is_ever_unpickled(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple:
            return (Path.touch, (tmp_path / "sprung",))

    trap = np.empty(1, object)
    trap[0] = Trap()
    np.savez(tmp_path / "trap.npz", data=trap, indices=trap, indptr=trap, shape=trap, format=trap)
    with pytest.raises(ValueError, match="trap"):
        load_csr(tmp_path / "trap.npz")
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("threshold", [None, 0.2])
def test_probe1d_metrics_hold_what_their_readers_expect(tmp_path: Path, threshold: float | None) -> None:
    probe = Sparse1DProbe().fit(X[:200], Y[:200])
    given = {} if threshold is None else {"threshold": threshold}
    path = probe.write_metrics(tmp_path / "probe1d_metrics.npz", X[200:], Y[200:], **given)
    least = np.log((threshold or 0.5) / (1 - (threshold or 0.5)))
    with np.load(path, allow_pickle=False) as file:
        got = {name: file[name] for name in file.files}
    assert set(got) == {"loss", "weights", "biases", "tp", "fp", "tn", "fn"}
    assert all(a.shape == (5, 4) for a in got.values())
    np.testing.assert_array_equal(got["weights"], probe.coef_)
    np.testing.assert_array_equal(got["biases"], probe.intercept_)
    full = X[200:].toarray().astype(np.float64)
    for l in range(5):
        for c in range(4):
            own = Y[200:] == c
            positive = probe.intercept_[l, c] + probe.coef_[l, c] * full[:, l] > least
            cells = (
                (own & positive).sum(),
                (~own & positive).sum(),
                (~own & ~positive).sum(),
                (own & ~positive).sum(),
            )
            assert tuple(int(got[k][l, c]) for k in ("tp", "fp", "tn", "fn")) == tuple(map(int, cells))
            want = loss(full[:, l], own.astype(float), probe.intercept_[l, c], probe.coef_[l, c])
            assert got["loss"][l, c] == pytest.approx(want, rel=1e-6, abs=1e-9)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["probe1d_metrics.npz"]
    shards = ((X[at], Y[at]) for at in (slice(200, 260), slice(260, None)))  # can be read once
    with np.load(probe.write_metrics(path, shards, **given), allow_pickle=False) as file:
        assert all(np.array_equal(file[name], got[name]) for name in got if name != "loss")
        np.testing.assert_allclose(file["loss"], got["loss"], rtol=1e-7, atol=1e-9)


def test_tables_go_to_csv_and_come_back(tmp_path: Path) -> None:
    import pandas as pd

    probe = Sparse1DProbe().fit(X, Y)
    for name, table in (("pairs", probe.metrics(X, Y).frame()), ("best", probe.best_latents(2))):
        table.to_csv(tmp_path / f"{name}.csv", index=False)
        back = pd.read_csv(tmp_path / f"{name}.csv")
        pd.testing.assert_frame_equal(back, table, check_dtype=False)
