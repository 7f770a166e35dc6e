"""Lenses on disk: ``lenses.json`` (what they are) and one safetensors file (their numbers), versioned."""

from __future__ import annotations

import math
import os
import re
import uuid
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from torch import Tensor

from interp.files import file_hash, read_json, sweep, whole, write_json
from interp.lens.baselines import TextLenses
from interp.lens.library import Lenses
from interp.lens.report import LensReport
from interp.lock import lock

__all__ = ["load", "save"]

FORMAT, VERSION = "interp.lenses", 1

#: What the fields of a file are, as `_expect` reads it. A field that is not named here is nobody's concern.
_KINDS = {"str": str, "int": int, "float": float, "bool": bool}
_REPORT = {f.name: _KINDS[str(f.type)] for f in fields(LensReport)} | {"grade": frozenset("ABCU")}
_META = {
    "model": dict.fromkeys(("name", "revision", "architecture", "fingerprint", "dtype", "tokenizer"), str),
    "site": str,
    "pooling": str,
    "pack": {"name": str, "version": str, "hash": str},
    "parameters": {
        "f1_target": float,
        "f1_rule": str,
        "validation_blocking": bool,
        "growth": [int],
        "head": str,
        "seed": int,
        "continuation": int,
        "templates": {"train": [str], "heldout": [str]},
        "shares": dict,
    },
    "seconds": float,
    "typical_norm": float,
    "history": [(str, int, int, float, float, float)],  # columns of `Lenses.history`
}


def save(lenses: Lenses, folder: str | os.PathLike[str]) -> Path:
    """Write lenses into a folder, in place of lenses that are there.

    The JSON is renamed into place last and names the tensor file, so no reader sees half of two versions.

    Raises
    ------
    LockedError
        If another process is writing there.
    OSError
        If the disk does not take them; lenses that were there are untouched.
    """
    from safetensors.torch import save_file

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: getattr(lenses, name) for name in ("weight", "bias", "mean", "scale")}
    tensors |= {f"negatives.{k}": v for k, v in lenses.negatives.items()}
    tensors |= {f"mlp.{k}": v for k, v in (lenses.mlp or {}).items()}
    tensors |= {f"text.{k}": v for k, v in (lenses.text.tensors() if lenses.text else {}).items()}
    name = f"lenses-{uuid.uuid4().hex[:12]}.safetensors"
    with lock(folder):
        sweep(folder)
        with whole(folder / name) as part:
            save_file({k: v.contiguous().cpu() for k, v in tensors.items()}, part)
        content = {
            "format": FORMAT,
            "version": VERSION,
            "normalisation": "standardised",
            "words": lenses.text.words if lenses.text else None,
            "tensors": name,
            "tensors_sha256": file_hash(folder / name),
            "meta": _without_nan(lenses.meta),
            "reports": [_without_nan(r.to_dict()) for r in lenses.reports],
        }
        try:
            write_json(folder / "lenses.json", content)
        except BaseException:  # Ctrl-C too: nothing names the tensors
            (folder / name).unlink(missing_ok=True)
            raise
        for old in folder.glob("lenses-*.safetensors"):
            if old.name != name:
                old.unlink()
    return folder


def load(folder: str | os.PathLike[str]) -> Lenses:
    """Read lenses from a `folder`; see `Lenses.load`."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    folder = Path(folder)
    file = folder / "lenses.json"
    if not file.is_file():
        raise FileNotFoundError(f"no lenses at {folder}: expected a folder with lenses.json")
    content = read_json(file)
    found = (content.get("format"), content.get("version"), content.get("normalisation"))
    wanted = (FORMAT, VERSION, "standardised")
    if found != wanted:
        raise ValueError(
            f"{file} has (format, version, normalisation) {found}; this version of interp reads {wanted}: "
            "train again, or use the version that wrote it"
        )
    try:
        if not re.fullmatch(r"lenses-[0-9a-f]{12}\.safetensors", content["tensors"]):
            raise OSError(f"{content['tensors']!r} is no name of its tensor file")
        if file_hash(folder / content["tensors"]) != content["tensors_sha256"]:
            raise OSError(f"{content['tensors']} does not match its hash")
        tensors = load_file(folder / content["tensors"])

        def of(kind: str) -> dict[str, Tensor]:
            return {k.removeprefix(kind): v for k, v in tensors.items() if k.startswith(kind)}

        words, meta, reports = content["words"], content["meta"], content["reports"]
        _expect(meta, _META, "meta")
        for name in ("model", "site", "pooling"):
            if name not in meta:
                raise ValueError(f"meta.{name} is missing")
        _expect(reports, [_REPORT], "reports")
        if words is not None:
            _expect(words, [str], "words")
        _expect_shapes(tensors, sum(r.get("fitted", False) for r in reports))
        return Lenses(
            [LensReport.from_dict(r) for r in reports],
            tensors["weight"],
            tensors["bias"],
            tensors["mean"],
            tensors["scale"],
            of("negatives."),
            meta,
            mlp=of("mlp.") or None,
            text=None if words is None else TextLenses.from_tensors(words, of("text.")),
        )
    except (SafetensorError, OSError, KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"the lenses in {folder} are damaged ({error}); train again") from error


def _expect(value: Any, kind: Any, name: str) -> None:
    """Raise a TypeError that names the field unless `value` is of a `kind`.

    A kind is a type (float: a number, or the None that stands for NaN), a dict of the kinds of those fields
    that may be there, a list of the one kind of its items, a tuple of the kinds of a row, or a set of values.
    """
    if isinstance(kind, dict):
        _expect(value, dict, name)
        for key in kind.keys() & value.keys():
            _expect(value[key], kind[key], f"{name}.{key}")
    elif isinstance(kind, (list, tuple)):
        _expect(value, list, name)
        kinds = kind * len(value) if isinstance(kind, list) else kind
        if len(value) != len(kinds):
            raise TypeError(f"{name} has {len(value)} entries, expected {len(kinds)}")
        for k, (item, of_item) in enumerate(zip(value, kinds, strict=True)):
            _expect(item, of_item, f"{name}[{k}]")
    elif isinstance(kind, frozenset):
        if not isinstance(value, str) or value not in kind:
            raise TypeError(f"{name} is {value!r:.40}, expected one of {', '.join(sorted(kind))}")
    else:
        good = isinstance(value, (int, float) if kind is float else kind) or (kind is float and value is None)
        if not good or (isinstance(value, bool) and kind is not bool):
            raise TypeError(f"{name} is {value!r:.40} ({type(value).__name__}), expected {kind.__name__}")


def _expect_shapes(tensors: Mapping[str, Tensor], n_lenses: int) -> None:
    """The same for the tensors of so many fitted lenses."""
    width = tensors["weight"].shape[-1]
    wanted = {"weight": (n_lenses, width), "bias": (n_lenses,), "mean": (width,), "scale": (width,)}
    for name, tensor in tensors.items():
        shape = tuple(tensor.shape)
        per_lens = name.startswith(("negatives.", "mlp.")) and shape[:1] != (n_lenses,)
        if shape != wanted.get(name, shape) or per_lens:
            expected = wanted.get(name, f"{n_lenses} rows")
            raise ValueError(f"{name} has shape {shape}, expected {expected}")


def _without_nan(value: Any) -> Any:
    """JSON has no NaN: None stands for it."""
    if isinstance(value, dict):
        return {k: _without_nan(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
