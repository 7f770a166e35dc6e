"""Where the time goes: a flame of one call, inline in the notebook and as an HTML file.

pyinstrument samples the thread it is started in; jobs run in a thread of their own, so it is started
there (from the main thread it would see nothing but a wait), and torch gets one thread meanwhile, so that a
solver shares nothing out among threads that nobody samples. `compare_flames` measures what listening costs:
the hook off against DEBUG logging of every event.
"""

from __future__ import annotations

import html
import json
import logging
import os
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from interp.events import Event
from interp.files import expect_writable, write_text

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Flame", "FlamePair", "compare_flames", "flame", "profile_fit"]

_FONTS = re.compile(r"https://fonts\.googleapis\.com/[^\"']*")

#: How far pyinstrument indents a call: too far for deep calls in a notebook. Where it is not found, no harm.
_INDENT = re.compile(r"(\$\{\w+\[2\]\*)35\b")

logger = logging.getLogger(__name__)


class Flame:
    """One profiled call. Shows itself as a flame in a notebook; `save` writes it as a page.

    Parameters
    ----------
    title : str
        Heading.
    profiler : pyinstrument.Profiler
        Stopped, with its session.
    result : object
        What the call returned.
    seconds : float
        Wall-clock time of the call, with the profiler on and on one thread.
    """

    def __init__(self, title: str, profiler: Any, result: Any, seconds: float) -> None:
        self.title, self.result, self.seconds = title, result, seconds
        self._profiler = profiler

    def html(self) -> str:
        """A full page: pyinstrument's interactive flame, which needs no network."""
        # Its one request to the network is for fonts; an empty style sheet leaves the system's own.
        page = _FONTS.sub("data:text/css,", self._profiler.output_html())
        page = _INDENT.sub(r"\g<1>14", page)
        # It writes JSON into a script as it is: a file or function called "</script>…" would end the script.
        before, name, rest = page.rpartition("const sessionData =")
        data, call, after = rest.rpartition("pyinstrumentHTMLRenderer.render(")
        if not name or not call:
            raise RuntimeError("this version of pyinstrument writes a page that interp does not know")
        return before + name + data.replace("<", r"\u003c") + call + after

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the page to `path`, whole or not at all."""
        return write_text(path, self.html())

    def hotspots(self, n: int = 12) -> pd.DataFrame:
        """The functions in which most time was spent themselves, without what they called.

        Parameters
        ----------
        n : int
            Rows at most.

        Returns
        -------
        pandas.DataFrame
            Columns function, where (file:line), seconds, share (0 … 1 of the whole).
        """
        import pandas as pd

        spent: dict[tuple[str, str], float] = {}
        root = self._profiler.last_session.root_frame()
        todo = [root] if root is not None else []
        while todo:
            frame = todo.pop()
            todo.extend(frame.children)
            if not frame.is_synthetic:
                key = (frame.function, f"{frame.file_path_short}:{frame.line_no}")
                spent[key] = spent.get(key, 0.0) + frame.total_self_time
        whole = max(root.time if root is not None else 0.0, 1e-12)
        top = sorted(spent.items(), key=lambda item: -item[1])[:n]
        rows = [(function, where, s, s / whole) for (function, where), s in top if s > 0]
        return pd.DataFrame(rows, columns=["function", "where", "seconds", "share"])

    def __repr__(self) -> str:
        return f"<Flame {self.title}: {self.seconds:.3f} s>"

    def _repr_html_(self) -> str:
        return _block(self.title, f"{self.seconds:.3f} s on one thread", self.html(), self.hotspots(5))


class FlamePair:
    """Two flames of the same call, without and with listening, side by side.

    Attributes
    ----------
    off, debug : Flame
        The call with no hook; with a hook that logs every event at level DEBUG.
    overhead : float
        Median over paired, unprofiled calls of (seconds with DEBUG) / (seconds without) − 1.
    seconds : tuple of float
        Median seconds of these calls without and with DEBUG.
    n_lines : int
        Lines that one call logged.
    """

    def __init__(
        self, off: Flame, debug: Flame, overhead: float, seconds: tuple[float, float], n_lines: int
    ) -> None:
        self.off, self.debug, self.overhead = off, debug, overhead
        self.seconds, self.n_lines = seconds, n_lines

    def save(self, folder: str | os.PathLike[str]) -> tuple[Path, Path]:
        """Write ``flame_off.html`` and ``flame_debug.html`` into `folder`."""
        folder = Path(folder)
        return self.off.save(folder / "flame_off.html"), self.debug.save(folder / "flame_debug.html")

    def summary(self) -> str:
        """The overhead in one line."""
        off, on = self.seconds
        return (
            f"DEBUG logging ({self.n_lines} lines) costs {self.overhead:+.1%}: "
            f"{on:.3f} s against {off:.3f} s with the hook off"
        )

    def __repr__(self) -> str:
        return f"<FlamePair {self.summary()}>"

    def _repr_html_(self) -> str:
        cell = '<div style="flex:1 1 420px;min-width:0">{}</div>'
        both = "".join(cell.format(f._repr_html_()) for f in (self.off, self.debug))
        row = f'<div style="display:flex;flex-wrap:wrap;gap:14px">{both}</div>'
        return f"<p>{html.escape(self.summary())}</p>{row}"


def flame(
    fn: Callable[..., Any], *args: Any, interval: float = 0.001, title: str | None = None, **kwargs: Any
) -> Flame:
    """Call ``fn(*args, **kwargs)`` in a thread of its own and profile it there.

    Torch has one thread inside the call, so that all of its work is in the flame: work that a solver shares
    out among threads would be missing. The call takes longer than outside, mostly by that.

    Parameters
    ----------
    fn : callable
        For instance ``probe.fit``.
    *args, **kwargs : as `fn` takes them
    interval : float
        Seconds between two samples.
    title : str, optional
        Heading; the function's name by default.

    Returns
    -------
    Flame

    Raises
    ------
    Exception
        Whatever `fn` raises.
    ImportError
        If pyinstrument is missing.
    """
    try:
        from pyinstrument import Profiler
    except ImportError as error:
        raise ImportError("flame needs pyinstrument: pip install pyinstrument") from error
    from interp.threads import torch_threads

    title = title or _name(fn)
    out: dict[str, Any] = {}
    profiler = Profiler(interval=interval, async_mode="disabled")

    def work() -> None:
        began = time.perf_counter()
        try:
            with torch_threads(1):
                profiler.start(target_description=title)
                try:
                    out["result"] = fn(*args, **kwargs)
                finally:
                    profiler.stop()
        except BaseException as error:  # raised again below, in the caller's thread
            out["error"] = error
        out["seconds"] = time.perf_counter() - began

    thread = threading.Thread(target=work, daemon=True, name="interp-flame")
    thread.start()
    while thread.is_alive():
        thread.join(0.1)  # in short waits, so that Ctrl-C gets through
    if "error" in out:
        raise out["error"]
    return Flame(title, profiler, out["result"], out["seconds"])


class _DebugLog:
    """A hook that logs each event at DEBUG, and switches DEBUG on for the whole package meanwhile."""

    def __init__(self, file: Any) -> None:
        self.n_lines = 0
        self._logger = logging.getLogger("interp")
        self._handler = logging.StreamHandler(file)
        self._handler.setFormatter(logging.Formatter("%(asctime)s %(name)s %(levelname)s %(message)s"))
        self._handler.addFilter(self._count)

    def _count(self, _: logging.LogRecord) -> bool:
        self.n_lines += 1
        return True

    def __call__(self, event: Event) -> None:
        logger.debug("%s", event)

    def __enter__(self) -> _DebugLog:
        self._before = self._logger.level, self._logger.propagate
        self._logger.addHandler(self._handler)
        self._logger.setLevel(logging.DEBUG)
        self._logger.propagate = False  # thousands of lines belong in the file, not on the screen
        self.n_lines = 0
        return self

    def __exit__(self, *exc: object) -> None:
        self._logger.removeHandler(self._handler)
        self._logger.setLevel(self._before[0])
        self._logger.propagate = self._before[1]


def compare_flames(
    fn: Callable[..., Any], *args: Any, repeats: int = 3, interval: float = 0.001, **kwargs: Any
) -> FlamePair:
    """Profile ``fn(*args, iteration_hook=…)`` with the hook off and with DEBUG logging.

    The flames show where the time goes, on one thread; the overhead is measured apart, without the profiler
    and on as many threads as ever, on `repeats` pairs of calls in turns (after one call that warms up).

    Parameters
    ----------
    fn : callable
        Takes ``iteration_hook=``, for instance ``probe.fit``. It is called ``2 * repeats + 3`` times.
    *args, **kwargs : as `fn` takes them
    repeats : int
        Pairs of unprofiled calls.
    interval : float
        Seconds between two samples.

    Returns
    -------
    FlamePair

    Raises
    ------
    ValueError
        If `repeats` < 1, or a hook is passed: the hook is what is compared.
    """
    if repeats < 1:
        raise ValueError(f"compare_flames: repeats must be at least 1, got {repeats}")
    if "iteration_hook" in kwargs:
        raise ValueError("compare_flames: leave iteration_hook out, it is what is compared")

    def seconds(hook: Any) -> float:
        began = time.perf_counter()
        fn(*args, iteration_hook=hook, **kwargs)
        return time.perf_counter() - began

    name = _name(fn)
    seconds(None)
    with tempfile.TemporaryFile("w+", encoding="utf-8") as file:
        debug = _DebugLog(file)
        pairs = []
        for i in range(repeats):
            # In turns, each first in every other pair: a machine that slows down favours neither.
            timed: dict[bool, float] = {}
            for on in (False, True) if i % 2 == 0 else (True, False):
                if on:
                    with debug:
                        timed[on] = seconds(debug)
                else:
                    timed[on] = seconds(None)
            pairs.append((timed[False], timed[True]))
        off = flame(fn, *args, interval=interval, title=f"{name}, hook off", iteration_hook=None, **kwargs)
        with debug:
            on_ = flame(
                fn, *args, interval=interval, title=f"{name}, DEBUG logging", iteration_hook=debug, **kwargs
            )
    medians = tuple(statistics.median(p[i] for p in pairs) for i in (0, 1))
    overhead = statistics.median(b / a for a, b in pairs) - 1
    return FlamePair(off, on_, overhead, (medians[0], medians[1]), debug.n_lines)


def profile_fit(
    out: str | os.PathLike[str],
    *,
    token_acts: str | os.PathLike[str] | None = None,
    labels: str | os.PathLike[str] | None = None,
    n_rows: int = 1000,
    n_classes: int = 256,
    n_latents: int = 2048,
    seed: int = 0,
) -> dict[str, Any]:
    """Profile a probe fit on a small shard in a fresh process: what ``interp profile`` does.

    The process runs with ``PYTORCH_NO_CUDA_MEMORY_CACHING=1``, which torch reads at its first CUDA
    allocation, so that allocations show in the timeline. The fit runs with the hook off and with
    DEBUG logging; both flames are written.

    Parameters
    ----------
    out : str or Path
        Folder for ``flame_off.html``, ``flame_debug.html``, ``hotspots.csv`` and ``profile.json``.
    token_acts, labels : str or Path, optional
        ``token_acts.npz`` (scipy CSR) and ``labels.bin`` (uint8, one per row); their first `n_rows`
        rows are fitted. Random sparse codes by default.
    n_rows, n_classes, n_latents : int
        Size of the shard (`n_latents` of the random one).
    seed : int
        Of the random shard.

    Returns
    -------
    dict
        ``overhead``, ``seconds_off``, ``seconds_debug``, ``n_lines``, ``summary`` (one line), and the
        paths ``flame_off``, ``flame_debug``, ``hotspots``.

    Raises
    ------
    ValueError
        If a size is below 1.
    RuntimeError
        If the process fails; its messages are in the error.
    """
    for name, size in (("n_rows", n_rows), ("n_classes", n_classes), ("n_latents", n_latents)):
        if size < 1:
            raise ValueError(f"{name} must be at least 1, got {size}")
    folder = Path(out)
    expect_writable(folder)
    job = {
        "token_acts": None if token_acts is None else str(token_acts),
        "labels": None if labels is None else str(labels),
        "n_rows": n_rows,
        "n_classes": n_classes,
        "n_latents": n_latents,
        "seed": seed,
    }
    code = "import sys; from interp.live.flame import _profile_here; _profile_here(*sys.argv[1:])"
    command = [sys.executable, "-c", code, str(folder), json.dumps(job)]
    env = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"the profiled process failed ({done.returncode}):\n{done.stderr[-3000:]}")
    return json.loads((folder / "profile.json").read_text(encoding="utf-8"))


def _profile_here(out: str, job: str) -> None:
    """The fresh process of `profile_fit`."""
    from interp import Sparse1DProbe

    folder, options = Path(out), json.loads(job)
    x, y = _shard(**options)
    probe = Sparse1DProbe()
    pair = compare_flames(probe.fit, x, y, n_classes=options["n_classes"], interval=0.0005)
    off, debug = pair.save(folder)
    spots = pair.off.hotspots(20).merge(
        pair.debug.hotspots(20), how="outer", on=["function", "where"], suffixes=("_off", "_debug")
    )
    spots = spots.sort_values("seconds_off", ascending=False, na_position="last")
    hotspots = write_text(folder / "hotspots.csv", spots.to_csv(index=False))
    report = {
        "overhead": pair.overhead,
        "seconds_off": pair.seconds[0],
        "seconds_debug": pair.seconds[1],
        "n_lines": pair.n_lines,
        "summary": pair.summary(),
        "flame_off": str(off),
        "flame_debug": str(debug),
        "hotspots": str(hotspots),
    }
    write_text(folder / "profile.json", json.dumps(report, indent=1))


def _shard(
    *, token_acts: str | None, labels: str | None, n_rows: int, n_classes: int, n_latents: int, seed: int
) -> tuple[Any, Any]:
    import numpy as np
    import scipy.sparse as sp

    if (token_acts is None) != (labels is None):
        raise ValueError("profile: give both token_acts and labels, or neither")
    if token_acts is not None and labels is not None:
        from interp.probe.files import load_csr, load_labels

        code = load_csr(token_acts)
        return code[:n_rows], load_labels(labels, code.shape[0])[:n_rows].astype(np.int64)
    rng = np.random.default_rng(seed)
    x = sp.csr_matrix(sp.random(n_rows, n_latents, density=0.02, rng=rng, dtype=np.float32))
    x.data = rng.exponential(1.0, x.nnz).astype(np.float32)
    return x, rng.integers(0, n_classes, n_rows)


_FRAME = "width:100%;height:430px;border:1px solid #8a8f9866;border-radius:8px;background:#fff"


def _name(fn: Callable[..., Any]) -> str:
    return str(getattr(fn, "__qualname__", type(fn).__qualname__))


def _block(title: str, seconds: str, page: str, spots: pd.DataFrame) -> str:
    """The page in a frame of its own: its styles and scripts stay inside, the notebook's outside."""
    rows = "".join(
        f"<tr><td>{html.escape(function)}</td><td>{html.escape(where)}</td>"
        f"<td>{own:.3f} s</td><td>{share:.0%}</td></tr>"
        for function, where, own, share in zip(*(spots[c] for c in spots.columns), strict=True)
    )
    return (
        f"<b>{html.escape(title)}</b> &nbsp; {seconds}"
        f'<iframe class="interp-flame" title="Flame of {html.escape(title)}" srcdoc="{html.escape(page)}" '
        f'style="{_FRAME}"></iframe>'
        f"<details><summary>hotspots</summary><table>{rows}</table></details>"
    )
