"""What goes in: sparse codes and labels, checked once and brought into one form."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse as sp

__all__ = [
    "Shard",
    "check_indices",
    "check_shard",
    "columns",
    "latent_blocks",
    "n_rows",
    "shards",
    "stack_labels",
]

#: Smaller values count as zeros: below it a float32 loses its precision, and with it the bins theirs.
_TINY = 2.0**-126


class Shard(NamedTuple):
    """Rows of a code with their labels, in canonical form.

    Attributes
    ----------
    x : scipy.sparse.csr_array, shape [n_rows, n_latents], float32 or float64
        No duplicates, no explicit zeros, only labelled rows, only finite values.
    y : ndarray of int32, shape [n_rows], or scipy.sparse.csr_array of bool, shape [n_rows, n_classes]
        Class ids, or several labels per row.
    """

    x: sp.csr_array
    y: Any

    @property
    def n_rows(self) -> int:
        """Labelled rows."""
        return self.x.shape[0]

    def class_counts(self, n_classes: int) -> np.ndarray:
        """Rows of each class, int64 ``[n_classes]``."""
        if sp.issparse(self.y):
            return np.bincount(self.y.indices, minlength=n_classes).astype(np.int64)
        return np.bincount(self.y, minlength=n_classes).astype(np.int64)


def check_shard(x: Any, y: Any, *, n_latents: int | None = None, n_classes: int | None = None) -> Shard:
    """Check one pair (x, y) and bring it into canonical form; inputs are never changed.

    Parameters
    ----------
    x : scipy sparse matrix or array, torch sparse CSR tensor, or 2-D array, shape [n_rows, n_latents]
        float16 and integers become float32 and float64; float32 and float64 stay. Values smaller than
        2⁻¹²⁶ (1.2e-38, the smallest normal float32) count as zeros.
    y : integer array, shape [n_rows], or sparse matrix, shape [n_rows, n_classes]
        −1 marks an unlabelled row, which is left out everywhere. A sparse `y` is multi-label: its
        non-zeros are the labels.
    n_latents, n_classes : int, optional
        What the other shards have.

    Returns
    -------
    Shard

    Raises
    ------
    ValueError
        If something does not fit; the message names row and column where there is one.
    """
    x = _as_csr(x)
    if n_latents is not None and x.shape[1] != n_latents:
        raise ValueError(f"x has {x.shape[1]} latents (columns), expected {n_latents}")
    if x.shape[1] == 0:
        raise ValueError(f"x is empty: got shape {x.shape}, expected at least one latent")
    if n_classes is not None and n_classes < 1:
        raise ValueError(f"n_classes must be at least 1, got {n_classes}")
    y, keep = _check_labels(y, x.shape[0], n_classes)
    if not x.has_canonical_format:
        x = x.copy()
        x.sum_duplicates()
    lowest = _check_finite(x)
    if keep is not None:
        x, y = x[keep], y[keep]
    if lowest < _TINY:
        tiny = np.abs(x.data) < _TINY
        if tiny.any():
            x = x.copy()
            x.data[tiny] = 0.0
            x.eliminate_zeros()
    return Shard(x, y)


def _as_csr(x: Any) -> sp.csr_array:
    if hasattr(x, "layout") and hasattr(x, "crow_indices"):  # a torch tensor
        import torch

        if x.layout is not torch.sparse_csr:
            raise ValueError(f"x is a torch tensor of layout {x.layout}, expected torch.sparse_csr")
        x = x.detach().cpu()
        values = x.values()
        if values.dtype not in (torch.float32, torch.float64):
            values = values.float()
        parts = (values.numpy(), x.col_indices().numpy(), x.crow_indices().numpy())
        x = sp.csr_array(parts, shape=tuple(x.shape))
    elif sp.issparse(x):
        # A view, so that flags set on it (sorted, canonical) never reach the caller's matrix.
        x = x.tocsr()
        x = sp.csr_array((x.data, x.indices, x.indptr), shape=x.shape)
    elif isinstance(x, np.ndarray):
        if x.ndim != 2:
            raise ValueError(f"x must be two-dimensional [n_rows, n_latents], got shape {x.shape}")
        x = sp.csr_array(x.astype(np.float32) if x.dtype == np.float16 else x)  # SciPy has no float16
    else:
        raise ValueError(f"x must be a sparse CSR matrix [n_rows, n_latents], got {type(x).__name__}")
    check_indices(x, "x")
    if x.dtype in (np.float32, np.float64):
        return x
    if x.dtype == bool:
        return x.astype(np.float32)
    if np.issubdtype(x.dtype, np.integer):
        return x.astype(np.float64)
    raise ValueError(f"x has dtype {x.dtype}, expected a real floating-point or integer type")


def check_indices(a: sp.csr_array, name: str) -> None:
    """Refuse a matrix whose index arrays are broken: SciPy's C code would write where they point."""
    if len(a.indptr) > 1 and (a.indptr[1:] < a.indptr[:-1]).any():
        row = int(np.argmax(a.indptr[1:] < a.indptr[:-1]))
        raise ValueError(f"{name} is no valid CSR matrix: indptr falls at row {row}")
    indices = a.indices[: a.nnz]
    first = last = indices
    if a.has_canonical_format:  # they rise in each row: its ends tell
        rows = np.flatnonzero(np.diff(a.indptr))
        first, last = indices[a.indptr[rows]], indices[a.indptr[rows + 1] - 1]
    if a.nnz and (first.min() < 0 or last.max() >= a.shape[1]):
        at = int(np.argmax((indices < 0) | (indices >= a.shape[1])))
        row = int(np.searchsorted(a.indptr, at, side="right")) - 1
        raise ValueError(f"{name} has column {indices[at]} in row {row}, outside 0 … {a.shape[1] - 1}")


