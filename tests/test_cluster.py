"""Scale out: plans, tasks that may be run twice, executors that lose none, one answer from all of them."""

from __future__ import annotations

import dataclasses
import itertools
import json
import logging
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import cluster_world as world
import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st

from interp import cluster
from interp.cluster import slurm, summary
from interp.cluster.tasks import Cancelled, cut
from interp.events import JsonlLog, ShardEnd, TaskBegin, TaskEnd, read
from interp.files import read_json, write_json
from interp.lock import LockedError, lock
from interp.probe import LatentSummary, Sparse1DProbe

HERE = Path(__file__).resolve().parent
N = 10  # shards


@pytest.fixture(autouse=True)
def _world(monkeypatch, tmp_path):
    monkeypatch.setenv("CLUSTER_WORLD", str(tmp_path))


def plan(folder: Path, how: str = "shard", n_tasks: int = 4, n: int = N) -> list[cluster.Task]:
    return cluster.plan(f"cluster_world:{how}", folder, seeds=range(n), n_tasks=n_tasks)


def contents(s: LatentSummary, folder: Path) -> bytes:
    """A summary, to the last bit."""
    return s.save(folder / "contents.safetensors").read_bytes()


def until(condition: Callable[[], object], seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds} s in vain"
        time.sleep(0.02)


@pytest.fixture(scope="module")
def expected(tmp_path_factory) -> bytes:
    """The summary of one task, run in this process."""
    folder = tmp_path_factory.mktemp("expected")
    tasks = plan(folder / "run", n_tasks=1)
    return contents(cluster.merge([cluster.run_task(t) for t in tasks]), folder)


# ------------------------------------------------------------------------------------ one answer


@pytest.mark.parametrize("n_tasks", [2, 3, 7, N, 16])
def test_any_number_of_tasks_in_any_order_gives_the_same_bits(tmp_path, expected, n_tasks):
    tasks = plan(tmp_path / "run", n_tasks=n_tasks)
    assert len(tasks) == min(n_tasks, N)
    random.Random(n_tasks).shuffle(tasks)
    paths = cluster.run(tasks, "inline")
    random.Random(-n_tasks).shuffle(paths)
    assert contents(cluster.merge(paths), tmp_path) == expected


@pytest.mark.parametrize("executor", ["processes", "submitit-local"])
def test_every_executor_gives_the_same_bits(tmp_path, expected, executor):
    if executor.startswith("submitit"):
        pytest.importorskip("submitit")
        tasks = cluster.plan(f"{HERE}/cluster_world.py:shard", tmp_path / "run", seeds=range(N), n_tasks=3)
    else:
        tasks = plan(tmp_path / "run", n_tasks=3)
    paths = cluster.run(tasks, executor, n_workers=2)
    assert paths == [t.path for t in tasks]
    assert contents(cluster.merge(tmp_path / "run"), tmp_path) == expected


def test_the_probe_of_all_tasks_is_the_probe_of_all_rows(tmp_path):
    tasks = plan(tmp_path / "run", n_tasks=N)
    probe = Sparse1DProbe().fit_summary(cluster.merge(cluster.run(tasks, "inline")))
    rows = cluster.Rows(tmp_path / "run")
    whole = Sparse1DProbe().fit(
        sp.vstack([x for x, _ in rows], format="csr"), np.concatenate([y for _, y in rows])
    )
    np.testing.assert_allclose(probe.coef_, whole.coef_, rtol=0, atol=1e-12)
    np.testing.assert_allclose(probe.intercept_, whole.intercept_, rtol=0, atol=1e-12)
    # The shards can be read again, for what needs the rows.
    assert np.nanmax(probe.polish(rows).certify(rows).scaled) < 1e-5


