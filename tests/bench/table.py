"""One table of all benchmarks: what a row is, how things are measured in turns, and the page of them all.

Each benchmark writes its rows to ``<name>.csv`` and then makes ``bench.csv``, ``bench.md`` and ``bench.png``
anew from the files that are there, so that one benchmark run alone makes a table too. A later run of a
benchmark takes the place of its earlier one.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

__all__ = [
    "BENCHES",
    "Row",
    "collect",
    "finish",
    "folder",
    "interleaved",
    "machine",
    "missing",
    "parse",
    "parser",
    "quantity",
    "ratio",
    "timed",
]

#: The benchmarks, in the order of the table. The first is `interp bench seed-scale`, which runs on its own.
BENCHES = (
    "seed_scale",
    "probe_speed",
    "probe_questions",
    "capture_speed",
    "lens_mlp",
    "lens_train",
    "lens_bank",
    "live",
)
FOLDER = Path("runs/bench")
RATIO = "×"


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes
    ----------
    group, what : str
        What is measured; a ratio is called ``A ÷ B``.
    value : float or None
        None where nothing could be measured; `note` says why.
    unit : str
        ``×`` for a ratio.
    low, high : float or None
        Least and most of the repeats; of a ratio, of the quotients of the single turns.
    n : int
        Repeats.
    seconds, beside : float or None
        The two medians whose quotient a ratio is.
    note : str
    """

    group: str
    what: str
    value: float | None
    unit: str
    low: float | None = None
    high: float | None = None
    n: int = 1
    seconds: float | None = None
    beside: float | None = None
    note: str = ""


@dataclass(frozen=True)
class Run:
    """The rows of one benchmark, when they were measured and on what."""

    bench: str
    rows: list[Row]
    date: str
    machine: str
    quick: bool = field(default=False)


# ------------------------------------------------------------------------------------- measuring


def timed(job: Callable[[], object]) -> float:
    """Seconds that a call takes."""
    start = time.perf_counter()
    job()
    return time.perf_counter() - start


def interleaved(jobs: dict[str, Callable[[], float]], repeats: int) -> dict[str, list[float]]:
    """Seconds of each job, in turns, `repeats` times over: what disturbs one disturbs all.

    A job returns its own seconds.
    """
    out: dict[str, list[float]] = {name: [] for name in jobs}
    for _ in range(repeats):
        for name, job in jobs.items():
            out[name].append(job())
    return out


def ratio(
    group: str,
    what: str,
    seconds: Sequence[float],
    beside: Sequence[float],
    *,
    factor: float = 1.0,
    note: str = "",
) -> Row:
    """How many times longer one thing takes than another, both measured in the same turns.

    Parameters
    ----------
    seconds, beside : sequence of float
        Of each turn.
    factor : float
        From the part that was run to the whole, if `seconds` are of a part; the note should say so.

    Notes
    -----
    The quotient of two medians always lies between the least and the largest quotient of a turn.
    """
    whole = [factor * s for s in seconds]
    turns = [a / b for a, b in zip(whole, beside, strict=True)]
    top, base = statistics.median(whole), statistics.median(beside)
    return Row(group, what, top / base, RATIO, min(turns), max(turns), len(turns), top, base, note)


def quantity(
    group: str, what: str, values: Sequence[float], unit: str, *, scale: float = 1.0, note: str = ""
) -> Row:
    """The median of repeats, times `scale`, with the least and the most."""
    scaled = [scale * v for v in values]
    middle = statistics.median(scaled)
    return Row(group, what, middle, unit, min(scaled), max(scaled), len(scaled), note=note)


def missing(group: str, what: str, note: str) -> Row:
    """A ratio that cannot be measured here."""
    return Row(group, what, None, RATIO, n=0, note=note)


def machine() -> str:
    """Processor, cores and versions: what a number depends on, and nothing that names a machine."""
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line.split(":", 1)[1].strip() for line in info.open() if line.startswith("model name")]
        name = f"{names[0]} ({platform.machine()})" if names else name
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    versions = ", ".join(f"{p} {version(p)}" for p in ("torch", "transformers", "numpy", "scipy"))
    return (
        f"{name}, {cores} cores, {torch.get_num_threads()} torch threads, "
        f"Python {platform.python_version()}, {versions}"
    )


# ------------------------------------------------------------------------------- files and pages


def parser(description: str | None, repeats: int = 5) -> argparse.ArgumentParser:
    """The options that every benchmark has."""
    made = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--quick", action="store_true", help="seconds, to see that it works; not a measurement")
    made.add_argument("--repeats", type=int, default=None, help=f"turns ({repeats}; 2 with --quick)")
    made.add_argument("--out", type=Path, default=None, help=f"folder ({FOLDER}, {FOLDER}/quick)")
    made.set_defaults(usual=repeats)
    return made


