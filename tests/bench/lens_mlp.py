"""Lenses beside one MLP at a time, on the same bank: ``python tests/bench/lens_mlp.py [--quick]``.

The baseline is written from what is known of the published trainer: an MLP d → 128 → 64 → 1 with dropout
0.2, binary cross-entropy, AdamW at 1e-3, 50 full-batch epochs, one concept after the other. (It fitted three
such nets per number of samples, to keep one; here one fit counts.) Both sides read the same rows in memory,
train on the same samples, are judged by AUROC on the same held-out samples, and use the same threads. The
time of the lenses includes standardising and the choice of λ by cross-validation. The published trainer does
not standardise; so that its AUROC does not suffer from that, the better of raw and standardised rows counts
for it, and the time of raw ones.

Two settings: rows made up at the width of a 4B model (2,560) with 40 samples a concept, and the shipped model
and pack.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
import torch
from table import Row, finish, interleaved, parse, parser, ratio
from torch import nn

from interp.lens import fit
from interp.lens import grade as g


def mlp_one_at_a_time(x: torch.Tensor, y: torch.Tensor, test: torch.Tensor) -> np.ndarray:
    """Train on one concept's rows, return the logits of its test rows."""
    d = x.shape[1]
    hidden = [nn.Linear(d, 128), nn.ReLU(), nn.Dropout(0.2), nn.Linear(128, 64), nn.ReLU(), nn.Dropout(0.2)]
    net = nn.Sequential(*hidden, nn.Linear(64, 1))
    optimiser = torch.optim.AdamW(net.parameters(), lr=1e-3)
    for _ in range(50):
        optimiser.zero_grad()
        loss = nn.functional.binary_cross_entropy_with_logits(net(x)[:, 0], y)
        loss.backward()
        optimiser.step()
    net.eval()
    with torch.no_grad():
        return net(test)[:, 0].numpy()


