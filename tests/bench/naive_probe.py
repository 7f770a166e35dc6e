r"""The usual way to fit sparse 1-D probes: every event, every iteration, every slab of classes.

A baseline to measure against, written from a description of the solver that people run, habits and faults
included:

- each Levenberg–Marquardt iteration streams all events of the CSR matrix twice per slab of 8 classes, once
  for gradient and Hessian, once for the loss at the new point;
- each pass builds the row index of every event anew (`repeat_interleave`) and casts the values anew;
- labels are a 0/1 block ``[events, classes]``, sums over events are `index_add_`;
- a pair with zero gradient predicts no decrease, counts as a failure, is tried again up to five times with a
  tenfold λ (capped at 10¹²), and its neighbours wait;
- the fallback after that goes up the gradient: the update subtracts a step that already has its sign;
- a step is taken whether or not the loss fell (only λ hears of it), and a slab runs until its worst pair is
  done.

Each repair can be switched on alone, so that its worth can be measured. Rows where a latent is zero enter in
closed form here too; without that no run would end.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, softplus

__all__ = ["IDEAS", "NaiveOptions", "NaiveResult", "fit_naive", "unit_of"]


@dataclass(frozen=True)
class NaiveOptions:
    """What the baseline does; the defaults are the published habits."""

    class_slab_size: int = 8
    row_batch_size: int = 8192
    max_iter: int = 100
    tol: float = 1e-6
    ridge: float = 1e-8
    lam_init: float = 1e-3
    lam_shrink: float = 0.1
    lam_grow: float = 10.0
    lam_max: float = 1e12
    delta_logit: float = 6.0
    max_tries: int = 5
    unit: str = "rms"  #: q_x, the scale of the damping: rms, mean_abs or p95 of the non-zeros
    param_dtype: torch.dtype = torch.float32
    sum_dtype: torch.dtype = torch.float32
    # Repairs, each worth measuring alone.
    skip_inert: bool = False
    cache_row_index: bool = False
    cast_once: bool = False
    cap_retries: bool = False


#: The ideas that the questions name, each as a change of the defaults.
IDEAS: dict[str, dict[str, object]] = {
    "as published": {},
    "inert pairs skipped": {"skip_inert": True},
    "row indices cached": {"cache_row_index": True},
    "values cast once": {"cast_once": True},
    "slab of 32 classes": {"class_slab_size": 32},
    "retries capped": {"cap_retries": True},
}


@dataclass
class NaiveResult:
    """Parameters [n_latents, n_classes] and a record per iteration of every slab."""

    coef: np.ndarray
    intercept: np.ndarray
    records: list[dict[str, float]] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        return sum(r["seconds"] for r in self.records)


def unit_of(x: sp.csr_array, how: str) -> np.ndarray:
    """q_x per latent: RMS, mean size, or 95th percentile of the size of its non-zeros; 1 without any."""
    scale = {
        "rms": lambda v: np.sqrt(np.mean(v**2)),
        "mean_abs": np.mean,
        "p95": lambda v: np.quantile(v, 0.95),
    }[how]
    columns = sp.csc_array(x)
    out = np.ones(x.shape[1])
    for l in range(x.shape[1]):
        v = np.abs(columns.data[columns.indptr[l] : columns.indptr[l + 1]]).astype(np.float64)
        if len(v):
            out[l] = scale(v)
    return out


def fit_naive(
    x: sp.csr_array,
    y: np.ndarray,
    n_classes: int,
    options: NaiveOptions | None = None,
    *,
    max_slabs: int | None = None,
    **changes: object,
) -> NaiveResult:
    """Fit the first `max_slabs` slabs of classes (default all).

    Parameters
    ----------
    x : csr_array, shape [n_rows, n_latents]
    y : integer array, shape [n_rows]
    changes
        Fields of `NaiveOptions` to change.
    """
    options = replace(options or NaiveOptions(), **changes)  # type: ignore[arg-type]
    stream = _Events(x, y, options)
    prior = np.clip(np.bincount(y, minlength=n_classes) / len(y), 1e-8, 1.0 - 1e-8)
    b_c = torch.from_numpy(np.log(prior) - np.log1p(-prior)).to(options.param_dtype)
    result = NaiveResult(np.zeros((x.shape[1], n_classes)), np.zeros((x.shape[1], n_classes)))
    result.intercept[:] = b_c.numpy()
    starts = range(0, n_classes, options.class_slab_size)
    for k, start in enumerate(starts):
        if max_slabs is not None and k >= max_slabs:
            break
        classes = torch.arange(start, min(start + options.class_slab_size, n_classes))
        b, w = _fit_slab(stream, classes, b_c[classes], k, options, result.records)
        at = classes.numpy()
        result.intercept[:, at], result.coef[:, at] = b.double().numpy(), w.double().numpy()
    return result


class _Events:
    """The events of a CSR matrix, in batches of rows, pass after pass."""

    def __init__(self, x: sp.csr_array, y: np.ndarray, options: NaiveOptions) -> None:
        self.options = options
        self.n_rows, self.n_latents = x.shape
        self.crow = torch.from_numpy(x.indptr.astype(np.int64))
        self.col = torch.from_numpy(x.indices.astype(np.int64))
        self.values = torch.from_numpy(x.data)
        if options.cast_once:
            self.values = self.values.to(options.param_dtype)
        self.y = torch.from_numpy(np.asarray(y, np.int64))
        self.n_events = torch.from_numpy(np.bincount(x.indices, minlength=x.shape[1])).to(options.sum_dtype)
        size = np.zeros(x.shape[1])
        np.maximum.at(size, x.indices, np.abs(x.data))
        self.largest = torch.from_numpy(size).to(options.param_dtype)[:, None]
        self.unit = torch.from_numpy(unit_of(x, options.unit)).to(options.param_dtype)[:, None]
        self._row_index = self._all_rows() if options.cache_row_index else None

    def _all_rows(self) -> Tensor:
        return torch.repeat_interleave(torch.arange(self.n_rows), self.crow.diff())

    def batches(self, classes: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Column, value and 0/1 labels [events, classes] of the events of each batch of rows."""
        size = self.options.row_batch_size
        for first in range(0, self.n_rows, size):
            last = min(first + size, self.n_rows)
            begin, end = int(self.crow[first]), int(self.crow[last])
            if begin == end:
                continue
            if self._row_index is None:
                rows = torch.repeat_interleave(torch.arange(first, last), self.crow[first : last + 1].diff())
            else:
                rows = self._row_index[begin:end]
            values = self.values[begin:end].to(self.options.param_dtype)
            labels = (self.y[rows][:, None] == classes).to(self.options.param_dtype)
            yield self.col[begin:end], values[:, None], labels

    def statistics(self, b: Tensor, w: Tensor, classes: Tensor) -> Tensor:
        """Σ(μ − y), Σ(μ − y)x, Σv, Σvx, Σvx² over the events and Σy; shape [6, n_latents, classes]."""
        out = torch.zeros(6, *b.shape, dtype=self.options.sum_dtype)
        for col, value, labels in self.batches(classes):
            mu = torch.sigmoid(b[col] + w[col] * value)
            residual, v = mu - labels, mu * (1.0 - mu)
            for k, part in enumerate((residual, residual * value, v, v * value, v * value**2, labels)):
                out[k].index_add_(0, col, part.to(out.dtype))
        return out

    def loss(self, b: Tensor, w: Tensor, classes: Tensor) -> Tensor:
        """Summed loss over the events; shape [n_latents, classes]."""
        out = torch.zeros(b.shape, dtype=self.options.sum_dtype)
        for col, value, labels in self.batches(classes):
            each = binary_cross_entropy_with_logits(b[col] + w[col] * value, labels, reduction="none")
            out.index_add_(0, col, each.to(out.dtype))
        return out