def _check_labels(y: Any, n_rows: int, n_classes: int | None) -> tuple[Any, np.ndarray | None]:
    """Labels in canonical form, and the rows to keep (None: all)."""
    if sp.issparse(y):
        if y.shape[0] != n_rows:
            raise ValueError(f"y has {y.shape[0]} rows, x has {n_rows}")
        if n_classes is not None and y.shape[1] != n_classes:
            raise ValueError(f"y has {y.shape[1]} classes (columns), expected {n_classes}")
        if y.shape[1] == 0:
            raise ValueError("y has no columns: a multi-label y needs at least one class")
        labels = sp.csr_array(y, copy=True).astype(bool)
        check_indices(labels, "y")
        labels.sum_duplicates()
        labels.eliminate_zeros()
        return labels, None
    if hasattr(y, "detach"):  # a torch tensor
        y = y.detach().cpu().numpy()
    y = np.asarray(y)
    if y.ndim != 1 or y.shape[0] != n_rows:
        raise ValueError(f"y has shape {y.shape}, expected one class id per row of x: ({n_rows},)")
    if not (np.issubdtype(y.dtype, np.integer) or y.dtype == bool):
        raise ValueError(f"y has dtype {y.dtype}, expected integer class ids (−1 for an unlabelled row)")
    if y.size == 0:
        return y.astype(np.int32), None
    low, high = int(y.min()), int(y.max())
    top = n_classes - 1 if n_classes is not None else 2**31 - 2
    if low < -1 or high > top:
        row = int(np.argmax((y < -1) | (y > top)))
        raise ValueError(f"y[{row}] = {y[row]} is outside −1 … {top} (−1 marks an unlabelled row)")
    labels = y.astype(np.int32, copy=False)
    return labels, (np.flatnonzero(labels >= 0) if low == -1 else None)


def _check_finite(x: sp.csr_array) -> float:
    """Refuse NaN and infinities; returns the lowest of all values (1 of none)."""
    if x.nnz == 0:
        return 1.0
    # The extremes are NaN or infinite exactly if some value is; no mask of the size of x.
    lowest = x.data.min()
    if np.isfinite(lowest) and np.isfinite(x.data.max()):
        return float(lowest)
    at = int(np.argmin(np.isfinite(x.data)))
    row = int(np.searchsorted(x.indptr, at, side="right")) - 1
    raise ValueError(f"x[{row}, {x.indices[at]}] is {x.data[at]}: x must be finite")


def shards(
    x: Any, y: Any = None, n_classes: int | None = None, n_latents: int | None = None
) -> Iterator[Shard]:
    """Checked shards from any input that `Sparse1DProbe.fit` takes.

    Parameters
    ----------
    x : matrix, or iterable of (x, y) pairs
        A matrix comes with `y`; an iterable of row shards brings its own labels.
    y : labels, optional
        As in `check_shard`.
    n_classes, n_latents : int, optional
        What every shard must have.

    Yields
    ------
    Shard
    """
    if y is not None or not _is_iterable_of_shards(x):
        if y is None:
            raise ValueError("y is missing: give one class id per row of x")
        yield check_shard(x, y, n_latents=n_latents, n_classes=n_classes)
        return
    first = None
    for item in x:
        if not (isinstance(item, tuple | list) and len(item) == 2):
            raise ValueError(f"a row shard must be a pair (x, y), got {type(item).__name__}")
        shard = check_shard(*item, n_latents=n_latents, n_classes=n_classes)
        first = first or shard
        if sp.issparse(shard.y) != sp.issparse(first.y):
            raise ValueError("some shards have class ids and some have a multi-label matrix: use one kind")
        n_latents = shard.x.shape[1]
        if sp.issparse(shard.y):
            n_classes = shard.y.shape[1]
        yield shard
    if first is None:
        raise ValueError("x is an empty iterable: there is nothing to fit")


