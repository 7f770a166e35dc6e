"""Every site of every architecture against a computation of its own."""

from __future__ import annotations

import sys

import pytest
import torch
import transformers
from capture_zoo import ALL, CAUSAL, ENCODERS, GATED, VOCAB, sequences, zoo
from torch import Tensor
from transformers import AutoModel, AutoModelForCausalLM

from interp.capture import Model, capture, steer, wrap
from interp.capture.sites import KINDS
from interp.capture.tape import Tape

PROMPT = sequences(1, (11,))
IDS = torch.tensor([PROMPT[0]["token_ids"]])
FINAL_NORM = {"gpt2": "ln_f", "gpt_neox": "final_layer_norm", "gpt_neox_serial": "final_layer_norm"}

#: Where the model itself reads resid_mid: (module of the block, does it see the sum or return its normalised
#: form).
MID_READERS = {
    "gpt2": "ln_2",
    "gpt_neox_serial": "post_attention_layernorm",
    "llama": "post_attention_layernorm",
    "mistral": "post_attention_layernorm",
    "qwen2": "post_attention_layernorm",
    "qwen3": "post_attention_layernorm",
    "gemma2": "pre_feedforward_layernorm",
    "gemma3": "pre_feedforward_layernorm",
    "phi3": "post_attention_layernorm",
    "opt": "final_layer_norm",
    "opt_post": "self_attn_layer_norm",
    "bert": "attention.output.LayerNorm",
    "minilm": "attention.output.LayerNorm",
    "roberta": "attention.output.LayerNorm",
}


def everything(name: str) -> tuple[Model, dict[str, Tensor]]:
    model = zoo(name)
    acts = capture(model, PROMPT, sites=["embed", *(f"{k}.*" for k in KINDS if k != "embed")])
    return model, {site: acts[site] for site in acts.sites}


