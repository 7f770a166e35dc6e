"""Every benchmark runs, says what it measured, and the table holds it; how fast anything is is not asked."""

from __future__ import annotations

import csv
import json
import math
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

BENCH = Path(__file__).parent / "bench"
MODULES = [p.stem for p in BENCH.glob("*.py") if p.stem != "__main__"]

#: Benchmark → words of ratios that must be among its rows, and how many quantities at least.
RUNS = {
    "probe_speed": (["naive .* 30 .* ÷ ours", "naive .* 100 .*", "scikit-learn", "events", "classes"], 12),
    "probe_questions": (["inert pairs", "row indices", "cast once", "slab of 32", "retries"], 0),
    "capture_speed": (["one by one", "captured, projected ÷", "captured ÷", "nnsight", "TransformerLens"], 0),
    "lens_mlp": (["all lenses, made up", "all lenses, shipped"], 2),
    "lens_train": (["adaptive loop, one MLP at a time"], 0),
    "lens_bank": (["bank ÷ bare"], 0),
    "live": (["fit with a moving monitor ÷ fit alone"], 2),
}  # fmt: skip


@pytest.fixture(autouse=True)
def _bench_on_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCH))
    for name in MODULES:
        monkeypatch.delitem(sys.modules, name, raising=False)


@pytest.fixture
def table() -> ModuleType:
    return __import__("table")


def rows_of(path: Path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_every_benchmark_is_run_here(table: ModuleType) -> None:
    assert {*RUNS, "seed_scale"} == set(table.BENCHES)
    for name in RUNS:
        assert (BENCH / f"{name}.py").exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_a_benchmark_runs_and_makes_its_part_of_the_table(name: str, tmp_path: Path) -> None:
    wanted, n_quantities = RUNS[name]
    rows = __import__(name).main(["--quick", "--out", str(tmp_path)])
    ratios = [row for row in rows if row.unit == "×"]
    for words in wanted:
        assert any(re.search(words, row.what) for row in ratios), words
    assert len(rows) - len(ratios) >= n_quantities
    assert len({(row.group, row.what) for row in rows}) == len(rows)
    for row in rows:
        if row.value is None:
            assert row.note == "not installed" or "did not run" in row.note
            assert row.unit == "×"
            continue
        assert math.isfinite(row.value)
        if row.low is not None:
            assert row.low <= row.value <= row.high
        if row.unit == "×":
            assert row.value == row.seconds / row.beside
            assert row.seconds > 0
            assert row.n >= 2

    written = rows_of(tmp_path / f"{name}.csv")
    assert [r["what"] for r in written] == [r.what for r in rows]
    assert written == rows_of(tmp_path / "bench.csv")
    page = (tmp_path / "bench.md").read_text()
    assert "A quick run" in page
    for row in rows:
        assert row.what in page
    assert "nan" not in page
    assert (tmp_path / "bench.png").stat().st_size > 5_000


def test_a_ratio_is_the_quotient_of_the_medians(table: ModuleType) -> None:
    row = table.ratio("g", "a ÷ b", [3.0, 8.0, 4.0], [1.0, 2.0, 8.0], factor=10.0)
    assert (row.seconds, row.beside, row.value) == (40.0, 2.0, 20.0)
    assert (row.low, row.high, row.n) == (5.0, 40.0, 3)
    with pytest.raises(ValueError, match="zip"):
        table.ratio("g", "a ÷ b", [1.0, 2.0], [1.0])


def test_turns_are_taken(table: ModuleType) -> None:
    order: list[str] = []

    def job(name: str) -> float:
        order.append(name)
        return float(len(order))

    seconds = table.interleaved({name: (lambda name=name: job(name)) for name in "ab"}, 3)
    assert order == list("ababab")
    assert seconds == {"a": [1.0, 3.0, 5.0], "b": [2.0, 4.0, 6.0]}


def finished(table: ModuleType, name: str, rows: list[Any], out: Path, *more: str) -> None:
    table.finish(name, rows, table.parse(table.parser(None), ["--out", str(out), *more]))


def test_whatever_is_there_makes_a_table_and_the_newest_counts(table: ModuleType, tmp_path: Path) -> None:
    bank, probe, monitor = (
        table.Row("Lenses", "bank ÷ bare", 1.5, "×", 1.4, 1.6, 3, 3.0, 2.0, "old"),
        table.quantity("Probe", "summary pass", [2e-9, 1e-9, 4e-9], "ns", scale=1e9),
        table.missing("Capture", "nnsight ÷ captured", "not installed"),
    )
    finished(table, "lens_bank", [bank], tmp_path)
    finished(table, "probe_speed", [probe], tmp_path)
    finished(table, "capture_speed", [monitor], tmp_path)
    newer = table.Row("Lenses", "bank | ÷ bare", 20_000.0, "×", 1.25, 30_000.0, 3, 5.0, 4.0, "new")
    finished(table, "lens_bank", [newer], tmp_path)
    found = rows_of(tmp_path / "bench.csv")
    assert [r["bench"] for r in found] == ["probe_speed", "capture_speed", "lens_bank"]
    assert found[-1]["note"] == "new"
    assert all(r["date"].endswith("UTC") and r["quick"] == "0" for r in found)
    page = (tmp_path / "bench.md").read_text()
    lines = [line for line in page.splitlines() if line.startswith("|")][2:]
    assert lines[0] == "| Capture | nnsight ÷ captured | – | – |  | not installed |"
    assert lines[1] == "| Lenses | bank \\| ÷ bare | 20,000× [1.250 – 30,000] | 3 | 5 s ÷ 4 s | new |"
    assert lines[2] == "| Probe | summary pass | 2 ns [1 – 4] | 3 |  |  |"
    assert "quick" not in page
    assert page.count("lens_bank 20") == 1


def test_the_full_sized_job_is_in_the_table_with_its_fraction(table: ModuleType, tmp_path: Path) -> None:
    from interp.seed_scale import seed_scale

    found = seed_scale(1e-4, n_latents=302, n_sampled=20, out=tmp_path)
    table.collect(tmp_path)
    rows = rows_of(tmp_path / "bench.csv")
    assert not any(r["unit"] == "×" for r in rows), "a part of the job is not compared with the whole"
    assert f"{found['rows']:,} rows" in rows[0]["note"]

    whole = found | {"fraction": 1.0, "compute_seconds": 66.5}
    (tmp_path / "seed_scale.json").write_text(json.dumps(whole))
    table.collect(tmp_path)
    first = rows_of(tmp_path / "bench.csv")[0]
    assert float(first["value"]) == pytest.approx(1000.0)
    assert first["machine"] == found["machine"]


def test_nothing_names_the_machine(table: ModuleType) -> None:
    import platform

    about = table.machine()
    assert "torch" in about
    assert "cores" in about
    assert "/" not in about
    assert not platform.node() or platform.node() not in about


def test_a_quick_run_writes_elsewhere(table: ModuleType) -> None:
    made = table.parser(None, repeats=7)
    full, quick = table.parse(made, []), table.parse(made, ["--quick"])
    assert (full.repeats, quick.repeats) == (7, 2)
    assert full.out != quick.out
    assert table.parse(made, ["--quick", "--repeats", "3"]).repeats == 3


def test_an_unknown_benchmark_is_refused() -> None:
    done = subprocess.run(
        [sys.executable, str(BENCH), "no_such"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "no benchmark no_such" in done.stderr
