"""The estimator: a logistic probe for every (latent, class) pair, with scikit-learn's conventions."""

from __future__ import annotations

import inspect
import os
import time
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch

from interp.events import Emitter, Event, IterationEnd
from interp.probe import confusion, exact, losses, metrics
from interp.probe.confusion import Confusion
from interp.probe.data import can_iterate_again, n_rows, shards
from interp.probe.exact import Certificate
from interp.probe.files import read_safetensors, write_metrics_npz, write_safetensors
from interp.probe.fit import Fit
from interp.probe.fitted import Fitted
from interp.probe.metrics import ProbeMetrics
from interp.probe.sizes import place
from interp.probe.slab import Rules
from interp.probe.stages import Steps, polish, stage
from interp.probe.step import STATUS
from interp.probe.summary import LatentSummary

__all__ = ["Sparse1DProbe"]

_VERSION = 1


class Sparse1DProbe:
    r"""A logistic probe with one feature for every (latent, class) pair of a sparse code.

    For latent l and class c, intercept b and slope w minimise

    .. math::

        L(b, w) = \tfrac1n \sum_j \bigl[\mathrm{softplus}(b + w x_j) - y_j (b + w x_j)\bigr]
                  + \tfrac{\rho}{2}\bigl(w^2 + (b - b_c)^2\bigr),

    with ρ = `ridge` and b_c the logit of the class's prevalence, clipped to [1e-8, 1 − 1e-8]. The labels
    enter through two sums only, so one pass over the events (`LatentSummary`) leaves, per latent, a few
    hundred weighted nodes that stand for all its values; each Levenberg–Marquardt iteration costs
    nodes × classes, whatever the number of rows. Pairs for which the nodes are not exact enough, and only
    those, are finished on the raw events.

    Parameters
    ----------
    class_slab_size : int or "auto"
        Classes solved together. More amortise overhead, fewer make shorter iterations.
    latent_block_size : int or "auto"
        Latents in flight in one evaluation. "auto" measures which working set the cache holds.
    row_batch_size : int or "auto"
        Rows sorted by latent at a time while the summary is filled.
    max_iter : int
        Most LM iterations of a pair.
    tol : float
        A pair has converged when both components of its gradient, in the latent's own unit q (the RMS of
        its non-zeros), are at most `tol`, and its loss is within 1e-4·tol of the optimum to second order.
    ridge : float
        ρ above.
    lam_init, lam_shrink, lam_grow : float
        Damping λ at the start, and its factors after a good and after a bad step.
    delta_logit : float
        Largest change of any logit in one step.
    max_retries : int
        Rejected steps in a row before a pair takes the fallback, a gradient step that cannot climb.
    method : {"summary", "events"}
        "events" runs the same iterations on the raw events: slow, readable, the reference.
    compute_dtype : torch.dtype, optional
        Precision of the evaluations; float64 by default. With float32 the pairs are brought near the
        optimum in float32 and finished in float64. Apple's MPS has no float64: there the float32 stage
        runs on the GPU and the finish on the CPU.
    device : str or torch.device, optional
        Where to solve; None or "auto": CUDA if there is one, else the CPU.

    Attributes
    ----------
    coef_, intercept_ : ndarray of float64, shape [n_latents, n_classes]
        w and b of every pair.
    status_ : ndarray of str, shape [n_latents, n_classes]
        ``converged``; ``separable`` (converged, but only the ridge keeps w finite: no event belongs to the
        class, or the pair separates its classes perfectly); ``max_iter``; ``lm_failed``; ``dead`` (the latent
        never fires); ``absent_class``; ``needs_polish`` (solved on the summary, whose rule is not exact
        enough for this pair: call `polish`); ``not_started``.
    n_iter_, n_fail_ : ndarray of int32, shape [n_latents, n_classes]
        Iterations, and steps that failed after all retries.
    lambda_ : ndarray of float64, shape [n_latents, n_classes]
        Final damping.
    history_ : pandas.DataFrame
        One row per iteration: slab, iteration, n_active, n_fail, … seconds; the columns that only a
        listener pays for (lambda, loss, gradient) are NaN in a fit without hooks.
    summary_ : LatentSummary
        What the fit kept of the data (method="summary").
    n_features_in_ : int
        n_latents.

    Examples
    --------
    >>> import numpy as np, scipy.sparse as sp
    >>> x = sp.random_array((1000, 4), density=0.3, format="csr", random_state=0)
    >>> y = (x[:, [0]].toarray().ravel() > 0.5).astype(int)
    >>> probe = Sparse1DProbe().fit(x, y)
    >>> int(probe.best_latents(1)["latent"].iloc[1])
    0
    """

    def __init__(
        self,
        *,
        class_slab_size: int | str = "auto",
        latent_block_size: int | str = "auto",
        row_batch_size: int | str = "auto",
        max_iter: int = 100,
        tol: float = 1e-6,
        ridge: float = 1e-8,
        lam_init: float = 1e-3,
        lam_shrink: float = 0.1,
        lam_grow: float = 10.0,
        delta_logit: float = 6.0,
        max_retries: int = 5,
        method: str = "summary",
        compute_dtype: torch.dtype | None = None,
        device: str | torch.device | None = None,
    ) -> None:
        self.class_slab_size = class_slab_size
        self.latent_block_size = latent_block_size
        self.row_batch_size = row_batch_size
        self.max_iter = max_iter
        self.tol = tol
        self.ridge = ridge
        self.lam_init = lam_init
        self.lam_shrink = lam_shrink
        self.lam_grow = lam_grow
        self.delta_logit = delta_logit
        self.max_retries = max_retries
        self.method = method
        self.compute_dtype = compute_dtype
        self.device = device

    # ----------------------------------------------------------------------------- conventions

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """The constructor's parameters (scikit-learn's convention; `deep` changes nothing here)."""
        return {name: getattr(self, name) for name in self._names()}

    def set_params(self, **params: Any) -> Sparse1DProbe:
        """Set parameters by name.

        Parameters
        ----------
        **params : as in the constructor

        Returns
        -------
        Sparse1DProbe
            Itself.

        Raises
        ------
        ValueError
            For a name that the constructor does not have.
        """
        for name, value in params.items():
            if name not in self._names():
                raise ValueError(f"unknown parameter {name!r}; there are {', '.join(self._names())}")
            setattr(self, name, value)
        return self

    @classmethod
    def _names(cls) -> list[str]:
        return [name for name in inspect.signature(cls.__init__).parameters if name != "self"]

    def __repr__(self) -> str:
        default = {k: p.default for k, p in inspect.signature(type(self).__init__).parameters.items()}
        changed = [f"{k}={v!r}" for k, v in self.get_params().items() if v != default[k]]
        return f"Sparse1DProbe({', '.join(changed)})"

    def _check_params(self) -> None:
        for name in ("class_slab_size", "latent_block_size", "row_batch_size"):
            value = getattr(self, name)
            if value != "auto" and not (_is_integer(value) and value >= 1):
                raise ValueError(f'{name} must be "auto" or an integer ≥ 1, got {value!r}')
        for name in ("max_iter", "max_retries"):
            value = getattr(self, name)
            if not (_is_integer(value) and value >= 0):
                raise ValueError(f"{name} must be an integer ≥ 0, got {value!r}")
        for name, low in (("tol", 0.0), ("ridge", 0.0), ("lam_init", 0.0), ("delta_logit", 0.0)):
            if not getattr(self, name) > low:
                raise ValueError(f"{name} must be > {low:g}, got {getattr(self, name)!r}")
        if not 0 < self.lam_shrink <= 1 <= self.lam_grow:
            got = f"lam_shrink={self.lam_shrink}, lam_grow={self.lam_grow}"
            raise ValueError(f"need 0 < lam_shrink ≤ 1 ≤ lam_grow, got {got}")
        if self.method not in ("summary", "events"):
            raise ValueError(f'method must be "summary" or "events", got {self.method!r}')

    def _fitted_summary(self) -> LatentSummary:
        """The summary as the fit saw it."""
        summary = getattr(self, "summary_", None)
        if summary is None:
            raise ValueError(
                "this probe comes from a file, which holds no data: fit it, or measure with x and y"
            )
        if summary.n_rows != self._state.n_rows:
            grown = f"{self._state.n_rows} rows at the fit, {summary.n_rows} now"
            raise ValueError(f"the summary has changed since the fit ({grown}): fit it again")
        return summary

    def _check_fitted(self) -> Fitted:
        if not hasattr(self, "_state"):
            raise _not_fitted_error()("this Sparse1DProbe is not fitted yet: call fit(x, y) first")
        return self._state

    # ------------------------------------------------------------------------------------ fitting

    def fit(
        self, x: Any, y: Any = None, *, n_classes: int | None = None, iteration_hook: Any = None
    ) -> Sparse1DProbe:
        """Fit every (latent, class) pair.

        Parameters
        ----------
        x : sparse CSR matrix, torch sparse CSR tensor, shape [n_rows, n_latents], or iterable of (x, y)
            The code, or row shards of it with their labels (any number; a generator is read once).
        y : integer array, shape [n_rows], or sparse matrix, shape [n_rows, n_classes]
            Class ids (−1: unlabelled, left out), or several labels per row.
        n_classes : int, optional
            Default: the largest class id + 1.
        iteration_hook : callable or list of callable, optional
            Gets the events of `interp.events`; returning True stops before the next iteration. A pass over
            the data of more than a fifth of a second tells of itself (`StageStep`); stopped there, no pair
            has started. Pairs that a stop keeps from being finished on the raw events stay ``needs_polish``.

        Returns
        -------
        Sparse1DProbe
            Itself.

        Raises
        ------
        ValueError
            If the data or a parameter does not fit; the estimator is unchanged then.
        """
        emit = Emitter(iteration_hook)
        steps = self._solve(x, y, n_classes, listening=bool(emit))
        _drive(steps, emit)
        return self

    def iter_fit(self, x: Any, y: Any = None, *, n_classes: int | None = None) -> Iterator[Event]:
        """`fit` as a generator of its events: step by hand, break to stop; what is fitted so far stays.

        Left in the pass over the rows (at a `StageStep`), nothing is: the estimator is what it was.

        Parameters
        ----------
        x, y, n_classes : as in `fit`

        Yields
        ------
        Event
        """
        yield from self._solve(x, y, n_classes, listening=True)

    def fit_summary(self, summary: LatentSummary, *, iteration_hook: Any = None) -> Sparse1DProbe:
        """Fit from a summary alone (a merged one, say). Pairs it is too coarse for get ``needs_polish``.

        Parameters
        ----------
        summary : LatentSummary
        iteration_hook : callable or list of callable, optional
            As in `fit`.

        Returns
        -------
        Sparse1DProbe
            Itself.

        Raises
        ------
        ValueError
            If the summary is empty, or the method is not "summary".
        """
        self._check_params()
        if self.method != "summary":
            raise ValueError(f'fit_summary needs method="summary", got {self.method!r}')
        emit = Emitter(iteration_hook)
        _drive(self._solve_summary(summary, None, None, bool(emit), time.perf_counter(), 0.0), emit)
        return self

    def polish(self, x: Any, y: Any = None, *, iteration_hook: Any = None) -> Sparse1DProbe:
        """Finish the pairs with status ``needs_polish`` on the raw events.

        Parameters
        ----------
        x, y : as in `fit`
            The rows of the summary, once more.
        iteration_hook : callable or list of callable, optional
            Gets a `StageStep` five times a second, then a `FitEnd`. A stop leaves other pairs as they are.

        Returns
        -------
        Sparse1DProbe
            Itself.

        Raises
        ------
        ValueError
            If the rows are not those of the summary.
        """
        self._check_fitted()
        device, _ = self._where()
        emit, state, began = Emitter(iteration_hook), self._state, time.perf_counter()
        summary, rules, n_inexact = self._fitted_summary(), self._rules(), state.n_inexact

        def steps() -> Steps:
            stopped = yield from polish(state, x, y, summary, rules, device, bool(emit))
            if emit:
                stages = {"polish": time.perf_counter() - began}
                yield state.end(began, stages, n_inexact - state.n_inexact, stopped)
            return stopped

        state.loss = None
        _drive(steps(), emit)
        return self

    def _solve(self, x: Any, y: Any, n_classes: int | None, *, listening: bool) -> Steps:
        self._check_params()
        began = time.perf_counter()
        if n_classes is not None and n_classes < 1:
            raise ValueError(f"n_classes must be at least 1, got {n_classes}")
        checked = shards(x, y, n_classes)
        first = next(checked)
        summary = LatentSummary(first.x.shape[1], n_classes)
        rows = None if self.row_batch_size == "auto" else int(self.row_batch_size)
        adding = summary.adding(chain([first], checked), row_batch_size=rows)
        stopped = yield from stage("summary", n_rows(x, y), adding, listening)
        if stopped:  # of no row, rather than of some
            seen = first.y.shape[1] if sp.issparse(first.y) else int(first.y.max(initial=-1)) + 1
            summary = LatentSummary(summary.n_latents, max(summary.n_classes, seen) or None)
        seconds = time.perf_counter() - began
        if y is None and not can_iterate_again(x):
            x = None  # used up
        return (yield from self._solve_summary(summary, x, y, listening, began, seconds, stopped))

    def _solve_summary(
        self,
        summary: LatentSummary,
        x: Any,
        y: Any,
        listening: bool,
        began: float,
        seconds: float,
        stopped: bool = False,
    ) -> Steps:
        device, dtype = self._where()
        fit = Fit(
            summary,
            x,
            y,
            rules=self._rules(),
            method=self.method,
            sizes=(self.class_slab_size, self.latent_block_size),
            device=device,
            dtype=dtype,
            stopped=stopped,
        )
        self._state, self.summary_ = fit.fitted, summary
        self.n_features_in_ = summary.n_latents
        rows = 0 if self.row_batch_size == "auto" else int(self.row_batch_size)
        return (yield from fit.steps(listening, began, seconds, rows))

    def _where(self) -> tuple[torch.device, torch.dtype]:
        return place(self.device, self.compute_dtype)

    def _rules(self) -> Rules:
        return Rules(**{name: getattr(self, name) for name in Rules._fields})

    # -------------------------------------------------------------------------------- what came out

    @property
    def coef_(self) -> np.ndarray:
        """Slopes w, float64 [n_latents, n_classes]."""
        return self._check_fitted().coef

    @property
    def intercept_(self) -> np.ndarray:
        """Intercepts b, float64 [n_latents, n_classes]."""
        return self._check_fitted().intercept

    @property
    def n_iter_(self) -> np.ndarray:
        """LM iterations of each pair, int32 [n_latents, n_classes]."""
        return self._check_fitted().n_iter

    @property
    def n_fail_(self) -> np.ndarray:
        """Steps of each pair that failed after all retries, int32 [n_latents, n_classes]."""
        return self._check_fitted().n_fail

    @property
    def lambda_(self) -> np.ndarray:
        """Final damping of each pair, float64 [n_latents, n_classes]."""
        return self._check_fitted().lam

    @property
    def status_(self) -> np.ndarray:
        """Status of each pair, str [n_latents, n_classes]."""
        return np.array(STATUS)[self._check_fitted().codes]

    @property
    def history_(self) -> pd.DataFrame:
        """One row per iteration of the last fit."""
        history = self._check_fitted().history
        names = list(IterationEnd.__dataclass_fields__)
        return pd.DataFrame([{n: getattr(e, n) for n in names} for e in history], columns=names)

    @property
    def loss_(self) -> np.ndarray:
        """Mean training loss without the ridge, by the summary, float64 [n_latents, n_classes]."""
        state = self._check_fitted()
        if state.n_rows == 0:  # stopped before anything was known of them
            return np.full(state.coef.shape, np.nan)
        if state.loss is None:
            state.loss, _ = losses.losses(self._fitted_summary(), state.coef, state.intercept)
        return state.loss

    def status_counts(self) -> dict[str, int]:
        """How many pairs have each status."""
        return self._check_fitted().status_counts()

    def certify(self, x: Any, y: Any = None, pairs: Any = None) -> Certificate:
        """The exact gradient of the objective at the fitted parameters, on the raw events.

        Parameters
        ----------
        x, y : as in `fit`
            A generator cannot be read twice and is refused.
        pairs : array of int, shape [n_pairs, 2], optional
            (latent, class) pairs; default all.

        Returns
        -------
        Certificate
            ``grad_b``, ``grad_w`` and ``scaled``, the largest of \\|∂b\\| and \\|∂w\\|/q per pair.
        """
        self._check_fitted()
        return exact.exact_gradient(x, y, self.coef_, self.intercept_, self.ridge, pairs)

    def loss_matrix(self, x: Any, y: Any = None) -> np.ndarray:
        """Mean negative log-likelihood of every pair on these data, in nats.

        From a summary of the data, and on the raw events for pairs whose error bound exceeds
        1e-9 + 1e-7·loss.

        Parameters
        ----------
        x, y : as in `fit`

        Returns
        -------
        ndarray of float64, shape [n_latents, n_classes]
        """
        self._check_fitted()
        return losses.exact_losses(x, y, self.coef_, self.intercept_)

    def confusion(self, x: Any, y: Any = None, threshold: float = 0.5) -> Confusion:
        """Exact counts of every pair on these data.

        Parameters
        ----------
        x, y : as in `fit`
        threshold : float
            Probability above which a row is predicted positive, in (0, 1).

        Returns
        -------
        Confusion
            A named tuple of tp, fp, tn, fn: int64 [n_latents, n_classes] each.
        """
        self._check_fitted()
        return confusion.confusion(x, y, self.coef_, self.intercept_, threshold)

    def metrics(self, x: Any, y: Any = None, threshold: float = 0.5) -> ProbeMetrics:
        """Every metric of every pair on these data: nll, R, AUROC, AP, F1 …

        Parameters
        ----------
        x, y : as in `fit`
        threshold : float
            Probability above which a row is predicted positive, in (0, 1).

        Returns
        -------
        ProbeMetrics
        """
        self._check_fitted()
        return metrics.measure(x, y, self.coef_, self.intercept_, threshold)

    def best_latents(self, k: int = 1) -> pd.DataFrame:
        """The `k` latents with the lowest training loss for each class.

        Parameters
        ----------
        k : int

        Returns
        -------
        DataFrame
            Columns ``class, rank`` (from 1) ``latent, loss, r, coef, intercept, status``; k rows per class.
            r is NaN for a class without rows, or on every row.
        """
        loss = self.loss_
        k = min(k, loss.shape[0])
        best = np.argsort(loss, axis=0, kind="stable")[:k]
        cls = np.tile(np.arange(loss.shape[1]), (k, 1))
        base = losses.base_losses(self._state.class_counts, max(1, self._state.n_rows))
        with np.errstate(divide="ignore", invalid="ignore"):
            r = np.where(base > 0, 1.0 - loss / base, np.nan)
        table = pd.DataFrame(
            {
                "class": cls.T.ravel(),
                "rank": np.tile(np.arange(1, k + 1), loss.shape[1]),
                "latent": best.T.ravel(),
            }
        )
        at = table["latent"].to_numpy(), table["class"].to_numpy()
        columns = {"loss": loss, "r": r, "coef": self.coef_, "intercept": self.intercept_}
        for name, values in columns.items():
            table[name] = values[at]
        table["status"] = np.array(STATUS)[self._state.codes[at]]
        return table

    # ------------------------------------------------------------------------------------ on disk

    def write_metrics(
        self, path: str | os.PathLike[str], x: Any, y: Any = None, threshold: float = 0.5
    ) -> Path:
        """Write ``probe1d_metrics.npz``: loss, weights, biases, tp, fp, tn and fn on these data.

        Parameters
        ----------
        path : path
            The file, replaced if it is there.
        x, y : as in `fit`
        threshold : float
            Probability above which a row is predicted positive, in (0, 1).

        Returns
        -------
        Path
            The file.
        """
        if y is None and not can_iterate_again(x):
            x = list(x)
        counts = self.confusion(x, y, threshold)
        return write_metrics_npz(
            path,
            loss=self.loss_matrix(x, y),
            weights=self.coef_,
            biases=self.intercept_,
            **counts._asdict(),
        )

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write parameters and fitted state (no data) as one safetensors file, whole or not at all.

        Parameters
        ----------
        path : path
            The file, replaced if it is there.

        Returns
        -------
        Path
            The file.
        """
        state = self._check_fitted()
        meta = {
            "params": {k: _plain(v) for k, v in self.get_params().items()},
            "n_rows": state.n_rows,
        }
        tensors = {name: np.ascontiguousarray(getattr(state, name)) for name in _SAVED}
        return write_safetensors(path, _FORMAT, _VERSION, meta, tensors | {"loss": self.loss_})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Sparse1DProbe:
        """Read a probe written by `save`. It certifies, measures and ranks; to go on fitting, `fit` anew.

        Parameters
        ----------
        path : path

        Returns
        -------
        Sparse1DProbe

        Raises
        ------
        FileNotFoundError, ValueError
            If the file is missing, damaged, or of another kind or version.
        """
        meta, tensors = read_safetensors(path, _FORMAT, _VERSION)
        params = dict(meta["params"])
        if params["compute_dtype"] is not None:
            params["compute_dtype"] = getattr(torch, params["compute_dtype"].removeprefix("torch."))
        probe = cls(**params)
        probe._state = Fitted(n_rows=meta["n_rows"], **tensors)  # type: ignore[arg-type]
        probe.n_features_in_ = probe._state.coef.shape[0]
        return probe


_FORMAT = "interp.Sparse1DProbe"
#: Fields of `Fitted` that a file holds.
_SAVED = ("coef", "intercept", "n_iter", "n_fail", "lam", "codes", "class_counts")


def _is_integer(value: Any) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def _plain(value: Any) -> Any:
    """A parameter as JSON holds it: numbers as Python's own, dtypes and devices by name."""
    if isinstance(value, np.generic):
        value = value.item()
    return value if isinstance(value, int | float | str | None) else str(value)


def _drive(steps: Steps, emit: Emitter) -> None:
    """Run a fit's generator to its end, asking the hooks after each event."""
    answer = None
    try:
        while True:
            answer = emit(steps.send(answer))
    except StopIteration:
        emit.close()
    finally:
        steps.close()


def _not_fitted_error() -> type[Exception]:
    try:
        from sklearn.exceptions import NotFittedError
    except ImportError:
        return type("NotFittedError", (ValueError, AttributeError), {})
    return NotFittedError
