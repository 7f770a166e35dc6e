"""Made-up sparse codes of the shape that people probe, and tables of what was measured on them."""

from __future__ import annotations

import csv
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import scipy.sparse as sp
import torch

__all__ = ["code_like_ade", "interleaved", "machine", "write_tables"]


def code_like_ade(
    n_rows: int, n_latents: int, n_classes: int, per_row: int, seed: int = 0
) -> tuple[sp.csr_array, np.ndarray]:
    """A code with the statistics of ADE20K patches under a sparse autoencoder.

    Very unequal classes; latents from rare to on a third of the rows, a thirtieth of them dead; about
    `per_row` events a row, a fifth of them in latents that prefer the row's class; values log-normal with
    median 0.8 and a tail to about 50. Float32.
    """
    rng = np.random.default_rng(seed)
    share = 1.0 / (1.0 + np.arange(n_classes)) ** 1.1
    y = rng.choice(n_classes, n_rows, p=share / share.sum())
    alive = max(1, n_latents - n_latents // 30)
    rows = np.repeat(np.arange(n_rows, dtype=np.int32), per_row)
    latents = (alive * rng.random(len(rows)) ** 2).astype(np.int32)
    own = rng.random(len(rows)) < 0.2
    per_class = max(1, alive // n_classes)
    favourite = (y[rows[own]] * per_class + rng.integers(0, per_class, own.sum())) % alive
    latents[own] = favourite
    values = np.exp(rng.standard_normal(len(rows), dtype=np.float32) - 0.2)
    values[own] *= 1.5
    x = sp.csr_array((values, (rows, latents)), shape=(n_rows, n_latents))
    x.sum_duplicates()
    return x, y


def interleaved(jobs: dict[str, Callable[[], float]], repeats: int) -> dict[str, list[float]]:
    """Seconds of each job, one after the other, `repeats` times over: what disturbs one disturbs all.

    A job returns its own seconds.
    """
    out: dict[str, list[float]] = {name: [] for name in jobs}
    for _ in range(repeats):
        for name, job in jobs.items():
            out[name].append(job())
    return out


def timed(job: Callable[[], object]) -> float:
    """Seconds that a call takes."""
    start = time.perf_counter()
    job()
    return time.perf_counter() - start


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, least and most."""
    return {"median": statistics.median(values), "low": min(values), "high": max(values)}


def machine() -> str:
    return (
        f"{platform.machine()}, {torch.get_num_threads()} threads, Python {platform.python_version()}, "
        f"NumPy {np.__version__}, torch {torch.__version__}"
    )


def write_tables(out: Path, name: str, title: str, sections: dict[str, list[dict[str, object]]]) -> str:
    """Write ``name.md`` with all sections and a CSV per section; returns the Markdown.

    A section is a list of rows, each a dict column → value.
    """
    out.mkdir(parents=True, exist_ok=True)
    lines = [f"# {title}", "", machine(), ""]
    for section, rows in sections.items():
        columns = list(dict.fromkeys(c for row in rows for c in row))
        lines += [f"## {section}", "", "| " + " | ".join(columns) + " |", "|" + " --- |" * len(columns)]
        lines += ["| " + " | ".join(_cell(row.get(c, "")) for c in columns) + " |" for row in rows]
        lines.append("")
        slug = "".join(c if c.isalnum() else "-" for c in section.lower()).strip("-")
        with open(out / f"{name}_{slug}.csv", "w", newline="") as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows(rows)
    text = "\n".join(lines)
    (out / f"{name}.md").write_text(text)
    return text


def _cell(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
