"""What steering with a lens does: dose by dose, beside random directions of the same norm."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

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
    seed: int = 0,
    force: bool = False,
    batch_size: int = 16,
) -> pd.DataFrame:
    """Steer at the lens's site and measure its own logit and the model's next-token loss.

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
    seed : int
    force : bool
        Steer with a C or U too.
    batch_size : int
        Texts per forward pass of the loss.

    Returns
    -------
    DataFrame
        One row per scale and direction: ``scale``, ``direction`` ("lens" or "random"), ``draw``, ``logit``
        (mean over tokens), ``logit_change``, ``loss`` (nats per token; NaN for an encoder), ``loss_change``;
        changes are against scale 0.

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
    if not texts:
        raise ValueError("texts is empty: give what the model should read while it is steered")
    norm = float(lenses.meta["typical_norm"])
    directions = [("lens", 0, lens.steering_vector(force=force))]
    directions += [
        ("random", i, random_direction(lenses.width, seed=seed_of(seed, "steer", lens.concept, str(i))))
        for i in range(n_random)
    ]
    base: dict[str, float] = {}
    rows: list[dict[str, Any]] = []
    for scale in sorted({0.0, *map(float, scales)}, key=abs):
        for name, draw, vector in directions:
            if scale == 0.0 and base:
                values = base
            else:
                with steer(model, {lenses.site: vector}, scale=scale * norm):
                    values = {
                        "logit": float(lens.score(list(texts), model=model).double().mean()),
                        "loss": next_token_loss(model, texts, batch_size=batch_size),
                    }
            base = base or values
            rows.append(
                {
                    "concept": lens.concept,
                    "grade": lens.grade,
                    "scale": scale,
                    "direction": name,
                    "draw": draw,
                    "logit": values["logit"],
                    "logit_change": values["logit"] - base["logit"],
                    "loss": values["loss"],
                    "loss_change": values["loss"] - base["loss"],
                }
            )
    return pd.DataFrame(rows).sort_values(["scale", "direction", "draw"], ignore_index=True)


@torch.no_grad()
def next_token_loss(model: Model, texts: Sequence[str], *, batch_size: int = 16) -> float:
    """Mean cross-entropy of the next token, nats per token over all texts; NaN for an encoder."""
    if not model.is_causal:
        return math.nan
    encoded = sorted((model.tokenizer(t)["input_ids"] for t in texts), key=len)
    total, count = 0.0, 0
    for start in range(0, len(encoded), batch_size):
        part = encoded[start : start + batch_size]
        longest = max(map(len, part))
        ids = torch.full((len(part), longest), model.pad_id)
        mask = torch.zeros_like(ids)
        for i, seq in enumerate(part):
            ids[i, : len(seq)] = torch.tensor(seq)
            mask[i, : len(seq)] = 1
        ids, mask = ids.to(model.device), mask.to(model.device)
        logits = model.hf(input_ids=ids, attention_mask=mask).logits[:, :-1].float()
        real = mask[:, 1:].bool()
        losses = torch.nn.functional.cross_entropy(logits[real], ids[:, 1:][real], reduction="sum")
        total += float(losses)
        count += int(real.sum())
    if not count:
        raise ValueError("no text has two tokens: there is no next token to predict")
    return total / count
