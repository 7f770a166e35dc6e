"""Concept lenses: trained until they hold up on held-out data, then graded."""

from __future__ import annotations

from interp.lens.bank import Bank
from interp.lens.concepts import Concept, ConceptPack, OntologyLevel
from interp.lens.leakage import LeakageError
from interp.lens.library import Lens, Lenses, LensMismatch, LensReport
from interp.lens.samples import Samples, Templates
from interp.lens.train import train_lenses

__all__ = [
    "Bank",
    "Concept",
    "ConceptPack",
    "LeakageError",
    "Lens",
    "LensMismatch",
    "LensReport",
    "Lenses",
    "OntologyLevel",
    "Samples",
    "Templates",
    "train_lenses",
]
