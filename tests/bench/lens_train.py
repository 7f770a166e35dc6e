"""The whole of a training beside one MLP at a time: ``python tests/bench/lens_train.py [--quick]``.

Both sides begin with a finished bank and do the published loop: train on 10 samples of a class, look at the
selection split, go on with 20, 40, 80, 120 until the lower bound of F1 meets the target or the data is used
up, then score the held-out texts. The baseline (`lens_mlp.mlp_one_at_a_time`, one fit per number of samples
where the published trainer makes three) does just that, with the samples already drawn. `train_lenses` also
draws the samples and looks for near-duplicates in them, chooses λ by cross-validation in every round,
calibrates, grades with intervals, and fits three baselines.

Settings: the shipped model (width 128), its rows stretched to the width of a 4B model (2,560) with noise in
the new dimensions, and any model by ``--model``.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence

import numpy as np
import torch
from lens_mlp import mlp_one_at_a_time
from table import Row, finish, interleaved, parse, parser, ratio

from interp.capture.model import load_model
from interp.lens import grade as g
from interp.lens.bank import Bank
from interp.lens.concepts import Concept, ConceptPack
from interp.lens.job import Job, plan
from interp.lens.judge import Judge
from interp.lens.samples import Samples
from interp.lens.train import train_lenses

GROWTH, TARGET = (10, 20, 40, 80, 120), 0.95


def one_at_a_time(job: Job, bank: Bank, test: list, growth: Sequence[int]) -> float:
    """The loop of one lens, MLP by MLP: the AUROC on held-out texts."""
    for n in growth:
        train = [*job.positive[:n], *job.negative[:n]]
        x = bank.take(bank.index(train))
        y = (torch.arange(len(train)) < len(job.positive[:n])).float()
        labels = np.arange(len(job.select)) < job.n_select_positive
        held = bank.take(bank.index([*job.select, *test]))
        logits = mlp_one_at_a_time(x, y, held)
        hit = logits[: len(labels)] > 0
        counts = (hit & labels).sum(), (hit & ~labels).sum(), (~hit & labels).sum()
        if g.f1_interval(*map(int, counts))[1] >= TARGET or n >= job.most:
            break
    n_positive = sum(s.origin == job.concept.id for s in test)
    return float(g.auroc(logits[len(labels) :], np.arange(len(test)) < n_positive))


def stretched(bank: Bank, width: int) -> Bank:
    """The bank with its rows turned into a wider space, noise of a tenth of their spread added."""
    wide, rng = copy.copy(bank), torch.Generator().manual_seed(0)
    wide.model = copy.copy(bank.model)
    wide.model.sites = copy.copy(bank.model.sites)
    wide.model.sites.width = width
    rows = bank.take(torch.arange(len(bank)))
    turn = torch.randn(rows.shape[1], width, generator=rng) / rows.shape[1] ** 0.5
    noise = 0.1 * float(rows.std())
    wide._blocks = [
        {
            name: (bank.take(torch.arange(len(bank)), name) @ turn).add_(
                torch.randn(len(bank), width, generator=rng), alpha=noise
            )
            for name in ("rows", "tokens")
        }
    ]
    return wide


def leaves(pack: ConceptPack, n: int) -> list[Concept]:
    """About `n` of the concepts whose examples are their own."""
    of_last_level = [c for c in pack if c.level == max(pack.levels)]
    return of_last_level[:: max(1, len(of_last_level) // n)][:n]


def compare(
    name: str,
    bank: Bank,
    growth: Sequence[int],
    n_mlp: int,
    repeats: int,
    concepts: list[str] | None,
) -> list[Row]:
    """Seconds per lens of both, in turns, and the AUROCs of the same lenses."""
    pack = ConceptPack.load("tiny")
    samples = Samples(pack)
    judge = Judge(samples, bank, 0)
    chosen = leaves(pack, n_mlp)
    jobs = [plan(samples, c, max(growth) + 1, 0) for c in chosen]
    tests = [[s for part in judge.test_samples(c.id) for s in part] for c in chosen]
    found: dict[str, list[float]] = {}

    def loop() -> float:
        start = time.perf_counter()
        found["mlp"] = [one_at_a_time(j, bank, t, growth) for j, t in zip(jobs, tests, strict=True)]
        return (time.perf_counter() - start) / len(jobs)

    def together() -> float:
        start = time.perf_counter()
        lenses = train_lenses(
            bank.model, pack, site=bank.site, bank=bank, growth=growth, f1_target=TARGET, concepts=concepts
        )
        seconds = (time.perf_counter() - start) / len(lenses)
        found["lens"] = [lenses[c.id].report.auroc for c in chosen]
        found["all"] = [len(lenses)]
        return seconds

    one_at_a_time(
        jobs[0], bank, tests[0], growth
    )  # warm up; the texts of the pack are compared once in a process
    seconds = interleaved({"mlp": loop, "lens": together}, repeats)
    gain = np.array(found["lens"]) - np.array(found["mlp"])
    spread = 1.96 * gain.std() / len(gain) ** 0.5
    note = (
        f"seconds per lens from a finished bank, width {bank.model.width}, {torch.get_num_threads()} torch "
        f"threads; {len(chosen)} MLP loops, {found['all'][0]:.0f} lenses of the shipped pack; held-out "
        f"AUROC {np.mean(found['lens']):.3f} beside {np.mean(found['mlp']):.3f} ({gain.mean():+.3f} ± "
        f"{spread:.3f})"
    )
    what = f"adaptive loop, one MLP at a time ÷ whole training, {name}"
    return [ratio("Lenses", what, seconds["mlp"], seconds["lens"], note=note)]


def main(arguments: Sequence[str] | None = None) -> list[Row]:
    """Measure, and write ``lens_train.csv`` and the table."""
    made = parser(__doc__, repeats=3)
    made.add_argument("--model", default=None, help="another model, instead of the two settings")
    made.add_argument("--device", default="auto", help="of that model; fits are on the CPU")
    made.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parse(made, arguments)
    torch.set_num_threads(options.threads)
    model = load_model(options.model or "tiny", device=options.device)
    bank = Bank(model, f"resid_post.{model.n_layers // 2}")
    growth = GROWTH[:1] if options.quick else GROWTH
    # Fills the bank, with all that either side may want.
    n_mlp = 2 if options.quick else 16
    concepts = [c.id for c in leaves(ConceptPack.load("tiny"), 2)] if options.quick else None
    train_lenses(model, "tiny", site=bank.site, bank=bank, growth=growth, f1_target=1.0, concepts=concepts)
    rows = compare(options.model or "shipped model", bank, growth, n_mlp, options.repeats, concepts)
    if options.model is None and not options.quick:
        rows += compare(
            "width of a 4B model", stretched(bank, 2560), growth, n_mlp, options.repeats, concepts
        )
    return finish("lens_train", rows, options)


if __name__ == "__main__":
    main()
