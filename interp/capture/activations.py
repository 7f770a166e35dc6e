"""What a capture returns: rows of all real tokens, in memory or in a folder, with one interface.

>>> acts = capture(model, ["One.", "Two more."], sites="resid_post.*")     # doctest: +SKIP
>>> acts["resid_post.0"].shape, acts.offsets                               # doctest: +SKIP
"""

from __future__ import annotations

import json
import math
import operator
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Activations", "Shard"]

PROJECTION = "projection/"


@dataclass(eq=False)
class Shard:
    """The rows of one batch.

    Attributes
    ----------
    prompts : list of int
        Which prompts, by their place in the input, in the order of the rows.
    lengths, n_prompt : list of int
        Tokens of each prompt, and how many of them were given rather than generated.
    token_ids : Tensor, int64 ``[rows]``
    tensors : dict of str to Tensor
        ``[rows, …]`` per site; projections under ``projection/<site>``.
    token_strings : dict of int to str
        What the ids look like.
    """

    prompts: list[int]
    lengths: list[int]
    n_prompt: list[int]
    token_ids: Tensor
    tensors: dict[str, Tensor] = field(repr=False)
    token_strings: dict[int, str] = field(default_factory=dict, repr=False)

    def read(self, name: str) -> Tensor:
        """The rows of a site (or projection) in this shard, ``[n_rows, …]``, of the dtype captured."""
        return self.tensors[name]

    def read_rows(self, name: str, start: int, stop: int) -> Tensor:
        """Rows `start` … `stop` − 1 of `read`, of the same dtype: ``[stop − start, …]``."""
        return self.tensors[name][start:stop]

    def whole(self) -> Shard:
        """The shard with all its tensors in memory."""
        return self


