"""Fits: against scikit-learn on hundreds of problems, alone and in batches, in both spaces."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression

from interp.lens import fit
from interp.lens.fit import choose_lambda, fit_mlp, solve, standardise, statistics, weights


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def problems(count, n, d, *, seed=0, shift=0.4, dtype=torch.float64):
    g = torch.Generator().manual_seed(seed)
    y = (torch.rand(count, n, generator=g) < 0.4).to(dtype)
    y[:, 0], y[:, 1] = 0, 1
    z = torch.randn(count, n, d, generator=g, dtype=torch.float64)
    z = z + shift * y[:, :, None] * torch.randn(count, 1, d, generator=g, dtype=torch.float64)
    return (z / d**0.5).to(dtype), y


def reference(z, y, s, lam):
    model = LogisticRegression(C=1 / lam, tol=1e-12, max_iter=10_000, solver="newton-cholesky")
    model.fit(z.numpy(), y.numpy(), sample_weight=s.numpy())
    return model.coef_[0], model.intercept_[0]


@pytest.mark.parametrize(("n", "d"), [(30, 200), (60, 20), (25, 25), (12, 13)])
@pytest.mark.parametrize("lam", [3.0, 0.03, 0.0003])
def test_parity_with_sklearn(n, d, lam):
    """12 cases × 25 problems = 300 fits; padding, weights and both spaces included."""
    z, y = problems(25, n, d, seed=n + d)
    s = torch.rand(25, n, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) + 0.5
    s[:5, n - 4 :] = 0  # padding
    coef, b = solve(z, y, s, lam, tol=1e-10)
    w = weights(coef, z)
    for k in range(25):
        keep = s[k] > 0
        if len(set(y[k][keep].tolist())) < 2:
            continue
        expected, intercept = reference(z[k][keep], y[k][keep], s[k][keep], lam)
        np.testing.assert_allclose(w[k].numpy(), expected, rtol=0, atol=1e-7 * np.abs(expected).max())
        assert b[k].item() == pytest.approx(intercept, abs=1e-6 * (1 + abs(intercept)))


@pytest.mark.parametrize(("n", "d"), [(40, 300), (80, 30)])
def test_float32_is_close_to_float64(n, d):
    z, y = problems(40, n, d, seed=3)
    s = torch.ones_like(y)
    for lam in fit.LAMBDAS:
        exact = weights(solve(z, y, s, lam, tol=1e-10)[0], z)
        single = weights(solve(z.float(), y.float(), s.float(), lam)[0], z.float())
        error = (single.double() - exact).norm(dim=1) / exact.norm(dim=1)
        assert error.max() < 2e-4, (lam, error.max())


def test_ill_conditioned_problems_are_solved_in_float64(monkeypatch):
    """Rows of norm 100 make the systems 10⁴ times worse conditioned."""
    z, y = problems(8, 40, 300, seed=4)
    z = z * 100
    s = torch.ones_like(y)
    exact = weights(solve(z, y, s, 0.01, tol=1e-10)[0], z)

    def error():
        single = weights(solve(z.float(), y.float(), s.float(), 0.01)[0], z.float())
        return float(((single.double() - exact).norm(dim=1) / exact.norm(dim=1)).max())

    switched = error()
    monkeypatch.setattr(fit, "_MAX_CONDITION", float("inf"))
    assert switched < 1e-4 < error()


@given(st.integers(0, 10_000), st.sampled_from([(20, 60), (40, 10)]), st.integers(0, 15))
def test_a_problem_does_not_see_its_batch(seed, shape, pad):
    n, d = shape
    z, y = problems(3, n, d, seed=seed)
    s = torch.ones_like(y)
    together, b = solve(z, y, s, 0.1, tol=1e-10)
    w = weights(together, z)
    padded = [
        torch.nn.functional.pad(t[:1], p) for t, p in ((z, (0, 0, 0, pad)), (y, (0, pad)), (s, (0, pad)))
    ]
    alone, b_alone = solve(*padded, 0.1, tol=1e-10)
    w_alone = weights(alone, padded[0])
    torch.testing.assert_close(w_alone[0], w[0], rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(b_alone[0], b[0], rtol=1e-6, atol=1e-7)


@given(st.integers(0, 10_000), st.floats(1e-3, 10))
def test_the_gradient_vanishes(seed, lam):
    z, y = problems(2, 24, 50, seed=seed, shift=2.0)
    s = torch.ones_like(y)
    coef, b = solve(z, y, s, lam, tol=1e-10)
    w = weights(coef, z)
    residual = s * (y - torch.sigmoid((z @ w[:, :, None])[:, :, 0] + b[:, None]))
    torch.testing.assert_close((residual[:, None] @ z)[:, 0], lam * w, rtol=0, atol=1e-6)
    torch.testing.assert_close(residual.sum(1), torch.zeros(2, dtype=torch.float64), rtol=0, atol=1e-6)


def test_blocks_of_a_large_batch_give_the_same(monkeypatch):
    z, y = problems(9, 30, 80)
    s = torch.ones_like(y)
    whole = solve(z, y, s, 0.1)
    monkeypatch.setattr(fit, "_BLOCK", 2 * 30 * 30)
    for a, b in zip(whole, solve(z, y, s, 0.1), strict=True):
        torch.testing.assert_close(a, b)


def test_lambda_by_cross_validation_against_a_loop():
    z, y = problems(6, 40, 60, seed=5, shift=0.6)
    s = torch.ones_like(y)
    fold = torch.arange(40) // 2 % 4
    training = (fold[None] != torch.arange(4)[:, None]).expand(6, 4, 40)
    held = ~training
    chosen = choose_lambda(z @ z.transpose(1, 2), y, s, training, held)
    for k in range(6):
        losses = []
        for lam in fit.LAMBDAS:
            total = 0.0
            for f in range(4):
                t, h = training[k, f], held[k, f]
                w, b = reference(z[k][t], y[k][t], s[k][t], lam)
                logit = torch.as_tensor(z[k][h].numpy() @ w + b)
                total += float((torch.nn.functional.softplus(logit) - y[k][h] * logit).sum())
            losses.append(total)
        assert chosen[k].item() == pytest.approx(fit.LAMBDAS[int(np.argmin(losses))])


def test_standardise_uses_training_statistics_and_spares_still_dimensions():
    g = torch.Generator().manual_seed(0)
    rows = torch.randn(50, 6, generator=g) * torch.tensor([1.0, 5.0, 0.1, 0.0, 1e-9, 1.0]) + 3
    mean, scale = statistics(rows)
    assert scale[3] == 1  # constant: no division by zero, and its weight stays 0
    assert scale[4] == 1
    z = standardise(rows, mean, scale)
    torch.testing.assert_close(z[:, :3].std(dim=0, correction=0) * 6**0.5, torch.ones(3), rtol=1e-4, atol=0)
    assert z[:, 3].abs().max() < 1e-6


def test_huge_activations_do_not_spoil_the_fit():
    """A dimension of 10⁵, as in Gemma: standardised, the fit is that of ordinary data."""
    z, y = problems(4, 40, 30, seed=7, dtype=torch.float32)
    raw = z.clone()
    raw[:, :, 0] = raw[:, :, 0] * 3e4 + 1e5
    rows = raw.flatten(0, 1)
    mean, scale = statistics(rows)
    clean_mean, clean_scale = statistics(z.flatten(0, 1))
    s = torch.ones_like(y)
    a, b = standardise(raw, mean, scale), standardise(z, clean_mean, clean_scale)
    f = [(t @ weights(solve(t, y, s, 0.03)[0], t)[:, :, None])[:, :, 0] for t in (a, b)]
    torch.testing.assert_close(f[0], f[1], rtol=0, atol=0.02)


def test_mlp_heads_do_not_see_their_batch_and_learn_what_no_line_can():
    g = torch.Generator().manual_seed(0)
    z = torch.randn(3, 200, 10, generator=g)
    y = (z[:, :, 0] * z[:, :, 1] > 0).float()  # exclusive or
    z = z / 10**0.5
    s = torch.ones_like(y)
    options = {"hidden": 32, "epochs": 300, "learning_rate": 1e-2}
    batch = fit_mlp(z, y, s, [1, 2, 3], **options)
    alone = fit_mlp(z[1:2], y[1:2], s[1:2], [2], **options)

    def logits(m, k, rows):
        return torch.relu(rows @ m["up"][k] + m["shift"][k]) @ m["down"][k] + m["bias"][k]

    torch.testing.assert_close(logits(batch, 1, z[1]), logits(alone, 0, z[1]), rtol=0, atol=0.05)
    assert ((logits(batch, 0, z[0]) > 0) == (y[0] > 0)).float().mean() > 0.95
    linear = weights(solve(z, y, s, 0.01)[0], z)
    assert (((z[0] @ linear[0]) > 0) == (y[0] > 0)).float().mean() < 0.7
