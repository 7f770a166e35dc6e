"""Lines that no other test reaches, each with what it is there for."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from capture_zoo import sequences, zoo

from interp.capture import capture
from interp.capture.traits import Trait, TraitVectors


def test_trait_vectors_are_projected_each_at_home() -> None:
    model = zoo("llama")
    rng = torch.Generator().manual_seed(0)
    numbers: Any = dict.fromkeys(("auroc", "low", "high", "random", "shuffled"), 0.5)
    traits = [
        Trait(
            name=name,
            method="mean",
            pool="mean",
            kind="natural",
            site=sites[0],
            vectors={s: torch.randn(model.width, generator=rng) for s in sites},
            layers={},
            other={},
            n=8,
            **numbers,
        )
        for name, sites in (("calm", ["resid_post.0", "resid_post.1"]), ("sure", ["resid_post.1"]))
    ]
    found = TraitVectors(traits, {"name": "m"})
    acts = capture(model, sequences(), sites="resid_post.*", vectors=found.by_site())
    columns = {"resid_post.0": ["calm"], "resid_post.1": ["calm", "sure"]}
    for site, names in columns.items():
        wanted = acts[site] @ torch.stack([found[n].vectors[site] for n in names], 1)
        torch.testing.assert_close(acts.projection(site), wanted, rtol=1e-5, atol=1e-5)
    with pytest.raises(KeyError):
        acts.projection("resid_post.2")
    # `vectors` takes each trait's best vector to every layer instead.
    everywhere = capture(model, sequences(), sites="resid_post.*", vectors=found.vectors())
    best = torch.stack([t.vectors[t.site] for t in traits], 1)
    torch.testing.assert_close(
        everywhere.projection("resid_post.2"), everywhere["resid_post.2"] @ best, rtol=1e-5, atol=1e-5
    )
