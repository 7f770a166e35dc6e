"""scikit-learn's conventions, and the sizes that are measured on the machine."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch
from probe_data import problem
from sklearn.base import clone
from sklearn.exceptions import NotFittedError

from interp.probe import LatentSummary, Sparse1DProbe, auto_sizes, measure_blocks, measure_row_batches

DEFAULTS = {
    "class_slab_size": "auto",
    "latent_block_size": "auto",
    "row_batch_size": "auto",
    "max_iter": 100,
    "tol": 1e-6,
    "ridge": 1e-8,
    "lam_init": 1e-3,
    "lam_shrink": 0.1,
    "lam_grow": 10.0,
    "delta_logit": 6.0,
    "max_retries": 5,
    "method": "summary",
    "compute_dtype": None,
    "device": None,
}
FITTED = ("coef_", "intercept_", "status_", "n_iter_", "n_fail_", "lambda_", "history_", "loss_")


def test_parameters_are_those_of_the_design_and_untouched() -> None:
    assert Sparse1DProbe().get_params() == DEFAULTS
    odd = {"tol": "a", "device": object(), "method": None}  # the constructor neither checks nor converts
    probe = Sparse1DProbe(**odd)
    for name, value in odd.items():
        assert getattr(probe, name) is value
    with pytest.raises(TypeError):
        Sparse1DProbe(1)
    x, y = problem(0, n_rows=100)
    assert Sparse1DProbe().fit(x, y).get_params() == DEFAULTS, "fit does not resolve auto in place"


def test_clone_and_set_params() -> None:
    x, y = problem(1, n_rows=100)
    probe = Sparse1DProbe(tol=1e-4, max_iter=7).fit(x, y)
    twin = clone(probe)
    assert twin.get_params() == probe.get_params()
    assert not hasattr(twin, "n_features_in_")
    assert twin.set_params(tol=1e-5, ridge=1e-6) is twin
    assert (twin.tol, twin.ridge, probe.tol) == (1e-5, 1e-6, 1e-4)
    with pytest.raises(ValueError, match=r"unknown parameter 'tool'; there are class_slab_size"):
        twin.set_params(tool=1)
    assert twin.get_params(deep=False) == twin.get_params()


def test_repr_shows_what_differs_from_the_defaults() -> None:
    assert repr(Sparse1DProbe()) == "Sparse1DProbe()"
    assert repr(Sparse1DProbe(tol=1e-3, method="events")) == "Sparse1DProbe(tol=0.001, method='events')"


def test_what_needs_a_fit_says_so() -> None:
    probe, (x, y) = Sparse1DProbe(), problem(2, n_rows=50)
    for name in FITTED:
        with pytest.raises(NotFittedError, match="call fit"):
            getattr(probe, name)
    calls = ("certify", "loss_matrix", "confusion", "metrics", "polish")
    for name in calls:
        with pytest.raises(NotFittedError, match="call fit"):
            getattr(probe, name)(x, y)
    for call in (probe.best_latents, probe.status_counts):
        with pytest.raises(NotFittedError, match="call fit"):
            call()


def test_fit_returns_itself_and_starts_afresh() -> None:
    probe, (x, y) = Sparse1DProbe(), problem(3)
    assert probe.fit(x, y) is probe
    other_x, other_y = problem(4, n_latents=3, n_classes=2)
    probe.fit(other_x, other_y)
    assert probe.coef_.shape == (3, 2)
    assert probe.n_features_in_ == 3
    np.testing.assert_array_equal(probe.coef_, Sparse1DProbe().fit(other_x, other_y).coef_)


def test_fitted_arrays_have_the_documented_types() -> None:
    probe = Sparse1DProbe().fit(*problem(5))
    assert probe.coef_.dtype == probe.intercept_.dtype == probe.lambda_.dtype == np.float64
    assert probe.n_iter_.dtype == probe.n_fail_.dtype == np.int32
    assert probe.status_.dtype.kind == "U"
    for name in FITTED[:6] + FITTED[7:]:
        assert getattr(probe, name).shape == (12, 7)
    assert sum(probe.status_counts().values()) == 84


def test_a_summary_that_grows_after_the_fit_does_not_change_the_probe() -> None:
    x, y = problem(6)
    summary = LatentSummary(12, 7).add(x[:300], y[:300])
    probe = Sparse1DProbe().fit_summary(summary)
    before = probe.best_latents(2)
    late = Sparse1DProbe().fit_summary(summary)
    summary.add(x[300:], y[300:])
    assert probe.best_latents(2).equals(before)
    with pytest.raises(ValueError, match=r"300 rows at the fit, 600 now"):
        _ = late.loss_


# -------------------------------------------------------------------------------------- sizes


CPU = {"device": torch.device("cpu"), "dtype": torch.float64}


def test_given_sizes_are_kept_and_automatic_ones_fit_the_classes() -> None:
    assert auto_sizes(5000, 50, 151, 8, 4, **CPU) == (8, 4)
    assert auto_sizes(5000, 50, 5, 8, 4, **CPU) == (5, 4)
    slab, block = auto_sizes(5000, 50, 151, **CPU)
    assert 1 <= slab <= 51, "at least three slabs, so that there is something to see"
    assert block >= 1
    assert auto_sizes(5000, 50, 1, **CPU)[0] == 1
    wide, _ = auto_sizes(900_000, 3000, 151, **CPU)
    assert wide <= slab
    for n_latents in (0, 1, 7, 200):
        assert auto_sizes(10 * n_latents, n_latents, 3, **CPU)[1] == max(1, n_latents)


def test_auto_is_measured_in_well_under_a_second() -> None:
    from interp.probe.sizes import _tuned

    _tuned.cache_clear()
    start = time.perf_counter()
    auto_sizes(5000, 50, 151, **CPU)
    first = time.perf_counter() - start
    assert first < 2.0  # a twentieth of a second where nobody else is at work
    start = time.perf_counter()
    auto_sizes(5000, 50, 151, **CPU)
    assert time.perf_counter() - start < 0.1, "measured once per process"


def test_measured_blocks_cover_the_grid() -> None:
    x, y = problem(7)
    rows = measure_blocks(x, y, class_slab_sizes=[1, 4, 64], latent_block_sizes=[1, 8], repeats=2)
    assert [(r["class_slab_size"], r["latent_block_size"]) for r in rows] == [
        (1, 1), (1, 8), (4, 1), (4, 8), (7, 1), (7, 8),
    ]  # fmt: skip
    for r in rows:
        assert 0 < r["ns_low"] <= r["ns_per_eval"] <= r["ns_high"]
        assert r["bytes"] > 0
    again = measure_blocks(
        LatentSummary(12, 7).add(x, y), class_slab_sizes=[2], latent_block_sizes=[2], repeats=1, max_latents=3
    )
    assert len(again) == 1


def test_measured_row_batches_cover_the_grid() -> None:
    x, y = problem(8)
    rows = measure_row_batches(x, y, row_batch_sizes=[50, 600], repeats=2)
    assert [r["row_batch_size"] for r in rows] == [50, 600]
    for r in rows:
        assert 0 < r["ns_low"] <= r["ns_per_event"] <= r["ns_high"]


def test_auto_is_a_device_like_none() -> None:
    x, y = problem(0)
    assert np.array_equal(Sparse1DProbe(device="auto").fit(x, y).coef_, Sparse1DProbe().fit(x, y).coef_)
    with pytest.raises(ValueError, match="unknown device 'tpu-9'"):
        Sparse1DProbe(device="tpu-9").fit(x, y)