def test_files_and_parts_of_shards_give_what_functions_give(tmp_path, expected):
    for i in range(N):
        x, y = world.shard(i)
        sp.save_npz(tmp_path / f"token_acts_{i}.npz", x)  # 10 after 9, not after 1
        y.astype(np.uint8).tofile(tmp_path / f"labels_{i}.bin")
    pairs = [(tmp_path / f"token_acts_{i}.npz", tmp_path / f"labels_{i}.bin") for i in range(N)]
    for k, shards in enumerate((tmp_path, pairs)):
        tasks = cluster.plan(shards, tmp_path / f"run{k}", n_tasks=3)
        assert contents(cluster.merge(cluster.run(tasks, "inline")), tmp_path) == expected
    tasks = plan(tmp_path / "parts", "in_parts", n_tasks=3)
    parts = cluster.merge(cluster.run(tasks, "inline"))
    whole = LatentSummary.load(tmp_path / "contents.safetensors")
    assert parts.n_rows == whole.n_rows
    np.testing.assert_allclose(parts.label_sums, whole.label_sums, rtol=1e-12)


@given(st.integers(1, 200), st.integers(1, 64))
def test_tasks_share_out_all_shards_once(n, n_tasks):
    for parts in (summary._nodes(n, n_tasks), cut(n, n_tasks)):
        assert len(parts) == min(n, n_tasks)
        assert parts[0][0] == 0
        assert parts[-1][1] == n
        assert all(a[1] == b[0] for a, b in itertools.pairwise(parts))
        assert all(start < stop for start, stop in parts)
    sizes = [stop - start for start, stop in summary._nodes(n, n_tasks)]
    assert max(sizes) <= 2 * min(sizes) + 1
    if n % n_tasks == 0 and n_tasks & (n_tasks - 1) == 0:
        assert len(set(sizes)) == 1


@settings(max_examples=15)
@given(st.lists(st.integers(0, 50), min_size=1, max_size=9, unique=True), st.integers(1, 9), st.randoms())
def test_the_sum_does_not_depend_on_the_cut(seeds, n_tasks, rng):
    """Without files: nodes of one tree, added up in the tree's order."""
    spec = {"function": "cluster_world:shard", "seeds": seeds, "n_latents": None, "n_classes": 6}
    rows = cluster.Rows(spec)

    def total(start: int, stop: int) -> LatentSummary:
        if stop - start == 1:
            return summary._of_shard(rows, start, spec)
        middle = (start + stop) // 2
        return total(start, middle).merge(total(middle, stop))

    whole = total(0, len(seeds))
    made = {node: total(*node) for node in summary._nodes(len(seeds), n_tasks)}

    def merged(start: int, stop: int) -> LatentSummary:
        if (start, stop) in made:
            return made[start, stop]
        middle = (start + stop) // 2
        return merged(start, middle).merge(merged(middle, stop))

    again = merged(0, len(seeds))
    np.testing.assert_array_equal(again.label_sums, whole.label_sums)
    np.testing.assert_array_equal(again.nodes().x, whole.nodes().x)


# ----------------------------------------------------------------------------------------- plans


def test_a_task_is_frozen_and_plain(tmp_path):
    tasks = plan(tmp_path / "run")
    with pytest.raises(dataclasses.FrozenInstanceError):
        tasks[0].index = 3
    assert [cluster.Task(**json.loads(json.dumps(dataclasses.asdict(t)))) for t in tasks] == tasks
    assert cluster.load(tmp_path / "run") == tasks
    assert len(set(tasks)) == len(tasks)
    written = json.loads((tmp_path / "run" / "plan.json").read_text())
    assert written["spec"]["seeds"] == list(range(N))


def test_the_same_plan_goes_on_and_another_is_refused(tmp_path):
    tasks = plan(tmp_path / "run", n_tasks=2)
    done = cluster.run_task(tasks[0])
    stamp = (done / "done.json").stat().st_mtime_ns
    again = plan(tmp_path / "run", n_tasks=2)
    assert again == tasks
    assert [t.done for t in again] == [True, False]
    cluster.run(again, "inline")
    assert (done / "done.json").stat().st_mtime_ns == stamp
    with pytest.raises(FileExistsError, match=r"another plan, which differs in: parts"):
        plan(tmp_path / "run", n_tasks=3)
    with pytest.raises(FileExistsError, match="differs in: seeds"):
        cluster.plan("cluster_world:shard", tmp_path / "run", seeds=range(1, N + 1), n_tasks=2)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").touch()
    with pytest.raises(FileExistsError, match="not empty and holds no plan"):
        plan(tmp_path / "other")


