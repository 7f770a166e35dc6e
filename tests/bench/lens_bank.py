"""The bank beside the bare forward passes of the same batches: ``python tests/bench/lens_bank.py``.

Both sides run the same prompts in the same padded batches, in turn. The bank also copies rows, pools and
hashes.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch

from interp.capture.batching import pack as pack_batches
from interp.capture.model import Model, load_model
from interp.lens.bank import Bank
from interp.lens.concepts import ConceptPack
from interp.lens.samples import Sample, Samples


@torch.no_grad()
def bare(model: Model, samples: list[Sample], budget: int) -> None:
    """Tokenise and run the blocks, nothing else."""
    ids = model.tokenizer([s.text for s in samples])["input_ids"]
    for batch in pack_batches([len(i) for i in ids], budget, new_tokens=0):
        longest = max(len(ids[i]) for i in batch)
        x = torch.full((len(batch), longest), model.pad_id)
        mask = torch.zeros_like(x)
        for row, i in enumerate(batch):
            x[row, : len(ids[i])] = torch.tensor(ids[i])
            mask[row, : len(ids[i])] = 1
        model.states(x.to(model.device), mask.to(model.device))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--prompts", type=int, default=2000)
    parser.add_argument("--batch-tokens", type=int, default=2048)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    model, concepts = load_model(args.model), ConceptPack.load("tiny")
    samples = Samples(concepts)
    every = {s.text: s for c in concepts for s in samples.positives(c.id, "train")}
    chosen = list(every.values())[: args.prompts]
    times: dict[str, list[float]] = {"bare": [], "bank": []}
    for turn in range(args.repeats + 1):
        for name in times:
            start = time.perf_counter()
            if name == "bare":
                bare(model, chosen, args.batch_tokens)
            else:
                site = f"resid_post.{model.n_layers - 1}"  # the last one: nothing can be left out
                Bank(model, site, batch_tokens=args.batch_tokens).ensure(chosen)
            if turn:
                times[name].append(time.perf_counter() - start)
    ratios = np.array(times["bank"]) / np.array(times["bare"])
    print(
        f"{len(chosen)} prompts: bare {np.median(times['bare']):.2f} s, "
        f"bank {np.median(times['bank']):.2f} s, "
        f"ratio {np.median(ratios):.3f} [{ratios.min():.3f}, {ratios.max():.3f}]"
    )


if __name__ == "__main__":
    main()
