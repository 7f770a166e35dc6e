"""Where tasks run: in this process, in processes of this machine, or on a Slurm cluster through submitit.

An executor is handed tasks and says which of them have ended. Whether one was *done* is told by the run
folder alone: nothing depends on how a process ended, and nothing that it sends back is trusted.
"""

from __future__ import annotations

import json
import logging
import os
import queue
import subprocess
import sys
import threading
from collections import Counter, deque
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

from interp.cluster import models, slurm
from interp.cluster.status import Story, note_end
from interp.cluster.tasks import CANCEL, Cancelled, Task, cancelled, describe, read_plan, run_task
from interp.events import bar

__all__ = ["EXECUTORS", "TasksFailed", "run"]

logger = logging.getLogger(__name__)

EXECUTORS = ("inline", "processes", "submitit-local", "slurm")

#: Seconds between two looks at whether the run was cancelled.
_PERIOD = 0.5


class TasksFailed(RuntimeError):
    """Tasks failed in every attempt; the message names them. The others are done, and stay so.

    Attributes
    ----------
    errors : dict of str to str
        Task → its last error.
    """

    def __init__(self, errors: dict[Task, str], n_tasks: int, attempts: int) -> None:
        self.errors = {task.name: why for task, why in errors.items()}
        first = list(errors)[:4]
        named = "".join(f"\n  {t.name}: {errors[t]} (log: {t.log})" for t in first)
        more = f"\n  … and {len(errors) - len(first)} more" if len(errors) > len(first) else ""
        times = f"{attempts} attempt{'s' * (attempts != 1)}"
        super().__init__(f"{len(errors)} of {n_tasks} tasks failed in {times} each:{named}{more}")


class _Executor(Protocol):
    """What `run` needs of an executor."""

    def submit(self, tasks: Sequence[Task]) -> None:
        """Take tasks."""

    def ended(self) -> list[tuple[Task, str]]:
        """Wait a little; the tasks that ended since the last call, and what is known of why."""

    def close(self) -> None:
        """End what still runs, where it is this process's to end."""


