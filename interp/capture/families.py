"""Families of architectures: where the parts of a block are.

One table. A model belongs to the first family whose modules its blocks all have; what the tests do not cover
is checked on a few tokens before its first use (`interp.capture.sites.Sites.verify`).
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["FAMILIES", "OUTSIDE", "Family", "supported"]


@dataclass(frozen=True)
class Family:
    """Where the parts of a block are, as attribute paths from the block.

    Attributes
    ----------
    name : str
        Shown in errors and manifests.
    attn : str
        Module that returns ``(output, weights)``.
    o, down : str
        Output projections of attention and MLP.
    qkv : tuple of str
        The three projections, or the fused one.
    fused : str
        How a fused one is laid out: ``"blocks"`` is [q | k | v], ``"heads"`` is [head, q | k | v].
    attn_added, mlp_added : str
        Modules whose output is added to the residual stream; `o` and `down` if empty.
    post_norm : bool
        The block normalises the sums, so ``resid_mid + mlp_out`` is not ``resid_post``.
    model_types : tuple of str
        transformers model types on which tests compare every site with an independent computation. Others
        that match are checked on a few tokens before their first use (`Sites.verify`).
    only : tuple of str
        If given, no other model type matches: the fused layout cannot be told from the modules.
    """

    name: str
    attn: str
    o: str
    down: str
    qkv: tuple[str, ...] = ()
    fused: str = ""
    attn_added: str = ""
    mlp_added: str = ""
    post_norm: bool = False
    model_types: tuple[str, ...] = ()
    only: tuple[str, ...] = ()

    def paths(self) -> set[str]:
        """Every path that a block of this family has."""
        found = {self.attn, self.o, self.down, *self.qkv, self.attn_added, self.mlp_added}
        return found - {""}


def _three(prefix: str, names: str = "q_proj k_proj v_proj") -> tuple[str, ...]:
    return tuple(f"{prefix}.{name}" for name in names.split())


#: The first family whose paths exist in all blocks is taken, so stricter ones stand first.
FAMILIES = (
    Family(
        "gemma",
        attn="self_attn",
        o="self_attn.o_proj",
        down="mlp.down_proj",
        qkv=_three("self_attn"),
        attn_added="post_attention_layernorm",
        mlp_added="post_feedforward_layernorm",
        model_types=("gemma2", "gemma3_text", "gemma3"),
    ),
    Family(
        "glm",
        attn="self_attn",
        o="self_attn.o_proj",
        down="mlp.down_proj",
        qkv=_three("self_attn"),
        attn_added="post_self_attn_layernorm",
        mlp_added="post_mlp_layernorm",
    ),
    Family(
        "llama",
        attn="self_attn",
        o="self_attn.o_proj",
        down="mlp.down_proj",
        qkv=_three("self_attn"),
        model_types=("llama", "mistral", "qwen2", "qwen3"),
    ),
    Family("starcoder2", attn="self_attn", o="self_attn.o_proj", down="mlp.c_proj", qkv=_three("self_attn")),
    Family(
        "phi3",
        attn="self_attn",
        o="self_attn.o_proj",
        down="mlp.down_proj",
        qkv=("self_attn.qkv_proj",),
        fused="blocks",
        model_types=("phi3",),
        only=("phi3",),
    ),
    Family("phi", attn="self_attn", o="self_attn.dense", down="mlp.fc2", qkv=_three("self_attn")),
    Family(
        "opt",
        attn="self_attn",
        o="self_attn.out_proj",
        down="fc2",
        qkv=_three("self_attn"),
        model_types=("opt",),
        only=("opt",),
    ),
    Family(
        "gpt2",
        attn="attn",
        o="attn.c_proj",
        down="mlp.c_proj",
        qkv=("attn.c_attn",),
        fused="blocks",
        model_types=("gpt2",),
        only=("gpt2",),
    ),
    Family(
        "gpt_neo",
        attn="attn",
        o="attn.attention.out_proj",
        down="mlp.c_proj",
        qkv=_three("attn.attention"),
    ),
    Family("gptj", attn="attn", o="attn.out_proj", down="mlp.fc_out", qkv=_three("attn")),
    Family(
        "gpt_neox",
        attn="attention",
        o="attention.dense",
        down="mlp.dense_4h_to_h",
        qkv=("attention.query_key_value",),
        fused="heads",
        model_types=("gpt_neox",),
        only=("gpt_neox",),
    ),
    Family(
        "bloom",
        attn="self_attention",
        o="self_attention.dense",
        down="mlp.dense_4h_to_h",
        qkv=("self_attention.query_key_value",),
        fused="heads",
        only=("bloom",),
    ),
    Family(
        "bert",
        attn="attention.self",
        o="attention.output.dense",
        down="output.dense",
        qkv=_three("attention.self", "query key value"),
        post_norm=True,
        model_types=("bert", "roberta"),
    ),
    Family(
        "distilbert",
        attn="attention",
        o="attention.out_lin",
        down="ffn.lin2",
        qkv=_three("attention", "q_lin k_lin v_lin"),
        post_norm=True,
    ),
    Family(
        "mpnet",
        attn="attention.attn",
        o="attention.attn.o",
        down="output.dense",
        qkv=_three("attention.attn", "q k v"),
        post_norm=True,
    ),
    Family(
        "modernbert",
        attn="attn",
        o="attn.Wo",
        down="mlp.Wo",
        qkv=("attn.Wqkv",),
        fused="blocks",
        only=("modernbert",),
    ),
)

#: For any other architecture with a list of blocks: the residual stream between the blocks, nothing inside
#: them.
OUTSIDE = Family("blocks only", attn="", o="", down="")


def supported() -> list[str]:
    """The transformers model types whose every site is verified by the tests."""
    return sorted(t for family in FAMILIES for t in family.model_types)
