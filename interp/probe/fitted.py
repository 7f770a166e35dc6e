"""What a fit has found so far: parameters and fate of every pair, on the host, valid at any time."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import numpy as np
import torch

from interp.events import FitEnd, IterationEnd
from interp.probe.slab import Part
from interp.probe.step import ABSENT_CLASS, CONVERGED, DEAD, NEEDS_POLISH, SEPARABLE, STATUS
from interp.probe.summary import LatentSummary

__all__ = ["Fitted", "mark_absent", "mark_separable"]


@dataclass
class Fitted:
    """What a fit has found so far; arrays of shape ``[n_latents, n_classes]``, valid at any time."""

    coef: np.ndarray
    intercept: np.ndarray
    n_iter: np.ndarray
    n_fail: np.ndarray
    lam: np.ndarray
    codes: np.ndarray
    class_counts: np.ndarray
    n_rows: int
    loss: np.ndarray | None = None
    history: list[IterationEnd] = field(default_factory=list)

    @classmethod
    def unstarted(cls, summary: LatentSummary, lam_init: float) -> Fitted:
        """Zero slopes, and intercepts at the classes' prevalences."""
        shape = summary.n_latents, summary.n_classes
        prior = np.clip(summary.class_counts / max(1, summary.n_rows), 1e-8, 1.0 - 1e-8)
        codes = np.zeros(shape, np.int8)
        codes[summary.n_events == 0] = DEAD
        return cls(
            coef=np.zeros(shape),
            intercept=np.tile(np.log(prior) - np.log1p(-prior), (shape[0], 1)),
            n_iter=np.zeros(shape, np.int32),
            n_fail=np.zeros(shape, np.int32),
            lam=np.full(shape, float(lam_init)),
            codes=codes,
            class_counts=summary.class_counts.copy(),
            n_rows=summary.n_rows,
        )

    def status_counts(self) -> dict[str, int]:
        """How many pairs have each status."""
        codes, counts = np.unique(self.codes, return_counts=True)
        return {STATUS[c]: int(n) for c, n in zip(codes, counts, strict=True)}

    def end(self, began: float, stages: dict[str, float], n_polished: int, stopped: bool) -> FitEnd:
        """The event that ends a fit that `began` then."""
        return FitEnd(
            n_pairs=self.coef.size,
            n_fail=int(self.n_fail.sum()),
            n_polished=n_polished,
            status_counts=self.status_counts(),
            seconds=time.perf_counter() - began,
            stage_seconds=stages,
            stopped=stopped,
        )

    @property
    def n_inexact(self) -> int:
        """Pairs that are to be finished on the raw events."""
        return int(np.count_nonzero(self.codes == NEEDS_POLISH))

    def write(self, part: Part, latents: np.ndarray, classes: np.ndarray, keep: np.ndarray | None) -> None:
        """Copy the state of a part, except for the pairs in the mask `keep`."""
        at = np.ix_(latents, classes)
        q = part.problem.q.double().cpu().numpy()[:, None]
        new = {
            "coef": _array(part, part.w) / q,
            "intercept": _array(part, part.b),
            "n_iter": _array(part, part.n_iter),
            "n_fail": _array(part, part.n_fail),
            "lam": _array(part, part.lam),
            "codes": _array(part, part.status),
        }
        for name, value in new.items():
            whole = getattr(self, name)
            whole[at] = value if keep is None else np.where(keep, whole[at], value)


def _array(part: Part, t: torch.Tensor) -> np.ndarray:
    return t.cpu().numpy().reshape(part.shape)


def mark_separable(part: Part) -> None:
    """Tell the converged pairs whose optimum exists only because of the ridge.

    Two proofs: no event of the (one-signed) latent belongs to the class, so that w → ∓∞ only ever helps;
    or the total loss is below log 2, so that each row's is, and every row is classified correctly.
    The total of σ' is below the total loss, which spares most pairs the logarithms.
    """
    done = part.status == CONVERGED
    problem = part.problem
    one_signed = (problem.x_low >= 0) | (problem.x_high <= 0)
    no_event = one_signed[part.row] & (part.label_sum == 0)
    data_curvature = (part.h[0] - part.rules.ridge) * problem.n
    maybe = torch.nonzero(done & ~no_event & (data_curvature < np.log(2.0))).squeeze(1)
    part.status[done & no_event] = SEPARABLE
    if len(maybe):
        part.status[maybe[part.losses(maybe) * problem.n < np.log(2.0)]] = SEPARABLE


def mark_absent(fitted: Fitted) -> None:
    """Classes without a row: solved like the others, but nothing was learnt."""
    absent = fitted.class_counts == 0
    codes = fitted.codes[:, absent]
    codes[np.isin(codes, (CONVERGED, SEPARABLE, NEEDS_POLISH))] = ABSENT_CLASS
    fitted.codes[:, absent] = codes