def _is_iterable_of_shards(x: Any) -> bool:
    return isinstance(x, Iterable) and not (sp.issparse(x) or hasattr(x, "dtype"))


def n_rows(x: Any, y: Any = None) -> int:
    """Rows of `x`, unlabelled ones included, where that can be told without reading it; else 0.

    Parameters
    ----------
    x, y : as for `shards`

    Returns
    -------
    int
    """
    if y is not None:
        return int(x.shape[0])
    try:
        return sum(int(part.shape[0]) for part, _ in x) if isinstance(x, list | tuple) else 0
    except (AttributeError, IndexError, TypeError, ValueError):
        return 0  # no such shards: whoever reads them says what is wrong with them


def can_iterate_again(x: Any) -> bool:
    """Whether a second pass over `x` gives the rows again (a generator is used up by the first)."""
    return not isinstance(x, Iterator)


def columns(
    x: Any,
    y: Any,
    *,
    n_latents: int,
    n_classes: int | None = None,
    latents: np.ndarray | None = None,
    n_events: int = 1 << 21,
) -> Iterator[tuple[int, sp.csc_array, Any]]:
    """The same data the other way round: a few latents at a time, with all their events.

    Parameters
    ----------
    x, y : as for `shards`
        Shards that can be read again are read once per 2²⁶ events, so that no more than
        that is ever held; a generator is read once and held whole.
    n_latents : int
        Columns that `x` must have.
    n_classes : int, optional
        Classes that the labels must have.
    latents : ndarray of int, shape [n], optional
        Only these columns; positions below then refer to this list.
    n_events : int
        About how many events to yield at a time.

    Yields
    ------
    first : int
        Position of the first latent of the block.
    block : csc_array of float32 or float64, shape [n_rows, n_in_block]
    labels : ndarray of int32, shape [n_rows], or csr_array, shape [n_rows, n_classes]
    """
    wanted = np.arange(n_latents) if latents is None else np.asarray(latents)
    if len(wanted) == 0:
        return
    per_pass = len(wanted)
    if y is None and not can_iterate_again(x):
        x = list(x)
    elif y is None:
        counts = np.zeros(n_latents, np.int64)
        for shard in shards(x, y, n_classes, n_latents):
            counts += np.bincount(shard.x.indices, minlength=n_latents)
        per_pass = max(1, len(wanted) * (1 << 26) // max(1 << 26, int(counts[wanted].sum())))
    for start in range(0, len(wanted), per_pass):
        chosen = wanted[start : start + per_pass]
        parts, labels = [], []
        for shard in shards(x, y, n_classes, n_latents):
            part = shard.x if len(chosen) == n_latents else shard.x[:, chosen]
            parts.append(part.tocsc())
            labels.append(shard.y)
        many = sp.csc_array(sp.vstack(parts, format="csc")) if len(parts) > 1 else parts[0]
        y_all = labels[0] if len(labels) == 1 else (stack_labels(labels))
        for first, stop in latent_blocks(many.indptr, n_events):
            begin, end = int(many.indptr[first]), int(many.indptr[stop])
            views = many.data[begin:end], many.indices[begin:end], many.indptr[first : stop + 1] - begin
            yield start + first, sp.csc_array(views, shape=(many.shape[0], stop - first)), y_all


def stack_labels(labels: list[Any]) -> Any:
    """Labels of several shards as those of one: arrays end to end, or sparse matrices one above the other."""
    return sp.csr_array(sp.vstack(labels)) if sp.issparse(labels[0]) else np.concatenate(labels)


def latent_blocks(indptr: np.ndarray, n_events: int) -> Iterator[tuple[int, int]]:
    """Consecutive ranges of latents that hold about `n_events` events each."""
    start, last = 0, len(indptr) - 1
    while start < last:
        stop = int(np.searchsorted(indptr, int(indptr[start]) + n_events, side="right")) - 1
        stop = min(max(stop, start + 1), last)
        yield start, stop
        start = stop
