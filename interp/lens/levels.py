"""Training level by level of the ontology, with progress, and going on where a killed run was."""

from __future__ import annotations

import logging
import operator
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from interp.events import Emitter, Hook, JsonlLog
from interp.files import read_json, sweep, write_json, write_text
from interp.lens.concepts import ConceptPack
from interp.lens.library import Lenses
from interp.lens.train import train_lenses
from interp.lock import lock

__all__ = ["train_by_level"]

logger = logging.getLogger(__name__)


def train_by_level(
    model: Any,
    pack: ConceptPack | str | os.PathLike[str],
    *,
    site: str,
    out: str | os.PathLike[str],
    levels: Sequence[int] | None = None,
    seed: int = 0,
    iteration_hook: Hook | Iterable[Hook] | None = None,
    **options: Any,
) -> Lenses:
    """Train the lenses of ontology level 0, then 1, and so on, into a folder.

    Parameters
    ----------
    model : Model
        From `interp.load_model`.
    pack : ConceptPack, path, or "tiny"
    site : str
    out : path
        Gets ``bank/`` (every prompt forwarded so far), ``level-k/`` (the lenses of a finished level),
        ``log.jsonl`` (the events), ``table.csv`` (all levels), and at the end ``lenses/`` (all levels as one
        set). Called again after a kill, levels that are finished are read, and nothing in the bank is
        forwarded again.
    levels : sequence of int, optional
        Ontology levels (not model layers), each trained once; all by default.
    seed : int
    iteration_hook : callable or list of callable, optional
        As in `train_lenses`; a stop ends the level under way and begins no other.
    **options : as in `train_lenses`

    Returns
    -------
    Lenses
        Of all levels that were trained.

    Raises
    ------
    FileExistsError
        If `out` holds a run of another model, pack, site or options.
    LockedError
        If another process is training into `out`.
    ValueError
        For no level, or one that the pack does not have.
    """
    from interp.capture.model import Model, load_model

    pack = pack if isinstance(pack, ConceptPack) else ConceptPack.load(pack)
    if not isinstance(model, Model):
        model = load_model(model)
    chosen = list(pack.levels) if levels is None else list(dict.fromkeys(map(operator.index, levels)))
    if not chosen:
        raise ValueError(f"levels is empty: pack {pack.name!r} has {pack.levels}")
    for level in chosen:
        if level not in pack.levels:
            raise ValueError(f"pack {pack.name!r} has no level {level}; it has {pack.levels}")
    folder = Path(out)
    emit = Emitter(iteration_hook)
    started = time.perf_counter()
    parts: list[Lenses] = []
    n_all = sum(len(pack.at_level(k)) for k in chosen)
    n_done = n_trained = 0
    claimed = _claimed(folder, model, pack, site, seed, options)
    with claimed, JsonlLog(folder / "log.jsonl") as log:
        for level in chosen:
            ids = pack.at_level(level)
            saved = folder / f"level-{level}"
            if (saved / "lenses.json").is_file():
                parts.append(Lenses.load(saved, model=model))
                logger.info("level %d: %d lenses were trained before", level, len(ids))
            else:
                done = train_lenses(
                    model,
                    pack,
                    site=site,
                    concepts=ids,
                    seed=seed,
                    bank=folder / "bank",
                    iteration_hook=[log, emit],
                    **options,
                )
                parts.append(done)
                n_trained += len(ids)
                if not emit.stop:
                    done.save(saved)
            n_done += len(ids)
            _table(parts, folder / "table.csv")
            if emit.stop:
                break
            if n_trained:
                spent = time.perf_counter() - started
                left = (n_all - n_done) * spent / n_trained
                logger.info(
                    "level %d done: %d of %d concepts, %.0f s so far, about %.0f s left",
                    level,
                    n_done,
                    n_all,
                    spent,
                    left,
                )
        lenses = Lenses.concat(parts)
        if not emit.stop:
            lenses.save(folder / "lenses")
    return lenses


@contextmanager
def _claimed(
    folder: Path, model: Any, pack: ConceptPack, site: str, seed: int, options: dict[str, Any]
) -> Iterator[None]:
    """Hold the folder. Write down what is trained there, or refuse one where something else was."""
    wanted = {
        "model": model.name,
        "weights": model.fingerprint,
        "pack": [pack.name, pack.version, pack.hash],
        "site": site,
        "seed": seed,
        "options": {k: repr(v) for k, v in sorted(options.items())},
    }
    file = folder / "training.json"
    folder.mkdir(parents=True, exist_ok=True)
    with lock(folder):
        sweep(folder)
        found = read_json(file) if file.is_file() else wanted
        different = sorted(k for k in wanted if found.get(k) != wanted[k])
        if different:
            raise FileExistsError(
                f"{folder} holds a training with another {', '.join(different)}; give another folder, or "
                "delete it"
            )
        write_json(file, wanted)
        yield


def _table(parts: Sequence[Lenses], file: Path) -> None:
    import pandas as pd

    write_text(file, pd.concat([p.frame() for p in parts]).to_csv(index=False))
