"""How fast the probes are: ``python tests/bench/probe_speed.py [--quick]``.

Beside the naive streaming solver, over growing data, per unit of work, and beside scikit-learn. All sides of
a ratio run in one process, taking turns. The naive solver runs two iterations of a few slabs, and the second
counts (the first has a pass more); what a whole run would take is that many slabs × iterations times the
measured seconds of one, and the table says so.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from unittest import mock

import numpy as np
import scipy.sparse as sp
from naive_probe import NaiveOptions, fit_naive
from probe_world import code_like_ade
from sklearn.linear_model import LogisticRegression
from table import Row, finish, interleaved, parse, parser, quantity, ratio, timed

from interp.events import FitBegin, FitEnd
from interp.probe import LatentSummary, Sparse1DProbe, measure_blocks
from interp.probe.exact import exact_gradient

OTHERS = "Probe: others ÷ ours"
ENDS = "Probe: where solvers end"
GROWTH = "Probe: whole fit, growing data"
UNIT = "Probe: per unit of work"

Data = tuple[sp.csr_array, np.ndarray]


def size_of(x: sp.csr_array) -> str:
    return f"{x.nnz / 1e6:.3g}M events × {x.shape[1]} latents"


def beside_naive(x: sp.csr_array, y: np.ndarray, n_classes: int, max_slabs: int, repeats: int) -> list[Row]:
    """The same data, to the end by us; two iterations of a few slabs by the naive solver."""
    iterations: list[float] = []

    def ours() -> float:
        return timed(lambda: Sparse1DProbe().fit(x, y, n_classes=n_classes))

    def naive() -> float:
        result = fit_naive(x, y, n_classes, max_slabs=max_slabs, max_iter=2, tol=0.0)
        iterations.append(statistics.mean(r["seconds"] for r in result.records if r["iteration"] == 2))
        return result.seconds

    ours()  # warm up: threads, auto sizes
    seconds = interleaved({"ours": ours, "naive": naive}, repeats)["ours"]
    n_slabs = -(-n_classes // NaiveOptions().class_slab_size)
    rows = []
    for n_iter in (30, 100):
        what = f"naive streaming solver, {n_iter} iterations ÷ ours, {x.nnz / 1e6:.3g}M events"
        note = (
            f"{size_of(x)} × {n_classes} classes; {n_slabs} slabs × {n_iter} iterations, extrapolated from "
            f"the second iteration of {max_slabs} slab{'s' * (max_slabs > 1)}"
        )
        rows.append(ratio(OTHERS, what, iterations, seconds, factor=n_slabs * n_iter, note=note))
    return rows


def quality_of_naive(x: sp.csr_array, y: np.ndarray, n_classes: int, max_iter: int) -> list[Row]:
    """Where each solver ends: one slab, run by the naive solver as long as people let it."""
    size = NaiveOptions().class_slab_size
    naive = fit_naive(x, y, n_classes, max_slabs=1, max_iter=max_iter)
    mine = Sparse1DProbe().fit(x, y, n_classes=n_classes)
    pairs = np.argwhere(np.ones((x.shape[1], min(size, n_classes)), bool))
    rows: list[Row] = []
    losses = {}
    for name, w, b, n_fail, n_iter in (
        ("ours", mine.coef_, mine.intercept_, mine.n_fail_[:, :size].sum(), mine.n_iter_[:, :size].max()),
        ("naive", naive.coef, naive.intercept, sum(r["n_fail"] for r in naive.records), len(naive.records)),
    ):
        certificate = exact_gradient(x, y, w, b, mine.ridge, pairs)
        losses[name] = _objective(x, y, w, b, n_classes)[:, :size]
        note = f"{size_of(x)}, first slab of {n_classes} classes, after {n_iter} iterations"
        rows.append(Row(ENDS, f"{name}: largest exact gradient", float(certificate.max()), "", note=note))
        rows.append(Row(ENDS, f"{name}: failed steps", float(n_fail), ""))
    excess = (losses["naive"] - losses["ours"]) / losses["ours"]
    note = f"{(excess > 1e-3).mean():.1%} of the pairs are more than 0.1 % above"
    rows.append(Row(ENDS, "naive: loss above ours, relative, at worst", float(excess.max()), "", note=note))
    return rows


def _objective(x: sp.csr_array, y: np.ndarray, w: np.ndarray, b: np.ndarray, n_classes: int) -> np.ndarray:
    probe = Sparse1DProbe(max_iter=0).fit(x, y, n_classes=n_classes)
    prior = probe.intercept_.copy()
    probe.coef_[:], probe.intercept_[:] = w, b
    return probe.loss_matrix(x, y) + 0.5 * probe.ridge * (w**2 + (b - prior) ** 2)


def growth(what: str, worlds: dict[int, Data], classes: Sequence[int], repeats: int) -> list[Row]:
    """Whole fits of growing data in turns, each beside the smallest.

    The keys of `worlds` are sizes: number of events, classes or latents.
    """

    def fit(data: Data, n_classes: int) -> float:
        return timed(lambda: Sparse1DProbe().fit(*data, n_classes=n_classes))

    jobs = {
        size: (lambda data=data, c=c: fit(data, c))
        for (size, data), c in zip(worlds.items(), classes, strict=True)
    }
    for job in jobs.values():
        job()
    seconds = interleaved(jobs, repeats)
    sizes = list(worlds)
    rows = []
    for size, n_classes in zip(sizes, classes, strict=True):
        x = worlds[size][0]
        note = f"{size_of(x)} × {n_classes} classes; {_stages(*worlds[size], n_classes)}"
        if size == sizes[0]:
            first = f"whole fit, {_short(size)} {what}"
            rows.append(quantity(GROWTH, first, seconds[size], "s", note=note))
            continue
        name = f"{_short(size)} ÷ {_short(sizes[0])} {what}"
        rows.append(ratio(GROWTH, name, seconds[size], seconds[sizes[0]], note=note))
    return rows


def _short(n: int) -> str:
    return f"{n / 1e6:.3g}M" if n >= 100_000 else f"{n:,}"


def _stages(x: sp.csr_array, y: np.ndarray, n_classes: int) -> str:
    """Where a fit's time goes; told to a listener only, who costs a little."""
    events: list = []
    Sparse1DProbe().fit(x, y, n_classes=n_classes, iteration_hook=events.append)
    begin = next(e for e in events if isinstance(e, FitBegin))
    end = next(e for e in events if isinstance(e, FitEnd))
    stages = ", ".join(f"{k} {v:.2f} s" for k, v in end.stage_seconds.items())
    return f"{begin.n_nodes / max(1, x.shape[1]):.0f} nodes per latent; {stages}"


