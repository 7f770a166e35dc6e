"""Prompts → activation shards, and one store of them all.

Each task tokenises all prompts, which is quick, and so knows every batch of the whole capture: sorted by
length and packed to ``batch_tokens``, as `interp.capture` does it. A task runs a share of these very batches.
How a row is rounded depends on its batch, so the shards are those of one `interp.capture` of everything, bit
for bit on like machines.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from interp.capture.activations import Activations
from interp.capture.batching import pack
from interp.capture.generate import Generator, count
from interp.capture.job import Job, expect_consistent
from interp.capture.prompts import Prompt, Prompts
from interp.capture.record import capture
from interp.capture.sites import expect_kinds
from interp.capture.store import Folder, open_folder
from interp.cluster import models
from interp.cluster.tasks import Planned, Task, check_options, cut, made_by
from interp.events import Emitter
from interp.files import read_json, write_json

__all__ = ["merge", "plan", "work"]

#: What makes an `interp.capture.job.Job`, and how text is generated.
_WHAT = ("sites", "tier", "layer", "keep_states")
_GENERATION = ("max_new_tokens", "temperature", "seed", "stop_at_eos")
_OPTIONS = (*models.OPTIONS, *_WHAT, *_GENERATION, "batch_tokens", "check")


def plan(prompts: Any, n_tasks: int, *, vectors: Any = None, **options: Any) -> Planned:
    """Plan ``job="capture"``; merged, it is one `Activations`, as of one `interp.capture` of all prompts.

    Parameters
    ----------
    prompts : Prompts, iterable of str or dict, or path
    n_tasks : int
    vectors : mapping, optional
        As in `interp.capture`.
    **options : as plain JSON types
        ``model`` (a folder or a name), ``revision``, ``dtype``, ``device`` and ``attention`` as in
        `interp.load_model`; ``sites``, ``tier``, ``layer``, ``keep_states``, ``max_new_tokens``,
        ``temperature``, ``seed``, ``stop_at_eos`` as in `interp.capture`; ``batch_tokens``, a number (2,048
        by default); ``check``, prompts that *each task* runs again alone.

    Returns
    -------
    Planned

    Raises
    ------
    ValueError, TypeError
        If options are unknown, contradict each other or are out of range, or no
        model has such a kind of site. Whether the model has these layers
        and kinds of sites, the width of the vectors and room for the prompts is seen by the tasks, which load
        it.
    """
    if isinstance(prompts, (str, os.PathLike)):
        prompts = Prompts.from_file(prompts)
    elif not isinstance(prompts, Prompts):
        prompts = Prompts(prompts)
    models.check(options)
    check_options("capture", options, _OPTIONS)
    expect_consistent(vectors=vectors, **{k: options[k] for k in _WHAT if k in options})
    if options.get("sites") is not None:
        expect_kinds(options["sites"])
    _generator(options)
    count("check", options.get("check", 0))
    inputs: dict[str, dict[str, Any]] = {"prompts.json": {"prompts": [_plain(p) for p in prompts]}}
    if vectors is not None:
        inputs["vectors.json"] = {name: _numbers(v) for name, v in vectors.items()}
    parts = cut(len(prompts), n_tasks)
    shares = [(i, i + 1) for i in range(len(parts))]
    return Planned({**options, "shares": len(shares)}, shares, inputs)


def work(task: Task, spec: dict[str, Any], emit: Emitter) -> None:
    """Capture the task's share of the batches into a folder of its own."""
    folder = Path(task.folder) / "inputs"
    prompts = Prompts(read_json(folder / "prompts.json")["prompts"])
    vectors = None
    if (folder / "vectors.json").exists():
        vectors = {k: _tensors(v) for k, v in read_json(folder / "vectors.json").items()}
    model = models.load(spec)
    generation = {k: spec[k] for k in _GENERATION if k in spec}
    what = {**{k: spec[k] for k in _WHAT if k in spec}, "vectors": vectors}
    generator = _generator(spec)
    ids = prompts.encode(model, max_new_tokens=generator.max_new_tokens)
    batches = pack([len(seq) for seq in ids], spec["batch_tokens"], new_tokens=generator.max_new_tokens)
    places = sorted(i for batch in _share(batches, ids, task.start, spec["shares"]) for i in batch)
    whole = Job.plan(model, generator, **what).manifest(model, prompts, ids)
    write_json(task.path / "whole.json", {"manifest": whole, "places": places})
    if places:
        capture(
            model,
            [prompts[i] for i in places],
            **what,
            **generation,
            batch_tokens=spec["batch_tokens"],
            check=spec.get("check", 0),
            out=task.path / "activations",
            iteration_hook=emit,
        )


