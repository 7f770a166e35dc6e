r"""Negative log-likelihood of every pair: by the summary's nodes, on the events where those are too coarse.

n·nll = Σ_{x≠0} softplus(b + w x) + (n − nnz)·softplus(b) − b N_c − w S_lc, the data's part of the objective.
"""

from __future__ import annotations

from collections import deque
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

from interp.probe.data import can_iterate_again, columns, shards
from interp.probe.layout import softplus_
from interp.probe.nodes import Nodes
from interp.probe.sizes import tuned_block_elements
from interp.probe.summary import LatentSummary
from interp.threads import n_threads, shared, without_gil

__all__ = ["base_losses", "block_losses", "exact_losses", "losses"]

#: Latents taken together.
_GROUP = 256
#: Events of a latent evaluated at a time, times classes: what the cache holds.
_ELEMENTS = 1 << 16


def base_losses(class_counts: np.ndarray, n_rows: int) -> np.ndarray:
    """Loss of predicting each class's prevalence for every row, float64 ``[n_classes]``."""
    p = class_counts / n_rows
    with np.errstate(divide="ignore", invalid="ignore"):
        return -(np.where(p > 0, p * np.log(p), 0.0) + np.where(p < 1, (1 - p) * np.log1p(-p), 0.0))


def losses(summary: LatentSummary, coef: np.ndarray, intercept: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean negative log-likelihood of every pair by the summary's nodes, and a bound of its error.

    Parameters
    ----------
    summary : LatentSummary
    coef, intercept : ndarray of float64, shape [n_latents, n_classes]

    Returns
    -------
    nll, error : ndarray of float64, shape [n_latents, n_classes]
    """
    nll, error = np.zeros(coef.shape), np.zeros(coef.shape)
    elements, _ = tuned_block_elements(torch.device("cpu"), torch.float64)

    def work(first: int) -> None:
        at = slice(first, min(first + _GROUP, len(coef)))
        nll[at], error[at] = _by_nodes(summary, at, coef[at], intercept[at], elements)

    deque(shared(work, ((first,) for first in range(0, len(coef), _GROUP)), n_threads()), maxlen=0)
    return nll, error


def exact_losses(x: Any, y: Any, coef: np.ndarray, intercept: np.ndarray) -> np.ndarray:
    """`losses`, with every pair whose error bound exceeds 1e-9 + 1e-7·nll recomputed on the raw events.

    Parameters
    ----------
    x, y : as in `Sparse1DProbe.fit`
    coef, intercept : ndarray of float64, shape [n_latents, n_classes]

    Returns
    -------
    ndarray of float64, shape [n_latents, n_classes]
    """
    if y is None and not can_iterate_again(x):
        x = list(x)
    n_latents, n_classes = coef.shape
    summary = LatentSummary(n_latents, n_classes).add_shards(shards(x, y, n_classes, n_latents))
    if summary.n_rows == 0:
        raise ValueError("no labelled row: there is nothing to measure")
    nll, error = losses(summary, coef, intercept)
    doubtful = _doubtful(nll, error)
    latents = np.flatnonzero(doubtful.any(axis=1))

    def work(first: int, block: sp.csc_array, _: Any) -> None:
        at = latents[first : first + block.shape[1]]
        rest = _rest(summary, at, coef[at], intercept[at])
        nll[at] = _on_events(block, doubtful[at], coef[at], intercept[at], rest, summary.n_rows, nll[at])

    blocks = columns(x, y, n_latents=n_latents, n_classes=n_classes, latents=latents)
    deque(shared(work, blocks, n_threads()), maxlen=0)
    return nll


def block_losses(
    block: sp.csc_array, labels: Any, coef: np.ndarray, intercept: np.ndarray, elements: int
) -> np.ndarray:
    """As `exact_losses`, of some latents of which all events are at hand.

    Parameters
    ----------
    block : csc_array, shape [n_rows, n_latents]
    labels : ndarray of int, shape [n_rows], or csr_array, shape [n_rows, n_classes]
    coef, intercept : ndarray of float64, shape [n_latents, n_classes]
    elements : int
        Working set of an evaluation.

    Returns
    -------
    ndarray of float64, shape [n_latents, n_classes]
    """
    summary = LatentSummary(*coef.shape).add_columns(block, labels)
    every = slice(0, len(coef))
    nll, error = _by_nodes(summary, every, coef, intercept, elements)
    rest = _rest(summary, every, coef, intercept)
    return _on_events(block, _doubtful(nll, error), coef, intercept, rest, summary.n_rows, nll)


def _doubtful(nll: np.ndarray, error: np.ndarray) -> np.ndarray:
    return error > 1e-9 + 1e-7 * np.abs(nll)


def _rest(summary: LatentSummary, at: Any, w: np.ndarray, b: np.ndarray) -> np.ndarray:
    """n·nll without the sum over the non-zeros."""
    n_zero = (summary.n_rows - summary.n_events[at])[:, None]
    return n_zero * np.logaddexp(0.0, b) - b * summary.class_counts - w * summary.label_sums[at]


def _by_nodes(
    summary: LatentSummary, at: slice, w: np.ndarray, b: np.ndarray, elements: int
) -> tuple[np.ndarray, np.ndarray]:
    """Losses and error bounds of the pairs of the latents `at`."""
    block = summary.nodes(at.start, at.stop)
    cpu = torch.device("cpu")
    nodes = Nodes(*block[:3], np.ones(len(w)), block.e, device=cpu, dtype=torch.float64)
    layout = nodes.layout(torch.arange(w.size), w.shape[1], elements)
    total = layout.losses(*(torch.from_numpy(t.ravel()) for t in (b, w))).numpy().reshape(w.shape)
    n = summary.n_rows
    nll = (total + _rest(summary, at, w, b)) / n
    # The fourth derivative of softplus is at most 1/8: that clears most pairs at no cost.
    rows = np.repeat(np.arange(len(w)), np.diff(block.offsets))
    error = np.bincount(rows, block.e, minlength=len(w))[:, None] / (8.0 * n) * w**4
    close = np.flatnonzero(_doubtful(nll, error))
    layout = nodes.layout(torch.from_numpy(close), w.shape[1], elements)
    b_close, w_close = (torch.from_numpy(t.ravel()[close]) for t in (b, w))
    error.ravel()[close] = layout.rule_errors(b_close, w_close)[0].numpy() / n
    return nll, error


def _on_events(
    block: sp.csc_array,
    pairs: np.ndarray,
    w: np.ndarray,
    b: np.ndarray,
    rest: np.ndarray,
    n_rows: int,
    nll: np.ndarray,
) -> np.ndarray:
    """`nll`, with the pairs of the mask `pairs` evaluated event by event."""
    nll = nll.copy()
    values = torch.from_numpy(block.data)
    for l in np.flatnonzero(pairs.any(axis=1)):
        classes = np.flatnonzero(pairs[l])
        own = values[int(block.indptr[l]) : int(block.indptr[l + 1])]
        theta = torch.from_numpy(np.stack((b[l, classes], w[l, classes])))
        nll[l, classes] = (_softplus_sums(own, theta, _ELEMENTS).numpy() + rest[l, classes]) / n_rows
    return nll


@without_gil
def _softplus_sums(x: Tensor, theta: Tensor, elements: int) -> Tensor:
    """Σ softplus(b + w x) of every column (b, w) of `theta`, over all values."""
    b, w = theta[0][:, None], theta[1][:, None]
    total = torch.zeros(theta.shape[1], dtype=theta.dtype)
    step = max(1, elements // max(1, theta.shape[1]))
    for start in range(0, len(x), step):
        total += softplus_(torch.addcmul(b, w, x[start : start + step].double())).sum(1)
    return total
