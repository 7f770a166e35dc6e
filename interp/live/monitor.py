"""Monitors: the numbers of a job, moving while it runs.

A monitor follows one of three things: a `Run` (with buttons to pause, step and stop it), a job that
calls it as a hook, or logs written by `interp.events.JsonlLog` (several jobs at once, for instance on
a cluster). Events go into a digest of constant size; four times a second a thread of the monitor
sends its numbers to the browser, which draws them. Nothing is drawn in the kernel while a job runs.
"""

from __future__ import annotations

import logging
import os
import re
import sys
import threading
import time
from collections import Counter
from typing import TYPE_CHECKING, Any, ClassVar

import traitlets

from interp.events import Event, LensEnd, SlabEnd, Tail
from interp.live import plots
from interp.live.digest import CaptureDigest, Digest, FitDigest, LensDigest
from interp.live.still import Place, in_notebook, still_html
from interp.live.widget import LiveWidget, front_end
from interp.run import Run

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["CaptureMonitor", "FitMonitor", "LensMonitor", "Monitor"]

logger = logging.getLogger(__name__)

#: Seconds between two frames.
PERIOD = 0.25

#: A job that has said nothing for so many seconds is shown as silent (of a run, more is known).
SILENT = 60.0

#: In the order in which they are counted.
_STATES = ("done", "running", "silent", "stopped", "failed", "waiting")

#: Most jobs that are listed (the others are still read).
_MAX_JOBS = 200


def _natural(name: str) -> list[tuple[str, int]]:
    """A key by which task-2 comes before task-10."""
    return [(text, int(digits or 0)) for text, digits in re.findall(r"(\D*)(\d*)", name)]


