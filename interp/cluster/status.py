"""How far a run is, told by its folder alone: from any process, while others work."""

from __future__ import annotations

import json
import os
import socket
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from interp.cluster.squeue import scancel
from interp.cluster.tasks import CANCEL, Task, load
from interp.events import BatchEnd, Event, JsonlLog, LensEnd, ShardEnd, Tail, TaskBegin, TaskEnd
from interp.files import write_text
from interp.lock import is_running

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Story", "cancel", "count", "note_end", "note_submitted", "status", "submitted"]

#: One line per task that was handed to a scheduler.
_SUBMITTED = "submitted.jsonl"


@dataclass
class Story:
    """What the log of a task tells.

    Attributes
    ----------
    attempts : int
        Begun.
    ends : int
        Attempts that ended, those included that never came to begin.
    begin : TaskBegin or None
        Of the latest attempt.
    end : TaskEnd or None
        Of the latest attempt.
    progress : float
        0 … 1.
    """

    attempts: int = 0
    ends: int = 0
    begin: TaskBegin | None = None
    end: TaskEnd | None = None
    progress: float = 0.0

    @classmethod
    def of(cls, task: Task) -> Story:
        """Read the log of a task."""
        story = cls()
        for _, event in Tail(task.log).new():
            if isinstance(event, TaskBegin):
                story.attempts += 1
                story.begin, story.end, story.progress = event, None, 0.0
            elif isinstance(event, TaskEnd):
                story.ends += 1
                story.end = event
            else:
                story.progress = _progress(event, task.job, story.progress)
        return story

    @property
    def lost(self) -> bool:
        """Whether the process that was at it is gone, as far as this host can tell."""
        begin = self.begin
        return (
            begin is not None
            and self.end is None
            and begin.host == socket.gethostname()
            and not is_running(begin.pid)
        )


def status(folder: str | os.PathLike[str]) -> pd.DataFrame:
    """The state of every task of a run.

    Parameters
    ----------
    folder : path
        The run folder.

    Returns
    -------
    DataFrame
        One row per task: ``task``, ``state`` (waiting, submitted, running, lost, failed, cancelled, done),
        ``attempts``, ``host``, ``seconds`` (of the latest attempt), ``progress`` (0 … 1), ``error``. ``lost``
        is a task whose process ended without a word, as by a kill; it can be told on the host of that process
        alone.

    Raises
    ------
    FileNotFoundError, ValueError
        If the folder holds no plan.
    """
    import pandas as pd

    handed = submitted(folder)
    rows = []
    for task in load(folder):
        story = Story.of(task)
        begin, end = story.begin, story.end
        seconds = end.seconds if end else max(time.time() - begin.time, 0.0) if begin else float("nan")
        done = task.done
        rows.append(
            {
                "task": task.name,
                "state": _state(story, handed.get(task.index), done),
                "attempts": story.attempts,
                "host": begin.host if begin else "",
                "seconds": seconds,
                "progress": 1.0 if done else story.progress,
                "error": end.error if end and not done else "",
            }
        )
    return pd.DataFrame(rows)


def cancel(folder: str | os.PathLike[str]) -> None:
    """End a run from any process: running tasks stop at their next event, waiting ones never begin.

    What is done stays done, and `interp.cluster.run` goes on behind it.

    Parameters
    ----------
    folder : path
        The run folder.
    """
    tasks = load(folder)
    write_text(Path(folder) / CANCEL, "")
    handed = submitted(folder)
    scancel([handed[t.index]["job"] for t in tasks if t.index in handed and not t.done])


def note_submitted(
    folder: str | os.PathLike[str], jobs: dict[Task, str], counts: dict[Task, dict[str, int]]
) -> None:
    """Write down which Slurm job has which task, so that any process finds it.

    Parameters
    ----------
    folder : path
        The run folder.
    jobs : dict
        Task → job.
    counts : dict
        Task → `count` before the submission.
    """
    entries = [{"task": task.index, "job": job, **counts[task]} for task, job in jobs.items()]
    with open(Path(folder) / _SUBMITTED, "a", encoding="utf-8") as file:
        # The line break comes first: it ends a line that was cut short by a kill.
        file.write("".join("\n" + json.dumps(entry) for entry in entries))
        file.flush()
        os.fsync(file.fileno())


def submitted(folder: str | os.PathLike[str]) -> dict[int, dict[str, Any]]:
    """The latest Slurm job of each task (``job``), and what the task's log had counted by then."""
    out: dict[int, dict[str, Any]] = {}
    try:
        lines = (Path(folder) / _SUBMITTED).read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return out
    for line in lines:
        try:
            entry = json.loads(line)
            out[int(entry["task"])] = {
                "job": str(entry["job"]),
                "attempts": int(entry["attempts"]),
                "ends": int(entry["ends"]),
            }
        except (ValueError, KeyError, TypeError):  # empty, or cut short by a kill
            continue
    return out


def count(story: Story) -> dict[str, int]:
    """What tells later whether anything has happened since: no times, for the clocks of two hosts differ."""
    return {"attempts": story.attempts, "ends": story.ends}


def note_end(task: Task, why: str, ends: int) -> tuple[str, int]:
    """Write an end into the log of a task whose process could not.

    Parameters
    ----------
    task : Task
    why : str
        What is known.
    ends : int
        Ends that the log had when the attempt was handed out.

    Returns
    -------
    why : str
        What the log says of it now.
    ends : int
        Ends that the log has now.
    """
    story = Story.of(task)
    if story.end is not None and story.ends > ends:
        return story.end.error or why, story.ends
    seconds = max(time.time() - story.begin.time, 0.0) if story.begin is not None and not story.end else 0.0
    with JsonlLog(task.log) as log:
        log(TaskEnd(job=task.job, task=task.index, seconds=seconds, error=why))
    return why, story.ends + 1


def _state(story: Story, handed: dict[str, Any] | None, done: bool) -> str:
    if done:
        return "done"
    if handed is not None and count(story).items() <= handed.items():
        return "submitted"
    if story.end is not None:
        return "cancelled" if story.end.error.startswith("Cancelled") else "failed"
    if story.begin is None:
        return "waiting"
    return "lost" if story.lost else "running"


def _progress(event: Event, job: str, before: float) -> float:
    """Share of a task that is done after an event."""
    if isinstance(event, ShardEnd):
        return (event.shard + 1) / event.n_shards
    if isinstance(event, BatchEnd) and job == "capture":
        return event.prompts_done / event.prompts_total
    if isinstance(event, LensEnd):
        return event.n_done / event.n_lenses
    return before
