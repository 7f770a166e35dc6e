"""The bench measures the same work in every case, and its gains and projections follow from its numbers."""

from __future__ import annotations

import math

import pytest
from capture_zoo import sequences, zoo

from interp.capture import load_model
from interp.capture.measure import measure


@pytest.mark.parametrize("new", [0, 6])
def test_cases_do_the_same_work(new: int) -> None:
    found = measure(zoo("llama"), sequences(), max_new_tokens=new, repeats=2, batch_tokens=120, reload=False)
    frame = found.frame
    expected = {"b", "c", "e", "f order", "f ÷4", "f ÷16"} | ({"d"} if new else set())
    assert set(frame.index) <= expected
    assert {"b", "c", "e", "f order"} <= set(frame.index)
    tokens = frame["real"] * frame["seconds"]
    assert tokens.round(6).nunique() == 1
    assert tokens["b"] == pytest.approx(50 + 6 * new)
    assert frame["padded"]["b"] == pytest.approx(frame["real"]["b"])  # one by one there is no padding
    assert frame["padded"]["c"] > frame["real"]["c"]
    assert (frame["low"] <= frame["seconds"]).all()
    assert (frame["seconds"] <= frame["high"]).all()
    assert found.batch_gain == frame["seconds"]["b"] / frame["seconds"]["c"]
    assert math.isnan(found.load_gain)
    assert ("busy already" in str(found)) == (new == 0)
    plan = found.plan_seconds(12, n_traits=3, n_tiers=2)
    assert plan["one load, batches"] == pytest.approx(4 * frame["seconds"]["c"])
    assert plan["one load per trait, one by one"] == pytest.approx(12 * frame["seconds"]["b"])
    longer = found.plan_seconds(6, tokens=new + 100)
    assert longer["one load, batches"] > 2 * frame["seconds"]["c"]


def test_a_load_per_prompt_is_told_from_loads_that_were_made() -> None:
    found = measure(
        load_model("tiny"), ["a robin is", "an owl"], max_new_tokens=2, repeats=2, batch_tokens=64
    )
    frame = found.frame
    loads = (frame["seconds"]["a"] - frame["seconds"]["b"]) / 2
    assert loads > 0
    assert found.load_gain == frame["seconds"]["a"] / frame["seconds"]["b"] > 1
