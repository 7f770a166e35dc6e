"""Watch a job while it runs: live monitors, slab tuning by hand, flames.

    run = interp.live.fit(probe, x, y)     # last line of a cell: the monitor, with its controls
    probe = await run                      # in a later cell

Each function starts a job in the background and returns its `interp.run.Run`. In a notebook the run
shows itself as a monitor; elsewhere it has none, and the job shows its usual bar or only logs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from interp.run import Run, start

if TYPE_CHECKING:
    from interp.live.flame import compare_flames, flame
    from interp.live.monitor import CaptureMonitor, FitMonitor, LensMonitor
    from interp.live.tuner import SlabTuner

__all__ = [
    "CaptureMonitor",
    "FitMonitor",
    "LensMonitor",
    "SlabTuner",
    "capture",
    "compare_flames",
    "fit",
    "flame",
    "train_lenses",
]

# Widgets and the profiler are imported when they are asked for: a script that only starts runs needs neither.
_LAZY = {
    "CaptureMonitor": "monitor",
    "FitMonitor": "monitor",
    "LensMonitor": "monitor",
    "SlabTuner": "tuner",
    "compare_flames": "flame",
    "flame": "flame",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    try:
        return getattr(import_module(f"{__name__}.{_LAZY[name]}"), name)
    except ModuleNotFoundError as error:
        raise ImportError(
            f"interp.live.{name} needs {error.name}, which is not installed: "
            "pip install ipywidgets anywidget matplotlib pyinstrument"
        ) from error


def fit(
    probe: Any, x: Any, y: Any = None, *, paused: bool = False, title: str | None = None, **kwargs: Any
) -> Run:
    """``probe.fit(x, y, **kwargs)`` in the background, shown by a `FitMonitor`.

    Parameters
    ----------
    probe : Sparse1DProbe
    x, y : as for ``probe.fit``
    paused : bool
        Hold at the first event, to step through the fit by hand.
    title : str, optional
        Heading of the monitor.
    **kwargs : as for ``probe.fit``
        ``n_classes=``, ``iteration_hook=``, …

    Returns
    -------
    Run
        Its result is the fitted probe.
    """
    return _watched("FitMonitor", title, probe.fit, x, y, paused=paused, **kwargs)


def capture(
    model: Any, prompts: Any, *, paused: bool = False, title: str | None = None, **kwargs: Any
) -> Run:
    """``interp.capture(model, prompts, **kwargs)`` in the background, shown by a `CaptureMonitor`.

    Parameters
    ----------
    model : Model
    prompts : as for `interp.capture`
    paused : bool
        Hold at the first event, to go batch by batch.
    title : str, optional
        Heading of the monitor.
    **kwargs : as for `interp.capture`
        ``sites=``, ``out=``, …

    Returns
    -------
    Run
        Its result is the ``Activations``.
    """
    from interp.capture.record import capture as job

    return _watched("CaptureMonitor", title, job, model, prompts, paused=paused, **kwargs)


def train_lenses(
    model: Any, pack: Any, *, paused: bool = False, title: str | None = None, **kwargs: Any
) -> Run:
    """``interp.train_lenses(model, pack, **kwargs)`` in the background, shown by a `LensMonitor`.

    Parameters
    ----------
    model, pack : as for `interp.train_lenses`
    paused : bool
        Hold at the first event, to go fit by fit.
    title : str, optional
        Heading of the monitor.
    **kwargs : as for `interp.train_lenses`
        ``site=`` above all.

    Returns
    -------
    Run
        Its result is the ``Lenses``.
    """
    from interp.lens.train import train_lenses as job

    return _watched("LensMonitor", title, job, model, pack, paused=paused, **kwargs)


def _watched(
    monitor: str, title: str | None, fn: Callable[..., Any], *args: Any, paused: bool, **kwargs: Any
) -> Run:
    from interp.live.still import in_notebook

    run = start(fn, *args, paused=paused, **kwargs)
    if in_notebook():
        run.view = __getattr__(monitor)(run, title=title)
    return run
