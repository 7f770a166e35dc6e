"""The raw events, for the pairs that need them: exact gradients, and the last steps of hard pairs."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch

from interp.probe import data
from interp.probe.data import can_iterate_again
from interp.probe.nodes import Nodes
from interp.probe.sizes import tuned_block_elements
from interp.probe.slab import Part, Problem, Rules
from interp.probe.summary import LatentSummary
from interp.threads import n_threads, shared

__all__ = ["Certificate", "exact_gradient", "make_problem", "polish_pairs"]

#: Events of the latents that are finished together: a stop is heard when some are.
_POLISHED_AT_ONCE = 1 << 18


@dataclass(frozen=True, eq=False, repr=False)
class Certificate:
    """The gradient of the probe's objective on the raw events.

    ``np.asarray(certificate)`` is the scaled size, so ``np.max(certificate) <= tol`` reads as it should.

    Attributes
    ----------
    pairs : ndarray of int64, shape [n_pairs, 2], or None
        (latent, class) of each entry; None: all, and the arrays have shape [n_latents, n_classes].
    grad_b, grad_w : ndarray of float64, shape [n_pairs] or [n_latents, n_classes]
        ∂L/∂b and ∂L/∂w.
    scaled : ndarray of float64, of the same shape
        max(\\|∂L/∂b\\|, \\|∂L/∂w\\| / q), the gradient in the latent's own unit q (RMS of its non-zeros).
    """

    pairs: np.ndarray | None
    grad_b: np.ndarray
    grad_w: np.ndarray
    scaled: np.ndarray

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self.scaled, dtype=dtype, copy=True if copy is None else copy)

    def __len__(self) -> int:
        return len(self.scaled)

    @property
    def shape(self) -> tuple[int, ...]:
        """That of `scaled`."""
        return self.scaled.shape

    def max(self, axis: int | None = None, out: None = None) -> Any:
        """Largest scaled gradient; 0 of no pair.

        Parameters
        ----------
        axis : int, optional
            The largest along it, as ``numpy.max`` has it, which calls this.
        out : None
            As ``numpy.max`` passes it.

        Returns
        -------
        float, or ndarray of float64, shape of `scaled` without `axis`
        """
        return self.scaled.max(axis=axis, out=out, initial=0.0)

    def __repr__(self) -> str:
        if not self.scaled.size:
            return "Certificate(of no pair)"
        at = np.unravel_index(np.argmax(self.scaled), self.shape)
        latent, cls = at if self.pairs is None else self.pairs[at[0]]
        of = f"{self.scaled.size:,} pair" + "s" * (self.scaled.size > 1)
        where = f"latent {latent}, class {cls}"
        return f"Certificate({of}, largest scaled gradient {self.max():.2e}, at {where})"


def make_problem(
    summary: LatentSummary, latents: np.ndarray, moments: tuple, *, device: torch.device, dtype: Any
) -> Problem:
    """The statistics of some latents, in units of their RMS q.

    Parameters
    ----------
    summary : LatentSummary
    latents : ndarray of int, shape [n_rows]
    moments : tuple of ndarray, shapes as of ``summary.moments()``
    device : torch.device
    dtype : torch.dtype
        Of the tensors.

    Returns
    -------
    Problem
    """
    sums, low, high = (of_all[latents] for of_all in moments)
    q = rms(sums)

    def tensor(a: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(a, np.float64)).to(device=device, dtype=dtype)

    return Problem(
        n=summary.n_rows,
        n_zero=tensor(summary.n_rows - sums[:, 0]),
        moments=tensor(sums / q[:, None] ** np.arange(3)),
        x_low=tensor(np.minimum(low, 0.0) / q),
        x_high=tensor(np.maximum(high, 0.0) / q),
        q=tensor(q),
        label_sums=tensor(summary.label_sums[latents] / q[:, None]),
        class_counts=tensor(summary.class_counts),
    )


def rms(moments: np.ndarray) -> np.ndarray:
    """Root mean square of the non-zeros of each latent; 1 for a latent that never fires."""
    return np.sqrt(np.where(moments[:, 0] > 0, moments[:, 2], 1.0) / np.maximum(moments[:, 0], 1.0))


def _raw_nodes(columns: sp.csc_array, q: np.ndarray, device: torch.device) -> Nodes:
    values = columns.data.astype(np.float64)
    return Nodes(columns.indptr.astype(np.int64), values, None, q, device=device, dtype=torch.float64)


def polish_pairs(
    x: Any,
    y: Any,
    summary: LatentSummary,
    pairs: np.ndarray,
    coef: np.ndarray,
    intercept: np.ndarray,
    rules: Rules,
    device: torch.device,
) -> Generator[tuple[np.ndarray, np.ndarray, np.ndarray, Part], None, None]:
    """Finish pairs on the raw events, from where the quadrature rule left them.

    The same LM as everywhere, with one node of weight 1 per event.

    Parameters
    ----------
    x, y : as in `Sparse1DProbe.fit`
        The rows of the summary.
    summary : LatentSummary
    pairs : ndarray of bool, shape [n_latents, n_classes]
    coef, intercept : ndarray of float64, shape [n_latents, n_classes]
        Where to go on from.
    rules : Rules
    device : torch.device

    Yields
    ------
    (latents, classes, chosen, part)
        The members of a group, a mask [len(latents), len(classes)] of its pairs, and the finished pairs.
        Close the generator, and groups under way are given up at the end of their iteration.
    """
    latents = np.flatnonzero(pairs.any(axis=1))
    block_elements, _ = tuned_block_elements(device, torch.float64)
    moments = summary.moments()
    given_up = threading.Event()

    def solve(first: int, columns: sp.csc_array, _: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray, Part]:
        group = latents[first : first + columns.shape[1]]
        if columns.shape[0] != summary.n_rows or (np.diff(columns.indptr) != summary.n_events[group]).any():
            raise ValueError(
                f"x has {columns.shape[0]} labelled rows, the fit saw {summary.n_rows} rows, or they have "
                "other events: give the rows that were fitted"
            )
        chosen_all = pairs[group]
        classes = np.flatnonzero(chosen_all.any(axis=0))
        problem = make_problem(summary, group, moments, device=device, dtype=torch.float64)
        nodes = _raw_nodes(columns, problem.q.cpu().numpy(), device)
        at = np.ix_(group, classes)
        chosen = chosen_all[:, classes]
        part = Part(
            problem,
            nodes,
            torch.from_numpy(classes).to(device),
            rules,
            block_elements,
            start=(
                torch.from_numpy(intercept[at]).to(device),
                torch.from_numpy(coef[at]).to(device) * problem.q[:, None],
            ),
            only=torch.from_numpy(chosen).to(device),
        )
        while not part.done and not given_up.is_set():
            part.iterate()
        return group, classes, chosen, part.gather()

    blocks = data.columns(x, y, n_latents=len(pairs), latents=latents, n_events=_POLISHED_AT_ONCE)
    yield from shared(solve, blocks, n_threads(device), given_up)


def exact_gradient(
    x: Any,
    y: Any,
    coef: np.ndarray,
    intercept: np.ndarray,
    ridge: float,
    pairs: np.ndarray | None = None,
) -> Certificate:
    """Gradient of the objective on the raw events; see `interp.Sparse1DProbe.certify`.

    Parameters
    ----------
    x, y : as in `Sparse1DProbe.fit`
        Shards are read twice, once to count.
    coef, intercept : ndarray of float64, shape [n_latents, n_classes]
    ridge : float
    pairs : ndarray of int, shape [n_pairs, 2], optional
        (latent, class); default all pairs.

    Returns
    -------
    Certificate
    """
    if y is None and not can_iterate_again(x):
        raise ValueError("certify reads x twice: give a list (or any re-iterable) of shards, not a generator")
    device = torch.device("cpu")
    n_latents, n_classes = coef.shape
    wanted = np.ones(coef.shape, bool)
    if pairs is not None:
        pairs = np.asarray(pairs)
        integer = np.issubdtype(pairs.dtype, np.integer) or not len(pairs)
        if pairs.ndim != 2 or pairs.shape[1] != 2 or not integer:
            raise ValueError(
                "pairs must be integers of shape [n_pairs, 2] (latent, class), "
                f"got {pairs.dtype} {pairs.shape}"
            )
        if len(pairs) and ((pairs < 0) | (pairs >= coef.shape)).any():
            raise ValueError(f"pairs must lie within {n_latents} latents × {n_classes} classes")
        wanted = np.zeros(coef.shape, bool)
        pairs = pairs.astype(np.int64)
        wanted[pairs[:, 0], pairs[:, 1]] = True
    latents = np.flatnonzero(wanted.any(axis=1))
    grad_b, grad_w, scaled = (np.zeros(coef.shape) for _ in range(3))
    block_elements, _ = tuned_block_elements(device, torch.float64)
    rules = Rules(0, 0.0, ridge, 0.0, 0.0, 0.0, 0.0, 0)

    def evaluate(first: int, columns: sp.csc_array, labels: Any) -> None:
        group = latents[first : first + columns.shape[1]]
        summary = LatentSummary(len(group), n_classes).add_columns(columns, labels)
        every = np.arange(len(group))
        problem = make_problem(summary, every, summary.moments(), device=device, dtype=torch.float64)
        nodes = _raw_nodes(columns, problem.q.cpu().numpy(), device)
        start = (
            torch.from_numpy(intercept[group]).to(device),
            torch.from_numpy(coef[group]).to(device) * problem.q[:, None],
        )
        only = torch.from_numpy(wanted[group]).to(device)
        every_class = torch.arange(n_classes, device=device)
        part = Part(problem, nodes, every_class, rules, block_elements, start=start, only=only)
        g = part.g.cpu().numpy().reshape(2, len(group), n_classes)
        grad_b[group], grad_w[group] = g[0], g[1] * problem.q.cpu().numpy()[:, None]
        scaled[group] = np.abs(g).max(axis=0)

    blocks = data.columns(x, y, n_latents=n_latents, n_classes=n_classes, latents=latents)
    deque(shared(evaluate, blocks, n_threads(device)), maxlen=0)
    if pairs is None:
        return Certificate(None, grad_b, grad_w, scaled)
    at = pairs[:, 0], pairs[:, 1]
    return Certificate(pairs, grad_b[at], grad_w[at], scaled[at])