def run(
    tasks: Iterable[Task],
    executor: str = "processes",
    *,
    n_workers: int | None = None,
    retries: int = 2,
    max_array: int = 500,
    **slurm_options: Any,
) -> list[Path]:
    """Run the tasks of a plan, those that are not done yet, and wait for them.

    Parameters
    ----------
    tasks : iterable of Task
        From `plan` (or `load`, to go on with a run).
    executor : {"processes", "inline", "submitit-local", "slurm"}
        Processes of this machine; this very process, one task after the other; submitit on this machine; or
        a Slurm cluster. The last two need ``pip install 'interp[slurm]'``.
    n_workers : int, optional
        Tasks at a time on this machine; by default as many as its cores allow.
    retries : int
        Attempts after the first of a task that failed, or was killed or preempted. A task that Slurm requeues
        by itself goes on under its number and counts as one attempt.
    max_array : int
        Tasks of one Slurm array; more of them become several arrays (``MaxArraySize`` of the cluster).
    **slurm_options : as submitit has them
        ``slurm_partition=``, ``timeout_min=``, ``mem_gb=``, ``cpus_per_task=``,
        ``gpus_per_node=``, ``slurm_array_parallelism=``, ``slurm_additional_parameters=`` …

    Returns
    -------
    list of Path
        What each task made, in the order of `tasks`: for `merge`.

    Raises
    ------
    ValueError, TypeError
        For arguments that do not fit.
    TasksFailed
        If tasks failed in all attempts, once all others are done.
    Cancelled
        If the run was cancelled.
    ImportError
        Without submitit.

    Notes
    -----
    Interrupted (Ctrl-C, a kernel that restarts), it leaves Slurm jobs alone: called again, it waits for them.
    Processes of this machine are ended; what they had finished is kept.
    """
    if isinstance(tasks, (str, os.PathLike)):
        raise TypeError(f"run takes tasks, got a folder: give interp.cluster.load({os.fspath(tasks)!r})")
    tasks = list(tasks)
    folders = {t.folder for t in tasks}
    if len(folders) != 1:
        raise ValueError(f"expected the tasks of one run, got those of {len(folders)}")
    if executor not in EXECUTORS:
        raise ValueError(f"executor must be one of {', '.join(EXECUTORS)}, got {executor!r}")
    if slurm_options and executor in ("inline", "processes"):
        raise TypeError(f"executor={executor!r} takes no option {next(iter(slurm_options))!r}")
    if n_workers is not None and n_workers < 1:
        raise ValueError(
            f"n_workers must be at least 1, or None for as many as the cores allow; got {n_workers}"
        )
    if retries < 0 or max_array < 1:
        raise ValueError(f"retries must be 0 or more and max_array 1 or more, got {retries} and {max_array}")
    folder = Path(folders.pop())
    threads = read_plan(folder)["threads"]
    waiting = [t for t in tasks if not t.done]
    allowed = max(1, _cores() // threads) if n_workers is None else n_workers
    workers = min(allowed, max(len(waiting), 1))
    (folder / CANCEL).unlink(missing_ok=True)
    works: _Executor
    if executor == "inline":
        works = _Inline()
    elif executor == "processes":
        works = _Processes(workers)
    elif executor == "submitit-local":
        works = slurm.Local(folder, workers, slurm_options)
    else:
        works = slurm.Slurm(folder, max_array, slurm_options)
    try:
        _drive(works, waiting, len(tasks), retries)
    finally:
        works.close()
    return [t.path for t in tasks]


def _drive(works: _Executor, waiting: list[Task], n_tasks: int, retries: int) -> None:
    """Hand out tasks, and again those that failed, until each is done or has failed too often."""
    open_, attempts, failed = set(waiting), Counter[Task](), dict[Task, str]()
    ends = {task: Story.of(task).ends for task in waiting}
    with bar(n_tasks, "tasks", "task") as progress:
        progress.update(n_tasks - len(waiting))
        works.submit(waiting)
        while open_:
            again = []
            for task, why in works.ended():
                if task.done:
                    open_.discard(task)
                    progress.update(1)
                    continue
                why, ends[task] = note_end(task, why, ends[task])
                attempts[task] += 1
                if cancelled(task.folder):
                    open_.discard(task)
                elif attempts[task] > retries:
                    open_.discard(task)
                    failed[task] = why
                else:
                    logger.warning("%s failed and is tried again: %s", task.name, why)
                    again.append(task)
            if open_ and cancelled(next(iter(open_)).folder):
                break
            if again:
                works.submit(again)
    if any(not t.done for t in waiting) and cancelled(waiting[0].folder):
        raise Cancelled(f"the run in {waiting[0].folder} was cancelled; run its tasks again to go on")
    if failed:
        raise TasksFailed(dict(sorted(failed.items(), key=lambda item: item[0].index)), n_tasks, retries + 1)


class _Inline:
    """In this process, one task after the other."""

    def __init__(self) -> None:
        self._queue: deque[Task] = deque()

    def submit(self, tasks: Sequence[Task]) -> None:
        self._queue.extend(tasks)

    def ended(self) -> list[tuple[Task, str]]:
        task = self._queue.popleft()
        try:
            run_task(task)
        except Exception as error:  # whatever a task dies of, the others go on
            logger.debug("%s", task.name, exc_info=True)
            return [(task, describe(error))]
        return [(task, "")]

    def close(self) -> None:
        models.forget()


class _Processes:
    """Processes that do task after task, each fed by a thread of ours.

    They are started as commands, not by `multiprocessing`: so a script needs no ``__main__`` guard, a
    notebook nothing special, and nothing but JSON goes between. One that is killed takes its task with it and
    no other, and is replaced.
    """

    def __init__(self, n_workers: int) -> None:
        self._waiting: queue.SimpleQueue[Task | None] = queue.SimpleQueue()
        self._ended: queue.SimpleQueue[tuple[Task, str]] = queue.SimpleQueue()
        self._busy: dict[subprocess.Popen[str], Task] = {}
        self._closed = False
        self._threads = [
            threading.Thread(target=self._feed, daemon=True, name=f"interp-worker-{i}")
            for i in range(n_workers)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, tasks: Sequence[Task]) -> None:
        for task in tasks:
            self._waiting.put(task)

    def ended(self) -> list[tuple[Task, str]]:
        try:
            return [self._ended.get(timeout=_PERIOD)]
        except queue.Empty:
            return []

    def _feed(self) -> None:
        worker = None
        while (task := self._waiting.get()) is not None and not self._closed:
            worker = worker or _start()
            self._busy[worker] = task
            if self._closed:  # while it was started
                worker.terminate()
            answer = _ask(worker, task)
            if answer is None:
                answer = f"its process ended ({_exit(worker.wait())})"
                self._busy.pop(worker)
                worker = None
            else:
                self._busy.pop(worker)
            self._ended.put((task, answer))
        if worker is not None:
            _ask(worker, None)
            worker.wait()

    def close(self) -> None:
        self._closed = True
        running = dict(self._busy)
        for worker in running:
            worker.terminate()
        for _ in self._threads:
            self._waiting.put(None)
        for thread in self._threads:
            thread.join(10)
        for worker, task in running.items():
            if worker.poll() is None:
                worker.kill()
                worker.wait()
            if not task.done:
                story = Story.of(task)
                if story.end is None:
                    note_end(task, "its process was ended with the run", story.ends)


def _start() -> subprocess.Popen[str]:
    """A worker process, which finds every module that this process finds."""
    path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
    return subprocess.Popen(
        [sys.executable, "-m", "interp.cluster.worker"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        env={**os.environ, "PYTHONPATH": path},
    )


def _ask(worker: subprocess.Popen[str], task: Task | None) -> str | None:
    """Let a worker do a task: why it failed ("" if done), None if the process has ended."""
    assert worker.stdin is not None
    assert worker.stdout is not None
    with suppress(OSError, ValueError):
        if task is None:
            worker.stdin.close()
            worker.stdout.close()
        else:
            worker.stdin.write(json.dumps(asdict(task)) + "\n")
            worker.stdin.flush()
            return json.loads(worker.stdout.readline())
    return None


def _exit(code: int) -> str:
    return (
        f"killed by signal {-code}" if code < 0 else f"exit code {code}; it may have said why on its stderr"
    )


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
