"""Does a batch say what single runs say? The numbers of `capture(check=…)`."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch
from torch import Tensor

from interp.capture.activations import PROJECTION, Shard
from interp.capture.job import Job
from interp.capture.model import Model
from interp.capture.tape import Tape

__all__ = ["LIMIT", "alone", "compare", "judge", "relative_error"]

logger = logging.getLogger(__name__)

#: Largest relative error that is accepted in float32, and the one that is reported in half precision.
LIMIT, HALF_LIMIT = 1e-4, 5e-2


def relative_error(got: Tensor, expected: Tensor) -> float:
    """Largest ``‖got − expected‖ / ‖expected‖`` of any row.

    Row by row, because a few tokens with very large states would hide the errors of all others.
    """
    a, b = got.to(torch.float64).flatten(1), expected.to(torch.float64).flatten(1)
    width = min(a.shape[1], b.shape[1])  # attention rows are padded to the longest prompt of their batch
    if got.ndim == 3:
        width = min(got.shape[2], expected.shape[2])
        a, b = (x.to(torch.float64)[:, :, :width].flatten(1) for x in (got, expected))
    error = (a - b).norm(dim=1) / b.norm(dim=1).clamp_min(1e-30)
    return float(error.max())


def alone(model: Model, job: Job, token_ids: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Rows of one sequence, run by itself in a single pass: no padding, no cache.

    By site, states of the model's dtype and projections in float32: ``[n_tokens, …]`` each.
    """
    ids = token_ids.to(model.device)[None]
    mask = torch.ones_like(ids)
    with Tape(model, job.sites, keep=job.keep, vectors=job.matrices) as tape, torch.no_grad():
        tape.prompts_pass(mask, "right", ids.shape[1])
        tape.stop_early = True
        tape.run(lambda: model.states(ids, mask))
        return tape.collect()


def compare(model: Model, job: Job, shard: Shard, chosen: Sequence[int]) -> dict[str, float]:
    """Largest relative error per site over some prompts of a shard (by their place in it)."""
    errors: dict[str, float] = {}
    for k in chosen:
        first = sum(shard.lengths[:k])
        rows = slice(first, first + shard.lengths[k])
        states, projections = alone(model, job, shard.token_ids[rows])
        for site in states.keys() & shard.tensors.keys():
            errors[site] = max(errors.get(site, 0.0), relative_error(shard.tensors[site][rows], states[site]))
        if not job.keep:
            for site, expected in projections.items():
                got = shard.tensors[PROJECTION + site][rows]
                # Against the largest projection: a projection near 0 is a difference of large numbers.
                error = float((got - expected).abs().max() / expected.abs().max().clamp_min(1e-30))
                errors[site] = max(errors.get(site, 0.0), error)
    return errors


def judge(errors: dict[str, float], dtype: torch.dtype) -> None:
    """Raise if rows in float32 are not those of single runs; log it in half precision.

    Raises
    ------
    ArithmeticError
        Naming the worst site.
    """
    site = max(errors, key=errors.__getitem__)
    if dtype == torch.float32 and not errors[site] <= LIMIT:
        raise ArithmeticError(
            f"check: rows of {site} in a batch differ from a single run by {errors[site]:.2g} (relative), "
            "more than "
            f"{LIMIT:g}: padding changes the answer of this model, capture with batch_tokens=1"
        )
    if not errors[site] <= HALF_LIMIT:
        logger.warning("check: rows of %s in a batch differ from a single run by %.2g", site, errors[site])
