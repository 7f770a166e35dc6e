"""Steering: add vectors to the residual stream while a model runs.

>>> with steer(model, {"resid_post.3": vector}, scale=4.0):              # doctest: +SKIP
...     acts = capture(model, prompts, max_new_tokens=50)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from interp.capture.model import Model
from interp.capture.sites import RESIDUAL_KINDS, split

__all__ = ["steer"]


@contextmanager
def steer(
    model: Model,
    vectors: Mapping[str, Tensor],
    scale: float | Sequence[float] | Tensor = 1.0,
    positions: str | slice | Sequence[int] = "all",
) -> Iterator[None]:
    """Add ``scale · vector`` to sites of the residual stream, as long as the context lasts.

    Parameters
    ----------
    model : Model
        From `interp.load_model`.
    vectors : mapping of str to Tensor, shape (width,)
        Site → vector. Sites are ``embed``, ``resid_pre.L``, ``resid_mid.L``, ``resid_post.L``, ``attn_out.L``
        and ``mlp_out.L``; ``resid_post.*`` steers every layer.
    scale : float or sequence of float
        One number, or one per row of the batch (`capture` sorts its batches by length: with it, give one
        number).
    positions : str, slice or sequence of int
        Which tokens of a pass: ``"all"``; ``"prompt"`` (passes of more than one token); ``"generated"``
        (passes of one token, as in generation with a cache); a slice or indices into the tokens of the
        prompt's pass.

    Raises
    ------
    ValueError
        If a site, the width of a vector, `scale` or `positions` does not fit.

    Notes
    -----
    The product and the sum are computed in float32 and rounded once to the model's type: in bfloat16 a small
    vector added to a large state would otherwise be lost. The hooks are gone on any exit.
    """
    model.verify_sites()
    factors = torch.as_tensor(scale, dtype=torch.float32)
    if factors.ndim > 1 or not torch.isfinite(factors).all():
        raise ValueError(f"scale must be a finite number or one per row, got {scale!r}")
    select = _selector(positions)
    additions: dict[str, Tensor] = {}
    for pattern, vector in vectors.items():
        vector = torch.as_tensor(vector).detach()
        for site in model.sites.resolve(pattern):
            if split(site)[0] not in RESIDUAL_KINDS:
                raise ValueError(f"cannot steer at {site!r}: expected one of {', '.join(RESIDUAL_KINDS)}")
            if vector.shape != (model.width,):
                raise ValueError(
                    f"vector for {site} has shape {tuple(vector.shape)}, expected ({model.width},)"
                )
            if not torch.isfinite(vector).all():
                raise ValueError(f"vector for {site} holds numbers that are not finite")
            additions[site] = vector.to(torch.float32)
    handles: list[Any] = []
    try:
        for site, vector in additions.items():
            handles.append(_hook(model, site, vector, factors, select))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _selector(positions: str | slice | Sequence[int]) -> Any:
    """From the number of tokens of a pass to a 0/1 weight per token, or None for all of them."""
    if isinstance(positions, str):
        if positions not in ("all", "prompt", "generated"):
            raise ValueError(
                f"positions must be 'all', 'prompt', 'generated', a slice or indices, got {positions!r}"
            )
        if positions == "all":
            return lambda n: None
        wanted = (lambda n: n > 1) if positions == "prompt" else (lambda n: n == 1)
        return lambda n: torch.ones(n) if wanted(n) else torch.zeros(n)

    def weights(n: int) -> Tensor:
        w = torch.zeros(n)
        if n > 1:
            w[positions if isinstance(positions, slice) else list(positions)] = 1.0
        return w

    return weights


def _hook(model: Model, site: str, vector: Tensor, factors: Tensor, select: Any) -> Any:
    kind, layer = split(site)

    def steered(x: Tensor) -> Tensor:
        flat = x.ndim == 2  # OPT's MLP flattens prompts and tokens
        n_rows = factors.numel() if factors.ndim else 1
        if factors.ndim and x.shape[0] % n_rows:
            raise ValueError(f"scale has {n_rows} numbers, but the batch has {x.shape[0]} rows")
        wide = x.to(torch.float32)
        if flat:
            wide = wide.view(n_rows, -1, x.shape[-1])
        elif factors.ndim and x.shape[0] != n_rows:
            raise ValueError(f"scale has {n_rows} numbers, but the batch has {x.shape[0]} rows")
        addition = factors.to(x.device).view(-1, 1, 1) * vector.to(x.device)
        weights = select(wide.shape[1])
        if weights is not None:
            addition = addition * weights.to(x.device)[:, None]
        return (wide + addition).view_as(x).to(x.dtype)

    def before(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if args:
            return (steered(args[0]), *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": steered(kwargs["hidden_states"])}

    def after(module: Any, args: tuple[Any, ...], output: Any) -> Any:
        if isinstance(output, (tuple, list)):
            return (steered(output[0]), *output[1:])
        return steered(output)

    if kind == "resid_pre" and layer > 0:
        # Behind the block before, so that resid_post.(L-1) and resid_pre.L stay the same state.
        return model.sites.blocks[layer - 1].register_forward_hook(after)
    if kind in ("embed", "resid_pre"):
        return model.sites.blocks[0].register_forward_pre_hook(before, with_kwargs=True)
    return model.sites.module(kind, layer).register_forward_hook(after)
