"""How well every probe does, in one table: losses, confusion, and rankings of every pair."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch

from interp.probe.confusion import confusion
from interp.probe.data import can_iterate_again, columns
from interp.probe.losses import base_losses, block_losses
from interp.probe.ranks import rank_metrics
from interp.probe.sizes import tuned_block_elements
from interp.threads import n_threads, shared

__all__ = ["ProbeMetrics", "measure"]

#: Events of the latents that a thread takes at a time.
_BLOCK = 1 << 18


@dataclass(frozen=True)
class ProbeMetrics:
    """Metrics of every pair on one data set.

    Attributes
    ----------
    nll : ndarray of float64, shape [n_latents, n_classes]
        Mean negative log-likelihood, in nats.
    nll_base : ndarray of float64, shape [n_classes]
        The same of the constant prediction at the class's prevalence in these data.
    r : ndarray of float64, shape [n_latents, n_classes]
        1 − nll / nll_base; NaN for a class without rows, or on every row.
    auroc, ap : ndarray of float64, shape [n_latents, n_classes]
        Area under the ROC curve, and average precision Σ (R_k − R_{k−1}) P_k, with ties as one threshold
        (scikit-learn's definitions); NaN where they are not defined.
    tp, fp, tn, fn : ndarray of int64, shape [n_latents, n_classes]
        Confusion at the threshold.
    precision, recall, f1 : ndarray of float64, shape [n_latents, n_classes]
        At the threshold; 0 where nothing is predicted.
    best_f1 : ndarray of float64, shape [n_latents, n_classes]
        The largest F1 that any threshold reaches.
    n_rows : int
    threshold : float
    """

    nll: np.ndarray
    nll_base: np.ndarray
    r: np.ndarray
    auroc: np.ndarray
    ap: np.ndarray
    tp: np.ndarray
    fp: np.ndarray
    tn: np.ndarray
    fn: np.ndarray
    precision: np.ndarray
    recall: np.ndarray
    f1: np.ndarray
    best_f1: np.ndarray
    n_rows: int
    threshold: float

    def frame(self) -> pd.DataFrame:
        """One row per pair: latent, class, and a column per metric."""
        shape = self.nll.shape
        latent, cls = np.divmod(np.arange(shape[0] * shape[1]), shape[1])
        table = {"latent": latent, "class": cls}
        for f in fields(self):
            value = getattr(self, f.name)
            if isinstance(value, np.ndarray):
                table[f.name] = np.broadcast_to(value, shape).ravel()
        return pd.DataFrame(table)

    def __getitem__(self, name: str) -> np.ndarray:
        return getattr(self, name)


def measure(x: Any, y: Any, coef: np.ndarray, intercept: np.ndarray, threshold: float) -> ProbeMetrics:
    """Every metric of every pair on these data.

    Parameters
    ----------
    x, y : as in `Sparse1DProbe.fit`
    coef, intercept : ndarray of float64, shape [n_latents, n_classes]
    threshold : float
        Probability above which a row is predicted positive, in (0, 1).

    Returns
    -------
    ProbeMetrics
    """
    if y is None and not can_iterate_again(x):
        x = list(x)
    counts = confusion(x, y, coef, intercept, threshold)
    class_counts = (counts.tp + counts.fn)[0]
    n_rows = int(sum(c[0, 0] for c in counts))
    nll, auroc, ap, best_f1 = (np.full(coef.shape, np.nan) for _ in range(4))
    elements, _ = tuned_block_elements(torch.device("cpu"), torch.float64)

    def work(first: int, block: sp.csc_array, labels: Any) -> None:
        at = slice(first, first + block.shape[1])
        nll[at] = block_losses(block, labels, coef[at], intercept[at], elements)
        auroc[at], ap[at], best_f1[at] = rank_metrics(block, labels, coef[at], class_counts)

    blocks = columns(x, y, n_latents=coef.shape[0], n_classes=coef.shape[1], n_events=_BLOCK)
    deque(shared(work, blocks, n_threads()), maxlen=0)
    base = base_losses(class_counts, n_rows)
    with np.errstate(divide="ignore", invalid="ignore"):
        r = np.where(base > 0, 1.0 - nll / base, np.nan)
    tp, fp, fn = (getattr(counts, k).astype(np.float64) for k in ("tp", "fp", "fn"))
    return ProbeMetrics(
        nll=nll,
        nll_base=base,
        r=r,
        auroc=auroc,
        ap=ap,
        **counts._asdict(),
        precision=tp / np.maximum(tp + fp, 1.0),
        recall=tp / np.maximum(tp + fn, 1.0),
        f1=2.0 * tp / np.maximum(2.0 * tp + fp + fn, 1.0),
        best_f1=best_f1,
        n_rows=n_rows,
        threshold=threshold,
    )
