r"""Grades that luck cannot earn.

The discriminability score of a lens is 2·AUROC − 1 of its logits on held-out prompts, against siblings: 0 is
chance, 1 perfect. The letter is read off the *lower* end of the two-sided 95 % interval: A ≥ 0.5, B ≥ 0.2, C
below. U: fewer than 8 independent prompts of a class, of which only a perfect score could earn an A, and half
of the good lenses would be called C.

The interval is the wider, on each side, of two:

* DeLong's variance on the logit scale, clustered by group as Obuchowski has it: honest when rows of a group
  move together. It collapses when the classes separate perfectly (variance 0).
* Newcombe's score interval, the values θ with (A − θ)² ≤ z² V(θ), where V is the Hanley–McNeil variance *at
  θ*, for as many rows as there are groups: never empty, at A = 1 still 1 − θ ≈ z² (1 + N/2)/(n m) wide,
  N = (n + m)/2 − 1.

References
----------
DeLong, DeLong, Clarke-Pearson, Biometrics 44 (1988) 837. Obuchowski, Biometrics 53 (1997) 567.
Newcombe, Statistics in Medicine 25 (2006) 559, method 5. Hanley, McNeil, Radiology 143 (1982) 29.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import expit, logit, ndtri

from interp.capture.statistics import newcombe

__all__ = [
    "Grade",
    "auroc",
    "auroc_interval",
    "balanced_f1",
    "brier",
    "calibrations",
    "f1_interval",
    "grade",
    "letter",
    "platts",
]

#: Lower bounds of the score from which a lens is an A, a B.
A_FROM, B_FROM = 0.5, 0.2
#: Fewest groups of either class that are graded.
MIN_GROUPS = 8


def auroc(scores: ArrayLike, labels: ArrayLike, present: ArrayLike | None = None) -> np.ndarray:
    """AUROC of many lenses at once, ties counted one half.

    Parameters
    ----------
    scores : array, shape [..., n]
    labels : bool array, shape [..., n] or [n]
    present : bool array, shape [..., n], optional
        Entries that count; the others are padding.

    Returns
    -------
    array of float64, shape [...]
        NaN where a class is absent.
    """
    scores = np.asarray(scores, dtype=np.float64)
    counted = np.broadcast_to(True if present is None else np.asarray(present, dtype=bool), scores.shape)
    positive = np.asarray(labels, dtype=bool) & counted
    n_pos = positive.sum(axis=-1)
    n_neg = counted.sum(axis=-1) - n_pos
    ranks = _midranks(np.where(counted, scores, np.inf))  # padding comes last: no rank moves
    with np.errstate(invalid="ignore", divide="ignore"):
        wins = np.where(positive, ranks, 0.0).sum(axis=-1) - n_pos * (n_pos + 1) / 2
        return wins / (n_pos * n_neg)


def _midranks(x: np.ndarray) -> np.ndarray:
    """Ranks from 1 along the last axis; equal values share their mean rank."""
    order = np.argsort(x, axis=-1, kind="stable")
    ordered = np.take_along_axis(x, order, axis=-1)
    index = np.broadcast_to(np.arange(x.shape[-1]), x.shape)
    new = np.ones(x.shape, dtype=bool)
    new[..., 1:] = ordered[..., 1:] != ordered[..., :-1]
    first = np.maximum.accumulate(np.where(new, index, 0), axis=-1)
    last_of_block = np.ones(x.shape, dtype=bool)
    last_of_block[..., :-1] = new[..., 1:]
    big = np.where(last_of_block, index, x.shape[-1])
    last = np.minimum.accumulate(big[..., ::-1], axis=-1)[..., ::-1]
    out = np.empty(x.shape)
    np.put_along_axis(out, order, (first + last) / 2 + 1, axis=-1)
    return out


def auroc_interval(
    scores: ArrayLike, labels: ArrayLike, groups: ArrayLike | None = None, *, level: float = 0.95
) -> tuple[float, float, float]:
    """AUROC of one lens with its two-sided interval (see the module's text).

    Parameters
    ----------
    scores : array, shape [n]
    labels : bool array, shape [n]
    groups : array, shape [n], optional
        Rows of one group are not independent. Default: every row for itself.
    level : float

    Returns
    -------
    auroc, low, high : float
        NaN, 0, 1 where a class is absent.
    """
    scores, labels = np.asarray(scores, dtype=np.float64), np.asarray(labels, dtype=bool)
    if not np.isfinite(scores).all():
        raise ValueError(f"{np.count_nonzero(~np.isfinite(scores))} of {scores.size} scores are not finite")
    groups = np.arange(len(scores)) if groups is None else np.unique(groups, return_inverse=True)[1]
    pos, neg = scores[labels], scores[~labels]
    n, m = len(pos), len(neg)
    if not n or not m:
        return math.nan, 0.0, 1.0
    # Placements: the share of the other class that a row beats (a positive) or is beaten by.
    beats = np.empty(len(scores))
    beats[labels] = _share_below(pos, neg)
    beats[~labels] = 1 - _share_below(neg, pos)
    area = float(beats[labels].mean())
    n_groups = len(np.unique(groups[labels])), len(np.unique(groups[~labels]))
    low, high = newcombe(area, *n_groups, level=level)
    if 0 < area < 1:
        z = float(ndtri(0.5 + level / 2))
        spread = z * math.sqrt(_delong_variance(beats, labels, groups, area)) / (area * (1 - area))
        centre = float(logit(area))
        low, high = min(low, float(expit(centre - spread))), max(high, float(expit(centre + spread)))
    return area, low, high


def _share_below(x: np.ndarray, others: np.ndarray) -> np.ndarray:
    """The share of `others` below each of `x`, ties counted one half."""
    ordered = np.sort(others)
    below, upto = (np.searchsorted(ordered, x, side) for side in ("left", "right"))
    return (below + upto) / (2 * len(others))


def _delong_variance(beats: np.ndarray, labels: np.ndarray, groups: np.ndarray, area: float) -> float:
    size = int(groups.max()) + 1
    off = beats - area
    sums = {c: np.bincount(groups[labels == c], off[labels == c], minlength=size) for c in (True, False)}
    counts = {c: np.bincount(groups[labels == c], minlength=size) for c in (True, False)}
    total = 0.0
    for c in (True, False):
        present = np.count_nonzero(counts[c])
        if present < 2:
            return 0.25  # one group tells nothing of the spread; this is the most it can be
        total += present / (present - 1) * float((sums[c] ** 2).sum()) / counts[c].sum() ** 2
    shared = np.count_nonzero(counts[True] + counts[False])
    product = counts[True].sum() * counts[False].sum()
    return max(total + 2 * shared / (shared - 1) * float((sums[True] * sums[False]).sum()) / product, 0.0)


@dataclass(frozen=True)
class Grade:
    """A letter and what it rests on.

    Attributes
    ----------
    letter : str
        A, B, C or U.
    why : str
        For U: what is missing.
    score, low, high : float
        2·AUROC − 1 and its two-sided 95 % interval; NaN where there is no AUROC.
    auroc : float
    n_pos, n_neg : int
        Groups of held-out prompts.
    """

    letter: str
    why: str
    score: float
    low: float
    high: float
    auroc: float
    n_pos: int
    n_neg: int


def letter(low: float) -> str:
    """A, B or C for a lower bound of the score."""
    return "A" if low >= A_FROM else "B" if low >= B_FROM else "C"


def grade(scores: ArrayLike, labels: ArrayLike, groups: ArrayLike | None = None) -> Grade:
    """Grade one lens on its held-out prompts.

    Parameters
    ----------
    scores : array, shape [n]
        Logits on positives and on examples of siblings.
    labels : bool array, shape [n]
    groups : array, shape [n], optional
        The source of each row.

    Returns
    -------
    Grade
    """
    labels = np.asarray(labels, dtype=bool)
    groups = np.arange(len(labels)) if groups is None else np.asarray(groups)
    n, m = len(np.unique(groups[labels])), len(np.unique(groups[~labels]))
    if not n or not m:
        missing = "held-out positives" if not n else "held-out prompts of siblings"
        return Grade("U", f"no {missing}", math.nan, math.nan, math.nan, math.nan, n, m)
    area, low, high = auroc_interval(scores, labels, groups)
    if min(n, m) < MIN_GROUPS:
        why = f"{n} positive and {m} sibling prompts held out, {MIN_GROUPS} of each are needed"
        return Grade("U", why, 2 * area - 1, 2 * low - 1, 2 * high - 1, area, n, m)
    return Grade(letter(2 * low - 1), "", 2 * area - 1, 2 * low - 1, 2 * high - 1, area, n, m)


# ------------------------------------------------------------------------------ F1


def balanced_f1(scores: ArrayLike, labels: ArrayLike, threshold: float = 0.0) -> float:
    """F1 at `threshold`, with both classes given the same total weight (F1 depends on prevalence)."""
    scores, labels = np.asarray(scores), np.asarray(labels, dtype=bool)
    if not labels.any() or labels.all():
        return math.nan
    tp = float((scores[labels] > threshold).mean())
    fp = float((scores[~labels] > threshold).mean())
    return 2 * tp / (tp + fp + 1)  # 2 tp / (2 tp + fp + fn) with fn = 1 − tp


def f1_interval(tp: int, fp: int, fn: int, *, level: float = 0.95) -> tuple[float, float, float]:
    """F1 and its two-sided interval.

    F1 = 2J/(1 + J) with the Jaccard index J = tp/(tp + fp + fn), which is a proportion: Wilson's interval
    for J, carried over. With no error at all, 37 positives are needed for a lower bound of 0.95.

    Returns
    -------
    f1, low, high : float
        0, 0, 1 for no positives at all.
    """
    n = tp + fp + fn
    if not n:
        return 0.0, 0.0, 1.0
    z2 = float(ndtri(0.5 + level / 2)) ** 2
    j = tp / n
    centre = (j + z2 / (2 * n)) / (1 + z2 / n)
    half = math.sqrt(z2 * (j * (1 - j) / n + z2 / (4 * n * n))) / (1 + z2 / n)
    low, high = max(centre - half, 0.0), min(centre + half, 1.0)
    return 2 * j / (1 + j), 2 * low / (1 + low), 2 * high / (1 + high)


# ------------------------------------------------------------------------------ probabilities


def brier(logits: ArrayLike, labels: ArrayLike) -> float:
    """Mean squared error of the probabilities, both classes weighted alike (0.25: no information)."""
    p, labels = expit(np.asarray(logits, dtype=np.float64)), np.asarray(labels, dtype=bool)
    if not labels.any() or labels.all():
        return math.nan
    return float(0.5 * ((1 - p[labels]) ** 2).mean() + 0.5 * (p[~labels] ** 2).mean())


def calibrations(logits: Sequence[np.ndarray], labels: Sequence[np.ndarray]) -> list[tuple[float, float]]:
    """Slopes and intercepts of logistic regressions of the labels on the logits (1 and 0 when calibrated).

    Parameters
    ----------
    logits, labels : sequence of ndarray, shape [n]
        Of each lens, on rows of its own.

    Returns
    -------
    list of (slope, intercept)
        NaN where the logits separate the classes, for then no slope is the largest likelihood's.
    """

    def overlap(f: np.ndarray, positive: np.ndarray) -> bool:
        if not positive.any() or positive.all():
            return False
        mine, other = f[positive], f[~positive]
        return mine.min() < other.max() and other.min() < mine.max()

    found = [(math.nan, math.nan)] * len(logits)
    which = [k for k, pair in enumerate(zip(logits, labels, strict=True)) if overlap(*pair)]
    slopes = _fit_slopes([logits[k] for k in which], [labels[k] for k in which], ridge=0.0)
    for k, slope in zip(which, slopes, strict=True):
        found[k] = slope
    return found


def platts(logits: Sequence[np.ndarray], labels: Sequence[np.ndarray]) -> list[tuple[float, float]]:
    """Slope a > 0 and intercept c of each lens such that σ(a f + c) is calibrated.

    A prior draws a towards 1 with the weight of one row, so that perfectly separated rows give a finite
    slope; with fewer than 10 rows of a class nothing is changed (1, 0).

    Parameters
    ----------
    logits, labels : sequence of ndarray, shape [n]
        Of each lens, on rows that it was not trained on.

    Returns
    -------
    list of (slope, intercept)

    References
    ----------
    Platt, Probabilistic outputs for support vector machines, 1999.
    """
    found = [(1.0, 0.0)] * len(logits)
    which = [k for k, y in enumerate(labels) if min(np.count_nonzero(y), np.count_nonzero(~y)) >= 10]
    slopes = _fit_slopes([logits[k] for k in which], [labels[k] for k in which], ridge=1.0)
    for k, (slope, intercept) in zip(which, slopes, strict=True):
        found[k] = (slope, intercept) if slope > 0.05 else (0.05, 0.0)
    return found


def _fit_slopes(
    logits: Sequence[np.ndarray], labels: Sequence[np.ndarray], *, ridge: float
) -> list[tuple[float, float]]:
    """Newton for Σ s [softplus(a f + c) − y (a f + c)] + ridge/2 (a − 1)², classes weighted alike."""
    if not logits:
        return []
    size = max(map(len, logits))
    f, y, s = np.zeros((3, len(logits), size))
    for k, (row, positive) in enumerate(zip(logits, labels, strict=True)):
        n, n_pos = len(row), np.count_nonzero(positive)
        f[k, :n], y[k, :n] = row, positive
        s[k, :n] = np.where(positive, 0.5 * n / n_pos, 0.5 * n / (n - n_pos))
    x = np.stack([f, np.ones_like(f)], axis=2)
    start = np.array([1.0, 0.0])
    beta = np.tile(start, (len(f), 1))
    prior = np.array([ridge, 1e-9])

    def loss(b: np.ndarray) -> np.ndarray:
        t = (x @ b[:, :, None])[:, :, 0]
        return (s * (np.logaddexp(0, t) - y * t)).sum(1) + 0.5 * (prior * (b - start) ** 2).sum(1)

    going = np.ones(len(f), dtype=bool)
    for _ in range(60):
        p = expit((x @ beta[:, :, None])[:, :, 0])
        gradient = ((s * (p - y))[:, None] @ x)[:, 0] + prior * (beta - start)
        hessian = (x * (s * p * (1 - p))[:, :, None]).transpose(0, 2, 1) @ x + np.diag(prior + 1e-12)
        step = np.linalg.solve(hessian, gradient[:, :, None])[:, :, 0]
        before = loss(beta)
        # A lens that has converged stays where it is: none depends on how long the others take.
        t = going.astype(np.float64)
        while (worse := (loss(beta - t[:, None] * step) > before) & (t > 1e-6)).any():
            t[worse] /= 2
        beta -= t[:, None] * step
        going &= np.abs(t[:, None] * step).max(axis=1) >= 1e-9
        if not going.any():
            break
    return [(float(a), float(c)) for a, c in beta]
