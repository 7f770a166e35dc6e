"""The LM step as arithmetic: it descends, keeps its budget, and its certificate never lies."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from probe_reference import gradient, objective, sigmoid

from interp.probe import lm

SETTINGS = settings(max_examples=300)


def vector(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


class Pair:
    """One pair in dense form, with what `lm` wants to know of it (q = 1, so w̃ = w)."""

    def __init__(self, x: np.ndarray, positive: np.ndarray, ridge: float) -> None:
        self.x, self.positive, self.ridge = x, positive, ridge

    def loss(self, b: float, w: float) -> float:
        return objective(self.x, self.positive, b, w, self.ridge)

    def g(self, b: float, w: float) -> torch.Tensor:
        return torch.tensor(gradient(self.x, self.positive, b, w, self.ridge))[:, None]

    def h(self, b: float, w: float) -> torch.Tensor:
        z = b + w * self.x
        v = sigmoid(z) * sigmoid(-z)
        parts = v.mean() + self.ridge, np.mean(v * self.x), np.mean(v * self.x**2) + self.ridge
        return vector(*parts)[:, None]

    @property
    def range(self) -> tuple[torch.Tensor, torch.Tensor]:
        low, high = min(0.0, self.x.min()), max(0.0, self.x.max())
        return vector(low), vector(high)


values = st.one_of(st.just(0.0), st.floats(0.01, 8.0), st.floats(-8.0, -0.01))


@st.composite
def pairs(draw: st.DrawFn) -> Pair:
    n = draw(st.integers(2, 25))
    x = np.array(draw(st.lists(values, min_size=n, max_size=n)))
    positive = np.array(draw(st.lists(st.booleans(), min_size=n, max_size=n))).astype(np.float64)
    return Pair(x, positive, draw(st.sampled_from([1e-8, 1e-3])))


points = st.tuples(st.floats(-12.0, 12.0), st.floats(-8.0, 8.0))


def step_of(pair: Pair, b: float, w: float, db: float, dw: float) -> lm.Step:
    """The step (db, dw) from (b, w) with everything a certificate needs."""
    g, h = pair.g(b, w), pair.h(b, w)
    d = vector(db), vector(dw)
    low, high = pair.range
    delta = torch.stack([d[0].abs(), (d[0] + d[1] * low).abs(), (d[0] + d[1] * high).abs()]).amax(0)
    curvature = h[0] * d[0] ** 2 + 2 * h[1] * d[0] * d[1] + h[2] * d[1] ** 2
    slope = -(g[0] * d[0] + g[1] * d[1])
    return lm.Step(*d, slope, curvature, delta, torch.zeros(1, dtype=torch.bool))


@SETTINGS
@given(
    pairs(), points, st.tuples(st.floats(-6.0, 6.0), st.floats(-3.0, 3.0)), st.sampled_from([1.0, 1e-1, 1e-3])
)
def test_certified_decrease_is_a_true_lower_bound(
    pair: Pair, at: tuple[float, float], d: tuple[float, float], shrink: float
) -> None:
    """Any step, good or bad, long or short: the loss falls by at least what is certified."""
    b, w, db, dw = *at, d[0] * shrink, d[1] * shrink
    step = step_of(pair, b, w, db, dw)
    certified = float(lm.certified_decrease(step, pair.g(b + db, w + dw), pair.h(b + db, w + dw)))
    before, after = pair.loss(b, w), pair.loss(b + db, w + dw)
    rounding = 4e-15 * (1.0 + before)
    assert certified <= before - after + rounding


@SETTINGS
@given(pairs(), points, st.floats(1e-12, 1e-2))
def test_certificate_proves_short_downhill_steps(pair: Pair, at: tuple[float, float], length: float) -> None:
    """Not only true but useful: a short step against the gradient is always proven to descend."""
    g = pair.g(*at)
    assume(float(g.abs().max()) > 1e-6)
    size = length / float(1.0 + pair.x.max() - pair.x.min()) ** 2
    d = -size * g[:, 0]
    step = step_of(pair, *at, float(d[0]), float(d[1]))
    new = at[0] + float(d[0]), at[1] + float(d[1])
    assert float(lm.certified_decrease(step, pair.g(*new), pair.h(*new))) > 0.0


def test_certificate_is_tight_where_the_loss_is_quadratic() -> None:
    """A vanishing step on a smooth pair: certified and actual decrease agree to many digits."""
    rng = np.random.default_rng(0)
    pair = Pair(rng.exponential(1.0, 50), (rng.random(50) < 0.4).astype(float), 1e-8)
    db, dw = 1e-4, -2e-4
    step = step_of(pair, -0.3, 0.2, db, dw)
    certified = float(lm.certified_decrease(step, pair.g(-0.3 + db, 0.2 + dw), pair.h(-0.3 + db, 0.2 + dw)))
    actual = pair.loss(-0.3, 0.2) - pair.loss(-0.3 + db, 0.2 + dw)
    assert certified == pytest.approx(actual, rel=1e-3)


def test_a_nan_certifies_nothing_and_is_rejected() -> None:
    pair = Pair(np.array([0.0, 1.0, 2.0]), np.array([0.0, 1.0, 0.0]), 1e-8)
    step = step_of(pair, 0.0, 0.0, 0.1, 0.1)
    broken = torch.full((2, 1), float("nan"), dtype=torch.float64)
    decrease = lm.certified_decrease(step, broken, pair.h(0.1, 0.1))
    accepted, lam = lm.shrink_or_grow(vector(1e-3), step, broken, decrease, 0.1, 10.0)
    assert not bool(accepted)
    assert float(lam) == pytest.approx(1e-2)


@SETTINGS
@given(pairs(), points, st.sampled_from([0.1, 1.0, 6.0, 1e6]))
def test_the_fallback_never_climbs(pair: Pair, at: tuple[float, float], budget: float) -> None:
    """Also where the Newton model is useless: deep in saturation, and cut short by the budget."""
    g, h = pair.g(*at), pair.h(*at)
    bound = vector(0.25 + pair.ridge, 0.25 * np.mean(pair.x**2) + pair.ridge)[:, None]
    theta = vector(*at)[:, None]
    step = lm.descend(theta, g, bound, h, *pair.range, budget)
    before, after = pair.loss(*at), pair.loss(at[0] + float(step.db), at[1] + float(step.dw))
    assert after <= before + 4e-15 * (1.0 + before)
    if float(g.abs().max()) > 1e-3 and not bool(step.clipped):
        assert after < before
    assert float(step.slope) >= 0.0


@SETTINGS
@given(pairs(), points, st.sampled_from([1e-12, 1e-3, 1.0, 1e6]), st.sampled_from([0.5, 6.0, 1e9]))
def test_a_proposed_step_solves_the_damped_system_within_the_budget(
    pair: Pair, at: tuple[float, float], lam: float, budget: float
) -> None:
    g, h = pair.g(*at), pair.h(*at)
    theta, low_high = vector(*at)[:, None], pair.range
    step = lm.propose(theta, g, h, vector(lam), *low_high, budget)
    assert float(step.slope) >= 0.0, "a damped Newton step descends at first"
    matrix = np.array([[h[0, 0], h[1, 0]], [h[1, 0], h[2, 0]]], np.float64)
    matrix += lam * np.diag(np.diag(matrix))
    assume(np.linalg.cond(matrix) < 1e8)
    want = np.linalg.solve(matrix, -g[:, 0].numpy())
    got = np.array([float(step.db), float(step.dw)])
    if not bool(step.clipped):
        np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-9 * np.abs(want).max())
    else:  # same direction, shorter
        assert abs(got[0] * want[1] - got[1] * want[0]) <= 1e-6 * np.linalg.norm(got) * np.linalg.norm(want)
        assert np.linalg.norm(got) <= np.linalg.norm(want)
    # No unsaturated logit of any row moves by more than the budget.
    z, move = at[0] + at[1] * pair.x, got[0] + got[1] * pair.x
    assert (np.abs(move[np.abs(z) <= budget]) <= budget * (1.0 + 1e-9)).all()
    full = max(abs(got[0]), *np.abs(move))
    assert float(step.delta) >= full * (1.0 - 1e-9), "the certificate must know of every row's move"


def test_lambda_shrinks_on_good_steps_and_grows_on_bad_ones() -> None:
    rng = np.random.default_rng(1)
    pair = Pair(rng.exponential(1.0, 80), (rng.random(80) < 0.4).astype(float), 1e-8)
    g, h = pair.g(0.0, 0.0), pair.h(0.0, 0.0)
    newton = lm.propose(vector(0.0, 0.0)[:, None], g, h, vector(0.0), *pair.range, 1e9)
    outcomes = {}
    for name, factor in (("good", 1.0), ("far too long", 40.0)):
        db, dw = factor * float(newton.db), factor * float(newton.dw)
        step = step_of(pair, 0.0, 0.0, db, dw)
        decrease = lm.certified_decrease(step, pair.g(db, dw), pair.h(db, dw))
        accepted, lam = lm.shrink_or_grow(vector(1.0), step, pair.g(db, dw), decrease, 0.1, 10.0)
        outcomes[name] = bool(accepted), float(lam)
    assert outcomes == {"good": (True, pytest.approx(0.1)), "far too long": (False, pytest.approx(10.0))}


def test_lambda_never_leaves_its_range() -> None:
    step = lm.Step(*(torch.ones(1) for _ in range(5)), torch.zeros(1, dtype=torch.bool))
    bad = vector(float("nan"))
    _, lam = lm.shrink_or_grow(vector(1e15), step, torch.ones(2, 1), bad, 0.1, 10.0)
    assert float(lam) == pytest.approx(1e15)


@SETTINGS
@given(pairs(), points)
def test_the_decrement_is_half_gh_inverse_g(pair: Pair, at: tuple[float, float]) -> None:
    g, h = pair.g(*at), pair.h(*at)
    matrix = np.array([[h[0, 0], h[1, 0]], [h[1, 0], h[2, 0]]], np.float64)
    assume(np.linalg.cond(matrix) < 1e8)
    want = 0.5 * g[:, 0].numpy() @ np.linalg.solve(matrix, g[:, 0].numpy())
    assert float(lm.decrement(g, h)) == pytest.approx(want, rel=1e-6, abs=1e-18)
