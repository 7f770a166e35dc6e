"""Batches: sorted by length, packed to a budget of padded tokens, halved where memory runs out."""

from __future__ import annotations

import gc
import os
from collections import deque
from collections.abc import Sequence

import torch
from torch import Tensor

from interp.capture.model import Model
from interp.capture.sites import split

__all__ = ["Queue", "auto_batch_tokens", "is_out_of_memory", "memory_free", "memory_total", "pack", "pad"]

#: More padded tokens than this per batch bring no speed: (forward only, with generation), by device type.
KNEE = {"cpu": (2048, 8192), "mps": (8192, 16384), "cuda": (32768, 131072)}


def pack(lengths: Sequence[int], budget: int, *, new_tokens: int = 0, sort: bool = True) -> list[list[int]]:
    """Group prompts so that prompts × longest prompt of each batch stays within a budget.

    Parameters
    ----------
    lengths : sequence of int
        Tokens of each prompt.
    budget : int
        Padded tokens per batch. A prompt that is longer alone gets a batch of its own.
    new_tokens : int
        Tokens generated behind every prompt; they count.
    sort : bool
        Longest first, so that memory that does not suffice shows in the first batch; False keeps the input
        order.

    Returns
    -------
    list of list of int
        Indices into `lengths`; every prompt is in exactly one batch.
    """
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i]) if sort else list(range(len(lengths)))
    batches: list[list[int]] = []
    longest = 0
    for i in order:
        wider = max(longest, lengths[i])
        if batches and (len(batches[-1]) + 1) * (wider + new_tokens) <= budget:
            batches[-1].append(i)
            longest = wider
        else:
            batches.append([i])
            longest = lengths[i]
    return batches


class Queue:
    """The batches still to run.

    Parameters
    ----------
    todo : sequence of int
        Prompts to run.
    lengths : sequence of int
        Tokens of every prompt.
    budget : int
        Padded tokens per batch.
    new_tokens : int
        Tokens generated behind every prompt.
    """

    def __init__(
        self, todo: Sequence[int], lengths: Sequence[int], budget: int, *, new_tokens: int = 0
    ) -> None:
        self.budget = budget
        self.taken = 0
        self._lengths, self._new = lengths, new_tokens
        self._pack(todo)

    def _pack(self, todo: Sequence[int]) -> None:
        packed = pack([self._lengths[i] for i in todo], self.budget, new_tokens=self._new)
        self._batches = deque([todo[i] for i in batch] for batch in packed)

    def __len__(self) -> int:
        return len(self._batches)

    @property
    def n_batches(self) -> int:
        """Batches taken and still to come."""
        return self.taken + len(self._batches)

    def take(self) -> list[int]:
        """The prompts of the next batch."""
        self.taken += 1
        return self._batches.popleft()

    def halve(self, batch: list[int], names: Sequence[str]) -> None:
        """Put a batch back that did not fit in memory, and pack all that is left into half its size.

        Raises
        ------
        MemoryError
            If it was a single prompt, naming it.
        """
        longest = max(self._lengths[i] for i in batch) + self._new
        if len(batch) == 1:
            raise MemoryError(
                f"prompt {names[0]!r} ({longest} tokens, {self._new} of them to be generated) does not fit "
                "in memory "
                "even alone: shorten it, capture fewer sites, or take a smaller dtype"
            )
        self.taken -= 1
        self.budget = len(batch) // 2 * longest
        self._pack([*batch, *(i for b in self._batches for i in b)])


