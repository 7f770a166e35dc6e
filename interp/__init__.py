"""interp: capture activations, probe sparse codes, train concept lenses, and watch each of them run.

**Capture** the states of a transformers model at named sites, many prompts in one load::

    model = interp.load_model("tiny")               # a folder, a name on the hub, or the model that ships
    acts = interp.capture(model, interp.Prompts(["A falcon hunts."]), sites="resid_post.*")
    acts["resid_post.3"]                            # [n_tokens, width]: row t is the state at token t

**Probe** a sparse code: a logistic probe with one feature for every (latent, class) pair::

    x = interp.SAE.load(folder).encode_csr(acts["resid_post.3"])       # or any SciPy CSR
    probe = interp.Sparse1DProbe().fit(x, y)        # y: a class id per row
    probe.metrics(x, y).frame(); probe.certify(x, y)

**Lenses**: a linear reading of each concept of a pack, graded on held-out prompts::

    lenses = interp.train_lenses(model, interp.ConceptPack.load("tiny"), site="resid_post.3")
    lenses.frame(); lenses.highlight("A falcon hunts.", model=model)

**Watch**: the same calls in the background, with a monitor in a notebook; step, pause, stop, await::

    run = interp.live.fit(probe, x, y)              # and interp.live.capture, interp.live.train_lenses

====================  =================================================================================
load_model, Prompts   a model with its tokenizer and sites; what it is asked
capture, Activations  rows of all real tokens, in memory or in a folder that a killed run goes on in
TraitVectors, steer   directions along which a trait shows; adding vectors while a model runs
SAE                   a sparse autoencoder in SAELens' format
Sparse1DProbe         the probes; LatentSummary is what they need of the data, and adds up over shards
train_lenses, Lenses  concept lenses and what they can do; ConceptPack is the ontology they come from
live                  monitors, the tuner of slab sizes, flames
run, events           a loop in the background; what happened in it, for hooks and logs
cluster               one job as many tasks, in processes or on Slurm, with the same answer
====================  =================================================================================

`capture`, `train_lenses` and the probe's ``fit`` take ``iteration_hook=``: a callable, or several, that gets
each event and may return True to stop. Sites are named in `interp.capture.sites`, events in `interp.events`.
The same jobs on the command line: ``interp --help``.
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
