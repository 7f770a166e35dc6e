"""How fast the probes are: ``python tests/bench/probe_speed.py [--quick] [--out runs/bench]``.

Beside the naive streaming solver, over growing data, per unit of work, and beside scikit-learn. All sides of
a ratio run in one process, taking turns. The naive solver runs a few iterations of a few slabs; what a whole
run would take is that many slabs × iterations times the measured seconds of one, and the table says so.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import numpy as np
import scipy.sparse as sp
from naive_probe import NaiveOptions, fit_naive
from probe_world import code_like_ade, interleaved, spread, timed, write_tables
from sklearn.linear_model import LogisticRegression

from interp.events import rss_bytes
from interp.probe import LatentSummary, Sparse1DProbe, measure_blocks
from interp.probe.exact import exact_gradient

Rows = list[dict[str, object]]


def beside_naive(x: sp.csr_array, y: np.ndarray, n_classes: int, repeats: int) -> Rows:
    """(a) The same data, to the end by us; 2 iterations of 2 slabs by the naive solver."""
    probes: list[Sparse1DProbe] = []
    iterations: list[float] = []

    def ours() -> float:
        probe = Sparse1DProbe()
        probes[:] = [probe]
        return timed(lambda: probe.fit(x, y, n_classes=n_classes))

    def naive() -> float:
        result = fit_naive(x, y, n_classes, max_slabs=2, max_iter=2)
        iterations.append(statistics.mean(r["seconds"] for r in result.records))
        return result.seconds

    ours()  # warm up: threads, auto sizes
    seconds = interleaved({"ours": ours, "naive": naive}, repeats)
    n_slabs = -(-n_classes // NaiveOptions().class_slab_size)
    mine, one = spread(seconds["ours"]), spread(iterations)
    grad = probes[0].certify(x, y)
    shape = {"rows": x.shape[0], "latents": x.shape[1], "classes": n_classes, "events": x.nnz}
    rows: Rows = [
        shape | {"what": "ours, whole fit", **mine, "ratio": 1.0, "worst exact gradient": grad.max()},
        shape | {"what": "naive, one iteration of one slab", **one},
    ]
    for n_iter in (30, 100):
        factor = n_slabs * n_iter
        whole = {k: v * factor for k, v in one.items()}
        what = f"naive, {n_slabs} slabs × {n_iter} iterations (extrapolated)"
        rows.append(shape | {"what": what, **whole, "ratio": whole["median"] / mine["median"]})
    return rows


def quality_of_naive(x: sp.csr_array, y: np.ndarray, n_classes: int, max_iter: int) -> Rows:
    """(a) Where each solver ends: one slab, run by the naive solver as long as people let it."""
    size = NaiveOptions().class_slab_size
    naive = fit_naive(x, y, n_classes, max_slabs=1, max_iter=max_iter)
    mine = Sparse1DProbe().fit(x, y, n_classes=n_classes)
    pairs = np.argwhere(np.ones((x.shape[1], min(size, n_classes)), bool))
    rows: Rows = []
    losses = {}
    for name, w, b, n_fail in (
        ("ours", mine.coef_, mine.intercept_, int(mine.n_fail_.sum())),
        ("naive", naive.coef, naive.intercept, sum(int(r["n_fail"]) for r in naive.records)),
    ):
        certificate = exact_gradient(x, y, w, b, mine.ridge, pairs)
        losses[name] = _objective(x, y, w, b, n_classes)[:, :size]
        excess = (losses[name] - losses["ours"]) / losses["ours"]
        rows.append(
            {
                "solver": name,
                "slab iterations": len(naive.records)
                if name == "naive"
                else int(mine.n_iter_[:, :size].max()),
                "worst exact gradient": certificate.max(),
                "largest loss above ours": float(excess.max()),
                "share > 0.1 % above": float((excess > 1e-3).mean()),
                "failed steps": n_fail,
            }
        )
    return rows


def _objective(x: sp.csr_array, y: np.ndarray, w: np.ndarray, b: np.ndarray, n_classes: int) -> np.ndarray:
    probe = Sparse1DProbe(max_iter=0).fit(x, y, n_classes=n_classes)
    prior = probe.intercept_.copy()
    probe.coef_[:], probe.intercept_[:] = w, b
    return probe.loss_matrix(x, y) + 0.5 * probe.ridge * (w**2 + (b - prior) ** 2)


def growth(sizes: list[int], n_latents: int, n_classes: int, per_row: int, repeats: int) -> Rows:
    """(b) More rows, the same latents: the pass grows, the solve does not."""
    rows: Rows = []
    for n_rows in sizes:
        x, y = code_like_ade(n_rows, n_latents, n_classes, per_row, seed=1)
        stages: dict[str, list[float]] = {"summary": [], "nodes": [], "solve": [], "polish": []}
        n_nodes, total = 0, []
        for _ in range(repeats):
            total.append(timed(lambda: Sparse1DProbe().fit(x, y, n_classes=n_classes)))  # noqa: B023
            events: list = []  # stages are told to a listener only, who costs a little
            Sparse1DProbe().fit(x, y, n_classes=n_classes, iteration_hook=events.append)
            n_nodes = events[0].n_nodes
            for name, values in stages.items():
                values.append(events[-1].stage_seconds[name])
        rows.append(
            {"rows": n_rows, "events": x.nnz, "nodes per latent": n_nodes / n_latents}
            | {f"{name} s": statistics.median(v) for name, v in stages.items()}
            | {"total s": statistics.median(total), "RSS GB": rss_bytes() / 1e9}
        )
    return rows


def per_unit(x: sp.csr_array, y: np.ndarray, n_classes: int, repeats: int) -> Rows:
    """(c) Nanoseconds per event and per (node, class)."""
    probe = Sparse1DProbe().fit(x, y, n_classes=n_classes)
    solve: list[float] = []

    def solve_seconds() -> float:
        again = Sparse1DProbe().fit_summary(probe.summary_)
        solve.append(float(again.history_["seconds"].sum()))
        return solve[-1]

    seconds = interleaved(
        {
            "summary pass": lambda: timed(lambda: LatentSummary(x.shape[1], n_classes).add(x, y)),
            "metrics (all)": lambda: timed(lambda: probe.metrics(x, y)),
            "confusion": lambda: timed(lambda: probe.confusion(x, y)),
            "certify all pairs": lambda: timed(lambda: probe.certify(x, y)),
            "solve": solve_seconds,
        },
        repeats,
    )
    rows: Rows = []
    for name, values in seconds.items():
        if name != "solve":
            ns = {k: v / x.nnz * 1e9 for k, v in spread(values).items()}
            rows.append({"what": name, "unit": "ns per event", **ns})
    counts = np.diff(probe.summary_.nodes().offsets)
    evaluations = float((probe.n_iter_ * counts[:, None]).sum())
    ns = {k: v / evaluations * 1e9 for k, v in spread(solve).items()}
    rows.append({"what": "solve, all iterations", "unit": "ns per (node, class) evaluation", **ns})
    best = min(
        measure_blocks(
            probe.summary_,
            class_slab_sizes=[8, 19],
            latent_block_sizes=[2, 4, 8, 16],
            repeats=max(3, repeats),
        ),
        key=lambda r: r["ns_per_eval"],
    )
    rows.append(
        {
            "what": "bare evaluation, best block: "
            f"{best['class_slab_size']} classes × {best['latent_block_size']} latents",
            "unit": "ns per (node, class) evaluation",
            "median": best["ns_per_eval"],
            "low": best["ns_low"],
            "high": best["ns_high"],
        }
    )
    return rows


def beside_sklearn(x: sp.csr_array, y: np.ndarray, n_classes: int, n_pairs: int) -> Rows:
    """(d) One LogisticRegression per pair, a sample of them, on the same objective but for b's ridge."""
    rng = np.random.default_rng(0)
    counts = np.bincount(x.indices, minlength=x.shape[1])
    latents = rng.choice(np.flatnonzero(counts >= 10), n_pairs)
    classes = rng.choice(np.flatnonzero(np.bincount(y, minlength=n_classes) >= 10), n_pairs)
    columns = sp.csc_array(x)
    seconds, worse = [], []
    probe = Sparse1DProbe()
    mine = timed(lambda: probe.fit(x, y, n_classes=n_classes))
    for l, c in zip(latents, classes, strict=True):
        column = columns[:, [l]].toarray().astype(np.float64)
        own = (y == c).astype(int)
        model = LogisticRegression(C=1.0 / (len(y) * probe.ridge), solver="newton-cholesky", tol=1e-6)
        start = time.perf_counter()
        model.fit(column, own)
        seconds.append(time.perf_counter() - start)
        z = [model.intercept_[0] + model.coef_[0, 0] * column[:, 0]]
        z.append(probe.intercept_[l, c] + probe.coef_[l, c] * column[:, 0])
        theirs, ours = (float(np.mean(np.logaddexp(0.0, v) - own * v)) for v in z)
        worse.append(ours / theirs - 1.0)
    n_all = x.shape[1] * n_classes
    whole = statistics.mean(seconds) * n_all
    excess = {"our loss above its loss, at worst (relative)": max(worse)}
    extrapolated = {"pairs": n_all, "seconds": whole, "ratio": whole / mine}
    return [
        {"what": "ours, all pairs", "pairs": n_all, "seconds": mine, "ratio": 1.0} | excess,
        {"what": "scikit-learn, sampled", "pairs": n_pairs, "seconds": sum(seconds)},
        {"what": "scikit-learn, all pairs (extrapolated)"} | extrapolated,
    ]


