"""One slab of probes: every latent × a few classes, iterated until each pair has ended."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from interp.probe import step
from interp.probe.layout import Layout
from interp.probe.nodes import Nodes
from interp.probe.step import CONVERGED, MAX_ITER, NEEDS_POLISH, Active
from interp.threads import shared

__all__ = ["Iteration", "Part", "Problem", "Rules", "Slab"]

T = TypeVar("T")

#: Pairs that the quartiles of lambda are taken of.
_LAMBDAS = 512


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


class Problem(NamedTuple):
    """Everything about the data but the nodes, on the device. Slopes are in units of 1/q.

    Attributes
    ----------
    n : int
        Rows of the data.
    n_zero : Tensor of float, shape [n_rows]
        Rows at which the latent is zero.
    moments : Tensor of float, shape [n_rows, 3]
        Number, sum and sum of squares of x̃ over the non-zeros.
    x_low, x_high, q : Tensor of float, shape [n_rows]
        Range of x̃ (zero included) and unit of each latent.
    label_sums : Tensor of float, shape [n_rows, n_classes]
        S̃ = S / q.
    class_counts : Tensor of float, shape [n_classes]
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
        """b_c, the logit of the prevalence, clipped to [1e-8, 1 − 1e-8]; float, shape [n_classes]."""
        return torch.logit((self.class_counts / self.n).clamp(1e-8, 1.0 - 1e-8))


class Iteration(NamedTuple):
    """What one iteration did (see `interp.events.IterationEnd`)."""

    n_active: int
    n_fail: int
    n_rejected: int
    n_clipped: int
    seconds: float


