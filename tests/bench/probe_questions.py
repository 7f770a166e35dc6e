"""Three open questions, with numbers: ``python tests/bench/probe_questions.py [--quick]``.

1. Is there a cheaper scale of a latent than the RMS of its non-zeros with the same stability?
2. Does mixed precision (parameters float32, sums float64) remove the failing steps?
3. What is each idea for the streaming solver worth alone?

Asked of the naive solver, where they arose; our own fit stands beside it. It damps by the Hessian's own
diagonal, so that the scale of a latent plays no part in its steps, only in the unit of `tol`. Answers 1 and
2 are counts and stand on a page of their own, ``probe_questions.md``; answer 3 is in the table of all.
"""

from __future__ import annotations

import csv
import statistics
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import scipy.sparse as sp
import torch
from naive_probe import IDEAS, NaiveResult, fit_naive, unit_of
from probe_world import code_like_ade
from table import Row, finish, interleaved, machine, parse, parser, ratio, timed

from interp.probe import Sparse1DProbe
from interp.probe.exact import exact_gradient

Rows = list[dict[str, object]]
IDEA = "Streaming solver: each repair alone"
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
            | {"ns per event to find q": statistics.median(cost) / world.x.nnz * 1e9}
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


def precisions(world: World) -> Rows:
    """Question 2: parameters and sums in float32 or float64, four ways, inert pairs counted and not."""
    rows: Rows = []
    names = {F32: "float32", F64: "float64"}
    for skip_inert in (False, True):
        for parameters in (F32, F64):
            for sums in (F32, F64):
                result = world.run(skip_inert=skip_inert, param_dtype=parameters, sum_dtype=sums)
                per_iteration = statistics.median(r["seconds"] for r in result.records)
                rows.append(
                    {"parameters": names[parameters], "sums": names[sums]}
                    | {"inert pairs": "skipped" if skip_inert else "kept"}
                    | world.judge(result)
                    | {"s per iteration": per_iteration}
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


def ideas(world: World, n_iter: int, repeats: int) -> list[Row]:
    """Question 3: the unrepaired solver beside each repair alone, per class and iteration."""

    def width(name: str) -> int:
        return min(int(IDEAS[name].get("class_slab_size", 8)), world.n_classes)  # type: ignore[call-overload]

    def job(name: str) -> float:
        result = world.run(max_iter=n_iter, tol=0.0, **IDEAS[name])
        return result.seconds / len(result.records) / width(name)

    seconds = interleaved({name: (lambda name=name: job(name)) for name in IDEAS}, repeats)
    usual = "as published"
    judged = {name: world.judge(world.run(**IDEAS[name]), width(name)) for name in IDEAS}
    before = judged[usual]
    rows = []
    for name in IDEAS:
        if name == usual:
            continue
        after = judged[name]
        note = (
            f"per class and iteration; failed steps {before['failed steps']} → {after['failed steps']}, "
            f"iterations {before['iterations']} → {after['iterations']}"
        )
        rows.append(ratio(IDEA, f"{usual} ÷ {name}", seconds[usual], seconds[name], note=note))
    return rows


def write_page(out: Path, sections: dict[str, Rows]) -> str:
    """Write ``probe_questions.md`` with all sections and a CSV file per section; returns the Markdown."""
    out.mkdir(parents=True, exist_ok=True)
    lines = ["# Open questions, answered", "", machine(), ""]
    for section, rows in sections.items():
        columns = list(dict.fromkeys(c for row in rows for c in row))
        lines += [f"## {section}", "", "| " + " | ".join(columns) + " |", "|" + " --- |" * len(columns)]
        lines += ["| " + " | ".join(_cell(row.get(c, "")) for c in columns) + " |" for row in rows]
        lines.append("")
        slug = "".join(c if c.isalnum() else "-" for c in section.lower()).strip("-")
        with open(out / f"probe_questions_{slug}.csv", "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows(rows)
    text = "\n".join(lines)
    (out / "probe_questions.md").write_text(text, encoding="utf-8")
    return text


def _cell(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def main(arguments: Sequence[str] | None = None) -> list[Row]:
    """Measure, and write ``probe_questions.md``, ``probe_questions.csv`` and the table."""
    options = parse(parser(__doc__), arguments)
    shape, max_iter, n_iter, repeats = (5_000, 256, 151, 60), 60, 4, options.repeats
    if options.quick:
        shape, max_iter, n_iter = (400, 30, 9, 10), 4, 2
    n_rows, n_latents, n_classes, per_row = shape
    x, y = code_like_ade(n_rows, n_latents, n_classes, per_row, seed=3)
    # Stored in another precision than it is computed in, so that there is something to cast.
    world = World(x.astype(np.float64), y, n_classes, max_iter)
    sections = {"1. Scale of a latent": scales(world, repeats), "2. Precision": precisions(world)}
    print(write_page(options.out, sections))
    return finish("probe_questions", ideas(world, n_iter, repeats), options)


if __name__ == "__main__":
    main()
