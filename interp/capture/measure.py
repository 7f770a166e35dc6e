"""What batching, the cache and one load are worth, measured on your own model and prompts.

``interp bench capture`` runs this. Loading once and running prompts in batches are two different gains and
stand as two numbers; so do the cache and the hooks::

    a  one load per prompt                     a / b: what loading once brings
    b  one load, prompts one by one            b / c: what batches bring
    c  one load, padded batches
    d  as b, without keys and values cached    d / b: what the cache brings
    e  the batches of c, by transformers alone c / e: what capturing costs
    f  as c, in the order of the input; and with other budgets of tokens per batch

Every case has the same ids, greedy text and the same number of new tokens. Repeats are interleaved, so that a
busy machine slows all cases alike.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import TYPE_CHECKING, Any

import torch

from interp.capture.batching import describe, memory_total, pack, pad
from interp.capture.generate import Generator
from interp.capture.job import Job
from interp.capture.model import Model, load_model
from interp.capture.prompts import Prompts
from interp.capture.record import budget_of, run_batch
from interp.capture.report import Clock, peak_bytes
from interp.events import bar

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Measurement", "measure"]

#: Prompts that are run without a cache, the slowest case by far; its time is scaled to all of them.
FEW = 2


@dataclass(frozen=True)
class Measurement:
    """Measured times and what follows from them.

    Attributes
    ----------
    frame : DataFrame
        One line per case: ``seconds`` (median), ``low`` and ``high`` of the repeats, ``real`` and ``padded``
        tokens per second, ``note`` (how it was measured).
    stages : DataFrame
        Seconds per stage, of cases b and c.
    load_seconds : float
        Median time of a load; NaN if the model cannot be loaded again.
    n_prompts, n_tokens, max_new_tokens : int
        What was run.
    peak, memory : int
        Bytes in use at the end, and bytes that there are.
    """

    frame: pd.DataFrame
    stages: pd.DataFrame
    load_seconds: float
    n_prompts: int
    n_tokens: int
    max_new_tokens: int
    peak: int
    memory: int

    @property
    def load_gain(self) -> float:
        """Case a over case b: what loading once brings."""
        return self.frame.seconds.get("a", float("nan")) / self.frame.seconds["b"]

    @property
    def batch_gain(self) -> float:
        """Case b over case c: what batches bring."""
        return self.frame.seconds["b"] / self.frame.seconds["c"]

    @property
    def overhead(self) -> float:
        """Case c over case e: what capturing costs, over transformers alone on the same batches."""
        return self.frame.seconds["c"] / self.frame.seconds["e"]

    def plan_seconds(
        self, n_prompts: int, n_traits: int = 1, n_tiers: int = 1, tokens: int | None = None
    ) -> Any:
        """Projected time of a whole plan, for each way of running it.

        Parameters
        ----------
        n_prompts, n_traits, n_tiers : int
            Every prompt is run for every tier. Traits are columns of a projection: they are free where
            prompts are captured once, and multiply the work where every trait has its own run.
        tokens : int, optional
            New tokens per prompt; as measured by default.

        Returns
        -------
        dict of str to float
            Seconds: ``"one load per prompt and trait"``, ``"one load per trait, one by one"``, ``"one load,
            batches"``.
        """
        scale = n_prompts / self.n_prompts * n_tiers
        if tokens is not None:
            mean = (self.n_tokens + self.n_prompts * tokens) / self.n_prompts
            scale *= mean / ((self.n_tokens + self.n_prompts * self.max_new_tokens) / self.n_prompts)
        load = 0.0 if self.load_seconds != self.load_seconds else self.load_seconds
        alone, together = self.frame.seconds["b"] * scale, self.frame.seconds["c"] * scale
        return {
            "one load per prompt and trait": n_traits * (n_prompts * n_tiers * load + alone),
            "one load per trait, one by one": n_traits * (load + alone),
            "one load, batches": load + together,
        }

    def __str__(self) -> str:
        plan = self.plan_seconds(24, 4, 2)
        gain = "" if self.load_seconds != self.load_seconds else f"Loading once: {self.load_gain:.2f}×. "
        lines = [
            f"{self.n_prompts} prompts, {self.n_tokens} prompt tokens, {self.max_new_tokens} new tokens each",
            self.frame.round(3).to_string(),
            "",
            f"{gain}Batches: {self.batch_gain:.2f}×. Capturing costs {self.overhead:.3f}× of transformers "
            "alone.",
            f"Memory in use: {describe(self.peak)} of {describe(self.memory)} "
            f"({self.peak / self.memory:.0%}).",
            "A plan of 24 prompts × 4 traits × 2 tiers: "
            + "; ".join(f"{name} {seconds:.0f} s" for name, seconds in plan.items())
            + ".",
        ]
        if not self.max_new_tokens:
            lines.append(
                "Without generation a single prompt keeps a CPU busy already: batches gain little there, "
                "except on "
                "short prompts; what there is to gain is padding that is not computed."
            )
        return "\n".join(lines)


def measure(
    model: Model,
    prompts: Prompts | Sequence[Any],
    *,
    sites: str | Sequence[str] = "resid_post.*",
    max_new_tokens: int = 50,
    batch_tokens: int | str = "auto",
    repeats: int = 5,
    reload: bool = True,
) -> Measurement:
    """Measure cases a … f.

    Parameters
    ----------
    model : Model
        From `interp.load_model`.
    prompts : Prompts or sequence
        What to run.
    sites : str or sequence of str
        What to capture.
    max_new_tokens : int
        New tokens behind each prompt; 0 measures forward passes alone (case d is left out).
    batch_tokens : int or "auto"
        Budget of case c.
    repeats : int
        How often every case is run, interleaved, after one warm-up.
    reload : bool
        Load the model again to measure that (case a); False for a model that is only in memory.

    Returns
    -------
    Measurement

    Raises
    ------
    ValueError
        As `capture`, or if `repeats` is below 1.
    """
    import pandas as pd

    if repeats < 1:
        raise ValueError(f"repeats must be at least 1, got {repeats}")
    prompts = prompts if isinstance(prompts, Prompts) else Prompts(prompts)
    ids = prompts.encode(model, max_new_tokens=max_new_tokens)
    lengths = [len(seq) for seq in ids]
    job = Job.plan(model, Generator(max_new_tokens, stop_at_eos=False), sites=sites)
    budget = budget_of(model, job, batch_tokens, max(lengths) + max_new_tokens)
    singles = [[i] for i in range(len(ids))]
    sorted_ = pack(lengths, budget, new_tokens=max_new_tokens)

    def captured(batches: list[list[int]], clock: Clock) -> int:
        return sum(
            run_batch(model, job, [ids[i] for i in b], [prompts[i].id for i in b], clock).n_padded
            for b in batches
        )

    def bare(batches: list[list[int]], use_cache: bool = True) -> int:
        return sum(_bare(model, [ids[i] for i in b], max_new_tokens, use_cache) for b in batches)

    Case = Callable[[Clock], int]
    cases: dict[str, tuple[Case, str]] = {
        "b": (lambda clock: captured(singles, clock), "one by one"),
        "c": (lambda clock: captured(sorted_, clock), f"{_batches(sorted_)} of up to {budget} tokens"),
        "e": (lambda clock: bare(sorted_), "the same batches, nothing captured"),
        "f order": (
            lambda clock: captured(pack(lengths, budget, new_tokens=max_new_tokens, sort=False), clock),
            "batches in the order of the input",
        ),
    }
    for label, other in (("f ÷4", budget // 4), ("f ÷16", budget // 16)):
        packed = pack(lengths, max(other, 1), new_tokens=max_new_tokens)
        if len(packed) != len(sorted_):
            cases[label] = (partial(captured, packed), _batches(packed))
    few = singles[:FEW]
    if max_new_tokens:
        cases["d"] = (lambda clock: bare(few, use_cache=False), f"{len(few)} prompts, scaled to all")

    seconds: dict[str, list[float]] = {name: [] for name in cases}
    padded: dict[str, int] = {}
    clocks = {name: Clock() for name in cases}
    captured(sorted_[:1], Clock())  # warm-up
    with bar(repeats * len(cases), "bench capture", "run") as progress:
        for _ in range(repeats):
            for name, (run, _note) in cases.items():
                start = time.perf_counter()
                padded[name] = run(clocks[name])
                seconds[name].append(time.perf_counter() - start)
                progress.update(1)
    loads = [_load_seconds(model) for _ in range(min(repeats, 3))] if reload else []

    n_real = sum(lengths) + len(ids) * max_new_tokens
    rows = []
    for name, times in seconds.items():
        scale = len(ids) / len(few) if name == "d" else 1
        note = cases[name][1]
        rows.append(_row(name, [t * scale for t in times], n_real, int(padded[name] * scale), note))
    if loads:
        per_load = len(ids) * median(loads)
        rows.append(
            _row(
                "a",
                [per_load + t for t in seconds["b"]],
                n_real,
                padded["b"],
                f"b and {len(ids)} measured loads",
            )
        )
    stages = pd.DataFrame({n: {k: v / repeats for k, v in clocks[n].stages.items()} for n in ("b", "c")})
    return Measurement(
        pd.DataFrame(rows).set_index("case").sort_index(),
        stages,
        median(loads) if loads else float("nan"),
        len(ids),
        sum(lengths),
        max_new_tokens,
        peak_bytes(model.device),
        memory_total(model.device),
    )


def _batches(packed: list[list[int]]) -> str:
    return f"{len(packed)} batch{'es' if len(packed) > 1 else ''}"


def _row(name: str, times: list[float], real: int, padded: int, note: str) -> dict[str, Any]:
    middle = median(times)
    return {
        "case": name,
        "seconds": middle,
        "low": min(times),
        "high": max(times),
        "real": real / middle,
        "padded": padded / middle,
        "note": note,
    }


@torch.no_grad()
def _bare(model: Model, ids: list[list[int]], max_new_tokens: int, use_cache: bool) -> int:
    """The same batch by transformers alone; tokens that went through the model."""
    from transformers import GenerationConfig

    side = "left" if max_new_tokens else "right"
    tokens, mask, _ = (t.to(model.device) for t in pad(ids, model.pad_id, side))
    if not max_new_tokens:
        model.states(tokens, mask)
        return tokens.numel()
    settings = GenerationConfig(
        max_new_tokens=max_new_tokens,
        min_new_tokens=max_new_tokens,
        do_sample=False,
        use_cache=use_cache,
        pad_token_id=model.pad_id,
        eos_token_id=list(model.eos_ids) or None,
    )
    model.hf.generate(input_ids=tokens, attention_mask=mask, generation_config=settings)
    n, new = tokens.shape
    if use_cache:
        return n * (new + max_new_tokens - 1)
    return n * sum(range(new, new + max_new_tokens))


def _load_seconds(model: Model) -> float:
    again = load_model(
        model.name, model.dtype, model.device, model.revision or None, attention=model.attention
    )
    return again.load_seconds
