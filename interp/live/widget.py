"""What every widget of the package has: a front end, a name in the page, and a way to show itself."""

from __future__ import annotations

import atexit
import threading
import uuid
import weakref
from pathlib import Path
from typing import Any

import anywidget
import traitlets

__all__ = ["LiveWidget", "front_end"]

_HERE = Path(__file__).parent

#: Seconds that a process waits at its end for what a widget is doing.
_PATIENCE = 10.0
_widgets: weakref.WeakSet[LiveWidget] = weakref.WeakSet()


@atexit.register
def _end_all() -> None:
    """Let the threads of widgets end first: one that is cut off inside matplotlib would abort the process."""
    threads = [w._thread for w in _widgets]
    for widget in _widgets:
        widget._end_thread()
    for thread in filter(None, threads):
        thread.join(_PATIENCE)


def front_end(name: str) -> str:
    """The JavaScript module of a widget: the charts, then the widget's own file."""
    return "\n".join((_HERE / file).read_text(encoding="utf-8") for file in ("charts.js", name))


class LiveWidget(anywidget.AnyWidget):
    """Base of the widgets.

    Parameters
    ----------
    **traits : object
        Values of traits.
    """

    _css = (_HERE / "monitor.css").read_text(encoding="utf-8")

    uid = traitlets.Unicode().tag(sync=True)

    _thread: threading.Thread | None = None

    def __init__(self, **traits: Any) -> None:
        super().__init__(uid=uuid.uuid4().hex, **traits)
        # ipykernel 7.4 hands what the browser says to the subshell that the widget last spoke from. After a
        # page was loaded again that one may be gone, and no button would work; so no such detour.
        if self.comm is not None:
            self.comm._reply_subshell_for = None
        self.on_msg(self._on_message)
        _widgets.add(self)

    def _end_thread(self) -> None:
        """Ask the thread of the widget to end soon."""
        raise NotImplementedError

    def _on_message(self, _: Any, content: dict[str, Any], __: Any) -> None:
        """Do what the browser asks for."""
        raise NotImplementedError

    def _display(self, name: str) -> None:
        """Display the widget, which has a `Place` below it for its picture."""
        from IPython.display import display

        shown = self._repr_mimebundle_() or ({},)
        # Where a page cannot show the widget, nothing stands here: the place below has the picture.
        display({**shown[0], "text/html": "", "text/plain": name}, raw=True)
