"""The job that took 18 hours, on made-up data of its size: ``python -m interp bench seed-scale``.

5.6 million rows (22,000 images × 256 patches) × 400 events, 32,768 latents, 151 classes. The shards are made
from seeds as they are needed and never kept; a pass over them is one pass over 2e9 events. What is timed is
the library's work alone, stage by stage; the making of the data is reported beside it.
"""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch

from interp.events import bar, peak_rss_bytes
from interp.files import write_text
from interp.probe import LatentSummary, Sparse1DProbe
from interp.probe.data import shards
from interp.threads import n_threads, shared

__all__ = ["SeedScaleShards", "seed_scale"]

_ROWS, _PER_ROW, _LATENTS, _CLASSES = 22_000 * 256, 400, 32_768, 151
#: Rows of a shard, and shards made and handed to the library at a time.
_SHARD_ROWS, _TOGETHER = 100 * 256, 4
#: Values: log-normal with median 0.82 and 99.9th percentile 45, cut off at 84.
_MEDIAN, _SIGMA, _MAX = 0.82, 1.296, 84.0


class SeedScaleShards:
    """Row shards (x, y) with the statistics of ADE20K patches under a sparse autoencoder, from a seed.

    Classes of very unequal size; latents from one on half of the rows to rare ones, a thirtieth of
    them dead; a fifth of a row's events in latents that prefer its class, where values are larger. Iterating
    again makes the same shards again.

    Parameters
    ----------
    fraction : float
        Share of the 5.6M rows.
    seed : int
    n_latents : int
        Columns.
    """

    def __init__(self, fraction: float = 1.0, seed: int = 0, n_latents: int = _LATENTS) -> None:
        if not 0.0 < fraction <= 1.0:
            raise ValueError(f"fraction must lie in (0, 1], got {fraction}")
        if n_latents < 2 * _CLASSES:
            raise ValueError(f"n_latents must be at least {2 * _CLASSES}, got {n_latents}")
        self.n_rows, self.n_latents = max(256, round(_ROWS * fraction)), n_latents
        self.seed = seed
        self.seconds = 0.0  # spent on making data, all passes
        share = 1.0 / (1.0 + np.arange(_CLASSES)) ** 1.1
        self._cumulative = np.cumsum(share / share.sum())

    def __len__(self) -> int:
        return -(-self.n_rows // _SHARD_ROWS)

    def __iter__(self) -> Iterator[tuple[sp.csr_array, np.ndarray]]:
        for first in range(0, len(self), _TOGETHER):
            start = time.perf_counter()
            which = ((k,) for k in range(first, min(first + _TOGETHER, len(self))))
            made = list(shared(self.make, which, n_threads()))
            self.seconds += time.perf_counter() - start
            yield from made

    def make(self, k: int) -> tuple[sp.csr_array, np.ndarray]:
        """Shard `k`: x, float32 [n_rows, n_latents], and y, class ids."""
        n_rows = min(_SHARD_ROWS, self.n_rows - k * _SHARD_ROWS)
        rng = np.random.default_rng([self.seed, k])
        y = np.searchsorted(self._cumulative, rng.random(n_rows)).clip(max=_CLASSES - 1)
        alive = self.n_latents - self.n_latents // 30
        n_own = _PER_ROW // 5
        # One latent from each of equally likely strata; the favourites of the row's class take a fifth.
        place = np.arange(_PER_ROW - n_own, dtype=np.float32) + rng.random(
            (n_rows, _PER_ROW - n_own), dtype=np.float32
        )
        latent = np.empty((n_rows, _PER_ROW), np.int32)
        latent[:, n_own:] = alive * (place / (_PER_ROW - n_own)) ** 2
        per_class = alive // _CLASSES
        own = (rng.random((n_rows, n_own), dtype=np.float32) ** 2 * per_class).astype(np.int32)
        # The low bit marks a favourite through the sort.
        latent *= 2
        latent[:, :n_own] = 2 * (own * _CLASSES + y[:, None]) + 1
        np.minimum(latent, 2 * alive - 1, out=latent)
        latent.sort(axis=1)
        favourite = (latent & 1).astype(bool)
        latent >>= 1
        new = np.ones(latent.shape, bool)
        np.not_equal(latent[:, 1:], latent[:, :-1], out=new[:, 1:])
        value = rng.standard_normal(latent.shape, dtype=np.float32)
        value *= _SIGMA
        value += np.where(favourite, np.float32(np.log(_MEDIAN) + 0.7), np.float32(np.log(_MEDIAN)))
        np.exp(value, out=value)
        np.minimum(value, _MAX, out=value)
        indptr = np.concatenate([[0], np.cumsum(new.sum(axis=1))]).astype(np.int32)
        return sp.csr_array((value[new], latent[new], indptr), shape=(n_rows, self.n_latents)), y


def seed_scale(
    fraction: float = 1.0,
    *,
    seed: int = 0,
    n_latents: int = _LATENTS,
    n_sampled: int = 1000,
    out: str | os.PathLike[str] | None = None,
) -> dict[str, Any]:
    """Stream the shards through summary, fit and confusion, and certify a sample of the pairs.

    Parameters
    ----------
    fraction : float
        Share of the rows.
    seed : int
    n_latents : int
        Columns of the code.
    n_sampled : int
        Pairs whose gradient is evaluated on the raw events.
    out : path, optional
        Folder for ``seed_scale.json``.

    Returns
    -------
    dict
        Seconds by stage, ns per event, peak resident bytes, the largest exact gradient, status counts.
    """
    data = SeedScaleShards(fraction, seed, n_latents)
    seconds: dict[str, float] = {}

    def timed(stage: str, work: Any, *args: Any) -> Any:
        """Time a stage, without the making of data inside it."""
        before, start = data.seconds, time.perf_counter()
        result = work(*args)
        spent = time.perf_counter() - start - (data.seconds - before)
        seconds[stage] = seconds.get(stage, 0.0) + spent
        return result

    summary = LatentSummary(n_latents, _CLASSES)
    with bar(len(data), "summary", "shard") as shown:
        for group in _groups(data):
            timed("summary", lambda group=group: summary.add_shards(shards(group, None, _CLASSES, n_latents)))
            shown.update(len(group))
    probe = timed("fit", Sparse1DProbe().fit_summary, summary)
    n_coarse = probe.status_counts().get("needs_polish", 0)
    if n_coarse:
        timed("polish", probe.polish, data)
    counts = timed("confusion", probe.confusion, _bar(data, "confusion"))
    compute = sum(seconds.values())

    rng = np.random.default_rng(seed)
    latents = rng.choice(np.flatnonzero(summary.n_events), min(n_sampled, 500), replace=False)
    pairs = np.stack([rng.choice(latents, n_sampled), rng.integers(0, _CLASSES, n_sampled)], axis=1)
    certificate = timed("certify (not counted)", probe.certify, data, None, pairs)

    n_events = int(summary.n_events.sum())
    result = {
        "rows": summary.n_rows,
        "events": n_events,
        "latents": n_latents,
        "classes": _CLASSES,
        "pairs": n_latents * _CLASSES,
        "fraction": fraction,
        "seed": seed,
        "seconds": seconds,
        "compute_seconds": compute,
        "ns_per_event": compute / n_events * 1e9,
        "making_data_seconds": data.seconds,
        "peak_rss_gb": peak_rss_bytes() / 1e9,
        "largest_exact_gradient": float(certificate.max()),
        "sampled_pairs": len(pairs),
        "iterations_mean": float(probe.n_iter_.mean()),
        "iterations_max": int(probe.n_iter_.max()),
        "failed_steps": int(probe.n_fail_.sum()),
        "polished_pairs": n_coarse,
        "status_counts": probe.status_counts(),
        "true_positives": int(counts.tp.sum()),
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}",
    }
    if out is not None:
        folder = Path(out)
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / "seed_scale.json", json.dumps(result, indent=2) + "\n")
    return result


