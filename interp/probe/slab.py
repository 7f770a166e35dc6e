"""One slab of probes: every latent × a few classes, iterated until each pair has ended."""

from __future__ import annotations

import time
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from interp.probe import lm
from interp.probe.nodes import Nodes, one_torch_thread

__all__ = ["STATUS", "Iteration", "Problem", "Rules", "Slab"]

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


class Rules(NamedTuple):
    """The parameters of the iteration; see `interp.Sparse1DProbe`."""

    max_iter: int
    tol: float
    ridge: float
    lam_init: float
    lam_shrink: float
    lam_grow: float
    delta_logit: float
    max_retries: int

    @property
    def tol_loss(self) -> float:
        """How far a converged loss may be above the optimum, to second order.

        A small gradient alone says little where the curvature is small: for a class of prevalence
        1e-6, |g| = 1e-6 can still mean an excess loss of 5e-7, a twentieth of the loss itself.
        """
        return 1e-4 * self.tol


class Problem(NamedTuple):
    """Everything about the data but the nodes, on the device. Slopes are in units of 1/q.

    Attributes
    ----------
    n : int
        Rows of the data.
    n_zero : Tensor, shape [n_rows]
        Rows at which the latent is zero.
    moments : Tensor, shape [n_rows, 3]
        Number, sum and sum of squares of x̃ over the non-zeros.
    x_low, x_high, q : Tensor, shape [n_rows]
        Range of x̃ (zero included) and unit of each latent.
    label_sums : Tensor, shape [n_rows, n_classes]
        S̃ = S / q.
    class_counts : Tensor, shape [n_classes]
        N_c.
    """

    n: int
    n_zero: Tensor
    moments: Tensor
    x_low: Tensor
    x_high: Tensor
    q: Tensor
    label_sums: Tensor
    class_counts: Tensor

    def prior(self) -> Tensor:
        """b_c, the logit of the prevalence, clipped to [1e-8, 1 − 1e-8]; shape [n_classes]."""
        return torch.logit((self.class_counts / self.n).clamp(1e-8, 1.0 - 1e-8))


class Iteration(NamedTuple):
    """What one iteration did (see `interp.events.IterationEnd`)."""

    n_active: int
    n_fail: int
    n_rejected: int
    n_clipped: int
    seconds: float


