"""Work on threads of our own: order, errors, walking away; functions that run without Python's lock."""

from __future__ import annotations

import importlib.util
import os
import sys
import threading
import time
from pathlib import Path
from types import ModuleType

import pytest
import torch

from interp import threads
from interp.probe import layout, losses, step
from interp.threads import n_threads, shared, torch_threads, without_gil


@pytest.mark.parametrize("n", [1, 2, 3])
def test_results_come_in_the_order_of_the_items(n):
    def work(i: int) -> int:
        time.sleep(0.004 * (i % 3))
        return i * i

    assert list(shared(work, ((i,) for i in range(20)), n)) == [i * i for i in range(20)]


def test_two_threads_work_at_the_same_time():
    meet = threading.Barrier(2, timeout=20)
    assert list(shared(lambda _: meet.wait() in (0, 1), ((i,) for i in range(4)), 2)) == [True] * 4


def test_items_are_taken_as_they_are_needed():
    taken = []

    def items():
        for i in range(100):
            taken.append(i)
            yield (i,)

    results = shared(lambda i: i, items(), 2)
    assert next(results) == 0
    assert len(taken) < 10
    results.close()
    assert len(taken) < 10


@pytest.mark.parametrize("n", [1, 2])
def test_an_error_reaches_the_caller_and_leaves_no_work_behind(n):
    running, started = [], []

    def work(i: int) -> int:
        started.append(i)
        running.append(i)
        time.sleep(0.01)
        running.remove(i)
        if i == 2:
            raise KeyError("the third")
        return i

    got = []
    with pytest.raises(KeyError, match="the third"):
        got.extend(shared(work, ((i,) for i in range(50)), n))
    assert got == [0, 1]
    assert not running
    assert len(started) < 12
    assert list(shared(lambda i: i, ((i,) for i in range(5)), n)) == list(range(5))


def test_an_error_of_the_items_themselves():
    def items():
        yield (1,)
        raise OSError("no more rows")

    with pytest.raises(OSError, match="no more rows"):
        list(shared(lambda i: i, items(), 2))


