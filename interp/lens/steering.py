"""What steering with a lens does: dose by dose, beside random directions of the same norm.

That the lens's own logit rises where the model is steered is geometry: the vector is its gradient. What the
model *writes* while it is steered, read again by the lens without steering, is an effect on the model.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from interp.capture.batching import pad
from interp.events import bar
from interp.lens.judge import seed_of

if TYPE_CHECKING:
    import pandas as pd

    from interp.capture.model import Model
    from interp.lens.library import Lens

__all__ = ["dose_response", "next_token_loss", "random_direction"]


def random_direction(width: int, *, seed: int) -> Tensor:
    """A direction drawn uniformly, of norm 1, float32 ``[width]``."""
    vector = torch.randn(width, generator=torch.Generator().manual_seed(seed))
    return vector / vector.norm()


def dose_response(
    lens: Lens,
    model: Model,
    texts: Sequence[str],
    *,
    scales: Sequence[float] = (0.0, 0.1, 0.2, 0.4, 0.8),
    n_random: int = 3,
    max_new_tokens: int = 12,
    seed: int = 0,
    force: bool = False,
    batch_size: int = 16,
) -> pd.DataFrame:
    """Steer at the lens's site; measure its own logit, what the model then writes, and its next-token loss.

    Parameters
    ----------
    lens : Lens
        Its grade must allow steering (see `Lens.steering_vector`).
    model : Model
        The model of the lens, in any dtype.
    texts : sequence of str
        What the model reads while it is steered.
    scales : sequence of float
        Doses, in units of the typical norm of a row at the site (``lenses.meta["typical_norm"]``); 0 is added
        if missing.
    n_random : int
        Random directions of the same norm to compare with.
    max_new_tokens : int
        Tokens that the steered model writes, greedily, behind the first half of each text.
    seed : int
    force : bool
        Steer with a C or U too.
    batch_size : int
        Texts per forward pass of the loss.

    Returns
    -------
    DataFrame
        One row per scale and direction: ``scale``, ``direction`` ("lens" or "random"), ``draw``; ``logit``,
        the lens's own, mean over the tokens of the texts; ``loss`` of the texts' next tokens, in nats;
        ``said``, the lens's logit on the tokens that the steered model wrote, read without steering; and the
        change of each against scale 0 (``logit_change`` …). An encoder has no ``loss`` and no ``said``: NaN.

    Raises
    ------
    LensMismatch
        If `model` is not the lens's model.
    PermissionError
        If the grade does not allow steering.
    """
    import pandas as pd

    from interp.capture.steer import steer

    lenses = lens.lenses
    lenses.check_model(model)
    if isinstance(texts, str):
        raise ValueError(f"texts takes a list of texts, got a single one: write [{texts[:40]!r}]")
    if not texts:
        raise ValueError("texts is empty: give what the model should read while it is steered")
    norm = float(lenses.meta["typical_norm"])
    directions = [("lens", 0, lens.steering_vector(force=force))]
    directions += [
        ("random", i, random_direction(lenses.width, seed=seed_of(seed, "steer", lens.concept, str(i))))
        for i in range(n_random)
    ]
    starts = _first_halves(model, texts) if model.is_causal and max_new_tokens else []
    base: dict[str, float] = {}
    rows: list[dict[str, Any]] = []
    doses = sorted({0.0, *map(float, scales)}, key=abs)
    cells = [(scale, *direction) for scale in doses for direction in directions]
    with bar(len(cells), "steering", "dose") as progress:
        for scale, name, draw, vector in cells:
            if scale == 0.0 and base:
                values = base
            else:
                with steer(model, {lenses.site: vector}, scale=scale * norm):
                    values = {
                        "logit": float(lens.score(list(texts), model=model).double().mean()),
                        "loss": next_token_loss(model, texts, batch_size=batch_size),
                    }
                    written = _write(model, starts, lenses.site, max_new_tokens, seed)
                values["said"] = _read(lens, model, starts, written)
            base = base or values
            rows.append(
                {
                    "concept": lens.concept,
                    "grade": lens.grade,
                    "scale": scale,
                    "direction": name,
                    "draw": draw,
                    **values,
                    **{f"{name}_change": value - base[name] for name, value in values.items()},
                }
            )
            progress.update(1)
    return pd.DataFrame(rows).sort_values(["scale", "direction", "draw"], ignore_index=True)


def _first_halves(model: Model, texts: Sequence[str]) -> list[list[int]]:
    encoded = [list(model.tokenizer(t)["input_ids"]) for t in texts]
    return [ids[: max(1, len(ids) // 2)] for ids in encoded]


def _write(model: Model, starts: list[list[int]], site: str, n: int, seed: int) -> list[list[int]]:
    """What the model writes behind each start, as it is (steered or not)."""
    from interp.capture.record import capture

    if not starts:
        return []
    prompts = [{"id": str(i), "token_ids": ids} for i, ids in enumerate(starts)]
    acts = capture(model, prompts, sites=[site], max_new_tokens=n, seed=seed)
    parts = acts.token_ids.split(acts.offsets.diff().tolist())
    return [part[len(start) :].tolist() for part, start in zip(parts, starts, strict=True)]


def _read(lens: Lens, model: Model, starts: list[list[int]], written: list[list[int]]) -> float:
    """Mean logit of the written tokens, after their starts."""
    from interp.capture.record import capture

    if not written:
        return math.nan
    both = [{"id": str(i), "token_ids": a + b} for i, (a, b) in enumerate(zip(starts, written, strict=True))]
    logits = lens.score(capture(model, both, sites=[lens.lenses.site])).double()
    lengths = torch.tensor([[len(a), len(b)] for a, b in zip(starts, written, strict=True)]).flatten()
    new = torch.repeat_interleave(torch.arange(len(lengths)) % 2 == 1, lengths)
    return float(logits[new].mean())


@torch.no_grad()
def next_token_loss(model: Model, texts: Sequence[str], *, batch_size: int = 16) -> float:
    """Mean cross-entropy of the next token, nats per token over all texts; NaN for an encoder."""
    if not model.is_causal:
        return math.nan
    encoded = sorted((model.tokenizer(t)["input_ids"] for t in texts), key=len)
    total, count = 0.0, 0
    for start in range(0, len(encoded), batch_size):
        batch = pad(encoded[start : start + batch_size], model.pad_id, "right")
        ids, mask, _ = (t.to(model.device) for t in batch)
        logits = model.hf(input_ids=ids, attention_mask=mask).logits[:, :-1].float()
        real = mask[:, 1:].bool()
        losses = torch.nn.functional.cross_entropy(logits[real], ids[:, 1:][real], reduction="sum")
        total += float(losses)
        count += int(real.sum())
    if not count:
        raise ValueError("no text has two tokens: there is no next token to predict")
    return total / count
