"""Grades: exact areas, honest intervals, and simulations of luck and of power."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import expit, ndtri
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score, roc_auc_score

from interp.lens import grade as g
from interp.lens.fit import solve, weights

#: Distance of the means of two unit normals whose AUROC is 0.9, a score of 0.8.
TRUE_08 = math.sqrt(2) * ndtri(0.9)


@given(st.integers(0, 10_000), st.integers(1, 6))
def test_auroc_is_sklearns(seed, values):
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, values, (4, 30)).astype(float)
    labels = rng.random((4, 30)) < 0.4
    labels[:, :2] = [True, False]
    expected = [roc_auc_score(y, s) for y, s in zip(labels, scores, strict=True)]
    np.testing.assert_allclose(g.auroc(scores, labels), expected, atol=1e-12)


def test_auroc_without_a_class_is_nan():
    assert np.isnan(g.auroc([1.0, 2.0], [True, True]))
    assert math.isnan(g.auroc_interval([1.0, 2.0], [True, True])[0])


def slow_delong(scores, labels):
    """The variance of DeLong, by its definition."""
    pos, neg = scores[labels], scores[~labels]
    kernel = (pos[:, None] > neg[None]) + 0.5 * (pos[:, None] == neg[None])
    return kernel.mean(1).var(ddof=1) / len(pos) + kernel.mean(0).var(ddof=1) / len(neg)


def test_variance_is_delongs():
    rng = np.random.default_rng(0)
    for _ in range(20):
        labels = np.arange(50) < 20
        scores = np.round(rng.normal(size=50) + labels, 1)
        area = float(g.auroc(scores, labels))
        beats = np.empty(50)
        beats[labels] = (scores[labels][:, None] > scores[~labels]).mean(1)
        beats[labels] += 0.5 * (scores[labels][:, None] == scores[~labels]).mean(1)
        beats[~labels] = (scores[labels][None] > scores[~labels][:, None]).mean(1)
        beats[~labels] += 0.5 * (scores[labels][None] == scores[~labels][:, None]).mean(1)
        found = g._delong_variance(beats, labels, np.arange(50), area)
        assert found == pytest.approx(slow_delong(scores, labels), rel=1e-9)


def test_copies_of_a_row_do_not_narrow_the_interval():
    rng = np.random.default_rng(0)
    labels = np.arange(60) < 30
    scores = rng.normal(size=60) + labels
    area, low, high = g.auroc_interval(scores, labels)
    many = [np.repeat(a, 5) for a in (scores, labels, np.arange(60))]
    clustered = g.auroc_interval(*many)
    assert clustered[0] == pytest.approx(area)
    assert clustered[1] == pytest.approx(low, abs=0.005)
    assert clustered[2] == pytest.approx(high, abs=0.005)
    naive = g.auroc_interval(many[0], many[1])
    assert naive[1] > low + 0.03  # what pretending independence would have given


@pytest.mark.parametrize(("n", "m"), [(8, 8), (10, 60), (30, 30), (80, 80)])
@pytest.mark.parametrize("true", [0.5, 0.75, 0.9, 0.98])
def test_coverage(n, m, true):
    rng = np.random.default_rng(n + m)
    labels = np.arange(n + m) < n
    shift = math.sqrt(2) * ndtri(true)
    inside = above = 0
    for _ in range(400):
        _, low, high = g.auroc_interval(rng.normal(size=n + m) + shift * labels, labels)
        inside += low <= true <= high
        above += low > true
    assert inside >= 0.925 * 400
    assert above <= 0.045 * 400  # nominal 2.5 %


def test_coverage_with_groups():
    """Rows of a group share most of their noise. Clustered intervals cover; intervals per row do not."""
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(40), 4)
    labels = groups < 20
    true, inside, naive = 0.85, 0, 0
    shift = math.sqrt(2) * ndtri(true)
    for _ in range(300):
        noise = math.sqrt(0.9) * rng.normal(size=40)[groups] + math.sqrt(0.1) * rng.normal(size=160)
        scores = noise + shift * labels
        _, low, high = g.auroc_interval(scores, labels, groups)
        inside += low <= true <= high
        _, low, high = g.auroc_interval(scores, labels)
        naive += low <= true <= high
    assert inside >= 0.925 * 300
    assert naive < 0.8 * 300


def test_perfect_separation_has_an_honest_bound():
    """With few prompts a perfect score promises little, and the bound grows with their number."""
    bounds = []
    for n in (8, 20, 40, 80):
        labels = np.arange(2 * n) < n
        result = g.grade(labels.astype(float), labels)
        assert result.auroc == result.high == 1
        bounds.append(result.low)
    assert bounds == sorted(bounds)
    assert bounds[0] < 0.52 < bounds[1] < 0.85 < bounds[3] < 0.98


def test_scores_must_be_finite():
    with pytest.raises(ValueError, match="1 of 3 scores are not finite"):
        g.auroc_interval([1.0, float("nan"), 2.0], [True, False, True])


@pytest.mark.parametrize(
    ("n", "m", "letter", "why"),
    [
        (0, 20, "U", "no held-out positives"),
        (20, 0, "U", "no held-out prompts of siblings"),
        (7, 80, "U", "7 positive and 80 sibling prompts held out, 8 of each"),
        (80, 7, "U", "80 positive and 7 sibling"),
        (80, 80, "A", ""),
    ],
)
def test_too_few_prompts_are_ungraded(n, m, letter, why):
    labels = np.arange(n + m) < n
    result = g.grade(labels + 0.0, labels)
    assert result.letter == letter
    assert why in result.why


@pytest.mark.parametrize(
    ("low", "letter"), [(1.0, "A"), (0.5, "A"), (0.4999, "B"), (0.2, "B"), (0.1999, "C"), (-1.0, "C")]
)
def test_letters_at_their_boundaries(low, letter):
    assert g.letter(low) == letter


def test_the_letter_is_that_of_the_lower_bound():
    """A score of 0.72 [0.48, 0.86] is a B; of more prompts with the same score, an A."""
    rng = np.random.default_rng(0)
    letters = set()
    for n in (15, 20, 40, 80):
        labels = np.arange(2 * n) < n
        result = g.grade(rng.normal(size=2 * n) + 1.6 * labels, labels)
        assert result.letter == g.letter(result.low)
        assert g.letter(result.score) == "A"
        letters.add(result.letter)
    assert letters == {"A", "B"}


def test_many_rows_of_few_groups_are_still_few():
    labels = np.arange(80) < 40
    assert g.grade(labels + 0.0, labels, np.arange(80) // 10).letter == "U"


# ------------------------------------------------------------------------------ luck and power


@pytest.mark.parametrize("n_test", [(8, 8), (8, 80), (20, 20), (80, 80)])
def test_of_1000_shuffled_lenses_fewer_than_1_percent_get_a_or_b(n_test):
    """Trained and graded as lenses are, on labels that mean nothing."""
    n, m = n_test
    generator = torch.Generator().manual_seed(n * 1000 + m)
    z = torch.randn(1000, 40, 32, generator=generator) / 32**0.5
    y = (torch.arange(40) % 2).float().expand(1000, 40).contiguous()
    w = weights(solve(z, y, torch.ones_like(y), 0.03)[0], z)
    test = torch.randn(1000, n + m, 32, generator=generator) / 32**0.5
    scores = (test @ w[:, :, None])[:, :, 0].numpy()
    labels = np.arange(n + m) < n
    letters = [g.grade(s, labels).letter for s in scores]
    assert letters.count("A") + letters.count("B") < 10, {x: letters.count(x) for x in "ABCU"}


def test_of_1000_lenses_of_true_score_08_at_full_size_95_percent_get_an_a():
    """Full size: 80 positives and 80 siblings, what `interp.lens.samples` gives where the pack has them."""
    from interp.lens.samples import _MOST

    n = _MOST["test"]
    rng = np.random.default_rng(8)
    labels = np.arange(2 * n) < n
    letters = [g.grade(rng.normal(size=2 * n) + TRUE_08 * labels, labels).letter for _ in range(1000)]
    assert letters.count("A") >= 950, {x: letters.count(x) for x in "ABCU"}


def test_a_point_estimate_would_be_fooled():
    """Why the bound: with 20 + 20 prompts, a score of 0.2 happens to 14 % of meaningless lenses."""
    rng = np.random.default_rng(0)
    labels = np.arange(40) < 20
    scores = 2 * g.auroc(rng.normal(size=(2000, 40)), labels) - 1
    assert 0.11 < (scores >= 0.2).mean() < 0.17


# ------------------------------------------------------------------------------ F1, probabilities


@given(st.integers(0, 40), st.integers(0, 40), st.integers(0, 40))
def test_f1_is_sklearns(tp, fp, fn):
    f1, low, high = g.f1_interval(tp, fp, fn)
    truth = [1] * (tp + fn) + [0] * fp
    said = [1] * tp + [0] * fn + [1] * fp
    expected = f1_score(truth, said, zero_division=0) if truth else 0.0
    assert f1 == pytest.approx(expected)
    assert 0 <= low <= f1 + 1e-12
    assert f1 - 1e-12 <= high <= 1


def test_f1_bound_needs_37_faultless_positives():
    assert g.f1_interval(37, 0, 0)[1] >= 0.95 > g.f1_interval(36, 0, 0)[1]


def test_f1_interval_covers():
    rng = np.random.default_rng(0)
    for recall, false_alarm in ((0.95, 0.05), (0.8, 0.2), (0.99, 0.02)):
        true = 2 * recall / (2 * recall + false_alarm + 1 - recall)
        inside = 0
        for _ in range(600):
            tp, fp = rng.binomial(60, recall), rng.binomial(60, false_alarm)
            _, low, high = g.f1_interval(tp, fp, 60 - tp)
            inside += low <= true <= high
        assert inside >= 0.925 * 600


def test_balanced_f1_ignores_prevalence():
    scores = np.array([1.0, 1.0, -1.0, 1.0, -1.0, -1.0, -1.0])
    labels = np.array([True, True, True, False, False, False, False])
    many = (
        np.concatenate([scores[:3], np.tile(scores[3:], 5)]),
        np.concatenate([labels[:3], np.tile(labels[3:], 5)]),
    )
    assert g.balanced_f1(scores, labels) == pytest.approx(g.balanced_f1(*many))
    assert g.balanced_f1(scores, labels) == pytest.approx(2 * (2 / 3) / (2 / 3 + 1 / 4 + 1))


def one(many, logits, labels):
    return many([logits], [labels])[0]


def test_calibration_and_brier():
    rng = np.random.default_rng(0)
    f = rng.normal(size=4000) * 2
    labels = rng.random(4000) < expit(f)
    slope, intercept = one(g.calibrations, f, labels)
    assert slope == pytest.approx(1, abs=0.1)
    assert intercept == pytest.approx(0, abs=0.1)
    assert one(g.calibrations, 3 * f, labels)[0] == pytest.approx(slope / 3, rel=1e-6)
    weight = np.where(labels, 0.5 / labels.mean(), 0.5 / (1 - labels.mean()))
    model = LogisticRegression(C=1e12, tol=1e-10).fit(f[:, None], labels, sample_weight=weight)
    assert slope == pytest.approx(model.coef_[0, 0], rel=1e-4)
    assert g.brier(np.zeros(10), np.arange(10) < 3) == pytest.approx(0.25)
    assert g.brier(np.array([50.0, -50.0]), np.array([True, False])) == pytest.approx(0)
    assert np.isnan(one(g.calibrations, labels + 0.0, labels)[0])  # separated: no slope


def test_platt_repairs_overconfidence_and_keeps_the_order():
    rng = np.random.default_rng(1)
    labels = np.arange(400) < 200
    f = (rng.normal(size=400) + labels - 0.5) * 10
    slope, intercept = one(g.platts, f[::2], labels[::2])
    assert slope > 0
    fixed = slope * f[1::2] + intercept
    assert (
        abs(one(g.calibrations, fixed, labels[1::2])[0] - 1)
        < 0.3
        < abs(one(g.calibrations, f[1::2], labels[1::2])[0] - 1)
    )
    assert g.brier(fixed, labels[1::2]) < g.brier(f[1::2], labels[1::2])
    assert one(g.platts, f[:5], labels[:5]) == (1.0, 0.0)
    assert (
        one(g.platts, -f, labels)[0] > 0
    )  # a lens that is wrong on the calibration rows is damped, never turned round
