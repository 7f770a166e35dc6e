"""In a kernel without a browser: what a saved notebook keeps of a run."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

nbclient = pytest.importorskip("nbclient")
nbformat = pytest.importorskip("nbformat")

SETUP = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
import live_fakes as fakes
from interp import live, run
from interp.live.monitor import FitMonitor, LensMonitor
"""
WIDGET = "application/vnd.jupyter.widget-view+json"


def execute(*cells: str):
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c) for c in (SETUP, *cells)])
    client = nbclient.NotebookClient(book, timeout=60, kernel_name="python3", store_widget_state=False)
    return client.execute().cells[1:]


@pytest.fixture(scope="module")
def cells():
    return execute(
        "r = run.start(fakes.play, fakes.fit_events(), 0.002)\nr.view = FitMonitor(r, title='A fit')\nr",
        "events = await r\nlen(events)",
        "r",
        "def job(iteration_hook=None):\n    raise ValueError('nothing to fit')\n"
        "bad = run.start(job)\nbad.view = FitMonitor(bad)\nbad",
        "try:\n    await bad\nexcept ValueError as e:\n    print(e)",
        "r.view",
        "from interp.events import JsonlLog\nimport tempfile\nfolder = tempfile.mkdtemp()\n"
        "fakes.play(fakes.fit_events(2), 0, JsonlLog(folder + '/job.jsonl'))\n"
        "logs = FitMonitor(folder)\nlogs",
        "import time\nwhile not logs.jobs:\n    time.sleep(0.05)\nlogs.close()",
        "held = run.start(fakes.play, fakes.fit_events(), 0.0, paused=True)\n"
        "held.view = FitMonitor(held, title='<b>held</b>')\nheld",
    )


def still(cell) -> str:
    return cell.outputs[1]["data"]["text/html"]


def test_a_run_shows_its_monitor_and_leaves_a_picture_and_a_table(cells):
    widget, place = cells[0].outputs
    assert WIDGET in widget["data"]
    assert "<img" not in widget["data"]["text/html"]
    assert "data:image/png;base64," in place["data"]["text/html"]
    assert "A fit: done" in place["data"]["text/html"]
    assert "<th>iterations</th>" in place["data"]["text/html"]
    assert len(json.dumps(cells[0])) < 300_000


def test_the_picture_is_there_when_the_waiting_cell_has_ended(cells):
    assert cells[1].outputs[-1]["data"]["text/plain"].isdigit()
    # Published in that cell, where nbclient listens, not in a later one.
    assert all("interp-static" not in json.dumps(o) for o in cells[1].outputs)


def test_shown_again_after_the_end_it_has_its_picture_at_once(cells):
    for cell in (cells[2], cells[5]):
        assert WIDGET in cell.outputs[0]["data"]
        assert "data:image/png;base64," in still(cell)


def test_a_failed_run_leaves_its_message(cells):
    assert "failed" in still(cells[3])
    assert "ValueError: nothing to fit" in still(cells[3])
    assert cells[4].outputs[0]["text"] == "nothing to fit\n"


def test_a_monitor_of_logs_leaves_its_picture_when_it_is_closed(cells):
    assert "Probe fit" in still(cells[6])
    assert "data:image/png;base64," in still(cells[6])


def test_saved_in_the_middle_of_a_run_it_says_what_is_missing(cells):
    assert "<em>&lt;b&gt;held&lt;/b&gt;: the live view needs its kernel;" in still(cells[8])
    assert "<img" not in still(cells[8])


def test_nothing_is_printed_by_workers(cells):
    kinds = [o["output_type"] for cell in cells[:3] for o in cell.outputs]
    assert set(kinds) <= {"display_data", "execute_result"}


def test_in_a_terminal_a_run_is_one_line_of_text(capfd):
    from IPython.core.formatters import DisplayFormatter

    sys.path.insert(0, str(Path(__file__).parent))
    import live_fakes as fakes

    from interp import run
    from interp.live.monitor import FitMonitor

    r = run.start(fakes.play, fakes.fit_events(2), 0.0)
    r.view = FitMonitor(r)
    r.wait(10)
    bundle, _ = DisplayFormatter().format(r)
    assert bundle["text/plain"] in (repr(r), repr(r.view))
    assert capfd.readouterr() == ("", "")
