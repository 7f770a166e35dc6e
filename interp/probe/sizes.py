"""How much to take at a time: measured on the machine, because that decides a factor of ten."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np
import torch

from interp.device import pick_device
from interp.probe.data import shards
from interp.probe.layout import Layout
from interp.probe.nodes import Nodes
from interp.probe.summary import LatentSummary, NodeBlock
from interp.threads import n_threads, shared

__all__ = ["auto_sizes", "measure_blocks", "measure_row_batches", "place", "tuned_block_elements"]

#: The longest iterations that an automatic class slab aims at: short, so that a stop is prompt and a picture
#: moves; not shorter, since evaluations of a few classes at a time cost two to three times as much.
_ITERATION_SECONDS = 0.4
#: … and at no fewer slabs than this, where there are enough classes.
_MIN_SLABS = 3
#: Evaluations in each size of block when the best is looked for; of sizes whose costs are as near as this the
#: smallest is taken, which wastes least where few pairs are left.
_REPEATS, _AS_GOOD = 5, 1.05


def _evaluation(nodes: Sequence[Nodes], n_classes: int, block_elements: int) -> Callable[[], float]:
    """Evaluates all pairs of node sets, a thread each, and returns the seconds that it took."""
    device = nodes[0].device
    state = torch.float32 if device.type == "mps" else torch.float64
    parts = []
    for part in nodes:
        pairs = torch.arange(part.n_rows * n_classes, device=device)
        b = torch.zeros(len(pairs), dtype=state, device=device)
        parts.append((part.layout(pairs, n_classes, block_elements), b, b))

    def evaluate() -> float:
        start = time.perf_counter()
        sums = list(shared(Layout.sums, parts, n_threads(device)))
        if device.type != "cpu":
            sums[-1][0, 0].item()  # wait for the device
        return time.perf_counter() - start

    return evaluate


@cache
def _tuned(device: str, dtype: torch.dtype, threads: int) -> tuple[int, float]:
    del threads  # part of the key only: another number of threads is another measurement
    where = torch.device(device)
    sizes = [1 << k for k in ((15, 16, 17, 18) if where.type == "cpu" else (18, 20, 22, 24))]
    n_nodes, n_classes, rows = 256, 16, 4 * sizes[-1] // (256 * 16)
    x = np.linspace(0.1, 3.0, n_nodes * rows)
    offsets = np.arange(rows + 1) * n_nodes
    made_up = [
        Nodes(offsets, x, np.ones_like(x), np.ones(rows), device=where, dtype=dtype)
        for _ in range(n_threads(where))
    ]
    # In turns, so that what else the machine does slows down all sizes or none.
    evaluations = [_evaluation(made_up, n_classes, size) for size in sizes]
    seconds = np.min([[evaluate() for evaluate in evaluations] for _ in range(_REPEATS)], axis=0)
    costs = seconds / (len(made_up) * rows * n_nodes * n_classes) * 1e9
    best = int(np.argmax(costs <= _AS_GOOD * costs.min()))
    return sizes[best], float(costs[best])


def tuned_block_elements(device: torch.device, dtype: torch.dtype) -> tuple[int, float]:
    """The fastest working set on this machine and its cost: (elements, ns per evaluation).

    Measured once per process, in a twentieth of a second on two cores.
    """
    return _tuned(str(device), dtype, n_threads(device))


def auto_sizes(
    n_nodes: int,
    n_latents: int,
    n_classes: int,
    class_slab_size: int | str = "auto",
    latent_block_size: int | str = "auto",
    *,
    device: torch.device,
    dtype: torch.dtype,
) -> tuple[int, int]:
    """Classes per slab and latents per block, where they are "auto".

    A slab is as wide as an iteration of 0.4 s allows (a stop takes effect between
    iterations), but the classes make at least three slabs. A block has as many latents as make the
    working set that was measured to be the fastest, or all of them where there are fewer.

    Parameters
    ----------
    n_nodes, n_latents, n_classes : int
        Of the problem; `n_nodes` of all latents together.
    class_slab_size, latent_block_size : int or "auto"
        A number is kept (cut to the number of classes).
    device : torch.device
    dtype : torch.dtype
        Where and in which precision the evaluations run.

    Returns
    -------
    tuple of (int, int)
        class_slab_size, latent_block_size.
    """
    elements, ns = tuned_block_elements(device, dtype)
    slab = class_slab_size
    if slab == "auto":
        seconds_per_class = max(1, n_nodes) * ns * 1e-9
        slab = min(max(1, int(_ITERATION_SECONDS / seconds_per_class)), -(-n_classes // _MIN_SLABS))
        slab = -(-n_classes // -(-n_classes // slab))  # slabs of equal size
    slab = min(int(slab), n_classes)
    block = latent_block_size
    if block == "auto":
        block = max(1, min(n_latents, round(elements * n_latents / (max(1, n_nodes) * slab))))
    return slab, int(block)


def place(device: Any, dtype: torch.dtype | None) -> tuple[torch.device, torch.dtype]:
    """Device and precision of a fit: CUDA where there is one, and float64 where the device has it.

    Parameters
    ----------
    device : str, torch.device or None
        What was asked for; None or "auto" to choose.
    dtype : torch.dtype or None
        What was asked for; None to choose.

    Returns
    -------
    device : torch.device
    dtype : torch.dtype
    """
    if device is None or device == "auto":  # not MPS, which has no float64
        device = "cuda" if torch.cuda.is_available() else "cpu"
    device = pick_device(device)
    return device, dtype or (torch.float32 if device.type == "mps" else torch.float64)


def measure_blocks(
    x: Any,
    y: Any = None,
    *,
    class_slab_sizes: Sequence[int],
    latent_block_sizes: Sequence[int],
    repeats: int = 5,
    max_latents: int = 256,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
) -> list[dict[str, float]]:
    """Nanoseconds per (node, pair) evaluation for each setting, on your own data.

    Parameters
    ----------
    x, y : as in `Sparse1DProbe.fit`
        Or a `LatentSummary` as `x`, with no `y`.
    class_slab_sizes, latent_block_sizes : sequence of int
        The grid.
    repeats : int
        Evaluations per setting, after one to warm up.
    max_latents : int
        At most this many latents are used, evenly spaced.
    device : str or torch.device, optional
    dtype : torch.dtype, optional
        Where and in which precision the evaluations run; by default as in `Sparse1DProbe`.

    Returns
    -------
    list of dict
        ``class_slab_size, latent_block_size, ns_per_eval`` (median), ``ns_low, ns_high`` (quartiles) and
        ``bytes``, the working memory of the setting.
    """
    summary = _summary(x, y)
    device, dtype = place(device, dtype)
    alive = np.flatnonzero(summary.n_events > 0)
    chosen = alive[:: max(1, len(alive) // max_latents)][:max_latents]
    blocks = [summary.nodes(l, l + 1) for l in chosen]
    nodes = [
        _joined(part, device, dtype)
        for part in (blocks[k :: n_threads(device)] for k in range(n_threads(device)))
        if part
    ]
    n_nodes = sum(part.n_nodes for part in nodes)
    out = []
    for slab in class_slab_sizes:
        slab = min(int(slab), summary.n_classes)
        for block in latent_block_sizes:
            elements = max(1, int(block * slab * n_nodes / len(chosen)))
            evaluate = _evaluation(nodes, slab, elements)
            evaluate()
            ns = np.array([evaluate() for _ in range(repeats)]) / (n_nodes * slab) * 1e9
            low, middle, high = np.quantile(ns, (0.25, 0.5, 0.75))
            out.append(
                {
                    "class_slab_size": slab,
                    "latent_block_size": int(block),
                    "ns_per_eval": float(middle),
                    "ns_low": float(low),
                    "ns_high": float(high),
                    "bytes": 2 * elements * dtype.itemsize + 25 * 8 * summary.n_latents * slab,
                }
            )
    return out


def _joined(blocks: list[NodeBlock], device: torch.device, dtype: torch.dtype) -> Nodes:
    """Nodes of several latents, a block of one latent each."""
    counts = [len(b.x) for b in blocks]
    x, m = np.concatenate([b.x for b in blocks]), np.concatenate([b.m for b in blocks])
    offsets = np.concatenate([[0], np.cumsum(counts)])
    return Nodes(offsets, x, m, np.ones(len(blocks)), device=device, dtype=dtype)


def measure_row_batches(
    x: Any, y: Any, *, row_batch_sizes: Sequence[int], repeats: int = 3
) -> list[dict[str, float]]:
    """Nanoseconds per event of the summary pass for each `row_batch_size`, on your own data.

    Parameters
    ----------
    x, y : as in `Sparse1DProbe.fit`
    row_batch_sizes : sequence of int
        What to try.
    repeats : int
        Passes per size.

    Returns
    -------
    list of dict
        ``row_batch_size, ns_per_event`` (median), ``ns_low, ns_high`` (quartiles), ``bytes`` at work.
    """
    checked = list(shards(x, y))
    n_events = sum(s.x.nnz for s in checked)
    per_row = n_events / max(1, sum(s.n_rows for s in checked))
    out = []
    for rows in row_batch_sizes:
        ns = np.zeros(repeats)
        for k in range(repeats):
            summary = LatentSummary(checked[0].x.shape[1])
            start = time.perf_counter()
            summary.add_shards(checked, row_batch_size=int(rows))
            ns[k] = (time.perf_counter() - start) / max(1, n_events) * 1e9
        low, middle, high = np.quantile(ns, (0.25, 0.5, 0.75))
        size = int(2 * 8 * per_row * rows)
        out.append(
            {
                "row_batch_size": int(rows),
                "ns_per_event": float(middle),
                "ns_low": float(low),
                "ns_high": float(high),
                "bytes": size,
            }
        )
    return out


def _summary(x: Any, y: Any) -> LatentSummary:
    if isinstance(x, LatentSummary):
        return x
    checked = list(shards(x, y))
    return LatentSummary(checked[0].x.shape[1]).add_shards(checked)