def per_unit(x: sp.csr_array, y: np.ndarray, n_classes: int, repeats: int, certify: bool) -> list[Row]:
    """Nanoseconds per event and per (node, class)."""
    probe = Sparse1DProbe().fit(x, y, n_classes=n_classes)

    def solve() -> float:
        return float(Sparse1DProbe().fit_summary(probe.summary_).history_["seconds"].sum())

    def rankings() -> float:
        with mock.patch("interp.probe.metrics.block_losses", lambda block, y, coef, *_: np.zeros_like(coef)):
            return timed(lambda: probe.metrics(x, y))

    jobs = {
        "summary pass": lambda: timed(lambda: LatentSummary(x.shape[1], n_classes).add(x, y)),
        "confusion of all pairs": lambda: timed(lambda: probe.confusion(x, y)),
        "AUROC, AP, F1 and confusion of all pairs": rankings,
        "all metrics of all pairs": lambda: timed(lambda: probe.metrics(x, y)),
        "solve": solve,
    }
    if certify:
        jobs["exact gradients of all pairs"] = lambda: timed(lambda: probe.certify(x, y))
    seconds = interleaved(jobs, repeats)
    size = f"{x.nnz / 1e6:.3g}M events"
    rows = [
        quantity(
            UNIT, f"{name}, {size}", values, "ns per event", scale=1e9 / x.nnz, note=f"{x.shape[1]} latents"
        )
        for name, values in seconds.items()
        if name != "solve"
    ]
    counts = np.diff(probe.summary_.nodes().offsets)
    evaluations = float((probe.n_iter_ * counts[:, None]).sum())
    unit = "ns per (node, class)"
    rows.append(
        quantity(
            UNIT,
            f"solve, all iterations, {size}",
            seconds["solve"],
            unit,
            scale=1e9 / evaluations,
            note=f"{probe.n_iter_.mean():.1f} iterations on average, steps and book-keeping included",
        )
    )
    grid = [
        measure_blocks(
            probe.summary_,
            class_slab_sizes=[8, 19],
            latent_block_sizes=[2, 4, 8, 16],
            repeats=3,
            max_latents=x.shape[1],
        )
        for _ in range(repeats)
    ]
    costs = [[setting["ns_per_eval"] for setting in settings] for settings in zip(*grid, strict=True)]
    best = min(range(len(costs)), key=lambda k: statistics.median(costs[k]))
    block = grid[0][best]
    note = f"best block: {block['class_slab_size']} classes × {block['latent_block_size']} latents"
    rows.append(quantity(UNIT, f"bare evaluation, {size}", costs[best], unit, note=note))
    return rows


