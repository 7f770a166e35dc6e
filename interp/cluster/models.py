"""The model of a plan: named, never sent, and loaded once by each process that works on its tasks."""

from __future__ import annotations

import os
from functools import lru_cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from interp.capture.model import Model

__all__ = ["OPTIONS", "check", "forget", "load"]

#: Options of a plan that say which model, and how it is loaded.
OPTIONS = ("model", "revision", "dtype", "device", "attention")


def check(options: dict[str, Any]) -> None:
    """Refuse options that do not name a model.

    Raises
    ------
    TypeError
        If there is no model, or an object instead of its name.
    ValueError
        If batches are to be as large as this or that machine allows.
    """
    model = options.get("model")
    if isinstance(model, os.PathLike):
        model = options["model"] = os.path.abspath(model)
    if not isinstance(model, str):
        raise TypeError(
            f"model must be a folder or a name on the hub, which each task loads by itself; got {model!r}"
        )
    if model != "tiny" and os.path.isdir(model):  # as `load_model` has it: "tiny" is the one that ships
        options["model"] = os.path.abspath(model)
    size = options.setdefault("batch_tokens", 2048)
    if not isinstance(size, int) or size < 1:
        raise ValueError(
            f"batch_tokens must be a number, got {size!r}: what 'auto' finds differs between machines, "
            "and with the batches the rounding"
        )


def load(spec: dict[str, Any]) -> Model:
    """The model of a spec, from this process's memory if it was the latest."""
    how = {k: spec[k] for k in OPTIONS if k != "model" and spec.get(k) is not None}
    return _load(spec["model"], tuple(sorted(how.items())))


@lru_cache(maxsize=1)
def _load(name: str, how: tuple[tuple[str, Any], ...]) -> Model:
    from interp.capture.model import load_model

    return load_model(name, **dict(how))


def forget() -> None:
    """Let go of the model that this process holds."""
    _load.cache_clear()
