"""Monitors: what they show, what their buttons do, and what they leave alone."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp
from live_fakes import capture_events, finishing, fit_events, lens_events, play, reading, summary_task_events

from interp import Sparse1DProbe, live, run
from interp import events as ev
from interp.live import monitor as monitors
from interp.live.monitor import CaptureMonitor, FitMonitor, LensMonitor


def press(monitor, do, **extra):
    """What the browser sends when a button is pressed."""
    monitor._on_message(monitor, {"do": do, **extra}, [])


def until(condition, seconds=30.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.005)


@pytest.fixture
def data():
    rng = np.random.default_rng(0)
    x = sp.random(3000, 40, density=0.2, format="csr", rng=rng, dtype=np.float32)
    x.data = rng.exponential(1.0, x.nnz).astype(np.float32)
    return x, rng.integers(0, 12, 3000)


@pytest.mark.parametrize(
    ("monitor", "events"),
    [(FitMonitor, fit_events), (CaptureMonitor, capture_events), (LensMonitor, lens_events)],
)
def test_a_monitor_follows_a_run_to_its_end(monitor, events, capfd):
    r = run.start(play, events(), 0.0)
    shown = monitor(r)
    r.wait(20)
    until(lambda: shown._thread is None)
    assert shown.head["state"] == "done"
    assert shown.head["fraction"] == 1.0
    assert shown.head == {
        **shown.digest.frame()[0],
        **{k: shown.head[k] for k in ("title", "state", "message", "note", "controls")},
    }
    assert shown._place._html.startswith('<div class="interp-static"')
    assert capfd.readouterr() == ("", "")  # workers never print


def test_the_table_of_concepts_is_sent_when_it_changes():
    monitor = LensMonitor()
    events = list(lens_events(10))
    for event in events:
        monitor(event)
    monitor.refresh()
    assert [row["term"] for row in monitor.table] == [f"concept {c}" for c in range(9, -1, -1)]
    before = monitor.table
    monitor.refresh()
    assert monitor.table is before


def test_buttons_pause_step_leap_resume_and_stop():
    r = run.start(play, fit_events(), 0.002, paused=True)
    monitor = FitMonitor(r)
    until(lambda: r.last is not None)
    steps = lambda: monitor.digest.n_steps  # noqa: E731
    for n in (1, 2, 3):
        press(monitor, "step")
        until(lambda n=n: steps() == n and r._holding)
    press(monitor, "step")
    press(monitor, "step")  # a double click is two steps
    until(lambda: steps() == 5 and r._holding)
    time.sleep(0.1)
    assert steps() == 5
    press(monitor, "leap")
    until(lambda: isinstance(r.last, ev.SlabEnd) and r._holding)
    assert monitor.digest.n_slabs_done == 1
    press(monitor, "resume")
    until(lambda: steps() > monitor.digest.slab_began + 3)
    press(monitor, "pause")
    assert monitor.head["state"] == "paused"
    until(lambda: r._holding)
    held = steps()
    time.sleep(0.1)
    assert steps() == held
    press(monitor, "stop")
    result = r.wait(5)
    assert r.state == "stopped"
    assert sum(e.is_step for e in result) == held


def test_a_button_never_waits_for_the_worker():
    slow = run.start(play, fit_events(), 1.0)
    monitor = FitMonitor(slow)
    start = time.perf_counter()
    for do in ("pause", "step", "leap", "resume", "pause", "step", "stop"):
        press(monitor, do)
    assert time.perf_counter() - start < 0.2
    slow.wait(10)


def test_what_moves_while_no_iteration_does_is_said():
    monitor = FitMonitor()
    *events, end = fit_events(n_slabs=2)
    for event, note in (
        (next(reading(1)), "reading rows: 100,000 of 200,000"),
        (events[0], ""),
        *((event, None) for event in events[1:]),
        (finishing(30, 42), "finishing pairs on the raw events: 30 of 42"),
        (end, ""),
    ):
        monitor(event)
        if note is not None:
            monitor.refresh()
            assert monitor.head["note"].startswith(note) if note else monitor.head["note"] == ""
    monitor.close()


def test_stop_is_honoured_within_a_third_of_a_second():
    r = run.start(play, fit_events(n_slabs=40, width=4), 0.02)
    monitor = FitMonitor(r)
    until(lambda: monitor.digest.n_steps > 3)
    start = time.perf_counter()
    press(monitor, "stop")
    r.wait(5)
    assert time.perf_counter() - start <= 0.3


@pytest.mark.parametrize("n", [1, 3])
def test_stop_keeps_the_result_of_a_run_limited_to_that_iteration(data, n):
    """One slab, so that max_iter limits the same iteration that Stop does."""
    x, y = data
    sizes = {"class_slab_size": 12, "latent_block_size": 8}
    r = live.fit(Sparse1DProbe(**sizes), x, y, paused=True)
    monitor = FitMonitor(r)
    for _ in range(n):
        r.step(timeout=20)
    press(monitor, "stop")
    stopped = r.wait(20)
    limited = Sparse1DProbe(**sizes, max_iter=n).fit(x, y)
    np.testing.assert_array_equal(stopped.coef_, limited.coef_)
    np.testing.assert_array_equal(stopped.intercept_, limited.intercept_)
    np.testing.assert_array_equal(stopped.n_iter_, limited.n_iter_)


def test_watching_does_not_change_the_fit(data):
    x, y = data
    r = live.fit(Sparse1DProbe(), x, y)
    FitMonitor(r)
    alone = Sparse1DProbe().fit(x, y)
    np.testing.assert_array_equal(r.wait(60).coef_, alone.coef_)


def test_step_prints_nothing_and_returns_the_event(data, capfd):
    r = live.fit(Sparse1DProbe(), *data, paused=True)
    first, second = r.step(timeout=20), r.step(timeout=20)
    slab = r.step(until=ev.SlabEnd, timeout=20)
    r.stop().wait(20)
    assert (first.iteration, second.iteration) == (1, 2)
    assert isinstance(slab, ev.SlabEnd)
    assert capfd.readouterr() == ("", "")


def test_iter_fit_is_a_plain_generator_of_the_same_events(data):
    seen: list[ev.Event] = []
    Sparse1DProbe(class_slab_size=4).fit(*data, iteration_hook=seen.append)
    stepped = list(Sparse1DProbe(class_slab_size=4).iter_fit(*data))
    assert [e.kind for e in stepped] == [e.kind for e in seen]
    partial = Sparse1DProbe(class_slab_size=4)
    for event in partial.iter_fit(*data):
        if isinstance(event, ev.SlabEnd):
            break
    assert set(partial.status_[:, 4:].ravel()) == {"not_started"}
    assert not np.isnan(partial.coef_[:, :4]).any()


def test_the_error_of_the_worker_is_shown():
    def job(iteration_hook=None):
        play(list(fit_events())[:10], 0.0, iteration_hook)
        raise ValueError("x: row 17, column 3 is NaN")

    r = run.start(job)
    monitor = FitMonitor(r)
    with pytest.raises(ValueError, match="row 17"):
        r.wait(5)
    until(lambda: monitor._thread is None)
    assert monitor.head["state"] == "failed"
    assert monitor.head["message"] == "ValueError: x: row 17, column 3 is NaN"
    assert "row 17" in monitor._place._html


def test_a_hook_that_raises_stops_the_run_and_shows_why(data):
    def hook(event):
        if event.is_step:
            raise RuntimeError("my hook is broken")

    r = live.fit(Sparse1DProbe(), *data, iteration_hook=hook)
    monitor = FitMonitor(r)
    with pytest.raises(RuntimeError, match="my hook is broken"):
        r.wait(20)
    until(lambda: monitor._thread is None)
    assert monitor.head["message"] == "RuntimeError: my hook is broken"


def test_a_slow_hook_is_named_in_the_log(data, caplog):
    def molasses(event):
        time.sleep(0.02)

    with caplog.at_level("WARNING", "interp"):
        live.fit(Sparse1DProbe(), *data, iteration_hook=molasses).wait(60)
    assert any("molasses" in r.message and "took" in r.message for r in caplog.records)


def test_as_a_hook_a_monitor_can_stop_the_job():
    monitor = FitMonitor()
    worker = threading.Thread(target=play, args=(fit_events(), 0.005, monitor))
    worker.start()
    until(lambda: monitor.digest.n_steps > 2)
    assert monitor.head["controls"] == "stop"
    press(monitor, "stop")
    worker.join(5)
    assert not worker.is_alive()
    assert monitor.digest.n_steps < 20


def test_as_a_hook_a_monitor_can_follow_one_fit_after_another():
    monitor = FitMonitor()
    for seed in (1, 2):
        play(fit_events(seed=seed), 0.0, monitor)
        until(lambda: monitor._thread is None)
        assert monitor.head["state"] == "done"
    assert monitor.digest.frame()[0] == {
        k: v for k, v in monitor.head.items() if k not in ("title", "message", "note", "controls")
    }


# --------------------------------------------------------------------------------------- logs


def test_a_folder_without_logs_is_waited_for_and_said_so(tmp_path):
    monitor = FitMonitor(tmp_path / "jobs")
    try:
        assert monitor.head["state"] == "waiting"
        assert "Waiting for the logs of" in monitor.head["message"]
        assert "does not exist yet" in monitor.head["message"]
        (tmp_path / "jobs").mkdir()
        until(lambda: "no log there yet" in monitor.head["message"])
        play(fit_events(), 0.0, ev.JsonlLog(tmp_path / "jobs" / "a.jsonl"))
        until(lambda: monitor.head["state"] == "done")
        assert monitor.head["message"] == ""
        assert monitor.head["controls"] == ""
    finally:
        monitor.close()


def test_several_jobs_are_listed_and_chosen(tmp_path):
    events = list(fit_events())
    for name, n in (("job0", len(events)), ("job1", 40), ("job2", 90)):
        with ev.JsonlLog(tmp_path / f"{name}.jsonl") as log:
            for event in events[:n]:
                log(event)
    monitor = FitMonitor(tmp_path)
    try:
        until(lambda: len(monitor.head.get("jobs", [])) == 3)
        states = {name: state for name, state, *_ in monitor.head["jobs"]}
        assert states == {"job0": "done", "job1": "running", "job2": "running"}
        press(monitor, "select", job="job2")
        assert monitor.head["job"] == "job2"
        assert monitor.head["steps"] == sum(e.is_step for e in events[:90])
        press(monitor, "select", job="job0")
        assert monitor.head["state"] == "done"
    finally:
        monitor.close()
    assert "Probe fit: job0: done" in monitor._place._html
    assert "<td>3 jobs: 1 done, 2 running</td>" in monitor._place._html


def test_each_task_of_a_cluster_has_its_state_though_it_fits_nothing(tmp_path):
    """Logs of summary tasks hold no event of a fit: their states, shards and errors show all the same."""
    oom = "MemoryError: 3 GiB asked for"
    logs = {
        "task-0000": list(summary_task_events(0)),
        "task-0001": list(summary_task_events(1))[:4],
        "task-0002": list(summary_task_events(2, error=oom)),
        "task-0003": [*summary_task_events(3, error=oom), *list(summary_task_events(3, attempt=2))[:3]],
        "task-0010": list(summary_task_events(10, error="Cancelled: task-0010 was cancelled")),
    }
    for name, events in logs.items():
        with ev.JsonlLog(tmp_path / f"{name}.jsonl") as log:
            for event in events:
                log(event)
    (tmp_path / "task-0004.jsonl").touch()
    monitor = FitMonitor(tmp_path)
    try:
        until(lambda: len(monitor.head.get("jobs", [])) == 6)
        assert [(name, state, round(share, 1)) for name, state, share in monitor.head["jobs"]] == [
            ("task-0000", "done", 1.0),
            ("task-0001", "running", 0.6),
            ("task-0002", "failed", 0.4),
            ("task-0003", "running", 0.4),
            ("task-0004", "waiting", 0.0),
            ("task-0010", "stopped", 0.4),
        ]
        assert monitor.head["jobs_say"] == "6 jobs: 1 done, 2 running, 1 stopped, 1 failed, 1 waiting"
        press(monitor, "select", job="task-0002")
        assert (monitor.head["state"], monitor.head["message"]) == ("failed", oom)
        press(monitor, "select", job="task-0003")
        assert monitor.head["message"] == ""
        assert "task 4 of 6 on node-7" in monitor.head["task"]
        assert "attempt 2" in monitor.head["task"]
        assert "2 of 5 shards" in monitor.head["task"]
        assert "100,000 rows, 4,000,000 events, 40,000,000 events/s" in monitor.head["task"]
    finally:
        monitor.close()


def test_tasks_without_a_log_yet_are_counted(tmp_path):
    with ev.JsonlLog(tmp_path / "task-0000.jsonl") as log:
        for event in summary_task_events(0, n_tasks=40):
            log(event)
    monitor = FitMonitor(tmp_path)
    try:
        until(lambda: monitor.head.get("jobs_say") == "40 jobs: 1 done, 39 waiting")
    finally:
        monitor.close()


def test_logs_of_other_kinds_of_jobs_are_left_out(tmp_path):
    for name, events in (("a", capture_events()), ("b", lens_events(3)), ("c", fit_events())):
        with ev.JsonlLog(tmp_path / f"{name}.jsonl") as log:
            for event in events:
                log(event)
    for cls, name in ((CaptureMonitor, "a"), (LensMonitor, "b"), (FitMonitor, "c")):
        monitor = cls(tmp_path)
        try:
            until(lambda: [job for job, *_ in monitor.head["jobs"]] == [name])  # noqa: B023
            assert monitor.head["state"] == "done"
        finally:
            monitor.close()


def test_a_long_history_is_shown_in_parts(tmp_path, monkeypatch):
    """The first frame does not wait for the last line."""
    monkeypatch.setattr(monitors, "PERIOD", 0.02)
    begin, slab, first, *_ = fit_events(n_slabs=1)
    lines = [json.dumps(e.to_dict()) + "\n" for e in (begin, slab, first)]
    (tmp_path / "long.jsonl").write_text("".join([*lines[:2], *lines[2:] * 9000]))
    seen = set()
    monitor = FitMonitor(tmp_path)
    try:
        until(lambda: (seen.add(monitor.head["steps"]), monitor.head["steps"] == 9000)[1], 30)
        assert len(seen) > 3
    finally:
        monitor.close()


def test_a_log_that_cannot_be_read_is_reported_once(tmp_path, caplog):
    (tmp_path / "job.jsonl").mkdir()
    with caplog.at_level("ERROR", "interp"):
        monitor = FitMonitor(tmp_path)
        try:
            until(lambda: caplog.records)
            time.sleep(0.8)
            assert len(caplog.records) == 1
            assert "IsADirectoryError" in monitor.head["message"]
        finally:
            monitor.close()


def test_lens_training_says_that_it_forwards_prompts():
    """Batches are steps as well: a step by hand must show."""
    monitor = LensMonitor()
    begin, fit, *rest = lens_events(5)
    batch = next(e for e in capture_events() if isinstance(e, ev.BatchEnd))
    monitor(batch)  # of some capture: no business of this monitor
    assert monitor.digest.state == "waiting"
    for event in (begin, batch, batch):
        monitor(event)
    monitor.refresh()
    assert (monitor.head["steps"], monitor.head["fits"], monitor.head["forwarded"]) == (2, 0, 8)
    assert "forwarding prompts into the bank: 4 of 24" in monitor.head["note"]
    monitor(fit)
    monitor.refresh()
    assert (monitor.head["steps"], monitor.head["fits"], monitor.head["note"]) == (3, 1, "")
    for event in rest:
        monitor(event)
    until(lambda: monitor._thread is None)


def test_a_job_that_went_silent_is_told_from_one_that_runs(tmp_path):
    old = time.time() - 3600
    events = [type(e)(**{**e.__dict__, "time": old}) for e in list(fit_events())[:20]]
    with ev.JsonlLog(tmp_path / "killed.jsonl") as log:
        for event in events:
            log(event)
    monitor = FitMonitor(tmp_path)
    try:
        until(lambda: monitor.head["state"] == "silent")
    finally:
        monitor.close()


def test_a_truncated_last_line_waits_until_it_is_complete(tmp_path):
    events = list(fit_events())[:10]
    lines = [json.dumps(e.to_dict()) + "\n" for e in events]
    path = tmp_path / "job.jsonl"
    path.write_text("".join(lines[:5]) + lines[5][:40], encoding="utf-8")
    monitor = FitMonitor(path)
    try:
        until(lambda: monitor.digest.n_steps == sum(e.is_step for e in events[:5]))
        with open(path, "a", encoding="utf-8") as f:
            f.write(lines[5][40:] + "".join(lines[6:]))
        until(lambda: monitor.digest.n_steps == sum(e.is_step for e in events))
    finally:
        monitor.close()


def test_a_hook_whose_job_died_is_told_from_one_that_runs():
    old = time.time() - 3600
    monitor = FitMonitor()
    for event in list(fit_events())[:9]:
        monitor(type(event)(**{**event.__dict__, "time": old}))
    assert monitor.state == "silent"
    monitor(next(fit_events()))
    assert monitor.state == "running"
    monitor.close()


def test_without_matplotlib_the_table_stays_and_no_cell_waits(monkeypatch, caplog):
    def png(fig):
        raise ImportError("pictures need matplotlib")

    monkeypatch.setattr(monitors.plots, "png", png)
    monitor = FitMonitor(run.start(play, fit_events(2), 0.0))
    until(lambda: monitor._place._drawn.is_set())
    page = monitor._place._html
    assert "<img" not in page
    assert "<th>iterations</th>" in page
    assert "ImportError: pictures need matplotlib" in page
    assert "no picture of Probe fit" in caplog.text


def test_a_monitor_says_what_it_cannot_follow():
    with pytest.raises(TypeError, match="got int, expected a Run"):
        FitMonitor(3)


# ------------------------------------------------------------------------------- being polite


def test_a_frame_costs_the_kernel_little():
    monitor = FitMonitor()
    for event in fit_events(n_slabs=40, width=4):
        monitor(event)
    until(lambda: monitor._thread is None)
    costs = []
    for _ in range(20):
        start = time.perf_counter()
        monitor.refresh()
        costs.append(time.perf_counter() - start)
    # About 0.3 ms on an idle machine; a matplotlib frame costs 40.
    assert min(costs) < 0.002
    assert sum(costs) / len(costs) < 0.005


def test_a_script_that_starts_a_run_needs_no_widgets():
    code = (
        "import sys; sys.path.insert(0, 'tests')\n"
        "import numpy as np, scipy.sparse as sp\n"
        "from interp import Sparse1DProbe, live\n"
        "x = sp.random(200, 5, density=0.5, format='csr', random_state=0)\n"
        "r = live.fit(Sparse1DProbe(), x, np.arange(200) % 3)\n"
        "r.wait()\nassert r.view is None\n"
        "assert not {'ipywidgets', 'anywidget', 'matplotlib'} & set(sys.modules), sys.modules.keys()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    assert "slab" not in done.stderr  # not a terminal: no bar


def test_a_monitor_has_one_thread(monkeypatch):
    """A run may tell its first events while the monitor is still being made."""
    started = []
    start = FitMonitor._start
    monkeypatch.setattr(FitMonitor, "_start", lambda self: started.append(start(self)))
    for _ in range(3):
        r = run.start(play, fit_events(1), 0.0)
        monitor = FitMonitor(r)
        r.wait(10)
        until(lambda m=monitor: m._thread is None)
    assert len(started) == 3


AT_THE_END = """
import time
from pathlib import Path
from live_fakes import fit_events
from interp.live.monitor import FitMonitor

begun = []

def draw(self):
    begun.append(True)
    time.sleep(0.5)
    Path({path!r}).write_text("drawn")

FitMonitor._draw_still = draw
monitor = FitMonitor()
for event in fit_events(1):
    monitor(event)
while not begun:
    time.sleep(0.01)
"""


def test_a_process_that_ends_lets_a_picture_be_drawn(tmp_path):
    """A thread that is cut off inside matplotlib aborts the process."""
    script = AT_THE_END.format(path=str(tmp_path / "drawn"))
    subprocess.run([sys.executable, "-c", script], cwd=Path(__file__).parent, check=True, timeout=120)
    assert (tmp_path / "drawn").read_text() == "drawn"
