"""What a fit tells of the stages that have no iterations, and that a stop or a pause is heard there."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from probe_data import check_exact, problem

from interp import events as ev
from interp import run
from interp.events import FitBegin, FitEnd, IterationEnd, StageStep
from interp.probe import LatentSummary, Sparse1DProbe, exact, fit, stages, summary
from interp.probe.slab import Rules
from interp.threads import torch_threads

N_CLASSES = 2


@pytest.fixture
def every_part(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every batch of rows is a part, every latent a group, and each is told."""
    monkeypatch.setattr(stages, "LOOK_EVERY", 0.0)
    monkeypatch.setattr(summary, "_AT_ONCE", 1)
    monkeypatch.setattr(exact, "_POLISHED_AT_ONCE", 1)


def steep(n_latents: int = 4, n_rows: int = 2000) -> tuple[sp.csr_array, np.ndarray]:
    """Pairs so steep that 16 bins per octave are too coarse for them."""
    rng = np.random.default_rng(4)
    x = rng.uniform(0.5, 1.5, (n_rows, n_latents))
    y = (rng.random(n_rows) < 1.0 / (1.0 + np.exp(-60.0 * (x[:, 0] - 1.0)))).astype(int)
    x[:, 1:] = x[:, :1] + 0.01 * rng.standard_normal((n_rows, n_latents - 1))
    return sp.csr_array(x), y


# -------------------------------------------------------------------------- the pass over the rows


def test_the_pass_over_the_rows_tells_how_far_it_is(every_part: None) -> None:
    x, y = problem(0)
    y[::5] = -1
    events: list = []
    probe = Sparse1DProbe(row_batch_size=100).fit(x, y, iteration_hook=events.append)
    told = [e for e in events if isinstance(e, StageStep) and e.stage == "summary"]
    assert events[: len(told)] == told, "all of them come before FitBegin"
    assert isinstance(events[len(told)], FitBegin)
    labelled = np.flatnonzero(y >= 0)
    done = [e.done for e in told]
    assert done == sorted(done)
    assert sorted({0, *done}) == [*range(0, len(labelled), 100), len(labelled)]
    assert [e.n_events for e in told] == [x[labelled[:n]].nnz for n in done]
    assert {e.total for e in told} == {600}
    assert all(e.bytes_resident > 2**20 for e in told)
    seconds = [e.seconds for e in told]
    assert seconds == sorted(seconds)
    assert not any(e.is_step for e in told)
    quiet = Sparse1DProbe(row_batch_size=100).fit(x, y)
    assert np.array_equal(probe.coef_, quiet.coef_)


def test_a_short_pass_has_nothing_to_tell() -> None:
    x, y = problem(0)
    kinds = [e.kind for e in Sparse1DProbe(row_batch_size=100).iter_fit(x, y)]
    assert kinds[0] == "FitBegin"
    assert "StageStep" not in kinds


@pytest.mark.parametrize(("as_stream", "total"), [(False, 600), (True, 0)])
def test_how_many_rows_there_are_is_known_of_a_list_only(
    every_part: None, as_stream: bool, total: int
) -> None:
    x, y = problem(1)
    parts = [(x[i : i + 150], y[i : i + 150]) for i in range(0, 600, 150)]
    events = list(Sparse1DProbe(row_batch_size=50).iter_fit(iter(parts) if as_stream else parts))
    told = [e for e in events if isinstance(e, StageStep)]
    assert {e.total for e in told} == {total}
    assert told[-1].done == 600