def _fit_slab(
    events: _Events,
    classes: Tensor,
    b_c: Tensor,
    slab: int,
    options: NaiveOptions,
    records: list[dict[str, float]],
) -> tuple[Tensor, Tensor]:
    shape, n = (events.n_latents, len(classes)), events.n_rows
    b, w = b_c.expand(shape).clone(), torch.zeros(shape, dtype=options.param_dtype)
    lam = torch.full(shape, options.lam_init, dtype=options.param_dtype)
    n_class = torch.bincount(events.y, minlength=int(classes[-1]) + 1)[classes].to(options.sum_dtype)
    n_zero = (n - events.n_events)[:, None]
    failures = torch.zeros(shape, dtype=torch.int64)
    before = None
    for iteration in range(1, options.max_iter + 1):
        began = time.perf_counter()
        s = events.statistics(b, w, classes)
        p0 = torch.sigmoid(b).to(s.dtype)
        v0 = p0 * (1.0 - p0)
        g = torch.stack([s[0] + n_zero * p0 - (n_class - s[5]), s[1]]) / n
        g[0] += options.ridge * (b - b_c)
        g[1] += options.ridge * w
        h = torch.stack([s[2] + n_zero * v0, s[3], s[4]]) / n
        h[0] += options.ridge
        h[2] += options.ridge
        g, h = g.to(options.param_dtype), h.to(options.param_dtype)
        largest = float(torch.maximum(g[0].abs(), g[1].abs() / events.unit).max())

        db, dw, ok, n_tries = _steps(g, h, lam, events, options)
        given_up = torch.zeros(shape, dtype=torch.bool)
        if options.cap_retries:
            failures += ~ok
            given_up = failures >= options.max_tries  # marked converged: left where they are
            db, dw = torch.where(given_up, 0.0, db), torch.where(given_up, 0.0, dw)
            lam = torch.where(given_up, options.lam_init, lam)
        if before is None:
            before = _objective(events, b, w, classes, b_c, n_zero, n_class - s[5], options)
        predicted = g[0] * db + g[1] * dw
        predicted = predicted - 0.5 * (h[0] * db**2 + 2 * h[1] * db * dw + h[2] * dw**2)
        b, w = b - db, w - dw
        after = _objective(events, b, w, classes, b_c, n_zero, n_class - s[5], options)
        ratio = (before - after) / predicted
        lam = torch.where(ratio > 0.75, lam * options.lam_shrink, lam)
        lam = torch.where((ratio < 0.25) | ~ok, lam * options.lam_grow, lam)
        lam = lam.clamp(1e-12, options.lam_max)
        records.append(
            {
                "slab": slab,
                "iteration": iteration,
                "n_fail": int((~ok & ~given_up).sum()),
                "n_tries": n_tries,
                "n_climbed": int((after > before).sum()),  # rounding included
                "lam_mean": float(lam.double().mean()),
                "loss_mean": float(after.mean()),
                "grad_max": largest,
                "seconds": time.perf_counter() - began,
            }
        )
        before = after
        if largest <= options.tol:
            break
    return b, w


