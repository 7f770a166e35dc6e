"""Sparse1DProbe.fit on ordinary data: the optimum, whatever way the work is cut up."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from hypothesis import given, settings
from probe_data import check_exact, problem, problems
from probe_reference import dense, objective, optimum, prior
from sklearn.linear_model import LogisticRegression

from interp.probe import LatentSummary, Sparse1DProbe


def agree(a: Sparse1DProbe, b: Sparse1DProbe, rtol: float = 1e-5) -> None:
    """Two fits ended at the same place (ordinary pairs, where a gradient of tol pins the parameters)."""
    assert np.array_equal(a.status_, b.status_)
    np.testing.assert_allclose(a.coef_, b.coef_, rtol=rtol, atol=rtol)
    np.testing.assert_allclose(a.intercept_, b.intercept_, rtol=rtol, atol=rtol)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("signed", [False, True])
def test_every_pair_is_at_the_dense_float64_optimum(signed: bool, dtype: type) -> None:
    x, y = problem(0, n_rows=500, n_latents=20, n_classes=8, signed=signed, dtype=dtype)
    probe = Sparse1DProbe().fit(x, y)
    assert check_exact(probe, x, y, 8) == 160
    assert probe.n_fail_.sum() == 0
    full, positive = dense(x, y, 8)
    for l, c in [(0, 0), (3, 1), (7, 5), (19, 7)]:
        b, w, _ = optimum(full[:, l], positive[:, c])
        assert probe.coef_[l, c] == pytest.approx(w, rel=1e-3, abs=1e-4)
        assert probe.intercept_[l, c] == pytest.approx(b, rel=1e-3, abs=1e-4)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_parity_with_scikit_learn_on_hundreds_of_pairs(seed: int) -> None:
    """Its ridge is on w alone; with θ ours and θ' its optimum, both bounds below follow from that."""
    ridge, n_classes = 1e-6, 6
    x, y = problem(seed, n_rows=400, n_latents=18, n_classes=n_classes, signed=seed == 2)
    probe = Sparse1DProbe(ridge=ridge, tol=1e-9).fit(x, y)
    assert set(np.unique(probe.status_)) <= {"converged", "separable"}
    full, positive = dense(x, y, n_classes)
    compared = 0
    for l in range(18):
        for c in range(n_classes):
            own, column = positive[:, c], full[:, [l]]
            theirs = LogisticRegression(
                C=1.0 / (len(own) * ridge), solver="newton-cholesky", tol=1e-12, max_iter=200
            ).fit(column, own)
            b, w = float(theirs.intercept_[0]), float(theirs.coef_[0, 0])
            mine = probe.intercept_[l, c], probe.coef_[l, c]
            ours = objective(full[:, l], own, *mine, ridge)
            at_theirs = objective(full[:, l], own, b, w, ridge)
            pull = 0.5 * ridge * (b - prior(own)) ** 2  # what our objective has and theirs has not
            pull_mine = 0.5 * ridge * (mine[0] - prior(own)) ** 2
            assert ours <= at_theirs + 1e-12
            assert at_theirs - pull <= ours - pull_mine + 1e-12
            if probe.status_[l, c] == "converged":
                assert mine[1] == pytest.approx(w, rel=2e-3, abs=1e-4)
                assert mine[0] == pytest.approx(b, rel=2e-3, abs=1e-4)
                compared += 1
    assert compared >= 90


@settings(max_examples=60)
@given(problems())
def test_any_small_problem_is_solved_exactly(p: tuple) -> None:
    """Separable, constant, signed, duplicated, unlabelled, absent: all at once, at random."""
    x, y, n_classes = p
    ridge = 1e-6
    probe = Sparse1DProbe(ridge=ridge, max_iter=500).fit(x, y, n_classes=n_classes)
    check_exact(probe, x, y, n_classes, ridge=ridge)
    full, positive = dense(x, y, n_classes)
    dead, absent = (full == 0).all(axis=0), positive.sum(axis=0) == 0
    assert (probe.status_[dead] == "dead").all()
    alive = probe.status_[~dead]
    assert (alive[:, absent] == "absent_class").all()
    assert np.isin(alive[:, ~absent], ("converged", "separable")).all()
    assert probe.n_fail_.sum() == 0