def test_a_run_folder_may_be_moved(tmp_path, expected):
    tasks = plan(tmp_path / "run")
    cluster.run_task(tasks[0])
    (tmp_path / "run").rename(tmp_path / "moved")
    tasks = cluster.load(tmp_path / "moved")
    assert [t.done for t in tasks] == [True, False, False, False]
    assert contents(cluster.merge(cluster.run(tasks, "inline")), tmp_path) == expected


def test_what_does_not_fit_is_refused_before_anything_runs(tmp_path):
    out = tmp_path / "run"
    refused: list[tuple[type[Exception], str, Callable[[], object]]] = [
        (
            ValueError,
            "job must be one of summary, capture, lenses",
            lambda: cluster.plan([], out, job="dance"),
        ),
        (ValueError, "no shards", lambda: cluster.plan([], out)),
        (ValueError, "give seeds=", lambda: cluster.plan("cluster_world:shard", out)),
        (ValueError, "cannot find the function", lambda: cluster.plan("cluster_world:no", out, seeds=[1])),
        (ValueError, "cannot find the function", lambda: cluster.plan("no_such:no", out, seeds=[1])),
        (ValueError, "other processes cannot see", lambda: cluster.plan("__main__:f", out, seeds=[1])),
        (ValueError, "seeds= belongs to", lambda: cluster.plan([("a", "b")], out, seeds=[1])),
        (ValueError, "at least 1", lambda: plan(out, n_tasks=0)),
        (FileNotFoundError, "no folder", lambda: cluster.plan(tmp_path / "none", out)),
        (FileNotFoundError, "no shard at", lambda: cluster.plan([("a.npz", "b.bin")], out)),
        (FileNotFoundError, "no token_acts", lambda: cluster.plan(tmp_path, out)),
        (FileNotFoundError, "no plan in", lambda: cluster.load(out)),
    ]
    for kind, words, call in refused:
        with pytest.raises(kind, match=words):
            call()
    (tmp_path / "token_acts_1.npz").touch()
    with pytest.raises(FileNotFoundError, match="there is no labels_1"):
        cluster.plan(tmp_path, out)
    assert not out.exists()


# ----------------------------------------------------------------------------------------- tasks


def test_a_task_that_fails_leaves_nothing_that_counts(tmp_path):
    tasks = plan(tmp_path / "run", "always_fails", n_tasks=1)
    with pytest.raises(OSError, match="the disk is gone"):
        cluster.run_task(tasks[0])
    assert not list(tasks[0].path.glob("*"))
    kinds = [e.kind for e in read(tasks[0].log)]
    assert kinds == ["TaskBegin", "ShardEnd", "ShardEnd", "TaskEnd"]
    with pytest.raises(ValueError, match=r"1 of the 1 tasks of .* missing or not done: task-0000"):
        cluster.merge(tmp_path / "run")


def test_one_process_works_on_a_task_at_a_time(tmp_path):
    (task,) = plan(tmp_path / "run", n_tasks=1)
    task.path.mkdir(parents=True)
    with lock(task.path), pytest.raises(LockedError, match=f"process {os.getpid()}"):
        cluster.run_task(task)
    assert cluster.run_task(task) == task.path


def test_an_empty_shard_is_named(tmp_path):
    with pytest.raises(cluster.TasksFailed, match="shard 0 has no rows"):
        cluster.run(plan(tmp_path / "run", "nothing", n_tasks=1), "inline", retries=0)


def test_a_merge_names_what_is_missing_or_damaged(tmp_path):
    tasks = plan(tmp_path / "run")
    paths = cluster.run(tasks, "inline")
    with pytest.raises(ValueError, match="task-0002"):
        cluster.merge([p for p in paths if p.name != "task-0002"])
    with pytest.raises(ValueError, match="one run, got those of 2"):
        cluster.merge([*paths, tmp_path / "elsewhere" / "tasks" / "task-0000"])
    file = paths[1] / "summary.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(ValueError, match=re.escape(str(file))):
        cluster.merge(tmp_path / "run")


