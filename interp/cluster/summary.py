"""Row shards of a sparse code → summaries that add up.

Sums of floats depend on their order. So the shards are summed along one fixed binary tree: shards ``a`` …
``b − 1`` are the left half plus the right half, down to single shards. A task is one node of that tree, the
merge is what is above. The sum is then the same to the last bit for any number of tasks, and its rounding
error grows with the logarithm of the number of shards.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from interp.cluster.tasks import Cancelled, Planned, Task, check_options, made_by, read_plan
from interp.events import Emitter, ShardEnd, rss_bytes
from interp.probe.files import RowShards
from interp.probe.summary import LatentSummary

__all__ = ["Rows", "merge", "plan", "work"]

_FILE = "summary.safetensors"


class Rows:
    """The row shards of a plan, read (or made) when asked for, as often as asked for.

    An iterable of ``(x, y)``: what `Sparse1DProbe.polish`, `certify`, `confusion` and `metrics` take.

    Parameters
    ----------
    source : path or dict
        The run folder of a plan, or its ``spec``.

    Notes
    -----
    A plan may name a function, which is then imported and called: do not run the plans of strangers.
    """

    def __init__(self, source: str | os.PathLike[str] | dict[str, Any]) -> None:
        if isinstance(source, dict):
            self.spec: dict[str, Any] = source
        else:
            content = read_plan(source)
            if content["job"] != "summary":
                raise ValueError(f"{source} is a plan of job {content['job']!r}; rows are those of 'summary'")
            self.spec = content["spec"]
        self._make = resolve(self.spec["function"]) if "function" in self.spec else None

    def __len__(self) -> int:
        return len(self.spec["seeds" if self._make else "files"])

    def __iter__(self) -> Iterator[tuple[Any, Any]]:
        for shard in range(len(self)):
            yield from self.shard(shard)

    def shard(self, i: int) -> Iterator[tuple[Any, Any]]:
        """The rows of shard `i`: one ``(x, y)``, or several one after the other."""
        if self._make is not None:
            made = self._make(self.spec["seeds"][i])
            if isinstance(made, tuple):
                yield made
            else:
                yield from made
            return
        yield from RowShards(*self.spec["files"][i])


def plan(
    shards: str | os.PathLike[str] | Sequence[Any] | Callable[..., Any],
    n_tasks: int,
    *,
    seeds: Sequence[int] | None = None,
    n_latents: int | None = None,
    n_classes: int | None = None,
    **others: Any,
) -> Planned:
    """Plan ``job="summary"``; merged, it is a `LatentSummary`.

    Parameters
    ----------
    shards : path, list of pairs of paths, str or function
        A folder of ``token_acts*.npz`` with ``labels*.bin`` of the same ending; a list of ``(codes, labels)``
        files; or a function of a seed that returns ``(x, y)`` or yields several, named as
        ``"module:function"`` or ``"file.py:function"`` so that other processes find it.
    n_tasks : int
        A power of two shares the shards evenly.
    seeds : sequence of int, optional
        Of a function: one per shard.
    n_latents, n_classes : int, optional
        What every shard must have; otherwise what they do have.
    **others : not taken
        Options of other jobs are refused by name.

    Returns
    -------
    Planned

    Raises
    ------
    ValueError, TypeError, FileNotFoundError
        If there are no shards, or shards or options are not what they should be.
    """
    check_options("summary", others, ("seeds", "n_latents", "n_classes"))
    spec: dict[str, Any] = {"n_latents": n_latents, "n_classes": n_classes}
    for option, value in spec.items():
        if value is not None and (not isinstance(value, int) or value < 1):
            raise ValueError(f"{option} must be at least 1, an integer, got {value!r}")
    if callable(shards):
        shards = f"{shards.__module__}:{shards.__qualname__}"
    if isinstance(shards, str) and ":" in shards and not Path(shards).exists():
        if not seeds:
            raise ValueError(f"{shards!r} makes a shard of a seed: give seeds=, one per shard")
        file, _, name = shards.rpartition(":")
        if file.endswith(".py"):
            shards = f"{os.path.abspath(file)}:{name}"
        resolve(shards)
        spec |= {"function": shards, "seeds": [int(s) for s in seeds]}
        n = len(spec["seeds"])
    else:
        if seeds is not None:
            raise ValueError("seeds= belongs to shards='module:function'; files have none")
        files = _pairs(Path(shards)) if isinstance(shards, (str, os.PathLike)) else list(shards)
        for pair in files:
            if isinstance(pair, (str, os.PathLike)) or len(pair) != 2:
                raise ValueError(f"shards must be pairs of files, (codes, labels); got {pair!r}")
        spec["files"] = [[os.path.abspath(file) for file in pair] for pair in files]
        for file in (f for pair in spec["files"] for f in pair):
            if not os.path.exists(file):
                raise FileNotFoundError(f"no shard at {file}")
        n = len(spec["files"])
    if n == 0:
        raise ValueError("there are no shards to work on")
    return Planned(spec, _nodes(n, n_tasks))


def work(task: Task, spec: dict[str, Any], emit: Emitter) -> None:
    """Sum the shards of a task into one file."""
    rows = Rows(spec)
    done = 0

    def sum_of(start: int, stop: int) -> LatentSummary:
        nonlocal done
        if stop - start > 1:
            middle = (start + stop) // 2
            return sum_of(start, middle).merge(sum_of(middle, stop))
        began = time.perf_counter()
        summary = _of_shard(rows, start, spec)
        event = ShardEnd(
            shard=done,
            n_shards=task.stop - task.start,
            n_rows=summary.n_rows,
            n_events=int(summary.n_events.sum()),
            seconds=time.perf_counter() - began,
            bytes_resident=rss_bytes(),
        )
        done += 1
        if emit(event):
            raise Cancelled(f"{task.name} was cancelled")
        return summary

    sum_of(task.start, task.stop).save(task.path / _FILE)


def merge(tasks: Sequence[Task], spec: dict[str, Any]) -> LatentSummary:
    """The sum of all shards, from what the `tasks` of a plan of this `spec` made."""
    made = {(t.start, t.stop): t for t in tasks}

    def sum_of(start: int, stop: int) -> LatentSummary:
        task = made.get((start, stop))
        if task is not None:
            with made_by(task):
                return LatentSummary.load(task.path / _FILE)
        middle = (start + stop) // 2
        return sum_of(start, middle).merge(sum_of(middle, stop))

    return sum_of(0, max(t.stop for t in tasks))


def _of_shard(rows: Rows, shard: int, spec: dict[str, Any]) -> LatentSummary:
    summary = None
    for x, y in rows.shard(shard):
        if summary is None:
            summary = LatentSummary(spec["n_latents"] or x.shape[1], spec["n_classes"])
        summary.add(x, y)
    if summary is None:
        raise ValueError(f"shard {shard} has no rows: a function must return or yield (x, y)")
    return summary


def _nodes(n: int, n_tasks: int) -> list[tuple[int, int]]:
    """Nodes of the tree over `n` shards that cover it, at most `n_tasks` of them, as equal as they can be."""
    nodes = [(0, n)]
    while len(nodes) < min(n, n_tasks):
        start, stop = max(nodes, key=lambda node: (node[1] - node[0], -node[0]))
        middle = (start + stop) // 2
        nodes.remove((start, stop))
        nodes += [(start, middle), (middle, stop)]
    return sorted(nodes)


def _pairs(folder: Path) -> list[tuple[Path, Path]]:
    """``token_acts*.npz`` of a folder with their ``labels*.bin``, in the order of their numbers."""
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder {folder}: expected token_acts*.npz and labels*.bin files in it")
    found = {f.stem.removeprefix("token_acts"): f for f in folder.glob("token_acts*.npz")}
    labels = {f.stem.removeprefix("labels"): f for f in folder.glob("labels*.bin")}
    if not found:
        raise FileNotFoundError(f"no token_acts*.npz in {folder}")
    lonely = sorted(set(found) ^ set(labels))
    if lonely:
        which = "labels" if lonely[0] in found else "token_acts"
        raise FileNotFoundError(f"{folder}: there is no {which}{lonely[0]} to go with its other half")

    def number(end: str) -> tuple[list[int], str]:
        return [int(d) for d in re.findall(r"\d+", end)], end

    return [(found[end], labels[end]) for end in sorted(found, key=number)]


def resolve(name: str) -> Callable[[int], Any]:
    """The function of a name ``"module:function"`` or ``"file.py:function"``.

    Raises
    ------
    ValueError
        If there is no such function, or other processes could not find it.
    """
    module, _, function = name.rpartition(":")
    if module == "__main__":
        raise ValueError(
            f"{name}: other processes cannot see what a notebook or script defines. Put the function into a "
            'file and give "file.py:function"'
        )
    try:
        if module.endswith(".py"):
            made = importlib.util.spec_from_file_location(Path(module).stem, module)
            assert made is not None
            assert made.loader is not None
            found: Any = importlib.util.module_from_spec(made)
            made.loader.exec_module(found)
        else:
            found = importlib.import_module(module)
        for part in function.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError, FileNotFoundError) as error:
        raise ValueError(
            f"cannot find the function {name!r} ({error}): install its module, put it on PYTHONPATH, or give "
            '"file.py:function"'
        ) from error
    return found
