"""Made-up sparse codes of the shape that people probe."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp

__all__ = ["code_like_ade"]


def code_like_ade(
    n_rows: int, n_latents: int, n_classes: int, per_row: int, seed: int = 0
) -> tuple[sp.csr_array, np.ndarray]:
    """A code with the statistics of ADE20K patches under a sparse autoencoder.

    Very unequal classes; latents from rare to on a third of the rows, a thirtieth of them dead; about
    `per_row` events a row, a fifth of them in latents that prefer the row's class; values log-normal with
    median 0.8 and a tail to about 50. Float32.
    """
    rng = np.random.default_rng(seed)
    share = 1.0 / (1.0 + np.arange(n_classes)) ** 1.1
    y = rng.choice(n_classes, n_rows, p=share / share.sum())
    alive = max(1, n_latents - n_latents // 30)
    rows = np.repeat(np.arange(n_rows, dtype=np.int32), per_row)
    latents = (alive * rng.random(len(rows)) ** 2).astype(np.int32)
    own = rng.random(len(rows)) < 0.2
    per_class = max(1, alive // n_classes)
    favourite = (y[rows[own]] * per_class + rng.integers(0, per_class, own.sum())) % alive
    latents[own] = favourite
    values = np.exp(rng.standard_normal(len(rows), dtype=np.float32) - 0.2)
    values[own] *= 1.5
    x = sp.csr_array((values, (rows, latents)), shape=(n_rows, n_latents))
    x.sum_duplicates()
    return x, y