def test_threads_of_a_task_are_those_of_the_plan(tmp_path, monkeypatch):
    import torch

    seen, real = [], world.shard

    def shard(seed: int) -> object:
        seen.append(torch.get_num_threads())
        return real(seed)

    monkeypatch.setattr(world, "shard", shard)
    tasks = cluster.plan("cluster_world:shard", tmp_path / "run", seeds=[0, 1], n_tasks=1, threads=2)
    cluster.run(tasks, "inline")
    assert seen == [2, 2]
    assert torch.get_num_threads() == 1


# ------------------------------------------------------------------------------------- executors


@pytest.mark.parametrize("executor", ["inline", "processes"])
def test_a_failed_task_is_tried_again(tmp_path, expected, executor, caplog):
    tasks = plan(tmp_path / "run", "fails_once")
    with caplog.at_level(logging.WARNING):
        cluster.run(tasks, executor, n_workers=2)
    assert "is tried again: OSError: the disk hiccuped" in caplog.text
    table = cluster.status(tmp_path / "run")
    assert list(table.attempts) == [1, 2, 1, 1]  # seed 2 is in the second task
    assert list(table.state) == ["done"] * 4
    assert contents(cluster.merge(tmp_path / "run"), tmp_path) == expected


@pytest.mark.parametrize("executor", ["inline", "processes"])
def test_a_task_that_always_fails_is_named_and_the_others_are_done(tmp_path, executor):
    tasks = plan(tmp_path / "run", "always_fails")
    with pytest.raises(cluster.TasksFailed, match=r"1 of 4 tasks failed in 2 attempts each:\n  task-0001"):
        cluster.run(tasks, executor, n_workers=2, retries=1)
    table = cluster.status(tmp_path / "run").set_index("task")
    assert list(table.state) == ["done", "failed", "done", "done"]
    assert table.loc["task-0001", "attempts"] == 2
    assert table.loc["task-0001", "error"] == "OSError: the disk is gone"
    assert list(table.progress) == [1.0, 0.0, 1.0, 1.0]
    assert (table.host != "").all()
    # Only what is missing is done again.
    with pytest.raises(cluster.TasksFailed):
        cluster.run(tasks, "inline", retries=0)
    assert list(cluster.status(tmp_path / "run").attempts) == [1, 3, 1, 1]


def test_a_killed_worker_takes_one_task_with_it_and_that_is_done_again(tmp_path, expected):
    tasks = plan(tmp_path / "run", "dies_once")
    cluster.run(tasks, "processes", n_workers=2)
    assert list(cluster.status(tmp_path / "run").attempts) == [1, 2, 1, 1]
    (why,) = [e.error for e in read(tasks[1].log) if isinstance(e, TaskEnd) and e.error]
    assert why == "its process ended (killed by signal 9)"
    assert contents(cluster.merge(tmp_path / "run"), tmp_path) == expected


def test_what_a_task_prints_does_not_disturb_its_worker(tmp_path, monkeypatch):
    module = tmp_path / "chatty.py"
    module.write_text("import cluster_world as w\ndef shard(i):\n    print('hello')\n    return w.shard(i)\n")
    tasks = cluster.plan(f"{module}:shard", tmp_path / "run", seeds=[1, 2], n_tasks=2)
    assert len(cluster.run(tasks, "processes", n_workers=1)) == 2


def test_cancel_from_another_process_and_go_on(tmp_path, expected):
    folder = tmp_path / "run"
    tasks = plan(folder, "waits", n_tasks=3)
    errors: list[BaseException] = []

    def drive() -> None:
        try:
            cluster.run(tasks, "processes", n_workers=1)
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=drive, daemon=True)
    thread.start()
    until(lambda: "running" in list(cluster.status(folder).state))
    code = "import sys; from interp import cluster; cluster.cancel(sys.argv[1])"
    subprocess.run([sys.executable, "-c", code, str(folder)], check=True)
    thread.join(30)
    assert not thread.is_alive()
    assert [type(e) for e in errors] == [Cancelled]
    assert "done" not in list(cluster.status(folder).state)
    (tmp_path / "go").touch()
    assert contents(cluster.merge(cluster.run(cluster.load(folder), "inline")), tmp_path) == expected


