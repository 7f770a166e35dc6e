"""The estimator: slabs of classes one after the other, every pair's fate on record."""

from __future__ import annotations

import inspect
import time
from collections.abc import Generator, Iterator
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch

from interp.events import Emitter, Event, FitBegin, FitEnd, IterationEnd, SlabBegin, SlabEnd, bar, rss_bytes
from interp.probe import exact
from interp.probe.data import can_iterate_again, shards
from interp.probe.exact import Certificate, latent_values, make_problem
from interp.probe.nodes import Nodes, tuned_block_elements
from interp.probe.slab import (
    ABSENT_CLASS,
    CONVERGED,
    DEAD,
    NEEDS_POLISH,
    SEPARABLE,
    STATUS,
    Iteration,
    Problem,
    Rules,
    Slab,
)
from interp.probe.summary import LatentSummary

__all__ = ["Sparse1DProbe"]

#: An automatic class slab aims at iterations of this length, so that a stop is prompt and a picture moves.
_ITERATION_SECONDS = 0.1
#: … and at no fewer slabs than this, where there are enough classes.
_MIN_SLABS = 8
#: Scaled gradient to which a float32 stage is trusted.
_FLOAT32_TOL = 1e-4
#: Share of the fit's time that the loss of `IterationEnd` may cost.
_LOSS_SHARE = 0.01
_VERSION = 1


