"""What a fit tells while it runs, and that listening, stopping and failing do what they say."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from probe_data import problem, separable
from probe_reference import dense, levenberg_marquardt

from interp.events import IterationEnd, JsonlLog, read
from interp.probe import Sparse1DProbe, fit, step

LISTENED = ["lam_min", "lam_q1", "lam_median", "lam_q3", "lam_max", "loss_mean", "loss_max", "grad_max"]


def events_of(probe: Sparse1DProbe, x: object, y: object) -> list:
    events: list = []
    probe.fit(x, y, iteration_hook=events.append)
    return events


@pytest.mark.parametrize("method", ["summary", "events"])
def test_the_course_of_a_fit(method: str) -> None:
    x, y = problem(0)
    probe = Sparse1DProbe(method=method, class_slab_size=3)
    events = events_of(probe, x, y)
    kinds = [e.kind for e in events]
    begin, end = events[0], events[-1]
    assert (kinds[0], kinds[-1]) == ("FitBegin", "FitEnd")
    assert (begin.method, begin.n_rows, begin.n_latents, begin.n_classes) == (method, 600, 12, 7)
    assert (begin.n_events, begin.n_slabs, begin.class_slab_size) == (x.nnz, 3, 3)
    assert begin.n_nodes == (x.nnz if method == "events" else probe.summary_.nodes().offsets[-1])
    assert kinds.count("SlabBegin") == kinds.count("SlabEnd") == 3
    slabs = [e for e in events if e.kind == "SlabBegin"]
    assert [(e.class_start, e.class_stop) for e in slabs] == [(0, 3), (3, 6), (6, 7)]
    assert [e.n_pairs for e in slabs] == [36, 36, 12]
    steps = [e for e in events if e.kind == "IterationEnd"]
    for k in range(3):
        mine = [e for e in steps if e.slab == k]
        assert [e.iteration for e in mine] == list(range(1, len(mine) + 1))
        active = [e.n_active for e in mine]
        assert active == sorted(active, reverse=True)
        assert active[-1] == 0
        for e in mine:
            assert e.lam_min <= e.lam_q1 <= e.lam_median <= e.lam_q3 <= e.lam_max or e.n_active == 0
            assert e.n_rejected + e.n_clipped >= 0
            assert e.seconds > 0
            assert e.bytes_resident > 2**20
        # Pairs iterate until they are done: what is active after k iterations has n_iter > k.
        n_iter = probe.n_iter_[:, 3 * k : 3 * k + 3]
        assert active == [int((n_iter > e.iteration).sum()) for e in mine]
    assert np.isfinite(steps[0].loss_mean)
    assert end.n_pairs == 84
    assert end.status_counts == probe.status_counts()
    assert not end.stopped
    assert {"summary", "nodes", "solve", "polish"} <= set(end.stage_seconds)


@pytest.mark.parametrize("at_most", [10_000, 60, 1])
def test_the_loss_of_an_event_is_that_of_its_pairs(monkeypatch: pytest.MonkeyPatch, at_most: int) -> None:
    monkeypatch.setattr(fit, "_LOSS_PAIRS", at_most)
    monkeypatch.setattr(fit, "_LOSS_SHARE", math.inf)
    monkeypatch.setattr(fit, "LOOK_EVERY", 0.0)
    x, y = problem(1)
    probe = Sparse1DProbe(max_iter=2, class_slab_size=7)
    last = [e for e in events_of(probe, x, y) if e.kind == "IterationEnd"][-1]
    latents = np.flatnonzero(probe.summary_.n_events)
    losses = probe.loss_[latents[:: -(-len(latents) * probe.loss_.shape[1] // at_most)]]
    np.testing.assert_allclose([last.loss_mean, last.loss_max], [losses.mean(), losses.max()], rtol=1e-9)


def test_extremes_are_those_of_every_pair_that_took_the_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Over all parts, and without the pairs that had ended but were still laid out with the others."""
    judged, stepped, stirred = step.judged, [], []
    rng = np.random.default_rng(0)

    def recorded(a: step.Active, *rest: object) -> tuple:
        if len(stirred) < 3:  # every part's first: lambdas that differ, and the steepest pair has ended
            stirred.append(True)
            size = a.g.abs().amax(dim=0)
            a = a._replace(lam=a.lam * torch.from_numpy(10.0 ** rng.normal(0.0, 1.0, len(a.lam))))
            a = a._replace(live=a.live & (size < size.max()))
            rest = (*rest[:-2], False, rest[-1])
        after, counts, told = judged(a, *rest)
        stepped.append((a.live.clone(), after.lam[a.live].numpy(), after.g[:, a.live].abs().max().item()))
        return after, counts, told

    monkeypatch.setattr(step, "judged", recorded)
    monkeypatch.setattr(fit, "_PART", (4, 4))
    x, y = problem(1, n_rows=900, n_classes=40)
    heard = []
    for event in Sparse1DProbe(class_slab_size=40).iter_fit(x, y):
        if event.kind == "IterationEnd":
            lam = np.sort(np.concatenate([lam for _, lam, _ in stepped]))
            assert (event.lam_min, event.lam_max) == (lam[0], lam[-1])
            assert event.grad_max == max(g for *_, g in stepped)
            for name, share in (("lam_q1", 0.25), ("lam_median", 0.5), ("lam_q3", 0.75)):
                assert getattr(event, name) == lam[round(share * (len(lam) - 1))]
            heard += stepped
        stepped.clear()
    assert len(heard) > 20
    assert {bool(live.all()) for live, *_ in heard} == {True, False}