class Slab:
    """The pairs (all rows of a node set) × (some classes).

    Parameters
    ----------
    problem : Problem
    nodes : Nodes
        Node set of the same rows.
    classes : Tensor of int64, shape [c]
    rules : Rules
    block_elements : int
        Working set of an evaluation.
    start : tuple of (b, w̃), each of shape [n_rows, c], optional
        Where to begin; by default at w = 0 and b = b_c, where everything is known in closed form.
    only : Tensor of bool, shape [n_rows, c], optional
        The pairs to solve; by default all.
    """

    @one_torch_thread()
    def __init__(
        self,
        problem: Problem,
        nodes: Nodes,
        classes: Tensor,
        rules: Rules,
        block_elements: int,
        *,
        start: tuple[Tensor, Tensor] | None = None,
        only: Tensor | None = None,
    ) -> None:
        self.problem, self.nodes, self.rules = problem, nodes, rules
        self.block_elements = block_elements
        self.shape = (nodes.n_rows, len(classes))
        n_pairs = self.n_pairs
        self.device, self.dtype = problem.moments.device, problem.moments.dtype

        row = torch.arange(nodes.n_rows, device=self.device).repeat_interleave(len(classes))
        self.row = row
        self._prior = problem.prior()[classes].repeat(nodes.n_rows)
        self._count = problem.class_counts[classes].to(self.dtype).repeat(nodes.n_rows)
        self.label_sum = problem.label_sums[:, classes].reshape(-1)
        self._sums = torch.zeros(n_pairs, 5, device=self.device, dtype=self.dtype)

        self.iteration = 0
        self.n_iter = torch.zeros(n_pairs, dtype=torch.int32, device=self.device)
        self.n_fail = torch.zeros(n_pairs, dtype=torch.int32, device=self.device)
        self.status = torch.full((n_pairs,), MAX_ITER, dtype=torch.int8, device=self.device)
        self.lam = torch.full((n_pairs,), rules.lam_init, dtype=self.dtype, device=self.device)
        self._retries = torch.zeros(n_pairs, dtype=torch.int32, device=self.device)
        chosen = torch.ones(n_pairs, dtype=torch.bool, device=self.device)
        if only is not None:
            chosen = only.reshape(-1)
        if start is None:
            self.b, self.w = self._prior.clone(), torch.zeros(n_pairs, device=self.device, dtype=self.dtype)
            p = torch.sigmoid(self.b)[:, None]
            m = problem.moments[row]
            self._sums = torch.cat((p * m[:, :2], p * (1.0 - p) * m), dim=1)
        else:
            self.b, self.w = (t.reshape(-1).clone() for t in start)
            layout = nodes.layout(chosen.view(self.shape), block_elements)
            layout.sums(self.b, self.w, self._sums)
        everything = torch.arange(n_pairs, device=self.device)
        self.g, self.h = self._derivatives(everything, self.b, self.w)
        at_start = self._has_converged(self.g, self.h)
        self.status[at_start] = CONVERGED
        self.inert = at_start & chosen
        self._compact(torch.nonzero(chosen & ~at_start).squeeze(1))

    # ------------------------------------------------------------------------------ iterating

    @property
    def n_pairs(self) -> int:
        return self.shape[0] * self.shape[1]

    @property
    def n_active(self) -> int:
        return len(self._at) if self._live is None else int(self._live.sum())

    @property
    def done(self) -> bool:
        return self.iteration >= self.rules.max_iter or self.n_active == 0

    @one_torch_thread()
    def iterate(self) -> Iteration:
        """One LM iteration of every active pair."""
        began = time.perf_counter()
        rules, at = self.rules, self._at
        live = torch.ones(len(at), dtype=torch.bool, device=self.device) if self._live is None else self._live
        b, w, g, h, lam, retries = (
            self.b[at],
            self.w[at],
            self.g[:, at],
            self.h[:, at],
            self.lam[at],
            self._retries[at],
        )
        row = self.row[at]
        x_low, x_high = self.problem.x_low[row], self.problem.x_high[row]
        theta = torch.stack((b, w))
        step = lm.propose(theta, g, h, lam, x_low, x_high, rules.delta_logit)
        falling_back = retries > rules.max_retries
        if bool(falling_back.any()):
            bound = self._curvature_bound(row)
            safe = lm.descend(theta, g, bound, h, x_low, x_high, rules.delta_logit)
            step = lm.Step(*(torch.where(falling_back, s, t) for s, t in zip(safe, step, strict=True)))

        # Pairs that have ended but are not compacted away yet are evaluated where they are.
        self.b[at] = torch.where(live, b + step.db, b)
        self.w[at] = torch.where(live, w + step.dw, w)
        self._layout.sums(self.b, self.w, self._sums)
        g_new, h_new = self._derivatives(at, self.b[at], self.w[at])
        decrease = lm.certified_decrease(step, g_new, h_new)
        accepted, lam = lm.shrink_or_grow(lam, step, g_new, decrease, rules.lam_shrink, rules.lam_grow)
        accepted &= live
        rejected = live & ~accepted

        self.b[at] = torch.where(rejected, b, self.b[at])
        self.w[at] = torch.where(rejected, w, self.w[at])
        g, h = torch.where(accepted, g_new, g), torch.where(accepted, h_new, h)
        self.g[:, at], self.h[:, at] = g, h
        lam = torch.where(accepted & falling_back, rules.lam_init, lam)
        self.lam[at] = lam
        self._recent = lam, g, live
        retries = torch.where(accepted, 0, retries + rejected)
        self._retries[at] = retries.to(torch.int32)
        self.iteration += 1
        self.n_iter[at] += live

        failed = rejected & (retries == rules.max_retries + 1)
        self.n_fail[at] += failed
        given_up = rejected & falling_back
        converged = live & self._has_converged(g, h)
        self.status[at] = torch.where(
            converged, CONVERGED, torch.where(given_up, LM_FAILED, self.status[at])
        ).to(torch.int8)
        clipped = (step.clipped & live).sum()
        live = live & ~converged & ~given_up
        counts = torch.stack((live.sum(), failed.sum(), rejected.sum(), clipped)).tolist()
        self._live = live
        # A compaction costs about as much as a tenth of an evaluation of all pairs.
        if counts[0] < 0.8 * len(at):
            self._compact(at[live])
        n_active, n_fail, n_rejected, n_clipped = counts
        return Iteration(n_active, n_fail, n_rejected, n_clipped, time.perf_counter() - began)

    def _compact(self, at: Tensor) -> None:
        """Keep the pairs `at` as the active ones and lay them out afresh."""
        active = torch.zeros(len(self.b), dtype=torch.bool, device=self.device)
        active[at] = True
        self._at, self._live = at, None
        self._layout = self.nodes.layout(active.view(self.shape), self.block_elements)

    _live: Tensor | None
    _recent: tuple[Tensor, Tensor, Tensor]

    def _derivatives(self, at: Tensor, b: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
        """Gradient [2, ·] and Hessian [3, ·] from the sums over the non-zeros (equation in `lm`)."""
        row = self.row[at]
        n, ridge, n_zero = self.problem.n, self.rules.ridge, self.problem.n_zero[row]
        over_q2 = ridge / self.problem.q[row] ** 2
        s = self._sums[at]
        p = torch.sigmoid(b)
        g = torch.stack(
            (
                (s[:, 0] + n_zero * p - self._count[at]) / n + ridge * (b - self._prior[at]),
                (s[:, 1] - self.label_sum[at]) / n + over_q2 * w,
            )
        )
        h = torch.stack(
            (
                (s[:, 2] + n_zero * p * (1.0 - p)) / n + ridge,
                s[:, 3] / n,
                s[:, 4] / n + over_q2,
            )
        )
        return g, h

    def _curvature_bound(self, row: Tensor) -> Tensor:
        over_q2 = self.rules.ridge / self.problem.q[row] ** 2
        squares = self.problem.moments[row, 2] / self.problem.n
        return torch.stack((torch.full_like(squares, 0.25 + self.rules.ridge), 0.25 * squares + over_q2))

    def _has_converged(self, g: Tensor, h: Tensor) -> Tensor:
        small = g.abs().amax(dim=0) <= self.rules.tol
        return small & (lm.decrement(g, h) <= self.rules.tol_loss)

    # ---------------------------------------------------------------------------- looking at it

    def active_extremes(self) -> tuple[tuple[float, float, float, float, float], float]:
        """Lambda (min, quartiles, max) and the largest scaled gradient of the pairs just iterated.

        Quartiles come from at most 512 of the pairs, evenly spaced.
        """
        lam, g, live = self._recent
        if not bool(live.all()):
            lam, g = lam[live], g[:, live]
        if not len(lam):
            return (float("nan"),) * 5, float("nan")
        sample = np.sort(lam[:: -(-len(lam) // 512)].cpu().numpy())
        q1, median, q3 = (float(sample[round(share * (len(sample) - 1))]) for share in (0.25, 0.5, 0.75))
        return (float(lam.min()), q1, median, q3, float(lam.max())), float(g.abs().max())

    @one_torch_thread()
    def losses(self, at: Tensor | None = None) -> Tensor:
        """Loss without the ridge of the pairs `at` (default all), by the node set."""
        chosen = torch.ones(len(self.b), dtype=torch.bool, device=self.device)
        if at is not None:
            chosen = torch.zeros_like(chosen)
            chosen[at] = True
        over_events = torch.zeros(len(self.b), dtype=self.dtype, device=self.device)
        self.nodes.layout(chosen.view(self.shape), self.block_elements).losses(self.b, self.w, over_events)
        at = torch.arange(len(self.b), device=self.device) if at is None else at
        b, w = self.b[at], self.w[at]
        zeros = self.problem.n_zero[self.row[at]] * torch.nn.functional.softplus(b, threshold=60.0)
        return (over_events[at] + zeros - b * self._count[at] - w * self.label_sum[at]) / self.problem.n

    @one_torch_thread()
    def inexact(self) -> Tensor:
        """Pairs for which the 2-point rule may not be exact enough; bool [n_pairs].

        The error bound on the gradient must be below `tol`, and what it can do to the loss below
        `tol_loss`.
        """
        return self._too_large(
            *self._rule_errors(torch.ones(len(self.b), dtype=torch.bool, device=self.device))
        )

    def hand_over(self) -> None:
        """End the active pairs that the rule can bring no further: the raw events must take over.

        Where its error bound exceeds both what is asked and what is left of the gradient, another step
        would follow the error; on a separable pair it would do so until the ridge stops it, far away.
        """
        at = self._at if self._live is None else self._at[self._live]
        active = torch.zeros(len(self.b), dtype=torch.bool, device=self.device)
        active[at] = True
        errors = self._rule_errors(active)
        lost = active & self._too_large(*errors) & (torch.maximum(*errors) > self.g.abs().amax(dim=0))
        if bool(lost.any()):
            self.status[lost] = NEEDS_POLISH
            self._compact(at[~lost[at]])

    def _rule_errors(self, wanted: Tensor) -> tuple[Tensor, Tensor]:
        """Bounds on the rule's error in ∂L/∂b and ∂L/∂w̃ of the pairs `wanted`; 0 for the others.

        A cheap bound with |x| ≤ max|x| in every bin clears most pairs; the rest pay for the bin by bin
        bound of `Layout.rule_errors`.
        """
        bounds = torch.zeros(len(self.b), 2, dtype=self.dtype, device=self.device)
        if any(bucket.e is None for bucket in self.nodes.buckets):
            return bounds[:, 0], bounds[:, 1]  # raw events: no rule
        row = self.row
        top = torch.maximum(self.problem.x_low[row].abs(), self.problem.x_high[row].abs())
        w = self.w.abs()
        crude = top**2 * self.h[2] * torch.exp((w * top / 16.0).clamp(max=300.0)) / (32.0**4 * 96.0)
        doubtful = wanted & self._too_large(crude * w**4, crude * (w**4 * top + 4.0 * w**3))
        if bool(doubtful.any()):
            self.nodes.layout(doubtful.view(self.shape), self.block_elements).rule_errors(
                self.b, self.w, bounds
            )
        return bounds[:, 0] / self.problem.n, bounds[:, 1] / self.problem.n

    def _too_large(self, error_b: Tensor, error_w: Tensor) -> Tensor:
        # With unknown signs, ½ eᵀH⁻¹e is largest where e points against the correlation in H.
        e = torch.stack((error_b, -torch.sign(self.h[1]) * error_w))
        small = torch.maximum(error_b, error_w) <= self.rules.tol
        return ~(small & (lm.decrement(e, self.h) <= self.rules.tol_loss))
