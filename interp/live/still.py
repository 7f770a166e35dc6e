"""What stays in the output when a run has ended: a picture and a table, without JavaScript or a kernel.

A widget's state is not saved with a notebook. So a monitor is shown in two outputs: the widget, and
a place with a display id. When the run has ended, the place gets a picture; before, it says that one will
come, for whoever opens a notebook that was saved too early. While the widget lives on the page it hides the
place (a rule in monitor.js); where no kernel runs, the place is seen, and the style below hides the
"model not found" that Jupyter writes in the widget's stead.

The picture is published by the kernel's own thread, never by a worker: by the event loop when the
kernel is free, or at the end of the cell that waited for the run, so that `nbconvert --execute` and
nbclient, which listen only while a cell runs, save it too.
"""

from __future__ import annotations

import base64
import html
import logging
import threading
from collections.abc import Callable, Sequence
from typing import Any

__all__ = ["Place", "in_notebook", "still_html"]

logger = logging.getLogger(__name__)

#: Seconds that the end of a cell waits for a picture that is being drawn.
_PATIENCE = 20.0

_STYLE = """<style>
.interp-static {{ font: 12px/1.4 var(--jp-ui-font-family, system-ui, sans-serif); max-width: 1100px; }}
.interp-static img {{ max-width: 100%; border-radius: 8px; display: block; }}
.interp-static table {{ border-collapse: collapse; margin: 8px 0 2px; font-size: 12px; }}
.interp-static tr {{ background: none !important; }}
.interp-static th, .interp-static td {{
  text-align: left !important; padding: 2px 14px 2px 0 !important; font-weight: 400 !important; }}
.interp-static th, .interp-static em {{ opacity: 0.7; }}
.jp-OutputArea:has([data-run="{uid}"]) .jupyter-widgets:not(:has(*)) {{ display: none; }}
</style>"""


def in_notebook() -> bool:
    """Whether this process is a Jupyter kernel (in a terminal, IPython's too, it is not)."""
    return _kernel() is not None


def _kernel() -> Any:
    try:
        from IPython import get_ipython
    except ImportError:
        return None
    return getattr(get_ipython(), "kernel", None)


def still_html(
    uid: str, title: str, state: str, draw: Callable[[], bytes], rows: Sequence[Sequence[str]]
) -> str:
    """The PNG that `draw` returns over a table of (name, value), as HTML that needs nothing else."""
    heading = f"{html.escape(title)}: {html.escape(state)}"
    try:
        image = f'<img alt="{heading}" src="data:image/png;base64,{base64.b64encode(draw()).decode()}">'
    except Exception as error:  # whatever it is (no matplotlib, no room on the disk): the table stays
        logger.warning("no picture of %s: %s", title, error)
        image, rows = "", [*rows, ["picture", f"{type(error).__name__}: {error}"]]
    cells = "".join(f"<tr><th>{html.escape(k)}</th><td>{html.escape(v)}</td></tr>" for k, v in rows)
    return (
        f'<div class="interp-static" data-run="{uid}">{_STYLE.format(uid=uid)}'
        f"<b>{heading}</b>{image}<table>{cells}</table></div>"
    )


class Place:
    """The output below a monitor, without a picture until `fill`.

    Parameters
    ----------
    uid : str
        Name of the run's place: its display id, and what the widget hides while it lives.
    title : str
        Of what it shows; named until then, to a reader without a kernel.
    """

    def __init__(self, uid: str, title: str) -> None:
        self.uid, self._title = uid, title
        self._drawn = threading.Event()
        self._expected: Callable[[], bool] = lambda: False
        self._html = ""
        self._loop: Any = None
        self._watching = False

    def show(self, expected: Callable[[], bool]) -> None:
        """Display the place here. Call in the kernel's own thread.

        Parameters
        ----------
        expected : callable
            Whether a picture is on its way (asked at the end of each cell).
        """
        from IPython import get_ipython

        self._expected = expected
        self._display(update=False)
        if self._drawn.is_set():
            return
        shell = get_ipython()
        self._loop = getattr(shell.kernel, "io_loop", None)
        if not self._watching:
            shell.events.register("post_run_cell", self._cell_ended)
            self._watching = True

    def fill(self, page: str) -> None:
        """Keep `page` and have the kernel's thread publish it. Call in any thread."""
        self._html = page
        self._drawn.set()
        if self._loop is not None:
            self._loop.add_callback(self._publish)

    def _cell_ended(self, *_: object) -> None:
        if self._expected() and self._drawn.wait(_PATIENCE):
            self._publish()

    def _publish(self) -> None:
        if not self._watching:
            return
        from IPython import get_ipython

        self._watching = False
        get_ipython().events.unregister("post_run_cell", self._cell_ended)
        self._display(update=True)

    def _display(self, *, update: bool) -> None:
        from IPython.display import display, update_display

        style = _STYLE.format(uid=self.uid)
        name = html.escape(self._title)
        waits = f"{name}: the live view needs its kernel; a picture stays here once it has ended."
        empty = f'<div class="interp-static" data-run="{self.uid}">{style}<em>{waits}</em></div>'
        page = self._html or empty
        show = update_display if update else display
        show({"text/html": page, "text/plain": ""}, raw=True, display_id=f"interp-{self.uid}")
