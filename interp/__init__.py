"""interp: capture activations, probe sparse codes, train concept lenses, and watch them run.

The jobs, each with its live form in `interp.live`::

    model = interp.load_model("tiny")
    acts = interp.capture(model, interp.Prompts(["A falcon hunts."]), sites=["resid_post.*"])
    probe = interp.Sparse1DProbe().fit(x, y)
    lenses = interp.train_lenses(model, interp.ConceptPack.load("tiny"), site="resid_post.3")

Events and background runs are in `interp.events` and `interp.run`; the command line is ``interp --help``.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from interp import events, run

if TYPE_CHECKING:
    from interp import capture, cluster, live
    from interp.capture.activations import Activations
    from interp.capture.model import load_model
    from interp.capture.prompts import Prompts
    from interp.capture.steer import steer
    from interp.capture.traits import TraitVectors
    from interp.lens.concepts import ConceptPack
    from interp.lens.library import Lenses
    from interp.lens.train import train_lenses
    from interp.probe.estimator import Sparse1DProbe
    from interp.probe.summary import LatentSummary
    from interp.sae import SAE

__version__ = "0.1.0"

#: Public name → the module that holds it. Loaded on first use, so that `import interp` stays quick.
_HOME = {
    "Activations": "interp.capture.activations",
    "ConceptPack": "interp.lens.concepts",
    "LatentSummary": "interp.probe.summary",
    "Lenses": "interp.lens.library",
    "Prompts": "interp.capture.prompts",
    "SAE": "interp.sae",
    "Sparse1DProbe": "interp.probe.estimator",
    "TraitVectors": "interp.capture.traits",
    "load_model": "interp.capture.model",
    "steer": "interp.capture.steer",
    "train_lenses": "interp.lens.train",
}

__all__ = [
    "SAE",
    "Activations",
    "ConceptPack",
    "LatentSummary",
    "Lenses",
    "Prompts",
    "Sparse1DProbe",
    "TraitVectors",
    "capture",
    "cluster",
    "events",
    "live",
    "load_model",
    "run",
    "steer",
    "train_lenses",
]


def __getattr__(name: str) -> Any:
    if name in ("capture", "cluster", "live"):  # packages; `interp.capture` can be called
        return importlib.import_module(f"interp.{name}")
    if name not in _HOME:
        raise AttributeError(f"module 'interp' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
