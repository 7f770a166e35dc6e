"""What the browser tests ask a page: the state and the steps of its first monitor."""

from __future__ import annotations

import time

MONITOR = ".interp-monitor"


def steps(page) -> int:
    return int(page.locator(MONITOR).first.get_attribute("data-steps"))


def state(page) -> str:
    return page.locator(MONITOR).first.get_attribute("data-state")


def until(condition, seconds=15.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


def picture(page) -> str:
    return page.evaluate("document.querySelector('.interp-monitor canvas').toDataURL()")


def open_and_run(lab, page, name: str, cells: list[str], kernel: str = "python3") -> None:
    """A notebook of these cells, open and run in the page; returns when a monitor is there."""
    lab.open(page, lab.notebook(name, cells, kernel))
    lab.run_all(page)
    page.locator(MONITOR).first.wait_for(timeout=30_000)
