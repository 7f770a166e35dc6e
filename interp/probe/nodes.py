"""Weighted values per latent, laid out so that all active pairs are evaluated in a few dense products.

A node set says: latent l has the values x_k with weights m_k. Quadrature nodes of a `LatentSummary` and raw
events (m = 1) are both node sets, so one solver serves both. Latents with similar numbers of nodes share
a bucket, padded with weight 0.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from interp.probe.layout import Layout

__all__ = ["Bucket", "Nodes"]

#: Latents of a bucket have node counts within this ratio: at most 17 % of a bucket is padding, and a block
#: skips what none of its latents has.
_BUCKET_RATIO = 1.2
#: Numbers of nodes are rounded up to this: rows that begin at a cache line are read a sixth faster.
_ALIGNED = 8


class Bucket(NamedTuple):
    """Latents with similar numbers of nodes.

    Attributes
    ----------
    rows : ndarray of int64, shape [r]
        Which rows of the node set these are, in rising order of their numbers of nodes.
    values : Tensor of float, shape [r, 5, k]
        Ones and node positions x̃, in units of q: logits are ``[b, w̃] @ values[:, :2]``. Then weights times 1,
        x̃ and x̃²: sums over the nodes are ``values[:, 2:] @ σᵀ``, whose inner dimension is the long one for
        both factors, however few the classes.
    e : Tensor of float, shape [r, 2, k] or None
        Error weights m·(h/q)⁴/96 of the quadrature rule, times 1 and |x̃|; None for raw events.
    """

    rows: np.ndarray
    values: Tensor
    e: Tensor | None


class Nodes:
    """Nodes of a list of latents on a device.

    Parameters
    ----------
    offsets : ndarray of int64, shape [n_rows + 1]
        Where each row's nodes begin.
    x : ndarray, shape [n_nodes]
        Values.
    m : ndarray, shape [n_nodes], or None
        Weights; None for raw events, all 1.
    q : ndarray of float64, shape [n_rows]
        Unit of each row.
    e : ndarray, shape [n_nodes], optional
        Error weights (see `interp.probe.summary.NodeBlock`), in the units of x.
    device : torch.device
    dtype : torch.dtype
        Where the nodes are kept, and in which precision.
    """

    def __init__(
        self,
        offsets: np.ndarray,
        x: np.ndarray,
        m: np.ndarray | None,
        q: np.ndarray,
        e: np.ndarray | None = None,
        *,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        counts = np.diff(offsets)
        self.n_rows = len(counts)
        self.n_nodes = int(offsets[-1])
        self.device, self.dtype = device, dtype
        self.counts = counts
        self.buckets: list[Bucket] = []
        self._sampled: tuple[tuple[int, int, int], Layout] | None = None
        order = np.argsort(counts, kind="stable")
        start = 0
        while start < self.n_rows:
            widest = max(_ALIGNED, int(counts[order[start]] * _BUCKET_RATIO))
            stop = int(np.searchsorted(counts[order], widest, side="right"))
            rows = order[start:stop]
            self.buckets.append(self._bucket(rows, offsets, x, m, q, e))
            start = stop
        # Of each row, bucket by bucket: its number, its bucket, its place there; its nodes with the padding
        # of a block, and with that of the bucket.
        sizes = [len(bucket.rows) for bucket in self.buckets]
        number = np.repeat(np.arange(len(sizes)), sizes)
        at = np.arange(self.n_rows) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        widths = np.maximum(1, -(-counts[order] // _ALIGNED)) * _ALIGNED
        padded = np.array([bucket.values.shape[2] for bucket in self.buckets], np.int64)[number]
        self.rows = torch.from_numpy(np.stack([order, number, at, widths, padded]).astype(np.int64))

    def _bucket(
        self,
        rows: np.ndarray,
        offsets: np.ndarray,
        x: np.ndarray,
        m: np.ndarray | None,
        q: np.ndarray,
        e: np.ndarray | None,
    ) -> Bucket:
        width = -(-int(self.counts[rows].max(initial=1)) // _ALIGNED) * _ALIGNED
        at = offsets[rows][:, None] + np.arange(width)
        real = np.arange(width) < self.counts[rows][:, None]
        at = np.where(real, at, 0)
        if not len(x):
            x = np.zeros(1)
        xs = np.where(real, x[at] / q[rows][:, None], 0.0)
        weight = real.astype(np.float64) if m is None else np.where(real, m[at] if len(m) else 0.0, 0.0)
        error = None
        if e is not None:
            errors = np.where(real, e[at] if len(e) else 0.0, 0.0) / q[rows][:, None] ** 4
            error = self._tensor(np.stack([errors, errors * np.abs(xs)], axis=1))
        values = np.stack([np.ones_like(xs), xs, weight, weight * xs, weight * xs**2], axis=1)
        return Bucket(rows, self._tensor(values), error)

    def _tensor(self, a: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(a)).to(device=self.device, dtype=self.dtype)

    @property
    def per_row(self) -> float:
        """Mean number of nodes of a row, at least 1."""
        return max(1.0, self.n_nodes / max(1, self.n_rows))

    def layout(self, pairs: Tensor, n_classes: int, block_elements: int) -> Layout:
        """Blocks that cover some pairs.

        Parameters
        ----------
        pairs : Tensor of int64, shape [n_active]
            Their numbers, row · n_classes + class, in rising order.
        n_classes : int
        block_elements : int
            (node, pair) products per block: the working set.

        Returns
        -------
        Layout
        """
        return Layout(self, pairs, n_classes, block_elements)

    def sampled(self, every: int, n_classes: int, block_elements: int) -> Layout:
        """`layout` of all pairs of every so many-th row, kept for the next slab of as many classes."""
        key = every, n_classes, block_elements
        if self._sampled is None or self._sampled[0] != key:
            pairs = torch.arange(self.n_rows * n_classes).view(self.n_rows, n_classes)[::every]
            self._sampled = key, self.layout(pairs.reshape(-1), n_classes, block_elements)
        return self._sampled[1]
