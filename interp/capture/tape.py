"""The tape: forward hooks that copy the rows of real tokens while a batch runs, and nothing else.

A batch is one pass over all prompt tokens and, when text is generated, one pass per new token. Every pass
adds a chunk of rows per site; `Tape.collect` puts them in the order of the prompts.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from interp.capture.model import Model
from interp.capture.report import Clock
from interp.capture.sites import Source, split

__all__ = ["Deepest", "Tape", "same_as"]


class Deepest(Exception):
    """Every site of this pass is recorded: what follows in the model need not run."""


def same_as(sites: Sequence[str]) -> dict[str, str]:
    """Sites that hold the very state of another one in the list: ``resid_pre.3`` is ``resid_post.2``."""
    alias: dict[str, str] = {}
    for site in sites:
        kind, layer = split(site)
        twin = "resid_pre.0" if kind == "embed" else f"resid_post.{layer - 1}" if kind == "resid_pre" else ""
        if twin in sites:
            alias[site] = twin
    return alias


class Tape:
    """Records sites of a model. A context manager: the hooks are gone on any exit.

    Parameters
    ----------
    model : Model
        Its module is hooked.
    sites : sequence of str
        Resolved names.
    keep : bool
        Keep the rows themselves.
    vectors : mapping of str to Tensor, shape [width, n_vectors], float32
        Project the rows of a site on these, in float32, on the device.
    """

    def __init__(
        self,
        model: Model,
        sites: Sequence[str],
        *,
        keep: bool = True,
        vectors: Mapping[str, Tensor] | None = None,
    ) -> None:
        self.model = model
        self.sites = tuple(sites)
        self.keep = keep
        self.vectors = dict(vectors or {})
        self.alias = same_as(sites)
        #: Seconds spent in copying rows and in projecting them (host time; on GPUs the work is queued).
        self.copy_seconds = self.project_seconds = 0.0
        #: End a pass as soon as all sites are recorded, by raising `Deepest`.
        self.stop_early = False
        self._wanted = {s for s in sites if (keep or s in self.vectors) and s not in self.alias}
        self._wanted |= {self.alias[s] for s in self.alias if keep or s in self.vectors}
        self._chunks: dict[str, list[Tensor]] = {}
        self._projected: dict[str, list[Tensor]] = {}
        self._residual: dict[int, Tensor] = {}
        self._handles: list[Any] = []
        self._fired = 0
        self._pick: Callable[[Tensor], Tensor] = lambda x: x
        self._pick_attention: Callable[[Tensor], Tensor] = lambda x: x

    # -------------------------------------------------------------------------------- the hooks

    def __enter__(self) -> Tape:
        try:
            sources = sorted((self.model.sites.source(s) for s in self._wanted), key=lambda s: s.order)
            for block in dict.fromkeys(s.residual_of for s in sources if s.residual_of is not None):
                self._handles.append(block.register_forward_pre_hook(self._keep_residual, with_kwargs=True))
            for source in sources:
                self._handles.append(self._hook(source))
        except BaseException:  # Ctrl-C too: no hook may stay in the model
            self.__exit__()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._residual.clear()

    def _keep_residual(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._residual[id(module)] = args[0] if args else kwargs["hidden_states"]

    def _hook(self, source: Source) -> Any:
        site, take, block = source.site, source.take, source.residual_of
        record = self._record_attention if split(site)[0] == "attn" else self._record

        def before(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            record(site, take(args if args else kwargs["hidden_states"]))

        def after(module: Any, args: tuple[Any, ...], output: Any) -> None:
            x = take(output)
            if block is not None:
                residual = self._residual.pop(id(block))
                x = residual + x.view_as(residual)
            record(site, x)

        if source.point == "input":
            return source.module.register_forward_pre_hook(before, with_kwargs=True)
        return source.module.register_forward_hook(after)

    def _record(self, site: str, x: Tensor) -> None:
        start = time.perf_counter()
        # OPT's MLP flattens prompts and tokens; every other module keeps [prompt, token, width].
        rows = self._pick(x.reshape(-1, x.shape[-1]))
        if self.keep:
            self._chunks.setdefault(site, []).append(rows)
        now = time.perf_counter()
        self.copy_seconds += now - start
        for name in (site, *(a for a, twin in self.alias.items() if twin == site)):
            if name in self.vectors:
                self._projected.setdefault(name, []).append(rows.float() @ self.vectors[name].to(rows.device))
        self.project_seconds += time.perf_counter() - now
        self._count()

    def _record_attention(self, site: str, x: Tensor) -> None:
        start = time.perf_counter()
        self._chunks.setdefault(site, []).append(self._pick_attention(x))
        self.copy_seconds += time.perf_counter() - start
        self._count()

    def _count(self) -> None:
        self._fired += 1
        if self._fired == len(self._wanted) and self.stop_early:
            raise Deepest

    # -------------------------------------------------------------------------------- the passes

    def prompts_pass(self, mask: Tensor, side: str, longest: int) -> None:
        """Set up the pass over all prompt tokens.

        Parameters
        ----------
        mask : Tensor, shape [n_prompts, n_tokens]
            1 where there is a token.
        side : str
            Where the padding is.
        longest : int
            Tokens of the longest prompt, new ones included: columns of attention rows.
        """
        self._chunks.clear()
        self._projected.clear()
        lengths = mask.sum(1).tolist()
        width = mask.shape[1]
        index: Tensor | None = None
        if sum(lengths) < mask.numel():
            index = mask.reshape(-1).nonzero()[:, 0]

        def pick(x: Tensor) -> Tensor:
            if index is None:
                return x.clone()
            nonlocal_index = index if index.device == x.device else index.to(x.device)
            return x.index_select(0, nonlocal_index)

        def pick_attention(x: Tensor) -> Tensor:
            rows = x.new_zeros(sum(lengths), x.shape[1], longest)
            at = 0
            for b, n in enumerate(lengths):
                where = slice(width - n, width) if side == "left" else slice(0, n)
                rows[at : at + n, :, :n] = x[b, :, where, where].transpose(0, 1)
                at += n
            return rows

        self._begin(pick, pick_attention)

    def token_pass(self, counts: Sequence[int], longest: int) -> None:
        """Set up a pass over one new token per prompt.

        Parameters
        ----------
        counts : sequence of int
            Tokens that each prompt of this pass has so far, the new one included.
        longest : int
            Columns of attention rows.
        """

        def pick_attention(x: Tensor) -> Tensor:
            rows = x.new_zeros(x.shape[0], x.shape[1], longest)
            for b, n in enumerate(counts):
                seen = min(n, x.shape[-1])  # a sliding window's cache holds fewer
                rows[b, :, n - seen : n] = x[b, :, -1, x.shape[-1] - seen :]
            return rows

        self._begin(Tensor.clone, pick_attention)

    def _begin(self, pick: Callable[[Tensor], Tensor], pick_attention: Callable[[Tensor], Tensor]) -> None:
        self._pick, self._pick_attention, self._fired = pick, pick_attention, 0

    def run(self, forward: Callable[[], Any]) -> Any:
        """Run a pass; return what `forward` returns, or None if it was ended early.

        Raises
        ------
        RuntimeError
            If a site was not reached, or more than once: rows would be wrong.
        """
        try:
            out = forward()
        except Deepest:
            out = None
        self._residual.clear()
        if self._fired != len(self._wanted):
            raise RuntimeError(
                f"{self._fired} of {len(self._wanted)} sites were recorded in one pass of {self.model.name}: "
                "is another thread running the model?"
            )
        return out

    def settle(self, clock: Clock, stage: str) -> None:
        """Book the seconds that the hooks took inside `stage` where they belong."""
        clock.add("record", self.copy_seconds)
        clock.add("project", self.project_seconds)
        clock.add(stage, -self.copy_seconds - self.project_seconds)
        self.copy_seconds = self.project_seconds = 0.0

    # -------------------------------------------------------------------------------- the rows

    def collect(self, order: Tensor | None = None) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The rows of the batch, on the CPU.

        Parameters
        ----------
        order : Tensor of int64, shape [n], optional
            Which of the recorded rows, one pass after the other, in which order; all as they came by default.

        Returns
        -------
        states, projections : dict of str to Tensor
            ``[rows, …]`` per site. Sites that are the state of another one (`same_as`) are left out of
            `states`.
        """

        def join(chunks: list[Tensor]) -> Tensor:
            rows = chunks[0] if len(chunks) == 1 else torch.cat(chunks)
            chunks.clear()
            if order is not None:
                rows = rows.index_select(0, order.to(rows.device))
            return rows.cpu()

        states = {site: join(self._chunks[site]) for site in self.sites if site in self._chunks}
        projections = {site: join(chunks) for site, chunks in self._projected.items()}
        self._chunks.clear()
        self._projected.clear()
        return states, projections
