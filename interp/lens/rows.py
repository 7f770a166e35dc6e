"""Rows of many lenses as one batch: gathered from the bank, padded, scored.

What is done for one lens costs more in calls than in arithmetic, so it is done for many of about one size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from interp.lens.fit import standardise
from interp.lens.grade import auroc

if TYPE_CHECKING:
    from interp.lens.bank import Bank
    from interp.lens.job import Job
    from interp.lens.samples import Sample

__all__ = [
    "alike",
    "apply",
    "areas",
    "balanced",
    "gather",
    "logits_of",
    "problems",
    "rows_of",
    "scores_of",
    "stacked",
]

#: Most of a batch: entries of its Gram matrices (a tenth of a second's work for a cross-validation), and
#: numbers in its rows.
_GRAMS, _ROWS = 600_000, 2**24


def alike(sizes: Sequence[int], width: int = 1) -> Iterator[list[int]]:
    """Problems of about one size as batches, small ones first.

    Parameters
    ----------
    sizes : sequence of int
        Rows of each problem.
    width : int
        Numbers of a row.

    Yields
    ------
    list of int
        Indices into `sizes`; every one is in one batch.
    """
    part: list[int] = []
    for k in sorted(range(len(sizes)), key=lambda k: sizes[k]):
        rows = (len(part) + 1) * sizes[k]
        larger = bool(part) and sizes[k] > 1.25 * sizes[part[0]] + 2
        if part and (larger or rows * sizes[k] > _GRAMS or rows * width > _ROWS):
            yield part
            part = []
        part.append(k)
    if part:
        yield part


def rows_of(bank: Bank, index: Tensor) -> Tensor:
    """Rows by number, float32 ``[*index.shape, phases, width]``: prompt, and continuation if there is one."""
    rows = bank.take(index)
    if not bank.continuation:
        return rows[..., None, :]
    return torch.stack([rows, bank.take(index, "replies")], dim=-2)


def gather(bank: Bank, index: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Rows of several lenses, padded to the longest.

    Parameters
    ----------
    bank : Bank
    index : list of int64 tensors, shape [n] each
        Numbers of the rows of each lens.

    Returns
    -------
    rows : float32 tensor, shape [n_lenses, n, phases, width]
    present : bool tensor, shape [n_lenses, n]
        False for padding, whose rows are others'.
    """
    padded = torch.nn.utils.rnn.pad_sequence(list(index), batch_first=True)
    lengths = torch.tensor([len(i) for i in index])
    return rows_of(bank, padded), torch.arange(padded.shape[1]) < lengths[:, None]


def logits_of(jobs: Sequence[Job], bank: Bank, samples: Sequence[Sequence[Sample]]) -> list[np.ndarray]:
    """Logits of each lens on samples of its own: the mean of a prompt's and its continuation's.

    Returns
    -------
    list of float64 arrays, shape [n] each
        One per lens, as long as its samples are many.
    """
    return scores_of(jobs, bank, [bank.index(s) for s in samples])


def scores_of(jobs: Sequence[Job], bank: Bank, index: Sequence[Tensor]) -> list[np.ndarray]:
    """`logits_of` samples whose rows are known by number; float64 ``[n]`` each."""
    out = [np.zeros(0)] * len(jobs)
    for part in alike([len(i) for i in index], bank.model.width):
        if not len(index[part[-1]]):
            continue
        rows, _ = gather(bank, [index[k] for k in part])
        logits = apply([jobs[k] for k in part], rows).mean(dim=2).double().numpy()
        for at, k in enumerate(part):
            out[k] = logits[at, : len(index[k])]
    return out


def apply(jobs: Sequence[Job], rows: Tensor) -> Tensor:
    """Logits of lenses on rows as captured.

    Parameters
    ----------
    jobs : list of Job
    rows : tensor, shape [n_lenses, n, phases, width] or [1, n, phases, width]
        Of each lens, or for all of them.

    Returns
    -------
    tensor, shape [n_lenses, n, phases], float32
    """
    z = standardise(rows, jobs[0].mean, jobs[0].scale)
    n, phases, width = z.shape[1:]
    if jobs[0].mlp is not None:
        return torch.stack([job.apply(z[k % len(z)]) for k, job in enumerate(jobs)])
    w = torch.stack([job.w for job in jobs if job.w is not None])
    b = torch.tensor([job.b for job in jobs])
    together = len(z) == 1
    logits = w @ z.reshape(-1, width).T if together else (z.flatten(1, 2) @ w[:, :, None])[:, :, 0]
    return logits.reshape(len(jobs), n, phases) + b[:, None, None]


def problems(jobs: Sequence[Job], bank: Bank) -> tuple[Tensor, Tensor, Tensor, int]:
    """Training rows of lenses of about one size, for `interp.lens.fit.solve`.

    Returns
    -------
    z : float32 tensor, shape [n_lenses, n, width]
        Standardised rows, the phases of a sample one after the other; 0 for padding.
    y, s : float32 tensors, shape [n_lenses, n]
        Labels and weights; weight 0 for padding.
    phases : int
        Rows of each sample.
    """
    rows, present = gather(bank, [job.index(bank, "train") for job in jobs])
    phases = rows.shape[2]
    z = standardise(rows, jobs[0].mean, jobs[0].scale).flatten(1, 2)
    z[~present.repeat_interleave(phases, dim=1)] = 0
    y, s = torch.zeros(2, *z.shape[:2])
    for k, job in enumerate(jobs):
        labels = job.labels().repeat_interleave(phases)
        y[k, : len(labels)], s[k, : len(labels)] = labels, balanced(labels)
    return z, y, s, phases


def areas(logits: Sequence[np.ndarray], labels: Sequence[np.ndarray]) -> np.ndarray:
    """AUROC of each lens on rows of its own, float64 ``[n_lenses]``; NaN where a class is absent."""
    size = max(map(len, logits), default=0)
    scores, positive, present = np.zeros((3, len(logits), size))
    for k, (f, y) in enumerate(zip(logits, labels, strict=True)):
        scores[k, : len(f)], positive[k, : len(f)], present[k, : len(f)] = f, y, True
    return auroc(scores, positive.astype(bool), present.astype(bool))


def stacked(folds: Sequence[tuple[Tensor, Tensor]], size: int) -> tuple[Tensor, Tensor]:
    """Masks of folds, bool ``[n_folds, n]`` for each lens, as two of shape ``[n_lenses, n_folds, size]``."""
    masks = torch.zeros(2, len(folds), len(folds[0][0]), size, dtype=torch.bool)
    for k, pair in enumerate(folds):
        for i in (0, 1):
            masks[i, k, :, : pair[i].shape[1]] = pair[i]
    return masks[0], masks[1]


def balanced(y: Tensor) -> Tensor:
    """Row weights that give both classes half of the total n; float32 ``[n]``, as `y`."""
    n, n_pos = len(y), float(y.sum())
    if not 0 < n_pos < n:
        return torch.ones_like(y)
    return torch.where(y > 0, n / (2 * n_pos), n / (2 * (n - n_pos)))
