"""Bins that follow the bits of a float, moments of the values in them, and the Gauss rules these make."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import scipy.sparse as sp

__all__ = ["MANTISSA_BITS", "PER_OCTAVE", "Bins", "gauss_nodes", "key_of"]

#: Bins per octave is 2**MANTISSA_BITS.
MANTISSA_BITS = 4
PER_OCTAVE = 1 << MANTISSA_BITS
#: Key of the bin that starts at 2**-126, the smallest normal float32; smaller values join it.
_LOWEST = PER_OCTAVE
#: Below this variance (in squared bin widths) a bin is one point: what differs is rounding.
_FLAT = 1e-12


class Bins:
    """Moments of the values of one sign.

    Parameters
    ----------
    n_latents : int

    Attributes
    ----------
    table : ndarray of float64, shape [n_latents, 4, n_bins]
        Number of values, and sums of u, u² and u³ with u the position in the bin, 0 … 1.
    low : int
        Key of the first bin.
    """

    def __init__(self, n_latents: int) -> None:
        self.n_latents = n_latents
        self.low = 0
        self.table = np.zeros((n_latents, 4, 0))

    def cover(self, low: int, high: int) -> None:
        """Make room for some keys, an octave to spare at either end.

        Parameters
        ----------
        low, high : int
            The first and the last of them.
        """
        width = self.table.shape[2]
        if width and low >= self.low and high < self.low + width:
            return
        new_low, new_high = max(low - PER_OCTAVE, _LOWEST), high + 1 + PER_OCTAVE
        if width:
            new_low, new_high = min(new_low, self.low), max(new_high, self.low + width)
        table = np.zeros((self.n_latents, 4, new_high - new_low))
        if width:
            at = self.low - new_low
            table[:, :, at : at + width] = self.table
        self.low, self.table = new_low, table

    def fill(self, start: int, parts: Iterable[tuple[np.ndarray, np.ndarray]]) -> None:
        """Add positive values, whose bins are there.

        Parameters
        ----------
        start : int
            The first latent.
        parts : iterable of (indptr, values)
            Values of latent ``start + i`` at ``indptr[i]`` … ``indptr[i + 1] − 1``.

        Notes
        -----
        Values and keys of a latent are, as they stand, a row of a CSR matrix [latent, bin] whose
        duplicates are to be summed: SciPy does that in 0.5 ns each. Parts are added up in the cache first.
        """
        width, sums = self.table.shape[2], None
        for indptr, magnitude in parts:
            bits, shift, bias = _bits(magnitude)
            key = (bits >> shift).astype(np.int32)
            key -= self.low + bias
            u = (bits & ((1 << shift) - 1)) * 2.0**-shift
            power = np.ones_like(u)
            cells = sp.csr_array((power, key, indptr), shape=(len(indptr) - 1, width))
            if sums is None:
                sums = np.zeros((4, len(indptr) - 1, width))
            for moment in sums:
                moment += cells.toarray()
                power *= u
        if sums is not None:
            self.table[start : start + sums.shape[1]] += sums.transpose(1, 0, 2)


def _bits(magnitude: np.ndarray) -> tuple[np.ndarray, int, int]:
    """Integer bits of positive floats, the shift that leaves the bin key, and the key's bias."""
    if magnitude.dtype == np.float32:
        bits = magnitude.view(np.int32)
        return np.maximum(bits, np.int32(1 << 23)), 23 - MANTISSA_BITS, 0
    bits = magnitude.view(np.int64)
    bias = (1023 - 127) * PER_OCTAVE  # so that a value has the same key in either precision
    lowest = np.int64(np.float64(2.0**-126).view(np.int64))
    return np.maximum(bits, lowest), 52 - MANTISSA_BITS, bias


def key_of(value: float, dtype: np.dtype) -> int:
    """Key of the bin of a positive value, the same in float32 and float64.

    Parameters
    ----------
    value : float
    dtype : numpy.dtype
        float32 or float64.

    Returns
    -------
    int
    """
    bits, shift, bias = _bits(np.array([value], dtype))
    return int(bits[0] >> shift) - bias


def gauss_nodes(bins: dict[int, Bins], start: int, stop: int) -> tuple[np.ndarray, ...]:
    """The 2-point Gauss rules of some latents' bins; see `LatentSummary.nodes`.

    Parameters
    ----------
    bins : dict of Bins
        By sign, +1 and −1.
    start, stop : int
        Range of latents.

    Returns
    -------
    counts : ndarray of int64, shape [stop - start]
        Nodes of each latent.
    x, m, e : ndarray of float64, shape [n_nodes]
        As in `NodeBlock`, latent by latent.
    """
    parts = [_gauss(bins[sign], sign, start, stop) for sign in (-1, +1) if bins[sign].table.shape[2]]
    if not parts:
        return np.zeros(stop - start, np.int64), np.zeros(0), np.zeros(0), np.zeros(0)
    latent, x, m, e = (np.concatenate(p) for p in zip(*parts, strict=True))
    order = np.argsort(latent, kind="stable")
    return np.bincount(latent, minlength=stop - start), x[order], m[order], e[order]


def _gauss(bins: Bins, sign: int, start: int, stop: int) -> tuple[np.ndarray, ...]:
    """Latent (from `start`), x, m and e of the 2-point rule of every occupied bin."""
    table = bins.table[start:stop]
    latent, key = np.nonzero(table[:, 0, :])
    m0, m1, m2, m3 = (table[:, moment, :][latent, key] for moment in range(4))
    mean = m1 / m0
    variance = m2 / m0 - mean**2
    third = m3 / m0 - mean * (3.0 * m2 / m0 - 2.0 * mean**2)
    flat = (variance < _FLAT) | (m0 == 1)
    variance = np.where(flat, 1.0, variance)
    skew = np.where(flat, 0.0, third) / variance
    # The root of larger size first, the other from their product −v: no cancellation.
    root = 0.5 * (skew + np.copysign(np.sqrt(skew**2 + 4.0 * variance), skew))
    other = -variance / root
    left, right = np.minimum(root, other), np.maximum(root, other)
    share = np.where(flat, 1.0, right / (right - left))
    octave, step = np.divmod(key + bins.low, PER_OCTAVE)
    scale = np.ldexp(1.0, octave - 127)
    half = scale / (2 * PER_OCTAVE)
    error = np.where(flat | (m0 <= 2), 0.0, half**4 / 96.0)
    u = np.concatenate([np.where(flat, mean, mean + left), mean + right])
    m = np.concatenate([m0 * share, m0 * (1.0 - share)])
    real = m > 0  # the second node of a flat bin has no weight
    latent, scale, step, error = (np.tile(a, 2)[real] for a in (latent, scale, step, error))
    x = sign * scale * (1.0 + (step + np.clip(u[real], 0.0, 1.0)) / PER_OCTAVE)
    return latent, x, m[real], m[real] * error
