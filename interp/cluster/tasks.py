"""Plan a job as tasks, run any of them anywhere, merge what they made.

A run folder, on a disk that every machine sees::

    plan.json              the job, its options and its tasks, written once
    inputs/                prompts, vectors or concepts, as they were when the plan was made
    tasks/task-0007/       what a task made; its done.json comes last
    logs/task-0007.jsonl   its events, of every attempt
    merged/                the whole, where it is files

A task is a few numbers: all that it needs is in the folder. It may be run twice, killed and run again, in any
order, on any machine, and makes the same files: rows are summed, batched and trained on in portions that the
plan fixes, whatever the number of tasks.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import operator
import os
import socket
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from interp.events import Emitter, Event, JsonlLog, Tail, TaskBegin, TaskEnd
from interp.files import read_json, sweep, write_json
from interp.lock import lock
from interp.threads import torch_threads

__all__ = ["Cancelled", "Planned", "Task", "load", "merge", "plan", "run_task"]

_FORMAT, _VERSION = "interp.plan", 1

#: Job → the module that plans, works and merges it: ``plan``, ``work`` and ``merge``.
_JOBS = {
    "summary": "interp.cluster.summary",
    "capture": "interp.cluster.activations",
    "lenses": "interp.cluster.lenses",
}

#: The file whose presence asks the tasks of a run to stop.
CANCEL = "cancel"


class Cancelled(RuntimeError):
    """A run was cancelled."""


@dataclass(frozen=True)
class Task:
    """One part of a job: what a worker has to be told, and nothing else.

    Attributes
    ----------
    folder : str
        The run folder.
    job : str
        ``"summary"``, ``"capture"`` or ``"lenses"``.
    index : int
        From 0.
    start, stop : int
        Portions ``start`` … ``stop − 1`` of the plan: row shards, or shards of concepts; of a capture, the
        ``start``-th of the shares that the batches are cut into.
    """

    folder: str
    job: str
    index: int
    start: int
    stop: int

    @property
    def name(self) -> str:
        """``"task-0007"``."""
        return f"task-{self.index:04d}"

    @property
    def path(self) -> Path:
        """The folder of what it makes."""
        return Path(self.folder) / "tasks" / self.name

    @property
    def log(self) -> Path:
        """The log of its events."""
        return Path(self.folder) / "logs" / f"{self.name}.jsonl"

    @property
    def done(self) -> bool:
        """Whether it has been done, by anybody."""
        return (self.path / "done.json").is_file()


@dataclass(frozen=True)
class Planned:
    """What a job's module answers: its plan.

    Attributes
    ----------
    spec : dict
        Everything that decides the result, as plain JSON types.
    parts : list of tuple of int
        ``(start, stop)`` of each task.
    inputs : dict of str to dict
        Files to keep in ``inputs/``, as JSON objects.
    """

    spec: dict[str, Any]
    parts: list[tuple[int, int]]
    inputs: dict[str, dict[str, Any]] = field(default_factory=dict)


def plan(
    shards: Any,
    out: str | os.PathLike[str],
    *,
    job: str = "summary",
    n_tasks: int = 8,
    threads: int = 1,
    **options: Any,
) -> list[Task]:
    """Cut a job into tasks and write the plan into a run folder.

    Parameters
    ----------
    shards : object
        What there is to work on. For ``job="summary"``: a folder of ``token_acts*.npz`` and ``labels*.bin``
        files, a list of such pairs, or ``"module:function"`` (or ``"file.py:function"``) with ``seeds=``. For
        ``"capture"``: prompts, as `interp.Prompts` takes them, or a file of them. For ``"lenses"``: a
        `interp.ConceptPack`, or its file.
    out : path
        The run folder: new, or that of the very same plan, whose tasks then go on where they were.
    job : {"summary", "capture", "lenses"}
    n_tasks : int
        At most; a task has at least one portion. The result does not depend on it.
    threads : int
        Torch threads of a task, the same wherever it runs, since sums are rounded as they are split.
    **options : of the job
        See `interp.cluster.summary.plan`, `interp.cluster.activations.plan` and
        `interp.cluster.lenses.plan`.

    Returns
    -------
    list of Task

    Raises
    ------
    FileExistsError
        If the folder holds something else (said what).
    ValueError, TypeError, FileNotFoundError
        If shards or options do not fit the job.
    """
    if operator.index(n_tasks) < 1 or operator.index(threads) < 1:
        raise ValueError(f"n_tasks and threads must be at least 1, got {n_tasks} and {threads}")
    planned = _job(job).plan(shards, n_tasks, **options)
    folder = Path(os.path.abspath(out))
    content = {
        "format": _FORMAT,
        "version": _VERSION,
        "job": job,
        "threads": threads,
        "inputs": {name: _hash(value) for name, value in planned.inputs.items()},
        "spec": planned.spec,
        "parts": planned.parts,
    }
    content = json.loads(json.dumps(content, allow_nan=False))
    file = folder / "plan.json"
    folder.mkdir(parents=True, exist_ok=True)
    with lock(folder) as held:
        sweep(folder)
        sweep(folder / "inputs")
        if file.is_file():
            found = read_json(file)
            differing = [k for k in content if found.get(k) != content[k]]
            if differing:
                names = differing if differing != ["spec"] else _differing(found["spec"], content["spec"])
                raise FileExistsError(
                    f"{folder} holds another plan, which differs in: {', '.join(names)}. Give another folder"
                )
            return load(folder)
        if any(f.name != "inputs" and f != held.path for f in folder.iterdir()):
            raise FileExistsError(f"{folder} is not empty and holds no plan: give another folder")
        for name, value in planned.inputs.items():
            write_json(folder / "inputs" / name, value)
        write_json(file, content)
    return load(folder)


def load(folder: str | os.PathLike[str]) -> list[Task]:
    """The tasks of a run folder, wherever it has been moved to.

    Parameters
    ----------
    folder : path

    Returns
    -------
    list of Task

    Raises
    ------
    FileNotFoundError, ValueError
        If there is no plan, or it is damaged or of another version.
    """
    content = read_plan(folder)
    where = os.path.abspath(folder)
    return [Task(where, content["job"], i, start, stop) for i, (start, stop) in enumerate(content["parts"])]


def read_plan(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """The plan of a run folder; errors as in `load`."""
    file = Path(folder) / "plan.json"
    if not file.is_file():
        raise FileNotFoundError(
            f"no plan in {folder}: make one with interp.cluster.plan(…, out={str(folder)!r})"
        )
    content = read_json(file)
    found = content.get("format"), content.get("version")
    if found != (_FORMAT, _VERSION):
        raise ValueError(f"{file} has (format, version) {found}, expected {(_FORMAT, _VERSION)}")
    return content


def run_task(task: Task) -> Path:
    """Do one task, unless it has been done.

    Parameters
    ----------
    task : Task
        From `plan` or `load`.

    Returns
    -------
    Path
        The folder of what it made. Nothing in it counts before its ``done.json`` is there.

    Raises
    ------
    LockedError
        If another process is at it.
    Cancelled
        If the run was cancelled.
    Exception
        Whatever the job raises; the log has it too.
    """
    content = read_plan(task.folder)
    if task.done:
        return task.path
    task.path.mkdir(parents=True, exist_ok=True)
    with lock(task.path), JsonlLog(task.log) as log:
        if task.done:
            return task.path
        sweep(task.path)
        attempt = 1 + sum(isinstance(e, TaskBegin) for _, e in Tail(task.log).new())
        host, n_tasks = socket.gethostname(), len(content["parts"])
        log(
            TaskBegin(
                job=task.job, task=task.index, n_tasks=n_tasks, attempt=attempt, host=host, pid=os.getpid()
            )
        )
        began = time.perf_counter()
        error = ""
        try:
            _work(task, content, log)
            seconds = time.perf_counter() - began
            done = {"task": task.index, "attempt": attempt, "host": host, "seconds": seconds}
            write_json(task.path / "done.json", done)
        except BaseException as e:
            error = describe(e)
            raise
        finally:
            seconds = time.perf_counter() - began
            log(TaskEnd(job=task.job, task=task.index, seconds=seconds, error=error))
    return task.path


def _work(task: Task, content: dict[str, Any], log: JsonlLog) -> None:
    def asked_to_stop(event: Event) -> bool:
        return cancelled(task.folder)

    emit = Emitter([log, asked_to_stop])
    with torch_threads(content["threads"]):
        if not cancelled(task.folder):
            _job(task.job).work(task, content["spec"], emit)
    if emit.stop or cancelled(task.folder):
        raise Cancelled(f"{task.name} was cancelled")


def cancelled(folder: str | os.PathLike[str]) -> bool:
    """Whether a run was asked to end."""
    return (Path(folder) / CANCEL).exists()


def describe(error: BaseException) -> str:
    """An exception in one line, for logs and tables."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:400]}" if text else type(error).__name__


