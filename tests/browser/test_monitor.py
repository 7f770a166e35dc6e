"""Monitors in JupyterLab in a real browser: they move, obey, survive a reload, and leave a picture."""

from __future__ import annotations

import json
import subprocess
import sys
import time

import pytest
from pages import (
    MONITOR,
    it_moves,
    it_steps,
    it_stops_at_once,
    open_and_run,
    settled,
    state,
    steps,
    until,
)

pytestmark = [pytest.mark.browser, pytest.mark.slow]

SETUP = """
import time
from pathlib import Path
import live_fakes as fakes
from interp import live, run
from interp.live.monitor import CaptureMonitor, FitMonitor, LensMonitor

def job(events, seconds, iteration_hook=None):
    try:
        return fakes.play(events, seconds, iteration_hook)
    finally:
        Path("ended").write_text(str(time.time()))
"""
START = "r = run.start(job, fakes.fit_events({slabs}, {width}), {seconds})\nr.view = {monitor}(r)\nr"


def start(slabs=40, width=4, seconds=0.05, monitor="FitMonitor") -> str:
    return START.format(slabs=slabs, width=width, seconds=seconds, monitor=monitor)


def test_it_moves_pauses_steps_and_stops(lab, page, kernel, shots):
    open_and_run(lab, page, f"controls-{kernel}.ipynb", [SETUP, start()], kernel)
    until(lambda: steps(page) > 5)

    it_moves(page, 6)  # about four times a second
    page.screenshot(path=shots / f"running-{kernel}.png")

    page.get_by_role("button", name="Pause", exact=True).click()
    until(lambda: state(page) == "paused")
    held = settled(page)
    it_steps(page, "Step", held)

    page.get_by_role("button", name="Step slab").click()
    until(lambda: steps(page) > held + 3)
    after = settled(page)

    page.get_by_role("button", name="Resume").click()
    until(lambda: steps(page) > after + 3)
    it_stops_at_once(lab, page)
    lab.wait_idle(page)
    assert page.locator(f"{MONITOR} .i-buttons button").count() == 0


def test_the_keyboard_is_enough(lab, page):
    open_and_run(lab, page, "keyboard.ipynb", [SETUP, start()])
    pause = page.get_by_role("button", name="Pause", exact=True)
    pause.focus()
    page.keyboard.press("Enter")
    until(lambda: state(page) == "paused")
    # The focus is not lost with the button that was pressed, nor by the frames that follow.
    time.sleep(0.6)
    focused = "document.activeElement.getAttribute('aria-label')"
    assert page.evaluate(focused) == "Resume"
    page.keyboard.press("Tab")
    assert page.evaluate(focused) == "Step"
    before = steps(page)
    page.keyboard.press("Space")
    until(lambda: steps(page) == before + 1)
    time.sleep(0.6)
    assert page.evaluate(focused) == "Step"
    page.keyboard.press("x")  # Lab's "cut cell" must not reach it
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    assert page.evaluate(focused) == "Stop"
    page.keyboard.press("Enter")
    until(lambda: state(page) == "stopped")
    assert page.locator(MONITOR).count() == 1