def close(a: Tensor, b: Tensor, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(a, b.reshape(a.shape), rtol=0, atol=tolerance * float(b.abs().max()))


@pytest.mark.parametrize("name", ALL)
def test_residual_stream_is_hidden_states(name: str) -> None:
    model, acts = everything(name)
    with torch.no_grad():
        hidden = model.backbone(input_ids=IDS, output_hidden_states=True).hidden_states
        close(acts["embed"], hidden[0])
        close(acts["resid_pre.0"], hidden[0])
        for i in range(model.n_layers - 1):
            close(acts[f"resid_post.{i}"], hidden[i + 1])
            close(acts[f"resid_pre.{i + 1}"], hidden[i + 1])
        last = acts[f"resid_post.{model.n_layers - 1}"]
        if name not in (*ENCODERS, "opt_post"):
            last = model.backbone.get_submodule(
                FINAL_NORM.get(name, "final_layer_norm" if name == "opt" else "norm")
            )(last)
        elif name == "opt_post":
            last = model.backbone.project_out(last)
        close(last, hidden[-1])


@pytest.mark.parametrize("name", [n for n in ALL if n != "gpt_neox"])
def test_resid_mid_is_what_the_model_reads_after_attention(name: str) -> None:
    model, acts = everything(name)
    seen: list[Tensor] = []
    handles = [
        block.get_submodule(MID_READERS[name]).register_forward_pre_hook(
            lambda m, args: seen.append(args[0].clone())
        )
        for block in model.sites.blocks
    ]
    with torch.no_grad():
        model.backbone(input_ids=IDS)
    for handle in handles:
        handle.remove()
    for i, mid in enumerate(seen):
        close(acts[f"resid_mid.{i}"], mid)
        close(acts[f"resid_mid.{i}"] - acts[f"resid_pre.{i}"], acts[f"attn_out.{i}"], 2e-5)


def test_parallel_attention_adds_up() -> None:
    model, acts = everything("gpt_neox")
    for i, block in enumerate(model.sites.blocks):
        with torch.no_grad():
            mlp = block.mlp(block.post_attention_layernorm(acts[f"resid_pre.{i}"]))
        close(acts[f"mlp_out.{i}"], mlp)
        close(acts[f"resid_post.{i}"] - mlp - acts[f"resid_pre.{i}"], acts[f"attn_out.{i}"], 2e-5)
        close(acts[f"resid_mid.{i}"] + acts[f"mlp_out.{i}"], acts[f"resid_post.{i}"])


@pytest.mark.parametrize("name", ALL)
def test_mlp_sites(name: str) -> None:
    model, acts = everything(name)
    family = model.sites.family
    for i, block in enumerate(model.sites.blocks):
        with torch.no_grad():
            out = block.get_submodule(family.down)(acts[f"mlp_act.{i}"])
            if family.mlp_added:
                out = block.get_submodule(family.mlp_added)(out)
        close(acts[f"mlp_out.{i}"], out)
        assert acts[f"mlp_act.{i}"].shape == (11, *model.sites.row_shape(f"mlp_act.{i}"))
        if not family.post_norm and name != "opt_post":
            close(acts[f"resid_mid.{i}"] + acts[f"mlp_out.{i}"], acts[f"resid_post.{i}"])


@pytest.mark.parametrize("name", ALL)
def test_attention_sites_compute_attn_out(name: str) -> None:
    """softmax(q·k) is attn, and the output projection of attn·v is attn_out: head order and GQA included."""
    model, acts = everything(name)
    sites, family = model.sites, model.sites.family
    n, h, kv, d = 11, model.n_heads, model.n_kv_heads, model.head_dim
    for i, block in enumerate(sites.blocks):
        q = acts[f"q.{i}"].view(n, h, d).transpose(0, 1)
        k, v = (acts[f"{x}.{i}"].view(n, kv, d).transpose(0, 1) for x in "kv")
        attn = acts[f"attn.{i}"].transpose(0, 1)  # [heads, query, key]
        close(attn.sum(-1), torch.ones(h, n))
        if model.is_causal:
            assert not attn.triu(1).any()
        mixed = (attn @ v.repeat_interleave(h // kv, 0)).transpose(0, 1).reshape(n, h * d)
        with torch.no_grad():
            out = block.get_submodule(family.o)(mixed)
            if family.attn_added:
                out = block.get_submodule(family.attn_added)(out)
            close(acts[f"attn_out.{i}"], out)
            scores = raw_scores(model, block.get_submodule(family.attn), q, k.clone(), i)
        # Where the weight is 0 the key is masked; the others are a softmax of the scores.
        close(attn, torch.softmax(scores.masked_fill(attn == 0, -torch.inf), -1), 2e-5)


def raw_scores(model: Model, attention: torch.nn.Module, q: Tensor, k: Tensor, layer: int) -> Tensor:
    """q·k as the model's own rotary embedding and norms make it."""
    module = sys.modules[type(attention).__module__]
    if hasattr(attention, "q_norm"):
        q, k = attention.q_norm(q), attention.k_norm(k)
    if hasattr(module, "apply_rotary_pos_emb"):
        where = torch.arange(q.shape[1])[None]
        kinds = (model.config.layer_types[layer],) if type(attention).__name__ == "Gemma3Attention" else ()
        cos, sin = model.backbone.rotary_emb(q[None], where, *kinds)
        q, k = (x[0] for x in module.apply_rotary_pos_emb(q[None], k[None], cos, sin))
    k = k.repeat_interleave(q.shape[0] // k.shape[0], 0)
    scaling = 1 / q.shape[-1] ** 0.5 if type(attention).__name__ == "OPTAttention" else attention.scaling
    scores = q @ k.transpose(1, 2) * scaling
    cap = getattr(model.config, "attn_logit_softcapping", None)
    return scores if not cap else cap * torch.tanh(scores / cap)


def test_attention_weights_leave_the_implementation_as_it_was() -> None:
    model = zoo("llama")
    capture(model, PROMPT, sites="attn.1")
    assert model.hf.config._attn_implementation == "sdpa"


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ("resid_post.3", "layers 0 … 2"),
        ("resid_posts.1", r"resid_post\.0 … resid_post\.2"),
        ("resid_post", "unknown site"),
        ("embed.0", "unknown site"),
        ("resid_post.x", "unknown layer"),
        ([], "no sites"),
    ],
)
def test_unknown_sites_are_named(asked: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        zoo("llama").sites.resolve(asked)


def test_names_expand() -> None:
    sites = zoo("llama").sites
    assert sites.resolve("resid_post.*") == ("resid_post.0", "resid_post.1", "resid_post.2")
    assert sites.resolve("resid_post.-1, embed") == ("resid_post.2", "embed")
    assert sites.resolve(["q.1", "q.1"]) == ("q.1",)


def test_hooks_are_gone_after_any_exit() -> None:
    model = zoo("gpt2")

    def hooks() -> int:
        return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.hf.modules())

    before = hooks()
    capture(model, PROMPT, sites="resid_mid.*")

    def interrupted() -> None:
        with Tape(model, model.sites.resolve("resid_mid.*, q.1")):
            assert hooks() > before
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert hooks() == before

    def interrupted_at_once(self: Tape, source: object) -> object:
        if hooks() > before + 1:
            raise KeyboardInterrupt
        return real(self, source)

    real = Tape._hook
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Tape, "_hook", interrupted_at_once)
        with pytest.raises(KeyboardInterrupt), Tape(model, model.sites.resolve("resid_post.*")):
            pass
    assert hooks() == before


def test_a_model_whose_blocks_pass_on_something_else_is_refused() -> None:
    """Not even the state between the blocks is its hidden_states: nothing is offered."""
    model = wrap(transformers.LlamaForCausalLM(transformers.LlamaConfig(**GATED)))
    assert repr(model.sites).startswith("<Sites of llama (")
    model.sites.verified = False

    def one_too_few() -> tuple[Tensor, ...]:
        ids = torch.arange(8)[None]
        with torch.no_grad():
            return model.backbone(ids, output_hidden_states=True).hidden_states[1:]

    with pytest.raises(ValueError, match=r"'llama' is not supported: what its blocks pass on is not its hid"):
        model.sites.verify(one_too_few)
    assert not model.sites.verified


def test_a_model_that_gives_no_attention_weights_says_what_to_do() -> None:
    torch.manual_seed(0)
    model = wrap(transformers.LlamaForCausalLM(transformers.LlamaConfig(**GATED)))
    for block in model.sites.blocks:
        block.self_attn.register_forward_hook(lambda m, args, out: (out[0], None))
    with pytest.raises(ValueError, match="returned no attention weights; load it with attention='eager'"):
        capture(model, PROMPT, sites="attn.1")


# Architectures that the table does not promise: built like one that it knows, and checked before use.
OTHERS = {
    "granite": ("GraniteConfig", dict(GATED, residual_multiplier=0.3, embedding_multiplier=2.0)),
    "cohere": ("CohereConfig", GATED),
    "olmo2": ("Olmo2Config", GATED),
    "phi": ("PhiConfig", dict(GATED, num_key_value_heads=4)),
    "bloom": ("BloomConfig", {"vocab_size": VOCAB, "hidden_size": 32, "n_layer": 3, "n_head": 4}),
    "gptj": (
        "GPTJConfig",
        {"vocab_size": VOCAB, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 64, "rotary_dim": 4},
    ),
    "gpt_neo": (
        "GPTNeoConfig",
        {
            "vocab_size": VOCAB,
            "hidden_size": 32,
            "num_layers": 3,
            "num_heads": 4,
            "attention_types": [[["global", "local", "global"], 1]],
            "window_size": 6,
        },
    ),
    "falcon": (
        "FalconConfig",
        {
            "vocab_size": VOCAB,
            "hidden_size": 32,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "alibi": False,
        },
    ),
    "distilbert": (
        "DistilBertConfig",
        {"vocab_size": VOCAB, "dim": 32, "n_layers": 3, "n_heads": 4, "hidden_dim": 48},
    ),
    "electra": (
        "ElectraConfig",
        {
            "vocab_size": VOCAB,
            "hidden_size": 32,
            "embedding_size": 16,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "intermediate_size": 48,
        },
    ),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_architectures_are_checked_before_use(name: str) -> None:
    class_name, kwargs = OTHERS[name]
    torch.manual_seed(0)
    config = getattr(transformers, class_name)(**kwargs)
    auto = AutoModel if name in ("distilbert", "electra") else AutoModelForCausalLM
    model = wrap(auto.from_config(config), name=name)
    assert not model.sites.verified
    prompts = sequences(2, (5, 9, 14))
    kinds = model.sites.kinds()
    acts = capture(model, prompts, sites=[f"{k}.*" for k in kinds if k not in ("embed", "attn")], check=3)
    assert model.sites.verified
    assert max(acts.check.values()) < 1e-5
    if "resid_mid" in kinds and not model.sites.family.post_norm:
        close(acts["resid_mid.1"] + acts["mlp_out.1"], acts["resid_post.1"])
    v = torch.arange(32.0) / 32
    for site in ("resid_pre.0", "resid_post.1"):
        with steer(model, {site: v}, positions=[0, -1]):
            moved = capture(model, prompts, sites=site)[site] - acts[site]
        at = torch.tensor([0, 4, 5, 13, 14, 27])  # of 5, 9 and 14 tokens
        close(moved[at], v.expand(6, -1))
        assert moved.abs().sum() == moved[at].abs().sum()
    if model.is_causal:
        generated = capture(
            model, prompts, sites="resid_post.*", max_new_tokens=4, check=3, stop_at_eos=False
        )
        assert max(generated.check.values()) < 1e-5
        assert generated.n_tokens == acts.n_tokens + 12


def test_what_cannot_be_verified_is_not_offered() -> None:
    """A block that scales what it adds: between the blocks all is well, inside nothing is promised."""

    class Scaled(transformers.LlamaForCausalLM):
        pass

    torch.manual_seed(0)
    model = wrap(Scaled(transformers.LlamaConfig(**GATED)))
    model.sites.verified = False
    for block in model.sites.blocks:
        block.register_forward_hook(lambda m, args, out: out * 1.5)
    capture(model, PROMPT, sites="resid_post.1")
    with pytest.raises(ValueError, match=r"has embed, resid_pre\.0 … resid_pre\.2, resid_post"):
        capture(model, PROMPT, sites="resid_mid.1")


def test_an_architecture_without_blocks_is_refused() -> None:
    config = transformers.AlbertConfig(
        vocab_size=VOCAB, hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=48
    )
    with pytest.raises(ValueError, match=r"'albert' is not supported.*llama"):
        wrap(AutoModel.from_config(config))


def test_causal_names_are_complete() -> None:
    assert all(zoo(n).is_causal == (n in CAUSAL) for n in ALL)
