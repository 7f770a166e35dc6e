"""The probe written slowly: one pair, dense rows, float64. What the fast code is held against."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp


def softplus(z: np.ndarray) -> np.ndarray:
    return np.logaddexp(0.0, z)


def sigmoid(z: np.ndarray) -> np.ndarray:
    return np.exp(-softplus(-z))


def prior(positive: np.ndarray) -> float:
    """b_c, the logit of the prevalence, clipped to [1e-8, 1 − 1e-8]."""
    p = np.clip(positive.mean(), 1e-8, 1.0 - 1e-8)
    return float(np.log(p) - np.log1p(-p))


def loss(x: np.ndarray, positive: np.ndarray, b: float, w: float) -> float:
    """Mean negative log-likelihood of one pair; x and positive (0/1) have one entry per row."""
    z = b + w * x
    return float(np.mean(np.where(positive > 0, softplus(-z), softplus(z))))


def objective(x: np.ndarray, positive: np.ndarray, b: float, w: float, ridge: float = 1e-8) -> float:
    return loss(x, positive, b, w) + 0.5 * ridge * (w**2 + (b - prior(positive)) ** 2)


def unit(x: np.ndarray) -> float:
    """q, the RMS of the non-zeros; 1 without any."""
    events = x[x != 0]
    return float(np.sqrt(np.mean(events**2))) if len(events) else 1.0


def gradient(x: np.ndarray, positive: np.ndarray, b: float, w: float, ridge: float = 1e-8) -> np.ndarray:
    """(∂L/∂b, ∂L/∂w)."""
    residual = np.where(positive > 0, -sigmoid(-(b + w * x)), sigmoid(b + w * x))
    return np.array(
        [np.mean(residual) + ridge * (b - prior(positive)), np.mean(residual * x) + ridge * w], np.float64
    )


def scaled_gradient(x: np.ndarray, positive: np.ndarray, b: float, w: float, ridge: float = 1e-8) -> float:
    """max(|∂b|, |∂w|/q)."""
    g = gradient(x, positive, b, w, ridge)
    return float(max(abs(g[0]), abs(g[1]) / unit(x)))


def optimum(x: np.ndarray, positive: np.ndarray, ridge: float = 1e-8) -> tuple[float, float, float]:
    """(b, w, objective) at the minimum: Newton with a backtracking line search, in units of q."""
    q = unit(x)
    x = x.astype(np.float64) / q
    b_c = prior(positive)

    def value(t: np.ndarray) -> float:
        z = t[0] + t[1] * x
        fit = np.mean(np.where(positive > 0, softplus(-z), softplus(z)))
        return fit + 0.5 * ridge * ((t[1] / q) ** 2 + (t[0] - b_c) ** 2)

    theta = np.array([b_c, 0.0])
    now = value(theta)
    for _ in range(500):
        z = theta[0] + theta[1] * x
        p = sigmoid(z)
        residual = np.where(positive > 0, -sigmoid(-z), p)
        v = p * sigmoid(-z)
        g = np.array(
            [residual.mean() + ridge * (theta[0] - b_c), np.mean(residual * x) + ridge * theta[1] / q**2]
        )
        h = np.array(
            [[v.mean() + ridge, np.mean(v * x)], [np.mean(v * x), np.mean(v * x * x) + ridge / q**2]]
        )
        step = np.linalg.solve(h, -g)
        if -g @ step <= 1e-15:
            break
        length = 1.0
        while length > 1e-12 and value(theta + length * step) > now + 1e-4 * length * (g @ step):
            length *= 0.5
        if length <= 1e-12:
            break  # rounding is all that is left
        theta = theta + length * step
        now = value(theta)
    return float(theta[0]), float(theta[1] / q), now


def dense(x: object, y: object, n_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Labelled rows as dense float64 [n, n_latents] and their classes as 0/1 [n, n_classes]."""
    full = (x.toarray() if sp.issparse(x) else np.asarray(x)).astype(np.float64)
    full[np.abs(full) < 2.0**-126] = 0.0
    if sp.issparse(y):
        return full, (y.toarray() != 0).astype(np.float64)
    y = np.asarray(y)
    keep = y >= 0
    return full[keep], (y[keep][:, None] == np.arange(n_classes)).astype(np.float64)