def parse(made: argparse.ArgumentParser, arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse, with the defaults that depend on ``--quick``."""
    options = made.parse_args(arguments)
    options.out = folder(options)
    options.repeats = options.repeats or (2 if options.quick else options.usual)
    return options


def folder(options: argparse.Namespace) -> Path:
    """Where the files go; a quick run never overwrites a measurement unless told where to write."""
    return options.out or (FOLDER / "quick" if options.quick else FOLDER)


def finish(bench: str, rows: list[Row], options: argparse.Namespace) -> list[Row]:
    """Write ``<bench>.csv`` and the table of everything in its folder; print and return the rows."""
    options.out.mkdir(parents=True, exist_ok=True)
    date = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    run = Run(bench, rows, date, machine(), options.quick)
    _write_csv(options.out / f"{bench}.csv", [run])
    print(_lines(rows))
    collect(options.out)
    return rows


def collect(out: Path) -> str:
    """Make ``bench.csv``, ``bench.md`` and ``bench.png`` from the files in `out`; return the Markdown."""
    from picture import picture

    runs = [run for name in BENCHES if (run := _read(out, name)) is not None]
    _write_csv(out / "bench.csv", runs)
    rows = _ordered([row for run in runs for row in run.rows])
    text = page(runs, rows)
    (out / "bench.md").write_text(text, encoding="utf-8")
    if shown := [row for row in rows if row.unit == RATIO and row.value is not None]:
        picture(shown, out / "bench.png")
    return text


def page(runs: list[Run], rows: list[Row]) -> str:
    """The Markdown page."""
    lines = ["# Measured", ""]
    if any(run.quick for run in runs):
        lines += ["**A quick run: it shows that the benchmarks work, not how fast anything is.**", ""]
    lines += [
        "A ÷ B is how many times longer A takes than B: the quotient of their medians over n turns, in which "
        "both ran one after the other, and in brackets the least and the largest quotient of a turn. "
        "Quantities are medians with the least and the most.",
        "",
        "| | what | measured | n | medians | |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    before = ""
    for row in rows:
        cells = [row.group if row.group != before else "", row.what, _result(row), str(row.n or "–")]
        cells += [_medians(row), row.note]
        lines.append("| " + " | ".join(c.replace("|", "\\|") for c in cells) + " |")
        before = row.group
    lines += ["", "Measured on:", ""]
    for about in dict.fromkeys(run.machine for run in runs):
        which = ", ".join(f"{r.bench} {r.date}" for r in runs if r.machine == about)
        lines.append(f"- {about} ({which})")
    return "\n".join(lines) + "\n"


def _ordered(rows: list[Row]) -> list[Row]:
    """Ratios first, otherwise as they come."""
    return sorted(rows, key=lambda row: row.unit != RATIO)


def _lines(rows: list[Row]) -> str:
    width = max(len(row.what) for row in rows)
    return "\n".join(f"{row.what:{width}s}  {_result(row):30s} {row.note}" for row in _ordered(rows))


def _result(row: Row) -> str:
    if row.value is None:
        return "–"
    unit = RATIO if row.unit == RATIO else f" {row.unit}".rstrip()
    spread = ""
    if row.low is not None and row.high is not None and row.n > 1:
        spread = f" [{number(row.low)} – {number(row.high)}]"
    return f"{number(row.value)}{unit}{spread}"


def _medians(row: Row) -> str:
    if row.seconds is None or row.beside is None:
        return ""
    return f"{number(row.seconds)} s ÷ {number(row.beside)} s"


def number(value: float) -> str:
    """Three or four digits, as a person would write them."""
    size = abs(value)
    if size and (size < 1e-3 or size >= 1e9):
        return f"{value:.1e}"
    if size >= 100 or value == int(value):
        return f"{value:,.0f}"
    return f"{value:.3f}" if size < 2 else f"{value:.3g}"


_COLUMNS = ["bench", *(f.name for f in fields(Row)), "date", "machine", "quick"]


def _write_csv(path: Path, runs: list[Run]) -> None:
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, _COLUMNS)
        writer.writeheader()
        for run in runs:
            about = {"bench": run.bench, "date": run.date, "machine": run.machine, "quick": int(run.quick)}
            writer.writerows(about | asdict(row) for row in run.rows)


def _read(out: Path, bench: str) -> Run | None:
    if bench == "seed_scale":
        return _read_seed_scale(out / "seed_scale.json")
    path = out / f"{bench}.csv"
    if not path.exists():
        return None
    with open(path, newline="", encoding="utf-8") as file:
        found = list(csv.DictReader(file))
    if not found:
        return None
    rows = []
    for one in found:
        kept: dict[str, Any] = {f.name: one[f.name] for f in fields(Row)}
        for name in ("value", "low", "high", "seconds", "beside"):
            kept[name] = float(kept[name]) if kept[name] else None
        rows.append(Row(**kept | {"n": int(kept["n"])}))
    return Run(bench, rows, found[0]["date"], found[0]["machine"], found[0]["quick"] == "1")


def _read_seed_scale(path: Path) -> Run | None:
    """What ``interp bench seed-scale`` left, beside what is published of the job: 18 hours on an A100."""
    if not path.exists():
        return None
    found = json.loads(path.read_text(encoding="utf-8"))
    group = "Probe at the scale of the 18-hour job"
    seconds, published = found["compute_seconds"], 35.0 * 19 * 100
    size = (
        f"{found['rows']:,} rows, {found['events']:,} events, {found['latents']:,} latents × "
        f"{found['classes']} classes"
    )
    rows = []
    if math.isclose(found["fraction"], 1.0):
        note = "35 s × 19 slabs × 100 iterations, as published, on an A100; ours on this CPU"
        value = published / seconds
        rows.append(Row(group, "published ÷ ours", value, RATIO, None, None, 1, published, seconds, note))
    rows += [
        Row(group, "all computing, without making the data", seconds, "s", note=size),
        Row(group, "all computing, per event", found["ns_per_event"], "ns"),
        Row(group, "most memory in use", found["peak_rss_gb"], "GB"),
        Row(
            group,
            "largest exact gradient",
            found["largest_exact_gradient"],
            "",
            note=f"{found['sampled_pairs']:,} pairs sampled, on the raw events",
        ),
    ]
    date = datetime.fromtimestamp(path.stat().st_mtime, UTC).strftime("%Y-%m-%d %H:%M UTC")
    return Run("seed_scale", rows, date, found["machine"])