class Sparse1DProbe:
    r"""A logistic probe with one feature for every (latent, class) pair of a sparse code.

    For latent l and class c, intercept b and slope w minimise

    .. math::

        L(b, w) = \tfrac1n \sum_j \bigl[\mathrm{softplus}(b + w x_j) - y_j (b + w x_j)\bigr]
                  + \tfrac{\rho}{2}\bigl(w^2 + (b - b_c)^2\bigr),

    with ρ = `ridge` and b_c the logit of the class's prevalence, clipped to [1e-8, 1 − 1e-8]. The labels
    enter through two sums only, so one pass over the events (`LatentSummary`) leaves, per latent, a few hundred
    weighted nodes that stand for all its values; each Levenberg–Marquardt iteration costs nodes × classes,
    whatever the number of rows. Pairs for which the nodes are not exact enough, and only those, are
    finished on the raw events.

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
        Where to solve; by default CUDA if there is one, else the CPU.

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
        """Set parameters by name; unknown names raise ``ValueError``."""
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
            if value != "auto" and not (isinstance(value, int | np.integer) and value >= 1):
                raise ValueError(f'{name} must be "auto" or an integer ≥ 1, got {value!r}')
        for name, low in (("tol", 0.0), ("ridge", 0.0), ("lam_init", 0.0), ("delta_logit", 0.0)):
            if not getattr(self, name) > low:
                raise ValueError(f"{name} must be > {low:g}, got {getattr(self, name)!r}")
        if not 0 < self.lam_shrink <= 1 <= self.lam_grow:
            got = f"lam_shrink={self.lam_shrink}, lam_grow={self.lam_grow}"
            raise ValueError(f"need 0 < lam_shrink ≤ 1 ≤ lam_grow, got {got}")
        if self.max_iter < 0 or self.max_retries < 0:
            raise ValueError(
                f"max_iter and max_retries must be ≥ 0, got {self.max_iter} and {self.max_retries}"
            )
        if self.method not in ("summary", "events"):
            raise ValueError(f'method must be "summary" or "events", got {self.method!r}')

    def _fitted(self) -> None:
        if not hasattr(self, "coef_"):
            raise _not_fitted_error()("this Sparse1DProbe is not fitted yet: call fit(x, y) first")

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
            Gets the events of `interp.events`; returning True stops before the next iteration.

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

        Yields
        ------
        Event
        """
        yield from self._solve(x, y, n_classes, listening=True)

    def fit_summary(self, summary: LatentSummary, *, iteration_hook: Any = None) -> Sparse1DProbe:
        """Fit from a summary alone (a merged one, say). Pairs it is too coarse for get ``needs_polish``.

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

    def polish(self, x: Any, y: Any = None) -> Sparse1DProbe:
        """Finish the pairs with status ``needs_polish`` on the raw events (the rows of the summary)."""
        self._fitted()
        pairs = self._codes == NEEDS_POLISH
        if pairs.any():
            self._polish(x, y, self.summary_, pairs)
        return self

    def _solve(
        self, x: Any, y: Any, n_classes: int | None, *, listening: bool
    ) -> Generator[Event, bool | None, None]:
        self._check_params()
        began = time.perf_counter()
        rows = None if self.row_batch_size == "auto" else int(self.row_batch_size)
        checked = shards(x, y, n_classes)
        first = next(checked)
        summary = LatentSummary(first.x.shape[1], n_classes)
        summary.add_shards(chain([first], checked), row_batch_size=rows)
        seconds = time.perf_counter() - began
        again = (x, y) if y is not None or can_iterate_again(x) else (None, None)
        yield from self._solve_summary(summary, *again, listening, began, seconds)

    def _solve_summary(
        self,
        summary: LatentSummary,
        x: Any,
        y: Any,
        listening: bool,
        began: float,
        summary_seconds: float,
    ) -> Generator[Event, bool | None, None]:
        if summary.n_rows == 0 or summary.n_classes == 0:
            raise ValueError(f"nothing to fit: {summary!r} (every row unlabelled, or no row at all)")
        if self.method == "events" and x is None:
            raise ValueError('method="events" reads x more than once: give a matrix or a list of shards')
        self._allocate(summary)
        stages = {"summary": summary_seconds}
        start = time.perf_counter()
        alive = np.flatnonzero(summary.n_events > 0)
        levels = self._levels(summary, x, y, alive)
        stages["nodes"] = time.perf_counter() - start
        nodes = levels[0].nodes
        slab_size, block_size = self._sizes(nodes, summary.n_classes)
        n_slabs = -(-summary.n_classes // slab_size)
        stopped = False
        if listening:
            stopped = bool(
                (
                    yield FitBegin(
                        method=self.method,
                        n_rows=summary.n_rows,
                        n_latents=summary.n_latents,
                        n_classes=summary.n_classes,
                        n_events=int(summary.n_events.sum()),
                        n_nodes=nodes.n_nodes,
                        n_slabs=n_slabs,
                        class_slab_size=slab_size,
                        latent_block_size=block_size,
                        row_batch_size=0 if self.row_batch_size == "auto" else int(self.row_batch_size),
                        max_iter=self.max_iter,
                        tol=self.tol,
                        device=str(nodes.device),
                        summary_seconds=summary_seconds,
                    )
                )
            )
        start = time.perf_counter()
        meter = _LossMeter(start)
        with bar(n_slabs, "probe", "slab") as shown:
            for k in range(n_slabs):
                if stopped:
                    break
                classes = np.arange(k * slab_size, min((k + 1) * slab_size, summary.n_classes))
                stopped = yield from self._solve_slab(
                    k, n_slabs, classes, alive, levels, block_size * slab_size, listening, meter
                )
                shown.update(1)
        stages["solve"] = time.perf_counter() - start
        start = time.perf_counter()
        pairs = self._codes == NEEDS_POLISH
        n_polished = 0
        if x is not None and pairs.any() and not stopped:
            n_polished = int(pairs.sum())
            self._polish(x, y, summary, pairs)
        stages["polish"] = time.perf_counter() - start
        if listening:
            yield FitEnd(
                n_pairs=self.coef_.size,
                n_fail=int(self.n_fail_.sum()),
                n_polished=n_polished,
                status_counts=self._status_counts(),
                seconds=time.perf_counter() - began,
                stage_seconds=stages,
                stopped=stopped,
            )

    def _solve_slab(
        self,
        k: int,
        n_slabs: int,
        classes: np.ndarray,
        alive: np.ndarray,
        levels: list[_Level],
        block_pairs: int,
        listening: bool,
        meter: _LossMeter,
    ) -> Generator[Event, bool | None, bool]:
        """Solve one slab, writing back whatever stands even if the caller walks away."""
        began = time.perf_counter()
        where = {
            "slab": k,
            "n_slabs": n_slabs,
            "class_start": int(classes[0]),
            "class_stop": int(classes[-1]) + 1,
        }
        slab, stopped, n_inert = None, False, 0
        for level in levels:
            slab = level.slab(torch.from_numpy(classes), block_pairs, after=slab)
            try:
                if level is levels[0]:
                    n_pairs, n_inert = slab.n_pairs, int(slab.inert.sum())
                    if listening:
                        stopped = bool((yield SlabBegin(**where, n_pairs=n_pairs, n_inert=n_inert)))
                while not slab.done and not stopped:
                    did = slab.iterate()
                    event = self._iteration_event(where, slab, did, n_inert, meter if listening else None)
                    self._history.append(event)
                    if listening:
                        stopped = bool((yield event))
            finally:
                self._write_back(slab, alive, classes, check_rule=True)
            if stopped:
                break
        if listening:
            codes, counts = np.unique(self._codes[:, classes], return_counts=True)
            end = SlabEnd(
                **where,
                n_pairs=n_pairs,
                n_iter=slab.iteration,
                n_fail=int(self.n_fail_[:, classes].sum()),
                status_counts={STATUS[c]: int(n) for c, n in zip(codes, counts, strict=True)},
                seconds=time.perf_counter() - began,
            )
            stopped = bool((yield end)) or stopped
        return stopped

    def _iteration_event(
        self,
        where: dict[str, int],
        slab: Slab,
        did: Iteration,
        n_inert: int,
        meter: _LossMeter | None,
    ) -> IterationEnd:
        nan = float("nan")
        band, grad_max, loss = (nan,) * 5, nan, (nan, nan)
        if meter is not None:
            band, grad_max = slab.active_extremes()
            loss = meter.measure(slab)
        names = ("lam_min", "lam_q1", "lam_median", "lam_q3", "lam_max")
        return IterationEnd(
            **where,
            iteration=slab.iteration,
            n_pairs=slab.n_pairs,
            n_active=did.n_active,
            n_inert=n_inert,
            n_fail=did.n_fail,
            n_rejected=did.n_rejected,
            n_clipped=did.n_clipped,
            **dict(zip(names, band, strict=True)),
            loss_mean=loss[0],
            loss_max=loss[1],
            grad_max=grad_max,
            seconds=did.seconds,
            bytes_resident=rss_bytes() if meter is not None else 0,
        )

    # ------------------------------------------------------------------------ the fit's own parts

    def _where(self) -> tuple[torch.device, torch.dtype]:
        name = self.device if self.device is not None else ("cuda" if torch.cuda.is_available() else "cpu")
        device = torch.device(name)
        default = torch.float32 if device.type == "mps" else torch.float64
        return device, self.compute_dtype or default

    def _rules(self) -> Rules:
        return Rules(
            self.max_iter,
            self.tol,
            self.ridge,
            self.lam_init,
            self.lam_shrink,
            self.lam_grow,
            self.delta_logit,
            self.max_retries,
        )

    def _allocate(self, summary: LatentSummary) -> None:
        shape = summary.n_latents, summary.n_classes
        prior = np.clip(summary.class_counts / summary.n_rows, 1e-8, 1.0 - 1e-8)
        self.coef_ = np.zeros(shape)
        self.intercept_ = np.tile(np.log(prior) - np.log1p(-prior), (shape[0], 1))
        self.n_iter_ = np.zeros(shape, np.int32)
        self.n_fail_ = np.zeros(shape, np.int32)
        self.lambda_ = np.full(shape, float(self.lam_init))
        self._codes = np.zeros(shape, np.int8)
        self._codes[summary.n_events == 0] = DEAD
        self._history: list[IterationEnd] = []
        self.summary_ = summary
        self.n_features_in_ = shape[0]

    def _levels(self, summary: LatentSummary, x: Any, y: Any, alive: np.ndarray) -> list[_Level]:
        """The precisions a slab goes through: float64 alone, or float32 and then float64."""
        device, dtype = self._where()
        rules = self._rules()
        q = exact.rms(summary.moments()[0])[alive]
        if self.method == "events":
            columns = [c for _, c in latent_values(x, y, alive)]
            counts = np.concatenate([np.diff(c.indptr) for c in columns] or [[0]])
            values = np.concatenate([c.data for c in columns] or [[]]).astype(np.float64)
            weights = errors = None
            offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        else:
            block = summary.nodes()
            values, weights, errors = block.x, block.m, block.e
            # Dead latents have no nodes, so dropping their offsets leaves the others in place.
            offsets = np.concatenate([block.offsets[alive], [len(values)]])
        levels = []
        for precision in (dtype, torch.float64) if dtype != torch.float64 else (dtype,):
            finish = precision == torch.float64
            at = torch.device("cpu") if finish and device.type == "mps" else device
            state = torch.float32 if at.type == "mps" else torch.float64
            levels.append(
                _Level(
                    make_problem(summary, alive, device=at, dtype=state),
                    Nodes(offsets, values, weights, q, errors, device=at, dtype=precision),
                    rules if finish else rules._replace(tol=max(rules.tol, _FLOAT32_TOL)),
                )
            )
        return levels

    def _sizes(self, nodes: Nodes, n_classes: int) -> tuple[int, int]:
        """Classes per slab, and latents per block."""
        elements, ns = tuned_block_elements(nodes.device, nodes.dtype)
        per_latent = max(1.0, nodes.n_nodes / max(1, nodes.n_rows))
        if self.class_slab_size == "auto":
            per_class = max(1, nodes.n_nodes) * ns * 1e-9
            slab = min(max(1, int(_ITERATION_SECONDS / per_class)), -(-n_classes // _MIN_SLABS))
            slab = -(-n_classes // -(-n_classes // slab))  # slabs of equal size
        else:
            slab = min(int(self.class_slab_size), n_classes)
        if self.latent_block_size == "auto":
            return slab, max(1, round(elements / (per_latent * slab)))
        return slab, int(self.latent_block_size)

    def _write_back(
        self, slab: Slab, latents: np.ndarray, classes: np.ndarray, *, check_rule: bool = False
    ) -> None:
        """Copy a slab's state into the fitted attributes, with the final status of each pair."""
        status = slab.status.clone()
        done = status == CONVERGED
        status[done & self._separable(slab, done)] = SEPARABLE
        if check_rule:
            status[slab.inexact() & (done | (status == SEPARABLE))] = NEEDS_POLISH
        codes = status.cpu().numpy().reshape(slab.shape)
        at = np.ix_(latents, classes)
        q = slab.problem.q.double().cpu().numpy()[:, None]

        def array(t: torch.Tensor) -> np.ndarray:
            return t.cpu().numpy().reshape(slab.shape)

        self.coef_[at] = array(slab.w) / q
        self.intercept_[at] = array(slab.b)
        self.n_iter_[at] = array(slab.n_iter)
        self.n_fail_[at] = array(slab.n_fail)
        self.lambda_[at] = array(slab.lam)
        absent = (self.summary_.class_counts[classes] == 0)[None, :]
        self._codes[at] = np.where(absent & np.isin(codes, (CONVERGED, SEPARABLE)), ABSENT_CLASS, codes)

    def _separable(self, slab: Slab, done: torch.Tensor) -> torch.Tensor:
        """Pairs whose optimum exists only because of the ridge.

        Two proofs: no event of the (one-signed) latent belongs to the class, so that w → ∓∞ only ever
        helps; or the total loss is below log 2, so that each row's is, and every row is classified
        correctly. The total of σ' is below the total loss, which spares most pairs the logarithms.
        """
        problem, row = slab.problem, slab._row
        one_signed = (problem.x_low[row] >= 0) | (problem.x_high[row] <= 0)
        no_event = one_signed & (slab._sum == 0)
        data_curvature = (slab.h[0] - self.ridge) * problem.n
        maybe = torch.nonzero(done & ~no_event & (data_curvature < np.log(2.0))).squeeze(1)
        perfect = torch.zeros_like(no_event)
        if len(maybe):
            perfect[maybe] = slab.losses(maybe) * problem.n < np.log(2.0)
        return no_event | perfect

    def _polish(self, x: Any, y: Any, summary: LatentSummary, pairs: np.ndarray) -> None:
        device = torch.device("cpu") if self._where()[0].type == "mps" else self._where()[0]
        before_iter, before_fail = self.n_iter_.copy(), self.n_fail_.copy()
        for latents, classes, chosen, slab, at in exact.polish_pairs(
            x, y, summary, pairs, self.coef_, self.intercept_, self._rules(), device
        ):
            del at
            keep = {n: getattr(self, n)[np.ix_(latents, classes)] for n in _PER_PAIR}
            self._write_back(slab, latents, classes)
            for name, old in keep.items():  # pairs of the group that were finished before stay as they were
                block = getattr(self, name)[np.ix_(latents, classes)]
                getattr(self, name)[np.ix_(latents, classes)] = np.where(chosen, block, old)
        self.n_iter_[pairs] += before_iter[pairs]
        self.n_fail_[pairs] += before_fail[pairs]

    # -------------------------------------------------------------------------------- what came out

    @property
    def status_(self) -> np.ndarray:
        """Status of each pair, as text; shape [n_latents, n_classes]."""
        self._fitted()
        return np.array(STATUS)[self._codes]

    def _status_counts(self) -> dict[str, int]:
        codes, counts = np.unique(self._codes, return_counts=True)
        return {STATUS[c]: int(n) for c, n in zip(codes, counts, strict=True)}

    @property
    def history_(self) -> pd.DataFrame:
        """One row per iteration of the last fit."""
        self._fitted()
        columns = list(IterationEnd.__dataclass_fields__)
        return pd.DataFrame([{c: getattr(e, c) for c in columns} for e in self._history], columns=columns)

    def certify(self, x: Any, y: Any = None, pairs: Any = None) -> Certificate:
        """The exact gradient of the objective at the fitted parameters, on the raw events.

        Parameters
        ----------
        x, y
            As in `fit` (a generator cannot be read twice and is refused).
        pairs : array of int, shape [n_pairs, 2], optional
            (latent, class) pairs; default all.

        Returns
        -------
        Certificate
            ``grad_b``, ``grad_w`` and ``scaled``, the largest of \\|∂b\\| and \\|∂w\\|/q per pair.
        """
        self._fitted()
        return exact.exact_gradient(x, y, self.coef_, self.intercept_, self.ridge, pairs)


