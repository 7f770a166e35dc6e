r"""How well every probe does: exact, and one sorted scan per latent for all its classes.

A probe's score is monotone in x, so every ranking question about a pair is a question about the latent's
sorted values: "how many rows score higher" is a position in the sort, the same for all classes, and each
event can be a true positive for its own class only. The rows where a latent is zero are one tie.
Nothing of shape (events × classes) or (rows × classes) is ever made.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch

from interp.probe.data import Shard, can_iterate_again, columns, same_width, shards
from interp.probe.nodes import Nodes
from interp.probe.sizes import tuned_block_elements
from interp.probe.summary import LatentSummary

__all__ = ["Confusion", "ProbeMetrics", "confusion_and_ranks"]


class Confusion(NamedTuple):
    """Counts of every pair, int64 ``[n_latents, n_classes]``; positive is what has p > threshold."""

    tp: np.ndarray
    fp: np.ndarray
    tn: np.ndarray
    fn: np.ndarray


@dataclass(frozen=True)
class ProbeMetrics:
    """Metrics of every pair on one data set; all arrays have shape ``[n_latents, n_classes]``.

    Attributes
    ----------
    nll : ndarray of float64
        Mean negative log-likelihood, in nats.
    nll_base : ndarray of float64, shape [n_classes]
        The same of the constant prediction at the class's prevalence in these data.
    r : ndarray of float64
        1 − nll / nll_base; NaN for a class without rows, or on every row.
    auroc, ap : ndarray of float64
        Area under the ROC curve, and average precision Σ (R_k − R_{k−1}) P_k, with ties as one threshold
        (scikit-learn's definitions); NaN where they are not defined.
    tp, fp, tn, fn : ndarray of int64
        Confusion at the threshold.
    precision, recall, f1 : ndarray of float64
        At the threshold; 0 where nothing is predicted.
    best_f1 : ndarray of float64
        The largest F1 that any threshold reaches.
    n_rows : int
    threshold : float
    """

    nll: np.ndarray
    nll_base: np.ndarray
    r: np.ndarray
    auroc: np.ndarray
    ap: np.ndarray
    tp: np.ndarray
    fp: np.ndarray
    tn: np.ndarray
    fn: np.ndarray
    precision: np.ndarray
    recall: np.ndarray
    f1: np.ndarray
    best_f1: np.ndarray
    n_rows: int
    threshold: float

    def frame(self) -> pd.DataFrame:
        """One row per pair: latent, class, and a column per metric."""
        shape = self.nll.shape
        latent, cls = np.divmod(np.arange(shape[0] * shape[1]), shape[1])
        table = {"latent": latent, "class": cls}
        for f in fields(self):
            value = getattr(self, f.name)
            if isinstance(value, np.ndarray):
                table[f.name] = np.broadcast_to(value, shape).ravel()
        return pd.DataFrame(table)

    def __getitem__(self, name: str) -> np.ndarray:
        return getattr(self, name)


def from_counts(
    nll: np.ndarray, class_counts: np.ndarray, n_rows: int, threshold: float, ranks: dict[str, np.ndarray]
) -> ProbeMetrics:
    """Assemble the table from the losses and what `confusion_and_ranks` counted."""
    base = base_losses(class_counts, n_rows)
    with np.errstate(divide="ignore", invalid="ignore"):
        r = np.where(base > 0, 1.0 - nll / base, np.nan)
    tp, fp, fn = (ranks[k].astype(np.float64) for k in ("tp", "fp", "fn"))
    precision = tp / np.maximum(tp + fp, 1.0)
    recall = tp / np.maximum(tp + fn, 1.0)
    f1 = 2.0 * tp / np.maximum(2.0 * tp + fp + fn, 1.0)
    return ProbeMetrics(
        nll=nll,
        nll_base=base,
        r=r,
        precision=precision,
        recall=recall,
        f1=f1,
        n_rows=n_rows,
        threshold=threshold,
        **ranks,
    )


def base_losses(class_counts: np.ndarray, n_rows: int) -> np.ndarray:
    """Loss of predicting each class's prevalence for every row, float64 ``[n_classes]``."""
    p = class_counts / n_rows
    with np.errstate(divide="ignore", invalid="ignore"):
        return -(np.where(p > 0, p * np.log(p), 0.0) + np.where(p < 1, (1 - p) * np.log1p(-p), 0.0))


def losses(summary: LatentSummary, coef: np.ndarray, intercept: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean negative log-likelihood of every pair by the summary's nodes, and a bound of its error.

    Returns
    -------
    nll, error : ndarray of float64, shape [n_latents, n_classes]
    """
    nll, error = np.zeros(coef.shape), np.zeros(coef.shape)
    for first in range(0, len(coef), 256):
        group = np.arange(first, min(first + 256, len(coef)))
        block = summary.nodes(first, int(group[-1]) + 1)
        nll[group], error[group] = _losses_of(
            summary, group, coef, intercept, (block.offsets, block.x, block.m, block.e)
        )
    return nll, error


def exact_losses(x: Any, y: Any, coef: np.ndarray, intercept: np.ndarray) -> tuple[np.ndarray, LatentSummary]:
    """`losses`, with every pair whose error bound exceeds 1e-9 + 1e-7·nll recomputed on the raw events."""
    if y is None and not can_iterate_again(x):
        x = list(x)
    n_latents, n_classes = coef.shape
    summary = LatentSummary(n_latents, n_classes).add_shards(_checked(x, y, n_latents, n_classes))
    if summary.n_rows == 0:
        raise ValueError("no labelled row: there is nothing to measure")
    nll, error = losses(summary, coef, intercept)
    doubtful = np.flatnonzero((error > 1e-9 + 1e-7 * np.abs(nll)).any(axis=1))
    for first, block, _ in columns(x, y, n_latents=n_latents, n_classes=n_classes, latents=doubtful):
        group = doubtful[first : first + block.shape[1]]
        raw = block.indptr.astype(np.int64), block.data.astype(np.float64), None, None
        nll[group], _ = _losses_of(summary, group, coef, intercept, raw)
    return nll, summary


def _checked(x: Any, y: Any, n_latents: int, n_classes: int) -> Iterator[Shard]:
    for shard in shards(x, y, n_classes):
        same_width(shard, n_latents)
        yield shard


def _losses_of(
    summary: LatentSummary, latents: np.ndarray, coef: np.ndarray, intercept: np.ndarray, values: tuple
) -> tuple[np.ndarray, np.ndarray]:
    """Loss and error bound of some latents' pairs, by nodes (offsets, x, m, e)."""
    offsets, x, m, e = values
    cpu = torch.device("cpu")
    nodes = Nodes(offsets, x, m, np.ones(len(latents)), e, device=cpu, dtype=torch.float64)
    b, w = (torch.from_numpy(np.ascontiguousarray(t[latents])) for t in (intercept, coef))
    every = torch.ones(b.shape, dtype=torch.bool)
    layout = nodes.layout(every, tuned_block_elements(cpu, torch.float64)[0])
    total = torch.zeros(b.numel(), dtype=torch.float64)
    bound = torch.zeros(b.numel(), 2, dtype=torch.float64)
    layout.losses(b.reshape(-1), w.reshape(-1), total)
    if e is not None:
        layout.rule_errors(b.reshape(-1), w.reshape(-1), bound)
    n_zero = torch.from_numpy(summary.n_rows - summary.n_events[latents])[:, None]
    total = total.view(b.shape) + n_zero * torch.nn.functional.softplus(b, threshold=60.0)
    total -= b * torch.from_numpy(summary.class_counts) + w * torch.from_numpy(summary.label_sums[latents])
    return (total / summary.n_rows).numpy(), (bound[:, 0].view(b.shape) / summary.n_rows).numpy()


def confusion_and_ranks(
    x: Any,
    y: Any,
    coef: np.ndarray,
    intercept: np.ndarray,
    threshold: float,
    *,
    ranks: bool = True,
) -> tuple[int, np.ndarray, dict[str, np.ndarray]]:
    """Confusion of every pair, and with `ranks` also AUROC, average precision and best F1.

    Parameters
    ----------
    x, y
        As in `Sparse1DProbe.fit`.
    coef, intercept : ndarray of float64, shape [n_latents, n_classes]
    threshold : float
        Probability above which a row is predicted positive, in (0, 1).

    Returns
    -------
    n_rows : int
    class_counts : ndarray of int64, shape [n_classes]
    counts : dict of ndarray, shape [n_latents, n_classes]
        ``tp fp tn fn`` and, with `ranks`, ``auroc ap best_f1``.
    """
    if not 0.0 < threshold < 1.0:
        raise ValueError(f"threshold must lie in (0, 1), got {threshold}")
    shape = coef.shape
    names = ("tp", "fp", "tn", "fn")
    out: dict[str, np.ndarray] = {name: np.zeros(shape, np.int64) for name in names}
    if ranks:
        out |= {name: np.full(shape, np.nan) for name in ("auroc", "ap", "best_f1")}
    n_rows, class_counts = 0, np.zeros(shape[1], np.int64)
    cut = float(np.log(threshold) - np.log1p(-threshold))
    for first, block, labels in columns(x, y, n_latents=shape[0], n_classes=shape[1]):
        n_rows = block.shape[0]
        class_counts = _class_counts(labels, shape[1])
        at = slice(first, first + block.shape[1])
        scan = _Scan(block, labels, n_rows, class_counts)
        scan.confusion(coef[at], intercept[at], cut, {k: out[k][at] for k in names})
        if ranks:
            scan.ranks(coef[at], {k: out[k][at] for k in ("auroc", "ap", "best_f1")})
    return n_rows, class_counts, out


def _class_counts(labels: Any, n_classes: int) -> np.ndarray:
    ids = labels.indices if sp.issparse(labels) else labels
    return np.bincount(ids, minlength=n_classes).astype(np.int64)


class _Scan:
    """Some latents' events, sorted by value within each latent.

    Attributes
    ----------
    latent, value, label : ndarray, shape [n_events]
        Sorted by (latent, value). With several labels per row an event is repeated for each of them in
        `own`, the list of (event, class) incidences.
    below, upto : ndarray of int64, shape [n_events]
        Rows with a smaller value, and rows with at most this value, zeros included.
    """

    def __init__(self, block: sp.csc_array, labels: Any, n_rows: int, class_counts: np.ndarray) -> None:
        self.n_latents, self.n_classes = block.shape[1], len(class_counts)
        self.n_rows, self.class_counts = n_rows, class_counts
        indptr = block.indptr.astype(np.int64)
        self.indptr = indptr
        latent = np.repeat(np.arange(self.n_latents), np.diff(indptr))
        if sp.issparse(labels):
            order = np.lexsort((block.data, latent))
            self.value = block.data[order].astype(np.float64)
            rows = block.indices[order]
            n_labels = np.diff(labels.indptr)[rows]
            self._event = np.repeat(np.arange(len(rows)), n_labels)
            inside = np.arange(len(self._event)) - np.repeat(np.cumsum(n_labels) - n_labels, n_labels)
            self._label = labels.indices[np.repeat(labels.indptr[rows], n_labels) + inside].astype(np.int64)
        else:
            self.value, self._label = _sort(latent, block.data, labels.take(block.indices, mode="clip"))
            self._event = np.arange(len(self.value))
        self.latent = latent
        self._groups()

    def _groups(self) -> None:
        """Positions of ties, and the events' ranks among all rows of the latent."""
        n = len(self.value)
        new = np.ones(n, bool)
        if n:
            new[1:] = self.value[1:] != self.value[:-1]
            new[self.indptr[:-1][np.diff(self.indptr) > 0]] = True
        starts = np.flatnonzero(new)
        tie = np.cumsum(new) - 1
        ends = np.append(starts[1:], n)
        n_zero = self.n_rows - np.diff(self.indptr)
        negative = np.zeros(self.n_latents, np.int64)
        np.add.at(negative, self.latent[self.value < 0], 1)
        shift = np.where(self.value > 0, n_zero[self.latent], 0) - self.indptr[:-1][self.latent]
        self.below = starts[tie] + shift
        self.upto = ends[tie] + shift
        self.n_zero, self.n_negative = n_zero, negative
        # Incidences (event, class) grouped by (latent, class), in the order of their values.
        pair = self.latent[self._event] * self.n_classes + self._label
        n_pairs = self.n_latents * self.n_classes
        self.own_count = np.bincount(pair, minlength=n_pairs)
        # Counting sort: a one-column-per-pair matrix converted from rows to columns keeps their order.
        order = _counting_sort(pair, n_pairs)
        self._pair, self._at = pair[order], self._event[order]

    def confusion(
        self, coef: np.ndarray, intercept: np.ndarray, cut: float, out: dict[str, np.ndarray]
    ) -> None:
        """tp, fp, tn and fn of every pair, into `out`."""
        b, w = intercept.ravel(), coef.ravel()
        x = self.value[self._at]
        hit = b[self._pair] + w[self._pair] * x > cut
        tp = np.bincount(self._pair, hit, minlength=b.size).astype(np.int64).reshape(coef.shape)
        zero_positive = intercept > cut
        own = self.own_count.reshape(coef.shape)
        tp += np.where(zero_positive, self.class_counts - own, 0)
        positive = self._predicted(coef, intercept, cut)
        positive += np.where(zero_positive, self.n_zero[:, None], 0)
        out["tp"][:] = tp
        out["fp"][:] = positive - tp
        out["fn"][:] = self.class_counts - tp
        out["tn"][:] = self.n_rows - positive - out["fn"]

    def _predicted(self, coef: np.ndarray, intercept: np.ndarray, cut: float) -> np.ndarray:
        """Events with b + w x > cut, per pair, by bisection on that very comparison.

        Multiplying and adding round monotonically, so on the sorted values the computed comparison
        changes side once, and the count is the one that evaluating every event would give.
        """
        falling = coef < 0
        start = np.broadcast_to(self.indptr[:-1, None], coef.shape)
        stop = np.broadcast_to(self.indptr[1:, None], coef.shape)
        low, high = start.copy(), stop.copy()
        if not len(self.value):
            return np.zeros(coef.shape, np.int64)
        while (low < high).any():
            middle = (low + high) // 2
            inside = np.minimum(middle, len(self.value) - 1)
            beyond = (intercept + coef * self.value[inside] > cut) != falling
            open_ = low < high
            high = np.where(open_ & beyond, middle, high)
            low = np.where(open_ & ~beyond, middle + 1, low)
        return np.where(falling, low - start, stop - low)

    def ranks(self, coef: np.ndarray, out: dict[str, np.ndarray]) -> None:
        """AUROC, average precision and best F1 of every pair, into `out`."""
        shape, n = coef.shape, self.n_rows
        total = np.broadcast_to(self.class_counts.astype(np.float64), shape)
        own = self.own_count.reshape(shape)
        zero_own = total - own
        n_zero, n_negative = self.n_zero[:, None], self.n_negative[:, None]
        pair, at = self._pair, self._at
        below, upto, value = self.below[at], self.upto[at], self.value[at]

        middle = 0.5 * (below + upto + 1.0)
        rank_sum = np.bincount(pair, middle, minlength=coef.size).reshape(shape)
        rank_sum += zero_own * (n_negative + 0.5 * (n_zero + 1.0))
        with np.errstate(divide="ignore", invalid="ignore"):
            auroc = (rank_sum - 0.5 * total * (total + 1.0)) / (total * (n - total))
        out["auroc"][:] = np.where(coef > 0, auroc, 1.0 - auroc)

        # How many rows of the own class lie below, and how many up to, each of its events.
        m = len(pair)
        new_pair = np.ones(m, bool)
        new_pair[1:] = pair[1:] != pair[:-1]
        new_tie = new_pair.copy()
        new_tie[1:] |= value[1:] != value[:-1]
        pair_start = np.flatnonzero(new_pair)
        tie_start = np.flatnonzero(new_tie)
        tie = np.cumsum(new_tie) - 1
        first_of_pair = pair_start[np.cumsum(new_pair) - 1] if m else pair_start
        zeros_below = np.where(value > 0, zero_own.ravel()[pair], 0.0)
        own_below = tie_start[tie] - first_of_pair + zeros_below
        own_upto = np.append(tie_start[1:], m)[tie] - first_of_pair + zeros_below
        rising = coef.ravel()[pair] > 0
        hits = np.where(rising, total.ravel()[pair] - own_below, own_upto)
        predicted = np.where(rising, n - below, upto)
        own_negative = np.bincount(pair, value < 0, minlength=coef.size).reshape(shape)
        hits_zero = np.where(coef > 0, total - own_negative, own_negative + zero_own)
        predicted_zero = np.where(coef > 0, n - n_negative, n_negative + n_zero)

        with np.errstate(divide="ignore", invalid="ignore"):
            ap = np.bincount(pair, hits / predicted, minlength=coef.size).reshape(shape)
            ap += np.where(zero_own > 0, zero_own * hits_zero / predicted_zero, 0.0)
            ap /= total
            best = np.where(zero_own > 0, 2.0 * hits_zero / (predicted_zero + total), 0.0)
            if m:
                reached = np.maximum.reduceat(2.0 * hits / (predicted + total.ravel()[pair]), pair_start)
                flat = best.ravel()
                flat[pair[pair_start]] = np.maximum(flat[pair[pair_start]], reached)
                best = flat.reshape(shape)
            # A constant score ranks nothing: one threshold, everything or nothing.
            constant = coef == 0
            out["auroc"][constant] = 0.5
            ap = np.where(constant, total / n, ap)
            best = np.where(constant, 2.0 * total / (n + total), best)
        undefined = (total == 0) | (total == n)
        out["auroc"][undefined] = np.nan
        out["ap"][:] = np.where(total == 0, np.nan, ap)
        out["best_f1"][:] = best


def _sort(latent: np.ndarray, value: np.ndarray, label: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Values and labels sorted by (latent, value); `latent` is sorted already.

    Where all three fit, they are packed into one 64-bit word, whose sort NumPy vectorises.
    """
    single = value.astype(np.float32)
    fits = value.dtype == np.float32 or np.array_equal(single, value)
    if not fits or len(value) == 0 or latent[-1] >= 1 << 16 or int(label.max()) >= 1 << 16:
        order = np.lexsort((value, latent))
        return value[order].astype(np.float64), label[order].astype(np.int64)
    bits = single.view(np.uint32)
    negative = bits >> 31 == 1
    ordered = np.where(negative, ~bits, bits | np.uint32(1 << 31))
    word = latent.astype(np.uint64) << np.uint64(48)
    word |= ordered.astype(np.uint64) << np.uint64(16)
    word |= label.astype(np.uint64)
    word.sort()
    label = (word & np.uint64(0xFFFF)).astype(np.int64)
    ordered = (word >> np.uint64(16)).astype(np.uint32)
    bits = np.where(ordered >> 31 == 1, ordered & np.uint32(0x7FFFFFFF), ~ordered)
    return bits.view(np.float32).astype(np.float64), label


def _counting_sort(key: np.ndarray, n_keys: int) -> np.ndarray:
    """Stable order of integer keys below `n_keys`, in linear time."""
    one_row = sp.csr_array((np.arange(len(key)), key, np.array([0, len(key)])), shape=(1, n_keys))
    return one_row.tocsc().data
