"""Train the shipped sparse autoencoder: ``python -m interp.tiny.train_sae``.

A TopK autoencoder [1]_ of 2,048 latents on ``resid_post.3`` of the shipped model, stored in SAELens'
format. Latents that have not fired for a while learn to explain what the others leave over, so that few
die. Printed at the end, and stored in the metadata of ``cfg.json``: variance explained, L0, dead share,
and the next-token loss with the reconstruction put in the activations' place, all on text that was not
trained on.

References
----------
.. [1] L. Gao et al., Scaling and evaluating sparse autoencoders, arXiv:2406.04093.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from interp.sae import SAE
from interp.tiny import corpus, path, sae_path

LAYER = 3
N_LATENTS = 2048
K = 24
N_TOKENS = 600_000
BATCH = 4096
STEPS = 1500
LEARNING_RATE = 2e-3
#: A latent that has not fired for this many steps counts as dead while training.
DEAD_AFTER = 40
K_DEAD = 64
#: Seeds of text for training and for the measured numbers; the language model saw neither.
TRAIN_SEED, HELD_OUT_SEED = -2, -3


def batches(text: corpus.Corpus, rows: int = 64) -> list[np.ndarray]:
    """Documents of equal length stacked, so that none is padded: int64 arrays, (n_documents, length)."""
    by_length: dict[int, list[np.ndarray]] = defaultdict(list)
    for ids, _ in text.documents():
        by_length[len(ids)].append(ids)
    return [
        np.stack(group[i : i + rows]).astype(np.int64)
        for _, group in sorted(by_length.items())
        for i in range(0, len(group), rows)
    ]


@torch.no_grad()
def activations(model: PreTrainedModel, text: corpus.Corpus) -> torch.Tensor:
    """Output of block :data:`LAYER` at every token but the first of each document.

    The first token is always ``<s>``: its state is the same in every document, and is nothing to explain.

    Parameters
    ----------
    model : PreTrainedModel
    text : Corpus

    Returns
    -------
    Tensor of float32, shape [n_tokens - n_documents, d_model]
    """
    out: list[torch.Tensor] = []
    block = model.model.layers[LAYER]
    handle = block.register_forward_hook(lambda _m, _a, hidden: out.append(hidden[:, 1:].flatten(0, 1)))
    try:
        for ids in batches(text):
            model.model(input_ids=torch.from_numpy(ids), use_cache=False)
    finally:
        handle.remove()
    return torch.cat(out)


def train(acts: torch.Tensor, steps: int = STEPS, seed: int = 0) -> SAE:
    """Fit the autoencoder to activations.

    Parameters
    ----------
    acts : Tensor of float32, shape [n, d_in]
    steps : int
        Optimiser steps of :data:`BATCH` rows.
    seed : int

    Returns
    -------
    SAE
        Decoder rows have norm 1; ``cfg`` has no metadata yet.
    """
    generator = torch.Generator().manual_seed(seed)
    d_in = acts.shape[1]
    mean = acts.mean(dim=0)
    # fitted at mean squared norm d_in, so that the learning rate suits any site; undone at the end
    scale = (d_in / (acts - mean).pow(2).sum(dim=1).mean()).sqrt()
    w_dec = torch.randn(N_LATENTS, d_in, generator=generator)
    w_dec = (w_dec / w_dec.norm(dim=1, keepdim=True)).requires_grad_()
    w_enc = w_dec.detach().T.clone().requires_grad_()
    b_enc = torch.zeros(N_LATENTS, requires_grad=True)
    b_dec = torch.zeros(d_in, requires_grad=True)
    optimiser = torch.optim.Adam(
        [w_enc, w_dec, b_enc, b_dec], lr=LEARNING_RATE, betas=(0.9, 0.99), fused=True
    )
    silent = torch.zeros(N_LATENTS)
    begin = time.perf_counter()
    for step in range(steps):
        warm, left = min(1.0, (step + 1) / 50), min(1.0, 3 * (steps - step) / steps)
        for group in optimiser.param_groups:
            group["lr"] = LEARNING_RATE * warm * left
        rows = torch.randint(len(acts), (BATCH,), generator=generator)
        x = (acts[rows] - mean) * scale
        z = (x - b_dec) @ w_enc + b_enc
        value, index = z.topk(K, dim=1, sorted=False)
        value = value.relu()
        left_over = x - (torch.zeros_like(z).scatter(1, index, value) @ w_dec + b_dec)
        loss = left_over.pow(2).mean()
        silent += 1
        silent[index[value > 0]] = 0
        dead = silent > DEAD_AFTER
        if int(dead.sum()) >= K_DEAD:
            # the dead explain what is left over: their only way to a gradient
            aux, where = z.masked_fill(~dead, -torch.inf).topk(K_DEAD, dim=1, sorted=False)
            guess = torch.zeros_like(z).scatter(1, where, aux) @ w_dec
            loss = loss + 0.03 * (left_over.detach() - guess).pow(2).mean()
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        with torch.no_grad():
            w_dec /= w_dec.norm(dim=1, keepdim=True)
        if (step + 1) % 100 == 0 or step + 1 == steps:
            explained = 1 - left_over.detach().pow(2).sum() / (x - x.mean(dim=0)).pow(2).sum()
            seconds = time.perf_counter() - begin
            numbers = f"explained {explained:.4f}  silent {int(dead.sum())}  {seconds:.0f} s"
            print(f"step {step + 1}/{steps}  {numbers}", flush=True)
    weights = {
        "W_enc": w_enc.detach(),
        "b_enc": b_enc.detach() / scale,
        "W_dec": w_dec.detach(),
        "b_dec": b_dec.detach() / scale + mean,
    }
    return SAE(
        weights,
        {"architecture": "topk", "d_in": d_in, "d_sae": N_LATENTS, "k": K, "apply_b_dec_to_input": True},
    )


@torch.no_grad()
def measure(sae: SAE, acts: torch.Tensor) -> dict[str, float]:
    """Variance explained, L0 and dead share of an autoencoder.

    Parameters
    ----------
    sae : SAE
    acts : Tensor, shape [n, d_in]

    Returns
    -------
    dict
        ``variance_explained`` = 1 − Σ‖x − x̂‖² / Σ‖x − mean‖², ``l0`` = mean non-zeros per row,
        ``dead_share`` = latents that fire on no row.
    """
    wrong = total = 0.0
    fired = torch.zeros(sae.n_latents)
    mean = acts.mean(dim=0)
    for x in acts.split(BATCH):
        code = sae.encode(x)
        wrong += (x - sae.decode(code)).pow(2).sum().item()
        total += (x - mean).pow(2).sum().item()
        fired += (code > 0).sum(dim=0)
    return {
        "variance_explained": 1 - wrong / total,
        "l0": fired.sum().item() / len(acts),
        "dead_share": (fired == 0).float().mean().item(),
    }


@torch.no_grad()
def loss_with(
    model: PreTrainedModel, text: corpus.Corpus, change: Callable[[torch.Tensor], torch.Tensor]
) -> float:
    """Next-token loss with the output of block :data:`LAYER` changed, but not at the first token."""

    def hook(_module, _args, hidden):
        hidden = hidden.clone()
        hidden[:, 1:] = change(hidden[:, 1:])
        return hidden

    total = count = 0.0
    handle = model.model.layers[LAYER].register_forward_hook(hook)
    try:
        for ids in batches(text):
            x = torch.from_numpy(ids)
            logits = model(input_ids=x, use_cache=False).logits[:, :-1]
            total += torch.nn.functional.cross_entropy(
                logits.flatten(0, 1), x[:, 1:].flatten(), reduction="sum"
            ).item()
            count += x[:, 1:].numel()
    finally:
        handle.remove()
    return total / count


def main() -> None:
    """Command line: collect activations, train, measure, save."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=path())
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--tokens", type=int, default=N_TOKENS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=sae_path())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model = AutoModelForCausalLM.from_pretrained(str(options.model)).float().eval()
    acts = activations(model, corpus.tokens(options.tokens, TRAIN_SEED))
    print(
        f"{len(acts):,} activations of width {acts.shape[1]}, mean norm {acts.norm(dim=1).mean():.2f}",
        flush=True,
    )
    sae = train(acts, options.steps, options.seed)
    fresh = corpus.tokens(100_000, HELD_OUT_SEED)
    held_out = activations(model, fresh)
    mean = acts.mean(dim=0)
    small = corpus.tokens(30_000, HELD_OUT_SEED)
    notes = {
        **measure(sae, held_out),
        "loss": loss_with(model, small, lambda x: x),
        "loss_reconstructed": loss_with(model, small, lambda x: sae.decode(sae.encode(x))),
        "loss_mean_ablated": loss_with(model, small, lambda x: mean.expand_as(x)),
    }
    notes = {name: round(value, 4) for name, value in notes.items()}
    sae.cfg |= {
        "dtype": "float32",
        "device": "cpu",
        "normalize_activations": "none",
        "reshape_activations": "none",
        "rescale_acts_by_decoder_norm": False,
        "metadata": {
            "sae_lens_version": "6.0.0",
            "sae_lens_training_version": None,
            "model_name": "interp/tiny",
            "hook_name": f"blocks.{LAYER}.hook_resid_post",
            "hook_head_index": None,
            "prepend_bos": True,
            "context_size": corpus.MAX_TOKENS,
            "training_tokens": len(acts),
            **notes,
        },
    }
    sae.save(options.out)
    print(json.dumps(notes, indent=2))


if __name__ == "__main__":
    main()
