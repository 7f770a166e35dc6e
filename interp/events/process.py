"""What a job says of itself outside its events: a bar on a terminal, the memory of its process."""

from __future__ import annotations

import logging
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

logger = logging.getLogger(__name__)

_nested = threading.local()  # how many bars of this thread are open


def rss_bytes() -> int:
    """Resident memory of this process in bytes (its peak, where the system tells no more; 0 if unknown)."""
    try:
        with open("/proc/self/statm", "rb") as f:
            return int(f.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return peak_rss_bytes()


def peak_rss_bytes() -> int:
    """Largest resident memory that this process ever had, in bytes (0 if unknown)."""
    try:
        import resource
    except ImportError:  # Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


class _NoBar:
    def update(self, n: float = 1) -> None:
        pass

    def set_postfix_str(self, s: str = "", refresh: bool = True) -> None:
        pass


@contextmanager
def bar(total: int | None, desc: str, unit: str = "it", *, delay: float = 0.0) -> Iterator[Any]:
    """A tqdm bar on a terminal; nothing but two log lines in a process without one.

    Inside the bar of another job of this thread (the forward passes of a training), a bar leaves no line
    behind and logs at level DEBUG.

    Parameters
    ----------
    total : int or None
        Number of units expected.
    desc, unit : str
    delay : float
        As in tqdm.

    Yields
    ------
    object with ``update(n)`` and ``set_postfix_str(s)``
    """
    depth = getattr(_nested, "depth", 0)
    _nested.depth = depth + 1
    try:
        if sys.stderr is None or not sys.stderr.isatty():
            level = logging.DEBUG if depth else logging.INFO
            logger.log(level, "%s: %s %s", desc, total if total is not None else "?", unit)
            yield _NoBar()
            logger.log(level, "%s: done", desc)
            return
        from tqdm import tqdm

        scale = total is None or total >= 100_000
        said = {"desc": desc, "unit": unit, "unit_scale": scale, "mininterval": 0.25, "delay": delay}
        with tqdm(total=total, leave=not depth, **said) as shown:
            yield shown
    finally:
        _nested.depth = depth
