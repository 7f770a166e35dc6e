"""What one capture takes, resolved and checked against the model before anything runs."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from interp.capture.generate import Generator
from interp.capture.model import Model
from interp.capture.prompts import Prompts
from interp.capture.sites import RESIDUAL_KINDS, by_site, split
from interp.capture.tape import same_as

__all__ = ["TIER2", "Job", "Vectors", "expect_consistent"]

Vectors = Mapping[str, "Tensor | Mapping[str, Tensor]"]

#: Kinds that tier 2 takes at every layer.
TIER2 = ("resid_pre", "resid_mid", "resid_post")


def expect_consistent(
    *,
    sites: str | Iterable[str] | None = None,
    tier: int | None = None,
    layer: int | None = None,
    vectors: Mapping[str, Any] | None = None,
    keep_states: bool | None = None,
) -> None:
    """Refuse what contradicts itself, before there is a model.

    Parameters
    ----------
    sites : str or iterable of str, optional
    tier : {2, 3}, optional
    layer : int, optional
    vectors : mapping, optional
    keep_states : bool, optional
        As in `interp.capture`.

    Raises
    ------
    ValueError
        If sites come beside a tier, or a layer without tier 3; if there is no such tier; if vectors have no
        names; if nothing would be kept.
    """
    if tier is not None and sites is not None:
        raise ValueError("give sites or tier, not both")
    if tier not in (None, 2, 3):
        raise ValueError(f"tier must be 2 or 3, got {tier!r}")
    if layer is not None and tier != 3:
        raise ValueError("layer belongs to tier=3; otherwise name the layer in the site ('resid_post.5')")
    if vectors is not None and not isinstance(vectors, Mapping):
        raise ValueError(
            f"vectors must be a mapping of names to vectors, {{'mine': vector}}; got {type(vectors).__name__}"
        )
    if keep_states is not None and not keep_states and not vectors:
        raise ValueError("keep_states=False without vectors keeps nothing: give vectors to project on")


@dataclass(frozen=True)
class Job:
    """What to capture.

    Attributes
    ----------
    sites : tuple of str
        Resolved names.
    names : dict of str to list of str
        Per projected site, the vectors.
    matrices : dict of str to Tensor, shape [width, n_vectors], float32
        Per projected site, on the model's device.
    keep : bool
        Whether the rows themselves are kept.
    generator : Generator
        How text is generated.
    """

    sites: tuple[str, ...]
    names: dict[str, list[str]]
    matrices: dict[str, Tensor]
    keep: bool
    generator: Generator

    @classmethod
    def plan(
        cls,
        model: Model,
        generator: Generator,
        *,
        sites: str | Iterable[str] | None = None,
        tier: int | None = None,
        layer: int | None = None,
        vectors: Vectors | None = None,
        keep_states: bool | None = None,
    ) -> Job:
        """Resolve the arguments of `capture`.

        Raises
        ------
        ValueError
            If something does not fit the model or contradicts itself.
        """
        expect_consistent(sites=sites, tier=tier, layer=layer, vectors=vectors, keep_states=keep_states)
        model.verify_sites()
        if generator.max_new_tokens and not model.is_causal:
            raise ValueError(
                f"{model.name} is an encoder and cannot generate: max_new_tokens must be 0, "
                f"got {generator.max_new_tokens}"
            )
        resolved = _sites(model, sites, tier, layer)
        names, matrices = _matrices(model, resolved, vectors or {})
        keep = keep_states if keep_states is not None else not (tier == 2 and names)
        if not keep:
            resolved = tuple(s for s in resolved if s in names)
        return cls(resolved, names, matrices, keep, generator)

    def manifest(self, model: Model, prompts: Prompts, ids: Sequence[Sequence[int]]) -> dict[str, Any]:
        """The manifest of a run: everything that decides its numbers."""
        import transformers

        from interp import __version__

        digest = hashlib.sha256()
        for site, matrix in sorted(self.matrices.items()):
            digest.update(site.encode() + matrix.cpu().numpy().tobytes())
        encoded = hashlib.sha256(
            repr([(p.id, list(seq)) for p, seq in zip(prompts, ids, strict=True)]).encode()
        )
        needs_weights = any(split(s)[0] == "attn" for s in self.sites)
        return {
            "model": {**model.identity, "attention": "eager" if needs_weights else model.attention},
            "tokenizer_hash": model.tokenizer_hash,
            "sites": list(self.sites),
            "same_as": same_as(self.sites) if self.keep else {},
            "vectors": self.names,
            "vectors_hash": digest.hexdigest()[:16] if self.matrices else "",
            "prompts_hash": encoded.hexdigest()[:16],
            "max_new_tokens": self.generator.max_new_tokens,
            "temperature": self.generator.temperature,
            "stop_at_eos": self.generator.stop_at_eos,
            "seed": self.generator.seed,
            "keep_states": self.keep,
            "prompt_ids": prompts.ids,
            "versions": {
                "interp": __version__,
                "torch": torch.__version__,
                "transformers": transformers.__version__,
                "python": platform.python_version(),
            },
        }


def _sites(
    model: Model, sites: str | Iterable[str] | None, tier: int | None, layer: int | None
) -> tuple[str, ...]:
    if tier is None:
        return model.sites.resolve("resid_post.*" if sites is None else sites)
    kinds = [k for k in model.sites.kinds() if k != "embed"]
    if tier == 2:
        return model.sites.resolve(f"{k}.{i}" for i in range(model.n_layers) for k in TIER2 if k in kinds)
    layer = model.n_layers // 2 if layer is None else layer
    return model.sites.resolve(f"{k}.{layer}" for k in kinds)


def _matrices(
    model: Model, sites: tuple[str, ...], vectors: Vectors
) -> tuple[dict[str, list[str]], dict[str, Tensor]]:
    """Per site: the names of its vectors, and the vectors as columns."""
    columns: dict[str, dict[str, Tensor]] = {}
    for name, given in vectors.items():
        if isinstance(given, Mapping):
            own = by_site(model, given, f"vector {name!r}")
        else:
            own = {site: given for site in sites if split(site)[0] in RESIDUAL_KINDS}
        used = {site: torch.as_tensor(v) for site, v in own.items() if site in sites}
        if not used:
            raise ValueError(
                f"vector {name!r} applies to none of the sites asked for: it is for "
                f"{', '.join(own) or 'the residual stream'}"
            )
        for site, v in used.items():
            if split(site)[0] not in RESIDUAL_KINDS:
                raise ValueError(f"vector {name!r}: rows of {site} are not states of the residual stream")
            if v.shape != (model.width,):
                raise ValueError(
                    f"vector {name!r} has shape {tuple(v.shape)}, but rows of {site} have width {model.width}"
                )
            if not torch.isfinite(v).all():
                raise ValueError(f"vector {name!r} holds numbers that are not finite")
            columns.setdefault(site, {})[name] = v.detach().to(torch.float32)
    names = {site: list(columns[site]) for site in sites if site in columns}
    matrices = {site: torch.stack(list(columns[site].values()), 1).to(model.device) for site in names}
    return names, matrices