def test_everything_has_a_name_and_shows_its_focus(lab, page):
    """For screen readers and keyboards; and nothing moves for those who asked for stillness."""
    cells = [
        SETUP,
        start(seconds=0.1),
        "s = run.start(fakes.play, fakes.lens_events(20), 0.0); s.view = LensMonitor(s); s",
        "t = run.start(fakes.play, fakes.capture_events(), 0.0); t.view = CaptureMonitor(t); t",
        "import live_fakes\nfrom interp import Sparse1DProbe\n"
        "live.SlabTuner(Sparse1DProbe(), None, bench=live_fakes.Bench())",
    ]
    page.set_viewport_size({"width": 1280, "height": 3200})
    open_and_run(lab, page, "names.ipynb", cells)
    page.locator(".interp-tuner").wait_for(timeout=120_000)
    until(lambda: page.locator(f"{MONITOR}[data-state=done]").count() == 2)
    until(lambda: steps(page) > 1)
    nameless = """() => [...document.querySelectorAll(
        ':is(.interp-monitor, .interp-tuner) :is(button, input, canvas, [role])')]
      .filter((e) => e.checkVisibility() && !['status', 'alert'].includes(e.getAttribute('role')))
      .filter((e) => !(e.getAttribute('aria-label') || e.textContent).trim())
      .map((e) => e.outerHTML)"""
    assert page.evaluate(nameless) == []
    labels = page.evaluate(f"[...document.querySelectorAll('{MONITOR} canvas')].map(e => e.ariaLabel)")
    assert len(labels) == 10
    assert sum(any(c.isdigit() for c in label) for label in labels) >= 9  # they say numbers, not only names

    # The last button before the tuner's sliders, then with the keyboard from one to the next.
    tuner = page.locator(".interp-tuner")
    tuner.get_by_role("button", name="Measure", exact=True).focus()
    seen = set()
    for _ in range(6):
        page.keyboard.press("Tab")
        focused = page.evaluate_handle("document.activeElement")
        tag, ring = focused.evaluate("e => [e.tagName, parseFloat(getComputedStyle(e).outlineWidth)]")
        assert ring >= 2, f"{tag} shows no focus"
        seen.add(tag)
    assert seen == {"BUTTON", "INPUT"}

    moves = "getComputedStyle(document.querySelector('.interp-monitor .i-state'), '::before').animationName"
    assert page.evaluate(moves) == "i-pulse"
    page.emulate_media(reduced_motion="reduce")
    assert page.evaluate(moves) == "none"


def test_a_reload_shows_the_monitor_again(lab, page):
    open_and_run(lab, page, "reload.ipynb", [SETUP, start(seconds=0.1)])
    page.keyboard.press("Control+s")
    until(lambda: "widget-view" in (lab.root / "reload.ipynb").read_text())
    before = steps(page)
    lab.open(page, "reload.ipynb")
    page.locator(MONITOR).first.wait_for(timeout=120_000)
    until(lambda: steps(page) > before)
    now = steps(page)
    until(lambda: steps(page) > now)
    page.get_by_role("button", name="Stop").click()
    until(lambda: state(page) == "stopped")


def test_a_reload_leaves_the_buttons_alive(lab, page):
    """ipykernel 7.4 sends what the browser says to where the widget spoke from, which may be gone by then."""
    gone = "type(r.view.comm)._reply_subshell_for = lambda *_: 'a subshell of the page before'"
    open_and_run(lab, page, "gone.ipynb", [SETUP, start(seconds=0.1), gone])
    lab.wait_idle(page)
    page.get_by_role("button", name="Pause", exact=True).click()
    until(lambda: state(page) == "paused")
    it_stops_at_once(lab, page)


def test_it_leaves_a_picture_when_the_kernel_is_gone(lab, browser, page, shots):
    cells = [SETUP, start(6, 26, 0.01), "events = await r"]
    open_and_run(lab, page, "kept.ipynb", cells)
    until(lambda: state(page) == "done")
    shown = "getComputedStyle(document.querySelector('.interp-static')).display"
    page.locator(".interp-static img").first.wait_for(state="attached", timeout=120_000)
    assert page.evaluate(shown) == "none"  # while the widget lives, the picture is not needed
    page.keyboard.press("Control+s")
    until(lambda: "data:image/png" in (lab.root / "kept.ipynb").read_text())
    saved = json.loads((lab.root / "kept.ipynb").read_text())
    assert "widgets" not in saved["metadata"]
    lab.shutdown()

    lab.open(page, "kept.ipynb")
    page.locator(".interp-static img").first.wait_for(timeout=120_000)
    time.sleep(1.0)
    assert page.evaluate(shown) != "none"
    assert page.locator(MONITOR).count() == 0
    assert "Probe fit: done" in page.locator(".interp-static").inner_text()
    assert not page.get_by_text("model not found").is_visible()
    page.screenshot(path=shots / "reopened.png")

    # The same as a page of its own, which has neither kernel nor network.
    command = [sys.executable, "-m", "nbconvert", "--to", "html", "kept.ipynb"]
    subprocess.run(command, cwd=lab.root, check=True, capture_output=True)
    context = browser.new_context(viewport={"width": 1280, "height": 1400}, offline=True)
    exported = context.new_page()
    exported.goto((lab.root / "kept.html").as_uri(), wait_until="domcontentloaded")
    exported.locator(".interp-static img").wait_for(timeout=120_000)
    exported.screenshot(path=shots / "exported.png")
    outputs = " ".join(exported.locator(".jp-OutputArea-output").all_inner_texts())
    assert outputs.strip().startswith("Probe fit: done")  # no word of a widget before it
    assert "rror" not in outputs
    context.close()