def merge(paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str]]) -> Any:
    """Put together what the tasks of a run made, in the order of the plan.

    Parameters
    ----------
    paths : path, or iterable of path
        The run folder, or what `run_task` returned for each of its tasks, in any order.

    Returns
    -------
    LatentSummary, Activations or Lenses
        Of a capture and of lenses, the files are in the run folder's ``merged/``.

    Raises
    ------
    ValueError
        If a task is missing, or something that was made is damaged (named).
    """
    if isinstance(paths, (str, os.PathLike)):
        folder, given = Path(paths), None
    else:
        made = [Path(p) for p in paths]
        folders = {p.parent.parent for p in made}
        if len(folders) != 1:
            raise ValueError(f"expected the paths of the tasks of one run, got those of {len(folders)}")
        folder, given = folders.pop(), {p.name for p in made}
    content, tasks = read_plan(folder), load(folder)
    missing = [t.name for t in tasks if not t.done or (given is not None and t.name not in given)]
    if missing:
        raise ValueError(
            f"{len(missing)} of the {len(tasks)} tasks of {folder} are missing or not done: "
            f"{', '.join(missing[:8])}{' …' * (len(missing) > 8)}. Run them first (interp.cluster.run)"
        )
    with torch_threads(content["threads"]):
        return _job(content["job"]).merge(tasks, content["spec"])


