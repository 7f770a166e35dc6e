"""Flames: of the worker's own work, as pages that stand alone."""

from __future__ import annotations

import html
import json
import logging
import re

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from live_fakes import fit_events, play

from interp import Sparse1DProbe
from interp.live.flame import compare_flames, flame, profile_fit
from interp.threads import torch_threads


def burn(seconds: float, iteration_hook=None) -> str:
    """Work that a profiler finds under its own name."""
    import time

    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        for i in range(500):
            i * i
    return "burnt"


def test_a_flame_shows_the_function_and_not_the_wait_for_it():
    f = flame(burn, 0.3)
    assert f.result == "burnt"
    assert f.seconds >= 0.3
    spots = f.hotspots()
    assert spots["function"][0] == "burn"
    assert spots["share"][0] > 0.8
    assert spots["seconds"].sum() == pytest.approx(f.seconds, rel=0.2)
    assert not spots["function"].isin(["join", "wait"]).any()


def test_all_work_of_a_fit_is_in_its_flame():
    """What a solver shares out among threads would be missing, and only the wait for it be seen."""
    rng = np.random.default_rng(0)
    x = sp.random(3000, 200, density=0.1, format="csr", rng=rng, dtype=np.float32)
    y = rng.integers(0, 30, 3000)
    with torch_threads(2):
        seen = []
        f = flame(Sparse1DProbe().fit, x, y, iteration_hook=lambda e: seen.append(torch.get_num_threads()))
        assert torch.get_num_threads() == 2
    assert set(seen) == {1}
    spots = f.hotspots(500)
    assert spots[~spots["function"].str.contains("acquire|wait")]["share"].sum() > 0.9


def test_a_flame_shows_itself_in_a_frame_of_its_own(tmp_path):
    f = flame(burn, 0.05, title="<b>bold</b>")
    shown = f._repr_html_()
    assert "<b>bold</b>" not in shown
    page = html.unescape(re.search(r'srcdoc="([^"]*)"', shown)[1])
    assert page == f.html()
    assert "[2]*14" in page  # deep calls are not indented out of the frame
    assert "Profile at" not in page.partition("const sessionData")[2]
    links = set(re.findall(r"https?://[^\s\"'`)<]+", page))
    assert links <= {"http://www.w3.org/2000/svg"}  # a name, not a request
    path = f.save(tmp_path / "deep" / "flame.html")
    assert path.read_text(encoding="utf-8") == page
    assert [p.name for p in path.parent.iterdir()] == ["flame.html"]


def test_an_error_in_the_worker_comes_back():
    with pytest.raises(ZeroDivisionError):
        flame(lambda: 1 / 0)


def test_compare_flames_measures_what_listening_costs(capfd):
    logger = logging.getLogger("interp")
    before = (logger.level, logger.propagate, list(logger.handlers))
    pair = compare_flames(play, list(fit_events(3)), 0.001, repeats=1)
    assert (logger.level, logger.propagate, logger.handlers) == before
    assert pair.n_lines >= len(list(fit_events(3)))
    assert pair.overhead == pytest.approx(pair.seconds[1] / pair.seconds[0] - 1)
    assert f"{pair.overhead:+.1%}" in pair.summary()
    assert pair._repr_html_().count("<iframe") == 2
    assert capfd.readouterr().err == ""  # the DEBUG lines go to a file


def test_compare_flames_refuses_what_it_cannot_compare():
    with pytest.raises(ValueError, match="repeats"):
        compare_flames(burn, 0.0, repeats=0)
    with pytest.raises(ValueError, match="iteration_hook"):
        compare_flames(burn, 0.0, iteration_hook=print)


@pytest.mark.slow
def test_profile_fit_runs_in_a_fresh_process(tmp_path):
    rng = np.random.default_rng(0)
    x = sp.random(300, 30, density=0.2, format="csr", rng=rng)
    sp.save_npz(tmp_path / "token_acts.npz", x)
    rng.integers(0, 7, 300).astype(np.uint8).tofile(tmp_path / "labels.bin")
    report = profile_fit(
        tmp_path / "out",
        token_acts=tmp_path / "token_acts.npz",
        labels=tmp_path / "labels.bin",
        n_rows=200,
        n_classes=7,
    )
    names = {p.name for p in (tmp_path / "out").iterdir()}
    assert names == {"flame_off.html", "flame_debug.html", "hotspots.csv", "profile.json"}
    assert report == json.loads((tmp_path / "out" / "profile.json").read_text())
    assert report["summary"].startswith("DEBUG logging")
    header = (tmp_path / "out" / "hotspots.csv").read_text().splitlines()[0]
    assert header == "function,where,seconds_off,share_off,seconds_debug,share_debug"


def test_profile_fit_reports_what_went_wrong(tmp_path):
    with pytest.raises(RuntimeError, match="give both token_acts and labels"):
        profile_fit(tmp_path, token_acts=tmp_path / "token_acts.npz")


@pytest.mark.parametrize("name", ["n_rows", "n_classes", "n_latents"])
def test_a_profile_of_nothing_is_refused_before_a_process_starts(name, tmp_path):
    with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
        profile_fit(tmp_path, **{name: 0})
    assert not list(tmp_path.iterdir())
