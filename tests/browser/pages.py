"""What the browser tests ask a page: the state and the steps of its first monitor."""

from __future__ import annotations

import time

MONITOR = ".interp-monitor"


def steps(page) -> int:
    return int(page.locator(MONITOR).first.get_attribute("data-steps"))


def state(page) -> str:
    return page.locator(MONITOR).first.get_attribute("data-state")


def until(condition, seconds=60.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


def settled(page, quiet: float = 0.8) -> int:
    """Wait until the number of steps has stood still for `quiet` seconds; returns it."""
    deadline, since, held = time.monotonic() + 20.0, time.monotonic(), steps(page)
    while time.monotonic() - since < quiet:
        assert time.monotonic() < deadline, "the steps do not stand still"
        time.sleep(0.05)
        if steps(page) != held:
            since, held = time.monotonic(), steps(page)
    return held


def it_moves(page, times: int) -> None:
    """Numbers and charts change so often within two seconds; a busy machine has three of them."""
    for _ in range(3):
        seen, pictures, end = set(), set(), time.monotonic() + 2.0
        while time.monotonic() < end:
            seen.add(steps(page))
            pictures.add(picture(page))
            time.sleep(0.05)
        if min(len(seen), len(pictures)) >= times:
            return
    raise AssertionError(f"in two seconds {len(seen)} numbers and {len(pictures)} pictures")


def it_steps(page, button: str, held: int) -> None:
    """Each press of a button is one step more, and not two."""
    for n in (1, 2, 3):
        page.locator(MONITOR).first.get_by_role("button", name=button, exact=True).click()
        until(lambda n=n: steps(page) == held + n)
        assert settled(page, 0.5) == held + n


def it_stops(lab, page) -> float:
    """Press Stop; seconds until the job has ended, which writes the time into a file."""
    ended = lab.root / "ended"
    ended.unlink(missing_ok=True)
    stop = page.locator(MONITOR).first.get_by_role("button", name="Stop")
    clicked = stop.evaluate("button => { button.click(); return Date.now() / 1000; }")
    until(lambda: ended.exists() and ended.read_text())
    until(lambda: state(page) == "stopped")
    return float(ended.read_text()) - clicked


def it_stops_at_once(lab, page) -> None:
    """Stop takes effect within 0.3 s."""
    assert it_stops(lab, page) <= 0.3


def picture(page) -> str:
    return page.evaluate("document.querySelector('.interp-monitor canvas').toDataURL()")


def open_and_run(lab, page, name: str, cells: list[str], kernel: str = "python3") -> None:
    """A notebook of these cells, open and run in the page; returns when a monitor is there."""
    lab.open(page, lab.notebook(name, cells, kernel))
    lab.run_all(page)
    page.locator(MONITOR).first.wait_for(timeout=120_000)
