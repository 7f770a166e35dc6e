"""One lens under training: its samples, its latest fit, what has been found out about it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from interp.lens.bank import Bank
from interp.lens.baselines import TextLens
from interp.lens.concepts import Concept
from interp.lens.leakage import audit_lens
from interp.lens.report import LensReport
from interp.lens.samples import Sample, Samples

__all__ = ["Job", "plan"]

#: Folds of the cross-validation, at most; see `Job.folds`.
_FOLDS = 4


@dataclass
class Job:
    """One lens under training."""

    concept: Concept
    seed: int
    positive: list[Sample]  #: all training samples, in the order of use
    negative: list[Sample]
    select: list[Sample]
    n_select_positive: int
    templates: tuple[str, ...]  #: of training
    n_used: int = 0  #: samples of each class in the latest fit, at most
    n_iter: int = 0
    met_at: int = 0  #: iteration at which the target was first met
    forced_on: bool = False
    extra: int = 0
    stop_reason: str = ""
    why: str = ""
    seconds: float = 0.0
    found: dict[str, Any] = field(default_factory=dict)
    # The latest fit: for rows standardised with mean and scale (divided by √width).
    lam: float = float("nan")
    mean: Tensor = field(default_factory=lambda: torch.zeros(0))
    scale: Tensor = field(default_factory=lambda: torch.zeros(0))
    w: Tensor | None = None
    b: float = 0.0
    mlp: dict[str, Tensor] | None = None
    text: TextLens | None = None
    #: Of `Judge.read`; empty for a lens that it did not compare.
    negatives: dict[str, Tensor] = field(
        default_factory=lambda: {"text": torch.zeros(0), "token": torch.zeros(0)}
    )
    test_logits: np.ndarray = field(default_factory=lambda: np.zeros(0))
    test_labels: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=bool))
    _index: dict[str, Tensor] = field(default_factory=dict)

    @property
    def most(self) -> int:
        """Positive samples that there are."""
        return min(len(self.positive), len(self.negative)) if self.positive and self.negative else 0

    @property
    def train_positive(self) -> list[Sample]:
        """Those of the latest fit."""
        return self.positive[: self.n_used]

    @property
    def train_negative(self) -> list[Sample]:
        """Those of the latest fit."""
        return self.negative[: self.n_used]

    @property
    def n_samples(self) -> int:
        """Samples of the latest fit."""
        return min(self.n_used, len(self.positive)) + min(self.n_used, len(self.negative))

    def labels(self) -> Tensor:
        """1 and 0 for the samples of the latest fit, positives first, float32 ``[n]``."""
        return (torch.arange(self.n_samples) < min(self.n_used, len(self.positive))).float()

    def index(self, bank: Bank, name: str) -> Tensor:
        """Rows of the bank, int64 ``[n]``: of "train" (the latest fit's, positives first) or "select"."""
        if name == "select":
            return self._rows("select", self.select, len(self.select), bank)
        sides = (("positive", self.positive), ("negative", self.negative))
        return torch.cat([self._rows(side, samples, self.n_used, bank) for side, samples in sides])

    def _rows(self, name: str, samples: list[Sample], n: int, bank: Bank) -> Tensor:
        """Of the first `n` samples of a list; each is looked up once in a training."""
        known = self._index.get(name, torch.zeros(0, dtype=torch.int64))
        if len(known) < min(n, len(samples)):
            known = self._index[name] = torch.cat([known, bank.index(samples[len(known) : n])])
        return known[:n]

    def folds(self) -> tuple[Tensor, Tensor]:
        """Cross-validation masks, bool ``[n_folds, n]``: samples to fit on, samples to judge by.

        A lens must hold on new texts *and* in new templates. So a fold holds out each text whose home, the
        template it is first used in, is the fold's, and fits on texts of other homes in other templates.
        """
        home: dict[int, int] = {}
        at: list[tuple[int, int]] = []  # template and home of each sample
        number = {t: i for i, t in enumerate(self.templates)}
        several = len(number) > 1
        for s in [*self.train_positive, *self.train_negative]:
            template = number[s.template] % _FOLDS if several else -1
            at.append((template, home.setdefault(s.group, template if several else len(home) % _FOLDS)))
        template, homes = torch.tensor(at, dtype=torch.int64).T
        fold = torch.arange(min(len(number), _FOLDS) if several else _FOLDS)[:, None]
        held = (homes == fold) & ((template == fold) | (template < 0))
        return (homes != fold) & (template != fold), held

    def apply(self, z: Tensor) -> Tensor:
        """Logits of the MLP on standardised rows, float32 ``[...]`` for rows of shape ``[..., width]``."""
        assert self.mlp is not None
        hidden = torch.relu(z @ self.mlp["up"] + self.mlp["shift"])
        return hidden @ self.mlp["down"] + self.mlp["bias"]

    def rescale(self, slope: float, intercept: float) -> None:
        """Replace the logit f by slope · f + intercept."""
        if self.mlp is None:
            assert self.w is not None
            self.w, self.b = self.w * slope, self.b * slope + intercept
        else:
            self.mlp["down"] = self.mlp["down"] * slope
            self.mlp["bias"] = self.mlp["bias"] * slope + intercept

    def report(self) -> LensReport:
        """What is known so far."""
        found = {"why": self.why, **self.found}
        return LensReport(
            concept=self.concept.id,
            term=self.concept.term,
            level=int(self.concept.level),
            n_samples=self.n_samples,
            n_positive=len(self.train_positive),
            n_negative=len(self.train_negative),
            n_iter=self.n_iter,
            stop_reason=self.stop_reason,
            forced_on=self.forced_on,
            extra_iterations=self.extra,
            lam=self.lam,
            seconds=self.seconds,
            fitted=self.w is not None,
            **found,
        )


def _matched(positive: list[Sample], negative: list[Sample]) -> list[Sample]:
    """Positives with as many of each template as the negatives have, in the same order."""
    left = Counter(s.template for s in negative)
    out = []
    for sample in positive:
        if left[sample.template]:
            left[sample.template] -= 1
            out.append(sample)
    return out


def plan(samples: Samples, concept: Concept, n: int, seed: int) -> Job:
    """The job of one concept: at most `n` positive samples for training, as many negatives."""
    found = samples.positives(concept.id, "train", n)
    negative = samples.negatives(concept.id, "train", found)
    positive = _matched(found, negative)
    audit_lens(positive, negative)
    select = samples.positives(concept.id, "select", 60)
    others = samples.negatives(concept.id, "select", select)
    both = min(len(select), len(others))
    job = Job(
        concept, seed, positive, negative, [*select[:both], *others[:both]], both, samples.templates.train
    )
    texts = len({s.group for s in positive})
    # Without negatives none of the positives is matched: the fault is not theirs.
    if len({s.group for s in found}) >= 2 and len({s.group for s in negative}) < 2:
        job.why = "fewer than 2 negative examples for training: the pack has no other concepts with examples"
    elif texts < 2:
        job.why = f"{texts} positive example{'s' * (texts != 1)} for training, at least 2 are needed"
        given = sum(
            len(samples.pack[c].positive) for c in [concept.id, *samples.pack.descendants(concept.id)]
        )
        if given > 3:  # fewer are too few by their number alone
            job.why += f" ({given} are given; near-duplicates, and texts of one source, count as one)"
    return job
