"""Levels with resume, and the precision study."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import lens_world
import numpy as np
import pandas as pd
import pytest
import torch

from interp import events
from interp.lens.bank import Bank
from interp.lens.levels import train_by_level
from interp.lens.library import Lenses
from interp.lens.precision import finite_table, memory_table
from interp.lens.study import MARGIN, _compare, _models, study

SITE = "resid_post.1"


@pytest.fixture(scope="module")
def model():
    return lens_world.model()


# ------------------------------------------------------------------------------ levels


def test_levels_one_after_the_other(model, tmp_path):
    log = []
    lenses = train_by_level(model, lens_world.pack(), site=SITE, out=tmp_path, iteration_hook=log.append)
    levels = [e.level for e in log if e.kind == "LensEnd"]
    assert levels == sorted(levels)
    assert len(lenses.reports) == 9
    table = pd.read_csv(tmp_path / "table.csv")
    assert table.concept.tolist() == [r.concept for r in lenses.reports]
    assert table.level.tolist() == [0, 1, 1, 2, 2, 2, 2, 2, 2]
    assert sum(e.kind == "LensEnd" for e in events.read(tmp_path / "log.jsonl")) == 9
    again = Lenses.load(tmp_path / "lenses", model=model)
    assert torch.equal(again.weight, lenses.weight)


def test_a_level_named_twice_is_trained_once(model, tmp_path):
    log = []
    options = {"site": SITE, "out": tmp_path, "growth": (10,), "iteration_hook": log.append}
    lenses = train_by_level(model, lens_world.pack(), levels=[1, 1], **options)
    assert sum(e.kind == "TrainBegin" for e in log) == 1
    assert len(lenses.reports) == len(Lenses.load(tmp_path / "lenses").reports) == 2


def test_a_killed_training_goes_on(tmp_path, model):
    """kill −9 in the second level: the first is not trained again, and no prompt is forwarded twice."""
    code = f"""
import os, signal, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
import lens_world
from interp.lens.levels import train_by_level
seen = 0
def hook(event):
    global seen
    seen += event.kind == "LensEnd" and event.level == 2
    if seen == 2:
        os.kill(os.getpid(), signal.SIGKILL)
train_by_level(lens_world.model(), lens_world.pack(), site={SITE!r}, out={str(tmp_path)!r},
               iteration_hook=hook, growth=(10, 20))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=120)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    assert (tmp_path / "level-1" / "lenses.json").exists()
    assert not (tmp_path / "level-2").exists()
    before = len(Bank(model, SITE, folder=tmp_path / "bank"))
    log = []
    resumed = train_by_level(
        model, lens_world.pack(), site=SITE, out=tmp_path, iteration_hook=log.append, growth=(10, 20)
    )
    assert {e.level for e in log if e.kind == "LensEnd"} == {2}
    forwarded = sum(e.n_prompts for e in log if e.kind == "BatchEnd")
    assert forwarded == len(Bank(model, SITE, folder=tmp_path / "bank")) - before
    whole = train_by_level(model, lens_world.pack(), site=SITE, out=tmp_path / "other", growth=(10, 20))
    assert [r.grade for r in resumed.reports] == [r.grade for r in whole.reports]
    np.testing.assert_allclose(resumed.weight, whole.weight, rtol=1e-2, atol=1e-4)


def test_a_folder_of_another_training_is_refused(model, tmp_path):
    train_by_level(model, lens_world.pack(), site=SITE, out=tmp_path, levels=[1], growth=(10,))
    with pytest.raises(FileExistsError, match="another seed"):
        train_by_level(model, lens_world.pack(), site=SITE, out=tmp_path, levels=[1], growth=(10,), seed=1)
    with pytest.raises(FileExistsError, match="another options"):
        train_by_level(model, lens_world.pack(), site=SITE, out=tmp_path, levels=[1], growth=(20,))
    with pytest.raises(ValueError, match=r"no level 7; it has \[0, 1, 2\]"):
        train_by_level(model, lens_world.pack(), site=SITE, out=tmp_path / "x", levels=[7])


def test_a_stop_ends_the_level_and_begins_no_other(model, tmp_path):
    log = []

    def hook(event):
        log.append(event)
        return event.kind == "LensIteration"

    lenses = train_by_level(
        model, lens_world.pack(), site=SITE, out=tmp_path, levels=[1, 2], iteration_hook=hook
    )
    assert {e.level for e in log if e.kind == "LensEnd"} == {1}
    assert len(lenses) == 1
    assert not (tmp_path / "level-1").exists()
    assert not os.path.exists(tmp_path / "lenses")


