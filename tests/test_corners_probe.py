"""Corners of the probe: lines that no other test reaches."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp
from probe_data import separable
from probe_reference import dense, loss

import interp.probe.summary as summary_module
from interp.probe import Sparse1DProbe
from interp.probe.data import check_shard, shards
from interp.probe.files import RowShards
from interp.probe.losses import exact_losses, losses
from interp.probe.summary import LatentSummary


def test_losses_that_the_nodes_cannot_tell_are_taken_from_the_events() -> None:
    x, y = separable(0.02)
    coef, intercept = np.array([[-400.0, 400.0]]), np.array([[404.0, -404.0]])
    full, positive = dense(x, y, 2)
    wanted = [[loss(full[:, 0], positive[:, c], intercept[0, c], coef[0, c]) for c in range(2)]]
    by_nodes, bound = losses(LatentSummary(1, 2).add(x, y), coef, intercept)
    assert (np.abs(by_nodes - wanted) > 1e-6 * np.abs(wanted)).all()
    assert (np.abs(by_nodes - wanted) <= bound).all()
    np.testing.assert_allclose(exact_losses(x, y, coef, intercept), wanted, rtol=1e-8)


def test_there_is_no_loss_of_no_rows() -> None:
    with pytest.raises(ValueError, match="no labelled row"):
        exact_losses(sp.csr_array((0, 1)), np.zeros(0, dtype=int), np.zeros((1, 2)), np.zeros((1, 2)))


def test_losses_of_shards_that_come_once() -> None:
    x, y = separable(0.5)
    coef, intercept = np.array([[-40.0, 40.0]]), np.array([[40.0, -40.0]])
    parts = [(x[:100], y[:100]), (x[100:], y[100:])]
    np.testing.assert_allclose(
        exact_losses(iter(parts), None, coef, intercept), exact_losses(x, y, coef, intercept), rtol=1e-9
    )


def test_shards_that_do_not_fit_each_other() -> None:
    x, y = separable(0.5)
    with pytest.raises(ValueError, match="n_classes must be at least 1, got 0"):
        check_shard(x, y, n_classes=0)
    many = sp.csr_array(np.eye(2, dtype=np.int8)[y])
    with pytest.raises(ValueError, match="some shards have class ids and some have a multi-label matrix"):
        list(shards([(x, y), (x, many)], None, 2, 1))


def test_row_offsets_that_fall_behind_the_first_shard(tmp_path: Path) -> None:
    x = sp.csr_array(np.ones((6, 2), dtype=np.float32))
    offsets = x.indptr.copy()
    offsets[4] = 99
    for name, array in (("data", x.data), ("indices", x.indices), ("indptr", offsets), ("shape", x.shape)):
        np.save(tmp_path / f"{name}.npy", array)
    np.zeros(6, dtype=np.uint8).tofile(tmp_path / "labels.bin")
    with pytest.raises(ValueError, match="no valid CSR matrix: indptr falls behind row 2"):
        list(RowShards(tmp_path, tmp_path / "labels.bin", shard_rows=2))


def test_a_summary_of_other_bins_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = separable(0.5)
    path = tmp_path / "s.safetensors"
    LatentSummary(1, 2).add(x, y).save(path)
    monkeypatch.setattr(summary_module, "MANTISSA_BITS", summary_module.MANTISSA_BITS + 1)
    with pytest.raises(ValueError, match="bins per octave, expected"):
        LatentSummary.load(path)


def test_a_certificate_of_no_pair_says_so() -> None:
    x, y = separable(0.5)
    none = Sparse1DProbe().fit(x, y).certify(x, y, pairs=np.zeros((0, 2), dtype=int))
    assert repr(none) == "Certificate(of no pair)"