def test_a_cancelled_task_stops_at_its_next_event(tmp_path):
    (task,) = plan(tmp_path / "run", "slow", n_tasks=1)

    def work() -> None:
        with pytest.raises(Cancelled):
            cluster.run_task(task)

    thread = threading.Thread(target=work)
    thread.start()
    until(lambda: task.log.exists() and any(isinstance(e, ShardEnd) for e in read(task.log)))
    cluster.cancel(tmp_path / "run")
    thread.join(10)
    events = read(task.log)
    assert isinstance(events[-1], TaskEnd)
    assert len([e for e in events if isinstance(e, ShardEnd)]) < N
    assert list(cluster.status(tmp_path / "run").state) == ["cancelled"]


def test_a_task_of_a_cancelled_run_never_begins_its_work(tmp_path):
    tasks = plan(tmp_path / "run", "always_fails", n_tasks=2)  # it would say so
    cluster.cancel(tmp_path / "run")
    with pytest.raises(Cancelled, match="task-0001 was cancelled"):
        cluster.run_task(tasks[1])
    assert cluster.status(tmp_path / "run").state.tolist() == ["waiting", "cancelled"]


def test_what_fails_while_a_run_is_cancelled_is_not_tried_again(tmp_path, monkeypatch, expected):
    tasks = plan(tmp_path / "run", n_tasks=3)
    asked = []

    def cancels(seed: int) -> None:
        asked.append(seed)
        cluster.cancel(tmp_path / "run")
        raise OSError("in the middle of it")

    with monkeypatch.context() as patch:
        patch.setattr(world, "shard", cancels)
        with pytest.raises(Cancelled, match="run its tasks again to go on"):
            cluster.run(tasks, "inline", retries=5)
    assert asked == [0], "neither again nor the others"
    assert contents(cluster.merge(cluster.run(tasks, "inline")), tmp_path) == expected


def test_a_task_that_another_process_has_just_done_is_left_alone(tmp_path, monkeypatch):
    """It was not done when it was looked at, and is when its folder is ours."""
    from interp.cluster import tasks as home

    (task,) = plan(tmp_path / "run", n_tasks=1)
    real = home.lock

    def late(folder: Path) -> lock:
        monkeypatch.setattr(home, "lock", real)
        cluster.run_task(task)
        monkeypatch.setattr(world, "shard", None)  # which would be called to do it again
        return real(folder)

    monkeypatch.setattr(home, "lock", late)
    assert cluster.run_task(task) == task.path
    assert sum(isinstance(e, TaskBegin) for e in read(task.log)) == 1


def test_a_plan_of_another_version_is_refused(tmp_path):
    plan(tmp_path / "run")
    content = read_json(tmp_path / "run" / "plan.json")
    write_json(tmp_path / "run" / "plan.json", content | {"version": 99})
    with pytest.raises(
        ValueError, match=r"plan\.json has \(format, version\) \('interp.plan', 99\), expected"
    ):
        cluster.load(tmp_path / "run")


def test_wrong_calls_of_run_say_so(tmp_path):
    tasks = plan(tmp_path / "run")
    with pytest.raises(ValueError, match="executor must be one of inline, processes"):
        cluster.run(tasks, "fax")
    with pytest.raises(TypeError, match="'processes' takes no option 'timeout_min'"):
        cluster.run(tasks, "processes", timeout_min=3)
    with pytest.raises(ValueError, match="retries must be 0 or more"):
        cluster.run(tasks, retries=-1)
    for n_workers in (0, -1):  # all cores, and none for ever
        for executor in cluster.executors.EXECUTORS:
            with pytest.raises(ValueError, match=f"n_workers must be at least 1, .* got {n_workers}"):
                cluster.run(tasks, executor, n_workers=n_workers)
    with pytest.raises(ValueError, match="tasks of one run, got those of 2"):
        cluster.run([*tasks, *plan(tmp_path / "other")])


