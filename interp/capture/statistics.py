"""The numbers behind trait vectors: directions, grouped splits, AUROC with its interval, controls."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np
from scipy.optimize import minimize
from scipy.special import ndtri
from scipy.stats import rankdata

__all__ = ["FITS", "auroc", "cross_validated", "nested", "newcombe"]

Fit = Callable[[np.ndarray, np.ndarray], np.ndarray]


def mean_difference(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Unit vector from the mean of the negatives to the mean of the positives.

    Parameters
    ----------
    x : array, shape [n, width]
        States.
    y : array of bool, shape [n]
        Labels.

    Returns
    -------
    array, shape [width]
    """
    return _unit(x[y].mean(0) - x[~y].mean(0))


def logistic(x: np.ndarray, y: np.ndarray, ridge: float = 1.0) -> np.ndarray:
    """Unit vector of an L2-regularised logistic regression on standardised states.

    Minimises ``Σ softplus(s_j (b + z_j·w)) + ridge/2 ‖w‖²`` with s = −1 for positives, z standardised, the
    two classes weighted alike; the direction is given in the units of x. Parameters as in `mean_difference`.
    """
    centre, spread = x.mean(0), x.std(0)
    spread = np.where(spread > 1e-12 * max(spread.max(), 1e-300), spread, np.inf)
    z = (x - centre) / spread
    weight = np.where(y, 0.5 / y.mean(), 0.5 / (1 - y.mean()))
    sign = np.where(y, 1.0, -1.0)

    def loss(p: np.ndarray) -> tuple[float, np.ndarray]:
        margin = sign * (z @ p[:-1] + p[-1])
        slope = -weight * sign / (1 + np.exp(np.clip(margin, -500, 500)))
        value = (weight * np.logaddexp(0, -margin)).sum() + ridge / 2 * p[:-1] @ p[:-1]
        return value, np.append(slope @ z + ridge * p[:-1], slope.sum())

    found = minimize(loss, np.zeros(x.shape[1] + 1), jac=True, method="L-BFGS-B")
    return _unit(found.x[:-1] / spread)


FITS: dict[str, Fit] = {"mean": mean_difference, "logistic": logistic}


def auroc(scores: np.ndarray, y: np.ndarray) -> float:
    """Probability that a positive scores above a negative, ties counting half."""
    n_pos, n_neg = int(y.sum()), int((~y).sum())
    return float((rankdata(scores)[y].sum() - n_pos * (n_pos + 1) / 2) / (n_pos * n_neg))


def newcombe(value: float, n_pos: int, n_neg: int, *, level: float = 0.95) -> tuple[float, float]:
    """Interval of an AUROC that stays honest at 1.0: Newcombe's method 5 [1]_.

    All θ with ``(value − θ)² ≤ z² V(θ)``, where ``V(θ) = θ(1−θ) [1 + N ((1−θ)/(2−θ) + θ/(1+θ))] / (n_pos
    n_neg)`` and N is the mean of the two counts, less 1.

    Parameters
    ----------
    value : float
        The AUROC.
    n_pos, n_neg : int
        Independent rows of either class.
    level : float

    Returns
    -------
    low, high : float

    References
    ----------
    .. [1] R. G. Newcombe, Confidence intervals for an effect size measure based on the Mann-Whitney
       statistic, part 2, Statistics in Medicine 25 (2006) 559-573.
    """
    z, rest = float(ndtri(0.5 + level / 2)), (n_pos + n_neg) / 2 - 1

    def outside(theta: float) -> float:
        v = theta * (1 - theta)
        v *= 1 + rest * (1 - theta) / (2 - theta) + rest * theta / (1 + theta)
        return (value - theta) ** 2 - z * z * v / (n_pos * n_neg)

    def edge(inside: float, end: float) -> float:
        # `outside` changes sign once between the estimate and either end of [0, 1].
        if outside(end) <= 0:
            return end
        for _ in range(60):
            middle = (inside + end) / 2
            inside, end = (inside, middle) if outside(middle) > 0 else (middle, end)
        return end

    return edge(value, 0.0), edge(value, 1.0)