@pytest.mark.parametrize(
    "sizes",
    [
        {"class_slab_size": 1},
        {"class_slab_size": 3, "latent_block_size": 1},
        {"latent_block_size": 5},
        {"class_slab_size": 100, "latent_block_size": 100},
        {"row_batch_size": 7},
        {"row_batch_size": 10_000},
    ],
    ids=str,
)
def test_sizes_do_not_change_the_answer(sizes: dict[str, int]) -> None:
    x, y = problem(4, signed=True)
    agree(Sparse1DProbe(**sizes).fit(x, y), Sparse1DProbe().fit(x, y), rtol=1e-7)


def test_row_order_does_not_change_the_answer() -> None:
    x, y = problem(5)
    order = np.random.default_rng(0).permutation(len(y))
    agree(Sparse1DProbe().fit(x[order], y[order]), Sparse1DProbe().fit(x, y), rtol=1e-7)


@pytest.mark.parametrize("method", ["summary", "events"])
def test_row_shards_do_not_change_the_answer(method: str) -> None:
    x, y = problem(6)
    cuts = [0, 7, 300, 301, 600]
    shards = [(x[i:j], y[i:j]) for i, j in pairwise(cuts)]
    agree(Sparse1DProbe(method=method).fit(shards), Sparse1DProbe(method=method).fit(x, y), rtol=1e-7)


def test_class_order_does_not_change_the_answer() -> None:
    x, y = problem(7)
    order = np.random.default_rng(1).permutation(7)  # class c becomes class order[c]
    one, two = Sparse1DProbe().fit(x, y), Sparse1DProbe().fit(x, order[y])
    np.testing.assert_allclose(two.coef_[:, order], one.coef_, rtol=1e-7, atol=1e-7)
    np.testing.assert_allclose(two.intercept_[:, order], one.intercept_, rtol=1e-7, atol=1e-7)
    assert np.array_equal(two.status_[:, order], one.status_)


def test_latent_order_does_not_change_the_answer() -> None:
    x, y = problem(8)
    order = np.random.default_rng(2).permutation(12)
    one, two = Sparse1DProbe().fit(x, y), Sparse1DProbe().fit(x[:, order], y)
    np.testing.assert_allclose(two.coef_, one.coef_[order], rtol=1e-7, atol=1e-7)


def test_every_row_twice_leaves_the_optimum_where_it_is() -> None:
    """The loss is a mean, so the ridge keeps its weight against it."""
    x, y = problem(9)
    twice = sp.csr_array(sp.vstack([x, x])), np.concatenate([y, y])
    ridge = 1e-3  # strong enough to show, were it divided by n
    one, two = Sparse1DProbe(ridge=ridge).fit(x, y), Sparse1DProbe(ridge=ridge).fit(*twice)
    agree(one, two, rtol=1e-7)
    check_exact(two, *twice, 7, ridge=ridge)


def test_scale_of_a_latent_only_scales_its_slope() -> None:
    x, y = problem(10, n_rows=2000, dtype=np.float64)
    one, two = Sparse1DProbe(ridge=1e-14).fit(x, y), Sparse1DProbe(ridge=1e-14).fit(1000.0 * x, y)
    assert (one.status_ == "converged").all(), "where only the ridge holds w, the scale matters"
    np.testing.assert_allclose(1000.0 * two.coef_, one.coef_, rtol=1e-5, atol=1e-6)
    assert np.array_equal(one.n_iter_, two.n_iter_), "the scale must not make it harder"


def test_method_events_equals_summary() -> None:
    x, y = problem(11, signed=True)
    events = Sparse1DProbe(method="events").fit(x, y)
    check_exact(events, x, y, 7)
    agree(events, Sparse1DProbe().fit(x, y))


@pytest.mark.parametrize("method", ["summary", "events"])
def test_float32_stage_ends_as_exact_as_float64(method: str) -> None:
    x, y = problem(12)
    probe = Sparse1DProbe(method=method, compute_dtype=torch.float32).fit(x, y)
    assert check_exact(probe, x, y, 7) == 84
    assert probe.coef_.dtype == probe.intercept_.dtype == np.float64
    agree(probe, Sparse1DProbe().fit(x, y), rtol=1e-4)