class Part:
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

    Attributes
    ----------
    b, w, lam : Tensor of float64, shape [n_pairs]
        Intercepts, slopes (in units of 1/q) and damping, as of the last `gather`.
    g, h : Tensor of float64, shape [2, n_pairs] and [3, n_pairs]
        Gradient and Hessian.
    n_iter, n_fail, status : Tensor of int32, int32 and int8, shape [n_pairs]
    inert : Tensor of bool, shape [n_pairs]
        Pairs that had converged before the first step.
    n_active : int
        Pairs that still iterate.
    """

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
        device, dtype = problem.moments.device, problem.moments.dtype
        n_pairs = self.n_pairs

        self.row = torch.arange(nodes.n_rows, device=device).repeat_interleave(len(classes))
        self.label_sum = problem.label_sums[:, classes].reshape(-1)
        self._prior = problem.prior()[classes].repeat(nodes.n_rows)
        self._count = problem.class_counts[classes].to(dtype).repeat(nodes.n_rows)
        self.iteration = 0
        self.n_iter = torch.zeros(n_pairs, dtype=torch.int32, device=device)
        self.n_fail = torch.zeros(n_pairs, dtype=torch.int32, device=device)
        self.status = torch.full((n_pairs,), MAX_ITER, dtype=torch.int8, device=device)
        self.lam = torch.full((n_pairs,), rules.lam_init, dtype=dtype, device=device)
        self.g = torch.zeros(2, n_pairs, dtype=dtype, device=device)
        self.h = torch.zeros(3, n_pairs, dtype=dtype, device=device)
        if start is None:
            self.b, self.w = self._prior.clone(), torch.zeros(n_pairs, dtype=dtype, device=device)
        else:
            self.b, self.w = (t.reshape(-1).clone() for t in start)
        chosen = torch.ones(n_pairs, dtype=torch.bool, device=device) if only is None else only.reshape(-1)
        self._begin(torch.nonzero(chosen).squeeze(1))
        a = self._active
        if start is None:
            p, m = torch.sigmoid(a.b), problem.moments.T[:, self.row[a.at]]
            sums = torch.cat((p * m[:2], p * (1.0 - p) * m))
        else:
            sums = self._sums(a.b, a.w)
        g, h = step.derivatives(a, a.b, a.w, sums, float(problem.n), rules.ridge)
        converged = step.has_converged(g, h, rules.tol)
        status = torch.where(converged, CONVERGED, a.status).to(torch.int8)
        self._active = a._replace(g=g, h=h, live=~converged, status=status)
        self._compact()
        self.inert = chosen & (self.status == CONVERGED)

    _active: Active

    # ------------------------------------------------------------------------------ iterating

    @property
    def n_pairs(self) -> int:
        """Pairs of the part, inert ones included."""
        return self.shape[0] * self.shape[1]

    @property
    def done(self) -> bool:
        """Whether no pair iterates any more, or none may."""
        return self.iteration >= self.rules.max_iter or self.n_active == 0

    def iterate(self, look: int = 0) -> Iteration:
        """One LM iteration of every active pair.

        `told` is then what `step.judged` tells of them, with the lambda of one pair in `look`.
        """
        began = time.perf_counter()
        rules, a = self.rules, self._active
        n = float(self.problem.n)
        move = step.proposed(a, n, rules.ridge, rules.delta_logit, rules.max_retries)
        sums = self._sums(a.b + move.db, a.w + move.dw)
        all_live = self.n_active == len(a.at)
        self._active, counts, self.told = step.judged(a, move, sums, n, *rules[1:], all_live, look)
        self.iteration += 1
        self.n_active, n_fail, n_rejected, n_clipped = counts.tolist()
        # A compaction costs about as much as a tenth of an evaluation of all pairs.
        if self.n_active < 0.8 * len(a.at):
            self._compact()
        return Iteration(self.n_active, n_fail, n_rejected, n_clipped, time.perf_counter() - began)

    def _begin(self, at: Tensor) -> None:
        """Make the pairs `at` the active ones."""
        row, problem = self.row[at], self.problem
        self._active = Active(
            at=at,
            live=torch.ones(len(at), dtype=torch.bool, device=at.device),
            b=self.b[at],
            w=self.w[at],
            g=self.g[:, at],
            h=self.h[:, at],
            lam=self.lam[at],
            retries=torch.zeros(len(at), dtype=torch.int32, device=at.device),
            n_iter=self.n_iter[at],
            n_fail=self.n_fail[at],
            status=self.status[at],
            prior=self._prior[at],
            n_class=self._count[at],
            label_sum=self.label_sum[at],
            n_zero=problem.n_zero[row],
            x_low=problem.x_low[row],
            x_high=problem.x_high[row],
            squares=problem.moments[row, 2],
            ridge_w=self.rules.ridge / problem.q[row] ** 2,
        )
        self._layout = None

    def _compact(self) -> None:
        """Keep only the pairs that are still live; they are laid out afresh when next evaluated."""
        self.gather()
        self.n_active = int(self._active.live.sum())
        if self.n_active < len(self._active.at):
            self._active = step.still_live(self._active)
            self._layout = None

    def _sums(self, b: Tensor, w: Tensor) -> Tensor:
        if self._layout is None:
            self._layout = self.nodes.layout(self._active.at, self.shape[1], self.block_elements)
        return self._layout.sums(b, w)

    def gather(self) -> Part:
        """Bring the arrays of all pairs up to date."""
        a = self._active
        self.b[a.at], self.w[a.at], self.lam[a.at] = a.b, a.w, a.lam
        self.g[:, a.at], self.h[:, a.at] = a.g, a.h
        self.n_iter[a.at], self.n_fail[a.at], self.status[a.at] = a.n_iter, a.n_fail, a.status
        return self

    def carry_on(self, before: Part) -> None:
        """Count on from where `before` has ended."""
        device = self.b.device
        self.iteration = before.iteration
        self.n_iter += before.n_iter.to(device)
        self.n_fail += before.n_fail.to(device)
        a = self._active
        self._active = a._replace(n_iter=self.n_iter[a.at], n_fail=self.n_fail[a.at])

    _layout: Layout | None
    n_active: int
    told: Tensor

    # ---------------------------------------------------------------------------- looking at it

    def losses(self, at: Tensor) -> Tensor:
        """Loss without the ridge of the pairs `at` (int64 [n], rising), by the node set; float [n]."""
        return self._losses(at, self.nodes.layout(at, self.shape[1], self.block_elements))

    def losses_now(self, every: int) -> Tensor:
        """`losses` at this moment, of all classes of every so many-th row; float [n]."""
        a, (n_rows, n_classes) = self._active, self.shape
        rows = torch.arange(0, n_rows, every, device=a.at.device)
        at = (rows[:, None] * n_classes + torch.arange(n_classes, device=rows.device)).view(-1)
        for new, whole in ((a.b, self.b), (a.w, self.w)):
            whole.index_copy_(0, a.at, new)  # all of `gather` that is wanted here
        return self._losses(at, self.nodes.sampled(every, n_classes, self.block_elements))

    def _losses(self, at: Tensor, layout: Layout) -> Tensor:
        b, w = self.b[at], self.w[at]
        over_events = layout.losses(b, w)
        zeros = self.problem.n_zero[self.row[at]] * torch.nn.functional.softplus(b, threshold=60.0)
        return (over_events + zeros - b * self._count[at] - w * self.label_sum[at]) / self.problem.n

    def inexact(self) -> Tensor:
        """Pairs for which the 2-point rule may not be exact enough; bool [n_pairs].

        The error bound must pass for a converged gradient (`step.has_converged`).
        """
        every = torch.arange(len(self.b), device=self.b.device)
        return self._too_large(*self._rule_errors(every), every)

    def hand_over(self) -> None:
        """End the active pairs that the rule can bring no further: the raw events must take over.

        Where its error bound exceeds both what is asked and what is left of the gradient, another step
        would follow the error; on a separable pair it would do so until the ridge stops it, far away.
        """
        a = self.gather()._active
        errors = self._rule_errors(a.at)
        lost = self._too_large(*errors, a.at) & (torch.maximum(*errors) > a.g.abs().amax(dim=0)) & a.live
        if bool(lost.any()):
            status = torch.where(lost, NEEDS_POLISH, a.status).to(torch.int8)
            self._active = a._replace(live=a.live & ~lost, status=status)
            self._compact()

    def _rule_errors(self, at: Tensor) -> tuple[Tensor, Tensor]:
        """Bounds on the rule's error in ∂L/∂b and ∂L/∂w̃ of the pairs `at`.

        A cheap bound with |x| ≤ max|x| in every bin clears most pairs; the rest pay for the bin by bin
        bound of `Layout.rule_errors`.
        """
        bounds = torch.zeros(2, len(at), dtype=self.b.dtype, device=self.b.device)
        if any(bucket.e is None for bucket in self.nodes.buckets):
            return bounds[0], bounds[1]  # raw events: no rule
        row, b, w = self.row[at], self.b[at], self.w[at]
        top = torch.maximum(self.problem.x_low[row].abs(), self.problem.x_high[row].abs())
        slope = w.abs()
        crude = top**2 * self.h[2, at] * torch.exp((slope * top / 16.0).clamp(max=300.0))
        crude = crude * slope**3 / (32.0**4 * 96.0)
        doubtful = torch.nonzero(self._too_large(crude * slope, crude * (slope * top + 4.0), at)).squeeze(1)
        if len(doubtful):
            layout = self.nodes.layout(at[doubtful], self.shape[1], self.block_elements)
            bounds[:, doubtful] = layout.rule_errors(b[doubtful], w[doubtful]) / self.problem.n
        return bounds[0], bounds[1]

    def _too_large(self, error_b: Tensor, error_w: Tensor, at: Tensor) -> Tensor:
        # With unknown signs, ½ eᵀH⁻¹e is largest where e points against the correlation in H.
        h = self.h[:, at]
        return ~step.has_converged(torch.stack((error_b, -torch.sign(h[1]) * error_w)), h, self.rules.tol)


class Slab:
    """Some classes × all latents, as parts that threads solve side by side.

    Parameters
    ----------
    rows : sequence of (Problem, Nodes)
        The latents, part by part.
    classes : Tensor of int64, shape [c]
    rules : Rules
    block_pairs : int
        Pairs in flight in one evaluation.
    threads : int
    after : Slab, optional
        Begin where this one, in another precision, has ended.
    """

    def __init__(
        self,
        rows: Sequence[tuple[Problem, Nodes]],
        classes: Tensor,
        rules: Rules,
        block_pairs: int,
        threads: int,
        after: Slab | None = None,
    ) -> None:
        self.threads = threads

        def make(problem: Problem, nodes: Nodes, before: Part | None) -> Part:
            device = problem.q.device
            start = None
            if before is not None:
                b, w = (t.to(device).double().view(before.shape) for t in (before.b, before.w))
                start = b, w
            elements = max(1, int(block_pairs * nodes.per_row))
            part = Part(problem, nodes, classes.to(device), rules, elements, start=start)
            if before is not None:
                part.carry_on(before)
            return part

        before: list[Part | None] = [None] * len(rows) if after is None else list(after.parts)
        items = [(*row, part) for row, part in zip(rows, before, strict=True)]
        self.parts: list[Part] = list(shared(make, items, threads))

    def over_parts(self, work: Callable[[Part], T], parts: Iterable[Part] | None = None) -> list[T]:
        """``work(part)`` of every part, on the threads."""
        chosen = self.parts if parts is None else parts
        return list(shared(work, ((part,) for part in chosen), self.threads))

    @property
    def n_pairs(self) -> int:
        """Pairs of the slab, inert ones included."""
        return sum(part.n_pairs for part in self.parts)

    @property
    def n_inert(self) -> int:
        """Pairs that had converged before the first step."""
        return sum(int(part.inert.sum()) for part in self.parts)

    @property
    def n_active(self) -> int:
        """Pairs that still iterate."""
        return sum(part.n_active for part in self.parts)

    @property
    def iteration(self) -> int:
        """Iterations done so far."""
        return max((part.iteration for part in self.parts), default=0)

    @property
    def done(self) -> bool:
        """Whether every part is done."""
        return all(part.done for part in self.parts)

    def iterate(self, listening: bool = False) -> Iteration:
        """One LM iteration of every active pair; `active_extremes` knows of it if somebody is `listening`."""
        began = time.perf_counter()
        self._moving = [part for part in self.parts if not part.done]
        look = -(-sum(part.n_active for part in self._moving) // _LAMBDAS) if listening else 0
        did = self.over_parts(lambda part: part.iterate(look), self._moving)
        counts = {name: sum(getattr(i, name) for i in did) for name in Iteration._fields[:-1]}
        return Iteration(**counts, seconds=time.perf_counter() - began)

    _moving: list[Part]

    def active_extremes(self) -> tuple[tuple[float, float, float, float, float], float]:
        """Lambda (min, quartiles, max) and the largest scaled gradient of the pairs just iterated.

        Quartiles come from about 512 of the pairs, evenly spaced.
        """
        told = [part.told.cpu().numpy() for part in self._moving]
        low, high, top = zip(*(t[:3].tolist() for t in told), strict=True)
        sample = np.sort(np.concatenate([t[3:] for t in told]))
        q1, median, q3 = (float(sample[round(share * (len(sample) - 1))]) for share in (0.25, 0.5, 0.75))
        return (min(low), q1, median, q3, max(high)), max(top)

    def losses(self, at_most: int) -> Tensor:
        """Losses without the ridge, by nodes, of about `at_most` pairs, latents evenly spaced: float [n]."""
        every = -(-self.n_pairs // at_most)
        return torch.cat(self.over_parts(lambda part: part.losses_now(every)))
