"""Blocks of pairs over a node set, each evaluated in a few dense products that the cache holds."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from interp.threads import without_gil

if TYPE_CHECKING:
    from interp.probe.nodes import Nodes

__all__ = ["Layout", "softplus_"]


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
        self.blocks: list[tuple[int, int, int, int, int]]
        with torch.inference_mode():  # operations that look for no gradient start sooner
            self.blocks, arrays = _laid_out(pairs.cpu(), n_classes, block_elements, nodes.rows)
        where, at, *places = (a.to(self.device) for a in arrays)
        self._place, self._error_places, self._sum_places = places
        values = [bucket.values for bucket in nodes.buckets]
        self._errors = [bucket.e for bucket in nodes.buckets if bucket.e is not None]
        products = self._empty(2 * max((r * c * k for *_, r, c, k in self.blocks), default=0))
        copy = self._empty(max((r * values[i].stride(0) for i, _, r, *_ in self.blocks), default=0))
        self._arrays = where, at, values, self.blocks, products, copy

    def _empty(self, size: int) -> Tensor:
        return torch.empty(size, dtype=self.dtype, device=self.device)

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
        with torch.inference_mode():
            return _evaluate(b, w, *self._arrays, self._sum_places)

    def losses(self, b: Tensor, w: Tensor) -> Tensor:
        """Σ m softplus(b + w̃ x̃) of every pair, shape [n_active], of the dtype of `b`."""
        with torch.inference_mode():
            return _add_softplus(b, w, *self._arrays, self._place)

    def rule_errors(self, b: Tensor, w: Tensor) -> Tensor:
        r"""Bounds on the error of the 2-point rule in n·∂L/∂b and n·∂L/∂w̃, float, shape [2, n_active].

        The first also bounds the error in n·L, whose fourth derivative is w⁴σ'''. For a bin of half-width h
        and m values, the rule's error on f is at most m h⁴ max|f''''| / 96 (the
        square of the rule's node polynomial is the smallest of its degree in the mean, and the
        Chebyshev polynomial's is h⁴/4). With f = σ(z): f'''' = w⁴σ''''; with f = xσ(z): x w⁴σ'''' + 4w³σ'''.
        Both |σ'''| and |σ''''| are at most σ', and within the bin σ' is at most e^{2|w|h} times its
        value at a node, and never above 1/4.
        """
        with torch.inference_mode():
            over_1, over_x = _add_errors(b, w, *self._arrays, self._error_places, self._errors)
        slope = w.abs()
        return torch.stack((slope**4 * over_1, slope**4 * over_x + 4.0 * slope**3 * over_1))


@without_gil
def _laid_out(
    pairs: Tensor, n_classes: int, block_elements: int, rows: Tensor
) -> tuple[list[tuple[int, int, int, int, int]], list[Tensor]]:
    """Blocks of pairs, and of int64: the pair of each slot, the latents of all blocks, and where results are.

    Results of a pair: its slot [n]; its two sums [2 n] and its five sums [5 n] in the arrays of `_prepared`.
    """
    order, bucket, at, widths, padded = rows.unbind(0)
    ends = torch.searchsorted(pairs, torch.arange(len(order) + 1) * n_classes)
    begin, end = ends[:-1].index_select(0, order), ends[1:].index_select(0, order)
    # A piece is a latent with as many of its pairs as a block holds.
    most = (torch.full_like(padded, block_elements) // padded).clamp(min=1)
    n_pieces = (end - begin + most - 1) // most
    row = torch.repeat_interleave(n_pieces)
    before = torch.arange(len(row)) - (n_pieces.cumsum(0) - n_pieces)[row]
    begin = begin[row] + before * most[row]
    n_own = torch.minimum(most[row], end[row] - begin)
    # Pieces with as many pairs side by side, so that little of a block is repetition.
    turn = torch.argsort(bucket[row] * (n_classes + 1) - n_own, stable=True)
    row, n_own, begin = row[turn], n_own[turn], begin[turn]
    at, widths = at[row], widths[row]

    own: list[int] = n_own.tolist()
    places: list[int] = at.tolist()
    used: list[int] = widths.tolist()
    bucket_ends: list[int] = torch.bincount(bucket[row], minlength=1).cumsum(0).tolist()
    padding: list[int] = padded[row].tolist()
    apart: list[int] = (torch.diff(at, prepend=at[:1]) != 1).cumsum(0).tolist()
    blocks: list[tuple[int, int, int, int, int]] = []
    columns: list[int] = []
    latents: list[int] = []
    start = 0
    for i, stop in enumerate(bucket_ends):
        while start < stop:
            c = own[start]
            r = min(stop - start, max(1, block_elements // (c * padding[start])))
            if apart[start + r - 1] == apart[start]:  # side by side, the one with most nodes last
                blocks.append((i, places[start], r, c, used[start + r - 1]))
            else:
                blocks.append((i, -1, r, c, int(widths.narrow(0, start, r).max())))
            columns.append(c)
            latents.append(r)
            start += r

    width = torch.repeat_interleave(
        torch.tensor(columns, dtype=torch.int64), torch.tensor(latents, dtype=torch.int64)
    )
    slot = width.cumsum(0) - width
    piece = torch.repeat_interleave(width)
    column = torch.arange(len(piece)) - slot.index_select(0, piece)
    where = begin.index_select(0, piece) + torch.minimum(column, n_own.index_select(0, piece) - 1)
    place = torch.empty_like(pairs)
    place.scatter_(0, where, torch.arange(len(where)))
    # A block's sums are rows of all its pairs of a latent after another.
    piece = piece.index_select(0, place)
    slot, width = slot.index_select(0, piece), width.index_select(0, piece)
    of_two, of_three = place + slot, place + 2 * slot
    two = torch.cat((of_two, of_two + width))
    three = torch.cat((of_three, of_three + width, of_three + 2 * width))
    five = torch.cat((three[: 2 * len(pairs)], three + 3 * len(where)))
    return blocks, [where, at, place, two, five]


def _prepared(
    b: Tensor,
    w: Tensor,
    where: Tensor,
    at: Tensor,
    values: list[Tensor],
    blocks: list[tuple[int, int, int, int, int]],
    products: Tensor,
    copy: Tensor,
    n_arrays: int,
    n_sums: int,
) -> tuple[Tensor, list[list[Tensor]]]:
    """All that is seen of each block: made in one go, a view costs a third of one made between products.

    Of each block: the latents' values [r, 5, K], where they are read; the bucket that they are copied from,
    and which of it they are (none where they lie side by side: they are read in the bucket); parameters
    [r, c, 2]; the parts of the values [r, 2, k] and [r, 3, k]; room for two products [r, c, k]; where sums
    go, [r, n_sums, c] in the first of `n_arrays` and in the last. Copies and products stay in the cache.

    Before all that, the arrays.
    """
    prepared: list[list[Tensor]] = []
    theta = torch.stack((b, w), dim=1).to(products.dtype).index_select(0, where)
    out = torch.empty([n_arrays, n_sums * len(where)], dtype=products.dtype, device=products.device)
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
    return out, prepared


@without_gil
def _evaluate(
    b: Tensor,
    w: Tensor,
    where: Tensor,
    at: Tensor,
    values: list[Tensor],
    blocks: list[tuple[int, int, int, int, int]],
    products: Tensor,
    copy: Tensor,
    places: Tensor,
) -> Tensor:
    """Σ m (1, x̃, x̃²) σ and Σ m (1, x̃, x̃²) σ' of every slot, block by block.

    σ' = σ − σ²: two products of one sigmoid give all sums, and no second exponential.
    """
    out, prepared = _prepared(b, w, where, at, values, blocks, products, copy, 2, 3)
    for here, bucket, which, own, x1, m, z, zz, of_s, of_ss in prepared:
        if len(which) > 0:
            torch.index_select(bucket, 0, which, out=here)
        torch.bmm(own, x1, out=z)
        torch.mul(z.sigmoid_(), z, out=zz)
        torch.bmm(m, z.mT, out=of_s)
        torch.bmm(m, zz.mT, out=of_ss)
    torch.sub(out[0], out[1], out=out[1])
    return out.view(-1).index_select(0, places).to(b.dtype).view(5, -1)


@without_gil
def _add_softplus(
    b: Tensor,
    w: Tensor,
    where: Tensor,
    at: Tensor,
    values: list[Tensor],
    blocks: list[tuple[int, int, int, int, int]],
    products: Tensor,
    copy: Tensor,
    places: Tensor,
) -> Tensor:
    """Σ m softplus of every slot, block by block."""
    out, prepared = _prepared(b, w, where, at, values, blocks, products, copy, 1, 1)
    for here, bucket, which, own, x1, m, z, _, total, _ in prepared:
        if len(which) > 0:
            torch.index_select(bucket, 0, which, out=here)
        torch.bmm(own, x1, out=z)
        torch.bmm(m.narrow(1, 0, 1), softplus_(z).mT, out=total)
    return out[0].index_select(0, places).to(b.dtype)


@without_gil
def _add_errors(
    b: Tensor,
    w: Tensor,
    where: Tensor,
    at: Tensor,
    values: list[Tensor],
    blocks: list[tuple[int, int, int, int, int]],
    products: Tensor,
    copy: Tensor,
    places: Tensor,
    errors: list[Tensor],
) -> Tensor:
    """Σ e s and Σ e |x̃| s of every slot, block by block, with s a bound of σ' in the node's bin."""
    out, prepared = _prepared(b, w, where, at, values, blocks, products, copy, 1, 2)
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
    return out[0].index_select(0, places).to(b.dtype).view(2, -1)


def softplus_(z: Tensor) -> Tensor:
    """log(1 + e^z), in place where that can be.

    In float64 as it stands: 1 + e^z is rounded, and the error in the logarithm is at most 1e-16, of a sum
    with terms of all sizes. Torch's own softplus is exact to the last bit, and twice as slow.

    Parameters
    ----------
    z : Tensor of float, shape [...]
        Not empty; it may be overwritten.

    Returns
    -------
    Tensor of the dtype of `z`, shape [...]
    """
    if z.dtype == torch.float64 and bool(z.amax() < 700.0):  # beyond, e^z overflows
        return z.exp_().add_(1.0).log_()
    return torch.nn.functional.softplus(z, 1.0, 60.0)
