r"""One damped Newton step for many logistic probes at once: pure functions on tensors.

A probe has intercept b and slope w. Everything here works in the latent's own unit, the RMS q of its
non-zeros: x̃ = x/q and w̃ = q·w, so that a step is the same whatever scale x was recorded in. With the
objective of `interp.probe.fit`, gradient and Hessian with respect to (b, w̃) are

.. math::

    g = \tfrac1n\Bigl(\sum_j \sigma(z_j) - N_c,\; \sum_j \tilde x_j\sigma(z_j) - \tilde S_{lc}\Bigr)
        + \rho\,(b - b_c,\; \tilde w/q^2), \qquad
    H = \tfrac1n\sum_j \sigma'(z_j)\,(1, \tilde x_j)(1, \tilde x_j)^\top + \rho\,\mathrm{diag}(1, q^{-2}).

A step d solves (H + λ diag H) d = −g and is shortened until no logit that matters moves by more than
`delta_logit`. A logit that is saturated and only gets more so does not matter: where a latent's large values
are long decided, its small ones may still need a slope ten times as steep.

**Every accepted step lowers the loss, and no loss is evaluated to know it.** Along the step,
φ(t) = L(θ + t d) has |φ'''| ≤ δ φ'' with δ = max_j |Δz_j|, because |σ''| ≤ σ' (and the ridge is
quadratic). Curvature can therefore change by at most e^{δt}, and the two gradients at the ends bound
the loss between them; see `certified_decrease`. It is exact to the last bit where a difference of two
losses would be rounding noise, and saves the logarithms, which cost twice the rest of an evaluation.
"""

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Step", "certified_decrease", "choose", "decrement", "descend", "propose", "shrink_or_grow"]


class Step(NamedTuple):
    """A proposed step of each pair.

    Attributes
    ----------
    db, dw : Tensor of float, shape [n_pairs]
        Change of the intercept and of the slope (in units of 1/q).
    slope : Tensor of float, shape [n_pairs]
        −g·d, the rate of descent along the step; positive where the step descends.
    curvature : Tensor of float, shape [n_pairs]
        d·H·d at the start of the step.
    delta : Tensor of float, shape [n_pairs]
        Largest change of a logit.
    clipped : Tensor of bool, shape [n_pairs]
        Whether the step was shortened to the logit budget.
    """

    db: Tensor
    dw: Tensor
    slope: Tensor
    curvature: Tensor
    delta: Tensor
    clipped: Tensor


def _quadratic(h: Tensor, db: Tensor, dw: Tensor) -> Tensor:
    return h[0] * db * db + 2.0 * h[1] * db * dw + h[2] * dw * dw


def _solve2(h00: Tensor, h01: Tensor, h11: Tensor, r0: Tensor, r1: Tensor) -> tuple[Tensor, Tensor]:
    """Solve the symmetric positive definite 2×2 system by elimination (no determinant to underflow)."""
    ratio = h01 / h00
    schur = h11 - ratio * h01
    # In exact arithmetic the Schur complement is positive; where rounding took it, only a
    # curvature of the size of the rounding error itself is defensible.
    eps = 2.0**-52 if h11.dtype == torch.float64 else 2.0**-23
    schur = torch.maximum(schur, eps * h11)
    s1 = (r1 - ratio * r0) / schur
    return (r0 - h01 * s1) / h00, s1


def propose(
    theta: Tensor, g: Tensor, h: Tensor, lam: Tensor, x_low: Tensor, x_high: Tensor, delta_logit: float
) -> Step:
    """The damped Newton step of every pair, within the logit budget.

    Parameters
    ----------
    theta : Tensor, shape [2, n_pairs]
        Where the pairs are (b, w̃).
    g : Tensor, shape [2, n_pairs]
        Gradient (∂b, ∂w̃).
    h : Tensor, shape [3, n_pairs]
        Hessian (bb, bw̃, w̃w̃).
    lam : Tensor, shape [n_pairs]
        Damping.
    x_low, x_high : Tensor, shape [n_pairs]
        Range of the latent's values in units of q, zero included.
    delta_logit : float
        Largest change of a logit that a step may make.

    Returns
    -------
    Step
    """
    grow = 1.0 + lam
    db, dw = _solve2(h[0] * grow, h[1], h[2] * grow, -g[0], -g[1])
    return _within_budget(theta, db, dw, g, h, x_low, x_high, delta_logit)


def descend(
    theta: Tensor, g: Tensor, h_bound: Tensor, h: Tensor, x_low: Tensor, x_high: Tensor, delta_logit: float
) -> Step:
    """The fallback: steepest descent with the step length that can never climb, 1/(global curvature).

    `h_bound` ``[2, n_pairs]`` bounds the diagonal of H everywhere (σ' ≤ 1/4). Twice its diagonal bounds
    H itself, so the step −g / (2·h_bound) lowers the loss wherever it is taken.
    """
    db, dw = -g[0] / (2.0 * h_bound[0]), -g[1] / (2.0 * h_bound[1])
    return _within_budget(theta, db, dw, g, h, x_low, x_high, delta_logit)


def choose(mask: Tensor, a: Step, b: Step) -> Step:
    """The steps of `a` where `mask` is True, of `b` elsewhere."""
    return Step(
        torch.where(mask, a.db, b.db),
        torch.where(mask, a.dw, b.dw),
        torch.where(mask, a.slope, b.slope),
        torch.where(mask, a.curvature, b.curvature),
        torch.where(mask, a.delta, b.delta),
        torch.where(mask, a.clipped, b.clipped),
    )


