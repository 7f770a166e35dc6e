"""One lens: its direction, its threshold, and who may steer with it."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    import pandas as pd

    from interp.capture.model import Model
    from interp.lens.library import Lenses

__all__ = ["Lens"]


class Lens:
    """One lens: a view of its row in `Lenses`.

    Parameters
    ----------
    lenses : Lenses
        The set that it belongs to.
    concept : str

    Attributes
    ----------
    report : LensReport
        What is known about it.
    """

    def __init__(self, lenses: Lenses, concept: str) -> None:
        self._lenses, self.concept = lenses, concept
        self.report = lenses._report[concept]
        self._k = lenses._column[concept]

    def __repr__(self) -> str:
        r = self.report
        return (
            f"<Lens {self.concept!r}: {r.grade}, score {r.score:.2f} [{r.score_low:.2f}, {r.score_high:.2f}]>"
        )

    @property
    def grade(self) -> str:
        """A, B, C or U."""
        return self.report.grade

    @property
    def weight(self) -> Tensor:
        """Gradient of the logit with respect to the row as captured, float32 ``[width]``."""
        return self._lenses.weight[self._k] / self._lenses.scale

    @property
    def bias(self) -> float:
        """Logit = weight · row + bias."""
        return float(self._lenses.bias[self._k]) - float(self.weight.double() @ self._lenses.mean.double())

    def score(self, x: Any, **kwargs: Any) -> Tensor:
        """Logits of this lens.

        Parameters
        ----------
        x, **kwargs : as in `Lenses.score`

        Returns
        -------
        Tensor of float32, shape [n_tokens]
        """
        return self._lenses.score(x, **kwargs)[:, self._k]

    def threshold(self, fpr: float, *, per: str = "token") -> float:
        """The logit above which at most a share `fpr` of what does not show the concept lies.

        Parameters
        ----------
        fpr : float
            Between 0 and 1.
        per : {"token", "text"}
            For the logits of single tokens, as `score` gives them, or of texts pooled as in the training.

        Returns
        -------
        float

        Raises
        ------
        ValueError
            If there are fewer than 1/fpr − 1 texts to find it with, or none, as after a stop.

        Notes
        -----
        The ceil((1 − fpr)(m + 1))-th smallest of m calibration logits: for an exchangeable new negative the
        expected rate of false positives is at most `fpr` (conformal quantile; Vovk, Gammerman, Shafer, 2005).
        """
        if not 0 < fpr < 1:
            raise ValueError(f"fpr must be between 0 and 1, got {fpr}")
        if per not in ("token", "text"):
            raise ValueError(f"per must be 'token' or 'text', got {per!r}")
        known = self._lenses.negatives[per][self._k]
        known = known[~torch.isnan(known)]
        if not len(known):
            raise ValueError(
                f"lens {self.concept!r} has no thresholds: its training was stopped before they were "
                "found, or the pack has no texts to find them with; train it to the end"
            )
        rank = math.ceil((1 - fpr) * (len(known) + 1) - 1e-9)
        if rank > len(known):
            raise ValueError(
                f"lens {self.concept!r}: {len(known)} negative texts cannot resolve a false-positive "
                f"rate of {fpr}; the smallest possible is {1 / (len(known) + 1):.3g}"
            )
        return float(known[rank - 1])

    def steering_vector(self, *, force: bool = False) -> Tensor:
        """The direction that raises the lens's logit fastest: its gradient, of norm 1.

        An A steers; a B steers with a warning; C and U need ``force=True``.

        Parameters
        ----------
        force : bool

        Returns
        -------
        Tensor of float32, shape [width]

        Raises
        ------
        PermissionError
            For a lens of grade C or U without `force`.
        ValueError
            If the lens has no direction (all its weights are 0).
        """
        r = self.report
        if r.grade in ("C", "U") and not force:
            why = r.why or f"lower bound of the score {r.score_low:.2f}"
            raise PermissionError(
                f"the lens of {self.concept!r} has grade {r.grade} ({why}): it may steer elsewhere; "
                "pass force=True to steer with it all the same"
            )
        if r.grade == "B":
            warnings.warn(
                f"the lens of {self.concept!r} has grade B (score at least {r.score_low:.2f}): check what "
                "it steers",
                stacklevel=2,
            )
        norm = self.weight.norm()
        if not float(norm) > 0:
            raise ValueError(f"the lens of {self.concept!r} has no direction: all its weights are 0")
        return self.weight / norm

    def dose_response(self, model: Model, texts: Sequence[str], **kwargs: Any) -> pd.DataFrame:
        """What steering does, dose by dose: `interp.lens.steering.dose_response`.

        Parameters
        ----------
        model : Model
        texts : sequence of str
        **kwargs : as in `interp.lens.steering.dose_response`

        Returns
        -------
        DataFrame
        """
        from interp.lens.steering import dose_response

        return dose_response(self, model, texts, **kwargs)

    @property
    def lenses(self) -> Lenses:
        """The set that it belongs to."""
        return self._lenses