def beside_sklearn(x: sp.csr_array, y: np.ndarray, n_classes: int, n_pairs: int, repeats: int) -> list[Row]:
    """One LogisticRegression per pair, a sample of them, on the same objective but for b's ridge."""
    rng = np.random.default_rng(0)
    counts = np.bincount(x.indices, minlength=x.shape[1])
    latents = rng.choice(np.flatnonzero(counts >= 10), n_pairs)
    classes = rng.choice(np.flatnonzero(np.bincount(y, minlength=n_classes) >= 10), n_pairs)
    columns = sp.csc_array(x)
    probe = Sparse1DProbe().fit(x, y, n_classes=n_classes)
    excess: list[float] = []

    def theirs() -> float:
        seconds = 0.0
        for l, c in zip(latents, classes, strict=True):
            column = columns[:, [l]].toarray().astype(np.float64)
            own = (y == c).astype(int)
            model = LogisticRegression(C=1.0 / (len(y) * probe.ridge), solver="newton-cholesky", tol=1e-6)
            start = time.perf_counter()
            model.fit(column, own)
            seconds += time.perf_counter() - start
            z = [model.intercept_[0] + model.coef_[0, 0] * column[:, 0]]
            z.append(probe.intercept_[l, c] + probe.coef_[l, c] * column[:, 0])
            other, mine = (float(np.mean(np.logaddexp(0.0, v) - own * v)) for v in z)
            excess.append(mine / other - 1.0)
        return seconds

    def ours() -> float:
        return timed(lambda: Sparse1DProbe().fit(x, y, n_classes=n_classes))

    seconds = interleaved({"ours": ours, "theirs": theirs}, repeats)
    n_all = x.shape[1] * n_classes
    note = f"{size_of(x)} × {n_classes} classes; extrapolated from {n_pairs} of {n_all:,} pairs"
    what = f"scikit-learn, pair by pair ÷ ours, {x.nnz / 1e6:.3g}M events"
    return [
        ratio(OTHERS, what, seconds["theirs"], seconds["ours"], factor=n_all / n_pairs, note=note),
        Row(
            ENDS,
            "ours: loss above scikit-learn's, relative, at worst",
            max(excess),
            "",
            note=f"{n_pairs} pairs; below zero where ours is lower",
        ),
    ]


def main(arguments: Sequence[str] | None = None) -> list[Row]:
    """Measure, and write ``probe_speed.csv`` and the table."""
    options = parse(parser(__doc__), arguments)
    repeats, few = options.repeats, max(2, options.repeats // 2)
    n_classes, n_rows, n_latents, pairs, quality = 151, 20_000, 1024, 60, 100
    rows_of, middle, per_row = [10_000, 40_000, 160_000], 512, 100
    class_counts, latent_counts, n_grown, thin = [38, 151, 604], [128, 512, 2048], 40_000, 40
    if options.quick:
        n_classes, n_rows, n_latents, pairs, quality = 9, 600, 40, 4, 5
        rows_of, middle, per_row = [300, 600], 30, 12
        class_counts, latent_counts, n_grown, thin = [5, 9], [20, 40], 300, 8
    x, y = code_like_ade(n_rows, n_latents, n_classes, per_row)
    small = code_like_ade(max(600, n_rows // 5), max(40, n_latents // 4), n_classes, per_row, seed=2)
    grown = [code_like_ade(n, middle, n_classes, per_row, seed=1) for n in rows_of]
    large = grown[-1]
    by_classes = {c: code_like_ade(n_grown, middle, c, per_row, seed=5) for c in class_counts}
    by_latents = {l: code_like_ade(n_grown, l, n_classes, thin, seed=6) for l in latent_counts}
    same = [n_classes] * 3
    rows = [
        *beside_naive(x, y, n_classes, 2, repeats),
        *beside_naive(*large, n_classes, 1, few),
        *beside_sklearn(x, y, n_classes, pairs, repeats),
        *quality_of_naive(*small, n_classes, quality),
        *growth("events", {x.nnz: (x, y) for x, y in grown}, same[: len(grown)], repeats),
        *growth("classes", by_classes, class_counts, few),
        *growth("latents", by_latents, same[: len(by_latents)], few),
        *per_unit(x, y, n_classes, repeats, certify=True),
        *per_unit(*large, n_classes, repeats, certify=False),
    ]
    return finish("probe_speed", rows, options)


if __name__ == "__main__":
    main()
