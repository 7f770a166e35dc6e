"""The sets that break probes. Each is solved to the promise, or says that it is not."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp
from probe_data import check_exact, hard_sets, separable
from probe_reference import dense, objective, optimum

from interp.probe import Sparse1DProbe

METHODS = ("summary", "events")


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", list(hard_sets()))
def test_hard_sets_are_solved_exactly(name: str, method: str, seed: int) -> None:
    x, y, n_classes = hard_sets(seed)[name]
    probe = Sparse1DProbe(method=method).fit(x, y, n_classes=n_classes)
    check_exact(probe, x, y, n_classes)
    status = probe.status_
    full, positive = dense(x, y, n_classes)
    dead, absent = (full == 0).all(axis=0), positive.sum(axis=0) == 0
    assert (status[dead] == "dead").all()
    assert (status[np.ix_(~dead, absent)] == "absent_class").all()
    rest = status[np.ix_(~dead, ~absent)]
    assert np.isin(rest, ("converged", "separable")).all(), f"unsolved: {np.unique(rest)}"
    assert probe.n_fail_.sum() == 0
    assert np.isfinite(probe.loss_).all()


@pytest.mark.parametrize("gap", [0.5, 0.1, 0.02])
def test_separable_pairs_are_solved_and_called_so(gap: float) -> None:
    x, y = separable(gap, seed=3)
    probe = Sparse1DProbe().fit(x, y)
    assert (probe.status_ == "separable").all()
    full, positive = dense(x, y, 2)
    _, w, best = optimum(full[:, 0], positive[:, 1])
    assert probe.coef_[0, 1] == pytest.approx(w, rel=2e-2)
    assert w > 20
    at = objective(full[:, 0], positive[:, 1], probe.intercept_[0, 1], probe.coef_[0, 1])
    assert at - best <= 1e-9 + 1e-6 * best
    cut = -probe.intercept_[0, 1] / probe.coef_[0, 1]
    assert 1.0 < cut < 1.0 + gap, "the boundary lies in the gap"


def test_touching_classes_are_not_called_separable() -> None:
    x, y = separable(0.0, seed=3)
    probe = Sparse1DProbe().fit(x, y)
    assert (probe.status_ == "converged").all()
    assert check_exact(probe, x, y, 2) == 2


def test_a_mixture_of_hard_and_easy_latents_disturbs_nobody() -> None:
    """Pairs are solved side by side: the hard ones must not change what the easy ones get."""
    rng = np.random.default_rng(0)
    y = (rng.random(400) < 0.3).astype(int)
    steep = np.where(y == 1, 1.1 + rng.exponential(0.5, 400), rng.uniform(0.2, 1.0, 400))
    easy = rng.exponential(1.0, 400) * (rng.random(400) < 0.3)
    alone = Sparse1DProbe().fit(sp.csr_array(easy[:, None]), y)
    both = Sparse1DProbe().fit(sp.csr_array(np.column_stack([easy, steep, 0 * easy, easy])), y)
    np.testing.assert_allclose(both.coef_[[0, 3]], alone.coef_[[0, 0]], rtol=1e-9)
    assert np.array_equal(both.n_iter_[[0, 3]], alone.n_iter_[[0, 0]]), "a pair ends when it is done"
    assert both.status_[2, 0] == "dead"
    assert both.status_[1, 1] == "separable"


def test_prevalence_of_one_in_a_million() -> None:
    """A class of one row among 10⁶: the promise on the loss binds, since a small gradient says little."""
    n = 1_000_000
    rng = np.random.default_rng(1)
    rows = rng.choice(n, 5_000, replace=False)
    y = np.zeros(n, int)
    y[rows[0]] = y[-1] = 1  # class 1 twice, once with an event
    y[rows[1:3]] = 2
    values = rng.exponential(1.0, 5_000)
    values[0] = 2.0
    x = sp.csr_array((values, (rows, np.zeros(5_000, int))), shape=(n, 1))
    probe = Sparse1DProbe().fit(x, y, n_classes=4)
    assert list(probe.status_[0]) == ["converged", "converged", probe.status_[0, 2], "absent_class"]
    assert probe.status_[0, 2] in ("converged", "separable")
    assert np.asarray(probe.certify(x, y))[0, :3].max() <= 1e-5
    column, positive = x.toarray().ravel(), (y == 1).astype(np.float64)
    best = optimum(column, positive)[2]
    excess = objective(column, positive, probe.intercept_[0, 1], probe.coef_[0, 1]) - best
    assert best < 1e-4
    assert excess <= 1e-9 + 1e-6 * best


def test_absent_class_and_class_on_every_row_stay_finite() -> None:
    rng = np.random.default_rng(2)
    x = sp.csr_array(rng.exponential(1.0, (200, 2)) * (rng.random((200, 2)) < 0.5))
    probe = Sparse1DProbe().fit(x, np.ones(200, int), n_classes=3)
    assert (probe.status_[:, [0, 2]] == "absent_class").all()
    assert (probe.loss_ < 1e-6).all()
    assert (probe.intercept_[:, [0, 2]] < -15).all()
    assert (probe.intercept_[:, 1] > 15).all()
    assert check_exact(probe, x, np.ones(200, int), 3) == 2


def test_dead_latents_predict_the_prevalence() -> None:
    x = sp.csr_array((100, 3), dtype=np.float32)
    y = np.repeat([0, 1], [30, 70])
    probe = Sparse1DProbe().fit(x, y)
    assert (probe.status_ == "dead").all()
    assert (probe.coef_ == 0).all()
    np.testing.assert_allclose(probe.intercept_, np.tile(np.log([30 / 70, 70 / 30]), (3, 1)), rtol=1e-12)
    assert probe.n_iter_.sum() == 0
    base = -(0.3 * np.log(0.3) + 0.7 * np.log(0.7))
    np.testing.assert_allclose(probe.loss_, base, rtol=1e-12)


def test_a_constant_latent_on_every_row_learns_nothing() -> None:
    """x = 0.7 everywhere says nothing; at (b_c, 0) the gradient is zero, so no pair ever steps."""
    y = np.repeat([0, 1, 2], [50, 30, 20])
    probe = Sparse1DProbe().fit(sp.csr_array(np.full((100, 1), 0.7)), y)
    assert probe.n_iter_.sum() == 0
    assert (probe.coef_ == 0).all()
    assert (probe.status_ == "converged").all()


def test_one_row_and_one_event() -> None:
    probe = Sparse1DProbe().fit(sp.csr_array([[2.0]]), [0])
    assert check_exact(probe, sp.csr_array([[2.0]]), [0], 1) == 1
    x, y = sp.csr_array(([3.0], ([1], [0])), shape=(3, 1)), np.array([0, 1, 0])
    probe = Sparse1DProbe().fit(x, y)
    assert (probe.status_ == "separable").all()
    assert check_exact(probe, x, y, 2) == 2
    assert probe.coef_[0, 1] > 1.0


def test_values_beyond_float32_are_fine_in_float64() -> None:
    rng = np.random.default_rng(5)
    x = sp.csr_array(1e60 * rng.exponential(1.0, (80, 1)))
    y = (rng.random(80) < 0.4).astype(int)
    probe = Sparse1DProbe().fit(x, y)
    assert check_exact(probe, x, y, 2) == 2