def all_lenses(
    x: torch.Tensor, y: torch.Tensor, masks: tuple[torch.Tensor, torch.Tensor], test: torch.Tensor, batch: int
) -> np.ndarray:
    """Standardise, choose λ, fit, score: all concepts, in batches."""
    out = []
    mean, scale = fit.statistics(x[: max(1, 512 // x.shape[1])].flatten(0, 1))
    for i in range(0, len(x), batch):
        z = fit.standardise(x[i : i + batch], mean, scale)
        labels = y[i : i + batch]
        gram = z @ z.transpose(1, 2)
        weight = torch.ones_like(labels)
        training, held = (m.expand(len(z), -1, -1) for m in masks)
        lam = fit.choose_lambda(gram, labels, weight, training, held)
        coef, b = fit.solve(z, labels, weight, lam, tol=1e-4)
        w = fit.weights(coef, z)
        w = w / (scale * w.shape[1] ** 0.5)  # for rows as they are: nothing as large as the test rows is made
        out.append((test[i : i + batch] @ w[:, :, None])[:, :, 0] + (b - w @ mean)[:, None])
    return torch.cat(out).numpy()


def folds(n: int, k: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    """Plain folds of pairs (a positive and a negative follow each other)."""
    fold = torch.arange(n) // 2 % k
    held = fold[None] == torch.arange(k)[:, None]
    return ~held[None], held[None]


def made_up(concepts: int, n: int, d: int, seed: int = 0) -> tuple[torch.Tensor, ...]:
    """Rows of two overlapping classes per concept, with dimensions of very different scale."""
    rng = torch.Generator().manual_seed(seed)
    stretch = torch.exp(torch.randn(d, generator=rng))

    def draw(rows: int, direction: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y = (torch.arange(rows) % 2).float().expand(concepts, rows).contiguous()
        x = torch.randn(concepts, rows, d, generator=rng)
        return (x + (y - 0.5)[:, :, None] * direction[:, None]) * stretch, y

    direction = torch.randn(concepts, d, generator=rng) * 5 / d**0.5
    x, y = draw(n, direction)
    test, test_y = draw(200, direction)
    return x, y, test, test_y


def shipped(concepts: int) -> tuple[torch.Tensor, ...]:
    """Training and test rows of the shipped pack at the middle of the shipped model."""
    from interp.capture.model import load_model
    from interp.lens.bank import Bank
    from interp.lens.concepts import ConceptPack
    from interp.lens.samples import Samples

    model, pack = load_model("tiny"), ConceptPack.load("tiny")
    bank, samples = Bank(model, f"resid_post.{model.n_layers // 2}"), Samples(pack)
    parts = []
    for c in [c.id for c in pack][:concepts]:
        chosen = []
        for split, n in (("train", 20), ("test", 8)):
            positive = samples.positives(c, split, n)
            negative = samples.negatives(c, split, positive, siblings_only=split == "test")
            chosen.append([s for pair in zip(positive, negative, strict=False) for s in pair])
        parts.append(chosen)
    n_train, n_test = (min(len(p[i]) for p in parts if p[i]) for i in (0, 1))
    parts = [p for p in parts if len(p[0]) >= n_train and len(p[1]) >= n_test]
    bank.ensure(s for p in parts for part in p for s in part)
    x = torch.stack([bank.take(bank.index(p[0][:n_train])) for p in parts])
    test = torch.stack([bank.take(bank.index(p[1][:n_test])) for p in parts])
    y = (torch.arange(n_train) % 2 == 0).float().expand(len(parts), -1).contiguous()
    test_y = (torch.arange(n_test) % 2 == 0).float().expand(len(parts), -1).contiguous()
    return x, y, test, test_y


def compare(name: str, data: tuple[torch.Tensor, ...], baseline: int, repeats: int) -> list[Row]:
    """Seconds per lens, in turns, and held-out AUROCs."""
    x, y, test, test_y = data
    labels = test_y.numpy() > 0
    n_mlp = min(baseline, len(x))
    found: dict[str, np.ndarray] = {}

    def one_at_a_time() -> float:
        start = time.perf_counter()
        found["mlp"] = np.stack([mlp_one_at_a_time(x[k], y[k], test[k]) for k in range(n_mlp)])
        return (time.perf_counter() - start) / n_mlp

    def together() -> float:
        start = time.perf_counter()
        found["lens"] = all_lenses(x, y, folds(x.shape[1]), test, 64)
        return (time.perf_counter() - start) / len(x)

    torch.manual_seed(0)
    jobs = {"mlp": one_at_a_time, "lens": together}
    mlp_one_at_a_time(x[0], y[0], test[0])  # warm up
    together()
    seconds = interleaved(jobs, repeats)
    mean, scale = fit.statistics(x[:n_mlp].flatten(0, 1))
    level = [mlp_one_at_a_time((x[k] - mean) / scale, y[k], (test[k] - mean) / scale) for k in range(n_mlp)]
    areas = [g.auroc(a, labels[:n_mlp]) for a in (found["mlp"], np.stack(level), found["lens"][:n_mlp])]
    gain = areas[2] - max(areas[:2], key=np.mean)
    size = f"{x.shape[1]} samples of width {x.shape[2]}"
    note = f"seconds per lens; {n_mlp} MLPs and all {len(x)} lenses, {size}"
    low, high = gain.mean() + 1.96 * gain.std() / n_mlp**0.5 * np.array([-1.0, 1.0])
    about = (
        f"AUROC {areas[2].mean():.4f} beside {areas[0].mean():.4f} (standardised rows: "
        f"{areas[1].mean():.4f}); in brackets the 95 % interval of the mean over {n_mlp} concepts"
    )
    return [
        ratio(
            "Lenses", f"one MLP at a time ÷ all lenses, {name}", seconds["mlp"], seconds["lens"], note=note
        ),
        Row(
            "Lenses",
            f"held-out AUROC, lens − MLP, {name}",
            float(gain.mean()),
            "",
            float(low),
            float(high),
            n_mlp,
            note=about,
        ),
    ]


def main(arguments: Sequence[str] | None = None) -> list[Row]:
    """Measure, and write ``lens_mlp.csv`` and the table."""
    options = parse(parser(__doc__), arguments)
    concepts, baseline, width = (16, 2, 64) if options.quick else (256, 16, 2560)
    rows = compare("made up", made_up(concepts, 40, width), baseline, options.repeats)
    rows += compare("shipped model and pack", shipped(concepts), 4 * baseline, options.repeats)
    return finish("lens_mlp", rows, options)


if __name__ == "__main__":
    main()
