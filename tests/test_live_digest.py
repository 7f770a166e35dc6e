"""Digests: constant memory, and histories that say what the events said."""

from __future__ import annotations

import gc
import itertools
import json
import math
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from live_fakes import capture_events, finishing, fit_events, lens_events, reading

from interp import events as ev
from interp.live.digest import CaptureDigest, FitDigest, LensDigest, Series
from interp.live.monitor import CaptureMonitor, FitMonitor, LensMonitor

RULES = {"first": "first", "last": "last", "lo": "min", "hi": "max", "total": "sum", "level": "mean"}


def reference(rows: np.ndarray, stride: int) -> list[list[float]]:
    """Groups of `stride` rows, each column merged by its rule over the numbers that are known."""
    out = []
    for start in range(0, len(rows), stride):
        group = rows[start : start + stride]
        merged = []
        for column, rule in zip(group.T, RULES.values(), strict=True):
            known = column[~np.isnan(column)]
            by_rule = {"first": lambda v: v[0], "last": lambda v: v[-1], "min": np.min, "max": np.max}
            by_rule |= {"sum": np.sum, "mean": np.mean}
            merged.append(by_rule[rule](known) if len(known) else math.nan)
        out.append(merged)
    return out


@given(
    n=st.integers(0, 400),
    capacity=st.sampled_from([4, 6, 16, 64]),
    seed=st.integers(0, 2**32 - 1),
)
def test_a_series_holds_groups_of_its_rows(n, capacity, seed):
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(n, len(RULES)))
    series = Series(RULES, capacity)
    for row in rows:
        series.add(*row)
    assert len(series) <= capacity
    assert series.stride == 1 or len(series) > capacity // 2
    got = np.array([series[name] for name in RULES]).T.reshape(-1, len(RULES))
    np.testing.assert_allclose(got, np.reshape(reference(rows, series.stride), (-1, len(RULES))), atol=1e-12)


@given(seed=st.integers(0, 2**32 - 1), n=st.integers(1, 200))
def test_what_is_not_known_gives_way_to_what_is(seed, n):
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(n, len(RULES)))
    rows[rng.random(rows.shape) < 0.4] = np.nan
    series = Series(RULES, 16)
    for row in rows:
        series.add(*row)
    want = np.array(reference(rows, series.stride))
    for i, name in enumerate(RULES):
        got = series[name]
        assert np.array_equal(np.isnan(got), np.isnan(want[:, i])), name
        if RULES[name] != "mean":  # a mean with gaps is weighted by rows, not by numbers
            np.testing.assert_allclose(got, want[:, i], atol=1e-12)


@pytest.mark.parametrize("capacity", [2, 5])
def test_a_series_refuses_a_capacity_it_cannot_halve(capacity):
    with pytest.raises(ValueError, match="even and >= 4"):
        Series(RULES, capacity)


def long_fit(n: int):
    """One slab of very many iterations."""
    events = list(fit_events(n_slabs=1))
    yield from events[:2]
    template = events[2].__dict__
    for i in range(n):
        yield ev.IterationEnd(**{**template, "iteration": i + 1, "n_fail": int(i % 5000 == 0)})


def long_capture(n: int):
    """Very many batches, each with a long prompt and many rows of projections."""
    begin, batch, *_ = capture_events()
    yield begin
    shown = {f"resid_post.{i}·a vector": tuple(np.linspace(-1, 1, 400)) for i in range(40)}
    bulky = {**batch.__dict__, "tokens": ("token",) * 400, "projections": shown}
    for i in range(n):
        yield ev.BatchEnd(**{**bulky, "batch": i, "n_batches": n, "prompts_done": i, "prompts_total": n})


