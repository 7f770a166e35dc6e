"""A capture, as a monitor remembers it."""

from __future__ import annotations

from typing import Any

import numpy as np

from interp import events as ev
from interp.live.digest.base import Digest, finite, span
from interp.live.digest.series import Series


class CaptureDigest(Digest):
    """A capture: speed and memory by batch, seconds by stage, projections of the latest prompt."""

    kind = "capture"
    events = (ev.CaptureBegin, ev.BatchEnd, ev.CaptureEnd)

    #: Tokens and rows of the projections that are shown.
    max_tokens, max_rows = 120, 24

    def __init__(self) -> None:
        super().__init__()
        self.begin: ev.CaptureBegin | None = None
        self.end: ev.CaptureEnd | None = None
        self.last: ev.BatchEnd | None = None
        self.tokens_real = self.tokens_padded = self.tokens_generated = 0
        self.batch_seconds = 0.0
        self.stages: dict[str, float] = {}
        self.shown: ev.BatchEnd | None = None  # the latest with projections
        self.batches = Series(
            {
                "x": "last",
                "prompts": "last",
                "real": "sum",
                "padded": "sum",
                "seconds": "sum",
                "bytes": "max",
                "n_prompts": "mean",
            }
        )

    def _take(self, event: ev.Event) -> None:
        if isinstance(event, ev.BatchEnd):
            e = self.last = event
            self.tokens_real += e.tokens_real
            self.tokens_padded += e.tokens_padded
            self.tokens_generated += e.tokens_generated
            self.batch_seconds += e.seconds
            for name, seconds in e.stage_seconds.items():
                self.stages[name] = self.stages.get(name, 0.0) + seconds
            self.batches.add(
                self.n_steps, e.prompts_done, e.tokens_real, e.tokens_padded, e.seconds, e.bytes_resident,
                e.n_prompts,
            )  # fmt: skip
            if e.projections:
                self.shown = e
        elif isinstance(event, ev.CaptureBegin):
            self.begin = event
        elif isinstance(event, ev.CaptureEnd):
            self.end = event
            if event.stage_seconds:
                self.stages = dict(event.stage_seconds)

    @property
    def prompt_id(self) -> str:
        """The prompt whose projections are shown."""
        return self.shown.prompt_id if self.shown else ""

    @property
    def tokens(self) -> tuple[str, ...]:
        """Its tokens, the first of them if there are many."""
        return self.shown.tokens[: self.max_tokens] if self.shown else ()

    @property
    def projections(self) -> dict[str, np.ndarray]:
        """Name → float32, shape ``[len(tokens)]``, the first rows if there are many."""
        rows = list(self.shown.projections.items())[: self.max_rows] if self.shown else []
        return {name: np.array(values[: self.max_tokens], np.float32) for name, values in rows}

    def _fraction(self) -> float:
        return self.last.prompts_done / max(self.last.prompts_total, 1) if self.last else 0.0

    def _series(self) -> dict[str, Series]:
        return {"batches": self.batches}

    def _blocks(self) -> dict[str, tuple[tuple[str, ...], np.ndarray]]:
        rows = self.projections
        values = np.stack(tuple(rows.values())) if rows else np.empty((0, 0), np.float32)
        return {**super()._blocks(), "projections": (tuple(rows), values)}

    def _numbers(self) -> dict[str, Any]:
        b, last = self.begin, self.last
        seconds = max(self.batch_seconds, 1e-9)
        return {
            "prompts_done": last.prompts_done if last else 0,
            "prompts_total": last.prompts_total if last else b.n_prompts if b else 0,
            "n_batches": last.n_batches if last else b.n_batches if b else 0,
            "resumed": b.n_resumed if b else 0,
            "sites": list(b.sites[:8]) if b else [],
            "n_sites": len(b.sites) if b else 0,
            "tokens_real": self.tokens_real,
            "tokens_padded": self.tokens_padded,
            "tokens_generated": self.tokens_generated,
            "real_per_s": self.tokens_real / seconds,
            "padded_per_s": self.tokens_padded / seconds,
            "bytes": last.bytes_resident if last else 0,
            "bytes_total": b.memory_total if b else 0,
            "estimated_seconds": finite(b.estimated_seconds) if b else None,
            "estimated_bytes": b.estimated_bytes if b else 0,
            "stages": {k: float(v) for k, v in self.stages.items()},
            "prompt_id": self.prompt_id,
            "tokens": list(self.tokens),
        }

    def table(self) -> list[list[str]]:
        n, end = self._numbers(), self.end
        share = self.tokens_real / max(self.tokens_padded, 1)
        rows = [
            *super().table(),
            ["prompts", f"{n['prompts_done']:,} of {n['prompts_total']:,} in {self.n_steps:,} batches"],
            ["tokens", f"{self.tokens_real:,} real, {self.tokens_generated:,} of them generated"],
            ["padding", f"{self.tokens_padded:,} tokens computed, {share:.0%} of them real"],
            ["tokens/s", f"{n['real_per_s']:,.0f} real, {n['padded_per_s']:,.0f} with padding"],
            ["memory", f"{_size(end.bytes_peak if end else n['bytes'])} of {_size(n['bytes_total'])}"],
        ]
        rows.extend([k, span(v)] for k, v in self.stages.items())
        rows.append(["seconds", f"{self.elapsed(self.latest):.2f}"])
        return rows


def _size(n: float) -> str:
    if not n:
        return "?"
    return f"{n / 2**30:.2f} GiB" if n >= 2**30 else f"{n / 2**20:.0f} MiB"