@pytest.mark.parametrize("after", [1, 2, 5])
def test_a_stop_in_the_pass_leaves_every_pair_unstarted(every_part: None, after: int) -> None:
    x, y = problem(2)
    events: list = []

    def stop(event: ev.Event) -> bool:
        events.append(event)
        return len(events) == after

    probe = Sparse1DProbe(row_batch_size=100).fit(x, y, n_classes=7, iteration_hook=stop)
    assert [e.kind for e in events] == ["StageStep"] * after + ["FitEnd"]
    assert events[-1].stopped
    assert events[-1].status_counts == {"not_started": 84} == probe.status_counts()
    assert (probe.coef_ == 0).all()
    # Not of some rows, which nobody could tell apart from all: of none.
    assert probe.summary_.n_rows == 0
    assert np.isnan(probe.loss_).all()
    assert probe.best_latents(1)["status"].tolist() == ["not_started"] * 7
    assert probe.metrics(x, y).auroc.shape == (12, 7)
    again = Sparse1DProbe(row_batch_size=100).fit(x, y)
    assert np.array_equal(probe.fit(x, y).coef_, again.coef_)


@pytest.mark.parametrize("several", [False, True])
def test_a_stop_at_the_first_word_knows_the_classes_of_the_first_rows(
    every_part: None, monkeypatch: pytest.MonkeyPatch, several: bool
) -> None:
    monkeypatch.setattr(summary, "_AT_ONCE", 10**9)  # nothing is added before the second word
    monkeypatch.setattr(summary, "_PER_LATENT", 10**6)
    x, y = problem(2)
    labels = sp.csr_array(np.eye(7)[y]) if several else y
    told: list = []
    probe = Sparse1DProbe(row_batch_size=100).fit(x, labels, iteration_hook=[told.append, lambda e: True])
    assert [(e.kind, getattr(e, "done", None)) for e in told] == [("StageStep", 0), ("FitEnd", None)]
    assert probe.status_counts() == {"not_started": 12 * (y.max() + 1)} == told[-1].status_counts


def test_a_stop_in_the_pass_needs_no_latents_of_a_gpu() -> None:
    rules = Sparse1DProbe()._rules()
    made = fit.Fit(
        LatentSummary(5, 3),
        None,
        None,
        rules=rules,
        method="summary",
        sizes=("auto", "auto"),
        device=torch.device("cuda"),
        dtype=torch.float32,
        stopped=True,
    )
    assert made.fitted.status_counts() == {"not_started": 15}


def test_fits_stepped_in_turns_leave_torch_its_threads(every_part: None) -> None:
    x, y = problem(0)
    with torch_threads(2):
        a, b = (Sparse1DProbe(row_batch_size=100).iter_fit(x, y) for _ in range(2))
        assert isinstance(next(a), StageStep)
        assert isinstance(next(b), StageStep)
        assert torch.get_num_threads() == 2
        kinds = {e.kind for e in a}
        assert {e.kind for e in b} == kinds
        assert torch.get_num_threads() == 2


def test_an_error_late_in_the_rows_leaves_the_estimator_unchanged(every_part: None) -> None:
    x, y = problem(3)
    probe = Sparse1DProbe(row_batch_size=100).fit(x, y)
    before = probe.coef_.copy()
    with pytest.raises(ValueError, match="latents"):
        probe.fit([(x[:300], y[:300]), (x[300:, :5], y[300:])], iteration_hook=lambda e: None)
    with pytest.raises(ValueError, match="pair"):
        probe.fit([(x[:300], y[:300]), (x[300:],)], iteration_hook=lambda e: None)
    assert np.array_equal(probe.coef_, before)


def test_a_paused_run_holds_in_the_pass_and_steps_to_the_first_iteration(every_part: None) -> None:
    x, y = problem(4)
    probe = Sparse1DProbe(row_batch_size=100)
    job = run.start(probe.fit, x, y, paused=True)
    held = job.step(until=StageStep, timeout=30)
    assert (held.stage, job.state) == ("summary", "paused")
    job.step(3, until=StageStep, timeout=30)
    assert held.done < job.last.done < 600
    first = job.step(timeout=30)
    assert isinstance(first, IterationEnd)
    assert first.iteration == 1
    job.resume().wait(30)
    assert np.array_equal(probe.coef_, Sparse1DProbe(row_batch_size=100).fit(x, y).coef_)


