"""Batched generation whose text does not depend on the batch, recorded as it happens.

Row t of a prompt is the state at token t. A new token's row is computed by the pass that takes it in, which
is also the pass that predicts the next one: capturing costs no pass of its own but one, for the last token of
all.
"""

from __future__ import annotations

import hashlib
import operator
import time
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from interp.capture.batching import pad
from interp.capture.cache import reserve
from interp.capture.model import Model
from interp.capture.report import Clock
from interp.capture.tape import Tape

__all__ = ["Generator", "count"]


def count(name: str, value: Any) -> int:
    """An option that counts something, as an int.

    Parameters
    ----------
    name : str
        The option's, for the error.
    value : int
        Of any kind that is an integer, NumPy's too.

    Returns
    -------
    int

    Raises
    ------
    ValueError
        If it is no integer, or below 0.
    """
    try:
        n = operator.index(value)
    except TypeError:
        n = -1
    if n < 0:
        raise ValueError(f"{name} must be 0 or more, an integer, got {value!r}")
    return n


class Generator:
    """How the next token is chosen.

    Parameters
    ----------
    max_new_tokens : int
        Longest response.
    temperature : float
        0 takes the most probable token; above, tokens are drawn from ``softmax(logits / temperature)``.
    seed : int
        With the prompt's id it seeds the draws of that prompt, whatever else is in the batch.
    stop_at_eos : bool
        End a response after its first end-of-sequence token (which keeps its row).
    """

    def __init__(
        self, max_new_tokens: int, *, temperature: float = 0.0, seed: int = 0, stop_at_eos: bool = True
    ) -> None:
        if not 0 <= temperature < float("inf"):
            raise ValueError(f"temperature must be 0 (greedy) or a positive number, got {temperature}")
        self.max_new_tokens = count("max_new_tokens", max_new_tokens)
        self.temperature = temperature
        self.seed = seed
        self.stop_at_eos = stop_at_eos

    def draws(self, prompt_id: str) -> Tensor:
        """The uniform numbers that choose a prompt's tokens, float64 ``[max_new_tokens]``."""
        digest = hashlib.sha256(f"{self.seed}/{prompt_id}".encode()).digest()
        source = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
        return torch.rand(self.max_new_tokens, dtype=torch.float64, generator=source)

    def choose(self, logits: Tensor, uniform: Tensor) -> Tensor:
        """The next token of each prompt, int64 ``[n_prompts]``.

        Sampling inverts the distribution function at one uniform number per prompt: rounding that differs
        between batches (1e-7) then changes a token only if the number falls within 1e-7 of a boundary.
        """
        if not self.temperature:
            return logits.argmax(-1)
        wide = torch.float32 if logits.device.type == "mps" else torch.float64
        cdf = torch.softmax(logits.to(wide) / self.temperature, -1).cumsum(-1)
        u = uniform.to(cdf)[:, None] * cdf[:, -1:]
        return torch.searchsorted(cdf, u, right=True)[:, 0].clamp_max(logits.shape[-1] - 1)

    def __call__(
        self,
        model: Model,
        tape: Tape,
        ids: Sequence[Sequence[int]],
        prompt_ids: Sequence[str],
        clock: Clock,
    ) -> tuple[list[list[int]], Tensor, int]:
        """Generate for one batch, with `tape` recording.

        Parameters
        ----------
        model : Model
            A causal LM.
        tape : Tape
            Entered.
        ids : sequence of sequence of int
            Token ids of the prompts.
        prompt_ids : sequence of str
            Their ids, for the draws.
        clock : Clock
            Counts the stages "prefill" and "decode".

        Returns
        -------
        responses : list of list of int
            New token ids of each prompt.
        order : Tensor, int64
            For `Tape.collect`: the recorded rows, prompt after prompt.
        n_padded : int
            Tokens that went through the model, padding included.
        """
        n_new, device = self.max_new_tokens, model.device
        eos = set(model.eos_ids) if self.stop_at_eos else set()
        tokens, mask, positions = (t.to(device) for t in pad(ids, model.pad_id, "left"))
        width = mask.shape[1]
        mask = torch.cat([mask, mask.new_ones(len(ids), n_new)], 1)
        lengths = [len(seq) for seq in ids]
        longest = max(lengths) + n_new
        starts = [sum(lengths[:b]) for b in range(len(ids))]
        rows: list[list[int]] = [list(range(s, s + n)) for s, n in zip(starts, lengths, strict=True)]
        uniform = torch.stack([self.draws(i) for i in prompt_ids]) if self.temperature else None

        tape.prompts_pass(mask[:, :width], "left", longest)
        with clock("prefill"):
            logits, cache = tape.run(lambda: model.next_logits(tokens, mask[:, :width], positions, None))
        tape.settle(clock, "prefill")
        cache = reserve(cache, n_new)
        n_padded, n_rows = tokens.numel(), sum(lengths)
        responses: list[list[int]] = [[] for _ in ids]
        alive = list(range(len(ids)))
        began = time.perf_counter()
        for step in range(n_new):
            u = uniform[alive, step] if uniform is not None else mask
            new = self.choose(logits, u)
            chosen = new.tolist()
            for i, b in enumerate(alive):
                responses[b].append(chosen[i])
                rows[b].append(n_rows + i)
            n_rows += len(alive)
            n_padded += len(alive)
            going = [i for i, token in enumerate(chosen) if token not in eos] if step < n_new - 1 else []
            tape.token_pass([lengths[b] + step + 1 for b in alive], longest)
            tape.stop_early = not going
            seen = mask[alive, : width + step + 1]
            at = torch.tensor([[lengths[b] + step] for b in alive], device=device)
            out = tape.run(partial(model.next_logits, new[:, None], seen, at, cache))
            tape.stop_early = False
            if not going:
                break
            logits, cache = out
            if len(going) < len(alive):  # finished prompts leave the batch
                keep = torch.tensor(going, device=device)
                cache.batch_select_indices(keep)
                logits = logits[keep]
                alive = [alive[i] for i in going]
        clock.add("decode", time.perf_counter() - began)
        tape.settle(clock, "decode")
        order = torch.tensor([r for per_prompt in rows for r in per_prompt])
        return responses, order, n_padded
