"""LatentSummary: what one pass keeps, that it adds up, and how its nodes stand for the values."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from probe_data import hard_sets, problem, problems
from probe_reference import dense, sigmoid, unit

from interp.probe import LatentSummary
from interp.probe.data import check_shard
from interp.probe.exact import rms
from interp.probe.summary import _batches
from interp.threads import torch_threads


def same(a: LatentSummary, b: LatentSummary, rtol: float = 1e-12) -> None:
    """Assert that two summaries hold the same, up to rounding in the order of sums."""
    assert (a.n_rows, a.n_latents, a.n_classes) == (b.n_rows, b.n_latents, b.n_classes)
    assert np.array_equal(a.n_events, b.n_events)
    assert np.array_equal(a.class_counts, b.class_counts)
    scale = np.abs(a.label_sums).max(initial=1e-30)
    np.testing.assert_allclose(a.label_sums, b.label_sums, rtol=rtol, atol=rtol * scale)
    one, two = a.nodes(), b.nodes()
    assert np.array_equal(one.offsets, two.offsets)
    # A node may trade weight with its twin in a nearly flat bin; what they stand for may not change.
    for power in range(4):
        sums = [_per_latent(n, n.m * n.x**power) for n in (one, two)]
        size = _per_latent(one, one.m * np.abs(one.x) ** power)
        np.testing.assert_allclose(sums[0], sums[1], rtol=0, atol=1e-9 * size.max(initial=1e-30))


def _per_latent(nodes: object, values: np.ndarray) -> np.ndarray:
    before = np.concatenate([[0.0], np.cumsum(values)])
    return before[nodes.offsets[1:]] - before[nodes.offsets[:-1]]


def check_against_dense(summary: LatentSummary, x: object, y: object, n_classes: int) -> None:
    full, positive = dense(x, y, n_classes)
    assert summary.n_rows == len(full)
    assert np.array_equal(summary.n_events, (full != 0).sum(axis=0))
    assert np.array_equal(summary.class_counts, positive.sum(axis=0))
    size = np.abs(full).sum(axis=0).max(initial=1.0)
    np.testing.assert_allclose(summary.label_sums, full.T @ positive, rtol=1e-12, atol=1e-13 * size)
    moments, low, high = summary.moments()
    for power in range(3):
        want = (full**power * (full != 0)).sum(axis=0)
        size = (np.abs(full) ** power * (full != 0)).sum(axis=0)
        np.testing.assert_allclose(moments[:, power], want, rtol=1e-12, atol=1e-12 * size.max(initial=1e-30))
    for l, column in enumerate(full.T):
        events = column[column != 0]
        if not len(events):
            assert low[l] == high[l] == 0.0
            continue
        slack = 1.0 / 16.0 + 1e-12
        assert low[l] <= events.min() <= low[l] + slack * abs(events.min())
        assert high[l] - slack * abs(events.max()) <= events.max() <= high[l]
        assert rms(moments)[l] == pytest.approx(unit(column), rel=1e-12)


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_sums_and_moments_are_those_of_the_dense_data(signed: bool, dtype: type) -> None:
    x, y = problem(1, signed=signed, dtype=dtype)
    check_against_dense(LatentSummary(12, 7).add(x, y), x, y, 7)


@settings(max_examples=150)
@given(problems())
def test_sums_and_moments_of_anything(p: tuple) -> None:
    x, y, n_classes = p
    check_against_dense(LatentSummary(x.shape[1], n_classes).add(x, y), x, y, n_classes)


def test_each_bin_keeps_four_moments_exactly_and_its_nodes_lie_inside() -> None:
    """The Gauss rule: count, mean, and second and third moments of every bin of every latent."""
    x, y = problem(2, n_rows=4000, n_latents=5, density=0.6, signed=True)
    nodes = LatentSummary(5, 7).add(x, y).nodes()
    assert (nodes.m > 0).all()
    for l in range(5):
        values = x[:, [l]].toarray().ravel().astype(np.float64)
        values = values[values != 0]
        at = slice(nodes.offsets[l], nodes.offsets[l + 1])
        bins, node_bins = _bin(values), _bin(nodes.x[at])
        assert set(node_bins) == set(bins)
        for key in np.unique(bins):
            mine, here = values[bins == key], node_bins == key
            assert here.sum() == (1 if len(np.unique(mine)) == 1 else 2)
            position, weight = nodes.x[at][here], nodes.m[at][here]
            centre, half = mine.mean(), np.abs(mine).max() / 32.0
            for power in range(4):
                want = (((mine - centre) / half) ** power).sum()
                got = (weight * ((position - centre) / half) ** power).sum()
                assert got == pytest.approx(want, abs=1e-8 * len(mine))


def _bin(values: np.ndarray) -> np.ndarray:
    """Sign, octave and sixteenth of each value."""
    mantissa, exponent = np.frexp(np.abs(values))
    # A node may sit on the upper edge of its bin; only rounding tells it from the next bin's lower edge.
    return np.sign(values) * (exponent * 16.0 + np.floor((2.0 * mantissa - 1.0) * 16.0 - 1e-9) + 10_000.0)


def test_nodes_integrate_a_sigmoid_within_their_error_bound() -> None:
    x, y = problem(3, n_rows=3000, n_latents=6, density=0.5)
    summary = LatentSummary(6, 7).add(x, y)
    nodes = summary.nodes()
    worst = 0.0
    for w in (0.3, 3.0, 30.0):
        for l in range(6):
            values = x[:, [l]].toarray().ravel().astype(np.float64)
            values = values[values != 0]
            at = slice(nodes.offsets[l], nodes.offsets[l + 1])
            z, z_values = w * (nodes.x[at] - 1.5), w * (values - 1.5)
            error = abs((nodes.m[at] * sigmoid(z)).sum() - sigmoid(z_values).sum())
            spread = sigmoid(z) * sigmoid(-z) * np.exp(w * np.abs(nodes.x[at]) / 16.0)
            bound = w**4 * (nodes.e[at] * spread).sum()
            assert error <= bound + 1e-10 * len(values)
            worst = max(worst, error / len(values))
    assert worst > 1e-9, "too easy a test: the rule was exact everywhere"


def test_few_hundred_nodes_however_many_rows() -> None:
    counts = []
    for n_rows in (5_000, 40_000):
        x, y = problem(4, n_rows=n_rows, n_latents=2, density=0.5)
        counts.append(np.diff(LatentSummary(2, 7).add(x, y).nodes().offsets).max())
    assert counts[1] < 1.5 * counts[0] < 600


@pytest.mark.parametrize("signed", [False, True])
def test_shards_merge_and_row_batches_give_the_same_summary(signed: bool) -> None:
    x, y = problem(5, n_rows=700, signed=signed)
    whole = LatentSummary(12, 7).add(x, y)
    cuts = [0, 1, 1, 130, 500, 700]
    parts = [LatentSummary(12, 7).add(x[i:j], y[i:j]) for i, j in pairwise(cuts)]
    streamed = LatentSummary(12, 7)
    for i, j in pairwise(cuts):
        streamed.add(x[i:j], y[i:j])
    same(streamed, whole)
    same(LatentSummary(12, 7).add(x, y, row_batch_size=33), whole)

    def fresh(k: int) -> LatentSummary:
        return LatentSummary(12, 7).merge(parts[k])

    left = fresh(0).merge(parts[1]).merge(parts[2]).merge(parts[3]).merge(parts[4])
    right = fresh(0).merge(fresh(1).merge(fresh(2).merge(fresh(3).merge(parts[4]))))
    backwards = fresh(4).merge(parts[3]).merge(parts[2]).merge(parts[1]).merge(parts[0])
    for merged in (left, right, backwards):
        same(merged, whole)


def test_merging_leaves_the_other_summary_alone_and_grows_classes() -> None:
    x, y = problem(6)
    few = LatentSummary(12).add(x[:300], np.minimum(y[:300], 2))
    many = LatentSummary(12).add(x[300:], y[300:])
    before = many.label_sums.copy(), many.class_counts.copy()
    assert few.n_classes == 3
    few.merge(many)
    assert few.n_classes == many.n_classes == 7
    assert np.array_equal(many.label_sums, before[0])
    assert np.array_equal(many.class_counts, before[1])
    few.add(x, y)
    assert np.array_equal(many.label_sums, before[0])
    same(few, LatentSummary(12, 7).add(x[:300], np.minimum(y[:300], 2)).add(x[300:], y[300:]).add(x, y))


def test_row_order_does_not_matter() -> None:
    x, y = problem(7, signed=True)
    order = np.random.default_rng(0).permutation(len(y))
    same(LatentSummary(12, 7).add(x[order], y[order]), LatentSummary(12, 7).add(x, y))


def test_values_of_float32_and_float64_fall_into_the_same_bins() -> None:
    x, y = problem(8, signed=True)
    mixed = LatentSummary(12, 7).add(x[:200].astype(np.float64), y[:200]).add(x[200:], y[200:])
    same(mixed, LatentSummary(12, 7).add(x, y))


@pytest.mark.parametrize("name", list(hard_sets()))
def test_hard_sets_are_summed_right(name: str) -> None:
    x, y, n_classes = hard_sets()[name]
    check_against_dense(LatentSummary(x.shape[1], n_classes).add(x, y), x, y, n_classes)


def test_multi_label_rows_count_for_each_of_their_classes() -> None:
    x, _ = problem(9, signed=True)
    labels = sp.random_array((600, 5), density=0.3, format="csr", rng=np.random.default_rng(1)) > 0
    check_against_dense(LatentSummary(12, 5).add(x, labels), x, labels, 5)
    halves = LatentSummary(12, 5).add(x[:99], labels[:99]).add(x[99:], labels[99:])
    same(halves, LatentSummary(12, 5).add(x, labels))


def test_more_rows_of_events_than_int32_can_count() -> None:
    """Counts are 64-bit: doubling a summary 30 times is 2³⁰ copies of its events."""
    x, y = problem(10, n_rows=300)
    summary = LatentSummary(12, 7).add(x, y)
    events, rows, sums = summary.n_events.copy(), summary.n_rows, summary.label_sums.copy()
    for _ in range(30):
        other = LatentSummary(12, 7).merge(summary)
        summary.merge(other)
    assert summary.n_rows == rows << 30
    assert int(summary.n_events.sum()) > 2**31
    assert np.array_equal(summary.n_events, events << 30)
    np.testing.assert_allclose(summary.label_sums, sums * 2.0**30, rtol=1e-15)


def test_merge_refuses_other_latents() -> None:
    with pytest.raises(ValueError, match=r"3 latents into 2"):
        LatentSummary(2).merge(LatentSummary(3))


@pytest.mark.parametrize("sizes", [(0, 1), (1, 0), (-1, 2)])
def test_sizes_must_be_positive(sizes: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        LatentSummary(*sizes)


def test_repr_says_how_much_is_in_it() -> None:
    x, y = problem(11)
    assert repr(LatentSummary(12, 7).add(x, y)) == (
        f"LatentSummary(12 latents × 7 classes, 600 rows, {x.nnz:,} events)"
    )


@pytest.mark.parametrize("multi_label", [False, True])
@pytest.mark.parametrize("threads", [1, 3])
def test_many_small_shards_are_the_rows_they_are(multi_label: bool, threads: int) -> None:
    """Small ones are put together before they are sorted, a large one among them is not."""
    x, y = problem(5)
    labels = sp.csr_array(np.eye(7)[y]) if multi_label else y
    big = sp.csr_array(sp.vstack([x] * 200))
    repeated = sp.csr_array(sp.vstack([labels] * 200)) if multi_label else np.tile(y, 200)
    rows = [slice(k, k + 7) for k in range(0, 600, 7)]
    parts = [check_shard(x[r], labels[r]) for r in rows]
    parts.insert(40, check_shard(big, repeated))
    with torch_threads(threads):
        found = LatentSummary(12, 7).add_shards(parts)
    same(found, LatentSummary(12, 7).add(x, labels).merge(LatentSummary(12, 7).add(big, repeated)))
    assert sum(1 for _ in _batches(parts, 12, None)) == 2


def test_small_shards_wait_only_until_they_are_a_batch() -> None:
    x, y = problem(5)
    part = check_shard(sp.csr_array(sp.vstack([x] * 20)), np.tile(y, 20))
    sizes = [sum(s.x.nnz for s in batch) for (batch,) in _batches([part] * 40, 12, None)]
    assert sum(sizes) == 40 * part.x.nnz > 1 << 20
    assert max(sizes) < 1 << 20
    assert len(sizes) > 2


def test_labels_of_fewer_classes_than_the_rows_so_far_change_nothing() -> None:
    x, y = problem(0)
    summary = LatentSummary(12).add(x, y)
    before = summary.n_rows, summary.label_sums.copy()
    with pytest.raises(ValueError, match=rf"y has 3 classes \(columns\), the rows so far {y.max() + 1}"):
        summary.add(x, sp.csr_array(np.eye(3)[y % 3]))
    assert summary.n_rows == before[0]
    assert np.array_equal(summary.label_sums, before[1])
