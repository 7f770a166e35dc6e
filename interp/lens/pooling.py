"""One row of a prompt from the rows of its tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from interp.lens.samples import Sample

__all__ = ["POOLINGS", "at_least_one", "in_spans", "one_token", "pool", "structural_ids"]

POOLINGS = ("span", "mean", "max", "last")


def pool(rows: Tensor, offsets: Tensor, mask: Tensor, how: str) -> Tensor:
    """Pool the rows of each prompt.

    Parameters
    ----------
    rows : tensor, shape [n_tokens, width]
    offsets : int64 tensor, shape [n_prompts + 1]
        Rows of prompt i are ``offsets[i]:offsets[i + 1]``.
    mask : bool tensor, shape [n_tokens]
        Rows that count; at least one of every prompt.
    how : {"mean", "span", "max", "last"}
        ``span`` is the mean over a mask that covers a span.

    Returns
    -------
    tensor, shape [n_prompts, width], float32
    """
    n = len(offsets) - 1
    owner = torch.repeat_interleave(torch.arange(n), offsets.diff())[mask]
    counts = torch.bincount(owner, minlength=n)
    if bool((counts == 0).any()):
        raise ValueError(f"prompt {int((counts == 0).nonzero()[0])} has no row to pool")
    kept = rows[mask].float()
    if how == "last":
        return kept[counts.cumsum(0) - 1]
    if how == "max":
        return torch.segment_reduce(kept, "max", lengths=counts)
    # Each prompt's sum on its own: a running sum over the file would carry rounding from prompt to prompt.
    return torch.segment_reduce(kept, "mean", lengths=counts)


def in_spans(samples: list[Sample], tokens: list[Any], offsets: Tensor) -> Tensor:
    """Tokens that overlap the example of their prompt, bool ``[n_tokens]``. Ids were ours, so spans fit."""
    lengths = offsets.diff().numpy()
    begin, end = np.zeros((2, int(offsets[-1])), dtype=np.int64)
    at = 0
    for token_spans, n in zip(tokens, lengths.tolist(), strict=True):
        spans = np.asarray(token_spans, dtype=np.int64)
        begin[at : at + len(spans)], end[at : at + len(spans)] = spans.T
        at += n  # generated tokens follow, with the empty span 0:0
    start = np.repeat([s.start for s in samples], lengths)
    stop = np.repeat([s.stop for s in samples], lengths)
    inside = (end > begin) & (end > start) & (begin < stop)
    found = np.add.reduceat(inside, offsets[:-1].numpy())
    if not found.all():
        sample = samples[int(np.argmin(found > 0))]
        raise ValueError(f"no token of {sample.text!r} lies in {sample.filler!r}")
    return torch.from_numpy(inside)


def one_token(rows: Tensor, offsets: Tensor, mask: Tensor, keys: Sequence[bytes]) -> Tensor:
    """One of the masked rows of each prompt, drawn by its key, bfloat16 ``[n_prompts, width]``."""
    owner = torch.repeat_interleave(torch.arange(len(keys)), offsets.diff())
    counts = torch.bincount(owner[mask], minlength=len(keys))
    drawn = torch.tensor([int.from_bytes(key[:6], "big") for key in keys]) % counts
    at = mask.nonzero()[:, 0][counts.cumsum(0) - counts + drawn]
    return rows[at].to(torch.bfloat16)


def at_least_one(mask: Tensor, fallback: Tensor, offsets: Tensor) -> Tensor:
    """`mask`, and where it is empty for a prompt `fallback`; bool ``[n_tokens]``."""
    owner = torch.repeat_interleave(torch.arange(len(offsets) - 1), offsets.diff())
    empty = torch.bincount(owner[mask], minlength=len(offsets) - 1) == 0
    return mask | (fallback & empty[owner])


def structural_ids(tokenizer: Any) -> set[int]:
    """Ids of tokens that stand for no text: BOS, EOS, padding, separators. Not the unknown word.

    Parameters
    ----------
    tokenizer : object
        Of transformers.

    Returns
    -------
    set of int
    """
    names = ("bos_token_id", "eos_token_id", "pad_token_id", "cls_token_id", "sep_token_id", "mask_token_id")
    return {i for name in names if (i := getattr(tokenizer, name, None)) is not None}
