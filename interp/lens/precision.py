"""What a dtype and a batch cost: finite numbers, peak memory, speed of the forward pass."""

from __future__ import annotations

import ctypes
import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from interp.capture.batching import pad
from interp.events import rss_bytes

if TYPE_CHECKING:
    import pandas as pd

    from interp.capture.model import Model

__all__ = ["finite_table", "memory_table", "speed_table"]

logger = logging.getLogger(__name__)


def finite_table(models: dict[str, Model], texts: list[str]) -> pd.DataFrame:
    """Per dtype and site: finite, largest value, relative error against the first dtype."""
    import pandas as pd

    reference: dict[str, torch.Tensor] = {}
    rows = []
    for dtype, model in models.items():
        # Layer by layer: all sites of all layers need not fit in memory. Attention weights come alone, for
        # they are captured with another attention than the model runs with.
        kinds = [k for k in model.sites.kinds() if k not in ("embed", "attn")]
        groups = [["embed"], *([f"{k}.{i}" for k in kinds] for i in range(model.n_layers))]
        if "attn" in model.sites.kinds():
            groups += [[f"attn.{i}"] for i in range(model.n_layers)]
        for site, x in ((s, x) for group in groups for s, x in _states(model, texts[:32], group).items()):
            row: dict[str, Any] = {"dtype": dtype, "site": site}
            if x is None:
                row |= {"finite": False, "largest": float("inf"), "relative_error": float("nan")}
            else:
                base = reference.setdefault(site, x)
                row |= {"finite": bool(torch.isfinite(x).all()), "largest": float(x.abs().max())}
                row |= {"relative_error": float((x - base).norm() / base.norm().clamp_min(1e-30))}
            rows.append(row)
    return pd.DataFrame(rows)


def _states(model: Model, texts: list[str], sites: list[str]) -> dict[str, torch.Tensor | None]:
    """Rows of each site; None where the model gave numbers that are not finite."""
    from interp.capture.record import capture

    try:
        acts = capture(model, texts, sites=sites)
    except FloatingPointError:
        if len(sites) == 1:
            return {sites[0]: None}
        return {site: x for s in sites for site, x in _states(model, texts, [s]).items()}
    return {site: acts[site].float() for site in sites}


def _batch(
    model: Model, encoded: list[list[int]], start: int, size: int
) -> tuple[torch.Tensor, torch.Tensor]:
    # Prompts repeat when a batch is larger than their number.
    part = [encoded[(start + i) % len(encoded)] for i in range(size)]
    ids, mask, _ = pad(part, model.pad_id, "right")
    return ids.to(model.device), mask.to(model.device)


@torch.no_grad()
def memory_table(models: dict[str, Model], encoded: list[list[int]], batches: Sequence[int]) -> pd.DataFrame:
    """Peak memory of a pass by batch, above what was held before; doubling on a GPU until it is full."""
    import pandas as pd

    from interp.capture.batching import is_out_of_memory, release_memory

    rows = []
    for dtype, model in models.items():
        sizes = list(batches)
        longest = [encoded[-1]]
        while sizes:
            size = sizes.pop(0)
            failed = False
            if size == batches[0]:  # what the very first pass sets up is no batch's
                model.states(*_batch(model, longest, 0, 1))
            before = _reset_peak(model)
            try:
                model.states(*_batch(model, longest, 0, size))
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                failed = True
            peak = _peak(model) - before
            release_memory(model.device)
            rows.append(
                {
                    "dtype": dtype,
                    "batch": size,
                    "tokens": size * len(longest[0]),
                    "fits": not failed,
                    "peak_megabytes": max(peak, 0) / 2**20,
                    "weights_megabytes": model.parameters_bytes / 2**20,
                }
            )
            if failed:
                break
            # A CPU that runs out of memory takes the process with it, so only a GPU is filled.
            if not sizes and model.device.type == "cuda" and size < 2**20:
                sizes = [size * 2]
    return pd.DataFrame(rows)


def _reset_peak(model: Model) -> int:
    """Begin a new peak; return the bytes that are held now."""
    if model.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(model.device)
        return torch.cuda.memory_allocated(model.device)
    try:  # glibc keeps freed memory for the next one who asks: that one's peak would not show
        ctypes.CDLL(None).malloc_trim(0)
    except (OSError, AttributeError, TypeError):
        logger.info("freed memory of this process cannot be given back here: peaks may be too small")
    try:  # Linux: 5 resets the high-water mark of resident memory
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        logger.info("peak memory of this process cannot be reset here: peaks include what came before")
    return rss_bytes()


def _peak(model: Model) -> int:
    if model.device.type == "cuda":
        return torch.cuda.max_memory_allocated(model.device)
    try:
        status = Path("/proc/self/status").read_text()
        return int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM"))) * 1024
    except (OSError, StopIteration):
        return rss_bytes()


@torch.no_grad()
def speed_table(
    models: dict[str, Model], encoded: list[list[int]], batches: Sequence[int], repeats: int
) -> pd.DataFrame:
    """Real tokens per second of the forward pass alone; every round times each cell once, in turn."""
    import pandas as pd

    cells = [(d, b) for b in batches for d in models]
    times: dict[tuple[str, int], list[float]] = {c: [] for c in cells}
    for turn in range(repeats + 1):
        for dtype, size in cells:
            model = models[dtype]
            work = [_batch(model, encoded, i, size) for i in range(0, len(encoded), size)]
            _synchronise(model)
            start = time.perf_counter()
            for ids, mask in work:
                model.states(ids, mask)
            _synchronise(model)
            if turn:  # the first is the warm-up
                real = sum(int(mask.sum()) for _, mask in work)
                times[dtype, size].append(real / (time.perf_counter() - start))
    rows = []
    for (dtype, size), rates in times.items():
        low, middle, high = np.percentile(rates, [25, 50, 75])
        rows.append(
            {
                "dtype": dtype,
                "batch": size,
                "tokens_per_second": middle,
                "quartile_low": low,
                "quartile_high": high,
                "repeats": len(rates),
            }
        )
    return pd.DataFrame(rows)


def _synchronise(model: Model) -> None:
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)
