"""Kills, full disks, damaged files, two at one folder, clocks set back, folders that cannot be written in."""

from __future__ import annotations

import dataclasses
import errno
import json
import math
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cluster_world
import lens_world
import numpy as np
import pytest
import scipy.sparse as sp
import torch
from capture_zoo import sequences, zoo
from safetensors import SafetensorError

import interp.lock
from interp import cluster, events
from interp.capture import Activations, capture, store
from interp.capture.traits import Trait, TraitVectors
from interp.files import append, expect_writable, read_json, sweep, whole, write_json, write_text
from interp.lens.bank import Bank
from interp.lens.concepts import ConceptPack
from interp.lens.levels import train_by_level
from interp.lens.library import Lenses
from interp.lens.report import LensReport
from interp.lens.samples import Samples
from interp.live.digest import CaptureDigest, FitDigest, LensDigest
from interp.lock import LockedError, lock
from interp.probe import LatentSummary, Sparse1DProbe
from interp.probe.files import load_csr, load_labels
from interp.report import Report
from interp.sae import SAE

HERE = Path(__file__).parent
SITE = "resid_post.1"
CAPTURE: dict[str, Any] = {"sites": "resid_post.*", "max_new_tokens": 2, "batch_tokens": 40}
LENGTHS = (5, 12, 1, 9, 20, 3, 7, 7, 15, 2)


# --------------------------------------------------------------------------------------- kills


@pytest.mark.parametrize("kind", ["capture", "summary", "lenses"])
def test_killed_at_random_moments(kind: str, tmp_path: Path) -> None:
    """20 kills of each kind; what is compared after each of them is in faults_world.py."""
    command = [sys.executable, HERE / "faults_world.py", kind, "20", "0", tmp_path / "runs"]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=env, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    seen = json.loads(done.stdout)
    assert seen["kills"] >= 20
    assert seen["kept"] > 0, "no kill left anything finished behind: nothing was tried"


# --------------------------------------------------------------------------------------- locks


def in_child(work: Callable[[], object]) -> int:
    """The process id of a child that does `work`, and ends."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # idle threads of torch do no harm
        pid = os.fork()
    if pid == 0:
        try:
            work()
            os._exit(0)
        except BaseException as error:
            os.write(2, f"{error!r}\n".encode())
            os._exit(1)
    return pid


class Held:
    """A folder that another process holds, until it is killed."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        ready, tell = os.pipe()

        def hold() -> None:
            lock(folder)
            os.write(tell, b"x")
            time.sleep(600)

        self.pid = in_child(hold)
        assert os.read(ready, 1) == b"x"
        os.close(ready)
        os.close(tell)

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)


def _no_flock(fd: int) -> None:
    raise OSError(errno.ENOLCK, "No locks available")


#: As the system has it; a file system that answers "no locks"; a system without flock.
FLOCKS = {"flock": None, "refused": lambda: _no_flock, "absent": lambda: None}