@pytest.mark.parametrize("tol", [1e-3, 1e-6, 1e-9])
def test_tol_is_kept(tol: float) -> None:
    x, y = problem(13, n_rows=2000)
    probe = Sparse1DProbe(tol=tol).fit(x, y)
    assert set(np.unique(probe.status_)) == {"converged"}
    assert probe.certify(x, y).max() <= 2.0 * tol  # the iteration's tol, and the rule's


def test_stronger_ridge_is_solved_too() -> None:
    x, y = problem(14)
    probe = Sparse1DProbe(ridge=0.1).fit(x, y)
    assert check_exact(probe, x, y, 7, ridge=0.1) == 84


def test_multi_label_pairs_are_solved_exactly() -> None:
    x, y = problem(15, signed=True)
    rng = np.random.default_rng(3)
    labels = sp.csr_array((y[:, None] == np.arange(7)) | (rng.random((600, 7)) < 0.1))
    probe = Sparse1DProbe().fit(x, labels)
    assert check_exact(probe, x, labels, 7) == 84


def test_one_label_per_row_as_multi_label_is_the_same_fit() -> None:
    x, y = problem(16)
    agree(Sparse1DProbe().fit(x, sp.csr_array(y[:, None] == np.arange(7))), Sparse1DProbe().fit(x, y), 1e-9)


def test_loss_never_rises() -> None:
    """Runs limited to 0, 1, 2 … iterations are the states of one run: its objective only falls."""
    x, y = problem(17, n_rows=300, n_latents=6, density=0.1)
    full, positive = dense(x, y, 7)
    before = np.full((6, 7), np.inf)
    done = False
    for k in range(40):
        probe = Sparse1DProbe(method="events", max_iter=k).fit(x, y)
        now = np.array(
            [
                [
                    objective(full[:, l], positive[:, c], probe.intercept_[l, c], probe.coef_[l, c])
                    for c in range(7)
                ]
                for l in range(6)
            ]
        )
        assert (now <= before + 1e-15).all()
        moved = probe.n_iter_ == k
        if k:
            assert np.array_equal(now[~moved], before[~moved]), "frozen pairs do not move"
        assert probe.n_iter_.max() <= k
        before, done = now, not (probe.status_ == "max_iter").any()
        if done:
            break
    assert done
    assert k > 5


def test_status_max_iter_says_what_is_unfinished() -> None:
    x, y = problem(18)
    probe = Sparse1DProbe(max_iter=1).fit(x, y)
    unfinished = probe.status_ == "max_iter"
    assert unfinished.any()
    assert (np.asarray(probe.certify(x, y))[~unfinished] <= 1e-5).all()
    none = Sparse1DProbe(max_iter=0).fit(x, y)
    assert (none.coef_ == 0).all()
    assert none.n_iter_.max() == 0
    shares = np.bincount(y) / len(y)
    np.testing.assert_allclose(none.intercept_[0], np.log(shares / (1.0 - shares)), rtol=1e-12)


def test_unlabelled_rows_are_left_out_everywhere() -> None:
    x, y = problem(19)
    some = np.where(np.arange(600) % 3 == 0, -1, y)
    keep = some >= 0
    agree(Sparse1DProbe().fit(x, some), Sparse1DProbe().fit(x[keep], some[keep]), rtol=1e-9)


def test_fit_summary_of_merged_parts_is_the_fit() -> None:
    x, y = problem(20)
    parts = [LatentSummary(12, 7).add(x[i::3], y[i::3]) for i in range(3)]
    merged = parts[0].merge(parts[1]).merge(parts[2])
    agree(Sparse1DProbe().fit_summary(merged), Sparse1DProbe().fit(x, y), rtol=1e-7)


