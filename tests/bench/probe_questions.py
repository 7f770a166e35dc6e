"""Three open questions, with numbers: ``python tests/bench/probe_questions.py [--quick] [--out runs/bench]``.

1. Is there a cheaper scale of a latent than the RMS of its non-zeros with the same stability?
2. Does mixed precision (parameters float32, sums float64) remove the failing steps?
3. What is each idea for the streaming solver worth alone?

Asked of the naive solver, where they arose; our own fit stands beside it. It damps by the Hessian's own
diagonal, so that the scale of a latent plays no part in its steps, only in the unit of `tol`.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path

import numpy as np
import scipy.sparse as sp
import torch
from naive_probe import IDEAS, NaiveResult, fit_naive, unit_of
from probe_world import code_like_ade, interleaved, spread, timed, write_tables

from interp.probe import Sparse1DProbe
from interp.probe.exact import exact_gradient

Rows = list[dict[str, object]]
F32, F64 = torch.float32, torch.float64


class World:
    """Data, one slab of classes, and the optimum to compare with."""

    def __init__(self, x: sp.csr_array, y: np.ndarray, n_classes: int, max_iter: int) -> None:
        self.x, self.y, self.n_classes, self.max_iter = x, y, n_classes, max_iter
        self.best = Sparse1DProbe(tol=1e-8).fit(x, y, n_classes=n_classes)

    def run(self, **changes: object) -> NaiveResult:
        options = {"max_slabs": 1, "max_iter": self.max_iter} | changes
        return fit_naive(self.x, self.y, self.n_classes, **options)

    def judge(self, result: NaiveResult, n_solved: int = 8) -> dict[str, object]:
        """Iterations, failed steps, and how far from the optimum the first slab ended."""
        n_solved = min(n_solved, self.n_classes)
        pairs = np.argwhere(np.ones((self.x.shape[1], n_solved), bool))
        grad = np.asarray(exact_gradient(self.x, self.y, result.coef, result.intercept, 1e-8, pairs))
        at_optimum = np.abs(result.coef - self.best.coef_)[:, :n_solved]
        return {
            "iterations": len(result.records),
            "failed steps": sum(int(r["n_fail"]) for r in result.records),
            "last mean λ": result.records[-1]["lam_mean"],
            "worst gradient": float(grad.max()),
            "share of gradients > 1e-5": float((grad > 1e-5).mean()),
            "median slope error": float(np.median(at_optimum)),
        }


def scales(world: World, repeats: int) -> Rows:
    """Question 1: the same solver, damped by λ·diag(1, q²) with q by three statistics."""
    rows: Rows = []
    for how in ("rms", "mean_abs", "p95"):
        result = world.run(unit=how, skip_inert=True, param_dtype=F64, sum_dtype=F64)
        cost = [timed(lambda: unit_of(world.x, how)) for _ in range(repeats)]  # noqa: B023
        row = (
            {"q": how}
            | world.judge(result)
            | {"ns per event to find q": spread(cost)["median"] / world.x.nnz * 1e9}
        )
        rows.append(row)
    mine = Sparse1DProbe().fit(world.x, world.y, n_classes=world.n_classes)
    first = mine.n_iter_[:, :8]
    certificate = mine.certify(world.x, world.y)
    rows.append(
        {
            "q": "ours (damping by diag H)",
            "iterations": int(first.max()),
            "failed steps": int(mine.n_fail_.sum()),
            "worst gradient": certificate.max(),
            "share of gradients > 1e-5": float((np.asarray(certificate) > 1e-5).mean()),
            "median slope error": float(np.median(np.abs(mine.coef_ - world.best.coef_)[:, :8])),
            "ns per event to find q": 0.0,  # it is a moment of the summary
        }
    )
    return rows


def precisions(world: World, repeats: int) -> Rows:
    """Question 2: parameters and sums in float32 or float64, four ways, inert pairs counted and not."""
    rows: Rows = []
    names = {F32: "float32", F64: "float64"}
    for skip_inert in (False, True):
        kinds = {(p, s): {"param_dtype": p, "sum_dtype": s} for p in (F32, F64) for s in (F32, F64)}
        results = {}

        def job(kind: tuple, skip: bool = skip_inert, kinds: dict = kinds, results: dict = results) -> float:
            results[kind] = world.run(skip_inert=skip, **kinds[kind])
            return results[kind].seconds / len(results[kind].records)

        seconds = interleaved({k: (lambda k=k: job(k)) for k in kinds}, repeats)
        for kind in kinds:
            what = {"parameters": names[kind[0]], "sums": names[kind[1]]}
            rows.append(
                what
                | {"inert pairs": "skipped" if skip_inert else "kept"}
                | world.judge(results[kind])
                | {"s per iteration": statistics.median(seconds[kind])}
            )
    for dtype in (F32, F64):
        mine = Sparse1DProbe(compute_dtype=dtype)
        taken = timed(lambda mine=mine: mine.fit(world.x, world.y, n_classes=world.n_classes))
        stage = "float32, then float64" if dtype == F32 else "float64"
        rows.append(
            {
                "parameters": "ours",
                "sums": stage,
                "iterations": int(mine.n_iter_.max()),
                "failed steps": int(mine.n_fail_.sum()),
                "worst gradient": mine.certify(world.x, world.y).max(),
                "s whole fit": taken,
            }
        )
    return rows


def ideas(world: World, n_iter: int, repeats: int) -> Rows:
    """Question 3: each repair alone, seconds per (class, iteration) beside the unrepaired solver."""
    results: dict[str, NaiveResult] = {}

    def job(name: str) -> float:
        results[name] = world.run(max_iter=n_iter, **IDEAS[name])
        n_slab = IDEAS[name].get("class_slab_size", 8)
        n_done = min(int(n_slab), world.n_classes)  # type: ignore[call-overload]
        return results[name].seconds / len(results[name].records) / n_done

    seconds = interleaved({name: (lambda name=name: job(name)) for name in IDEAS}, repeats)
    base = statistics.median(seconds["as published"])
    rows: Rows = []
    for name in IDEAS:
        full = world.run(**IDEAS[name])
        judged = world.judge(full, int(IDEAS[name].get("class_slab_size", 8)))  # type: ignore[call-overload]
        rows.append(
            {"idea, alone": name}
            | {f"s per class and iteration, {k}": v for k, v in spread(seconds[name]).items()}
            | {"speed-up": base / statistics.median(seconds[name])}
            | judged
        )
    return rows


def main(arguments: list[str] | None = None) -> str:
    """Measure, write ``probe_questions.md`` and its CSV files, return the Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="seconds, to see that it works")
    parser.add_argument("--out", type=Path, default=Path("runs/bench"))
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args(arguments)
    shape, max_iter, n_iter, repeats = (5_000, 256, 151, 60), 60, 4, options.repeats
    if options.quick:
        shape, max_iter, n_iter, repeats = (400, 30, 9, 10), 4, 2, 1
    n_rows, n_latents, n_classes, per_row = shape
    x, y = code_like_ade(n_rows, n_latents, n_classes, per_row, seed=3)
    # Stored in another precision than it is computed in, so that there is something to cast.
    world = World(x.astype(np.float64), y, n_classes, max_iter)
    sections = {
        "1. Scale of a latent": scales(world, repeats),
        "2. Precision": precisions(world, repeats),
        "3. Each idea alone": ideas(world, n_iter, repeats),
    }
    return write_tables(options.out, "probe_questions", "Open questions, answered", sections)


if __name__ == "__main__":
    print(main())