def test_a_pause_holds_in_the_pass_and_a_stop_frees_it(every_part: None) -> None:
    x, y = problem(4)

    def endless() -> Iterator[tuple]:
        while True:
            time.sleep(0.002)
            yield x, y

    job = run.start(Sparse1DProbe(row_batch_size=600).fit, endless(), n_classes=7)
    deadline = time.monotonic() + 30.0
    while job.last is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    job.pause()
    while not job._holding:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    held = job.last
    time.sleep(0.2)
    assert job.last is held
    probe = job.stop().wait(30)
    assert job.state == "stopped"
    assert probe.status_counts() == {"not_started": 84}


# ------------------------------------------------------------------------- the raw events at the end


def test_polishing_tells_how_far_it_is_and_a_stop_leaves_the_rest(every_part: None) -> None:
    x, y = steep()
    events: list = []

    def stop(event: ev.Event) -> bool:
        events.append(event)
        return isinstance(event, StageStep) and event.stage == "polish" and event.done >= 4

    probe = Sparse1DProbe(tol=1e-8, row_batch_size=5000).fit(x, y, iteration_hook=stop)
    told = [e for e in events if isinstance(e, StageStep) and e.stage == "polish"]
    assert [(e.done, e.total, e.n_events) for e in told] == [(2, 8, 2000), (4, 8, 4000)]
    end = events[-1]
    assert isinstance(end, FitEnd)
    assert (end.stopped, end.n_polished) == (True, 4)
    waiting = probe.status_ == "needs_polish"
    assert waiting.tolist() == [[False] * 2] * 2 + [[True] * 2] * 2
    assert end.status_counts == probe.status_counts()
    # The rest is done later, and told likewise, to the very same end.
    events.clear()
    some = probe.coef_.copy()
    before = probe.n_iter_.copy()
    probe.polish(x, y, iteration_hook=events.append)
    assert [e.kind for e in events] == ["StageStep", "StageStep", "FitEnd"]
    assert [(e.done, e.total) for e in events[:2]] == [(2, 4), (4, 4)]
    assert (events[-1].n_polished, events[-1].stopped) == (4, False)
    assert np.array_equal(probe.coef_[:2], some[:2])
    assert (probe.n_iter_[2:] > before[2:]).all()
    assert np.array_equal(probe.n_iter_[:2], before[:2])
    assert check_exact(probe, x, y, N_CLASSES, tol=1e-8) == 8
    whole = Sparse1DProbe(tol=1e-8, row_batch_size=5000).fit(x, y)
    for name in ("coef_", "n_iter_", "n_fail_", "status_"):
        assert np.array_equal(getattr(probe, name), getattr(whole, name))


def test_groups_under_way_are_given_up_within_an_iteration(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = steep()
    stuck = threading.Event()

    class Endless(exact.Part):
        """The first latent's pairs end; those of the others iterate for ever."""

        @property
        def done(self) -> bool:
            return bool(self.problem.label_sums[0, 0] == first)

        def iterate(self, look: int = 0) -> None:
            stuck.set()
            time.sleep(0.001)

    s = LatentSummary(4, 2).add(x, y)
    first = s.label_sums[0, 0] / exact.rms(s.moments()[0])[0]
    monkeypatch.setattr(exact, "Part", Endless)
    monkeypatch.setattr(exact, "_POLISHED_AT_ONCE", 1)
    monkeypatch.setattr(exact, "n_threads", lambda device: 2)
    zeros = np.zeros((4, 2))
    rules = Rules(100, 1e-8, 1e-8, 1e-3, 0.1, 10.0, 6.0, 5)
    groups = exact.polish_pairs(x, y, s, zeros == 0, zeros, zeros, rules, torch.device("cpu"))
    assert next(groups)[0].tolist() == [0]
    assert stuck.wait(30)
    rescue = threading.Timer(30.0, monkeypatch.setattr, (Endless, "done", True))
    rescue.start()
    groups.close()
    assert rescue.is_alive(), "the groups under way were not given up"
    rescue.cancel()