@pytest.fixture(params=list(FLOCKS))
def any_flock(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if FLOCKS[request.param] is not None:
        monkeypatch.setattr(interp.lock, "_flock", FLOCKS[request.param])
    return request.param


def test_the_second_is_refused_and_a_dead_ones_lock_taken_over(any_flock: str, tmp_path: Path) -> None:
    held = Held(tmp_path)
    with pytest.raises(LockedError, match=rf"written by process {held.pid} on .* since 20\d\d-") as refusal:
        lock(tmp_path)
    assert "give another folder" in str(refusal.value)
    held.kill()
    with lock(tmp_path) as mine:
        assert mine.recovered is not None
        assert mine.recovered["pid"] == held.pid
        with pytest.raises(LockedError, match="this very process"):
            lock(tmp_path)
    assert not list(tmp_path.iterdir())
    with lock(tmp_path) as again:
        assert again.recovered is None
    again.release()  # twice does nothing
    with pytest.raises(FileNotFoundError):
        lock(tmp_path / "nowhere")


def test_only_one_at_a_time(any_flock: str, tmp_path: Path) -> None:
    """Processes that race for a folder, some of which die with the lock: a plain counter loses no count."""
    folder, counter = tmp_path / "f", tmp_path / "count"
    folder.mkdir()
    counter.write_text("0")

    def count(n: int, dies: bool) -> None:
        for i in range(n):
            while True:
                try:
                    held = lock(folder)
                    break
                except LockedError:
                    time.sleep(0.0005)
            number = int(counter.read_text())
            time.sleep(0.0005)
            counter.write_text(str(number + 1))
            if dies and i == n - 1:
                os.kill(os.getpid(), signal.SIGKILL)
            held.release()

    pids = [in_child(lambda k=k: count(15, k % 2 == 0)) for k in range(6)]
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
    assert codes == [-signal.SIGKILL, 0] * 3
    assert counter.read_text() == "90"


def test_two_never_take_over_the_same_lock(any_flock: str, tmp_path: Path) -> None:
    """Again and again eight processes find the lock of one that was killed: no count is lost."""
    folder, counter = tmp_path / "f", tmp_path / "count"
    folder.mkdir()

    def count(dies: bool) -> None:
        for i in range(4):
            while True:
                try:
                    held = lock(folder)
                    break
                except LockedError:
                    time.sleep(0.0003)
            number = int(counter.read_text())
            time.sleep(0.0003)
            counter.write_text(str(number + 1))
            if dies and i == 3:
                os.kill(os.getpid(), signal.SIGKILL)
            held.release()

    for _ in range(5):
        counter.write_text("0")
        for pid in [in_child(lambda k=k: count(k % 2 == 0)) for k in range(8)]:
            os.waitpid(pid, 0)
        assert counter.read_text() == "32"


def test_an_heir_that_is_killed_has_heirs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without flock: killed while it took over the lock of one that was killed."""
    monkeypatch.setattr(interp.lock, "_flock", lambda: None)
    ended = Held(tmp_path)
    ended.kill()
    found = interp.lock._look(tmp_path / ".lock")
    assert found is not None
    claim = tmp_path / f".lock.{found[0]}.heir"
    living = {**json.loads((tmp_path / ".lock").read_text()), **interp.lock._myself()}
    claim.write_text(json.dumps(living))
    with pytest.raises(LockedError, match="this very process"):
        lock(tmp_path)
    claim.write_bytes((tmp_path / ".lock").read_bytes())  # of a process that is gone
    with lock(tmp_path) as mine:
        assert mine.recovered is not None
        assert mine.recovered["pid"] == ended.pid
        assert [f.name for f in tmp_path.iterdir()] == [".lock"]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("reaches", [True, False])
def test_a_holder_on_another_host(
    reaches: bool, any_flock: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where locks may not reach it, nobody can tell whether it lives: the error says so and what to do."""
    left = {"host": "node17", "pid": 1, "since": "2026-01-01T00:00:00+00:00", "born": ""}
    (tmp_path / ".lock").write_text(json.dumps(left))
    monkeypatch.setattr(interp.lock, "_reaches", lambda folder: reaches)
    if reaches and any_flock == "flock":
        with lock(tmp_path) as mine:  # its lock would have held us off
            assert mine.recovered is not None
        return
    with pytest.raises(LockedError, match=r"process 1 on node17 since 2026.*cannot be told.*delete .*\.lock"):
        lock(tmp_path)


@pytest.mark.parametrize(("mount", "reaches"), [
    ("ext4 /dev/sda1 rw", True),
    ("nfs4 nas:/x rw,vers=4.2,local_lock=none,addr=1", True),
    ("nfs nas:/x rw,vers=3,local_lock=flock", False),
    ("nfs4 nas:/x rw,vers=4.2", False),
    ("lustre mds@tcp:/x rw,flock", True),
    ("lustre mds@tcp:/x rw,localflock", False),
    ("beegfs nodev rw", False),
    ("cifs //nas/x rw", False),
    ("fuse.sshfs nas: rw", False),
])  # fmt: skip
def test_which_locks_reach_other_hosts(
    mount: str, reaches: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder's own mount decides, and no other; what is not known to reach does not."""
    folder = tmp_path / "a folder" / "run"
    folder.mkdir(parents=True)
    here = str(folder.parent.resolve()).replace(" ", "\\040")  # as the kernel writes it
    other = "fuse.sshfs nas: rw" if reaches else "ext4 /dev/sda1 rw"
    lines = [
        f"20 1 8:1 / / rw shared:1 - {other}",
        f"21 20 0:5 / {here} rw,noatime shared:2 master:3 - {mount}",
        f"22 20 0:6 / {here}x rw - {other}",
        f"23 21 0:7 / {here}/elsewhere rw - {other}",
    ]
    real = Path.read_text

    def read_text(self: Path, *args: Any, **kwargs: Any) -> str:
        return "\n".join(lines) if str(self) == "/proc/self/mountinfo" else real(self, *args, **kwargs)

    monkeypatch.setattr(Path, "read_text", read_text)
    assert interp.lock._reaches(folder) is reaches


def test_without_proc_no_lock_is_trusted_to_reach_another_host(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read_text(self: Path, *args: Any, **kwargs: Any) -> str:
        raise FileNotFoundError(self)

    monkeypatch.setattr(Path, "read_text", read_text)
    assert not interp.lock._reaches(tmp_path)


def test_a_holder_of_whom_only_the_number_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without flock and without /proc, a process of that number is taken for the holder."""
    monkeypatch.setattr(interp.lock, "_flock", lambda: None)
    monkeypatch.setattr(interp.lock, "_born", lambda pid: "")
    held = Held(tmp_path)
    with pytest.raises(LockedError, match=f"process {held.pid} on"):
        lock(tmp_path)
    held.kill()
    lock(tmp_path).release()
    assert interp.lock.is_running(10**30), "a number that cannot be asked about is not known to be dead"


def test_no_clock_is_read_to_judge_a_lock(
    any_flock: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = Held(tmp_path)
    for seconds in (0, -(10**8), 10**9):
        os.utime(tmp_path / ".lock", (max(time.time() + seconds, 0),) * 2)
        with pytest.raises(LockedError):
            lock(tmp_path)
    held.kill()
    os.utime(tmp_path / ".lock", (time.time() + 10**9,) * 2)
    lock(tmp_path).release()


def test_a_lock_file_of_garbage_is_no_obstacle(any_flock: str, tmp_path: Path) -> None:
    for garbage in (b"", b"{", b"\xff\x00", b"[]", b'{"host": 1}'):
        (tmp_path / ".lock").write_bytes(garbage)
        lock(tmp_path).release()


def test_two_processes_on_one_run_folder(tmp_path: Path) -> None:
    """Every writer of a run folder refuses the second, and goes on when the first was killed."""
    model, world, pack = zoo("llama"), lens_world.model(), lens_world.pack(12)
    tasks = cluster.plan(cluster_world.shard, tmp_path / "cluster", seeds=[1, 2], n_tasks=1)
    lenses = some_lenses()
    writers: dict[Path, Callable[[], object]] = {
        tmp_path / "capture": lambda: capture(
            model, sequences(0, LENGTHS), out=tmp_path / "capture", **CAPTURE
        ),
        tmp_path / "training": lambda: train_by_level(
            world, pack, site=SITE, out=tmp_path / "training", levels=[1], growth=(4,)
        ),
        tmp_path / "lenses": lambda: lenses.save(tmp_path / "lenses"),
        tasks[0].path: lambda: cluster.run_task(tasks[0]),
    }
    for folder, write in writers.items():
        held = Held(folder)
        with pytest.raises(LockedError, match=f"process {held.pid} on"):
            write()
        assert [f.name for f in folder.iterdir()] == [".lock"], "the refused one left something"
        held.kill()
        write()
        assert not (folder / ".lock").exists()


# ----------------------------------------------------------------------- things that are written


def some_lenses(seed: int = 0) -> Lenses:
    torch.manual_seed(seed)
    reports = [LensReport(concept=c, term=c, level=0, fitted=True, grade="A", score=0.9) for c in "abc"]
    model = {"name": "m", "revision": "", "fingerprint": "f", "dtype": "float32", "tokenizer": "t"}
    meta = {"model": model, "site": SITE, "pooling": "mean", "typical_norm": 1.0, "seed": seed}
    negatives = {"text": torch.randn(3, 9), "token": torch.randn(3, 9)}
    flat = torch.zeros(16)
    return Lenses(reports, torch.randn(3, 16), torch.randn(3), flat, flat + 1, negatives, meta)


def some_rows(seed: int) -> tuple[sp.csr_array, np.ndarray]:
    return cluster_world.shard(seed, n_rows=200)


def some_traits(seed: int) -> TraitVectors:
    torch.manual_seed(seed)
    fields: dict[str, Any] = dict.fromkeys(("auroc", "low", "high", "random", "shuffled"), 0.75)
    vectors = {SITE: torch.randn(16)}
    names = {"name": "t", "method": "mean", "pool": "mean", "kind": "natural", "site": SITE}
    return TraitVectors(
        [Trait(**names, vectors=vectors, layers={SITE: 0.8}, other={}, n=seed + 9, **fields)],
        {"name": "m", "fingerprint": "f"},
    )


def some_sae(seed: int) -> SAE:
    torch.manual_seed(seed)
    weights = {"W_enc": torch.randn(8, 16), "b_enc": torch.randn(16), "W_dec": torch.randn(16, 8)}
    return SAE(weights | {"b_dec": torch.randn(8)}, {"architecture": "topk", "k": 3, "d_in": 8, "d_sae": 16})


def some_bank(seed: int, folder: Path) -> None:
    samples = Samples(lens_world.pack(12, seed)).positives("bird", "train", 6)
    Bank(lens_world.model(), SITE, folder=folder).ensure(samples)


def some_log(seed: int, path: Path) -> None:
    with events.JsonlLog(path) as log:
        for i in range(200 if seed else 4):  # a full disk still has the rest of the last page
            log(
                events.SlabBegin(
                    slab=seed + i, n_slabs=9, class_start=i, class_stop=i + 1, n_pairs=7, n_inert=0
                )
            )


def unfinished(seed: int, folder: Path) -> None:
    """A capture that was stopped after some batches: manifest, journal, shards."""

    def stop(event: events.Event) -> bool:
        return isinstance(event, events.BatchEnd) and event.batch == 0

    capture(zoo("llama"), sequences(seed, LENGTHS), out=folder, iteration_hook=stop, **CAPTURE)


def tensors_of(acts: Activations) -> list[Any]:
    kept = [
        acts.prompt_ids,
        acts.token_ids.tolist(),
        acts.offsets.tolist(),
        acts.meta,
        *map(acts.tokens, acts.prompt_ids[:1]),
    ]
    return [*kept, *(acts[s].tolist() for s in acts.sites)]


def npz(seed: int, path: Path) -> None:
    with whole(path) as part, open(part, "wb") as file:
        sp.save_npz(file, sp.csr_matrix(some_rows(seed)[0]), compressed=bool(seed % 2))


@dataclass
class Thing:
    """Something that is kept in files.

    `write(seed, path)` writes it, `read(path)` gives what it holds in a form that compares. `sealed`: every
    flipped bit is found; without, only what breaks the form, since the form is not ours or people edit it.
    """

    name: str
    write: Callable[[int, Path], object]
    read: Callable[[Path], Any]
    sealed: bool = True


def state(lenses: Lenses) -> list[Any]:
    reports = [json.dumps(r.to_dict()) for r in lenses.reports]
    return [lenses.weight.tolist(), lenses.bias.tolist(), lenses.meta, reports]


def fitted(seed: int) -> Sparse1DProbe:
    return Sparse1DProbe(max_iter=5).fit(*some_rows(seed), n_classes=6)


THINGS = [
    Thing(
        "capture",
        lambda seed, p: capture(zoo("llama"), sequences(seed, LENGTHS), out=p, **CAPTURE),
        lambda p: tensors_of(Activations.load(p)),
    ),
    Thing("unfinished", unfinished, lambda p: tensors_of(Activations.load(p))),
    Thing(
        "traits",
        lambda seed, p: some_traits(seed).save(p / "t"),
        lambda p: [repr(t) + repr(t.vectors) for t in TraitVectors.load(p / "t").values()],
    ),
    Thing("lenses", lambda seed, p: some_lenses(seed).save(p), lambda p: state(Lenses.load(p))),
    Thing(
        "bank",
        some_bank,
        lambda p: (b := Bank(lens_world.model(), SITE, folder=p)).take(torch.arange(len(b))),
    ),
    Thing(
        "summary",
        lambda seed, p: LatentSummary(24, 6).add(*some_rows(seed)).save(p / "s"),
        lambda p: LatentSummary.load(p / "s").save(p / "again").read_bytes(),
    ),
    Thing(
        "probe",
        lambda seed, p: fitted(seed).save(p / "p"),
        lambda p: (f := Sparse1DProbe.load(p / "p")).coef_.tolist() + f.intercept_.tolist(),
    ),
    Thing(
        "sae",
        lambda seed, p: some_sae(seed).save(p),
        lambda p: [(s := SAE.load(p)).cfg, s.W_enc.tolist(), s.W_dec.tolist(), s.b_enc.tolist()],
    ),
    Thing(
        "plan",
        lambda seed, p: cluster.plan(cluster_world.shard, p, seeds=[seed, seed + 1], n_tasks=2),
        cluster.load,
    ),
    Thing("log", lambda seed, p: some_log(seed, p / "a.jsonl"), lambda p: events.read(p / "a.jsonl")),
    Thing(
        "pack",
        lambda seed, p: lens_world.pack(6, seed).save(p / "pack.json"),
        lambda p: ConceptPack.load(p / "pack.json").to_dict(),
        sealed=False,
    ),
    Thing(
        "code",
        lambda seed, p: npz(seed, p / "token_acts.npz"),
        lambda p: load_csr(p / "token_acts.npz").todense().tolist(),
    ),
    Thing("page", lambda seed, p: Report(f"{seed}", "lead" * 999).write(p / "r.html"), lambda p: "", False),
]
BY_NAME = {t.name: t for t in THINGS}


def same(a: Any, b: Any) -> bool:
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


# ------------------------------------------------------------------------------ damaged files


@pytest.mark.parametrize("name", [t.name for t in THINGS if t.name != "page"])
def test_damaged_files_are_refused_by_name(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Any bit flipped, any length cut: refused with an error that names the place, or without effect."""
    thing, chance = BY_NAME[name], random.Random(name)
    good = tmp_path / "good"
    good.mkdir()
    thing.write(0, good)
    expected = thing.read(good)
    files = [f.relative_to(good) for f in sorted(good.rglob("*")) if f.is_file() and f.name != "again"]
    tries = max(90 // len(files), 12)
    found = 0
    for file in files:
        content = (good / file).read_bytes()
        damages: list[tuple[str, bytes]] = [
            (f"cut to {n}", content[:n])
            for n in {0, 1, len(content) // 2, len(content) - 1, *chance.sample(range(len(content)), 4)}
        ]
        for i in range(tries):
            # Every second one near the beginning, where headers are.
            at = chance.randrange(min(len(content), 400) if i % 2 else len(content))
            bit = 1 << chance.randrange(8)
            damages.append((f"bit {bit} of byte {at}", _flipped(content, at, bit)))
        for what, damaged in damages:
            (good / file).write_bytes(damaged)
            caplog.clear()
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # a pack warns of unknown fields
                    read = thing.read(good)
            except (ValueError, FileNotFoundError) as error:
                assert str(good) in str(error) or file.name in str(error), f"{file}, {what}: {error}"  # noqa: PT017
                found += 1
                continue
            finally:
                (good / file).write_bytes(content)
            if name in ("log", "unfinished") and len(damaged) < len(content):
                continue  # as after a kill: what was whole is there
            if name == "log" and read != expected:
                assert all(e in expected for e in read), f"{file}, {what}: an event that never was"
                assert str(good) in caplog.text
                found += 1
            elif thing.sealed and file.name != "bank.json":  # which is for people
                assert same(read, expected), f"{file}, {what}: read as if nothing were wrong"
    assert found > tries / 4
    assert same(thing.read(good), expected)


def _flipped(content: bytes, at: int, bit: int) -> bytes:
    return content[:at] + bytes([content[at] ^ bit]) + content[at + 1 :]


def test_damaged_labels(tmp_path: Path) -> None:
    """Raw bytes have no form to check: their number must fit, and ids must be classes."""
    x, y = some_rows(0)
    file = tmp_path / "labels.bin"
    y.astype(np.uint8).tofile(file)
    assert (load_labels(file, x.shape[0]) == y).all()
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"labels\.bin has 199 labels"):
        load_labels(file, x.shape[0])
    (y | 128).astype(np.uint8).tofile(file)
    with pytest.raises(ValueError, match="outside"):
        LatentSummary(24, 6).add(x, load_labels(file, x.shape[0]))


def test_a_damaged_capture_is_not_gone_on_with(tmp_path: Path) -> None:
    """Rather than capturing anew what a damaged journal no longer names, and deleting what it named."""
    unfinished(0, tmp_path)
    journal = tmp_path / "journal.jsonl"
    good = journal.read_bytes()
    shards = {f.name: f.read_bytes() for f in tmp_path.glob("shard-*")}
    journal.write_bytes(_flipped(good, 30, 4))
    with pytest.raises(ValueError, match=r"journal\.jsonl is damaged: line 1"):
        capture(zoo("llama"), sequences(0, LENGTHS), out=tmp_path, **CAPTURE)
    assert shards == {f.name: f.read_bytes() for f in tmp_path.glob("shard-*")}
    journal.write_bytes(good)
    assert capture(zoo("llama"), sequences(0, LENGTHS), out=tmp_path, **CAPTURE).complete


# ---------------------------------------------------------------------------------- full disks


class Disk:
    """A place that can be full: a small tmpfs for root, else a limit on the size of files."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir()
        size = ["-o", "size=6m"]
        self.mounted = os.geteuid() == 0 and not _quietly("mount", "-t", "tmpfs", *size, "tmpfs", path)
        self.before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(self, leave: int = 0) -> None:
        """Leave so many bytes."""
        if not self.mounted:
            resource.setrlimit(resource.RLIMIT_FSIZE, (leave // 8, self.before[1]))
            return
        with open(self.path / "ballast", "wb", buffering=0) as file:
            step = 4096
            while True:
                try:
                    file.write(b"x" * step)
                except OSError:
                    break
            file.truncate(max(file.tell() - leave, 0))

    def free(self) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, self.before)
        (self.path / "ballast").unlink(missing_ok=True)

    def close(self) -> None:
        self.free()
        if self.mounted:
            _quietly("umount", "-l", self.path)


def _quietly(*command: str | Path) -> int:
    return subprocess.run(list(map(str, command)), capture_output=True, check=False).returncode


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    made = Disk(tmp_path / "disk")
    yield made
    made.close()


FULL = (errno.ENOSPC, errno.EFBIG)


@pytest.mark.parametrize("name", [t.name for t in THINGS if t.name not in ("capture", "unfinished", "bank")])
def test_a_full_disk_leaves_what_was_there(name: str, disk: Disk) -> None:
    thing = BY_NAME[name]
    folder = disk.path / "out"
    folder.mkdir()
    thing.write(0, folder)
    expected, before = thing.read(folder), _files(folder)
    again = disk.path / "again" if name in ("traits", "plan") else folder  # these replace nothing
    again.mkdir(exist_ok=True)
    disk.fill()
    with pytest.raises(OSError, match=r"No space left|too large") as refusal:
        thing.write(1, again)
    assert refusal.value.errno in FULL
    assert str(again) in str(refusal.value), "the place is not named"
    if name != "log":  # to which lines are added
        assert _files(folder) == before
    assert not [f for f in again.rglob(".*") if f.suffix == ".part"]
    disk.free()
    assert same(thing.read(folder), expected) or name == "log"
    thing.write(1, again)
    assert not same(thing.read(again), expected) or name == "page"


def _files(folder: Path) -> dict[str, bytes]:
    return {str(f): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file() and f.name != "again"}


def test_a_capture_goes_on_when_there_is_room_again(disk: Disk) -> None:
    model, prompts = zoo("llama"), sequences(0, LENGTHS * 8)
    out = disk.path / "run"
    options = {**CAPTURE, "sites": "resid_pre.*, resid_post.*, mlp_act.*"}
    disk.fill(leave=120_000)
    with pytest.raises(OSError, match=r"could not write .*run/.*\. The \d+ shards before it are intact"):
        capture(model, prompts, out=out, **options)
    kept = {f.name: f.stat().st_mtime_ns for f in out.glob("shard-*.safetensors")}
    partial = Activations.load(out)
    assert len(kept) >= partial.n_prompts > 0 or partial.n_prompts > 0
    disk.free()
    log: list[events.Event] = []
    whole_run = capture(model, prompts, out=out, iteration_hook=log.append, **options)
    assert next(e for e in log if isinstance(e, events.CaptureBegin)).n_resumed == partial.n_prompts
    finished = {s.path.name for s in store.open_folder(out, verify=True)[1][: len(kept)]}
    assert {n for n in finished if n in kept}
    reference = capture(model, prompts, **options)
    for site in reference.sites:
        torch.testing.assert_close(whole_run[site], reference[site], rtol=1e-4, atol=1e-5)


def test_a_training_goes_on_when_there_is_room_again(disk: Disk) -> None:
    model, pack = lens_world.model(), lens_world.pack(24)
    options: dict[str, Any] = {"site": SITE, "growth": (8, 16)}
    for leave in (9_000, 60_000):
        disk.fill(leave=leave)
        with pytest.raises(OSError, match=r"could not write|cannot write") as refusal:
            train_by_level(model, pack, out=disk.path / "run", **options)
        assert refusal.value.errno in FULL
        disk.free()
    lenses = train_by_level(model, pack, out=disk.path / "run", **options)
    other = train_by_level(model, pack, out=disk.path.parent / "other", **options)
    assert [(r.concept, r.grade) for r in lenses.reports] == [(r.concept, r.grade) for r in other.reports]
    torch.testing.assert_close(lenses.weight, other.weight, rtol=1e-3, atol=1e-5)


# ---------------------------------------------------------------------------- read-only folders


@pytest.fixture
def read_only(tmp_path: Path) -> Iterator[Path]:
    """A folder that nobody can write in: for root, whom permissions do not stop, a mount."""
    folder = tmp_path / "frozen"
    folder.mkdir()
    if os.geteuid() != 0:
        folder.chmod(0o555)
        yield folder
        folder.chmod(0o755)
        return
    if _quietly("mount", "-t", "tmpfs", "-o", "ro", "tmpfs", folder):
        pytest.skip("root writes anywhere, and nothing can be mounted here: no folder is read-only")
    yield folder
    _quietly("umount", "-l", folder)


def test_a_read_only_folder_is_refused_before_the_work(
    read_only: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from interp.__main__ import probe
    from interp.demo import demo
    from interp.live.flame import profile_fit

    model, world = zoo("llama"), lens_world.model()
    npz(0, tmp_path / "x.npz")
    some_rows(0)[1].astype(np.uint8).tofile(tmp_path / "y.bin")

    def worked(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("work began before the folder was tried")

    for kind in (type(model), type(world)):
        monkeypatch.setattr(kind, "states", worked)
    monkeypatch.setattr(Sparse1DProbe, "fit", worked)
    monkeypatch.setattr("interp.demo._demo", worked)
    monkeypatch.setattr(subprocess, "run", worked)
    pack = lens_world.pack(12)
    attempts: list[Callable[[Path], object]] = [
        lambda p: capture(model, sequences(0, LENGTHS), out=p, **CAPTURE),
        lambda p: train_by_level(world, pack, site=SITE, out=p),
        lambda p: Bank(world, SITE, folder=p),
        lambda p: cluster.plan(cluster_world.shard, p, seeds=[1]),
        lambda p: events.JsonlLog(p / "log.jsonl"),
        lambda p: probe(tmp_path / "x.npz", tmp_path / "y.bin", out=p / "m.npz"),
        lambda p: demo(p),
        lambda p: profile_fit(p),
        expect_writable,
        lock,
    ]
    for attempt in attempts:
        for folder in (read_only, read_only / "new") if attempt is not lock else (read_only,):
            with pytest.raises(OSError, match=r"(?i)read-only|permission") as refusal:
                attempt(folder)
            assert "frozen" in str(refusal.value)


# ------------------------------------------------------------------------------ clocks set back


def test_a_clock_that_goes_backwards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Durations and what is left are by the monotonic clock, or at least never negative."""
    now = [2e9]

    def back() -> float:
        now[0] -= 1000.0
        return now[0]

    monkeypatch.setattr(time, "time", back)
    log: list[events.Event] = []
    capture(zoo("llama"), sequences(0, LENGTHS), out=tmp_path / "run", iteration_hook=log.append, **CAPTURE)
    Sparse1DProbe(max_iter=5).fit(*some_rows(0), n_classes=6, iteration_hook=log.append)
    train_by_level(
        lens_world.model(), lens_world.pack(12), site=SITE, out=tmp_path / "t", growth=(4,), levels=[1],
        iteration_hook=log.append,
    )  # fmt: skip
    log = [dataclasses.replace(e, time=back()) for e in log]
    timed = [e for e in log if hasattr(e, "seconds")]
    assert len(timed) > 10
    assert all(0 <= e.seconds < 600 for e in timed)
    for kind in (CaptureDigest, FitDigest, LensDigest):
        digest = kind()
        for event in log:
            digest.add(event)
            for at in (None, back()):
                assert digest.elapsed(at) >= 0
                assert not digest.eta(at) < 0
                assert 0 <= digest.fraction <= 1
    tasks = cluster.plan(cluster_world.shard, tmp_path / "c", seeds=[1, 2, 3, 4], n_tasks=2)
    for task in tasks:
        assert (cluster.status(tmp_path / "c").seconds.dropna() >= 0).all()
        cluster.run_task(task)
    ended = [e for _, e in events.Tail(tmp_path / "c" / "logs").new() if e.kind == "TaskEnd"]
    assert len(ended) == 2
    assert all(0 <= e.seconds < 60 for e in ended)
    with events.JsonlLog(tasks[0].log) as file:  # one that began in the future, and is under way
        now[0] = 4e9
        file(events.TaskBegin(job="summary", task=0, n_tasks=2, attempt=2, host="h", pid=1))
        now[0] = 2e9
    seconds = cluster.status(tmp_path / "c").seconds
    assert all(math.isnan(s) or s >= 0 for s in seconds)


# --------------------------------------------------------------------------------- the writer


def test_whole_or_not_at_all(tmp_path: Path) -> None:
    target = write_text(tmp_path / "new" / "a.txt", "one")
    with pytest.raises(RuntimeError, match="in the middle"), whole(target) as part:  # noqa: PT012
        part.write_text("tw")
        raise RuntimeError("in the middle")
    assert target.read_text() == "one"
    assert [f.name for f in target.parent.iterdir()] == ["a.txt"]
    with pytest.raises(FileExistsError):
        write_text(target, "two", exist_ok=False)
    before = os.umask(0o027)
    try:
        write_text(target, "two")
    finally:
        os.umask(before)
    assert target.stat().st_mode & 0o777 == 0o640


def test_leftovers_go_and_nothing_else(tmp_path: Path) -> None:
    ended = in_child(lambda: None)
    os.waitpid(ended, 0)
    with whole(tmp_path / "x") as part:
        host = part.name.split(".")[2].split("-")[0]
        mine = {f".x.{host}-{os.getpid()}-0123abcd.part", f".x.0000ffff-{ended}-0123abcd.part"}
        for name in (*mine, f".x.{host}-{ended}-0123abcd.part", ".hidden", "x.part"):
            (tmp_path / name).touch()
        sweep(tmp_path, locked=False)  # of another host, or of a process that lives: not ours to judge
        assert {f.name for f in tmp_path.iterdir()} == {*mine, part.name, ".hidden", "x.part"}
    sweep(tmp_path)
    assert {f.name for f in tmp_path.iterdir()} == {"x", ".hidden", "x.part"}


def test_sealed_json_keeps_what_json_can(tmp_path: Path) -> None:
    content = {"a": (1, 2.5e-300), "ä": {"x": None, "1": [True, "\u2028</script>"]}, "nan": [float("inf")]}
    found = read_json(write_json(tmp_path / "a.json", content))
    assert found == json.loads(json.dumps(content))
    (tmp_path / "a.json").write_text('{"a": 1}')
    with pytest.raises(ValueError, match=r"a\.json is damaged or was edited: there is no hash"):
        read_json(tmp_path / "a.json")
    (tmp_path / "a.json").write_text("[" * 200_000)
    with pytest.raises(ValueError, match=r"a\.json is damaged"):
        read_json(tmp_path / "a.json")
    (tmp_path / "a.json").write_text("[1]")
    with pytest.raises(ValueError, match=r"a\.json is damaged: expected a JSON object, found list"):
        read_json(tmp_path / "a.json")
    shutil.rmtree(tmp_path)
    with pytest.raises(FileNotFoundError):
        read_json(tmp_path / "a.json")


def test_what_the_disk_does_not_take_is_named(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"could not write .*b\.log \(No such file or directory\)") as error:
        append(tmp_path / "gone" / "b.log", "line")
    assert error.value.errno == errno.ENOENT
    with pytest.raises(OSError, match=r"could not write .*c: a reason without a number") as error:  # noqa: SIM117
        with whole(tmp_path / "c"):
            raise SafetensorError("a reason without a number")
    assert error.value.errno == errno.EIO
    assert not list(tmp_path.iterdir())
