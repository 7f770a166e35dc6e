"""The rounds of a training: fit the lenses that are still growing, let those leave that have ended.

One round: forward the prompts that the next number of samples needs (those that no lens has needed before),
fit every lens that is still growing, look at the selection split. A lens whose target is met, or whose data
is used up, leaves; it is then calibrated, graded on the test split, and compared with its baselines
(`interp.lens.judge`).
"""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from interp.events import Emitter, LensEnd, LensIteration
from interp.lens import grade as g
from interp.lens.bank import Bank
from interp.lens.baselines import TextLenses
from interp.lens.fit import choose_lambda, fit_mlp, solve, statistics, weights
from interp.lens.job import Job
from interp.lens.judge import Judge, seed_of
from interp.lens.library import Lenses
from interp.lens.rows import alike, areas, problems, rows_of, scores_of, stacked
from interp.lens.samples import Sample, Samples
from interp.threads import n_threads, torch_threads

__all__ = ["Rounds"]

#: Prompts that means and scales are taken from, where there are so many.
_TYPICAL = 512
#: Lenses that are graded together; a stop is heard between two such parts.
_ENDED = 16
#: Seconds after a stop within which fitted lenses are still graded, so many at a time.
_GRACE, _AT_ONCE = 0.03, 4


@dataclass
class Rounds:
    """A training under way.

    Attributes
    ----------
    jobs : list of Job
        All lenses, those that cannot be trained included.
    samples, bank, emit, seed : of the training
    head, f1_target, f1_rule, growth : as in `interp.train_lenses`
    blocking : bool
        Its ``validation_blocking``.
    deadline : float or None
        The `time.perf_counter` after which no round begins.
    """

    jobs: list[Job]
    samples: Samples
    bank: Bank
    emit: Emitter
    seed: int
    head: str
    f1_target: float
    f1_rule: str
    blocking: bool
    growth: list[int]
    deadline: float | None
    active: list[Job] = field(init=False)
    n_growing: int = field(init=False)
    n_done: int = field(init=False, default=0)
    stopped_at: float | None = field(init=False, default=None)
    history: list[list[Any]] = field(init=False, default_factory=list)
    threads: int = field(init=False)  #: that torch has outside: forward passes have them, and the folds of λ

    def __post_init__(self) -> None:
        self.threads = n_threads()
        self.judge = Judge(self.samples, self.bank, self.seed, threads=self.threads)
        self.active = [j for j in self.jobs if not j.why]
        self.n_growing = len(self.active)

    def go(self, progress: Any) -> None:
        """All rounds, then the end of the lenses that a stop left over.

        Parameters
        ----------
        progress : object with ``update(n)``
            From `interp.events.bar`.
        """
        self.progress = progress
        self._end([j for j in self.jobs if j.why])
        ready = bool(self.active) and not self.emit.stop and self._standardise()
        for n in self.growth:
            if not ready or not self.active or self.emit.stop:
                break
            if self.deadline is not None and n > self.growth[0] and time.perf_counter() > self.deadline:
                for job in self.active:
                    job.stop_reason = "budget"
                break
            self._round(n)
        for job in self.active:
            job.stop_reason = job.stop_reason or "stopped"
        self._end(self.active)

    def _round(self, n: int) -> None:
        wanted = []
        for job in self.active:
            new = slice(job.n_used, n)
            wanted += [*job.positive[new], *job.negative[new], *(() if job.n_iter else job.select)]
        if not self._ensure(wanted):
            return
        for job in self.active:
            job.n_used = n
        phases = 2 if self.bank.continuation else 1
        for part in alike([phases * j.n_samples for j in self.active], self.bank.model.width):
            self._fit([self.active[k] for k in part], n)
            if self.emit.stop:
                break
        finished = [j for j in self.active if j.stop_reason]
        self.active = [j for j in self.active if not j.stop_reason]
        if self.emit.stop:
            for job in self.active:  # back to the samples of the fit that stands
                job.n_used = self.growth[job.n_iter - 1] if job.n_iter else 0
        self._end(finished)

    def _ensure(self, samples: list[Sample]) -> bool:
        """Forward what the bank lacks, on all threads that torch had; False after a stop."""
        with torch_threads(self.threads):
            return self.bank.ensure(samples, iteration_hook=self.emit or None)

    def _standardise(self) -> bool:
        """Mean and scale of training rows, the same for all lenses and rounds; False after a stop.

        Of rows drawn from the whole pack: a lens then depends neither on when the others leave, nor on which
        others are trained with it.
        """
        typical = self.samples.drawn("train", _TYPICAL)
        if not self._ensure(typical):
            return False
        rows = rows_of(self.bank, self.bank.index(typical))
        self.mean, self.scale = statistics(rows.flatten(0, 1))
        self.typical_norm = float(rows.norm(dim=-1).median())
        for job in self.active:
            job.mean, job.scale = self.mean, self.scale
        return True

    def _fit(self, jobs: list[Job], n: int) -> None:
        """Choose λ and fit, all of them at once; then look at the selection split."""
        start = time.perf_counter()
        z, y, s, phases = problems(jobs, self.bank)
        training, held = (
            mask.repeat_interleave(phases, dim=2)
            for mask in stacked([j.folds() for j in jobs], z.shape[1] // phases)
        )
        gram = z @ z.transpose(1, 2)
        lam = choose_lambda(gram, y, s, training, held, threads=self.threads)
        primal = z.shape[2] < z.shape[1]
        coef, b = solve(z, y, s, lam, gram=None if primal else gram, tol=1e-4)
        w = weights(coef, z)
        mlp = None
        if self.head == "mlp":
            mlp = fit_mlp(z, y, s, [seed_of(self.seed, "mlp", j.concept.id) for j in jobs])
        fits = [
            dataclasses.replace(
                job,
                lam=float(lam[k]),
                w=w[k].clone(),
                b=float(b[k]),
                mlp=None if mlp is None else {name: t[k].clone() for name, t in mlp.items()},
            )
            for k, job in enumerate(jobs)
        ]
        logits = scores_of(fits, self.bank, [j.index(self.bank, "select") for j in jobs])
        labels = [np.arange(len(j.select)) < j.n_select_positive for j in jobs]
        area = areas(logits, labels)
        seconds = (time.perf_counter() - start) / len(jobs)
        for k, (job, fit) in enumerate(zip(jobs, fits, strict=True)):
            if self.emit.stop:  # this fit was not seen by anybody: the lens keeps the one before
                break
            job.lam, job.w, job.b, job.mlp = fit.lam, fit.w, fit.b, fit.mlp
            job.n_iter += 1
            job.seconds += seconds
            self._select(job, n, logits[k], labels[k], float(area[k]), seconds)

    def _select(
        self, job: Job, n: int, logits: np.ndarray, labels: np.ndarray, area: float, seconds: float
    ) -> None:
        """Decide by the selection split whether the lens goes on, and tell."""
        hit = logits > 0
        f1, low, _ = g.f1_interval(
            int((hit & labels).sum()), int((hit & ~labels).sum()), int((~hit & labels).sum())
        )
        job.found.update(f1_select=f1, f1_select_low=low)
        met = (low if self.f1_rule == "lower" else f1) >= self.f1_target and len(labels) > 0
        last = n >= job.most or n == self.growth[-1]
        valid = True
        if met and (not job.met_at or self.blocking):
            valid = self._valid(job, logits, labels)
        if met and not job.met_at:
            job.met_at, job.forced_on = job.n_iter, not valid
        if self.blocking:
            job.extra = job.n_iter - job.met_at if job.met_at else 0
        elif met and job.forced_on:
            more = [m for m in self.growth if m > n]
            job.extra = sum(a < job.most for a in [n, *more][: len(more)])
        if met and (valid or not self.blocking):
            job.stop_reason = "target_met"
        elif last:
            job.stop_reason = "no_more_data" if n >= job.most else "budget"
        self.n_growing -= bool(job.stop_reason)
        self.history.append([job.concept.id, job.n_iter, job.n_samples, f1, low, area])
        if self.emit:
            self.emit(
                LensIteration(
                    concept=job.concept.id,
                    term=job.concept.term,
                    iteration=job.n_iter,
                    n_samples=job.n_samples,
                    f1=f1,
                    f1_low=low,
                    auroc=area,
                    n_active=self.n_growing,
                    n_lenses=len(self.jobs),
                    seconds=seconds,
                )
            )

    def _valid(self, job: Job, logits: np.ndarray, labels: np.ndarray) -> bool:
        """Whether the lens holds against siblings on the selection split; U is nothing against it."""
        siblings = self.samples.siblings_of(job.concept.id)
        keep = labels | np.array([s.origin in siblings for s in job.select], dtype=bool)
        groups = np.array([s.group for s in job.select])
        return g.grade(logits[keep], labels[keep], groups[keep]).letter in ("A", "B", "U")

    def _end(self, jobs: list[Job]) -> None:
        """Calibrate, grade and compare lenses that have ended, some at a time, and tell."""
        complete = False
        if not self.emit.stop:
            fitted = [j for j in jobs if j.w is not None]
            wanted = [*self.judge.needs(fitted), *self.judge.strangers] if fitted else []
            complete = self._ensure(wanted)
        while jobs and not self.emit.stop:
            part, jobs = jobs[:_ENDED], jobs[_ENDED:]
            start = time.perf_counter()
            ready = [j for j in part if j.w is not None]
            if ready:
                self.judge.read(ready)
            for job in part:
                job.seconds += (time.perf_counter() - start) / len(part)
                self._tell(job)
        if jobs:
            self._leave(jobs, complete)

    def _leave(self, jobs: list[Job], complete: bool) -> None:
        """After a stop: grade what needs no forward pass, without baselines, while there is time; tell.

        If the jobs are `complete`, the bank holds all that their grades need.
        """
        if self.stopped_at is None:
            self.stopped_at = time.perf_counter()
        jobs = sorted(jobs, key=lambda j: j.w is None)  # there is little time: first those that can be graded
        while jobs:
            part, jobs = jobs[:_AT_ONCE], jobs[_AT_ONCE:]
            ready = []
            if (start := time.perf_counter()) - self.stopped_at < _GRACE:
                fitted = [j for j in part if j.w is not None]
                ready = [j for j in fitted if complete or self.judge.can_read(j)]
                if ready:
                    self.judge.read(ready, baselines=False)
                for job in ready:
                    job.seconds += (time.perf_counter() - start) / len(ready)
            for job in part:
                if job.w is None:
                    job.why = job.why or "stopped before it was fitted"
                elif "grade" not in job.found:
                    job.why = "stopped before it was graded"
                self._tell(job)

    def _tell(self, job: Job) -> None:
        self.n_done += 1
        self.progress.update(1)
        if self.emit:
            r = job.report()
            self.emit(
                LensEnd(
                    concept=r.concept,
                    term=r.term,
                    level=r.level,
                    grade=r.grade,
                    score=r.score,
                    score_low=r.score_low,
                    score_high=r.score_high,
                    auroc=r.auroc,
                    f1=r.f1,
                    n_samples=r.n_samples,
                    n_iter=r.n_iter,
                    extra_iterations=r.extra_iterations,
                    stop_reason=r.stop_reason,
                    seconds=r.seconds,
                    n_done=self.n_done,
                    n_lenses=len(self.jobs),
                )
            )

    # ------------------------------------------------------------------ the result

    def lenses(self, pack: dict[str, str], parameters: dict[str, Any], seconds: float) -> Lenses:
        """Everything that was fitted, on one standardisation."""
        model, bank = self.bank.model, self.bank
        fitted = [j for j in self.jobs if j.w is not None]
        meta = {
            "model": {**model.identity, "tokenizer": model.tokenizer_hash},
            "site": bank.site,
            "pooling": bank.pooling,
            "pack": pack,
            "parameters": parameters,
            "seconds": seconds,
            "history": self.history,
        }
        reports = [j.report() for j in self.jobs]
        if not fitted:
            flat = torch.zeros(model.width)
            return Lenses(reports, torch.zeros(0, model.width), torch.zeros(0), flat, flat + 1, {}, meta)
        meta["typical_norm"] = self.typical_norm
        root = len(self.mean) ** 0.5
        heads = [j.mlp for j in fitted if j.mlp is not None]
        return Lenses(
            reports,
            torch.stack([j.w for j in fitted if j.w is not None]) / root,
            torch.tensor([j.b for j in fitted]),
            self.mean,
            self.scale,
            {kind: _padded([j.negatives[kind] for j in fitted]) for kind in ("text", "token")},
            meta,
            model=model,
            mlp={k: torch.stack([h[k] for h in heads]) for k in heads[0]} if heads else None,
            text=TextLenses.join([j.text for j in fitted]),
        )


def _padded(lines: list[torch.Tensor]) -> torch.Tensor:
    return torch.nn.utils.rnn.pad_sequence(lines, batch_first=True, padding_value=float("nan"))
