"""Tasks as jobs of a real Slurm: arrays, jobs that are killed, preempted, cancelled, and found again."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from interp import cluster
from interp.cluster import slurm as jobs
from interp.cluster.squeue import alive
from interp.cluster.status import submitted
from interp.cluster.tasks import Cancelled
from interp.probe import Sparse1DProbe

pytestmark = [pytest.mark.slurm, pytest.mark.usefixtures("clean")]

WORLD = Path(__file__).resolve().parents[1] / "cluster_world.py"
OPTIONS = {"slurm_partition": "low", "timeout_min": 5}


@pytest.fixture(autouse=True)
def _patience(monkeypatch, tmp_path):
    """Look more often than is polite on a cluster that others use."""
    monkeypatch.setitem(jobs.PERIOD, "slurm", 0.3)
    monkeypatch.setattr(jobs, "GRACE", 1.0)
    monkeypatch.setenv("CLUSTER_WORLD", str(tmp_path))


class Driver(threading.Thread):
    """`cluster.run` beside the test."""

    def __init__(self, tasks, **options) -> None:
        super().__init__(daemon=True)
        self.tasks, self.options = tasks, {**OPTIONS, **options}
        self.error: BaseException | None = None
        self.start()

    def run(self) -> None:
        try:
            cluster.run(self.tasks, "slurm", **self.options)
        except BaseException as error:
            self.error = error

    def wait(self) -> None:
        self.join(120)
        assert not self.is_alive(), "the run does not end"
        if self.error is not None:
            raise self.error


def wait_for(what: Callable[[], object], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, f"waited {seconds} s in vain"
        time.sleep(0.1)


def states(folder: Path) -> list[str]:
    return list(cluster.status(folder).state)


def coefficients(summary) -> np.ndarray:
    return Sparse1DProbe().fit_summary(summary).coef_


@pytest.fixture(scope="module")
def expected(tmp_path_factory) -> np.ndarray:
    """The answer of one task in this process."""
    folder = tmp_path_factory.mktemp("inline")
    tasks = cluster.plan(f"{WORLD}:shard", folder / "run", seeds=range(10), n_tasks=1)
    return coefficients(cluster.merge(cluster.run(tasks, "inline")))


def test_an_array_with_a_killed_task_gives_the_answer_of_one_process(tmp_path, expected):
    folder = tmp_path / "run"
    tasks = cluster.plan(f"{WORLD}:waits", folder, seeds=range(10), n_tasks=4)
    assert set(states(folder)) == {"waiting"}
    driver = Driver(tasks, max_array=3, retries=1)
    wait_for(lambda: "running" in states(folder))
    assert "submitted" in states(folder)  # two cores, four tasks
    arrays = {entry["job"].partition("_")[0] for entry in submitted(folder).values()}
    assert len(arrays) == 2  # three tasks and one

    victim = states(folder).index("running")
    subprocess.run(["scancel", submitted(folder)[victim]["job"]], check=True)
    wait_for(lambda: cluster.status(folder).attempts[victim] == 1 and states(folder)[victim] != "running")
    (tmp_path / "go").touch()
    driver.wait()

    table = cluster.status(folder)
    assert list(table.state) == ["done"] * 4
    assert list(table.attempts) == [2 if i == victim else 1 for i in range(4)]
    np.testing.assert_array_equal(coefficients(cluster.merge([t.path for t in tasks])), expected)


def test_a_preempted_task_is_requeued_by_slurm_and_goes_on(tmp_path, expected):
    folder = tmp_path / "run"
    tasks = cluster.plan(f"{WORLD}:waits", folder, seeds=range(10), n_tasks=2)
    driver = Driver(tasks, retries=0)  # what follows is not a retry of ours
    wait_for(lambda: states(folder) == ["running", "running"])
    urgent = ["sbatch", "--partition=high", "--ntasks=2", "--output=/dev/null", "--wrap=sleep 1"]
    subprocess.run(urgent, check=True)
    wait_for(lambda: (cluster.status(folder).attempts == 2).all())
    (tmp_path / "go").touch()
    driver.wait()
    assert list(cluster.status(folder).attempts) == [2, 2]
    np.testing.assert_array_equal(coefficients(cluster.merge(folder)), expected)


def test_cancel_ends_the_jobs_and_a_later_run_goes_on(tmp_path, expected):
    folder = tmp_path / "run"
    tasks = cluster.plan(f"{WORLD}:waits", folder, seeds=range(10), n_tasks=4)
    driver = Driver(tasks)
    wait_for(lambda: "running" in states(folder))
    code = "import sys; from interp import cluster; cluster.cancel(sys.argv[1])"
    subprocess.run([sys.executable, "-c", code, str(folder)], check=True)
    with pytest.raises(Cancelled, match="run its tasks again"):
        driver.wait()
    wait_for(lambda: not alive(entry["job"] for entry in submitted(folder).values()))
    assert "done" not in states(folder)

    (tmp_path / "go").touch()
    assert len(cluster.run(cluster.load(folder), "inline")) == 4
    np.testing.assert_array_equal(coefficients(cluster.merge(folder)), expected)


def test_a_driver_that_was_killed_comes_back_to_its_jobs(tmp_path, expected):
    folder = tmp_path / "run"
    tasks = cluster.plan(f"{WORLD}:waits", folder, seeds=range(10), n_tasks=2)
    code = (
        "import sys; from interp import cluster\n"
        "cluster.run(cluster.load(sys.argv[1]), 'slurm', slurm_partition='low', timeout_min=5)"
    )
    first = subprocess.Popen([sys.executable, "-c", code, str(folder)])
    try:
        wait_for(lambda: len(submitted(folder)) == 2)
    finally:
        first.kill()
        first.wait()
    before = submitted(folder)
    (tmp_path / "go").touch()
    Driver(tasks, retries=0).wait()
    assert submitted(folder) == before
    assert list(cluster.status(folder).attempts) == [1, 1]
    np.testing.assert_array_equal(coefficients(cluster.merge(folder)), expected)
