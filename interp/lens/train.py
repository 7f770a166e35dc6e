"""Training: all lenses of a pack at once, each on as few samples as it needs.

One round: forward the prompts that the next number of samples needs (those that no lens has needed before),
fit every lens that is still growing, look at the selection split. A lens whose target is met, or whose data
is used up, leaves; it is then calibrated, graded on the test split, and compared with its baselines
(`interp.lens.judge`).
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from interp.events import Emitter, Hook, LensEnd, LensIteration, TrainBegin, TrainEnd, bar
from interp.lens import grade as g
from interp.lens.bank import Bank
from interp.lens.baselines import TextLenses, balanced
from interp.lens.concepts import ConceptPack
from interp.lens.fit import choose_lambda, fit_mlp, solve, statistics, weights
from interp.lens.job import Job, plan
from interp.lens.judge import Judge, rows_of, seed_of
from interp.lens.library import Lenses
from interp.lens.samples import Samples, Templates

if TYPE_CHECKING:
    from interp.capture.model import Model

__all__ = ["train_lenses"]

logger = logging.getLogger(__name__)

#: Prompts that means and scales are taken from, where there are so many.
_TYPICAL = 512
#: Bytes of gathered rows that are fitted as one batch.
_BATCH_BYTES = 64 * 2**20


def train_lenses(
    model: Model | str | os.PathLike[str],
    pack: ConceptPack | str | os.PathLike[str],
    *,
    site: str,
    concepts: Iterable[str] | None = None,
    f1_target: float = 0.95,
    f1_rule: str = "lower",
    validation_blocking: bool = False,
    growth: Sequence[int] = (10, 20, 40, 80, 120),
    max_seconds: float | None = None,
    head: str = "linear",
    pooling: str = "span",
    continuation: int = 0,
    templates: Templates | None = None,
    shares: Mapping[str, float] | None = None,
    dtype: Any = None,
    batch_tokens: int | str = "auto",
    bank: Bank | str | os.PathLike[str] | None = None,
    seed: int = 0,
    iteration_hook: Hook | Iterable[Hook] | None = None,
) -> Lenses:
    """Train and grade a lens for every concept of a pack.

    Parameters
    ----------
    model : Model, str or path
        From `interp.load_model`, or what to load.
    pack : ConceptPack, path, or "tiny"
    site : str
        Where the lenses read, such as ``resid_post.2``.
    concepts : iterable of str, optional
        Ids to train; all by default. The others still serve as negatives: a lens comes out the same (but for
        rounding) whichever others are trained with it, so that tasks can share a pack.
    f1_target : float
        F1 on the selection split at which a lens is good enough to stop growing.
    f1_rule : {"lower", "point"}
        Whether the lower 95 % bound of that F1 must reach the target (37 faultless positives for 0.95), or F1
        itself.
    validation_blocking : bool
        If true, a lens that met the target goes on until its grade on the selection split is A or B too. By
        default the grade is advisory.
    growth : sequence of int
        Positive samples of each round; as many negatives.
    max_seconds : float, optional
        Begin no further round after so long.
    head : {"linear", "mlp"}
        L2 logistic, or one with a hidden layer beside it.
    pooling : {"span", "mean", "max", "last"}
        See `interp.lens.bank.Bank`.
    continuation : int
        Tokens to generate behind each prompt; their mean is a second row of the prompt, in its group.
    templates : Templates, optional
    shares : mapping, optional
        Of the kinds of negatives, see `interp.lens.samples.SHARES`.
    dtype : str or torch.dtype, optional
        To load the model in, if `model` is a name. Fits are in float32 whatever it is.
    batch_tokens : int or "auto"
        See `interp.capture`.
    bank : Bank or path, optional
        Activations to read and add to; a folder outlives the run, and a killed run finds its rows there.
    seed : int
    iteration_hook : callable or list of callable, optional
        Gets `TrainBegin`, `LensIteration`, `LensEnd`, `TrainEnd`, and `BatchEnd` of the forward passes
        between them. May return True to stop: lenses that were fitted are kept, and graded where that needs
        no further forward pass.

    Returns
    -------
    Lenses

    Raises
    ------
    ValueError
        For arguments that do not fit each other, the pack or the model.
    LeakageError
        If the splits of the pack leak.
    FloatingPointError
        If the model gives activations that are not finite (named).
    """
    started = time.perf_counter()
    _check(f1_target=f1_target, f1_rule=f1_rule, growth=growth, head=head)
    pack = pack if isinstance(pack, ConceptPack) else ConceptPack.load(pack)
    chosen = [c.id for c in pack] if concepts is None else list(dict.fromkeys(concepts))
    for c in chosen:
        if c not in pack:
            raise ValueError(f"concepts: {c!r} is not in pack {pack.name!r}")
    emit = Emitter(iteration_hook)
    bank = _bank(model, bank, dtype, site, pooling, continuation, seed, batch_tokens)
    samples = Samples(pack, seed=seed, templates=templates, shares=shares)
    jobs = [plan(samples, pack[c], max(growth) + 1, seed) for c in chosen]
    run = _Training(jobs, samples, bank, emit, seed, head)
    run.f1_target, run.f1_rule, run.blocking = f1_target, f1_rule, validation_blocking
    run.growth, run.deadline = list(growth), None if max_seconds is None else started + max_seconds
    if emit:
        emit(
            TrainBegin(
                n_lenses=len(jobs),
                n_prompts=len({s.text for j in jobs for s in [*j.positive, *j.negative, *j.select]}),
                site=site,
                f1_target=f1_target,
                validation_blocking=validation_blocking,
            )
        )
    with bar(len(jobs), "lenses", "lens") as progress:
        run.go(progress)
    seconds = time.perf_counter() - started
    parameters = {
        "f1_target": f1_target,
        "f1_rule": f1_rule,
        "validation_blocking": validation_blocking,
        "growth": list(growth),
        "head": head,
        "seed": seed,
        "continuation": continuation,
        "templates": {"train": samples.templates.train, "heldout": samples.templates.heldout},
        "shares": samples.shares,
    }
    lenses = run.lenses(pack, parameters, seconds)
    logger.info("%r in %.1f s, %d prompts forwarded", lenses, seconds, bank.n_forwarded)
    if emit:
        emit(TrainEnd(n_lenses=len(lenses), grade_counts=lenses.grades, seconds=seconds, stopped=emit.stop))
        emit.close()
    return lenses


def _check(*, f1_target: float, f1_rule: str, growth: Sequence[int], head: str) -> None:
    if not 0 < f1_target <= 1:
        raise ValueError(f"f1_target must be in (0, 1], got {f1_target}")
    if f1_rule not in ("lower", "point"):
        raise ValueError(f"f1_rule must be 'lower' or 'point', got {f1_rule!r}")
    if head not in ("linear", "mlp"):
        raise ValueError(f"head must be 'linear' or 'mlp', got {head!r}")
    if not growth or min(growth) < 2 or sorted(set(growth)) != list(growth):
        raise ValueError(f"growth must be increasing numbers of samples from 2, got {list(growth)}")


def _bank(
    model: Any,
    bank: Any,
    dtype: Any,
    site: str,
    pooling: str,
    continuation: int,
    seed: int,
    batch_tokens: int | str,
) -> Bank:
    from interp.capture.model import Model, load_model

    if not isinstance(model, Model):
        model = load_model(model, dtype="auto" if dtype is None else dtype)
    elif dtype is not None and str(dtype).removeprefix("torch.") != str(model.dtype).removeprefix("torch."):
        raise ValueError(
            f"dtype={dtype} but the model is loaded in {model.dtype}: load_model(..., dtype=...)"
        )
    found = model.sites.resolve(site)
    if len(found) != 1:
        raise ValueError(f"site must name one site, {site!r} names {len(found)}: {', '.join(found)}")
    if not isinstance(bank, Bank):
        return Bank(
            model,
            found[0],
            pooling=pooling,
            continuation=continuation,
            seed=seed,
            folder=bank,
            batch_tokens=batch_tokens,
        )
    for name, mine, other in (
        ("model", bank.model.fingerprint, model.fingerprint),
        ("site", bank.site, found[0]),
        ("pooling", bank.pooling, pooling),
        ("continuation", bank.continuation, continuation),
    ):
        if mine != other:
            raise ValueError(
                f"the bank's {name} is {mine!r}, the training wants {other!r}: give another bank"
            )
    return bank


class _Training:
    """The rounds. Attributes beyond the constructor's are set by `train_lenses`."""

    f1_target: float
    f1_rule: str
    blocking: bool
    growth: list[int]
    deadline: float | None

    def __init__(
        self, jobs: list[Job], samples: Samples, bank: Bank, emit: Emitter, seed: int, head: str
    ) -> None:
        self.jobs, self.samples, self.bank = jobs, samples, bank
        self.emit, self.seed, self.head = emit, seed, head
        self.judge = Judge(samples, bank, seed)
        self.active = [j for j in jobs if not j.why]
        self.n_done = 0
        self.history: list[list[Any]] = []

    def go(self, progress: Any) -> None:
        """All rounds, then the end of the lenses that a stop left over."""
        self.progress = progress
        self._end([j for j in self.jobs if j.why])
        ready = bool(self.active) and self._standardise()
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
        for job in self.active:
            job.use(n)
        wanted = [s for j in self.active for s in [*j.train_positive, *j.train_negative, *j.select]]
        if not self.bank.ensure(wanted, iteration_hook=self.emit or None):
            for job in self.active:  # back to the samples of the fit that stands
                job.use(self._fitted_with(job))
            return
        todo = sorted(self.active, key=lambda j: len(j.train_positive) + len(j.train_negative))
        phases = 2 if self.bank.continuation else 1
        while todo:
            size = max(1, _BATCH_BYTES // (4 * self.bank.model.width * phases * 2 * n))
            part, todo = todo[:size], todo[size:]
            self._fit(part, n)
            if self.emit.stop:
                break
        finished = [j for j in self.active if j.stop_reason]
        self.active = [j for j in self.active if not j.stop_reason]
        if self.emit.stop:
            for job in self.active:
                job.use(self._fitted_with(job))
        self._end(finished)

    def _standardise(self) -> bool:
        """Mean and scale of training rows, the same for all lenses and rounds; False after a stop.

        Of rows drawn from the whole pack: a lens then depends neither on when the others leave, nor on which
        others are trained with it.
        """
        typical = self.samples.drawn("train", _TYPICAL)
        if not self.bank.ensure(typical, iteration_hook=self.emit or None):
            return False
        rows = rows_of(self.bank, typical)
        self.mean, self.scale = statistics(rows.flatten(0, 1))
        self.typical_norm = float(rows.norm(dim=-1).median())
        for job in self.active:
            job.mean, job.scale = self.mean, self.scale
        return True

    def _fitted_with(self, job: Job) -> int:
        return self.growth[job.n_iter - 1] if job.n_iter else 0

    def _fit(self, jobs: list[Job], n: int) -> None:
        start = time.perf_counter()
        problems = [j.rows(self.bank) for j in jobs]
        size = max(len(p[1]) for p in problems)
        z = torch.zeros(len(jobs), size, problems[0][0].shape[1])
        y, s = torch.zeros(len(jobs), size), torch.zeros(len(jobs), size)
        folds = [j.folds() for j in jobs]
        masks = torch.zeros(2, len(jobs), len(folds[0][0]), size, dtype=torch.bool)
        for k, (rows, labels) in enumerate(problems):
            m = len(labels)
            z[k, :m], y[k, :m], s[k, :m] = rows, labels, balanced(labels)
            phases = m // folds[k][0].shape[1]
            for i in (0, 1):
                masks[i, k, :, :m] = folds[k][i].repeat_interleave(phases, dim=1)
        gram = z @ z.transpose(1, 2)
        lam = choose_lambda(gram, y, s, *masks)
        coef, b = solve(z, y, s, lam, tol=1e-4)
        w = weights(coef, z)
        mlp = None
        if self.head == "mlp":
            seeds = [seed_of(self.seed, "mlp", j.concept.id) for j in jobs]
            mlp = fit_mlp(z, y, s, seeds)
        seconds = (time.perf_counter() - start) / len(jobs)
        for k, job in enumerate(jobs):
            if self.emit.stop:  # this fit was not seen by anybody: the lens keeps the one before
                break
            job.lam, job.w, job.b = float(lam[k]), w[k].clone(), float(b[k])
            job.mlp = None if mlp is None else {name: t[k].clone() for name, t in mlp.items()}
            job.n_iter += 1
            job.seconds += seconds
            self._select(job, n, seconds)

    def _select(self, job: Job, n: int, seconds: float) -> None:
        """Look at the selection split, decide whether the lens goes on, and tell."""
        labels = np.arange(len(job.select)) < job.n_select_positive
        logits = job.logits(self.bank, job.select)
        hit = logits > 0
        f1, low, _ = g.f1_interval(
            int((hit & labels).sum()), int((hit & ~labels).sum()), int((~hit & labels).sum())
        )
        area = float(g.auroc(logits, labels)) if len(labels) else float("nan")
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
        samples = len(job.train_positive) + len(job.train_negative)
        self.history.append([job.concept.id, job.n_iter, samples, f1, low, area])
        if self.emit:
            self.emit(
                LensIteration(
                    concept=job.concept.id,
                    term=job.concept.term,
                    iteration=job.n_iter,
                    n_samples=samples,
                    f1=f1,
                    f1_low=low,
                    auroc=area,
                    n_active=sum(not j.stop_reason for j in self.active),
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
        """Calibrate, grade and compare lenses that have ended, and tell."""
        start = time.perf_counter()
        fitted = [j for j in jobs if j.w is not None]
        needs = self.judge.needs(fitted)
        ready = fitted
        wanted = [*needs, *self.judge.strangers] if fitted else []
        if self.emit.stop or not self.bank.ensure(wanted, iteration_hook=self.emit or None):
            ready = [j for j in fitted if all(s in self.bank for s in self.judge.needs([j]))]
        if ready:
            self.judge.read(ready)
        for job in jobs:
            if job.w is None:
                job.why = job.why or "stopped before it was fitted"
            elif not any(job is r for r in ready):
                job.why = "stopped before it was graded"
            job.seconds += (time.perf_counter() - start) / len(jobs)
        for job in jobs:
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

    def lenses(self, pack: ConceptPack, parameters: dict[str, Any], seconds: float) -> Lenses:
        """Everything that was fitted, on one standardisation."""
        model, bank = self.bank.model, self.bank
        fitted = [j for j in self.jobs if j.w is not None]
        meta = {
            "model": {
                "name": model.name,
                "revision": model.revision,
                "architecture": model.config.model_type,
                "fingerprint": model.fingerprint,
                "dtype": bank.identity["dtype"],
                "tokenizer": model.tokenizer_hash,
            },
            "site": bank.site,
            "pooling": bank.pooling,
            "pack": {"name": pack.name, "version": pack.version, "hash": pack.hash},
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
        lines = self.judge.negatives(fitted)
        return Lenses(
            reports,
            torch.stack([j.w for j in fitted if j.w is not None]) / root,
            torch.tensor([j.b for j in fitted]),
            self.mean,
            self.scale,
            {kind: _padded([line[kind] for line in lines]) for kind in ("text", "token")},
            meta,
            model=model,
            mlp={k: torch.stack([h[k] for h in heads]) for k in heads[0]} if heads else None,
            text=TextLenses.join([j.text for j in fitted]),
        )


def _padded(lines: list[torch.Tensor]) -> torch.Tensor:
    return torch.nn.utils.rnn.pad_sequence(lines, batch_first=True, padding_value=float("nan"))
