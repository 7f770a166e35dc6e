"""The real jobs on the shipped model in a real browser: monitors that move, obey, and say what failed."""

from __future__ import annotations

import time

import pytest
from pages import (
    MONITOR,
    it_moves,
    it_steps,
    it_stops,
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
import interp
from interp.capture import shipped

model = interp.load_model("tiny")

def told(event):
    if event.kind in ("CaptureEnd", "TrainEnd", "FitEnd"):
        Path("ended").write_text(str(time.time()))
"""
CAPTURE = """
traits = interp.TraitVectors.fit(model, ["uncertainty_calibration"])
questions = [
    {"id": f"{p.id} ({i})", "messages": [{"role": "user", "content": p.text}]}
    for i in range(150) for p in shipped("uncertainty")
]
run = interp.live.capture(
    model, questions, tier=2, vectors=traits.vectors(), max_new_tokens=40, batch_tokens=256,
    iteration_hook=told,
)
run
"""
LENSES = """
pack = interp.ConceptPack.load("tiny")
run = interp.live.train_lenses(model, pack, site="resid_post.2", iteration_hook=told)
run
"""
READING = """
import numpy as np, scipy.sparse as sp

rng = np.random.default_rng(0)
latents = np.sort(rng.integers(0, 2048, (10_000, 50)), axis=1)
ends = np.arange(0, latents.size + 1, 50)
x = sp.csr_array((rng.exponential(1.0, latents.size), latents.ravel(), ends), (10_000, 2048))
shard = x, rng.integers(0, 151, 10_000)
run = interp.live.fit(interp.Sparse1DProbe(), [shard] * 5000, None, iteration_hook=told)
run
"""


def press(page, name: str) -> None:
    page.locator(MONITOR).first.get_by_role("button", name=name, exact=True).click()


def tile(page, name: str) -> str:
    return (
        page.locator(f"{MONITOR} dl > div", has=page.locator("dt", has_text=name))
        .first.locator("dd")
        .inner_text()
    )


def it_holds(page) -> int:
    press(page, "Pause")
    until(lambda: state(page) == "paused")
    return settled(page)  # what was under way when it was pressed is finished


def last_output(page) -> str:
    """What the last cell says, once it has run."""
    prompt = page.locator(".jp-CodeCell").last.locator(".jp-InputPrompt")
    until(lambda: prompt.inner_text().strip("[]: ").isdigit(), 120)
    return page.locator(".jp-CodeCell").last.locator(".jp-OutputArea-output").last.inner_text()


def test_a_capture_moves_holds_steps_survives_a_reload_and_stops(lab, page, shots):
    page.set_viewport_size({"width": 1280, "height": 2000})
    open_and_run(lab, page, "job-capture.ipynb", [SETUP, CAPTURE])
    until(lambda: steps(page) > 2, 120)
    it_moves(page, 4)
    page.locator(MONITOR).first.screenshot(path=shots / "job-capture.png")
    held = it_holds(page)
    it_steps(page, "Step batch", held)
    prompts = tile(page, "prompts")

    page.keyboard.press("Control+s")  # from a button of the monitor, where the focus is
    until(lambda: "widget-view" in (lab.root / "job-capture.ipynb").read_text())
    lab.open(page, "job-capture.ipynb")
    page.locator(MONITOR).first.wait_for(timeout=120_000)
    until(lambda: state(page) == "paused")
    assert (steps(page), tile(page, "prompts")) == (held + 3, prompts)

    press(page, "Resume")
    until(lambda: steps(page) > held + 5)
    it_stops_at_once(lab, page)
    done = int(tile(page, "prompts").split("/")[0].replace(",", ""))
    assert 0 < done < 1200


def test_a_fit_says_that_it_reads_its_rows_and_can_be_held_and_stopped_there(lab, page, shots):
    open_and_run(lab, page, "job-reading.ipynb", [SETUP, READING])

    def says() -> str:
        return page.locator(f"{MONITOR} .i-note").inner_text()

    until(lambda: says().startswith("reading rows: "), 120)
    seen, end = set(), time.monotonic() + 2.0
    while time.monotonic() < end:
        seen.add(says())
        time.sleep(0.05)
    assert len(seen) >= 4
    press(page, "Pause")
    until(lambda: state(page) == "paused")
    time.sleep(1.0)
    held = says()
    page.locator(MONITOR).first.screenshot(path=shots / "job-reading.png")
    time.sleep(1.0)
    assert says() == held
    press(page, "Resume")
    until(lambda: says() != held)
    it_stops_at_once(lab, page)
    assert steps(page) == 0


def test_lenses_are_trained_under_the_eyes(lab, page, shots):
    page.set_viewport_size({"width": 1280, "height": 2400})
    open_and_run(lab, page, "job-lenses.ipynb", [SETUP, LENSES])
    until(lambda: steps(page) > 2, 120)
    until(lambda: "forwarding prompts" in page.locator(f"{MONITOR} .i-note").inner_text(), 120)
    until(lambda: int(tile(page, "fits").replace(",", "")) > 0, 120)
    held = it_holds(page)
    it_steps(page, "Step", held)
    rows = page.locator(f"{MONITOR} tbody tr")
    curves = "document.querySelectorAll('.interp-monitor canvas')[0].toDataURL()"
    before = page.evaluate(curves)
    press(page, "Resume")

    # The table, the grades and the learning curves grow.
    until(lambda: rows.count() > 0, 120)
    few = rows.count()
    until(lambda: rows.count() > few, 120)
    assert page.evaluate(curves) != before
    counts = page.locator(f"{MONITOR} .i-columns b").all_inner_texts()
    assert sum(int(c) for c in counts) > 0
    page.locator(MONITOR).first.screenshot(path=shots / "job-lenses.png")
    # The fit under way is finished, and the lenses that stand are graded: that is work, but not rounds of it.
    assert it_stops(lab, page) < 10
    assert "stopped" in page.locator(f"{MONITOR} tbody").inner_text()


@pytest.mark.parametrize(
    ("cell", "says"),
    [
        ('run = interp.live.capture(model, ["a text"], sites=["resid_port.2"])\nrun', "resid_port.2"),
        ('run = interp.live.train_lenses(model, "tiny", site="resid_post.99")\nrun', "resid_post.99"),
    ],
    ids=["capture", "lenses"],
)
def test_what_a_job_refuses_is_said_in_its_monitor(lab, page, cell, says):
    open_and_run(
        lab,
        page,
        "job-refused.ipynb",
        [SETUP, cell, "try:\n    await run\nexcept Exception as e:\n    print('raised', e)"],
    )
    until(lambda: state(page) == "failed", 120)
    assert says in page.get_by_role("alert").first.inner_text()
    assert "raised" in last_output(page)