def bin_edges(x: np.ndarray) -> tuple[float, float]:
    """Range of the values and 0, moved outwards to sixteenths of an octave, as a summary knows it."""

    def outward(v: float) -> tuple[float, float]:
        mantissa, exponent = np.frexp(abs(v))
        step = np.floor((2.0 * mantissa - 1.0) * 16.0)
        size = np.ldexp(1.0, exponent - 1)
        edges = np.sign(v) * size * (1.0 + np.array([step, step + 1.0]) / 16.0)
        return float(edges.min()), float(edges.max())

    events = x[x != 0]
    return min(0.0, outward(events.min())[0]), max(0.0, outward(events.max())[1])


def levenberg_marquardt(
    x: np.ndarray,
    positive: np.ndarray,
    *,
    max_iter: int,
    tol: float = 1e-6,
    ridge: float = 1e-8,
    lam_init: float = 1e-3,
    lam_shrink: float = 0.1,
    lam_grow: float = 10.0,
    delta_logit: float = 1e12,
    max_retries: int = 5,
) -> tuple[float, float, int, list[int]]:
    """One pair's iterations, told plainly, for a logit budget that never binds.

    Returns
    -------
    (b, w, number of iterations, the iterations at which a step failed after all retries)
    """
    q, (low, high) = unit(x), bin_edges(x)
    x, low, high = x.astype(np.float64) / q, low / q, high / q
    b_c = prior(positive)

    def derivatives(b: float, w: float) -> tuple[np.ndarray, np.ndarray]:
        z = b + w * x
        v = sigmoid(z) * sigmoid(-z)
        g = np.array([np.mean(sigmoid(z) - positive), np.mean((sigmoid(z) - positive) * x)])
        g += ridge * np.array([b - b_c, w / q**2])
        h01 = np.mean(v * x)
        return g, np.array([[v.mean() + ridge, h01], [h01, np.mean(v * x * x) + ridge / q**2]])

    b, w, lam, rejections, failures = b_c, 0.0, lam_init, 0, []
    g, h = derivatives(b, w)
    for k in range(1, max_iter + 1):
        if np.abs(g).max() <= tol and 0.5 * g @ np.linalg.solve(h, g) <= 1e-4 * tol:
            return b, w / q, k - 1, failures
        falling_back = rejections > max_retries
        if falling_back:
            bound = np.array([0.25 + ridge, 0.25 * np.mean(x * x) + ridge / q**2])
            d = -g / (2.0 * bound)
        else:
            d = np.linalg.solve(h + lam * np.diag(np.diag(h)), -g)
        reach = max(abs(d[0]), abs(d[0] + d[1] * low), abs(d[0] + d[1] * high))
        assert reach <= delta_logit, "this reference has no logit budget"
        g_new, h_new = derivatives(b + d[0], w + d[1])
        a, end, s0, s1 = -g @ d, g_new @ d, d @ h @ d, d @ h_new @ d
        certified = max(
            a - (a + end) * (1.0 / (1.0 - np.exp(-reach)) - 1.0 / reach),
            a - s0 * (np.exp(reach) - 1.0 - reach) / reach**2,
            -end + s1 * (reach - 1.0 + np.exp(-reach)) / reach**2,
        )
        accepted = certified > 0.0
        ratio = 0.5 * (a - end) / (a - 0.5 * s0)
        if accepted and ratio > 0.5:
            lam *= lam_shrink
        elif not accepted or ratio < 0.1:
            lam *= lam_grow
        if accepted:
            b, w, g, h = b + d[0], w + d[1], g_new, h_new
            lam = lam_init if falling_back else lam
            rejections = 0
        else:
            rejections += 1
            if rejections == max_retries + 1:
                failures.append(k)
            if falling_back:
                return b, w / q, k, failures
    return b, w / q, max_iter, failures
