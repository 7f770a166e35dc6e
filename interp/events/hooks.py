"""Sending events to the hooks of a call."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from typing import Any

from interp.events.records import Event

logger = logging.getLogger(__name__)

Hook = Callable[[Event], Any]


def asks_to_stop(answer: Any) -> bool:
    """Whether a hook's answer is ``True``, Python's or NumPy's or torch's.

    Parameters
    ----------
    answer : object

    Returns
    -------
    bool
    """
    # Not truthiness: `file.write` as a hook returns a count and asks for nothing.
    return answer is True or (hasattr(answer, "dtype") and bool(answer))


class Emitter:
    """Sends events to the hooks of one call and remembers whether one of them asked for a stop.

    Parameters
    ----------
    hook : callable, list of callable, or None
        What the caller passed as ``iteration_hook``.

    Raises
    ------
    TypeError
        If something in `hook` is not callable.

    Notes
    -----
    An emitter without hooks is false, so a loop computes nothing for nobody::

        emit = Emitter(iteration_hook)
        ...
        if emit and emit(IterationEnd(...)):
            break
    """

    def __init__(self, hook: Hook | Iterable[Hook] | None) -> None:
        hooks = [] if hook is None else [hook] if callable(hook) else list(hook)
        for h in hooks:
            if not callable(h):
                raise TypeError(
                    f"iteration_hook: got {type(h).__name__}, expected a callable or a list of them"
                )
        self._hooks: list[Hook] = hooks
        self._spent = [0.0] * len(hooks)
        self._began = time.perf_counter()
        #: True once a hook has asked for a stop.
        self.stop = False

    def __bool__(self) -> bool:
        return bool(self._hooks)

    def __call__(self, event: Event) -> bool:
        """Send `event` to every hook; return whether a stop has been asked for, now or before."""
        for i, hook in enumerate(self._hooks):
            start = time.perf_counter()
            answer = hook(event)
            self._spent[i] += time.perf_counter() - start
            if asks_to_stop(answer):
                self.stop = True
        return self.stop

    def close(self) -> None:
        """Name in the log every hook that took more than 5 % of the run (and more than 0.1 s)."""
        total = time.perf_counter() - self._began
        for hook, spent in zip(self._hooks, self._spent, strict=True):
            # A Run's gate waits while the run is paused: that is not the hook being slow.
            spent -= getattr(hook, "waited", 0.0)
            if spent > 0.1 and spent > 0.05 * total:
                name = getattr(hook, "__qualname__", type(hook).__qualname__)
                logger.warning("hook %s took %.2f s of %.2f s: do less per event", name, spent, total)