def long_lens(n: int):
    """Very many concepts: a batch, a fit and a grade for each."""
    begin, fit, *rest = lens_events(1)
    end = next(e for e in rest if isinstance(e, ev.LensEnd))
    batch = next(e for e in capture_events() if isinstance(e, ev.BatchEnd))
    yield begin
    for i in range(n // 3):
        named = {
            "concept": f"c{i}",
            "term": f"a concept with quite a long name, number {i}",
            "n_lenses": n // 3,
        }
        yield batch
        yield ev.LensIteration(**{**fit.__dict__, **named})
        yield ev.LensEnd(**{**end.__dict__, **named, "n_done": i + 1})


@pytest.mark.parametrize(
    ("monitor", "events", "largest"),
    [
        (FitMonitor, long_fit, 40_000),
        (CaptureMonitor, long_capture, 60_000),
        (LensMonitor, long_lens, 90_000),
    ],
)
def test_memory_does_not_grow_over_100_000_events(monitor, events, largest, monkeypatch):
    """Nothing that is reachable grows, and no message to the browser does."""
    monkeypatch.setattr(monitor, "_start", lambda self: None)  # frames where the test asks for them
    shown = monitor()
    events = events(100_000)
    for event in itertools.islice(events, 10_000):
        shown(event)
    shown.refresh()
    gc.collect()
    tracemalloc.start()
    try:
        for i, event in enumerate(events):
            shown(event)
            if i % 1000 == 0:
                shown.refresh()
        shown.refresh()
        gc.collect()
        grown, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # What stands when all is said is what the latest frames and rows replaced: as large, not larger.
    message = len(json.dumps(shown.head)) + len(shown.data) + len(json.dumps(shown.table))
    assert message < largest
    assert grown < 600_000


def groups(events: list, stride: int) -> list[list]:
    return [events[i : i + stride] for i in range(0, len(events), stride)]


def test_a_long_fit_keeps_its_extremes():
    events = [e for e in fit_events(n_slabs=151, width=1) if isinstance(e, ev.IterationEnd)]
    history = FitDigest.of(events).iterations
    assert history.stride >= 4
    for name, field, extreme in (
        ("x", None, None),
        ("fail", "n_fail", max),
        ("lam_min", "lam_min", min),
        ("lam_max", "lam_max", max),
        ("loss_max", "loss_max", max),
        ("grad", "grad_max", max),
        ("active", "n_active", np.mean),
        ("lam_median", "lam_median", np.mean),
    ):
        if field is None:  # a group stands at its last iteration
            want = [min(i + history.stride, len(events)) for i in range(0, len(events), history.stride)]
        else:
            values = [[getattr(e, field) for e in g] for g in groups(events, history.stride)]
            want = [extreme([v for v in g if v == v] or [math.nan]) for g in values]
        np.testing.assert_allclose(history[name], want, rtol=1e-12, err_msg=name)


def test_a_long_capture_keeps_its_speed_and_its_peak():
    events = [e for e in capture_events(2500) if isinstance(e, ev.BatchEnd)]
    history = CaptureDigest.of(events).batches
    assert history.stride >= 4
    parts = groups(events, history.stride)
    for name, field in (("real", "tokens_real"), ("padded", "tokens_padded"), ("seconds", "seconds")):
        np.testing.assert_allclose(history[name], [sum(getattr(e, field) for e in g) for g in parts])
    np.testing.assert_array_equal(history["bytes"], [max(e.bytes_resident for e in g) for g in parts])
    np.testing.assert_array_equal(history["prompts"], [g[-1].prompts_done for g in parts])


def test_pairs_of_latents_that_never_fire_are_done_with_their_classes():
    events = [
        type(e)(**{**e.__dict__, "n_pairs": e.n_pairs * 2034 // 2048}) if isinstance(e, ev.SlabEnd) else e
        for e in fit_events()
    ]
    head, _ = FitDigest.of(events).frame()
    assert head["pairs_done"] == head["pairs_total"] == 151 * 2048


def test_the_time_of_the_summary_is_part_of_the_fit():
    begin, *rest = fit_events()
    begin = type(begin)(**{**begin.__dict__, "summary_seconds": 5.0})
    digest = FitDigest.of([begin, *rest[:3]])
    assert digest.elapsed(begin.time + 2.0) == pytest.approx(7.0)


def test_a_fit_that_reads_its_rows_says_how_far_it_is():
    digest = FitDigest.of(list(reading(4))[:2])
    head, _ = digest.frame(digest.latest + 0.5)
    assert (head["state"], head["steps"], head["eta"]) == ("running", 0, None)
    assert head["fraction"] == pytest.approx(0.4)
    assert head["elapsed"] == pytest.approx(2.5)
    assert head["bytes"] == 500 << 20
    assert digest.stage_says == "reading rows: 80,000 of 200,000, 1,200,000 events/s"
    stream = FitDigest.of(reading(1, total=0))
    assert (stream.fraction, stream.stage_says) == (0.0, "reading rows: 100,000, 3,000,000 events/s")


def test_reading_is_no_part_of_what_the_slabs_take():
    """Half of the slabs in 2 s, after 8 s of reading: 2 s are left, and not 10."""
    begin, *rest = fit_events(n_slabs=2, width=76)
    half = rest[: next(i for i, e in enumerate(rest) if isinstance(e, ev.SlabEnd)) + 1]
    begin = type(begin)(**{**begin.__dict__, "summary_seconds": 8.0})
    digest = FitDigest.of([*reading(), begin, *half])
    assert (digest.fraction, digest.n_steps) == (0.5, len(half) - 2)
    assert digest.stage_says == ""
    assert digest.elapsed(begin.time + 2.0) == pytest.approx(10.0, abs=0.1)
    assert digest.eta(begin.time + 2.0) == pytest.approx(2.0, abs=0.1)


def test_the_end_on_the_raw_events_is_told_until_the_fit_ends():
    *events, end = fit_events(n_slabs=2)
    digest = FitDigest.of([*events, finishing(30, 42)])
    assert digest.stage_says == "finishing pairs on the raw events: 30 of 42"
    assert (digest.fraction, digest.state) == (0.99, "running")
    digest.add(end)
    assert (digest.stage_says, digest.state) == ("", "done")
    alone = FitDigest.of([finishing(21, 42)])
    assert (alone.fraction, alone.state) == (0.5, "running")
    assert alone.eta(alone.latest) == pytest.approx(1.0)


def test_a_fit_stopped_while_it_reads_has_stopped():
    *_, end = fit_events()
    end = type(end)(**{**end.__dict__, "stopped": True, "n_fail": 0, "status_counts": {"not_started": 3}})
    digest = FitDigest.of([*reading(2), end])
    assert (digest.state, digest.frame()[0]["n_fail"]) == ("stopped", 0)
    assert digest.stage_says == "stopped while it read its rows: no pair has started"
    # The next fit of the same log starts anew.
    digest.add(next(reading()))
    assert (digest.state, digest.end) == ("running", None)


def test_a_fit_that_died_while_it_read_is_over_when_the_next_begins():
    dead = [type(e)(**{**e.__dict__, "time": e.time - 1000.0}) for e in reading(4)]
    again = FitDigest.of([*dead, next(reading(4))])
    assert again.elapsed(again.latest) == pytest.approx(1.0)
    begin = next(fit_events())
    begin = type(begin)(**{**begin.__dict__, "summary_seconds": 0.1})
    anew = FitDigest.of([*dead, begin])
    assert anew.elapsed(begin.time + 1.0) == pytest.approx(1.1)


def test_a_failure_stays_in_the_picture_however_long_the_fit():
    digest = FitDigest.of(long_fit(100_000))
    head, _ = digest.frame()
    assert head["steps"] == 100_000
    assert digest.iterations["fail"].max() == 1  # the largest of a group stands for it
    assert head["n_fail"] == 20


def test_fit_digest_counts_what_the_events_say():
    events = list(fit_events())
    digest = FitDigest.of(events)
    iterations = [e for e in events if isinstance(e, ev.IterationEnd)]
    slabs = [e for e in events if isinstance(e, ev.SlabEnd)]
    head, _ = digest.frame()
    assert head["steps"] == len(iterations)
    assert head["n_fail"] == sum(e.n_fail for e in iterations) == events[-1].n_fail
    assert head["pairs_done"] == head["pairs_total"] == sum(e.n_pairs for e in slabs) == 151 * 2048
    assert head["state"] == "done"
    assert head["fraction"] == 1.0
    assert head["elapsed"] == events[-1].seconds
    np.testing.assert_allclose(digest.slabs["seconds"], [e.seconds for e in slabs])
    np.testing.assert_allclose(digest.iterations["active"], [e.n_active for e in iterations])
    losses = digest.iterations["loss_mean"]
    np.testing.assert_array_equal(np.isnan(losses), [math.isnan(e.loss_mean) for e in iterations])


@pytest.mark.parametrize(
    ("cls", "events"), [(FitDigest, fit_events), (LensDigest, lens_events), (CaptureDigest, capture_events)]
)
def test_progress_never_goes_back_and_ends_at_one(cls, events):
    digest, before = cls(), 0.0
    assert digest.state == "waiting"
    assert math.isnan(digest.eta())
    for event in events():
        digest.add(event)
        assert digest.fraction >= before - 0.12 / max(getattr(digest, "n_slabs", 1), 1)
        before = digest.fraction
        assert 0.0 <= digest.fraction <= 1.0
    assert (digest.state, digest.fraction, digest.eta()) == ("done", 1.0, 0.0)


@pytest.mark.parametrize(
    ("cls", "events"), [(FitDigest, fit_events), (LensDigest, lens_events), (CaptureDigest, capture_events)]
)
def test_a_frame_is_json_and_a_block_of_floats(cls, events):
    digest = cls()
    frames = [digest.frame()]
    for event in events():
        digest.add(event)
        frames.append(digest.frame())
    for head, data in frames:
        json.dumps(head, allow_nan=False)
        numbers = np.frombuffer(data, np.float32)
        assert len(numbers) == sum(len(columns) * rows for columns, rows, _ in head["series"].values())
    head, data = frames[-1]
    numbers = np.frombuffer(data, np.float32)
    for name, (columns, rows, offset) in head["series"].items():
        series = getattr(digest, name)
        for k, column in enumerate(columns):
            block = numbers[offset + k * rows : offset + (k + 1) * rows]
            np.testing.assert_array_equal(block, series[column].astype(np.float32))


@pytest.mark.parametrize(
    ("cls", "events"), [(FitDigest, fit_events), (LensDigest, lens_events), (CaptureDigest, capture_events)]
)
def test_a_log_tells_the_same_as_the_run(cls, events, tmp_path):
    events = list(events())
    with ev.JsonlLog(tmp_path / "job.jsonl") as log:
        for event in events:
            log(event)
    direct, read = cls.of(events), cls.of(ev.read(tmp_path / "job.jsonl"))
    assert direct.frame() == read.frame()
    assert direct.table() == read.table()


def test_a_continued_log_shows_its_latest_run():
    first, second = list(fit_events(seed=1)), [*reading(), *fit_events(seed=2)]
    assert FitDigest.of([*first[:40], *second]).frame() == FitDigest.of(second).frame()
    assert FitDigest.of([*first, *second[:5]]).frame(0.0) == FitDigest.of(second[:5]).frame(0.0)


def test_events_of_other_jobs_are_ignored():
    digest = FitDigest.of([*lens_events(5), *capture_events(2)])
    assert digest.state == "waiting"


def test_lens_quartiles_and_grades():
    events = list(lens_events())
    digest = LensDigest.of(events)
    quartiles = digest.quartiles()
    for i in range(1, len(quartiles["x"]) + 1):
        f1 = [e.f1 for e in events if isinstance(e, ev.LensIteration) and e.iteration == i]
        assert quartiles["n"][i - 1] == len(f1)
        for name, q in (("q1", 0.25), ("median", 0.5), ("q3", 0.75)):
            want = np.quantile(f1, q, method="inverted_cdf")
            assert abs(quartiles[name][i - 1] - want) <= 0.5 / digest.n_bins + 1e-9
    assert digest.grades == events[-1].grade_counts
    assert digest.n_done == 120


def test_no_lens_is_growing_after_a_stop():
    """Those that grew when the stop came had no iteration after it: their end says that they have ended."""
    events = list(lens_events(40))
    first_round = [e for e in events if isinstance(e, ev.LensIteration)][:40]
    ends = [e for e in events if isinstance(e, ev.LensEnd)]
    digest = LensDigest.of([events[0], *first_round, *ends[:30]])
    assert digest._numbers()["active"] == 10
    digest = LensDigest.of([events[0], *first_round, *ends, events[-1]])
    assert first_round[-1].n_active > 20
    assert digest._numbers()["active"] == 0


def test_lens_rows_are_the_latest_and_bounded():
    digest = LensDigest.of(lens_events(400))
    assert len(digest.rows) == digest.max_rows
    assert next(reversed(digest.rows)) == "c399"
    assert len(digest.curves) == digest.max_curves
    assert digest.n_done == 400


def test_capture_speed_counts_padding_apart():
    events = list(capture_events())
    digest = CaptureDigest.of(events)
    batches = [e for e in events if isinstance(e, ev.BatchEnd)]
    seconds = sum(e.seconds for e in batches)
    head, _ = digest.frame()
    assert head["real_per_s"] == pytest.approx(sum(e.tokens_real for e in batches) / seconds)
    assert head["padded_per_s"] == pytest.approx(sum(e.tokens_padded for e in batches) / seconds)
    assert head["prompt_id"] == batches[-1].prompt_id
    assert head["stages"] == events[-1].stage_seconds  # what the job says at its end: loading belongs to it
    summed = dict.fromkeys(batches[0].stage_seconds, 0.0)
    for b in batches[:3]:
        summed = {name: v + b.stage_seconds[name] for name, v in summed.items()}
    assert CaptureDigest.of(events[:4]).frame()[0]["stages"] == pytest.approx(summed)
    assert head["series"]["projections"][:2] == [
        tuple(f"uncertainty_calibration@resid_post.{i}" for i in range(5)),
        20,
    ]
