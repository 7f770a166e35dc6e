r"""One pass over the events: all that a logistic probe needs to know of a sparse code.

The loss of a (latent, class) pair needs the labels in two sums only, N_c and S = XᵀY. What is left,
Σ softplus(b + w x) over the latent's non-zeros, depends on its *values* alone. Values are grouped into
bins that follow the float's own bits, 16 per octave, and each bin keeps its count and the first three
moments of the position in the bin. From these the bin becomes a 2-point Gauss rule (`nodes`), which
integrates every cubic exactly. All of it adds up: over shards, files, processes and machines.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse as sp

from interp.probe.bins import MANTISSA_BITS, PER_OCTAVE, Bins, gauss_nodes, key_of
from interp.probe.data import Shard, check_shard, latent_blocks, stack_labels
from interp.probe.files import read_safetensors, write_safetensors
from interp.threads import n_threads, shared

__all__ = ["LatentSummary", "NodeBlock"]

#: Events whose bins are filled at a time, in all and of each part: few enough to stay near the cache, and so
#: many that two threads seldom wait for Python's lock.
_CHUNK, _OF_PART = 1 << 18, 1 << 17
#: Events per latent that are added at a time, several times as many as it has bins (which all are added), and
#: events in all.
_PER_LATENT, _AT_ONCE = 1024, 1 << 25
#: Latents whose nodes are made at a time, so that the work stays in the cache.
_GROUP = 64
_FORMAT, _VERSION = "interp.LatentSummary", 1


class NodeBlock(NamedTuple):
    """Quadrature nodes of some latents, one after the other.

    Attributes
    ----------
    offsets : ndarray of int64, shape [n_latents + 1]
    x : ndarray of float64, shape [n_nodes]
        Node positions, in the units of the code.
    m : ndarray of float64, shape [n_nodes]
        Node weights; they add up to the number of events.
    e : ndarray of float64, shape [n_nodes]
        m·h⁴/96 with h the half-width of the node's bin, 0 where the rule is exact (see `interp.probe.exact`).
    """

    offsets: np.ndarray
    x: np.ndarray
    m: np.ndarray
    e: np.ndarray


class LatentSummary:
    """What a probe needs of ``(x, y)``: counts, class sums, and the values' bin moments per latent.

    Parameters
    ----------
    n_latents : int
        Columns of the code.
    n_classes : int, optional
        Number of classes; grows with the largest class id seen where it is not given.

    Attributes
    ----------
    n_rows : int
        Labelled rows seen.
    n_events : ndarray of int64, shape [n_latents]
        Non-zeros per latent.
    class_counts : ndarray of int64, shape [n_classes]
        N_c, rows per class.
    label_sums : ndarray of float64, shape [n_latents, n_classes]
        S = XᵀY.

    Examples
    --------
    >>> import scipy.sparse as sp
    >>> x = sp.csr_array([[0.0, 2.0], [1.0, 0.0], [3.0, 0.0]])
    >>> s = LatentSummary(2, 2).add(x[:2], [0, 1]).merge(LatentSummary(2, 2).add(x[2:], [1]))
    >>> s.label_sums
    array([[0., 4.],
           [2., 0.]])
    """

    def __init__(self, n_latents: int, n_classes: int | None = None) -> None:
        if n_latents < 1:
            raise ValueError(f"n_latents must be at least 1, got {n_latents}")
        if n_classes is not None and n_classes < 1:
            raise ValueError(f"n_classes must be at least 1, got {n_classes}")
        self.n_latents = int(n_latents)
        self._fixed_classes = None if n_classes is None else int(n_classes)
        self.n_rows = 0
        self.n_events = np.zeros(self.n_latents, np.int64)
        self.class_counts = np.zeros(n_classes or 0, np.int64)
        self.label_sums = np.zeros((self.n_latents, n_classes or 0))
        self._bins = {+1: Bins(self.n_latents), -1: Bins(self.n_latents)}

    @property
    def n_classes(self) -> int:
        """Classes seen or given."""
        return len(self.class_counts)

    def __repr__(self) -> str:
        return (
            f"LatentSummary({self.n_latents:,} latents × {self.n_classes} classes, {self.n_rows:,} rows, "
            f"{int(self.n_events.sum()):,} events)"
        )

    # ------------------------------------------------------------------------------- filling

    def add(self, x: Any, y: Any, *, row_batch_size: int | None = None) -> LatentSummary:
        """Add rows. Cost: one CSR → CSC conversion and five scattered sums per event.

        Parameters
        ----------
        x : sparse matrix, shape [n_rows, n_latents]
        y : integer array, shape [n_rows], or sparse multi-label matrix, shape [n_rows, n_classes]
        row_batch_size : int, optional
            Rows sorted by latent at a time; by default those of 512 events per latent, 2²⁵ events at most.

        Returns
        -------
        LatentSummary
            Itself.

        Raises
        ------
        ValueError
            See `interp.probe.data.check_shard`. The summary is unchanged then.
        """
        shard = check_shard(x, y, n_latents=self.n_latents, n_classes=self._fixed_classes)
        if sp.issparse(shard.y) and shard.y.shape[1] < self.n_classes:
            raise ValueError(f"y has {shard.y.shape[1]} classes (columns), the rows so far {self.n_classes}")
        return self.add_shards([shard], row_batch_size=row_batch_size)

    def add_shards(self, shards: Iterable[Shard], *, row_batch_size: int | None = None) -> LatentSummary:
        """`add` for many checked shards: one is sorted by latent while another is summed.

        Parameters
        ----------
        shards : iterable of Shard
            From `interp.probe.data.check_shard`.
        row_batch_size : int, optional
            As in `add`.

        Returns
        -------
        LatentSummary
            Itself.

        Raises
        ------
        ValueError
            If `row_batch_size` is less than 1.
        """
        deque(self.adding(shards, row_batch_size=row_batch_size), maxlen=0)
        return self

    def adding(
        self, shards: Iterable[Shard], *, row_batch_size: int | None = None
    ) -> Generator[tuple[int, int], None, None]:
        """`add_shards` as a generator, which may be left at any time; the summary is of no use then.

        Parameters
        ----------
        shards, row_batch_size : as in `add_shards`

        Yields
        ------
        n_rows, n_events : int
            What has just been added. Of rows that are added latent by latent, the share that their events
            are; 0, 0 where rows have been sorted.

        Raises
        ------
        ValueError
            As `add_shards`.
        """
        if row_batch_size is not None and row_batch_size < 1:
            raise ValueError(f"row_batch_size must be at least 1, got {row_batch_size}")
        threads = n_threads()
        batches = _batches(shards, self.n_latents, row_batch_size)
        parts: list[tuple[sp.csc_array, Any]] = []
        for part in shared(_by_latent, batches, threads):
            parts.append(part)
            if sum(x.nnz for x, _ in parts) < min(_PER_LATENT * self.n_latents, _AT_ONCE):
                yield 0, 0
                continue
            yield from self._adding_columns(parts, threads)
            parts = []
        if parts:
            yield from self._adding_columns(parts, threads)

    def add_columns(self, x: sp.csc_array, y: Any) -> LatentSummary:
        """`add` for checked rows that are sorted by latent already, in the calling thread.

        Parameters
        ----------
        x : csc_array, shape [n_rows, n_latents], float32 or float64
        y : ndarray of int, shape [n_rows], or csr_array, shape [n_rows, n_classes]

        Returns
        -------
        LatentSummary
            Itself.
        """
        deque(self._adding_columns([(x, y)], 1), maxlen=0)
        return self

    def _adding_columns(
        self, parts: list[tuple[sp.csc_array, Any]], threads: int
    ) -> Generator[tuple[int, int], None, None]:
        """Count the rows of some parts, then go through the latents, a cacheful of events at a time."""
        ends = np.zeros(self.n_latents + 1, np.int64)
        for x, y in parts:
            multi_label = sp.issparse(y)
            self._grow_classes(y.shape[1] if multi_label else int(y.max(initial=-1)) + 1)
            self._make_room(x.data)
            self.n_rows += x.shape[0]
            self.n_events += np.diff(x.indptr)
            self.class_counts += np.bincount(y.indices if multi_label else y, minlength=self.n_classes)
            ends += x.indptr
        n_events = max(_CHUNK, _OF_PART * len(parts))
        chunks = ((parts, start, stop) for start, stop in latent_blocks(ends, n_events))
        n_rows, told, done, total = sum(x.shape[0] for x, _ in parts), 0, 0, int(ends[-1])
        # No two chunks have a latent in common.
        for added in shared(self._add_chunk, chunks, threads):
            done += added
            rows = n_rows * done // max(1, total)
            yield rows - told, added
            told = rows
        yield n_rows - told, total - done

    def _add_chunk(self, parts: list[tuple[sp.csc_array, Any]], start: int, stop: int) -> int:
        """Add the events of the latents `start` … `stop` − 1; how many those were."""
        of_sign: dict[int, list[tuple[np.ndarray, np.ndarray]]] = {+1: [], -1: []}
        both = self._bins[-1].table.shape[2] > 0
        for x, y in parts:
            begin, end = int(x.indptr[start]), int(x.indptr[stop])
            indptr, values = x.indptr[start : stop + 1] - begin, x.data[begin:end]
            rows, weights = x.indices[begin:end], values.astype(np.float64)
            if sp.issparse(y):
                sums = sp.csr_array((weights, rows, indptr), shape=(stop - start, x.shape[0])) @ y
            else:
                # mode="clip" spares a bounds check that the indices of a checked matrix cannot fail.
                labels = y.take(rows, mode="clip")
                sums = sp.csr_array((weights, labels, indptr), shape=(stop - start, self.n_classes))
            self.label_sums[start:stop] += sums.toarray()
            if not both:
                of_sign[+1].append((indptr, values))
                continue
            for sign, found in of_sign.items():
                which = values * sign > 0
                before = np.concatenate([[0], np.cumsum(which)]).astype(indptr.dtype)
                found.append((before[indptr], np.abs(values[which])))
        for sign, found in of_sign.items():
            self._bins[sign].fill(start, found)
        return sum(int(x.indptr[stop] - x.indptr[start]) for x, _ in parts)

    def _grow_classes(self, n_classes: int) -> None:
        more = n_classes - self.n_classes
        if more > 0:
            self.class_counts = np.pad(self.class_counts, (0, more))
            self.label_sums = np.pad(self.label_sums, ((0, 0), (0, more)))

    def _make_room(self, values: np.ndarray) -> None:
        if not len(values):
            return
        low, high = float(values.min()), float(values.max())
        for sign in (+1, -1):
            if sign * (high if sign > 0 else low) <= 0:
                continue
            if low * high > 0:
                smallest, largest = sorted((abs(low), abs(high)))
            else:
                of_sign = np.abs(values[values * sign > 0])
                smallest, largest = of_sign.min(), of_sign.max()
            self._bins[sign].cover(key_of(smallest, values.dtype), key_of(largest, values.dtype))

    def merge(self, other: LatentSummary) -> LatentSummary:
        """Add another summary to this one; associative and commutative up to rounding.

        Parameters
        ----------
        other : LatentSummary
            Of the same latents; it is left as it is.

        Returns
        -------
        LatentSummary
            Itself.

        Raises
        ------
        ValueError
            If the latents differ.
        """
        if other.n_latents != self.n_latents:
            raise ValueError(f"cannot merge a summary of {other.n_latents} latents into {self.n_latents}")
        self._grow_classes(other.n_classes)
        self.n_rows += other.n_rows
        self.n_events += other.n_events
        self.class_counts[: other.n_classes] += other.class_counts
        self.label_sums[:, : other.n_classes] += other.label_sums
        for sign, bins in other._bins.items():
            width = bins.table.shape[2]
            if width:
                mine = self._bins[sign]
                mine.cover(bins.low, bins.low + width - 1)
                at = bins.low - mine.low
                mine.table[:, :, at : at + width] += bins.table
        return self

    # --------------------------------------------------------------------------------- using

    def moments(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Number, sum and sum of squares of each latent's non-zeros, and bounds of their range.

        Returns
        -------
        moments : ndarray of float64, shape [n_latents, 3]
            Exact up to rounding.
        low, high : ndarray of float64, shape [n_latents]
            Edges of the outermost occupied bins (within 1/16 of the extreme values); 0 without events.
        """
        moments = np.zeros((self.n_latents, 3))
        low, high = np.full(self.n_latents, np.inf), np.full(self.n_latents, -np.inf)
        for sign, bins in self._bins.items():
            width = bins.table.shape[2]
            if not width:
                continue
            octave, step = np.divmod(np.arange(width) + bins.low, PER_OCTAVE)
            unit = np.ldexp(1.0 / PER_OCTAVE, octave - 127)
            left = sign * unit * (PER_OCTAVE + step)  # x = left + sign·unit·u within the bin
            m0, m1, m2 = (bins.table[:, k, :] for k in range(3))
            moments[:, 0] += m0.sum(axis=1)
            moments[:, 1] += m0 @ left + m1 @ (sign * unit)
            moments[:, 2] += m0 @ left**2 + m1 @ (2.0 * left * sign * unit) + m2 @ unit**2
            filled = m0 > 0
            some = filled.any(axis=1)
            first, last = filled.argmax(axis=1), width - 1 - filled[:, ::-1].argmax(axis=1)
            near, far = left[first], left[last] + sign * unit[last]
            low = np.where(some, np.minimum(low, np.minimum(near, far)), low)
            high = np.where(some, np.maximum(high, np.maximum(near, far)), high)
        none = self.n_events == 0
        return moments, np.where(none, 0.0, low), np.where(none, 0.0, high)

    def nodes(self, start: int = 0, stop: int | None = None) -> NodeBlock:
        r"""The 2-point Gauss rules of the latents `start` … `stop` − 1.

        A bin with mean μ, variance v and third central moment s has, with γ = s/v, its nodes at
        μ + t where t² − γt − v = 0, weighted so that the first four moments match (Golub and Welsch
        1969 for two points). A bin whose values are all equal has one node. A bin with at most two
        events is represented exactly.

        Parameters
        ----------
        start, stop : int
            Range of latents; all by default.

        Returns
        -------
        NodeBlock
        """
        stop = self.n_latents if stop is None else stop
        groups = [
            gauss_nodes(self._bins, first, min(first + _GROUP, stop)) for first in range(start, stop, _GROUP)
        ]
        counts, x, m, e = (np.concatenate(parts) for parts in zip(*groups, strict=True))
        return NodeBlock(np.concatenate([[0], np.cumsum(counts)]), x, m, e)

    # ------------------------------------------------------------------------------- on disk

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write one safetensors file at `path`, whole or not at all. Only occupied bins are stored."""
        tensors = {
            "n_events": self.n_events,
            "class_counts": self.class_counts,
            "label_sums": self.label_sums,
        }
        meta = {
            "n_rows": self.n_rows,
            "fixed_classes": self._fixed_classes,
            "mantissa_bits": MANTISSA_BITS,
        }
        for name, bins in (("positive", self._bins[+1]), ("negative", self._bins[-1])):
            latent, key = np.nonzero(bins.table[:, 0, :])
            tensors[f"{name}.latent"] = latent.astype(np.int32)
            tensors[f"{name}.key"] = (key + bins.low).astype(np.int32)
            tensors[f"{name}.moments"] = np.ascontiguousarray(bins.table[latent, :, key])
        return write_safetensors(path, _FORMAT, _VERSION, meta, tensors)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> LatentSummary:
        """Read a file written by `save`.

        Parameters
        ----------
        path : path

        Returns
        -------
        LatentSummary

        Raises
        ------
        FileNotFoundError, ValueError
            If the file is missing, damaged, or of another kind or version.
        """
        meta, tensors = read_safetensors(path, _FORMAT, _VERSION)
        if meta["mantissa_bits"] != MANTISSA_BITS:
            raise ValueError(f"{path} has 2^{meta['mantissa_bits']} bins per octave, expected {PER_OCTAVE}")
        summary = cls(len(tensors["n_events"]), meta["fixed_classes"])
        summary.n_rows = meta["n_rows"]
        summary.n_events = tensors["n_events"]
        summary.class_counts = tensors["class_counts"]
        summary.label_sums = tensors["label_sums"]
        for name, bins in (("positive", summary._bins[+1]), ("negative", summary._bins[-1])):
            key = tensors[f"{name}.key"].astype(np.int64)
            if len(key):
                bins.cover(int(key.min()), int(key.max()))
                bins.table[tensors[f"{name}.latent"], :, key - bins.low] = tensors[f"{name}.moments"]
        return summary


def _batches(shards: Iterable[Shard], n_latents: int, rows: int | None) -> Iterator[tuple[list[Shard]]]:
    """What is sorted at a time: parts of a large shard, as views, or several small shards.

    A batch holds at most `rows` rows; by default about 512 events per latent (2²⁰ … 2²⁵).
    """
    events = min(max(_PER_LATENT // 2 * n_latents, 1 << 20), _AT_ONCE)
    small: list[Shard] = []
    for shard in shards:
        if rows is None and shard.x.nnz < events // 4:
            small.append(shard)
            if sum(s.x.nnz for s in small) >= events // 2:
                yield (small,)
                small = []
            continue
        step = rows or max(1, -(-shard.n_rows // max(1, round(shard.x.nnz / events))))  # equal parts
        for begin in range(0, shard.n_rows, step):
            end = min(begin + step, shard.n_rows)
            yield ([Shard(_rows(shard.x, begin, end), shard.y[begin:end])],)
    if small:
        yield (small,)


def _by_latent(shards: list[Shard]) -> tuple[sp.csc_array, Any]:
    if len(shards) == 1:
        return shards[0].x.tocsc(), shards[0].y
    return sp.csc_array(sp.vstack([s.x for s in shards], format="csr").tocsc()), stack_labels(
        [s.y for s in shards]
    )


def _rows(x: sp.csr_array, begin: int, end: int) -> sp.csr_array:
    """Rows `begin` … `end` − 1 without copying values; 32-bit indices where they suffice."""
    first, last = int(x.indptr[begin]), int(x.indptr[end])
    indptr = (x.indptr[begin : end + 1] - first).astype(np.int32 if last - first < 2**31 else np.int64)
    indices = x.indices[first:last].astype(indptr.dtype, copy=False)
    return sp.csr_array((x.data[first:last], indices, indptr), shape=(end - begin, x.shape[1]))
