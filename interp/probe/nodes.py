"""Weighted values per latent, laid out so that all active pairs are evaluated in a few dense products.

A node set says: latent l has the values x_k with weights m_k. Quadrature nodes of a `LatentSummary` and raw
events (m = 1) are both node sets, so one solver serves both. Latents with similar numbers of nodes share
a bucket, padded with weight 0.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from interp.threads import without_gil

__all__ = ["Bucket", "Layout", "Nodes", "softplus_"]

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
        self.order = order
        sizes = [len(bucket.rows) for bucket in self.buckets]
        self.bucket = np.repeat(np.arange(len(sizes)), sizes)
        self.at = np.arange(self.n_rows) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        self.widths = np.maximum(1, -(-counts[order] // _ALIGNED)) * _ALIGNED
        self.padded = np.repeat([bucket.values.shape[2] for bucket in self.buckets], sizes).astype(np.int64)

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


class Layout:
    """Some pairs in blocks of a size that the cache holds.

    A block is a dense array of slots: a few latents of a bucket × pairs of each. A latent with fewer pairs
    than the block is wide repeats its last one; one with more than a block holds is in several. Parameters
    are spread over all slots at once, and results collected at once.

    Attributes
    ----------
    blocks : list of tuple of int
        Of each block: its bucket; the first of its latents where they lie side by side there, else −1; how
        many latents, pairs of each, and nodes of each.
    """

    def __init__(self, nodes: Nodes, pairs: Tensor, n_classes: int, block_elements: int) -> None:
        self.dtype, self.device = nodes.dtype, nodes.device
        n_pairs = np.bincount(pairs.cpu().numpy() // n_classes, minlength=nodes.n_rows)
        begin = (np.cumsum(n_pairs) - n_pairs)[nodes.order]
        n_pairs = n_pairs[nodes.order]

        # A piece is a latent with as many of its pairs as a block holds.
        most = np.maximum(1, block_elements // nodes.padded)
        n_pieces = -(-n_pairs // most)
        row = np.repeat(np.arange(nodes.n_rows), n_pieces)
        before = (np.arange(len(row)) - (np.cumsum(n_pieces) - n_pieces)[row]) * most[row]
        n_own = np.minimum(most[row], n_pairs[row] - before)
        # Pieces with as many pairs side by side, so that little of a block is repetition.
        order = np.lexsort((-n_own, nodes.bucket[row]))
        row, n_own, begin = row[order], n_own[order], (begin[row] + before)[order]
        at, bucket = nodes.at[row], nodes.bucket[row]

        starts = _starts(bucket, n_own, nodes.widths[row], block_elements)
        n_latents = np.diff(starts, append=len(row))
        n_nodes = np.maximum.reduceat(nodes.widths[row], starts) if len(row) else starts
        apart = np.cumsum(np.diff(at, prepend=-1) != 1)
        together = apart[starts + n_latents - 1] == apart[starts]
        blocks = bucket[starts], np.where(together, at[starts], -1), n_latents, n_own[starts], n_nodes
        self.blocks: list[tuple[int, ...]] = list(zip(*(a.tolist() for a in blocks), strict=True))

        width = np.repeat(n_own[starts], n_latents)
        piece = np.repeat(np.arange(len(row)), width)
        first_slot = np.cumsum(width) - width
        column = np.arange(len(piece)) - first_slot[piece]
        where = begin[piece] + np.minimum(column, n_own[piece] - 1)
        place = np.empty(len(pairs), np.int64)
        place[where] = np.arange(len(where))
        piece = piece[place]
        self._where, self._place, self._first_slot, self._width, self._at = (
            torch.from_numpy(a).to(self.device) for a in (where, place, first_slot[piece], width[piece], at)
        )
        self._sums_at: Tensor | None = None
        self._values = [bucket.values for bucket in nodes.buckets]
        self._errors = [bucket.e for bucket in nodes.buckets if bucket.e is not None]
        self._products = self._empty(2 * max((r * c * k for *_, r, c, k in self.blocks), default=0))
        self._copy = self._empty(
            max((r * self._values[i][0].numel() for i, _, r, *_ in self.blocks), default=0)
        )

    def _empty(self, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=self.dtype, device=self.device)

    def _over_blocks(
        self, work: Callable[..., None], b: Tensor, w: Tensor, n_arrays: int, n_sums: int, *rest: object
    ) -> Tensor:
        """What `work` adds up, float, shape [n_arrays, n_sums · n_slots]."""
        out = self._empty(n_arrays, n_sums * len(self._where))
        with torch.inference_mode():  # operations that look for no gradient start sooner
            theta = torch.stack((b, w), dim=1).to(self.dtype).index_select(0, self._where)
            work(theta, self._values, self._at, self.blocks, self._products, self._copy, out, *rest)
        return out

    def _places(self, n_sums: int) -> Tensor:
        """Where each pair's sums are in an array of `_over_blocks`; int64, shape [n_sums, n_active].

        A block's are `n_sums` rows of all its pairs of a latent after another.
        """
        rows = torch.arange(n_sums, device=self.device)[:, None]
        return self._place + (n_sums - 1) * self._first_slot + rows * self._width

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
        out = self._over_blocks(_evaluate, b, w, 2, 3)
        if self._sums_at is None:
            at = self._places(3)
            self._sums_at = torch.cat((at[:2], at + out.shape[1])).view(-1)
        return out.view(-1).index_select(0, self._sums_at).to(b.dtype).view(5, -1)

    def losses(self, b: Tensor, w: Tensor) -> Tensor:
        """Σ m softplus(b + w̃ x̃) of every pair, shape [n_active], of the dtype of `b`."""
        out = self._over_blocks(_add_softplus, b, w, 1, 1)
        return out[0].index_select(0, self._place).to(b.dtype)

    def rule_errors(self, b: Tensor, w: Tensor) -> Tensor:
        r"""Bounds on the error of the 2-point rule in n·∂L/∂b and n·∂L/∂w̃, float, shape [2, n_active].

        The first also bounds the error in n·L, whose fourth derivative is w⁴σ'''. For a bin of half-width h
        and m values, the rule's error on f is at most m h⁴ max|f''''| / 96 (the
        square of the rule's node polynomial is the smallest of its degree in the mean, and the
        Chebyshev polynomial's is h⁴/4). With f = σ(z): f'''' = w⁴σ''''; with f = xσ(z): x w⁴σ'''' + 4w³σ'''.
        Both |σ'''| and |σ''''| are at most σ', and within the bin σ' is at most e^{2|w|h} times its
        value at a node, and never above 1/4.
        """
        out = self._over_blocks(_add_errors, b, w, 1, 2, self._errors)
        over_1, over_x = out[0].index_select(0, self._places(2).view(-1)).to(b.dtype).view(2, -1)
        slope = w.abs()
        return torch.stack((slope**4 * over_1, slope**4 * over_x + 4.0 * slope**3 * over_1))


def _starts(bucket: np.ndarray, n_own: np.ndarray, widths: np.ndarray, block_elements: int) -> np.ndarray:
    """Where blocks begin, among pieces in the order of their buckets, those with most pairs first; int64."""
    starts: list[int] = []
    start = 0
    for end in (np.flatnonzero(np.diff(bucket, append=-1)) + 1).tolist():
        widest = int(widths[start:end].max())
        while start < end:
            starts.append(start)
            start = min(end, start + max(1, block_elements // (int(n_own[start]) * widest)))
    return np.array(starts, dtype=np.int64)


def _prepared(
    theta: Tensor,
    values: list[Tensor],
    at: Tensor,
    blocks: list[tuple[int, int, int, int, int]],
    products: Tensor,
    copy: Tensor,
    out: Tensor,
) -> list[list[Tensor]]:
    """All that is seen of each block: made in one go, a view costs a third of one made between products.

    Of each block: the latents' values [r, 5, K], where they are read; the bucket that they are copied from,
    and which of it they are (none where they lie side by side: they are read in the bucket); parameters
    [r, c, 2]; the parts of the values [r, 2, k] and [r, 3, k]; room for two products [r, c, k]; where sums
    go, [r, n, c] in the first array of `out` and in the last. Copies and products stay in the cache.
    """
    prepared: list[list[Tensor]] = []
    n_sums = out.size(1) // max(1, theta.size(0))
    first_out, last_out = out[0], out[-1]
    begin, piece = 0, 0
    for i, first, r, c, k in blocks:
        bucket, slots, n = values[i], r * c, r * c * k
        which = at.narrow(0, piece, r if first < 0 else 0)
        if first < 0:
            here = copy.narrow(0, 0, r * bucket.stride(0)).view(r, bucket.size(1), bucket.size(2))
        else:
            here = bucket.narrow(0, first, r)
        used = here.narrow(2, 0, k)
        views = [
            here,
            bucket,
            which,
            theta.narrow(0, begin, slots).view(r, c, 2),
            used.narrow(1, 0, 2),
            used.narrow(1, 2, 3),
            products.narrow(0, 0, n).view(r, c, k),
            products.narrow(0, n, n).view(r, c, k),
            first_out.narrow(0, n_sums * begin, n_sums * slots).view(r, n_sums, c),
            last_out.narrow(0, n_sums * begin, n_sums * slots).view(r, n_sums, c),
        ]
        prepared.append(views)
        begin, piece = begin + slots, piece + r
    return prepared


@without_gil
def _evaluate(
    theta: Tensor,
    values: list[Tensor],
    at: Tensor,
    blocks: list[tuple[int, int, int, int, int]],
    products: Tensor,
    copy: Tensor,
    out: Tensor,
) -> None:
    """Σ m (1, x̃, x̃²) σ and Σ m (1, x̃, x̃²) σ' of every slot, block by block.

    σ' = σ − σ²: two products of one sigmoid give all sums, and no second exponential.
    """
    prepared = _prepared(theta, values, at, blocks, products, copy, out)
    for here, bucket, which, own, x1, m, z, zz, of_s, of_ss in prepared:
        if len(which) > 0:
            torch.index_select(bucket, 0, which, out=here)
        torch.bmm(own, x1, out=z)
        torch.mul(z.sigmoid_(), z, out=zz)
        torch.bmm(m, z.mT, out=of_s)
        torch.bmm(m, zz.mT, out=of_ss)
    torch.sub(out[0], out[1], out=out[1])


@without_gil
def _add_softplus(
    theta: Tensor,
    values: list[Tensor],
    at: Tensor,
    blocks: list[tuple[int, int, int, int, int]],
    products: Tensor,
    copy: Tensor,
    out: Tensor,
) -> None:
    """Σ m softplus of every slot, block by block."""
    prepared = _prepared(theta, values, at, blocks, products, copy, out)
    for here, bucket, which, own, x1, m, z, _, total, _ in prepared:
        if len(which) > 0:
            torch.index_select(bucket, 0, which, out=here)
        torch.bmm(own, x1, out=z)
        torch.bmm(m.narrow(1, 0, 1), softplus_(z).mT, out=total)


@without_gil
def _add_errors(
    theta: Tensor,
    values: list[Tensor],
    at: Tensor,
    blocks: list[tuple[int, int, int, int, int]],
    products: Tensor,
    copy: Tensor,
    out: Tensor,
    errors: list[Tensor],
) -> None:
    """Σ e s and Σ e |x̃| s of every slot, block by block, with s a bound of σ' in the node's bin."""
    prepared = _prepared(theta, values, at, blocks, products, copy, out)
    for j in range(len(blocks)):
        i, first, r, _, k = blocks[j]
        here, bucket, which, own, x1, _, z, s, total, _ = prepared[j]
        e = errors[i].narrow(0, first, r) if first >= 0 else errors[i].index_select(0, which)
        if first < 0:
            torch.index_select(bucket, 0, which, out=here)
        torch.bmm(own, x1, out=z)
        # σ' e^{2|w|h} = e^{2|w|h − |z|} / (1 + e^{−|z|})², in one exponential where two would be 0 · ∞;
        # |x| / h is at least 32 in every bin.
        torch.mul(own.narrow(2, 1, 1).abs(), x1.narrow(1, 1, 1).abs() * (2.0 / 32.0), out=s)
        s.sub_(z.abs_()).exp_().mul_(z.sigmoid_().square_()).clamp_(max=0.25)
        torch.bmm(e.narrow(2, 0, k), s.mT, out=total)


def softplus_(z: Tensor) -> Tensor:
    """log(1 + e^z), in place where that can be.

    In float64 as it stands: 1 + e^z is rounded, and the error in the logarithm is at most 1e-16, of a sum
    with terms of all sizes. Torch's own softplus is exact to the last bit, and twice as slow.
    """
    if z.dtype == torch.float64 and bool(z.amax() < 700.0):  # beyond, e^z overflows
        return z.exp_().add_(1.0).log_()
    return torch._C._nn.softplus(z, 1.0, 60.0)