#: Fitted arrays with one entry per pair.
_PER_PAIR = ("coef_", "intercept_", "n_iter_", "n_fail_", "lambda_", "_codes")


class _Level(NamedTuple):
    """One precision of the solution: a node set, and the rules until which it is used."""

    problem: Problem
    nodes: Nodes
    rules: Rules

    def slab(self, classes: torch.Tensor, block_pairs: int, after: Slab | None) -> Slab:
        """The slab of `classes`, begun where the previous level has left it."""
        device = self.problem.q.device
        per_latent = max(1.0, self.nodes.n_nodes / max(1, self.nodes.n_rows))
        slab = Slab(
            self.problem,
            self.nodes,
            classes.to(device),
            self.rules,
            max(1, int(block_pairs * per_latent)),
            start=None if after is None else (after.b.to(device).double(), after.w.to(device).double()),
        )
        if after is not None:
            slab.iteration = after.iteration
            slab.n_iter += after.n_iter.to(device)
            slab.n_fail += after.n_fail.to(device)
        return slab


class _LossMeter:
    """Evaluates a slab's loss only as often as a small share of the fit's time pays for."""

    def __init__(self, began: float) -> None:
        self._began = began
        self._spent = 0.0
        self._last = 0.0

    def measure(self, slab: Slab) -> tuple[float, float]:
        start = time.perf_counter()
        if self._spent + self._last > _LOSS_SHARE * (start - self._began):
            return float("nan"), float("nan")
        losses = slab.losses()
        out = float(losses.mean()), float(losses.max())
        self._last = time.perf_counter() - start
        self._spent += self._last
        return out


def _drive(steps: Generator[Event, bool | None, None], emit: Emitter) -> None:
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