class Monitor(LiveWidget):
    """Base of the monitors. Use `FitMonitor`, `CaptureMonitor` or `LensMonitor`.

    Parameters
    ----------
    source : Run, str, Path or None
        A run; a ``.jsonl`` log or a folder of them (which need not exist yet); or None, and the
        monitor is itself a hook: ``probe.fit(x, y, iteration_hook=monitor)``.
    title : str, optional
        Heading of the view.

    Raises
    ------
    TypeError
        If `source` is none of these.

    Notes
    -----
    One frame costs the kernel well under a millisecond (`frame_seconds` holds the mean), whatever
    the number of events so far.
    """

    _esm = front_end("monitor.js")

    steps = traitlets.List(traitlets.Unicode()).tag(sync=True)
    head = traitlets.Dict().tag(sync=True)
    data = traitlets.Bytes().tag(sync=True)
    table: Any = traitlets.List().tag(sync=True)

    digest_class: ClassVar[type[Digest]]
    name: ClassVar[str]
    #: The event that ends the larger of the two steps.
    leap: ClassVar[type[Event] | None] = None
    step_names: ClassVar[tuple[str, str]]

    def __init__(
        self, source: Run | str | os.PathLike[str] | None = None, *, title: str | None = None
    ) -> None:
        if not (source is None or isinstance(source, (Run, str, os.PathLike))):
            raise TypeError(
                f"{type(self).__name__}: got {type(source).__name__}, expected a Run, the path of a log "
                "or of a folder of logs, or nothing (then it is a hook)"
            )
        self.run = source if isinstance(source, Run) else None
        self._tail = Tail(source) if isinstance(source, (str, os.PathLike)) else None
        self._title = title or self.name
        self._digests: dict[str, Digest] = {}
        self._read: set[str] = set()  # logs that had an event, of this kind of job or another
        self._trouble = ""
        self._chosen = ""
        self._lock = threading.Lock()
        self._sending = threading.Lock()
        self._wake = threading.Event()
        self._closed = False
        self._stop_asked = False
        self._dark = False
        self._heard = False  # an event since the last frame
        self._table_of: Any = None  # what the table was last made of
        self._frames, self._frame_total = 0, 0.0
        super().__init__(steps=list(self.step_names))
        self._place = Place(self.uid, self._title)
        if self.run is not None:
            self.run.add_hook(self)
        if self.run is not None or self._tail is not None:
            self._start()
        self.refresh()

    # -------------------------------------------------------------------- the worker's side

    def __call__(self, event: Event) -> bool:
        """Take an event (this is what makes a monitor a hook); True once Stop was pressed."""
        with self._lock:
            digest = self._digest_of("")
            digest.add(event)
            self._heard = True
        if self.run is None and self._thread is None and digest.state == "running":
            self._start()  # (of a run it is started with the monitor, once)
        return self._stop_asked and self.run is None

    def on_run_end(self, run: Run) -> None:
        """Told by a `Run` that it has ended."""
        self._wake.set()

    # ------------------------------------------------------------------ the monitor's thread

    def _start(self) -> None:
        self._thread = threading.Thread(target=self._watch, daemon=True, name=f"interp-{self.name}-monitor")
        self._thread.start()

    def _watch(self) -> None:
        idle = 0
        while not self._closed:
            # Frames and looks at logs are rarer while nothing happens: a job may have died without a word.
            self._wake.wait(PERIOD if idle < 40 else 4 * PERIOD)
            self._wake.clear()
            try:
                ended = self._ended()
                idle = 0 if self._poll() else idle + 1
                self.refresh()
                if ended:
                    self._draw_still()
                    break
                self._trouble = ""
            except Exception as error:  # a monitor must never take a run down, nor go silent without a word
                trouble = f"{type(error).__name__}: {error}"
                if trouble != self._trouble:
                    logger.exception("%s: could not draw a frame", self.name)
                    self.head = {**self.head, "message": trouble}
                self._trouble = trouble
                if self._ended():
                    break
        self._thread = None

    def _poll(self) -> bool:
        if self._tail is None:
            heard, self._heard = self._heard or self.run is not None, False
            return heard
        found, deadline = False, time.monotonic() + PERIOD
        for job, event in self._tail.new():
            found = True
            with self._lock:
                self._read.add(job)
                self._digest_of(job).add(event)
            if time.monotonic() > deadline:  # a long history: a frame in between
                break
        with self._lock:
            for name in (file.stem for file in self._tail.files()):
                # An empty log is a job that waits; one without events of ours belongs to another kind.
                if self._digest_of(name).state == "waiting" and name in self._read:
                    del self._digests[name]
        return found

    def _digest_of(self, job: str) -> Digest:
        digest = self._digests.get(job)
        if digest is None:  # not setdefault: an empty digest costs more than an event
            digest = self._digests[job] = self.digest_class()
        return digest

    def _ended(self) -> bool:
        if self._tail is not None:
            return False  # more jobs may come
        return self.run.done if self.run is not None else self.digest.state in ("done", "stopped")

    @property
    def digest(self) -> Digest:
        """What is known of the job that is shown (of several logs: the chosen one, or the first)."""
        digest = self._digests.get(self._chosen)
        if digest is not None:
            return digest
        begun = (d for d in self._digests.values() if d.state != "waiting")
        return next(begun, None) or next(iter(self._digests.values()), None) or self.digest_class()

    @property
    def jobs(self) -> dict[str, Digest]:
        """The digest of each log, by its name without ``.jsonl``; of a run, one without a name."""
        return dict(self._digests)

    @property
    def state(self) -> str:
        """State of the run, or what the events say of the job."""
        if self.run is not None:
            return self.run.state
        return self._job_state(self.digest, time.time())

    def _job_state(self, digest: Digest, now: float) -> str:
        silent = digest.state == "running" and now - digest.latest > SILENT
        return "silent" if silent else digest.state

    def refresh(self) -> None:
        """Send the numbers of this moment to the browser."""
        start = time.perf_counter()
        with self._sending:
            with self._lock:
                digest = self.digest
                head, data = digest.frame()
                rows = self._table_rows(digest)
            now = time.time()
            head["title"], head["state"] = self._title, self.state
            head["message"], head["note"] = self._message(), self._note(digest)
            head["controls"] = "" if self._tail is not None else "all" if self.run is not None else "stop"
            if self._tail is not None:
                self._add_jobs(head, now)
            with self.hold_sync():  # one message
                self.head, self.data = head, data
                if rows is not None:
                    self.table = rows
        self._frames += 1
        self._frame_total += time.perf_counter() - start

    def _table_rows(self, digest: Digest) -> list[dict[str, Any]] | None:
        """Rows of the table of concepts, if they have changed."""
        return None

    def _message(self) -> str:
        if self.run is not None and self.run.error is not None:
            error = self.run.error
            return f"{type(error).__name__}: {error}"
        if self.digest.task_end is not None and self.digest.task_end.error:
            return self.digest.task_end.error
        if self._tail is not None and not self._digests:
            path = self._tail.path
            what = "no log there yet" if path.exists() else "it does not exist yet"
            return f"Waiting for the logs of {path} ({what})"
        return ""

    def _note(self, digest: Digest) -> str:
        """A word on what the job does while its charts stand still."""
        if self.run is None or self.run.done:
            return ""
        if self.run.state == "stopping":
            return "stopping: what is under way is finished"
        return "preparing: the first event has not come yet" if digest.state == "waiting" else ""

    def _add_jobs(self, head: dict[str, Any], now: float) -> None:
        head["job"] = next((k for k, d in self._digests.items() if d is self.digest), "")
        if head["job"]:
            head["title"] = f"{self._title}: {head['job']}"
        states = {k: self._job_state(d, now) for k, d in self._digests.items()}
        counts = Counter(states.values())
        # A task that has not begun has no log yet, but the others know how many there are.
        total = max([len(states), *(d.task.n_tasks for d in self._digests.values() if d.task is not None)])
        counts["waiting"] += total - len(states)
        said = (f"{counts[state]:,} {state}" for state in _STATES if counts[state])
        head["jobs_say"] = f"{total:,} jobs: " + ", ".join(said) if total > 1 else ""
        listed = sorted(states, key=_natural)[:_MAX_JOBS]
        head["jobs"] = [[name, states[name], self._digests[name].fraction] for name in listed]

    @property
    def frame_seconds(self) -> float:
        """Mean cost of a frame so far, seconds of the kernel's process."""
        return self._frame_total / max(self._frames, 1)

    # ------------------------------------------------------------------- the browser's side

    def _on_message(self, _: Any, content: dict[str, Any], __: Any) -> None:
        do = content.get("do")
        if do == "theme":
            self._dark = bool(content.get("dark"))
            return
        if do == "select":
            self._chosen = str(content.get("job"))
        elif do == "stop":
            self.stop()
        elif self.run is not None and do == "pause":
            self.run.pause()
        elif self.run is not None and do == "resume":
            self.run.resume()
        elif self.run is not None and do == "step":
            self.run.step(wait=False)
        elif self.run is not None and do == "leap":
            self.run.step(until=self.leap, wait=False)
        self.refresh()

    def _end_thread(self) -> None:
        self._closed = True
        self._wake.set()

    def stop(self) -> None:
        """Ask the job for a stop before its next iteration."""
        self._stop_asked = True
        if self.run is not None:
            self.run.stop()

    def close(self) -> None:
        """Stop following and remove the view; a picture of the moment stays. A run goes on."""
        if self._closed:
            return
        self._end_thread()
        # At the interpreter's end ipywidgets closes what is left: too late for a picture.
        if self._digests and not self._ended() and not sys.is_finalizing():
            self._draw_still()
        super().close()

    # ------------------------------------------------------------------- what stays

    def figure(self, *, dark: bool = False) -> Figure:
        """The static picture of this moment."""
        raise NotImplementedError

    def _draw_still(self) -> None:
        message, state = self._message(), self.state
        with self._lock:
            rows = self.digest.table()
            rows += [[k, v] for k, v in (("error", message), ("jobs", self.head.get("jobs_say"))) if v]
            title = self.head.get("title", self._title)  # of several jobs, with the name of the one shown
            page = still_html(self.uid, title, state, lambda: plots.png(self.figure(dark=self._dark)), rows)
        self._place.fill(page)

    def show(self) -> None:
        """Display the monitor here, with the place of the picture that stays."""
        self._display(self.name)
        self._place.show(lambda: self._ended() or (self._closed and bool(self._digests)))

    def _ipython_display_(self) -> None:
        if not in_notebook():
            raise NotImplementedError  # IPython then falls back on the text
        self.show()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.state}>"


