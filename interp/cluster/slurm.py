"""Tasks as jobs of submitit: arrays on a Slurm cluster, or processes of this machine that stand for them."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from interp.cluster.squeue import alive
from interp.cluster.status import Story, count, note_submitted, submitted
from interp.cluster.tasks import Task, run_task

__all__ = ["Job", "Local", "Slurm"]

logger = logging.getLogger(__name__)

#: Seconds between two looks at the jobs.
PERIOD = {"local": 0.2, "slurm": 5.0}

#: Seconds that a job that is gone has for its last file to be seen from here, as over NFS.
GRACE = 10.0


class Job:
    """`run_task`, for submitit: told that its time is up, it asks to be requeued."""

    def __call__(self, task: Task) -> str:
        return str(run_task(task))

    def checkpoint(self, task: Task) -> Any:
        """What is to be run after a requeue: the same."""
        return _submitit().helpers.DelayedSubmission(self, task)


class Local:
    """submitit's executor for one machine: what a Slurm job does, without Slurm."""

    def __init__(self, folder: Path, n_workers: int, options: dict[str, Any]) -> None:
        self._executor = _auto(folder, "local", {"timeout_min": 7 * 24 * 60, **options})
        self.n_workers = n_workers
        self._queue: deque[Task] = deque()
        self._jobs: dict[Task, Any] = {}

    def submit(self, tasks: Sequence[Task]) -> None:
        """Take tasks; as many run at a time as there are workers."""
        self._queue.extend(tasks)
        self._feed()

    def _feed(self) -> None:
        while self._queue and len(self._jobs) < self.n_workers:
            task = self._queue.popleft()
            self._jobs[task] = self._executor.submit(Job(), task)

    def ended(self) -> list[tuple[Task, str]]:
        """Wait a little; the tasks whose job has ended, and where its log is."""
        time.sleep(PERIOD["local"])
        out = [(t, f"job {j.job_id} ended; see {j.paths.stderr}") for t, j in self._jobs.items() if j.done()]
        for task, _ in out:
            del self._jobs[task]
        self._feed()
        return out

    def close(self) -> None:
        """End the jobs that still run."""
        for job in self._jobs.values():
            job.cancel(check=False)


class Slurm:
    """Arrays of Slurm jobs, one job per task."""

    def __init__(self, folder: Path, max_array: int, options: dict[str, Any]) -> None:
        self._executor = _auto(folder, "slurm", {"slurm_job_name": "interp", **options})
        self.folder, self.max_array = folder, max_array
        self._jobs: dict[Task, str] = {}
        self._gone: dict[Task, float] = {}
        self._begun = False

    def submit(self, tasks: Sequence[Task]) -> None:
        """Hand tasks to Slurm, but for those that an earlier call handed over and that still wait or run."""
        tasks = list(tasks)
        if not self._begun:  # those of an earlier call that was interrupted still wait or run
            self._begun = True
            handed = {i: entry["job"] for i, entry in submitted(self.folder).items()}
            running = alive(handed[t.index] for t in tasks if t.index in handed)
            self._jobs = {t: handed[t.index] for t in tasks if handed.get(t.index) in running}
            tasks = [t for t in tasks if t not in self._jobs]
        for i in range(0, len(tasks), self.max_array):
            part = tasks[i : i + self.max_array]
            counts = {t: count(Story.of(t)) for t in part}
            jobs = self._executor.map_array(Job(), part)
            named = {t: job.job_id for t, job in zip(part, jobs, strict=True)}
            note_submitted(self.folder, named, counts)
            self._jobs |= named
            logger.info("submitted %d tasks as Slurm job %s", len(part), jobs[0].job_id.partition("_")[0])

    def ended(self) -> list[tuple[Task, str]]:
        """Wait a little; the tasks that are done or whose job is gone, and where its log is."""
        time.sleep(PERIOD["slurm"])
        running = alive(self._jobs.values())
        out, now = [], time.monotonic()
        for task, job in list(self._jobs.items()):
            if not task.done and (job in running or now - self._gone.setdefault(task, now) < GRACE):
                if job in running:
                    self._gone.pop(task, None)
                continue
            del self._jobs[task]
            self._gone.pop(task, None)
            out.append((task, f"Slurm job {job} ended; see {self.folder / 'submitit'}/{job}_0_log.err"))
        return out

    def close(self) -> None:
        """Nothing: the jobs are Slurm's."""


def _auto(folder: Path, cluster: str, options: dict[str, Any]) -> Any:
    executor = _submitit().AutoExecutor(folder=folder / "submitit", cluster=cluster)
    executor.update_parameters(**options)
    return executor


def _submitit() -> Any:
    try:
        import submitit
    except ImportError as error:
        raise ImportError(
            "the executors 'slurm' and 'submitit-local' need submitit: pip install 'interp[slurm]'"
        ) from error
    return submitit
