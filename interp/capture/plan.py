"""A whole capture plan in one load: traits × prompt files, as ``interp capture`` runs it."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from interp.capture.activations import Activations
from interp.capture.model import Model, load_model
from interp.capture.prompts import SHIPPED, Prompt, Prompts, shipped
from interp.capture.record import capture
from interp.capture.traits import TRAITS, TraitVectors
from interp.events import Hook
from interp.files import safe_name, write_text

__all__ = ["run_plan"]

#: Names of JSON files in the folder of a run that hold no results.
_OURS = ("manifest", "sets")

logger = logging.getLogger(__name__)


def run_plan(
    experiment: str | os.PathLike[str],
    traits: Sequence[str] = (),
    prompts: Sequence[str] = (),
    prompts_files: Sequence[str | os.PathLike[str]] = (),
    *,
    model: Model | str | os.PathLike[str] = "tiny",
    tier: int = 2,
    layer: int | None = None,
    max_new_tokens: int = 50,
    temperature: float = 0.0,
    device: str = "auto",
    dtype: str = "auto",
    chat: bool | None = None,
    save_json: bool = False,
    batch_tokens: int | str = "auto",
    check: int = 0,
    seed: int = 0,
    iteration_hook: Hook | Iterable[Hook] | None = None,
) -> Path:
    """Capture many prompts for many traits with one load of the model and full batches.

    Parameters
    ----------
    experiment : str or path
        Folder of the experiment; a bare name is a folder in ``runs``.
    traits : sequence of str
        Vectors to project on. Read from ``<experiment>/traits``; those that are not there are fitted on the
        contrast sets of the package and written there. A unique beginning of a name is enough.
    prompts : sequence of str
        Prompts themselves.
    prompts_files : sequence of path or str
        .txt or .jsonl files, or names of files that ship (`interp.capture.prompts.SHIPPED`).
    model : Model or str or path
        A loaded model, or what `load_model` takes.
    tier, layer, max_new_tokens, temperature, batch_tokens, check, seed, iteration_hook : as in `capture`
    device, dtype : str
        As in `load_model`.
    chat : bool, optional
        Put text through the model's chat template; by default if it has one.
    save_json : bool
        Also write a small JSON file per prompt file, for viewers.

    Returns
    -------
    Path
        ``<experiment>/tier<k>/<names of the prompt files>``: the activations, ``sets.json`` (prompt file →
        prompt ids) and, if asked for, ``<prompt file>.json``. A run that was killed goes on there; a finished
        one is left alone.

    Raises
    ------
    ValueError, FileNotFoundError, FileExistsError
        If something is missing, wrong, or would be overwritten. Nothing is skipped silently.
    """
    root = _root(experiment)
    sets = _read_sets(prompts, prompts_files)
    names = _trait_names(traits, root)
    loaded = model if isinstance(model, Model) else load_model(model, dtype=dtype, device=device)
    if chat is None:
        chat = bool(getattr(loaded.tokenizer, "chat_template", None))
    if chat:
        sets = {name: items.as_chat() for name, items in sets.items()}
    everything = _joined(sets)
    vectors = {name: _trait(name, root, loaded).vectors()[name] for name in names}
    if save_json and not vectors:
        raise ValueError("--save-json writes projections: name at least one trait to project on")
    out = root / f"tier{tier}" / _run_name(sets, everything)
    acts = capture(
        loaded,
        everything,
        tier=tier,
        layer=layer,
        vectors=vectors,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        batch_tokens=batch_tokens,
        check=check,
        seed=seed,
        out=out,
        iteration_hook=iteration_hook,
    )
    if not acts.complete:
        logger.warning("stopped after %d of %d prompts: run again to go on", acts.n_prompts, len(everything))
        return out
    write_text(out / "sets.json", json.dumps({k: v.ids for k, v in sets.items()}, indent=1))
    if save_json:
        for name, items in sets.items():
            target = out / f"{safe_name(name)}.json"
            if not target.exists():
                acts.to_json(target, prompts=items.ids)
    return out


def _root(experiment: str | os.PathLike[str]) -> Path:
    path = Path(experiment)
    if not str(experiment).strip():
        raise ValueError("the experiment needs a name")
    return path if isinstance(experiment, os.PathLike) or len(path.parts) > 1 else Path("runs") / path


def _read_sets(prompts: Sequence[str], files: Sequence[str | os.PathLike[str]]) -> dict[str, Prompts]:
    sets: dict[str, Prompts] = {}
    for file in files:
        name = Path(file).stem
        if name in _OURS:
            raise ValueError(f"{file}: a run keeps something else under the name {name!r}; rename the file")
        if name in sets:
            raise ValueError(f"two prompt files are called {name!r}: rename one, results are kept by name")
        here = str(file) in SHIPPED and not Path(file).exists()
        sets[name] = shipped(str(file)) if here else Prompts.from_file(file)
    if prompts:
        sets["prompts"] = Prompts(prompts)
    if not sets:
        raise ValueError(
            "no prompts: give --prompts or --prompts-file (files that ship: " + ", ".join(SHIPPED) + ")"
        )
    return sets


def _joined(sets: dict[str, Prompts]) -> Prompts:
    """All prompts, each once; a prompt may stand in two files, but one id is not for two prompts."""
    found: dict[str, tuple[str, Prompt]] = {}
    for name, items in sets.items():
        for p in items:
            first, other = found.setdefault(p.id, (name, p))
            if other != p:
                raise ValueError(
                    f"{first} and {name} have different prompts with the same id {p.id!r}: give one of them "
                    "another id, or capture the files one by one"
                )
    return Prompts(p for _, p in found.values())


def _trait_names(traits: Sequence[str], root: Path) -> list[str]:
    known = sorted({*TRAITS, *(p.stem for p in (root / "traits").glob("*.json"))})
    names: list[str] = []
    for asked in traits:
        found = [k for k in known if k == asked] or [k for k in known if k.startswith(asked)]
        if len(found) != 1:
            raise ValueError(
                f"unknown trait {asked!r}: there are {', '.join(known)} (others: TraitVectors.save them as "
                f"{root / 'traits' / asked})"
            )
        if found[0] in names:
            raise ValueError(f"trait {found[0]!r} is given twice")
        names.append(found[0])
    return names


def _trait(name: str, root: Path, model: Model) -> TraitVectors:
    path = root / "traits" / name
    if path.with_name(name + ".json").exists():
        return TraitVectors.load(path, model)
    logger.info("fitting trait %s on the contrast set of the package", name)
    fitted = TraitVectors.fit(model, [name])
    fitted.save(path)
    return fitted


def _run_name(sets: dict[str, Prompts], everything: Prompts) -> str:
    """Names of the prompt files; inline prompts and long lists are told apart by a hash."""
    name = "+".join(map(safe_name, sets))
    if "prompts" in sets or len(name) > 100:
        name = f"{name[:80]}-{hashlib.sha256(repr(everything.ids).encode()).hexdigest()[:8]}"
    return name


def summarise(folder: str | os.PathLike[str]) -> str:
    """What a finished run says about itself, for the command line."""
    from interp.capture.report import summary

    acts = Activations.load(folder)
    return f"{acts!r}\n{summary(acts.meta['report'])}\n{acts.report.round(3).to_string(na_rep='')}"
