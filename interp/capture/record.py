"""Capture: one load, many prompts, rows that mean what they say."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from interp.capture.activations import PROJECTION, Activations, Shard
from interp.capture.batching import (
    Queue,
    auto_batch_tokens,
    is_out_of_memory,
    memory_total,
    pad,
    release_memory,
)
from interp.capture.check import compare, judge
from interp.capture.generate import Generator, count
from interp.capture.job import Job, Vectors
from interp.capture.model import Model, expect_model
from interp.capture.prompts import Prompts
from interp.capture.report import Clock, build, estimate_costs, peak_bytes
from interp.capture.store import Folder, Memory
from interp.capture.tape import Tape
from interp.events import BatchEnd, CaptureBegin, CaptureEnd, Emitter, Hook, bar

__all__ = ["budget_of", "capture", "run_batch"]

logger = logging.getLogger(__name__)

#: Most series of numbers and most tokens that an event carries for a monitor: a log line is below 80 kB.
SHOWN, SHOWN_TOKENS = 24, 120


def capture(
    model: Model,
    prompts: Prompts | Iterable[Any],
    *,
    sites: str | Iterable[str] | None = None,
    tier: int | None = None,
    layer: int | None = None,
    vectors: Vectors | None = None,
    max_new_tokens: int = 0,
    temperature: float = 0.0,
    stop_at_eos: bool = True,
    keep_states: bool | None = None,
    out: str | os.PathLike[str] | None = None,
    batch_tokens: int | str = "auto",
    check: int = 0,
    seed: int = 0,
    iteration_hook: Hook | Iterable[Hook] | None = None,
) -> Activations:
    """Run prompts through a model in padded batches and keep the rows of real tokens.

    Parameters
    ----------
    model : Model
        From `interp.load_model`.
    prompts : Prompts or iterable of str or dict
        What to run.
    sites : str or iterable of str, optional
        Names as in `interp.capture.sites`; ``"resid_post.*"`` if neither `sites` nor `tier` is given.
    tier : {2, 3}, optional
        2: all layers × (resid_pre, resid_mid, resid_post). 3: everything of one layer (`layer`).
    layer : int, optional
        Layer of tier 3; the middle one by default.
    vectors : mapping, optional
        Name → vector ``[width]``, applied at every residual site; or name → {site or pattern: vector}. Rows
        are projected on all of them, in float32, on the device.
    max_new_tokens : int
        Tokens to generate behind each prompt. Their rows are captured as they are generated.
    temperature : float
        0 is greedy. Draws are seeded per prompt by `seed` and its id, so text does not depend on the batch.
    stop_at_eos : bool
        End a response at the end-of-sequence token (which has its row).
    keep_states : bool, optional
        Keep the rows themselves. By default yes, except for tier 2 with vectors.
    out : path, optional
        Folder for shards and manifest. A run that was killed there goes on where it was; a finished one is
        opened.
    batch_tokens : int or "auto"
        Padded tokens per batch, new ones included. "auto" goes by the memory that is free.
    check : int
        Run this many prompts again alone, unpadded and without a cache, and compare. A run that goes on in
        `out` checks some of those that were left; of a finished one nothing is checked (a warning says so).
    seed : int
        Seed of the draws.
    iteration_hook : callable or list of callable, optional
        Gets `CaptureBegin`, `BatchEnd`, `CaptureEnd`; may return True to stop after the batch under way.

    Returns
    -------
    Activations
        In the order of the input. After a stop: of the prompts that were finished.

    Raises
    ------
    TypeError
        If `model` is not a loaded one.
    ValueError
        If a prompt, site, layer or vector does not fit the model (named).
    FileExistsError
        If `out` holds another run.
    MemoryError
        If a single prompt does not fit in memory (named).
    FloatingPointError
        If the model produced numbers that are not finite at any of the sites (site and prompt named).
    ArithmeticError
        If `check` finds a relative error above 1e-4 in float32.

    Notes
    -----
    Row t of a prompt is the state at token t; n tokens, n rows. In float32 a batch agrees with single runs to
    about 1e-6. In bfloat16, matrix products round differently for different batch sizes: rows agree to about
    1e-2, and where two tokens are nearly as probable, greedy text can differ from a single run.
    """
    expect_model(model)
    emit = Emitter(iteration_hook)
    clock = Clock()
    with clock("tokenise"):
        prompts = prompts if isinstance(prompts, Prompts) else Prompts(prompts)
        ids = prompts.encode(model, max_new_tokens=max_new_tokens)
    generator = Generator(max_new_tokens, temperature=temperature, seed=seed, stop_at_eos=stop_at_eos)
    job = Job.plan(
        model, generator, sites=sites, tier=tier, layer=layer, vectors=vectors, keep_states=keep_states
    )
    lengths = [len(seq) for seq in ids]
    check = count("check", check)
    budget = budget_of(model, job, batch_tokens, max(lengths) + max_new_tokens)
    meta = job.manifest(model, prompts, ids)

    with closing(Memory() if out is None else Folder.create_or_resume(out, meta)) as store:
        done = {p for shard in store.shards for p in shard.prompts}
        n_resumed = len(done)
        if store.complete:
            if check:
                logger.warning(
                    "%s holds this run, finished: nothing was run again, and check=%d compared nothing. "
                    "What the run itself found is in Activations.check",
                    store.path,
                    check,
                )
            return Activations.load(out)  # type: ignore[arg-type]
        todo = [i for i in range(len(ids)) if i not in done]
        to_check = set(_spread(todo, lengths, check))
        queue = Queue(todo, lengths, budget, new_tokens=max_new_tokens)
        if emit:
            n_projections = sum(map(len, job.names.values()))
            costs = estimate_costs(
                model,
                [s for s in job.sites if s not in meta["same_as"]],
                [lengths[i] for i in todo],
                max_new_tokens,
                keep=job.keep,
                n_projections=n_projections,
                batch_tokens=budget,
            )
            emit(
                CaptureBegin(
                    n_prompts=len(ids),
                    n_prompt_tokens=sum(lengths),
                    max_new_tokens=max_new_tokens,
                    n_batches=queue.n_batches,
                    batch_tokens=budget,
                    sites=job.sites,
                    n_resumed=n_resumed,
                    estimated_bytes=costs.bytes,
                    estimated_seconds=costs.seconds,
                    memory_total=memory_total(model.device),
                )
            )
        errors: dict[str, float] = {}
        totals = {"real": 0, "padded": 0, "generated": 0}
        peak = 0
        with model.attention_for(job.sites), bar(len(ids), "capture", "prompt") as progress:
            progress.update(n_resumed)
            while queue and not emit.stop:
                began, before = time.perf_counter(), dict(clock.stages)
                batch = queue.take()
                batch_ids, names = [ids[i] for i in batch], [prompts[i].id for i in batch]
                ran = _run_or_none(model, job, batch_ids, names, clock)
                if ran is None:
                    # Here the exception is gone, and with its traceback the tensors of the batch.
                    release_memory(model.device)
                    queue.halve(batch, names)
                    continue
                shard = ran.shard(model, batch, batch_ids)
                with clock("host"):
                    _expect_finite(shard, names)
                chosen = [k for k, i in enumerate(batch) if i in to_check]
                if chosen:
                    with clock("check"):
                        for site, error in compare(model, job, shard, chosen).items():
                            errors[site] = max(errors.get(site, 0.0), error)
                    judge(errors, model.dtype)  # before the rows are written: a resumed run trusts them
                with clock("write"):
                    store.add(shard)
                done.update(batch)
                counts = {
                    "real": len(shard.token_ids),
                    "padded": ran.n_padded,
                    "generated": sum(shard.lengths) - sum(shard.n_prompt),
                }
                totals = {k: totals[k] + v for k, v in counts.items()}
                peak = max(peak, peak_bytes(model.device))
                progress.update(len(batch))
                if emit:
                    shown = _shown(shard, job)
                    emit(
                        BatchEnd(
                            batch=queue.taken - 1,
                            n_batches=queue.n_batches,
                            n_prompts=len(batch),
                            prompts_done=len(done),
                            prompts_total=len(ids),
                            tokens_real=counts["real"],
                            tokens_padded=counts["padded"],
                            tokens_generated=counts["generated"],
                            seconds=time.perf_counter() - began,
                            stage_seconds=clock.since(before),
                            bytes_resident=peak_bytes(model.device),
                            prompt_id=names[0],
                            tokens=shown[0],
                            projections=shown[1],
                        )
                    )
        twins = meta["same_as"]
        meta["check"] = {s: errors[twins.get(s, s)] for s in job.sites} if errors else {}
        meta["report"] = build(clock, totals, peak, queue.budget, queue.taken, n_resumed, model)
        if len(done) == len(ids):
            store.finish(meta)
        if emit:
            emit(
                CaptureEnd(
                    n_prompts=len(done),
                    tokens_real=totals["real"],
                    tokens_padded=totals["padded"],
                    tokens_generated=totals["generated"],
                    seconds=clock.total,
                    stage_seconds=dict(clock.stages),
                    bytes_peak=peak,
                    stopped=emit.stop,
                )
            )
            emit.close()
        return Activations(meta, store.shards, store.path)


@dataclass
class _Ran:
    """What a batch gave."""

    states: dict[str, Tensor]
    projections: dict[str, Tensor]
    responses: list[list[int]]
    n_padded: int

    def shard(self, model: Model, batch: list[int], ids: Sequence[Sequence[int]]) -> Shard:
        tokens = [[*seq, *new] for seq, new in zip(ids, self.responses, strict=True)]
        tensors = {**self.states, **{PROJECTION + k: v for k, v in self.projections.items()}}
        flat = torch.tensor([t for seq in tokens for t in seq], dtype=torch.int64)
        return Shard(
            list(batch),
            [len(t) for t in tokens],
            [len(s) for s in ids],
            flat,
            tensors,
            model.token_strings(flat),
        )


def _run_or_none(model: Model, job: Job, ids: list[list[int]], names: list[str], clock: Clock) -> _Ran | None:
    """Run a batch; None if memory ran out."""
    try:
        return run_batch(model, job, ids, names, clock)
    except Exception as error:  # memory runs out under many names; anything else is raised on
        if not is_out_of_memory(error):
            raise
    return None


@torch.no_grad()
def run_batch(model: Model, job: Job, ids: list[list[int]], names: list[str], clock: Clock) -> _Ran:
    """Run one padded batch and bring its rows to the CPU.

    Parameters
    ----------
    model : Model
        What to run.
    job : Job
        What to capture.
    ids : list of list of int
        Token ids of the prompts.
    names : list of str
        Their ids.
    clock : Clock
        Counts the stages.

    Returns
    -------
    object
        ``states`` and ``projections`` (site → rows), ``responses`` (new token ids), ``n_padded`` (tokens that
        went through the model).
    """
    with Tape(model, job.sites, keep=job.keep, vectors=job.matrices) as tape:
        if job.generator.max_new_tokens:
            responses, order, n_padded = job.generator(model, tape, ids, names, clock)
        else:
            tokens, mask, _ = (t.to(model.device) for t in pad(ids, model.pad_id, "right"))
            tape.prompts_pass(mask, "right", mask.shape[1])
            tape.stop_early = True
            with clock("prefill"):
                tape.run(lambda: model.states(tokens, mask))
            responses, order, n_padded = [[] for _ in ids], None, tokens.numel()
            tape.settle(clock, "prefill")
        with clock("host"):
            states, projections = tape.collect(order)
    return _Ran(states, projections, responses, n_padded)


def budget_of(model: Model, job: Job, asked: int | str, longest: int) -> int:
    """Padded tokens per batch: what was asked for, or "auto" for prompts of up to `longest` tokens."""
    if asked == "auto":
        return auto_batch_tokens(
            model, job.sites, longest=longest, new_tokens=job.generator.max_new_tokens, kept=job.keep
        )
    if isinstance(asked, int) and not isinstance(asked, bool) and asked > 0:
        return asked
    raise ValueError(f"batch_tokens must be a positive number or 'auto', got {asked!r}")


def _spread(todo: Sequence[int], lengths: Sequence[int], k: int) -> list[int]:
    """`k` prompts, from the shortest to the longest: padding does most to the shortest of a batch."""
    order = sorted(todo, key=lambda i: lengths[i])
    if k >= len(order):
        return order
    return [order[round(j * (len(order) - 1) / max(k - 1, 1))] for j in range(k)]


def _expect_finite(shard: Shard, names: Sequence[str]) -> None:
    """Raise if any site has NaN or infinity: one site need not have reached another that was asked for."""
    for key, rows in shard.tensors.items():
        if _finite(rows):
            continue
        bad = [n for n, part in zip(names, rows.split(shard.lengths), strict=True) if not _finite(part)]
        raise FloatingPointError(
            f"the states of prompt {bad[0]!r} (and {len(bad) - 1} others of its batch) at "
            f"{key.removeprefix(PROJECTION)} are not finite: load the model with "
            "dtype='float32' or 'bfloat16'"
        )


def _finite(rows: Tensor) -> bool:
    """Whether all numbers are finite. The extremes are NaN if any is, and take no second copy of the rows."""
    return bool(torch.stack(rows.aminmax()).isfinite().all())


def _shown(shard: Shard, job: Job) -> tuple[tuple[str, ...], dict[str, tuple[float, ...]]]:
    """First tokens of a batch's first prompt, for a monitor, and its series: projections, or else norms."""
    n = min(shard.lengths[0], SHOWN_TOKENS)
    tokens = tuple(shard.token_strings.get(t, str(t)) for t in shard.token_ids[:n].tolist())
    series = [
        (f"{name}@{site}", site, j) for site, names in job.names.items() for j, name in enumerate(names)
    ]
    series = series or [(f"norm@{site}", site, -1) for site in shard.tensors]
    if len(series) > SHOWN:  # some from all depths of the model
        series = [series[i] for i in torch.linspace(0, len(series) - 1, SHOWN).int()]

    def values(site: str, column: int) -> Tensor:
        if column < 0:
            return shard.tensors[site][:n].float().flatten(1).norm(dim=1)
        return shard.tensors[PROJECTION + site][:n, column]

    return tokens, {name: tuple(values(site, j).tolist()) for name, site, j in series}