def test_without_submitit_the_error_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "submitit", None)
    for executor in ("slurm", "submitit-local"):
        with pytest.raises(ImportError, match=r"pip install 'interp\[slurm\]'"):
            cluster.run(plan(tmp_path / "run"), executor)


def test_a_job_whose_time_is_up_asks_for_the_same_again(tmp_path):
    submitit = pytest.importorskip("submitit")
    task = plan(tmp_path / "run")[0]
    job = slurm.Job()
    again = job.checkpoint(task)
    assert isinstance(again, submitit.helpers.DelayedSubmission)
    assert (again.function, again.args) == (job, (task,))
    assert Path(job(task)) == task.path


# ----------------------------------------------------------------------------- seen from elsewhere


def test_the_state_of_every_task_is_read_from_the_folder_alone(tmp_path):
    folder = tmp_path / "run"
    tasks = plan(folder, "waits", n_tasks=4)
    assert list(cluster.status(folder).state) == ["waiting"] * 4
    (tmp_path / "go").touch()
    cluster.run_task(tasks[0])
    (tmp_path / "go").unlink()
    code = "import sys; from interp import cluster; cluster.run_task(cluster.load(sys.argv[1])[1])"
    worker = subprocess.Popen([sys.executable, "-c", code, str(folder)], cwd=HERE)
    try:
        until(lambda: list(cluster.status(folder).state[:2]) == ["done", "running"])
    finally:
        worker.send_signal(signal.SIGKILL)
        worker.wait()
    table = cluster.status(folder)
    assert list(table.columns) == ["task", "state", "attempts", "host", "seconds", "progress", "error"]
    assert list(table.state) == ["done", "lost", "waiting", "waiting"]
    assert list(table.attempts) == [1, 1, 0, 0]
    assert table.seconds[1] > 0
    # A task of another host cannot be called lost from here.
    with JsonlLog(tasks[2].log) as log:
        log(TaskBegin(job="summary", task=2, n_tasks=4, attempt=1, host="elsewhere", pid=worker.pid))
        log(ShardEnd(shard=0, n_shards=2, n_rows=1, n_events=1, seconds=0.1, bytes_resident=0))
    table = cluster.status(folder)
    assert (table.state[2], table.progress[2]) == ("running", 0.5)


def test_a_monitor_shows_tasks_in_other_processes(tmp_path):
    from interp.live import FitMonitor

    folder = tmp_path / "run"
    tasks = plan(folder, "waits", n_tasks=3)
    monitor = FitMonitor(folder / "logs")
    thread = threading.Thread(target=cluster.run, args=(tasks, "processes"), kwargs={"n_workers": 2})
    try:
        thread.start()
        until(lambda: list({k: d.state for k, d in monitor.jobs.items()}.values()).count("running") == 2)
        assert set(monitor.jobs) <= {t.name for t in tasks}
        (tmp_path / "go").touch()
        thread.join(30)
        until(lambda: {k: d.state for k, d in monitor.jobs.items()} == {t.name: "done" for t in tasks})
        assert all(d.fraction == 1.0 for d in monitor.jobs.values())
        monitor.refresh()
        assert [(name, state) for name, state, *_ in monitor.head["jobs"]] == [
            (t.name, "done") for t in tasks
        ]
    finally:
        (tmp_path / "go").touch()
        thread.join(30)
        monitor.close()


def test_a_monitor_shows_a_task_that_failed_and_why(tmp_path):
    from interp.live import FitMonitor

    tasks = plan(tmp_path / "run", "always_fails")
    with pytest.raises(cluster.TasksFailed):
        cluster.run(tasks, "inline", retries=1)
    monitor = FitMonitor(tmp_path / "run" / "logs")
    try:
        until(lambda: {k: d.state for k, d in monitor.jobs.items()}.get("task-0001") == "failed")
        until(lambda: [d.state for d in monitor.jobs.values()].count("done") == 3)
        monitor._on_message(monitor, {"do": "select", "job": "task-0001"}, [])
        assert "the disk is gone" in monitor.head["message"]
    finally:
        monitor.close()
