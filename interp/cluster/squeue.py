"""Slurm's own commands, where submitit asks accounting, which not every cluster keeps."""

from __future__ import annotations

import logging
import shutil
import subprocess
from collections.abc import Iterable

__all__ = ["alive", "scancel"]

logger = logging.getLogger(__name__)


def alive(jobs: Iterable[str]) -> set[str]:
    """Those of some jobs (``"12_7"``: element 7 of array 12) that wait or run.

    When Slurm cannot be asked, all of them: a controller that restarts ends no job.
    """
    jobs = set(jobs)
    if not jobs:
        return set()
    masters = sorted({job.partition("_")[0] for job in jobs}, key=int)
    command = [
        "squeue",
        "--noheader",
        "--array",
        "--states=all",
        "--format=%i %T",
        "--jobs",
        ",".join(masters),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        if "Invalid job id" in done.stderr:  # all of them ended so long ago that Slurm has forgotten them
            return set()
        logger.warning("squeue: %s", done.stderr.strip())
        return jobs
    found = dict(line.split() for line in done.stdout.splitlines() if line.strip())
    return {job for job in jobs if found.get(job) in _ALIVE}


#: States of jobs that will still do something; the others are ends.
_ALIVE = {
    "PENDING",
    "CONFIGURING",
    "RUNNING",
    "COMPLETING",
    "REQUEUED",
    "REQUEUE_HOLD",
    "REQUEUE_FED",
    "RESIZING",
    "SIGNALING",
    "STAGE_OUT",
    "STOPPED",
    "SUSPENDED",
    "SPECIAL_EXIT",
    "RESV_DEL_HOLD",
}


def scancel(jobs: Iterable[str]) -> None:
    """Cancel jobs, those that have ended included."""
    jobs = sorted(set(jobs))
    if jobs and shutil.which("scancel"):
        subprocess.run(["scancel", *jobs], capture_output=True, check=False)
