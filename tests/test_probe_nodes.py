"""The 2-point rule as the solver uses it: sums against the raw values, and the bounds of their errors."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from interp.probe import LatentSummary
from interp.probe.exact import rms
from interp.probe.layout import softplus_
from interp.probe.nodes import Nodes

N_CLASSES = 3


def case(seed: int, size: float, signed: bool) -> tuple:
    """Values of four latents, their node set, and intercepts and slopes of all pairs."""
    rng = np.random.default_rng(seed)
    values = [rng.lognormal(0.0, s, n) for s, n in ((0.05, 40), (0.5, 300), (1.3, 3000), (0.3, 3))]
    if signed:
        values = [v * rng.choice([-1.0, 1.0], len(v)) for v in values]
    rows = np.concatenate([np.arange(len(v)) for v in values])
    latents = np.repeat(np.arange(4), [len(v) for v in values])
    x = sp.csr_array((np.concatenate(values), (rows, latents)), shape=(3000, 4))
    summary = LatentSummary(4, N_CLASSES).add(x, np.zeros(3000, int))
    q = rms(summary.moments()[0])
    block = summary.nodes()
    nodes = Nodes(
        block.offsets, block.x, block.m, q, block.e, device=torch.device("cpu"), dtype=torch.float64
    )
    b, w = rng.normal(0.0, 3.0, (4, N_CLASSES)), size * rng.normal(0.0, 1.0, (4, N_CLASSES))
    return [v / q[i] for i, v in enumerate(values)], nodes, b, w


def by_values(values: list[np.ndarray], b: np.ndarray, w: np.ndarray) -> np.ndarray:
    """Σ σ and Σ x̃ σ over the raw values, [2, n_latents, n_classes]."""
    out = np.zeros((2, *b.shape))
    for i, x in enumerate(values):
        z = b[i][:, None] + w[i][:, None] * x
        s = np.where(z > 0, 1.0, np.exp(np.minimum(z, 0.0))) / (1.0 + np.exp(-np.abs(z)))
        out[:, i] = s.sum(axis=1), (s * x).sum(axis=1)
    return out


@example(seed=1225, size=200.0, signed=True)  # a slope whose bound was 0 · ∞
@given(seed=st.integers(0, 10**6), size=st.sampled_from([0.1, 1.0, 5.0, 30.0, 200.0]), signed=st.booleans())
@settings(max_examples=60, deadline=None)
def test_the_bound_of_the_rules_error_is_one(seed: int, size: float, signed: bool) -> None:
    values, nodes, b, w = case(seed, size, signed)
    layout = nodes.layout(torch.arange(b.size), N_CLASSES, 500)
    at = torch.from_numpy(b.ravel()), torch.from_numpy(w.ravel())
    error = np.abs(layout.sums(*at).numpy()[:2].reshape(2, *b.shape) - by_values(values, b, w))
    bound = layout.rule_errors(*at).numpy().reshape(2, *b.shape)
    assert np.isfinite(bound).all()
    assert (error <= bound + 1e-9).all()


@pytest.mark.parametrize("signed", [False, True])
def test_the_bound_is_no_more_than_it_has_to_be(signed: bool) -> None:
    """Within four orders of magnitude of the error where that is seen, and zero where the rule is exact."""
    shares = []
    for seed in range(20):
        values, nodes, b, w = case(seed, 3.0, signed)
        layout = nodes.layout(torch.arange(b.size), N_CLASSES, 500)
        at = torch.from_numpy(b.ravel()), torch.from_numpy(w.ravel())
        error = np.abs(layout.sums(*at).numpy()[:2].reshape(2, *b.shape) - by_values(values, b, w))
        bound = layout.rule_errors(*at).numpy().reshape(2, *b.shape)
        seen = error > 1e-10
        shares += list(error[seen] / bound[seen])
        if not signed:
            assert (bound[:, 3] == 0).all(), "a bin of one or two events is exact"
    assert len(shares) > 50
    assert np.median(shares) > 1e-4


def test_two_parts_of_the_bound_scale_as_derived() -> None:
    """In ∂b the bound grows with w⁴, and in ∂w̃ with w³ at first: both vanish with the slope."""
    _, nodes, b, _ = case(3, 1.0, False)
    layout = nodes.layout(torch.arange(b.size), N_CLASSES, 500)
    zero = torch.zeros(b.size, dtype=torch.float64)
    small = torch.full_like(zero, 1e-4)
    one, two = layout.rule_errors(zero, small), layout.rule_errors(zero, 2 * small)
    some = one[0] > 0
    np.testing.assert_allclose((two / one)[0][some], 16.0, rtol=1e-3)
    np.testing.assert_allclose((two / one)[1][some], 8.0, rtol=1e-3)
    assert (layout.rule_errors(zero, zero) == 0).all()


@pytest.mark.parametrize("block_elements", [1, 700, 10**6])
@pytest.mark.parametrize("share", [1.0, 0.4, 0.02])
def test_sums_and_losses_of_any_pairs_in_any_blocks(block_elements: int, share: float) -> None:
    """Latents side by side and apart, as many pairs of each or not, rows split among blocks or not."""
    rng = np.random.default_rng(0)
    counts, n_classes = rng.integers(1, 90, 40), 7
    counts[3], counts[11] = 0, 400
    offsets = np.concatenate([[0], np.cumsum(counts)])
    x, m = rng.normal(0.0, 2.0, offsets[-1]), rng.uniform(0.5, 9.0, offsets[-1])
    q = rng.uniform(0.5, 2.0, 40)
    nodes = Nodes(offsets, x, m, q, device=torch.device("cpu"), dtype=torch.float64)
    pairs = np.flatnonzero(rng.random(40 * n_classes) < share)
    b, w = rng.normal(0.0, 3.0, (2, len(pairs)))
    want, loss = np.zeros((5, len(pairs))), np.zeros(len(pairs))
    for k, pair in enumerate(pairs):
        at = slice(offsets[pair // n_classes], offsets[pair // n_classes + 1])
        u = x[at] / q[pair // n_classes]
        z = b[k] + w[k] * u
        s = 1.0 / (1.0 + np.exp(-z))
        ds = s * (1.0 - s)
        want[:, k] = [(m[at] * t).sum() for t in (s, u * s, ds, u * ds, u * u * ds)]
        loss[k] = (m[at] * np.logaddexp(0.0, z)).sum()
    layout = nodes.layout(torch.from_numpy(pairs), n_classes, block_elements)
    theta = torch.from_numpy(b), torch.from_numpy(w)
    np.testing.assert_allclose(layout.sums(*theta), want, rtol=1e-12, atol=1e-10)
    np.testing.assert_allclose(layout.losses(*theta), loss, rtol=1e-12, atol=1e-10)


def test_softplus_of_logits_of_all_sizes() -> None:
    moderate = np.array([-800.0, -50.0, -36.0, -1e-9, 0.0, 0.3, 40.0, 699.0])
    for z in (moderate, np.append(moderate, [710.0, 1e5])):  # e^z of the last two is infinite
        np.testing.assert_allclose(softplus_(torch.tensor(z)), np.logaddexp(0.0, z), rtol=4e-16, atol=2e-16)
    rare = torch.tensor([-18.0, -60.0])  # float32: of these, 1 + e^z keeps nothing
    np.testing.assert_allclose(softplus_(rare.clone()), rare.exp(), rtol=1e-6)
