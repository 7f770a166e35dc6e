"""Capture beside transformers alone and beside its peers: ``python tests/bench/capture_speed.py [--quick]``.

A random Llama of 25 million parameters (8 layers, width 512), the same ids on every side, repeats
interleaved. With generation: 24 prompts × 50 tokens, one by one with and without a cache, in one batch by
transformers alone, and captured. Without: the residual stream behind every block, on the same padded batches,
by nnsight and TransformerLens where they are installed.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from table import Row, finish, interleaved, missing, parse, parser, ratio, timed
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

from interp.capture import Model, capture, wrap
from interp.capture.batching import pack, pad

GENERATING = "Capture with generation"
READING = "Capture without generation"

Job = Callable[[], Any]


def random_llama(n_layers: int = 8, width: int = 512) -> Model:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=2000,
        hidden_size=width,
        num_hidden_layers=n_layers,
        num_attention_heads=8,
        intermediate_size=width * 43 // 16,
        max_position_embeddings=512,
        pad_token_id=0,
    )
    config.architectures = ["LlamaForCausalLM"]
    return wrap(LlamaForCausalLM(config), name=f"random-llama-{n_layers}x{width}")


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


def with_generation(model: Model, n_prompts: int, new: int, repeats: int) -> list[Row]:
    prompts = random_prompts(n_prompts, 6, 24)
    few = prompts[:2]
    vectors = {f"trait {i}": torch.randn(model.width) for i in range(4)}
    options: dict[str, Any] = dict(max_new_tokens=new, stop_at_eos=False, batch_tokens=1 << 20)  # noqa: C408
    jobs: dict[str, Job] = {
        "bare": lambda: generate(model, prompts, new),
        "projected": lambda: capture(model, prompts, tier=2, vectors=vectors, **options),
        "kept": lambda: capture(model, prompts, sites="resid_post.*", **options),
        "alone": lambda: [generate(model, [p], new) for p in prompts],
        "no cache": lambda: [generate(model, [p], new, use_cache=False) for p in few],
        "cache": lambda: [generate(model, [p], new) for p in few],
    }
    seconds = in_turns(jobs, repeats)
    work = f"{n_prompts} prompts × {new} tokens"
    pairs = [
        ("one by one, cached ÷ captured, projected", "alone", "projected", work),
        ("captured, projected ÷ transformers alone", "projected", "bare", "one batch, all layers, 4 vectors"),
        ("captured, kept ÷ transformers alone", "kept", "bare", "one batch, resid_post of every layer"),
        ("without a cache ÷ with one", "no cache", "cache", f"{len(few)} prompts, one by one"),
    ]
    return [ratio(GENERATING, what, seconds[a], seconds[b], note=note) for what, a, b, note in pairs]


def forward_only(model: Model, n_prompts: int, budget: int, repeats: int) -> list[Row]:
    prompts = random_prompts(n_prompts, 20, 120)
    ids = [p["token_ids"] for p in prompts]
    batches = [pad([ids[i] for i in b], 0, "right")[:2] for b in pack([len(x) for x in ids], budget)]

    @torch.no_grad()
    def bare() -> None:
        for tokens, mask in batches:
            model.backbone(input_ids=tokens, attention_mask=mask, use_cache=False)

    jobs: dict[str, Job] = {
        "bare": bare,
        "captured": lambda: capture(model, prompts, sites="resid_post.*", batch_tokens=budget),
    }
    peers = {
        "nnsight": ("nnsight", nnsight_case),
        "TransformerLens": ("transformer-lens", transformer_lens_case),
    }
    absent, about = {}, {}
    for name, (package, make) in peers.items():
        try:
            about[name] = f"{package} {version(package)}"
            job = make(model, batches)
            job()
            jobs[name] = job
        except (ImportError, PackageNotFoundError):
            absent[name] = "not installed"
        except Exception as error:  # of whatever kind: a peer that does not run here ends nothing
            absent[name] = f"{about[name]} did not run: {type(error).__name__}: {str(error)[:60]}"
    seconds = in_turns(jobs, repeats)
    note = f"{n_prompts} prompts in padded batches ({len(batches)}), resid_post of every layer"
    rows = [ratio(READING, "captured ÷ transformers alone", seconds["captured"], seconds["bare"], note=note)]
    for name in peers:
        what = f"{name} ÷ captured"
        rows.append(
            missing(READING, what, absent[name])
            if name in absent
            else ratio(READING, what, seconds[name], seconds["captured"], note=f"{about[name]}, same batches")
        )
    return rows


def nnsight_case(model: Model, batches: list[Any]) -> Job:
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


def transformer_lens_case(model: Model, batches: list[Any]) -> Job:
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


def in_turns(jobs: dict[str, Job], repeats: int) -> dict[str, list[float]]:
    for job in jobs.values():
        job()  # warm up
    return interleaved({name: (lambda job=job: timed(job)) for name, job in jobs.items()}, repeats)


def main(arguments: Sequence[str] | None = None) -> list[Row]:
    """Measure, and write ``capture_speed.csv`` and the table."""
    options = parse(parser(__doc__), arguments)
    model, generated, new, read = random_llama(), 24, 50, 48
    if options.quick:
        model, generated, new, read = random_llama(2, 64), 4, 3, 4
    print(model)
    rows = with_generation(model, generated, new, options.repeats)
    rows += forward_only(model, read, 1024, options.repeats)
    return finish("capture_speed", rows, options)


if __name__ == "__main__":
    main()
