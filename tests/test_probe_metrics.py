"""Metrics of every pair against scikit-learn, one pair at a time on dense scores."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from probe_data import problem, problems
from probe_reference import dense, loss
from sklearn import metrics as sk

from interp.probe import Sparse1DProbe

N_LATENTS, N_CLASSES = 8, 6


def check_metrics(probe: Sparse1DProbe, x: object, y: object, n_classes: int, threshold: float = 0.5) -> None:
    """Every array of `metrics` against dense scores; `confusion` and `frame` agree with it."""
    full, positive = dense(x, y, n_classes)
    m = probe.metrics(x, y, threshold)
    counts = probe.confusion(x, y, threshold)
    cut = float(np.log(threshold) - np.log1p(-threshold))
    assert m.n_rows == len(full)
    for l in range(full.shape[1]):
        for c in range(n_classes):
            own, share = positive[:, c], positive[:, c].mean()
            b, w = probe.intercept_[l, c], probe.coef_[l, c]
            # AUROC and AP rank rows: a slope times a value may round two values to one score, so x itself
            # is the score here. The confusion is of b + w·x as it rounds.
            rank = np.sign(w) * full[:, l]
            predicted = b + w * full[:, l] > cut
            tp, fp = int((own * predicted).sum()), int(((1 - own) * predicted).sum())
            tn, fn = int(((1 - own) * ~predicted).sum()), int((own * ~predicted).sum())
            got = tuple(int(getattr(m, k)[l, c]) for k in ("tp", "fp", "tn", "fn"))
            assert got == (tp, fp, tn, fn)
            assert tuple(int(a[l, c]) for a in counts) == got
            assert m.precision[l, c] == pytest.approx(tp / max(1, tp + fp))
            assert m.recall[l, c] == pytest.approx(tp / max(1, tp + fn))
            assert m.f1[l, c] == pytest.approx(2 * tp / max(1, 2 * tp + fp + fn))
            want = loss(full[:, l], own, b, w)
            assert m.nll[l, c] == pytest.approx(want, rel=1e-6, abs=1e-9)
            if share == 0.0:
                assert np.isnan([m.auroc[l, c], m.ap[l, c], m.r[l, c]]).all()
                assert m.best_f1[l, c] == m.nll_base[c] == 0.0
                continue
            assert m.ap[l, c] == pytest.approx(sk.average_precision_score(own, rank), abs=1e-12)
            precision, recall, _ = sk.precision_recall_curve(own, rank)
            best = (2 * precision * recall / np.maximum(precision + recall, 1e-300)).max()
            assert m.best_f1[l, c] == pytest.approx(best, abs=1e-12)
            if share == 1.0:
                assert np.isnan([m.auroc[l, c], m.r[l, c]]).all()
                continue
            base = -(share * np.log(share) + (1 - share) * np.log1p(-share))
            assert m.nll_base[c] == pytest.approx(base, rel=1e-12)
            assert m.r[l, c] == pytest.approx(1.0 - want / base, abs=1e-5)
            assert m.auroc[l, c] == pytest.approx(sk.roc_auc_score(own, rank), abs=1e-12)
    table = m.frame()
    assert np.array_equal(table["latent"] * n_classes + table["class"], np.arange(len(table)))
    for name in ("nll", "auroc", "tp", "best_f1"):
        np.testing.assert_array_equal(table[name].to_numpy().reshape(m.nll.shape), m[name])
    np.testing.assert_array_equal(table["nll_base"][:n_classes], m.nll_base)


@pytest.fixture(scope="module")
def fitted() -> tuple[Sparse1DProbe, sp.csr_array, np.ndarray]:
    """A probe on coarse values (ties everywhere), with negative values, a dead latent and zero slopes."""
    x, y = problem(0, n_rows=300, n_latents=N_LATENTS, n_classes=N_CLASSES, signed=True)
    x.data = np.round(2.0 * x.data) / 2.0
    x = sp.csr_array(x.toarray() * (np.arange(N_LATENTS) != 3))
    return Sparse1DProbe().fit(x, y), x, y


@pytest.mark.parametrize("threshold", [0.5, 0.1, 0.9])
def test_metrics_are_scikit_learns(fitted: tuple, threshold: float) -> None:
    probe, x, y = fitted
    assert (probe.coef_[3] == 0).all()
    assert (probe.coef_ < 0).any()
    check_metrics(probe, x, y, N_CLASSES, threshold)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_metrics_on_other_data_than_the_fit(fitted: tuple, dtype: type) -> None:
    """A test split with values that the fit has not seen, float64 ones that no float32 holds included."""
    probe = fitted[0]
    x, y = problem(1, n_rows=200, n_latents=N_LATENTS, n_classes=N_CLASSES, signed=True, dtype=dtype)
    check_metrics(probe, x, y, N_CLASSES)


def test_a_class_that_the_data_lack_or_that_is_all_there_is(fitted: tuple) -> None:
    probe, x, _ = fitted
    check_metrics(probe, x, np.full(x.shape[0], 2), N_CLASSES)


def test_unlabelled_rows_are_left_out(fitted: tuple) -> None:
    probe, x, y = fitted
    some = np.where(np.arange(len(y)) % 4 == 0, -1, y)
    check_metrics(probe, x, some, N_CLASSES)


def test_multi_label_rows(fitted: tuple) -> None:
    probe, x, y = fitted
    rng = np.random.default_rng(2)
    labels = (y[:, None] == np.arange(N_CLASSES)) | (rng.random((len(y), N_CLASSES)) < 0.2)
    labels[5] = False
    check_metrics(probe, x, sp.csr_array(labels), N_CLASSES)


@settings(max_examples=40)
@given(problems())
def test_metrics_of_anything(p: tuple) -> None:
    x, y, n_classes = p
    probe = Sparse1DProbe(ridge=1e-3).fit(x, y, n_classes=n_classes)
    check_metrics(probe, x, y, n_classes)


def test_a_latent_on_every_row_and_one_on_none_of_a_class() -> None:
    rng = np.random.default_rng(3)
    y = rng.integers(0, 3, 120)
    x = np.column_stack(
        [rng.exponential(1.0, 120) + (y == 1), np.where(y == 2, 0.0, rng.exponential(1.0, 120))]
    )
    probe = Sparse1DProbe().fit(sp.csr_array(x), y)
    check_metrics(probe, sp.csr_array(x), y, 3)


def test_shards_have_the_metrics_of_the_whole(fitted: tuple) -> None:
    probe, x, y = fitted
    whole = probe.metrics(x, y)
    shards = [(x[:100], y[:100]), (x[100:101], y[100:101]), (x[101:], y[101:])]
    for parts in (shards, iter(shards)):
        got = probe.metrics(parts)
        for name in ("tp", "fp", "tn", "fn"):
            assert np.array_equal(got[name], whole[name])
        for name in ("nll", "nll_base", "r", "auroc", "ap", "f1", "best_f1", "precision", "recall"):
            np.testing.assert_allclose(got[name], whole[name], rtol=1e-12, atol=1e-12)
    counts = probe.confusion(iter(shards))
    assert np.array_equal(counts.tp, whole.tp)
    np.testing.assert_allclose(probe.loss_matrix(shards), whole.nll, rtol=1e-12)


@pytest.mark.parametrize("multi_label", [False, True])
def test_flips_are_counted_whatever_their_ranges(
    fitted: tuple, monkeypatch: pytest.MonkeyPatch, multi_label: bool
) -> None:
    """Threads share ranges of latents, which are counted in groups, as often as enough flips are kept."""
    from interp.probe import confusion

    probe, x, y = fitted
    if multi_label:
        y = sp.csr_array((y[:, None] == np.arange(N_CLASSES)) | (np.arange(N_CLASSES) == 1))
    for name, value in {"_GROUP": 2, "_RANGES": 2, "_KEPT": 20, "_BATCH": 64}.items():
        monkeypatch.setattr(confusion, name, value)
    check_metrics(probe, x, y, N_CLASSES)


def test_blocks_of_latents_have_the_metrics_of_the_whole(
    fitted: tuple, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the events of all latents do not fit, they come in blocks: nothing else may change."""
    from interp.probe import data, metrics, ranks

    probe, x, y = fitted
    whole = probe.metrics(x, y)
    columns = data.columns
    monkeypatch.setattr(metrics, "columns", lambda *a, **k: columns(*a, **{**k, "n_events": 40}))
    blocks = []
    monkeypatch.setattr(ranks, "_Scan", _counting(ranks._Scan, blocks))
    got = probe.metrics(x, y)
    assert len(blocks) >= 4
    for name in ("tp", "fp", "tn", "fn", "auroc", "ap", "best_f1"):
        np.testing.assert_array_equal(got[name], whole[name])