def main(arguments: list[str] | None = None) -> str:
    """Measure, write ``probe_speed.md`` and its CSV files, return the Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="seconds, to see that it works")
    parser.add_argument("--out", type=Path, default=Path("runs/bench"))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--events", type=float, default=2e6, help="size of the comparison")
    options = parser.parse_args(arguments)
    n_classes, n_latents, repeats, per_row = 151, 1024, options.repeats, 100
    n_rows, sizes, pairs, quality = int(options.events / per_row), [10_000, 40_000, 160_000], 60, 100
    if options.quick:
        n_classes, n_latents, repeats, per_row = 9, 40, 1, 12
        n_rows, sizes, pairs, quality = 600, [300, 600], 4, 5
    x, y = code_like_ade(n_rows, n_latents, n_classes, per_row)
    small = code_like_ade(max(600, n_rows // 5), max(40, n_latents // 4), n_classes, per_row, seed=2)
    sections = {
        "a. Beside the naive solver": beside_naive(x, y, n_classes, repeats),
        "a. Where they end, first slab": quality_of_naive(*small, n_classes, quality),
        "b. Growth with rows": growth(sizes, n_latents // 2, n_classes, per_row, repeats),
        "c. Per unit of work": per_unit(x, y, n_classes, repeats),
        "d. Beside scikit-learn": beside_sklearn(x, y, n_classes, pairs),
    }
    return write_tables(options.out, "probe_speed", "Speed of the probes", sections)


if __name__ == "__main__":
    print(main())