def pad(ids: Sequence[Sequence[int]], pad_id: int, side: str) -> tuple[Tensor, Tensor, Tensor]:
    """Token ids as a rectangle.

    Parameters
    ----------
    ids : sequence of sequence of int
        Token ids of each prompt.
    pad_id : int
        Put where there is no token.
    side : str
        ``"left"`` or ``"right"``: where the padding goes.

    Returns
    -------
    tokens, mask, positions : Tensor, shape [n_prompts, longest], int64
        Ids; 1 where there is a token; the position of a token in its prompt (0 at padding).
    """
    longest = max(map(len, ids))
    tokens = torch.full((len(ids), longest), pad_id, dtype=torch.int64)
    mask = torch.zeros_like(tokens)
    for row, seq in enumerate(ids):
        where = slice(longest - len(seq), None) if side == "left" else slice(0, len(seq))
        tokens[row, where] = torch.tensor(seq, dtype=torch.int64)
        mask[row, where] = 1
    return tokens, mask, (mask.cumsum(1) - 1).clamp_min(0) * mask


def auto_batch_tokens(
    model: Model, sites: Sequence[str], *, longest: int, new_tokens: int, kept: bool
) -> int:
    """A budget from the memory that is free now, rounded down to a power of two so that it repeats.

    Parameters
    ----------
    model : Model
        Where it will run.
    sites : sequence of str
        What will be captured.
    longest : int
        Tokens of the longest prompt, new ones included.
    new_tokens : int
        Tokens to generate.
    kept : bool
        Whether the rows stay in memory until the batch ends.

    Returns
    -------
    int
        Padded tokens per batch.
    """
    per_token = bytes_per_token(model, sites, longest=longest, kept=kept)
    affordable = int(0.4 * memory_free(model.device) / per_token)
    knee = KNEE.get(model.device.type, KNEE["cuda"])[new_tokens > 0]
    return 1 << max(min(affordable, knee), 64).bit_length() - 1


def bytes_per_token(model: Model, sites: Sequence[str], *, longest: int, kept: bool) -> int:
    """A generous estimate of the memory that one padded token takes at the peak of a batch."""
    item = torch.finfo(model.dtype).bits // 8
    widest = max(int(getattr(model.config, "intermediate_size", 0) or 0), 4 * model.width)
    total = item * (6 * model.width + 3 * widest)  # alive inside one block
    total += item * 2 * model.n_layers * model.n_kv_heads * model.head_dim  # keys and values
    heads = model.n_heads if model.attention == "eager" or any(split(s)[0] == "attn" for s in sites) else 1
    total += 4 * 2 * heads * longest  # attention weights, or the mask alone
    if kept:
        total += 2 * item * row_numbers(model, sites, longest)  # chunks, and the rows put together
    return total


def row_numbers(model: Model, sites: Sequence[str], longest: int) -> int:
    """Numbers that one token has at all `sites` together."""
    return sum(torch.Size(model.sites.row_shape(s, longest)).numel() for s in sites)


def memory_free(device: torch.device) -> int:
    """Bytes free on the device (on the host, for CPUs)."""
    if device.type == "cuda":
        free = torch.cuda.mem_get_info(device)[0]
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    if device.type == "mps":
        return max(torch.mps.recommended_max_memory() - torch.mps.current_allocated_memory(), 0)
    return _host_memory("MemAvailable")


def memory_total(device: torch.device) -> int:
    """Bytes that the device (the host, for CPUs) has."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[1]
    if device.type == "mps":
        return torch.mps.recommended_max_memory()
    return _host_memory("MemTotal")


def _host_memory(key: str) -> int:
    try:
        with open("/proc/meminfo") as f:
            for line in f:
                if line.startswith(key + ":"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    try:  # macOS tells only what there is
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // (2 if key == "MemAvailable" else 1)
    except (ValueError, OSError, AttributeError):
        return 8 << 30


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory ran out, on any device."""
    if isinstance(error, (torch.cuda.OutOfMemoryError, MemoryError)):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and ("out of memory" in text or "can't allocate memory" in text)


def release_memory(device: torch.device) -> None:
    """Give unused memory back. Call it outside ``except``: a traceback holds every tensor of its frames."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()


def describe(n_bytes: float) -> str:
    """Bytes for people: ``"1.2 GB"``."""
    for unit in ("B", "kB", "MB", "GB"):
        if n_bytes < 1000:
            return f"{n_bytes:.3g} {unit}"
        n_bytes /= 1000
    return f"{n_bytes:.3g} TB"
