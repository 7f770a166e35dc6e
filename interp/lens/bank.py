"""The activation bank: every prompt is forwarded once, whatever the number of lenses that read it.

A row is the pooled state of one prompt at one site. Its key is a hash of the prompt; the bank as a whole
belongs to one model (weights, revision, dtype, attention), site and pooling. With a folder, rows are kept in
safetensors shards, each whole or not there and named by its hash: a killed run finds all finished shards
again, a damaged one is refused, and several processes may add to one folder.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from interp.capture.generate import count
from interp.capture.sites import split
from interp.events import BatchEnd, Event, Hook
from interp.files import file_hash, sweep, whole, write_json
from interp.lens.pooling import POOLINGS, at_least_one, in_spans, one_token, pool, structural_ids

if TYPE_CHECKING:
    from interp.capture.activations import Shard
    from interp.capture.model import Model
    from interp.lens.samples import Sample

__all__ = ["Bank"]

#: Most of one call of capture, in bytes of rows (held until they are pooled) and in prompts (which are pooled
#: after a stop too).
_CHUNK_BYTES, _CHUNK = 256 * 2**20, 2048


class Bank:
    """Pooled activations of prompts, made on demand and kept.

    Parameters
    ----------
    model : Model
        From ``interp.load_model``.
    site : str
        One site, such as ``resid_post.2``.
    pooling : {"span", "mean", "max", "last"}
        Over the tokens of the example in its template (``span``, a mean), over the whole prompt, or its last
        token. Special tokens (BOS, padding …) never count.
    continuation : int
        Tokens to generate behind each prompt. Their mean is a second row of the prompt (kind ``replies``
        of `take`).
    temperature : float
        Of the continuation; draws depend on `seed` and the prompt alone, not on order or batch.
    seed : int
    folder : path, optional
        Where rows are kept between runs.
    batch_tokens : int or "auto"
        As in ``interp.capture``.

    Attributes
    ----------
    n_forwarded : int
        Prompts that this object sent through the model.
    n_loaded : int
        Rows found in the folder.
    seconds : float
        Spent in forward passes and pooling.

    Raises
    ------
    ValueError
        For an unknown pooling, ``span`` without a fast tokenizer, attention weights, or a damaged shard
        (named).
    """

    def __init__(
        self,
        model: Model,
        site: str,
        *,
        pooling: str = "span",
        continuation: int = 0,
        temperature: float = 0.0,
        seed: int = 0,
        folder: str | os.PathLike[str] | None = None,
        batch_tokens: int | str = "auto",
    ) -> None:
        if pooling not in POOLINGS:
            raise ValueError(f"unknown pooling {pooling!r}: expected one of {', '.join(POOLINGS)}")
        if split(site)[0] == "attn":
            raise ValueError(
                f"lenses cannot read {site}: its rows are as long as the longest prompt; give another site"
            )
        if model.tokenizer is None:
            raise ValueError(f"{model.name} has no tokenizer; lenses are trained on text and need one")
        if pooling == "span" and not model.tokenizer.is_fast:
            raise ValueError(
                f"pooling='span' needs character offsets, which the slow tokenizer of {model.name} does not "
                "give; use pooling='mean'"
            )
        if continuation and not model.is_causal:
            raise ValueError(f"{model.name} is an encoder and cannot continue a prompt; use continuation=0")
        self.model, self.site, self.pooling = model, site, pooling
        continuation = count("continuation", continuation)
        self.continuation, self.temperature, self.seed = continuation, temperature, seed
        self.batch_tokens = batch_tokens
        self.n_forwarded = self.n_loaded = 0
        self.seconds = 0.0
        self._index: dict[bytes, int] = {}
        self._rows: dict[tuple[str, int, int], int] = {}
        self._blocks: list[dict[str, Tensor]] = []  # each has "rows", "tokens" and maybe "replies"
        self._replies: list[str] = []
        self._structural = torch.tensor(sorted(structural_ids(model.tokenizer)), dtype=torch.int64)
        self.identity = {
            "version": 2,
            "model": model.name,
            "revision": model.revision,
            "weights": model.fingerprint,  # of the values in their dtype
            "dtype": str(model.dtype).removeprefix("torch."),
            "attention": model.attention,
            "tokenizer": model.tokenizer_hash,
            "site": site,
            "pooling": pooling,
            "continuation": [continuation, temperature, seed] if continuation else 0,
        }
        self.folder: Path | None = None
        if folder is not None:
            digest = hashlib.sha256(json.dumps(self.identity, sort_keys=True).encode()).hexdigest()[:16]
            self.folder = Path(folder) / f"{site}-{pooling}-{digest}"
            write_json(self.folder / "bank.json", self.identity)  # for people; the folder's name says it all
            sweep(self.folder, locked=False)
            self._load()

    def __len__(self) -> int:
        return len(self._index)

    def __repr__(self) -> str:
        return f"<Bank: {len(self)} prompts at {self.site} ({self.pooling}), {self.n_forwarded} forwarded>"

    # ------------------------------------------------------------------ reading

    def __contains__(self, sample: Sample) -> bool:
        return self._find(sample) is not None

    def index(self, samples: Iterable[Sample]) -> Tensor:
        """Rows of `samples` that are in the bank, int64 ``[n_samples]``; KeyError for one that is not."""
        found = [self._find(s) for s in samples]
        if None in found:
            raise KeyError(f"{sum(f is None for f in found)} of {len(found)} samples are not in the bank")
        return torch.tensor(found, dtype=torch.int64)

    def take(self, index: Tensor, kind: str = "rows") -> Tensor:
        """Rows by number.

        Parameters
        ----------
        index : Tensor of int64, any shape
            From `index`.
        kind : {"rows", "tokens", "replies"}
            The pooled prompt; one of its pooled tokens, drawn by a hash of the text (kept in bfloat16, for
            the spread of single tokens); the mean over its continuation.

        Returns
        -------
        Tensor of float32, shape [*index.shape, width]
        """
        if len(self._blocks) > 1:
            self._blocks = [{k: torch.cat([b[k] for b in self._blocks]) for k in self._blocks[0]}]
        if not self._blocks or kind not in self._blocks[0]:
            raise ValueError(f"this bank holds no {kind}; continuations need continuation > 0")
        return self._blocks[0][kind][index].float()

    def reply(self, row: int) -> str:
        """Text of the continuation of a `row` ("" without continuations)."""
        return self._replies[row] if self.continuation else ""

    # ------------------------------------------------------------------ making rows

    def ensure(self, samples: Iterable[Sample], *, iteration_hook: Hook | None = None) -> bool:
        """Forward those prompts that are not in the bank yet, batched by capture.

        Parameters
        ----------
        samples : iterable of Sample
        iteration_hook : callable, optional
            Gets each `BatchEnd` of the captures; may return True to stop after it. What is finished is kept.

        Returns
        -------
        bool
            Whether all samples are in the bank now (False after a stop).

        Raises
        ------
        FloatingPointError
            If the model gives numbers that are not finite; the prompts are named.
        """
        missing: dict[bytes, Sample] = {}
        for sample in samples:
            if self._find(sample) is None:
                missing.setdefault(self._key(sample), sample)
        if not missing:
            return True
        start = time.perf_counter()
        # One text with two spans is two rows of one prompt: it is still forwarded once.
        by_text: dict[str, list[tuple[bytes, Sample]]] = {}
        for key, sample in missing.items():
            by_text.setdefault(sample.text, []).append((key, sample))
        # By length, so that a chunk pads little; the text breaks ties the same way in every run.
        texts = sorted(by_text, key=lambda t: (len(t), t))
        complete = True
        for chunk in self._chunks(texts):
            complete = self._forward(chunk, by_text, iteration_hook)
            if not complete:
                break
        self.seconds += time.perf_counter() - start
        return complete

    def _chunks(self, texts: list[str]) -> Iterable[list[str]]:
        per_character = self.model.width * 4 / 3  # about 3 characters a token
        chunk: list[str] = []
        size = 0.0
        for text in texts:
            chunk.append(text)
            size += (len(text) + 3 * self.continuation + 6) * per_character
            if size > _CHUNK_BYTES or len(chunk) == _CHUNK:
                yield chunk
                chunk, size = [], 0.0
        if chunk:
            yield chunk

    def _forward(
        self, texts: list[str], by_text: dict[str, list[tuple[bytes, Sample]]], hook: Hook | None
    ) -> bool:
        from interp.capture.prompts import Prompt, Prompts
        from interp.capture.record import capture

        encoded = self._encode(texts)

        def relay(event: Event) -> Any:
            return hook(event) if hook is not None and isinstance(event, BatchEnd) else None

        prompts = Prompts(
            # The id seeds the continuation, so it is made of the content alone.
            Prompt(
                f"{text[:60]} #{hashlib.sha256(text.encode()).hexdigest()[:12]}", token_ids=tuple(e["ids"])
            )
            for text, e in zip(texts, encoded, strict=True)
        )
        acts = capture(
            self.model,
            prompts,
            sites=[self.site],
            max_new_tokens=self.continuation,
            temperature=self.temperature,
            batch_tokens=self.batch_tokens,
            seed=self.seed,
            iteration_hook=relay if hook is not None else None,
        )
        place = {prompt_id: i for i, prompt_id in enumerate(prompts.ids)}
        keys: list[bytes] = []
        blocks: list[dict[str, Tensor]] = []
        replies: list[str] = []
        # Batch by batch, as they were captured: their rows are pooled where they are, and never sorted.
        for ids, shard in acts.batches():
            which = [place[i] for i in ids]
            self.n_forwarded += len(which)
            owned = [(n, key, sample) for n, i in enumerate(which) for key, sample in by_text[texts[i]]]
            keys += [key for _, key, _ in owned]
            blocks.append(self._pool(shard, owned, [encoded[i]["spans"] for i in which], replies))
        if keys:
            block = {name: torch.cat([b[name] for b in blocks]) for name in blocks[0]}
            if self.folder is not None:
                self._write(keys, block, replies)
            self._add(keys, block, replies)
        return len(acts.prompt_ids) == len(texts)

    def _encode(self, texts: list[str]) -> list[dict[str, Any]]:
        tokenizer = self.model.tokenizer
        offsets = bool(tokenizer.is_fast)
        batch = tokenizer(texts, return_offsets_mapping=offsets)
        spans = batch["offset_mapping"] if offsets else [None] * len(texts)
        return [{"ids": ids, "spans": s} for ids, s in zip(batch["input_ids"], spans, strict=True)]

    def _pool(
        self, shard: Shard, owned: list[tuple[int, bytes, Sample]], spans: list[Any], replies: list[str]
    ) -> dict[str, Tensor]:
        """Pool a batch: one row per prompt and span.

        Parameters
        ----------
        shard : Shard
            Of the capture.
        owned : list of (place, key, sample)
            Who asked for what: the place of a prompt in the batch, key and sample of a row.
        spans : list
            Characters of the tokens of each prompt.
        replies : list of str
            Gets the text of each row's continuation, if there are any.
        """
        rows, ids = shard.tensors[self.site], shard.token_ids
        samples, keys = [s for _, _, s in owned], [k for _, k, _ in owned]
        lengths, owners = torch.tensor(shard.lengths), torch.tensor([place for place, _, _ in owned])
        ends = lengths.cumsum(0)
        given = torch.ones(len(ids), dtype=torch.bool)
        if self.continuation:
            position = torch.arange(len(ids)) - torch.repeat_interleave(ends - lengths, lengths)
            given = position < torch.repeat_interleave(torch.tensor(shard.n_prompt), lengths)
        content = ~torch.isin(ids, self._structural)
        every = torch.cat([ends.new_zeros(1), ends])
        # A prompt with several spans has its rows repeated; without one, `at` is every token in order.
        offsets = torch.cat([ends.new_zeros(1), lengths[owners].cumsum(0)])
        at = torch.arange(int(offsets[-1])) + torch.repeat_interleave(
            every[owners] - offsets[:-1], lengths[owners]
        )
        repeated = rows if len(at) == len(rows) else rows[at]
        if self.pooling == "span":
            chosen = in_spans(samples, [spans[i] for i in owners.tolist()], offsets)
        else:
            chosen = at_least_one(given & content, given, every)[at]
        pooled = pool(repeated, offsets, chosen, self.pooling)
        block = {"rows": pooled, "tokens": one_token(repeated, offsets, chosen, keys)}
        if self.continuation:
            # A response of nothing but an end token is pooled over that.
            said = at_least_one(~given & content, ~given, every)
            block["replies"] = pool(rows, every, said, "mean")[owners]
            for i in owners.tolist():
                part = slice(int(every[i]), int(every[i + 1]))
                replies.append(self.model.tokenizer.decode(ids[part][~given[part]], skip_special_tokens=True))
        return block

    def _find(self, sample: Sample) -> int | None:
        """Row of a sample; the hash is computed once per prompt and span."""
        name = (sample.text, sample.start, sample.stop)
        row = self._rows.get(name)
        if row is None:
            row = self._index.get(self._key(sample))
            if row is not None:
                self._rows[name] = row
        return row

    def _key(self, sample: Sample) -> bytes:
        span = f"{sample.start}:{sample.stop}" if self.pooling == "span" else ""
        return hashlib.sha256(f"{span}\x1f{sample.text}".encode()).digest()[:16]

    def _add(self, keys: Sequence[bytes], block: dict[str, Tensor], texts: Sequence[str]) -> None:
        kept = [i for i, key in enumerate(keys) if key not in self._index]
        for i in kept:
            self._index[keys[i]] = len(self._index)
        if kept:
            self._blocks.append({name: t[kept] for name, t in block.items()})
            self._replies += [texts[i] for i in kept] if texts else []

    # ------------------------------------------------------------------ the folder

    def _write(self, keys: list[bytes], block: dict[str, Tensor], texts: list[str]) -> None:
        from safetensors.torch import save

        assert self.folder is not None
        tensors = {name: t.contiguous() for name, t in block.items()}
        tensors["keys"] = torch.frombuffer(bytearray(b"".join(keys)), dtype=torch.uint8).reshape(-1, 16)
        content = save(tensors, metadata={"texts": json.dumps(texts)})
        name = f"{len(self._index):08d}-{hashlib.sha256(content).hexdigest()[:16]}.safetensors"
        with whole(self.folder / name) as part:
            part.write_bytes(content)

    def _load(self) -> None:
        from safetensors import SafetensorError, safe_open

        assert self.folder is not None
        for file in sorted(self.folder.glob("[0-9]*.safetensors")):
            try:
                if file_hash(file)[:16] != file.stem[9:]:
                    raise ValueError("its content does not match the hash in its name")
                with safe_open(file, framework="pt") as f:
                    keys = [bytes(k) for k in f.get_tensor("keys").numpy()]
                    kinds = ["rows", "tokens", *(["replies"] if self.continuation else [])]
                    block = {kind: f.get_tensor(kind) for kind in kinds}
                    texts = json.loads(f.metadata()["texts"])
            except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
                raise ValueError(
                    f"the bank's shard {file} is damaged ({error}); delete it, its prompts are then run again"
                ) from error
            self._add(keys, block, texts)
        self.n_loaded = len(self._index)