@contextmanager
def made_by(task: Task) -> Iterator[None]:
    """What is found damaged inside the block was made by this task: say so, and what to do."""
    try:
        yield
    except (ValueError, FileNotFoundError) as error:
        raise ValueError(
            f"what {task.name} made is damaged: {error}. Delete {task.path} and run the tasks again: "
            "the others stay done"
        ) from error


def cut(n: int, n_tasks: int) -> list[tuple[int, int]]:
    """``(start, stop)`` of at most `n_tasks` parts of `n` portions, as equal as they can be."""
    n_tasks = min(n, n_tasks)
    return [(n * i // n_tasks, n * (i + 1) // n_tasks) for i in range(n_tasks)]


def check_options(job: str, options: dict[str, Any], allowed: Sequence[str], advice: str = "") -> None:
    """Refuse options that a job does not have, or that a plan cannot keep."""
    unknown = sorted(set(options) - set(allowed))
    if unknown:
        raise TypeError(
            f"a plan with job={job!r} takes no option {unknown[0]!r}; it takes {', '.join(allowed)}"
            f"{'. ' * bool(advice)}{advice}"
        )
    for name, value in options.items():
        try:
            json.dumps(value, allow_nan=False)
        except (TypeError, ValueError):
            raise TypeError(
                f"{name}={value!r} cannot be kept in a plan: give plain numbers, strings or lists"
            ) from None


def _job(name: str) -> Any:
    if name not in _JOBS:
        raise ValueError(f"job must be one of {', '.join(_JOBS)}, got {name!r}")
    return importlib.import_module(_JOBS[name])


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def _differing(found: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    return sorted(k for k in {*found, *wanted} if found.get(k) != wanted.get(k))
