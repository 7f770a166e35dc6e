"""A lens training, as a monitor remembers it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from interp import events as ev
from interp.live.digest.base import Digest, finite, number

GRADES = ("A", "B", "C", "U")


class LensDigest(Digest):
    """A lens training: grades, F1 by iteration over all lenses, and the latest lenses.

    Its prompts are forwarded in batches, each of them a `BatchEnd`; they are steps too, and counted apart.
    """

    kind = "lens"
    events = (ev.TrainBegin, ev.BatchEnd, ev.LensIteration, ev.LensEnd, ev.TrainEnd)

    #: Iterations and F1 bins of the learning-curve histogram; lenses with a curve or row of their own.
    n_iterations, n_bins, max_curves, max_rows = 64, 100, 48, 256

    def __init__(self) -> None:
        super().__init__()
        self.begin: ev.TrainBegin | None = None
        self.end: ev.TrainEnd | None = None
        self.grades = dict.fromkeys(GRADES, 0)
        self.n_lenses = self.n_active = 0
        self.extra_iterations = 0
        self.n_fits = self.n_forwarded = self.n_tokens = 0
        self.forwarding: ev.BatchEnd | None = None  # the latest batch, until a fit follows
        # How many lenses had which F1 in which iteration: quartiles in constant memory.
        self._f1 = np.zeros((self.n_iterations, self.n_bins), np.int64)
        self.curves: dict[str, list[tuple[float, float]]] = {}
        self.rows: dict[str, dict[str, Any]] = {}

    def add(self, event: ev.Event) -> None:
        """Take one event; those of other jobs, batches of a capture among them, are ignored."""
        inside = self.begin is not None and self.end is None
        if inside or not isinstance(event, ev.BatchEnd):
            super().add(event)

    def _take(self, event: ev.Event) -> None:
        if isinstance(event, ev.BatchEnd):
            self.forwarding = event
            self.n_forwarded += event.n_prompts
            self.n_tokens += event.tokens_real
        elif isinstance(event, ev.LensIteration):
            e = event
            self.forwarding, self.n_fits = None, self.n_fits + 1
            self.n_active, self.n_lenses = e.n_active, e.n_lenses
            row = min(e.iteration, self.n_iterations) - 1
            if not math.isnan(number(e.f1)):
                self._f1[row, min(int(e.f1 * self.n_bins), self.n_bins - 1)] += 1
                if e.concept in self.curves or len(self.curves) < self.max_curves:
                    curve = self.curves.setdefault(e.concept, [])
                    if len(curve) < self.n_iterations:
                        curve.append((e.n_samples, e.f1))
        elif isinstance(event, ev.LensEnd):
            grade = event.grade if event.grade in self.grades else "U"
            self.grades[grade] += 1
            self.n_lenses = event.n_lenses
            # Those that a stop ended while they grew had no further iteration to say so.
            self.n_active = min(self.n_active, self.n_lenses - self.n_done)
            self.extra_iterations += event.extra_iterations
            self.rows.pop(event.concept, None)
            self.rows[event.concept] = {
                "term": event.term, "level": event.level, "grade": grade, "score": finite(event.score),
                "low": finite(event.score_low), "high": finite(event.score_high), "f1": finite(event.f1),
                "samples": event.n_samples, "iterations": event.n_iter, "reason": event.stop_reason,
            }  # fmt: skip
            if len(self.rows) > self.max_rows:
                del self.rows[next(iter(self.rows))]
        elif isinstance(event, ev.TrainBegin):
            self.begin, self.n_lenses = event, event.n_lenses
        elif isinstance(event, ev.TrainEnd):
            self.end = event

    @property
    def n_done(self) -> int:
        """Lenses graded so far."""
        return sum(self.grades.values())

    def _fraction(self) -> float:
        if not self.n_lenses:
            return 0.0
        # A lens that has stopped growing is nearly done; it is graded at the end.
        grown = (self.n_lenses - self.n_active) / self.n_lenses if self.n_fits else 0.0
        return min(max(0.9 * grown, self.n_done / self.n_lenses), 1.0)

    def quartiles(self) -> dict[str, np.ndarray]:
        """F1 of the lenses by iteration: keys x, n, q1, median, q3; float ``[iterations seen]``."""
        counts = self._f1[: int(np.flatnonzero(self._f1.sum(1)).max(initial=-1)) + 1]
        total = counts.sum(1)
        below = counts.cumsum(1)
        out = {"x": np.arange(1.0, len(counts) + 1), "n": total.astype(float)}
        for name, q in (("q1", 0.25), ("median", 0.5), ("q3", 0.75)):
            rank = np.ceil(q * total).clip(1)
            out[name] = ((below < rank[:, None]).sum(1) + 0.5) / self.n_bins
            out[name][total == 0] = np.nan
        return out

    def _numbers(self) -> dict[str, Any]:
        b = self.begin
        return {
            "grades": self.grades,
            "n_lenses": self.n_lenses,
            "n_done": self.n_done,
            "active": self.n_active,
            "site": b.site if b else "",
            "prompts": b.n_prompts if b else 0,
            "forwarded": self.n_forwarded,
            "fits": self.n_fits,
            "target": b.f1_target if b else None,
            "blocking": b.validation_blocking if b else False,
            "extra": self.extra_iterations,
            "quartiles": {k: [finite(x) for x in v] for k, v in self.quartiles().items()},
            "curves": list(self.curves.values()),
        }

    def table(self) -> list[list[str]]:
        b = self.begin
        rows = [*super().table(), ["lenses", f"{self.n_done:,} of {self.n_lenses:,}"]]
        rows.append(["grades", ", ".join(f"{g} {n:,}" for g, n in self.grades.items())])
        if b:
            rows.append(["site", b.site])
            grown = f"{b.n_prompts:,} to train on and select by"
            rows.append(["prompts", f"{grown}; {self.n_forwarded:,} forwarded in all"])
            how = "blocking" if b.validation_blocking else "advisory"
            rows.append(["validation", f"{how}; blocking iterations {self.extra_iterations:,}"])
        rows.append(["fits", f"{self.n_fits:,}"])
        rows.append(["seconds", f"{self.elapsed(self.latest):.2f}"])
        return rows