def _counting(cls: type, made: list) -> object:
    def make(*args: object) -> object:
        made.append(1)
        return cls(*args)

    return make


def test_best_latents_are_those_with_the_lowest_loss() -> None:
    x, y = problem(4)
    probe = Sparse1DProbe().fit(x, y)
    table = probe.best_latents(3)
    assert list(table["class"]) == list(np.repeat(np.arange(7), 3))
    assert list(table["rank"]) == [1, 2, 3] * 7
    loss_ = probe.loss_
    for c, rows in table.groupby("class"):
        latents = rows["latent"].to_numpy()
        assert list(latents) == list(np.argsort(loss_[:, c], kind="stable")[:3])
        np.testing.assert_array_equal(rows["loss"], loss_[latents, c])
        np.testing.assert_array_equal(rows["coef"], probe.coef_[latents, c])
        np.testing.assert_array_equal(rows["intercept"], probe.intercept_[latents, c])
        assert list(rows["status"]) == list(probe.status_[latents, c])
        share = (y == c).mean()
        base = -(share * np.log(share) + (1 - share) * np.log(1 - share))
        np.testing.assert_allclose(rows["r"], 1.0 - rows["loss"] / base, rtol=1e-12)
    assert len(probe.best_latents(100)) == 12 * 7, "no more than there are"
    # The table holds for data that are long gone.
    assert probe.best_latents(1)["r"].max() > 0.1
    # A class that never occurs explains nothing: it must not lead a table that is sorted by r.
    table = Sparse1DProbe().fit(x, y, n_classes=9).best_latents(1).set_index("class")["r"]
    assert table[[7, 8]].isna().all()
    assert np.isfinite(table[:6]).all()


@pytest.mark.parametrize("threshold", [0.0, 1.0, -1.0, float("nan")])
def test_threshold_must_be_a_probability(fitted: tuple, threshold: float) -> None:
    probe, x, y = fitted
    with pytest.raises(ValueError, match="threshold must lie in"):
        probe.metrics(x, y, threshold)
    with pytest.raises(ValueError, match="threshold must lie in"):
        probe.confusion(x, y, threshold)


def test_metrics_refuse_data_that_do_not_fit(fitted: tuple) -> None:
    probe, x, y = fitted
    for call in (probe.metrics, probe.confusion, probe.loss_matrix, probe.certify):
        with pytest.raises(ValueError, match=r"7 latents"):
            call(x[:, :7], y)
        with pytest.raises(ValueError, match="outside"):
            call(x, np.full(len(y), N_CLASSES))
    for call in (probe.metrics, probe.loss_matrix):
        with pytest.raises(ValueError, match="no labelled row"):
            call(x, np.full(len(y), -1))
