"""Sparse codes and labels for the probe tests: ordinary, hard, and drawn by hypothesis."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp
from hypothesis import strategies as st
from probe_reference import dense, objective, optimum, scaled_gradient

from interp.probe import Sparse1DProbe

#: Statuses that promise an exact optimum.
SOLVED = ("converged", "separable")


def problem(
    seed: int = 0,
    n_rows: int = 600,
    n_latents: int = 12,
    n_classes: int = 7,
    density: float = 0.2,
    signed: bool = False,
    dtype: type = np.float32,
) -> tuple[sp.csr_array, np.ndarray]:
    """A code whose latents fire more often and more strongly on a class of their own.

    Class sizes are unequal; every latent fires somewhere on other classes too, so that hardly any pair
    is separable.
    """
    rng = np.random.default_rng(seed)
    share = 0.6 ** np.arange(n_classes)
    y = rng.choice(n_classes, n_rows, p=share / share.sum())
    own = rng.integers(0, n_classes, n_latents)
    hit = y[:, None] == own
    fires = rng.random((n_rows, n_latents)) < np.where(hit, min(0.9, 3.0 * density), density)
    value = np.exp(0.8 * rng.standard_normal((n_rows, n_latents)) + 0.7 * hit)
    if signed:
        value *= np.where(rng.random(value.shape) < np.where(hit, 0.2, 0.5), -1.0, 1.0)
    return sp.csr_array((fires * value).astype(dtype)), y


def separable(gap: float, seed: int = 0, n_rows: int = 400) -> tuple[sp.csr_array, np.ndarray]:
    """One latent on every row whose class 1 lies above the others, by `gap` of the boundary's value."""
    rng = np.random.default_rng(seed)
    y = (rng.random(n_rows) < 0.3).astype(int)
    y[:2] = 0, 1
    x = np.where(y == 1, 1.0 + gap + rng.exponential(0.5, n_rows), rng.uniform(0.2, 1.0, n_rows))
    # The values next to the gap are there, so that it is as wide as it says.
    x[0], x[1] = 1.0, 1.0 + gap
    return sp.csr_array(x[:, None]), y


def hard_sets(seed: int = 0) -> dict[str, tuple[sp.csr_array, np.ndarray, int]]:
    """Name → (x, y, n_classes) of everything that has broken a probe before."""
    rng = np.random.default_rng(seed)
    n = 500
    labels = rng.integers(0, 3, n)
    sparse = (rng.random((n, 3)) < 0.3) * rng.exponential(1.0, (n, 3))
    sets: dict[str, tuple[np.ndarray | sp.csr_array, np.ndarray, int]] = {}
    for gap in (0.5, 0.1, 0.02, 0.0):
        sets[f"gap {gap:.0%}"] = (*separable(gap, seed), 2)
    sets["absent class"] = sparse, np.where(labels == 1, 0, labels), 4
    sets["class on every row"] = sparse, np.full(n, 1), 3
    dead = sparse.copy()
    dead[:, 1] = 0.0
    sets["dead latent"] = dead, labels, 3
    sets["latent on every row"] = 0.05 + rng.exponential(1.0, (n, 2)) + (labels == 2)[:, None], labels, 3
    sets["all values equal"] = 2.5 * (rng.random((n, 2)) < 0.2 + 0.5 * (labels == 0)[:, None]), labels, 3
    sets["all values equal, on every row"] = np.full((n, 1), 0.7), labels, 3
    wide = 10.0 ** rng.uniform(-6.0, 4.0, (n, 2)) * (rng.random((n, 2)) < 0.5)
    sets["values 1e-6 to 1e4"] = wide, (np.log10(wide[:, 0] + 1e-9) + rng.normal(0, 2, n) > 0).astype(int), 2
    sets["negative values"] = rng.normal(0, 1, (n, 3)) * (rng.random((n, 3)) < 0.4), labels, 3
    sets["only negative values"] = -sparse, labels, 3
    sets["one row"] = np.array([[0.0, 1.5]]), np.array([0]), 2
    one = np.zeros((n, 2))
    one[7, 0] = one[8, 1] = 3.0
    sets["one event"] = one, labels, 3
    sets["scale 1,000"] = 1000.0 * sparse, labels, 3
    sets["scale 0.001"] = 0.001 * sparse, labels, 3
    two = np.column_stack([sparse[:, 0], sparse[:, 0]])
    sets["two equal latents"] = two, labels, 3
    # Subnormal in float32: these count as zeros.
    sets["smaller than 1e-38"] = np.column_stack([1e-39 * sparse[:, 0], sparse[:, 1]]), labels, 3
    own = np.where((labels == 0)[:, None], sparse + 0.1, 0.0)
    sets["fires on its class alone"] = own, labels, 3
    return {name: (sp.csr_array(x), y, c) for name, (x, y, c) in sets.items()}


def check_exact(
    probe: Sparse1DProbe, x: object, y: object, n_classes: int, *, tol: float = 1e-6, ridge: float = 1e-8
) -> int:
    """Assert the promise of the solved pairs against dense float64 optima; returns how many there are.

    Exact gradient (scaled by q) at most 10·tol, objective within 1e-9 + 1e-6·objective of the optimum.
    """
    full, positive = dense(x, y, n_classes)
    status = probe.status_
    assert probe.coef_.shape == status.shape == (full.shape[1], n_classes)
    assert np.isfinite(probe.coef_).all()
    assert np.isfinite(probe.intercept_).all()
    solved = np.argwhere(np.isin(status, SOLVED))
    for l, c in solved:
        column, own = full[:, l], positive[:, c]
        b, w = probe.intercept_[l, c], probe.coef_[l, c]
        size = scaled_gradient(column, own, b, w, ridge)
        assert size <= 10 * tol, f"latent {l}, class {c} ({status[l, c]}): gradient {size:.2e}"
        best = optimum(column, own, ridge)[2]
        excess = objective(column, own, b, w, ridge) - best
        assert excess <= 1e-9 + 1e-6 * best, f"latent {l}, class {c}: excess {excess:.2e} over {best:.3e}"
    return len(solved)


@st.composite
def problems(draw: st.DrawFn) -> tuple[sp.csr_array, np.ndarray, int]:
    """Small problems with every awkwardness at once: (x, y with −1 rows, n_classes)."""
    n_rows = draw(st.integers(1, 30))
    n_latents = draw(st.integers(1, 3))
    n_classes = draw(st.integers(1, 3))
    dtype = draw(st.sampled_from([np.float32, np.float64]))
    low = draw(st.sampled_from([0.25, 2.0**-10]))
    magnitude = st.floats(low, 64.0, width=32)
    value = st.one_of(st.just(0.0), st.just(1.0), magnitude, magnitude.map(lambda v: -v))
    x = np.array(draw(st.lists(value, min_size=n_rows * n_latents, max_size=n_rows * n_latents)))
    y = np.array(draw(st.lists(st.integers(-1, n_classes - 1), min_size=n_rows, max_size=n_rows)))
    if (y < 0).all():
        y[0] = 0
    return sp.csr_array(x.reshape(n_rows, n_latents).astype(dtype)), y, n_classes
