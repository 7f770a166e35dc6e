"""What a job says of itself outside its events: a bar on a terminal, the memory of its process."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

logger = logging.getLogger(__name__)


def rss_bytes() -> int:
    """Resident memory of this process in bytes (its peak, where the system tells no more; 0 if unknown)."""
    try:
        with open("/proc/self/statm", "rb") as f:
            return int(f.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
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
def bar(total: int | None, desc: str, unit: str = "it") -> Iterator[Any]:
    """A tqdm bar on a terminal; nothing but two log lines in a process without one.

    Parameters
    ----------
    total : int or None
        Number of units expected.
    desc, unit : str
        As in tqdm.

    Yields
    ------
    object with ``update(n)`` and ``set_postfix_str(s)``
    """
    if sys.stderr is None or not sys.stderr.isatty():
        logger.info("%s: %s %s", desc, total if total is not None else "?", unit)
        yield _NoBar()
        logger.info("%s: done", desc)
        return
    from tqdm import tqdm

    with tqdm(total=total, desc=desc, unit=unit, mininterval=0.25, leave=True) as shown:
        yield shown
