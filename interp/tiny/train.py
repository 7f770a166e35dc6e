"""Train the shipped language model: ``python -m interp.tiny.train``.

A Llama-architecture causal LM learns the documents of :mod:`interp.tiny.corpus`, made anew for every
step, so that no document is seen twice. The weights are stored in float16 (half the size); the config
says float32, so ``from_pretrained`` gives a float32 model. Printed at the end: the held-out loss beside
a unigram and a bigram model of three million tokens of the same corpus.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import time
from pathlib import Path

import numpy as np
import torch
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from interp.tiny import corpus, path, tokenizer
from interp.tiny.corpus import MAX_TOKENS

#: Steps of the shipped model: about 15 minutes on two cores with AMX.
STEPS = 3000
ROWS = 16
LEARNING_RATE = 4e-3
#: Seed of held-out text; those of the training text are not negative.
HELD_OUT_SEED = -1


def config() -> LlamaConfig:
    """The architecture: 6 layers of width 128, grouped-query attention, tied embeddings."""
    ids = tokenizer.vocabulary()
    return LlamaConfig(
        vocab_size=len(ids),
        hidden_size=128,
        intermediate_size=320,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=MAX_TOKENS,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        attention_bias=False,
        mlp_bias=False,
        bos_token_id=ids[tokenizer.BOS],
        eos_token_id=ids[tokenizer.EOS],
        pad_token_id=ids[tokenizer.PAD],
        dtype="float32",
    )


def rows(n_rows: int, seed: int) -> np.ndarray:
    """Token ids of ``n_rows`` full contexts, each beginning with a document.

    Parameters
    ----------
    n_rows : int
    seed : int
        Seed of the corpus.

    Returns
    -------
    ndarray of int64, shape [n_rows, MAX_TOKENS]
        Whole documents one after the other, the last one cut at the end of the row.
    """
    out = np.empty((n_rows, MAX_TOKENS), dtype=np.int64)
    row = used = 0
    text = corpus.tokens(n_rows * (MAX_TOKENS + 260), seed)
    for ids, _ in text.documents():
        take = min(len(ids), MAX_TOKENS - used)
        out[row, used : used + take] = ids[:take]
        used += take
        if used == MAX_TOKENS:
            row, used = row + 1, 0
            if row == n_rows:
                return out
    raise AssertionError("a corpus of this size fills the rows")


# --- baselines -----------------------------------------------------------------------------------------


def unigram_bigram_loss(train_ids: np.ndarray, test_ids: np.ndarray, vocab_size: int) -> tuple[float, float]:
    """Mean negative log-likelihood per token of a unigram and of an interpolated bigram model, in nats.

    The bigram backs off by Witten–Bell weights, n(u) / (n(u) + types after u), which need no tuning.

    Parameters
    ----------
    train_ids, test_ids : ndarray of int, shape [n]
        Token ids in reading order. The first test token is not scored.
    vocab_size : int

    Returns
    -------
    unigram, bigram : float
    """
    count = np.bincount(train_ids, minlength=vocab_size).astype(np.float64) + 1.0
    unigram = count / count.sum()
    pair = train_ids[:-1].astype(np.int64) * vocab_size + train_ids[1:]
    pairs, pair_count = np.unique(pair, return_counts=True)
    first = np.bincount(train_ids[:-1], minlength=vocab_size).astype(np.float64)
    types = np.bincount(pairs // vocab_size, minlength=vocab_size).astype(np.float64)
    before, after = test_ids[:-1].astype(np.int64), test_ids[1:].astype(np.int64)
    wanted = before * vocab_size + after
    at = np.minimum(np.searchsorted(pairs, wanted), len(pairs) - 1)
    seen = np.where(pairs[at] == wanted, pair_count[at], 0).astype(np.float64)
    # c(u,v) + types(u) p(v), over n(u) + types(u); a context never seen falls back on the unigram
    bottom = np.where(first[before] > 0, first[before] + types[before], 1.0)
    mass = np.where(first[before] > 0, types[before], 1.0)
    bigram = (seen + mass * unigram[after]) / bottom
    return float(-np.log(unigram[after]).mean()), float(-np.log(bigram).mean())


@torch.no_grad()
def loss_of(model: torch.nn.Module, ids: np.ndarray, batch: int = 32) -> float:
    """Mean next-token loss of the model on rows of token ids, in nats."""
    total = count = 0.0
    for start in range(0, len(ids), batch):
        x = torch.from_numpy(ids[start : start + batch])
        logits = model(input_ids=x, use_cache=False).logits[:, :-1].float()
        total += torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), x[:, 1:].flatten(), reduction="sum"
        ).item()
        count += x[:, 1:].numel()
    return total / count


# --- training ------------------------------------------------------------------------------------------


def learning_rate(step: int, steps: int) -> float:
    """Linear warm-up over 100 steps, then a cosine to 2 % of the peak."""
    warm = min(1.0, (step + 1) / 100)
    return LEARNING_RATE * warm * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / steps)))


def train(steps: int = STEPS, seed: int = 0) -> LlamaForCausalLM:
    """Train the model from nothing.

    Parameters
    ----------
    steps : int
        Optimiser steps of 4,096 tokens.
    seed : int
        Seed of weights and text. With the same number of threads the run repeats exactly.

    Returns
    -------
    LlamaForCausalLM
        In float32, in eval mode.
    """
    torch.manual_seed(seed)
    model = LlamaForCausalLM(config()).train()
    decay = [p for p in model.parameters() if p.dim() > 1]
    rest = [p for p in model.parameters() if p.dim() == 1]
    groups = [{"params": decay, "weight_decay": 0.05}, {"params": rest, "weight_decay": 0.0}]
    optimiser = torch.optim.AdamW(groups, lr=LEARNING_RATE, betas=(0.9, 0.98), fused=True)
    begin = time.perf_counter()
    block, step = 25, 0
    data = np.empty((0, MAX_TOKENS), dtype=np.int64)
    running = 0.0
    while step < steps:
        if step % block == 0:
            data = rows(ROWS * block, seed * 100_000 + step // block)
        i = step % block
        x = torch.from_numpy(data[i * ROWS : (i + 1) * ROWS])
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(step, steps)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = model(input_ids=x, use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(logits[:, :-1].float().flatten(0, 1), x[:, 1:].flatten())
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        running = loss.item() if step == 0 else 0.98 * running + 0.02 * loss.item()
        step += 1
        if step % 50 == 0 or step == steps:
            seconds = time.perf_counter() - begin
            speed = step * x.numel() / seconds
            print(
                f"step {step}/{steps}  loss {running:.3f}  {seconds:.0f} s  {speed:,.0f} tokens/s", flush=True
            )
    return model.eval()


def save(model: LlamaForCausalLM, out: Path, notes: dict) -> None:
    """Write model and tokenizer under a temporary name, then put them in place.

    Parameters
    ----------
    model : LlamaForCausalLM
    out : Path
        Folder to write; replaced, with all that is in it, if it is there.
    notes : dict
        Measured numbers, written to ``training.json``.
    """
    temporary = out.with_name(out.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    model.half().save_pretrained(temporary)
    model.float()
    settings = json.loads((temporary / "config.json").read_text())
    settings["dtype"] = settings["torch_dtype"] = "float32"
    (temporary / "config.json").write_text(json.dumps(settings, indent=2) + "\n")
    GenerationConfig(
        bos_token_id=settings["bos_token_id"], eos_token_id=settings["eos_token_id"],
        pad_token_id=settings["pad_token_id"],
    ).save_pretrained(temporary)  # fmt: skip
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.build(),
        bos_token=tokenizer.BOS,
        eos_token=tokenizer.EOS,
        pad_token=tokenizer.PAD,
        unk_token=tokenizer.UNK,
        model_max_length=MAX_TOKENS,
        clean_up_tokenization_spaces=False,
        padding_side="left",
    )
    fast.save_pretrained(temporary)
    # class name and template as every version of transformers understands them
    names = json.loads((temporary / "tokenizer_config.json").read_text())
    names = {k: v for k, v in names.items() if k not in ("backend", "extra_special_tokens")}
    names |= {"chat_template": tokenizer.CHAT_TEMPLATE, "tokenizer_class": "PreTrainedTokenizerFast"}
    (temporary / "tokenizer_config.json").write_text(json.dumps(names, indent=2) + "\n")
    (temporary / "training.json").write_text(json.dumps(notes, indent=2) + "\n")
    for file in temporary.iterdir():
        file.chmod(0o644)
    shutil.rmtree(out, ignore_errors=True)
    os.replace(temporary, out)


def _expect_model(out: Path) -> None:
    """Refuse, before hours of training, to replace a folder that holds anything else than such a model."""
    if out.exists() and not (out / "training.json").is_file() and (out.is_file() or any(out.iterdir())):
        raise SystemExit(f"{out} holds something else than a model that was trained here: give another --out")


def main() -> None:
    """Command line: train, measure, save."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=STEPS, help="optimiser steps of 4,096 tokens")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=path())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    _expect_model(options.out)
    begin = time.perf_counter()
    model = train(options.steps, options.seed)
    # what is measured is what is stored: weights rounded to float16
    model.half().float()
    held_out = rows(400, HELD_OUT_SEED)
    loss = loss_of(model, held_out)
    known = corpus.tokens(3_000_000, options.seed * 100_000).ids
    unigram, bigram = unigram_bigram_loss(known, held_out.ravel(), model.config.vocab_size)
    notes = {
        "held_out_loss": round(loss, 4), "unigram_loss": round(unigram, 4), "bigram_loss": round(bigram, 4),
        "held_out_tokens": int(held_out.size), "parameters": model.num_parameters(), "seed": options.seed,
        "minutes": round((time.perf_counter() - begin) / 60, 1), "stored_dtype": "float16",
    }  # fmt: skip
    save(model, options.out, notes)
    print(json.dumps(notes, indent=2))
    if not loss < bigram - 0.5:
        raise SystemExit(
            f"held-out loss {loss:.3f} does not clearly beat the bigram's {bigram:.3f}: train longer"
        )


if __name__ == "__main__":
    main()
