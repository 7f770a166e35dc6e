r"""One Levenberg–Marquardt iteration of many pairs, but for the sums over their events.

These functions run in TorchScript (see `interp.threads.without_gil`), which reads annotations as they
are: no ``from __future__ import annotations`` here, nor in `interp.probe.lm`. For a named tuple that it
returns, TorchScript makes a new class at every call, at a quarter millisecond: they return lists.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from interp.probe import lm
from interp.threads import without_gil

__all__ = ["STATUS", "Active", "derivatives", "has_converged", "judged", "proposed", "still_live"]

#: What became of a pair; the position in this tuple is its code.
STATUS = (
    "not_started",
    "converged",
    "separable",
    "max_iter",
    "lm_failed",
    "dead",
    "absent_class",
    "needs_polish",
)
NOT_STARTED, CONVERGED, SEPARABLE, MAX_ITER, LM_FAILED, DEAD, ABSENT_CLASS, NEEDS_POLISH = range(len(STATUS))


class Active(NamedTuple):
    """The pairs still iterated, side by side. All tensors have a last axis of length n_active.

    What an iteration reads and writes is here; the arrays of all pairs are brought up to date when
    pairs leave, or when somebody looks (`Part.gather`).
    """

    at: Tensor
    live: Tensor
    b: Tensor
    w: Tensor
    g: Tensor
    h: Tensor
    lam: Tensor
    retries: Tensor
    n_iter: Tensor
    n_fail: Tensor
    status: Tensor
    prior: Tensor
    n_class: Tensor
    label_sum: Tensor
    n_zero: Tensor
    x_low: Tensor
    x_high: Tensor
    squares: Tensor
    ridge_w: Tensor


#: What an iteration changes of `Active`, in the order of `_judged`.
_MOVED = ("live", "b", "w", "g", "h", "lam", "retries", "n_iter", "n_fail", "status")


def derivatives(
    a: Active, b: Tensor, w: Tensor, sums: Tensor, n: float, ridge: float
) -> tuple[Tensor, Tensor]:
    """Gradient [2, ·] and Hessian [3, ·] from the sums over the non-zeros (equation in `lm`), float."""
    p = torch.sigmoid(b)
    zeros = a.n_zero * p
    g = torch.stack(
        (
            (sums[0] + zeros - a.n_class) / n + ridge * (b - a.prior),
            (sums[1] - a.label_sum) / n + a.ridge_w * w,
        )
    )
    h = torch.stack(
        (
            (sums[2] + zeros * (1.0 - p)) / n + ridge,
            sums[3] / n,
            sums[4] / n + a.ridge_w,
        )
    )
    return g, h


def has_converged(g: Tensor, h: Tensor, tol: float) -> Tensor:
    """Whether the gradient is at most `tol`, and the loss within 1e-4·tol of the optimum to second order.

    Of gradients `g` [2, n] and Hessians `h` [3, n]; bool [n].

    A small gradient alone says little where the curvature is small: for a class of prevalence 1e-6,
    |g| = 1e-6 can still mean an excess loss of 5e-7, a twentieth of the loss itself.
    """
    return _has_converged(_size(g), g, h, tol)


def _has_converged(size: Tensor, g: Tensor, h: Tensor, tol: float) -> Tensor:
    return (size <= tol) & (lm.decrement(g, h) <= 1e-4 * tol)


def _size(g: Tensor) -> Tensor:
    return torch.maximum(g[0].abs(), g[1].abs())


def proposed(a: Active, n: float, ridge: float, delta_logit: float, max_retries: int) -> lm.Step:
    """The next step of every pair: Newton's, or the fallback after too many rejected ones."""
    return lm.Step(*_proposed(a, n, ridge, delta_logit, max_retries))


@without_gil
def _proposed(a: Active, n: float, ridge: float, delta_logit: float, max_retries: int) -> list[Tensor]:
    theta = torch.stack((a.b, a.w))
    step = lm.propose(theta, a.g, a.h, a.lam, a.x_low, a.x_high, delta_logit)
    falling_back = a.retries > max_retries
    if bool(falling_back.any()):
        bound = torch.stack((torch.full_like(a.b, 0.25 + ridge), 0.25 * a.squares / n + a.ridge_w))
        safe = lm.descend(theta, a.g, bound, a.h, a.x_low, a.x_high, delta_logit)
        step = lm.choose(falling_back, safe, step)
    return [step.db, step.dw, step.slope, step.curvature, step.delta, step.clipped]


