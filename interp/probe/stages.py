"""Stages of a fit that have no iterations: each tells how far it is, and hears a stop."""

from __future__ import annotations

import time
from collections.abc import Generator
from contextlib import closing
from typing import Any

import numpy as np
import torch

from interp.events import Event, StageStep, bar, rss_bytes
from interp.probe import exact
from interp.probe.fitted import Fitted, mark_separable
from interp.probe.slab import Rules
from interp.probe.step import NEEDS_POLISH
from interp.probe.summary import LatentSummary

__all__ = ["LOOK_EVERY", "Progress", "Steps", "polish", "stage"]

#: Seconds between two looks at how far a stage is, and at what costs: a little less than between two frames.
LOOK_EVERY = 0.2
#: Seconds that a stage takes before it shows a bar.
_BAR_AFTER = 1.0

#: Yields events; is sent True to stop; returns whether it was.
Steps = Generator[Event, bool | None, bool]
#: Yields how much a stage has done since it last did, in its own unit and in events.
Progress = Generator[tuple[int, int], None, None]


def polish(
    fitted: Fitted,
    x: Any,
    y: Any,
    summary: LatentSummary,
    rules: Rules,
    device: torch.device,
    listening: bool,
) -> Steps:
    """Finish the pairs marked ``needs_polish`` on the raw events, in place; those that a stop leaves stay.

    Parameters
    ----------
    fitted : Fitted
    x, y : as in `Sparse1DProbe.fit`
        The rows of the summary.
    summary : LatentSummary
    rules : Rules
    device : torch.device
    listening : bool
        Whether to yield events.

    Yields
    ------
    StageStep

    Returns
    -------
    bool
        Whether it was stopped.
    """
    n_pairs = fitted.n_inexact
    if not n_pairs:
        return False
    finishing = _finishing(fitted, x, y, summary, rules, device)
    return (yield from stage("polish", n_pairs, finishing, listening))


def _finishing(
    fitted: Fitted, x: Any, y: Any, summary: LatentSummary, rules: Rules, device: torch.device
) -> Progress:
    """`polish` without its events: pairs and events of each group that is finished."""
    if device.type == "mps":
        device = torch.device("cpu")  # float64 is the point of it
    pairs = fitted.codes == NEEDS_POLISH
    groups = exact.polish_pairs(x, y, summary, pairs, fitted.coef, fitted.intercept, rules, device)
    with closing(groups):
        for latents, classes, chosen, part in groups:
            at = np.ix_(latents, classes)
            n_iter, n_fail = fitted.n_iter[at], fitted.n_fail[at]
            mark_separable(part)
            fitted.write(part, latents, classes, keep=~chosen)
            fitted.n_iter[at] += np.where(chosen, n_iter, 0)
            fitted.n_fail[at] += np.where(chosen, n_fail, 0)
            yield int(chosen.sum()), part.nodes.n_nodes


def stage(name: str, total: int, progress: Progress, listening: bool) -> Steps:
    """Go through a stage without iterations, telling how far it is.

    Parameters
    ----------
    name : str
        As `StageStep` has it.
    total : int
        Rows or pairs that there are; 0 where that is not known.
    progress : generator of (int, int)
        Does the work: yields how much it has just done, and of how many events. Closed at the end.
    listening : bool
        Whether to yield events, five times a second.

    Yields
    ------
    StageStep

    Returns
    -------
    bool
        Whether it was stopped.
    """
    began = looked = time.perf_counter()
    done = n_events = 0
    unit = "row" if name == "summary" else "pair"
    with closing(progress), bar(total or None, f"probe, {name}", unit, delay=_BAR_AFTER) as shown:
        for n, events in progress:
            done, n_events = done + n, n_events + events
            shown.update(n)
            if listening and time.perf_counter() - looked >= LOOK_EVERY:
                stopped = yield StageStep(
                    stage=name,
                    done=done,
                    total=total,
                    n_events=n_events,
                    seconds=time.perf_counter() - began,
                    bytes_resident=rss_bytes(),
                )
                if stopped:
                    return True
                looked = time.perf_counter()
    return False
