"""What is known about one lens, as it is shown, saved and read back."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields
from typing import Any

__all__ = ["LensReport"]


@dataclass(frozen=True, kw_only=True)
class LensReport:
    """What is known about one lens. Scores are 2·AUROC − 1; "test" is the test split, read once.

    Attributes
    ----------
    concept, term : str
    level : int
        Ontology level.
    grade, why : str
        A, B, C, or U with the reason in `why`.
    score, score_low, score_high, auroc : float
        On the test split against siblings, held-out templates, with the two-sided 95 % interval of the score.
    auroc_seen : float
        The same texts in the templates of training: much more than `auroc` means the format matters.
    f1, brier, calibration_slope, calibration_intercept : float
        Test split, classes weighted alike; slope 1 and intercept 0 are calibrated, NaN if separated
        perfectly.
    f1_select, f1_select_low : float
        What the growth of samples was steered by, with its lower 95 % bound.
    score_shuffled, score_template, score_text : float
        Baselines, test split: labels shuffled everywhere; template words only; bag of words (the text lens).
    divergence : float
        Mean difference of the probabilities of this lens and its text lens, test split.
    n_samples, n_positive, n_negative, n_test_positive, n_test_negative : int
        Training rows, and independent groups of the test split.
    n_iter : int
        Fits, one per number of samples.
    stop_reason : str
        Why the lens stopped growing. ``target_met``; ``no_more_data``: the pack has no more examples;
        ``budget``: it has, but the last number of `growth` was used, or ``max_seconds`` were over (then
        `n_samples` is below that number); ``stopped`` by a hook. "" if there was nothing to fit.
    forced_on : bool
        Blocking validation keeps (or would keep) the lens in training after the target is met.
    extra_iterations : int
        Iterations after the target was met; with advisory validation, the most that blocking could have
        added.
    lam : float
        Chosen regularisation.
    seconds : float
        This lens's share of fitting and grading.
    fitted : bool
        Whether there are weights.
    """

    concept: str
    term: str
    level: int
    grade: str = "U"
    why: str = ""
    score: float = math.nan
    score_low: float = math.nan
    score_high: float = math.nan
    auroc: float = math.nan
    auroc_seen: float = math.nan
    f1: float = math.nan
    brier: float = math.nan
    calibration_slope: float = math.nan
    calibration_intercept: float = math.nan
    f1_select: float = math.nan
    f1_select_low: float = math.nan
    score_shuffled: float = math.nan
    score_template: float = math.nan
    score_text: float = math.nan
    divergence: float = math.nan
    n_samples: int = 0
    n_positive: int = 0
    n_negative: int = 0
    n_test_positive: int = 0
    n_test_negative: int = 0
    n_iter: int = 0
    stop_reason: str = ""
    forced_on: bool = False
    extra_iterations: int = 0
    lam: float = math.nan
    seconds: float = 0.0
    fitted: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; NaN becomes None."""
        return {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in asdict(self).items()}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> LensReport:
        """The report that `to_dict` made `data` of; TypeError for other fields."""
        floats = {f.name for f in fields(cls) if f.type == "float"}
        plain: dict[str, Any] = {k: math.nan if v is None and k in floats else v for k, v in data.items()}
        return cls(**plain)
