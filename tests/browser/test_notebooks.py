"""The repository's own notebooks, run in JupyterLab in a real browser."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

import pytest

pytestmark = [pytest.mark.browser, pytest.mark.slow]

MONITOR = ".interp-monitor"
NOTEBOOKS = Path(__file__).resolve().parents[2] / "notebooks"


def run_notebook(lab, page, name, shot, seconds=240.0, app="lab"):
    """Run all cells; returns the states and the numbers of steps that the monitors went through."""
    # As it was shipped: one that an earlier test saved holds views of widgets whose kernel is gone.
    shutil.copy(NOTEBOOKS / name, lab.root / name)
    # Tall, so that Lab, which draws only the cells in view, draws them all.
    page.set_viewport_size({"width": 1280, "height": 9000})
    lab.open(page, name, app=app)
    lab.run_all(page)
    seen: set[tuple[str, str]] = set()
    best, deadline = 0, time.monotonic() + seconds
    look = f"""[...document.querySelectorAll('{MONITOR}')].map(
        e => [e.querySelector('h3').textContent, e.dataset.state, e.dataset.steps,
             e.querySelector('.i-progress').getAttribute('aria-valuenow') || 0])"""
    busy = page.locator(".jp-Notebook-ExecutionIndicator[data-status=busy]")
    cells = page.locator(".jp-CodeCell")
    while True:
        for title, state, steps, percent in page.evaluate(look):
            seen.add((title, steps))
            # The picture that says most is one from beyond the middle.
            if state == "running" and best < 55 and int(percent) > best:
                best = int(percent)
                page.locator(f"{MONITOR}[data-state=running]").first.screenshot(path=shot)
        prompts = page.locator(".jp-CodeCell .jp-InputPrompt").all_inner_texts()
        finished = len(prompts) == cells.count() and all(p.strip("[]: ").isdigit() for p in prompts)
        if finished and not busy.count():
            return seen
        errors = page.locator("[data-mime-type='application/vnd.jupyter.error']")
        assert not errors.count(), errors.first.inner_text()
        assert time.monotonic() < deadline, "the notebook did not finish in time"
        time.sleep(0.1)


@pytest.mark.parametrize(
    ("name", "title"), [("02_probe.ipynb", "Probe fit"), ("04_lenses.ipynb", "Lens training")]
)
def test_a_notebook_runs_and_its_monitor_moves(lab, page, shots, name, title):
    seen = run_notebook(lab, page, name, shots / f"{name[:2]}_running.png")
    assert len({steps for what, steps in seen if what == title}) >= 2
    page.screenshot(path=shots / f"{name[:2]}_done.png", scale="css")
    page.keyboard.press("Control+s")
    deadline = time.monotonic() + 15
    while "data:image/png" not in (lab.root / name).read_text():
        assert time.monotonic() < deadline
        time.sleep(0.2)
    assert "widgets" not in json.loads((lab.root / name).read_text())["metadata"]


def test_a_notebook_runs_in_notebook_7(lab, page, shots):
    """The one with both, a monitor and flames."""
    pytest.importorskip("notebook", reason="needs Notebook 7 (pip install 'interp[test]')")
    seen = run_notebook(lab, page, "03_profile.ipynb", shots / "03_running_notebook7.png", app="notebook")
    assert "/notebooks/" in page.url
    assert len({steps for what, steps in seen if what == "Probe fit"}) >= 2
    assert page.locator(MONITOR).count() == 1
    assert page.locator("iframe.interp-flame").count() == 3
    for i in range(3):
        shown = page.frame_locator("iframe.interp-flame").nth(i).get_by_text("Sparse1DProbe.fit").first
        shown.wait_for(timeout=120_000)
    page.screenshot(path=shots / "03_done_notebook7.png", scale="css")


# Notebook 7.6 raises errors of its own on any page, an empty notebook's too; a widget's come from a blob.
test_a_notebook_runs_in_notebook_7.console_of = ("blob:", "widget", "interp")
