"""One fit: slabs of classes one after the other, every pair's fate on record."""

from __future__ import annotations

import math
import time
from collections.abc import Generator
from typing import Any, NamedTuple

import numpy as np
import torch

from interp.events import Event, FitBegin, IterationEnd, SlabBegin, SlabEnd, bar, rss_bytes
from interp.probe import data, exact
from interp.probe.exact import make_problem
from interp.probe.fitted import Fitted, mark_absent, mark_separable
from interp.probe.nodes import Nodes
from interp.probe.sizes import auto_sizes
from interp.probe.slab import Iteration, Part, Problem, Rules, Slab
from interp.probe.stages import LOOK_EVERY, Steps, polish
from interp.probe.step import CONVERGED, NEEDS_POLISH, NOT_STARTED, SEPARABLE, STATUS
from interp.probe.summary import LatentSummary
from interp.threads import n_threads, shared

__all__ = ["Fit"]

#: Scaled gradient to which a float32 stage is trusted.
_FLOAT32_TOL = 1e-4
#: Share of the fit's processor time that the loss of `IterationEnd` may cost, and pairs that it is taken of.
_LOSS_SHARE, _LOSS_PAIRS = 0.005, 1 << 9
#: Iterations between looks at whether the rule can bring the pairs still active any further.
_HAND_OVER_EVERY = 10

#: Fewest and most latents of a part on the CPU: enough to hide Python, few enough for the cache.
_PART = (384, 2048)


class _Level(NamedTuple):
    """One precision of the solution: the latents part by part, and the rules until which it is used."""

    rows: list[tuple[Problem, Nodes]]
    rules: Rules
    device: torch.device
    dtype: torch.dtype