def test_needs_polish_is_said_and_polish_finishes() -> None:
    """Steep pairs, for which 16 bins per octave are too coarse: without the events they say so."""
    rng = np.random.default_rng(4)
    x = rng.uniform(0.5, 1.5, (3000, 3))
    y = (rng.random(3000) < 1.0 / (1.0 + np.exp(-60.0 * (x[:, 0] - 1.0)))).astype(int)
    x = sp.csr_array(x)
    probe = Sparse1DProbe(tol=1e-8).fit_summary(LatentSummary(3, 2).add(x, y))
    waiting = probe.status_ == "needs_polish"
    assert waiting[0].all()
    assert not waiting[1:].any()
    assert np.asarray(probe.certify(x, y))[0].max() > 1e-7, "too easy a test: the rule was exact enough"
    check_exact(probe, x, y, 2, tol=1e-8)
    before = probe.coef_[1:].copy()
    iterations = probe.n_iter_.copy()
    assert probe.polish(x, y) is probe
    assert (probe.status_ == "converged").all()
    assert check_exact(probe, x, y, 2, tol=1e-8) == 6
    assert np.array_equal(probe.coef_[1:], before), "only waiting pairs are touched"
    assert (probe.n_iter_[0] > iterations[0]).all()
    # With the events at hand, fit does all of that by itself.
    whole = Sparse1DProbe(tol=1e-8).fit(x, y)
    assert (whole.status_ == "converged").all()
    np.testing.assert_allclose(whole.coef_, probe.coef_, rtol=1e-6)
    # A generator is read once, so the fit cannot finish there, but says so.
    once = Sparse1DProbe(tol=1e-8).fit(s for s in [(x, y)])
    assert (once.status_[0] == "needs_polish").all()
    for wrong in ((x[:-1], y[:-1]), (sp.csr_array(np.where(x.toarray() > 1.49, 0.0, x.toarray())), y)):
        with pytest.raises(ValueError, match="give the rows that were fitted"):
            once.polish(*wrong)
    assert (once.status_[0] == "needs_polish").all()
    once.polish(s for s in [(x[:1000], y[:1000]), (x[1000:], y[1000:])])
    assert check_exact(once, x, y, 2, tol=1e-8) == 6


def test_certify_is_the_gradient_on_the_raw_events() -> None:
    from probe_reference import gradient, scaled_gradient

    x, y = problem(21, signed=True)
    probe = Sparse1DProbe(max_iter=2).fit(x, y)
    full, positive = dense(x, y, 7)
    everything = probe.certify(x, y)
    for l in range(12):
        for c in range(7):
            b, w = probe.intercept_[l, c], probe.coef_[l, c]
            want = gradient(full[:, l], positive[:, c], b, w)
            got = everything.grad_b[l, c], everything.grad_w[l, c]
            np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-14)
            assert everything.scaled[l, c] == pytest.approx(
                scaled_gradient(full[:, l], positive[:, c], b, w), rel=1e-9, abs=1e-14
            )
    assert np.asarray(everything).shape == (12, 7)
    assert everything.max() == np.asarray(everything).max()
    pairs = np.array([[3, 2], [0, 6], [3, 2], [11, 0]])
    some = probe.certify([(x[:50], y[:50]), (x[50:], y[50:])], pairs=pairs)
    assert np.array_equal(some.pairs, pairs)
    np.testing.assert_allclose(some.scaled, everything.scaled[pairs[:, 0], pairs[:, 1]], rtol=1e-9)
    np.testing.assert_allclose(some.grad_b, everything.grad_b[pairs[:, 0], pairs[:, 1]], rtol=1e-9)
    assert len(everything) == 12
    assert np.max(everything) == everything.max()
    np.testing.assert_array_equal(np.max(everything, axis=0), everything.scaled.max(axis=0))
    np.testing.assert_array_equal(np.abs(some), some.scaled)
    worst = np.unravel_index(everything.scaled.argmax(), (12, 7))
    assert repr(everything).endswith(f"{everything.max():.2e}, at latent {worst[0]}, class {worst[1]})")
    one = probe.certify(x, y, pairs=pairs[1:2])
    assert repr(one) == f"Certificate(1 pair, largest scaled gradient {one.max():.2e}, at latent 0, class 6)"
    for wrong in ([[12, 0]], [[0, 7]], [[-1, 0]], [0, 1], [[0, 1, 2]]):
        with pytest.raises(ValueError, match="pairs must"):
            probe.certify(x, y, pairs=wrong)
    with pytest.raises(ValueError, match="twice"):
        probe.certify(s for s in [(x, y)])


def test_loss_is_the_loss() -> None:
    from probe_reference import loss

    x, y = problem(22)
    probe = Sparse1DProbe().fit(x, y)
    full, positive = dense(x, y, 7)
    want = np.array(
        [
            [loss(full[:, l], positive[:, c], probe.intercept_[l, c], probe.coef_[l, c]) for c in range(7)]
            for l in range(12)
        ]
    )
    np.testing.assert_allclose(probe.loss_, want, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(probe.loss_matrix(x, y), want, rtol=1e-6, atol=1e-9)