class FitMonitor(Monitor):
    """A probe fit: pairs, lambda, seconds by slab, loss and gradient, with its controls."""

    digest_class = FitDigest
    name = "Probe fit"
    leap = SlabEnd
    step_names = ("Step", "Step slab")

    def _note(self, digest: Digest) -> str:
        assert isinstance(digest, FitDigest)
        if self.state == "stopping":
            return super()._note(digest)
        solved = digest.begin is not None and 0 < digest.n_slabs <= digest.n_slabs_done
        if solved and digest.end is None and digest.stage is None:
            return "finishing the pairs that need it on the raw events"
        return digest.stage_says or super()._note(digest)

    def figure(self, *, dark: bool = False) -> Figure:
        """The static picture of this moment, `interp.live.plots.fit_figure`; `dark` as there."""
        return plots.fit_figure(self.digest, dark=dark)  # type: ignore[arg-type]


class CaptureMonitor(Monitor):
    """A capture: speed, memory, seconds by stage, projections of the latest prompt."""

    digest_class = CaptureDigest
    name = "Capture"
    step_names = ("Step batch", "")

    def figure(self, *, dark: bool = False) -> Figure:
        """The static picture of this moment, `interp.live.plots.capture_figure`; `dark` as there."""
        return plots.capture_figure(self.digest, dark=dark)  # type: ignore[arg-type]


class LensMonitor(Monitor):
    """A lens training: grades, learning curves, the table of concepts."""

    digest_class = LensDigest
    name = "Lens training"
    leap = LensEnd
    step_names = ("Step", "Step lens")

    def _note(self, digest: Digest) -> str:
        assert isinstance(digest, LensDigest)
        batch = digest.forwarding
        if self.state == "stopping":
            return "stopping: the lenses that stand are graded"
        if batch is None or digest.state != "running":
            return super()._note(digest)
        speed = batch.tokens_real / max(batch.seconds, 1e-9)
        done = f"{batch.prompts_done:,} of {batch.prompts_total:,}"
        return f"forwarding prompts into the bank: {done}, {speed:,.0f} tokens/s"

    def _table_rows(self, digest: Digest) -> list[dict[str, Any]] | None:
        assert isinstance(digest, LensDigest)
        made_of = (id(digest), digest.began, digest.n_done)
        if made_of == self._table_of:
            return None
        self._table_of = made_of
        return list(digest.rows.values())[::-1]

    def figure(self, *, dark: bool = False) -> Figure:
        """The static picture of this moment, `interp.live.plots.lens_figure`; `dark` as there."""
        return plots.lens_figure(self.digest, dark=dark)  # type: ignore[arg-type]
