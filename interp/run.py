"""A loop in the background: pause, step, stop, await.

`start` runs any function that takes ``iteration_hook=`` in a daemon thread::

    run = interp.run.start(probe.fit, x, y)
    run.pause(); event = run.step(); run.resume()
    probe = await run            # in a notebook cell; run.wait() in a script

The thread only ever waits between two iterations, so pausing and stopping leave a valid result.
"""

from __future__ import annotations

import asyncio
import atexit
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Generator
from dataclasses import replace
from typing import Any

from interp.events import BatchEnd, Event, asks_to_stop

__all__ = ["Run", "start"]

#: Events kept for hooks that are added while the run is under way.
_KEPT = 4096
#: Seconds that a process waits at its end for runs still under way.
_PATIENCE = 10.0
_runs: weakref.WeakSet[Run] = weakref.WeakSet()


@atexit.register
def _end_all() -> None:
    """Stop the runs that the process leaves behind: a thread cut off inside torch would abort the process."""
    deadline = time.monotonic() + _PATIENCE
    for run in list(_runs):
        run.stop()
    for run in list(_runs):
        run._thread.join(max(0.0, deadline - time.monotonic()))


class _Gate:
    """The last hook of a `Run`: here the worker waits while it is paused."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self.waited = 0.0

    def __call__(self, event: Event) -> bool:
        start = time.perf_counter()
        try:
            return self._run._on_event(event)
        finally:
            self.waited += time.perf_counter() - start


class _Heard:
    """A hook of the caller; the run hears it when it asks for a stop."""

    def __init__(self, run: Run, hook: Callable[[Event], Any]) -> None:
        self._run, self._hook = run, hook
        self.__qualname__ = getattr(hook, "__qualname__", type(hook).__qualname__)  # named in the log if slow

    def __call__(self, event: Event) -> Any:
        answer = self._hook(event)
        if asks_to_stop(answer):
            self._run.stop()
        return answer


class Run:
    """One job in a daemon thread. Made by `start` (or ``interp.live.fit`` and its siblings).

    Parameters
    ----------
    fn : callable
    args : tuple
    kwargs : dict
    paused : bool
        As in `start`.

    Attributes
    ----------
    state : str
        ``"running"``, ``"paused"``, ``"stopping"``, or, when ended, ``"done"``, ``"stopped"`` or
        ``"failed"``. ``"stopped"``: the job ended early because somebody asked it to, be it `stop`, a
        button, or a hook that returned True.
    result : object
        What the function returned; None before the end and after a failure.
    error : BaseException or None
        What the function raised. `wait` and ``await`` raise it again.
    last : Event or None
        The latest event.
    view : object or None
        A widget to show instead of the plain text, set by ``interp.live``.
    """

    def __init__(
        self, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], *, paused: bool = False
    ) -> None:
        hook = kwargs.pop("iteration_hook", None)
        given = [] if hook is None else [hook] if callable(hook) else list(hook)
        # What is not callable goes through as it is: the function refuses it by name.
        hooks = [_Heard(self, h) if callable(h) else h for h in given]
        self._fn, self._args = fn, args
        self._kwargs = {**kwargs, "iteration_hook": [*hooks, _Gate(self)]}
        self._cond = threading.Condition()
        self._paused = paused
        self._permits = 0  # hold points that a paused worker may still pass
        # The kind of event that is a hold point; None: the end of any iteration.
        self._until: type[Event] | None = Event if paused else None
        self._holding = False
        self._stop = False
        self._hooks: list[Callable[[Event], Any]] = []
        self._events: deque[Event] = deque(maxlen=_KEPT)
        self._since = _KEPT  # events kept since the latest batch
        self._ended = threading.Event()
        self.result: Any = None
        self.error: BaseException | None = None
        self.last: Event | None = None
        self.view: Any = None
        self._thread = threading.Thread(
            target=self._work, daemon=True, name=f"interp-{getattr(fn, '__name__', 'run')}"
        )

    # ------------------------------------------------------------------ the worker's side

    def _work(self) -> None:
        try:
            self.result = self._fn(*self._args, **self._kwargs)
        except BaseException as error:  # whatever it is, wait and await raise it again
            self.error = error
        with self._cond:
            self._ended.set()
            self._cond.notify_all()
            hooks = list(self._hooks)
        for hook in hooks:
            ended = getattr(hook, "on_run_end", None)
            if ended is not None:
                ended(self)

    def _on_event(self, event: Event) -> bool:
        with self._cond:
            self._keep(event)
            self.last = event
            hooks = list(self._hooks)
        for hook in hooks:
            if asks_to_stop(hook(event)):
                self._stop = True
        with self._cond:
            counts = event.is_step if self._until is None else isinstance(event, self._until)
            if counts:
                self._permits = max(self._permits - 1, 0)
            if (counts or event.may_hold) and not self._permits:
                self._until = None
                while self._paused and not self._stop and not self._permits:
                    self._holding = True
                    self._cond.notify_all()
                    self._cond.wait()
                self._holding = False
            return self._stop

    def _keep(self, event: Event) -> None:
        if isinstance(event, BatchEnd):
            # What is bulky is shown of the latest batch only: the one before goes without from now on.
            if self._since < len(self._events):
                before = self._events[-1 - self._since]
                self._events[-1 - self._since] = replace(before, tokens=(), projections={})  # type: ignore[call-arg]
            self._since = -1
        self._since += 1
        self._events.append(event)

    # ------------------------------------------------------------------ the caller's side

    @property
    def state(self) -> str:
        """running, paused, stopping, done, stopped or failed (see the class)."""
        if self._ended.is_set():
            if self.error is not None:
                return "failed"
            # The job's last event says whether it was cut short: a stop may come too late to matter.
            return "stopped" if getattr(self.last, "stopped", self._stop) else "done"
        return "stopping" if self._stop else "paused" if self._paused else "running"

    @property
    def done(self) -> bool:
        """Whether the worker has ended, however it ended."""
        return self._ended.is_set()

    def pause(self) -> Run:
        """Hold the worker at the end of the iteration, or in a stage that has none. Returns at once."""
        with self._cond:
            self._paused = True
            if self._permits:  # steps that are not done yet
                self._permits, self._until = 0, None
        return self

    def resume(self) -> Run:
        """Let a paused worker go on."""
        with self._cond:
            self._paused, self._permits, self._until = False, 0, None
            self._cond.notify_all()
        return self

    def step(
        self,
        n: int = 1,
        *,
        until: type[Event] | None = None,
        timeout: float | None = None,
        wait: bool = True,
    ) -> Event | None:
        """Do exactly `n` iterations (pausing first if the run is not paused) and hold again.

        Parameters
        ----------
        n : int
            Iterations: events whose ``is_step`` is true.
        until : type of Event, optional
            Count events of this type instead of iterations: ``until=SlabEnd`` does one slab.
        timeout : float, optional
            Seconds to wait for the worker.
        wait : bool
            False: only grant the steps and return at once (a button must not block the kernel).

        Returns
        -------
        Event or None
            The event at which the worker holds now; the last one of all if it has ended. Without
            `wait`, the latest event so far.

        Raises
        ------
        ValueError
            If `n` < 1.
        TimeoutError
            If the worker did not get there within `timeout`.
        """
        if n < 1:
            raise ValueError(f"step(n) needs n >= 1, got {n}")
        deadline = None if timeout is None else time.monotonic() + timeout
        with self._cond:
            self._paused = True
            if wait:
                self._wait_for(lambda: self._holding or self.done, deadline)
            if not self.done:
                self._until, self._holding = until, False
                self._permits = n if wait else self._permits + n
                self._cond.notify_all()
            if wait:
                self._wait_for(lambda: self._holding or self.done, deadline)
            return self.last

    def _wait_for(self, ready: Callable[[], bool], deadline: float | None) -> None:
        while not ready():
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                raise TimeoutError(f"the run did not reach the next step in time (state: {self.state})")
            self._cond.wait(0.1 if left is None else min(left, 0.1))

    def stop(self) -> Run:
        """Ask for a stop before the next iteration; what is fitted so far is kept. Returns at once."""
        with self._cond:
            if not self._ended.is_set():
                self._stop = True
            self._cond.notify_all()
        return self

    def wait(self, timeout: float | None = None) -> Any:
        """Wait for the end and return the result. An interrupt (Ctrl-C) stops the run gracefully.

        Parameters
        ----------
        timeout : float, optional
            Seconds to wait at most.

        Returns
        -------
        object
            What the function returned.

        Raises
        ------
        TimeoutError
            If `timeout` seconds pass first; the run goes on.
        Exception
            Whatever the worker raised.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while not self._ended.is_set():
            left = 0.1 if deadline is None else min(0.1, deadline - time.monotonic())
            if left <= 0:
                raise TimeoutError(f"the run is still {self.state} after {timeout} s")
            try:
                self._ended.wait(left)
            except KeyboardInterrupt:
                self.stop()
        return self._outcome()

    def __await__(self) -> Generator[Any, None, Any]:
        while not self._ended.is_set():
            yield from asyncio.sleep(0.05).__await__()
        return self._outcome()

    def _outcome(self) -> Any:
        if self.error is not None:
            raise self.error
        return self.result

    def add_hook(self, hook: Callable[[Event], Any], *, replay: bool = True) -> Run:
        """Send events to one more `hook` from now on, after the latest ones so far (`replay`).

        Of the batches of a capture, all but the latest come without their tokens and projections.
        A hook with a method ``on_run_end(run)`` is told when the run has ended.
        """
        with self._cond:
            if replay:
                for event in self._events:
                    hook(event)
            self._hooks.append(hook)
            ended = self._ended.is_set()
        if ended and hasattr(hook, "on_run_end"):
            hook.on_run_end(self)
        return self

    def __repr__(self) -> str:
        after = f" after {self.last.kind}" if self.last is not None else ""
        problem = f": {type(self.error).__name__}: {self.error}" if self.error is not None else ""
        return f"<Run {self.state}{after}{problem}>"

    def _ipython_display_(self) -> None:
        shown = getattr(self.view, "_ipython_display_", None)
        if shown is None:
            raise NotImplementedError  # IPython then takes the bundle below
        shown()

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, Any]:
        if self.view is not None and hasattr(self.view, "_repr_mimebundle_"):
            bundle = self.view._repr_mimebundle_(include=include, exclude=exclude)
            if bundle:
                return bundle
        return {"text/plain": repr(self)}


def start(fn: Callable[..., Any], *args: Any, paused: bool = False, **kwargs: Any) -> Run:
    """Run ``fn(*args, iteration_hook=…, **kwargs)`` in a daemon thread.

    Parameters
    ----------
    fn : callable
        A function that takes ``iteration_hook=``: `Sparse1DProbe.fit`, `capture`, `train_lenses`.
    *args, **kwargs : as `fn` takes them
        Hooks given as ``iteration_hook`` are called as well.
    paused : bool
        Hold at the very first event, so that every iteration can be stepped by hand.

    Returns
    -------
    Run
    """
    run = Run(fn, args, kwargs, paused=paused)
    _runs.add(run)
    run._thread.start()
    return run
