"""One fit: slabs of classes one after the other, every pair's fate on record."""

from __future__ import annotations

import time
from collections.abc import Generator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch

from interp.events import Event, FitBegin, FitEnd, IterationEnd, SlabBegin, SlabEnd, bar, rss_bytes
from interp.probe import data, exact
from interp.probe.exact import make_problem
from interp.probe.nodes import Nodes
from interp.probe.sizes import auto_sizes
from interp.probe.slab import (
    ABSENT_CLASS,
    CONVERGED,
    DEAD,
    NEEDS_POLISH,
    SEPARABLE,
    STATUS,
    Iteration,
    Problem,
    Rules,
    Slab,
)
from interp.probe.summary import LatentSummary

__all__ = ["Fit", "Fitted"]

#: Scaled gradient to which a float32 stage is trusted.
_FLOAT32_TOL = 1e-4
#: Share of the fit's time that the loss of `IterationEnd` may cost.
_LOSS_SHARE = 0.01
#: Iterations between looks at whether the rule can bring the pairs still active any further.
_HAND_OVER_EVERY = 10

Steps = Generator[Event, bool | None, bool]


@dataclass
class Fitted:
    """What a fit has found so far; arrays of shape ``[n_latents, n_classes]``, valid at any time."""

    coef: np.ndarray
    intercept: np.ndarray
    n_iter: np.ndarray
    n_fail: np.ndarray
    lam: np.ndarray
    codes: np.ndarray
    class_counts: np.ndarray
    n_rows: int
    loss: np.ndarray | None = None
    history: list[IterationEnd] = field(default_factory=list)

    @classmethod
    def unstarted(cls, summary: LatentSummary, lam_init: float) -> Fitted:
        """Zero slopes, and intercepts at the classes' prevalences."""
        shape = summary.n_latents, summary.n_classes
        prior = np.clip(summary.class_counts / summary.n_rows, 1e-8, 1.0 - 1e-8)
        codes = np.zeros(shape, np.int8)
        codes[summary.n_events == 0] = DEAD
        return cls(
            coef=np.zeros(shape),
            intercept=np.tile(np.log(prior) - np.log1p(-prior), (shape[0], 1)),
            n_iter=np.zeros(shape, np.int32),
            n_fail=np.zeros(shape, np.int32),
            lam=np.full(shape, float(lam_init)),
            codes=codes,
            class_counts=summary.class_counts.copy(),
            n_rows=summary.n_rows,
        )

    def status_counts(self) -> dict[str, int]:
        codes, counts = np.unique(self.codes, return_counts=True)
        return {STATUS[c]: int(n) for c, n in zip(codes, counts, strict=True)}

    def write(self, slab: Slab, latents: np.ndarray, classes: np.ndarray, keep: np.ndarray | None) -> None:
        """Copy the state of a slab, except for the pairs in the mask `keep`."""
        at = np.ix_(latents, classes)
        q = slab.problem.q.double().cpu().numpy()[:, None]
        new = {
            "coef": _array(slab, slab.w) / q,
            "intercept": _array(slab, slab.b),
            "n_iter": _array(slab, slab.n_iter),
            "n_fail": _array(slab, slab.n_fail),
            "lam": _array(slab, slab.lam),
            "codes": _array(slab, slab.status),
        }
        for name, value in new.items():
            whole = getattr(self, name)
            whole[at] = value if keep is None else np.where(keep, whole[at], value)


def _array(slab: Slab, t: torch.Tensor) -> np.ndarray:
    return t.cpu().numpy().reshape(slab.shape)


class _Level(NamedTuple):
    """One precision of the solution: a node set, and the rules until which it is used."""

    problem: Problem
    nodes: Nodes
    rules: Rules

    def slab(self, classes: torch.Tensor, block_pairs: int, after: Slab | None) -> Slab:
        """The slab of `classes`, begun where the previous level has left it."""
        device = self.problem.q.device
        slab = Slab(
            self.problem,
            self.nodes,
            classes.to(device),
            self.rules,
            max(1, int(block_pairs * self.nodes.per_row)),
            start=None if after is None else (after.b.to(device).double(), after.w.to(device).double()),
        )
        if after is not None:
            slab.iteration = after.iteration
            slab.n_iter += after.n_iter.to(device)
            slab.n_fail += after.n_fail.to(device)
        return slab