def judged(
    a: Active,
    step: lm.Step,
    sums: Tensor,
    n: float,
    tol: float,
    ridge: float,
    lam_init: float,
    lam_shrink: float,
    lam_grow: float,
    delta_logit: float,
    max_retries: int,
    all_live: bool,
    look: int,
) -> tuple[Active, Tensor, Tensor]:
    """Where the pairs are after `step`, at whose end the sums are `sums`.

    Parameters
    ----------
    a : Active
    step : Step
    sums : Tensor, shape [5, n_active]
        Of `interp.probe.layout.Layout.sums`, at the step's end.
    n : float
        Rows of the data.
    tol, ridge, lam_init, lam_shrink, lam_grow, delta_logit : float
    max_retries : int
        See `interp.Sparse1DProbe`.
    all_live : bool
        Whether all of `a` are live (at least one is).
    look : int
        Of how many pairs one lambda is told; 0 for nobody who listens.

    Returns
    -------
    active : Active
    counts : Tensor of int64, shape [4]
        Pairs still live, failed, rejected and clipped.
    told : Tensor of float, shape [n]
        Of the pairs that took the step: smallest and largest lambda, largest component of a scaled gradient,
        then lambda of one in `look`. Empty where `look` is 0.
    """
    *moved, counts, told = _judged(
        a, step, sums, n, tol, ridge, lam_init, lam_shrink, lam_grow, delta_logit, max_retries, all_live, look
    )
    return a._replace(**dict(zip(_MOVED, moved, strict=True))), counts, told


@without_gil
def _judged(
    a: Active,
    step: lm.Step,
    sums: Tensor,
    n: float,
    tol: float,
    ridge: float,
    lam_init: float,
    lam_shrink: float,
    lam_grow: float,
    delta_logit: float,
    max_retries: int,
    all_live: bool,
    look: int,
    code_converged: int = CONVERGED,
    code_failed: int = LM_FAILED,
) -> list[Tensor]:
    b, w = a.b + step.db, a.w + step.dw
    g, h = derivatives(a, b, w, sums, n, ridge)
    decrease = lm.certified_decrease(step, g, h)
    accepted, lam = lm.shrink_or_grow(a.lam, step, g, decrease, lam_shrink, lam_grow)
    # Pairs that have ended but are not compacted away yet stay where they are.
    accepted = accepted & a.live
    rejected = a.live & ~accepted
    b, w = torch.where(accepted, b, a.b), torch.where(accepted, w, a.w)
    g, h = torch.where(accepted, g, a.g), torch.where(accepted, h, a.h)
    falling_back = a.retries > max_retries
    after = torch.where(accepted & falling_back, torch.full_like(lam, lam_init), lam)
    retries = torch.where(accepted, torch.zeros_like(a.retries), a.retries + rejected.int())
    failed = rejected & (retries == max_retries + 1)
    given_up = rejected & falling_back
    size = _size(g)
    told = _told(lam, size, a.live, all_live, look)
    converged = a.live & _has_converged(size, g, h, tol)
    status = torch.where(given_up, torch.full_like(a.status, code_failed), a.status)
    status = torch.where(converged, torch.full_like(a.status, code_converged), status)
    live = a.live & ~converged & ~given_up
    counts = torch.stack((live.sum(), failed.sum(), rejected.sum(), (step.clipped & a.live).sum()))
    return [
        live,
        b,
        w,
        g,
        h,
        torch.where(a.live, after, a.lam),
        retries,
        a.n_iter + a.live.int(),
        a.n_fail + failed.int(),
        status,
        counts,
        told,
    ]


def _told(lam: Tensor, size: Tensor, live: Tensor, all_live: bool, look: int) -> Tensor:
    if look == 0:
        return lam[:0]
    sample = lam[::look]
    if not all_live:
        sample = sample.masked_select(live[::look])
        # Pairs that had ended take values that change no extreme: they are few, a selection copies the many.
        ended = torch.nonzero(~live).squeeze(1)
        lam = lam.index_fill(0, ended, lam[live.int().argmax()])
        size = size.index_fill(0, ended, 0.0)
    return torch.cat((torch.stack((lam.min(), lam.max(), size.max())), sample))


def still_live(a: Active) -> Active:
    """The pairs that are still iterated."""
    return Active(*_still_live(a))


@without_gil
def _still_live(a: Active) -> list[Tensor]:
    index = torch.nonzero(a.live).squeeze(1)
    return [
        a.at.index_select(0, index),
        a.live.index_select(0, index),
        a.b.index_select(0, index),
        a.w.index_select(0, index),
        a.g.index_select(1, index),
        a.h.index_select(1, index),
        a.lam.index_select(0, index),
        a.retries.index_select(0, index),
        a.n_iter.index_select(0, index),
        a.n_fail.index_select(0, index),
        a.status.index_select(0, index),
        a.prior.index_select(0, index),
        a.n_class.index_select(0, index),
        a.label_sum.index_select(0, index),
        a.n_zero.index_select(0, index),
        a.x_low.index_select(0, index),
        a.x_high.index_select(0, index),
        a.squares.index_select(0, index),
        a.ridge_w.index_select(0, index),
    ]
