"""Lenses of several trainings as one set."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from interp.lens.baselines import TextLenses
from interp.lens.library import Lenses, LensMismatch

__all__ = ["concat"]


def concat(parts: Sequence[Lenses]) -> Lenses:
    """See `Lenses.concat`."""
    if not parts:
        raise ValueError("there are no lenses to put together: parts is empty")
    for part in parts[1:]:
        for name in ("site", "pooling", "model", "pack"):
            if part.meta[name] != parts[0].meta[name]:
                raise LensMismatch(f"{name} differs: {parts[0].meta[name]!r} and {part.meta[name]!r}")
    # A part where nothing could be fitted has reports and no numbers.
    full = [p for p in parts if len(p)] or parts[:1]
    first = full[0]
    if len({p.mlp is None for p in full}) > 1:
        raise ValueError("some parts have MLP heads and others not; train them with the same head")
    seen: set[str] = set()
    for report in (r for p in parts for r in p.reports):
        if report.concept in seen:
            raise ValueError(f"the concept {report.concept!r} is in two parts")
        seen.add(report.concept)
    weights, biases, ups, shifts = [], [], [], []
    for part in full:
        # w·(x − m)/s = (w s₀/s)·(x − m₀)/s₀ + w·(m₀ − m)/s, exactly.
        ratio = first.scale.double() / part.scale.double()
        shift = (first.mean.double() - part.mean.double()) / part.scale.double()
        w = part.weight.double()
        weights.append((w * ratio).float())
        biases.append((part.bias.double() + w @ shift).float())
        if part.mlp is not None:
            up = part.mlp["up"].double()
            ups.append((up * ratio[:, None]).float())
            shifts.append(
                (part.mlp["shift"].double() + torch.einsum("d,kdh->kh", shift / part.width**0.5, up)).float()
            )
    mlp = None
    if ups:
        mlp = {"up": torch.cat(ups), "shift": torch.cat(shifts)}
        mlp |= {name: torch.cat([p.mlp[name] for p in full if p.mlp]) for name in ("down", "bias")}
    lines = {kind: [row for p in full if len(p) for row in p.negatives[kind]] for kind in ("text", "token")}
    negatives = {
        kind: torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=math.nan)
        for kind, rows in lines.items()
        if rows
    }
    told = [p.text for p in full if p.text is not None]
    meta = {
        **first.meta,
        "seconds": sum(p.meta.get("seconds", 0.0) for p in parts),
        "history": [h for p in parts for h in p.meta.get("history", [])],
    }
    return Lenses(
        [r for p in parts for r in p.reports],
        torch.cat(weights),
        torch.cat(biases),
        first.mean,
        first.scale,
        negatives,
        meta,
        model=first.model,
        mlp=mlp,
        text=TextLenses.concat(told) if len(told) == len(full) else None,
    )
