"""Where the time and the memory go: an estimate before a capture, a table after it."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from interp.capture.batching import describe, memory_total, row_numbers
from interp.capture.model import Model
from interp.events import rss_bytes

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Clock", "Costs", "estimate_costs", "summary", "table"]

#: The stages, in order. "record" is copying rows inside the hooks, "host" bringing them to the CPU in order
#: and seeing that they are finite.
STAGES = ("tokenise", "prefill", "decode", "record", "project", "host", "check", "write")


class Clock:
    """Seconds per stage, by the monotonic clock.

    Host time: on a GPU, work is queued and shows in the stage that waits for it, since nothing here
    synchronises.
    """

    def __init__(self) -> None:
        self.stages: dict[str, float] = {}

    def add(self, stage: str, seconds: float) -> None:
        """Count `seconds` to `stage`."""
        self.stages[stage] = self.stages.get(stage, 0.0) + seconds

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.add(stage, time.perf_counter() - start)

    @property
    def total(self) -> float:
        """Seconds of all stages together."""
        return sum(self.stages.values())

    def since(self, before: dict[str, float]) -> dict[str, float]:
        """Seconds per stage since an earlier copy of `stages`."""
        return {k: v - before.get(k, 0.0) for k, v in self.stages.items() if v > before.get(k, 0.0)}


@dataclass(frozen=True)
class Costs:
    """What a capture is estimated to take.

    Attributes
    ----------
    bytes : int
        Of rows and projections together, in memory or on disk.
    seconds : float
        Of the model's work, from a few passes measured on this machine.
    """

    bytes: int
    seconds: float


def estimate_costs(
    model: Model,
    sites: Sequence[str],
    lengths: Sequence[int],
    max_new_tokens: int,
    *,
    keep: bool,
    n_projections: int = 0,
    batch_tokens: int,
) -> Costs:
    """Estimate before a run.

    Parameters
    ----------
    model : Model
        Its speed is measured once, with a few short passes.
    sites : sequence of str
        Resolved names of what is stored: without those that are the state of another one.
    lengths : sequence of int
        Tokens of the prompts.
    max_new_tokens : int
        New tokens behind each.
    keep : bool
        Whether rows are kept.
    n_projections : int
        Numbers per token from projecting.
    batch_tokens : int
        Padded tokens per batch.

    Returns
    -------
    Costs
    """
    if not lengths:
        return Costs(0, 0.0)
    n_tokens = sum(lengths) + len(lengths) * max_new_tokens
    longest = max(lengths) + max_new_tokens
    row = row_numbers(model, sites, longest) * torch.finfo(model.dtype).bits // 8 if keep else 0
    speed = model.speed
    prefill = sum(lengths) * speed["token"]
    per_batch = max(1, batch_tokens // longest)
    full, rest = divmod(len(lengths), per_batch)
    decode = full * (speed["step"] + per_batch * speed["row"]) + (
        speed["step"] + rest * speed["row"] if rest else 0
    )
    return Costs(int(n_tokens * (row + 4 * n_projections)), prefill + max_new_tokens * decode)


def peak_bytes(device: torch.device) -> int:
    """Bytes in use: the peak on a CUDA device, what is resident now elsewhere."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else rss_bytes()


def build(
    clock: Clock,
    totals: dict[str, int],
    peak: int,
    budget: int,
    n_batches: int,
    n_resumed: int,
    model: Model,
) -> dict[str, Any]:
    """The report of a run, as it stands in the manifest: of its last leg, if it was resumed.

    `n_resumed` prompts were finished before it, and are in none of the other numbers.
    """
    return {
        "load_seconds": model.load_seconds,
        "stages": clock.stages,
        **{f"tokens_{k}": v for k, v in totals.items()},
        "bytes_peak": peak,
        "memory_total": memory_total(model.device),
        "batch_tokens": budget,
        "n_batches": n_batches,
        "n_resumed": n_resumed,
    }


def table(report: dict[str, Any]) -> pd.DataFrame:
    """One row per stage and one for the whole run.

    Returns
    -------
    DataFrame
        Indexed by stage: ``seconds``, ``share`` of the run, and tokens per second ``real`` and ``padded`` of
        the model's passes and of the whole. "load" stands first and is not part of the total: a model is
        loaded once for any number of runs. ``attrs`` holds the rest of the report; its ``n_resumed`` prompts
        were finished by earlier runs in the same folder, and are in none of the other numbers.
    """
    import pandas as pd

    stages = report["stages"]
    total = sum(stages.values())
    tokens = {
        "prefill": (
            report["tokens_real"] - report["tokens_generated"],
            report["tokens_padded"] - report["tokens_generated"],
        ),
        "decode": (report["tokens_generated"], report["tokens_generated"]),
        "total": (report["tokens_real"], report["tokens_padded"]),
    }
    nan = math.nan
    rows = [{"stage": "load", "seconds": report["load_seconds"], "share": nan, "real": nan, "padded": nan}]
    for stage in [*(s for s in STAGES if s in stages), "total"]:
        seconds = stages.get(stage, total)
        real, padded = tokens.get(stage, (nan, nan))
        rows.append(
            {
                "stage": stage,
                "seconds": seconds,
                "share": seconds / total if total else nan,
                "real": real / seconds if seconds else nan,
                "padded": padded / seconds if seconds else nan,
            }
        )
    frame = pd.DataFrame(rows).set_index("stage")
    frame.attrs.update({k: v for k, v in report.items() if k != "stages"})
    return frame


def summary(report: dict[str, Any]) -> str:
    """The report in three sentences: time, padding, and whether the machine is used; a fourth if resumed."""
    stages = report["stages"]
    total = sum(stages.values())
    model_share = (stages.get("prefill", 0.0) + stages.get("decode", 0.0)) / total if total else 0.0
    waste = 1 - report["tokens_real"] / report["tokens_padded"] if report["tokens_padded"] else 0.0
    used = report["bytes_peak"] / report["memory_total"] if report["memory_total"] else 0.0
    n_resumed = report.get("n_resumed", 0)  # older manifests do not say
    earlier = (
        f" {n_resumed:,} prompt(s) were there already, from an earlier run, and are in none of these numbers."
        if n_resumed
        else ""
    )
    return (
        f"{report['tokens_real']:,} tokens in {total:.2f} s, {model_share:.0%} of it inside the model "
        f"(loading took another {report['load_seconds']:.2f} s). Padding was {waste:.1%} of what the model "
        "saw, in "
        f"{report['n_batches']} batch(es) of up to {report['batch_tokens']:,} tokens. Memory in use: "
        f"{describe(report['bytes_peak'])} of {describe(report['memory_total'])} ({used:.0%}).{earlier}"
    )
