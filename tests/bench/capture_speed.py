"""Capture beside transformers alone and beside its peers: ``python tests/bench/capture_speed.py``.

A random Llama of 25 million parameters (8 layers, width 512), the same ids on every side, repeats
interleaved. With generation: 24 prompts × 50 tokens, one by one with and without a cache, in one batch by
transformers alone, and captured. Without: the residual stream behind every block, on the same padded batches,
by nnsight and TransformerLens where they are installed. Ratios are what counts; seconds are context.
"""

from __future__ import annotations

import argparse
import copy
import tempfile
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

from interp.capture import Model, capture, wrap
from interp.capture.batching import pack, pad


def random_llama() -> Model:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=2000,
        hidden_size=512,
        num_hidden_layers=8,
        num_attention_heads=8,
        intermediate_size=1376,
        max_position_embeddings=512,
        pad_token_id=0,
    )
    config.architectures = ["LlamaForCausalLM"]
    return wrap(LlamaForCausalLM(config), name="random-llama-25m")


def random_prompts(n: int, low: int, high: int) -> list[dict[str, Any]]:
    source = torch.Generator().manual_seed(1)
    lengths = torch.randint(low, high, (n,), generator=source).tolist()
    return [
        {"id": str(i), "token_ids": torch.randint(3, 2000, (k,), generator=source).tolist()}
        for i, k in enumerate(lengths)
    ]


@torch.no_grad()
def generate(model: Model, prompts: list[dict[str, Any]], new: int, *, use_cache: bool = True) -> None:
    tokens, mask, _ = pad([p["token_ids"] for p in prompts], 0, "left")
    settings = GenerationConfig(max_new_tokens=new, do_sample=False, use_cache=use_cache, pad_token_id=0)
    model.hf.generate(input_ids=tokens, attention_mask=mask, generation_config=settings)


def with_generation(model: Model, new: int) -> dict[str, tuple[Callable[[], Any], float]]:
    """Name → (what to run, factor to the whole work)."""
    prompts = random_prompts(24, 6, 24)
    vectors = {f"trait {i}": torch.randn(model.width) for i in range(4)}
    options: dict[str, Any] = dict(max_new_tokens=new, stop_at_eos=False, batch_tokens=1 << 20)  # noqa: C408
    return {
        "bare batch": (lambda: generate(model, prompts, new), 1),
        "captured, tier 2 projected": (
            lambda: capture(model, prompts, tier=2, vectors=vectors, **options),
            1,
        ),
        "captured, resid_post kept": (lambda: capture(model, prompts, sites="resid_post.*", **options), 1),
        "one by one": (lambda: [generate(model, [p], new) for p in prompts], 1),
        "one by one, no cache (2 of 24)": (
            lambda: [generate(model, [p], new, use_cache=False) for p in prompts[:2]],
            12,
        ),
    }


def forward_only(model: Model, budget: int) -> dict[str, tuple[Callable[[], Any], float]]:
    prompts = random_prompts(48, 20, 120)
    ids = [p["token_ids"] for p in prompts]
    batches = [pad([ids[i] for i in b], 0, "right")[:2] for b in pack([len(x) for x in ids], budget)]

    @torch.no_grad()
    def bare() -> None:
        for tokens, mask in batches:
            model.backbone(input_ids=tokens, attention_mask=mask, use_cache=False)

    cases: dict[str, tuple[Callable[[], Any], float]] = {
        "bare batches": (bare, 1),
        "captured": (lambda: capture(model, prompts, sites="resid_post.*", batch_tokens=budget), 1),
    }
    for name, make in (("nnsight", nnsight_case), ("TransformerLens", transformer_lens_case)):
        try:
            cases[name] = (make(model, batches), 1)
        except ImportError:
            print(f"{name} is not installed: left out")
    return cases


def nnsight_case(model: Model, batches: list[Any]) -> Callable[[], Any]:
    from nnsight import NNsight, save

    traced = NNsight(model.backbone)

    @torch.no_grad()
    def run() -> list[Any]:
        kept = []
        for tokens, mask in batches:
            with traced.trace(input_ids=tokens, attention_mask=mask, use_cache=False):
                states = save([layer.output for layer in traced.layers])
            kept.append([s[mask.bool()] for s in states])
        return kept

    return run


def transformer_lens_case(model: Model, batches: list[Any]) -> Callable[[], Any]:
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import AutoTokenizer

    from interp import tiny

    words = AutoTokenizer.from_pretrained(tiny.path())  # the bridge insists on one; only ids are used
    with tempfile.TemporaryDirectory() as folder:
        model.hf.save_pretrained(folder)
        bridge = TransformerBridge.boot_transformers(
            folder, hf_model=copy.deepcopy(model.hf), tokenizer=words
        )
    names = [f"blocks.{i}.hook_resid_post" for i in range(model.n_layers)]
    names = names if names[0] in bridge.hook_dict else [f"blocks.{i}.hook_out" for i in range(model.n_layers)]

    @torch.no_grad()
    def run() -> list[Any]:
        kept = []
        for tokens, mask in batches:
            _, cache = bridge.run_with_cache(
                tokens, attention_mask=mask, names_filter=lambda n: n in names, return_type=None
            )
            kept.append([cache[n][mask.bool()] for n in names])
        return kept

    return run


def compare(cases: dict[str, tuple[Callable[[], Any], float]], repeats: int) -> None:
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    for repeat in range(repeats + 1):
        for name, (run, factor) in cases.items():
            start = time.perf_counter()
            run()
            if repeat:  # the first is the warm-up
                seconds[name].append(factor * (time.perf_counter() - start))
    base = median(next(iter(seconds.values())))
    for name, times in seconds.items():
        middle = median(times)
        print(f"{name:32s} {middle:8.3f} s  ({min(times):.3f} … {max(times):.3f})  {middle / base:6.2f} ×")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--new-tokens", type=int, default=50)
    parser.add_argument("--batch-tokens", type=int, default=1024)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--forward-only", action="store_true", help="leave the generation out")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    model = random_llama()
    print(model)
    if not args.forward_only:
        print(f"\n24 prompts × {args.new_tokens} generated tokens")
        compare(with_generation(model, args.new_tokens), args.repeats)
    print("\n48 prompts, forward only, resid_post of every layer")
    compare(forward_only(model, args.batch_tokens), args.repeats)


if __name__ == "__main__":
    main()