# ------------------------------------------------------------------------------ the study


@pytest.fixture(scope="module")
def result(model):
    return study(model, lens_world.pack(), n_prompts=24, batches=(1, 8), n_steered=1)


def test_the_study_answers_its_questions(result, tmp_path):
    assert result.finite.finite.all()
    assert set(result.finite.dtype) == {"float32", "bfloat16"}
    assert result.finite[result.finite.dtype == "bfloat16"].relative_error.between(1e-5, 0.05).all()
    assert result.memory.fits.all()
    assert (result.memory.peak_megabytes >= 0).all()
    assert {"embed", "attn_out.0", "mlp_act.2", "q.1", "attn.2", "resid_mid.1"} <= set(result.finite.site)
    assert (result.speed.repeats == 5).all()
    assert (result.speed.quartile_low <= result.speed.tokens_per_second).all()
    assert len(result.quality) == 4
    assert result.quality.within_margin.all()
    assert (result.quality.concepts == 8).all()
    own = result.steering[result.steering.direction == "lens"].groupby("scale").logit_change.mean()
    assert own.is_monotonic_increasing
    assert len(result.answers()) == 5
    for part in ("FINITE", "MEMORY", "SPEED", "QUALITY", "STEERING", "Every site is finite"):
        assert part in str(result)
    saved = {f.name for f in result.save(tmp_path).iterdir()}
    assert saved == {
        *(f"{n}.csv" for n in ["finite", "memory", "speed", "quality", "concepts", "steering"]),
        "study.txt",
    }


@pytest.mark.skipif(
    not os.access("/proc/self/clear_refs", os.W_OK), reason="the peak of this process cannot be reset here"
)
def test_memory_is_that_of_the_batch(model):
    """Above what the process holds: the states of 20,000 tokens, at least five of a layer at once."""
    table = memory_table({"float32": model}, [[5] * 20], (100, 1000)).set_index("batch")
    assert table.loc[1000].peak_megabytes > 5 * 20_000 * 48 * 4 / 2**20
    assert 5 < table.loc[1000].peak_megabytes / table.loc[100].peak_megabytes < 20


def test_overflow_is_found(model):
    """fp16's largest number is 65,504; the study says where a model exceeds it, and goes on."""
    from interp.lens.study import _load

    loud = lens_world.model()
    with torch.no_grad():
        loud.hf.model.layers[1].mlp.down_proj.weight *= 1e7
    table = finite_table(
        {"float32": loud, "float16": _load(loud, "float16", "cpu")}, lens_world.sentences("bird", 4)
    )
    bad = table[~table.finite]
    assert set(bad.dtype) == {"float16"}
    assert "resid_post.1" in set(bad.site)
    assert "resid_pre.1" not in set(bad.site)


def test_the_comparison_is_paired():
    """A shift of 0.03 in every concept is found beside differences between concepts ten times as large."""
    rng = np.random.default_rng(0)
    base = rng.uniform(0.6, 0.95, 60)
    rows = [
        {"concept": str(i), "train": t, "evaluate": "a", "auroc": v + shift + rng.normal() * 0.005, "f1": v}
        for t, shift in (("a", 0.0), ("b", -0.03), ("c", 0.0))
        for i, v in enumerate(base)
    ]
    table = _compare(pd.DataFrame(rows), "a", 0).set_index("train")
    assert not table.loc["b"].within_margin
    assert table.loc["b"].auroc_high < -0.02 < MARGIN
    assert table.loc["c"].within_margin


def test_a_dtype_that_the_device_lacks_is_left_out(model):
    """There is no product of 8-bit floats on a CPU."""
    models, lacking = _models(model, ["float8_e5m2", "bfloat16", "float32"], "cpu")
    assert list(models) == ["bfloat16", "float32"]
    assert "Float8_e5m2" in lacking["float8_e5m2"]
    with pytest.raises(ValueError, match="computes in none of the dtypes"):
        _models(model, ["float8_e5m2"], "cpu")


def test_bad_arguments(model):
    with pytest.raises(ValueError, match="repeats must be at least 5"):
        study(model, lens_world.pack(), repeats=3)
