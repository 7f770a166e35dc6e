"""Sites: one vocabulary and one numbering for the inside of every architecture.

A site is named ``kind`` or ``kind.L``, where ``L = 0`` is the first block:

=============  ==============================  =====================================================
site           row                             meaning
=============  ==============================  =====================================================
embed          [width]                         the state that enters block 0, positions, scale and
                                               normalisation of the embedding included
resid_pre.L    [width]                         the state that enters block L
resid_mid.L    [width]                         resid_pre.L plus what attention added
resid_post.L   [width]                         the state that leaves block L (transformers'
                                               ``hidden_states[L + 1]``, before any final norm)
attn_out.L     [width]                         what attention adds to the residual stream
mlp_out.L      [width]                         what the MLP adds to the residual stream
mlp_act.L      [intermediate]                  what enters the MLP's down projection
q.L k.L v.L    [heads · head_dim]              the projections, before rotary positions and QK-norm;
                                               k and v have the key/value heads of grouped queries
attn.L         [heads, longest prompt]         attention of the token to tokens 0, 1, … of its prompt
=============  ==============================  =====================================================

``resid_mid = resid_pre + attn_out`` holds on every architecture. Where attention and MLP run in parallel
(GPT-NeoX, Phi, Cohere) no later module reads that sum, but ``resid_mid + mlp_out = resid_post`` still holds.
Where a block normalises after it adds (BERT, OPT-350m) it is the sum *before* that normalisation. Where a
block normalises what it adds (Gemma-2, Gemma-3) ``attn_out`` and ``mlp_out`` are taken after that norm.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from interp.capture.families import FAMILIES, OUTSIDE, Family, supported

__all__ = ["KINDS", "RESIDUAL_KINDS", "Sites", "Source", "by_site", "split"]

#: Every kind of site, in the order of the computation.
KINDS = (
    "embed",
    "resid_pre",
    "q",
    "k",
    "v",
    "attn",
    "attn_out",
    "resid_mid",
    "mlp_act",
    "mlp_out",
    "resid_post",
)
#: Kinds whose rows are states of the residual stream, or are added to it: vectors apply to them.
RESIDUAL_KINDS = ("embed", "resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out")


@dataclass(frozen=True)
class Source:
    """Where a site is read: the input or the output of a module, and what to take from it.

    Attributes
    ----------
    site : str
        Name of the site.
    module : nn.Module
        Module to hook.
    point : str
        ``"input"`` or ``"output"``.
    take : callable
        From the module's input or output (a tensor, or a tuple that starts with one) to the tensor.
    residual_of : nn.Module or None
        For ``resid_mid``: the block whose input is added.
    order : int
        Larger is later in the forward pass.
    """

    site: str
    module: nn.Module
    point: str
    take: Callable[[Any], Tensor]
    residual_of: nn.Module | None = None
    order: int = 0


class Sites:
    """The sites of one model. Made by `interp.load_model`, found at ``model.sites``.

    Parameters
    ----------
    config : object
        Its (text) configuration.
    backbone : nn.Module
        The part of `hf` that holds the blocks.

    Raises
    ------
    ValueError
        If no list of ``num_hidden_layers`` blocks is found, naming what is supported.
    """

    def __init__(self, config: Any, backbone: nn.Module) -> None:
        self.config = config
        self.model_type: str = config.model_type
        self.n_layers = int(config.num_hidden_layers)
        self.blocks = _find_blocks(backbone, self.n_layers, self.model_type)
        self.family = _find_family(self.blocks, self.model_type)
        self.verified = self.model_type in self.family.model_types
        self.width = int(config.hidden_size)
        self.n_heads = int(config.num_attention_heads)
        self.n_kv_heads = int(getattr(config, "num_key_value_heads", None) or self.n_heads)
        self.head_dim = int(getattr(config, "head_dim", None) or self.width // self.n_heads)

    def __repr__(self) -> str:
        return f"<Sites of {self.model_type} ({self.family.name}): {self.available()}>"

    def kinds(self) -> tuple[str, ...]:
        """The kinds of site that this architecture has."""
        if self.family is OUTSIDE:
            return ("embed", "resid_pre", "resid_post")
        return tuple(k for k in KINDS if k not in "qkv" or self.family.qkv)

    def available(self) -> str:
        """What exists, in one line for errors."""
        last = self.n_layers - 1
        return ", ".join(k if k == "embed" else f"{k}.0 … {k}.{last}" for k in self.kinds())

    def resolve(self, patterns: str | Iterable[str]) -> tuple[str, ...]:
        """Expand names to sites: ``resid_post.*`` is every layer, ``resid_post.-1`` the last.

        Parameters
        ----------
        patterns : str or iterable of str
            Names; commas separate several in one string.

        Returns
        -------
        tuple of str
            Without repeats, in the order given.

        Raises
        ------
        ValueError
            If a kind or a layer does not exist, with a list of what does.
        """
        found: dict[str, None] = {}
        for pattern in _names(patterns):
            kind, _, layer = str(pattern).partition(".")
            if kind not in self.kinds() or (kind == "embed") != (layer == ""):
                raise ValueError(
                    f"unknown site {pattern!r}: this {self.model_type} model has {self.available()} "
                    "('kind.*' is every layer)"
                )
            if kind == "embed":
                found[kind] = None
            elif layer == "*":
                found.update((f"{kind}.{i}", None) for i in range(self.n_layers))
            elif re.fullmatch(r"-?\d+", layer) and -self.n_layers <= int(layer) < self.n_layers:
                found[f"{kind}.{int(layer) % self.n_layers}"] = None
            else:
                raise ValueError(
                    f"unknown layer in site {pattern!r}: this model has layers 0 … {self.n_layers - 1}"
                )
        if not found:
            raise ValueError(f"no sites asked for: this {self.model_type} model has {self.available()}")
        return tuple(found)

    def module(self, kind: str, layer: int) -> nn.Module:
        """The module whose output is added to the residual stream, or the block itself."""
        if kind in ("attn_out", "resid_mid"):
            return self.blocks[layer].get_submodule(self.family.attn_added or self.family.o)
        if kind == "mlp_out":
            return self.blocks[layer].get_submodule(self.family.mlp_added or self.family.down)
        return self.blocks[layer]

    def source(self, site: str) -> Source:
        """Where to hook `site`, a name that `resolve` returned."""
        kind, layer = split(site)
        block = self.blocks[layer]
        order = layer * len(KINDS) + KINDS.index(kind)
        if kind in ("embed", "resid_pre"):
            return Source(site, block, "input", _first, order=order)
        if kind == "resid_post":
            return Source(site, block, "output", _first, order=order)
        if kind == "mlp_act":
            return Source(site, block.get_submodule(self.family.down), "input", _first, order=order)
        if kind == "attn":
            return Source(site, block.get_submodule(self.family.attn), "output", _weights, order=order)
        if kind in "qkv":
            paths = self.family.qkv
            module = block.get_submodule(paths[0 if self.family.fused else "qkv".index(kind)])
            return Source(site, module, "output", self._projection(kind), order=order)
        module = self.module(kind, layer)
        scale = getattr(self.config, "residual_multiplier", None)
        take = _first if scale is None else lambda x, scale=scale: _first(x) * scale
        return Source(site, module, "output", take, block if kind == "resid_mid" else None, order)

    def row_shape(self, site: str, longest: int = 1) -> tuple[int, ...]:
        """Shape of a row; `longest`, the tokens of the longest prompt, matters to ``attn`` alone."""
        kind, layer = split(site)
        if kind in "qkv":
            return ((self.n_heads if kind == "q" else self.n_kv_heads) * self.head_dim,)
        if kind == "attn":
            return (self.n_heads, longest)
        if kind == "mlp_act":
            down = self.blocks[layer].get_submodule(self.family.down)
            if isinstance(down, nn.Linear):
                return (down.in_features,)
            return (int(down.weight.shape[0]),)  # type: ignore[index]  # Conv1D: [in, out]
        return (self.width,)

    def _projection(self, kind: str) -> Callable[[Any], Tensor]:
        which = "qkv".index(kind)
        n_q, n_kv = self.n_heads * self.head_dim, self.n_kv_heads * self.head_dim
        if self.family.fused == "blocks":
            start, stop = [(0, n_q), (n_q, n_q + n_kv), (n_q + n_kv, n_q + 2 * n_kv)][which]
            return lambda x: _first(x)[..., start:stop]
        if self.family.fused == "heads":
            n_heads, head_dim = self.n_heads, self.head_dim
            return lambda x: _first(x).unflatten(-1, (n_heads, 3, head_dim))[..., which, :].flatten(-2)
        return _first

    def verify(self, forward: Callable[[], tuple[Tensor, ...]]) -> None:
        """Check an architecture that the tests do not cover, on a few tokens; drop what does not hold.

        Parameters
        ----------
        forward : callable
            Runs the model on a short input and returns transformers' ``hidden_states``.

        Raises
        ------
        ValueError
            If not even the state between the blocks is what transformers says it is.
        """
        seen: dict[str, Tensor] = {}
        wanted = ["resid_pre", "resid_post"]
        if self.family is not OUTSIDE:
            wanted += ["attn_out", "mlp_out"]
        handles = []
        try:
            for i in range(self.n_layers):
                for kind in wanted:
                    source = self.source(f"{kind}.{i}")
                    handles.append(_keep(source, seen))
            hidden = forward()
        finally:
            for handle in handles:
                handle.remove()
        before = [seen.get(f"resid_pre.{i}") for i in range(self.n_layers)]
        after = [seen.get(f"resid_post.{i}") for i in range(self.n_layers - 1)]
        pairs = [*zip(before, hidden, strict=False), *zip(after, hidden[1:], strict=False)]
        if len(hidden) != self.n_layers + 1 or not all(s is not None and _close(s, h) for s, h in pairs):
            raise ValueError(
                f"architecture {self.model_type!r} is not supported: what its blocks pass on is not its "
                f"hidden_states. Supported: {', '.join(supported())}, and others that are built like one "
                "of them"
            )
        if self.family is not OUTSIDE and not self.family.post_norm:
            for i in range(self.n_layers):
                total = (
                    seen[f"resid_pre.{i}"]
                    + seen[f"attn_out.{i}"]
                    + seen[f"mlp_out.{i}"].view_as(seen[f"resid_pre.{i}"])
                )
                if not _close(total, seen[f"resid_post.{i}"]):
                    self.family = OUTSIDE
                    break
        self.verified = True


def expect_kinds(patterns: str | Iterable[str]) -> None:
    """Refuse names of a kind that no model has, before there is a model to `Sites.resolve` them.

    Parameters
    ----------
    patterns : str or iterable of str
        As in `Sites.resolve`.

    Raises
    ------
    ValueError
        Naming the first such name.
    """
    for pattern in _names(patterns):
        if str(pattern).partition(".")[0] not in KINDS:
            raise ValueError(f"unknown site {pattern!r}: the kinds of sites are {', '.join(KINDS)}")


def _names(patterns: str | Iterable[str]) -> Iterable[str]:
    """One by one: a string may hold several, and what is neither is a name that will not be found."""
    if isinstance(patterns, str):
        return [p.strip() for p in patterns.split(",")]
    return patterns if isinstance(patterns, Iterable) else (patterns,)


def by_site(model: Any, given: Any, what: str) -> dict[str, Any]:
    """What is given for names of sites, site by site.

    Parameters
    ----------
    model : Model
    given : mapping
        Pattern, as `Sites.resolve` takes it → anything.
    what : str
        What to call it in errors.

    Returns
    -------
    dict
        Site → that.

    Raises
    ------
    ValueError
        If it is no mapping, or a site is named twice.
    """
    if not isinstance(given, Mapping):
        raise ValueError(f"{what} must be a mapping of sites, got {type(given).__name__}")
    out: dict[str, Any] = {}
    for pattern, value in given.items():
        for site in model.sites.resolve(pattern):
            if site in out:
                raise ValueError(f"{what}: {site} is named twice, the second time by {pattern!r}: keep one")
            out[site] = value
    return out


def split(site: str) -> tuple[str, int]:
    """``"resid_post.3"`` → ``("resid_post", 3)``; ``"embed"`` → ``("embed", 0)``."""
    kind, _, layer = site.partition(".")
    return kind, int(layer or 0)


def _first(x: Any) -> Tensor:
    return x[0] if isinstance(x, (tuple, list)) else x


def _weights(x: Any) -> Tensor:
    if isinstance(x, (tuple, list)):
        for part in x[1:]:
            if isinstance(part, Tensor) and part.ndim == 4:
                return part
    raise ValueError("attn.L: this model returned no attention weights; load it with attention='eager'")


def _find_blocks(backbone: nn.Module, n_layers: int, model_type: str) -> nn.ModuleList:
    for _, module in backbone.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == n_layers:
            return module
    raise ValueError(
        f"architecture {model_type!r} is not supported: found no list of {n_layers} blocks in "
        f"{type(backbone).__name__}. Supported: {', '.join(supported())}, and others that are built like "
        "one of them"
    )


def _find_family(blocks: nn.ModuleList, model_type: str) -> Family:
    def has(block: nn.Module, path: str) -> bool:
        try:
            block.get_submodule(path)
        except AttributeError:
            return False
        return True

    for family in FAMILIES:
        if family.only and model_type not in family.only:
            continue
        if all(has(block, path) for block in blocks for path in family.paths()):
            return family
    return OUTSIDE


def _keep(source: Source, seen: dict[str, Tensor]) -> Any:
    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen[source.site] = source.take(args if args else kwargs["hidden_states"]).clone()

    def after(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        seen[source.site] = source.take(output).clone()

    if source.point == "input":
        return source.module.register_forward_pre_hook(before, with_kwargs=True)
    return source.module.register_forward_hook(after)


def _close(a: Tensor, b: Tensor) -> bool:
    a, b = a.float(), b.float()
    loose = 3e-2 if torch.finfo(b.dtype).bits < 32 else 1e-4
    return bool((a - b).abs().max() <= loose * b.abs().max().clamp_min(1e-20))
