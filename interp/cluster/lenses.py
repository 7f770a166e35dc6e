"""Concepts → lenses, a shard of concepts at a time, and one set of them all.

The negatives of a lens, its seeds, its standardisation and its thresholds come from the whole pack, so that a
lens is the same, but for rounding, whichever others are trained with it. How a row is rounded depends on the
prompts in its batch; so the plan fixes shards of concepts, and each is trained by itself: with any number of
tasks the lenses are the same to the last bit on like machines.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from interp.capture.sites import expect_kinds
from interp.cluster import models
from interp.cluster.tasks import Cancelled, Planned, Task, check_options, cut, made_by
from interp.events import Emitter, Event, LensEnd, LensIteration, TrainBegin, TrainEnd
from interp.files import read_json
from interp.lens.concepts import ConceptPack
from interp.lens.library import Lenses
from interp.lens.report import LensReport
from interp.lens.train import chosen_concepts, expect_options, train_lenses

__all__ = ["merge", "plan", "work"]

#: Options of the training that are plain. A limit of time would make the lenses depend on the machine.
_TRAINING = (
    "f1_target",
    "f1_rule",
    "validation_blocking",
    "growth",
    "head",
    "pooling",
    "continuation",
    "shares",
    "seed",
    "batch_tokens",
)
_OPTIONS = (*models.OPTIONS, "site", *_TRAINING)
#: Those of them that can be wrong with any model and pack.
_CHECKED = ("f1_target", "f1_rule", "growth", "head")


def plan(
    pack: ConceptPack | str | os.PathLike[str],
    n_tasks: int,
    *,
    concepts: Iterable[str] | None = None,
    shard_size: int = 32,
    **options: Any,
) -> Planned:
    """Plan ``job="lenses"``; merged, they are `Lenses`.

    Parameters
    ----------
    pack : ConceptPack, path, or "tiny"
    n_tasks : int
    concepts : iterable of str, optional
        Ids to train; all by default.
    shard_size : int
        Concepts that are trained together. A larger shard forwards fewer prompts twice; a killed task begins
        its shard again, with the prompts that were forwarded.
    **options : as plain JSON types
        ``model`` (a folder or a name), ``revision``, ``dtype``, ``device`` and ``attention`` as in
        `interp.load_model`; ``site``, ``f1_target``, ``f1_rule``, ``validation_blocking``, ``growth``,
        ``head``, ``pooling``, ``continuation``, ``shares`` and ``seed`` as in `interp.train_lenses`;
        ``batch_tokens``, a number (2,048 by default).

    Returns
    -------
    Planned

    Raises
    ------
    ValueError, TypeError
        If options are unknown or out of range, a concept is not in the pack, or no model has such
        a kind of site. Whether this one has the site, the pooling, the shares and leaks between the splits of
        the pack are looked at by the tasks.
    """
    pack = pack if isinstance(pack, ConceptPack) else ConceptPack.load(pack)
    models.check(options)
    check_options("lenses", options, _OPTIONS)
    defaults: dict[str, Any] = train_lenses.__kwdefaults__ or {}
    expect_options(**{k: options.get(k, defaults[k]) for k in _CHECKED})
    if "site" not in options:
        raise TypeError("a plan of lenses needs site=, such as 'resid_post.2'")
    expect_kinds(options["site"])
    if shard_size < 1:
        raise ValueError(f"shard_size must be at least 1, got {shard_size}")
    chosen = chosen_concepts(pack, concepts)
    groups = [chosen[i : i + shard_size] for i in range(0, len(chosen), shard_size)]
    return Planned({**options, "groups": groups}, cut(len(groups), n_tasks), {"pack.json": pack.to_dict()})


def work(task: Task, spec: dict[str, Any], emit: Emitter) -> None:
    """Train the shards of a task, those that are not there yet."""
    pack = ConceptPack.from_dict(read_json(Path(task.folder) / "inputs" / "pack.json"))
    model = models.load(spec)
    options = {k: spec[k] for k in _TRAINING if k in spec}
    groups = spec["groups"][task.start : task.stop]
    as_one = _AsOne(emit, sum(map(len, groups)))
    for k, concepts in enumerate(groups, task.start):
        saved, bank = _folder(task, k), task.path / f"bank-{k:04d}"
        if (saved / "lenses.json").is_file():
            as_one.repeat(Lenses.load(saved).reports)
            continue
        # A bank of its own: the batches in which prompts are forwarded decide how their rows are rounded.
        lenses = train_lenses(
            model, pack, site=spec["site"], concepts=concepts, bank=bank, iteration_hook=as_one, **options
        )
        if emit.stop:
            raise Cancelled(f"{task.name} was cancelled")
        lenses.save(saved)
        shutil.rmtree(bank, ignore_errors=True)
    as_one.end()


def merge(tasks: Sequence[Task], spec: dict[str, Any]) -> Lenses:
    """All lenses of the `tasks` of a plan of this `spec`, in its order; saved in ``merged/``."""
    parts = []
    for task in tasks:
        with made_by(task):
            parts += [Lenses.load(_folder(task, k)) for k in range(task.start, task.stop)]
    lenses = Lenses.concat(parts)
    lenses.meta["seconds"] = sum(p.meta["seconds"] for p in parts)
    lenses.save(Path(tasks[0].folder) / "merged")
    return lenses


def _folder(task: Task, group: int) -> Path:
    return task.path / f"lenses-{group:04d}"


class _AsOne:
    """Passes the events of several trainings on as those of one, so that a monitor counts to the end."""

    def __init__(self, emit: Emitter, n_lenses: int) -> None:
        self.emit, self.n_lenses = emit, n_lenses
        self.n_done = self.before = 0
        self.seconds = 0.0
        self.grades: dict[str, int] = {}
        self.begun = False
        self.waiting: list[LensEnd] = []

    def __call__(self, event: Event) -> bool:
        if isinstance(event, TrainBegin):
            if not self.begun:
                self.begun = True
                self.emit(dataclasses.replace(event, n_lenses=self.n_lenses))
                for end in self.waiting:
                    self.emit(end)
            return self.emit.stop
        if isinstance(event, TrainEnd):
            self.before = self.n_done
            self.seconds += event.seconds
            return self.emit.stop
        if isinstance(event, LensIteration):
            # Those of later shards have not begun to grow, which is as good as growing.
            later = self.n_lenses - self.before - event.n_lenses
            event = dataclasses.replace(
                event, n_lenses=self.n_lenses, n_active=event.n_active + max(later, 0)
            )
        elif isinstance(event, LensEnd):
            event = self._count(event)
        return self.emit(event)

    def repeat(self, reports: Sequence[LensReport]) -> None:
        """Tell of lenses that an earlier attempt trained."""
        names = {f.name for f in dataclasses.fields(LensEnd)} - {"time"}
        for report in reports:
            known = {k: v for k, v in dataclasses.asdict(report).items() if k in names}
            end = self._count(LensEnd(**known, n_done=0, n_lenses=0))
            if self.begun:
                self.emit(end)
            else:
                self.waiting.append(end)
        self.before = self.n_done

    def end(self) -> None:
        """The end of the last training is that of the whole."""
        self.emit(TrainEnd(n_lenses=self.n_lenses, grade_counts=self.grades, seconds=self.seconds))

    def _count(self, event: LensEnd) -> LensEnd:
        self.n_done += 1
        self.grades[event.grade] = self.grades.get(event.grade, 0) + 1
        return dataclasses.replace(event, n_done=self.n_done, n_lenses=self.n_lenses)