def merge(tasks: Sequence[Task], spec: dict[str, Any]) -> Activations:
    """One store in ``merged/``: the shards of all `tasks` of a plan with this `spec`, renumbered."""
    out = Path(tasks[0].folder) / "merged"
    abouts = []
    for task in tasks:
        with made_by(task):
            abouts.append(read_json(task.path / "whole.json"))
    meta = abouts[0]["manifest"]
    for task, about in zip(tasks, abouts, strict=True):
        other = about["manifest"]
        differing = [k for k in meta if k != "versions" and other[k] != meta[k]]
        if differing:
            raise ValueError(
                f"{task.name} captured something else than {tasks[0].name}: {differing[0]} is "
                f"{other[differing[0]]!r} instead of {meta[differing[0]]!r}. Delete {task.path} and run it "
                "again where the others ran"
            )
    stores = []
    for task, about in zip(tasks, abouts, strict=True):
        if about["places"]:
            with made_by(task):
                stores.append((task, about["places"], *open_folder(task.path / "activations", verify=True)))
    with closing(Folder.create_or_resume(out, meta)) as folder:
        if not folder.complete:
            done = len(folder.shards)  # of a merge that was killed
            for task, places, _, shards in stores:
                for shard in shards[min(done, len(shards)) :]:
                    with made_by(task):
                        part = shard.whole()
                    folder.add(replace(part, prompts=[places[p] for p in part.prompts]))
                done = max(done - len(shards), 0)
            meta["check"] = _worst([found.get("check", {}) for _, _, found, _ in stores])
            meta["report"] = _sum([found["report"] for _, _, found, _ in stores])
            folder.finish(meta)
    return Activations.load(out)


def _generator(options: dict[str, Any]) -> Generator:
    return Generator(**{"max_new_tokens": 0, **{k: options[k] for k in _GENERATION if k in options}})


def _share(
    batches: list[list[int]], ids: Sequence[Sequence[int]], share: int, n_shares: int
) -> list[list[int]]:
    """The consecutive batches of one share; all shares have about the same number of padded tokens."""
    costs = [len(batch) * len(ids[batch[0]]) for batch in batches]
    total, before = sum(costs), 0
    chosen = []
    for batch, cost in zip(batches, costs, strict=True):
        if (2 * before + cost) * n_shares // (2 * total) == share:
            chosen.append(batch)
        before += cost
    return chosen


def _plain(prompt: Prompt) -> dict[str, Any]:
    content = {"text": prompt.text, "messages": prompt.messages, "token_ids": prompt.token_ids}
    return {**prompt.meta, "id": prompt.id, **{k: v for k, v in content.items() if v is not None}}


def _numbers(vector: Any) -> Any:
    """A vector (or one per site) as lists: a float32 comes back from its decimal digits exactly."""
    if isinstance(vector, dict):
        return {site: _numbers(v) for site, v in vector.items()}
    return torch.as_tensor(vector, dtype=torch.float32).tolist()


def _tensors(numbers: Any) -> Any:
    if isinstance(numbers, dict):
        return {site: _tensors(v) for site, v in numbers.items()}
    return torch.tensor(numbers)


def _worst(checks: list[dict[str, float]]) -> dict[str, float]:
    return {site: max(c[site] for c in checks if site in c) for site in {s for c in checks for s in c}}


def _sum(reports: list[dict[str, Any]]) -> dict[str, Any]:
    """The report of the whole: seconds and tokens add up; load, memory and batch size are the largest.

    The tasks of a process share one load, and each tells of it.
    """
    out: dict[str, Any] = {"stages": {}}
    for report in reports:
        for name, seconds in report["stages"].items():
            out["stages"][name] = out["stages"].get(name, 0.0) + seconds
        for name, value in report.items():
            if name == "stages":
                continue
            largest = name in ("load_seconds", "bytes_peak", "memory_total", "batch_tokens")
            out[name] = max(out.get(name, 0), value) if largest else out.get(name, 0) + value
    return out
