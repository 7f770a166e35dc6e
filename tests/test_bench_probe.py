"""The baseline of the probe benchmarks: a fair opponent, with the faults that it is said to have."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from probe_data import problem
from probe_reference import dense, scaled_gradient

from interp.probe import Sparse1DProbe

BENCH = Path(__file__).parent / "bench"


@pytest.fixture(autouse=True)
def _bench_on_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCH))
    for name in ("naive_probe", "probe_world"):
        sys.modules.pop(name, None)


def _problem_with_dead_latent() -> tuple[sp.csr_array, np.ndarray]:
    x, y = problem(0, n_rows=500, n_latents=6, n_classes=5)
    return sp.csr_array(x.toarray() * (np.arange(6) != 2)), y


def test_the_naive_solver_is_right_where_it_does_not_fail() -> None:
    """A fair baseline: on easy pairs, in float64, it finds the same optimum."""
    from naive_probe import fit_naive

    x, y = problem(0, n_rows=500, n_latents=6, n_classes=5)
    naive = fit_naive(x, y, 5, param_dtype=torch.float64, sum_dtype=torch.float64, max_iter=60)
    mine = Sparse1DProbe(tol=1e-9).fit(x, y)
    np.testing.assert_allclose(naive.coef, mine.coef_, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(naive.intercept, mine.intercept_, rtol=1e-3, atol=1e-4)
    full, positive = dense(x, y, 5)
    for l in range(6):
        for c in range(5):
            b, w = naive.intercept[l, c], naive.coef[l, c]
            assert scaled_gradient(full[:, l], positive[:, c], b, w) < 1e-6


def test_the_naive_solver_has_the_faults_that_it_is_described_with() -> None:
    from naive_probe import fit_naive

    x, y = _problem_with_dead_latent()
    faulty = fit_naive(x, y, 5, max_iter=12)
    dead = sum(r["n_fail"] for r in faulty.records[:3])
    assert dead >= 3, "the dead latent's pairs fail in every iteration"
    assert max(r["lam_mean"] for r in faulty.records) > 1e9, "and saturate lambda"
    repaired = fit_naive(x, y, 5, max_iter=12, skip_inert=True)
    assert sum(r["n_fail"] for r in repaired.records) < sum(r["n_fail"] for r in faulty.records)


@pytest.mark.parametrize("idea", ["row indices cached", "values cast once", "slab of 32 classes"])
def test_ideas_about_speed_change_no_number(idea: str) -> None:
    from naive_probe import IDEAS, fit_naive

    x, y = problem(1, n_rows=300, n_latents=5, n_classes=11, dtype=np.float64)
    plain = fit_naive(x, y, 11, max_iter=5, tol=1e-30)
    quick = fit_naive(x, y, 11, max_iter=5, tol=1e-30, **IDEAS[idea])
    np.testing.assert_allclose(quick.coef, plain.coef, rtol=1e-5, atol=1e-6)
    assert len(quick.records) == (5 if "slab" in idea else 10)


def test_the_made_up_code_has_the_shape_it_says() -> None:
    from probe_world import code_like_ade

    x, y = code_like_ade(2000, 90, 7, 15, seed=4)
    assert x.shape == (2000, 90)
    assert 10 < x.nnz / 2000 <= 15
    assert x.dtype == np.float32
    events = np.bincount(x.indices, minlength=90)
    assert (events[87:] == 0).all(), "some latents are dead"
    assert np.bincount(y).max() > 5 * np.bincount(y).min()
    again, _ = code_like_ade(2000, 90, 7, 15, seed=4)
    assert (again != x).nnz == 0
