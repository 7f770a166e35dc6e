r"""Confusion counts of every pair, in one stream over row shards.

At most values, most probes predict what they predict at zero. Per latent there is a smallest value from which
on any of its probes changes its mind; events below it need no look beyond one comparison. The few above it
are evaluated exactly: each can be a true positive for its own class only, and how many of them a probe
predicts positive is a position in the latent's sorted values.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse as sp

from interp.probe.data import Shard, shards
from interp.threads import n_threads, shared

__all__ = ["Confusion", "confusion", "sorted_by_value"]

#: Events compared at a time by each thread, and flips kept before they are counted.
_BATCH, _KEPT = 1 << 20, 1 << 24
#: Latents whose pairs are counted at a time, so that the work stays in the cache; parts that threads share.
_GROUP, _RANGES = 128, 16


class Confusion(NamedTuple):
    """Counts of every pair; positive is what has p > threshold.

    Attributes
    ----------
    tp, fp, tn, fn : ndarray of int64, shape [n_latents, n_classes]
    """

    tp: np.ndarray
    fp: np.ndarray
    tn: np.ndarray
    fn: np.ndarray


def confusion(x: Any, y: Any, coef: np.ndarray, intercept: np.ndarray, threshold: float) -> Confusion:
    """Confusion of every pair.

    Parameters
    ----------
    x, y : as in `Sparse1DProbe.fit`
        Read once.
    coef, intercept : ndarray of float64, shape [n_latents, n_classes]
    threshold : float
        Probability above which a row is predicted positive, in (0, 1).

    Returns
    -------
    Confusion
    """
    if not 0.0 < threshold < 1.0:
        raise ValueError(f"threshold must lie in (0, 1), got {threshold}")
    n_latents, n_classes = coef.shape
    cut = float(np.log(threshold) - np.log1p(-threshold))
    flips = _Flips(coef, intercept, cut)
    bounds = {np.dtype(t): _mind_changes(coef, intercept, cut, t) for t in (np.float32, np.float64)}
    n_rows, class_counts = 0, np.zeros(n_classes, np.int64)

    def batches() -> Iterator[tuple[Shard, int, int]]:
        nonlocal n_rows, class_counts
        for shard in shards(x, y, n_classes, n_latents):
            n_rows += shard.n_rows
            class_counts += shard.class_counts(n_classes)
            rows = max(1, shard.n_rows * _BATCH // max(1, shard.x.nnz))
            for begin in range(0, shard.n_rows, rows):
                yield shard, begin, min(begin + rows, shard.n_rows)

    def beyond(shard: Shard, begin: int, end: int) -> tuple[np.ndarray, np.ndarray, Any]:
        low, high = bounds[shard.x.dtype]
        indptr = shard.x.indptr[begin : end + 1]
        here = slice(indptr[0], indptr[-1])
        latent, value = shard.x.indices[here], shard.x.data[here]
        changed = value > high.take(latent, mode="clip")
        if value.min(initial=0.0) < 0.0:
            changed |= value < low.take(latent, mode="clip")
        at = np.flatnonzero(changed)
        of_rows = np.diff(np.searchsorted(at, indptr - indptr[0]))
        row = np.repeat(np.arange(begin, end), of_rows)
        return latent[at], value[at], shard.y[row]

    for latent, value, labels in shared(beyond, batches(), n_threads()):
        flips.add(latent, value, labels)
    own, any_class = flips.counted()
    if n_rows == 0:
        raise ValueError("no labelled row: there is nothing to measure")
    at_zero = intercept > cut
    tp = np.where(at_zero, class_counts - own, own)
    positive = np.where(at_zero, n_rows - any_class, any_class)
    fn = class_counts - tp
    return Confusion(tp, positive - tp, n_rows - positive - fn, fn)


def _mind_changes(
    coef: np.ndarray, intercept: np.ndarray, cut: float, dtype: type
) -> tuple[np.ndarray, np.ndarray]:
    """Per latent, bounds (low ≤ 0 ≤ high) within which every probe predicts what it predicts at zero.

    Safe against rounding in b + w·x and in the bound itself.
    """
    above = (coef > 0) == (intercept <= cut)  # where x > 0 can change the prediction; else x < 0 can
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        at = np.abs((cut - intercept) / coef)
        at = np.where(np.isfinite(at), at, np.inf)  # no slope, or beyond every value
        at = at - np.where(
            at < np.inf, 1e-6 * at + 1e-15 * (np.abs(intercept) + abs(cut)) / np.abs(coef), 0.0
        )
    at = np.maximum(at, 0.0)
    high = np.where(above, at, np.inf).min(axis=1)
    low = -np.where(above, np.inf, at).min(axis=1)
    top = np.finfo(dtype).max
    high, low = (np.where(np.abs(a) > top, np.copysign(np.inf, a), a).astype(dtype) for a in (high, low))
    return low, high


class _Flips:
    """Counts, per pair, of events whose prediction differs from that at zero: own class's, and all."""

    def __init__(self, coef: np.ndarray, intercept: np.ndarray, cut: float) -> None:
        self.coef, self.intercept, self.cut = coef, intercept, cut
        self.own, self.any_class = (np.zeros(coef.shape, np.int64) for _ in range(2))
        self._kept: list[tuple[np.ndarray, np.ndarray, Any]] = []

    def add(self, latent: np.ndarray, value: np.ndarray, labels: Any) -> None:
        self._kept.append((latent, value, labels))
        if sum(len(kept[0]) for kept in self._kept) > _KEPT:
            self._count()

    def counted(self) -> tuple[np.ndarray, np.ndarray]:
        self._count()
        return self.own, self.any_class

    def _count(self) -> None:
        if not self._kept:
            return
        latents, values, labels = zip(*self._kept, strict=True)
        self._kept = []
        sparse = sp.issparse(labels[0])
        y = sp.csr_array(sp.vstack(labels, format="csr")) if sparse else np.concatenate(labels)
        count = partial(self._count_range, np.concatenate(latents), np.concatenate(values), y)
        n_latents = len(self.coef)
        step = max(_GROUP, -(-n_latents // _RANGES))
        ranges = ((first, min(first + step, n_latents)) for first in range(0, n_latents, step))
        deque(shared(count, ranges, n_threads()), maxlen=0)

    def _count_range(self, latent: np.ndarray, value: np.ndarray, y: Any, first: int, stop: int) -> None:
        """Count the flips of the latents `first` … `stop` − 1, which are some of these."""
        here = np.flatnonzero((latent >= first) & (latent < stop))
        latent, value, y = latent[here] - first, value[here], y[here]
        if sp.issparse(y):
            order = np.lexsort((value, latent))
            value, y = value[order], y[order]
        else:
            value, y = sorted_by_value(latent, value, y)
        indptr = np.concatenate([[0], np.cumsum(np.bincount(latent, minlength=stop - first))])
        for start in range(0, stop - first, _GROUP):
            end = min(start + _GROUP, stop - first)
            events = slice(indptr[start], indptr[end])
            if len(value[events]):
                bounds = indptr[start : end + 1] - indptr[start]
                self._count_group(bounds, value[events], y[events], slice(first + start, first + end))

    def _count_group(self, bounds: np.ndarray, value: np.ndarray, y: Any, at: slice) -> None:
        """Count the flips of the latents `at`; those of each are sorted by value and begin at `bounds`."""
        coef, intercept = self.coef[at], self.intercept[at]
        pair = np.repeat(np.arange(len(coef)) * coef.shape[1], np.diff(bounds))
        own_value = value
        if sp.issparse(y):
            of_rows = np.diff(y.indptr)
            pair, own_value = np.repeat(pair, of_rows), np.repeat(value, of_rows)
        pair += y.indices if sp.issparse(y) else y
        b = intercept.ravel()[pair]
        flipped = (b + coef.ravel()[pair] * own_value.astype(np.float64) > self.cut) != (b > self.cut)
        self.own[at] += np.bincount(pair[flipped], minlength=coef.size).reshape(coef.shape)

        start, last = (np.broadcast_to(bounds[k : k + len(coef), None], coef.shape) for k in (0, 1))
        above = _count_above(value, start, last, coef, intercept, self.cut)
        self.any_class[at] += np.where(intercept > self.cut, (last - start) - above, above)


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


def sorted_by_value(
    latent: np.ndarray, value: np.ndarray, label: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Values and labels of events, sorted by latent and by value within each latent.

    Where latent, value and label fit one 64-bit word they are packed, and NumPy's vectorised sort does it.

    Parameters
    ----------
    latent : ndarray of int, shape [n_events]
    value : ndarray of float, shape [n_events]
    label : ndarray of int32, shape [n_events]
        At least 0.

    Returns
    -------
    value : ndarray of the same dtype and shape
    label : ndarray of int32, shape [n_events]
    """
    single = value.astype(np.float32, copy=False)
    fits = single is value or np.array_equal(single, value)
    if not fits or not len(value) or latent.max() >= 1 << 16 or label.max() >= 1 << 16:
        order = np.lexsort((value, latent))
        return value[order], label[order]
    bits = single.view(np.uint32)
    signed = bool(bits.max() >> 31)
    if signed:  # make the bits of floats sort as the floats do
        bits = np.where(bits >> 31 == 1, ~bits, bits | np.uint32(1 << 31))
    word = np.left_shift(latent, 32, dtype=np.uint64, casting="unsafe")
    word |= bits
    word <<= np.uint64(16)
    word |= label.astype(np.uint16)
    word.sort()
    label = word.astype(np.uint16).astype(np.int32)
    word >>= np.uint64(16)
    bits = word.astype(np.uint32)
    if signed:
        bits = np.where(bits >> 31 == 1, bits & np.uint32(0x7FFFFFFF), ~bits)
    return bits.view(np.float32), label