test_it_leaves_a_picture_when_the_kernel_is_gone.expected_console = "widget model not found"


def test_saved_too_early_it_says_so(lab, page, shots):
    open_and_run(lab, page, "early.ipynb", [SETUP, start(seconds=0.2)])
    assert not page.locator(".interp-static").is_visible()
    page.keyboard.press("Control+s")
    until(lambda: "widget-view" in (lab.root / "early.ipynb").read_text())
    lab.shutdown()
    lab.open(page, "early.ipynb")
    page.get_by_text("the live view needs its kernel").wait_for(timeout=120_000)
    time.sleep(1.0)
    assert not page.get_by_text("model not found").is_visible()
    page.screenshot(path=shots / "reopened-early.png")


test_saved_too_early_it_says_so.expected_console = "widget model not found"


@pytest.mark.parametrize("theme", ["Light", "Dark"])
def test_all_monitors_are_readable_in_both_themes_and_at_600_px(lab, page, shots, theme):
    lab.theme(theme)
    try:
        cells = [
            SETUP,
            start(10, 16, 0.01),
            "s = run.start(fakes.play, fakes.lens_events(), 0.001); s.view = LensMonitor(s); s",
            "t = run.start(fakes.play, fakes.capture_events(), 0.05); t.view = CaptureMonitor(t); t",
            "from interp import Sparse1DProbe\n"
            "tuner = live.SlabTuner(Sparse1DProbe(), None, bench=fakes.Bench())\ntuner.measure()\ntuner",
        ]
        page.set_viewport_size({"width": 1280, "height": 2600})
        open_and_run(lab, page, f"themes-{theme}.ipynb", cells)
        page.locator(f"{MONITOR}[data-state=done]").nth(2).wait_for(timeout=120_000)
        tuner = page.locator(".interp-tuner")
        tuner.wait_for(timeout=120_000)
        around = 1280 - width_of(page.locator(MONITOR).first)
        for width in (1180, 800, 600):  # of the monitor; it grows no wider than the first
            page.set_viewport_size({"width": int(width + around), "height": 2600})
            for i, name in enumerate(("fit", "lens", "capture")):
                shown = page.locator(MONITOR).nth(i)
                until(lambda: abs(width_of(shown) - width) <= 2)  # noqa: B023
                time.sleep(0.3)  # the charts follow in the next frames
                shown.screenshot(path=shots / f"{name}-{theme.lower()}-{width}.png")
                inside = shown.evaluate("e => e.scrollWidth <= e.clientWidth")
                assert inside, f"{name} does not fit at {width}"
                assert overlapping(shown) == []
                assert contrast(shown) >= 4.5
            tuner.screenshot(path=shots / f"tuner-{theme.lower()}-{width}.png")
            assert tuner.evaluate("e => e.scrollWidth <= e.clientWidth"), f"the tuner does not fit at {width}"
    finally:
        lab.theme("Light")


def width_of(monitor) -> float:
    return monitor.evaluate("e => e.getBoundingClientRect().width")


def overlapping(monitor) -> list[str]:
    """What leaves its panel, or lies upon another one."""
    return monitor.evaluate(
        """root => {
          const box = (e) => e.getBoundingClientRect();
          const panels = [...root.querySelectorAll('.i-panel')];
          const inside = (a, b) =>
            a.top > b.top - 1 && a.bottom < b.bottom + 1 && a.left > b.left - 1 && a.right < b.right + 1;
          const meet = (a, b) =>
            a.left < b.right - 1 && b.left < a.right - 1 && a.top < b.bottom - 1 && b.top < a.bottom - 1;
          const parts = 'h4, .i-legend span, canvas, .i-bars div, .i-bars b, .i-columns b';
          const out = [];
          panels.forEach((p, i) => {
            for (const e of p.querySelectorAll(parts))
              if (!inside(box(e), box(p))) out.push(`${e.tagName} ${e.textContent} outside of panel ${i}`);
            if (panels.slice(i + 1).some((q) => meet(box(p), box(q)))) out.push(`panel ${i} upon another`);
          });
          return out;
        }"""
    )


