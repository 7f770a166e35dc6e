"""Lenses on disk: ``lenses.json`` (what they are) and one safetensors file (their numbers), versioned."""

from __future__ import annotations

import json
import math
import os
import uuid
from pathlib import Path
from typing import Any

from interp.lens.library import Lenses
from interp.lens.report import LensReport

__all__ = ["load", "save"]

FORMAT, VERSION = "interp.lenses", 1


def save(lenses: Lenses, folder: str | os.PathLike[str]) -> Path:
    """Write lenses into a folder, in place of lenses that are there.

    The JSON is renamed into place last and names the tensor file, so no reader sees half of two versions.
    """
    from safetensors.torch import save_file

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: getattr(lenses, name) for name in ("weight", "bias", "mean", "scale")}
    tensors |= {f"negatives.{k}": v for k, v in lenses.negatives.items()}
    tensors |= {f"mlp.{k}": v for k, v in (lenses.mlp or {}).items()}
    name = f"lenses-{uuid.uuid4().hex[:12]}.safetensors"
    draft = folder / f".{name}.tmp"
    save_file({k: v.contiguous().cpu() for k, v in tensors.items()}, draft)
    os.replace(draft, folder / name)
    content = {
        "format": FORMAT,
        "version": VERSION,
        "normalisation": "standardised",
        "tensors": name,
        "meta": _without_nan(lenses.meta),
        "reports": [r.to_dict() for r in lenses.reports],
    }
    draft = folder / ".lenses.json.tmp"
    draft.write_text(
        json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8"
    )
    os.replace(draft, folder / "lenses.json")
    for old in folder.glob("lenses-*.safetensors"):
        if old.name != name:
            old.unlink()
    return folder


def load(folder: str | os.PathLike[str]) -> Lenses:
    """Read lenses; see `Lenses.load`."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    folder = Path(folder)
    file = folder / "lenses.json"
    if not file.is_file():
        raise FileNotFoundError(f"no lenses at {folder}: expected a folder with lenses.json")
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is damaged: {error}") from error
    found = (content.get("format"), content.get("version"), content.get("normalisation"))
    wanted = (FORMAT, VERSION, "standardised")
    if found != wanted:
        raise ValueError(
            f"{file} has (format, version, normalisation) {found}; this version of interp reads {wanted}: "
            "train again, or use the version that wrote it"
        )
    try:
        tensors = load_file(folder / content["tensors"])
        mlp = {k.removeprefix("mlp."): v for k, v in tensors.items() if k.startswith("mlp.")}
        return Lenses(
            [LensReport.from_dict(r) for r in content["reports"]],
            tensors["weight"],
            tensors["bias"],
            tensors["mean"],
            tensors["scale"],
            {k.removeprefix("negatives."): v for k, v in tensors.items() if k.startswith("negatives.")},
            content["meta"],
            mlp=mlp or None,
        )
    except (SafetensorError, OSError, KeyError, TypeError) as error:
        raise ValueError(f"the lenses in {folder} are damaged ({error}); train again") from error


def _without_nan(value: Any) -> Any:
    """JSON has no NaN: None stands for it."""
    if isinstance(value, dict):
        return {k: _without_nan(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