class Fit:
    """The course of one fit. `steps` is a generator of its events; `fitted` is valid after each of them.

    Parameters
    ----------
    summary : LatentSummary
        Of all the data.
    x, y
        The data themselves, if they can be read again; else None.
    rules : Rules
    method : {"summary", "events"}
    sizes : tuple of (class_slab_size, latent_block_size)
        Integers or "auto".
    device : torch.device
    dtype : torch.dtype
        Precision of the evaluations.
    """

    def __init__(
        self,
        summary: LatentSummary,
        x: Any,
        y: Any,
        *,
        rules: Rules,
        method: str,
        sizes: tuple[int | str, int | str],
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        if summary.n_rows == 0 or summary.n_classes == 0:
            raise ValueError(f"nothing to fit: {summary!r} (every row unlabelled, or no row at all)")
        if method == "events" and x is None:
            raise ValueError('method="events" reads x more than once: give a matrix or a list of shards')
        self.summary, self.x, self.y = summary, x, y
        self.rules, self.method, self.device, self.dtype = rules, method, device, dtype
        self.fitted = Fitted.unstarted(summary, rules.lam_init)
        self._sizes = sizes
        self._alive = np.flatnonzero(summary.n_events > 0)
        self._listening = False
        self._loss_spent = self._loss_last = 0.0

    # ------------------------------------------------------------------------------ the course

    def steps(self, listening: bool, began: float, summary_seconds: float, row_batch_size: int) -> Steps:
        """Solve, yielding events if somebody is `listening`; send True to stop. Returns whether it was."""
        self._listening = listening
        stages = {"summary": summary_seconds}
        start = time.perf_counter()
        levels = self._levels()
        stages["nodes"] = time.perf_counter() - start
        nodes, summary = levels[0].nodes, self.summary
        slab_size, block_size = auto_sizes(nodes, summary.n_classes, *self._sizes)
        n_slabs = -(-summary.n_classes // slab_size)
        stopped = yield from self._say(
            FitBegin,
            method=self.method,
            n_rows=summary.n_rows,
            n_latents=summary.n_latents,
            n_classes=summary.n_classes,
            n_events=int(summary.n_events.sum()),
            n_nodes=nodes.n_nodes,
            n_slabs=n_slabs,
            class_slab_size=slab_size,
            latent_block_size=block_size,
            row_batch_size=row_batch_size,
            max_iter=self.rules.max_iter,
            tol=self.rules.tol,
            device=str(nodes.device),
            summary_seconds=summary_seconds,
        )
        self._began = start = time.perf_counter()
        with bar(n_slabs, "probe", "slab") as shown:
            for k in range(n_slabs):
                if stopped:
                    break
                classes = np.arange(k * slab_size, min((k + 1) * slab_size, summary.n_classes))
                stopped = yield from self._slab(k, n_slabs, classes, levels, block_size * slab_size)
                shown.update(1)
        stages["solve"] = time.perf_counter() - start
        start = time.perf_counter()
        pairs = self.fitted.codes == NEEDS_POLISH
        n_polished = 0
        if self.x is not None and pairs.any() and not stopped:
            n_polished = int(pairs.sum())
            polish(self.fitted, self.x, self.y, self.summary, self.rules, self.device)
        stages["polish"] = time.perf_counter() - start
        yield from self._say(
            FitEnd,
            n_pairs=self.fitted.coef.size,
            n_fail=int(self.fitted.n_fail.sum()),
            n_polished=n_polished,
            status_counts=self.fitted.status_counts(),
            seconds=time.perf_counter() - began,
            stage_seconds=stages,
            stopped=stopped,
        )
        return stopped

    def _say(self, kind: type[Event], **what: Any) -> Steps:
        return bool((yield kind(**what))) if self._listening else False

    def _slab(
        self, k: int, n_slabs: int, classes: np.ndarray, levels: list[_Level], block_pairs: int
    ) -> Steps:
        """Solve one slab, writing back whatever stands even if the caller walks away."""
        began = time.perf_counter()
        where = {
            "slab": k,
            "n_slabs": n_slabs,
            "class_start": int(classes[0]),
            "class_stop": int(classes[-1]) + 1,
        }
        slab, stopped, n_inert = None, False, 0
        for level in levels:
            slab = level.slab(torch.from_numpy(classes), block_pairs, after=slab)
            try:
                if level is levels[0]:
                    n_inert = int(slab.inert.sum())
                    stopped = yield from self._say(SlabBegin, **where, n_pairs=slab.n_pairs, n_inert=n_inert)
                while not slab.done and not stopped:
                    did = slab.iterate()
                    if slab.iteration % _HAND_OVER_EVERY == 0:
                        slab.hand_over()
                        did = did._replace(n_active=slab.n_active)
                    event = self._iteration_event(where, slab, did, n_inert)
                    self.fitted.history.append(event)
                    if self._listening:
                        stopped = bool((yield event))
            finally:
                self._write_back(slab, classes)
            if stopped:
                break
        assert slab is not None
        codes, counts = np.unique(self.fitted.codes[:, classes], return_counts=True)
        ended = yield from self._say(
            SlabEnd,
            **where,
            n_pairs=slab.n_pairs,
            n_iter=slab.iteration,
            n_fail=int(self.fitted.n_fail[:, classes].sum()),
            status_counts={STATUS[c]: int(n) for c, n in zip(codes, counts, strict=True)},
            seconds=time.perf_counter() - began,
        )
        return stopped or ended

    def _iteration_event(
        self, where: dict[str, int], slab: Slab, did: Iteration, n_inert: int
    ) -> IterationEnd:
        nan = float("nan")
        band, grad_max, loss = (nan, nan, nan, nan, nan), nan, (nan, nan)
        if self._listening:
            band, grad_max = slab.active_extremes()
            loss = self._loss(slab)
        return IterationEnd(
            **where,
            iteration=slab.iteration,
            n_pairs=slab.n_pairs,
            n_active=did.n_active,
            n_inert=n_inert,
            n_fail=did.n_fail,
            n_rejected=did.n_rejected,
            n_clipped=did.n_clipped,
            lam_min=band[0],
            lam_q1=band[1],
            lam_median=band[2],
            lam_q3=band[3],
            lam_max=band[4],
            loss_mean=loss[0],
            loss_max=loss[1],
            grad_max=grad_max,
            seconds=did.seconds,
            bytes_resident=rss_bytes() if self._listening else 0,
        )

    def _loss(self, slab: Slab) -> tuple[float, float]:
        """Mean and largest loss, as often as a small share of the fit's time pays for; else NaN."""
        start = time.perf_counter()
        if self._loss_spent + self._loss_last > _LOSS_SHARE * (start - self._began):
            return float("nan"), float("nan")
        losses = slab.losses()
        out = float(losses.mean()), float(losses.max())
        self._loss_last = time.perf_counter() - start
        self._loss_spent += self._loss_last
        return out

    # ------------------------------------------------------------------------------- its parts

    def _levels(self) -> list[_Level]:
        """The precisions a slab goes through: float64 alone, or float32 and then float64."""
        summary, alive = self.summary, self._alive
        q = exact.rms(summary.moments()[0])[alive]
        weights = errors = None
        if self.method == "events":
            found = data.columns(self.x, self.y, n_latents=summary.n_latents, latents=alive)
            blocks = [block for _, block, _ in found]
            counts = np.concatenate([np.diff(b.indptr) for b in blocks] or [np.zeros(1, np.int64)])
            values = np.concatenate([b.data for b in blocks] or [np.zeros(0)]).astype(np.float64)
            offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        else:
            block = summary.nodes()
            values, weights, errors = block.x, block.m, block.e
            # Dead latents have no nodes, so dropping their offsets leaves the others in place.
            offsets = np.concatenate([block.offsets[alive], [len(values)]])
        levels = []
        for precision in (self.dtype, torch.float64) if self.dtype != torch.float64 else (self.dtype,):
            finish = precision == torch.float64
            at = torch.device("cpu") if finish and self.device.type == "mps" else self.device
            state = torch.float32 if at.type == "mps" else torch.float64
            levels.append(
                _Level(
                    make_problem(summary, alive, device=at, dtype=state),
                    Nodes(offsets, values, weights, q, errors, device=at, dtype=precision),
                    self.rules if finish else self.rules._replace(tol=max(self.rules.tol, _FLOAT32_TOL)),
                )
            )
        return levels

    def _write_back(self, slab: Slab, classes: np.ndarray) -> None:
        mark_separable(slab)
        finished = (slab.status == CONVERGED) | (slab.status == SEPARABLE)
        slab.status[finished & slab.inexact()] = NEEDS_POLISH
        self.fitted.write(slab, self._alive, classes, keep=None)
        mark_absent(self.fitted)


def mark_separable(slab: Slab) -> None:
    """Tell the converged pairs whose optimum exists only because of the ridge.

    Two proofs: no event of the (one-signed) latent belongs to the class, so that w → ∓∞ only ever helps;
    or the total loss is below log 2, so that each row's is, and every row is classified correctly.
    The total of σ' is below the total loss, which spares most pairs the logarithms.
    """
    done = slab.status == CONVERGED
    problem = slab.problem
    one_signed = (problem.x_low >= 0) | (problem.x_high <= 0)
    no_event = one_signed[slab.row] & (slab.label_sum == 0)
    data_curvature = (slab.h[0] - slab.rules.ridge) * problem.n
    maybe = torch.nonzero(done & ~no_event & (data_curvature < np.log(2.0))).squeeze(1)
    slab.status[done & no_event] = SEPARABLE
    if len(maybe):
        slab.status[maybe[slab.losses(maybe) * problem.n < np.log(2.0)]] = SEPARABLE


def mark_absent(fitted: Fitted) -> None:
    """Classes without a row: solved like the others, but nothing was learnt."""
    absent = fitted.class_counts == 0
    codes = fitted.codes[:, absent]
    codes[np.isin(codes, (CONVERGED, SEPARABLE, NEEDS_POLISH))] = ABSENT_CLASS
    fitted.codes[:, absent] = codes


def polish(
    fitted: Fitted, x: Any, y: Any, summary: LatentSummary, rules: Rules, device: torch.device
) -> None:
    """Finish the pairs marked ``needs_polish`` on the raw events, in place."""
    if device.type == "mps":
        device = torch.device("cpu")  # float64 is the point of it
    pairs = fitted.codes == NEEDS_POLISH
    before_iter, before_fail = fitted.n_iter[pairs], fitted.n_fail[pairs]
    for latents, classes, chosen, slab in exact.polish_pairs(
        x, y, summary, pairs, fitted.coef, fitted.intercept, rules, device
    ):
        mark_separable(slab)
        fitted.write(slab, latents, classes, keep=~chosen)
    fitted.n_iter[pairs] += before_iter
    fitted.n_fail[pairs] += before_fail
