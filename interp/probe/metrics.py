r"""How well every probe does: exact, and one sorted scan per latent for all its classes.

A probe's score is monotone in x, so every ranking question about a pair is a question about the latent's
sorted values: "how many rows score higher" is a position in the sort, the same for all classes, and each
event can be a true positive for its own class only. The rows where a latent is zero are one tie.
Nothing of shape (events × classes) or (rows × classes) is ever made.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch

from interp.probe.data import can_iterate_again, columns, shards
from interp.probe.nodes import Nodes
from interp.probe.sizes import tuned_block_elements
from interp.probe.summary import LatentSummary, NodeBlock
from interp.probe.threads import n_threads, shared

__all__ = ["Confusion", "ProbeMetrics", "confusion_and_ranks"]

#: Events scanned at a time by each thread.
_BLOCK = 1 << 16


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
    elements, _ = tuned_block_elements(torch.device("cpu"), torch.float64)

    def work(first: int) -> None:
        group = np.arange(first, min(first + 256, len(coef)))
        block = summary.nodes(first, int(group[-1]) + 1)
        nodes, w, b = _nodes(*block), coef[group], intercept[group]
        nll[group] = _losses_of(nodes, np.ones(w.shape, bool), summary, group, w, b, elements)
        error[group] = _rule_errors(nodes, block, summary.n_rows, w, b, elements)

    deque(shared(work, ((first,) for first in range(0, len(coef), 256)), n_threads()), maxlen=0)
    return nll, error


def exact_losses(x: Any, y: Any, coef: np.ndarray, intercept: np.ndarray) -> tuple[np.ndarray, LatentSummary]:
    """`losses`, with every pair whose error bound exceeds 1e-9 + 1e-7·nll recomputed on the raw events."""
    if y is None and not can_iterate_again(x):
        x = list(x)
    n_latents, n_classes = coef.shape
    summary = LatentSummary(n_latents, n_classes).add_shards(shards(x, y, n_classes, n_latents))
    if summary.n_rows == 0:
        raise ValueError("no labelled row: there is nothing to measure")
    nll, error = losses(summary, coef, intercept)
    doubtful = error > 1e-9 + 1e-7 * np.abs(nll)
    latents = np.flatnonzero(doubtful.any(axis=1))
    elements, _ = tuned_block_elements(torch.device("cpu"), torch.float64)

    def work(first: int, block: sp.csc_array, _: Any) -> None:
        group = latents[first : first + block.shape[1]]
        nodes = _nodes(block.indptr.astype(np.int64), block.data.astype(np.float64), None, None)
        pairs = doubtful[group]
        exact = _losses_of(nodes, pairs, summary, group, coef[group], intercept[group], elements)
        nll[group] = np.where(pairs, exact, nll[group])

    blocks = columns(x, y, n_latents=n_latents, n_classes=n_classes, latents=latents)
    deque(shared(work, blocks, n_threads()), maxlen=0)
    return nll, summary


def _nodes(offsets: np.ndarray, x: np.ndarray, m: np.ndarray | None, e: np.ndarray | None) -> Nodes:
    cpu = torch.device("cpu")
    return Nodes(offsets, x, m, np.ones(len(offsets) - 1), e, device=cpu, dtype=torch.float64)


def _losses_of(
    nodes: Nodes,
    pairs: np.ndarray,
    summary: LatentSummary,
    latents: np.ndarray,
    w: np.ndarray,
    b: np.ndarray,
    elements: int,
) -> np.ndarray:
    """Losses of the pairs in a mask [len(latents), n_classes]; 0 for the others."""
    at = np.flatnonzero(pairs)
    layout = nodes.layout(torch.from_numpy(at), pairs.shape[1], elements)
    own_b, own_w = b.ravel()[at], w.ravel()[at]
    row, cls = np.divmod(at, pairs.shape[1])
    total = layout.losses(torch.from_numpy(own_b), torch.from_numpy(own_w)).numpy()
    total += (summary.n_rows - summary.n_events[latents[row]]) * np.logaddexp(0.0, own_b)
    total -= own_b * summary.class_counts[cls] + own_w * summary.label_sums[latents[row], cls]
    out = np.zeros(pairs.shape)
    out.ravel()[at] = total / summary.n_rows
    return out


def _rule_errors(
    nodes: Nodes, block: NodeBlock, n_rows: int, w: np.ndarray, b: np.ndarray, elements: int
) -> np.ndarray:
    """Bounds on the error of `_losses_of` by the nodes of a summary, shape of `w`."""
    # The fourth derivative of softplus is at most 1/8: that clears most pairs at no cost.
    rows = np.repeat(np.arange(len(w)), np.diff(block.offsets))
    bound = np.bincount(rows, block.e, minlength=len(w))[:, None] / 8.0 * w**4
    at = np.flatnonzero(bound > 1e-10 * n_rows)
    layout = nodes.layout(torch.from_numpy(at), w.shape[1], elements)
    bound.ravel()[at] = layout.rule_errors(*(torch.from_numpy(t.ravel()[at]) for t in (b, w)))[0].numpy()
    return bound / n_rows


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
    out: dict[str, np.ndarray] = {name: np.zeros(shape, np.int64) for name in ("tp", "fp", "tn", "fn")}
    if ranks:
        out |= {name: np.full(shape, np.nan) for name in ("auroc", "ap", "best_f1")}
    cut = float(np.log(threshold) - np.log1p(-threshold))
    found: list[tuple[int, np.ndarray]] = []

    def work(first: int, block: sp.csc_array, labels: Any) -> None:
        n_rows, class_counts = block.shape[0], _class_counts(labels, shape[1])
        if not found:
            found.append((n_rows, class_counts))
        at = slice(first, first + block.shape[1])
        scan = _Scan(block, labels, n_rows, class_counts)
        scan.confusion(coef[at], intercept[at], cut, {k: out[k][at] for k in ("tp", "fp", "tn", "fn")})
        if ranks:
            scan.ranks(coef[at], {k: out[k][at] for k in ("auroc", "ap", "best_f1")})

    blocks = columns(x, y, n_latents=shape[0], n_classes=shape[1], n_events=_BLOCK)
    deque(shared(work, blocks, n_threads()), maxlen=0)
    n_rows, class_counts = found[0]
    return n_rows, class_counts, out


def _class_counts(labels: Any, n_classes: int) -> np.ndarray:
    ids = labels.indices if sp.issparse(labels) else labels
    return np.bincount(ids, minlength=n_classes).astype(np.int64)


class _Scan:
    """Some latents' events, sorted by value within each latent, and again within each (latent, class).

    Attributes
    ----------
    value : ndarray, shape [n_events]
        Sorted within ``indptr[l] … indptr[l + 1]``.
    at : ndarray of int, shape [n_incidences]
        For each (event, class of its row), grouped by pair and sorted by value: the event's position.
    own_indptr : ndarray of int64, shape [n_pairs + 1]
        Where the incidences of each pair begin in `at`.
    """

    def __init__(self, block: sp.csc_array, labels: Any, n_rows: int, class_counts: np.ndarray) -> None:
        self.n_latents, self.n_classes = block.shape[1], len(class_counts)
        self.n_rows, self.class_counts = n_rows, class_counts
        self.indptr = block.indptr.astype(np.int64)
        counts = np.diff(self.indptr)
        self.n_zero = n_rows - counts
        n_pairs = self.n_latents * self.n_classes
        if sp.issparse(labels):
            order = np.lexsort((block.data, np.repeat(np.arange(self.n_latents), counts)))
            self.value, rows = block.data[order], block.indices[order]
            n_labels = np.diff(labels.indptr)[rows]
            event = np.repeat(np.arange(len(rows)), n_labels)
            inside = np.arange(len(event)) - np.repeat(np.cumsum(n_labels) - n_labels, n_labels)
            label = labels.indices[np.repeat(labels.indptr[rows], n_labels) + inside]
            pair = (_event_latent(self.indptr, self.n_classes)[event] + label).astype(np.int32)
            self.at = event[_counting_sort(pair, n_pairs)]
        else:
            self.value, label = _sort(self.indptr, block.data, labels.take(block.indices, mode="clip"))
            pair = _event_latent(self.indptr, self.n_classes)
            pair += label
            self.at = _counting_sort(pair, n_pairs)
        own = np.bincount(pair, minlength=n_pairs)
        self.own_indptr = np.concatenate([[0], np.cumsum(own)])
        self.own = own.reshape(self.n_latents, self.n_classes)

    def confusion(
        self, coef: np.ndarray, intercept: np.ndarray, cut: float, out: dict[str, np.ndarray]
    ) -> None:
        """tp, fp, tn and fn of every pair, into `out`."""
        shape = coef.shape
        start, stop = (self.own_indptr[k : k + coef.size].reshape(shape) for k in (0, 1))
        tp = _count_above(self.value[self.at], start, stop, coef, intercept, cut)
        start, stop = (np.broadcast_to(self.indptr[k : k + len(coef), None], shape) for k in (0, 1))
        positive = _count_above(self.value, start, stop, coef, intercept, cut)
        zero_positive = intercept > cut
        tp += np.where(zero_positive, self.class_counts - self.own, 0)
        positive += np.where(zero_positive, self.n_zero[:, None], 0)
        out["tp"][:] = tp
        out["fp"][:] = positive - tp
        out["fn"][:] = self.class_counts - tp
        out["tn"][:] = self.n_rows - positive - out["fn"]

    def ranks(self, coef: np.ndarray, out: dict[str, np.ndarray]) -> None:
        """AUROC, average precision and best F1 of every pair, into `out`."""
        shape, n = coef.shape, float(self.n_rows)
        total = np.broadcast_to(self.class_counts.astype(np.float64), shape)
        zero_own = total - self.own
        n_zero = self.n_zero[:, None].astype(np.float64)
        starts = self.own_indptr[:-1]
        filled = np.flatnonzero(self.own.ravel())
        own, group = self.own.ravel()[filled], starts[filled]

        def spread(per_pair: np.ndarray) -> np.ndarray:
            """One value per incidence from one per pair."""
            return np.repeat(np.broadcast_to(per_pair, shape).ravel()[filled], own)

        def gather(ufunc: np.ufunc, per_incidence: np.ndarray) -> np.ndarray:
            """One value per pair from one per incidence; 0 for a pair without events."""
            result = np.zeros(coef.size)
            if len(group):
                result[filled] = ufunc.reduceat(per_incidence, group)
            return result.reshape(shape)

        # Rows, and rows of the own class, that score below each event and up to it; zeros lie below
        # every positive value. Ties share the first and the last place of their run.
        first, last, own_first, own_last, negative = self._places(group)
        below = first + spread(n_zero - self.indptr[:-1, None])
        own_below = own_first + spread(zero_own - starts.reshape(shape))
        n_negative = own_negative = np.zeros((1, 1))
        if negative is not None:
            below -= np.where(negative, spread(n_zero), 0.0)
            own_below -= np.where(negative, spread(zero_own), 0.0)
            own_negative = gather(np.add, negative.astype(np.float64))
            n_negative = np.add.reduceat(np.append(self.value < 0, False), self.indptr[:-1], dtype=np.float64)
            n_negative = np.where(np.diff(self.indptr) > 0, n_negative, 0.0)[:, None]
        upto, own_upto = below + (last - first), own_below + (own_last - own_first)

        rank_sum = gather(np.add, below + upto) * 0.5 + 0.5 * self.own
        rank_sum += zero_own * (n_negative + 0.5 * (n_zero + 1.0))
        with np.errstate(divide="ignore", invalid="ignore"):
            auroc = (rank_sum - 0.5 * total * (total + 1.0)) / (total * (n - total))
            auroc = np.where(coef > 0, auroc, 1.0 - auroc)

            rising = spread(coef > 0)
            hits = np.where(rising, spread(total) - own_below, own_upto)
            predicted = np.where(rising, n - below, upto)
            hits_zero = np.where(coef > 0, total - own_negative, own_negative + zero_own)
            predicted_zero = np.where(coef > 0, n - n_negative, n_negative + n_zero)
            ap = gather(np.add, hits / predicted)
            ap += np.where(zero_own > 0, zero_own * hits_zero / predicted_zero, 0.0)
            ap /= total
            best = np.where(zero_own > 0, 2.0 * hits_zero / (predicted_zero + total), 0.0)
            best = np.maximum(best, 2.0 * gather(np.maximum, hits / (predicted + spread(total))))
            # A constant score ranks nothing: one threshold, everything or nothing.
            constant = coef == 0
            out["auroc"][:] = np.where((total == 0) | (total == n), np.nan, np.where(constant, 0.5, auroc))
            out["ap"][:] = np.where(total == 0, np.nan, np.where(constant, total / n, ap))
            out["best_f1"][:] = np.where(constant, 2.0 * total / (n + total), best)

    def _places(self, group: np.ndarray) -> tuple[Any, ...]:
        """First and last place of each incidence's tie, among the events and among its pair's own."""
        first = self.at.astype(np.float64)
        own_first = np.arange(len(first), dtype=np.float64)
        last, own_last = first + 1.0, own_first + 1.0
        value = self.value[self.at]
        runs = _run_starts(self.value, self.indptr[:-1][np.diff(self.indptr) > 0])
        if len(runs) < len(self.value):
            begin, end = _run_bounds(runs, len(self.value))
            first, last = begin[self.at], end[self.at]
            own_first, own_last = _run_bounds(_run_starts(value, group), len(value))
        negative = value < 0
        return first, last, own_first, own_last, negative if negative.any() else None


def _run_starts(value: np.ndarray, breaks: np.ndarray) -> np.ndarray:
    """Where runs of equal values begin, a new one at each of `breaks` at least."""
    new = np.ones(len(value), bool)
    np.not_equal(value[1:], value[:-1], out=new[1:])
    new[breaks] = True
    return np.flatnonzero(new)


def _run_bounds(starts: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """First place, and place after the last, of the run that each position belongs to; float64."""
    ends = np.append(starts[1:], n)
    lengths = ends - starts
    return np.repeat(starts.astype(np.float64), lengths), np.repeat(ends.astype(np.float64), lengths)


def _event_latent(indptr: np.ndarray, scale: int) -> np.ndarray:
    """`scale` times the latent of each event, int32."""
    return np.repeat(np.arange(len(indptr) - 1, dtype=np.int32) * np.int32(scale), np.diff(indptr))


def _count_above(
    value: np.ndarray,
    start: np.ndarray,
    stop: np.ndarray,
    coef: np.ndarray,
    intercept: np.ndarray,
    cut: float,
) -> np.ndarray:
    """How many of ``value[start:stop]`` (sorted) have b + w x > cut, by bisection on that comparison.

    Multiplying and adding round monotonically, so on sorted values the computed comparison changes
    side once, and the count is the one that evaluating every event would give.
    """
    if not len(value):
        return np.zeros(coef.shape, np.int64)
    falling = coef < 0
    low, high = start.copy(), stop.copy()
    while (low < high).any():
        middle = (low + high) // 2
        x = value[np.minimum(middle, len(value) - 1)].astype(np.float64)
        beyond = (intercept + coef * x > cut) != falling
        searching = low < high
        high = np.where(searching & beyond, middle, high)
        low = np.where(searching & ~beyond, middle + 1, low)
    return np.where(falling, low - start, stop - low)


def _sort(indptr: np.ndarray, value: np.ndarray, label: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Values and labels, sorted by value within each latent.

    Where latent, value and label fit one 64-bit word they are packed, and NumPy's vectorised sort does it.
    """
    n_latents = len(indptr) - 1
    single = value.astype(np.float32, copy=False)
    fits = single is value or np.array_equal(single, value)
    if not fits or len(value) == 0 or n_latents > 1 << 16 or int(label.max()) >= 1 << 16:
        order = np.lexsort((value, np.repeat(np.arange(n_latents), np.diff(indptr))))
        return value[order], label[order]
    bits = single.view(np.uint32)
    signed = bool((bits >> 31).any())
    if signed:  # make the bits of floats sort as the floats do
        bits = np.where(bits >> 31 == 1, ~bits, bits | np.uint32(1 << 31))
    word = np.repeat(np.arange(n_latents, dtype=np.uint64) << np.uint64(48), np.diff(indptr))
    word |= bits.astype(np.uint64) << np.uint64(16)
    word |= label.astype(np.uint16)
    word.sort()
    bits = (word >> np.uint64(16)).astype(np.uint32)
    if signed:
        bits = np.where(bits >> 31 == 1, bits & np.uint32(0x7FFFFFFF), ~bits)
    return bits.view(np.float32), word.astype(np.uint16).astype(np.int32)


def _counting_sort(key: np.ndarray, n_keys: int) -> np.ndarray:
    """Stable order of integer keys below `n_keys`, in linear time."""
    position = np.arange(len(key), dtype=np.int32)
    indptr = np.array([0, len(key)], np.int32)
    return sp.csr_array((position, key, indptr), shape=(1, n_keys)).tocsc().data
