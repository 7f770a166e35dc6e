"""Activations of transformers: one load, many prompts, rows that mean what they say.

The function `interp.capture.record.capture` is ``interp.capture`` for people; inside the package import it from there.
"""

from __future__ import annotations

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
