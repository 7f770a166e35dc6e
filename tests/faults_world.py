"""Kill a process at random moments, over and over in one folder, until its work is done: what is left?

A process that has imported everything forks a child per try, which works and is killed with SIGKILL, half the
times after a random delay, half the times just before or after a random file operation (a window of
microseconds that a clock would hardly hit). ``python tests/faults_world.py capture 20 7 FOLDER`` makes 20
kills with seed 7 and prints what it saw.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import cluster_world
import lens_world
import torch
from capture_zoo import sequences, zoo
from safetensors import safe_open

from interp import cluster, events
from interp.capture import Activations, capture, store
from interp.capture.check import relative_error
from interp.files import file_hash, read_json
from interp.lens.bank import Bank
from interp.lens.levels import train_by_level
from interp.lens.library import Lenses

SITE = "resid_post.1"


class World:
    """One kind of work.

    `work` does it, or goes on with it, in a folder. `finished` says what counts as done, as name → hash,
    and raises if one of that is not whole. `reported` counts what the log says is done, `done` what is;
    `answer` is the result, which `same` compares.
    """

    def work(self, folder: Path) -> None: ...
    def finished(self, folder: Path) -> dict[str, str]: ...
    def reported(self, folder: Path) -> int: ...
    def done(self, folder: Path) -> int: ...
    def answer(self, folder: Path) -> Any: ...
    def same(self, a: Any, b: Any) -> bool: ...


class Capture(World):
    """Prompts into shards."""

    def __init__(self) -> None:
        self.model = zoo("llama")
        lengths = (5, 12, 1, 9, 20, 3, 7, 7, 15, 2) * 3
        self.prompts = sequences(0, lengths)

    def work(self, folder: Path) -> None:
        with events.JsonlLog(folder / "log.jsonl") as log:
            capture(
                self.model,
                self.prompts,
                sites="resid_post.*",
                max_new_tokens=2,
                batch_tokens=40,
                out=folder / "run",
                iteration_hook=log,
            )

    def finished(self, folder: Path) -> dict[str, str]:
        if not (folder / "run" / "manifest.json").exists():
            return {}
        _, shards = store.open_folder(folder / "run", verify=True)
        for shard in shards:
            shard.verify()
        return {s.path.name: file_hash(s.path) for s in shards}

    def reported(self, folder: Path) -> int:
        return sum(e.n_prompts for e in _log(folder / "log.jsonl", "BatchEnd"))

    def done(self, folder: Path) -> int:
        if not (folder / "run" / "manifest.json").exists():
            return 0
        return Activations.load(folder / "run").n_prompts

    def answer(self, folder: Path) -> Activations:
        acts = Activations.load(folder / "run")
        assert acts.complete
        return acts

    def same(self, a: Activations, b: Activations) -> bool:
        return (
            a.prompt_ids == b.prompt_ids
            and torch.equal(a.token_ids, b.token_ids)
            and torch.equal(a.offsets, b.offsets)
            and all(relative_error(a[s], b[s]) < 1e-5 for s in a.sites)
        )


class Summary(World):
    """Row shards into summaries, task by task; two tasks take in two shards each."""

    def work(self, folder: Path) -> None:
        tasks = cluster.plan(cluster_world.shard, folder / "run", seeds=range(6), n_tasks=4)
        for task in tasks:
            cluster.run_task(task)

    def finished(self, folder: Path) -> dict[str, str]:
        if not (folder / "run" / "plan.json").exists():
            return {}
        done = [t for t in cluster.load(folder / "run") if t.done]
        return {t.name: file_hash(t.path / "summary.safetensors") for t in done}

    def reported(self, folder: Path) -> int:
        return len({e.task for e in _log(folder / "run" / "logs", "TaskEnd") if not e.error})

    def done(self, folder: Path) -> int:
        return len(self.finished(folder))

    def answer(self, folder: Path) -> bytes:
        return cluster.merge(folder / "run").save(folder / "merged.safetensors").read_bytes()

    def same(self, a: bytes, b: bytes) -> bool:
        return a == b


class Training(World):
    """Lenses, level by level."""

    def __init__(self) -> None:
        self.model, self.pack = lens_world.model(), lens_world.pack(24)

    def work(self, folder: Path) -> None:
        train_by_level(self.model, self.pack, site=SITE, out=folder / "run", growth=(8, 16))

    def finished(self, folder: Path) -> dict[str, str]:
        done = {}
        for file in sorted((folder / "run").glob("level-*/lenses.json")):
            Lenses.load(file.parent, model=self.model)
            done[file.parent.name] = file_hash(file)
        if (folder / "run" / "bank").exists():
            bank = Bank(self.model, SITE, folder=folder / "run" / "bank")  # refuses a shard that is not whole
            assert bank.folder is not None
            done |= {f.name: file_hash(f) for f in bank.folder.glob("*.safetensors")}
        return done

    def reported(self, folder: Path) -> int:
        """Levels that a later one was begun after."""
        return max(len(_log(folder / "run" / "log.jsonl", "TrainBegin")) - 1, 0)

    def done(self, folder: Path) -> int:
        # A level that is trained a second time was begun twice.
        begun = _log(folder / "run" / "log.jsonl", "TrainBegin")
        n_again = len(begun) - len({e.n_lenses for e in begun})
        return len(list((folder / "run").glob("level-*/lenses.json"))) + n_again

    def answer(self, folder: Path) -> Lenses:
        return Lenses.load(folder / "run" / "lenses", model=self.model)

    def same(self, a: Lenses, b: Lenses) -> bool:
        # Prompts that meet in other batches come out with other last digits.
        return [(r.concept, r.grade, r.n_samples, r.stop_reason) for r in a.reports] == [
            (r.concept, r.grade, r.n_samples, r.stop_reason) for r in b.reports
        ] and torch.allclose(a.weight, b.weight, rtol=1e-3, atol=1e-5)


WORLDS: dict[str, type[World]] = {"capture": Capture, "summary": Summary, "lenses": Training}


def _log(path: Path, kind: str) -> list[Any]:
    return [e for e in events.read(path) if e.kind == kind] if path.exists() else []


def whole_files(folder: Path) -> None:
    """Raise if a file under a final name is a part; leftovers have names of their own."""
    for file in folder.rglob("*"):
        if file.is_dir() or file.name == ".lock" or (file.name[0] == "." and file.suffix == ".part"):
            continue
        if file.suffix == ".safetensors":
            with safe_open(file, framework="pt") as f:
                for name in f.keys():  # noqa: SIM118
                    f.get_tensor(name)
        elif file.suffix == ".json":
            read_json(file)
        else:
            assert file.suffix in (".jsonl", ".csv"), f"unexpected {file}"


def in_child(work: Callable[[], object]) -> int:
    """Exit code of `work` in a forked process; negative for a signal."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def die(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def mined(chance: random.Random, n_operations: int) -> None:
    """Have this process die around one of its next file operations."""
    left, before = chance.randrange(1, n_operations + 1), chance.random() < 0.5
    count = 0

    def around(fn: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            nonlocal count
            count += 1
            if before and count == left:
                die()
            out = fn(*args, **kwargs)
            if count == left:
                die()
            return out

        return wrapped

    for name in ("replace", "fsync", "unlink", "mkdir"):
        setattr(os, name, around(getattr(os, name)))


def kill(world: World, n_kills: int, seed: int, root: Path) -> dict[str, Any]:
    """Make `n_kills` kills over as many folders as it takes; return what was seen."""
    chance = random.Random(seed)
    reference = root / "uninterrupted"
    reference.mkdir(parents=True)
    began = time.perf_counter()
    world.work(reference)
    seconds = time.perf_counter() - began
    expected = world.answer(reference)
    seen = {"kills": 0, "kept": 0, "folders": 0, "seconds": seconds}
    while seen["kills"] < n_kills:
        folder = root / f"try-{seen['folders']}"
        folder.mkdir()
        kept: dict[str, str] = {}
        while True:

            def attempt(folder: Path = folder) -> None:
                if chance.random() < 0.5:
                    mined(chance, 30)
                else:
                    signal.signal(signal.SIGALRM, die)
                    signal.setitimer(signal.ITIMER_REAL, chance.uniform(0.002, seconds))
                world.work(folder)

            code = in_child(attempt)
            chance.random()  # the child drew from a copy
            if code != 0:
                assert code == -signal.SIGKILL, f"a try failed by itself ({code}) in {folder}"
                seen["kills"] += 1
            whole_files(folder)
            now = world.finished(folder)
            lost = {k for k in kept if now.get(k) != kept[k]}
            assert not lost, f"{sorted(lost)} were done in {folder} and are lost, or made anew"
            told, done = world.reported(folder), world.done(folder)
            assert told <= done, f"{told} were reported done in {folder}, {done} are"
            kept |= now
            if code == 0:
                break
        seen["kept"] += len(kept)
        assert world.same(world.answer(folder), expected), f"another answer in {folder}"
        left = [f.name for f in folder.rglob(".*") if f.name != ".lock"]  # nobody's, if killed at the end
        assert not left, f"left behind in {folder}: {left}"
        seen["folders"] += 1
        shutil.rmtree(folder)
    return seen


if __name__ == "__main__":
    torch.set_num_threads(1)
    kind, n, number, where = sys.argv[1:]
    print(json.dumps(kill(WORLDS[kind](), int(n), int(number), Path(where))))