def report(result: dict[str, Any]) -> str:
    """What `seed_scale` returned, as text, beside the arithmetic of the published solver."""
    lines = [
        f"{result['rows']:,} rows, {result['events']:,} events, {result['latents']:,} latents × "
        f"{result['classes']} classes = {result['pairs']:,} pairs",
        *(f"  {stage:24s}{s:9.1f} s" for stage, s in result["seconds"].items()),
        f"  {'compute':24s}{result['compute_seconds']:9.1f} s   {result['ns_per_event']:.1f} ns per event",
        f"  {'making the data':24s}{result['making_data_seconds']:9.1f} s   (all passes; not counted)",
        f"  peak memory {result['peak_rss_gb']:.2f} GB",
        f"  largest exact gradient of {result['sampled_pairs']:,} sampled pairs: "
        f"{result['largest_exact_gradient']:.1e}",
        f"  iterations: {result['iterations_mean']:.1f} on average, {result['iterations_max']} at most; "
        f"{result['failed_steps']:,} failed steps; {result['polished_pairs']:,} pairs finished on the events",
        f"  {result['status_counts']}",
    ]
    theirs = 35.0 * 19 * 100
    lines.append(f"The published arithmetic: 35 s × 19 slabs × 100 iterations = {theirs:,.0f} s = 18 hours.")
    if result["fraction"] == 1.0 and result["latents"] == _LATENTS:
        lines.append(f"Ratio: {theirs / result['compute_seconds']:,.0f}, on this CPU beside an A100.")
    return "\n".join(lines)


def _groups(data: SeedScaleShards) -> Iterator[list[tuple[sp.csr_array, np.ndarray]]]:
    group = []
    for shard in data:
        group.append(shard)
        if len(group) == _TOGETHER:
            yield group
            group = []
    if group:
        yield group


def _bar(data: SeedScaleShards, name: str) -> Iterator[tuple[sp.csr_array, np.ndarray]]:
    with bar(len(data), name, "shard") as shown:
        for shard in data:
            yield shard
            shown.update(1)
