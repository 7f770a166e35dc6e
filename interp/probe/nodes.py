"""Weighted values per latent, laid out so that all active pairs are evaluated in a few dense products.

A node set says: latent l has the values x_k with weights m_k. Quadrature nodes of a `LatentSummary` and raw
events (m = 1) are both node sets, so one solver serves both. Latents with similar numbers of nodes share
a bucket, padded with weight 0.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from interp.threads import without_gil

__all__ = ["Bucket", "Layout", "Nodes"]

#: Latents of a bucket have node counts within this ratio: at most 11 % of a bucket is padding.
_BUCKET_RATIO = 1.125
#: Numbers of nodes are rounded up to this: rows that begin at a cache line are read a sixth faster.
_ALIGNED = 8


class Bucket(NamedTuple):
    """Latents with similar numbers of nodes.

    Attributes
    ----------
    rows : ndarray of int64, shape [r]
        Which rows of the node set these are.
    x1 : Tensor of float, shape [r, 2, k]
        Ones and node positions, in units of q: logits are ``[b, w̃] @ x1``.
    m : Tensor of float, shape [r, 3, k]
        Weights times 1, x̃ and x̃²: sums over the nodes are ``m @ σᵀ``, whose inner dimension is the long one
        for both factors, however few the classes.
    e : Tensor of float, shape [r, k] or None
        Error weights m·(h/q)⁴/96 of the quadrature rule; None for raw events.
    """

    rows: np.ndarray
    x1: Tensor
    m: Tensor
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
            error = self._tensor(np.where(real, e[at] if len(e) else 0.0, 0.0) / q[rows][:, None] ** 4)
        return Bucket(
            rows,
            self._tensor(np.stack([np.ones_like(xs), xs], axis=1)),
            self._tensor(np.stack([weight, weight * xs, weight * xs**2], axis=1)),
            error,
        )

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


class Block(NamedTuple):
    """Pairs of some latents of a bucket, as many for each.

    Attributes
    ----------
    bucket : Bucket
    at : Tensor of int64
        Which latents of the bucket.
    first : int
        The first of them where they lie side by side in the bucket, else −1.
    slots : slice
        The block's part of all slots of the layout.
    shape : tuple of int
        (latents, pairs of each, nodes).
    """

    bucket: Bucket
    at: Tensor
    first: int
    slots: slice
    shape: tuple[int, int, int]


class Layout:
    """Some pairs in blocks of a size that the cache holds.

    A block is a dense array of slots, latents × pairs; a latent with fewer pairs than the block is wide
    repeats its last one. Parameters are spread over all slots at once, and results collected at once.
    """

    def __init__(self, nodes: Nodes, pairs: Tensor, n_classes: int, block_elements: int) -> None:
        self.dtype, self.device = nodes.dtype, nodes.device
        self.blocks: list[Block] = []
        counts = np.bincount(pairs.cpu().numpy() // n_classes, minlength=nodes.n_rows)
        first = np.cumsum(counts) - counts
        slots: list[np.ndarray] = []
        ends: list[np.ndarray] = []
        n_slots = 0
        for bucket in nodes.buckets:
            # Rows with as many pairs side by side, so that little of a block is repetition.
            order = np.argsort(-counts[bucket.rows], kind="stable")
            widths = counts[bucket.rows[order]]
            order = order[: int(np.count_nonzero(widths))]
            start, n_nodes = 0, bucket.x1.shape[2]
            while start < len(order):
                width = int(widths[start])
                columns = min(width, max(1, block_elements // n_nodes))
                stop = min(len(order), start + max(1, block_elements // (columns * n_nodes)))
                here = order[start:stop]
                at = torch.from_numpy(here).to(self.device)
                lowest = int(here[0])
                together = bool((here == np.arange(lowest, lowest + len(here))).all())
                rows = bucket.rows[here, None]
                for left in range(0, width, columns):
                    column = np.arange(left, min(left + columns, width))
                    slot = first[rows] + np.minimum(column, counts[rows] - 1)
                    slots.append(slot.ravel())
                    shape = (stop - start, len(column), n_nodes)
                    block = Block(
                        bucket, at, lowest if together else -1, slice(n_slots, n_slots + slot.size), shape
                    )
                    self.blocks.append(block)
                    # Where the block's sums will be: three rows of all its pairs of a latent after another.
                    before = n_slots + np.arange(stop - start)[:, None, None] * len(column)
                    sums = 3 * before + np.arange(3)[:, None] * len(column) + np.arange(len(column))
                    ends.append(sums.transpose(1, 0, 2).reshape(3, -1))
                    n_slots += slot.size
                start = stop
        where = np.concatenate(slots) if slots else np.zeros(0, np.int64)
        place = np.empty(len(pairs), np.int64)
        place[where] = np.arange(n_slots)
        sums_at = (np.concatenate(ends, axis=1) if ends else np.zeros((3, 0), np.int64))[:, place].ravel()
        self._where, self._place, self._sums_at = (
            torch.from_numpy(a).to(self.device) for a in (where, place, sums_at)
        )
        self._products = self._buffer(2, (r * c * k for *_, (r, c, k) in self.blocks))
        self._values = self._buffer(5, (r * k for *_, (r, _, k) in self.blocks))
        self._lists = (
            [block.bucket.x1 for block in self.blocks],
            [block.bucket.m for block in self.blocks],
            [block.at for block in self.blocks],
            [block.first for block in self.blocks],
            [block.shape for block in self.blocks],
        )

    def _buffer(self, times: int, sizes: Iterable[int]) -> Tensor:
        return torch.empty(times * max(sizes, default=0), dtype=self.dtype, device=self.device)

    def _spread(self, b: Tensor, w: Tensor) -> Tensor:
        return torch.stack((b, w), dim=1).to(self.dtype).index_select(0, self._where)

    def _results(self, n_columns: int) -> Tensor:
        return torch.empty(len(self._where), n_columns, dtype=self.dtype, device=self.device)

    def sums(self, b: Tensor, w: Tensor) -> Tensor:
        """Σ m σ, Σ m x̃ σ, Σ m σ', Σ m x̃ σ', Σ m x̃² σ' of every pair.

        Parameters
        ----------
        b, w : Tensor, shape [n_active]
            Intercepts and slopes (in units of 1/q).

        Returns
        -------
        Tensor of the dtype of `b`, shape [5, n_active]
        """
        theta, of_s, of_ss = self._spread(b, w), self._results(3), self._results(3)
        _evaluate(theta, *self._lists, self._products, self._values, of_s, of_ss)
        of_s, of_ss = (
            t.view(-1).index_select(0, self._sums_at).to(b.dtype).view(3, -1) for t in (of_s, of_ss)
        )
        return torch.cat((of_s[:2], of_s - of_ss))

    def losses(self, b: Tensor, w: Tensor) -> Tensor:
        """Σ m softplus(b + w̃ x̃) of every pair, shape [n_active], of the dtype of `b`."""
        theta, total = self._spread(b, w), self._results(1)
        _add_softplus(theta, *self._lists, self._products, self._values, total)
        return total.view(-1)[self._place].to(b.dtype)

    def rule_errors(self, b: Tensor, w: Tensor) -> Tensor:
        r"""Bounds on the error of the 2-point rule in n·∂L/∂b and n·∂L/∂w̃, float, shape [2, n_active].

        The first also bounds the error in n·L, whose fourth derivative is w⁴σ'''. For a bin of half-width h
        and m values, the rule's error on f is at most m h⁴ max|f''''| / 96 (the
        square of the rule's node polynomial is the smallest of its degree in the mean, and the
        Chebyshev polynomial's is h⁴/4). With f = σ(z): f'''' = w⁴σ''''; with f = xσ(z): x w⁴σ'''' + 4w³σ'''.
        Both |σ'''| and |σ''''| are at most σ', and within the bin σ' is at most e^{2|w|h} times its
        value at a node, and never above 1/4.
        """
        theta, bounds = self._spread(b, w), self._results(2)
        for bucket, at, _, slots, (r, c, _) in self.blocks:
            assert bucket.e is not None
            x1, e = bucket.x1[at], bucket.e[at]
            here = theta[slots].view(r, c, 2)
            z = torch.bmm(here, x1).abs_()
            x = x1[:, 1].abs()
            slope = here[..., 1:].abs()
            # σ' e^{2|w|h}, in one exponential where two would be 0 · ∞; |x| / h is at least 32 in every bin.
            largest = torch.exp((slope * x[:, None] * (2.0 / 32.0) - z).clamp_(max=0.0))
            spread = (largest / (1.0 + torch.exp(-z)) ** 2).clamp_(max=0.25)
            sums = torch.bmm(spread, torch.stack((e, e * x), dim=-1))
            slope = slope[..., 0]
            over_b = slope**4 * sums[..., 0]
            over_w = slope**4 * sums[..., 1] + 4.0 * slope**3 * sums[..., 0]
            bounds[slots] = torch.stack((over_b, over_w), dim=-1).view(-1, 2)
        return bounds[self._place].to(b.dtype).T


@without_gil
def _evaluate(
    theta: Tensor,
    x1s: list[Tensor],
    ms: list[Tensor],
    ats: list[Tensor],
    firsts: list[int],
    shapes: list[tuple[int, int, int]],
    products: Tensor,
    values: Tensor,
    of_s: Tensor,
    of_ss: Tensor,
) -> None:
    """Σ m (1, x̃, x̃²) σ and Σ m (1, x̃, x̃²) σ² of every slot, block by block.

    σ' = σ − σ²: two products of one sigmoid give all sums, and no second exponential. Latents of a block that
    do not lie side by side are copied to `values`, which stays in the cache, as `products` do.
    """
    begin = 0
    for i in range(len(shapes)):
        r, c, k = shapes[i]
        n, end = r * c * k, begin + r * c
        if firsts[i] >= 0:
            x1, m = x1s[i].narrow(0, firsts[i], r), ms[i].narrow(0, firsts[i], r)
        else:
            x1, m = values[: 2 * r * k].view(r, 2, k), values[2 * r * k : 5 * r * k].view(r, 3, k)
            torch.index_select(x1s[i], 0, ats[i], out=x1)
            torch.index_select(ms[i], 0, ats[i], out=m)
        z, zz = products[:n].view(r, c, k), products[n : 2 * n].view(r, c, k)
        torch.bmm(theta[begin:end].view(r, c, 2), x1, out=z)
        z.sigmoid_()
        torch.mul(z, z, out=zz)
        torch.bmm(m, z.transpose(1, 2), out=of_s[begin:end].view(r, 3, c))
        torch.bmm(m, zz.transpose(1, 2), out=of_ss[begin:end].view(r, 3, c))
        begin = end


@without_gil
def _add_softplus(
    theta: Tensor,
    x1s: list[Tensor],
    ms: list[Tensor],
    ats: list[Tensor],
    firsts: list[int],
    shapes: list[tuple[int, int, int]],
    products: Tensor,
    values: Tensor,
    total: Tensor,
) -> None:
    """Σ m softplus of every slot, block by block, as `_evaluate`."""
    begin = 0
    for i in range(len(shapes)):
        r, c, k = shapes[i]
        n, end = r * c * k, begin + r * c
        if firsts[i] >= 0:
            x1, m = x1s[i].narrow(0, firsts[i], r), ms[i].narrow(0, firsts[i], r)
        else:
            x1, m = values[: 2 * r * k].view(r, 2, k), values[2 * r * k : 5 * r * k].view(r, 3, k)
            torch.index_select(x1s[i], 0, ats[i], out=x1)
            torch.index_select(ms[i], 0, ats[i], out=m)
        z, zz = products[:n].view(r, c, k), products[n : 2 * n].view(r, c, k)
        torch.bmm(theta[begin:end].view(r, c, 2), x1, out=z)
        torch._C._nn.softplus(z, 1.0, 60.0, out=zz)  # type: ignore[call-arg]
        torch.bmm(zz, m[:, :1].transpose(1, 2), out=total[begin:end].view(r, c, 1))
        begin = end
