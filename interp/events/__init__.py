"""What happened: one frozen record per step of any loop, and the JSONL log that keeps them.

Every long function of the package takes ``iteration_hook=``: one callable, or a list of them.
A hook gets each event as it happens and may return ``True`` to ask for a stop, which takes effect
before the next iteration and leaves a valid partial result::

    probe.fit(x, y, iteration_hook=[JsonlLog("runs/fit.jsonl"), lambda e: e.kind == "SlabEnd"])

This package knows nobody: the jobs create events, monitors and logs read them.
"""

from interp.events.hooks import Emitter, Hook, asks_to_stop
from interp.events.log import JsonlLog, Tail, read
from interp.events.process import bar, peak_rss_bytes, rss_bytes
from interp.events.records import (
    BatchEnd,
    CaptureBegin,
    CaptureEnd,
    Event,
    FitBegin,
    FitEnd,
    IterationEnd,
    LensEnd,
    LensIteration,
    ShardEnd,
    SlabBegin,
    SlabEnd,
    StageStep,
    TaskBegin,
    TaskEnd,
    TrainBegin,
    TrainEnd,
    from_dict,
)

__all__ = [
    "BatchEnd",
    "CaptureBegin",
    "CaptureEnd",
    "Emitter",
    "Event",
    "FitBegin",
    "FitEnd",
    "Hook",
    "IterationEnd",
    "JsonlLog",
    "LensEnd",
    "LensIteration",
    "ShardEnd",
    "SlabBegin",
    "SlabEnd",
    "StageStep",
    "Tail",
    "TaskBegin",
    "TaskEnd",
    "TrainBegin",
    "TrainEnd",
    "asks_to_stop",
    "bar",
    "from_dict",
    "peak_rss_bytes",
    "read",
    "rss_bytes",
]
