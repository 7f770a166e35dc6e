"""The seed-scale run in small: its data, its report, and that it is exact."""

from __future__ import annotations

import json

import numpy as np
import pytest

from interp.seed_scale import SeedScaleShards, report, seed_scale


def test_shards_are_made_again_alike_and_look_like_the_real_ones() -> None:
    data = SeedScaleShards(0.002, seed=3, n_latents=2048)
    (x, y), *_ = list(data)
    again, labels = next(iter(data))
    assert (x != again).nnz == 0
    assert np.array_equal(y, labels)
    assert x.has_canonical_format
    assert x.shape == (data.n_rows, 2048)
    other, _ = SeedScaleShards(0.002, seed=4, n_latents=2048).make(0)
    assert (x != other).nnz > 0
    assert 300 < x.nnz / x.shape[0] <= 400
    assert 0.5 < np.median(x.data) < 2.0
    assert x.data.max() <= 84.0
    counts = np.bincount(y, minlength=151)
    assert counts.max() > 20 * max(1, np.median(counts)), "classes of very unequal size"


@pytest.mark.slow
def test_a_small_run_is_exact_and_says_what_it_did(tmp_path) -> None:
    result = seed_scale(0.0005, n_latents=512, n_sampled=200, out=tmp_path)
    assert result["largest_exact_gradient"] <= 1e-6
    assert result["pairs"] == 512 * 151
    assert sum(result["status_counts"].values()) == result["pairs"]
    assert json.loads((tmp_path / "seed_scale.json").read_text())["events"] == result["events"]
    text = report(result)
    assert "35 s × 19 slabs × 100 iterations = 66,500 s" in text
    assert "Ratio" not in text, "a fraction is not compared with the whole"


@pytest.mark.parametrize(
    ("options", "message"), [({"fraction": 0.0}, "fraction"), ({"n_latents": 10}, "n_latents")]
)
def test_impossible_sizes_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SeedScaleShards(**options)
