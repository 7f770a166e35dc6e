"""What every digest has: when a job began and ended, how far it is, its frame for the browser."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from typing import Any, ClassVar, Self

import numpy as np

from interp import events as ev
from interp.live.digest.series import Series


class Digest:
    """Base: what every job has. `state` is filled from its events; a live run may know better.

    The log of a task of a shared-out job may hold nothing but the task's own events (a summary has no
    other): its state, its shards and its error are kept whatever the kind of the digest.
    """

    kind: ClassVar[str] = ""
    events: ClassVar[tuple[type[ev.Event], ...]] = ()

    def __init__(self) -> None:
        self.began = math.nan  # wall-clock seconds
        self.ended = math.nan
        self.latest = math.nan
        self.stopped = False
        self.seconds = math.nan
        self.n_steps = 0
        self.task: ev.TaskBegin | None = None
        self.task_end: ev.TaskEnd | None = None
        self.shard: ev.ShardEnd | None = None
        self.n_rows = self.n_events = 0  # of the shards
        self.shard_seconds = 0.0

    @classmethod
    def of(cls, source: Self | Iterable[ev.Event]) -> Self:
        """The digest itself, or a new one filled with `source`."""
        if isinstance(source, cls):
            return source
        digest = cls()
        for event in source:  # type: ignore[union-attr]
            digest.add(event)
        return digest

    def add(self, event: ev.Event) -> None:
        """Take one event; those of other jobs are ignored."""
        if isinstance(event, (ev.TaskBegin, ev.ShardEnd, ev.TaskEnd)):
            self._take_task(event)
            return
        if not isinstance(event, self.events):
            return
        if self._begins(event) and not math.isnan(self.began):
            task = self.task
            self.__init__()  # type: ignore[misc]  # a log that was continued: the latest run counts
            self.task = task
        if math.isnan(self.began):
            self.began = event.time
        self.latest = event.time
        self.n_steps += event.is_step
        if isinstance(event, self.events[-1]):
            self.ended, self.stopped, self.seconds = event.time, event.stopped, event.seconds  # type: ignore[attr-defined]
        self._take(event)

    def _begins(self, event: ev.Event) -> bool:
        """Whether a job begins with this event."""
        return isinstance(event, self.events[0])

    def _take_task(self, event: ev.Event) -> None:
        if isinstance(event, ev.TaskBegin):
            self.__init__()  # type: ignore[misc]  # the latest attempt counts
            self.task = event
        elif isinstance(event, ev.TaskEnd):
            self.task_end = event
        elif isinstance(event, ev.ShardEnd):
            self.shard = event
            self.n_rows += event.n_rows
            self.n_events += event.n_events
            self.shard_seconds += event.seconds
        self.latest = event.time

    def _take(self, event: ev.Event) -> None:
        raise NotImplementedError

    @property
    def state(self) -> str:
        """``"waiting"``, ``"running"``, ``"stopped"``, ``"done"`` or ``"failed"``, as the events tell."""
        if self.task_end is not None:
            if not self.task_end.error:
                return "done"
            return "stopped" if self.task_end.error.startswith("Cancelled") else "failed"
        if self.task is not None:
            return "running"
        if math.isnan(self.began):
            return "waiting"
        return "running" if math.isnan(self.ended) else "stopped" if self.stopped else "done"

    def elapsed(self, now: float | None = None) -> float:
        """Seconds since the first event; of the whole job, once it has ended."""
        if self.task_end is not None:
            return self.task_end.seconds
        if self.task is None and not math.isnan(self.ended):
            return self.seconds
        began = self.task.time if self.task is not None else self.began
        return 0.0 if math.isnan(began) else max((time.time() if now is None else now) - began, 0.0)

    @property
    def fraction(self) -> float:
        """Share of the work that is done, 0 … 1."""
        if self.state == "done":
            return 1.0
        if self.shard is not None and math.isnan(self.began):
            return min((self.shard.shard + 1) / max(self.shard.n_shards, 1), 1.0)
        return self._fraction()

    def _fraction(self) -> float:
        """The same by the job's own events, while it is not done."""
        raise NotImplementedError

    def eta(self, now: float | None = None) -> float:
        """Seconds left at the mean speed so far; NaN while nothing can be said."""
        if self.state in ("done", "stopped", "failed"):
            return 0.0
        if self.fraction <= 0:
            return math.nan
        return self.elapsed(now) * (1 - self.fraction) / self.fraction

    def _series(self) -> dict[str, Series]:
        return {}

    def _blocks(self) -> dict[str, tuple[tuple[str, ...], np.ndarray]]:
        """Names and values, float32 ``[n_names, n]``, of everything that goes as numbers."""
        return {name: (series.columns, series.pack()) for name, series in self._series().items()}

    def _numbers(self) -> dict[str, Any]:
        return {}

    def frame(self, now: float | None = None) -> tuple[dict[str, Any], bytes]:
        """What a picture needs: plain JSON types, and the histories as one float32 block.

        ``head["series"][name]`` is ``[columns, rows, offset]``; the offset counts numbers.
        """
        layout, blocks, at = {}, [], 0
        for name, (columns, values) in self._blocks().items():
            layout[name] = [columns, values.shape[1], at]
            blocks.append(values)
            at += values.size
        head = {
            "kind": self.kind,
            "state": self.state,
            "fraction": self.fraction,
            "elapsed": self.elapsed(now),
            "eta": finite(self.eta(now)),
            "steps": self.n_steps,
            "task": self._task_says(),
            "series": layout,
            **self._numbers(),
        }
        return head, b"".join(b.tobytes() for b in blocks)

    def _task_says(self) -> str:
        parts = []
        if self.task is not None:
            t = self.task
            parts.append(f"{t.job}, task {t.task + 1:,} of {t.n_tasks:,} on {t.host} (process {t.pid})")
            parts += [f"attempt {t.attempt}"] if t.attempt > 1 else []
        if self.shard is not None:
            speed = self.n_events / max(self.shard_seconds, 1e-9)
            parts.append(f"{self.shard.shard + 1:,} of {self.shard.n_shards:,} shards")
            parts.append(f"{self.n_rows:,} rows, {self.n_events:,} events, {speed:,.0f} events/s")
        return " · ".join(parts)

    def table(self) -> list[list[str]]:
        """The end of it in a few rows of (name, value), for the static table."""
        return [["task", self._task_says()]] if self.task is not None else []


def number(x: float | None) -> float:
    """A float; NaN for what a log could not write."""
    return math.nan if x is None else float(x)


def finite(x: float | None) -> float | None:
    """A float for JSON; None for NaN and infinities."""
    return float(x) if x is not None and math.isfinite(x) else None


def span(seconds: float) -> str:
    """A duration, however short: ``"2.5 s"``, ``"13.4 ms"``, ``"200 µs"``."""
    if seconds >= 1:
        return f"{seconds:.1f} s"
    return f"{1e3 * seconds:.3g} ms" if seconds >= 1e-3 else f"{1e6 * seconds:.0f} µs"