def test_a_loss_is_told_as_often_as_it_may_cost(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first for nothing; then at most so often, and never above the share of the processor's time."""
    x, y = problem(1)

    def told() -> list[bool]:
        steps = [e for e in events_of(Sparse1DProbe(class_slab_size=1), x, y) if e.kind == "IterationEnd"]
        return [math.isfinite(e.loss_mean) and math.isfinite(e.loss_max) for e in steps]

    monkeypatch.setattr(fit, "_LOSS_SHARE", math.inf)
    monkeypatch.setattr(fit, "LOOK_EVERY", 0.0)
    assert all(told())
    monkeypatch.setattr(fit, "LOOK_EVERY", 1000.0)
    assert sum(told()) == 1
    monkeypatch.setattr(fit, "LOOK_EVERY", 0.0)
    monkeypatch.setattr(fit, "_LOSS_SHARE", 0.1)
    clock = itertools.count()  # every look at it a second later: a loss takes one
    monkeypatch.setattr(fit.time, "process_time", lambda: float(next(clock)))
    steps = told()
    assert steps[0]
    # The first for nothing, one to learn the cost, then a tenth of the time that all looks take.
    assert sum(steps) == pytest.approx(1 + 0.1 * (len(steps) + sum(steps)), abs=1.0)


def test_history_is_the_events() -> None:
    x, y = problem(1)
    probe = Sparse1DProbe(class_slab_size=4)
    steps = [e for e in events_of(probe, x, y) if e.kind == "IterationEnd"]
    history = probe.history_
    assert len(history) == len(steps)
    for name in ("slab", "iteration", "n_active", "n_fail", "lam_median", "grad_max", "seconds"):
        np.testing.assert_array_equal(history[name], [getattr(e, name) for e in steps])


def test_nobody_listening_pays_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a hook the telemetry is not even computed."""
    from interp.probe import fit
    from interp.probe.slab import Slab

    def called(*_: object) -> None:
        raise AssertionError("computed for nobody")

    monkeypatch.setattr(Slab, "active_extremes", called)
    monkeypatch.setattr(fit.Fit, "_loss", called)
    monkeypatch.setattr(fit, "rss_bytes", called)
    x, y = problem(2)
    probe = Sparse1DProbe().fit(x, y)
    history = probe.history_
    assert history[LISTENED].isna().all().all()
    assert (history["n_active"] >= 0).all()
    assert (history["seconds"] > 0).all()
    with pytest.raises(AssertionError, match="computed for nobody"):
        Sparse1DProbe().fit(x, y, iteration_hook=lambda e: None)


def test_listening_does_not_change_the_answer() -> None:
    x, y = problem(3)
    quiet, heard = Sparse1DProbe().fit(x, y), Sparse1DProbe().fit(x, y, iteration_hook=[lambda e: None] * 2)
    assert np.array_equal(quiet.coef_, heard.coef_)
    assert np.array_equal(quiet.lambda_, heard.lambda_)


@pytest.mark.parametrize("stop_after", [1, 2, 4])
@pytest.mark.parametrize("method", ["summary", "events"])
def test_a_stop_after_iteration_i_is_a_run_limited_to_i(method: str, stop_after: int) -> None:
    x, y = problem(4)
    stopped = Sparse1DProbe(method=method, class_slab_size=7)
    events: list = []

    def stop(event: object) -> bool:
        events.append(event)
        return isinstance(event, IterationEnd) and event.iteration == stop_after

    stopped.fit(x, y, iteration_hook=stop)
    limited = Sparse1DProbe(method=method, class_slab_size=7, max_iter=stop_after).fit(x, y)
    for name in ("coef_", "intercept_", "status_", "n_iter_", "n_fail_", "lambda_"):
        np.testing.assert_array_equal(getattr(stopped, name), getattr(limited, name))
    assert events[-1].kind == "FitEnd"
    assert events[-1].stopped
    assert sum(e.kind == "IterationEnd" for e in events) == stop_after
    assert (stopped.status_ == "max_iter").any()
    # What stands is a valid probe.
    assert stopped.metrics(x, y).auroc.shape == (12, 7)
    assert np.isfinite(stopped.best_latents(1)["loss"]).all()


@pytest.mark.parametrize("kind", ["FitBegin", "SlabBegin", "IterationEnd", "SlabEnd"])
def test_a_stop_at_any_event_ends_the_fit(kind: str) -> None:
    x, y = problem(5)
    kinds: list[str] = []

    def stop(event: object) -> bool:
        kinds.append(event.kind)
        return event.kind == kind

    probe = Sparse1DProbe(class_slab_size=2).fit(x, y, iteration_hook=stop)
    assert kinds.count(kind) == 1
    assert kinds[-1] == "FitEnd"
    assert kinds.count("IterationEnd") <= 1 or kind == "SlabEnd"
    later = probe.status_[:, 2:]
    assert (later == "not_started").all()
    assert (probe.coef_[:, 2:] == 0).all()
    if kind == "SlabEnd":
        assert (probe.status_[:, :2] == "converged").all()


def test_iter_fit_steps_by_hand_and_keeps_what_stands_when_left() -> None:
    x, y = problem(6)
    probe = Sparse1DProbe(class_slab_size=7)
    kinds = []
    for event in probe.iter_fit(x, y):
        kinds.append(event.kind)
        if event.kind == "IterationEnd" and event.iteration == 2:
            break
    limited = Sparse1DProbe(class_slab_size=7, max_iter=2).fit(x, y)
    assert kinds == ["FitBegin", "SlabBegin", "IterationEnd", "IterationEnd"]
    np.testing.assert_array_equal(probe.coef_, limited.coef_)
    np.testing.assert_array_equal(probe.status_, limited.status_)
    list(probe.iter_fit(x, y))
    np.testing.assert_array_equal(probe.coef_, Sparse1DProbe(class_slab_size=7).fit(x, y).coef_)


def test_a_hook_that_raises_ends_the_fit_with_what_stands() -> None:
    x, y = problem(7)
    probe = Sparse1DProbe(class_slab_size=7)

    def fails(event: object) -> None:
        if event.kind == "IterationEnd" and event.iteration == 3:
            raise RuntimeError("from the hook")

    with pytest.raises(RuntimeError, match="from the hook"):
        probe.fit(x, y, iteration_hook=fails)
    np.testing.assert_array_equal(probe.coef_, Sparse1DProbe(class_slab_size=7, max_iter=3).fit(x, y).coef_)


def test_the_log_gives_the_events_back(tmp_path: object) -> None:
    x, y = problem(8)
    events: list = []
    Sparse1DProbe().fit(x, y, iteration_hook=[JsonlLog(tmp_path / "fit.jsonl"), events.append])
    back = list(read(tmp_path / "fit.jsonl"))
    assert [e.kind for e in back] == [e.kind for e in events]
    assert [e.n_active for e in back if e.kind == "IterationEnd"] == [
        e.n_active for e in events if e.kind == "IterationEnd"
    ]


def test_inert_pairs_never_enter_a_step() -> None:
    """Two latents, one of which is the same on every row: its pairs have zero gradient at the start."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, 300)
    x = np.column_stack([np.full(300, 2.0), rng.exponential(1.0, 300) + (y == 1)])
    import scipy.sparse as sp

    probe = Sparse1DProbe(class_slab_size=3)
    events = events_of(probe, sp.csr_array(x), y)
    begin = next(e for e in events if e.kind == "SlabBegin")
    assert begin.n_inert == 3
    assert (probe.n_iter_[0] == 0).all()
    assert (probe.n_fail_[0] == 0).all()
    assert (probe.lambda_[0] == 1e-3).all()
    assert (probe.n_iter_[1] > 0).all()


# ---------------------------------------------------------------------------------- failures


def _steep(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Latents for which an undamped Newton step without a budget goes much too far, and others."""
    rng = np.random.default_rng(seed)
    n = 400
    y = (rng.random(n) < 0.08).astype(int)
    columns = []
    for k in range(12):
        fires = rng.random(n) < np.where(y == 1, 0.9, 0.03 * (1 + k))
        columns.append(fires * rng.exponential(1.0 + 3.0 * (k % 3) * y, n))
    return np.column_stack(columns), y


@pytest.mark.parametrize("max_retries", [0, 1, 2])
def test_n_fail_is_a_true_count(max_retries: int) -> None:
    """Exactly the pairs that fail in a plain NumPy loop, as often and in the iterations they do there.

    No damping and no budget: Newton's first steps overshoot. With `max_retries` = 0 every rejected step is
    a failure; with more, only those that a few tenfold dampings cannot mend.
    """
    import scipy.sparse as sp

    x, y = _steep(0)
    rules = {"lam_init": 1e-12, "delta_logit": 1e12, "max_retries": max_retries, "max_iter": 60}
    full, positive = dense(x, y, 2)
    want = np.zeros((12, 2), int)
    n_iter = np.zeros((12, 2), int)
    at_iteration = np.zeros(61, int)
    for l in range(12):
        for c in range(2):
            _, _, n_iter[l, c], failures = levenberg_marquardt(full[:, l], positive[:, c], **rules)
            want[l, c] = len(failures)
            at_iteration[failures] += 1
    k = int((want > 0).sum())
    if max_retries == 0:
        assert 4 <= k < 24, "the set must hold pairs of both kinds"
    probe = Sparse1DProbe(method="events", class_slab_size=2, **rules)
    events = events_of(probe, sp.csr_array(x), y)
    np.testing.assert_array_equal(probe.n_fail_, want)
    np.testing.assert_array_equal(probe.n_iter_, n_iter)
    assert int((probe.n_fail_ > 0).sum()) == k
    heard = np.zeros(61, int)
    for e in events:
        if e.kind == "IterationEnd":
            heard[e.iteration] = e.n_fail
    np.testing.assert_array_equal(heard, at_iteration)
    assert probe.history_["n_fail"].sum() == want.sum() == events[-1].n_fail
    assert next(e for e in events if e.kind == "SlabEnd").n_fail == want.sum()


def test_failures_fall_back_and_still_end_at_the_optimum() -> None:
    import scipy.sparse as sp
    from probe_data import check_exact

    x, y = _steep(0)
    probe = Sparse1DProbe(lam_init=1e-12, delta_logit=1e12, max_retries=0, max_iter=500).fit(
        sp.csr_array(x), y
    )
    assert probe.n_fail_.sum() > 0
    assert np.isin(probe.status_, ("converged", "separable")).all()
    assert check_exact(probe, x, y, 2) == 24


def test_a_pair_that_can_do_nothing_right_ends_as_lm_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every step of class 0 is refused: max_retries + 1 steps, then the fallback, then it is over."""
    from interp.probe import lm, step

    x, y = problem(9)
    certified = lm.certified_decrease

    def refuse(move: lm.Step, g_new: torch.Tensor, h_new: torch.Tensor) -> torch.Tensor:
        return torch.full_like(certified(move, g_new, h_new), float("nan"))

    monkeypatch.setattr(lm, "certified_decrease", refuse)
    monkeypatch.setattr(step, "_judged", step._judged.__wrapped__)  # as Python, which sees the patch
    probe = Sparse1DProbe(max_retries=2)
    events = events_of(probe, x, y)
    stuck = probe.n_iter_ > 0
    assert (probe.status_[stuck] == "lm_failed").all()
    assert (probe.n_iter_[stuck] == 4).all()
    assert (probe.n_fail_[stuck] == 1).all()
    np.testing.assert_allclose(probe.lambda_[stuck], 1e-3 * 10.0**4)
    assert (probe.coef_ == 0).all(), "a refused step is taken back"
    assert events[-1].n_fail == stuck.sum()
    assert events[-1].status_counts["lm_failed"] == stuck.sum()


def test_clipped_steps_are_counted() -> None:
    x, y = separable(0.5)
    probe = Sparse1DProbe(class_slab_size=2)
    steps = [e for e in events_of(probe, x, y) if e.kind == "IterationEnd"]
    assert any(e.n_clipped > 0 for e in steps)
    free = Sparse1DProbe(class_slab_size=2, delta_logit=1e9)
    assert not any(e.n_clipped for e in events_of(free, x, y) if e.kind == "IterationEnd")
