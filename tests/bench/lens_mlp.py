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

import argparse
import time

import numpy as np
import torch
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


def compare(name: str, data: tuple[torch.Tensor, ...], baseline: int, repeats: int) -> float:
    """Print times per lens and AUROCs; return the ratio of the times."""
    x, y, test, test_y = data
    labels = test_y.numpy() > 0
    n_mlp = min(baseline, len(x))
    torch.manual_seed(0)
    mlp_one_at_a_time(x[0], y[0], test[0])
    all_lenses(x, y, folds(x.shape[1]), test, 64)
    slow, fast = [], []
    for _ in range(repeats):
        start = time.perf_counter()
        mlp = np.stack([mlp_one_at_a_time(x[k], y[k], test[k]) for k in range(n_mlp)])
        slow.append((time.perf_counter() - start) / n_mlp)
        start = time.perf_counter()
        lens = all_lenses(x, y, folds(x.shape[1]), test, 64)
        fast.append((time.perf_counter() - start) / len(x))
    ratio = float(np.median(slow) / np.median(fast))
    mean, scale = fit.statistics(x[:n_mlp].flatten(0, 1))
    level = [mlp_one_at_a_time((x[k] - mean) / scale, y[k], (test[k] - mean) / scale) for k in range(n_mlp)]
    areas = [g.auroc(a, labels[:n_mlp]) for a in (mlp, np.stack(level), lens[:n_mlp])]
    best = max(areas[:2], key=np.mean)
    gain = areas[2] - best
    print(
        f"{name}: {len(x)} concepts, {x.shape[1]} samples, width {x.shape[2]}, "
        f"{torch.get_num_threads()} threads\n"
        f"  one MLP at a time {_range(slow)}, held-out AUROC {areas[0].mean():.4f} "
        f"(standardised rows: {areas[1].mean():.4f})\n"
        f"  all lenses        {_range(fast)}, held-out AUROC {areas[2].mean():.4f}: {ratio:.0f}×\n"
        f"  lens − MLP on {n_mlp} concepts: {gain.mean():+.4f} ± {1.96 * gain.std() / n_mlp**0.5:.4f} AUROC"
    )
    return ratio


def _range(seconds: list[float]) -> str:
    low, middle, high = (1e3 * v for v in (min(seconds), float(np.median(seconds)), max(seconds)))
    return f"{middle:8.2f} ms a lens [{low:.2f}, {high:.2f}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few concepts, one repeat")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    concepts, baseline, repeats = (64, 4, 1) if args.quick else (256, 16, 5)
    compare("made up", made_up(concepts, 40, 2560), baseline, repeats)
    compare("shipped model and pack", shipped(concepts), 4 * baseline, repeats)


if __name__ == "__main__":
    main()
