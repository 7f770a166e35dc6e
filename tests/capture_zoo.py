"""Tiny random models of every architecture that capture promises, and a tokenizer for them."""

from __future__ import annotations

import functools
from typing import Any

import torch
import transformers
from transformers import AutoModel, AutoModelForCausalLM

from interp.capture.model import Model, wrap

VOCAB = 96
COMMON: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GATED = dict(COMMON, intermediate_size=48, num_key_value_heads=2, head_dim=8)
ENCODER = dict(
    {k: v for k, v in COMMON.items() if k not in ("bos_token_id", "eos_token_id")}, intermediate_size=48
)

CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": (
        "GPT2Config",
        {
            "vocab_size": VOCAB,
            "n_embd": 32,
            "n_layer": 3,
            "n_head": 4,
            "n_positions": 64,
            "bos_token_id": 1,
            "eos_token_id": 2,
        },
    ),
    "gpt_neox": ("GPTNeoXConfig", dict(COMMON, intermediate_size=48)),
    "gpt_neox_serial": ("GPTNeoXConfig", dict(COMMON, intermediate_size=48, use_parallel_residual=False)),
    "llama": ("LlamaConfig", GATED),
    "mistral": ("MistralConfig", dict(GATED, sliding_window=6)),
    "qwen2": ("Qwen2Config", {k: v for k, v in GATED.items() if k != "head_dim"}),
    "qwen3": ("Qwen3Config", GATED),
    "gemma2": ("Gemma2Config", dict(GATED, sliding_window=6, query_pre_attn_scalar=8)),
    "gemma3": (
        "Gemma3TextConfig",
        dict(
            GATED,
            sliding_window=6,
            query_pre_attn_scalar=8,
            layer_types=["sliding_attention", "sliding_attention", "full_attention"],
        ),
    ),
    "phi3": ("Phi3Config", {k: v for k, v in GATED.items() if k != "head_dim"}),
    "opt": ("OPTConfig", dict(COMMON, ffn_dim=48, word_embed_proj_dim=32)),
    "opt_post": ("OPTConfig", dict(COMMON, ffn_dim=48, word_embed_proj_dim=16, do_layer_norm_before=False)),
    "bert": ("BertConfig", ENCODER),
    # MiniLM is a BERT of its own proportions, without a pooler's use and with one kind of segment.
    "minilm": ("BertConfig", dict(ENCODER, hidden_size=48, num_attention_heads=12, type_vocab_size=1)),
    "roberta": ("RobertaConfig", dict(ENCODER, pad_token_id=1, max_position_embeddings=66)),
}
CAUSAL = list(CONFIGS)[:12]
ENCODERS = list(CONFIGS)[12:]
ALL = list(CONFIGS)


@functools.cache
def tokenizer() -> Any:
    """Words ``w3`` … ``w95`` are tokens; a BOS is put first; a chat template writes its own BOS."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    vocab = {"<pad>": 0, "<s>": 1, "</s>": 2, **{f"w{i}": i for i in range(3, VOCAB)}}
    core = Tokenizer(models.WordLevel(vocab, unk_token="w3"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    made = transformers.PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    )
    made.chat_template = (
        "{{ '<s> ' }}{% for m in messages %}"
        "{% if m['role'] == 'tool' %}{{ raise_exception('no tools here') }}{% endif %}"
        "{{ 'w5 ' if m['role'] == 'user' else 'w6 ' if m['role'] == 'assistant' else 'w4 ' }}"
        "{{ m['content'] + ' ' }}{% endfor %}{% if add_generation_prompt %}{{ 'w6 ' }}{% endif %}"
    )
    return made


@functools.cache
def zoo(name: str, dtype: torch.dtype = torch.float32, attention: str = "auto") -> Model:
    """A random model whose norms, biases and positions matter (fresh ones are ones and zeros)."""
    class_name, kwargs = CONFIGS[name]
    config = getattr(transformers, class_name)(**kwargs)
    if attention == "auto":
        attention = "eager" if name == "gemma2" else "sdpa"
    config._attn_implementation = attention
    torch.manual_seed(sum(map(ord, name)))
    auto = AutoModel if name in ENCODERS else AutoModelForCausalLM
    hf = auto.from_config(config)
    with torch.no_grad():
        for p in hf.parameters():
            p.add_(torch.randn_like(p) * (0.1 if p.ndim == 1 else 0.08))
    return wrap(hf.to(dtype), tokenizer(), name=name)


def sequences(seed: int = 0, lengths: tuple[int, ...] = (5, 12, 1, 9, 20, 3)) -> list[dict[str, Any]]:
    """Prompts as token ids, of very different lengths."""
    source = torch.Generator().manual_seed(seed)
    return [
        {"id": f"p{i}", "token_ids": torch.randint(3, VOCAB, (n,), generator=source).tolist()}
        for i, n in enumerate(lengths)
    ]
