"""Weighted values per latent, laid out so that all active pairs are evaluated in a few dense products.

A node set says: latent l has the values x_k with weights m_k. Quadrature nodes of a `LatentSummary` and raw
events (m = 1) are both node sets, so one solver serves both. Latents with similar numbers of nodes share
a bucket, padded with weight 0.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

__all__ = ["Bucket", "Layout", "Nodes"]

#: Latents of a bucket have node counts within this ratio: at most 11 % of a bucket is padding.
_BUCKET_RATIO = 1.125


class Bucket(NamedTuple):
    """Latents with similar numbers of nodes.

    Attributes
    ----------
    rows : Tensor of int64, shape [r]
        Which rows of the node set these are.
    x1 : Tensor, shape [r, 2, k]
        Ones and node positions, in units of q: logits are ``[b, w̃] @ x1``.
    m : Tensor, shape [r, k, 3]
        Weights times 1, x̃ and x̃².
    e : Tensor, shape [r, k] or None
        Error weights m·(h/q)⁴/96 of the quadrature rule; None for raw events.
    """

    rows: Tensor
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
        self.n_threads = torch.get_num_threads() if device.type == "cpu" else 1
        self.counts = counts
        self.buckets: list[Bucket] = []
        order = np.argsort(counts, kind="stable")
        start = 0
        while start < self.n_rows:
            widest = max(8, int(counts[order[start]] * _BUCKET_RATIO))
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
        width = int(self.counts[rows].max(initial=1))
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
            torch.from_numpy(rows.astype(np.int64)).to(self.device),
            self._tensor(np.stack([np.ones_like(xs), xs], axis=1)),
            self._tensor(np.stack([weight, weight * xs, weight * xs**2], axis=2)),
            error,
        )

    def _tensor(self, a: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(a)).to(device=self.device, dtype=self.dtype)

    @property
    def per_row(self) -> float:
        """Mean number of nodes of a row, at least 1."""
        return max(1.0, self.n_nodes / max(1, self.n_rows))

    @property
    def nbytes(self) -> int:
        return sum(t.nbytes for b in self.buckets for t in b if t is not None)

    def layout(self, active: Tensor, block_elements: int) -> Layout:
        """Blocks that cover the active pairs.

        Parameters
        ----------
        active : Tensor of bool, shape [n_rows, n_classes]
        block_elements : int
            (node, pair) products per block: the working set.
        """
        blocks = [b for bucket in self.buckets for b in _blocks(bucket, active, block_elements)]
        return Layout(blocks, self.dtype, self.n_threads)


class Block(NamedTuple):
    """Active pairs of some latents of a bucket.

    Attributes
    ----------
    x1, m, e
        As in `Bucket`, for these latents.
    pairs : Tensor of int64, shape [r, c]
        Numbers of the pairs (row · n_classes + class); short rows repeat their first pair.
    """

    x1: Tensor
    m: Tensor
    e: Tensor | None
    pairs: Tensor


def _blocks(bucket: Bucket, active: Tensor, block_elements: int) -> Iterator[Block]:
    n_classes = active.shape[1]
    live = active[bucket.rows]
    counts = live.sum(dim=1)
    # Rows with as many active classes side by side, so that little of a block is repetition.
    order = torch.argsort(counts, descending=True, stable=True)
    order = order[: int((counts > 0).sum())]
    if not len(order):
        return
    counts, live = counts[order], live[order]
    untouched = bool((counts[-1] == n_classes) & (len(order) == len(bucket.rows)))
    classes = torch.argsort((~live).to(torch.int8), dim=1, stable=True)
    column = torch.arange(n_classes, device=live.device)
    classes = torch.where(column < counts[:, None], classes, classes[:, :1])
    pairs = bucket.rows[order][:, None] * n_classes + classes
    widths, n_nodes = counts.tolist(), bucket.x1.shape[2]
    start = 0
    while start < len(order):
        width = widths[start]
        stop = min(len(order), start + max(1, block_elements // (width * n_nodes)))
        at: slice | Tensor = slice(start, stop) if untouched else order[start:stop]
        yield Block(
            bucket.x1[at],
            bucket.m[at],
            None if bucket.e is None else bucket.e[at],
            pairs[start:stop, :width],
        )
        start = stop


class Layout:
    """The active pairs in blocks of a size that the cache holds, shared out among threads.

    Threads of our own, each with whole blocks, rather than torch's inside each product: on a machine
    with other work to do, its barriers cost ten times what the parallelism gains.
    """

    def __init__(self, blocks: list[Block], dtype: torch.dtype, n_threads: int) -> None:
        self.blocks = blocks
        self.n_evaluations = sum(_size(b) for b in blocks)
        device = blocks[0].x1.device if blocks else torch.device("cpu")
        self._shares = [share for share in (blocks[k::n_threads] for k in range(n_threads)) if share]
        largest = max((_size(b) for b in blocks), default=0)
        self._buffers = [
            torch.empty(2, largest, dtype=dtype, device=device) for _ in range(len(self._shares))
        ]

    def _run(self, work: Callable[[list[Block], Tensor], None]) -> None:
        if len(self._shares) < 2:
            for share, buffer in zip(self._shares, self._buffers, strict=True):
                work(share, buffer)
            return
        with one_torch_thread():
            list(_pool(len(self._shares)).map(work, self._shares, self._buffers))

    def sums(self, b: Tensor, w: Tensor, out: Tensor) -> None:
        """Σ m σ, Σ m x̃ σ, Σ m σ', Σ m x̃ σ', Σ m x̃² σ' of every active pair.

        Parameters
        ----------
        b, w : Tensor of float64, shape [n_pairs]
            Intercepts and slopes (in units of 1/q) of *all* pairs of the slab.
        out : Tensor of float64, shape [n_pairs, 5]
            Filled at the active pairs.
        """

        def work(blocks: list[Block], buffer: Tensor) -> None:
            # σ' = σ − σ²: two products of one sigmoid give all five sums, and no second exponential.
            for x1, m, _, pairs in blocks:
                shape = (*pairs.shape, x1.shape[2])
                n = shape[0] * shape[1] * shape[2]
                z, zz = buffer[0, :n].view(shape), buffer[1, :n].view(shape)
                theta = torch.stack((b[pairs], w[pairs]), dim=-1).to(z.dtype)
                torch.bmm(theta, x1, out=z)
                torch.sigmoid(z, out=z)
                torch.mul(z, z, out=zz)
                s = torch.bmm(z, m)
                d = s - torch.bmm(zz, m)
                out[pairs] = torch.cat((s[..., :2], d), dim=-1).to(out.dtype)

        self._run(work)

    def losses(self, b: Tensor, w: Tensor, out: Tensor) -> None:
        """Σ m softplus(b + w̃ x̃) of every active pair, into ``out[n_pairs]``."""

        def work(blocks: list[Block], buffer: Tensor) -> None:
            for x1, m, _, pairs in blocks:
                theta = torch.stack((b[pairs], w[pairs]), dim=-1).to(x1.dtype)
                z = torch.bmm(theta, x1)
                total = torch.nn.functional.softplus(z, threshold=60.0) @ m[..., :1]
                out[pairs] = total[..., 0].to(out.dtype)

        self._run(work)

    def rule_errors(self, b: Tensor, w: Tensor, out: Tensor) -> None:
        r"""Bounds on the error of the 2-point rule in n·∂L/∂b and n·∂L/∂w̃, into ``out[n_pairs, 2]``.

        The first also bounds the error in n·L, whose fourth derivative is w⁴σ'''. For a bin of half-width h
        and m values, the rule's error on f is at most m h⁴ max|f''''| / 96 (the
        square of the rule's node polynomial is the smallest of its degree in the mean, and the
        Chebyshev polynomial's is h⁴/4). With f = σ(z): f'''' = w⁴σ''''; with f = xσ(z): x w⁴σ'''' + 4w³σ'''.
        Both |σ'''| and |σ''''| are at most σ', and within the bin σ' is at most e^{2|w|h} times its
        value at a node.
        """

        def work(blocks: list[Block], buffer: Tensor) -> None:
            for x1, _, e, pairs in blocks:
                assert e is not None
                theta = torch.stack((b[pairs], w[pairs]), dim=-1).to(x1.dtype)
                s = torch.sigmoid(torch.bmm(theta, x1))
                x = x1[:, 1].abs()
                slope = theta[..., 1:].abs()
                # half-width / |x| is at most 1/32 in every bin
                spread = s * (1.0 - s) * torch.exp(slope * x[:, None] * (2.0 / 32.0))
                sums = torch.bmm(spread, torch.stack((e, e * x), dim=-1))
                slope = slope[..., 0]
                over_b = slope**4 * sums[..., 0]
                over_w = slope**4 * sums[..., 1] + 4.0 * slope**3 * sums[..., 0]
                out[pairs] = torch.stack((over_b, over_w), dim=-1).to(out.dtype)

        self._run(work)


def _size(block: Block) -> int:
    return block.pairs.numel() * block.x1.shape[2]


@contextmanager
def one_torch_thread() -> Iterator[None]:
    """Torch without threads of its own inside the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@cache
def _pool(n_threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(n_threads, "interp-probe", initializer=torch.set_num_threads, initargs=(1,))
