"""Jobs that emit realistic events without computing anything, for the tests of interp.live."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator

import numpy as np

from interp import events as ev

TEXT = "The owl on the hill sees a small red fox near the old mill , it might be late ."


def reading(n: int = 8, total: int = 200_000) -> Iterator[ev.StageStep]:
    """The pass over the rows of a fit, told `n` times, a second apart, the last time now."""
    now = time.time()
    for k in range(1, n + 1):
        yield ev.StageStep(
            time=now + k - n,
            stage="summary",
            done=200_000 * k // (n + 1),
            total=total,
            n_events=6_000_000 * k // (n + 1),
            seconds=float(k),
            bytes_resident=500 << 20,
        )


def finishing(done: int, total: int) -> ev.StageStep:
    """The raw events at the end of a fit: `done` pairs of `total`."""
    return ev.StageStep(
        stage="polish", done=done, total=total, n_events=1000, seconds=1.0, bytes_resident=600 << 20
    )


def fit_events(
    n_slabs: int = 10, width: int = 16, n_latents: int = 2048, seed: int = 0
) -> Iterator[ev.Event]:
    """A probe fit of 151 classes: every slab converges in 12 to 19 iterations, few pairs fail."""
    rng = np.random.default_rng(seed)
    yield ev.FitBegin(
        method="summary",
        n_rows=200_000,
        n_latents=n_latents,
        n_classes=151,
        n_events=6_000_000,
        n_nodes=430_000,
        n_slabs=n_slabs,
        class_slab_size=width,
        latent_block_size=64,
        row_batch_size=65_536,
        max_iter=100,
        tol=1e-6,
        device="cpu",
    )
    total = failed = 0
    for slab in range(n_slabs):
        start, stop = slab * width, min(151, (slab + 1) * width)
        where = {"slab": slab, "n_slabs": n_slabs, "class_start": start, "class_stop": stop}
        n_pairs = (stop - start) * n_latents
        n_inert = int(n_pairs * rng.uniform(0.02, 0.2))
        yield ev.SlabBegin(**where, n_pairs=n_pairs, n_inert=n_inert)
        n_active, n_iter, seconds, fails = n_pairs - n_inert, int(rng.integers(12, 20)), 0.0, 0
        for i in range(1, n_iter + 1):
            n_fail = int(rng.poisson(0.05))
            n_active = int(n_active * rng.uniform(0.5, 0.8)) if i < n_iter else 0
            lam, spread, each = (
                10 ** (-3 - 0.3 * i),
                10 ** rng.uniform(1, 2),
                n_active / n_pairs * 0.05 + 0.01,
            )
            seconds, fails, known = seconds + each, fails + n_fail, i % 3 == 1
            yield ev.IterationEnd(
                **where,
                iteration=i,
                n_pairs=n_pairs,
                n_active=n_active,
                n_inert=n_inert,
                n_fail=n_fail,
                n_rejected=int(n_active * 0.02),
                n_clipped=int(n_active * 0.01),
                lam_min=lam / spread / 30,
                lam_q1=lam / 3,
                lam_median=lam,
                lam_q3=lam * 4,
                lam_max=lam * spread * 100,
                loss_mean=0.02 + 0.1 * math.exp(-i / 3) if known else math.nan,
                loss_max=0.6 + 0.1 * math.exp(-i / 3) if known else math.nan,
                grad_max=10 ** (-0.45 * i) * rng.uniform(0.5, 2),
                seconds=each,
                bytes_resident=700 << 20,
            )
        total, failed = total + n_pairs, failed + fails
        counts = {"converged": n_pairs - fails, "lm_failed": fails}
        yield ev.SlabEnd(
            **where, n_pairs=n_pairs, n_iter=n_iter, n_fail=fails, status_counts=counts, seconds=seconds
        )
    counts = {"converged": total - failed, "lm_failed": failed}
    yield ev.FitEnd(n_pairs=total, n_fail=failed, n_polished=42, status_counts=counts, seconds=12.3)


def lens_events(n: int = 120, seed: int = 0) -> Iterator[ev.Event]:
    """A lens training: lenses grow in rounds of doubled samples and are then graded."""
    rng = np.random.default_rng(seed)
    yield ev.TrainBegin(
        n_lenses=n, n_prompts=4000, site="resid_post.2", f1_target=0.95, validation_blocking=False
    )
    quality, growing, round_ = rng.uniform(0.55, 1, n), list(range(n)), 0
    while growing:
        round_ += 1
        for c in list(growing):
            samples = 20 * 2 ** (round_ - 1)
            f1 = (
                1
                - (1 - quality[c] * 0.2) * math.exp(-samples / 60 / quality[c]) * 0.5
                - (1 - quality[c]) * 0.3
            )
            if f1 > 0.95 or round_ > 6:
                growing.remove(c)
            yield ev.LensIteration(
                concept=f"c{c}",
                term=f"concept {c}",
                iteration=round_,
                n_samples=samples,
                f1=f1,
                f1_low=f1 - 0.03,
                auroc=f1,
                n_active=len(growing),
                n_lenses=n,
                seconds=0.01,
            )
    grades = dict.fromkeys("ABCU", 0)
    for c in range(n):
        score = min(2 * quality[c] - 1 + rng.normal() * 0.05, 1.0)
        low = score - 0.1
        grade = "U" if rng.random() < 0.04 else "A" if low >= 0.5 else "B" if low >= 0.2 else "C"
        grades[grade] += 1
        yield ev.LensEnd(
            concept=f"c{c}",
            term=f"concept {c}",
            level=c % 3,
            grade=grade,
            score=score,
            score_low=low,
            score_high=min(1, score + 0.1),
            auroc=(score + 1) / 2,
            f1=0.9,
            n_samples=int(20 * 2 ** rng.integers(0, 6)),
            n_iter=round_,
            extra_iterations=3,
            stop_reason="target met",
            seconds=0.1,
            n_done=c + 1,
            n_lenses=n,
        )
    yield ev.TrainEnd(n_lenses=n, grade_counts=grades, seconds=5.0)


def capture_events(n_batches: int = 6, seed: int = 0) -> Iterator[ev.Event]:
    """A capture of four prompts a batch at five sites."""
    rng = np.random.default_rng(seed)
    n = 4 * n_batches
    yield ev.CaptureBegin(
        n_prompts=n,
        n_prompt_tokens=17 * n,
        max_new_tokens=50,
        n_batches=n_batches,
        batch_tokens=512,
        sites=tuple(f"resid_post.{i}" for i in range(5)),
        memory_total=8 << 30,
        estimated_seconds=8.0,
        estimated_bytes=1 << 20,
    )
    tokens = tuple(TEXT.split())
    stages = {"load": 0.9, "tokenise": 0.01, "prefill": 0.05, "record": 0.004, "project": 0.02}
    stages |= {"decode": 0.6, "host": 2e-4, "check": 0.01, "write": 3e-5}
    real = padded = 0
    for b in range(n_batches):
        r = int(rng.integers(200, 260))
        p = int(r * rng.uniform(1.05, 1.4))
        real, padded = real + r, padded + p
        yield ev.BatchEnd(
            batch=b,
            n_batches=n_batches,
            n_prompts=4,
            prompts_done=4 * (b + 1),
            prompts_total=n,
            tokens_real=r,
            tokens_padded=p,
            tokens_generated=200,
            seconds=rng.uniform(0.4, 0.6),
            stage_seconds={k: v * rng.uniform(0.8, 1.2) for k, v in stages.items()},
            bytes_resident=int((600 + b * 20) * 2**20),
            prompt_id=f"uncertainty/{b}",
            tokens=tokens,
            projections={
                f"uncertainty_calibration@resid_post.{i}": tuple(rng.normal(size=len(tokens)) * (i + 1))
                for i in range(5)
            },
        )
    yield ev.CaptureEnd(
        n_prompts=n,
        tokens_real=real,
        tokens_padded=padded,
        tokens_generated=200 * n_batches,
        seconds=5.0,
        stage_seconds=stages,
        bytes_peak=800 << 20,
    )


def summary_task_events(
    task: int = 0, n_tasks: int = 6, n_shards: int = 5, error: str = "", attempt: int = 1
) -> Iterator[ev.Event]:
    """The log of a task that sums row shards; with an error, it ends after two of them."""
    yield ev.TaskBegin(job="summary", task=task, n_tasks=n_tasks, attempt=attempt, host="node-7", pid=4711)
    for i in range(2 if error else n_shards):
        size = {"n_rows": 50_000, "n_events": 2_000_000, "seconds": 0.05, "bytes_resident": 900 << 20}
        yield ev.ShardEnd(shard=i, n_shards=n_shards, **size)
    yield ev.TaskEnd(job="summary", task=task, seconds=3.0, error=error)


def play(events: Iterator[ev.Event], seconds: float = 0.01, iteration_hook=None) -> list[ev.Event]:
    """A job: emits `events`, sleeping before each iteration; returns those it got to emit."""
    emit, out = ev.Emitter(iteration_hook), []
    for event in events:
        if event.is_step:
            time.sleep(seconds)
        out.append(event)
        if emit(event):
            break
    return out


class Bench:
    """For a slab tuner, without measuring: fastest at slab 16, block 64; passes fastest at 4,096 rows."""

    n_latents, n_classes, n_rows = 256, 64, 20_000

    def __init__(self, seconds=0.0):
        self.seconds, self.asked = seconds, []

    def auto(self):
        return {"class_slab_size": 16, "latent_block_size": 20}

    def solve(self, slab, block):
        time.sleep(self.seconds)
        self.asked.append((slab, block))
        ns = 1.0 + abs(np.log2(slab / 16)) + abs(np.log2(block / 64))
        return {"ns_per_eval": float(ns), "ns_low": 0.5, "ns_high": 9.0, "bytes": slab * block}

    def rows(self, size):
        return {"ns_per_event": 10.0 if size == 4096 else 20.0, "ns_low": 9.0, "ns_high": 21.0, "bytes": 8}
