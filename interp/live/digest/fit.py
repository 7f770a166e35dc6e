"""A probe fit, as a monitor remembers it."""

from __future__ import annotations

import math
from typing import Any

from interp import events as ev
from interp.live.digest.base import Digest, number
from interp.live.digest.series import Series


class FitDigest(Digest):
    """A probe fit: pairs, lambda, loss and gradient by iteration, seconds by slab."""

    kind = "fit"
    events = (ev.FitBegin, ev.StageStep, ev.SlabBegin, ev.IterationEnd, ev.SlabEnd, ev.FitEnd)

    def __init__(self) -> None:
        super().__init__()
        self.begin: ev.FitBegin | None = None
        self.end: ev.FitEnd | None = None
        self.stage: ev.StageStep | None = None  # the pass over the rows, or the finish, if under way
        self.slab: ev.SlabBegin | None = None
        self.last: ev.IterationEnd | None = None
        self.n_fail = self.n_fail_slab = 0
        self.n_slabs_done = self.n_pairs_done = self.n_iter_done = 0
        self.slab_began, self.slab_seconds = 0, 0.0
        self.iterations = Series(
            {
                "x": "last",
                "slab": "last",
                "active": "mean",
                "inert": "mean",
                "fail": "max",  # a single failure must not vanish in an average
                "rejected": "mean",
                "lam_min": "min",
                "lam_q1": "mean",
                "lam_median": "mean",
                "lam_q3": "mean",
                "lam_max": "max",
                "loss_mean": "mean",
                "loss_max": "max",
                "grad": "max",
                "seconds": "mean",
            }
        )
        self.slabs = Series(
            {
                "slab": "first",
                "start": "min",
                "stop": "max",
                "seconds": "mean",
                "n_iter": "mean",
                "fail": "sum",
                "x": "last",
            },
            capacity=128,
        )

    def _begins(self, event: ev.Event) -> bool:
        reading = self.stage if self.begin is None and self.end is None else None
        if isinstance(event, ev.StageStep):
            again = reading is None or event.seconds < reading.seconds  # the one before ended without a word
            return event.stage == "summary" and again
        goes_on = (
            isinstance(event, ev.FitBegin)
            and reading is not None
            and event.summary_seconds >= reading.seconds
        )
        return super()._begins(event) and not goes_on

    def _take(self, event: ev.Event) -> None:
        if isinstance(event, ev.IterationEnd):
            e = self.last = event
            self.n_fail_slab += e.n_fail
            self.slab_seconds += e.seconds
            self.iterations.add(
                self.n_steps, e.slab, e.n_active, e.n_inert, e.n_fail, e.n_rejected,
                number(e.lam_min), number(e.lam_q1), number(e.lam_median), number(e.lam_q3),
                number(e.lam_max), number(e.loss_mean), number(e.loss_max), number(e.grad_max), e.seconds,
            )  # fmt: skip
        elif isinstance(event, ev.SlabBegin):
            self.slab, self.slab_began = event, self.n_steps
            self.n_fail_slab, self.slab_seconds = 0, 0.0
        elif isinstance(event, ev.SlabEnd):
            self.slab = None
            self.n_fail, self.n_fail_slab = self.n_fail + event.n_fail, 0
            self.n_slabs_done += 1
            # Slabs leave out latents that never fire; their pairs are as done as the others of the classes.
            classes = event.class_stop - event.class_start
            self.n_pairs_done += classes * self.begin.n_latents if self.begin else event.n_pairs
            self.n_iter_done += event.n_iter
            self.slabs.add(
                event.slab,
                event.class_start,
                event.class_stop,
                event.seconds,
                event.n_iter,
                event.n_fail,
                self.n_steps,
            )
        elif isinstance(event, ev.StageStep):
            if self.begin is None and self.stage is None:
                self.began = event.time - event.seconds
            self.stage = event
        elif isinstance(event, ev.FitBegin):
            if self.stage is None:
                self.began = event.time - event.summary_seconds
            self.begin, self.stage = event, None
        elif isinstance(event, ev.FitEnd):
            self.end, self.slab, self.stage = event, None, None

    @property
    def n_slabs(self) -> int:
        """Slabs of the whole fit (0: not known yet)."""
        return self.begin.n_slabs if self.begin else self.slab.n_slabs if self.slab else 0

    @property
    def stage_says(self) -> str:
        """A word on the stage under way that has no iterations, or on a fit that ended in it; or nothing."""
        if self.stage is None and self.begin is None and self.end is not None:
            unread = set(self.end.status_counts) <= {"not_started"}
            return "stopped while it read its rows: no pair has started" if unread else ""
        if self.stage is None:
            return ""
        s = self.stage
        done = f"{s.done:,} of {s.total:,}" if s.total else f"{s.done:,}"
        if s.stage == "summary":
            return f"reading rows: {done}, {s.n_events / max(s.seconds, 1e-9):,.0f} events/s"
        return f"finishing pairs on the raw events: {done}"

    def _fraction(self) -> float:
        if self.begin is None and self.stage is not None:
            return self.stage.done / self.stage.total if self.stage.total else 0.0
        if not self.n_slabs:
            return 0.0
        inside = 0.0
        if self.slab is not None and self.last is not None:
            done = self.n_steps - self.slab_began
            if self.n_slabs_done:
                inside = done / max(self.n_iter_done / self.n_slabs_done, done + 1)
            else:  # nothing to compare with yet: pairs leave roughly as iterations pass
                inside = 0.9 * (1 - (self.last.n_active / max(self.last.n_pairs, 1)))
        # The last per cent is for the pairs that are finished on the raw events.
        return min((self.n_slabs_done + inside) / self.n_slabs, 0.99)

    def eta(self, now: float | None = None) -> float:
        """As in every digest, but of what follows the pass over the rows, which tells nothing of it."""
        if self.begin is None and self.stage is not None and self.stage.stage == "summary":
            return math.nan
        left = super().eta(now)
        if self.state != "running" or self.begin is None or self.fraction <= 0:
            return left
        return max(left - (self.begin.time - self.began) * (1 - self.fraction) / self.fraction, 0.0)

    def _series(self) -> dict[str, Series]:
        return {"iterations": self.iterations, "slabs": self.slabs}

    def _numbers(self) -> dict[str, Any]:
        b, slab, last = self.begin, self.slab, self.last
        out: dict[str, Any] = {
            "n_fail": self.end.n_fail if self.end else self.n_fail + self.n_fail_slab,
            "pairs_done": self.n_pairs_done,
            "pairs_total": b.n_latents * b.n_classes if b else 0,
            "n_slabs": self.n_slabs,
            "slabs_done": self.n_slabs_done,
            "bytes": now.bytes_resident if (now := self.stage or last) else 0,
            "tol": b.tol if b else None,
            "slab": None,
        }
        if slab is not None:
            out["slab"] = [slab.slab, slab.class_start, slab.class_stop]
            out["slab_seconds"] = self.slab_seconds
        if last is not None:
            out["active"], out["inert"], out["rejected"] = last.n_active, last.n_inert, last.n_rejected
        if b:
            out["problem"] = {
                "rows": b.n_rows, "latents": b.n_latents, "classes": b.n_classes, "events": b.n_events,
                "nodes": b.n_nodes, "method": b.method, "device": b.device,
                "sizes": [b.class_slab_size, b.latent_block_size, b.row_batch_size],
            }  # fmt: skip
        if self.end:
            out["status"] = self.end.status_counts
            out["polished"] = self.end.n_polished
        return out

    def table(self) -> list[list[str]]:
        b, end = self.begin, self.end
        rows = super().table()
        if b:
            rows.append(["problem", f"{b.n_latents:,} latents × {b.n_classes:,} classes, {b.n_rows:,} rows"])
            rows.append(["events", f"{b.n_events:,} in {b.n_nodes:,} nodes ({b.method})"])
            batch = f"{b.row_batch_size:,}" if b.row_batch_size else "auto"
            rows.append(["sizes", f"slab {b.class_slab_size:,}, block {b.latent_block_size:,}, rows {batch}"])
        rows.append(["iterations", f"{self.n_steps:,} in {self.n_slabs_done:,} slabs"])
        rows.append(["n_fail", f"{self._numbers()['n_fail']:,}"])
        if end:
            rows.extend([k, f"{v:,}"] for k, v in end.status_counts.items() if v)
            rows.append(["polished", f"{end.n_polished:,}"])
        rows.append(["seconds", f"{self.elapsed(self.latest):.2f}"])
        return rows
