"""The slab tuner: what it measures, marks and applies."""

from __future__ import annotations

import time

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from live_fakes import Bench

from interp import Sparse1DProbe
from interp.live.tuner import FitBench, SlabTuner


@pytest.fixture
def data():
    rng = np.random.default_rng(0)
    x = sp.random(2000, 60, density=0.1, format="csr", rng=rng, dtype=np.float32)
    return x, rng.integers(0, 9, 2000)


def test_every_setting_is_measured_and_the_best_applied():
    probe, bench = Sparse1DProbe(), Bench()
    tuner = SlabTuner(probe, None, bench=bench)
    table = tuner.measure()
    assert tuner.axes["class_slab_size"] == [4, 16, 64]
    assert tuner.axes["latent_block_size"] == [4, 16, 20, 64, 256]  # what auto takes is measured as well
    assert sorted(bench.asked) == [(s, b) for s in (4, 16, 64) for b in (4, 16, 20, 64, 256)]
    assert table.iloc[0].to_dict() == {
        "class_slab_size": 16, "latent_block_size": 64, "ns_per_eval": 1.0, "ns_low": 0.5,
        "ns_high": 9.0, "bytes": 1024,
    }  # fmt: skip
    assert tuner.best_rows["row_batch_size"] == 4096
    assert tuner.apply_best() is probe
    assert (probe.class_slab_size, probe.latent_block_size, probe.row_batch_size) == (16, 64, 4096)
    assert tuner.applied == {"class_slab_size": 16, "latent_block_size": 64, "row_batch_size": 4096}
    tuner.apply(class_slab_size="auto")
    assert probe.class_slab_size == "auto"
    assert "interp-static" in tuner._place._html
    assert "<td>4,096</td>" in tuner._place._html
    light = tuner._place._html
    tuner._on_message(tuner, {"do": "theme", "dark": True}, [])
    tuner.measure()
    assert tuner._place._html != light  # a picture for the theme that the browser told


def test_measuring_twice_replaces_the_first_measurement():
    tuner = SlabTuner(Sparse1DProbe(), None, bench=Bench())
    assert len(tuner.measure()) == len(tuner.measure()) == 15


def test_the_buttons_measure_in_the_background_and_stop():
    tuner = SlabTuner(Sparse1DProbe(), None, bench=Bench(seconds=0.05))
    tuner._on_message(tuner, {"do": "measure"}, [])
    assert tuner.busy
    tuner._on_message(tuner, {"do": "measure"}, [])
    assert "measuring already" in tuner.message
    deadline = time.monotonic() + 30.0
    while len(tuner.cells) < 3:
        assert time.monotonic() < deadline, "nothing is measured"
        time.sleep(0.01)
    tuner._on_message(tuner, {"do": "stop"}, [])
    tuner.wait(5)
    assert not tuner.busy
    assert tuner.message == "stopped"
    assert 3 <= len(tuner.cells) < 15
    tuner._on_message(tuner, {"do": "apply_best"}, [])
    assert tuner.probe.class_slab_size == tuner.best["class_slab_size"]


def test_what_cannot_be_done_is_said():
    tuner = SlabTuner(Sparse1DProbe(), None, bench=Bench())
    with pytest.raises(RuntimeError, match="nothing measured yet"):
        tuner.apply_best()
    tuner._on_message(tuner, {"do": "apply", "sizes": {"class_slab_size": 8}}, [])
    assert tuner.probe.class_slab_size == 8
    with pytest.raises(ValueError, match="latent_block_sizes"):
        SlabTuner(Sparse1DProbe(), None, bench=Bench(), latent_block_sizes=[0, 4])
    with pytest.raises(ValueError, match="repeats"):
        SlabTuner(Sparse1DProbe(), None, bench=Bench(), repeats=0)


def test_an_error_while_measuring_is_shown():
    class Broken(Bench):
        def solve(self, slab, block):
            raise MemoryError("no room for 10 TiB")

    tuner = SlabTuner(Sparse1DProbe(), None, bench=Broken())
    with pytest.raises(MemoryError):
        tuner.measure()
    assert not tuner.busy
    tuner.start()
    tuner.wait(5)
    assert tuner.message == "MemoryError: no room for 10 TiB"


def test_on_real_data_it_measures_a_fit_and_leaves_the_probe_alone(data):
    probe = Sparse1DProbe(ridge=1e-6)
    tuner = SlabTuner(
        probe,
        *data,
        class_slab_sizes=[3, 9],
        latent_block_sizes=[8, 60],
        row_batch_sizes=[100, 500],
        repeats=1,
    )
    table = tuner.measure()
    assert (table["ns_per_eval"] > 0).all()
    assert (table["bytes"] > 0).all()
    assert len(tuner.row_cells) == 2
    fresh = Sparse1DProbe(ridge=1e-6)
    begun = next(iter(fresh.iter_fit(*data)))
    assert tuner.auto == {n: getattr(begun, n) for n in ("class_slab_size", "latent_block_size")}
    assert probe.get_params() == fresh.get_params()
    assert not hasattr(probe, "coef_")
    tuner.apply_best()
    assert probe.fit(*data).class_slab_size == tuner.best["class_slab_size"]


def test_it_measures_where_and_how_the_probe_computes(data, monkeypatch):
    import interp.probe

    asked = []
    monkeypatch.setattr(interp.probe, "measure_blocks", lambda *_, **how: asked.append(how) or [{}])
    bench = FitBench(
        Sparse1DProbe(compute_dtype=torch.float32, device="cpu"), *data, n_classes=None, repeats=1
    )
    bench.solve(3, 8)
    assert (asked[0]["device"], asked[0]["dtype"]) == ("cpu", torch.float32)


def test_the_memory_estimate_grows_with_both_sizes(data):
    bench = FitBench(Sparse1DProbe(), *data, n_classes=None, repeats=1)
    one, wide, tall = bench.solve(3, 8), bench.solve(9, 8), bench.solve(3, 60)
    assert one["bytes"] < wide["bytes"]
    assert one["bytes"] < tall["bytes"]