@pytest.mark.parametrize("n", [1, 2])
def test_torch_has_one_thread_inside_and_its_own_number_outside(n):
    with torch_threads(3):
        assert n_threads() == 3
        assert set(shared(lambda _: torch.get_num_threads(), ((i,) for i in range(6)), n)) == {1}
        assert torch.get_num_threads() == 3
        walked_away = shared(lambda i: i, ((i,) for i in range(6)), n)
        next(walked_away)
        walked_away.close()
        assert torch.get_num_threads() == 3
        with pytest.raises(ZeroDivisionError):
            list(shared(lambda i: 1 // i, [(0,)], n))
        assert torch.get_num_threads() == 3


def test_threads_are_for_the_cpu_alone():
    with torch_threads(2):
        assert n_threads(torch.device("cpu")) == 2
        assert n_threads(torch.device("meta")) == 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_makes_threads_of_its_own():
    assert list(shared(lambda i: i, ((i,) for i in range(4)), 2)) == list(range(4))
    pid = os.fork()
    if pid == 0:
        same = list(shared(lambda i: i, ((i,) for i in range(4)), 2)) == list(range(4))
        os._exit(0 if same else 1)
    deadline = time.monotonic() + 30
    while (ended := os.waitpid(pid, os.WNOHANG)) == (0, 0):
        if time.monotonic() > deadline:
            os.kill(pid, 9)
            pytest.fail("the child waits for threads that it does not have")
        time.sleep(0.02)
    assert ended[1] == 0


# ------------------------------------------------------------------------------- without_gil

SCRIPTED = [
    (module, name)
    for module in (step, layout, losses)
    for name, value in sorted(vars(module).items())
    if getattr(value, "__wrapped__", None) is not None and value.__module__ == module.__name__
]


def test_the_solver_has_functions_that_run_without_the_lock():
    assert {name for _, name in SCRIPTED} >= {"_proposed", "_judged", "_still_live", "_evaluate"}


@pytest.mark.parametrize(("module", "name"), SCRIPTED, ids=[name for _, name in SCRIPTED])
def test_they_are_compiled_and_not_quietly_run_as_they_are(module, name):
    function = getattr(module, name).__wrapped__
    assert threads._compiled(function) is not function


@without_gil
def _scaled(a: torch.Tensor, by: float) -> torch.Tensor:
    return (a * by).sin().sum(dim=0)


def test_a_compiled_function_returns_what_it_returns_as_it_is():
    a = torch.arange(12.0, dtype=torch.float64).reshape(3, 4)
    assert torch.equal(_scaled(a, 0.5), _scaled.__wrapped__(a, 0.5))
    assert _scaled.__name__ == "_scaled"


def _module(path: Path, source: str) -> ModuleType:
    path.write_text(source)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("now", ["# edited\n\n\n\n", None])
def test_a_source_that_was_edited_or_removed_since_is_not_run(tmp_path, now):
    """TorchScript reads the source by line numbers when it compiles: after an edit, another function."""
    source = "def one(a, b):\n    return a - b\n\n\ndef two(a):\n    return a + a\n"
    path = tmp_path / "edited.py"
    module = _module(path, source)
    if now is None:
        path.unlink()
    else:
        path.write_text(now + source)
    a = torch.ones(2)
    assert torch.equal(without_gil(module.two)(a), a + a)


def test_where_torch_has_no_torchscript_the_function_runs_as_it_is(monkeypatch):
    def gone(*_args):
        raise NotImplementedError("torch.jit is no more")

    monkeypatch.setattr(torch.jit, "script", gone)
    plain = without_gil(_scaled.__wrapped__)
    a = torch.ones(2, 3)
    assert torch.equal(plain(a, 2.0), _scaled.__wrapped__(a, 2.0))


def test_the_lock_is_free_while_a_compiled_function_runs():
    """A thread that needs Python gets on meanwhile: it counts during one call of about a quarter second."""

    @without_gil
    def many(a: torch.Tensor, n: int) -> torch.Tensor:
        for _ in range(n):
            a = a.sin()
        return a

    a = torch.zeros(512, dtype=torch.float64)
    many(a, 1)
    began, n = time.perf_counter(), 1000
    while True:
        began = time.perf_counter()
        many(a, n)
        took = time.perf_counter() - began
        if took > 0.25:
            break
        n *= 2
    counted, done = [0], threading.Event()

    def count() -> None:
        while not done.is_set():
            counted[0] += 1
            time.sleep(0.001)

    before = sys.getswitchinterval()
    other = threading.Thread(target=count)
    try:
        sys.setswitchinterval(100.0)  # nobody is asked to let go of the lock
        other.start()
        at_start = counted[0]
        many(a, n)
        during = counted[0] - at_start
    finally:
        sys.setswitchinterval(before)
        done.set()
        other.join()
    assert during > 10


def test_work_under_way_is_told_before_it_is_waited_for():
    given_up = threading.Event()

    def work(i: int) -> int:
        if i == 1:
            raise RuntimeError("from the work")
        while i > 1 and not given_up.wait(0.01):
            pass
        return i

    results = shared(work, ((i,) for i in range(4)), 2, given_up)
    rescue = threading.Timer(30.0, given_up.set)
    rescue.start()
    with pytest.raises(RuntimeError, match="from the work"):
        list(results)
    assert rescue.is_alive(), "the work was waited for and not told"
    rescue.cancel()


@pytest.mark.parametrize("threads", [1, 2])
def test_whoever_takes_results_has_torch_as_it_was(threads):
    with torch_threads(3):
        for _ in shared(lambda i: i, ((i,) for i in range(5)), threads):
            assert torch.get_num_threads() == 3
