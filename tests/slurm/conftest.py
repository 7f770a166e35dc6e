"""A Slurm of one node for the tests: started with free ports and files of its own, stopped at the end."""

from __future__ import annotations

import getpass
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

_CONF = """
ClusterName=interp
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ctld_port}
SlurmdPort={d_port}
AuthType=auth/munge
# A requeued job waits for its credential to expire.
AuthInfo=socket={folder}/munge/socket,cred_expire=5
SlurmUser={user}
SlurmdUser={user}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
ReturnToService=2
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=sched_interval=1,bf_interval=1,batch_sched_delay=0,sched_min_interval=100000
SlurmdParameters=config_overrides
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue=1
KillWait=2
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 State=UNKNOWN
PartitionName=low Nodes={host} Default=YES PriorityTier=1 MaxTime=10 State=UP
PartitionName=high Nodes={host} PriorityTier=10 PreemptMode=OFF MaxTime=10 State=UP
"""


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def _wait_for(what: str, ready, seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < deadline, f"{what} did not happen in {seconds} s"
        time.sleep(0.1)


@pytest.fixture(scope="session")
def slurm() -> Iterator[Path]:
    """The folder of a running Slurm; ``SLURM_CONF`` points to it."""
    folder = Path(tempfile.mkdtemp(prefix="interp-slurm-"))
    folder.chmod(0o755)
    (folder / "munge").mkdir()
    key = folder / "munge" / "key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o600)
    as_munge: list[str] = []
    if os.getuid() == 0:  # munged would rather not be root
        for path in (folder / "munge", key):
            shutil.chown(path, "munge", "munge")
        as_munge = ["setpriv", "--reuid=munge", "--regid=munge", "--clear-groups"]
    (folder / "munge").chmod(0o711)
    for name in ("state", "spool"):
        (folder / name).mkdir()
    host = socket.gethostname().partition(".")[0]
    conf = folder / "slurm.conf"
    conf.write_text(
        _CONF.format(
            host=host, folder=folder, user=getpass.getuser(), ctld_port=_free_port(), d_port=_free_port()
        )
    )
    # Tasks find the package as this process does.
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    before = {name: os.environ.get(name) for name in ("SLURM_CONF", "PYTHONPATH")}
    os.environ.update(SLURM_CONF=str(conf), PYTHONPATH=path)
    daemons: list[subprocess.Popen[bytes]] = []

    def start(name: str, *arguments: str, first: Sequence[str] = ()) -> None:
        command = [*first, shutil.which(name) or f"/usr/sbin/{name}", *arguments]
        with open(folder / f"{name}.out", "wb") as out:
            daemons.append(subprocess.Popen(command, stdout=out, stderr=out, stdin=subprocess.DEVNULL))

    try:
        munge = folder / "munge"
        start(
            "munged", "--foreground", f"--key-file={key}", f"--socket={munge}/socket",
            f"--pid-file={munge}/pid", f"--log-file={munge}/log", f"--seed-file={munge}/seed", first=as_munge,
        )  # fmt: skip
        _wait_for("munged", (munge / "socket").exists)
        start("slurmctld", "-D", "-f", str(conf))
        start("slurmd", "-D", "-f", str(conf), "-N", host)

        def idle() -> bool:
            assert all(d.poll() is None for d in daemons), _logs(folder)
            done = subprocess.run(["sinfo", "-h", "-o", "%T"], capture_output=True, text=True, check=False)
            return "idle" in done.stdout

        _wait_for("an idle node", idle, 30)
        yield folder
    finally:
        for daemon in reversed(daemons):
            daemon.terminate()
        for daemon in reversed(daemons):
            try:
                daemon.wait(10)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
        print(_logs(folder), file=sys.stderr)  # pytest shows it where a test failed
        shutil.rmtree(folder, ignore_errors=True)


def _logs(folder: Path) -> str:
    files = [*folder.glob("*.log"), *folder.glob("*.out")]
    return "\n".join(f"--- {f.name}\n{f.read_text(errors='replace')[-3000:]}" for f in files)


@pytest.fixture
def clean(slurm: Path) -> Iterator[None]:
    """No job is left behind."""
    yield
    for how in (["--signal=KILL", "--full"], []):
        subprocess.run(["scancel", f"--user={getpass.getuser()}", *how], check=False)

    def empty() -> bool:
        done = subprocess.run(["squeue", "-h"], capture_output=True, text=True, check=False)
        return not done.stdout.strip()

    _wait_for("an empty queue", empty)
