"""Activations of transformers: one load, many prompts, rows that mean what they say.

``interp.capture(model, prompts, sites=…)`` calls `interp.capture.record.capture`: the package is callable, so
that the name means the same whichever of its modules was imported first.
"""

from __future__ import annotations

import inspect
import sys
import types
from typing import Any

from interp.capture.activations import Activations
from interp.capture.model import Model, load_model, wrap
from interp.capture.prompts import Prompt, Prompts, shipped
from interp.capture.record import capture
from interp.capture.steer import steer

__all__ = [
    "Activations",
    "Model",
    "Prompt",
    "Prompts",
    "capture",
    "load_model",
    "shipped",
    "steer",
    "wrap",
]


class _Callable(types.ModuleType):
    __signature__ = inspect.signature(capture)

    def __call__(self, *args: Any, **kwargs: Any) -> Activations:
        return capture(*args, **kwargs)


sys.modules[__name__].__class__ = _Callable