class Fit:
    """The course of one fit. `steps` is a generator of its events; `fitted` is valid after each of them.

    Parameters
    ----------
    summary : LatentSummary
        Of all the data.
    x, y : as in `Sparse1DProbe.fit`, or None
        The data themselves, if they can be read again.
    rules : Rules
    method : {"summary", "events"}
    sizes : tuple of (class_slab_size, latent_block_size)
        Integers or "auto".
    device : torch.device
    dtype : torch.dtype
        Precision of the evaluations.
    stopped : bool
        Whether it was stopped in the pass over the rows: `summary` is empty, and nothing is solved.
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
        stopped: bool = False,
    ) -> None:
        if not stopped and (summary.n_rows == 0 or summary.n_classes == 0):
            raise ValueError(f"nothing to fit: {summary!r} (every row unlabelled, or no row at all)")
        if method == "events" and x is None:
            raise ValueError('method="events" reads x more than once: give a matrix or a list of shards')
        self.summary, self.x, self.y = summary, x, y
        self.rules, self.method, self.device, self.dtype = rules, method, device, dtype
        self.fitted = Fitted.unstarted(summary, rules.lam_init)
        self._stopped = stopped
        if stopped:  # of no latent is it known that it never fires
            self.fitted.codes[:] = NOT_STARTED
        self._sizes = sizes
        self._alive = np.flatnonzero(summary.n_events > 0)
        threads = n_threads(device)
        size = max(1, len(self._alive))
        if device.type == "cpu":
            size = min(_PART[1], max(_PART[0], -(-len(self._alive) // threads)))
        self._parts = [self._alive[k : k + size] for k in range(0, len(self._alive), size)]
        self._listening = False
        self._looked, self._bytes = -math.inf, 0
        self._loss_spent = 0.0
        self._loss_last: float | None = None

    # ------------------------------------------------------------------------------ the course

    def steps(self, listening: bool, began: float, summary_seconds: float, row_batch_size: int) -> Steps:
        """Solve, yielding events if somebody is `listening`; send True to stop. Returns whether it was."""
        self._listening = listening
        stages = {"summary": summary_seconds}
        stopped, n_polished = self._stopped, 0
        if not stopped:
            stopped, n_polished = yield from self._solve(stages, row_batch_size)
        if listening:
            yield self.fitted.end(began, stages, n_polished, stopped)
        return stopped

    def _solve(
        self, stages: dict[str, float], row_batch_size: int
    ) -> Generator[Event, bool | None, tuple[bool, int]]:
        """The slabs, then the raw events: whether it was stopped, and pairs finished on those."""
        start = time.perf_counter()
        levels = self._levels()
        stages["nodes"] = time.perf_counter() - start
        level, summary = levels[0], self.summary
        n_nodes = sum(nodes.n_nodes for _, nodes in level.rows)
        slab_size, block_size = auto_sizes(
            n_nodes, len(self._alive), summary.n_classes, *self._sizes, device=level.device, dtype=level.dtype
        )
        n_slabs = -(-summary.n_classes // slab_size)
        stopped = yield from self._say(
            FitBegin,
            method=self.method,
            n_rows=summary.n_rows,
            n_latents=summary.n_latents,
            n_classes=summary.n_classes,
            n_events=int(summary.n_events.sum()),
            n_nodes=n_nodes,
            n_slabs=n_slabs,
            class_slab_size=slab_size,
            latent_block_size=block_size,
            row_batch_size=row_batch_size,
            max_iter=self.rules.max_iter,
            tol=self.rules.tol,
            device=str(level.device),
            summary_seconds=stages["summary"],
        )
        self._began_cpu, start = time.process_time(), time.perf_counter()
        with bar(n_slabs, "probe", "slab") as shown:
            for k in range(n_slabs):
                if stopped:
                    break
                classes = np.arange(k * slab_size, min((k + 1) * slab_size, summary.n_classes))
                stopped = yield from self._slab(k, n_slabs, classes, levels, block_size * slab_size)
                shown.update(1)
        stages["solve"] = time.perf_counter() - start
        start = time.perf_counter()
        n_inexact = self.fitted.n_inexact
        if self.x is not None and not stopped:
            stopped = yield from polish(
                self.fitted, self.x, self.y, self.summary, self.rules, self.device, self._listening
            )
        stages["polish"] = time.perf_counter() - start
        return stopped, n_inexact - self.fitted.n_inexact

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
            slab = Slab(
                level.rows,
                torch.from_numpy(classes),
                level.rules,
                block_pairs,
                threads=n_threads(level.device),
                after=slab,
            )
            try:
                if level is levels[0]:
                    n_inert = slab.n_inert
                    stopped = yield from self._say(SlabBegin, **where, n_pairs=slab.n_pairs, n_inert=n_inert)
                while not slab.done and not stopped:
                    did = slab.iterate(self._listening)
                    if slab.iteration % _HAND_OVER_EVERY == 0:
                        slab.over_parts(Part.hand_over)
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
        nan = math.nan
        band, grad_max, loss = (nan, nan, nan, nan, nan), nan, (nan, nan)
        if self._listening:
            band, grad_max = slab.active_extremes()
            if (now := time.perf_counter()) - self._looked >= LOOK_EVERY:
                self._looked, self._bytes, loss = now, rss_bytes(), self._loss(slab)
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
            bytes_resident=self._bytes,
        )

    def _loss(self, slab: Slab) -> tuple[float, float]:
        """Mean and largest loss of some pairs, as long as a share of the fit's time pays for it."""
        # Not by the clock on the wall: on a busy machine, waiting would use up what there is.
        start = time.process_time()
        if self._loss_last is not None and self._loss_spent + self._loss_last > _LOSS_SHARE * (
            start - self._began_cpu
        ):
            return math.nan, math.nan
        losses = slab.losses(_LOSS_PAIRS)
        out = float(losses.mean()), float(losses.max())
        # The first warms up: counted, it would use up what a short fit has.
        self._loss_last = 0.0 if self._loss_last is None else time.process_time() - start
        self._loss_spent += self._loss_last
        return out

    # ------------------------------------------------------------------------------- its parts

    def _levels(self) -> list[_Level]:
        """The precisions a slab goes through: float64 alone, or float32 and then float64."""
        summary = self.summary
        moments = summary.moments()
        q = exact.rms(moments[0])
        levels = []
        for precision in (self.dtype, torch.float64) if self.dtype != torch.float64 else (self.dtype,):
            finish = precision == torch.float64
            at = torch.device("cpu") if finish and self.device.type == "mps" else self.device
            state = torch.float32 if at.type == "mps" else torch.float64

            def rows(latents: np.ndarray, at=at, state=state, precision=precision) -> tuple[Problem, Nodes]:
                offsets, x, m, e = self._values(latents)
                return (
                    make_problem(summary, latents, moments, device=at, dtype=state),
                    Nodes(offsets, x, m, q[latents], e, device=at, dtype=precision),
                )

            made = list(shared(rows, ((part,) for part in self._parts), n_threads(at)))
            rules = self.rules if finish else self.rules._replace(tol=max(self.rules.tol, _FLOAT32_TOL))
            levels.append(_Level(made, rules, at, precision))
        return levels

    def _values(self, latents: np.ndarray) -> tuple[np.ndarray, np.ndarray, Any, Any]:
        """Offsets, values, weights and error weights of a part's latents."""
        if self.method == "summary":
            block = self.summary.nodes(int(latents[0]), int(latents[-1]) + 1)
            # Dead latents have no nodes, so dropping their offsets leaves the others in place.
            offsets = np.append(block.offsets[latents - latents[0]], len(block.x))
            return offsets, block.x, block.m, block.e
        found = data.columns(self.x, self.y, n_latents=self.summary.n_latents, latents=latents)
        blocks = [block for _, block, _ in found]
        counts = np.concatenate([np.diff(b.indptr) for b in blocks])
        values = np.concatenate([b.data for b in blocks]).astype(np.float64)
        return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64), values, None, None

    def _write_back(self, slab: Slab, classes: np.ndarray) -> None:
        def write(part: Part, latents: np.ndarray) -> None:
            mark_separable(part.gather())
            finished = (part.status == CONVERGED) | (part.status == SEPARABLE)
            part.status[finished & part.inexact()] = NEEDS_POLISH
            self.fitted.write(part, latents, classes, keep=None)

        list(shared(write, zip(slab.parts, self._parts, strict=True), slab.threads))
        mark_absent(self.fitted)