def _objective(
    events: _Events,
    b: Tensor,
    w: Tensor,
    classes: Tensor,
    b_c: Tensor,
    n_zero: Tensor,
    n_own_zero: Tensor,
    options: NaiveOptions,
) -> Tensor:
    over_events = events.loss(b, w, classes)
    at_zero = n_zero * softplus(b).to(over_events.dtype) - n_own_zero * b.to(over_events.dtype)
    return (over_events + at_zero) / events.n_rows + 0.5 * options.ridge * (w**2 + (b - b_c) ** 2)


def _steps(
    g: Tensor, h: Tensor, lam: Tensor, events: _Events, options: NaiveOptions
) -> tuple[Tensor, Tensor, Tensor, int]:
    """Damped Newton steps (to subtract), retried with more damping where they predict no decrease."""
    shape = lam.shape
    q2 = (events.unit**2).expand(shape)
    inert = (g == 0).all(dim=0) if options.skip_inert else torch.zeros(shape, dtype=torch.bool)
    db, dw = torch.zeros(shape, dtype=g.dtype), torch.zeros(shape, dtype=g.dtype)
    ok = inert.clone()
    n_tries = 0
    for _ in range(options.max_tries):
        n_tries += 1
        h00, h11 = h[0] + lam, h[2] + lam * q2
        det = h00 * h11 - h[1] ** 2
        tb, tw = (h11 * g[0] - h[1] * g[1]) / det, (h00 * g[1] - h[1] * g[0]) / det
        move = torch.maximum(tb.abs(), tb.abs() + tw.abs() * events.largest)
        cut = torch.where(move > options.delta_logit, options.delta_logit / move, 1.0)
        tb, tw = tb * cut, tw * cut
        predicted = g[0] * tb + g[1] * tw
        predicted = predicted - 0.5 * (h[0] * tb**2 + 2 * h[1] * tb * tw + h[2] * tw**2)
        good = ~ok & (predicted > 0) & torch.isfinite(predicted)
        db, dw = torch.where(good, tb, db), torch.where(good, tw, dw)
        ok |= good
        if bool(ok.all()):
            break
        lam[~ok] = (lam[~ok] * 10.0).clamp(max=options.lam_max)
    # The fallback's own sign, subtracted once more by the update: it climbs.
    alpha = 1.0 / (1.0 + lam)
    db = torch.where(ok, db, -alpha * g[0])
    dw = torch.where(ok, dw, -alpha * g[1] / q2)
    return db, dw, ok, n_tries