def _within_budget(
    theta: Tensor,
    db: Tensor,
    dw: Tensor,
    g: Tensor,
    h: Tensor,
    x_low: Tensor,
    x_high: Tensor,
    delta_logit: float,
) -> Step:
    matters = db.abs()
    delta = matters
    for x in (x_low, x_high):
        move = db + dw * x
        delta = torch.maximum(delta, move.abs())
        z = theta[0] + theta[1] * x
        deeper = (z.abs() > delta_logit) & (move * z > 0.0)
        # The nearest value whose logit is not saturated; 0 if there is none on this side.
        edge = (torch.copysign(torch.full_like(z, delta_logit), z) - theta[0]) / theta[1]
        edge = torch.where(edge * (x - edge) > 0.0, edge, torch.zeros_like(edge))
        matters = torch.maximum(matters, torch.where(deeper, db + dw * edge, move).abs())
    clipped = matters > delta_logit
    scale = torch.where(clipped, delta_logit / matters, 1.0)
    db, dw = db * scale, dw * scale
    return Step(db, dw, -(g[0] * db + g[1] * dw), _quadratic(h, db, dw), delta * scale, clipped)


def certified_decrease(step: Step, g_new: Tensor, h_new: Tensor) -> Tensor:
    r"""A lower bound of L(θ) − L(θ + d), from gradients and curvatures at both ends.

    With a = −φ'(0), b = φ'(1), s₀ = φ''(0), s₁ = φ''(1) and φ''(t) between e^{−δ|t−u|} φ''(u) and
    e^{δ|t−u|} φ''(u), three bounds hold, and the best of them is returned:

    1. a − (a + b)·(1/(1 − e^{−δ}) − 1/δ): all curvature as early as it can come;
    2. a − s₀·((e^{δ} − 1)/δ − 1)/δ: curvature growing from the start as fast as it can;
    3. −b + s₁·(1 − (1 − e^{−δ})/δ)/δ: curvature at least what it must have been to reach s₁.

    Parameters
    ----------
    step : Step
    g_new : Tensor, shape [2, n_pairs]
    h_new : Tensor, shape [3, n_pairs]
        Gradient and Hessian at the step's end.

    Returns
    -------
    Tensor of float, shape [n_pairs]
        Positive where the step is proven to lower the loss; NaN where an input is NaN.
    """
    a, d = step.slope, step.delta.clamp(min=1e-6)
    b = g_new[0] * step.db + g_new[1] * step.dw
    s1 = _quadratic(h_new, step.db, step.dw)
    decay = -torch.expm1(-d)  # 1 − e^{−δ}
    # For δ → 0 the factors tend to 1/2. Where the closed forms cancel, series stand in, cut on the safe
    # side: early and ahead from above, behind from below.
    small = d < 1e-2
    early = torch.where(small, 0.5 + d / 12.0, 1.0 / decay - 1.0 / d)
    ahead = torch.where(small, 0.5 + d / 6.0 + d * d / 24.0 + d**3 / 100.0, (torch.expm1(d) / d - 1.0) / d)
    behind = torch.where(small, 0.5 - d / 6.0, (1.0 - decay / d) / d)
    best = torch.maximum(a - (a + b) * early, a - step.curvature * ahead)
    return torch.maximum(best, s1 * behind - b)


def shrink_or_grow(
    lam: Tensor, step: Step, g_new: Tensor, decrease: Tensor, lam_shrink: float, lam_grow: float
) -> tuple[Tensor, Tensor]:
    """Accept or reject each step and move its damping.

    Parameters
    ----------
    lam : Tensor, shape [n_pairs]
        Damping so far.
    step : Step
    g_new : Tensor, shape [2, n_pairs]
        Gradient at the step's end.
    decrease : Tensor, shape [n_pairs]
        From `certified_decrease`.
    lam_shrink, lam_grow : float
        Factors of the damping after a good and after a bad step.

    Returns
    -------
    accepted : Tensor of bool, shape [n_pairs]
        Steps whose certified decrease is positive.
    lam : Tensor of float, shape [n_pairs]
        Shrunk where the step did at least half of what the quadratic model predicted, grown where it
        did less than a tenth or was rejected. What it did is judged by the mean of the two end slopes:
        the certificate is a lower bound, too careful to steer by where far logits move a long way.
    """
    accepted = decrease > 0.0
    predicted = step.slope - 0.5 * step.curvature
    actual = 0.5 * (step.slope - (g_new[0] * step.db + g_new[1] * step.dw))
    ratio = actual / predicted
    lam = torch.where(accepted & (ratio > 0.5), lam * lam_shrink, lam)
    # A NaN is neither above nor below: it counts as rejected.
    lam = torch.where(~(accepted & (ratio >= 0.1)), lam * lam_grow, lam)
    return accepted, lam.clamp(1e-15, 1e15)


def decrement(g: Tensor, h: Tensor) -> Tensor:
    """Half the squared Newton decrement, ½ gᵀH⁻¹g: what the loss can still fall, to second order.

    Of gradients `g` [2, n_pairs] and Hessians `h` [3, n_pairs]; float, [n_pairs].
    """
    db, dw = _solve2(h[0], h[1], h[2], g[0], g[1])
    return 0.5 * (g[0] * db + g[1] * dw)
