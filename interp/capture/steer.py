"""Steering: add vectors to the residual stream while a model runs.

>>> with steer(model, {"resid_post.3": vector}, scale=4.0):              # doctest: +SKIP
...     acts = capture(model, prompts, max_new_tokens=50)
"""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from interp.capture.model import Model, expect_model
from interp.capture.sites import RESIDUAL_KINDS, by_site, split

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
    vectors : mapping of str to Tensor, shape [width]
        Site → vector. Sites are ``embed``, ``resid_pre.L``, ``resid_mid.L``, ``resid_post.L``, ``attn_out.L``
        and ``mlp_out.L``; ``resid_post.*`` steers every layer.
    scale : float or sequence of float
        One number, or one per row of the batch (`capture` sorts its batches by length: with it, give one
        number).
    positions : str, slice or sequence of int
        Which tokens: ``"all"``; ``"prompt"``; ``"generated"`` (those that a pass with a cache takes in); a
        slice or indices into the tokens of *each* prompt, padding not counted: 0 is its first, −1 its last.

    Raises
    ------
    TypeError
        If `model` is not a loaded one.
    ValueError
        If a site, the width of a vector, `scale` or `positions` does not fit, or a site is named twice;
        inside the context, if a prompt of the pass has no token at one of the indices (a slice takes what
        there is).

    Notes
    -----
    The product and the sum are computed in float32 and rounded once to the model's type: in bfloat16 a small
    vector added to a large state would otherwise be lost. The hooks are gone on any exit.
    """
    expect_model(model)
    model.verify_sites()
    factors = torch.as_tensor(scale, dtype=torch.float32)
    if factors.ndim > 1 or not torch.isfinite(factors).all():
        raise ValueError(f"scale must be a finite number or one per row, got {scale!r}")
    tokens = None if _all(positions) else _Tokens(_selector(positions, model.context))
    additions: dict[str, Tensor] = {}
    for site, vector in by_site(model, vectors, "vectors").items():
        vector = torch.as_tensor(vector).detach()
        if split(site)[0] not in RESIDUAL_KINDS:
            raise ValueError(f"cannot steer at {site!r}: expected one of {', '.join(RESIDUAL_KINDS)}")
        if vector.shape != (model.width,):
            raise ValueError(f"vector for {site} has shape {tuple(vector.shape)}, expected ({model.width},)")
        if not torch.isfinite(vector).all():
            raise ValueError(f"vector for {site} holds numbers that are not finite")
        additions[site] = vector.to(torch.float32)
    if factors.ndim or tokens is not None:
        _ = model.speed  # measured now: its short passes would not fit the rows or positions given here
    handles: list[Any] = []
    try:
        if tokens is not None:
            handles.append(model.backbone.register_forward_pre_hook(tokens, with_kwargs=True))
        for site, vector in additions.items():
            handles.append(_hook(model, site, vector, factors, tokens))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _all(positions: Any) -> bool:
    return isinstance(positions, str) and positions == "all"


def _selector(positions: Any, context: int) -> Callable[[int, bool], list[int]]:
    """From the tokens that a prompt has in a pass, and whether it is the prompts' pass, to those steered."""
    if isinstance(positions, str):
        if positions not in ("prompt", "generated"):
            raise ValueError(
                f"positions must be 'all', 'prompt', 'generated', a slice or indices, got {positions!r}"
            )
        return lambda n, first: list(range(n)) if first == (positions == "prompt") else []
    if isinstance(positions, slice):
        try:
            range(context)[positions]
        except (TypeError, ValueError) as error:
            raise ValueError(f"positions={positions!r} is no slice of tokens: {error}") from None
        return lambda n, first: list(range(n)[positions]) if first else []
    indices = _integers(positions)
    _expect_tokens(indices, context, f"the model's context has {context} tokens")

    def chosen(n: int, first: bool) -> list[int]:
        if not first:
            return []
        _expect_tokens(indices, n, f"a prompt has {n} token{'s' * (n != 1)}")
        return [i % n for i in indices]

    return chosen


def _integers(positions: Any) -> list[int]:
    try:
        # A mask would be taken for the indices 0 and 1.
        if not any(isinstance(p, bool) or getattr(p, "dtype", None) == torch.bool for p in positions):
            return [operator.index(p) for p in positions]
    except TypeError:
        pass
    raise ValueError(
        f"positions must be 'all', 'prompt', 'generated', a slice or integer indices, got {positions!r}"
    )


def _expect_tokens(indices: Sequence[int], n: int, what: str) -> None:
    for i in indices:
        if not -n <= i < n:
            raise ValueError(f"positions has {i}, but {what}: expected {-n} to {n - 1}")


class _Tokens:
    """Which tokens of the pass under way are steered, told by what the model is called with.

    Its hook stands before the model's blocks; theirs read ``weights``: 0 or 1, shape [n_prompts, n_tokens].
    """

    def __init__(self, select: Callable[[int, bool], list[int]]) -> None:
        self.weights = torch.zeros(0, 0)
        self._select = select

    def __call__(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = inspect.signature(module.forward).bind_partial(*args, **kwargs).arguments
        ids, mask, cache = (given.get(k) for k in ("input_ids", "attention_mask", "past_key_values"))
        n_rows, n = (given["inputs_embeds"] if ids is None else ids).shape[:2]
        first = cache is None or cache.get_seq_length() == 0
        real = torch.ones(n_rows, n) if mask is None or mask.ndim != 2 else mask[:, -n:].cpu()
        self.weights = torch.zeros(n_rows, n)
        for row, tokens in enumerate(real):
            at = tokens.nonzero()[:, 0]
            self.weights[row, at[self._select(len(at), first)]] = 1.0


def _hook(model: Model, site: str, vector: Tensor, factors: Tensor, tokens: _Tokens | None) -> Any:
    kind, layer = split(site)

    def steered(x: Tensor) -> Tensor:
        wide = x.to(torch.float32)
        if x.ndim == 2:  # OPT's MLP flattens prompts and tokens
            n_rows = factors.numel() if tokens is None else len(tokens.weights)
            wide = wide.view(n_rows if len(x) % n_rows == 0 else len(x), -1, x.shape[-1])
        if factors.ndim and len(wide) != len(factors):
            raise ValueError(f"scale has {len(factors)} numbers, but the batch has {len(wide)} rows")
        addition = factors.to(x.device).view(-1, 1, 1) * vector.to(x.device)
        if tokens is not None:
            addition = addition * tokens.weights.to(x.device)[..., None]
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
