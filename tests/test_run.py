"""A background run holds exactly where it is told to, stops with a valid result, and hides no error."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import textwrap
import threading
import time
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from interp import run as run_module
from interp.events import BatchEnd, Emitter, Event, FitEnd, IterationEnd, SlabBegin, SlabEnd
from interp.run import Run, start

SLABS, ITERATIONS = 4, 5


def iteration_end(slab: int, iteration: int) -> IterationEnd:
    counts = dict.fromkeys(("n_pairs", "n_active", "n_inert", "n_fail", "n_rejected", "n_clipped"), 1)
    lam = dict.fromkeys(("lam_min", "lam_q1", "lam_median", "lam_q3", "lam_max"), 1e-3)
    rest = {"loss_mean": 0.5, "loss_max": 0.6, "grad_max": 0.1, "seconds": 0.01, "bytes_resident": 0}
    return IterationEnd(
        slab=slab,
        n_slabs=SLABS,
        class_start=0,
        class_stop=1,
        iteration=iteration,
        **counts,
        **lam,
        **rest,
    )


class Job:
    """A loop like a fit: slabs of iterations, stoppable between two of them."""

    def __init__(self, pace: float = 0.0) -> None:
        self.done = 0
        self.pace = pace

    def fit(self, *, iteration_hook: Any = None) -> Job:
        emit = Emitter(iteration_hook)
        for s in range(SLABS):
            begin = SlabBegin(slab=s, n_slabs=SLABS, class_start=0, class_stop=1, n_pairs=1, n_inert=0)
            if emit(begin):
                return self
            for i in range(1, ITERATIONS + 1):
                time.sleep(self.pace)
                self.done += 1
                if emit(iteration_end(s, i)):
                    return self
            end = SlabEnd(
                slab=s,
                n_slabs=SLABS,
                class_start=0,
                class_stop=1,
                n_pairs=1,
                n_iter=ITERATIONS,
                n_fail=0,
                status_counts={},
                seconds=0.0,
            )
            if emit(end):
                return self
        return self


def until(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.002)


def stays(read: Callable[[], Any], seconds: float = 0.1) -> Any:
    """The value of `read`, after checking that it does not change."""
    before = read()
    time.sleep(seconds)
    assert read() == before
    return before


# ----------------------------------------------------------------------------- from start to end


def test_a_run_returns_what_the_function_returns():
    job = Job()
    run = start(job.fit)
    assert run.wait(10) is job
    assert run.result is job
    assert run.error is None
    assert (run.state, run.done) == ("done", True)
    assert job.done == SLABS * ITERATIONS
    assert isinstance(run.last, SlabEnd)
    assert "done after SlabEnd" in repr(run)


def test_arguments_are_passed_on_and_the_thread_is_a_named_daemon():
    seen = {}

    def work(a: int, *, b: int, iteration_hook: Any) -> int:
        seen["thread"] = threading.current_thread()
        return a + b

    assert start(work, 1, b=2).wait(10) == 3
    assert seen["thread"].daemon
    assert seen["thread"].name == "interp-work"


@pytest.mark.parametrize("as_list", [False, True])
def test_hooks_of_the_caller_are_called_too(as_list):
    got: list[Event] = []
    run = start(Job().fit, iteration_hook=[got.append] if as_list else got.append)
    run.wait(10)
    assert sum(e.is_step for e in got) == SLABS * ITERATIONS


def test_a_hook_of_the_caller_can_stop_the_run():
    job = Job()
    run = start(job.fit, iteration_hook=lambda e: isinstance(e, SlabEnd))
    assert run.wait(10) is job
    assert job.done == ITERATIONS
    assert run.state == "stopped"


def test_a_hook_of_the_caller_that_asks_for_a_stop_frees_a_held_run():
    job = Job()
    run = start(job.fit, iteration_hook=lambda e: job.done == 2, paused=True)
    run.step(2)
    run.wait(10)  # nobody resumes it
    assert (run.state, job.done) == ("stopped", 2)


@pytest.mark.parametrize("cut_short", [False, True])
def test_the_last_event_tells_whether_the_job_was_cut_short(cut_short):
    """A stop that came too late to change anything leaves a finished run."""
    end = FitEnd(n_pairs=1, n_fail=0, n_polished=0, status_counts={}, seconds=0.0, stopped=cut_short)

    def late(iteration_hook: Any) -> None:
        emit = Emitter(iteration_hook)
        emit(iteration_end(0, 1))
        emit(end)

    run = start(late, iteration_hook=lambda e: e is end)
    run.wait(10)
    assert run.state == ("stopped" if cut_short else "done")


def test_a_slow_hook_of_the_caller_keeps_its_name(caplog):
    def molasses(event: Event) -> None:
        time.sleep(0.02)

    def job(iteration_hook: Any) -> None:
        emit = Emitter(iteration_hook)
        for i in range(8):
            emit(iteration_end(0, i))
        emit.close()

    with caplog.at_level("WARNING", "interp"):
        start(job, iteration_hook=molasses).wait(10)
    assert "molasses took" in caplog.text


def test_what_is_no_hook_is_refused_by_name():
    with pytest.raises(TypeError, match="iteration_hook: got int"):
        start(Job().fit, iteration_hook=[3]).wait(10)


def test_await_gives_the_result_and_leaves_the_loop_free():
    ticks = 0

    async def notebook() -> Job:
        nonlocal ticks

        async def tick() -> None:
            nonlocal ticks
            while True:
                ticks += 1
                await asyncio.sleep(0.01)

        ticker = asyncio.create_task(tick())
        try:
            return await start(Job(pace=0.01).fit)
        finally:
            ticker.cancel()

    assert asyncio.run(notebook()).done == SLABS * ITERATIONS
    assert ticks > 5


def test_await_of_a_finished_run_returns_at_once():
    run = start(Job().fit)
    run.wait(10)

    async def cell() -> Any:
        return await run

    assert asyncio.run(cell()) is run.result


# ------------------------------------------------------------------------------------- failures


class Boom(Exception):
    pass


def failing(*, iteration_hook: Any = None) -> None:
    raise Boom("the disk is on fire")


def test_an_exception_comes_back_from_wait_every_time():
    run = start(failing)
    for _ in range(2):
        with pytest.raises(Boom, match="on fire"):
            run.wait(10)
    assert run.state == "failed"
    assert isinstance(run.error, Boom)
    assert run.result is None
    assert "failed: Boom: the disk is on fire" in repr(run)


def test_an_exception_comes_back_from_await():
    async def cell() -> None:
        await start(failing)

    with pytest.raises(Boom):
        asyncio.run(cell())


def test_the_traceback_leads_to_the_line_that_failed():
    with pytest.raises(Boom) as info:
        start(failing).wait(10)
    assert info.traceback[-1].name == "failing"


def test_an_exception_of_a_callers_hook_is_the_runs():
    def hook(event: Event) -> None:
        raise Boom("in a hook")

    with pytest.raises(Boom, match="in a hook"):
        start(Job().fit, iteration_hook=hook).wait(10)


def test_a_worker_that_exits_is_a_failure_not_a_silence():
    def leave(*, iteration_hook: Any) -> None:
        raise SystemExit(3)

    run = start(leave)
    with pytest.raises(SystemExit):
        run.wait(10)
    assert run.state == "failed"


def test_step_returns_when_the_worker_dies_under_it():
    run = start(failing, paused=True)
    assert run.step(timeout=10) is None
    with pytest.raises(Boom):
        run.wait(10)


# ------------------------------------------------------------------------- pause, step and resume


def test_a_run_started_paused_holds_at_its_first_event():
    job = Job()
    run = start(job.fit, paused=True)
    until(lambda: run.last is not None)
    assert stays(lambda: job.done) == 0
    assert isinstance(run.last, SlabBegin)
    assert run.state == "paused"
    run.resume()
    assert run.state in ("running", "done")
    assert run.wait(10).done == SLABS * ITERATIONS


def test_step_does_exactly_n_iterations():
    job = Job()
    run = start(job.fit, paused=True)
    total = 0
    for n in (1, 1, 3, 2, ITERATIONS + 1):  # the last one passes the end of a slab
        event = run.step(n, timeout=10)
        total += n
        assert stays(lambda: job.done, 0.03) == total
        assert isinstance(event, IterationEnd)
        assert event is run.last
        assert event.slab * ITERATIONS + event.iteration == total
    assert run.state == "paused"
    run.resume().wait(10)


def test_step_until_does_one_slab():
    job = Job()
    run = start(job.fit, paused=True)
    for s in range(SLABS - 1):
        event = run.step(until=SlabEnd, timeout=10)
        assert isinstance(event, SlabEnd)
        assert event.slab == s
        assert stays(lambda: job.done, 0.03) == (s + 1) * ITERATIONS
    run.resume().wait(10)
    assert job.done == SLABS * ITERATIONS


def test_two_slabs_in_one_step_and_then_single_iterations_again():
    job = Job()
    run = start(job.fit, paused=True)
    assert run.step(2, until=SlabEnd, timeout=10).slab == 1
    event = run.step(timeout=10)
    assert (event.slab, event.iteration) == (2, 1)
    assert job.done == 2 * ITERATIONS + 1
    run.stop().wait(10)


def test_steps_beyond_the_end_return_the_last_event():
    run = start(Job().fit, paused=True)
    event = run.step(10**6, timeout=10)
    assert isinstance(event, SlabEnd)
    assert run.done
    assert run.step(timeout=10) is event


def test_pause_holds_at_the_end_of_an_iteration_and_resume_goes_on():
    job = Job(pace=0.005)
    run = start(job.fit)
    until(lambda: job.done >= 2)
    run.pause()
    assert run.state == "paused"
    until(lambda: run._holding)
    done = stays(lambda: job.done)
    assert 2 <= done < SLABS * ITERATIONS
    assert isinstance(run.last, IterationEnd)
    run.resume().wait(10)
    assert job.done == SLABS * ITERATIONS


def test_a_pause_takes_back_steps_that_are_not_done():
    job = Job(pace=0.02)
    run = start(job.fit, paused=True)
    run.step(timeout=10)
    run.step(SLABS * ITERATIONS, wait=False)
    until(lambda: job.done >= 3)
    run.pause()
    until(lambda: run._holding)
    assert stays(lambda: job.done) < SLABS * ITERATIONS
    run.stop().wait(10)


def test_stepping_a_running_run_pauses_it():
    job = Job(pace=0.005)
    run = start(job.fit)
    until(lambda: job.done >= 1)
    assert isinstance(run.step(2, timeout=10), IterationEnd)
    done = stays(lambda: job.done)
    run.step(timeout=10)
    assert job.done == done + 1
    run.stop().wait(10)


def test_resume_in_the_middle_of_nothing_is_harmless():
    run = start(Job().fit).resume()
    run.wait(10)
    run.resume().pause()
    assert run.state == "done"


def test_many_quick_pauses_lose_no_iteration():
    job = Job(pace=0.0005)
    run = start(job.fit)
    deadline = time.monotonic() + 60.0
    while not run.done:
        assert time.monotonic() < deadline, "the run does not end"
        run.pause()
        time.sleep(0.001)
        run.resume()
        time.sleep(0.001)
    assert run.wait(10).done == SLABS * ITERATIONS


def test_step_times_out_by_name_and_the_run_lives_on():
    job = Job(pace=0.2)
    run = start(job.fit, paused=True)
    with pytest.raises(TimeoutError, match=r"next step in time \(state: paused\)"):
        run.step(2, timeout=0.05)
    until(lambda: job.done == 2)
    assert stays(lambda: job.done) == 2
    run.stop().wait(10)


@pytest.mark.parametrize("n", [0, -1])
def test_step_of_nothing_is_refused(n):
    run = start(Job().fit, paused=True)
    with pytest.raises(ValueError, match=f"n >= 1, got {n}"):
        run.step(n)
    run.stop().wait(10)


# ----------------------------------------------------------------------------------------- stop


def test_stop_takes_effect_before_the_next_iteration():
    job = Job(pace=0.01)
    run = start(job.fit)
    until(lambda: job.done >= 3)
    asked = job.done
    run.stop()
    assert run.state in ("stopping", "stopped")
    assert run.wait(10) is job  # a partial result is a result
    assert run.state == "stopped"
    assert job.done <= asked + 1


def test_stop_frees_a_paused_run():
    job = Job()
    run = start(job.fit, paused=True)
    run.step(2, timeout=10)
    began = time.perf_counter()
    run.stop().wait(10)
    assert time.perf_counter() - began < 0.3
    assert job.done == 2
    assert run.state == "stopped"


def test_stop_after_the_end_changes_nothing():
    run = start(Job().fit)
    run.wait(10)
    run.stop()
    assert run.state == "done"


def test_wait_times_out_and_the_run_goes_on():
    job = Job(pace=0.05)
    run = start(job.fit)
    with pytest.raises(TimeoutError, match=r"still running after 0\.02 s"):
        run.wait(0.02)
    assert not run.done
    assert run.wait(10).done == SLABS * ITERATIONS


def test_an_interrupt_while_waiting_stops_gracefully(monkeypatch):
    job = Job(pace=0.01)
    run = start(job.fit)
    real, interrupted = run._ended.wait, []

    def wait(timeout: float | None = None) -> bool:
        if not interrupted:
            interrupted.append(True)
            raise KeyboardInterrupt
        return real(timeout)

    monkeypatch.setattr(run._ended, "wait", wait)
    assert run.wait(10) is job
    assert run.state == "stopped"
    assert 0 < job.done < SLABS * ITERATIONS


# ---------------------------------------------------------------------------------- later hooks


def test_a_later_hook_hears_what_it_missed_once_and_in_order():
    got: list[Event] = []
    run = start(Job().fit, paused=True)
    run.step(3, timeout=10)
    run.add_hook(got.append)
    assert [e.kind for e in got] == ["SlabBegin"] + ["IterationEnd"] * 3
    run.resume().wait(10)
    assert [e.slab for e in got if isinstance(e, SlabEnd)] == list(range(SLABS))
    steps = [(e.slab, e.iteration) for e in got if isinstance(e, IterationEnd)]
    assert steps == [(s, i) for s in range(SLABS) for i in range(1, ITERATIONS + 1)]


def test_what_is_kept_for_later_hooks_is_light():
    """Every batch of a capture has thousands of projections; a run holds those of the latest only."""

    def batch(i: int) -> BatchEnd:
        counts = dict.fromkeys(("tokens_real", "tokens_padded", "tokens_generated"), 7)
        totals = {"n_batches": 300, "n_prompts": 1, "prompts_done": i, "prompts_total": 300}
        shown = {"resid_post.0": tuple(i + k / 8 for k in range(5000))}
        return BatchEnd(batch=i, **totals, **counts, seconds=0.1, tokens=("a",) * 5000, projections=shown)

    def job(iteration_hook: Any) -> None:
        for i in range(300):
            iteration_hook[-1](batch(i))
            if i % 7 == 0:
                iteration_hook[-1](iteration_end(0, i))
        iteration_hook[-1](iteration_end(1, 1))  # what follows the latest batch takes nothing from it

    tracemalloc.start()
    try:
        run = start(job)
        run.wait(20)
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held < 3_000_000  # 300 times 5,000 floats are 48 MB
    got: list[Event] = []
    run.add_hook(got.append)
    batches = [e for e in got if isinstance(e, BatchEnd)]
    assert [e.tokens_real for e in batches] == [7] * 300
    assert [len(e.projections) for e in batches] == [0] * 299 + [1]


def test_a_later_hook_may_skip_the_past():
    got: list[Event] = []
    run = start(Job().fit, paused=True)
    run.step(3, timeout=10)
    run.add_hook(got.append, replay=False)
    assert got == []
    run.step(timeout=10)
    assert [e.iteration for e in got] == [4]
    run.stop().wait(10)


@pytest.mark.parametrize("answer", [True, np.True_], ids=["bool", "numpy"])
def test_a_later_hook_can_stop_the_run(answer):
    job = Job()
    run = start(job.fit, paused=True)
    run.add_hook(lambda e: answer if isinstance(e, SlabEnd) else None)
    run.resume().wait(10)
    assert run.state == "stopped"
    assert job.done == ITERATIONS


class Watcher:
    def __init__(self) -> None:
        self.ended: list[str] = []

    def __call__(self, event: Event) -> None:
        pass

    def on_run_end(self, run: Run) -> None:
        self.ended.append(run.state)


def test_watchers_are_told_the_end_once():
    early, late = Watcher(), Watcher()
    run = start(Job().fit, paused=True).add_hook(early)
    run.resume().wait(10)
    until(lambda: bool(early.ended))
    run.add_hook(late)
    assert (early.ended, late.ended) == (["done"], ["done"])


def test_watchers_are_told_of_a_failure():
    watcher = Watcher()
    run = start(failing)
    run.add_hook(watcher)
    with pytest.raises(Boom):
        run.wait(10)
    until(lambda: bool(watcher.ended))
    assert watcher.ended == ["failed"]


# -------------------------------------------------------------------------------------- display


def test_a_run_shows_its_view_or_else_its_text():
    class View:
        def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, Any]:
            return {"text/html": "<b>live</b>"}

    run = start(Job().fit)
    run.wait(10)
    assert run._repr_mimebundle_() == {"text/plain": "<Run done after SlabEnd>"}
    run.view = View()
    assert run._repr_mimebundle_() == {"text/html": "<b>live</b>"}


def test_the_names_in_all_exist():
    assert all(hasattr(run_module, name) for name in run_module.__all__)


def ended(code: str) -> tuple[int, str]:
    """Exit status and stderr of a fresh process that runs `code`."""
    command = [sys.executable, "-c", textwrap.dedent(code)]
    process = subprocess.run(command, capture_output=True, text=True, timeout=100)
    return process.returncode, process.stderr


def test_a_process_may_end_while_a_run_is_inside_torch():
    """A daemon thread that comes back from torch's C++ into an interpreter that has ended aborts it (134)."""
    code = """
        import time, torch
        from interp import run
        from interp.events import Emitter, Event
        a = torch.ones(512, 512)
        def job(iteration_hook):
            emit = Emitter(iteration_hook)
            while not emit(Event()):
                for _ in range(20):  # each takes milliseconds without Python's lock
                    a @ a
        r = run.start(job)
        while r.last is None:
            time.sleep(0.01)
    """
    assert ended(code) == (0, "")


@pytest.mark.parametrize("held", [False, True])
def test_a_process_may_end_while_a_fit_is_under_way(held):
    code = f"""
        import time, numpy as np, scipy.sparse as sp
        from interp import Sparse1DProbe, run
        x = sp.random(4000, 256, density=0.05, format="csr", random_state=0, dtype=np.float32)
        r = run.start(Sparse1DProbe(tol=1e-9).fit, x, np.arange(4000) % 151, paused={held})
        while r.last is None:
            time.sleep(0.01)
    """
    assert ended(code) == (0, "")
