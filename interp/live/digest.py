"""What a monitor remembers of a job: a few numbers and short histories, whatever the number of events.

A digest takes events (`Digest.add`) and answers with a frame: a small dictionary and one block of
float32 numbers (`Digest.frame`). The browser draws the frame, `interp.live.plots` draws the same
digest with matplotlib. No history grows: a `Series` that is full merges its neighbours two by two.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Self

import numpy as np

from interp import events as ev

__all__ = ["CaptureDigest", "Digest", "FitDigest", "LensDigest", "Series"]

GRADES = ("A", "B", "C", "U")


class Series:
    """Rows of numbers in constant memory.

    Parameters
    ----------
    columns : dict of str to str
        Name of each column and how two neighbours become one: ``"first"``, ``"last"``, ``"min"``,
        ``"max"``, ``"sum"`` or ``"mean"`` (weighted by the rows behind each). NaN stands for "not
        known" and gives way to a number.
    capacity : int
        Rows kept, even and at least 4. When they are full, pairs of neighbours are merged and every
        later row stands for twice as many.

    Notes
    -----
    After m rows the series holds between capacity/2 and capacity rows (fewer at the beginning), each
    merged from the same power of two; only the last may still be filling.
    """

    def __init__(self, columns: Mapping[str, str], capacity: int = 512) -> None:
        if capacity < 4 or capacity % 2:
            raise ValueError(f"Series: capacity must be even and >= 4, got {capacity}")
        self.columns = tuple(columns)
        unknown = set(columns.values()) - {"first", "last", "min", "max", "sum", "mean"}
        if unknown:
            raise ValueError(f"Series: unknown rule {sorted(unknown)[0]!r}")
        self._rules = tuple(columns.values())
        self._data = np.full((capacity, len(columns)), np.nan)
        self._weight = np.zeros(capacity)
        self._stride = 1
        self._n = 0
        # The last row while it fills: a plain list, several times cheaper than a NumPy row per event.
        self._open: list[float] = []
        self._filled = 0

    def __len__(self) -> int:
        return self._n

    @property
    def stride(self) -> int:
        """Rows given to `add` behind each row kept."""
        return self._stride

    def add(self, *row: float) -> None:
        """Append a row, one number per column."""
        if self._filled and self._filled < self._stride:
            self._merge_open(row)
            return
        self._sync()
        if self._n == len(self._data):
            self._halve()
        self._n += 1
        self._open, self._filled = list(row), 1

    def _merge_open(self, row: tuple[float, ...]) -> None:
        kept, w = self._open, self._filled
        for i, (rule, b) in enumerate(zip(self._rules, row, strict=True)):
            a = kept[i]
            if b != b or (rule == "first" and a == a):  # NaN is the number that is not itself
                continue
            if a != a or rule == "last":
                kept[i] = b
            elif rule == "mean":
                kept[i] = (w * a + b) / (w + 1)
            elif rule == "max":
                kept[i] = a if a > b else b
            elif rule == "min":
                kept[i] = a if a < b else b
            else:
                kept[i] = a + b
        self._filled += 1

    def _sync(self) -> None:
        if self._n:
            self._data[self._n - 1] = self._open
            self._weight[self._n - 1] = self._filled

    def _halve(self) -> None:
        a, b = self._data[0::2], self._data[1::2]
        wa, wb = self._weight[0::2], self._weight[1::2]
        half = len(self._data) // 2
        merged = np.where(np.isnan(a), b, a)  # "first", and whatever only one of the two knows
        both = ~np.isnan(a) & ~np.isnan(b)
        two = {
            "last": b,
            "min": np.minimum(a, b),
            "max": np.maximum(a, b),
            "sum": a + b,
            "mean": (wa[:, None] * a + wb[:, None] * b) / (wa + wb)[:, None],
        }
        for i, rule in enumerate(self._rules):
            if rule != "first":
                merged[:, i] = np.where(both[:, i], two[rule][:, i], merged[:, i])
        self._data[:half], self._weight[:half] = merged, wa + wb
        self._n, self._stride = half, 2 * self._stride
        self._open, self._filled = list(self._data[half - 1]), self._stride

    def __getitem__(self, name: str) -> np.ndarray:
        """One column, shape ``[len(self)]``, float64 (a copy)."""
        self._sync()
        return self._data[: self._n, self.columns.index(name)].copy()

    def pack(self) -> np.ndarray:
        """All columns one after the other, float32, shape ``[n_columns * len(self)]``."""
        self._sync()
        return self._data[: self._n].T.astype(np.float32).ravel()


class Digest:
    """Base: what every job has. `state` is filled from its events; a live run may know better."""

    kind: ClassVar[str] = ""
    events: ClassVar[tuple[type[ev.Event], ...]] = ()

    def __init__(self) -> None:
        self.began = math.nan  # wall-clock seconds
        self.ended = math.nan
        self.latest = math.nan
        self.stopped = False
        self.seconds = math.nan
        self.n_steps = 0
        self.version = 0

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
        if not isinstance(event, self.events):
            return
        if isinstance(event, self.events[0]) and not math.isnan(self.began):
            self.__init__()  # type: ignore[misc]  # a log that was continued: the latest run counts
        if math.isnan(self.began):
            self.began = event.time
        self.latest = event.time
        self.version += 1
        self.n_steps += event.is_step
        if isinstance(event, self.events[-1]):
            self.ended, self.stopped, self.seconds = event.time, event.stopped, event.seconds  # type: ignore[attr-defined]
        self._take(event)

    def _take(self, event: ev.Event) -> None:
        raise NotImplementedError

    @property
    def state(self) -> str:
        """``"waiting"``, ``"running"``, ``"stopped"`` or ``"done"``, as far as the events tell."""
        if math.isnan(self.began):
            return "waiting"
        return "running" if math.isnan(self.ended) else "stopped" if self.stopped else "done"

    def elapsed(self, now: float | None = None) -> float:
        """Seconds since the first event; of the whole job, once it has ended."""
        if math.isnan(self.began):
            return 0.0
        if not math.isnan(self.ended):
            return self.seconds
        return max((time.time() if now is None else now) - self.began, 0.0)

    @property
    def fraction(self) -> float:
        """Share of the work that is done, 0 … 1."""
        raise NotImplementedError

    def eta(self, now: float | None = None) -> float:
        """Seconds left at the mean speed so far; NaN while nothing can be said."""
        if self.state in ("done", "stopped"):
            return 0.0
        if self.fraction <= 0:
            return math.nan
        return self.elapsed(now) * (1 - self.fraction) / self.fraction

    def _series(self) -> dict[str, Series]:
        return {}

    def _numbers(self) -> dict[str, Any]:
        return {}

    def frame(self, now: float | None = None) -> tuple[dict[str, Any], bytes]:
        """What a picture needs: plain JSON types, and the histories as one float32 block.

        ``head["series"][name]`` is ``[columns, rows, offset]``; the offset counts numbers.
        """
        layout, blocks, at = {}, [], 0
        for name, series in self._series().items():
            layout[name] = [series.columns, len(series), at]
            blocks.append(series.pack())
            at += len(blocks[-1])
        head = {
            "kind": self.kind,
            "state": self.state,
            "fraction": self.fraction,
            "elapsed": self.elapsed(now),
            "eta": _finite(self.eta(now)),
            "steps": self.n_steps,
            "series": layout,
            **self._numbers(),
        }
        return head, b"".join(b.tobytes() for b in blocks)

    def table(self) -> list[list[str]]:
        """The end of it in a few rows of (name, value), for the static table."""
        raise NotImplementedError


class FitDigest(Digest):
    """A probe fit: pairs, lambda, loss and gradient by iteration, seconds by slab."""

    kind = "fit"
    events = (ev.FitBegin, ev.SlabBegin, ev.IterationEnd, ev.SlabEnd, ev.FitEnd)

    def __init__(self) -> None:
        super().__init__()
        self.begin: ev.FitBegin | None = None
        self.end: ev.FitEnd | None = None
        self.slab: ev.SlabBegin | None = None
        self.last: ev.IterationEnd | None = None
        self.n_fail = self.n_fail_slab = 0
        self.n_slabs_done = self.n_pairs_done = self.n_iter_done = 0
        self.slab_began, self.slab_seconds = 0, 0.0
        self.iterations = Series(
            {
                "x": "last",
                "slab": "last",
                "active": "mean",
                "inert": "mean",
                "fail": "max",  # a single failure must not vanish in an average
                "rejected": "mean",
                "lam_min": "min",
                "lam_q1": "mean",
                "lam_median": "mean",
                "lam_q3": "mean",
                "lam_max": "max",
                "loss_mean": "mean",
                "loss_max": "max",
                "grad": "max",
                "seconds": "mean",
            }
        )
        self.slabs = Series(
            {
                "slab": "first",
                "start": "min",
                "stop": "max",
                "seconds": "mean",
                "n_iter": "mean",
                "fail": "sum",
                "x": "last",
            },
            capacity=128,
        )

    def _take(self, event: ev.Event) -> None:
        if isinstance(event, ev.IterationEnd):
            e = self.last = event
            self.n_fail_slab += e.n_fail
            self.slab_seconds += e.seconds
            self.iterations.add(
                self.n_steps, e.slab, e.n_active, e.n_inert, e.n_fail, e.n_rejected,
                _number(e.lam_min), _number(e.lam_q1), _number(e.lam_median), _number(e.lam_q3),
                _number(e.lam_max), _number(e.loss_mean), _number(e.loss_max), _number(e.grad_max), e.seconds,
            )  # fmt: skip
        elif isinstance(event, ev.SlabBegin):
            self.slab, self.slab_began = event, self.n_steps
            self.n_fail_slab, self.slab_seconds = 0, 0.0
        elif isinstance(event, ev.SlabEnd):
            self.slab = None
            self.n_fail, self.n_fail_slab = self.n_fail + event.n_fail, 0
            self.n_slabs_done += 1
            self.n_pairs_done += event.n_pairs
            self.n_iter_done += event.n_iter
            self.slabs.add(
                event.slab,
                event.class_start,
                event.class_stop,
                event.seconds,
                event.n_iter,
                event.n_fail,
                self.n_steps,
            )
        elif isinstance(event, ev.FitBegin):
            self.begin, self.began = event, event.time - event.summary_seconds
        elif isinstance(event, ev.FitEnd):
            self.end, self.slab = event, None

    @property
    def n_slabs(self) -> int:
        """Slabs of the whole fit (0: not known yet)."""
        return self.begin.n_slabs if self.begin else self.slab.n_slabs if self.slab else 0

    @property
    def fraction(self) -> float:
        if self.state == "done":
            return 1.0
        if not self.n_slabs:
            return 0.0
        inside = 0.0
        if self.slab is not None and self.last is not None:
            done = self.n_steps - self.slab_began
            if self.n_slabs_done:
                inside = done / max(self.n_iter_done / self.n_slabs_done, done + 1)
            else:  # nothing to compare with yet: pairs leave roughly as iterations pass
                inside = 0.9 * (1 - (self.last.n_active / max(self.last.n_pairs, 1)))
        # The last per cent is for the pairs that are finished on the raw events.
        return min((self.n_slabs_done + inside) / self.n_slabs, 0.99)

    def _series(self) -> dict[str, Series]:
        return {"iterations": self.iterations, "slabs": self.slabs}

    def _numbers(self) -> dict[str, Any]:
        b, slab, last = self.begin, self.slab, self.last
        out: dict[str, Any] = {
            "n_fail": self.end.n_fail if self.end else self.n_fail + self.n_fail_slab,
            "pairs_done": self.n_pairs_done,
            "pairs_total": b.n_latents * b.n_classes if b else 0,
            "n_slabs": self.n_slabs,
            "slabs_done": self.n_slabs_done,
            "bytes": last.bytes_resident if last else 0,
            "tol": b.tol if b else None,
            "slab": None,
        }
        if slab is not None:
            out["slab"] = [slab.slab, slab.class_start, slab.class_stop]
            out["slab_seconds"] = self.slab_seconds
        if last is not None:
            out["active"], out["inert"], out["rejected"] = last.n_active, last.n_inert, last.n_rejected
        if b:
            out["problem"] = {
                "rows": b.n_rows, "latents": b.n_latents, "classes": b.n_classes, "events": b.n_events,
                "nodes": b.n_nodes, "method": b.method, "device": b.device,
                "sizes": [b.class_slab_size, b.latent_block_size, b.row_batch_size],
            }  # fmt: skip
        if self.end:
            out["status"] = self.end.status_counts
            out["polished"] = self.end.n_polished
        return out

    def table(self) -> list[list[str]]:
        b, end = self.begin, self.end
        rows = []
        if b:
            rows.append(["problem", f"{b.n_latents:,} latents × {b.n_classes:,} classes, {b.n_rows:,} rows"])
            rows.append(["events", f"{b.n_events:,} in {b.n_nodes:,} nodes ({b.method})"])
            batch = b.row_batch_size or "auto"
            rows.append(["sizes", f"slab {b.class_slab_size}, block {b.latent_block_size}, rows {batch}"])
        rows.append(["iterations", f"{self.n_steps:,} in {self.n_slabs_done:,} slabs"])
        rows.append(["n_fail", f"{self._numbers()['n_fail']:,}"])
        if end:
            rows.extend([k, f"{v:,}"] for k, v in end.status_counts.items() if v)
            rows.append(["polished", f"{end.n_polished:,}"])
        rows.append(["seconds", f"{self.elapsed(self.latest):.2f}"])
        return rows


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
        self.prompt_id = ""
        self.tokens: tuple[str, ...] = ()
        self.projections: dict[str, tuple[float, ...]] = {}
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
                self.prompt_id = e.prompt_id
                self.tokens = e.tokens[: self.max_tokens]
                rows = list(e.projections.items())[: self.max_rows]
                self.projections = {k: tuple(v[: self.max_tokens]) for k, v in rows}
        elif isinstance(event, ev.CaptureBegin):
            self.begin = event
        elif isinstance(event, ev.CaptureEnd):
            self.end = event
            if event.stage_seconds:
                self.stages = dict(event.stage_seconds)

    @property
    def fraction(self) -> float:
        if self.state == "done":
            return 1.0
        return self.last.prompts_done / max(self.last.prompts_total, 1) if self.last else 0.0

    def _series(self) -> dict[str, Series]:
        return {"batches": self.batches}

    def _numbers(self) -> dict[str, Any]:
        b, last = self.begin, self.last
        seconds = max(self.batch_seconds, 1e-9)
        out: dict[str, Any] = {
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
            "estimated_seconds": _finite(b.estimated_seconds) if b else None,
            "estimated_bytes": b.estimated_bytes if b else 0,
            "stages": {k: float(v) for k, v in self.stages.items()},
            "prompt_id": self.prompt_id,
            "tokens": list(self.tokens),
            "projections": {k: [_finite(x) for x in v] for k, v in self.projections.items()},
        }
        return out

    def table(self) -> list[list[str]]:
        n, end = self._numbers(), self.end
        share = self.tokens_real / max(self.tokens_padded, 1)
        rows = [
            ["prompts", f"{n['prompts_done']:,} of {n['prompts_total']:,} in {self.n_steps:,} batches"],
            ["tokens", f"{self.tokens_real:,} real, {self.tokens_generated:,} of them generated"],
            ["padding", f"{self.tokens_padded:,} tokens computed, {share:.0%} of them real"],
            ["tokens/s", f"{n['real_per_s']:,.0f} real, {n['padded_per_s']:,.0f} with padding"],
            ["memory", f"{_bytes(end.bytes_peak if end else n['bytes'])} of {_bytes(n['bytes_total'])}"],
        ]
        rows.extend([k, f"{v:.2f} s"] for k, v in self.stages.items())
        rows.append(["seconds", f"{self.elapsed(self.latest):.2f}"])
        return rows


class LensDigest(Digest):
    """A lens training: grades, F1 by iteration over all lenses, and the latest lenses."""

    kind = "lens"
    events = (ev.TrainBegin, ev.LensIteration, ev.LensEnd, ev.TrainEnd)

    #: Iterations and F1 bins of the learning-curve histogram; lenses with a curve or row of their own.
    n_iterations, n_bins, max_curves, max_rows = 64, 100, 48, 256

    def __init__(self) -> None:
        super().__init__()
        self.begin: ev.TrainBegin | None = None
        self.end: ev.TrainEnd | None = None
        self.grades = dict.fromkeys(GRADES, 0)
        self.n_lenses = self.n_active = 0
        self.extra_iterations = 0
        # How many lenses had which F1 in which iteration: quartiles in constant memory.
        self._f1 = np.zeros((self.n_iterations, self.n_bins), np.int64)
        self._samples = np.zeros(self.n_iterations)
        self.curves: dict[str, list[tuple[float, float]]] = {}
        self.rows: dict[str, dict[str, Any]] = {}
        self.growth = Series({"x": "last", **dict.fromkeys(GRADES, "last")}, capacity=256)
        self.lenses = Series({"samples": "mean", "f1": "mean", "score": "mean"}, capacity=256)

    def _take(self, event: ev.Event) -> None:
        if isinstance(event, ev.LensIteration):
            e = event
            self.n_active, self.n_lenses = e.n_active, e.n_lenses
            row = min(e.iteration, self.n_iterations) - 1
            if not math.isnan(_number(e.f1)):
                self._f1[row, min(int(e.f1 * self.n_bins), self.n_bins - 1)] += 1
                self._samples[row] += e.n_samples
                if e.concept in self.curves or len(self.curves) < self.max_curves:
                    curve = self.curves.setdefault(e.concept, [])
                    if len(curve) < self.n_iterations:
                        curve.append((e.n_samples, e.f1))
        elif isinstance(event, ev.LensEnd):
            grade = event.grade if event.grade in self.grades else "U"
            self.grades[grade] += 1
            self.n_lenses = event.n_lenses
            self.extra_iterations += event.extra_iterations
            self.growth.add(event.n_done, *self.grades.values())
            self.lenses.add(event.n_samples, _number(event.f1), _number(event.score))
            self.rows.pop(event.concept, None)
            self.rows[event.concept] = {
                "term": event.term, "level": event.level, "grade": grade, "score": _finite(event.score),
                "low": _finite(event.score_low), "high": _finite(event.score_high), "f1": _finite(event.f1),
                "samples": event.n_samples, "iterations": event.n_iter, "reason": event.stop_reason,
            }  # fmt: skip
            if len(self.rows) > self.max_rows:
                del self.rows[next(iter(self.rows))]
        elif isinstance(event, ev.TrainBegin):
            self.begin, self.n_lenses = event, event.n_lenses
        elif isinstance(event, ev.TrainEnd):
            self.end = event

    @property
    def n_done(self) -> int:
        """Lenses graded so far."""
        return sum(self.grades.values())

    @property
    def fraction(self) -> float:
        if self.state == "done":
            return 1.0
        if not self.n_lenses:
            return 0.0
        # A lens that has stopped growing is nearly done; it is graded at the end.
        grown = (self.n_lenses - self.n_active) / self.n_lenses if self.n_steps else 0.0
        return min(max(0.9 * grown, self.n_done / self.n_lenses), 1.0)

    def quartiles(self) -> dict[str, np.ndarray]:
        """F1 of the lenses by iteration: keys x, n, q1, median, q3; shape ``[iterations seen]``."""
        counts = self._f1[: int(np.flatnonzero(self._f1.sum(1)).max(initial=-1)) + 1]
        total = counts.sum(1)
        below = counts.cumsum(1)
        out = {"x": np.arange(1.0, len(counts) + 1), "n": total.astype(float)}
        for name, q in (("q1", 0.25), ("median", 0.5), ("q3", 0.75)):
            rank = np.ceil(q * total).clip(1)
            out[name] = ((below < rank[:, None]).sum(1) + 0.5) / self.n_bins
            out[name][total == 0] = np.nan
        return out

    def _series(self) -> dict[str, Series]:
        return {"growth": self.growth}

    def _numbers(self) -> dict[str, Any]:
        b = self.begin
        return {
            "grades": self.grades,
            "n_lenses": self.n_lenses,
            "n_done": self.n_done,
            "active": self.n_active,
            "site": b.site if b else "",
            "prompts": b.n_prompts if b else 0,
            "target": b.f1_target if b else None,
            "blocking": b.validation_blocking if b else False,
            "extra": self.extra_iterations,
            "quartiles": {k: [_finite(x) for x in v] for k, v in self.quartiles().items()},
            "curves": list(self.curves.values()),
        }

    def table(self) -> list[list[str]]:
        b = self.begin
        rows = [["lenses", f"{self.n_done:,} of {self.n_lenses:,}"]]
        rows.append(["grades", ", ".join(f"{g} {n:,}" for g, n in self.grades.items())])
        if b:
            rows.append(["site", b.site])
            rows.append(["prompts", f"{b.n_prompts:,}"])
            how = "blocking" if b.validation_blocking else "advisory"
            rows.append(["validation", f"{how}; blocking iterations {self.extra_iterations:,}"])
        rows.append(["fits", f"{self.n_steps:,}"])
        rows.append(["seconds", f"{self.elapsed(self.latest):.2f}"])
        return rows


def _number(x: float | None) -> float:
    """A float; NaN for what a log could not write."""
    return math.nan if x is None else float(x)


def _finite(x: float | None) -> float | None:
    """A float for JSON; None for NaN and infinities."""
    return float(x) if x is not None and math.isfinite(x) else None


def _bytes(n: float) -> str:
    if not n:
        return "?"
    return f"{n / 2**30:.2f} GiB" if n >= 2**30 else f"{n / 2**20:.0f} MiB"