def folds(groups: np.ndarray, k: int, seed: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Grouped folds: masks of the training and the test rows; no group is on both sides."""
    names = np.unique(groups)
    np.random.default_rng(seed).shuffle(names)
    for i in range(min(k, len(names))):
        test = np.isin(groups, names[i :: min(k, len(names))])
        yield ~test, test


def cross_validated(
    fit: Fit, x: np.ndarray, y: np.ndarray, groups: np.ndarray, seed: int, k: int = 4
) -> tuple[float, float]:
    """Mean AUROC over grouped folds, and the mean separation in standard deviations, which breaks ties.

    Folds that lack positives or negatives on either side are left out.

    Raises
    ------
    ValueError
        If no fold is left.
    """
    scores, gaps = [], []
    for train, test in folds(groups, k, seed):
        if len(set(y[train])) < 2 or len(set(y[test])) < 2:
            continue
        s, t = x[test] @ fit(x[train], y[train]), y[test]
        scores.append(auroc(s, t))
        gaps.append((s[t].mean() - s[~t].mean()) / (s[t].std() + s[~t].std() + 1e-12))
    if not scores:
        raise ValueError("no fold has positives and negatives on both sides: more groups must hold both")
    return float(np.mean(scores)), float(np.mean(gaps))


def best(layers: Mapping[str, tuple[float, float]]) -> str:
    """The site with the highest AUROC; of equal ones, the one that separates most."""
    return max(layers, key=lambda s: (round(layers[s][0], 9), layers[s][1]))


def nested(
    fit: Fit, x: Mapping[str, np.ndarray], y: np.ndarray, groups: np.ndarray, seed: int, k: int = 4
) -> tuple[float, np.ndarray]:
    """AUROC on rows that neither the vector nor the choice of its site has seen.

    For every outer fold the site is chosen and the vector fitted on the other folds. Scores are standardised
    by the training rows, so that folds can be ranked together.

    Parameters
    ----------
    fit : callable
        One of `FITS`.
    x : mapping of str to ndarray, shape [n, width]
        Site → pooled states.
    y : ndarray of bool, shape [n]
    groups : ndarray, shape [n]
        Rows of a group stay together.
    seed, k : int
        Of the folds, and how many.

    Returns
    -------
    auroc : float
    scores : array of float64, shape [n]
    """
    scores = np.zeros(len(y))
    for train, test in folds(groups, k, seed + 1):
        inner = {s: cross_validated(fit, v[train], y[train], groups[train], seed, 3) for s, v in x.items()}
        site = best(inner)
        vector = fit(x[site][train], y[train])
        known = x[site][train] @ vector
        scores[test] = (x[site][test] @ vector - known.mean()) / (known.std() + 1e-12)
    return auroc(scores, y), scores


def random_control(x: np.ndarray, y: np.ndarray, seed: int, n: int = 200) -> float:
    """95th percentile of the AUROC of random directions, whichever sign is better."""
    v = np.random.default_rng(seed).standard_normal((n, x.shape[1]))
    values = np.array([auroc(x @ w, y) for w in v])
    return float(np.quantile(np.maximum(values, 1 - values), 0.95))


def shuffled_control(
    fit: Fit, x: np.ndarray, y: np.ndarray, groups: np.ndarray, seed: int, n: int = 20
) -> float:
    """95th percentile of the cross-validated AUROC after labels are shuffled within groups."""
    rng, values = np.random.default_rng(seed), []
    for i in range(n):
        shuffled = y.copy()
        for g in np.unique(groups):
            mine = np.flatnonzero(groups == g)
            shuffled[mine] = rng.permutation(y[mine])
        values.append(cross_validated(fit, x, shuffled, groups, seed + i)[0])
    return float(np.quantile(values, 0.95))


def _unit(v: np.ndarray) -> np.ndarray:
    length = np.linalg.norm(v)
    if not np.isfinite(length) or length == 0:
        raise ValueError("positives and negatives have the same states: no direction separates them")
    return v / length