class Activations:
    """Rows per site, prompt after prompt in the order of the input.

    Parameters
    ----------
    meta : dict
        What was captured, and of what: the manifest.
    shards : list of Shard
        One per batch.
    folder : Path, optional
        Where they are, if on disk.

    Attributes
    ----------
    sites : tuple of str
        Every site that was captured.
    prompt_ids : list of str
        Ids of the prompts that are here (after a stop: of those that were finished).
    meta : dict
        The manifest: model, dtype, attention, sites, seed, versions, report.
    check : dict
        Largest relative error per site, if the capture was asked to ``check``.

    Notes
    -----
    Row t of a prompt is the state *at* token t, prompt and generated tokens alike; n tokens, n rows. In
    memory the rows of a site are put together on first use. From a folder they are read when asked for, and
    not kept.
    """

    def __init__(self, meta: dict[str, Any], shards: Sequence[Shard], folder: Path | None = None) -> None:
        self.meta = meta
        self.folder = folder
        self._shards = list(shards)
        self._whole: dict[str, Tensor] = {}
        where = {p: (s, i) for s, shard in enumerate(self._shards) for i, p in enumerate(shard.prompts)}
        if len(where) != sum(len(s.prompts) for s in self._shards):
            raise ValueError(f"{folder or 'shards'}: a prompt is in two shards")
        self._order = sorted(where)
        self._where = [where[p] for p in self._order]
        self.prompt_ids: list[str] = [meta["prompt_ids"][p] for p in self._order]
        self._index = {id: i for i, id in enumerate(self.prompt_ids)}

    # ---------------------------------------------------------------------------- what is here

    @property
    def sites(self) -> tuple[str, ...]:
        """Every site that was captured."""
        return tuple(self.meta["sites"])

    @property
    def projected(self) -> dict[str, list[str]]:
        """Names of the vectors on which the rows of each site were projected."""
        return {site: list(names) for site, names in self.meta["vectors"].items()}

    @property
    def complete(self) -> bool:
        """Whether every prompt of the input is here."""
        return len(self._order) == len(self.meta["prompt_ids"])

    @property
    def check(self) -> dict[str, float]:
        """Largest relative error per site, if the capture was asked to ``check``; else empty."""
        return self.meta.get("check", {})

    @property
    def report(self) -> pd.DataFrame:
        """Where the time and the memory went, one row per stage (`interp.capture.report`)."""
        from interp.capture.report import table

        return table(self.meta["report"])

    @cached_property
    def _place(self) -> dict[int, int]:
        return {p: i for i, p in enumerate(self._order)}

    @cached_property
    def offsets(self) -> Tensor:
        """Rows of prompt i are ``offsets[i]:offsets[i + 1]``; int64 ``[n_prompts + 1]``."""
        lengths = [self._shards[s].lengths[i] for s, i in self._where]
        return torch.tensor([0, *np.cumsum(lengths).tolist()], dtype=torch.int64)

    @cached_property
    def token_ids(self) -> Tensor:
        """Token of every row, int64 ``[n_tokens]``."""
        return self._assemble([s.token_ids for s in self._shards])

    @cached_property
    def phase(self) -> Tensor:
        """0 where the token was given, 1 where it was generated; uint8 ``[n_tokens]``."""
        parts = []
        for s, i in self._where:
            n, given = self._shards[s].lengths[i], self._shards[s].n_prompt[i]
            parts.append((torch.arange(n) >= given).to(torch.uint8))
        return torch.cat(parts) if parts else torch.empty(0, dtype=torch.uint8)

    @property
    def n_prompts(self) -> int:
        """Number of prompts."""
        return len(self._order)

    @property
    def n_tokens(self) -> int:
        """Number of rows."""
        return int(self.offsets[-1])

    def __repr__(self) -> str:
        where = f" in {self.folder}" if self.folder else ""
        missing = "" if self.complete else f" of {len(self.meta['prompt_ids'])} (stopped)"
        return (
            f"<Activations{where}: {self.n_prompts} prompts{missing}, {self.n_tokens} tokens, "
            f"{len(self.sites)} sites of {self.meta['model']['name']}>"
        )

    # ---------------------------------------------------------------------------- the rows

    def __contains__(self, site: str) -> bool:
        return self.meta["keep_states"] and site in self.sites

    def __getitem__(self, site: str) -> Tensor:
        """All rows of a site, ``[n_tokens, width]`` (``[n_tokens, heads, longest]`` for ``attn.L``).

        Raises
        ------
        KeyError
            If the site was not captured, or only its projections were kept; lists what there is.
        """
        self._expect(site)
        return self._read(site)

    def projection(self, site: str) -> Tensor:
        """Inner products of the rows of `site` with its vectors, float32 ``[n_tokens, n_vectors]``.

        The vectors are named in `projected`.
        """
        if site not in self.projected:
            raise KeyError(f"{site!r} was not projected on vectors; these were: {sorted(self.projected)}")
        return self._read(PROJECTION + site)

    def rows(self, site: str, prompt: int | str) -> Tensor:
        """The rows of one prompt; from a folder, nothing else is read.

        Parameters
        ----------
        site : str
        prompt : int or str
            Its place in the input, or its id.

        Returns
        -------
        Tensor of the model's dtype, shape [n, width]

        Raises
        ------
        KeyError
            If there is no such site or prompt.
        """
        self._expect(site)
        i = self._find(prompt)
        start, stop = int(self.offsets[i]), int(self.offsets[i + 1])
        name = self._stored(site)
        if name in self._whole:
            return self._whole[name][start:stop]
        s, k = self._where[i]
        first = sum(self._shards[s].lengths[:k])
        return self._shards[s].read_rows(name, first, first + stop - start)

    def batches(self) -> Iterator[tuple[list[str], Shard]]:
        """Shard after shard, for what does not fit in memory: ids of its prompts, and the shard.

        ``shard.tensors[site]`` holds the rows of a site, in the order of *its* prompts.
        """
        for shard in map(self._filled, self._shards):
            for site in self.sites if self.meta["keep_states"] else ():
                shard.tensors[site] = shard.tensors[self._stored(site)]
            yield [self.meta["prompt_ids"][p] for p in shard.prompts], shard

    def tokens(self, prompt: int | str) -> list[str]:
        """The tokens of a prompt (place or id) as text."""
        i = self._find(prompt)
        s, k = self._where[i]
        shard = self._shards[s]
        first = sum(shard.lengths[:k])
        ids = shard.token_ids[first : first + shard.lengths[k]].tolist()
        strings = shard.token_strings  # of a folder it is read each time
        return [strings.get(t, str(t)) for t in ids]

    def _find(self, prompt: int | str) -> int:
        i = self._index.get(prompt, -1) if isinstance(prompt, str) else operator.index(prompt)
        if not 0 <= i < self.n_prompts:
            raise KeyError(
                f"no prompt {prompt!r}: there are {self.n_prompts}, with ids {self.prompt_ids[:3]} …"
            )
        return i

    def _expect(self, site: str) -> None:
        if site not in self.sites:
            raise KeyError(f"site {site!r} was not captured; these were: {', '.join(self.sites)}")
        if not self.meta["keep_states"]:
            raise KeyError(f"of site {site!r} only projections were kept: capture with keep_states=True")

    def _stored(self, site: str) -> str:
        return self.meta["same_as"].get(site, site)

    def _read(self, name: str) -> Tensor:
        name = self._stored(name)
        if name not in self._whole:
            whole = self._assemble([shard.read(name) for shard in self._shards])
            if self.folder is not None:
                return whole
            self._whole[name] = whole
            for shard in self._shards:  # the pieces are not needed any more
                del shard.tensors[name]
        return self._whole[name]

    def _assemble(self, pieces: list[Tensor]) -> Tensor:
        """Pieces of all shards → one tensor in the order of the input."""
        if not pieces:
            return torch.empty(0)
        # Attention rows are as long as the longest prompt of their batch.
        shape = [self.n_tokens, *(max(sizes) for sizes in zip(*(p.shape[1:] for p in pieces), strict=True))]
        out = torch.zeros(shape, dtype=pieces[0].dtype)
        starts = np.zeros(len(pieces), dtype=np.int64)
        first = {(s, k): i for i, (s, k) in enumerate(self._where)}
        for s, shard in enumerate(self._shards):
            for k, n in enumerate(shard.lengths):
                at = int(self.offsets[first[s, k]])
                piece = pieces[s][starts[s] : starts[s] + n]
                out[(slice(at, at + n), *(slice(0, w) for w in piece.shape[1:]))] = piece
                starts[s] += n
        return out

    # ---------------------------------------------------------------------------- other forms

    def frame(self) -> pd.DataFrame:
        """One line per token, one column per vector and site.

        Returns
        -------
        DataFrame
            Columns ``prompt_id``, ``position``, ``token_id``, ``token``, ``phase`` ("prompt" or "response")
            and, for every projection, ``"<vector>@<site>"`` (float32).
        """
        import pandas as pd

        lengths = self.offsets.diff().numpy()
        strings: dict[int, str] = {}
        for shard in self._shards:
            strings.update(shard.token_strings)
        columns: dict[str, Any] = {
            "prompt_id": np.repeat(np.array(self.prompt_ids, dtype=object), lengths),
            "position": np.concatenate([np.arange(n) for n in lengths]) if len(lengths) else lengths,
            "token_id": self.token_ids.numpy(),
            "token": [strings.get(t, str(t)) for t in self.token_ids.tolist()],
            "phase": pd.Categorical.from_codes(
                self.phase.tolist(), categories=pd.Index(["prompt", "response"])
            ),
        }
        for site, names in self.projected.items():
            values = self.projection(site).numpy()
            columns.update({f"{name}@{site}": values[:, j] for j, name in enumerate(names)})
        return pd.DataFrame(columns)

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write shards and a manifest into a new folder.

        Parameters
        ----------
        folder : path

        Returns
        -------
        Path
            The folder.

        Raises
        ------
        FileExistsError
            If the folder holds anything.
        """
        from interp.capture.store import Folder

        with closing(Folder.create(folder, self.meta)) as store:
            for shard in self._shards:
                store.add(self._filled(shard))
            if self.complete:  # otherwise the folder stays one that a capture can go on in
                store.finish(self.meta)
        return Path(folder)

    def _filled(self, shard: Shard) -> Shard:
        """`shard` with the tensors that were put together given back to it."""
        at = self._place
        tensors = dict(shard.whole().tensors)
        for name, whole in self._whole.items():
            spans = [(int(self.offsets[at[p]]), int(self.offsets[at[p] + 1])) for p in shard.prompts]
            tensors[name] = torch.cat([whole[a:b] for a, b in spans])
        return Shard(
            shard.prompts, shard.lengths, shard.n_prompt, shard.token_ids, tensors, shard.token_strings
        )

    @classmethod
    def load(cls, folder: str | os.PathLike[str], *, verify: bool = True) -> Activations:
        """Open a folder that `capture` or `save` wrote. Rows are read when asked for.

        Parameters
        ----------
        folder : path
            Holds ``manifest.json`` and the shards.
        verify : bool
            Compare the hash of every shard with the manifest before its first use.

        Returns
        -------
        Activations

        Raises
        ------
        FileNotFoundError
            If there is no manifest, or a shard is missing.
        ValueError
            If a shard is not what was written (named), at its first use.
        """
        from interp.capture.store import open_folder

        meta, shards = open_folder(folder, verify=verify)
        return cls(meta, shards, Path(folder))

    def to_json(
        self,
        path: str | os.PathLike[str],
        *,
        prompts: Sequence[int | str] | None = None,
        digits: int = 5,
    ) -> Path:
        """Write a small file for viewers: tokens, phase and projections of every prompt.

        The file holds ``{"model", "sites", "prompts": [{"id", "tokens", "n_prompt", "projections":
        {vector: {site: [one number per token]}}}]}``.

        Parameters
        ----------
        path : path
            The file.
        prompts : sequence of int or str, optional
            Which prompts, by place or id; all by default.
        digits : int
            Significant digits.

        Returns
        -------
        Path
            The file.

        Raises
        ------
        FileExistsError
            If the file exists.
        ValueError
            If nothing was projected: rows themselves are for safetensors, not for JSON.
        """
        from interp.files import write_text

        if not self.projected:
            raise ValueError("nothing to export: the capture had no vectors to project on")
        values = {site: self.projection(site).numpy() for site in self.projected}
        exported = []
        for i in map(self._find, range(self.n_prompts) if prompts is None else prompts):
            a, b = int(self.offsets[i]), int(self.offsets[i + 1])
            series: dict[str, dict[str, list[float]]] = {}
            for site, names in self.projected.items():
                for j, name in enumerate(names):
                    series.setdefault(name, {})[site] = [_short(v, digits) for v in values[site][a:b, j]]
            n_prompt = b - a - int(self.phase[a:b].sum())
            exported.append(
                {
                    "id": self.prompt_ids[i],
                    "tokens": self.tokens(i),
                    "n_prompt": n_prompt,
                    "projections": series,
                }
            )
        content: Mapping[str, Any] = {
            "model": self.meta["model"],
            "sites": list(self.projected),
            "prompts": exported,
        }
        return write_text(path, json.dumps(content, ensure_ascii=False, allow_nan=False), exist_ok=False)


def _short(value: float, digits: int) -> float:
    if value == 0 or not math.isfinite(value):
        return float(value)
    return round(float(value), digits - 1 - math.floor(math.log10(abs(value))))
