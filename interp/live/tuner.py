"""Slab sizes tuned by hand: sliders, and a heat map of what each setting costs on one's own data."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import traitlets

from interp.events import Event
from interp.live import plots
from interp.live.still import Place, in_notebook, still_html
from interp.live.widget import LiveWidget, front_end

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Bench", "FitBench", "SlabTuner"]

logger = logging.getLogger(__name__)

SIZES = ("class_slab_size", "latent_block_size")
ROWS = "row_batch_size"

#: Events that the pass over the data is measured on, at most.
_MAX_EVENTS = 2_000_000


class Bench(Protocol):
    """What a `SlabTuner` measures with."""

    n_latents: int
    n_classes: int
    n_rows: int

    def auto(self) -> dict[str, int]:
        """The sizes that "auto" takes: class_slab_size, latent_block_size."""

    def solve(self, slab: int, block: int) -> dict[str, float]:
        """``ns_per_eval`` (median), ``ns_low``, ``ns_high`` (quartiles) and ``bytes`` of a setting."""

    def rows(self, size: int) -> dict[str, float]:
        """``ns_per_event``, ``ns_low``, ``ns_high`` and ``bytes`` of a pass with this row_batch_size."""


class FitBench:
    """Measures on a probe's own data, by `interp.probe.sizes`. The probe is not fitted.

    Parameters
    ----------
    probe : Sparse1DProbe
    x, y, n_classes : as for ``probe.fit``
        Of several row shards, the first is measured on.
    repeats : int
        Measurements per setting, of which the median counts.
    """

    def __init__(self, probe: Any, x: Any, y: Any, n_classes: int | None, repeats: int) -> None:
        from interp.probe import LatentSummary
        from interp.probe.data import shards

        shard = next(shards(x, y, n_classes))
        self._probe, self._repeats = probe, repeats
        self._x, self._y = shard.x, shard.y
        self.n_rows, self.n_latents = self._x.shape
        self._summary = LatentSummary(self.n_latents, n_classes).add(self._x, self._y)
        self.n_classes = self._summary.n_classes

    def auto(self) -> dict[str, int]:
        """The sizes that "auto" takes on these data."""
        params = {**self._probe.get_params(), "method": "summary", **dict.fromkeys(SIZES, "auto")}
        begun: list[Event] = []

        def hook(event: Event) -> bool:
            begun.append(event)
            return True  # the first event, FitBegin, names the sizes: no need to go on

        type(self._probe)(**params).fit_summary(self._summary, iteration_hook=hook)
        return {name: getattr(begun[0], name) for name in SIZES}

    def solve(self, slab: int, block: int) -> dict[str, float]:
        """Nanoseconds per (node, pair) evaluation, and the memory the setting works in."""
        from interp.probe import measure_blocks

        measured = measure_blocks(
            self._summary,
            class_slab_sizes=[slab],
            latent_block_sizes=[block],
            repeats=self._repeats,
            device=self._probe.device,
            dtype=self._probe.compute_dtype,
        )
        return measured[0]

    def rows(self, size: int) -> dict[str, float]:
        """Nanoseconds per event of the pass over x (its first two million events, at most)."""
        from interp.probe import measure_row_batches

        n = int(np.searchsorted(self._x.indptr, _MAX_EVENTS, side="right")) - 1
        n = max(1, min(n, self.n_rows))
        x, y = self._x[:n], self._y[:n]
        return measure_row_batches(x, y, row_batch_sizes=[size], repeats=self._repeats)[0]


class SlabTuner(LiveWidget):
    """Find class_slab_size, latent_block_size and row_batch_size for a probe, by measurement.

    Parameters
    ----------
    probe : Sparse1DProbe
        The probe whose sizes `apply` and `apply_best` set (with ``set_params``).
    x, y : as for ``probe.fit``
        The data to measure on.
    class_slab_sizes, latent_block_sizes, row_batch_sizes : sequence of int, optional
        Settings to measure; by default powers of four up to what the data has.
    n_classes : int, optional
        As for ``probe.fit``.
    repeats : int
        Measurements per setting, of which the median counts.
    bench : Bench, optional
        Measures instead of `FitBench`.

    Attributes
    ----------
    best : dict or None
        The fastest setting measured so far: class_slab_size, latent_block_size, ns_per_eval, …
    best_rows : dict or None
        The fastest row_batch_size measured so far, and its ns_per_event.

    Examples
    --------
    >>> tuner = SlabTuner(probe, x, y)        # last line of a cell: the widget   # doctest: +SKIP
    >>> tuner.measure(); tuner.apply_best()   # the same without a mouse          # doctest: +SKIP
    """

    _esm = front_end("tuner.js")

    axes = traitlets.Dict().tag(sync=True)
    cells: Any = traitlets.List().tag(sync=True)
    row_cells: Any = traitlets.List().tag(sync=True)
    auto = traitlets.Dict(allow_none=True, default_value=None).tag(sync=True)
    best = traitlets.Dict(allow_none=True, default_value=None).tag(sync=True)
    best_rows = traitlets.Dict(allow_none=True, default_value=None).tag(sync=True)
    applied = traitlets.Dict().tag(sync=True)
    busy = traitlets.Bool(False).tag(sync=True)
    message = traitlets.Unicode().tag(sync=True)

    def __init__(
        self,
        probe: Any,
        x: Any,
        y: Any = None,
        *,
        class_slab_sizes: Sequence[int] | None = None,
        latent_block_sizes: Sequence[int] | None = None,
        row_batch_sizes: Sequence[int] | None = None,
        n_classes: int | None = None,
        repeats: int = 3,
        bench: Bench | None = None,
    ) -> None:
        if repeats < 1:
            raise ValueError(f"SlabTuner: repeats must be at least 1, got {repeats}")
        self.probe = probe
        self._bench: Bench = FitBench(probe, x, y, n_classes, repeats) if bench is None else bench
        axes = {
            "class_slab_size": _axis(class_slab_sizes, self._bench.n_classes, "class_slab_sizes"),
            "latent_block_size": _axis(latent_block_sizes, self._bench.n_latents, "latent_block_sizes"),
            ROWS: _axis(row_batch_sizes, self._bench.n_rows, "row_batch_sizes", start=4096),
        }
        self._stop = threading.Event()
        self._dark = False
        super().__init__(axes=axes)
        self._place = Place(self.uid, "Slab tuner")

    # --------------------------------------------------------------------------- measuring

    def measure(self) -> pd.DataFrame:
        """Measure every setting and wait for it; returns `table`.

        Raises
        ------
        RuntimeError
            If a measurement is under way.
        """
        self._begin()
        self._work()
        return self.table()

    def start(self) -> None:
        """`measure` in the background, as the button does."""
        self._begin()
        self._thread = threading.Thread(target=self._work_quietly, daemon=True, name="interp-tuner")
        self._thread.start()

    def wait(self, timeout: float | None = None) -> None:
        """Wait for the measurement in the background, for `timeout` seconds at most."""
        if self._thread is not None:
            self._thread.join(timeout)

    def stop(self) -> None:
        """End the measurement after the setting under way; what is measured stays."""
        self._stop.set()

    def _end_thread(self) -> None:
        self.stop()

    def _begin(self) -> None:
        if self.busy:
            raise RuntimeError("the tuner is measuring already: wait, or stop() it")
        self._stop.clear()
        self.busy = True

    def _work_quietly(self) -> None:
        try:
            self._work()
        except Exception as error:  # there is nobody to raise it to but the reader of the widget
            logger.warning("the slab tuner stopped: %s", error)

    def _work(self) -> None:
        try:
            if self.auto is None:
                self.message = "one pass over the data"
                self._mark(self._bench.auto())
            todo = [(s, b) for s in self.axes[SIZES[0]] for b in self.axes[SIZES[1]]]
            for i, (slab, block) in enumerate(todo):
                if self._stop.is_set():
                    break
                self.message = f"measuring {i + 1} of {len(todo)}: slab {slab}, block {block}"
                cell = self._bench.solve(slab, block) | dict(zip(SIZES, (slab, block), strict=True))
                self.cells = [*(c for c in self.cells if any(c[n] != cell[n] for n in SIZES)), cell]
                self.best = min(self.cells, key=lambda c: c["ns_per_eval"])
            for size in self.axes[ROWS]:
                if self._stop.is_set():
                    break
                self.message = f"measuring the pass: {size} rows per batch"
                row = {**self._bench.rows(size), ROWS: size}
                self.row_cells = [*(c for c in self.row_cells if c[ROWS] != size), row]
                self.best_rows = min(self.row_cells, key=lambda c: c["ns_per_event"])
            self.message = "stopped" if self._stop.is_set() else "measured"
        except Exception as error:  # whatever it is, the reader sees it, and it is raised on
            self.message = f"{type(error).__name__}: {error}"
            raise
        finally:
            self.busy = False
            if self.cells:
                self._place.fill(self._still())

    def _mark(self, auto: dict[str, Any]) -> None:
        """Mark what "auto" takes, and measure it as well."""
        self.axes = {**self.axes, **{n: sorted({*self.axes[n], auto[n]}) for n in SIZES}}
        self.auto = auto

    def table(self) -> pd.DataFrame:
        """The settings measured so far, the fastest first: both sizes, ns_per_eval, …"""
        import pandas as pd

        columns = [*SIZES, "ns_per_eval", "ns_low", "ns_high", "bytes"]
        return pd.DataFrame(self.cells, columns=columns).sort_values("ns_per_eval", ignore_index=True)

    # ---------------------------------------------------------------------------- applying

    def apply(self, **sizes: int | str) -> Any:
        """Set sizes on the probe; returns the probe.

        Parameters
        ----------
        **sizes : int or "auto"
            class_slab_size, latent_block_size, row_batch_size; those left out stay.

        Returns
        -------
        Sparse1DProbe
            The probe.
        """
        self.probe.set_params(**sizes)
        self.applied = dict(sizes)
        self.message = "applied: " + ", ".join(f"{k}={v}" for k, v in sizes.items())
        return self.probe

    def apply_best(self) -> Any:
        """Set the fastest measured setting on the probe; returns the probe.

        Raises
        ------
        RuntimeError
            If nothing is measured yet.
        """
        if self.best is None:
            raise RuntimeError("nothing measured yet: press Measure, or call measure()")
        rows = {} if self.best_rows is None else {ROWS: self.best_rows[ROWS]}
        return self.apply(**{name: self.best[name] for name in SIZES}, **rows)

    # ----------------------------------------------------------------------------- showing

    def _on_message(self, _: Any, content: dict[str, Any], __: Any) -> None:
        do = content.get("do")
        try:
            if do == "theme":
                self._dark = bool(content.get("dark"))
            elif do == "measure":
                self.start()
            elif do == "stop":
                self.stop()
            elif do == "apply_best":
                self.apply_best()
            elif do == "apply":
                self.apply(**{k: v for k, v in content["sizes"].items() if k in (*SIZES, ROWS)})
        except (RuntimeError, ValueError) as error:
            self.message = str(error)

    def _still(self) -> str:
        best, rows = self.best or {}, self.best_rows or {}
        values = [[n, f"{best[n]:,}"] for n in SIZES]
        values += [[ROWS, f"{rows[ROWS]:,}" if rows else "not measured"]]
        values += [["ns per evaluation", f"{best['ns_per_eval']:.3g}"]]

        def draw() -> bytes:
            return plots.png(plots.tuning_figure(self.cells, self.auto, dark=self._dark))

        return still_html(self.uid, "Slab tuner", "the best of what was measured", draw, values)

    def _ipython_display_(self) -> None:
        if not in_notebook():
            raise NotImplementedError  # IPython then falls back on the text
        self._display("Slab tuner")
        self._place.show(lambda: bool(self.cells) and not self.busy)

    def __repr__(self) -> str:
        return f"<SlabTuner {len(self.cells)} settings measured>"


def _axis(given: Sequence[int] | None, most: int, name: str, start: int = 4) -> list[int]:
    """Sizes to measure: by default `start`, four times that, … up to `most`."""
    if given is None:
        return [*(start * 4**k for k in range(12) if start * 4**k < most), most]
    sizes = sorted({int(s) for s in given})
    if not sizes or sizes[0] < 1:
        raise ValueError(f"SlabTuner: {name} must be positive integers, got {list(given)}")
    return sizes