def contrast(monitor) -> float:
    """Smallest contrast (WCAG) of the texts of a monitor against its paper."""
    return monitor.evaluate(
        """root => {
          const luminance = (css) => {
            const c = document.createElement('canvas').getContext('2d');
            c.fillStyle = css; c.fillRect(0, 0, 1, 1);
            const [r, g, b] = [...c.getImageData(0, 0, 1, 1).data].slice(0, 3).map((v) => {
              v /= 255;
              return v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
            });
            return 0.2126 * r + 0.7152 * g + 0.0722 * b;
          };
          const paper = luminance(getComputedStyle(root).backgroundColor);
          const texts = [...root.querySelectorAll('h3, h4, dt, dd, .i-times, .i-legend, .i-caption, th, td')];
          return Math.min(...texts.map((e) => {
            const ink = luminance(getComputedStyle(e).color);
            return (Math.max(ink, paper) + 0.05) / (Math.min(ink, paper) + 0.05);
          }));
        }"""
    )


def test_a_failure_is_shown_with_its_message(lab, page, shots):
    cell = (
        "def job(iteration_hook=None):\n"
        "    fakes.play(list(fakes.fit_events())[:9], 0.01, iteration_hook)\n"
        "    raise ValueError('x: row 17, column 3 is NaN')\n"
        "r = run.start(job); r.view = FitMonitor(r); r"
    )
    open_and_run(lab, page, "failure.ipynb", [SETUP, cell])
    until(lambda: state(page) == "failed")
    assert "ValueError: x: row 17, column 3 is NaN" in page.get_by_role("alert").first.inner_text()
    page.locator(MONITOR).first.screenshot(path=shots / "failed.png")


def test_logs_of_several_jobs_are_followed_together(lab, page, shots):
    cells = [
        SETUP,
        "from interp.events import JsonlLog\nFitMonitor('jobs')",
        "runs = [run.start(fakes.play, fakes.fit_events(seed=i), 0.02 * (i + 1), "
        "iteration_hook=JsonlLog(f'jobs/job{i}.jsonl')) for i in range(3)]",
    ]
    open_and_run(lab, page, "jobs.ipynb", cells)
    jobs = page.locator(".i-jobs button")
    until(lambda: jobs.count() == 3)
    jobs.nth(2).click()
    until(lambda: "job2" in page.locator(f"{MONITOR} h3").inner_text())
    page.locator(MONITOR).first.screenshot(path=shots / "jobs.png")
    until(lambda: page.locator(".i-jobs [data-state=done]").count() == 3, 120)


def test_flame_and_tuner(lab, page, shots):
    cells = [
        SETUP,
        "import numpy as np, scipy.sparse as sp\nfrom interp import Sparse1DProbe\n"
        "x = sp.random(4000, 200, density=0.1, format='csr', random_state=0)\ny = np.arange(4000) % 40\n"
        "probe = Sparse1DProbe()\nr = live.fit(probe, x, y)\nr",
        "await r\nlive.flame(probe.fit, x, y)",
        "tuner = live.SlabTuner(probe, x, y, repeats=1)\ntuner",
    ]
    page.set_viewport_size({"width": 1280, "height": 2600})
    open_and_run(lab, page, "flame.ipynb", cells)
    frame = page.frame_locator("iframe.interp-flame")
    frame.get_by_text("Sparse1DProbe.fit").first.wait_for(timeout=120_000)
    tuner = page.locator(".interp-tuner")
    tuner.wait_for(timeout=120_000)
    tuner.get_by_role("button", name="Measure", exact=True).click()
    until(lambda: "measured" in tuner.locator("[role=status]").inner_text(), 120)
    assert tuner.locator(".i-cell[aria-label*='not measured']").count() == 0
    assert tuner.locator(".i-cell[aria-label*='the fastest']").count() == 2
    assert tuner.locator(".i-cell[aria-label*='auto']").count() == 1
    tuner.get_by_role("button", name="Apply the best").click()
    until(lambda: "applied: class_slab_size=" in tuner.locator("[role=status]").inner_text())
    applied = tuner.locator(".i-cell[aria-label*='the fastest']")
    assert [applied.nth(i).get_attribute("aria-pressed") for i in range(2)] == ["true", "true"]
    tuner.screenshot(path=shots / "tuner.png")
    page.screenshot(path=shots / "flame.png")
