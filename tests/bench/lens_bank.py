"""The bank beside the bare forward passes of the same batches: ``python tests/bench/lens_bank.py [--quick]``.

Both sides run the same prompts in the same padded batches, in turn. The bank also copies rows, pools and
hashes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from table import Row, finish, interleaved, parse, parser, ratio, timed

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


def main(arguments: Sequence[str] | None = None) -> list[Row]:
    """Measure, and write ``lens_bank.csv`` and the table."""
    options = parse(parser(__doc__), arguments)
    n_prompts, budget = 64 if options.quick else 2000, 2048
    model, concepts = load_model("tiny"), ConceptPack.load("tiny")
    samples = Samples(concepts)
    every = {s.text: s for c in concepts for s in samples.positives(c.id, "train")}
    chosen = list(every.values())[:n_prompts]
    site = f"resid_post.{model.n_layers - 1}"  # the last one: nothing can be left out
    jobs = {
        "bare": lambda: timed(lambda: bare(model, chosen, budget)),
        "bank": lambda: timed(lambda: Bank(model, site, batch_tokens=budget).ensure(chosen)),
    }
    interleaved(jobs, 1)  # warm up
    seconds = interleaved(jobs, options.repeats)
    note = f"{len(chosen)} prompts of the shipped pack, shipped model, the same batches"
    row = ratio("Lenses", "activation bank ÷ bare forward", seconds["bank"], seconds["bare"], note=note)
    return finish("lens_bank", [row], options)


if __name__ == "__main__":
    main()
